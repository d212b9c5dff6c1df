"""HTTP/1.1 engine: the corpus fed in all ways, what a Request says, how answers are framed, properties of all input."""

from __future__ import annotations

import inspect
import random
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stdserve.errors import ProtocolError
from stdserve.protocol import h1
from stdserve.protocol.h1 import H1Engine, H1Limits, ResponseDefaults
from stdserve.protocol.message import END_OF_BODY, Request, ResponseHead
from tests import wire

CASES = wire.load("h1")
SOURCE = inspect.getsource(h1)
GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
CHUNKED = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"


# ---- the corpus


def check(case: wire.Case, dialogue: wire.Dialogue) -> None:
    assert dialogue.statuses == case.statuses
    assert dialogue.then == case.then
    assert case.understood(dialogue.requests)
    if case.rule:
        assert dialogue.error is not None and case.rule in dialogue.error.rule
    else:
        assert dialogue.error is None


@pytest.mark.parametrize("case", CASES, ids=str)
def test_case_whole(case: wire.Case) -> None:
    check(case, wire.talk(case.data, (), case.limits))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_case_byte_by_byte(case: wire.Case) -> None:
    check(case, wire.talk(case.data, range(len(case.data)), case.limits))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_case_in_random_pieces(case: wire.Case) -> None:
    chance = random.Random(case.name)
    for _ in range(8):
        cuts = [chance.randrange(len(case.data)) for _ in range(chance.randrange(1, 12))]
        check(case, wire.talk(case.data, cuts, case.limits))


@pytest.mark.parametrize("case", [case for case in CASES if case.then != "waiting"], ids=str)
@pytest.mark.parametrize("apart", [False, True], ids=["same-piece", "next-piece"])
def test_case_with_a_tail(case: wire.Case, apart: bool) -> None:
    """What follows is the next request where the connection stays open, and else is not touched."""
    alone = wire.talk(case.data, (), case.limits)
    dialogue = wire.talk(case.data + wire.TAIL, [len(case.data)] if apart else [], case.limits)
    if case.then == "open":
        assert dialogue.statuses == [*case.statuses, 200]
        assert dialogue.requests == [*alone.requests, ("GET", "/tail", "1.1", b"")]
        return
    assert (dialogue.statuses, dialogue.then, dialogue.requests) == (case.statuses, "close", alone.requests)
    if dialogue.error is None:
        assert dialogue.unread == alone.unread + len(wire.TAIL)


@pytest.mark.parametrize("case", [case for case in CASES if case.rule], ids=str)
def test_error_is_final_and_shows_nothing_of_the_peer(case: wire.Case) -> None:
    peer = wire.Peer(case.limits)
    error = peer.feed([case.data]).error
    assert error is not None and len(error.excerpt) <= 64
    peer.engine.receive_data(wire.TAIL)
    for _ in range(2):
        with pytest.raises(ProtocolError) as again:
            peer.engine.next_event()
        assert again.value is error
    assert not peer.engine.keep_alive
    assert error.rule in SOURCE or error.rule.endswith(" more than once (RFC 9112 6.3, RFC 9110 5.3)")


@pytest.mark.parametrize("case", [case for case in CASES if case.then == "waiting"], ids=str)
def test_end_of_input_within_a_request(case: wire.Case) -> None:
    peer = wire.Peer(case.limits)
    heads = len(peer.feed([case.data]).heads)
    dialogue = peer.end()
    if heads > len(dialogue.requests):  # a truncated body must not pass for a whole one
        assert dialogue.error is not None and dialogue.error.code == 400
    else:
        assert dialogue.error is None and dialogue.then == "waiting"


def test_end_of_input_after_a_request() -> None:
    peer = wire.Peer()
    peer.feed([GET])
    assert peer.end().error is None


def test_offset_and_excerpt_point_at_the_bad_line() -> None:
    data = b"GET / HTTP/1.1\r\nHost: a\r\nX-A: b\0c\r\n\r\n"
    error = wire.talk(data).error
    assert error is not None
    assert data[error.offset :].startswith(b"\0c") and error.excerpt == b"X-A: b\0c"


# ---- what a Request says


def request_of(data: bytes) -> Request:
    engine = H1Engine(H1Limits(), ResponseDefaults())
    engine.receive_data(data)
    request = engine.next_event()
    assert isinstance(request, Request)
    return request


def test_request_of_a_browser() -> None:
    request = request_of(
        b"GET /a%20b;c?d=e&f HTTP/1.1\r\nHost: example.org:8000\r\nUser-Agent:  Mozilla/5.0 \r\n"
        b"accept: */*\r\nCookie: a=b\r\nACCEPT: text/html\r\n\r\n"
    )
    assert request.method == b"GET"
    assert request.target == b"/a%20b;c?d=e&f"
    assert (request.path, request.query) == (b"/a%20b;c", b"d=e&f")
    assert request.version == b"1.1"
    assert request.headers == [
        (b"host", b"example.org:8000"),
        (b"user-agent", b"Mozilla/5.0"),
        (b"accept", b"*/*"),
        (b"cookie", b"a=b"),
        (b"accept", b"text/html"),
    ]
    assert request.fields[b"accept"] == b"text/html"
    assert request.authority == b"example.org:8000"
    assert request.content_length is None and not request.chunked
    assert request.keep_alive and not request.expect_continue
    assert request.body == b""
    assert "GET /a%20b;c?d=e&f HTTP/1.1" in repr(request)


@pytest.mark.parametrize(
    ("target", "path", "query"),
    [
        (b"/", b"/", b""),
        (b"/?", b"/", b""),
        (b"/a?b?c", b"/a", b"b?c"),
        (b"//a", b"//a", b""),
        (b"http://a", b"/", b""),
        (b"http://a?b", b"/", b"b"),
        (b"http://a/b?c", b"/b", b"c"),
        (b"HTTPS://A//b", b"//b", b""),
    ],
)
def test_path_and_query(target: bytes, path: bytes, query: bytes) -> None:
    request = request_of(b"GET %b HTTP/1.1\r\nHost: a\r\n\r\n" % target)
    assert (request.target, request.path, request.query) == (target, path, query)


def test_asterisk_is_kept() -> None:
    assert request_of(b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n").path == b"*"


def test_body_that_comes_along_is_in_the_request() -> None:
    request = request_of(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabcdef")
    assert (request.content_length, request.body) == (3, b"abc")


def test_length_of_zero_is_known() -> None:
    request = request_of(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n")
    assert (request.content_length, request.body) == (0, b"")


def test_body_that_follows_comes_in_events() -> None:
    engine = H1Engine(H1Limits(), ResponseDefaults())
    engine.receive_data(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nab")
    request = engine.next_event()
    assert isinstance(request, Request) and request.body is None
    assert engine.next_event() == b"ab"
    assert engine.next_event() is None
    engine.receive_data(b"cdeGET")
    assert [engine.next_event() for _ in range(3)] == [b"cde", END_OF_BODY, None]
    assert engine.take_buffer() == b"GET" and engine.take_buffer() == b""


def test_chunks_that_come_together_are_one_event() -> None:
    engine = H1Engine(H1Limits(), ResponseDefaults())
    engine.receive_data(CHUNKED + b"1\r\na\r\n2\r\nbc\r\n3\r\nd")
    request = engine.next_event()
    assert isinstance(request, Request) and request.chunked and request.body is None and request.content_length is None
    assert [engine.next_event() for _ in range(2)] == [b"abcd", None]
    engine.receive_data(b"ef\r\n0\r\n\r\n")
    assert [engine.next_event() for _ in range(3)] == [b"ef", END_OF_BODY, None]
    assert repr(END_OF_BODY) == "END_OF_BODY"


def test_chunk_data_before_an_error_is_delivered() -> None:
    engine = H1Engine(H1Limits(), ResponseDefaults())
    engine.receive_data(CHUNKED + b"3\r\nabc\r\nX\r\n")
    engine.next_event()
    assert engine.next_event() == b"abc"
    with pytest.raises(ProtocolError):
        engine.next_event()


def test_nothing_of_the_next_request_is_looked_at_before_its_turn() -> None:
    engine = H1Engine(H1Limits(), ResponseDefaults())
    engine.receive_data(GET + b"nonsense\0\r\n\r\n")
    assert isinstance(engine.next_event(), Request)
    assert [engine.next_event() for _ in range(3)] == [None, None, None]
    engine.start_next_request()
    with pytest.raises(ProtocolError):
        engine.next_event()


@pytest.mark.parametrize(
    ("line", "connection", "keep_alive"),
    [
        (b"1.1", b"", True),
        (b"1.1", b"Connection: close\r\n", False),
        (b"1.1", b"Connection: keep-alive\r\nConnection: CLOSE\r\n", False),
        (b"1.1", b"Connection: a,\tclose ,b\r\n", False),
        (b"1.1", b"Connection: closed\r\n", True),
        (b"1.0", b"", False),
        (b"1.0", b"Connection: Keep-Alive\r\n", True),
        (b"1.0", b"Connection: keep-alive\r\nConnection: close\r\n", False),
        (b"1.5", b"", True),
    ],
)
def test_keep_alive(line: bytes, connection: bytes, keep_alive: bool) -> None:
    assert request_of(b"GET / HTTP/%b\r\nHost: a\r\n%b\r\n" % (line, connection)).keep_alive is keep_alive


def test_expect_continue() -> None:
    fields = b"Host: a\r\nContent-Length: 3\r\nExpect: 100-Continue\r\n\r\n"
    assert request_of(b"POST / HTTP/1.1\r\n" + fields).expect_continue
    assert not request_of(b"POST / HTTP/1.0\r\n" + fields).expect_continue


def test_only_harmless_field_lines_are_remembered() -> None:
    request_of(
        b"GET / HTTP/1.1\r\nHost: remembered.example\r\nCookie: secret=1\r\nAuthorization: Basic c2VjcmV0\r\n"
        b"X-Token: secret\r\nReferer: http://a/secret\r\nUser-Agent: " + b"a" * 300 + b"\r\n\r\n"
    )
    kept = b"\n".join(h1._field_lines)
    assert b"remembered.example" in kept
    assert b"secret" not in kept and b"c2VjcmV0" not in kept and b"a" * 300 not in kept


def test_remembered_field_lines_are_bounded() -> None:
    for number in range(3000):
        request_of(b"GET / HTTP/1.1\r\nHost: h%d\r\n\r\n" % number)
        assert len(h1._field_lines) <= 1024


# ---- answers

DEFAULTS = ResponseDefaults(b"Server: stdserve\r\n", b"X-Extra: 1\r\n")
DEFAULTS.set_date(b"Date: today\r\n")
NO_DEFAULTS = ResponseDefaults()


class Answering:
    """An engine that has read one request, and what it answers."""

    def __init__(self, request: bytes = GET, defaults: ResponseDefaults = NO_DEFAULTS) -> None:
        self.engine = H1Engine(H1Limits(), defaults)
        self.engine.receive_data(request)
        try:
            while self.engine.next_event() is not None:
                pass
        except ProtocolError:
            pass
        self.method = request.split(b" ")[0].decode()

    def respond(self, head: ResponseHead, body: bytes = b"", end: bool = True, then: tuple[bytes, ...] = ()) -> bytes:
        self.engine.send_response(head, body, end)
        for number, data in enumerate(then, 1):
            self.engine.send_data(data, number == len(then))
        return b"".join(self.engine.data_to_send())

    def read(self, *args: Any, **kwargs: Any) -> wire.Answer:
        answer, rest = wire.read_answer(self.respond(*args, **kwargs), self.method, not self.engine.keep_alive)
        assert rest == b""
        return answer


HTTP10 = b"GET / HTTP/1.0\r\n\r\n"
HTTP10_KEEP_ALIVE = b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"
HEAD = b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n"
OK = ResponseHead(200, [])


def test_whole_body_gets_its_length_and_leaves_as_one_buffer() -> None:
    answering = Answering()
    answering.engine.send_response(ResponseHead(200, [(b"Content-Type", b"text/plain")]), b"hello", True)
    assert answering.engine.data_to_send() == [
        b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 5\r\n\r\nhello"
    ]
    assert answering.engine.data_to_send() == []
    assert not answering.engine.sends_chunked and not answering.engine.ends_by_closing


def test_empty_body_gets_length_zero() -> None:
    assert Answering().respond(OK) == b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"


def test_length_of_the_application_is_kept() -> None:
    head = ResponseHead(200, [("Content-Length", "6")])
    assert Answering().respond(head, b"abc", False, (b"de", b"", b"f")) == (
        b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nabcdef"
    )


def test_unknown_length_goes_in_chunks() -> None:
    answering = Answering()
    data = answering.respond(OK, b"abc", False, (b"", b"0123456789abcdef", b""))
    assert data == (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n10\r\n0123456789abcdef\r\n0\r\n\r\n"
    )
    assert answering.engine.sends_chunked and not answering.engine.ends_by_closing and answering.engine.keep_alive


def test_chunked_without_data() -> None:
    assert Answering().read(OK, b"", False, (b"",)).body == b""


def test_unknown_length_for_1_0_ends_with_the_connection() -> None:
    for request in (HTTP10, HTTP10_KEEP_ALIVE):
        answering = Answering(request)
        data = answering.respond(OK, b"abc", False, (b"def", b""))
        assert data == b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nabcdef"
        assert not answering.engine.keep_alive
        assert answering.engine.ends_by_closing and not answering.engine.sends_chunked


def test_known_length_does_not_end_with_the_connection() -> None:
    answering = Answering(HTTP10)
    assert answering.read(OK, b"abc").get(b"content-length") == b"3"
    assert not answering.engine.ends_by_closing


def test_keep_alive_of_1_0_is_told() -> None:
    answering = Answering(HTTP10_KEEP_ALIVE)
    assert answering.read(OK, b"abc").get(b"connection") == b"keep-alive"
    assert answering.engine.keep_alive


def test_close_of_the_client_is_told() -> None:
    answering = Answering(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
    assert answering.read(OK, b"abc").get(b"connection") == b"close"


def test_close_of_the_application_is_obeyed() -> None:
    answering = Answering()
    answer = answering.read(ResponseHead(200, [("Connection", "Close")]), b"abc")
    assert answer.all(b"connection") == [b"close"]
    assert not answering.engine.keep_alive


@pytest.mark.parametrize("name", ["Keep-Alive", "Proxy-Connection", "TE", "transfer-encoding", "Upgrade", "Connection"])
def test_hop_by_hop_field_of_the_application_is_dropped(name: str) -> None:
    answer = Answering().read(ResponseHead(200, [(name, "x"), ("X-A", "b")]), b"abc")
    assert answer.fields == [(b"X-A", b"b"), (b"Content-Length", b"3")]


def test_transfer_encoding_of_the_application_does_not_frame() -> None:
    answer = Answering().read(ResponseHead(200, [("Transfer-Encoding", "chunked"), ("Content-Length", "3")]), b"abc")
    assert answer.body == b"abc" and answer.get(b"transfer-encoding") is None


@pytest.mark.parametrize("length", [[], [("Content-Length", "5")]])
def test_answer_to_head_has_no_body(length: list[tuple[str, str]]) -> None:
    answering = Answering(HEAD)
    answer = answering.read(ResponseHead(200, length), b"hello", not length, () if not length else (b"more", b""))
    assert answer.get(b"content-length") == (b"5" if length else None)
    assert answering.engine.keep_alive and not answering.engine.sends_chunked and not answering.engine.ends_by_closing


def test_answer_of_unknown_length_to_head_of_1_0_stays_open() -> None:
    answering = Answering(b"HEAD / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
    assert answering.respond(OK, b"abc", False, (b"def",)).endswith(b"\r\nConnection: keep-alive\r\n\r\n")


def test_no_content_has_neither_length_nor_body() -> None:
    data = Answering().respond(ResponseHead(204, [("Content-Length", "3"), ("X-A", "b")]), b"abc", False, (b"d",))
    assert data == b"HTTP/1.1 204 No Content\r\nX-A: b\r\n\r\n"


def test_not_modified_keeps_its_length_without_body() -> None:
    data = Answering().respond(ResponseHead(304, [("Content-Length", "3")]), b"abc")
    assert data == b"HTTP/1.1 304 Not Modified\r\nContent-Length: 3\r\n\r\n"


def test_not_modified_gets_no_length() -> None:
    assert Answering().respond(ResponseHead(304, []), b"", False, (b"",)) == b"HTTP/1.1 304 Not Modified\r\n\r\n"


@pytest.mark.parametrize(
    ("status", "reason", "line"),
    [
        (200, None, b"HTTP/1.1 200 OK"),
        (404, None, b"HTTP/1.1 404 Not Found"),
        (200, b"Fine \xe9", b"HTTP/1.1 200 Fine \xe9"),
        (200, b"", b"HTTP/1.1 200 "),
        (299, None, b"HTTP/1.1 299 "),
        (999, b"Odd", b"HTTP/1.1 999 Odd"),
    ],
)
def test_status_line(status: int, reason: bytes | None, line: bytes) -> None:
    assert Answering().respond(ResponseHead(status, [], reason)).split(b"\r\n")[0] == line


def test_default_fields_stand_behind_those_of_the_application() -> None:
    data = Answering(defaults=DEFAULTS).respond(ResponseHead(200, [("X-A", "b")]))
    assert data == (
        b"HTTP/1.1 200 OK\r\nX-A: b\r\nContent-Length: 0\r\nDate: today\r\nServer: stdserve\r\nX-Extra: 1\r\n\r\n"
    )


@pytest.mark.parametrize(
    ("name", "left"),
    [
        ("dATE", [b"Server: stdserve", b"X-Extra: 1"]),
        ("server", [b"Date: today", b"X-Extra: 1"]),
    ],
)
def test_own_date_or_server_replaces_the_default(name: str, left: list[bytes]) -> None:
    data = Answering(defaults=DEFAULTS).respond(ResponseHead(200, [(name, "own")]))
    assert data.split(b"\r\n")[1:-2] == [name.encode() + b": own", b"Content-Length: 0", *left]


def test_trailers_end_a_chunked_body() -> None:
    answering = Answering()
    answering.engine.send_response(OK, b"abc", False)
    answering.engine.send_trailers([b"X-Sum: 1\r\n", b"X-B: 2\r\n"])
    answer, rest = wire.read_answer(b"".join(answering.engine.data_to_send()))
    assert (answer.body, answer.trailers, rest) == (b"abc", [(b"X-Sum", b"1"), (b"X-B", b"2")], b"")


@pytest.mark.parametrize(("request_bytes", "head"), [(HEAD, OK), (HTTP10, OK), (GET, ResponseHead(204, []))])
def test_trailers_are_not_sent_without_chunks(request_bytes: bytes, head: ResponseHead) -> None:
    answering = Answering(request_bytes)
    answering.engine.send_response(head, b"", False)
    answering.engine.send_trailers([b"X-Sum: 1\r\n"])
    assert b"X-Sum" not in b"".join(answering.engine.data_to_send())


def test_informational_comes_before_the_answer() -> None:
    answering = Answering()
    answering.engine.send_informational(100, [])
    answering.engine.send_informational(103, [b"Link: </a>\r\n"])
    data = answering.respond(OK)
    assert data.startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 200 ")


def test_informational_is_not_for_1_0() -> None:
    answering = Answering(HTTP10)
    answering.engine.send_informational(103, [b"Link: </a>\r\n"])
    assert answering.engine.data_to_send() == []


@pytest.mark.parametrize("length", [[], [("Content-Length", "100000")]])
def test_large_body_is_not_copied(length: list[tuple[str, str]]) -> None:
    body = bytes(100_000)
    answering = Answering()
    answering.engine.send_response(ResponseHead(200, length), body, True)
    head, sent = answering.engine.data_to_send()
    assert head.endswith(b"\r\nContent-Length: 100000\r\n\r\n") and sent is body


def test_large_chunk_is_not_copied() -> None:
    body = bytes(100_000)
    answering = Answering()
    answering.engine.send_response(OK, b"", False)
    answering.engine.send_data(body, True)
    buffers = answering.engine.data_to_send()
    assert any(each is body for each in buffers)
    assert wire.read_answer(b"".join(buffers))[0].chunks == [body]


def test_answer_to_a_bad_request_closes() -> None:
    answering = Answering(b"nonsense\r\n\r\n")
    answer = answering.read(ResponseHead(400, []), b"bad")
    assert (answer.status, answer.body, answer.get(b"connection")) == (400, b"bad", b"close")


@pytest.mark.parametrize("before", [HEAD, HTTP10_KEEP_ALIVE])
def test_answer_to_a_bad_request_does_not_take_after_the_request_before(before: bytes) -> None:
    answering = Answering(before + b"nonsense\r\n\r\n")
    answering.respond(OK)
    answering.engine.start_next_request()
    with pytest.raises(ProtocolError):
        answering.engine.next_event()
    answering.method = "GET"
    answer = answering.read(ResponseHead(400, []), b"bad")
    assert (answer.body, answer.get(b"connection")) == (b"bad", b"close")


def test_answer_to_a_bad_body_of_head_has_no_body() -> None:
    answering = Answering(CHUNKED.replace(b"POST", b"HEAD") + b"X\r\n")
    assert answering.read(ResponseHead(400, []), b"bad").body == b""


# ---- properties of all input

TCHARS = "!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
VALUE_BYTES = bytes([9, *range(0x20, 0x7F), *range(0x80, 0x100)])
OWN_MEANING = {
    "host", "content-length", "transfer-encoding", "connection", "expect", "authorization", "content-encoding",
    "content-range", "content-type", "keep-alive", "max-forwards", "proxy-authorization", "te", "trailer", "upgrade",
}  # fmt: skip

tokens = st.text(TCHARS, min_size=1, max_size=8)
names = tokens.filter(lambda name: name.lower() not in OWN_MEANING)
values = st.lists(st.sampled_from(VALUE_BYTES), max_size=12).map(lambda each: bytes(each).strip(b" \t"))
fields = st.lists(st.tuples(names.map(str.encode), values), max_size=5)
blanks = st.sampled_from([b"", b" ", b"\t", b" \t "])
extensions = st.sampled_from([b"", b";a", b";a=b", b' ; a = "b\\"c" ;d'])


@st.composite
def chunked_bodies(draw: st.DrawFn) -> tuple[bytes, bytes]:
    pieces = draw(st.lists(st.binary(min_size=1, max_size=20), max_size=4))
    wire_bytes = [
        b"%0*x%b\r\n%b\r\n" % (draw(st.integers(1, 4)), len(piece), draw(extensions), piece) for piece in pieces
    ]
    trailers = b"".join(b"%b: %b\r\n" % pair for pair in draw(fields))
    return b"".join([*wire_bytes, b"0", draw(extensions), b"\r\n", trailers, b"\r\n"]), b"".join(pieces)


@st.composite
def good_requests(draw: st.DrawFn) -> tuple[bytes, tuple[str, str, str, bytes], list[tuple[bytes, bytes]]]:
    """A request as bytes, what it says, and its fields without those for framing."""
    method = draw(st.sampled_from(["GET", "HEAD", "POST", "PUT", "M-SEARCH", "!"]))
    target = "/" + draw(st.text("abc/%2F?&=.;~", max_size=12))
    extra = draw(fields)
    lines = [name + b":" + draw(blanks) + value + draw(blanks) for name, value in extra]
    framing = draw(st.sampled_from(["none", "length", "chunked"]))
    data = body = b""
    if framing == "length":
        data = body = draw(st.binary(max_size=40))
        lines.append(b"Content-Length: %d" % len(body))
    elif framing == "chunked":
        data, body = draw(chunked_bodies())
        lines.append(b"transfer-encoding:chunked")
    lines.insert(draw(st.integers(0, len(lines))), b"Host: a")
    empty = b"\r\n" * draw(st.integers(0, 2))
    head = b"\r\n".join([f"{method} {target} HTTP/1.1".encode(), *lines, b"", b""])
    return empty + head + data, (method, target, "1.1", body), [(name.lower(), value) for name, value in extra]


MUTATIONS = [
    b"", b"\r", b"\n", b"\r\n", b"\r\n\r\n", b"\0", b" ", b"\t", b":", b";", b",", b"0", b"+", b"-", b"0x", b"_",
    b"\xff", b"\xa0", b"\x0b", b"\x16", b"Content-Length: 3\r\n", b"Transfer-Encoding: chunked\r\n", b"Host: b\r\n",
    b"Expect: 100-continue\r\n", b"Connection: close\r\n", b"HTTP/1.0", b"HTTP/2.0", b"0\r\n\r\n", b"a" * 40,
]  # fmt: skip


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    data = b"".join(draw(st.lists(good_requests().map(lambda request: request[0]), min_size=1, max_size=3)))
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(data)))
        data = data[:at] + draw(st.sampled_from(MUTATIONS)) + data[at + draw(st.integers(0, 3)) :]
    return data


SMALL_LIMITS = {
    "request_line": 40, "head": 120, "fields": 8, "field": 50, "body": 60, "chunk_extensions": 12, "trailers": 40,
}  # fmt: skip

reproducible = settings(derandomize=True, database=None, deadline=None)


@given(st.lists(good_requests(), min_size=1, max_size=3), st.data())
@reproducible
def test_good_requests_are_understood_however_they_are_cut(requests: list[Any], data: st.DataObject) -> None:
    whole = b"".join(each[0] for each in requests)
    cuts = data.draw(st.lists(st.integers(0, len(whole)), max_size=8))
    dialogue = wire.talk(whole, cuts)
    assert dialogue.error is None and dialogue.then == "open"
    assert dialogue.requests == [each[1] for each in requests]
    framing = (b"host", b"content-length", b"transfer-encoding")
    for head, (_, _, extra) in zip(dialogue.heads, requests, strict=True):
        assert [pair for pair in head.headers if pair[0] not in framing] == extra


@given(mutated(), st.data(), st.sampled_from([{}, SMALL_LIMITS]))
@settings(reproducible, max_examples=400)
def test_cuts_change_nothing(whole: bytes, data: st.DataObject, limits: dict[str, int]) -> None:
    cuts = data.draw(st.lists(st.integers(0, len(whole)), max_size=8))
    h1._field_lines.clear()  # so that the second time, and only then, known lines are met
    expected = wire.talk(whole, (), limits)
    assert wire.talk(whole, cuts, limits).same_events(expected)
    assert wire.talk(whole, range(len(whole)), limits).same_events(expected)


@given(st.lists(st.binary(max_size=30), max_size=5))
@reproducible
def test_garbage_gives_requests_or_a_protocol_error(pieces: list[bytes]) -> None:
    peer = wire.Peer()
    peer.feed(filter(None, pieces))
    peer.end()


@st.composite
def heads(draw: st.DrawFn) -> tuple[ResponseHead, list[tuple[bytes, bytes]], int | None]:
    pairs = draw(st.lists(st.tuples(names.map(str.encode), values), max_size=5))
    pairs = [pair for pair in pairs if pair[0].lower() not in (b"date", b"server", b"proxy-connection")]
    status = draw(st.sampled_from([200, 204, 304, 404, 599]))
    length = draw(st.none() | st.integers(0, 50))
    given_pairs = pairs if length is None else [*pairs, (b"Content-Length", b"%d" % length)]
    return ResponseHead(status, given_pairs), pairs, length


@given(heads(), st.sampled_from([GET, HEAD, HTTP10, HTTP10_KEEP_ALIVE]), st.lists(st.binary(max_size=30), max_size=4))
@reproducible
def test_what_is_sent_can_be_read(made: Any, request_bytes: bytes, pieces: list[bytes]) -> None:
    head, pairs, length = made
    body = b"".join(pieces)
    if length is not None:  # the exchange sees to it that the application keeps to its word
        body = (body + bytes(length))[:length]
        pieces = [body[:3], body[3:]]
    first, *then = pieces or [b""]
    answering = Answering(request_bytes, DEFAULTS)
    answer = answering.read(head, first, not then, tuple(then))
    assert answer.status == head.status
    assert answer.body == (b"" if answering.method == "HEAD" or head.status in (204, 304) else body)
    added = (b"content-length", b"transfer-encoding", b"connection", b"date", b"server", b"x-extra")
    assert [pair for pair in answer.fields if pair[0].lower() not in added] == [
        pair for pair in pairs if pair[0].lower() not in added
    ]
    assert answer.get(b"date") == b"today"
    http11 = request_bytes in (GET, HEAD)
    wanted = None if http11 else b"keep-alive" if answering.engine.keep_alive else b"close"
    assert answer.get(b"connection") == wanted


# ---- linear time: bytes looked at and calls made, not seconds


class Work:
    bytes = 0
    calls = 0


class CountedBuffer(bytearray):
    def find(self, sub: Any, start: Any = 0, end: Any = None) -> int:
        found = super().find(sub, start)
        Work.bytes += (found if found >= 0 else len(self)) - int(start)
        return found

    def __getitem__(self, at: Any) -> Any:
        got = super().__getitem__(at)
        Work.bytes += len(got) if isinstance(got, bytearray) else 1
        return got


class CountedPattern:
    def __init__(self, pattern: Any) -> None:
        self.pattern = pattern

    def __getattr__(self, verb: str) -> Any:
        def run(data: Any, start: int = 0, end: int = sys.maxsize) -> Any:
            match = getattr(self.pattern, verb)(data, start, end)
            Work.bytes += (min(end, len(data)) if match is None else match.end()) - start
            return match

        return run


class CountedEngine(H1Engine):
    __slots__ = ()

    def receive_data(self, data: bytes) -> None:
        if type(self.buffer) is not CountedBuffer:
            self.buffer = CountedBuffer(self.buffer)
            Work.bytes += len(self.buffer)
        self.buffer += data


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("BARE_LF", "CHUNK_LINE", "FIELD_LINE", "REQUEST_LINE", "REQUEST_LINE_START"):
        monkeypatch.setattr(h1, name, CountedPattern(getattr(h1, name)))
    yield
    h1._field_lines.clear()


WIDE = dict.fromkeys(("request_line", "head", "fields", "field", "chunk_extensions", "trailers"), 1 << 20)
START = b"GET / HTTP/1.1\r\nHost: a\r\n"
HOSTILE = {
    "method": (b"", b"A", b""),
    "target": (b"GET /", b"a", b""),
    "empty-lines-and-line": (b"\r\n\r\n\r\n\r\nGET /", b"a", b""),
    "field-name": (START, b"a", b"\r\n\r\n"),
    "field-value": (START + b"X:", b"a", b"\r\n\r\n"),
    "blanks": (START + b"X:", b" \t", b"\0\r\n\r\n"),
    "carriage-returns": (START + b"X:", b"\r", b"\r\n\r\n"),
    "line-ends-that-are-none": (START + b"X:", b"\r\n\ra", b"\r\n\r\n"),
    "short-fields": (START, b"X-A: 1\r\n", b"\r\n"),
    "different-fields": (START, None, b"\r\n"),
    "te-list": (START + b"Transfer-Encoding:", b"a,", b"\r\n\r\n"),
    "connection-list": (START + b"Connection:", b"a,", b"\r\n\r\n"),
    "host-escapes": (b"GET / HTTP/1.1\r\nHost:", b"%41", b"%\r\n\r\n"),
    "length-body": (START + b"Content-Length: 1000000\r\n\r\n", b"a", b""),
    "small-chunks": (CHUNKED, b"1\r\na\r\n", b"0\r\n\r\n"),
    "chunk-zeros": (CHUNKED, b"0", b"\r\n"),
    "chunk-extension": (CHUNKED + b"1;", b"a", b"\r\n"),
    "chunk-extensions": (CHUNKED + b"1", b" ;a= b", b"\0\r\n"),
    "chunk-quotes": (CHUNKED + b'1;a="', b'\\"', b"\r\n"),
    "chunk-carriage-returns": (CHUNKED + b"1;a=", b"\r", b"\r\n"),
    "trailer": (CHUNKED + b"0\r\nX:", b"a", b"\r\n\r\n"),
    "trailers": (CHUNKED + b"0\r\n", b"X-A: 1\r\n", b"\r\n"),
    "requests": (b"", START + b"\r\n", b""),
}


def work_for(hostile: tuple[bytes, bytes | None, bytes], size: int) -> tuple[int, int]:
    start, unit, end = hostile
    if unit is None:
        middle = b"".join(b"X-%06d: 1\r\n" % number for number in range(size // 13))
    else:
        middle = unit * (size // len(unit))
    data = start + middle + end
    peer = wire.Peer(WIDE, CountedEngine)
    Work.bytes = Work.calls = 0

    def count(frame: Any, event: str, argument: Any) -> None:
        Work.calls += 1

    h1._field_lines.clear()
    sys.setprofile(count)
    try:
        peer.feed(wire.split(data, range(0, len(data), 11)))
    finally:
        sys.setprofile(None)
    return Work.bytes, Work.calls


@pytest.mark.parametrize("hostile", HOSTILE)
def test_work_is_linear(hostile: str, counted: None) -> None:
    bytes_32, calls_32 = work_for(HOSTILE[hostile], 32 * 1024)
    bytes_64, calls_64 = work_for(HOSTILE[hostile], 64 * 1024)
    assert bytes_64 <= 2.2 * bytes_32 and calls_64 <= 2.2 * calls_32
    assert bytes_64 <= 12 * 64 * 1024
