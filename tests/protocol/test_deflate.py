"""permessage-deflate: what is agreed on, both directions against a plain zlib, windows, limits, memory.

How compressed messages are framed and told is in test_websocket.py.
"""

from __future__ import annotations

import inspect
import random
import tracemalloc
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stdserve.errors import ProtocolError
from stdserve.protocol import deflate
from stdserve.protocol.deflate import LEAST_BYTES, PerMessageDeflate, negotiate
from tests.frames import Deflater, Inflater, make_deflate

MOST = 1 << 24
TAIL = b"\x00\x00\xff\xff"


def parse(offer: str) -> list[tuple[bytes, bytes | None]]:
    pairs = [part.strip().partition("=") for part in offer.split(";") if part.strip()]
    return [(name.encode(), value.encode() if equals else None) for name, equals, value in pairs]


# ---- what is agreed on

# offer -> answer; a client that does not let us choose its window must not keep one
AGREED = {
    "": "client_no_context_takeover",
    "client_max_window_bits": "client_max_window_bits=12",
    "client_max_window_bits=15": "client_max_window_bits=12",
    "client_max_window_bits=13": "client_max_window_bits=12",
    "client_max_window_bits=12": "client_max_window_bits=12",
    "client_max_window_bits=11": "client_max_window_bits=11",
    "client_max_window_bits=9": "client_max_window_bits=9",
    "client_max_window_bits=8": "client_max_window_bits=8",
    "client_no_context_takeover": "client_no_context_takeover",
    "client_no_context_takeover; client_max_window_bits": "client_max_window_bits=12; client_no_context_takeover",
    "server_no_context_takeover": "server_no_context_takeover; client_no_context_takeover",
    "server_no_context_takeover; client_max_window_bits": "server_no_context_takeover; client_max_window_bits=12",
    "server_max_window_bits=15; client_max_window_bits": "server_max_window_bits=15; client_max_window_bits=12",
    "server_max_window_bits=10; client_max_window_bits": "server_max_window_bits=10; client_max_window_bits=12",
    "server_max_window_bits=9; client_max_window_bits=10": "server_max_window_bits=9; client_max_window_bits=10",
    "client_max_window_bits; server_max_window_bits=9": "server_max_window_bits=9; client_max_window_bits=12",
    "client_max_window_bits; server_max_window_bits=9; server_no_context_takeover; client_no_context_takeover": (
        "server_no_context_takeover; server_max_window_bits=9; client_max_window_bits=12; client_no_context_takeover"
    ),
}

DECLINED = [
    "unknown",
    "unknown=1",
    "client_max_window_bits; unknown",
    "Client_max_window_bits",
    "max_window_bits=10",
    "other_max_window_bits=10",
    "server_no_context_takeover=1",
    "client_no_context_takeover=true",
    "client_no_context_takeover=10",
    "server_no_context_takeover; server_no_context_takeover",
    "client_no_context_takeover; client_no_context_takeover",
    "client_max_window_bits; client_max_window_bits",
    "client_max_window_bits; client_max_window_bits=10",
    "server_max_window_bits=10; server_max_window_bits=10",
    "server_max_window_bits",
    "server_max_window_bits=8",
    *(f"{side}_max_window_bits={bits}" for side in ("client", "server") for bits in (
        "0", "1", "7", "16", "08", "010", "+10", "-10", "1e1", "10.0", "x", "100000000000", "\u0661\u0660")),
]  # fmt: skip


@pytest.mark.parametrize(("offer", "answer"), AGREED.items())
def test_offer_is_accepted(offer: str, answer: str) -> None:
    agreed = negotiate([parse(offer)])
    assert agreed is not None and agreed.extension == f"permessage-deflate; {answer}".encode()
    assert agreed.least_bytes == LEAST_BYTES


@pytest.mark.parametrize("offer", DECLINED)
def test_offer_is_declined(offer: str) -> None:
    """RFC 7692 7.1: unknown, repeated, or with a value that cannot be. Not an error: the next offer may be better."""
    assert negotiate([parse(offer)]) is None
    agreed = negotiate([parse(offer), parse("client_max_window_bits")])
    assert agreed is not None and agreed.extension == b"permessage-deflate; client_max_window_bits=12"


def test_first_good_offer_is_taken() -> None:
    offers = [parse(offer) for offer in ("x", "server_max_window_bits=8", "server_max_window_bits=10", "")]
    agreed = negotiate(offers)
    assert agreed is not None and b"server_max_window_bits=10" in agreed.extension
    assert negotiate([]) is None


# ---- sending


@pytest.mark.parametrize("bits", [9, 10, 11, 12, 13, 14, 15])
@pytest.mark.parametrize("takeover", [True, False])
def test_client_with_that_window_understands(bits: int, takeover: bool) -> None:
    """Also of messages longer than the window, and of those between which something went uncompressed."""
    chance = random.Random(bits)
    words = [chance.randbytes(chance.randrange(1, 40)) for _ in range(40)]
    agreed = make_deflate(f"server_max_window_bits={bits}{'' if takeover else '; server_no_context_takeover'}")
    assert agreed is not None
    inflate = Inflater(bits, takeover)
    plain = 0
    for size in (1, 3, 30, 300, 2, 3000, 50, 700, 5000, 10, 20000, 400, 40, 4096, 4097):
        for message in (b"".join(chance.choice(words) for _ in range(size)), chance.randbytes(size)):
            packed = agreed.compress(message)
            if packed is None:
                plain += 1
            else:
                assert len(packed) < len(message) and inflate(packed) == message
    assert 10 < plain < 20


def test_message_that_would_not_get_shorter_is_sent_as_it_is() -> None:
    agreed = make_deflate("")
    assert agreed is not None
    data = random.Random(0).randbytes(1000)
    assert agreed.compress(data) is None
    assert agreed.compress(b"") is None and agreed.compress(b"a") is None
    # and the client, who has not inflated it, has nothing of it in its window
    packed = agreed.compress(data + data)
    assert packed is not None and Inflater()(packed) == data + data


def test_context_takeover_pays() -> None:
    message = b'{"type": "update", "user": 12345, "items": [1, 2, 3], "status": "active", "name": "somebody"}' * 3
    with_takeover, without = make_deflate(""), make_deflate("server_no_context_takeover")
    assert with_takeover is not None and without is not None
    first, second = with_takeover.compress(message), with_takeover.compress(message)
    assert first is not None and second is not None and len(second) < len(first) / 4
    assert without.compress(message) == without.compress(message) == first


# ---- receiving


def receive(agreed: PerMessageDeflate, *pieces: bytes, most: int = MOST) -> bytes:
    out = b""
    for piece in pieces:
        out += agreed.decompress(piece, most - len(out))
    return out + agreed.end_message(most - len(out))


def refusal(offer: str, *pieces: bytes, most: int = MOST) -> int:
    agreed = make_deflate(offer)
    assert agreed is not None
    with pytest.raises(ProtocolError) as error:
        receive(agreed, *pieces, most=most)
    assert error.value.rule in inspect.getsource(deflate)
    return error.value.code


@pytest.mark.parametrize("strategy", [zlib.Z_DEFAULT_STRATEGY, zlib.Z_FIXED, zlib.Z_HUFFMAN_ONLY, zlib.Z_RLE])
@pytest.mark.parametrize("level", [0, 1, 6, 9])
@pytest.mark.parametrize("flush", [zlib.Z_SYNC_FLUSH, zlib.Z_FULL_FLUSH, zlib.Z_FINISH])
def test_every_way_to_compress_is_understood(strategy: int, level: int, flush: int) -> None:
    chance = random.Random(level)
    agreed = make_deflate("")
    assert agreed is not None
    for size in (0, 1, 10, 1000, 70_000):
        data = bytes(chance.choices(b"abcdef", k=size))
        compressor = zlib.compressobj(level, zlib.DEFLATED, -15, 8, strategy)
        packed = compressor.compress(data) + compressor.flush(flush)
        if flush == zlib.Z_FINISH:
            assert receive(agreed, packed) == data  # as some send it
            packed += b"\x00"  # as RFC 7692 7.2.3.4 has it
        else:
            packed = packed.removesuffix(TAIL)
        assert receive(agreed, packed) == data
        cuts = sorted(chance.choices(range(len(packed) + 1), k=3))
        pieces = [packed[start:end] for start, end in zip([0, *cuts], [*cuts, len(packed)], strict=True)]
        assert receive(agreed, *pieces) == data


def test_blocks_between_which_the_client_flushes() -> None:
    compressor = zlib.compressobj(6, zlib.DEFLATED, -12)
    parts = [compressor.compress(b"hello ") + compressor.flush(zlib.Z_SYNC_FLUSH) for _ in range(20)]
    agreed = make_deflate("client_max_window_bits")
    assert agreed is not None
    assert receive(agreed, b"".join(parts).removesuffix(TAIL)) == b"hello " * 20
    assert receive(agreed, b"\x00") == b"" == receive(agreed)


@pytest.mark.parametrize("bits", [9, 10, 11, 12])
def test_window_is_kept_as_far_as_agreed(bits: int) -> None:
    """A distance of the whole window, in the message before and in one that a final block ends."""
    size = 1 << bits
    start = random.Random(bits).randbytes(size)
    stored = b"".join(b"\x00" + len(each).to_bytes(2, "little") + (len(each) ^ 0xFFFF).to_bytes(2, "little") + each
                      for each in (start,))  # fmt: skip
    packer = zlib.compressobj(9, zlib.DEFLATED, -15, 9, zlib.Z_FIXED, start)
    again = (packer.compress(start[:258]) + packer.flush(zlib.Z_SYNC_FLUSH)).removesuffix(TAIL)
    assert len(again) < 20
    for final in (False, True):
        agreed = make_deflate(f"client_max_window_bits={bits}")
        assert agreed is not None
        block = (b"\x01" if final else b"\x00") + stored[1:]
        assert receive(agreed, block + b"\x00") == start
        assert receive(agreed, again) == start[:258]
    forgets = make_deflate(f"client_max_window_bits={bits}; client_no_context_takeover")
    assert forgets is not None
    assert receive(forgets, stored + again) == start + start[:258]
    with pytest.raises(ProtocolError):
        receive(forgets, again)


def test_window_of_256_may_be_512() -> None:
    """Old zlib took one for the other when it compressed."""
    agreed = make_deflate("client_max_window_bits=8")
    assert agreed is not None
    client = Deflater(9)
    for _ in range(5):
        data = random.Random(0).randbytes(240)
        assert receive(agreed, client(data)) == data


@pytest.mark.parametrize(
    "pieces",
    [
        (b"\x07",),
        (b"\xff" * 10,),
        (b"\x78\x9c\xcb\x48\xcd\xc9\xc9\x07\x00",),
        (b"\x1f\x8b\x08\x00",),
        (b"\x00\x05\x00\xfa\xfe",),
        (b"\xf2\x00\x11\x00\x00",),
        (b"\xf2\x48\xcd\xc9\xc9\x07",),
        (b"\xf2\x48\xcd\xc9",),
        (b"\x00\x05\x00\xfa\xffhe",),
        (b"\xf2\x48\xcd\xc9\xc9\x07\x00" + TAIL,),
        (b"\xf3\x48\xcd\xc9\xc9\x07\x00\x07",),
        (b"\xf3\x48\xcd\xc9\xc9\x07\x00", b"\x07"),
        (b"hello, world",),
    ],
    ids=repr,
)
def test_data_that_is_not_deflate_or_stops_in_a_block_is_1007(pieces: tuple[bytes, ...]) -> None:
    assert refusal("client_max_window_bits", *pieces) == 1007


@pytest.mark.parametrize("size", [0, 1, 100, 65536])
def test_limit_is_exact(size: int) -> None:
    for data in (bytes(size), random.Random(0).randbytes(size)):
        for packed in (Deflater()(data), Deflater(15)(data), b"".join([Deflater(9)(data)])):
            agreed = make_deflate("")
            assert agreed is not None
            assert receive(agreed, packed, most=size) == data
            if size:
                assert refusal("", packed, most=size - 1) == 1009
                assert refusal("", packed[:20], packed[20:], most=size - 1) == 1009


def test_too_many_final_blocks_are_1009() -> None:
    agreed = make_deflate("")
    assert agreed is not None
    for _ in range(3):  # counted for each message
        assert receive(agreed, b"\x03\x00" * 1000) == b""
    assert refusal("", b"\x03\x00" * 1025) == 1009
    assert refusal("", *[b"\x03\x00"] * 1025) == 1009


@settings(max_examples=200, deadline=None)
@given(st.lists(st.binary(max_size=200).map(lambda data: data * 7), max_size=8), st.integers(9, 12), st.booleans())
def test_two_ends_understand_each_other(messages: list[bytes], bits: int, takeover: bool) -> None:
    flags = "" if takeover else "; client_no_context_takeover; server_no_context_takeover"
    agreed = make_deflate(f"client_max_window_bits={bits}; server_max_window_bits={bits}{flags}")
    assert agreed is not None
    pack, unpack = Deflater(bits, takeover), Inflater(bits, takeover)
    for message in messages:
        assert receive(agreed, pack(message)) == message
        packed = agreed.compress(message)
        assert packed is None or unpack(packed) == message


@settings(max_examples=300, deadline=None)
@given(st.lists(st.binary(max_size=30), max_size=4), st.integers(0, 100))
def test_any_data_gives_a_message_or_an_error(pieces: list[bytes], most: int) -> None:
    agreed = make_deflate("client_max_window_bits")
    assert agreed is not None
    try:
        assert len(receive(agreed, *pieces, most=most)) <= most
    except ProtocolError as error:
        assert error.code in (1007, 1009)


# ---- memory


def test_windows_are_all_that_is_kept() -> None:
    agreed = [make_deflate("client_max_window_bits") for _ in range(50)]
    message = random.Random(0).randbytes(600) * 20
    tracemalloc.start()
    try:
        for each in agreed:
            assert each is not None
            assert receive(each, Deflater()(message)) == message
            assert each.compress(message) is not None
        assert tracemalloc.get_traced_memory()[0] / 50 < 6.5 * 1024
    finally:
        tracemalloc.stop()
