"""The error log: the loggers, the formatters, `configure_logging`, and `escape` for whatever a client sent.

    stdserve          parent of the others; by default one handler, on stderr or in config.error_log_file
    stdserve.error    life of the server and its faults
    stdserve.access   access lines; access.py writes them past `logging` unless somebody attaches a handler
    stdserve.asgi     messages between server and application, at level TRACE

Formatters and dict configurations have the shape that uvicorn's users know. This module does not write access lines
(access.py) and does not know requests.
"""

from __future__ import annotations

import configparser
import contextlib
import copy
import http
import importlib
import json
import logging
import os
import re
import select
import stat
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal

from .errors import ConfigError

if TYPE_CHECKING:
    from .config import Config

TRACE = 5
logging.addLevelName(TRACE, "TRACE")

LOG_LEVELS = {
    "critical": logging.CRITICAL,
    "error": logging.ERROR,
    "warning": logging.WARNING,
    "info": logging.INFO,
    "debug": logging.DEBUG,
    "trace": TRACE,
}

root_logger = logging.getLogger("stdserve")
error_logger = logging.getLogger("stdserve.error")
access_logger = logging.getLogger("stdserve.access")
asgi_logger = logging.getLogger("stdserve.asgi")

# --- Text from outside

# C0, DEL and C1 steer terminals and end lines; a quote or backslash would forge the fields of a line. U+2028 and U+2029
# end lines too (str.splitlines, JavaScript); U+202A..E and U+2066..9 make a terminal show the text in another order.
_ESCAPES = {code: f"\\x{code:02x}" for code in (*range(0x20), 0x22, 0x5C, *range(0x7F, 0xA0))}
_ESCAPES |= {code: f"\\u{code:04x}" for code in (*range(0x2028, 0x202F), *range(0x2066, 0x206A))}
_ESCAPES |= {ord("\t"): "\\t", ord("\n"): "\\n", ord("\r"): "\\r"}


def escape(value: bytes | str) -> str:
    """The value without anything that could forge or hide a log line. Bytes are read as Latin-1. Linear."""
    text = value if isinstance(value, str) else value.decode("latin-1")
    # Nothing in _ESCAPES but quote and backslash is printable: three scans in C, 0.2 us for a request line.
    if text.isprintable() and '"' not in text and "\\" not in text:
        return text
    return text.translate(_ESCAPES)


# --- Formatters

_RESET = "\x1b[0m"
_BLUE, _CYAN, _GREEN, _YELLOW, _RED = "\x1b[34m", "\x1b[36m", "\x1b[32m", "\x1b[33m", "\x1b[31m"
_BRIGHT_RED, _BRIGHT_WHITE, _BOLD = "\x1b[91m", "\x1b[97m", "\x1b[1m"
_LEVEL_COLORS = {
    TRACE: _BLUE,
    logging.DEBUG: _CYAN,
    logging.INFO: _GREEN,
    logging.WARNING: _YELLOW,
    logging.ERROR: _RED,
    logging.CRITICAL: _BRIGHT_RED,
}
_STATUS_COLORS = {1: _BRIGHT_WHITE, 2: _GREEN, 3: _YELLOW, 4: _RED, 5: _BRIGHT_RED}


def use_colors(terminal: bool, wanted: bool | None = None) -> bool:
    """`wanted` decides; then NO_COLOR (no-color.org: any value but ""), FORCE_COLOR, and whether it is a terminal."""
    if wanted is not None:
        return wanted
    if os.environ.get("NO_COLOR"):
        return False
    if os.environ.get("FORCE_COLOR"):
        return True
    return terminal and os.environ.get("TERM") != "dumb"


def level_prefix(level: int, name: str, colors: bool) -> str:
    """`INFO:    `, nine wide without the colours; formats put one blank after it."""
    color = _LEVEL_COLORS.get(level, "") if colors else ""
    shown = color + name + _RESET if color else name
    return shown + ":" + " " * (8 - len(name))


def status_text(status: int, colors: bool) -> str:
    """`404 Not Found`; the number alone if nobody knows it, `-` if there was no response."""
    if not status:
        return "-"
    try:
        text = f"{status} {http.HTTPStatus(status).phrase}"
    except ValueError:
        text = str(status)
    color = _STATUS_COLORS.get(status // 100, "") if colors else ""
    return color + text + _RESET if color else text


def request_line_text(line: str, colors: bool) -> str:
    return _BOLD + line + _RESET if colors else line


class ColourizedFormatter(logging.Formatter):
    """Adds %(levelprefix)s; in colour shows a record's `color_message` (extra) in place of its message."""

    def __init__(
        self,
        fmt: str | None = None,
        datefmt: str | None = None,
        style: Literal["%", "{", "$"] = "%",
        use_colors: bool | None = None,
    ) -> None:
        super().__init__(fmt=fmt, datefmt=datefmt, style=style)
        self.use_colors = self.should_use_colors() if use_colors is None else use_colors

    def should_use_colors(self) -> bool:
        return use_colors(_is_terminal(sys.stdout))

    def formatMessage(self, record: logging.LogRecord) -> str:
        record = copy.copy(record)  # other handlers see the same record
        color_message = record.__dict__.get("color_message")
        if self.use_colors and color_message is not None:
            record.msg = color_message
            record.message = record.getMessage()
        record.__dict__["levelprefix"] = level_prefix(record.levelno, record.levelname, self.use_colors)
        return super().formatMessage(record)


class DefaultFormatter(ColourizedFormatter):
    def should_use_colors(self) -> bool:
        return use_colors(_is_terminal(sys.stderr))


class AccessFormatter(ColourizedFormatter):
    """For records whose args are (client address, method, path with query, HTTP version, status).

    Adds %(client_addr)s, %(request_line)s and %(status_code)s. Of any other record the message is the request line.
    """

    def formatMessage(self, record: logging.LogRecord) -> str:
        record = copy.copy(record)
        client, line, status = "-", record.getMessage(), "-"
        if isinstance(record.args, tuple) and len(record.args) == 5:
            client, method, path, version, code = map(str, record.args)
            line = f"{method} {path} HTTP/{version}"
            status = status_text(int(code), self.use_colors)
        record.__dict__.update(
            client_addr=client, request_line=request_line_text(line, self.use_colors), status_code=status
        )
        return super().formatMessage(record)


def _is_terminal(stream: Any) -> bool:
    try:
        return bool(stream.isatty())
    except (AttributeError, ValueError):  # no stream (None), or one that was closed
        return False


# To be copied and edited, then given as log_config. __name__, because the package may live under another name.
LOGGING_CONFIG: dict[str, Any] = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {
        "default": {
            "()": f"{__name__}.DefaultFormatter",
            "fmt": "%(levelprefix)s %(message)s",
            "use_colors": None,
        },
        "access": {
            "()": f"{__name__}.AccessFormatter",
            "fmt": '%(levelprefix)s %(client_addr)s - "%(request_line)s" %(status_code)s',
            "use_colors": None,
        },
    },
    "handlers": {
        "default": {"formatter": "default", "class": "logging.StreamHandler", "stream": "ext://sys.stderr"},
        "access": {"formatter": "access", "class": "logging.StreamHandler", "stream": "ext://sys.stdout"},
    },
    "loggers": {
        "stdserve": {"handlers": ["default"], "level": "INFO", "propagate": False},
        "stdserve.error": {"level": "INFO"},
        "stdserve.access": {"handlers": ["access"], "level": "INFO", "propagate": False},
    },
}

# --- Set-up

_own_handlers: list[logging.Handler] = []  # what configure_logging attached last; main thread


def configure_logging(config: Config) -> None:
    """Set up the loggers; may be called again, and then replaces only what it had set up. Raises ConfigError.

    With a log_config its levels, handlers and files are the user's: error_log_file is not used, and log_level only
    if it is not the default.
    """
    level = LOG_LEVELS.get(config.log_level)
    if level is None:
        raise ConfigError(f"log_level {config.log_level!r} is not one of {', '.join(LOG_LEVELS)}")
    if config.log_config is None:
        _install_default(config, level)
        return
    propagate = root_logger.propagate, access_logger.propagate
    root_logger.propagate = access_logger.propagate = True
    try:
        _apply_log_config(config.log_config, config.use_colors)
    except ConfigError:  # what was there goes on, so that somebody reads of the fault
        root_logger.propagate, access_logger.propagate = propagate
        for handler in _own_handlers:
            root_logger.addHandler(handler)
        raise
    _remove_own_handlers()
    if level != logging.INFO:
        for logger in (root_logger, error_logger, access_logger, asgi_logger):
            logger.setLevel(level)


def _install_default(config: Config, level: int) -> None:
    handler = _error_handler(config.error_log_file, config.use_colors)  # may raise: before anything is taken away
    _remove_own_handlers()
    _own_handlers.append(handler)
    root_logger.addHandler(handler)
    root_logger.setLevel(level)
    root_logger.propagate = access_logger.propagate = False


def _error_handler(path: str, colors: bool | None) -> logging.Handler:
    handler: logging.Handler
    if path == "-":
        handler = StreamLog(sys.stderr)
        handler.setFormatter(DefaultFormatter("%(levelprefix)s %(message)s", use_colors=colors))
        return handler
    try:
        handler = LogFile(path)
    except OSError as error:
        raise ConfigError(f"error_log_file {path!r} cannot be opened: {error.strerror}") from None
    # A file outlives the moment: with time and process, as gunicorn writes it.
    line = "%(asctime)s [%(process)d] [%(levelname)s] %(message)s"
    handler.setFormatter(logging.Formatter(line, "[%Y-%m-%d %H:%M:%S %z]"))
    return handler


def _remove_own_handlers() -> None:
    while _own_handlers:
        handler = _own_handlers.pop()
        root_logger.removeHandler(handler)
        handler.close()


def has_foreign_handler(logger: logging.Logger) -> bool:
    """Whether a record of this logger would reach a handler that configure_logging did not attach by itself."""
    current: logging.Logger | None = logger
    while current is not None:
        if any(handler not in _own_handlers for handler in current.handlers):
            return True
        current = current.parent if current.propagate else None
    return False


# --- Streams


# A write of at most so many bytes to a pipe that is ready for writing does not wait (POSIX PIPE_BUF is 512 at least,
# Linux reports a pipe as ready when a page is free).
_PIECE_BYTES = 4096 if sys.platform == "linux" else 512
_PATIENCE_MILLISECONDS = 100


class StreamLog(logging.StreamHandler[Any]):
    """Standard error, which may be a pipe that nobody reads: then lines are lost, but neither the supervisor nor a loop
    waits for ever. Later a line says how many."""

    def __init__(self, stream: Any) -> None:
        super().__init__(stream)
        self._lost = 0

    def emit(self, record: logging.LogRecord) -> None:
        fd = self._pipe()
        if fd < 0:
            super().emit(record)
            return
        try:
            text = self.format(record) + self.terminator
            if self._lost and _is_ready(fd, 0):
                text = f"{self._lost} log lines are lost: nobody has read them in time\n{text}"
                self._lost = 0
            if self._lost or not self._write(fd, text.encode("utf-8", "backslashreplace")):
                self._lost += 1
        except Exception:
            self.handleError(record)

    def _pipe(self) -> int:
        """The descriptor, if it is one that can be full."""
        try:
            self.stream.flush()
            fd = int(self.stream.fileno())
            mode = os.fstat(fd).st_mode
        except (OSError, ValueError, AttributeError):
            return -1
        return fd if hasattr(select, "poll") and (stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)) else -1

    @staticmethod
    def _write(fd: int, data: bytes) -> bool:
        for start in range(0, len(data), _PIECE_BYTES):
            if not _is_ready(fd, _PATIENCE_MILLISECONDS):
                return False
            os.write(fd, data[start : start + _PIECE_BYTES])
        return True


def _is_ready(fd: int, milliseconds: int) -> bool:
    poll = select.poll()
    poll.register(fd, select.POLLOUT)
    return bool(poll.poll(milliseconds))


# --- Files


class LogFile(logging.FileHandler):
    """An appended file that follows its name: once the name stands for another file, or none, it is opened anew.

    WatchedFileHandler does the same, but where it may not open the new file (rotated by root, the server no longer
    is) it raises into whoever logs. Here the old file goes on being used.
    """

    def __init__(self, path: str) -> None:
        super().__init__(path, encoding="utf-8", errors="backslashreplace")

    def emit(self, record: logging.LogRecord) -> None:
        with contextlib.suppress(OSError):
            if self._has_moved():
                _reopen(self)
        super().emit(record)

    def _has_moved(self) -> bool:
        if self.stream is None:
            return False
        try:
            named = os.stat(self.baseFilename)
        except FileNotFoundError:
            return True
        return not os.path.samestat(named, os.fstat(self.stream.fileno()))


def reopen_logs() -> None:
    """Open every file of our loggers (and of the root logger) anew, after a rotation. AccessLog has its own reopen."""
    loggers = (logging.getLogger(), root_logger, error_logger, access_logger, asgi_logger)
    handlers = {handler for logger in loggers for handler in logger.handlers}
    for handler in handlers:
        if isinstance(handler, logging.FileHandler):
            try:
                _reopen(handler)
            except OSError as error:
                name, reason = handler.baseFilename, error.strerror
                error_logger.error("log file %r cannot be reopened (%s); the old one is used on", name, reason)


def _reopen(handler: logging.FileHandler) -> None:
    """Open first, close afterwards: if the new file cannot be had, the old one stays."""
    if handler.stream is None:  # opened lazily (delay=True), and not yet
        return
    handler.mode = "a"  # "w" was for the start; the name may still stand for the same file
    previous = handler.setStream(handler._open())
    if previous is not None:
        previous.close()


# --- log_config


def _apply_log_config(source: Mapping[str, Any] | str | os.PathLike[str], colors: bool | None) -> None:
    if isinstance(source, Mapping):
        _apply_dict(source, "log_config", colors)
        return
    path = os.fspath(source)
    name = f"log_config {path!r}"
    text = _read_file(path, name)
    read = _READERS.get(os.path.splitext(path)[1].lower())
    if read is None:
        _apply_ini(text, name)
        return
    settings = read(text, name)
    if not isinstance(settings, dict):
        raise ConfigError(f"{name} holds a {type(settings).__name__}, not a table of settings")
    _apply_dict(settings, name, colors)


def _read_file(path: str, name: str) -> str:
    try:
        with open(path, encoding="utf-8-sig") as file:
            return file.read()
    except OSError as error:
        raise ConfigError(f"{name} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        byte = error.object[error.start]
        raise ConfigError(f"{name} is not UTF-8: byte {byte:#04x} at offset {error.start}") from None


def _read_json(text: str, name: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigError(f"{name}, line {error.lineno}: {error.msg}") from None


def _read_toml(text: str, name: str) -> Any:
    import tomllib

    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:  # says line and column itself
        raise ConfigError(f"{name}: {error}") from None


def _read_yaml(text: str, name: str) -> Any:
    try:
        yaml = importlib.import_module("yaml")
    except ImportError:
        raise ConfigError(f"{name} needs PyYAML: install it, or write the file as JSON or TOML") from None
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        raise ConfigError(f"{name}{where}: {getattr(error, 'problem', None) or error}") from None


_READERS: dict[str, Callable[[str, str], Any]] = {
    ".json": _read_json,
    ".toml": _read_toml,
    ".yaml": _read_yaml,
    ".yml": _read_yaml,
}

# What a configuration with a fault in it makes logging.config raise: it checks little and converts only some.
_CONFIG_FAULTS = (ValueError, TypeError, AttributeError, LookupError, ImportError, OSError, RuntimeError)


def _apply_ini(text: str, name: str) -> None:
    from logging.config import fileConfig  # 10 ms, and only for those who have a file

    parser = configparser.ConfigParser()
    try:
        parser.read_string(text, name)
    except configparser.Error as error:
        line = getattr(error, "lineno", None) or next(iter(getattr(error, "errors", ())), (None,))[0]
        where = f", line {line}" if line else ""
        raise ConfigError(f"{name}{where}: not an INI file: {' '.join(str(error).split())}") from None
    try:
        fileConfig(parser, disable_existing_loggers=False)
    except KeyError as error:
        raise ConfigError(f"{name}: section or key {error.args[0]!r} is missing") from error
    except (configparser.Error, NameError, *_CONFIG_FAULTS) as error:
        raise ConfigError(f"{name}: {_fault(error)}") from error


def _apply_dict(settings: Mapping[str, Any], name: str, colors: bool | None) -> None:
    from logging.config import dictConfig

    try:
        dictConfig(_as_ours(settings, colors))
    except _CONFIG_FAULTS as error:
        raise ConfigError(f"{name}: {_fault(error)}") from error


def _fault(error: BaseException) -> str:
    """dictConfig says "Unable to configure handler 'x'"; why is in the cause."""
    texts = [str(error) or type(error).__name__]
    while error.__cause__ is not None:
        error = error.__cause__
        texts.append(str(error) or type(error).__name__)
    return " ".join(": ".join(texts).split())


# Formatters by the names that users write: ours, whatever this package is called, and with or without uvicorn.
_FORMATTERS: dict[Any, type[ColourizedFormatter]] = {
    f"{module}.{kind.__name__}": kind
    for module in ("uvicorn.logging", "stdserve.logs", __name__)
    for kind in (ColourizedFormatter, DefaultFormatter, AccessFormatter)
}
_PEERS = re.compile(r"(?:uvicorn|gunicorn)(?=\.|\Z)")


def _as_ours(settings: Mapping[str, Any], colors: bool | None) -> dict[str, Any]:
    """The settings, also valid where they were written for uvicorn or gunicorn; the user's dict is left alone.

    Not a deep copy: a handler's `stream` may be an open file, which cannot be copied.
    """
    ours: dict[str, Any] = {"version": 1, "disable_existing_loggers": False, **settings}
    formatters = ours.get("formatters") or {}
    ours["formatters"] = {name: _as_our_formatter(formatter, colors) for name, formatter in formatters.items()}
    loggers = dict(ours.get("loggers") or {})
    for name in list(loggers):
        if _PEERS.match(name):  # their own name stays too: applications write to "uvicorn.error"
            loggers.setdefault(_PEERS.sub("stdserve", name, count=1), loggers[name])
    ours["loggers"] = loggers
    return ours


def _as_our_formatter(formatter: Mapping[str, Any], colors: bool | None) -> dict[str, Any]:
    ours = dict(formatter)
    factory = ours.get("()")
    if isinstance(factory, str):
        factory = _FORMATTERS.get(factory, factory)
        ours["()"] = factory
    if colors is not None and isinstance(factory, type) and issubclass(factory, ColourizedFormatter):
        ours["use_colors"] = colors
    return ours


# --- Noise

_WINDOW_SECONDS = 60.0


class LineLimiter:
    """At most `per_minute` lines of one kind in a minute; of the others only how many they were. Pure: time is given.

    Kinds are the code's words, not the client's, so they are few.

        if limiter.admit("refused requests", now):
            error_logger.warning(...)
        for line in limiter.report(now):    # now and then: the loop's tick
            error_logger.warning("%s", line)
    """

    __slots__ = ("_ended", "_per_minute", "_windows")

    def __init__(self, per_minute: int = 10) -> None:
        self._per_minute = per_minute
        self._windows: dict[str, tuple[float, int]] = {}  # kind -> start in seconds, lines of it since
        self._ended: list[str] = []

    def admit(self, kind: str, now: float) -> bool:
        """Whether one more line of this kind may be written at `now` (seconds of a monotonic clock)."""
        start, count = self._windows.get(kind, (now, 0))
        if now - start >= _WINDOW_SECONDS:
            self._end(kind, count)
            start, count = now, 0
        self._windows[kind] = (start, count + 1)
        return count < self._per_minute

    def report(self, now: float) -> list[str]:
        """One line for each kind of which lines were suppressed in a minute that has ended."""
        for kind, (start, count) in list(self._windows.items()):
            if now - start >= _WINDOW_SECONDS:
                del self._windows[kind]
                self._end(kind, count)
        lines, self._ended = self._ended, []
        return lines

    def _end(self, kind: str, count: int) -> None:
        if count > self._per_minute:
            self._ended.append(f"{kind}: {count - self._per_minute} more suppressed")
