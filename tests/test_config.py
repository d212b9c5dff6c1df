"""The option table: forms of values, names elsewhere, environment, what is refused and in which words."""

from __future__ import annotations

import dataclasses
import logging
import pathlib
import re
import typing
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stdserve.config import (
    MOST_FIELDS,
    NAMES,
    OPTIONS,
    Config,
    did_you_mean,
    environment_values,
    options_markdown,
    own_names,
)
from stdserve.errors import ConfigError
from stdserve.values import GIB, KIB, MIB, SWITCH, available_cpus


def refusal(**values: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        Config(**values)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# The table


def test_defaults_are_valid_and_in_their_one_form() -> None:
    config = Config()
    for row in OPTIONS.values():
        assert getattr(config, row.name) == row.default
        assert type(getattr(config, row.name)) is type(row.default)


def test_defaults_have_the_type_that_the_field_names() -> None:
    for name, hint in typing.get_type_hints(Config).items():
        if hint is not Any:
            allowed = [typing.get_origin(each) or each for each in typing.get_args(hint) or (hint,)]
            kinds = [tuple] if typing.get_origin(hint) is tuple else allowed
            assert type(OPTIONS[name].default) in kinds, name


def test_config_is_frozen_slotted_and_keyword_only() -> None:
    config = Config()
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.port = 1  # type: ignore[misc]
    assert not hasattr(config, "__dict__")
    with pytest.raises(TypeError):
        Config("main:app")  # type: ignore[call-arg]


def test_replace_checks_again_and_keeps_the_rest() -> None:
    config = Config(port=1, headers=(("A", "b"),))
    assert dataclasses.replace(config, host="::1") == Config(host="::1", port=1, headers=(("A", "b"),))
    with pytest.raises(ConfigError):
        dataclasses.replace(config, port=-1)


def test_every_flag_and_variable_belongs_to_one_option() -> None:
    flags = [flag for row in OPTIONS.values() for flag in row.spellings]
    variables = [variable for row in OPTIONS.values() for variable in row.variables]
    assert len(flags) == len(set(flags))
    assert len(variables) == len(set(variables))


def test_no_name_means_two_options() -> None:
    for row in OPTIONS.values():
        for name in (row.name, *row.uvicorn, *row.gunicorn):
            assert NAMES[name] == row.name


def test_every_row_has_a_group_a_help_and_a_metavar() -> None:
    for row in OPTIONS.values():
        assert row.group, row.name
        assert row.help, row.name
        assert bool(row.metavar) != (row.kind is SWITCH), row.name


def test_flag_is_the_name_with_dashes_but_for_a_few() -> None:
    different = {row.name for row in OPTIONS.values() if row.flag != "--" + row.name.replace("_", "-")}
    many = {"headers", "reload_dirs", "reload_includes", "reload_excludes", "reload_extra_files"}  # one at a time
    assert different == {"app", "access_log_file", "error_log_file", *many}


# Values


@pytest.mark.parametrize(
    ("given", "seconds"),
    [
        (30, 30.0), (0, 0.0), (2.5, 2.5), ("30", 30.0), ("0.25", 0.25), ("30s", 30.0), ("1.5s", 1.5), ("5m", 300.0),
        ("1h30m", 5400.0), ("500ms", 0.5), ("1m500ms", 60.5), ("1d", 86400.0), (" 10S ", 10.0), ("1h1m1s1ms", 3661.001),
    ],
)  # fmt: skip
def test_duration(given: Any, seconds: float) -> None:
    value = Config(timeout_keep_alive=given).timeout_keep_alive
    assert value == pytest.approx(seconds)
    assert type(value) is float


@pytest.mark.parametrize(
    "given",
    [
        "", " ", "s", "5x", "5 m", "30m1h", "1m1m", "-1", "+1", "1e3", "inf", "nan", "1_0", ".5", "5.", "٣", "1" * 5000,
        float("inf"), float("nan"), True, None, [], b"5",
    ],
)  # fmt: skip
def test_no_duration(given: Any) -> None:
    assert refusal(timeout_keep_alive=given).endswith("is not a duration; write it as 30, 30s, 5m, 1h30m or 500ms")


def test_duration_out_of_range() -> None:
    assert refusal(timeout_write=-1) == "--timeout-write: -1.0 is less than 0s"
    assert "--timeout-write: 3456000.0 is more than" in refusal(timeout_write="40d")


@pytest.mark.parametrize(
    ("given", "size"),
    [
        (65536, 65536), ("65536", 65536), ("64k", 64 * KIB), ("64K", 64 * KIB), ("64KB", 64 * KIB), ("64KiB", 64 * KIB),
        ("1MB", MIB), ("1 MiB", MIB), ("1g", GIB), ("100B", 100),
    ],
)  # fmt: skip
def test_size(given: Any, size: int) -> None:
    assert Config(limit_request_body=given).limit_request_body == size


@pytest.mark.parametrize(
    "given", ["", "k", "64x", "1.5k", "64kk", "64 k b", "64iB", "64\u212a", "+1", "1_0", 1.0, True, None]
)
def test_no_size(given: Any) -> None:
    assert refusal(limit_request_body=given).startswith("--limit-request-body: ")


@pytest.mark.parametrize(
    "given", ["abc", "", "80 80", "+80", "8_0", "０", "0x50", "1" * 5000, 80.0, True, None, "tcp://10.0.0.1:80"]
)
def test_no_number(given: Any) -> None:
    message = refusal(port=given)
    assert message.startswith("--port: ")
    assert message.endswith("is not a whole number")
    assert len(message) < 130


def test_number_out_of_range_names_the_border() -> None:
    assert refusal(port=65536) == "--port: 65536 is more than 65535"
    assert refusal(port="-1") == "--port: -1 is less than 0"
    assert refusal(threads=0) == "--threads: 0 is less than 1"


@pytest.mark.parametrize(("given", "mode"), [("660", 0o660), ("0660", 0o660), ("0o660", 0o660), (0o660, 0o660)])
def test_mode_is_octal_as_text(given: Any, mode: int) -> None:
    assert Config(uds_permissions=given).uds_permissions == mode


def test_mode_that_is_none() -> None:
    assert "is not an octal mode such as 660" in refusal(uds_permissions="rw")
    assert refusal(uds_permissions="1777") == "--uds-permissions: 1023 is more than 777"
    assert "is more than 777" in refusal(uds_permissions=666)  # a decimal number where 0o666 was meant


@pytest.mark.parametrize("word", ["true", "True", "YES", "on", "1", "y"])
def test_switch_words(word: Any) -> None:
    assert Config(factory=word).factory is True
    negative = {"true": "false", "yes": "no", "on": "off", "1": "0", "y": "n"}[word.lower()]
    assert Config(access_log=negative).access_log is False  # type: ignore[arg-type]


@pytest.mark.parametrize("given", ["maybe", "", 1, 0, None])
def test_no_switch(given: Any) -> None:
    assert refusal(factory=given) == f"--factory: {given!r} is neither true nor false"


@pytest.mark.parametrize(
    ("given", "entries"),
    [
        ("a:1,b:2", ("a:1", "b:2")), (["a:1", " b:2 "], ("a:1", "b:2")), ("", ()), ([], ()), (" a , ,", ("a",)),
        (["unix:/tmp/a,b"], ("unix:/tmp/a,b",)),
    ],
)  # fmt: skip
def test_list_text_is_split_list_is_not(given: Any, entries: tuple[str, ...]) -> None:
    assert Config(bind=given).bind == entries


@pytest.mark.parametrize("given", [[""], [1], 5, b"a", {"a": 1}, None])
def test_no_list(given: Any) -> None:
    assert refusal(bind=given) == f"--bind: {given!r} is not a list of texts"


@pytest.mark.parametrize(
    "entry", ["*", "10.0.0.1", "10.0.0.0/8", "::1", "2001:db8::/32", "/run/proxy.sock", "fe80::1%eth0", "proxy"]
)
def test_proxies(entry: str) -> None:
    assert Config(forwarded_allow_ips=f"::1, {entry}").forwarded_allow_ips == ("::1", entry)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("given", "pairs"),
    [
        (["X-A: b"], (("X-A", "b"),)),
        (["X-A:b:c"], (("X-A", "b:c"),)),
        (["X-A:"], (("X-A", ""),)),
        ([("X-A", "b"), ["x-c", "\xe9"]], (("X-A", "b"), ("x-c", "\xe9"))),
        ("X-A: b", (("X-A", "b"),)),
        ("Cache-Control: a=1, b, X-C: d", (("Cache-Control", "a=1, b"), ("X-C", "d"))),
        ("Link: <https://a>, https://b", (("Link", "<https://a>, https://b"),)),
        ("", ()),
    ],
)
def test_headers(given: Any, pairs: tuple[tuple[str, str], ...]) -> None:
    assert Config(headers=given).headers == pairs


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ("nothing", "write it as 'Name: value'"),
        (("a",), "write it as 'Name: value'"),
        (("a", 1), "write it as 'Name: value'"),
        (b"a: b", "write it as 'Name: value'"),
        (": b", "not a token"),
        ("a b: c", "not a token"),
        ("a\u00e9: c", "not a token"),
        ("a\r\nb: c", "not a token"),
        ("a: b\r\nc: d", "control characters"),
        ("a: b\0", "control characters"),
        ("a: \x7f", "control characters"),
        ("a: \u20ac", "control characters or beyond Latin-1"),
        ("Content-Length: 5", "the server sets Content-Length for each response"),
        ("transfer-encoding: chunked", "the server sets transfer-encoding"),
    ],
)
def test_no_header(given: Any, reason: str) -> None:
    message = refusal(headers=[given])
    assert message.startswith("--header: ")
    assert reason in message


@pytest.mark.parametrize("given", [5, b"a: b", {"a": "b"}, None])
def test_no_list_of_headers(given: Any) -> None:
    assert refusal(headers=given).startswith("--header: ")


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("interface", "asgi", "--interface: 'asgi' is not one of auto, wsgi, asgi3, asgi2"),
        ("ws", "mod:Class", "--ws: 'mod:Class' is not one of auto, none"),
        ("ws_max_queue", 0, "--ws-max-queue: 0 is less than 1"),
        ("lifespan", "", "--lifespan: '' is not one of auto, on, off"),
        ("interface", 3, "--interface: 3 is not a text"),
        ("log_level", "loud", "--log-level: 'loud' is not one of critical, error, warning, info, debug, trace"),
        ("log_level", 7, "--log-level: 7 is not a text"),
        ("forwarded_fields", "for,by", "--forwarded-fields: 'by' is not one of for, proto, host, port, prefix"),
        ("loop", "trio", "--loop: 'trio' is not one of auto, asyncio, uvloop or module:factory"),
        ("loop", ":f", "--loop: ':f' is not one of auto, asyncio, uvloop or module:factory"),
        ("root_path", "api", "--root-path: 'api' does not start with '/'"),
        ("root_path", "/a\n", "--root-path: '/a\\n' has control characters in it"),
        ("uds", 5, "--uds: 5 is not a path"),
        ("access_log_file", "a\0b", "--access-logfile: 'a\\x00b' has a NUL in it"),
        ("fd", -1, "--fd: -1 is less than 0"),
    ],
)
def test_refused(name: str, value: Any, words: str) -> None:
    assert refusal(**{name: value}) == words


@pytest.mark.parametrize(
    ("given", "level"), [("INFO", "info"), (logging.DEBUG, "debug"), (5, "trace"), ("critical", "critical")]
)
def test_log_level(given: Any, level: str) -> None:
    assert Config(log_level=given).log_level == level


def test_other_accepted_forms() -> None:
    app = object()
    config = Config(
        app=app,
        app_dir=pathlib.Path("/srv"),  # type: ignore[arg-type]
        uds="\0abstract",
        root_path="/api/",
        loop="mine:new_loop",
        fd=0,
        log_config={"version": 1},
        use_colors=False,
    )
    assert config.app is app
    assert (config.app_dir, config.uds, config.root_path) == ("/srv", "\0abstract", "/api")
    assert (config.loop, config.fd, config.use_colors) == ("mine:new_loop", 0, False)
    assert config.log_config == {"version": 1}


def test_limit_of_zero_that_gunicorn_calls_unlimited_is_the_largest() -> None:
    config = Config(limit_request_line=0, limit_request_field_size=0, limit_request_fields=0, limit_request_head="1m")  # type: ignore[arg-type]
    assert (config.limit_request_line, config.limit_request_field_size) == (MIB, MIB)
    assert config.limit_request_fields == MOST_FIELDS
    assert refusal(limit_request_head=0) == "--limit-request-head: 0 is less than 1"


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary()
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3) | st.tuples(inner, inner), max_leaves=5)


TEXTS = st.text(alphabet="0123456789kmsKiBh.:/,-* aA\0\r\n\u0663")


@given(st.sampled_from(sorted(OPTIONS.keys() - {"app"})), VALUES | TEXTS)
def test_any_value_is_refused_or_taken_and_then_taken_again(name: str, value: Any) -> None:
    row = OPTIONS[name]
    try:
        found = row.check(value)
    except ConfigError:
        return
    assert row.check(found) == found


# Names


@pytest.mark.parametrize(
    ("name", "value", "own", "found"),
    [
        ("keepalive", 5, "timeout_keep_alive", 5.0),
        ("timeout_keep_alive", 5, "timeout_keep_alive", 5.0),
        ("graceful_timeout", "1m", "timeout_graceful_shutdown", 60.0),
        ("h11_max_incomplete_event_size", 16384, "limit_request_head", 16384),
        ("worker_connections", 10, "limit_connections", 10),
        ("accesslog", "a.log", "access_log_file", "a.log"),
        ("errorlog", "e.log", "error_log_file", "e.log"),
        ("loglevel", "DEBUG", "log_level", "debug"),
        ("logconfig_dict", {"version": 1}, "log_config", {"version": 1}),
        ("wsgi_app", "a:b", "app", "a:b"),
        ("asgi_loop", "uvloop", "loop", "uvloop"),
        ("bind", "127.0.0.1:80,[::1]:80", "bind", ("127.0.0.1:80", "[::1]:80")),
        ("headers", [("a", "b")], "headers", (("a", "b"),)),
        ("websocket_max_message_size", 0, "ws_max_size", 0),
        ("ws", "websockets", "ws", "auto"),
        ("ws", "websockets-sansio", "ws", "auto"),
        ("ws", "wsproto", "ws", "auto"),
        ("ws", "none", "ws", "none"),
        ("ws_per_message_deflate", "false", "ws_per_message_deflate", False),
    ],
)
def test_names_of_other_servers(name: str, value: Any, own: str, found: Any) -> None:
    assert getattr(Config.from_names(**{name: value}), own) == found


def test_none_means_not_given() -> None:
    assert Config.from_names(app="a:b", timeout_graceful_shutdown=None, uds=None, headers=None) == Config(app="a:b")
    assert own_names({"keepalive": None, "timeout_keep_alive": 5}) == {"timeout_keep_alive": 5}


def test_unknown_name_is_refused_with_the_close_one() -> None:
    with pytest.raises(ConfigError, match=re.escape("unknown option 'prot'; did you mean port?")):
        Config.from_names(prot=80)
    with pytest.raises(ConfigError, match=r"^unknown option 'spew'$"):
        Config.from_names(spew=True)


def test_one_option_under_two_names_is_refused() -> None:
    with pytest.raises(ConfigError, match="'keepalive' and 'timeout_keep_alive' are the same option, give one of them"):
        Config.from_names(keepalive=1, timeout_keep_alive=2)


def test_did_you_mean() -> None:
    assert did_you_mean("--prot", ["--port", "--host"]) == "; did you mean --port?"
    assert did_you_mean("--Log_Level", ["--log-level"]) == "; did you mean --log-level?"
    assert did_you_mean("--spew", [flag for row in OPTIONS.values() for flag in row.flags]) == ""


# Environment


def test_environment() -> None:
    environ = {
        "STDSERVE_APP": "main:app",
        "STDSERVE_PORT": "80",
        "STDSERVE_ACCESS_LOG": "false",
        "STDSERVE_BIND": "a:1, b:2",
        "STDSERVE_TIMEOUT_WRITE": "1m",
        "STDSERVE_UDS_PERMISSIONS": "660",
        "STDSERVE_HEADERS": "X-A: b, X-C: d",
        "STDSERVE_SERVICE_HOST": "10.0.0.1",
        "PATH": "/bin",
    }
    assert environment_values(environ) == {
        "app": "main:app",
        "port": 80,
        "access_log": False,
        "bind": ("a:1", "b:2"),
        "timeout_write": 60.0,
        "uds_permissions": 0o660,
        "headers": (("X-A", "b"), ("X-C", "d")),
    }


def test_forwarded_allow_ips_below_the_own_variable() -> None:
    environ = {"FORWARDED_ALLOW_IPS": "10.0.0.1,10.0.0.2"}
    assert environment_values(environ) == {"forwarded_allow_ips": ("10.0.0.1", "10.0.0.2")}
    environ["STDSERVE_FORWARDED_ALLOW_IPS"] = "*"
    assert environment_values(environ) == {"forwarded_allow_ips": ("*",)}


def test_empty_variable_is_not_set_but_empties_a_list() -> None:
    environ = {"STDSERVE_HOST": "", "STDSERVE_FD": "", "STDSERVE_PORT": "", "FORWARDED_ALLOW_IPS": ""}
    assert environment_values(environ) == {"forwarded_allow_ips": ()}


def test_error_in_the_environment_names_the_variable() -> None:
    with pytest.raises(ConfigError, match=r"^STDSERVE_PORT: 'tcp://10.0.0.1:80' is not a whole number$"):
        environment_values({"STDSERVE_PORT": "tcp://10.0.0.1:80"})


# The README's table


def test_markdown_has_every_flag_and_alias_once() -> None:
    text = options_markdown()
    for row in OPTIONS.values():
        assert text.count(f"| {row.help} |".replace("*", "\\*")) == 1, row.name
        for flag in row.flags:
            assert len(re.findall(rf"`{re.escape(flag)}[ `]", text)) == 1, flag
        for name in (*row.uvicorn, *row.gunicorn):
            assert f"`{name}`" in text


def test_markdown_rows_have_four_cells() -> None:
    for line in options_markdown().splitlines():
        assert not line.startswith("|") or len(re.findall(r"(?<!\\)\|", line)) == 5, line


def test_markdown_shows_units() -> None:
    text = options_markdown()
    assert "| `--timeout-keep-alive DURATION`, `--keep-alive` | 75s |" in text
    assert "| `--uds-permissions OCTAL` | 666 |" in text
    assert "64KiB |" in text
    assert "uvicorn `timeout_keep_alive`; gunicorn `keepalive` |" in text


def test_workers() -> None:
    assert Config(workers="auto").workers == available_cpus()  # type: ignore[arg-type]
    assert Config(workers="3").workers == 3  # type: ignore[arg-type]
    assert refusal(workers="two") == "--workers: 'two' is neither a whole number nor auto"
    assert refusal(workers=0) == "--workers: 0 is less than 1"


@pytest.mark.parametrize(("quota", "most"), [("max 100000", 10_000), ("150000 100000", 2), ("10000 100000", 1)])
def test_cpus_by_the_quota_of_the_control_group(quota: str, most: int, tmp_path: pathlib.Path) -> None:
    (tmp_path / "cpu.max").write_text(f"{quota}\n")
    every = available_cpus(str(tmp_path / "none"))
    assert available_cpus(str(tmp_path / "cpu.max")) == min(every, most)
