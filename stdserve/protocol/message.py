"""A request and the head of a response, and the rules of RFC 9110 that every version of HTTP shares.

Bytes on this side, always: str exists on the application's side only (gateway/). This module does not frame: how a
body is delimited is the engine's business (h1, h2).
"""

from __future__ import annotations

import http
from collections.abc import Iterable
from typing import Any

from ..errors import AppError
from .grammar import FIELD_VALUE, LENGTH, REASON, TOKEN

Headers = list[tuple[bytes, bytes]]


class EndOfBody:
    """The type of END_OF_BODY, the event that follows the last bytes of a request's body."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "END_OF_BODY"


END_OF_BODY = EndOfBody()


class Request:
    """The head of one request; immutable once the engine has returned it.

    method, target       as sent
    path, query          of the target, still percent-encoded; of an absolute-form target without scheme and authority
    version              b"1.0", b"1.1" or b"2"
    headers              (name, value) in the order sent; names in lower case, values without outer blanks
    fields               name -> value, for look-ups; of a repeated field the last value
    content_length       bytes, None if the request has none
    chunked              the body comes in chunks
    keep_alive           the client lets the connection go on
    expect_continue      the client waits for 100 (Continue)
    body                 the whole body if it came with the head (b"" if there is none), None if body events follow
    """

    __slots__ = (
        "body", "chunked", "content_length", "expect_continue", "fields", "headers", "keep_alive", "method", "path",
        "query", "target", "version",
    )  # fmt: skip

    def __init__(
        self, method: bytes, target: bytes, version: bytes, headers: Headers, fields: dict[bytes, bytes]
    ) -> None:
        self.method = method
        self.target = target
        self.path, _, self.query = target.partition(b"?")
        self.version = version
        self.headers = headers
        self.fields = fields
        self.content_length: int | None = None
        self.chunked = False
        self.keep_alive = True
        self.expect_continue = False
        self.body: bytes | None = b""

    @property
    def authority(self) -> bytes:
        return self.fields.get(b"host", b"")

    def set_host(self, host: bytes) -> None:
        """Replace Host by what a trusted proxy says the client asked for."""
        self.headers = [(b"host", host), *(pair for pair in self.headers if pair[0] != b"host")]
        self.fields[b"host"] = host

    def __repr__(self) -> str:
        return f"<Request {self.method.decode()} {self.target.decode()} HTTP/{self.version.decode()}>"


REASONS = {status.value: status.phrase.encode() for status in http.HTTPStatus}


# Final statuses whose answers end with the head, whatever its fields say; so do all answers to HEAD
# (RFC 9110 6.4.1, RFC 9112 6.3).
BODILESS = frozenset((204, 304))


# What a field of a response means to the server. A tuple (kind, line, length) stands for each field: `line` is the
# field as HTTP/1 sends it, `length` the number of a Content-Length.
ORDINARY, CONTENT_LENGTH, CONNECTION, HOP_BY_HOP, DATE, SERVER = range(6)
_KINDS = {
    b"content-length": CONTENT_LENGTH,
    b"connection": CONNECTION,
    # RFC 9110 7.6.1: fields of one connection. The server frames the answer and manages the connection, not the
    # application (PEP 3333 "Other HTTP Features" forbids them to applications).
    b"keep-alive": HOP_BY_HOP,
    b"proxy-connection": HOP_BY_HOP,
    b"te": HOP_BY_HOP,
    b"transfer-encoding": HOP_BY_HOP,
    b"upgrade": HOP_BY_HOP,
    b"date": DATE,
    b"server": SERVER,
}

# Fields whose values are few and come again and again: only these are remembered, so that no cookie or token stays in
# memory longer than its answer.
_REMEMBERED = frozenset(
    b"accept-ranges access-control-allow-credentials access-control-allow-headers access-control-allow-methods "
    b"access-control-allow-origin allow cache-control connection content-encoding content-language content-length "
    b"content-security-policy content-type cross-origin-opener-policy permissions-policy referrer-policy server "
    b"strict-transport-security vary x-content-type-options x-frame-options x-xss-protection".split()
)


class _CheckedFields(dict[Any, tuple[int, bytes, int]]):
    """(name, value) of a response, bytes or str -> (kind, line, length); checks what it sees for the first time.

    Checking one field takes 1.3 us, finding it here 0.05. At most 1,024 fields of at most 256 bytes are kept (about
    400 KiB); when full it starts anew. Shared by all threads: each operation on it is one dict operation.
    """

    def __missing__(self, pair: tuple[Any, Any]) -> tuple[int, bytes, int]:
        name, value = _field_bytes(pair)
        if TOKEN.fullmatch(name) is None:
            raise AppError(f"response header name {_short(name)} is not a token (RFC 9110 5.1)")
        if FIELD_VALUE.fullmatch(value) is None:
            raise AppError(
                f"response header {name.decode()!r} has a control character in {_short(value)} (RFC 9110 5.5)"
            )
        lower = name.lower()
        kind = _KINDS.get(lower, ORDINARY)
        if kind is CONTENT_LENGTH and LENGTH.fullmatch(value) is None:
            raise AppError(f"response header Content-Length {_short(value)} is not a number (RFC 9110 8.6)")
        checked = (kind, b"%b: %b\r\n" % (name, value), int(value) if kind is CONTENT_LENGTH else 0)
        if lower in _REMEMBERED and len(value) <= 256:
            if len(self) >= 1024:
                self.clear()
            self[pair] = checked
        return checked


def _field_bytes(pair: tuple[Any, Any]) -> tuple[bytes, bytes]:
    try:
        name, value = pair
        if isinstance(name, str):
            name = name.encode("ascii")
        if isinstance(value, str):
            value = value.encode("latin-1")  # PEP 3333, "Unicode Issues"
        return bytes(memoryview(name)), bytes(memoryview(value)).strip(b" \t")
    except (TypeError, ValueError) as error:
        raise AppError(f"response header {pair!r:.200} is not a pair of byte strings: {error}") from None


def _short(value: bytes) -> str:
    return repr(value if len(value) <= 80 else value[:80] + b"...")


_find_checked = _CheckedFields().__getitem__


class ResponseHead:
    """Status and fields of one response, checked. Made in the application's thread, read in the loop thread.

    reason           bytes, None for the status's usual phrase
    lines            the fields as HTTP/1 lines, without those that are the server's to send
    content_length   bytes, None if the application did not say
    close            the application asked for `Connection: close`
    has_date, has_server   the application sends its own
    headers          as the application gave them, for logs
    """

    __slots__ = ("close", "content_length", "has_date", "has_server", "headers", "lines", "reason", "status")

    def __init__(self, status: int, headers: Iterable[Any], reason: bytes | None = None) -> None:
        """Raise AppError if a field or the status breaks RFC 9110; then nothing of it has been sent."""
        if type(headers) is not list:
            headers = list(headers)  # an iterator can be walked once only
        self.status = status
        self.reason = reason
        self.headers = headers
        self.lines: list[bytes] = []
        self.content_length: int | None = None
        self.close = self.has_date = self.has_server = False
        try:
            for kind, line, length in map(_find_checked, headers):
                if kind is ORDINARY:
                    self.lines.append(line)
                elif kind is CONTENT_LENGTH:
                    if self.content_length is not None:
                        raise AppError("the response has Content-Length twice (RFC 9110 8.6)")
                    self.content_length = length
                    if status >= 200 and status not in (204, 205):  # RFC 9110 8.6: never with 1xx and 204
                        self.lines.append(line)
                else:
                    self._take_special(kind, line)
            if status == 205:  # RFC 9110 15.3.6: without content, and that must be said
                self.content_length = 0
                self.lines.append(b"Content-Length: 0\r\n")
        except TypeError:  # a pair that is a list cannot be looked up
            ResponseHead.__init__(self, status, [_as_pair(pair) for pair in headers], reason)

    def _take_special(self, kind: int, line: bytes) -> None:
        if kind is CONNECTION:  # obey "close"; nothing else in it is the application's to say
            if b"close" in map(bytes.strip, line.partition(b":")[2].lower().split(b",")):
                self.close = True
        elif kind is DATE:
            self.has_date = True
            self.lines.append(line)
        elif kind is SERVER:
            self.has_server = True
            self.lines.append(line)


def _as_pair(pair: Any) -> tuple[Any, Any]:
    try:
        name, value = pair
        hash(name), hash(value)
    except (TypeError, ValueError):
        raise AppError(f"response header {pair!r:.200} is not a pair of byte strings") from None
    return name, value


def check_status(status: Any) -> int:
    """A final status that may be sent, or AppError."""
    if type(status) is int and 200 <= status <= 999:
        return status
    if isinstance(status, int) and 200 <= int(status) <= 999:  # http.HTTPStatus
        return int(status)
    raise AppError(f"response status {status!r:.80} is not a number from 200 to 999 (RFC 9110 15)")


def check_reason(reason: bytes) -> bytes:
    if REASON.fullmatch(reason) is None:
        raise AppError(f"reason phrase {_short(reason)} has a control character (RFC 9112 4)")
    return reason
