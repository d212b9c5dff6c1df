from __future__ import annotations

import io
import json
import logging
import os
import re
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stdserve import access, logs
from stdserve.access import AccessLog, Sink, compile_access_format, make_access_log
from stdserve.config import Config
from stdserve.errors import ConfigError
from stdserve.protocol.message import Request

BOUND_SECONDS = 20.0
LOGGERS = [logs.root_logger, logs.error_logger, logs.access_logger]


@pytest.fixture(autouse=True)
def loggers(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for variable in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(variable, raising=False)
    kept = [(one, one.handlers[:], one.filters[:], one.level, one.propagate) for one in LOGGERS]
    for one in LOGGERS:
        # To a logger that does not propagate pytest attaches a handler after the fixtures
        one.handlers, one.filters, one.propagate, one.disabled = [], [], True, False
        one.setLevel(logging.NOTSET)
    logs.root_logger.setLevel(logging.INFO)
    yield
    for one, handlers, filters, level, propagate in kept:
        one.handlers, one.filters, one.propagate = handlers, filters, propagate
        one.setLevel(level)
    left = [thread for thread in threading.enumerate() if thread.name == "stdserve-access-log"]
    for thread in left:
        thread.join(BOUND_SECONDS)
    assert not any(thread.is_alive() for thread in left)


class Records(logging.Handler):
    """Keeps what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)

    @property
    def messages(self) -> list[str]:
        return [record.getMessage() for record in self.records]


@pytest.fixture
def errors() -> Records:
    handler = Records()
    logs.error_logger.addHandler(handler)
    return handler


def exchange(target: bytes = b"/a%20b/c?x=1&y", fields: dict[bytes, bytes] | None = None, **changes: Any) -> Any:
    fields = fields or {}
    request = Request(
        changes.pop("method", b"GET"), target, changes.pop("version", b"1.1"), list(fields.items()), fields
    )
    values = {
        "request": request,
        "client": ("127.0.0.1", 1234),
        "server": ("127.0.0.1", 80),
        "scheme": "http",
        "root_path": "",
        "started": time.perf_counter(),
        "status": 200,
        "sent_bytes": 13,
        "response_headers": [(b"Content-Type", b"text/plain"), (b"x-id", b'7"')],
        "environ": None,
        "finished": True,
    }
    return SimpleNamespace(**{**values, **changes})


def line(text: str, one: Any = None, duration: float = 1.2345678) -> str:
    return compile_access_format(text)(one or exchange(), duration)


# ---- the default format


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, '127.0.0.1:1234 - "GET /p?x HTTP/1.1" 200 OK 13B 1.2ms'),
        ({"client": ("::1", 5)}, '[::1]:5 - "GET /p?x HTTP/1.1" 200 OK 13B 1.2ms'),
        ({"client": ("10.0.0.1", 0)}, '10.0.0.1 - "GET /p?x HTTP/1.1" 200 OK 13B 1.2ms'),
        ({"client": None}, 'unix - "GET /p?x HTTP/1.1" 200 OK 13B 1.2ms'),
        ({"client": ('a"b\n', 1)}, 'a\\x22b\\n:1 - "GET /p?x HTTP/1.1" 200 OK 13B 1.2ms'),
        ({"version": b"2", "status": 599}, '127.0.0.1:1234 - "GET /p?x HTTP/2" 599 13B 1.2ms'),
        ({"status": 0, "sent_bytes": 0}, '127.0.0.1:1234 - "GET /p?x HTTP/1.1" - 0B 1.2ms'),
    ],
)
def test_default_format(changes: dict[str, Any], expected: str) -> None:
    assert line("", exchange(b"/p?x", **changes), 0.00123) == "INFO:     " + expected


def test_default_format_in_colour() -> None:
    text = compile_access_format("", colors=True)(exchange(b"/p", status=404), 0.5)
    level, request, status = "\x1b[32mINFO\x1b[0m:    ", "\x1b[1mGET /p HTTP/1.1\x1b[0m", "\x1b[31m404 Not Found\x1b[0m"
    assert text == f'{level} 127.0.0.1:1234 - "{request}" {status} 13B 500.0ms'


def test_client_texts_are_bounded() -> None:
    clients = access._Clients()
    for port in range(5000):
        assert clients["h", port + 1] == f"h:{port + 1}"
    assert len(clients) <= 1024


# ---- atoms

FIELDS = {
    b"referer": b"http://r/",
    b"user-agent": b'curl "x"',
    b"authorization": b"Basic am9lOnB3",  # joe:pw
    b"x-name": "caf\u00e9".encode(),
}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("%(h)s", "127.0.0.1"),
        ("%(l)s", "-"),
        ("%(u)s", "joe"),
        ("%(r)s", "GET /a%20b/c?x=1&y HTTP/1.1"),
        ("%(m)s", "GET"),
        ("%(U)s", "/a b/c"),
        ("%(q)s", "x=1&y"),
        ("%(H)s", "HTTP/1.1"),
        ("%(s)s", "200"),
        ("%(B)s", "13"),
        ("%(b)s", "13"),
        ("%(f)s", "http://r/"),
        ("%(a)s", "curl \\x22x\\x22"),
        ("%(T)s", "1"),
        ("%(M)s", "1234"),
        ("%(D)s", "1234567"),
        ("%(L)s", "1.234568"),
        ("%(p)s", f"<{os.getpid()}>"),
        ("%({X-Name}i)s", "caf\u00e9"),
        ("%({missing}i)s", "-"),
        ("%({content-type}o)s", "text/plain"),
        ("%({X-Id}o)s", "7\\x22"),
        ("%({missing}o)s", "-"),
        ("%({REMOTE_USER}e)s", "ann\\n"),
        ("%({wsgi.count}e)s", "3"),
        ("%({missing}e)s", "-"),
        ("%(R)s %(S)s %(st)s %(Uq)s", "GET /a%20b/c?x=1&y HTTP/1.1 http OK /a%20b/c?x=1&y"),
        ("100%% %(s)d%%", "100% 200%"),
        ("%(D)08d|%(L).2f|%(m)5s|%(m)-5s|%(B)i", "01234567|1.23|  GET|GET  |13"),
        ("no atoms", "no atoms"),
    ],
)
def test_atoms(text: str, expected: str) -> None:
    assert line(text, exchange(fields=FIELDS, environ={"REMOTE_USER": "ann\n", "wsgi.count": 3})) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("%(h)s", "-"),
        ("%(u)s", "-"),
        ("%(f)s", "-"),
        ("%(a)s", "-"),
        ("%(q)s", ""),
        ("%(s)s", "-"),
        ("%(s)d", "0"),
        ("%(b)s", "-"),
        ("%(B)s", "0"),
        ("%(st)s", "-"),
        ("%({x}e)s", "-"),
    ],
)
def test_atoms_of_what_is_not_there(text: str, expected: str) -> None:
    assert line(text, exchange(b"/", client=None, status=0, sent_bytes=0)) == expected


def test_response_headers_of_wsgi_are_str() -> None:
    assert line("%({X-A}o)s", exchange(response_headers=[("X-a", "v\x1b")])) == "v\\x1b"


@pytest.mark.parametrize(
    ("field", "user"),
    [
        (b"basic am9lOg==", "joe"),
        (b"Basic am9l", "joe"),
        (b"Basic Cm9lOnB3", "\\noe"),
        (b"Basic w6k6eA==", "\u00e9"),
        (b"Basic 6Tp4", "\u00e9"),
        (b"Basic OnB3", "-"),
        (b"Basic a", "-"),
        (b"Basic \xff", "-"),
        (b"Basic", "-"),
        (b"Bearer am9lOnB3", "-"),
    ],
)
def test_user_name(field: bytes, user: str) -> None:
    assert line("%(u)s", exchange(fields={b"authorization": field})) == user


@pytest.mark.parametrize(
    ("zone", "expected"),
    [
        ("XXX0", "[10/Oct/2000:20:55:36 +0000]"),
        ("PDT7", "[10/Oct/2000:13:55:36 -0700]"),
        ("NST3:30", "[10/Oct/2000:17:25:36 -0330]"),
        ("IST-5:30", "[11/Oct/2000:02:25:36 +0530]"),
    ],
)
def test_time(zone: str, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setenv("TZ", zone)
        time.tzset()
        text = access.clf_time(971211336)
    time.tzset()
    assert text == expected


def test_time_atom_is_the_time_of_logging() -> None:
    before = int(time.time())
    text = line("%(t)s")
    assert text in [access.clf_time(second) for second in range(before, int(time.time()) + 1)]


def test_time_is_made_once_a_second() -> None:
    made: list[int] = []
    stamp = access._PerSecond(lambda second: made.append(second) or str(second))  # type: ignore[func-returns-value]
    assert [stamp.at(now) for now in (5.0, 5.9, 6.1, 6.2)] == ["5", "5", "6", "6"]
    assert made == [5, 6]


def test_only_the_atoms_of_the_format_are_computed() -> None:
    assert line("%(s)s %(D)s", SimpleNamespace(status=204), 0.001) == "204 1000"


def test_needs_environ() -> None:
    assert compile_access_format("%({x}e)s").needs_environ
    for text in ("", "json", "%(h)s %({x}i)s"):
        assert not compile_access_format(text).needs_environ


@pytest.mark.parametrize(
    ("text", "atom"),
    [
        ("%(h)s %(s", "'%('"),
        ("%(h", "'%('"),
        ("%(h)", "'%(h)'"),
        ("%(h)q", "'%(h)q'"),
        ("%(h)d", "'%(h)d'"),
        ("%(foo)d", "'%(foo)d'"),
        ("50% of", "'% '"),
        ("50%", "'%'"),
        ("%s", "'%s'"),
        ("%()s", "'%()s'"),
        ("%({}i)s", "'%({}i)s'"),
        ("%({x}z)s", "'%({x}z)s'"),
        ("%({x)s", "'%({x)s'"),
        ("%(h)999999999s", "'%(h)9999'"),
    ],
)
def test_bad_format_names_the_atom(text: str, atom: str) -> None:
    with pytest.raises(ConfigError, match=r"access_log_format: bad atom ") as caught:
        compile_access_format(text)
    assert f"bad atom {atom} at character" in str(caught.value)


def test_unknown_atom_is_a_dash_and_a_warning(errors: Records) -> None:
    assert line("%(zz)s %(m)s") == "- GET"
    assert errors.messages == ["access_log_format: there is no atom '%(zz)s'; it is logged as -"]


# ---- json


def test_json_format() -> None:
    fields = {b"user-agent": "caf\u00e9\x7f".encode(), b"referer": b'"\n\xff'}
    text = line("json", exchange(fields=fields), 0.0012345)
    value = json.loads(text)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", value.pop("time"))
    assert value == {
        "client": "127.0.0.1",
        "method": "GET",
        "path": "/a%20b/c",
        "query": "x=1&y",
        "protocol": "HTTP/1.1",
        "status": 200,
        "bytes": 13,
        "duration_ms": 1.234,
        "referer": '"\n\u00ff',
        "user_agent": "caf\u00e9\x7f",
    }
    assert text.isascii() and text.isprintable()


def test_json_of_what_is_not_there() -> None:
    value = json.loads(line("json", exchange(client=None, status=0)))
    assert value["client"] is value["status"] is value["referer"] is value["user_agent"] is None


# ---- injection

ALL_ATOMS = " ".join(f'"%({name})s"' for name in (*access._ATOMS, "t", "{x}i", "{x}o", "{x}e"))


@given(st.binary(), st.text())
def test_nothing_that_is_logged_can_forge_a_line(data: bytes, text: str) -> None:
    import base64

    fields = dict.fromkeys((b"referer", b"user-agent", b"x"), data)
    fields[b"authorization"] = b"Basic " + base64.b64encode(data)
    quoted = b"/" + b"".join(b"%%%02x" % byte for byte in data)
    one = exchange(
        quoted + b"?" + data, fields, method=data, version=data, client=(text, 1), scheme=text,
        response_headers=[(b"x", data)], environ={"x": text},
    )  # fmt: skip
    for format_text in ("", ALL_ATOMS, "json"):
        result = line(format_text, one)
        assert re.search(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]", result) is None
        if format_text == ALL_ATOMS:
            assert result.count('"') == ALL_ATOMS.count('"')
        if format_text == "json":
            json.loads(result)


@pytest.mark.parametrize("target", [b"/a%0aFAKE%1b[31m", b"/a%c2%9b31m", b"/%22%5c"])
def test_decoded_path_is_escaped(target: bytes) -> None:
    text = line('"%(U)s"', exchange(target))
    assert text.isprintable() and text.count('"') == 2


# ---- the log


def config(**options: Any) -> Config:
    return Config(app="demo:app", **options)


def make_log(**options: Any) -> AccessLog:
    """An access log as after configure_logging."""
    logs.access_logger.propagate = False
    log = make_access_log(config(**options))
    assert log is not None
    return log


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "access.log"


def test_no_log_if_nobody_wants_it() -> None:
    assert make_access_log(config(access_log=False)) is None
    logs.root_logger.setLevel(logging.WARNING)
    assert make_access_log(config()) is None


def test_lines_are_written_by_flush(path: Path) -> None:
    path.write_text("before\n")
    log = make_log(access_log_file=str(path), access_log_format="%(m)s %(D)d")
    assert not log.needs_environ
    log.log(exchange())
    log.log(exchange(method=b"PUT", started=time.perf_counter() - 2.0))
    assert path.read_text() == "before\n"
    log.flush()
    _, first, second = path.read_text().splitlines()
    assert re.fullmatch(r"GET \d+", first)
    assert int(second.removeprefix("PUT ")) >= 2_000_000
    log.log(exchange())
    log.close()
    assert len(path.read_text().splitlines()) == 4


def test_a_file_is_never_coloured(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    log = make_log(access_log_file=str(path))
    log.log(exchange())
    log.close()
    assert "\x1b" not in path.read_text()


def test_a_file_that_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"access_log_file '.*/no/a' cannot be opened: No such file"):
        make_log(access_log_file=str(tmp_path / "no" / "a"))


def test_lone_surrogates_can_be_written(path: Path) -> None:
    log = make_log(access_log_file=str(path), access_log_format="%({x}e)s")
    log.log(exchange(environ={"x": "\udc80"}))
    log.close()
    assert path.read_text() == "\\udc80\n"


def test_environ_is_dropped_once_it_has_been_read(path: Path) -> None:
    log = make_log(access_log_file=str(path), access_log_format="%({x}e)s")
    ended = exchange(environ={"x": "y"})
    log.log(ended)
    log.close()
    assert path.read_text() == "y\n" and ended.environ is None


def test_reopen_follows_the_rotation(path: Path) -> None:
    log = make_log(access_log_file=str(path), access_log_format="%(m)s")
    log.log(exchange())
    log.flush()
    rotated = path.rename(path.with_suffix(".1"))
    log.reopen()
    assert path.exists()
    log.log(exchange(method=b"PUT"))
    log.close()
    assert (rotated.read_text(), path.read_text()) == ("GET\n", "PUT\n")


def test_a_file_that_cannot_be_reopened_is_used_on(tmp_path: Path, errors: Records) -> None:
    folder = tmp_path / "logs"
    folder.mkdir()
    log = make_log(access_log_file=str(folder / "a"), access_log_format="%(m)s")
    folder.rename(tmp_path / "moved")
    log.reopen()
    log.log(exchange())
    log.close()
    assert (tmp_path / "moved" / "a").read_text() == "GET\n"
    assert "cannot be reopened (No such file or directory); the old one is used on" in errors.messages[0]


def test_standard_output(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    with open(reader, "rb") as output, open(writer, "w") as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        log = make_log(access_log_format="%(m)s")
        log.log(exchange())
        log.close()
        assert output.readline() == b"GET\n"
        stdout.write("still open\n")


def test_a_terminal_gets_colours(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pty")
    monkeypatch.setenv("TERM", "xterm")
    reader, writer = os.openpty()
    with open(reader, "rb", buffering=0) as output, open(writer, "w") as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        log = make_log()
        log.log(exchange())
        log.close()
        assert b"\x1b[32mINFO\x1b[0m:     127.0.0.1:1234" in output.read(4096)


def test_a_stand_in_for_standard_output(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    sink = access.open_sink("-")
    assert sink is not None and sink._fd == 1


def test_without_standard_output_lines_go_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    log = make_log()
    log.log(exchange())
    log.flush()
    log.close()
    assert log._lines == []


# ---- through logging


def test_a_handler_gets_the_record_of_uvicorn(path: Path) -> None:
    handler = Records()
    logs.access_logger.addHandler(handler)
    log = make_log()
    log.log(exchange(b'/a%20b"?x=1', version=b"2", status=404))
    log.close()
    (record,) = handler.records
    assert record.args == ("127.0.0.1:1234", "GET", "/a%20b\\x22?x=1", "2", 404)
    assert record.msg == '%s - "%s %s HTTP/%s" %d'
    assert (record.name, record.levelno) == ("stdserve.access", logging.INFO)
    assert record.__dict__["sent_bytes"] == 13 and record.__dict__["duration_ms"] >= 0


def test_a_handler_higher_up_gets_it_too() -> None:
    handler = Records()
    logs.root_logger.addHandler(handler)
    log = AccessLog(config())
    log.log(exchange(b"/"))
    log.close()
    assert handler.messages == ['127.0.0.1:1234 - "GET / HTTP/1.1" 200']


def test_a_handler_gets_the_line_of_a_format_that_was_asked_for() -> None:
    handler = Records()
    logs.access_logger.addHandler(handler)
    log = make_log(access_log_format="%(m)s 100%%")
    log.log(exchange())
    log.close()
    assert handler.messages == ["GET 100%"]


def test_a_file_that_was_asked_for_is_written_besides(path: Path) -> None:
    handler = Records()
    logs.access_logger.addHandler(handler)
    log = make_log(access_log_file=str(path))
    log.log(exchange())
    log.close()
    assert len(handler.records) == len(path.read_text().splitlines()) == 1


def test_a_handler_that_comes_later_takes_over(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    with open(reader, "rb", buffering=0) as output:
        with open(writer, "w") as stdout:
            monkeypatch.setattr(sys, "stdout", stdout)
            log = make_log(access_log_format="%(m)s")
            log.log(exchange())
            log.flush()
            handler = Records()
            logs.access_logger.addHandler(handler)
            log.log(exchange(method=b"PUT"))
            log.close()
        assert handler.messages == ["PUT"]
        assert output.read(100) == b"GET\n"


def test_a_filter_decides(path: Path) -> None:
    log = make_log(access_log_file=str(path), access_log_format="%(U)s")
    logs.access_logger.addFilter(lambda record: record.args[2] != "/health")  # type: ignore[index]
    log.log(exchange(b"/health"))
    log.log(exchange(b"/page"))
    log.close()
    assert path.read_text() == "/page\n"


def test_a_level_set_later_silences(path: Path) -> None:
    log = make_log(access_log_file=str(path))
    logs.access_logger.setLevel(logging.WARNING)
    log.log(exchange())
    log.flush()
    logs.access_logger.addHandler(handler := Records())
    log.log(exchange())
    log.close()
    assert path.read_text() == "" and handler.records == []


# ---- the sink

PIPE_FULL = 1 << 22


def read_exactly(fd: int, count: int) -> bytes:
    data = b""
    while len(data) < count:
        assert select.select([fd], [], [], BOUND_SECONDS)[0], "nothing comes"
        piece = os.read(fd, 65536)
        assert piece, "the end came too early"
        data += piece
    return data


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reader, writer = os.pipe()
    yield reader, writer
    for fd in (reader, writer):
        try:
            os.close(fd)
        except OSError:
            pass


def numbered(count: int) -> list[bytes]:
    return [b"line %06d %s\n" % (number, b"x" * (number % 90)) for number in range(count)]


@pytest.mark.parametrize("nowait", [True, False])
def test_one_flush_is_one_write(nowait: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)  # keeps writes apart
    with ours, theirs:
        theirs.settimeout(BOUND_SECONDS)
        sink = Sink(ours.fileno())
        sink._nowait = sink._nowait and nowait
        sink.write(b"one\ntwo\n")
        assert theirs.recv(100) == b"one\ntwo\n"
        sink.close()


@pytest.mark.parametrize("nowait", [True, False])
def test_a_full_pipe_stops_nobody_and_loses_nothing(nowait: bool, pipe: tuple[int, int], errors: Records) -> None:
    reader, writer = pipe
    sink = Sink(writer)
    sink._nowait = sink._nowait and nowait
    lines = numbered(20_000)
    for start in range(0, len(lines), 100):
        sink.write(b"".join(lines[start : start + 100]))  # returns, although nobody reads
    expected = b"".join(lines)
    assert read_exactly(reader, len(expected)) == expected
    sink.close()
    assert errors.messages == []


def test_what_is_beyond_the_backlog_is_dropped_and_counted(
    pipe: tuple[int, int], errors: Records, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader, writer = pipe
    monkeypatch.setattr(access, "BACKLOG_BYTES", PIPE_FULL)
    sink = Sink(writer)
    sink._nowait = False
    sink.write(b"a" * (PIPE_FULL - 1) + b"\n")
    sink.write(b"dropped\n" * 1000)
    sink.write(b"dropped\n" * 1000)
    assert errors.messages == []
    assert read_exactly(reader, PIPE_FULL).count(b"\n") == 1
    sink.close()
    assert errors.messages == ["access log: nobody read it for a while; 2000 lines were dropped"]


def test_drops_are_reported_with_the_next_line_after_them(
    pipe: tuple[int, int], errors: Records, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader, writer = pipe
    monkeypatch.setattr(access, "BACKLOG_BYTES", 10)
    sink = Sink(writer)
    sink._nowait = False
    sink.write(b"longer than the backlog\n")
    sink.write(b"short\n")
    assert errors.messages == ["access log: nobody read it for a while; 1 lines were dropped"]
    assert read_exactly(reader, 6) == b"short\n"
    sink.close()


@pytest.mark.parametrize("nowait", [True, False])
def test_a_reader_that_has_gone_is_logged_once(nowait: bool, pipe: tuple[int, int], errors: Records) -> None:
    reader, writer = pipe
    os.close(reader)
    sink = Sink(writer)
    sink._nowait = sink._nowait and nowait
    for _ in range(3):
        sink.write(b"x\n")
    sink.close()
    assert errors.messages == ["access log: standard output cannot be written: Broken pipe; lines are lost"]


def test_a_descriptor_that_was_closed_is_logged_once(path: Path, errors: Records) -> None:
    file = path.open("w")
    sink = Sink(file.fileno())
    file.close()
    sink.write(b"x\n")
    sink.write(b"x\n")
    assert errors.messages == ["access log: standard output cannot be written: Bad file descriptor; lines are lost"]


def test_close_waits_only_so_long(pipe: tuple[int, int], errors: Records, monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = pipe
    monkeypatch.setattr(access, "_CLOSE_SECONDS", 0.01)
    sink = Sink(writer)
    sink.write(b"x" * PIPE_FULL + b"\n")
    sink.close()
    assert len(errors.messages) == 1
    assert re.fullmatch(r"access log: nobody reads it; \d+ bytes are lost", errors.messages[0])
    read_exactly(reader, PIPE_FULL + 1)  # so that the thread ends


def test_a_pipe_that_is_non_blocking_is_waited_for(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    os.set_blocking(writer, False)
    sink = Sink(writer)
    sink._nowait = False
    lines = b"".join(numbered(5000))
    sink.write(lines)
    assert read_exactly(reader, len(lines)) == lines
    sink.close()


def test_a_terminal_that_is_non_blocking_goes_to_the_thread() -> None:
    reader, writer = os.openpty()
    try:
        os.set_blocking(writer, False)
        sink = Sink(writer)
        assert sink.terminal
        data = b"x" * 50 + b"\n"
        sink.write(data * 5000)
        assert read_exactly(reader, 5000 * 52).count(b"\n") == 5000  # a terminal makes \r\n of it
        sink.close()
    finally:
        os.close(reader)
        os.close(writer)


def test_a_kernel_without_nowait_makes_it_a_thread(pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = pipe
    sink = Sink(writer)
    monkeypatch.setattr(os, "RWF_NOWAIT", 1 << 29, raising=False)  # a flag no kernel knows: EOPNOTSUPP or EINVAL
    sink.write(b"x\n")
    assert read_exactly(reader, 2) == b"x\n"
    sink.close()
    assert sink._nowait is False


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # a fork with threads is what it is about
def test_after_a_fork_the_child_has_a_thread_of_its_own(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    sink = Sink(writer)
    sink._nowait = False
    sink.write(b"p" * 100_000 + b"\n")  # the parent's thread now waits
    pid = os.fork()
    if pid == 0:
        signal.alarm(int(BOUND_SECONDS))
        status = 1
        try:
            sink.write(b"child\n")
            os.close(reader)
            sink.close()
            status = 0
        finally:
            os._exit(status)
    data = read_exactly(reader, 100_001 + 6)
    sink.close()
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert b"child\n" in data and data.count(b"p") == 100_000


def test_pieces_are_whole_lines_that_a_pipe_takes_in_one_go() -> None:
    lines = numbered(2000)
    lines[100] = b"long" * 5000 + b"\n"
    pieces = list(access._pieces(b"".join(lines) + b"no end"))
    assert b"".join(pieces) == b"".join(lines) + b"no end"
    assert all(piece.endswith(b"\n") for piece in pieces[:-1])
    assert sum(len(piece) > access._ATOMIC_BYTES for piece in pieces) == 1
    assert len(pieces) < 100
