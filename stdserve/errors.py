"""The one exception tree of stdserve.

Every error that the package raises on purpose is a StdserveError. An error that somebody must answer carries the
answer: a start-up error its exit code, a protocol error its wire code. So one `except` at each border is enough, and
nobody needs a table from exception types to codes.

    StdserveError
        ConfigError           an option, a file of options, a log configuration: exit 1
            BindError         an address that cannot be listened on: exit 1
        AppLoadError          the application cannot be imported (exit 3) or is not one (exit 4)
        LifespanError         the application's start failed or took too long: exit 3
        ProtocolError         the client broke a rule of the wire
        AppError              the application broke a rule of WSGI, ASGI or HTTP
        ClientDisconnected    the client has gone (also an OSError, as ASGI 2.4 wants it)
"""

from __future__ import annotations


class StdserveError(Exception):
    """Base of all. `exit_code` is what the process ends with when the error stops it."""

    exit_code = 1


class ConfigError(StdserveError):
    """An option has a value that cannot be used; the message names option and value."""


class BindError(ConfigError):
    """An address cannot be listened on; the message names it and, where known, who holds it."""


class AppLoadError(StdserveError):
    """The application cannot be had.

    `details` is the application's own traceback as text, empty where the fault is not in its code.
    """

    def __init__(self, message: str, *, exit_code: int = 4, details: str = "") -> None:
        super().__init__(message)
        self.exit_code = exit_code
        self.details = details


class LifespanError(StdserveError):
    """ASGI lifespan startup failed, raised or ran out of time; `details` is the application's traceback or empty."""

    exit_code = 3

    def __init__(self, message: str, *, details: str = "") -> None:
        super().__init__(message)
        self.details = details


class ProtocolError(StdserveError):
    """The peer broke a rule.

    `code` is the wire code of the answer: an HTTP status, an HTTP/2 error code or a WebSocket close code.
    `rule` is a fixed sentence that names the rule and its section. It holds nothing the peer sent, so it may be shown
    to the peer. `offset` (bytes from the start of the message, -1 unknown) and `excerpt` (raw bytes at the fault, not
    escaped, at most 64) are for the log only. `fields` are the header fields that the answer must have.
    """

    fields: tuple[tuple[bytes, bytes], ...] = ()

    def __init__(self, code: int, rule: str, offset: int = -1, excerpt: bytes | bytearray = b"") -> None:
        super().__init__(rule)
        self.code = code
        self.rule = rule
        self.offset = offset
        self.excerpt = bytes(excerpt[:64])


class AppError(StdserveError, RuntimeError):
    """The application broke a rule of its interface. Also a RuntimeError, which applications expect to see."""


class ClientDisconnected(StdserveError, OSError):
    """The application sends to a client that has gone (ASGI spec, HTTP 2.4: an OSError)."""
