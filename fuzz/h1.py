"""Fuzz the HTTP/1.1 engine: any garbage gives requests or a ProtocolError, the same however it is cut.

    python fuzz/h1.py --seconds 60 --seed 1

What must hold for every input:
1. No exception but those in ALLOWED leaves the engine, also at the end of input.
2. Whole, byte by byte and in random pieces it gives the same requests, the same bodies, and all or none of them fail.
3. Nothing that would split a line, an environ or a log is left in what a request says.
4. A request written again from what was understood is understood as the same request.
5. Each answer can be read by a reader that shares no code with the engine.
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
from stdserve.protocol import grammar, h1, message
from tests import wire

ALLOWED = {
    ProtocolError: "the peer broke a rule: the engine's one way to say so, with the status of the answer",
}
STATUSES = {0, 400, 413, 414, 417, 431, 501, 505}  # 0: no answer (TLS)

# Half of the inputs meet limits up to these, so that both sides of each are within reach of a short input.
SMALL = {
    "request_line": 60, "head": 300, "fields": 8, "field": 80, "body": 100, "chunk_extensions": 16, "trailers": 60,
}  # fmt: skip

TOKENS = [
    b"\r\n", b"\r\n\r\n", b"\r", b"\n", b"\n\n", b"\r\n ", b"\r\n\t", b"\0", b" ", b"  ", b"\t", b":", b": ", b" :",
    b";", b",", b'"', b"\\", b"/", b"//", b"?", b"#", b"%", b"%00", b"*", b"[", b"]", b"@", b"+", b"-", b"_", b"=",
    b".", b"0", b"1", b"3", b"9", b"a", b"0x", b"ff", b"ffffffffffffffff", b"9" * 19, b"9" * 20, b"00000000000000000",
    b"\x0b", b"\x0c", b"\x1b", b"\x7f", b"\x80", b"\x85", b"\xa0", b"\xff", b"\xc3\xa9", b"\x16\x03\x01", b"GET ",
    b"HEAD ", b"POST ", b"OPTIONS ", b"CONNECT ", b"PRI * ", b"get ", b"http://a/", b"https://a", b"a:80",
    b" HTTP/1.1\r\n", b" HTTP/1.0\r\n", b" HTTP/1.2\r\n", b" HTTP/2.0\r\n", b" HTTP/1.1", b"HTTP/", b"Host: a\r\n",
    b"Host: b\r\n", b"Host:\r\n", b"host", b"Host: [::1]:80\r\n", b"Content-Length: 0\r\n", b"Content-Length: 3\r\n",
    b"Content-Length: 30\r\n", b"Content-Length", b"Content_Length: 3\r\n", b"Transfer-Encoding: chunked\r\n",
    b"Transfer-Encoding", b"chunked", b"gzip, ", b"identity", b", chunked", b"Connection: close\r\n",
    b"Connection: keep-alive\r\n", b"Connection", b"keep-alive", b"close", b"Expect: 100-continue\r\n", b"Expect",
    b"100-continue", b"Upgrade: websocket\r\n", b"Trailer: X\r\n", b"TE: trailers\r\n", b"X-A: b\r\n", b"X_A: b\r\n",
    b"3\r\nabc\r\n", b"0\r\n\r\n", b"0\r\n", b";a=b", b';a="b"', b"; a", b"0\r\nX-A: b\r\n\r\n", b"abc", b"a" * 50,
    b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", b"PROXY TCP4 1.1.1.1 1.1.1.1 1 1\r\n",
]  # fmt: skip


def run(data: bytes) -> Hashable:
    checksum = zlib.crc32(data)
    chance = random.Random(checksum)
    limits = {name: chance.randint(1, most) for name, most in SMALL.items()} if checksum & 1 else {}
    h1._field_lines.clear()  # the first time unknown lines are met, the other times known ones
    whole = _talk(data, [], limits)
    for cuts in ways_to_cut(data, chance):
        other = _talk(data, cuts, limits)
        assert whole.same_events(other), f"cut at {cuts}:\n{whole}\n{other}"
    for head in whole.heads:
        _check_head(head)
    for head, request in zip(whole.heads, whole.requests, strict=False):
        _check_written_again(head, request[3])
    return _outcome(whole)


def _talk(data: bytes, cuts: Sequence[int], limits: dict[str, int]) -> wire.Dialogue:
    peer = wire.Peer(limits)
    try:
        peer.feed(wire.split(data, cuts))
        peer.end()
    except tuple(ALLOWED) as error:
        raise AssertionError("an error left the engine where none was expected") from error
    if peer.dialogue.error is not None:
        assert peer.dialogue.error.code in STATUSES
    _check_answers(peer)
    return peer.dialogue


def _check_answers(peer: wire.Peer) -> None:
    sent = b"".join(peer.engine.data_to_send())
    for method, *_ in peer.dialogue.requests:
        answer, sent = wire.read_answer(sent, method)
        assert answer.body == (b"" if method == "HEAD" else b"ok")
    assert not sent


def _check_head(head: message.Request) -> None:
    said = [head.method, head.target, head.path, *(part for pair in head.headers for part in pair)]
    assert not any(byte in part for part in said for byte in (b"\r", b"\n", b"\0"))
    assert all(name == name.lower() and name for name, _ in head.headers)
    assert head.version in (b"1.0", b"1.1")
    assert head.content_length is None or not head.chunked
    assert not (head.version == b"1.1" and b"host" not in head.fields)
    assert dict(head.headers).keys() == head.fields.keys()
    names = [name for name, _ in head.headers]
    assert all(names.count(name) <= 1 for name in (b"host", b"content-length", b"transfer-encoding", b"expect"))
    assert head.path[:1] == b"/" or (head.method, head.path) == (b"OPTIONS", b"*")


def _check_written_again(head: message.Request, body: bytes) -> None:
    lines = [b"%b %b HTTP/%b" % (head.method, head.target, head.version)]
    lines += [b"%b: %b" % pair for pair in head.headers]
    data = b"\r\n".join([*lines, b"", b""])
    if head.chunked:
        data += (b"%x\r\n%b\r\n" % (len(body), body) if body else b"") + b"0\r\n\r\n"
    else:
        assert len(body) == (head.content_length or 0)
        data += body
    again = wire.talk(data, (), {"fields": 1 << 20, "head": 1 << 20})
    assert again.error is None and len(again.heads) == 1 and again.then != "waiting"
    assert again.heads[0].headers == head.headers and again.requests[0][3] == body


def _outcome(dialogue: wire.Dialogue) -> Hashable:
    """Coarse enough that a corpus of outcomes stays small."""
    kinds = [
        (head.method in (b"GET", b"HEAD"), head.version, head.chunked, bool(head.content_length), head.keep_alive)
        for head in dialogue.heads[:2]
    ]
    return tuple(kinds), min(len(dialogue.requests), 3), dialogue.then, dialogue.error and dialogue.error.rule


def _write(data: bytes, trace: str) -> str:
    return wire.dump(trace, data, expectation="< none open")


TARGET = Target(
    "h1",
    run,
    [case.data for case in [*wire.load("../../fuzz/corpus/h1"), *wire.load("h1")] if len(case.data) < 2000],
    TOKENS,
    [h1, grammar, message],
    _write,
)

if __name__ == "__main__":
    sys.exit(main(TARGET))
