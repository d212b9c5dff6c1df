"""Values of options: what a text from outside or a value of Python means, in its one form.

A converter takes the value itself or a text ("30s", "64k", "a,b") and returns the value in its one form, which it
takes again; ValueError says what is wrong with it. What a converter is used for stands in the option table, config.py.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

SECONDS = 1.0
MINUTES = 60 * SECONDS
HOURS = 60 * MINUTES
DAYS = 24 * HOURS
KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB


def shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _any(value: object) -> object:
    return value


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{shown(value)} is not a text")
    return value


def _path(value: object) -> str:
    text = os.fspath(value) if isinstance(value, os.PathLike) else value
    if not isinstance(text, str):
        raise ValueError(f"{shown(value)} is not a path")
    if "\0" in text[1:]:  # a NUL at the start is an abstract unix socket
        raise ValueError(f"{shown(value)} has a NUL in it")
    return text


def _root_path(value: object) -> str:
    text = _text(value).rstrip("/")
    if text and not text.startswith("/"):
        raise ValueError(f"{shown(value)} does not start with '/'")
    if not text.isprintable():
        raise ValueError(f"{shown(value)} has control characters in it")
    return text


_SWITCH_WORDS = {
    **dict.fromkeys(("true", "yes", "on", "1", "y", "t"), True),
    **dict.fromkeys(("false", "no", "off", "0", "n", "f"), False),
}


def _switch(value: object) -> bool:
    found = value if isinstance(value, bool) else None
    if isinstance(value, str):
        found = _SWITCH_WORDS.get(value.strip().lower())
    if found is None:
        raise ValueError(f"{shown(value)} is neither true nor false")
    return found


# Python's int() also takes blanks, "1_0", "+1" and digits of other scripts, and raises for more than 4,300 digits.
_NUMBER = re.compile(r"-?[0-9]{1,19}")


def _number(value: object) -> int:
    if isinstance(value, str) and _NUMBER.fullmatch(value.strip()):
        return int(value)
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError(f"{shown(value)} is not a whole number")
    return value


def _workers(value: object) -> int:
    if value == "auto":
        return available_cpus()
    try:
        return _number(value)
    except ValueError:
        raise ValueError(f"{shown(value)} is neither a whole number nor auto") from None


def available_cpus(cgroup: str = "/sys/fs/cgroup/cpu.max") -> int:
    """CPUs that this process may use: by its affinity and by the control group's quota, rounded up."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError), open(cgroup) as file:
        quota, period = file.read().split()  # "max 100000", "150000 100000"
        count = min(count, math.ceil(int(quota) / int(period)))
    return max(1, count)


# "64k", "64KB" and "64KiB" are the same, 64 * 1024, as in nginx and docker: who allows 1MB means to allow 1 MiB too.
_SIZE = re.compile(r"([0-9]{1,15}) ?(?:([kmg])(?:i?b)?|b)?", re.ASCII | re.IGNORECASE)
_SIZE_UNITS = {"": 1, "k": KIB, "m": MIB, "g": GIB}


def _size(value: object) -> int:
    match = _SIZE.fullmatch(value.strip()) if isinstance(value, str) else None
    if match is not None:
        return int(match[1]) * _SIZE_UNITS[(match[2] or "").lower()]
    try:
        return _number(value)
    except ValueError:
        raise ValueError(f"{shown(value)} is not a size; write it as 65536, 64KiB or 1MiB") from None


def _show_size(value: int) -> str:
    for factor, unit in ((GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")):
        if value and value % factor == 0:
            return f"{value // factor}{unit}"
    return str(value)


_DURATION_UNITS = {"d": DAYS, "h": HOURS, "m": MINUTES, "s": SECONDS, "ms": SECONDS / 1000}
_DURATION_NUMBER = r"([0-9]{1,9}(?:\.[0-9]{1,9})?)"
_DURATION = re.compile("".join(f"(?:{_DURATION_NUMBER}{unit})?" for unit in _DURATION_UNITS))
_PLAIN_SECONDS = re.compile(_DURATION_NUMBER)


def _duration(value: object) -> float:
    if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    text = value.strip().lower() if isinstance(value, str) else ""
    if _PLAIN_SECONDS.fullmatch(text):
        return float(text)
    match = _DURATION.fullmatch(text)
    if not text or match is None:
        raise ValueError(f"{shown(value)} is not a duration; write it as 30, 30s, 5m, 1h30m or 500ms")
    return sum(float(number or 0) * unit for number, unit in zip(match.groups(), _DURATION_UNITS.values(), strict=True))


_MODE = re.compile(r"(?:0o)?([0-7]{1,5})")


def _mode(value: object) -> int:
    """A text is octal, with or without 0o; an int is what it is."""
    match = _MODE.fullmatch(value.strip()) if isinstance(value, str) else None
    if match is not None:
        return int(match[1], 8)
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    raise ValueError(f"{shown(value)} is not an octal mode such as 660")


def _parts(value: object) -> tuple[str, ...]:
    """A text is split on commas; what a list holds is taken as it is."""
    if isinstance(value, str):
        return tuple(part for part in map(str.strip, value.split(",")) if part)
    parts = tuple(value) if isinstance(value, Iterable) and not isinstance(value, (bytes, Mapping)) else (None,)
    for part in parts:
        if not isinstance(part, str) or not part.strip():
            raise ValueError(f"{shown(value)} is not a list of texts")
    return tuple(part.strip() for part in parts)


def _paths(value: object) -> tuple[str, ...]:
    """As `_parts`, and what Path objects stand for."""
    if isinstance(value, os.PathLike):
        return (_path(value),)
    if isinstance(value, (list, tuple)):
        value = [_path(part) if isinstance(part, os.PathLike) else part for part in value]
    return tuple(_path(part) for part in _parts(value))


# Also the numbers of ssl.VerifyMode, which is what the other servers take
CERT_REQS = ("none", "optional", "required")


def _cert_reqs(value: object) -> str:
    text = str(int(value)) if isinstance(value, int) and not isinstance(value, bool) else _text(value).strip().lower()
    return CERT_REQS[int(text)] if text in ("0", "1", "2") else text


# Also the numbers of ssl.PROTOCOL_TLS, PROTOCOL_TLS_SERVER and PROTOCOL_TLSv1_2, which uvicorn takes
TLS_VERSIONS = ("1.2", "1.3")
_TLS_NUMBERS = dict.fromkeys(("2", "17", "5"), "1.2")


def _tls_version(value: object) -> str:
    text = str(int(value)) if isinstance(value, int) and not isinstance(value, bool) else _text(value)
    text = text.strip().lower().removeprefix("tls").removeprefix("v")
    return _TLS_NUMBERS.get(text, text)


LEVELS = {50: "critical", 40: "error", 30: "warning", 20: "info", 10: "debug", 5: "trace"}


def _level(value: object) -> str:
    """Also the numbers of the logging module."""
    if isinstance(value, int) and value in LEVELS:
        return LEVELS[value]
    return _text(value).strip().lower()


_LOOPS = ("auto", "asyncio", "uvloop")


def _loop(value: object) -> str:
    text = _text(value).strip()
    module, _, factory = text.partition(":")
    if text not in _LOOPS and not (module and factory):
        raise ValueError(f"{shown(value)} is not one of {', '.join(_LOOPS)} or module:factory")
    return text


def _function(value: object) -> object:
    """A function, or where to import it from."""
    if callable(value) or value is None:
        return value
    text = _text(value).strip()
    module, _, name = text.partition(":")
    if text and not (module and name):
        raise ValueError(f"{shown(value)} is neither a function nor module:function")
    return text or None


# Implementations that uvicorn lets one choose from; here there is one
_WEBSOCKETS = ("websockets", "websockets-sansio", "wsproto")


def _websocket(value: object) -> str:
    text = _text(value).strip()
    return "auto" if text in _WEBSOCKETS else text


def _log_config(value: object) -> object:
    return value if isinstance(value, Mapping) else _path(value)


# field-name = token, RFC 9110 5.1 and 5.6.2
_FIELD_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]++")
# field-value without control characters, RFC 9110 5.5; the wire has bytes, so nothing beyond Latin-1
_FIELD_VALUE = re.compile(r"[\t -~\x80-\xff]*+")
# They say where the answer ends and what becomes of the connection (RFC 9112 6, RFC 9110 7.6.1), so they change.
_FRAMING_FIELDS = frozenset(("content-length", "transfer-encoding", "connection", "keep-alive", "upgrade", "trailer"))
# In one text a comma ends a field only before the next "Name: ", for values have commas too.
_FIELD_SEPARATOR = re.compile(r",(?=[ \t]*[!#$%&'*+\-.^_`|~0-9A-Za-z]++:[ \t])")


def _headers(value: object) -> tuple[tuple[str, str], ...]:
    if isinstance(value, str):
        return tuple(_header(part) for part in _FIELD_SEPARATOR.split(value) if part.strip())
    if not isinstance(value, Iterable) or isinstance(value, (bytes, Mapping)):
        raise ValueError(f"{shown(value)} is not a list of 'Name: value' or (name, value)")
    return tuple(map(_header, value))


def _header(item: object) -> tuple[str, str]:
    pair = item.partition(":")[::2] if isinstance(item, str) and ":" in item else item
    if not isinstance(pair, (tuple, list)) or len(pair) != 2 or not all(isinstance(part, str) for part in pair):
        raise ValueError(f"{shown(item)} is not a header; write it as 'Name: value'")
    name, text = pair[0].strip(" \t"), pair[1].strip(" \t")
    if not _FIELD_NAME.fullmatch(name):
        raise ValueError(f"{shown(item)} has a name that is not a token (RFC 9110 5.1)")
    if not _FIELD_VALUE.fullmatch(text):
        raise ValueError(f"{shown(item)} has a value with control characters or beyond Latin-1 (RFC 9110 5.5)")
    if name.lower() in _FRAMING_FIELDS:
        raise ValueError(f"{shown(item)} cannot be fixed: the server sets {name} for each response")
    return name, text


def _show_headers(value: tuple[tuple[str, str], ...]) -> str:
    return ", ".join(f"{name}: {text}" for name, text in value)


# Kinds of options


class Kind(NamedTuple):
    """What the values of an option are; `default_metavar` stands for the value in --help."""

    convert: Callable[[Any], Any]
    show: Callable[[Any], str] = str
    default_metavar: str = ""


APPLICATION = Kind(_any)
TEXT = Kind(_text, str, "TEXT")
PATH = Kind(_path, str, "PATH")
ROOT_PATH = Kind(_root_path, str, "PATH")
SWITCH = Kind(_switch, lambda value: "on" if value else "off")
NUMBER = Kind(_number, str, "N")
SIZE = Kind(_size, _show_size, "SIZE")
DURATION = Kind(_duration, lambda value: f"{value:g}s", "DURATION")
WORKERS = Kind(_workers, str, "N|auto")
MODE = Kind(_mode, lambda value: f"{value:03o}", "OCTAL")
LIST = Kind(_parts, ",".join, "LIST")
PATHS = Kind(_paths, ",".join, "PATH")
VERIFY = Kind(_cert_reqs)
TLS_VERSION = Kind(_tls_version)
SECRET = Kind(_text, lambda value: "set" if value else "none", "TEXT")
HEADERS = Kind(_headers, _show_headers, "'NAME: VALUE'")
LEVEL = Kind(_level)
LOOP = Kind(_loop, str, "|".join((*_LOOPS, "MODULE:FACTORY")))
FUNCTION = Kind(_function, str, "MODULE:FUNCTION")
WEBSOCKET = Kind(_websocket)
LOG_CONFIG = Kind(_log_config, str, "PATH")
