"""The access log: one line for each exchange, when it has ended.

    log(exchange)*  flush        in each turn of the loop: lines are formatted into a list and leave in one write
    close                        at the end

Formats: "" (uvicorn's line with size and duration), "json", or gunicorn's atoms (`%(h)s "%(r)s" %(s)s`). A format is
compiled once, so a request pays for the atoms that are in it. Whatever a client sent is escaped.

Lines go past `logging`, which costs 8 us a record, this 1.6. If somebody attaches a handler to the logger
"stdserve.access" they go through it as the records that uvicorn makes, and a filter on that logger is asked in any
case. It does not log connections, and not what is wrong with a request (the error log does).
"""

from __future__ import annotations

import base64
import errno
import json
import logging
import os
import queue
import re
import select
import stat
import sys
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator
from time import perf_counter
from typing import TYPE_CHECKING, Any

from .errors import ConfigError
from .logs import (
    access_logger,
    error_logger,
    escape,
    has_foreign_handler,
    level_prefix,
    request_line_text,
    status_text,
    use_colors,
)

if TYPE_CHECKING:
    from .config import Config
    from .exchange import Exchange

Value = Callable[["Exchange", float], Any]

# --- What atoms stand for. Each takes the exchange and its duration in seconds.


class _Clients(dict[tuple[str, int] | None, str]):
    """Client -> `127.0.0.1:1234`, escaped (an address may come from a proxy's field).

    At most 1,024 (about 200 KiB); when full it starts anew.
    """

    def __missing__(self, client: tuple[str, int] | None) -> str:
        if client is None:
            return "unix"
        host, port = client
        host = f"[{host}]" if ":" in host else host
        if len(self) >= 1024:
            self.clear()
        text = self[client] = escape(f"{host}:{port}" if port else host)
        return text


class _Statuses(dict[int, str]):
    """Status -> its text, made once."""

    def __init__(self, colors: bool) -> None:
        super().__init__()
        self._colors = colors

    def __missing__(self, status: int) -> str:
        text = self[status] = status_text(status, self._colors)  # at most 900: other numbers cannot be sent
        return text


# strftime's %b follows the locale
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


def clf_time(seconds: int) -> str:
    """`[10/Oct/2000:13:55:36 -0700]`, local time."""
    now = time.localtime(seconds)
    minutes = abs(now.tm_gmtoff) // 60
    offset = f"{'-' if now.tm_gmtoff < 0 else '+'}{minutes // 60:02}{minutes % 60:02}"
    month = _MONTHS[now.tm_mon - 1]
    return f"[{now.tm_mday:02}/{month}/{now.tm_year}:{now.tm_hour:02}:{now.tm_min:02}:{now.tm_sec:02} {offset}]"


def iso_time(seconds: int) -> str:
    """`2000-10-10T20:55:36`, UTC."""
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))


class _PerSecond:
    """A text that changes once a second: `clf_time` costs 2 us."""

    __slots__ = ("_make", "_second", "_text")

    def __init__(self, make: Callable[[int], str]) -> None:
        self._make = make
        self._second = -1
        self._text = ""

    def at(self, seconds: float) -> str:
        second = int(seconds)
        if second != self._second:
            self._text = self._make(second)
            self._second = second
        return self._text


def _raw_line(exchange: Exchange) -> str:
    request = exchange.request
    return escape(b"%b %b HTTP/%b" % (request.method, request.target, request.version))


def _text(value: bytes) -> str:
    """Most bytes beyond ASCII are UTF-8; what is not is read as Latin-1, so that nothing is lost."""
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value.decode("latin-1")


def _request_field(name: bytes) -> Value:
    def value(exchange: Exchange, duration: float) -> str:
        field = exchange.request.fields.get(name)
        return "-" if field is None else escape(_text(field))

    return value


def _response_field(name: bytes) -> Value:
    spellings = (name, name.decode("latin-1"))  # bytes from ASGI, str from WSGI

    def value(exchange: Exchange, duration: float) -> str:
        for key, field in exchange.response_headers:
            if key.lower() in spellings:
                return escape(_text(field) if isinstance(field, bytes) else str(field))
        return "-"

    return value


def _environ_variable(name: str) -> Value:
    def value(exchange: Exchange, duration: float) -> str:
        environ = exchange.environ
        return escape(str(environ[name])) if environ is not None and name in environ else "-"

    return value


def _user(exchange: Exchange, duration: float) -> str:
    """The user name of `Authorization: Basic` (RFC 7617 2); nobody has checked it."""
    scheme, _, credentials = exchange.request.fields.get(b"authorization", b"").partition(b" ")
    if scheme.lower() != b"basic":
        return "-"
    try:
        name, _, _ = base64.b64decode(credentials).partition(b":")
    except ValueError:
        return "-"
    return escape(_text(name)) or "-"


def _decoded_path(exchange: Exchange, duration: float) -> str:
    path = exchange.request.path
    return escape(_text(urllib.parse.unquote_to_bytes(path) if b"%" in path else path))


def _path_with_query(exchange: Exchange) -> bytes:
    request = exchange.request
    return request.path + b"?" + request.query if request.query else request.path


_ATOMS: dict[str, Value] = {
    "h": lambda exchange, duration: escape(exchange.client[0]) if exchange.client else "-",
    "l": lambda exchange, duration: "-",
    "u": _user,
    "r": lambda exchange, duration: _raw_line(exchange),
    "m": lambda exchange, duration: escape(exchange.request.method),
    "U": _decoded_path,
    "q": lambda exchange, duration: escape(exchange.request.query),
    "H": lambda exchange, duration: "HTTP/" + escape(exchange.request.version),
    "s": lambda exchange, duration: exchange.status or "-",
    "B": lambda exchange, duration: exchange.sent_bytes,
    "b": lambda exchange, duration: exchange.sent_bytes if exchange.status else "-",
    "f": _request_field(b"referer"),
    "a": _request_field(b"user-agent"),
    "T": lambda exchange, duration: int(duration),
    "M": lambda exchange, duration: int(duration * 1e3),
    "D": lambda exchange, duration: int(duration * 1e6),
    "L": lambda exchange, duration: "%.6f" % duration,
    "p": lambda exchange, duration: f"<{os.getpid()}>",
    # hypercorn's
    "R": lambda exchange, duration: _raw_line(exchange),
    "S": lambda exchange, duration: escape(exchange.scheme),
    "st": lambda exchange, duration: status_text(exchange.status, colors=False).partition(" ")[2] or "-",
    "Uq": lambda exchange, duration: escape(_path_with_query(exchange)),
}

# Those that %(x)d and %(x).3f can show.
_NUMBERS: dict[str, Value] = {name: _ATOMS[name] for name in "BTMD"} | {
    "s": lambda exchange, duration: exchange.status,
    "b": _ATOMS["B"],
    "L": lambda exchange, duration: duration,
}

# --- Formats


class DefaultFormat:
    """`INFO:     127.0.0.1:1234 - "GET /path?x HTTP/1.1" 200 OK 13B 1.2ms`"""

    __slots__ = ("_clients", "_close", "_open", "_prefix", "_statuses", "needs_environ")

    def __init__(self, colors: bool) -> None:
        self._prefix = level_prefix(logging.INFO, "INFO", colors) + " "
        self._open, self._close = f' - "{request_line_text("%", colors)}" '.split("%")
        self._clients = _Clients()
        self._statuses = _Statuses(colors)
        self.needs_environ = False

    def __call__(self, exchange: Exchange, duration: float) -> str:
        request = exchange.request
        line = escape(b"%b %b HTTP/%b" % (request.method, request.target, request.version))
        return (
            f"{self._prefix}{self._clients[exchange.client]}{self._open}{line}{self._close}"
            f"{self._statuses[exchange.status]} {exchange.sent_bytes}B {duration * 1e3:.1f}ms"
        )


class JsonFormat:
    """One JSON object (RFC 8259), ASCII only; null for what a request does not have."""

    __slots__ = ("_encode", "_time", "needs_environ")

    def __init__(self) -> None:
        self._encode = json.JSONEncoder(separators=(",", ":")).encode
        self._time = _PerSecond(iso_time)
        self.needs_environ = False

    def __call__(self, exchange: Exchange, duration: float) -> str:
        request = exchange.request
        referer, user_agent = request.fields.get(b"referer"), request.fields.get(b"user-agent")
        now = time.time()
        line = {
            "time": f"{self._time.at(now)}.{int(now % 1 * 1e3):03}Z",
            "client": exchange.client[0] if exchange.client else None,
            "method": _text(request.method),
            "path": _text(request.path),
            "query": _text(request.query),
            "protocol": "HTTP/" + _text(request.version),
            "status": exchange.status or None,
            "bytes": exchange.sent_bytes,
            "duration_ms": round(duration * 1e3, 3),
            "referer": None if referer is None else _text(referer),
            "user_agent": None if user_agent is None else _text(user_agent),
        }
        # JSON escapes C0, and as ASCII all beyond it: only DEL is left (RFC 8259 7)
        return self._encode(line).replace("\x7f", "\\u007f")


_DIRECTIVE = re.compile(r"%(?:%|\(([^()]*+)\)([-+ 0#]*+\d{0,3}+(?:\.\d{1,2}+)?+)(.?)|.?)", re.DOTALL)
_NAMED = re.compile(r"\{([^{}]++)\}([ioe])")


class AtomFormat:
    """A format made of gunicorn's atoms. Raises ConfigError if a part of it is none."""

    __slots__ = ("_template", "_values", "needs_environ")

    def __init__(self, text: str) -> None:
        self._values: list[Value] = []
        self.needs_environ = False
        self._template = _DIRECTIVE.sub(self._add, text)

    def __call__(self, exchange: Exchange, duration: float) -> str:
        return self._template % tuple([value(exchange, duration) for value in self._values])

    def _add(self, match: re.Match[str]) -> str:
        """Note where the value comes from, and return what the template has in its place."""
        if match[0] == "%%":
            return "%%"
        name, width, kind = match.groups()
        if name is None:
            raise _bad_atom(match, "an atom is %(name)s, a percent sign %%")
        if kind == "s":
            self._values.append(self._value(name, match))
        elif kind and kind in "dif" and name in _NUMBERS:
            self._values.append(_NUMBERS[name])
        else:
            raise _bad_atom(match, "after the name comes s, or for a number d, i or f")
        return f"%{width}{kind}"

    def _value(self, name: str, match: re.Match[str]) -> Value:
        if name == "t":
            stamp = _PerSecond(clf_time)
            return lambda exchange, duration: stamp.at(time.time())
        if name in _ATOMS:
            return _ATOMS[name]
        if named := _NAMED.fullmatch(name):
            return self._named_value(named[1], named[2])
        if not name or "{" in name:
            raise _bad_atom(match, "a name is a letter, {field}i, {field}o or {variable}e")
        # gunicorn starts with it, so its configurations must do here
        error_logger.warning("access_log_format: there is no atom %r; it is logged as -", match[0])
        return lambda exchange, duration: "-"

    def _named_value(self, name: str, source: str) -> Value:
        if source == "e":
            self.needs_environ = True
            return _environ_variable(name)
        field = name.lower().encode("utf-8")
        return _request_field(field) if source == "i" else _response_field(field)


def _bad_atom(match: re.Match[str], rule: str) -> ConfigError:
    return ConfigError(f"access_log_format: bad atom {match[0]!r} at character {match.start() + 1}: {rule}")


AccessFormat = DefaultFormat | JsonFormat | AtomFormat


def compile_access_format(text: str, colors: bool = False) -> AccessFormat:
    """What makes a line of (exchange, duration in seconds); its `needs_environ`: it reads exchange.environ."""
    if not text:
        return DefaultFormat(colors)
    return JsonFormat() if text == "json" else AtomFormat(text)


# --- The log


def make_access_log(config: Config) -> AccessLog | None:
    """What writes the access lines; None if nobody wants them. Raises ConfigError. After configure_logging."""
    if not config.access_log or not access_logger.isEnabledFor(logging.INFO):
        return None
    return AccessLog(config)


_RECORD = '%s - "%s %s HTTP/%s" %d'  # uvicorn's: formatters of other projects unpack its five args


class AccessLog:
    """Made in the main thread, then the loop thread's; `reopen` may be called in any thread until it is closed."""

    __slots__ = ("_by_record", "_clients", "_format", "_formatted", "_lines", "_sink", "needs_environ")

    def __init__(self, config: Config) -> None:
        """Raises ConfigError for the format and for a file that cannot be opened."""
        own_file = config.access_log_file != "-"
        self._by_record = has_foreign_handler(access_logger)
        self._sink: Sink | None = None
        if own_file or not self._by_record:
            self._sink = open_sink(config.access_log_file)
        terminal = self._sink is not None and self._sink.terminal
        colors = not own_file and use_colors(terminal, config.use_colors)
        line = compile_access_format(config.access_log_format, colors)
        self._format = line.__call__  # called so, 0.1 us less
        self._formatted = config.access_log_format != ""
        self._clients = _Clients()
        self._lines: list[str] = []
        self.needs_environ = line.needs_environ

    def log(self, exchange: Exchange) -> None:
        """The exchange has ended."""
        duration = perf_counter() - exchange.started
        # Applications change the logger at any time: filters for health checks, handlers of their own.
        plain = not (self._by_record or access_logger.handlers or access_logger.filters)
        if plain or self._record(exchange, duration):
            self._lines.append(self._format(exchange, duration))
        if self.needs_environ:
            exchange.environ = None  # it leads back to the exchange

    def flush(self) -> None:
        """Write what has come together: in each turn, before the poll. Never waits."""
        lines = self._lines
        if not lines:
            return
        # The level, too, may change; asked once a turn (0.1 us)
        if self._sink is not None and access_logger.isEnabledFor(logging.INFO):
            # A str of WSGI may hold a lone surrogate, which has no UTF-8
            self._sink.write(("\n".join(lines) + "\n").encode("utf-8", "backslashreplace"))
        lines.clear()

    def reopen(self) -> None:
        """Open the file anew, after a rotation."""
        if self._sink is not None:
            self._sink.reopen()

    def close(self) -> None:
        """Write the rest; waits for a reader at most a second."""
        self.flush()
        if self._sink is not None:
            self._sink.close()
            self._sink = None

    def _record(self, exchange: Exchange, duration: float) -> bool:
        """Through `logging`; whether the line shall also go to our own sink."""
        if not access_logger.isEnabledFor(logging.INFO):
            return False
        request = exchange.request
        client = self._clients[exchange.client]
        method, path, version = map(escape, (request.method, _path_with_query(exchange), request.version))
        message = _RECORD
        args: tuple[object, ...] = (client, method, path, version, exchange.status)
        to_handlers = self._by_record or bool(access_logger.handlers)
        if to_handlers and self._formatted:
            message, args = self._format(exchange, duration), ()
        extra = {"sent_bytes": exchange.sent_bytes, "duration_ms": round(duration * 1e3, 3)}
        record = access_logger.makeRecord(access_logger.name, logging.INFO, "", 0, message, args, None, extra=extra)
        if not access_logger.filter(record):
            return False
        if to_handlers:
            access_logger.callHandlers(record)
        return self._sink is not None and (self._sink.path is not None or not to_handlers)


# --- The sink

# What a reader may fall behind: about 80,000 lines. Beyond it lines are dropped, and counted.
BACKLOG_BYTES = 8 * 1024 * 1024
_CLOSE_SECONDS = 1.0
# Kernels and files that do not know RWF_NOWAIT.
_NO_NOWAIT = frozenset((errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.ESPIPE))
# A write to a pipe of at most this many bytes is atomic (pipe(7)): lines of several workers stay whole.
_ATOMIC_BYTES = getattr(select, "PIPE_BUF", 512)


def open_sink(path: str) -> Sink | None:
    """The sink for a file, or for standard output ("-"); None if the process has no standard output."""
    if path != "-":
        try:
            return Sink(_open_file(path), path)
        except OSError as error:
            raise ConfigError(f"access_log_file {path!r} cannot be opened: {error.strerror}") from None
    if sys.stdout is None:  # descriptor 1 was closed at the start; by now it may be a socket
        return None
    try:
        return Sink(sys.stdout.fileno())
    except (AttributeError, OSError, ValueError):  # a stand-in for it, in memory
        pass
    try:
        return Sink(1)
    except OSError:
        return None


def _open_file(path: str) -> int:
    return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)


class Sink:
    """A descriptor that is written to without waiting for its reader.

    Files and terminals take everything at once. A pipe or socket may be full, and its flags are not ours to change:
    whoever shares it (a shell, the application's print) would see it non-blocking too. RWF_NOWAIT (pwritev2(2), for
    pipes since Linux 6.5) asks for one write only not to wait. Where that does not exist, and for what does not fit,
    a thread waits in our place. The thread costs 20 us of hand-over for each write, so it starts when it is needed.
    """

    __slots__ = ("_dropped", "_failed", "_fd", "_nowait", "_waits", "_writer", "path", "terminal")

    def __init__(self, fd: int, path: str | None = None) -> None:
        mode = os.fstat(fd).st_mode
        self._fd = fd
        self.path = path  # None: the descriptor is not ours to close
        self.terminal = os.isatty(fd)
        self._waits = stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)
        self._nowait = hasattr(os, "RWF_NOWAIT")
        self._writer: _Writer | None = None
        self._dropped = 0  # lines
        self._failed = False

    def write(self, data: bytes) -> None:
        """Write whole lines, now or later, or count them as dropped. Never waits, never raises."""
        try:
            if not self._waits:
                data = self._write_all(data)
            elif self._nowait and not self._backlog_bytes():
                data = self._write_some(data)
        except OSError as error:  # EPIPE: the reader has gone. EBADF: the application closed it. ENOSPC
            self._fail(error)
            return
        if data:
            self._hand_over(data)

    def reopen(self) -> None:
        """Put a new file in the place of the old one."""
        if self.path is None:
            return
        try:
            fd = _open_file(self.path)
        except OSError as error:
            error_logger.error(
                "access log %r cannot be reopened (%s); the old one is used on", self.path, error.strerror
            )
            return
        # dup2 replaces what a number stands for in one step: no other thread ever sees it closed
        os.dup2(fd, self._fd, inheritable=False)
        os.close(fd)
        self._failed = False

    def close(self) -> None:
        """Wait a second at most for what is still to be written."""
        writer, self._writer = self._own_writer(), None
        if writer is not None and not writer.stop(_CLOSE_SECONDS):
            error_logger.warning("access log: nobody reads it; %d bytes are lost", writer.backlog_bytes())
            return  # the thread still uses the descriptor; it ends with the process
        self._report_dropped()
        if self.path is not None:
            os.close(self._fd)

    def _write_all(self, data: bytes) -> bytes:
        try:
            while data:
                data = data[os.write(self._fd, data) :]
        except BlockingIOError:  # a terminal that somebody made non-blocking
            self._waits, self._nowait = True, False
        return data

    def _write_some(self, data: bytes) -> bytes:
        try:
            return data[os.pwritev(self._fd, [data], -1, os.RWF_NOWAIT) :]
        except BlockingIOError:
            return data
        except OSError as error:
            if error.errno not in _NO_NOWAIT:
                raise
            self._nowait = False
            return data

    def _own_writer(self) -> _Writer | None:
        """The thread's side, unless it stayed behind in the parent at a fork."""
        if self._writer is not None and self._writer.pid != os.getpid():
            self._writer = None
        return self._writer

    def _backlog_bytes(self) -> int:
        writer = self._own_writer()
        backlog = 0 if writer is None else writer.backlog_bytes()
        if not backlog:
            self._report_dropped()
        return backlog

    def _hand_over(self, data: bytes) -> None:
        if self._backlog_bytes() + len(data) > BACKLOG_BYTES:
            self._dropped += data.count(b"\n")
            return
        if self._writer is None:
            self._writer = _Writer(self._fd, self._fail)
        self._writer.put(data)

    def _report_dropped(self) -> None:
        if self._dropped:
            error_logger.warning("access log: nobody read it for a while; %d lines were dropped", self._dropped)
            self._dropped = 0

    def _fail(self, error: OSError) -> None:
        """Once, not for each line. Also called by the writer's thread."""
        if not self._failed:
            self._failed = True
            name = "standard output" if self.path is None else repr(self.path)
            error_logger.error("access log: %s cannot be written: %s; lines are lost", name, error.strerror)


class _Writer:
    """Writes in a thread of its own, where it may wait. Each counter has one thread that changes it: no lock."""

    __slots__ = ("_fail", "_fd", "_put_bytes", "_queue", "_thread", "_written_bytes", "pid")

    def __init__(self, fd: int, fail: Callable[[OSError], None]) -> None:
        self.pid = os.getpid()
        self._fd = fd
        self._fail = fail
        self._put_bytes = 0  # the loop's
        self._written_bytes = 0  # the thread's
        self._queue: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="stdserve-access-log", daemon=True)
        self._thread.start()

    def backlog_bytes(self) -> int:
        return self._put_bytes - self._written_bytes

    def put(self, data: bytes) -> None:
        self._put_bytes += len(data)
        self._queue.put(data)

    def stop(self, timeout_seconds: float) -> bool:
        """Whether everything was written in this time."""
        self._queue.put(b"")
        self._thread.join(timeout_seconds)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while data := self._queue.get():
            try:
                for piece in _pieces(data):
                    self._write(piece)
            except OSError as error:
                self._fail(error)
            self._written_bytes += len(data)

    def _write(self, data: bytes) -> None:
        while data:
            try:
                data = data[os.write(self._fd, data) :]
            except BlockingIOError:  # somebody made it non-blocking
                poll = select.poll()
                poll.register(self._fd, select.POLLOUT)
                poll.poll()


def _pieces(data: bytes) -> Iterator[bytes]:
    """Whole lines, as many as a pipe takes in one go; a longer line alone."""
    start = 0
    while start < len(data):
        end = data.rfind(b"\n", start, start + _ATOMIC_BYTES) + 1 or data.find(b"\n", start) + 1 or len(data)
        yield data[start:end]
        start = end
