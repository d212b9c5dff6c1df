"""Fuzz permessage-deflate: any offer gives an answer or none, any data a message or a ProtocolError.

    python fuzz/deflate.py --seconds 60 --seed 1

An input is a value of Sec-WebSocket-Extensions, a line end, and the data of a message. What must hold for every one:
1. No exception but those in ALLOWED leaves the handshake or the decompressor.
2. The answer to an offer gives nothing that the offer does not allow.
3. Data gives the same message however it is cut, never more than the limit, and what a plain zlib makes of it.
4. A message that is compressed with what was agreed on can be inflated by a plain zlib, again and again.
"""

from __future__ import annotations

import random
import sys
import zlib
from collections.abc import Hashable, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from fuzz.harness import Target, main, ways_to_cut
from stdserve.errors import ProtocolError
from stdserve.protocol import deflate, grammar, websocket
from stdserve.protocol.deflate import PerMessageDeflate, negotiate
from stdserve.protocol.message import Request
from stdserve.protocol.websocket import read_handshake
from tests import wire
from tests.frames import Deflater, Inflater
from tests.protocol.websocket_cases import CASES

ALLOWED = {
    ProtocolError: "the peer broke a rule: status 400 in the handshake, close code 1007 or 1009 in a message",
}
TAIL = b"\x00\x00\xff\xff"
HEADERS = [
    (b"host", b"a"),
    (b"upgrade", b"websocket"),
    (b"connection", b"upgrade"),
    (b"sec-websocket-key", b"dGhlIHNhbXBsZSBub25jZQ=="),
    (b"sec-websocket-version", b"13"),
]
PARAMETERS = {
    b"server_no_context_takeover", b"client_no_context_takeover", b"server_max_window_bits", b"client_max_window_bits",
}  # fmt: skip
TOKENS = [
    *PARAMETERS, *(b"%b=%d" % (name, bits) for name in sorted(PARAMETERS) for bits in (7, 8, 9, 10, 15, 16)), b"; ",
    b"permessage-deflate", b"permessage-deflate; ", b", ", b";", b"=", b"=10", b'="10"', b'"', b"\\", b"\t", b" ", b"x",
    b"\n", b"\0", b"\xff", TAIL, b"\x03\x00", b"\x01\x00\x00\xff\xff", b"\x00\x05\x00\xfa\xffhello", b"\x02\x00",
    b"\xf2\x48\xcd\xc9\xc9\x07\x00", b"\xf3\x48\xcd\xc9\xc9\x07\x00", b"\xf2\x00\x11\x00\x00",
]  # fmt: skip


def run(data: bytes) -> Hashable:
    offer, _, data = data.partition(b"\n")
    offer = bytes(byte for byte in offer if byte not in b"\r\0").strip(b" \t")  # else it would be no field's value
    chance = random.Random(zlib.crc32(data))
    most = chance.choice((1 << 24, chance.randrange(1, 300)))
    outcome = _check_offer(offer)
    whole = _receive(_agree(offer), data, [], most)
    for cuts in ways_to_cut(data, chance):
        other = _receive(_agree(offer), data, cuts, most)
        assert whole == other or (isinstance(whole, int) and isinstance(other, int)), (
            f"cut at {cuts}: {whole!r} {other!r}"
        )
    if isinstance(whole, bytes):
        _check_plain_zlib(data, whole)
        _check_sending(_agree(offer), whole, offer)
    return outcome, whole if isinstance(whole, int) else min(len(whole), 3)


def _handshake(value: bytes) -> websocket.Handshake | int:
    """The offer in a handshake, or the status of the refusal."""
    headers = [*HEADERS, (b"sec-websocket-extensions", value)]
    try:
        return read_handshake(Request(b"GET", b"/", b"1.1", headers, dict(headers)), least_bytes=0)
    except tuple(ALLOWED) as error:
        return error.code


def _agree(offer: bytes) -> PerMessageDeflate:
    """What is agreed on; where nothing is, as if the simplest had been offered."""
    handshake = _handshake(offer)
    agreed = None if isinstance(handshake, int) else handshake.deflate
    agreed = agreed or negotiate([[(b"client_max_window_bits", None)]], 0)
    assert agreed is not None
    return agreed


def _parameters(extension: bytes) -> dict[bytes, bytes]:
    name, *parameters = extension.split(b"; ")
    assert name == b"permessage-deflate"
    pairs = [parameter.partition(b"=") for parameter in parameters]
    assert len({name for name, _, _ in pairs}) == len(pairs)
    return {name: value for name, _, value in pairs}


def _check_offer(offer: bytes) -> Hashable:
    handshake = _handshake(offer)
    if isinstance(handshake, int):
        assert handshake == 400
        return 400
    if handshake.deflate is None:
        return None
    answer = _parameters(handshake.deflate.extension)
    assert answer.keys() <= PARAMETERS
    for name, value in answer.items():
        assert (int(value) in range(8, 16)) if name.endswith(b"bits") else value == b""
        assert name == b"client_no_context_takeover" or name in offer  # the only one that may be added
    return tuple(sorted(answer.items()))


def _receive(agreed: PerMessageDeflate, data: bytes, cuts: Sequence[int], most: int) -> bytes | int:
    """The message, or the close code."""
    out = b""
    try:
        for piece in wire.split(data, cuts):
            out += agreed.decompress(piece, most - len(out))
        out += agreed.end_message(most - len(out))
    except tuple(ALLOWED) as error:
        assert error.code in (1007, 1009)
        return error.code
    assert len(out) <= most
    return out


def _check_plain_zlib(data: bytes, message: bytes) -> None:
    """With a window of 32 KiB, from one final block to the next."""
    out, data = b"", data + TAIL
    while data and data != TAIL:
        inflate = zlib.decompressobj(-15, zdict=out[-32768:])
        out += inflate.decompress(data)
        data = inflate.unused_data
    assert out == message


def _check_sending(agreed: PerMessageDeflate, message: bytes, offer: bytes) -> None:
    answer = _parameters(agreed.extension)
    bits = int(answer.get(b"server_max_window_bits", b"15"))
    inflate = Inflater(bits, b"server_no_context_takeover" not in answer)
    for each in (message, message * 3, b"hello " + message, message):
        packed = agreed.compress(each)
        assert packed is None or inflate(packed) == each


def _write(data: bytes, trace: str) -> str:
    return wire.dump(trace, data)


_OFFERS = [
    b"permessage-deflate", b"permessage-deflate; client_max_window_bits",
    b"permessage-deflate; server_max_window_bits=9; client_no_context_takeover", b"x-webkit-deflate-frame", b"a; b, c",
    b'permessage-deflate; server_max_window_bits="1\\0"; server_no_context_takeover, permessage-deflate', b"",
    b"permessage-deflate; server_max_window_bits=8, permessage-deflate; client_max_window_bits=8",
]  # fmt: skip
_DATA = [
    b"", b"\0", Deflater()("hello hello"), Deflater()(bytes(500)), Deflater(9)(b"0123456789" * 30),
    *(case.data[6:] for case in CASES if case.name in ("deflate-5", "deflate-1024")),
    b"\xf3\x48\xcd\xc9\xc9\x07\x00\x00", b"\x00\x05\x00\xfa\xffhello\0", b"\x03\x00" * 4,
]  # fmt: skip

TARGET = Target(
    "deflate",
    run,
    [
        *(case.data for case in wire.load("../../fuzz/corpus/deflate")),
        *(offer + b"\n" + data for offer in _OFFERS for data in _DATA),
    ],
    TOKENS,
    [deflate, websocket, grammar],
    _write,
)

if __name__ == "__main__":
    sys.exit(main(TARGET))
