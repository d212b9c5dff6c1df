"""The command line: what becomes of arguments and environment, what is printed, and the exit codes."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
import types
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import stdserve
from stdserve.cli import help_text, main, read_command_line
from stdserve.config import OPTIONS, Config
from stdserve.errors import AppLoadError, BindError, ConfigError, LifespanError

PACKAGE = Path(stdserve.__file__).parent


class Fakes:
    """Stand in for the modules logs and server. `events` is what happened; what `on_*` raise passes through."""

    stuck = cut = False

    def __init__(self) -> None:
        self.events: list[Any] = []
        self.on_logging: Callable[[], None] = lambda: None
        self.on_run: Callable[[], None] = lambda: None

    def configure_logging(self, config: Config) -> None:
        self.on_logging()
        self.events.append(("logging", config))

    def make_server(self, config: Config, **calls: object) -> Fakes:
        self.events.append(("server", config))
        return self

    def run(self) -> None:
        self.on_run()
        self.events.append("run")


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> Fakes:
    found = Fakes()
    for name, members in (
        ("stdserve.logs", {"configure_logging": found.configure_logging}),
        ("stdserve.server", {"Server": found.make_server}),
    ):
        module = types.ModuleType(name)
        vars(module).update(members)
        monkeypatch.setitem(sys.modules, name, module)
    # Its timer would end the tests' own process
    monkeypatch.setattr("stdserve.cli._end_in_time", lambda code, seconds: None)
    for name in [name for name in os.environ if name.startswith("STDSERVE_") or name == "FORWARDED_ALLOW_IPS"]:
        monkeypatch.delenv(name)
    return found


def raiser(error: BaseException) -> Callable[[], None]:
    def fail() -> None:
        raise error

    return fail


def read(*argv: str, **environ: str) -> Config:
    return read_command_line(argv, environ)


def usage_error(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """The line after the usage."""
    assert main(argv) == 2
    out, err = capsys.readouterr()
    usage, line, end = err.split("\n")
    assert (out, end) == ("", "")
    assert usage == "usage: stdserve [options] module:attribute"
    return line.removeprefix("stdserve: error: ")


# Arguments


def test_application_alone_gives_the_defaults() -> None:
    assert read("main:app") == Config(app="main:app")


@pytest.mark.parametrize(
    "argv", [["main:app", "--port", "80"], ["--port", "80", "main:app"], ["--port=80", "--", "main:app"]]
)
def test_options_before_and_after_the_application(argv: list[str]) -> None:
    assert read(*argv) == Config(app="main:app", port=80)


SAMPLES = {
    "PATH": "/x", "TEXT": "x", "N": "7", "SIZE": "2k", "DURATION": "1m", "OCTAL": "600", "LIST": "for", "PORT": "9",
    "HOST": "h", "ADDRESS": "a:1", "'NAME: VALUE'": "A: b",
}  # fmt: skip


@pytest.mark.parametrize("flag", [flag for row in OPTIONS.values() for flag in row.flags if row.name != "config"])
def test_every_flag(flag: str) -> None:
    row = next(row for row in OPTIONS.values() if flag in row.flags)
    if row.metavar:
        text = SAMPLES.get(row.metavar) or row.metavar.lower().split("|")[-1]
        assert getattr(read("a:b", flag, text), row.name) == row.check([text] if row.repeatable else text)
    else:
        assert getattr(read("a:b", flag), row.name) is True
        opposite = next(each for each in row.spellings if each.startswith("--no-"))
        assert getattr(read("a:b", flag, opposite), row.name) is False


def test_repeatable_and_list_options() -> None:
    config = read(
        "a:b", "-b", "a:1", "--bind", "unix:/tmp/a,b", "--header", "A: b, C: d", "--header=E:f",
        "--forwarded-allow-ips", "10.0.0.1,/run/x", "--access-logfile", "-",
    )  # fmt: skip
    assert config.bind == ("a:1", "unix:/tmp/a,b")
    assert config.headers == (("A", "b, C: d"), ("E", "f"))
    assert config.forwarded_allow_ips == ("10.0.0.1", "/run/x")
    assert config.access_log_file == "-"


def test_last_of_two_flags_of_one_option_wins() -> None:
    assert read("a:b", "--keep-alive", "1", "--timeout-keep-alive", "2").timeout_keep_alive == 2.0


def test_environment_is_below_the_command_line() -> None:
    config = read("a:b", "--port", "1", STDSERVE_PORT="2", STDSERVE_HOST="h", STDSERVE_BIND="x:1")
    assert (config.port, config.host, config.bind) == (1, "h", ())  # --port is another address than STDSERVE_BIND
    assert read("--bind", "y:1", STDSERVE_APP="c:d", STDSERVE_BIND="x:1") == Config(app="c:d", bind=("y:1",))


def test_negative_number_is_a_value_not_a_flag(capsys: pytest.CaptureFixture[str]) -> None:
    assert usage_error(capsys, "a:b", "--port", "-1") == "--port: -1 is less than 0"


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (["--prot", "80", "a:b"], "unknown option --prot; did you mean --port?"),
        (["a:b", "--prot=80"], "unknown option --prot; did you mean --port?"),
        (["a:b", "--no-acess-log"], "unknown option --no-acess-log; did you mean --no-access-log?"),
        (["a:b", "--spew", "4"], "unknown option --spew"),
        (["a:b", "--host-name"], "unknown option --host-name"),
        (["a:b", "--por", "80"], "unknown option --por; did you mean --port?"),
        (["a:b", "-x"], "unknown option -x"),
        (["a:b", "c:d"], "unexpected argument 'c:d': give one application, and options as --name value"),
        (["a:b", "--port"], "argument --port: expected one argument"),
        (["a:b", "--port", "x"], "--port: 'x' is not a whole number"),
        (["a:b", "--worker-connections", "x"], "--limit-connections: 'x' is not a whole number"),
        (["a:b", "--header", "x"], "--header: 'x' is not a header; write it as 'Name: value'"),
        ([], "no application given; name its module and attribute, as in: stdserve main:app"),
        (["--port", "80"], "no application given; name its module and attribute, as in: stdserve main:app"),
    ],
)
def test_usage_errors(fakes: Fakes, capsys: pytest.CaptureFixture[str], argv: list[str], line: str) -> None:
    assert usage_error(capsys, *argv) == line
    assert fakes.events == []


# Help and version


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    out, err = capsys.readouterr()
    words = out.split()
    assert words[:3] + words[5:6] == ["stdserve", stdserve.__version__, "with", "on"]
    assert words[4] == ".".join(map(str, sys.version_info[:3])) or sys.version_info.releaselevel != "final"
    assert err == ""


def test_help_has_groups_flags_defaults_and_units(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert out.startswith("usage: stdserve [options] module:attribute\n\nServe")
    text = " ".join(out.split())
    for row in OPTIONS.values():
        assert f"\n{row.group}:\n" in out
        assert f"{row.help} (default: {row.show_default()})" in text
        for flag in row.flags:
            assert flag in text
    assert "  --timeout-keep-alive, --keep-alive DURATION\n" in out
    assert "  --access-log, --no-access-log\n" in out


@pytest.mark.parametrize("columns", [1, 40, 80, 100])
def test_help_is_wrapped(columns: int) -> None:
    indented = [line for line in help_text(columns).splitlines() if line.startswith(" " * 8)]
    assert max(map(len, indented)) <= max(columns, 40)


# Exit codes


def test_run_in_order(fakes: Fakes) -> None:
    config = Config(app="main:app", threads=3)
    assert main(["main:app", "--threads", "3"]) == 0
    assert fakes.events == [("logging", config), ("server", config), "run"]


def test_argv_of_the_process(fakes: Fakes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["stdserve", "x:y"])
    assert main() == 0
    assert fakes.events[0] == ("logging", Config(app="x:y"))


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (BindError("127.0.0.1:80 is already in use"), 1),
        (ConfigError("no"), 1),
        (LifespanError("startup failed"), 3),
        (AppLoadError("no module 'main'", exit_code=3), 3),
        (AppLoadError("main:app is a list"), 4),
    ],
)
def test_start_error_is_one_line_in_the_log(
    fakes: Fakes, caplog: pytest.LogCaptureFixture, error: Any, code: int
) -> None:
    fakes.on_run = raiser(error)
    assert main(["main:app"]) == code
    assert caplog.record_tuples == [("stdserve.error", logging.ERROR, str(error))]
    assert caplog.records[0].exc_info is None


def test_details_of_the_application_come_before_the_line(fakes: Fakes, caplog: pytest.LogCaptureFixture) -> None:
    fakes.on_run = raiser(AppLoadError("main cannot be imported", exit_code=3, details="Traceback: 100%s\n"))
    assert main(["main:app"]) == 3
    assert caplog.messages == ["Traceback: 100%s", "main cannot be imported"]


def test_error_before_the_log_is_up_goes_to_stderr(fakes: Fakes, capsys: pytest.CaptureFixture[str]) -> None:
    fakes.on_logging = raiser(ConfigError("--log-config: 'x.json' does not exist"))
    assert main(["main:app"]) == 1
    assert capsys.readouterr() == ("", "stdserve: error: --log-config: 'x.json' does not exist\n")
    assert fakes.events == []


def test_error_in_the_environment_is_no_usage_error(
    fakes: Fakes, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STDSERVE_PORT", "x")
    assert main(["main:app"]) == 1
    assert capsys.readouterr().err == "stdserve: error: STDSERVE_PORT: 'x' is not a whole number\n"


def test_interrupt_before_the_server_has_the_signals(fakes: Fakes, capsys: pytest.CaptureFixture[str]) -> None:
    fakes.on_run = raiser(KeyboardInterrupt())
    assert main(["main:app"]) == 130
    fakes.on_logging = raiser(KeyboardInterrupt())
    assert main(["main:app"]) == 130
    assert capsys.readouterr() == ("", "")


def test_other_errors_are_not_hidden(fakes: Fakes) -> None:
    fakes.on_run = raiser(BrokenPipeError())
    with pytest.raises(BrokenPipeError):
        main(["main:app"])


# As a program


def run(*argv: str, path: Path = PACKAGE.parent, **settings: Any) -> subprocess.CompletedProcess[str]:
    environ = {**os.environ, "PYTHONPATH": str(path), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(
        [sys.executable, *argv], env=environ, text=True, timeout=30, **{"capture_output": True, **settings}
    )


def test_module() -> None:
    done = run("-m", "stdserve", "--version")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"stdserve {stdserve.__version__} with ")
    assert run("-m", "stdserve").returncode == 2


def test_under_another_name(tmp_path: Path) -> None:
    shutil.copytree(PACKAGE, tmp_path / "mine/_vendor/stdserve", ignore=shutil.ignore_patterns("__pycache__"))
    done = run("-m", "mine._vendor.stdserve", "--prot", path=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.endswith("\nstdserve: error: unknown option --prot; did you mean --port?\n")


def test_from_a_zip(tmp_path: Path) -> None:
    archive = tmp_path / "packages.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for name in ("__init__", "__main__", "cli", "config", "errors"):
            file.write(PACKAGE / f"{name}.py", f"stdserve/{name}.py")
    done = run("-m", "stdserve", "--help", path=archive)
    assert (done.returncode, done.stderr) == (0, "")


def test_help_into_a_pipe_that_nobody_reads() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = run("-m", "stdserve", "--help", capture_output=False, stdout=writer, stderr=subprocess.PIPE)
    finally:
        os.close(writer)
    assert (done.returncode, done.stderr) == (0, "")


def test_command_line_imports_neither_server_nor_asyncio() -> None:
    code = "import sys, stdserve.cli; stdserve.cli.main(['--version']); print(*sys.modules)"
    modules = run("-c", code).stdout.split()
    assert "stdserve.config" in modules
    assert not {"stdserve.server", "stdserve.logs", "asyncio", "socket"} & set(modules)
