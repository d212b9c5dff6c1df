"""The other end of a WebSocket, without a line of the package's own: frames of a client, reading those of a server.

frame(TEXT, "hello")                      one masked frame
fragments(TEXT, b"hel", b"lo")            one message in several
talk(data, cuts) -> Dialogue              what an engine makes of the bytes, cut at these places
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from dataclasses import dataclass, field

from stdserve.errors import ProtocolError
from stdserve.protocol.deflate import PerMessageDeflate, negotiate
from stdserve.protocol.websocket import Close, Event, Ping, WebSocketEngine, WebSocketLimits
from tests import wire

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10
MASK = b"\x37\xfa\x21\x3d"  # of RFC 6455 5.7


def frame(
    opcode: int,
    payload: bytes | str = b"",
    *,
    fin: bool = True,
    rsv: int = 0,
    mask: bytes | None = MASK,
    length: int | None = None,
    form: int = 0,
) -> bytes:
    """`rsv`: 4 is RSV1; `length`: another than the payload's; `form`: bytes of length (1, 3, 9), not the fewest."""
    if isinstance(payload, str):
        payload = payload.encode()
    length = len(payload) if length is None else length
    form = form or (1 if length < 126 else 3 if length < 65536 else 9)
    bit = 0 if mask is None else 0x80
    head = bytes([fin << 7 | rsv << 4 | opcode])
    if form == 1:
        head += bytes([bit | length])
    else:
        head += bytes([bit | (126 if form == 3 else 127)]) + length.to_bytes(form - 1, "big")
    if mask is None:
        return head + payload
    return head + mask + bytes(byte ^ mask[at & 3] for at, byte in enumerate(payload))


def fragments(opcode: int, *payloads: bytes | str, rsv: int = 0) -> bytes:
    """A message of that many frames, complete."""
    last = len(payloads) - 1
    return b"".join(
        frame(CONTINUATION if at else opcode, payload, fin=at == last, rsv=0 if at else rsv)
        for at, payload in enumerate(payloads)
    )


def close(code: int, reason: bytes | str = b"") -> bytes:
    return frame(CLOSE, code.to_bytes(2, "big") + (reason.encode() if isinstance(reason, str) else reason))


class Deflater:
    """A client's compressor; what it makes is cut as RFC 7692 7.2.1 says."""

    def __init__(self, bits: int = 12, takeover: bool = True) -> None:
        self._bits = bits
        self._takeover = takeover
        self._renew()

    def _renew(self) -> None:
        self._compressor = zlib.compressobj(9, zlib.DEFLATED, -self._bits)

    def __call__(self, data: bytes | str) -> bytes:
        if isinstance(data, str):
            data = data.encode()
        out = self._compressor.compress(data) + self._compressor.flush(zlib.Z_SYNC_FLUSH)
        if not self._takeover:
            self._renew()
        assert out.endswith(b"\x00\x00\xff\xff")
        return out[:-4]


class Inflater:
    """A client's decompressor. It takes no distance that reaches behind its window."""

    def __init__(self, bits: int = 15, takeover: bool = True) -> None:
        self._bits = bits
        self._takeover = takeover
        self._renew()

    def _renew(self) -> None:
        self._decompressor = zlib.decompressobj(-self._bits)

    def __call__(self, data: bytes) -> bytes:
        out = self._decompressor.decompress(data + b"\x00\x00\xff\xff")
        assert not self._decompressor.unused_data and not self._decompressor.unconsumed_tail
        if not self._takeover:
            self._renew()
        return out


@dataclass(frozen=True)
class Frame:
    first: int
    payload: bytes


def read_frames(data: bytes) -> list[Frame]:
    """The frames of a server: complete, not masked, lengths in their shortest form."""
    frames, at = [], 0
    while at < len(data):
        first, length = data[at], data[at + 1]
        assert length < 128, "masked"
        at += 2
        if length > 125:
            size = 2 if length == 126 else 8
            length = int.from_bytes(data[at : at + size], "big")
            assert length > 125 if size == 2 else length > 65535
            at += size
        assert at + length <= len(data), "incomplete"
        frames.append(Frame(first, data[at : at + length]))
        at += length
    return frames


@dataclass
class Dialogue:
    """What came of feeding an engine."""

    events: list[Event] = field(default_factory=list)
    error: ProtocolError | None = None
    error_at: int = 0  # bytes that had been fed when the error came
    unread: int = 0

    @property
    def end(self) -> str | int:
        """open, closed, or the code of the error."""
        if self.error is not None:
            return self.error.code
        return "closed" if self.events and isinstance(self.events[-1], Close) else "open"


class Peer:
    """A server that says nothing by itself. It takes what the engine answers after each event, and checks it."""

    def __init__(self, limits: dict[str, int] | None = None, deflate: PerMessageDeflate | None = None) -> None:
        self.engine = WebSocketEngine(WebSocketLimits(**limits or {}), deflate)
        self.dialogue = Dialogue()

    def feed(self, pieces: Iterable[bytes]) -> Dialogue:
        fed = 0
        for piece in pieces:
            self.engine.receive_data(piece)
            fed += len(piece)
            self.take_events()
            if self.dialogue.error is not None:
                self.dialogue.error_at = fed
                break
        self.dialogue.unread = len(self.engine.buffer)
        return self.dialogue

    def take_events(self) -> None:
        try:
            while (event := self.engine.next_event()) is not None:
                assert not self.dialogue.events or not isinstance(self.dialogue.events[-1], Close), "more after Close"
                self.dialogue.events.append(event)
                self._check_answer(event)
        except ProtocolError as error:
            self.dialogue.error = error
        assert self.dialogue.error is not None or len(self.engine.buffer) < 14 + 125, "something is left lying"

    def _check_answer(self, event: Event) -> None:
        answer = read_frames(b"".join(self.engine.data_to_send()))
        if isinstance(event, Ping):
            assert answer == [Frame(0x8A, event.data)]
        elif isinstance(event, Close) and event.code != 1006:
            code = b"" if event.code == 1005 else event.code.to_bytes(2, "big")
            assert answer == [Frame(0x88, code)]
        else:
            assert not answer


def talk(
    data: bytes, cuts: Iterable[int] = (), limits: dict[str, int] | None = None, offer: str | None = None
) -> Dialogue:
    """Feed `data` to a new engine, cut at the given offsets; `offer` is that of the client about compression."""
    return Peer(limits, make_deflate(offer)).feed(wire.split(data, cuts))


def make_deflate(offer: str | None, least_bytes: int = 0) -> PerMessageDeflate | None:
    """What is agreed on when a client offers permessage-deflate with these parameters, "a; b=1"."""
    if offer is None:
        return None
    pairs = [part.strip().partition("=") for part in offer.split(";") if part.strip()]
    deflate = negotiate([[(name.encode(), value.encode() or None) for name, _, value in pairs]], least_bytes)
    assert deflate is not None
    return deflate
