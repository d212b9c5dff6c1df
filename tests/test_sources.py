from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from stdserve.cli import main, read_command_line
from stdserve.config import Config
from stdserve.errors import ConfigError
from stdserve.sources import gather, show


def read(folder: Path, *argv: str, **environ: str) -> Config:
    return read_command_line(argv, environ, str(folder))


def write(folder: Path, **files: str) -> None:
    for name, text in files.items():
        (folder / name.replace("_", ".")).write_text(text)


def test_order_of_the_sources(tmp_path: Path) -> None:
    write(tmp_path, stdserve_toml='app = "a:b"\nport = 1\nbacklog = 11\nthreads = 111\nworkers = "auto"\n')
    config = read(tmp_path, "--port", "3", STDSERVE_PORT="2", STDSERVE_BACKLOG="22")
    assert (config.app, config.port, config.backlog, config.threads) == ("a:b", 3, 22, 111)
    found = gather({"port": 3}, {"STDSERVE_BACKLOG": "22", "WEB_CONCURRENCY": "4"}, str(tmp_path))
    assert [found[name].source for name in ("host", "app", "backlog", "workers", "port")] == [
        "default", "stdserve.toml", "STDSERVE_BACKLOG", "WEB_CONCURRENCY", "command line",
    ]  # fmt: skip
    assert found["workers"].value == 4


def test_names_of_others_and_dashes(tmp_path: Path) -> None:
    lines = ('app = "a:b"', "limit-max-requests = 5", 'accesslog = "x"', 'loglevel = "debug"', "keep-alive = 3")
    write(tmp_path, stdserve_toml="\n".join(lines))
    config = read(tmp_path)
    assert (config.app, config.max_requests, config.access_log_file) == ("a:b", 5, "x")
    assert (config.log_level, config.timeout_keep_alive) == ("debug", 3.0)


def test_files_that_are_found(tmp_path: Path) -> None:
    write(tmp_path, stdserve_json='{"app": "json:app", "workers": 4, "access_log": false}')
    assert read(tmp_path).app == "json:app"
    write(tmp_path, pyproject_toml='[project]\nname = "x"\n')
    assert read(tmp_path).workers == 4
    write(tmp_path, pyproject_toml='[tool.stdserve]\napp = "pyproject:app"\n')
    assert read(tmp_path).app == "pyproject:app"
    write(tmp_path, stdserve_toml='app = "own:app"\n')
    assert read(tmp_path).app == "own:app"
    write(tmp_path, other_toml='app = "other:app"\n')
    assert read(tmp_path, "-c", "other.toml").app == "other:app"
    assert read(tmp_path, STDSERVE_CONFIG=str(tmp_path / "other.toml")).app == "other:app"


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("none.toml", None, "--config .*none.toml: No such file or directory"),
        ("a.toml", "x = [", "a.toml is not TOML: "),
        ("a.json", "{", "a.json is not JSON: "),
        ("a.json", "[]", "a.json: options are name-value pairs, not list"),
        ("a.yaml", "", "--config a.yaml: write options in a .toml or .json file"),
        ("a.toml", "\xff", None),
        ("pyproject.toml", "", r"pyproject.toml has no table \[tool.stdserve\]"),
        ("a.toml", "prot = 1", "a.toml: unknown option 'prot'; did you mean port\\?"),
        ("a.toml", "port = -1", "a.toml: port: -1 is less than 0"),
        ("a.toml", "[server]\nport = 1", "a.toml: unknown option 'server'"),
        ("a.toml", "port = 1\n[port2]", "a.toml: unknown option 'port2'"),
        ("a.toml", 'keep-alive = 1\ntimeout_keep_alive = 2', "a.toml: .* the same option"),
    ],
)
def test_files_that_cannot_be_used(tmp_path: Path, name: str, text: str | None, message: str | None) -> None:
    if text is not None:
        (tmp_path / name).write_text(text, encoding="latin-1")
    with pytest.raises(ConfigError, match=message):
        read(tmp_path, "a:b", "--config", name)


@pytest.mark.parametrize(
    ("file", "argv", "address"),
    [
        ({"bind": ["a:1"]}, ["--port", "2"], ((), "127.0.0.1", 2, "", None)),
        ({"uds": "/x"}, ["--host", "h"], ((), "h", 8000, "", None)),
        ({"host": "h"}, ["--port", "2"], ((), "h", 2, "", None)),
        ({"fd": 3}, ["-b", "a:1"], (("a:1",), "127.0.0.1", 8000, "", None)),
        ({"fd": 3}, ["--uds", "/y"], ((), "127.0.0.1", 8000, "/y", None)),
        ({"port": 5}, ["-b", "a:1"], (("a:1",), "127.0.0.1", 5, "", None)),
        ({"bind": ["a:1"]}, ["--fd", "3"], (("a:1",), "127.0.0.1", 8000, "", 3)),
    ],
)
def test_address_of_a_higher_source_replaces_that_of_a_lower(
    tmp_path: Path, file: dict[str, Any], argv: list[str], address: tuple[Any, ...]
) -> None:
    (tmp_path / "stdserve.json").write_text(json.dumps(file))
    config = read(tmp_path, "a:b", *argv)
    assert (config.bind, config.host, config.port, config.uds, config.fd) == address


def test_print_config_shows_values_and_sources(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path, stdserve_toml='bind = "a:1"\n')
    assert main(["--print-config", "--no-access-log"]) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert {'bind = ["a:1"] # stdserve.toml', "access_log = false # command line", 'app = "" # default'} <= set(lines)


def test_print_config_shows_no_password() -> None:
    found = gather({}, {}, "/")
    found["ssl_keyfile_password"] = found["app"]._replace(value="secret")
    assert 'ssl_keyfile_password = "***"' in show(found) and "secret" not in show(found)


def test_check_config_loads_the_application(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    name = f"checked_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text("def app(environ, start_response): ...\nbroken = 1\n")
    assert main(["--check-config", "--app-dir", str(tmp_path), f"{name}:app"]) == 0
    assert capsys.readouterr().out == f"{name}:app: wsgi, the configuration can be used\n"
    assert main(["--check-config", "--app-dir", str(tmp_path), f"{name}:none"]) == 1
    assert "has no attribute 'none'" in capsys.readouterr().err
