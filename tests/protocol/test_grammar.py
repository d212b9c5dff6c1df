"""Every regular expression of the grammar: what it takes, what it refuses, and that no input makes it slow."""

from __future__ import annotations

import re
import time

import pytest

from stdserve.protocol import grammar

PATTERNS = {name: value for name, value in vars(grammar).items() if isinstance(value, re.Pattern)}

TOKEN_BYTES = b"!#$%&'*+-.^_`|~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"


def taken(pattern: re.Pattern[bytes], template: bytes) -> bytes:
    """The bytes that may stand where `template` has a question mark."""
    return bytes(byte for byte in range(256) if pattern.fullmatch(template.replace(b"?", bytes([byte]))))


# ---- which bytes


def test_token_characters() -> None:
    assert sorted(taken(grammar.TOKEN, b"a?")) == sorted(TOKEN_BYTES)
    assert grammar.TOKEN.fullmatch(b"") is None


def test_field_name_characters() -> None:
    assert sorted(taken(grammar.FIELD_LINE, b"a?b: c")) == sorted([*TOKEN_BYTES, ord(":")])


@pytest.mark.parametrize("pattern", [grammar.FIELD_VALUE, grammar.REASON])
def test_field_value_characters(pattern: re.Pattern[bytes]) -> None:
    assert taken(pattern, b"a?") == bytes([9, *range(0x20, 0x7F), *range(0x80, 0x100)])
    assert taken(grammar.FIELD_LINE, b"a: b?") == taken(pattern, b"a?")


def test_target_characters() -> None:
    # a fourth word would be in the place of the version, so a blank is refused too
    assert taken(grammar.REQUEST_LINE, b"GET /? HTTP/1.1") == bytes(set(range(0x21, 0x7F)) - {ord("#")})


def test_method_characters() -> None:
    upper = bytes(byte for byte in TOKEN_BYTES if not chr(byte).islower())
    assert sorted(taken(grammar.REQUEST_LINE, b"G? / HTTP/1.1")) == sorted(upper)
    assert sorted(taken(grammar.REQUEST_LINE_START, b"G?")) == sorted(upper + b" ")


def test_chunk_size_digits() -> None:
    assert sorted(taken(grammar.CHUNK_LINE, b"?")) == sorted(b"0123456789abcdefABCDEF")


def test_quoted_extension_characters() -> None:
    text = bytes([9, *range(0x20, 0x7F), *range(0x80, 0x100)])
    assert taken(grammar.CHUNK_LINE, b'1;a="b?"') == bytes(byte for byte in text if byte not in b'"\\')
    assert taken(grammar.CHUNK_LINE, b'1;a="\\?"') == text


@pytest.mark.parametrize("pattern", [grammar.LENGTH, grammar.DIGITS])
def test_digits_are_ascii(pattern: re.Pattern[bytes]) -> None:
    assert taken(pattern, b"?") == b"0123456789"


def test_version_digits() -> None:
    assert taken(grammar.VERSION, b"HTTP/1.?") == taken(grammar.VERSION, b"HTTP/?.1") == b"0123456789"


# ---- which words

TAKEN = [
    ("WEBSOCKET_KEY", b"dGhlIHNhbXBsZSBub25jZQ==", ()),
    ("WEBSOCKET_KEY", b"+/+/+/+/+/+/+/+/+/+/+z==", ()),
    ("EXTENSION_PARAM", b"a", (b"a", None, None)),
    ("EXTENSION_PARAM", b"a=b", (b"a", b"b", None)),
    ("EXTENSION_PARAM", b"a\t= b", (b"a", b"b", None)),
    ("EXTENSION_PARAM", b'a="bc"', (b"a", None, b"bc")),
    ("EXTENSION_PARAM", b'a = "\\1\\0"', (b"a", None, b"\\1\\0")),
    ("REQUEST_LINE", b"GET / HTTP/1.1", (b"GET", b"/", b"1", b"1")),
    ("REQUEST_LINE", b"OPTIONS * HTTP/9.0", (b"OPTIONS", b"*", b"9", b"0")),
    ("FIELD_LINE", b"a:", (b"a", b"")),
    ("FIELD_LINE", b"a: \t b c \t", (b"a", b"b c \t")),
    ("FIELD_LINE", b"a:b:c", (b"a", b"b:c")),
    ("LENGTH", b"0", ()),
    ("LENGTH", b"9" * 19, ()),
    ("DIGITS", b"9" * 20, ()),
    ("HOST", b"", ()),
    ("HOST", b"a.example:80", ()),
    ("HOST", b"127.0.0.1", ()),
    ("HOST", b"[::ffff:127.0.0.1]:80", ()),
    ("HOST", b"[v1f.a:b]", ()),
    ("HOST", b"%41", ()),
    ("HOST", b"a:", ()),
    ("ABSOLUTE_FORM", b"http://a", (b"a", b"")),
    ("ABSOLUTE_FORM", b"hTTps://a:1/b?c", (b"a:1", b"/b?c")),
    ("ABSOLUTE_FORM", b"http://a?b/c", (b"a", b"?b/c")),
    ("CHUNK_LINE", b"f" * 16, (b"f" * 16, b"")),
    ("CHUNK_LINE", b"1;a", (b"1", b";a")),
    ("CHUNK_LINE", b'1 ;\ta = "b;\\"" ;c', (b"1", b' ;\ta = "b;\\"" ;c')),
]

REFUSED = [
    ("WEBSOCKET_KEY", b"dGhlIHNhbXBsZSBub25jZQ="),
    ("WEBSOCKET_KEY", b"dGhlIHNhbXBsZSBub25jZQAA"),
    ("WEBSOCKET_KEY", b"dGhlIHNhbXBsZSBub25jZQ==\n"),
    ("WEBSOCKET_KEY", b"dGhl-HNhbXBs_SBub25jZQ=="),
    ("EXTENSION_PARAM", b""),
    ("EXTENSION_PARAM", b"a="),
    ("EXTENSION_PARAM", b"=b"),
    ("EXTENSION_PARAM", b"a b"),
    ("EXTENSION_PARAM", b'a=""'),
    ("EXTENSION_PARAM", b'a="b'),
    ("EXTENSION_PARAM", b'a="b c"'),
    ("EXTENSION_PARAM", b'a="b\\"'),
    ("EXTENSION_PARAM", b"a=b=c"),
    ("REQUEST_LINE", b"GET / HTTP/1.1 "),
    ("REQUEST_LINE", b"GET / HTTP/1.1\n"),
    ("REQUEST_LINE", b"GET / http/1.1"),
    ("REQUEST_LINE", b"GET  / HTTP/1.1"),
    ("FIELD_LINE", b": a"),
    ("FIELD_LINE", b"a"),
    ("FIELD_LINE", b"a : b"),
    ("FIELD_LINE", b" a: b"),
    ("FIELD_LINE", b"a: b\r"),
    ("FIELD_LINE", b"a: b\n"),
    ("LENGTH", b""),
    ("LENGTH", b"9" * 20),
    ("LENGTH", b"1\n"),
    ("HOST", b"a b"),
    ("HOST", b"a:b"),
    ("HOST", b"::1"),
    ("HOST", b"[]"),
    ("HOST", b"%4"),
    ("HOST", b"u@a"),
    ("HOST", b"a\n"),
    ("ABSOLUTE_FORM", b"http:/a"),
    ("ABSOLUTE_FORM", b"httpss://a"),
    ("ABSOLUTE_FORM", b"ftp://a"),
    ("CHUNK_LINE", b""),
    ("CHUNK_LINE", b"f" * 17),
    ("CHUNK_LINE", b"1 "),
    ("CHUNK_LINE", b"1;"),
    ("CHUNK_LINE", b"1;a="),
    ("CHUNK_LINE", b'1;a="b'),
    ("CHUNK_LINE", b"1;a\n"),
]


@pytest.mark.parametrize(("name", "data", "groups"), TAKEN)
def test_is_taken(name: str, data: bytes, groups: tuple[bytes, ...]) -> None:
    match = PATTERNS[name].fullmatch(data)
    assert match is not None and match.groups() == groups


@pytest.mark.parametrize(("name", "data"), REFUSED)
def test_is_refused(name: str, data: bytes) -> None:
    assert PATTERNS[name].fullmatch(data) is None


@pytest.mark.parametrize(
    ("data", "at"), [(b"a\r\nb\r\n", None), (b"a\n", 1), (b"\n", 0), (b"\r\n\n", 2), (b"a\r\r\n", None), (b"a\r", None)]
)
def test_bare_lf(data: bytes, at: int | None) -> None:
    match = grammar.BARE_LF.search(data)
    assert (match and match.start()) == at


def test_bare_lf_sees_the_cr_before_its_start() -> None:
    assert grammar.BARE_LF.search(b"a\r\nb", 2) is None


# ---- linear time

# What each would look at again if one of its quantifiers gave back: long runs before a byte that does not fit.
HOSTILE = {
    "TOKEN": [b"a", b"!"],
    "REQUEST_LINE": [b"A", b"A ", b"A /", b"A / HTTP/1."],
    "REQUEST_LINE_START": [b"A", b"A "],
    "VERSION": [b"HTTP/", b"1."],
    "FIELD_LINE": [b"a", b"a:", b"a: ", b" ", b"a:\t ", b":a"],
    "FIELD_VALUE": [b" ", b"a "],
    "REASON": [b" ", b"a "],
    "LENGTH": [b"1"],
    "DIGITS": [b"1"],
    "HOST": [b"a", b"%41", b"[", b"[:", b"[v1.", b"[va", b":", b":1", b"a.", b"%4"],
    "ABSOLUTE_FORM": [b"http://", b"http://a", b"http://a/", b"?", b"/"],
    "CHUNK_LINE": [b"1", b"1;", b"1;a=", b'1;a="', b"\t ", b";a", b";a=b", b' ;a="b"', b'\\"', b'"', b"; ", b"=a"],
    "BARE_LF": [b"\r", b"\r\n", b"a", b"\n\r"],
    "WEBSOCKET_KEY": [b"a", b"="],
    "EXTENSION_PARAM": [b"a", b"a=", b"=a", b'a="', b"\\a", b"\\", b" ", b'a ="\\a'],
}
STARTS = [b"", b"GET ", b"GET /", b"a:", b"[", b"[v1.", b"a:1", b"http://", b"1;a", b"1 ;a =", b'1;a="', b'1;a="\\']


def test_every_pattern_has_hostile_input() -> None:
    assert sorted(HOSTILE) == sorted(PATTERNS)


@pytest.mark.parametrize("name", PATTERNS)
def test_no_quantifier_gives_back(name: str) -> None:
    """Unbounded quantifiers are possessive, so each byte is looked at once per alternative."""
    text = PATTERNS[name].pattern.decode("latin-1")
    text = re.sub(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]", "x", text, flags=re.DOTALL)  # escapes and classes
    text = re.sub(r"\(\?(?::|<!)", "(", text)
    text = re.sub(r"\{[0-9]+(?:,[0-9]+)?\}|[*+?]\+", "", text)  # bounded or possessive
    assert not set("*+?{") & set(text)


def seconds(pattern: re.Pattern[bytes], data: bytes) -> float:
    """CPU time of this thread, the least of several: what else runs on the machine adds, it never takes away."""
    best = float("inf")
    for _ in range(5):
        start = time.thread_time()
        pattern.fullmatch(data)
        pattern.search(data)
        best = min(best, time.thread_time() - start)
    return best


@pytest.mark.parametrize("name", PATTERNS)
def test_time_is_linear(name: str) -> None:
    """Four times the input: linear takes 4 times as long, quadratic 16 times.

    Time, because nothing counts the steps inside `re`. The bound lies where neither noise nor a cache reaches it. The
    search anchors at the start, as the callers do; only BARE_LF is looked for everywhere.
    """
    pattern = PATTERNS[name]
    if name != "BARE_LF":
        pattern = re.compile(rb"\A(?:" + pattern.pattern + rb")")
    for unit in HOSTILE[name]:
        for start in STARTS:
            small, large = (start + unit * (size // len(unit)) + b"\0" for size in (16 * 1024, 64 * 1024))
            assert seconds(pattern, large) <= 10 * seconds(pattern, small) + 0.0005, (start, unit)
