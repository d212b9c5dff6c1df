"""permessage-deflate, the server's side (RFC 7692): what is agreed on, and how messages are compressed and inflated.

    deflate = negotiate([[(b"client_max_window_bits", None)]])   one list of parameters for each offer of the client
    deflate.extension        -> b"permessage-deflate; client_max_window_bits=12"   for Sec-WebSocket-Extensions
    deflate.compress(b"...") -> the payload of one frame with RSV1, None if the message is better sent as it is
    deflate.decompress(piece, most) -> bytes, once for each piece of a message; deflate.end_message(most) -> the rest

Between two messages no zlib object exists: only the last bytes of each direction are kept, and each message begins with
them as its dictionary. That is what context takeover is (RFC 7692 7.1.1), and it has four uses:

1. Memory. An idle connection holds at most 6 KiB here, 7 KiB of resident memory with its engine; 5,000 of them 35 MB.
   Kept zlib objects hold 50 KiB with windows of 4 KiB, 140 KiB and more with zlib's own.
2. A message that does not get smaller is sent as it is, without leaving a trace in the window.
3. A final block does not lose the window: inflating goes on after it with the same bytes (RFC 7692 7.2.3.4).
4. The end of each message can be checked: what ends in the middle of a block is refused.

It costs: 500 bytes of JSON are compressed in 15 us, with a kept object in 8; they are inflated in 4 us, not 3.

It does not: parse header fields, frame, or know which messages are text.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence

from ..errors import ProtocolError

Parameters = Sequence[tuple[bytes, bytes | None]]

# Our window towards the client, of which 2 KiB are kept from message to message: enough to bring small JSON messages
# to a quarter, where without them it is three quarters; hashing 4 KiB takes 6 us more and gains nothing. Level 3 takes
# half the time of level 6, and leaves 21 % where that leaves 20; the loop waits meanwhile.
_SEND_BITS, _SEND_MEMORY, _LEVEL = 12, 5, 3
_SEND_KEPT_BYTES = 2048

# The client's window, if it lets us choose: 4 KiB kept per connection. A client that does not is asked to start each
# message with an empty window, because it would be up to 32 KiB.
_RECEIVE_BITS = 12

# Shorter messages go as they are: they save little beside the headers of the packet they travel in, and compressing
# one costs 8 us where sending it costs half of one.
LEAST_BYTES = 256

# Each final block within a message makes a new zlib object. Compressors make one per message or per flush.
_FINAL_BLOCKS_COUNT = 1024

_TAIL = b"\x00\x00\xff\xff"  # RFC 7692 7.2.1: cut off by the sender, put back by the receiver
_EMPTY_FINAL_BLOCK = b"\x01" + _TAIL  # behind the tail: is reached, and ends the data, if no block is left open

# RFC 7692 7.1.2: decimal, without leading zeros
_WINDOW_BITS: dict[bytes | None, int] = {b"%d" % bits: bits for bits in range(8, 16)}
_FLAGS = frozenset((b"server_no_context_takeover", b"client_no_context_takeover"))
_PARAMETERS = _FLAGS | {b"server_max_window_bits", b"client_max_window_bits"}


def negotiate(offers: Iterable[Parameters], least_bytes: int = LEAST_BYTES) -> PerMessageDeflate | None:
    """Accept the first offer that can be accepted (RFC 7692 5.1); the others are declined without a word."""
    for offer in offers:
        known = _check_offer(offer)
        if known is not None:
            return PerMessageDeflate(known, least_bytes)
    return None


def _check_offer(offer: Parameters) -> dict[bytes, int] | None:
    """The parameters with their numbers, None if the offer must be declined (RFC 7692 7.1).

    A flag and a parameter without a value count 0.
    """
    known: dict[bytes, int] = {}
    for name, value in offer:
        if name in known or name not in _PARAMETERS:
            return None
        if value is None and name != b"server_max_window_bits":
            known[name] = 0
        elif value in _WINDOW_BITS and name not in _FLAGS:
            known[name] = _WINDOW_BITS[value]
        else:
            return None
    # zlib makes no raw data for a window of 256 bytes. It would make them for 512 and happen to use few enough of them,
    # which is no promise, so the client's next offer is looked at.
    return None if known.get(b"server_max_window_bits") == 8 else known


class PerMessageDeflate:
    """What was agreed on for one connection, and its two windows. Owned by the engine.

    extension      the element of Sec-WebSocket-Extensions that tells the client
    least_bytes    shorter messages need not be given to `compress`
    """

    __slots__ = (
        "_client_bits", "_client_takeover", "_final_blocks", "_inflate", "_received", "_sent", "_server_bits",
        "_server_takeover", "extension", "least_bytes",
    )  # fmt: skip

    def __init__(self, offer: dict[bytes, int], least_bytes: int = LEAST_BYTES) -> None:
        """`offer` has been checked: a parameter's number, 0 where it has none."""
        self.least_bytes = least_bytes
        answer = [b"permessage-deflate"]
        self._server_takeover = b"server_no_context_takeover" not in offer
        if not self._server_takeover:
            answer.append(b"server_no_context_takeover")
        # With a larger window than ours the client is content; it gets the number it asked for, because some clients
        # take any other for an error.
        self._server_bits = offer.get(b"server_max_window_bits", 15)
        if b"server_max_window_bits" in offer:
            answer.append(b"server_max_window_bits=%d" % self._server_bits)
        bits = offer.get(b"client_max_window_bits")
        if bits is not None:
            self._client_bits = min(bits or 15, _RECEIVE_BITS)
            answer.append(b"client_max_window_bits=%d" % self._client_bits)
        else:
            self._client_bits = 15
        # RFC 7692 7.1.1.2: the server may demand it of a client that has not offered it
        self._client_takeover = bits is not None and b"client_no_context_takeover" not in offer
        if not self._client_takeover:
            answer.append(b"client_no_context_takeover")
        # zlib's deflate used 512 bytes when told 256, and old clients still do
        self._client_bits = max(self._client_bits, 9)
        self.extension = b"; ".join(answer)
        self._sent = b""  # the end of what was compressed: the client has it in its window
        self._received = b""  # the end of what was inflated
        self._inflate: zlib._Decompress | None = None  # of the message under way
        self._final_blocks = 0

    # ---- receive

    def decompress(self, data: bytes | bytearray, most: int) -> bytes:
        """Inflate the next piece of a message's payload; ProtocolError 1009 if that gives more than `most` bytes."""
        pieces = []
        while data:
            inflate = self._inflate
            if inflate is None:
                self._inflate = inflate = zlib.decompressobj(-self._client_bits, zdict=self._received)
            try:
                piece = inflate.decompress(data, most + 1)  # 0 would mean no limit
            except zlib.error:
                raise ProtocolError(1007, "compressed data is invalid (RFC 7692 7.2.2)") from None
            most -= len(piece)
            if most < 0:
                raise ProtocolError(1009, "the message is longer than --ws-max-size")
            pieces.append(piece)
            self._received = self._slide(self._received, piece, 1 << self._client_bits)
            data = inflate.unused_data
            if inflate.eof:
                self._start_after_final_block()
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _start_after_final_block(self) -> None:
        self._inflate = None
        self._final_blocks += 1
        if self._final_blocks > _FINAL_BLOCKS_COUNT:
            raise ProtocolError(1009, "the message has too many final blocks")

    def end_message(self, most: int) -> bytes:
        """What the tail brings out (RFC 7692 7.2.2); then the next message can begin."""
        rest = b""
        if self._inflate is not None:  # else there is nothing, or it ended with a final block
            rest = self._end_blocks(self._inflate, most)
        self._inflate = None
        self._final_blocks = 0
        if not self._client_takeover:
            self._received = b""
        return rest

    def _end_blocks(self, inflate: zlib._Decompress, most: int) -> bytes:
        try:
            rest = inflate.decompress(_TAIL + _EMPTY_FINAL_BLOCK, most + 1)
        except zlib.error:
            rest = b""
        if len(rest) > most:
            raise ProtocolError(1009, "the message is longer than --ws-max-size")
        # The client's own block may have been a final one; then ours is what it left over
        if not inflate.eof or inflate.unused_data not in (b"", _EMPTY_FINAL_BLOCK):
            raise ProtocolError(1007, "compressed data ends within a block (RFC 7692 7.2.2)")
        self._received = self._slide(self._received, rest, 1 << self._client_bits)
        return rest

    # ---- send

    def compress(self, payload: bytes) -> bytes | None:
        """The payload of a frame with RSV1 set, None if it would not be shorter."""
        bits = min(_SEND_BITS, self._server_bits)
        compressor = zlib.compressobj(_LEVEL, zlib.DEFLATED, -bits, _SEND_MEMORY, zlib.Z_DEFAULT_STRATEGY, self._sent)
        data = (compressor.compress(payload) + compressor.flush(zlib.Z_SYNC_FLUSH))[:-4]  # RFC 7692 7.2.1: the tail
        if len(data) >= len(payload):
            return None
        if self._server_takeover:
            self._sent = self._slide(self._sent, payload, min(_SEND_KEPT_BYTES, 1 << bits))
        return data

    @staticmethod
    def _slide(window: bytes, data: bytes, size: int) -> bytes:
        """The last `size` bytes of what went before and `data`."""
        return data[-size:] if len(data) >= size else (window + data)[-size:]
