"""Cases of the WebSocket protocol as data: what a client sends, what is understood, how it ends.

Groups follow the classic conformance suites: framing, pings, reserved bits, opcodes, fragments, UTF-8, closing, limits,
compression. A row says from which byte on an error must be known, where that matters.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from stdserve.protocol.websocket import Close, Event, Ping, Pong
from tests.frames import BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT, Deflater, close, fragments, frame


@dataclass
class Case:
    """`end` is open, closed, or the close code of an error; `error_at` the bytes after which it must have come."""

    name: str
    data: bytes
    events: list[Event]
    end: str | int = "open"
    error_at: int | None = None
    limits: dict[str, int] = field(default_factory=dict)
    offer: str | None = None

    def __str__(self) -> str:
        return self.name


HELLO = frame(TEXT, "hello")
ANY = "client_max_window_bits"


# ---- framing


def framing() -> Iterator[Case]:
    for size in (0, 1, 2, 3, 4, 5, 7, 8, 15, 16, 125, 126, 127, 128, 1000, 16383, 16384, 16385, 65535, 65536, 65537):
        text, data = "*" * size, bytes(range(256)) * (size // 256 + 1)
        yield Case(f"text-of-{size}", frame(TEXT, text), [text])
        yield Case(f"binary-of-{size}", frame(BINARY, data[:size]), [data[:size]])
    for name, mask in (("zero", bytes(4)), ("ones", b"\xff" * 4), ("one-byte", b"\0\0\0\1"), ("rising", b"\1\2\3\4")):
        yield Case(f"mask-of-{name}", frame(TEXT, "hello, world", mask=mask), ["hello, world"])
        yield Case(f"mask-of-{name}-long", frame(BINARY, b"0123456789" * 2001, mask=mask), [b"0123456789" * 2001])
    yield Case("several-in-a-row", HELLO * 3 + frame(BINARY, b"\0") + HELLO, ["hello"] * 3 + [b"\0", "hello"])
    yield Case("nothing", b"", [])
    for size in range(1, len(HELLO)):
        yield Case(f"frame-cut-at-{size}-waits", HELLO[:size], [])
    for size in (1, 2, 3, 4, 7, 8, 100):
        data = frame(BINARY, bytes(200))
        yield Case(f"longer-frame-cut-at-{size}-waits", HELLO + data[:size], ["hello"])
    for size in (3, 9, 10, 13, 14, 70000):
        data = frame(BINARY, bytes(70001))
        yield Case(f"longest-frame-cut-at-{size}-waits", data[:size], [])
    for form, size in ((3, 0), (3, 1), (3, 125), (9, 0), (9, 125), (9, 126), (9, 65535)):
        data = frame(BINARY, bytes(size), form=form)
        yield Case(f"length-{size}-in-{form}-bytes", data, [], 1002, 1 + form)
    yield Case("length-with-the-top-bit", frame(TEXT, b"", length=1 << 63, form=9), [], 1002, 10)
    yield Case("length-all-ones", frame(TEXT, b"", length=(1 << 64) - 1, form=9), [], 1002, 10)
    yield Case("length-of-63-bits", frame(TEXT, b"", length=(1 << 63) - 1, form=9), [], 1009, 10)
    for name, opcode in (("text", TEXT), ("binary", BINARY), ("ping", PING), ("pong", PONG), ("close", CLOSE)):
        yield Case(f"unmasked-{name}", HELLO + frame(opcode, b"", mask=None), ["hello"], 1002, len(HELLO) + 2)
        yield Case(f"unmasked-{name}-with-payload", frame(opcode, b"\3\xe8", mask=None), [], 1002, 2)
    yield Case("unmasked-long", frame(BINARY, bytes(70000), mask=None), [], 1002, 2)
    yield Case("unmasked-continuation", frame(TEXT, "a", fin=False) + frame(CONTINUATION, "b", mask=None), [], 1002, 9)


# ---- pings


def pings() -> Iterator[Case]:
    for size in (0, 1, 4, 124, 125):
        data = bytes(range(255, 255 - size, -1))
        yield Case(f"ping-of-{size}", frame(PING, data), [Ping(data)])
        yield Case(f"pong-of-{size}", frame(PONG, data) + HELLO, [Pong(data), "hello"])
    for name, opcode in (("ping", PING), ("pong", PONG), ("close", CLOSE)):
        for size in (126, 127, 65535, 65536):
            yield Case(f"{name}-of-{size}", frame(opcode, bytes(size)), [], 1002, 2)
        yield Case(f"{name}-of-5-in-3-bytes", frame(opcode, bytes(5), form=3), [], 1002, 2)
        yield Case(f"{name}-not-final", HELLO + frame(opcode, fin=False), ["hello"], 1002, len(HELLO) + 1)
        yield Case(f"{name}-not-final-then-continued", fragments(opcode, b"a", b"b"), [], 1002, 1)
    yield Case("ten-pings", b"".join(frame(PING, b"%d" % n) for n in range(10)), [Ping(b"%d" % n) for n in range(10)])
    yield Case("ping-that-is-not-text", frame(PING, b"\xff\xfe\0"), [Ping(b"\xff\xfe\0")])
    yield Case("ping-then-text", frame(PING, b"a") + HELLO, [Ping(b"a"), "hello"])
    yield Case("ping-cut-waits", frame(PING, bytes(100))[:50], [])
    yield Case("pong-before-ping", frame(PONG, b"x") + frame(PING, b"y"), [Pong(b"x"), Ping(b"y")])


# ---- reserved bits and opcodes


def reserved() -> Iterator[Case]:
    for rsv in range(1, 8):
        for name, opcode in (("text", TEXT), ("binary", BINARY), ("ping", PING), ("pong", PONG), ("close", CLOSE)):
            yield Case(f"rsv-{rsv}-{name}", frame(opcode, b"", rsv=rsv) + HELLO, [], 1002, 1)
        after = HELLO + frame(TEXT, "hello", rsv=rsv) + frame(PING)
        yield Case(f"rsv-{rsv}-after-a-message", after, ["hello"], 1002, len(HELLO) + 1)
        within = frame(TEXT, "a", fin=False) + frame(CONTINUATION, "b", rsv=rsv)
        yield Case(f"rsv-{rsv}-continuation", within, [], 1002, 8)
    for opcode in (3, 4, 5, 6, 7, 11, 12, 13, 14, 15):
        yield Case(f"opcode-{opcode}", frame(opcode), [], 1002, 1)
        yield Case(f"opcode-{opcode}-with-payload", HELLO + frame(opcode, b"abc"), ["hello"], 1002, len(HELLO) + 1)
        yield Case(f"opcode-{opcode}-not-final", frame(opcode, b"abc", fin=False), [], 1002, 1)
        within = frame(TEXT, "a", fin=False) + frame(opcode) + frame(CONTINUATION, "b")
        yield Case(f"opcode-{opcode}-within-a-message", within, [], 1002, 8)


# ---- fragments


def fragmented() -> Iterator[Case]:
    yield Case("two-fragments", fragments(TEXT, "hel", "lo"), ["hello"])
    yield Case("two-fragments-binary", fragments(BINARY, b"\xff", b"\0"), [b"\xff\0"])
    yield Case("many-fragments", fragments(TEXT, *"hello, world"), ["hello, world"])
    yield Case("empty-fragments", fragments(TEXT, "", "", ""), [""])
    yield Case("empty-fragments-binary", fragments(BINARY, b"", b"", b""), [b""])
    yield Case("empty-first", fragments(TEXT, "", "a"), ["a"])
    yield Case("empty-last", fragments(TEXT, "a", ""), ["a"])
    yield Case("empty-in-the-middle", fragments(BINARY, b"a", b"", b"", b"b"), [b"ab"])
    yield Case("long-fragments", fragments(BINARY, bytes(300), b"\1" * 20000), [bytes(300) + b"\1" * 20000])
    yield Case(
        "two-messages", fragments(TEXT, "a", "b") + fragments(BINARY, b"c", b"d") + HELLO, ["ab", b"cd", "hello"]
    )
    start = frame(TEXT, "a", fin=False)
    end = frame(CONTINUATION, "b")
    yield Case("ping-between", start + frame(PING, b"p") + end, [Ping(b"p"), "ab"])
    yield Case("pong-between", start + frame(PONG, b"p") + end, [Pong(b"p"), "ab"])
    yield Case("pings-between-all", (start + frame(PING) + frame(CONTINUATION, "c", fin=False) + frame(PING)) + end,
               [Ping(b""), Ping(b""), "acb"])  # fmt: skip
    yield Case("close-between", start + close(1000) + end, [Close(1000, "")], "closed")
    yield Case("long-ping-between", start + frame(PING, bytes(125)) + end, [Ping(bytes(125)), "ab"])
    yield Case("start-alone-waits", start, [])
    yield Case("no-end-waits", start + frame(CONTINUATION, "b", fin=False), [])
    for name, opcode in (("text", TEXT), ("binary", BINARY)):
        for fin in (True, False):
            new = start + frame(opcode, "x", fin=fin)
            yield Case(f"new-{name}-within-a-message{'' if fin else '-not-final'}", new + end, [], 1002, len(start) + 1)
    for fin in (True, False):
        name = "" if fin else "-not-final"
        yield Case(f"continuation-first{name}", frame(CONTINUATION, "a", fin=fin), [], 1002, 1)
        yield Case(
            f"continuation-after-a-message{name}", HELLO + frame(CONTINUATION, "a", fin=fin), ["hello"], 1002, 12
        )
        data = fragments(TEXT, "a", "b")
        after = data + frame(CONTINUATION, "c", fin=fin)
        yield Case(f"continuation-after-fragments{name}", after, ["ab"], 1002, len(data) + 1)
        yield Case(f"continuation-after-ping{name}", frame(PING) + frame(CONTINUATION, fin=fin), [Ping(b"")], 1002, 7)


# ---- UTF-8

VALID_UTF8 = {
    "ascii": b"Hello-", "nul": b"\0", "del": b"\x7f", "two-bytes-first": b"\xc2\x80", "two-bytes-last": b"\xdf\xbf",
    "three-bytes-first": b"\xe0\xa0\x80", "before-surrogates": b"\xed\x9f\xbf", "after-surrogates": b"\xee\x80\x80",
    "replacement": b"\xef\xbf\xbd", "three-bytes-last": b"\xef\xbf\xbf", "four-bytes-first": b"\xf0\x90\x80\x80",
    "last": b"\xf4\x8f\xbf\xbf", "private": b"\xef\xa3\xbf", "greek": "κόσμε".encode(), "mixed": "aä€😀z".encode(),
    "bom": b"\xef\xbb\xbf", "non-character": b"\xf0\x9f\xbf\xbe", "non-character-fdd0": b"\xef\xb7\x90",
    "cr-lf": b"\r\n\t", "c1": b"\xc2\x85",
}  # fmt: skip

# What stands before the bar may begin a character, the byte after it cannot go on with it.
INVALID_UTF8 = {
    "continuation-80": "|80", "continuation-bf": "|bf", "continuations": "|80bf80", "after-ascii": "61|80",
    "fe": "|fe", "ff": "|ff", "fe-fe-ff-ff": "|fefeffff", "c0": "|c0", "c1": "|c1", "f5": "|f5", "f8": "|f888808080",
    "fc": "|fc8480808080", "overlong-2f-in-2": "|c0af", "overlong-2f-in-3": "e0|80af", "overlong-2f-in-4": "f0|8080af",
    "overlong-7f": "|c1bf", "overlong-7ff": "e0|9fbf", "overlong-ffff": "f0|8fbfbf", "overlong-nul-in-2": "|c080",
    "overlong-nul-in-3": "e0|8080", "overlong-nul-in-4": "f0|808080", "surrogate-d800": "ed|a080",
    "surrogate-db7f": "ed|adbf", "surrogate-dbff": "ed|afbf", "surrogate-dc00": "ed|b080", "surrogate-dfff": "ed|bfbf",
    "surrogate-pair": "ed|a080edb080", "above-10ffff": "f4|908080", "above-10ffff-late": "f4|bfbfbf",
    "two-bytes-then-ascii": "c3|28", "two-bytes-then-lead": "c3|c3a4", "three-bytes-then-ascii": "e2|28a1",
    "three-bytes-then-ascii-2": "e282|28", "four-bytes-then-ascii": "f0|288cbc", "four-bytes-then-ascii-2": "f090|28bc",
    "four-bytes-then-ascii-3": "f0908c|28", "greek-then-above": "cebae1bdb9cf83cebcceb5f4|908080656469746564",
    "greek-then-surrogate": "cebae1bdb9cf83cebcceb5ed|a080656469746564", "latin-1": "|fc6e",
    "lead-after-character": "c3a4|a4", "utf-16": "|fffe6100",
}  # fmt: skip

CUT_UTF8 = ["c2", "e0", "e0a0", "e282", "f0", "f090", "f09f98", "61c3", "cebae1bd", "ef", "efbf", "f48f", "f48fbf"]


def utf_8() -> Iterator[Case]:
    for name, data in VALID_UTF8.items():
        text = data.decode()
        yield Case(f"utf8-{name}", frame(TEXT, data) + HELLO, [text, "hello"])
        yield Case(f"utf8-{name}-each-byte-a-frame", fragments(TEXT, *[bytes([byte]) for byte in data]), [text])
    for name, row in INVALID_UTF8.items():
        begin, rest = map(bytes.fromhex, row.split("|"))
        yield Case(f"not-utf8-{name}", frame(TEXT, begin + rest), [], 1007, 6 + len(begin) + 1)
        pieces = [bytes([byte]) for byte in begin + rest] + [b"x"]
        yield Case(f"not-utf8-{name}-each-byte-a-frame", fragments(TEXT, *pieces), [], 1007, 7 * (len(begin) + 1))
    for row in CUT_UTF8:
        data = bytes.fromhex(row)
        yield Case(f"not-utf8-cut-{row}", HELLO + frame(TEXT, data), ["hello"], 1007)
        yield Case(f"not-utf8-cut-{row}-in-a-fragment", fragments(TEXT, data, b""), [], 1007)
        yield Case(f"utf8-cut-{row}-waits", frame(TEXT, data, fin=False), [])
    long = b"a" * 300
    yield Case("not-utf8-in-a-frame-that-goes-on", frame(TEXT, long + b"\xff" + long)[:400], [], 1007, 8 + 301)
    yield Case("not-utf8-in-a-fragment-that-goes-on", frame(TEXT, b"a\xff", fin=False), [], 1007, 8)
    yield Case("not-utf8-behind-a-ping", frame(TEXT, b"\xc3", fin=False) + frame(PING) + frame(CONTINUATION, b"("),
               [Ping(b"")], 1007, 20)  # fmt: skip
    yield Case("binary-is-not-looked-at", frame(BINARY, b"\xff\xc0\x80"), [b"\xff\xc0\x80"])
    yield Case("binary-fragments-are-not-looked-at", fragments(BINARY, b"\xff", b"\xc0"), [b"\xff\xc0"])


# ---- closing


def closing() -> Iterator[Case]:
    yield Case("close-without-code", frame(CLOSE), [Close(1005, "")], "closed")
    yield Case("close-of-1-byte", frame(CLOSE, b"\3"), [], 1002)
    for code in (*range(1000, 1004), *range(1007, 1015), 3000, 3999, 4000, 4999):
        yield Case(f"close-{code}", close(code, "bye"), [Close(code, "bye")], "closed")
    for code in (0, 1, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 10000, 65535):
        yield Case(f"close-{code}", HELLO + close(code), ["hello"], 1002)
        yield Case(f"close-{code}-with-reason", close(code, "bye"), [], 1002)
    yield Case("close-without-reason", close(1000), [Close(1000, "")], "closed")
    yield Case("close-with-longest-reason", close(1000, "r" * 123), [Close(1000, "r" * 123)], "closed")
    yield Case("close-with-reason-too-long", close(1000, "r" * 124), [], 1002, 2)
    yield Case("close-reason-utf8", close(1000, "κόσμε😀"), [Close(1000, "κόσμε😀")], "closed")
    for name, reason in (
        ("ff", b"\xff"),
        ("cut", b"a\xc3"),
        ("surrogate", b"\xed\xa0\x80"),
        ("above", b"\xf4\x90\x80\x80"),
    ):
        yield Case(f"close-reason-not-utf8-{name}", close(1000, reason), [], 1007)
    yield Case("close-then-text", close(1000) + HELLO, [Close(1000, "")], "closed")
    yield Case("close-then-close", close(1000) + close(1001), [Close(1000, "")], "closed")
    yield Case("close-then-ping", close(1000) + frame(PING, b"a"), [Close(1000, "")], "closed")
    yield Case("close-then-nonsense", close(1000) + b"\xff" * 200, [Close(1000, "")], "closed")
    yield Case("close-then-half-a-frame", close(1000) + HELLO[:3], [Close(1000, "")], "closed")
    yield Case("text-then-close", HELLO + close(1001, "away"), ["hello", Close(1001, "away")], "closed")
    yield Case("fragment-then-close", frame(TEXT, "a", fin=False) + close(1000), [Close(1000, "")], "closed")
    yield Case("close-cut-waits", close(1000, "bye")[:8], [])
    yield Case("ping-then-close", frame(PING, b"a") + close(1000), [Ping(b"a"), Close(1000, "")], "closed")


# ---- limits


def limits() -> Iterator[Case]:
    ten = {"message": 10}
    yield Case("message-at-limit", frame(BINARY, bytes(10)) * 2, [bytes(10)] * 2, limits=ten)
    yield Case("message-over-limit", frame(BINARY, bytes(11)), [], 1009, 2, ten)
    yield Case("message-over-limit-after-one", HELLO + frame(TEXT, bytes(11)), ["hello"], 1009, 13, ten)
    yield Case("message-far-over-limit", frame(BINARY, b"", length=1 << 40), [], 1009, 10, ten)
    yield Case("message-of-16-bit-over-limit", frame(BINARY, b"", length=300), [], 1009, 4, ten)
    yield Case("fragments-at-limit", fragments(TEXT, "12345", "67890"), ["1234567890"], limits=ten)
    yield Case("fragments-over-limit", fragments(TEXT, "123456", "78901"), [], 1009, 14, ten)
    yield Case("fragments-over-limit-by-the-second-frame", fragments(TEXT, "1", "a" * 500), [], 1009, 11, ten)
    yield Case("limit-counts-bytes", frame(TEXT, "ä" * 5), ["ä" * 5], limits=ten)
    yield Case("limit-counts-bytes-over", frame(TEXT, "ä" * 6), [], 1009, 2, ten)
    yield Case("limit-does-not-count-controls", fragments(TEXT, "12345", "67890").replace(
        frame(CONTINUATION, "67890"), frame(PING, bytes(100)) + frame(CONTINUATION, "67890")),
        [Ping(bytes(100)), "1234567890"], limits=ten)  # fmt: skip
    yield Case("limit-of-1", frame(TEXT, "a") * 2 + frame(TEXT, "ab"), ["a", "a"], 1009, 16, {"message": 1})
    yield Case("no-limit", frame(BINARY, b"abc") + frame(BINARY, b"", length=1 << 40), [b"abc"], limits={"message": 0})
    usual = 16 * 1024 * 1024
    yield Case("usual-limit-waits", frame(BINARY, b"", length=usual), [])
    yield Case("usual-limit-over", frame(BINARY, b"", length=usual + 1), [], 1009, 10)
    three = {"fragments": 3}
    yield Case("three-fragments-at-limit", fragments(TEXT, *"abc") * 2, ["abc"] * 2, limits=three)
    yield Case("three-fragments-over-limit", fragments(TEXT, *"abcd"), [], 1009, limits=three)
    yield Case("empty-fragments-over-limit", fragments(BINARY, *[b""] * 4), [], 1009, limits=three)
    yield Case("fragments-count-anew", fragments(TEXT, *"abc") + HELLO + fragments(TEXT, *"abc"),
               ["abc", "hello", "abc"], limits=three)  # fmt: skip


# ---- compression


def compressed() -> Iterator[Case]:
    plain = Deflater()
    yield from compressed_messages()
    yield from broken_compression()
    small = {"message": 1000}
    packed = Deflater()(b"a" * 1000)
    yield Case("deflate-at-limit", frame(TEXT, packed, rsv=4), ["a" * 1000], limits=small, offer=ANY)
    for size in (1001, 2000, 100_000, 2_000_000):
        packed = Deflater()(bytes(size))
        yield Case(f"deflate-bomb-of-{size}", frame(BINARY, packed, rsv=4), [], 1009, None, small, ANY)
    half = Deflater()(b"a" * 600)
    both = fragments(TEXT, half + b"\x00\x00\xff\xff", half, rsv=4)
    yield Case("deflate-fragments-over-limit", both, [], 1009, None, small, ANY)
    yield Case("deflate-declared-over-limit", frame(TEXT, b"", length=5000, rsv=4), [], 1009, 4, small, ANY)
    stored = b"".join(b"\x00\x05\x00\xfa\xffhello" for _ in range(200)) + b"\x00"
    yield Case("deflate-stored-at-limit", frame(TEXT, stored, rsv=4), [], 1009, 4, small, ANY)
    incompressible = bytes(range(256)) * 3
    yield Case(
        "deflate-that-grows", frame(BINARY, plain(incompressible), rsv=4), [incompressible], limits=small, offer=ANY
    )


def compressed_messages() -> Iterator[Case]:
    for size in (0, 1, 5, 64, 256, 1024, 4096, 8192, 32768, 131072):
        text = ("compress me, " * (size // 13 + 1))[:size]
        data = frame(TEXT, Deflater()(text), rsv=4)
        yield Case(f"deflate-{size}", data, [text], offer=ANY)
        yield Case(
            f"deflate-{size}-own-window", frame(TEXT, Deflater(15, False)(text), rsv=4) * 2, [text] * 2, offer=""
        )
        whole = Deflater()(text)
        cut = len(whole) // 2
        yield Case(
            f"deflate-{size}-in-fragments", fragments(TEXT, whole[:cut], b"", whole[cut:], rsv=4), [text], offer=ANY
        )
    for bits in (8, 9, 10, 11, 12, 13, 14, 15):
        deflater = Deflater(max(bits, 9) if bits < 12 else 12)
        words = [f"message {n} of a series, message {n}" * 9 for n in range(5)]
        data = b"".join(frame(TEXT, deflater(word), rsv=4) for word in words)
        yield Case(f"deflate-takeover-{bits}", data, list(words), offer=f"{ANY}={bits}")
    deflater = Deflater()
    data = frame(TEXT, deflater("hello hello"), rsv=4) + HELLO + frame(BINARY, deflater("hello hello"), rsv=4)
    yield Case("deflate-mixed-with-plain", data, ["hello hello", "hello", b"hello hello"], offer=ANY)
    yield Case("deflate-negotiated-but-not-used", HELLO + fragments(TEXT, "a", "b"), ["hello", "ab"], offer=ANY)
    whole = Deflater()("hello")
    data = frame(TEXT, whole[:3], rsv=4, fin=False) + frame(PING, b"p") + frame(CONTINUATION, whole[3:])
    yield Case("deflate-ping-between", data, [Ping(b"p"), "hello"], offer=ANY)
    # The examples of RFC 7692 7.2.3
    example = bytes.fromhex("f248cdc9c90700")
    yield Case("deflate-one-block", frame(TEXT, example, rsv=4), ["Hello"], offer=ANY)
    yield Case("deflate-shared-window", frame(TEXT, example, rsv=4) + frame(TEXT, bytes.fromhex("f200110000"), rsv=4),
               ["Hello", "Hello"], offer=ANY)  # fmt: skip
    yield Case(
        "deflate-stored-block", frame(TEXT, bytes.fromhex("000500faff48656c6c6f00"), rsv=4), ["Hello"], offer=ANY
    )
    final = bytes.fromhex("f348cdc9c9070000")
    yield Case("deflate-final-block", frame(TEXT, final, rsv=4) * 2, ["Hello"] * 2, offer=ANY)
    yield Case("deflate-final-block-alone", frame(TEXT, final[:-1], rsv=4) * 2, ["Hello"] * 2, offer=ANY)
    yield Case("deflate-window-behind-a-final-block", frame(TEXT, final, rsv=4) + frame(
        TEXT, bytes.fromhex("f200110000"), rsv=4), ["Hello", "Hello"], offer=ANY)  # fmt: skip
    yield Case(
        "deflate-two-blocks", frame(TEXT, bytes.fromhex("f24805000000ffffcac9c90700"), rsv=4), ["Hello"], offer=ANY
    )
    yield Case(
        "deflate-final-blocks-in-a-message", frame(TEXT, final[:-1] * 3 + b"\0", rsv=4), ["Hello" * 3], offer=ANY
    )
    yield Case("deflate-empty", frame(TEXT, b"\0", rsv=4) + frame(BINARY, b"\0", rsv=4), ["", b""], offer=ANY)
    yield Case("deflate-of-no-bytes", frame(TEXT, b"", rsv=4) + HELLO, ["", "hello"], offer=ANY)


def broken_compression() -> Iterator[Case]:
    hello = Deflater()("hello")
    yield Case("deflate-reserved-block-type", frame(TEXT, b"\x06" * 5, rsv=4), [], 1007, 7, offer=ANY)
    yield Case("deflate-garbage", frame(TEXT, b"\xff" * 20, rsv=4), [], 1007, offer=ANY)
    yield Case("deflate-not-compressed", frame(TEXT, b"hello", rsv=4), [], 1007, offer=ANY)
    yield Case("deflate-zlib-header", frame(TEXT, b"\x78\x9c" + hello, rsv=4), [], 1007, offer=ANY)
    yield Case("deflate-cut", frame(TEXT, hello[:-2], rsv=4), [], 1007, offer=ANY)
    yield Case("deflate-cut-stored", frame(TEXT, bytes.fromhex("000500faff4865"), rsv=4), [], 1007, offer=ANY)
    yield Case("deflate-with-its-tail", frame(TEXT, hello + b"\x00\x00\xff\xff", rsv=4), [], 1007, offer=ANY)
    yield Case(
        "deflate-distance-before-the-start", frame(TEXT, bytes.fromhex("f200110000"), rsv=4), [], 1007, offer=ANY
    )
    shared = frame(TEXT, bytes.fromhex("f248cdc9c90700"), rsv=4) + frame(TEXT, bytes.fromhex("f200110000"), rsv=4)
    yield Case("deflate-window-that-was-dropped", shared, ["Hello"], 1007, offer="client_no_context_takeover")
    yield Case("deflate-too-many-final-blocks", frame(TEXT, b"\x03\x00" * 2000, rsv=4), [], 1009, offer=ANY)
    yield Case("deflate-not-utf8", frame(TEXT, Deflater()(b"ab\xff"), rsv=4), [], 1007, offer=ANY)
    yield Case("deflate-cut-utf8", frame(TEXT, Deflater()(b"ab\xc3"), rsv=4), [], 1007, offer=ANY)
    yield Case("deflate-binary-not-utf8", frame(BINARY, Deflater()(b"\xff"), rsv=4), [b"\xff"], offer=ANY)
    for name, opcode in (("ping", PING), ("pong", PONG), ("close", CLOSE)):
        yield Case(f"deflate-{name}-with-rsv1", frame(opcode, b"", rsv=4), [], 1002, 1, offer=ANY)
    within = frame(TEXT, hello[:3], rsv=4, fin=False) + frame(CONTINUATION, hello[3:], rsv=4)
    yield Case("deflate-continuation-with-rsv1", within, [], 1002, 10, offer=ANY)
    plain = frame(TEXT, "a", fin=False) + frame(CONTINUATION, "b", rsv=4)
    yield Case("deflate-rsv1-on-a-plain-message", plain, [], 1002, 8, offer=ANY)
    for rsv in (1, 2, 3, 5, 6, 7):
        yield Case(f"deflate-rsv-{rsv}", frame(TEXT, hello, rsv=rsv), [], 1002, 1, offer=ANY)


GROUPS = (framing, pings, reserved, fragmented, utf_8, closing, limits, compressed)
CASES = [case for group in GROUPS for case in group()]
assert len({case.name for case in CASES}) == len(CASES)
