"""WebSocket engine: the cases fed in all ways, the opening handshake, what is sent, properties of all input."""

from __future__ import annotations

import inspect
import random
import sys
import time
import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stdserve.errors import AppError, ClientDisconnected, ProtocolError
from stdserve.protocol import deflate, websocket
from stdserve.protocol.h1 import H1Engine, H1Limits, ResponseDefaults
from stdserve.protocol.message import Request, ResponseHead
from stdserve.protocol.websocket import (
    Close,
    Event,
    Ping,
    Pong,
    WebSocketEngine,
    WebSocketLimits,
    is_websocket,
    read_handshake,
    unmask,
)
from tests import wire
from tests.frames import (
    BINARY,
    CONTINUATION,
    PING,
    TEXT,
    Deflater,
    Dialogue,
    Frame,
    Inflater,
    Peer,
    close,
    fragments,
    frame,
    make_deflate,
    read_frames,
    talk,
)
from tests.protocol.websocket_cases import ANY, CASES, HELLO, Case

SOURCE = inspect.getsource(websocket) + inspect.getsource(deflate)
FINISHED = [case for case in CASES if case.end != "open"]


# ---- the cases


def check(case: Case, dialogue: Dialogue) -> None:
    assert [(type(event), event) for event in dialogue.events] == [(type(event), event) for event in case.events]
    assert dialogue.end == case.end


def test_there_are_enough_cases() -> None:
    assert len(CASES) > 500


@pytest.mark.parametrize("case", CASES, ids=str)
def test_case_whole(case: Case) -> None:
    check(case, talk(case.data, (), case.limits, case.offer))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_case_byte_by_byte(case: Case) -> None:
    """And errors are known as soon as they can be."""
    dialogue = talk(case.data, range(len(case.data)), case.limits, case.offer)
    check(case, dialogue)
    if case.error_at is not None:
        assert dialogue.error_at == case.error_at


@pytest.mark.parametrize("case", CASES, ids=str)
def test_case_in_random_pieces(case: Case) -> None:
    chance = random.Random(case.name)
    for _ in range(4):
        cuts = [chance.randrange(len(case.data) + 1) for _ in range(chance.randrange(1, 12))]
        check(case, talk(case.data, cuts, case.limits, case.offer))


@pytest.mark.parametrize("case", FINISHED, ids=str)
@pytest.mark.parametrize("apart", [False, True], ids=["same-piece", "next-piece"])
def test_nothing_is_read_after_the_end(case: Case, apart: bool) -> None:
    cuts = [len(case.data)] if apart else []
    dialogue = talk(case.data + HELLO + close(1000), cuts, case.limits, case.offer)
    if isinstance(case.end, str) or case.error_at is not None:  # else the tail may be read as the rest of a payload
        check(case, dialogue)
        assert dialogue.unread == 0


@pytest.mark.parametrize("case", [case for case in CASES if isinstance(case.end, int)], ids=str)
def test_error_is_final_and_can_be_answered(case: Case) -> None:
    peer = Peer(case.limits, make_deflate(case.offer))
    error = peer.feed([case.data]).error
    assert error is not None and error.rule in SOURCE
    for _ in range(2):
        peer.engine.receive_data(HELLO)
        with pytest.raises(ProtocolError) as again:
            peer.engine.next_event()
        assert again.value is error and not peer.engine.buffer
    peer.engine.send_close(error.code, error.rule)
    (answer,) = read_frames(b"".join(peer.engine.data_to_send()))
    assert answer == Frame(0x88, error.code.to_bytes(2, "big") + error.rule.encode()[:123])


@pytest.mark.parametrize("case", CASES, ids=str)
def test_end_of_input(case: Case) -> None:
    peer = Peer(case.limits, make_deflate(case.offer))
    peer.feed([case.data])
    peer.engine.receive_eof()
    peer.take_events()
    events = [*case.events, Close(1006, "")] if case.end == "open" else case.events
    assert peer.dialogue.events == events
    if case.end == "open":
        peer.engine.receive_data(HELLO)
        peer.take_events()
        assert peer.dialogue.events == events


def test_events_that_wait_are_told_before_the_end_of_input() -> None:
    engine = WebSocketEngine(WebSocketLimits())
    engine.receive_data(HELLO + frame(PING, b"a") + HELLO[:3])
    engine.receive_eof()
    assert [engine.next_event() for _ in range(5)] == ["hello", Ping(b"a"), Close(1006, ""), None, None]


def test_events_say_what_they_are() -> None:
    assert repr([Ping(b"a"), Pong(b""), Close(1000, "x")]) == (
        "[Ping(data=b'a'), Pong(data=b''), Close(code=1000, reason='x')]"
    )
    assert Ping(b"a") != Pong(b"a")


def test_rules_fit_into_a_close_frame() -> None:
    for case in CASES:
        error = talk(case.data, (), case.limits, case.offer).error
        assert error is None or len(error.rule.encode()) <= 123


# ---- the opening handshake

KEY = b"dGhlIHNhbXBsZSBub25jZQ=="  # of RFC 6455 1.3
FIELDS = {
    "Host": "a",
    "Upgrade": "websocket",
    "Connection": "Upgrade",
    "Sec-WebSocket-Key": KEY.decode(),
    "Sec-WebSocket-Version": "13",
}


def request_of(line: str = "GET /chat HTTP/1.1", *more: str, **changes: str | None) -> Request:
    """A good handshake with other fields: `Sec_WebSocket_Key="x"`, None to leave it out; `more` are whole lines."""
    fields = FIELDS | {name.replace("_", "-"): value for name, value in changes.items()}
    lines = [line, *(f"{name}: {value}" for name, value in fields.items() if value is not None), *more]
    engine = H1Engine(H1Limits(), ResponseDefaults())
    engine.receive_data("\r\n".join([*lines, "", ""]).encode("latin-1"))
    request = engine.next_event()
    assert isinstance(request, Request)
    return request


def test_example_of_the_rfc() -> None:
    request = request_of(Sec_WebSocket_Protocol="chat, superchat", Origin="http://example.com")
    handshake = read_handshake(request)
    assert handshake.subprotocols == [b"chat", b"superchat"] and handshake.deflate is None
    assert handshake.accept(b"chat") == (
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\nSec-WebSocket-Protocol: chat\r\n\r\n"
    )


GOOD: list[dict[str, Any]] = [
    {},
    {"Upgrade": "WebSocket"},
    {"Upgrade": "h2c, websocket"},
    {"Upgrade": ",websocket ,"},
    {"Connection": "keep-alive, Upgrade"},
    {"Connection": "UPGRADE"},
    {"Connection": "keep-alive\r\nConnection: upgrade"},
    {"Upgrade": "h2c\r\nUpgrade: websocket"},
    {"Content_Length": "0"},
    {"Sec_WebSocket_Key": "AAAAAAAAAAAAAAAAAAAAAA=="},
    {"Sec_WebSocket_Key": "+/+/+/+/+/+/+/+/+/+/+w=="},
    {"Sec_WebSocket_Protocol": ""},
    {"Sec_WebSocket_Protocol": ", ,"},
    {"Sec_WebSocket_Extensions": ""},
    {"Sec_WebSocket_Extensions": "x-unknown; a=b"},
    {"Sec_WebSocket_Extensions": "permessage-deflate; nonsense"},
]


@pytest.mark.parametrize("changes", GOOD, ids=str)
def test_good_handshake(changes: dict[str, Any]) -> None:
    request = request_of(**changes)
    assert is_websocket(request)
    assert read_handshake(request).accept().startswith(b"HTTP/1.1 101 Switching Protocols\r\n")


BAD: list[tuple[int, str, dict[str, Any]]] = [
    (400, "method", {"line": "POST / HTTP/1.1"}),
    (400, "method", {"line": "HEAD / HTTP/1.1"}),
    (400, "version", {"line": "GET / HTTP/1.0"}),
    (400, "Upgrade", {"Upgrade": None}),
    (400, "Upgrade", {"Upgrade": "websockets"}),
    (400, "Upgrade", {"Upgrade": "h2c"}),
    (400, "Upgrade", {"Upgrade": "websocket/13"}),
    (400, "Connection", {"Connection": None}),
    (400, "Connection", {"Connection": "keep-alive"}),
    (400, "Connection", {"Connection": "upgraded"}),
    (400, "body", {"Content_Length": "1"}),
    (400, "body", {"Transfer_Encoding": "chunked"}),
    (426, "Version", {"Sec_WebSocket_Version": None}),
    (426, "Version", {"Sec_WebSocket_Version": ""}),
    (426, "Version", {"Sec_WebSocket_Version": "8"}),
    (426, "Version", {"Sec_WebSocket_Version": "14"}),
    (426, "Version", {"Sec_WebSocket_Version": "013"}),
    (426, "Version", {"Sec_WebSocket_Version": "13, 8"}),
    (426, "Version", {"Sec_WebSocket_Version": "13\r\nSec-WebSocket-Version: 13"}),
    (400, "Key", {"Sec_WebSocket_Key": None}),
    (400, "Key", {"Sec_WebSocket_Key": ""}),
    (400, "Key", {"Sec_WebSocket_Key": "dGhlIHNhbXBsZSBub25jZQ"}),
    (400, "Key", {"Sec_WebSocket_Key": "dGhlIHNhbXBsZSBub25jZQ="}),
    (400, "Key", {"Sec_WebSocket_Key": "dGhlIHNhbXBsZSBub25jZ==="}),
    (400, "Key", {"Sec_WebSocket_Key": "dGhlIHNhbXBsZSBub25jZQAA"}),
    (400, "Key", {"Sec_WebSocket_Key": "SGVsbG8sIHdvcmxkIQ=="}),
    (400, "Key", {"Sec_WebSocket_Key": "dGhlIHNhbXBsZSBub25jZVFFQQ=="}),
    (400, "Key", {"Sec_WebSocket_Key": "dGhl-HNhbXBs_SBub25jZQ=="}),
    (400, "Key", {"Sec_WebSocket_Key": "dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="}),
    (400, "Protocol", {"Sec_WebSocket_Protocol": "a b"}),
    (400, "Protocol", {"Sec_WebSocket_Protocol": "a, b/c"}),
    (400, "Protocol", {"Sec_WebSocket_Protocol": "a;q=1"}),
    (400, "Extensions", {"Sec_WebSocket_Extensions": "a;"}),
    (400, "Extensions", {"Sec_WebSocket_Extensions": "; a"}),
    (400, "Extensions", {"Sec_WebSocket_Extensions": "a b"}),
    (400, "Extensions", {"Sec_WebSocket_Extensions": "a; b="}),
    (400, "Extensions", {"Sec_WebSocket_Extensions": 'a; b=""'}),
    (400, "Extensions", {"Sec_WebSocket_Extensions": 'a; b="c'}),
    (400, "Extensions", {"Sec_WebSocket_Extensions": 'a; b="c d"'}),
    (400, "Extensions", {"Sec_WebSocket_Extensions": 'a; b="c,d"'}),
    (400, "Extensions", {"Sec_WebSocket_Extensions": "a; b c"}),
    (400, "Extensions", {"Sec_WebSocket_Extensions": "permessage-deflate; =10"}),
]


@pytest.mark.parametrize(("status", "rule", "changes"), BAD, ids=str)
def test_bad_handshake(status: int, rule: str, changes: dict[str, Any]) -> None:
    with pytest.raises(ProtocolError) as error:
        read_handshake(request_of(**changes))
    assert error.value.code == status and rule in error.value.rule and error.value.rule in SOURCE
    fields = dict(error.value.fields)
    assert fields == (
        {b"Upgrade": b"websocket", b"Connection": b"Upgrade", b"Sec-WebSocket-Version": b"13"} if status == 426 else {}
    )


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({}, True),
        ({"line": "POST / HTTP/1.1"}, True),
        ({"Sec_WebSocket_Version": "8"}, True),
        ({"line": "GET / HTTP/1.0"}, False),
        ({"Upgrade": "h2c"}, False),
        ({"Upgrade": None}, False),
        ({"Connection": "close"}, False),
        ({"Connection": None}, False),
    ],
)
def test_is_websocket(changes: dict[str, Any], wanted: bool) -> None:
    """What asks for another protocol or for none is a request like any other."""
    assert is_websocket(request_of(**changes)) is wanted


def test_subprotocols_come_from_all_lines_each_once() -> None:
    handshake = read_handshake(
        request_of("GET / HTTP/1.1", "Sec-WebSocket-Protocol: c,a", Sec_WebSocket_Protocol="a, b ,,")
    )
    assert handshake.subprotocols == [b"a", b"b", b"c"]


def test_subprotocol_that_was_not_offered_is_refused() -> None:
    handshake = read_handshake(request_of(Sec_WebSocket_Protocol="a"))
    for subprotocol in (b"b", b"A", b""):
        with pytest.raises(AppError, match="has not offered"):
            handshake.accept(subprotocol)


def test_fields_of_the_application_and_of_the_server() -> None:
    head = ResponseHead(
        101, [(b"X-A", b"1"), (b"Set-Cookie", b"a=b"), (b"Content-Length", b"3"), (b"Connection", b"x")]
    )
    data = read_handshake(request_of()).accept(None, head, b"Server: stdserve\r\n")
    answer, rest = wire.read_answer(data)
    assert rest == b"" and [name for name, _ in answer.fields] == [
        b"Upgrade", b"Connection", b"Sec-WebSocket-Accept", b"X-A", b"Set-Cookie", b"Server",
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["Sec-WebSocket-Accept", "sec-websocket-protocol", "SEC-WEBSOCKET-EXTENSIONS"])
def test_fields_of_the_handshake_are_not_the_applications(name: str) -> None:
    with pytest.raises(AppError, match="server's to send"):
        read_handshake(request_of()).accept(None, ResponseHead(101, [(name, "x")]))


def test_compression_is_agreed_on() -> None:
    request = request_of(
        Sec_WebSocket_Extensions='x, permessage-deflate; client_max_window_bits="1\\0", permessage-deflate'
    )
    answer, _ = wire.read_answer(read_handshake(request).accept())
    assert answer.get(b"sec-websocket-extensions") == b"permessage-deflate; client_max_window_bits=10"
    refused = read_handshake(request, compress=False)
    assert refused.deflate is None and b"Extensions" not in refused.accept()


# ---- what is sent


def sent_by(act: Callable[[WebSocketEngine], None]) -> list[Frame]:
    engine = WebSocketEngine(WebSocketLimits())
    act(engine)
    frames = read_frames(b"".join(engine.data_to_send()))
    assert engine.data_to_send() == []
    return frames


@pytest.mark.parametrize("size", [0, 1, 125, 126, 127, 16384, 16385, 65535, 65536, 100_000])
def test_messages_of_each_length(size: int) -> None:
    assert sent_by(lambda engine: engine.send_text("a" * size)) == [Frame(0x81, b"a" * size)]
    assert sent_by(lambda engine: engine.send_binary(b"\xff" * size)) == [Frame(0x82, b"\xff" * size)]


def test_small_message_leaves_as_one_buffer_and_a_large_one_uncopied() -> None:
    engine = WebSocketEngine(WebSocketLimits())
    large = bytes(20_000)
    engine.send_text("hello")
    engine.send_binary(large)
    small, head, body = engine.data_to_send()
    assert (small, head) == (b"\x81\x05hello", b"\x82\x7e\x4e\x20") and body is large


def test_examples_of_the_rfc() -> None:
    """RFC 6455 5.7."""
    engine = WebSocketEngine(WebSocketLimits())
    engine.send_text("Hello")
    engine.send_ping(b"Hello")
    assert engine.data_to_send() == [b"\x81\x05\x48\x65\x6c\x6c\x6f", b"\x89\x05\x48\x65\x6c\x6c\x6f"]
    engine.receive_data(bytes.fromhex("818537fa213d7f9f4d5158"))
    assert engine.next_event() == "Hello"
    engine.receive_data(bytes.fromhex("8a8537fa213d7f9f4d5158"))
    assert engine.next_event() == Pong(b"Hello")


def test_control_frames() -> None:
    assert sent_by(lambda engine: engine.send_ping()) == [Frame(0x89, b"")]
    assert sent_by(lambda engine: engine.send_pong(b"a" * 125)) == [Frame(0x8A, b"a" * 125)]
    for send in ("send_ping", "send_pong"):
        with pytest.raises(AppError, match="125 are allowed"):
            sent_by(lambda engine, send=send: getattr(engine, send)(bytes(126)))


def test_half_a_surrogate_pair_is_not_sent() -> None:
    with pytest.raises(AppError, match="surrogate"):
        sent_by(lambda engine: engine.send_text("a\ud800"))


@pytest.mark.parametrize(
    ("code", "reason", "payload"),
    [
        (1000, "", b"\x03\xe8"),
        (1011, "oops", b"\x03\xf3oops"),
        (4999, "ä", b"\x13\x87\xc3\xa4"),
        (1005, "ignored", b""),
        (1000, "a" * 200, b"\x03\xe8" + b"a" * 123),
        (1000, "ä" * 100, b"\x03\xe8" + "ä".encode() * 61),
        (1000, "\ud800", b"\x03\xe8?"),
    ],
)
def test_close_frame(code: int, reason: str, payload: bytes) -> None:
    assert sent_by(lambda engine: engine.send_close(code, reason)) == [Frame(0x88, payload)]


@pytest.mark.parametrize("code", [-1, 0, 999, 1004, 1006, 1015, 1016, 2999, 5000, 70000])
def test_close_code_that_must_not_be_sent(code: int) -> None:
    with pytest.raises(AppError, match="close code"):
        sent_by(lambda engine: engine.send_close(code))


def test_nothing_is_sent_after_close() -> None:
    for end in (lambda engine: engine.send_close(), lambda engine: engine.receive_data(close(1000))):
        engine = WebSocketEngine(WebSocketLimits())
        assert not engine.close_sent
        end(engine)
        engine.next_event()
        assert engine.close_sent and len(engine.data_to_send()) == 1
        for send in (engine.send_ping, engine.send_pong):
            with pytest.raises(ClientDisconnected):
                send(b"")
        with pytest.raises(ClientDisconnected):
            engine.send_text("a")
        with pytest.raises(OSError, match="closed"):
            engine.send_binary(b"a")
        engine.send_close(1001)
        assert engine.data_to_send() == []


def test_close_is_answered_once() -> None:
    engine = WebSocketEngine(WebSocketLimits())
    engine.send_close(1001, "away")
    engine.receive_data(HELLO + frame(PING, b"a") + close(1001) + HELLO)
    assert [engine.next_event() for _ in range(4)] == ["hello", Ping(b"a"), Close(1001, ""), None]
    assert read_frames(b"".join(engine.data_to_send())) == [Frame(0x88, b"\x03\xe9away")]


def test_of_many_pings_the_last_is_answered() -> None:
    """RFC 6455 5.5.3. Who sends pings and reads nothing must not fill the memory."""
    engine = WebSocketEngine(WebSocketLimits())
    engine.receive_data(b"".join(frame(PING, b"%d" % n) for n in range(1000)))
    assert sum(event is not None for event in iter(engine.next_event, None)) == 1000
    engine.send_text("a")
    assert read_frames(b"".join(engine.data_to_send())) == [Frame(0x81, b"a"), Frame(0x8A, b"999")]
    engine.receive_data(frame(PING, b"x") + close(1000))
    assert [engine.next_event(), engine.next_event()] == [Ping(b"x"), Close(1000, "")]
    assert [each.first for each in read_frames(b"".join(engine.data_to_send()))] == [0x8A, 0x88]


# ---- properties


@pytest.mark.parametrize("size", [0, 1, 2, 3, 4, 5, 125, 1000, 16383, 16384, 16385, 16386, 16387, 70001])
def test_unmask(size: int) -> None:
    chance = random.Random(size)
    data, mask = chance.randbytes(size), chance.randbytes(4)
    wanted = bytes(byte ^ mask[at % 4] for at, byte in enumerate(data))
    assert unmask(data, mask) == unmask(bytearray(data), mask) == wanted


MESSAGES = st.lists(st.one_of(st.text(max_size=300), st.binary(max_size=300)), max_size=6)


def client_frames(draw: Callable[[Any], Any], message: str | bytes, deflater: Deflater | None) -> bytes:
    """The message in some fragments, with control frames between them."""
    payload = message.encode() if isinstance(message, str) else message
    rsv = 0
    if deflater is not None and draw(st.booleans()):
        payload, rsv = deflater(payload), 4
    cuts = sorted(draw(st.lists(st.integers(0, len(payload)), max_size=4)))
    pieces = [payload[start:end] for start, end in zip([0, *cuts], [*cuts, len(payload)], strict=True)]
    out = []
    for at, piece in enumerate(pieces):
        opcode = CONTINUATION if at else TEXT if isinstance(message, str) else BINARY
        mask = draw(st.binary(min_size=4, max_size=4))
        out.append(frame(opcode, piece, fin=at == len(pieces) - 1, rsv=0 if at else rsv, mask=mask))
        if draw(st.booleans()):
            out.append(frame(PING, b"p", mask=mask))
    return b"".join(out)


@settings(max_examples=200, deadline=None)
@given(st.data(), MESSAGES, st.booleans())
def test_what_a_client_sends_is_understood(data: st.DataObject, messages: list[str | bytes], packed: bool) -> None:
    deflater = Deflater() if packed else None
    stream = b"".join(client_frames(data.draw, message, deflater) for message in messages)
    cuts = data.draw(st.lists(st.integers(0, len(stream)), max_size=5))
    dialogue = talk(stream, cuts, None, ANY if packed else None)
    assert dialogue.error is None
    assert [event for event in dialogue.events if not isinstance(event, Ping)] == messages


@settings(max_examples=200, deadline=None)
@given(MESSAGES, st.sampled_from([None, "", ANY, "server_no_context_takeover", "server_max_window_bits=9"]))
def test_what_is_sent_is_understood(messages: list[str | bytes], offer: str | None) -> None:
    engine = WebSocketEngine(WebSocketLimits(), make_deflate(offer))
    inflate = Inflater(9 if offer and "=9" in offer else 15, offer != "server_no_context_takeover")
    for message in messages:
        if isinstance(message, str):
            engine.send_text(message)
        else:
            engine.send_binary(message)
    got: list[Event] = []
    for each in read_frames(b"".join(engine.data_to_send())):
        payload = inflate(each.payload) if each.first & 0x40 else each.payload
        got.append(payload.decode() if each.first & 0xF == TEXT else payload)
    assert got == messages


@settings(max_examples=300, deadline=None)
@given(st.data(), st.binary(max_size=60), st.sampled_from([None, ANY]))
def test_any_bytes_give_the_same_however_they_are_cut(data: st.DataObject, stream: bytes, offer: str | None) -> None:
    stream = stream if data.draw(st.booleans()) else frame(TEXT, stream, fin=False, mask=bytes(4)) + stream
    whole = talk(stream, (), {"message": 50}, offer)
    cuts = data.draw(st.lists(st.integers(0, len(stream)), max_size=5))
    for other in (talk(stream, cuts, {"message": 50}, offer), talk(stream, range(len(stream)), {"message": 50}, offer)):
        assert (other.events, other.end) == (whole.events, whole.end)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=12))
def test_text_fails_at_the_first_byte_that_no_text_goes_on_with(data: bytes) -> None:
    """Compared with what some end would make of it: no end makes text of what is refused."""
    dialogue = talk(frame(TEXT, data + b"\xff"), range(30), {})
    at = dialogue.error_at - 6
    tails = [b"", b"\x80", b"\xa0", b"\x80\x80", b"\xa0\x80", b"\x90\x80\x80", b"\x80\x80\x80"]
    assert not any(is_text((data + b"\xff")[:at] + tail) for tail in tails)
    assert any(is_text(data[: at - 1] + tail) for tail in tails)


def is_text(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


# ---- what it costs


def calls(act: Callable[[], object], kinds: tuple[str, ...] = ("call",)) -> int:
    """Calls of Python functions, the one of `act` aside."""
    count = 0

    def on_call(frame: object, kind: str, argument: object) -> None:
        nonlocal count
        count += kind in kinds

    sys.setprofile(on_call)
    try:
        act()
    finally:
        sys.setprofile(None)
    return count - 1


def test_small_message_takes_few_calls() -> None:
    engine = WebSocketEngine(WebSocketLimits())

    def echo() -> None:
        engine.receive_data(HELLO)
        engine.send_text(engine.next_event())  # type: ignore[arg-type]
        engine.data_to_send()

    assert calls(echo) == 6  # receive, next, unmask, send, frame, take
    assert not engine.buffer  # so that next_event need not be asked again


def cost(data: bytes, size: int, offer: str | None = None) -> tuple[int, float]:
    """Calls of all kinds, and CPU time, of feeding in pieces of that size."""
    pieces = [data[at : at + size] for at in range(0, len(data), size)]
    peer = Peer({}, make_deflate(offer))
    count = calls(lambda: peer.feed(pieces), ("call", "c_call"))
    best = float("inf")
    for _ in range(3):
        peer = Peer({}, make_deflate(offer))
        start = time.thread_time()
        peer.feed(pieces)
        best = min(best, time.thread_time() - start)
    return count, best


HOSTILE = {
    "small-frames": (frame(TEXT, "a"), 0, None),
    "pings": (frame(PING), 0, None),
    "frame-byte-by-byte": (frame(TEXT, "ä" * 1000), 1, None),
    "empty-fragments": (frame(CONTINUATION, fin=False), 0, None),
    "fragments-of-a-byte": (frame(CONTINUATION, b"a", fin=False), 0, None),
    "half-characters": (frame(CONTINUATION, b"\xa4\xc3", fin=False), 3, None),
    "compressed": (frame(BINARY, Deflater()(bytes(500)), rsv=4), 0, ANY),
    "compressed-byte-by-byte": (frame(BINARY, b"\x00\x05\x00\xfa\xffhello" * 10 + b"\0", rsv=4), 1, ANY),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_work_is_linear(name: str) -> None:
    """Four times the input: four times the calls; quadratic copying would take 16 times as long."""
    unit, size, offer = HOSTILE[name]
    start = frame(TEXT, b"\xc3" if "half" in name else b"", fin=False) if unit[0] & 0xF == 0 else b""
    small, large = (start + unit * (total // len(unit)) for total in (8 * 1024, 32 * 1024))
    small_count, small_time = cost(small, size or len(small), offer)
    large_count, large_time = cost(large, size or len(large), offer)
    assert large_count <= 4.2 * small_count + 50
    assert large_time <= 10 * small_time + 0.005


@pytest.mark.parametrize("pieces", [1, 40])
def test_final_blocks_are_not_quadratic(pieces: int) -> None:
    """Each takes a new zlib object and copies what follows it."""
    payload = b"\x03\x00" * 30_000
    start = time.thread_time()
    dialogue = talk(frame(BINARY, payload, rsv=4), range(0, len(payload), len(payload) // pieces), None, ANY)
    assert dialogue.end == 1009 and time.thread_time() - start < 1


def test_fragments_without_end_hold_no_memory() -> None:
    engine = WebSocketEngine(WebSocketLimits())
    engine.receive_data(frame(BINARY, b"", fin=False))
    assert engine.next_event() is None
    many = frame(CONTINUATION, b"", fin=False) * 1000
    tracemalloc.start()
    try:
        for _ in range(30):
            engine.receive_data(many)
            assert engine.next_event() is None
        assert tracemalloc.get_traced_memory()[0] < 10_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("size", [1, 1000])
def test_message_in_pieces_is_held_once(size: int) -> None:
    payload = bytes(100_000)
    data = frame(BINARY, payload, fin=False)
    engine = WebSocketEngine(WebSocketLimits())
    pieces = [data[at : at + size] for at in range(0, len(data), size)]
    tracemalloc.start()
    try:
        for piece in pieces:
            engine.receive_data(piece)
            assert engine.next_event() is None
        held, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < 1.2 * len(payload) and peak < 2.4 * len(payload)


def test_bomb_is_not_inflated_beyond_the_limit() -> None:
    bomb = frame(BINARY, Deflater()(bytes(50_000_000)), rsv=4)
    engine = WebSocketEngine(WebSocketLimits(message=100_000), make_deflate(ANY))
    tracemalloc.start()
    try:
        engine.receive_data(bomb)
        with pytest.raises(ProtocolError):
            engine.next_event()
        assert tracemalloc.get_traced_memory()[1] < 400_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("offer", [None, ANY, "", "server_max_window_bits=15", f"{ANY}=15"])
def test_idle_connection_holds_little(offer: str | None) -> None:
    """After messages both ways; 5,000 of them must fit. zlib's memory is counted too."""
    data = frame(TEXT, Deflater(12, offer is not None and ANY in offer)("a message " * 300), rsv=4)
    data = frame(TEXT, "a message " * 300) if offer is None else data
    engines = []
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for _ in range(100):
            engine = WebSocketEngine(WebSocketLimits(), make_deflate(offer))
            engine.receive_data(data)
            text = engine.next_event()
            assert isinstance(text, str) and engine.next_event() is None
            engine.send_text(text)
            engine.data_to_send()
            engines.append(engine)
        held = (tracemalloc.get_traced_memory()[0] - before) / 100
    finally:
        tracemalloc.stop()
    assert held < (1024 if offer is None else 8 * 1024)


def test_long_message_leaves_nothing_behind() -> None:
    engine = WebSocketEngine(WebSocketLimits())
    data = fragments(BINARY, bytes(300_000), bytes(300_000))
    tracemalloc.start()
    try:
        for at in range(0, len(data), 65536):
            engine.receive_data(data[at : at + 65536])
            event = engine.next_event()
        assert isinstance(event, bytes) and len(event) == 600_000
        del event
        assert tracemalloc.get_traced_memory()[0] < 100_000
    finally:
        tracemalloc.stop()
