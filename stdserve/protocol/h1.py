"""HTTP/1.1, the server's side (RFC 9112): an incremental request parser and a response encoder.

    engine = H1Engine(H1Limits(), ResponseDefaults())
    engine.receive_data(b"GET / HTTP/1.1\\r\\nHost: a\\r\\n\\r\\n")
    engine.next_event()  -> Request      (with its whole body if that came along, else body events follow)
    engine.next_event()  -> None         (paused: nothing of a pipelined request is looked at)
    engine.send_response(head, b"hello", True); engine.data_to_send() -> [b"HTTP/1.1 200 OK\\r\\n...hello"]
    engine.start_next_request()

    order of events: ( Request ( bytes* END_OF_BODY )? )*     order of answers: ( informational* response data* )*

`next_event` is the bound method of the current state. Strict throughout and without switches: whatever two parsers
could read in two ways is an error. The first error is final: what follows it is never parsed.

It does not: read or write sockets, time out, log, decode percent-encoding or content codings, or speak HTTP/0.9.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NoReturn

from ..errors import ProtocolError
from .grammar import (
    ABSOLUTE_FORM,
    BARE_LF,
    CHUNK_LINE,
    DIGITS,
    FIELD_LINE,
    HOST,
    LENGTH,
    REQUEST_LINE,
    REQUEST_LINE_START,
    TOKEN,
    VERSION,
)
from .message import BODILESS, END_OF_BODY, REASONS, EndOfBody, Request, ResponseHead

Event = Request | bytes | EndOfBody | None


@dataclass(frozen=True, slots=True)
class H1Limits:
    """In bytes, except `fields` (a count). `body` 0 means no limit.

    One connection may make the engine hold `head` + `chunk_extensions` + `trailers` bytes, and the transport bounds
    what it feeds in beyond that.
    """

    request_line: int = 8190
    head: int = 64 * 1024
    fields: int = 200
    field: int = 64 * 1024
    body: int = 0
    chunk_extensions: int = 16 * 1024
    trailers: int = 16 * 1024


class ResponseDefaults:
    """The fields that the server adds to each response, as lines; the transport renews `date` every second."""

    __slots__ = ("_extra", "_server", "date", "lines", "server")

    def __init__(self, server: bytes = b"", extra: bytes = b"") -> None:
        self._server = server
        self._extra = extra
        self.set_date(b"")

    def set_date(self, date: bytes) -> None:
        """`date` is the whole line with its CRLF, or empty for none."""
        self.date = date
        self.server = self._server
        self.lines = date + self._server + self._extra

    def for_head(self, head: ResponseHead) -> bytes:
        """The lines for an application that sends its own Date or Server."""
        date = b"" if head.has_date else self.date
        server = b"" if head.has_server else self._server
        return date + server + self._extra


# (status, reason phrase, or None for the usual one) -> status line
_STATUS_LINES: dict[tuple[int, bytes | None], bytes] = {
    (status, given): b"HTTP/1.1 %d %b\r\n" % (status, reason)
    for status, reason in REASONS.items()
    for given in (None, reason)
}

# A body of at most this size is copied behind its head so that both leave as one buffer; a larger one goes uncopied as
# a second buffer of the same write. Copying 16 KiB takes about as long as the second buffer costs.
_JOIN_BYTES = 16 * 1024

# Empty lines before a request line are allowed (RFC 9112 2.2); two old clients in a row would send four of them.
_EMPTY_LINES_COUNT = 4

# What `_left` says in a chunked body when it is not a number of bytes
_SIZE_LINE, _TRAILERS = -1, -2

# What a peer sends that takes this port for another; recognised so that the log line can say so.
_TLS_HANDSHAKE = b"\x16"
_PROXY_V2 = b"\x00"  # the first line of its signature \r\n\r\n\0\r\nQUIT\n that is not empty

# Fields that a trailer section must not carry: they would change framing or routing after the fact (RFC 9110 6.5.1).
_NOT_IN_TRAILERS = frozenset(
    b"authorization connection content-encoding content-length content-range content-type expect host keep-alive "
    b"max-forwards proxy-authorization te trailer transfer-encoding upgrade".split()
)

# Fields whose lines come again and again from the same client. Only these are remembered, so that no cookie,
# credential or path stays in memory longer than its request.
_REMEMBERED = frozenset(
    b"accept accept-charset accept-encoding accept-language cache-control connection content-length content-type dnt "
    b"expect host keep-alive origin pragma priority sec-ch-ua sec-ch-ua-mobile sec-ch-ua-platform sec-fetch-dest "
    b"sec-fetch-mode sec-fetch-site sec-fetch-user sec-gpc te transfer-encoding upgrade-insecure-requests user-agent "
    b"via x-forwarded-proto x-forwarded-port x-forwarded-host x-requested-with".split()
)


class _FieldLines(dict[bytes, tuple[bytes, bytes]]):
    """A field line as sent -> (name in lower case, value), checked.

    One regex over the whole head costs 8 us for a browser's fields, this 1.5: a line that has been seen is one look-up
    in a C loop. A new line is matched, and where its field has a grammar of its own that is checked too, so a line in
    here needs no second look. At most 1,024 lines of at most 256 bytes (about 500 KiB) are kept; when full it starts
    anew. Shared by all engines of the process; each operation on it is one dict operation.
    """

    def __missing__(self, line: bytes) -> tuple[bytes, bytes]:
        match = FIELD_LINE.fullmatch(line)
        if match is None:
            raise _bad_field_line(line)
        name, value = match.groups()
        name = name.lower()
        value = value.rstrip(b" \t")
        check = _FIELD_CHECKS.get(name)
        if check is not None:
            check(value, line)
        if len(line) <= 256 and name in _REMEMBERED:
            if len(self) >= 1024:
                self.clear()
            self[line] = (name, value)
        return name, value


def _bad_field_line(line: bytes) -> ProtocolError:
    """Say which rule a field line breaks that FIELD_LINE does not match."""
    name, colon, value = line.partition(b":")
    if line[:1] in (b" ", b"\t"):
        return ProtocolError(400, "line folding or a blank before the first field (RFC 9112 5.2)", 0, line)
    if b"\n" in line or b"\r" in line:
        return ProtocolError(400, "CR or LF alone in a field line (RFC 9112 2.2)", 0, line)
    if not colon:
        return ProtocolError(400, "field line without a colon (RFC 9112 5)", 0, line)
    if name.endswith((b" ", b"\t")):
        return ProtocolError(400, "blank between field name and colon (RFC 9112 5.1)", len(name) - 1, line)
    if TOKEN.fullmatch(name) is None:
        return ProtocolError(400, "field name is not a token (RFC 9110 5.1)", 0, line)
    at = next(i for i, byte in enumerate(value) if (byte < 0x20 and byte != 9) or byte == 0x7F)
    return ProtocolError(400, "control character in a field value (RFC 9110 5.5)", len(name) + 1 + at, line)


def _check_host(value: bytes, line: bytes) -> None:
    if HOST.fullmatch(value) is None:
        raise ProtocolError(400, "Host is not a host name with an optional port (RFC 9112 3.2)", 0, line)


def _check_content_length(value: bytes, line: bytes) -> None:
    if LENGTH.fullmatch(value) is not None:
        return
    if DIGITS.fullmatch(value) is not None:
        raise ProtocolError(413, "Content-Length has more than 19 digits (RFC 9110 8.6)", 0, line)
    raise ProtocolError(400, "Content-Length is not a decimal number (RFC 9110 8.6)", 0, line)


def _check_transfer_encoding(value: bytes, line: bytes) -> None:
    """Only `chunked` alone is served. 501 for a coding we do not know, 400 for what nobody may send."""
    if value.lower() == b"chunked":
        return
    codings = [coding.strip(b" \t").lower() for coding in value.split(b",")]
    malformed = any(TOKEN.fullmatch(coding.partition(b";")[0].rstrip(b" \t")) is None for coding in codings)
    # RFC 9112 7: chunked is applied once and last; "identity" is gone since RFC 7230
    if malformed or b"identity" in codings or b"chunked" in codings[:-1] or codings[-1].startswith(b"chunked;"):
        raise ProtocolError(400, "Transfer-Encoding is not one final chunked (RFC 9112 6.1)", 0, line)
    raise ProtocolError(501, "Transfer-Encoding has a coding other than chunked (RFC 9112 6.1)", 0, line)


_FIELD_CHECKS: dict[bytes, Callable[[bytes, bytes], None]] = {
    b"host": _check_host,
    b"content-length": _check_content_length,
    b"transfer-encoding": _check_transfer_encoding,
}

_field_lines = _FieldLines()
_find_field = _field_lines.__getitem__


class H1Engine:
    """One connection's HTTP/1.1 state. Owned by the thread that feeds it; see the module for the order of calls.

    buffer       bytes received and not yet returned in an event
    keep_alive   whether the connection may go on after this answer; set it to False to end it
    """

    __slots__ = (
        "_chunked_out", "_defaults", "_extension_bytes", "_left", "_limits", "_line_seen", "_no_body", "_out",
        "_request", "_scanned", "_total", "buffer", "ends_by_closing", "keep_alive", "next_event",
    )  # fmt: skip

    next_event: Callable[[], Event]

    def __init__(self, limits: H1Limits, defaults: ResponseDefaults) -> None:
        self._limits = limits
        self._defaults = defaults
        self.buffer: bytes | bytearray = b""
        self._out: list[bytes] = []
        self.keep_alive = True
        self._request: Request | None = None
        self.ends_by_closing = False  # only the end of the connection tells where the answer ends (RFC 9112 6.3 (8))
        self.start_next_request()

    # ---- receive

    def receive_data(self, data: bytes) -> None:
        """Take what the peer sent (1 byte or more); then call `next_event` until it returns None."""
        buffer = self.buffer
        if not buffer:
            self.buffer = data
        elif type(buffer) is bytearray:
            buffer += data
        else:
            self.buffer = bytearray(buffer) + data

    def receive_eof(self) -> None:
        """The peer sends no more. `next_event` raises if that leaves a request's body incomplete."""
        if self.next_event in (self._read_length, self._read_chunks, self._read_trailers):
            self.next_event = self._truncated

    def start_next_request(self) -> None:
        """Go on after a complete request whose answer has been sent."""
        self._scanned = 0
        self._line_seen = False
        self._left = 0
        self._request = None
        self.next_event = self._read_head

    def take_buffer(self) -> bytes:
        """Hand over what was received and not read, for the engine of another protocol."""
        data, self.buffer = bytes(self.buffer), b""
        return data

    # ---- states: each is `next_event` for a while

    def _read_head(self) -> Event:
        buffer = self.buffer
        end = buffer.find(b"\r\n\r\n", self._scanned)
        if end < 0 or end > self._limits.head:
            return self._check_unfinished_head(end)
        head = bytes(buffer[:end])
        lines = head.split(b"\r\n")
        match = REQUEST_LINE.fullmatch(lines[0])
        if match is None:
            if not lines[0]:
                return self._skip_empty_lines()
            self._check_head_limits(lines[:1])
            self._fail(_explain_request_line(lines[0]))
        limits = self._limits
        if len(lines) > limits.fields or len(lines[0]) > limits.request_line or end > limits.field:
            self._check_head_limits(lines)
        method, target, major, minor = match.groups()
        del lines[0]
        try:
            headers = list(map(_find_field, lines))
            request = Request(method, target, b"1.0" if minor == b"0" else b"1.1", headers, dict(headers))
            self._check_request(request, major)
        except ProtocolError as error:
            if error.excerpt:
                error.offset += head.find(b"\r\n" + error.excerpt) + 2
            self._fail(error)
        self._request = request
        self.keep_alive = request.keep_alive
        if request.content_length or request.chunked:
            self._start_body(request, end + 4)
        else:
            self.buffer = buffer[end + 4 :] if len(buffer) > end + 4 else b""
            self.next_event = self._paused
        return request

    def _check_unfinished_head(self, end: int) -> Event:
        """Refuse what can be refused before the head is complete, so that nobody waits for the rest of nonsense."""
        buffer, limits = self.buffer, self._limits
        if not buffer:
            return None
        if buffer[:2] == b"\r\n":
            return self._skip_empty_lines()
        if not self._line_seen:
            self._check_first_line(buffer)
        if end > limits.head or len(buffer) > limits.head + 3:
            self._fail(ProtocolError(431, "the head is longer than --limit-request-head", limits.head))
        if (match := BARE_LF.search(buffer, self._scanned)) is not None:
            at = match.start()
            self._fail(ProtocolError(400, "LF alone as a line end (RFC 9112 2.2)", at, buffer[max(0, at - 32) :]))
        self._scanned = max(len(buffer) - 3, 0)
        return None

    def _check_first_line(self, buffer: bytes | bytearray) -> None:
        end = buffer.find(b"\r\n", self._scanned)
        if (end if end >= 0 else len(buffer) - 1) > self._limits.request_line:
            self._fail(ProtocolError(414, "the request line is longer than --limit-request-line", 0, buffer[:64]))
        if end >= 0:
            self._line_seen = True
            if REQUEST_LINE.fullmatch(buffer, 0, end) is None:
                self._fail(_explain_request_line(bytes(buffer[:end])))
        elif buffer[:1] != b"\r" and REQUEST_LINE_START.match(buffer, 0, 64) is None:  # 64: no rescan of a long line
            self._fail(_explain_request_line(bytes(buffer[:64]).rstrip(b"\r")))

    def _skip_empty_lines(self) -> Event:
        """Empty lines before a request line are skipped (RFC 9112 2.2), a few of them."""
        while self.buffer[:2] == b"\r\n":
            self._left += 1
            if self._left > _EMPTY_LINES_COUNT:
                self._fail(ProtocolError(400, "too many empty lines before a request (RFC 9112 2.2)"))
            self.buffer = self.buffer[2:]
        self._scanned = 0
        return self._read_head()

    def _check_head_limits(self, lines: list[bytes]) -> None:
        limits = self._limits
        if len(lines[0]) > limits.request_line:
            self._fail(ProtocolError(414, "the request line is longer than --limit-request-line", 0, lines[0]))
        if len(lines) - 1 > limits.fields:
            self._fail(ProtocolError(431, "more fields than --limit-request-fields"))
        if max(map(len, lines[1:]), default=0) > limits.field:
            self._fail(ProtocolError(431, "a field is longer than --limit-request-field-size"))

    def _check_request(self, request: Request, major: bytes) -> None:
        """What the lines of a head mean together; each alone has been checked. Raises ProtocolError."""
        fields = request.fields
        if major != b"1":
            raise _wrong_version(request)
        if len(fields) != len(request.headers):
            _check_repeated(request)
        if request.target[0] != 0x2F or request.method == b"CONNECT":
            _check_target_form(request)
        http10 = request.version == b"1.0"
        if not http10 and b"host" not in fields:
            raise ProtocolError(400, "HTTP/1.1 request without Host (RFC 9112 3.2)")
        connection = fields.get(b"connection")
        request.keep_alive = not http10 if connection is None else _lets_go_on(connection, http10)
        if b"transfer-encoding" in fields:
            if http10:
                raise ProtocolError(400, "Transfer-Encoding in an HTTP/1.0 request (RFC 9112 6.1)")
            if b"content-length" in fields:
                raise ProtocolError(400, "Transfer-Encoding and Content-Length together (RFC 9112 6.3)")
            request.chunked = True
        elif (length := fields.get(b"content-length")) is not None:
            request.content_length = int(length)
            if self._limits.body and request.content_length > self._limits.body:
                raise ProtocolError(413, "Content-Length is more than --limit-request-body")
        if b"expect" in fields and not http10:
            if fields[b"expect"].lower() != b"100-continue":
                raise ProtocolError(417, "Expect is not 100-continue (RFC 9110 10.1.1)")
            request.expect_continue = True

    def _start_body(self, request: Request, start: int) -> None:
        """Decide where the body ends (RFC 9112 6.3) and keep what follows the head."""
        length = request.content_length
        buffer = self.buffer
        self._total = 0
        if length is not None and len(buffer) >= start + length:
            request.body = bytes(buffer[start : start + length])
            self.buffer = buffer[start + length :]
            self.next_event = self._paused
        else:
            request.body = None
            self.buffer = buffer[start:]
            self._scanned = 0
            self._extension_bytes = 0
            if length is not None:
                self._left = length
                self.next_event = self._read_length
            else:
                self._left = _SIZE_LINE
                self.next_event = self._read_chunks

    def _read_length(self) -> Event:
        if not self._left:
            return self._end_body()
        buffer = self.buffer
        if not buffer:
            return None
        if len(buffer) <= self._left:
            self.buffer = b""
            self._left -= len(buffer)
            return bytes(buffer)
        data = bytes(buffer[: self._left])
        self.buffer = buffer[self._left :]
        self._left = 0
        return data

    def _read_chunks(self) -> Event:
        """The data of as many chunks as have arrived, in one event.

        `_left` says what comes next: a size line, that many bytes of data, the CRLF after them (0) or the trailers.
        """
        buffer, at = self.buffer, 0
        pieces: list[bytes] = []
        try:
            while (left := self._left) != _TRAILERS:
                if left == _SIZE_LINE:
                    after = self._read_chunk_line(buffer, at)
                    if not after:
                        break
                    at = after
                elif left:
                    piece = bytes(buffer[at : at + left])
                    if not piece:
                        break
                    pieces.append(piece)
                    at += len(piece)
                    self._left = left - len(piece)
                else:
                    # The CRLF is compared, not skipped: anything else here is a body that others read differently.
                    ending = buffer[at : at + 2]
                    if ending != b"\r\n":
                        if b"\r\n".startswith(ending):
                            break
                        self._fail(ProtocolError(400, "no CRLF after a chunk's data (RFC 9112 7.1)", -1, buffer[at:]))
                    at += 2
                    self._left = _SIZE_LINE
        except ProtocolError:
            if not pieces:
                raise
            return b"".join(pieces)  # what came before the error; the next call raises it again
        if at:
            self.buffer = buffer[at:]
        if self._left == _TRAILERS:
            self._scanned = 0
            self.next_event = self._read_trailers
        if pieces:
            return b"".join(pieces)
        return self._read_trailers() if self._left == _TRAILERS else None

    def _read_chunk_line(self, buffer: bytes | bytearray, at: int) -> int:
        """b"1a;name=value\r\n" at `at` -> the offset behind it and `_left` set, 0 if it has not wholly arrived."""
        end = buffer.find(b"\r\n", at + self._scanned)
        line_bytes = (end if end >= 0 else len(buffer) - 1) - at  # the last byte may be the CR of the end
        if line_bytes + self._extension_bytes > self._limits.chunk_extensions + 16:
            self._fail(ProtocolError(400, "chunk extensions are longer than --limit-chunk-extensions", -1, buffer[at:]))
        if end < 0:
            if BARE_LF.search(buffer, at + self._scanned) is not None:
                self._fail(ProtocolError(400, "LF alone in a chunk-size line (RFC 9112 7.1)", -1, buffer[at:]))
            self._scanned = max(line_bytes, 0)
            return 0
        match = CHUNK_LINE.fullmatch(buffer, at, end)
        if match is None:
            self._fail(ProtocolError(400, "chunk-size line is malformed (RFC 9112 7.1)", -1, buffer[at:end]))
        size, extensions = match.groups()
        self._extension_bytes += len(extensions)
        self._scanned = 0
        self._left = int(size, 16)
        self._total += self._left
        if self._limits.body and self._total > self._limits.body:
            self._fail(ProtocolError(413, "the chunked body is longer than --limit-request-body"))
        if self._left:
            return end + 2
        self._left = _TRAILERS
        return end  # the CRLF stays: an empty trailer section then ends in CRLF CRLF as a full one does

    def _read_trailers(self) -> Event:
        """Trailer fields are checked and dropped (RFC 9110 6.5.1: never merged into the headers)."""
        buffer = self.buffer
        end = buffer.find(b"\r\n\r\n", self._scanned)
        if (end if end >= 0 else len(buffer) - 3) > self._limits.trailers:  # three bytes of the end may be here
            self._fail(ProtocolError(431, "the trailer section is longer than --limit-trailers", 0, buffer[:64]))
        if end < 0:
            if BARE_LF.search(buffer, self._scanned) is not None:
                self._fail(ProtocolError(400, "LF alone in the trailer section (RFC 9112 2.2)", 0, buffer[:64]))
            self._scanned = max(len(buffer) - 3, 0)
            return None
        if end:
            lines = bytes(buffer[2:end]).split(b"\r\n")
            if len(lines) > self._limits.fields:
                self._fail(ProtocolError(431, "more trailer fields than --limit-request-fields"))
            for line in lines:
                self._check_trailer(line)
        self.buffer = buffer[end + 4 :]
        return self._end_body()

    def _check_trailer(self, line: bytes) -> None:
        try:
            name, _ = _find_field(line)
        except ProtocolError as error:
            self._fail(error)
        if name in _NOT_IN_TRAILERS:
            self._fail(ProtocolError(400, "a field that is not allowed in trailers (RFC 9110 6.5.1)", 0, line))

    def _end_body(self) -> Event:
        self.next_event = self._paused
        return END_OF_BODY

    def _paused(self) -> Event:
        return None

    def _truncated(self) -> NoReturn:
        self._fail(ProtocolError(400, "the connection ended before the end of the request's body (RFC 9112 8)"))

    def _fail(self, error: ProtocolError) -> NoReturn:
        """The first error is final: drop what is buffered, parse nothing more, raise the same again if asked."""
        self.buffer = b""
        self.keep_alive = False

        def raise_again() -> NoReturn:
            raise error

        self.next_event = raise_again
        raise error

    # ---- send

    def send_informational(self, status: int, lines: list[bytes]) -> None:
        """An answer before the answer: 100 (Continue), 103 (Early Hints). `lines` are field lines with CRLF."""
        if self._request is not None and self._request.version != b"1.0":  # RFC 9110 15.2: never to HTTP/1.0
            self._out += (_STATUS_LINES[status, None], *lines, b"\r\n")

    def send_response(self, head: ResponseHead, body: bytes, end: bool) -> None:
        """The head and the first piece of the body; `end` if it is the last.

        The framing is chosen here (RFC 9112 6.3): the application's Content-Length, else the length of a body that is
        here as a whole, else chunks, else (HTTP/1.0) the end of the connection. The caller has made sure that the
        body has the length the head says.
        """
        request = self._request
        if request is None:  # an answer to what was not even a request
            self.keep_alive = False
            no_body, http11 = False, True
        else:
            no_body = head.status in BODILESS or request.method == b"HEAD"
            http11 = request.version != b"1.0"
        status_line = _STATUS_LINES.get((head.status, head.reason)) or _make_status_line(head.status, head.reason)
        out = [status_line, *head.lines]
        self._no_body = no_body
        self._chunked_out = False
        if head.content_length is None and not no_body:
            if end:
                out.append(b"Content-Length: %d\r\n" % len(body))
            elif http11:
                self._chunked_out = True
                out.append(b"Transfer-Encoding: chunked\r\n")
            else:
                self.ends_by_closing = True
                self.keep_alive = False
        if head.close:
            self.keep_alive = False
        if not self.keep_alive:
            out.append(b"Connection: close\r\n")
        elif not http11:
            out.append(b"Connection: keep-alive\r\n")
        defaults = self._defaults
        out.append(defaults.for_head(head) if head.has_date or head.has_server else defaults.lines)
        out.append(b"\r\n")
        if not no_body and not self._chunked_out and len(body) <= _JOIN_BYTES:
            out.append(body)
            self._out.append(b"".join(out))
        else:
            self._out.append(b"".join(out))
            self.send_data(body, end)

    def send_data(self, data: bytes, end: bool) -> None:
        """The next piece of the body; of an answer without a body nothing is sent."""
        if self._no_body:
            return
        if self._chunked_out:
            if data:
                if len(data) <= _JOIN_BYTES:
                    self._out.append(b"%x\r\n%b\r\n" % (len(data), data))
                else:
                    self._out += (b"%x\r\n" % len(data), data, b"\r\n")
            if end:
                self._out.append(b"0\r\n\r\n")
        elif data:
            self._out.append(data)

    def send_trailers(self, lines: list[bytes]) -> None:
        """End a chunked body with trailer fields; other bodies cannot have any and must be ended by `send_data`."""
        if self._chunked_out and not self._no_body:
            self._out.append(b"".join((b"0\r\n", *lines, b"\r\n")))

    @property
    def sends_chunked(self) -> bool:
        return self._chunked_out and not self._no_body

    def data_to_send(self) -> list[bytes]:
        """What has been queued since the last call, as buffers to be written in this order."""
        out, self._out = self._out, []
        return out


def _make_status_line(status: int, reason: bytes | None) -> bytes:
    return b"HTTP/1.1 %d %b\r\n" % (status, REASONS.get(status, b"") if reason is None else reason)


def _wrong_version(request: Request) -> ProtocolError:
    if request.method == b"PRI":
        return ProtocolError(505, "HTTP/2 connection preface on a port that speaks HTTP/1.1 (RFC 9113 3.4)")
    return ProtocolError(505, "HTTP version is not 1.0 or 1.1 (RFC 9110 15.6.6)")


def _check_repeated(request: Request) -> None:
    """Fields that may come once do; Connection may be repeated and is read as one list (RFC 9110 5.3)."""
    fields = request.fields
    names = [name for name, _ in request.headers]
    for name in (b"host", b"content-length", b"transfer-encoding", b"expect"):
        if name in fields and names.count(name) > 1:
            raise ProtocolError(400, f"{name.decode().title()} more than once (RFC 9112 6.3, RFC 9110 5.3)")
    if b"connection" in fields:
        fields[b"connection"] = b",".join(value for name, value in request.headers if name == b"connection")


def _check_target_form(request: Request) -> None:
    """All forms but origin-form (RFC 9112 3.2). An absolute-form target is served as its path."""
    if request.method == b"CONNECT":
        raise ProtocolError(501, "CONNECT is not served (RFC 9110 9.3.6)")
    if request.target == b"*":
        if request.method == b"OPTIONS":
            return
        raise ProtocolError(400, "asterisk-form is for OPTIONS only (RFC 9112 3.2.4)")
    match = ABSOLUTE_FORM.fullmatch(request.target)
    if match is None:
        raise ProtocolError(400, "request target has none of the four forms (RFC 9112 3.2)")
    authority, rest = match.groups()
    if not authority or HOST.fullmatch(authority) is None:
        raise ProtocolError(400, "authority of the request target is malformed (RFC 9112 3.2.2)")
    if authority.lower() != request.fields.get(b"host", authority).lower():
        raise ProtocolError(400, "authority of the request target differs from Host (RFC 9112 3.2.2)")
    path, _, request.query = rest.partition(b"?")
    request.path = path or b"/"


def _lets_go_on(connection: bytes, http10: bool) -> bool:
    """Whether a Connection field leaves the connection open (RFC 9112 9.3)."""
    options = [option.strip(b" \t") for option in connection.lower().split(b",")]
    return b"close" not in options and (not http10 or b"keep-alive" in options)


def _explain_request_line(line: bytes) -> ProtocolError:
    """Say which rule a request line breaks that REQUEST_LINE does not match. Code 0: not worth an answer."""
    if line[:1] == _TLS_HANDSHAKE:
        return ProtocolError(0, "a TLS handshake on a port that speaks plain HTTP", 0, line)
    if line.startswith(b"PROXY ") or line == _PROXY_V2:
        return ProtocolError(400, "a PROXY protocol header, which this port does not expect", 0, line)
    if b"\n" in line or b"\r" in line:
        return ProtocolError(400, "CR or LF alone in the request line (RFC 9112 2.2)", 0, line)
    parts = line.split(b" ")
    method = parts[0]
    if TOKEN.fullmatch(method) is None:
        return ProtocolError(400, "method is not a token (RFC 9110 9.1)", 0, line)
    if method != method.upper():
        return ProtocolError(400, "method is not in upper case (RFC 9110 9.1)", 0, line)
    if len(parts) != 3:
        return ProtocolError(400, "request line is not method, target and version with one space between", 0, line)
    if VERSION.fullmatch(parts[2]) is None:
        return ProtocolError(400, "malformed HTTP version (RFC 9112 2.3)", line.rindex(b" ") + 1, line)
    return ProtocolError(400, "request target has a byte that is not allowed (RFC 9112 3.2)", len(method) + 1, line)
