from __future__ import annotations

import copy
import importlib
import io
import json
import logging
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stdserve import logs
from stdserve.config import Config
from stdserve.errors import ConfigError
from stdserve.logs import StreamLog

OURS = [logging.getLogger(name) for name in ("", "stdserve", "stdserve.error", "stdserve.access", "stdserve.asgi")]
PEERS = [logging.getLogger(name) for name in ("uvicorn", "uvicorn.error", "uvicorn.access", "gunicorn.error")]


@pytest.fixture(autouse=True)
def loggers(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every test starts with untouched loggers and leaves them as it found them."""
    for variable in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    kept = [(one, one.handlers[:], one.filters[:], one.level, one.propagate) for one in OURS + PEERS]
    for one in OURS[1:] + PEERS:
        one.handlers, one.filters, one.level, one.propagate = [], [], logging.NOTSET, True
    yield
    logs._remove_own_handlers()
    for one, handlers, filters, level, propagate in kept:
        for handler in one.handlers:
            if handler not in handlers:
                handler.close()
        one.handlers, one.filters, one.propagate, one.disabled = handlers, filters, propagate, False
        one.setLevel(level)  # also empties the caches of isEnabledFor


class Captured:
    """What was written to standard error."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def getvalue(self) -> str:
        return self._capsys.readouterr().err


@pytest.fixture
def stderr(capsys: pytest.CaptureFixture[str]) -> Captured:
    return Captured(capsys)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def config(**options: Any) -> Config:
    return Config(app="demo:app", **options)


# ---- escape


@pytest.mark.parametrize(
    ("value", "escaped"),
    [
        (b"/plain?x=1&y=%20", "/plain?x=1&y=%20"),
        ("caf\u00e9 \u2603", "caf\u00e9 \u2603"),
        (b"a\nb\rc\td", "a\\nb\\rc\\td"),
        (b"\x1b[31m\x00\x7f", "\\x1b[31m\\x00\\x7f"),
        (b"\x85\x9b31m", "\\x85\\x9b31m"),
        ("\x9b", "\\x9b"),
        ('say "hi"', "say \\x22hi\\x22"),
        (b"back\\slash\\n", "back\\x5cslash\\x5cn"),
        ("line\u2028end\u2029", "line\\u2028end\\u2029"),
        ("abc\u202egnp.exe\u2066", "abc\\u202egnp.exe\\u2066"),
        (b"", ""),
    ],
)
def test_escape(value: bytes | str, escaped: str) -> None:
    assert logs.escape(value) == escaped


@given(st.one_of(st.binary(), st.text()))
def test_escaped_text_can_neither_end_a_line_nor_a_field(value: bytes | str) -> None:
    escaped = logs.escape(value)
    assert re.search(r'[\x00-\x1f\x7f-\x9f"\u2028\u2029]', escaped) is None
    assert len(escaped.splitlines()) <= 1


@given(st.binary())
def test_escape_loses_nothing(value: bytes) -> None:
    assert logs.escape(value).encode("latin-1").decode("unicode_escape").encode("latin-1") == value


# ---- formatters


def record(level: int = logging.INFO, message: str = "hello", *args: Any, **extra: Any) -> logging.LogRecord:
    return logging.getLogger("stdserve.error").makeRecord("x", level, "", 0, message, args, None, extra=extra or None)


@pytest.mark.parametrize(
    ("level", "plain", "colored"),
    [
        (logs.TRACE, "TRACE:    hello", "\x1b[34mTRACE\x1b[0m:    hello"),
        (logging.DEBUG, "DEBUG:    hello", "\x1b[36mDEBUG\x1b[0m:    hello"),
        (logging.INFO, "INFO:     hello", "\x1b[32mINFO\x1b[0m:     hello"),
        (logging.WARNING, "WARNING:  hello", "\x1b[33mWARNING\x1b[0m:  hello"),
        (logging.ERROR, "ERROR:    hello", "\x1b[31mERROR\x1b[0m:    hello"),
        (logging.CRITICAL, "CRITICAL: hello", "\x1b[91mCRITICAL\x1b[0m: hello"),
        (25, "Level 25: hello", "Level 25: hello"),
    ],
)
def test_level_prefix(level: int, plain: str, colored: str) -> None:
    line = "%(levelprefix)s %(message)s"
    assert logs.DefaultFormatter(line, use_colors=False).format(record(level)) == plain
    assert logs.DefaultFormatter(line, use_colors=True).format(record(level)) == colored


def test_color_message_is_shown_in_colour_only() -> None:
    one = record(logging.INFO, "on %s", "http://x", color_message="on \x1b[1m%s\x1b[0m")
    assert logs.DefaultFormatter("%(message)s", use_colors=True).format(one) == "on \x1b[1mhttp://x\x1b[0m"
    assert logs.DefaultFormatter("%(message)s", use_colors=False).format(one) == "on http://x"


def test_formatter_leaves_the_record_to_other_handlers() -> None:
    one = record(color_message="in colour")
    logs.DefaultFormatter("%(levelprefix)s %(message)s", use_colors=True).format(one)
    assert one.getMessage() == "hello" and "levelprefix" not in one.__dict__


def test_access_formatter_reads_the_args_of_uvicorn() -> None:
    fmt = '%(levelprefix)s %(client_addr)s - "%(request_line)s" %(status_code)s'
    one = record(logging.INFO, '%s - "%s %s HTTP/%s" %d', "127.0.0.1:5", "GET", "/a?b", "1.1", 404)
    assert (
        logs.AccessFormatter(fmt, use_colors=False).format(one)
        == 'INFO:     127.0.0.1:5 - "GET /a?b HTTP/1.1" 404 Not Found'
    )
    colored = logs.AccessFormatter(fmt, use_colors=True).format(one)
    assert colored.endswith('"\x1b[1mGET /a?b HTTP/1.1\x1b[0m" \x1b[31m404 Not Found\x1b[0m')


def test_access_formatter_takes_a_record_of_another_shape() -> None:
    fmt = '%(client_addr)s "%(request_line)s" %(status_code)s'
    assert logs.AccessFormatter(fmt, use_colors=False).format(record()) == '- "hello" -'


@pytest.mark.parametrize(
    ("status", "text"),
    [(200, "200 OK"), (101, "101 Switching Protocols"), (599, "599"), (299, "299"), (0, "-")],
)
def test_status_text(status: int, text: str) -> None:
    assert logs.status_text(status, colors=False) == text


@pytest.mark.parametrize(("status", "code"), [(101, 97), (204, 32), (304, 33), (404, 31), (503, 91)])
def test_status_colors(status: int, code: int) -> None:
    text = logs.status_text(status, colors=True)
    assert text.startswith(f"\x1b[{code}m{status} ") and text.endswith("\x1b[0m")


@pytest.mark.parametrize(
    ("terminal", "wanted", "environ", "result"),
    [
        (True, None, {}, True),
        (False, None, {}, False),
        (True, None, {"TERM": "dumb"}, False),
        (True, None, {"NO_COLOR": "1"}, False),
        (True, None, {"NO_COLOR": ""}, True),
        (False, None, {"FORCE_COLOR": "1"}, True),
        (False, None, {"FORCE_COLOR": ""}, False),
        (True, None, {"NO_COLOR": "1", "FORCE_COLOR": "1"}, False),
        (False, True, {"NO_COLOR": "1"}, True),
        (True, False, {"FORCE_COLOR": "1"}, False),
    ],
)
def test_use_colors(
    terminal: bool, wanted: bool | None, environ: dict[str, str], result: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    assert logs.use_colors(terminal, wanted) is result


@pytest.mark.parametrize("stream", [None, io.StringIO()])
def test_no_colors_without_a_terminal(stream: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", stream)
    assert logs.DefaultFormatter().use_colors is False


# ---- the default set-up


def test_default_writes_to_stderr(stderr: Captured) -> None:
    logs.configure_logging(config())
    logs.error_logger.info("started %d", 7)
    logs.error_logger.debug("not shown")
    assert stderr.getvalue() == "INFO:     started 7\n"
    assert not logs.root_logger.propagate


def test_default_is_coloured_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    logs.configure_logging(config())
    logs.error_logger.warning("w")
    logs.configure_logging(config(use_colors=False))
    logs.error_logger.warning("w")
    assert stream.getvalue() == "\x1b[33mWARNING\x1b[0m:  w\nWARNING:  w\n"


def test_trace_is_the_lowest_level(stderr: Captured) -> None:
    logs.configure_logging(config(log_level="trace"))
    logs.asgi_logger.log(logs.TRACE, "message")
    assert stderr.getvalue() == "TRACE:    message\n"


def test_configuring_again_replaces_what_was_set_up(stderr: Captured) -> None:
    theirs = logging.StreamHandler(io.StringIO())
    logs.root_logger.addHandler(theirs)
    logs.configure_logging(config())
    logs.configure_logging(config(log_level="error"))
    logs.error_logger.warning("hidden")
    logs.error_logger.error("once")
    assert stderr.getvalue() == "ERROR:    once\n"
    assert theirs in logs.root_logger.handlers


def test_access_lines_do_not_reach_the_error_log(stderr: Captured) -> None:
    logs.configure_logging(config())
    assert not logs.has_foreign_handler(logs.access_logger)


def test_error_log_file_has_time_and_process(tmp_path: Path) -> None:
    path = tmp_path / "error.log"
    path.write_text("before\n")
    logs.configure_logging(config(error_log_file=str(path)))
    logs.error_logger.error("broken \udc80")
    before, line = path.read_text().splitlines()
    assert before == "before"
    assert re.fullmatch(
        rf"\[\d{{4}}-\d\d-\d\d [\d:]{{8}} [+-]\d{{4}}\] \[{os.getpid()}\] \[ERROR\] broken \\udc80", line
    )


def test_error_log_file_that_cannot_be_opened(tmp_path: Path, stderr: Captured) -> None:
    logs.configure_logging(config())
    with pytest.raises(ConfigError, match=r"error_log_file '.*/no/x' cannot be opened: No such file"):
        logs.configure_logging(config(error_log_file=str(tmp_path / "no" / "x")))
    logs.error_logger.info("the old one goes on")
    assert stderr.getvalue() == "INFO:     the old one goes on\n"


# ---- rotation


def test_reopen_logs_writes_to_the_new_file(tmp_path: Path) -> None:
    path, rotated = tmp_path / "error.log", tmp_path / "error.log.1"
    logs.configure_logging(config(error_log_file=str(path)))
    logs.error_logger.error("one")
    path.rename(rotated)
    logs.reopen_logs()
    assert path.exists()
    logs.error_logger.error("two")
    assert "one" in rotated.read_text() and "two" not in rotated.read_text()
    assert "two" in path.read_text()


def test_log_file_follows_its_name_without_a_signal(tmp_path: Path) -> None:
    path = tmp_path / "error.log"
    logs.configure_logging(config(error_log_file=str(path)))
    path.rename(tmp_path / "error.log.1")
    logs.error_logger.error("two")
    assert "two" in path.read_text()


def test_log_file_that_cannot_be_reopened_is_used_on(tmp_path: Path) -> None:
    folder = tmp_path / "logs"
    folder.mkdir()
    logs.configure_logging(config(error_log_file=str(folder / "error.log")))
    folder.rename(tmp_path / "moved")
    logs.reopen_logs()
    logs.error_logger.error("two")
    first, second = (tmp_path / "moved" / "error.log").read_text().splitlines()
    assert "cannot be reopened (No such file or directory); the old one is used on" in first
    assert second.endswith("two")


def test_reopen_logs_covers_the_files_of_a_log_config(tmp_path: Path) -> None:
    path = tmp_path / "their.log"
    handler = {"class": "logging.FileHandler", "filename": str(path), "mode": "w"}
    logs.configure_logging(
        config(log_config={"handlers": {"f": handler}, "loggers": {"stdserve": {"handlers": ["f"], "level": "INFO"}}})
    )
    logs.error_logger.error("one")
    logs.reopen_logs()
    logs.error_logger.error("two")
    assert path.read_text() == "one\ntwo\n"


# ---- log_config


def test_logging_config_is_a_valid_configuration(stderr: Captured) -> None:
    mine = copy.deepcopy(logs.LOGGING_CONFIG)
    mine["formatters"]["default"]["fmt"] = "MINE %(levelprefix)s %(message)s"
    logs.configure_logging(config(log_config=mine))
    logs.error_logger.info("x")
    assert stderr.getvalue() == "MINE INFO:     x\n"
    assert logs.has_foreign_handler(logs.access_logger)
    assert mine["formatters"]["default"]["()"] == "stdserve.logs.DefaultFormatter"


def test_use_colors_reaches_our_formatters_in_a_dict(stderr: Captured) -> None:
    logs.configure_logging(config(log_config=logs.LOGGING_CONFIG, use_colors=True))
    logs.error_logger.info("x")
    assert stderr.getvalue() == "\x1b[32mINFO\x1b[0m:     x\n"
    assert logs.LOGGING_CONFIG["formatters"]["default"]["use_colors"] is None


UVICORN = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"default": {"()": "uvicorn.logging.DefaultFormatter", "fmt": "%(levelprefix)s %(message)s"}},
    "handlers": {"default": {"formatter": "default", "class": "logging.StreamHandler", "stream": "ext://sys.stderr"}},
    "loggers": {
        "uvicorn": {"handlers": ["default"], "level": "INFO", "propagate": False},
        "uvicorn.error": {"level": "WARNING"},
    },
}


def test_a_dict_written_for_uvicorn_works(stderr: Captured) -> None:
    given = copy.deepcopy(UVICORN)
    logs.configure_logging(config(log_config=given))
    logs.error_logger.info("below the level of uvicorn.error")
    logs.error_logger.warning("ours")
    logging.getLogger("uvicorn.error").warning("the application's")
    assert stderr.getvalue() == "WARNING:  ours\nWARNING:  the application's\n"
    assert given == UVICORN


def test_a_dict_may_hold_an_open_stream() -> None:
    stream = io.StringIO()
    handler = {"class": "logging.StreamHandler", "stream": stream}
    loggers = {"gunicorn.error": {"handlers": ["h"], "level": "DEBUG"}}
    logs.configure_logging(config(log_config={"handlers": {"h": handler}, "loggers": loggers}))
    logs.error_logger.debug("x")
    assert stream.getvalue() == "x\n"


def test_the_default_set_up_is_taken_away_by_a_log_config(stderr: Captured) -> None:
    logs.configure_logging(config())
    logs.configure_logging(config(log_config={"version": 1}))
    assert logs.root_logger.handlers == [] and logs.root_logger.propagate


@pytest.mark.parametrize("settings", [{"version": 2}, {"loggers": {"stdserve": {"level": "LOUD"}}}])
def test_a_faulty_log_config_leaves_what_was_set_up(settings: dict[str, Any], stderr: Captured) -> None:
    logs.configure_logging(config())
    with pytest.raises(ConfigError):
        logs.configure_logging(config(log_config=settings))
    logs.error_logger.error("still here")
    assert stderr.getvalue() == "ERROR:    still here\n"
    assert not logs.root_logger.propagate


def test_levels_of_a_log_config_stand_unless_log_level_is_given(stderr: Captured) -> None:
    settings = {"loggers": {"stdserve.error": {"level": "ERROR"}}}
    logs.configure_logging(config(log_config=settings))
    assert logs.error_logger.level == logging.ERROR
    logs.configure_logging(config(log_config=settings, log_level="debug"))
    assert logs.error_logger.level == logging.DEBUG


@pytest.mark.parametrize("suffix", ["json", "toml", "yaml", "yml"])
def test_files_of_a_dict(suffix: str, tmp_path: Path, stderr: Captured) -> None:
    if suffix.startswith("y"):
        pytest.importorskip("yaml")
    settings: dict[str, Any] = {
        "version": 1,
        "formatters": {"f": {"()": "stdserve.logs.DefaultFormatter", "fmt": "%(levelprefix)s <%(message)s>"}},
        "handlers": {"h": {"class": "logging.StreamHandler", "formatter": "f", "stream": "ext://sys.stderr"}},
        "loggers": {"stdserve": {"handlers": ["h"], "level": "INFO"}},
    }
    toml = """
        version = 1
        formatters.f = { "()" = "stdserve.logs.DefaultFormatter", fmt = "%(levelprefix)s <%(message)s>" }
        handlers.h = { class = "logging.StreamHandler", formatter = "f", stream = "ext://sys.stderr" }
        loggers.stdserve = { handlers = ["h"], level = "INFO" }
    """
    path = tmp_path / f"log.{suffix}"
    path.write_text(toml if suffix == "toml" else json.dumps(settings))  # JSON is YAML
    logs.configure_logging(config(log_config=str(path)))
    logs.error_logger.info("x")
    assert stderr.getvalue() == "INFO:     <x>\n"


INI = """
[loggers]
keys=root,ours

[handlers]
keys=h

[formatters]
keys=f

[logger_root]
handlers=

[logger_ours]
qualname=stdserve
handlers=h
level=INFO

[handler_h]
class=StreamHandler
args=(sys.stderr,)
formatter=f

[formatter_f]
format=%(levelname)s <%(message)s>
"""


def test_ini_file_leaves_other_loggers_alone(tmp_path: Path, stderr: Captured) -> None:
    other = logging.getLogger("other")
    path = tmp_path / "log.conf"
    path.write_text(INI)
    logs.configure_logging(config(log_config=str(path)))
    logs.error_logger.info("x")
    assert stderr.getvalue() == "INFO <x>\n"
    assert not other.disabled


@pytest.mark.parametrize(
    ("name", "text", "fault"),
    [
        ("a.json", '{"version": 1,\n "x" 2}', ", line 2: Expecting ':' delimiter"),
        ("a.json", "[1]", " holds a list, not a table of settings"),
        ("a.json", '{"version": 3}', ": Unsupported version: 3"),
        ("a.json", '{"formatters": []}', ""),
        ("a.json", '{"formatters": [1]}', ": 'list' object has no attribute 'items'"),
        ("a.json", '{"handlers": {"h": {"class": "no.such.Handler"}}}', ": Unable to configure handler 'h'"),
        ("a.json", '{"loggers": {"stdserve": {"level": "LOUD"}}}', "Unknown level: 'LOUD'"),
        ("a.toml", "version = 1\nx = \ny = 1\n", "line 2"),
        ("a.yaml", "a: 1\nb: [", ", line 2"),
        ("a.yaml", "", " holds a NoneType, not a table"),
        ("a.ini", "version 1\n", ", line 1: not an INI file"),
        ("a.ini", "[a]\nx=1\ny\n", ", line 3: not an INI file"),
        ("a.ini", "[a]\nx=1\n[a]\n", ", line 3: not an INI file"),
        ("a.ini", "[loggers]\nkeys=root\n", ": section or key 'formatters' is missing"),
        ("a.ini", INI.replace("StreamHandler", "NoSuchHandler"), "NoSuchHandler"),
        ("a.ini", INI.replace("level=INFO", "level=LOUD"), "LOUD"),
    ],
)
def test_a_faulty_file_is_named_with_its_fault(name: str, text: str, fault: str, tmp_path: Path) -> None:
    if name.endswith("yaml"):
        pytest.importorskip("yaml")
    path = tmp_path / name
    path.write_text(text)
    if not fault:  # an empty list is as good as an empty table
        logs.configure_logging(config(log_config=str(path)))
        return
    with pytest.raises(ConfigError) as caught:
        logs.configure_logging(config(log_config=str(path)))
    message = str(caught.value)
    assert message.startswith(f"log_config {str(path)!r}") and fault in message
    assert "\n" not in message


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"log_config '.*/none\.json' cannot be read: No such file"):
        logs.configure_logging(config(log_config=str(tmp_path / "none.json")))
    (tmp_path / "latin.ini").write_bytes(b"[a]\nx=\xe9\n")
    with pytest.raises(ConfigError, match="is not UTF-8: byte 0xe9 at offset 6"):
        logs.configure_logging(config(log_config=str(tmp_path / "latin.ini")))


def test_yaml_without_pyyaml_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "yaml", None)  # makes the import fail
    path = tmp_path / "log.yaml"
    path.write_text("version: 1\n")
    with pytest.raises(ConfigError, match="needs PyYAML: install it, or write the file as JSON or TOML"):
        logs.configure_logging(config(log_config=str(path)))


def test_formatter_names_follow_the_name_of_the_package() -> None:
    for formatter in logs.LOGGING_CONFIG["formatters"].values():
        module, _, name = formatter["()"].rpartition(".")
        assert issubclass(getattr(importlib.import_module(module), name), logging.Formatter)
        assert module == logs.__name__


# ---- LineLimiter


def test_limiter_admits_so_many_of_each_kind() -> None:
    limiter = logs.LineLimiter(2)
    assert [limiter.admit("a", 0.0) for _ in range(4)] == [True, True, False, False]
    assert limiter.admit("b", 1.0)


def test_limiter_reports_once_when_the_minute_is_over() -> None:
    limiter = logs.LineLimiter(per_minute=1)
    for _ in range(5):
        limiter.admit("refused requests", 100.0)
    assert limiter.report(159.9) == []
    assert limiter.report(160.0) == ["refused requests: 4 more suppressed"]
    assert limiter.report(161.0) == []
    assert limiter.admit("refused requests", 161.0)


def test_limiter_keeps_the_report_of_a_minute_that_a_new_line_ended() -> None:
    limiter = logs.LineLimiter(1)
    assert [limiter.admit("a", now) for now in (0.0, 1.0, 60.0, 61.0, 62.0)] == [True, False, True, False, False]
    assert limiter.report(62.0) == ["a: 1 more suppressed"]
    assert limiter.report(120.0) == ["a: 2 more suppressed"]


def test_limiter_says_nothing_where_nothing_was_suppressed() -> None:
    limiter = logs.LineLimiter(1)
    limiter.admit("a", 0.0)
    assert limiter.report(1000.0) == []


@given(st.integers(0, 5), st.lists(st.floats(0, 200), max_size=60).map(sorted))
def test_limiter_accounts_for_every_line(per_minute: int, times: list[float]) -> None:
    limiter = logs.LineLimiter(per_minute)
    admitted = sum(limiter.admit("k", now) for now in times)
    suppressed = sum(int(line.split()[1]) for line in limiter.report(1000.0))
    assert admitted + suppressed == len(times)


def test_full_pipe_loses_lines_and_holds_nobody() -> None:
    reader, writer = os.pipe()
    with open(writer, "w") as stream, open(reader, "rb", buffering=0) as other:
        handler = StreamLog(stream)
        line = logging.LogRecord("stdserve.error", logging.INFO, "", 0, "x" * 9_999, (), None)
        for _ in range(100):  # of which a pipe takes six
            handler.emit(line)
        text = other.read(1 << 20).decode()
        assert text.count("x") < 100 * 9_999
        handler.emit(line)
        last = other.read(1 << 20).decode()
        assert re.fullmatch(r"x*\n?(\d+) log lines are lost: nobody has read them in time\nx{9999}\n", last), last[:200]


def test_stream_that_is_no_pipe_is_written_as_usual(tmp_path: Path) -> None:
    with open(tmp_path / "log", "w") as stream:
        StreamLog(stream).emit(logging.LogRecord("stdserve.error", logging.INFO, "", 0, "hello", (), None))
    assert (tmp_path / "log").read_text() == "hello\n"
