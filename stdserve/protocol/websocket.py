"""WebSocket, the server's side (RFC 6455): the opening handshake and the engine for what follows it.

    handshake = read_handshake(request)                     ProtocolError 400 or 426 with the fields of its answer
    handshake.subprotocols                                  what the client offers, in its order
    handshake.accept(subprotocol, head) -> b"HTTP/1.1 101 ..."
    engine = WebSocketEngine(WebSocketLimits(), handshake.deflate)
    engine.receive_data(b"\\x81\\x85....")
    engine.next_event() -> "text", b"binary", Ping, Pong, Close, None when more bytes are needed
    engine.send_text("hello"); engine.data_to_send() -> [b"\\x81\\x05hello"]

    order of events: ( str | bytes | Ping | Pong )* Close        a ProtocolError may take the place of any

A message is one event however it was fragmented. What the protocol itself answers is queued by the engine: a Pong for a
Ping and a Close for a Close. `next_event` is the bound method of the current state. The first error is final; its code
is the close code: send_close(error.code, error.rule), then close the connection (RFC 6455 7.1.7).

It does not: read or write sockets, keep alive, time out, log, fragment what it sends, or know the application.
"""

from __future__ import annotations

import base64
import hashlib
import struct
from codecs import utf_8_decode
from collections.abc import Callable
from dataclasses import dataclass
from typing import NoReturn

from ..errors import AppError, ClientDisconnected, ProtocolError
from .deflate import LEAST_BYTES, PerMessageDeflate, negotiate
from .grammar import EXTENSION_PARAM, TOKEN, WEBSOCKET_KEY
from .message import Request, ResponseHead

# ---- the opening handshake (RFC 6455 4.2)

_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"

# RFC 6455 4.4 names the version that would do, RFC 9110 15.5.22 the protocol; with Upgrade goes Connection (7.8)
_UPGRADE_REQUIRED_FIELDS = (
    (b"Upgrade", b"websocket"),
    (b"Connection", b"Upgrade"),
    (b"Sec-WebSocket-Version", b"13"),
)

Extension = tuple[bytes, list[tuple[bytes, bytes | None]]]


def is_websocket(request: Request) -> bool:
    """Whether the client asks for this protocol; then it is `read_handshake` that says whether it does so rightly.

    In HTTP/1.0 Upgrade means nothing (RFC 9110 7.8), and without Connection it is meant for somebody else.
    """
    fields = request.fields
    return (
        b"upgrade" in fields
        and request.version == b"1.1"
        and b"websocket" in _lower(_elements(request, b"upgrade"))
        and b"upgrade" in _lower(_elements(request, b"connection"))
    )


class Handshake:
    """The client's opening handshake, checked.

    subprotocols   those that the client offers, the best first
    deflate        the agreed compression, None for none
    """

    __slots__ = ("_key", "deflate", "subprotocols")

    def __init__(self, key: bytes, subprotocols: list[bytes], deflate: PerMessageDeflate | None) -> None:
        self._key = key
        self.subprotocols = subprotocols
        self.deflate = deflate

    def accept(
        self, subprotocol: bytes | None = None, head: ResponseHead | None = None, defaults: bytes = b""
    ) -> bytes:
        """The head of the 101 answer (RFC 6455 4.2.2). AppError if the application asks for what must not be sent.

        `head` has the fields of the application, `defaults` are the lines that the server adds to each response.
        """
        if subprotocol is not None and subprotocol not in self.subprotocols:
            raise AppError(f"the client has not offered the subprotocol {subprotocol!r:.80} (RFC 6455 4.2.2)")
        accept = base64.b64encode(hashlib.sha1(self._key + _GUID, usedforsecurity=False).digest())
        out = [
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n",
            b"Sec-WebSocket-Accept: %b\r\n" % accept,
        ]
        if subprotocol is not None:
            out.append(b"Sec-WebSocket-Protocol: %b\r\n" % subprotocol)
        if self.deflate is not None:
            out.append(b"Sec-WebSocket-Extensions: %b\r\n" % self.deflate.extension)
        for line in () if head is None else head.lines:
            if line[:14].lower() == b"sec-websocket-":
                raise AppError(f"response header {line.partition(b':')[0].decode()} is the server's to send (RFC 6455)")
            out.append(line)
        return b"".join((*out, defaults, b"\r\n"))


def read_handshake(request: Request, compress: bool = True, least_bytes: int = LEAST_BYTES) -> Handshake:
    """Check a request for the WebSocket protocol (RFC 6455 4.2.1), of which `is_websocket` need not be true.

    `compress` False declines permessage-deflate; messages shorter than `least_bytes` are not compressed.
    """
    if request.method != b"GET":
        raise ProtocolError(400, "the method of a WebSocket handshake is not GET (RFC 6455 4.2.1)")
    if request.version != b"1.1":
        raise ProtocolError(400, "a WebSocket handshake in another version than HTTP/1.1 (RFC 6455 4.2.1)")
    if b"websocket" not in _lower(_elements(request, b"upgrade")):
        raise ProtocolError(400, "Upgrade of a WebSocket handshake has no websocket (RFC 6455 4.2.1)")
    if b"upgrade" not in _lower(_elements(request, b"connection")):
        raise ProtocolError(400, "Connection of a WebSocket handshake has no upgrade (RFC 6455 4.2.1)")
    if request.chunked or request.content_length:
        raise ProtocolError(400, "a WebSocket handshake with a body (RFC 6455 4.1)")
    if _values(request, b"sec-websocket-version") != [b"13"]:
        error = ProtocolError(426, "Sec-WebSocket-Version is not 13 (RFC 6455 4.4)")
        error.fields = _UPGRADE_REQUIRED_FIELDS
        raise error
    keys = _values(request, b"sec-websocket-key")
    if len(keys) != 1 or WEBSOCKET_KEY.fullmatch(keys[0]) is None:
        raise ProtocolError(400, "Sec-WebSocket-Key is not one base64 of 16 bytes (RFC 6455 4.2.1)")
    offers = [parameters for name, parameters in _read_extensions(request) if name == b"permessage-deflate"]
    return Handshake(keys[0], _read_subprotocols(request), negotiate(offers, least_bytes) if compress else None)


def _read_subprotocols(request: Request) -> list[bytes]:
    """Sec-WebSocket-Protocol = 1#token (RFC 6455 4.3)."""
    subprotocols = _elements(request, b"sec-websocket-protocol")
    if not all(map(TOKEN.fullmatch, subprotocols)):
        raise ProtocolError(400, "a subprotocol in Sec-WebSocket-Protocol is not a token (RFC 6455 4.3)")
    return list(dict.fromkeys(subprotocols))


def _read_extensions(request: Request) -> list[Extension]:
    """b"a; b=1; c, d" -> [(b"a", [(b"b", b"1"), (b"c", None)]), (b"d", [])] (RFC 6455 9.1)."""
    extensions = []
    for element in _elements(request, b"sec-websocket-extensions"):
        name, *parameters = [part.strip(b" \t") for part in element.split(b";")]
        matches = [EXTENSION_PARAM.fullmatch(parameter) for parameter in parameters]
        if TOKEN.fullmatch(name) is None or None in matches:
            raise ProtocolError(400, "Sec-WebSocket-Extensions is malformed (RFC 6455 9.1)")
        pairs = [match.groups() for match in matches if match is not None]
        extensions.append((name, [(key, value or (text and text.replace(b"\\", b""))) for key, value, text in pairs]))
    return extensions


def _values(request: Request, name: bytes) -> list[bytes]:
    return [value for each, value in request.headers if each == name] if name in request.fields else []


def _elements(request: Request, name: bytes) -> list[bytes]:
    """The elements of a field that is a list, over all its lines, without empty ones (RFC 9110 5.6.1.2).

    A list that has no others counts as no list, although RFC 6455 wants one element at least: there are clients that
    send the field with nothing in it, and it can mean but one thing.
    """
    elements = [element.strip(b" \t") for element in b",".join(_values(request, name)).split(b",")]
    return [element for element in elements if element]


def _lower(elements: list[bytes]) -> list[bytes]:
    return [element.lower() for element in elements]


# ---- events


@dataclass(slots=True)
class Ping:
    """Has been answered by the engine."""

    data: bytes


@dataclass(slots=True)
class Pong:
    data: bytes


@dataclass(slots=True)
class Close:
    """The last event. Code 1005: the peer named none; 1006: it sent no Close at all (RFC 6455 7.1.5)."""

    code: int
    reason: str


Event = str | bytes | Ping | Pong | Close | None


@dataclass(frozen=True, slots=True)
class WebSocketLimits:
    """One connection may make the engine hold twice `message` bytes, for the moment in which a message is completed.

    message     bytes of a whole message, inflated; 0 means no limit
    fragments   frames of a message. A frame costs no memory but 1 us, also an empty one: 16 MiB in fragments of 128
                bytes pass, a message that never ends does not
    """

    message: int = 16 * 1024 * 1024
    fragments: int = 128 * 1024


# ---- frames (RFC 6455 5.2)
#
# 0      FIN 0x80, RSV1 0x40, RSV2 0x20, RSV3 0x10, opcode 0x0f
# 1      MASK 0x80, length 0 to 125, or 126: 2 bytes of length follow, or 127: 8 bytes of length follow
# 2-5    mask (of a short frame), then the payload, masked. Frames to the client have no mask

_FIN, _RSV1, _OPCODE = 0x80, 0x40, 0x0F
_TEXT, _BINARY, _CLOSE, _PING, _PONG = 0x1, 0x2, 0x8, 0x9, 0xA
_WHOLE_TEXT, _WHOLE_BINARY = _FIN | _TEXT, _FIN | _BINARY

# Which first bytes may come: all rules about reserved bits, opcodes and the order of fragments are in these sets
# (RFC 6455 5.2, 5.4, 5.5; RFC 7692 6: RSV1 stands on the first frame of a message only).
_CONTROL = frozenset((_FIN | _CLOSE, _FIN | _PING, _FIN | _PONG))
_START = _CONTROL | {_TEXT, _BINARY, _WHOLE_TEXT, _WHOLE_BINARY}
_START_OR_COMPRESSED = _START | {first | _RSV1 for first in (_TEXT, _BINARY, _WHOLE_TEXT, _WHOLE_BINARY)}
_CONTINUE = _CONTROL | {0, _FIN}
# and those that are neither a message nor a control frame by themselves, or need inflating
_IN_PARTS = (_START_OR_COMPRESSED | _CONTINUE) - _CONTROL - {_WHOLE_TEXT, _WHOLE_BINARY}
_OPCODES = frozenset((0, _TEXT, _BINARY, _CLOSE, _PING, _PONG))

_LENGTH_16 = struct.Struct("!H").unpack_from
_LENGTH_64 = struct.Struct("!Q").unpack_from
_HEAD_16 = struct.Struct("!BBH").pack
_HEAD_64 = struct.Struct("!BBQ").pack

# RFC 6455 7.4, with the codes registered since (1012 to 1014). 1004, 1005, 1006, 1015 are never in a frame.
_CLOSE_CODES = frozenset((1000, 1001, 1002, 1003, *range(1007, 1015), *range(3000, 5000)))
_NOT_UTF8 = "a text message is not UTF-8 (RFC 6455 8.1)"
_REASON_BYTES = 123  # what a control frame has room for behind the code

# A payload of at most this size is copied behind its head so that both leave as one buffer, as in h1.
_JOIN_BYTES = 16 * 1024

# Longer data is unmasked in blocks of this size (a multiple of four): integers of 16 KiB stay in the processor's cache.
# 64 KiB take 100 us so, as one integer 135, by four translations of every fourth byte 140; 1 MiB 1.5, 4.1 and 2.3 ms.
_BLOCK_BYTES = 16 * 1024


def unmask(data: bytes | bytearray, mask: bytes | bytearray) -> bytes:
    """Exclusive or of each byte with the mask, which has four (RFC 6455 5.3)."""
    size = len(data)
    if size > _BLOCK_BYTES:
        return _unmask_blocks(data, mask)
    repeated = int.from_bytes((mask * ((size >> 2) + 1))[:size], "little")
    return (int.from_bytes(data, "little") ^ repeated).to_bytes(size, "little")


def _unmask_blocks(data: bytes | bytearray, mask: bytes | bytearray) -> bytes:
    repeated = int.from_bytes(mask * (_BLOCK_BYTES >> 2), "little")
    whole = len(data) - len(data) % _BLOCK_BYTES
    blocks = [
        (int.from_bytes(data[at : at + _BLOCK_BYTES], "little") ^ repeated).to_bytes(_BLOCK_BYTES, "little")
        for at in range(0, whole, _BLOCK_BYTES)
    ]
    return b"".join((*blocks, unmask(data[whole:], mask)))


class WebSocketEngine:
    """One connection's state from the handshake on. Owned by the thread that feeds it.

    buffer       bytes received, some of them perhaps told already; when it is empty `next_event` has nothing to tell
    close_sent   nothing more can be sent
    """

    __slots__ = (
        "_allowed", "_at", "_checked", "_compressed", "_deflate", "_eof", "_fragments", "_last", "_left", "_limits",
        "_mask", "_message", "_most", "_out", "_pong", "_size", "_start", "_text", "buffer", "close_sent", "next_event",
    )  # fmt: skip

    next_event: Callable[[], Event]

    def __init__(self, limits: WebSocketLimits, deflate: PerMessageDeflate | None = None) -> None:
        self._limits = limits
        self._most = limits.message or 1 << 62
        self._deflate = deflate
        self._start = _START if deflate is None else _START_OR_COMPRESSED
        self._allowed = self._start  # first bytes of a frame that may come now
        self.buffer: bytes | bytearray = b""
        self._at = 0  # where in the buffer the next frame, or the rest of a payload, starts
        self._eof = False
        self._out: list[bytes] = []
        self._pong: bytes | None = None  # the answer to the last Ping
        self.close_sent = False
        # of a frame whose payload is read piece by piece
        self._left = 0  # bytes that have not come
        self._mask = b""  # beginning with the byte for the next of them
        self._last = False  # the message ends with this frame
        # of a message that is put together from frames or pieces
        self._message = bytearray()  # inflated
        self._size = 0  # bytes of its frames so far, of the last one as declared
        self._fragments = 0
        self._text = False
        self._compressed = False
        self._checked = 0  # bytes at the start of `_message` that are whole characters
        self.next_event = self._read_frame

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
        """The peer sends no more: what has come is still told, then Close(1006) unless there was another."""
        self._eof = True

    # ---- states: each is `next_event` for a while

    def _read_frame(self) -> Event:
        """The next message or control frame. A frame that completes neither is taken in, and the next one looked at.

        A message in one frame that is here as a whole makes no object but itself.
        """
        while True:
            buffer, at = self.buffer, self._at
            here = len(buffer) - at
            if here < 2:
                if here and buffer[at] not in self._allowed:
                    self._fail(_explain_first_byte(buffer[at], self._allowed is _CONTINUE))
                return self._wait()
            first = buffer[at]
            length = buffer[at + 1] - 128
            if first not in self._allowed:
                self._fail(_explain_first_byte(first, self._allowed is _CONTINUE))
            if length < 0:
                self._fail(ProtocolError(1002, "a frame is not masked (RFC 6455 5.1)"))
            start = at + 6
            if length > 125:
                length, start = self._read_length(first, length)
                if not start:
                    return self._wait()
            end = start + length
            if end <= len(buffer) and first not in _IN_PARTS and (length <= self._most or first in _CONTROL):
                payload = unmask(buffer[start:end], buffer[start - 4 : start])
                if end == len(buffer):
                    self.buffer = b""
                    self._at = 0
                else:
                    self._at = end
                if first == _WHOLE_TEXT:
                    try:
                        return str(payload, "utf-8")
                    except UnicodeDecodeError:
                        self._fail(ProtocolError(1007, _NOT_UTF8))
                return payload if first == _WHOLE_BINARY else self._take_control(first, payload)
            if first not in _CONTROL:
                self._check_size(first, length)
                if start <= len(buffer):
                    event = self._start_payload(first, length, start)
                    if event is None and not self._left:
                        continue
                    return event
            return self._wait()

    def _read_length(self, first: int, length: int) -> tuple[int, int]:
        """The extended length and where the payload starts, 0 if the length has not wholly arrived (RFC 6455 5.2)."""
        buffer, at = self.buffer, self._at
        if first in _CONTROL:
            self._fail(ProtocolError(1002, "a control frame has more than 125 bytes (RFC 6455 5.5)"))
        if length == 126:
            if len(buffer) < at + 4:
                return 0, 0
            (length,) = _LENGTH_16(buffer, at + 2)
            least, start = 126, at + 8
        else:
            if len(buffer) < at + 10:
                return 0, 0
            (length,) = _LENGTH_64(buffer, at + 2)
            least, start = 65536, at + 14
        if length < least:
            self._fail(ProtocolError(1002, "a frame's length is not in its shortest form (RFC 6455 5.2)"))
        if length >> 63:
            self._fail(ProtocolError(1002, "a frame's length has more than 63 bits (RFC 6455 5.2)"))
        return length, start

    def _check_size(self, first: int, length: int) -> None:
        """Refuse a frame whose declared length makes the message too long, before its payload has come."""
        most = self._most
        if first & _RSV1 or (self._compressed and not first & _OPCODE):
            most += (most >> 2) + 64  # what cannot be compressed gets longer, by a ninth with the worst of settings
        if self._size + length > most:
            self._fail(ProtocolError(1009, "the message is longer than --ws-max-size"))

    def _start_payload(self, first: int, length: int, start: int) -> Event:
        """Begin with a frame that is a part of a message, compressed, or not here as a whole."""
        if first & _OPCODE:
            self._text = first & _OPCODE == _TEXT
            self._compressed = first & _RSV1 != 0
            self._allowed = _CONTINUE
        self._fragments += 1
        if self._fragments > self._limits.fragments:
            self._fail(ProtocolError(1009, "the message has too many fragments"))
        self._last = first & _FIN != 0
        self._size += length
        self._left = length
        self._mask = bytes(self.buffer[start - 4 : start])
        self._skip(start)
        return self._take_payload()

    def _take_payload(self) -> Event:
        """Take what has come of the payload. None and nothing left: the frame is complete, the message is not."""
        left, at = self._left, self._at
        data = self.buffer[at : at + left]
        if data:
            self._skip(at + len(data))
            self._left = left = left - len(data)
            mask = self._mask
            self._add(unmask(data, mask))
            turn = len(data) & 3
            self._mask = mask[turn:] + mask[:turn]
        if left:
            self.next_event = self._continue_payload
            return self._wait()
        self.next_event = self._read_frame
        return self._end_message() if self._last else None

    def _continue_payload(self) -> Event:
        event = self._take_payload()
        return self._read_frame() if event is None and not self._left else event

    def _closed(self) -> Event:
        self.buffer = b""  # nothing is read after Close (RFC 6455 5.5.1)
        return None

    # ---- messages

    def _add(self, data: bytes) -> None:
        """Add a piece of payload to the message, and refuse text at the first byte that cannot be part of it."""
        message = self._message
        if self._compressed and self._deflate is not None:
            try:
                data = self._deflate.decompress(data, self._most - len(message))
            except ProtocolError as error:
                self._fail(error)
        message += data
        if self._text:
            text = message[self._checked :]
            try:
                _, whole = utf_8_decode(text, "strict", False)
            except UnicodeDecodeError:
                self._fail(ProtocolError(1007, _NOT_UTF8))
            # Of a surrogate (ED A0 to ED BF and one more) the codec waits for the third byte
            if text[whole : whole + 1] == b"\xed" and text[whole + 1 : whole + 2] >= b"\xa0":
                self._fail(ProtocolError(1007, _NOT_UTF8))
            self._checked += whole

    def _end_message(self) -> str | bytes:
        message = self._message
        if self._compressed and self._deflate is not None:
            try:
                message += self._deflate.end_message(self._most - len(message))
            except ProtocolError as error:
                self._fail(error)
        self._drop_message()
        return self._decode(message) if self._text else bytes(message)

    def _decode(self, message: bytes | bytearray) -> str:
        try:
            return str(message, "utf-8")
        except UnicodeDecodeError:
            self._fail(ProtocolError(1007, _NOT_UTF8))

    def _drop_message(self) -> None:
        self._message = bytearray()
        self._size = self._fragments = self._checked = 0
        self._allowed = self._start

    def _take_control(self, first: int, payload: bytes) -> Event:
        if first == _FIN | _CLOSE:
            return self._take_close(payload)
        if first == _FIN | _PONG:
            return Pong(payload)
        # RFC 6455 5.5.3: of several Pings that have not been answered only the last one needs to be; so a client that
        # sends Pings and reads nothing has one Pong waiting, not millions
        if not self.close_sent:
            self._pong = payload
        return Ping(payload)

    def _take_close(self, payload: bytes) -> Event:
        if len(payload) == 1:
            self._fail(ProtocolError(1002, "a Close frame has half a code (RFC 6455 5.5.1)"))
        code, reason = 1005, ""
        if payload:
            (code,) = _LENGTH_16(payload)
            if code not in _CLOSE_CODES:
                self._fail(ProtocolError(1002, "a Close frame has a code that must not be sent (RFC 6455 7.4)"))
            try:
                reason = str(payload[2:], "utf-8")
            except UnicodeDecodeError:
                self._fail(ProtocolError(1007, "the reason of a Close frame is not UTF-8 (RFC 6455 5.5.1)"))
        self._send_close(payload[:2])
        self._finish()
        return Close(code, reason)

    # ---- the buffer and the end

    def _skip(self, end: int) -> None:
        if end == len(self.buffer):
            self.buffer = b""
            self._at = 0
        else:
            self._at = end

    def _wait(self) -> Event:
        """Nothing can be told before more bytes come. What has been read leaves the buffer here, at once."""
        if self._at:
            self.buffer = bytes(self.buffer[self._at :])
            self._at = 0
        if self._eof:
            self._finish()
            return Close(1006, "")
        return None

    def _finish(self) -> None:
        self.buffer = b""
        self._at = 0
        self._drop_message()
        self.next_event = self._closed

    def _fail(self, error: ProtocolError) -> NoReturn:
        """The first error is final: drop what is buffered, read nothing more, raise the same again if asked."""
        self._finish()

        def raise_again() -> NoReturn:
            self.buffer = b""
            raise error

        self.next_event = raise_again
        raise error

    # ---- send: ClientDisconnected if a Close has been sent

    def send_text(self, text: str) -> None:
        try:
            self._send_message(_WHOLE_TEXT, text.encode())
        except UnicodeEncodeError as error:
            raise AppError(f"text of a WebSocket message has half a surrogate pair at {error.start}") from None

    def send_binary(self, data: bytes) -> None:
        self._send_message(_WHOLE_BINARY, data)

    def send_ping(self, data: bytes = b"") -> None:
        """At most 125 bytes."""
        self._send_control(_FIN | _PING, data)

    def send_pong(self, data: bytes = b"") -> None:
        """Unasked, as a sign of life; a Ping has been answered. At most 125 bytes."""
        self._send_control(_FIN | _PONG, data)

    def send_close(self, code: int = 1000, reason: str = "") -> None:
        """Nothing happens if a Close has been sent. Code 1005: without a code; a reason of over 123 bytes is cut."""
        if code == 1005:
            self._send_close(b"")
        elif code in _CLOSE_CODES:
            text = reason.encode("utf-8", "replace")[:_REASON_BYTES]
            self._send_close(code.to_bytes(2, "big") + text.decode("utf-8", "ignore").encode())
        else:
            raise AppError(f"WebSocket close code {code!r:.80} must not be sent (RFC 6455 7.4)")

    def data_to_send(self) -> list[bytes]:
        """What has been queued since the last call, as buffers to be written in this order."""
        if self._pong is not None:
            self._send_pong()
        out, self._out = self._out, []
        return out

    def _send_message(self, first: int, payload: bytes) -> None:
        if self.close_sent:
            raise ClientDisconnected("the WebSocket has been closed")
        deflate = self._deflate
        if deflate is not None and len(payload) >= deflate.least_bytes:
            compressed = deflate.compress(payload)
            if compressed is not None:
                payload = compressed
                first |= _RSV1
        size = len(payload)
        if size < 126:
            self._out.append(b"%c%c%b" % (first, size, payload))
        elif size <= _JOIN_BYTES:
            self._out.append(_HEAD_16(first, 126, size) + payload)
        elif size < 65536:
            self._out += (_HEAD_16(first, 126, size), payload)
        else:
            self._out += (_HEAD_64(first, 127, size), payload)

    def _send_control(self, first: int, data: bytes) -> None:
        if self.close_sent:
            raise ClientDisconnected("the WebSocket has been closed")
        if len(data) > 125:
            raise AppError(f"a WebSocket control frame of {len(data)} bytes, 125 are allowed (RFC 6455 5.5)")
        self._out.append(b"%c%c%b" % (first, len(data), data))

    def _send_pong(self) -> None:
        data, self._pong = self._pong, None
        if data is not None:
            self._out.append(b"%c%c%b" % (_FIN | _PONG, len(data), data))

    def _send_close(self, payload: bytes) -> None:
        if not self.close_sent:
            self._send_pong()
            self._out.append(b"%c%c%b" % (_FIN | _CLOSE, len(payload), payload))
            self.close_sent = True


def _explain_first_byte(first: int, in_message: bool) -> ProtocolError:
    """Say which rule a frame's first byte breaks that is not among those allowed."""
    opcode = first & _OPCODE
    if opcode not in _OPCODES:
        return ProtocolError(1002, "a frame has a reserved opcode (RFC 6455 5.2)")
    if first & 0x30:
        return ProtocolError(1002, "a frame has a reserved bit set (RFC 6455 5.2)")
    if opcode >= _CLOSE and not first & _FIN:
        return ProtocolError(1002, "a control frame is fragmented (RFC 6455 5.5)")
    if in_message and opcode in (_TEXT, _BINARY):
        return ProtocolError(1002, "a new message begins before the end of a fragmented one (RFC 6455 5.4)")
    if not opcode and not in_message:
        return ProtocolError(1002, "a continuation frame without a message to continue (RFC 6455 5.4)")
    return ProtocolError(1002, "a frame has RSV1 set where nothing is compressed (RFC 6455 5.2, RFC 7692 6)")
