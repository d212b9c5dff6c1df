"""WebSockets on real sockets: the switch from HTTP, clients that vanish, stall, flood or talk nonsense, the stop."""

from __future__ import annotations

import gc
import socket
import threading
from collections.abc import Callable, Iterator
from selectors import EVENT_READ
from typing import Any

import pytest

from stdserve.exchange import HIGH_WATER_BYTES
from stdserve.transport import connections as connections_module
from stdserve.transport import websocket as websocket_module
from stdserve.transport.connection import READ_BYTES
from stdserve.transport.websocket import WebSocketConnection
from tests.frames import BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT, Frame, close, fragments, frame, read_frames
from tests.sockets import (
    ACCEPT,
    Puppet,
    Socket,
    accept,
    binary,
    connect,
    connections,
    disconnect,
    echo,
    handshake,
    in_loop,
    only,
    reset,
    serve,
    text,
    wait_empty,
)
from tests.support import BOUND_SECONDS, Client, running, wait_for


@pytest.fixture(autouse=True)
def _fast_sweep(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections_module, "SWEEP_SECONDS", 0.01)


# ---- the switch


def test_handshake_is_answered_with_101() -> None:
    with serve(echo, headers=["X-Extra: 1"]) as server, connect(server) as client:
        assert client.answer.line == b"HTTP/1.1 101 Switching Protocols"
        date = client.answer.fields.pop("date")
        assert date.endswith("GMT")
        assert client.answer.fields == {
            "upgrade": "websocket",
            "connection": "Upgrade",
            "sec-websocket-accept": ACCEPT,
            "server": "stdserve",
            "x-extra": "1",
        }


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({"Sec_WebSocket_Key": "short"}, 400),
        ({"Sec_WebSocket_Key": None}, 400),
        ({"Content_Length": "2"}, 400),
        ({"Sec_WebSocket_Protocol": "a b"}, 400),
        ({"Sec_WebSocket_Version": "8"}, 426),
        ({"Sec_WebSocket_Version": None}, 426),
    ],
)
def test_bad_handshake_is_refused_before_the_application_sees_it(fields: dict[str, Any], status: int) -> None:
    with serve(Puppet()) as server, server.connect() as client:
        answer = client.send(handshake(**fields)).response()
        assert answer.status == status
        assert client.is_closed()
        if status == 426:
            assert answer.fields["upgrade"] == "websocket" and answer.fields["sec-websocket-version"] == "13"
            assert [value for name, value in answer.headers if name == b"Connection"] == [b"Upgrade", b"close"]
        wait_for(lambda: not connections(server).active)


def test_handshake_with_another_method_is_refused() -> None:
    with serve(Puppet()) as server, server.connect() as client:
        assert client.send(handshake().replace(b"GET", b"POST")).response().status == 400


@pytest.mark.parametrize(
    ("request_", "options"),
    [
        (handshake(), {"ws": "none"}),
        (handshake().replace(b"HTTP/1.1", b"HTTP/1.0"), {}),
        (handshake(Upgrade="h2c"), {}),
        (handshake(Connection="keep-alive"), {}),
    ],
)
def test_what_asks_for_no_websocket_of_ours_is_a_plain_request(request_: bytes, options: dict[str, Any]) -> None:
    with serve(echo, **options) as server, server.connect() as client:
        assert client.send(request_).response().body == b"http"


def test_wsgi_answers_the_request_as_any_other() -> None:
    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        start_response("200 OK", [])
        return [environ["HTTP_UPGRADE"].encode()]

    with running(app) as server, server.connect() as client:
        assert client.send(handshake()).response().body == b"websocket"
        assert client.send(handshake(Sec_WebSocket_Key="bad")).response().body == b"websocket"


def test_requests_may_come_before_on_the_same_connection() -> None:
    with serve(echo) as server, server.connect() as client:
        assert client.get().body == b"http"
        client.send(b"GET / HTTP/1.1\r\nHost: test\r\n\r\n" + handshake() + frame(TEXT, "hi"))
        assert client.response().body == b"http"
        assert client.read_until(b"\r\n\r\n").startswith(b"HTTP/1.1 101 ")
        assert client.read_exactly(4) == b"\x81\x02hi"


def test_frames_that_come_with_the_handshake_are_not_lost() -> None:
    with serve(echo) as server, connect(server, behind=frame(TEXT, "one") + frame(TEXT, "two")) as client:
        assert [client.read(), client.read()] == [b"one", b"two"]


def test_a_flood_behind_the_handshake_waits_until_it_is_accepted() -> None:
    puppet = Puppet(accepts=False)
    messages = [b"%07d" % number + bytes(993) for number in range(1000)]
    with serve(puppet) as server, server.connect() as client:
        data = handshake() + b"".join(frame(BINARY, message) for message in messages)
        sender = threading.Thread(target=client.sock.sendall, args=(data,))
        sender.start()
        connection = only(server)
        wait_for(lambda: not connection._interest & EVENT_READ)
        assert len(connection.engine.buffer) <= HIGH_WATER_BYTES + READ_BYTES
        assert puppet.receive() == {"type": "websocket.connect"}
        puppet.send("accept")
        for message in messages:
            assert puppet.receive() == binary(message)
        sender.join(BOUND_SECONDS)


# ---- messages


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_echo(loop: str) -> None:
    if loop == "uvloop":
        pytest.importorskip("uvloop")
    with serve(echo, loop=loop) as server, connect(server) as client:
        for size in (0, 1, 125, 126, 65535, 65536, 1_000_000):
            assert client.text("x" * size).read() == b"x" * size
            assert client.binary(b"\xff" * size).read(BINARY) == b"\xff" * size


def test_byte_by_byte() -> None:
    with serve(echo) as server, connect(server) as client:
        client.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in frame(TEXT, "hello"):
            client.send(bytes((byte,)))
        assert client.read() == b"hello"
        for byte in frame(PING, b"p") + fragments(BINARY, b"a", b"b"):
            client.send(bytes((byte,)))
        assert client.read(PONG) == b"p"
        assert client.read(BINARY) == b"ab"
        for byte in close(1000):
            client.send(bytes((byte,)))
        assert client.read_close() == (1000, "")


def test_many_messages_in_one_packet_are_echoed_in_order() -> None:
    with serve(echo) as server, connect(server) as client:
        client.send(b"".join(frame(TEXT, str(number)) for number in range(1000)))
        assert [client.read() for _ in range(1000)] == [b"%d" % number for number in range(1000)]


def test_ping_between_fragments_is_answered_at_once() -> None:
    with serve(echo) as server, connect(server) as client:
        client.send(frame(TEXT, "a", fin=False) + frame(PING, b"now"))
        assert client.read(PONG) == b"now"
        client.send(frame(CONTINUATION, "b"))
        assert client.read() == b"ab"


# ---- errors of the client


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (frame(TEXT, "a", mask=None), 1002),
        (frame(3, "a"), 1002),
        (frame(CONTINUATION, "a"), 1002),
        (frame(TEXT, b"\xff"), 1007),
        (frame(BINARY, b"", length=1001), 1009),
        (close(1005), 1002),
    ],
)
def test_broken_rule_closes_with_its_code(data: bytes, code: int, caplog: pytest.LogCaptureFixture) -> None:
    puppet = Puppet()
    with serve(puppet, ws_max_size=1000) as server, connect(server) as client:
        client.send(frame(TEXT, "before") + data + frame(TEXT, "after"))
        found, reason = client.read_close()
        assert found == code and reason
        assert client.is_closed()
        assert puppet.receive() == text("before")
        assert puppet.receive() == disconnect(code, reason)
        assert isinstance(puppet.send("send", text="late"), OSError)
        client.sock.close()
        puppet.end()
        wait_empty(server)
    assert f"WebSocket {code} {reason}" in caplog.text


# ---- the end


def test_close_of_the_client_is_echoed_and_the_server_closes_first() -> None:
    puppet = Puppet()
    with serve(puppet) as server, connect(server) as client:
        client.text("last").close(4321, "bye")
        assert client.read_close() == (4321, "")
        assert client.is_closed()
        assert puppet.receive() == text("last")
        assert puppet.receive() == puppet.receive() == disconnect(4321, "bye")
        puppet.end()
        client.sock.close()
        wait_empty(server)


def test_close_without_a_code() -> None:
    puppet = Puppet()
    with serve(puppet) as server, connect(server) as client:
        client.send(frame(CLOSE))
        assert client.read_close() == (1005, "")
        assert puppet.receive() == disconnect(1005)


def leave_by_end(client: Client) -> None:
    client.sock.close()


def leave_half(client: Client) -> None:
    client.sock.shutdown(socket.SHUT_WR)


@pytest.mark.parametrize("leave", [leave_by_end, leave_half, reset])
@pytest.mark.parametrize("say", [b"", frame(TEXT, "whole")[:3], frame(TEXT, "part", fin=False)])
def test_client_that_vanishes_is_1006(leave: Callable[[Client], None], say: bytes) -> None:
    puppet = Puppet()
    with serve(puppet) as server, connect(server) as client:
        answers = puppet.start(lambda receive, send: receive())
        client.send(say)
        leave(client)
        assert answers.get(timeout=BOUND_SECONDS) == disconnect(1006)
        wait_for(lambda: not len(connections(server)))
        assert isinstance(puppet.send("send", text="late"), OSError)
        assert isinstance(puppet.send("close"), OSError)
        puppet.end()
        wait_empty(server)


@pytest.mark.parametrize("ends", [True, False])
def test_messages_that_came_before_the_end_are_received(ends: bool) -> None:
    """Also those that nobody had asked for when the end came."""
    puppet = Puppet()
    with serve(puppet) as server, connect(server) as client:
        client.send(b"".join(frame(TEXT, str(number)) for number in range(100)) + (close(1000) if ends else b""))
        client.sock.shutdown(socket.SHUT_WR)
        wait_for(lambda: only(server)._eof)
        assert [puppet.receive() for _ in range(100)] == [text(str(number)) for number in range(100)]
        assert puppet.receive() == disconnect(1000 if ends else 1006)
        puppet.end()
        wait_empty(server)


def test_client_that_vanishes_before_the_answer() -> None:
    puppet = Puppet(accepts=False)
    with serve(puppet) as server, server.connect() as client:
        client.send(handshake())
        assert puppet.receive() == {"type": "websocket.connect"}
        answers = puppet.start(lambda receive, send: receive())
        client.sock.close()
        assert answers.get(timeout=BOUND_SECONDS) == disconnect(1006)
        assert isinstance(puppet.send("accept"), OSError)
        puppet.end()
        wait_empty(server)


def test_client_has_a_limited_time_to_answer_our_close(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(websocket_module, "CLOSE_SECONDS", 0.03)
    puppet = Puppet()
    with serve(puppet) as server, connect(server) as client:
        puppet.send("close", code=1000)
        assert client.read_close() == (1000, "")
        client.text("ignored")
        assert client.is_closed()
        puppet.end()
        wait_empty(server)


def test_our_close_is_complete_when_the_client_answers() -> None:
    puppet = Puppet()
    with serve(puppet) as server, connect(server) as client:
        client.send(b"".join(frame(TEXT, str(number)) for number in range(100)))
        wait_for(lambda: len(only(server).messages) == 16)
        puppet.send("close", code=3000, reason="enough")
        assert client.read_close() == (3000, "enough")
        client.text("on its way").ping(b"too").close(3000)
        assert client.read_to_end() == b""
        puppet.end()
        client.sock.close()
        wait_empty(server)


# ---- signs of life


def test_pings_are_sent_and_a_pong_keeps_the_websocket() -> None:
    puppet = Puppet()
    with serve(puppet, ws_ping_interval=0.05, ws_ping_timeout=0.05) as server, connect(server) as client:
        for _ in range(5):
            client.pong(client.read(PING))
        assert client.text("still here") and puppet.receive() == text("still here")


def test_any_bytes_are_a_sign_of_life() -> None:
    """A client cannot send a Pong within a long frame."""
    puppet = Puppet()
    with serve(puppet, ws_ping_interval=0.02, ws_ping_timeout=0.5) as server, connect(server) as client:
        data = frame(TEXT, "x" * 50)
        for byte in data:
            assert client.read(PING) == b""
            client.send(bytes((byte,)))
        assert puppet.receive() == text("x" * 50)


def test_silent_client_is_closed() -> None:
    puppet = Puppet()
    with serve(puppet, ws_ping_interval=0.05, ws_ping_timeout=0.05) as server, connect(server) as client:
        assert client.read(PING) == b""
        while (found := client.read_frame()).first == 0x80 | PING:
            pass
        assert read_frames(bytes((found.first, len(found.payload))) + found.payload) == [
            Frame(0x88, b"\x03\xf3keepalive ping timeout")
        ]
        assert client.is_closed()
        assert puppet.receive() == disconnect(1006, "keepalive ping timeout")
        puppet.end()
        client.sock.close()
        wait_empty(server)


def test_nobody_is_silent_while_we_do_not_read() -> None:
    puppet = Puppet()
    with (
        serve(puppet, ws_ping_interval=0.02, ws_ping_timeout=0.02, ws_max_queue=1) as server,
        connect(server, behind=frame(TEXT, "a")) as client,
    ):
        for _ in range(5):
            client.read(PING)
        assert puppet.receive() == text("a")
        assert only(server).closed is None


def test_pings_can_be_off() -> None:
    with serve(Puppet(), ws_ping_interval=0) as server, connect(server):
        connection = wait_for(lambda: next((c for c in connections(server) if hasattr(c, "messages")), None))
        assert connection.deadline == connections_module.FOREVER


# ---- back-pressure


def send_until_full(client: Client, data: bytes) -> int:
    """Send it again and again until nobody takes more for a while; how many bytes went."""
    sent = 0
    client.sock.settimeout(0.3)
    try:
        while True:
            sent += client.sock.send(data[sent % len(data) :])
    except TimeoutError:
        client.sock.settimeout(BOUND_SECONDS)
        return sent


async def take(receive: Any, count: int) -> set[bytes]:
    """The different ones among so many messages."""
    return {(await receive())["bytes"] for _ in range(count)}


@pytest.mark.parametrize("size", [20, 1000, 100_000])
def test_messages_that_nobody_takes_stop_the_reading(size: int) -> None:
    puppet = Puppet()
    with serve(puppet, ws_max_queue=16) as server, connect(server) as client:
        message = frame(BINARY, b"x" * size)
        sent = send_until_full(client, message)
        connection = only(server)
        assert not connection._interest & EVENT_READ
        assert len(connection.messages) <= 16 and connection._waiting_bytes < HIGH_WATER_BYTES + size
        assert len(connection.engine.buffer) <= 2 * READ_BYTES
        count = -(-sent // len(message))
        taken = puppet.start(lambda receive, send: take(receive, count))
        client.send(message[sent % len(message) or len(message) :])
        assert taken.get(timeout=BOUND_SECONDS) == {b"x" * size}
        client.text("more")
        assert puppet.receive() == text("more")


def test_client_that_reads_nothing_stops_the_application() -> None:
    puppet = Puppet()
    sent: list[int] = []

    async def flood(receive: Any, send: Any) -> None:
        while True:
            await send({"type": "websocket.send", "bytes": bytes(10_000)})
            sent.append(1)

    with serve(puppet) as server, connect(server) as client:
        answers = puppet.start(flood)
        wait_for(lambda: only(server).queued_bytes > HIGH_WATER_BYTES)
        before = wait_for(lambda: len(sent))
        assert only(server).queued_bytes < HIGH_WATER_BYTES + 20_000
        for _ in range(before + 100):  # the client reads: the application goes on
            assert client.read(BINARY) == bytes(10_000)
        reset(client)
        assert isinstance(answers.get(timeout=BOUND_SECONDS), OSError)
        assert puppet.receive() == disconnect(1006)
        puppet.end()
        wait_empty(server)


def test_client_that_reads_nothing_for_too_long_is_cut() -> None:
    puppet = Puppet()

    async def flood(receive: Any, send: Any) -> None:
        while True:
            await send({"type": "websocket.send", "bytes": bytes(65536)})

    with serve(puppet, timeout_write=0.05) as server, connect(server) as client:
        error = puppet.start(flood).get(timeout=BOUND_SECONDS)
        assert isinstance(error, OSError)
        assert puppet.receive() == disconnect(1006)
        client.read_to_end()


def test_client_that_sends_pings_and_reads_nothing_fills_no_memory() -> None:
    """Those that come together have one answer, and above the high-water mark the last one waits alone."""
    with serve(Puppet(), timeout_write=BOUND_SECONDS) as server, connect(server) as client:
        pings = frame(PING, b"p" * 125) * 100_000 + frame(PING, b"last")
        sender = threading.Thread(target=client.sock.sendall, args=(pings,))
        sender.start()
        sender.join(BOUND_SECONDS)
        assert only(server).queued_bytes <= HIGH_WATER_BYTES + 200
        count = 1
        while client.read(PONG) != b"last":
            count += 1
        assert count < 100_000 / 2


# ---- limits of requests


def test_open_websockets_are_not_running_requests() -> None:
    puppet = Puppet(accepts=False)
    with serve(puppet, limit_concurrency=1, timeout_request=0.1) as server, server.connect() as client:
        client.send(handshake())
        puppet.receive()
        with server.connect() as other:  # the handshake is one
            assert other.send(handshake()).response().status == 503
        puppet.send("accept")
        assert client.read_until(b"\r\n\r\n").startswith(b"HTTP/1.1 101")
        assert connections(server).active == 0
        ticks = threading.Semaphore(0)
        in_loop(server, lambda: [connections(server).loop.call_later(0.15, ticks.release)])
        assert ticks.acquire(timeout=BOUND_SECONDS)
        client.send(frame(TEXT, "not overdue"))
        assert puppet.receive() == text("not overdue")


def test_handshake_that_is_not_answered_in_time_is_504() -> None:
    puppet = Puppet(accepts=False)
    with serve(puppet, timeout_request=0.05) as server, server.connect() as client:
        assert client.send(handshake()).response().status == 504
        client.sock.close()
        wait_empty(server)


class Slots:
    def __init__(self) -> None:
        self.running: list[Any] = []
        self.ended = 0

    def begin(self, exchange: Any) -> None:
        self.running.append(exchange)

    def end(self, exchange: Any) -> None:
        self.running.remove(exchange)
        self.ended += 1


def test_a_handshake_takes_a_slot_and_a_websocket_none() -> None:
    puppet, slots = Puppet(accepts=False), Slots()
    with serve(puppet) as server, server.connect() as client:
        connections(server).slots = slots
        client.send(handshake())
        puppet.receive()
        assert len(slots.running) == 1
        puppet.send("accept")
        assert slots.running == [] and slots.ended == 1
        puppet.end()
    assert slots.ended == 1


def test_an_open_websocket_does_not_make_room() -> None:
    with serve(echo, limit_connections=2) as server, connect(server) as client, server.connect() as other:
        assert other.get().body == b"http"
        with server.connect() as third:  # the idle one goes
            assert third.get().body == b"http"
        assert other.is_closed()
        assert client.text("here").read() == b"here"


# ---- the stop


def test_a_stop_closes_websockets_with_1012() -> None:
    puppet = Puppet()
    with serve(puppet) as server, connect(server) as client:
        only(server)
        answers = puppet.start(lambda receive, send: receive())
        server.server.stop()
        assert client.read_close() == (1012, "")
        assert answers.get(timeout=BOUND_SECONDS) == disconnect(1012)
        assert isinstance(puppet.send("send", text="late"), OSError)
        client.close(1012)
        assert client.is_closed()
        puppet.end()
    assert not server.server.cut


def test_many_websockets_are_closed_one_after_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections_module, "LEAVE_TOGETHER_COUNT", 1)
    monkeypatch.setattr(connections_module, "LEAVE_PAUSE_SECONDS", 0.05)
    left: list[tuple[float, int]] = []
    with serve(echo, timeout_graceful_shutdown=0.8) as server:
        clients = [connect(server) for _ in range(8)]
        shared = connections(server)
        let_go = shared._let_go

        def noted(count: int) -> None:
            let_go(count)
            left.append((shared.loop.now(), len(shared.leaving)))

        shared._let_go = noted
        server.server.stop()
        for client in clients:
            with client:
                assert client.read_close() == (1012, "")
                client.close(1012)
    assert [count for _, count in left] == [6, 4, 2, 0]  # 0.8 s / 4 for all, in pauses of 0.05 s
    assert left[-1][0] - left[0][0] >= 0.1
    assert not server.server.cut


def test_a_stop_does_not_begin_another_websocket() -> None:
    puppet = Puppet(accepts=False)
    with serve(puppet) as server, server.connect() as first, server.connect() as second:
        first.send(handshake())
        puppet.receive()
        second.send(handshake()[:-2])
        wait_for(lambda: len(connections(server)) == 2 and any(c.engine.buffer for c in connections(server)))
        server.server.stop()
        wait_for(lambda: connections(server).draining)
        second.send(b"\r\n")
        answer = second.response()
        assert (answer.status, answer.fields["connection"]) == (503, "close")
        puppet.send("accept")  # one that has begun is told at once
        assert first.read_until(b"\r\n\r\n").startswith(b"HTTP/1.1 101")
        assert first.read_exactly(4) == b"\x88\x02\x03\xf4"
        assert puppet.receive() == disconnect(1012)
        first.send(close(1012))
        puppet.end()


def test_application_that_does_not_end_is_cancelled(caplog: pytest.LogCaptureFixture) -> None:
    puppet = Puppet()
    with serve(puppet, timeout_graceful_shutdown=0.2) as server, connect(server) as client:
        assert puppet.ready.wait(BOUND_SECONDS)
        server.server.stop()
        assert client.read_close() == (1012, "")
        client.close(1012)
        assert puppet.left.wait(BOUND_SECONDS)
    assert server.server.cut and not server.server.stuck


def test_a_forced_stop_cuts() -> None:
    puppet = Puppet()
    with serve(puppet) as server, connect(server):
        assert puppet.ready.wait(BOUND_SECONDS)
        server.server.stop()
        server.server.stop()
        assert puppet.left.wait(BOUND_SECONDS)


# ---- the access log


def test_handshakes_are_lines_of_the_access_log_and_the_end_one_of_the_error_log(
    tmp_path: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "stdserve")
    path = tmp_path / "access.log"
    puppet = Puppet()
    with serve(puppet, access_log=True, access_log_file=str(path), access_log_format="%(r)s %(s)s") as server:
        with connect(server, "/open?x") as client:
            wait_for(lambda: path.read_text() == "GET /open?x HTTP/1.1 101\n")
            puppet.send("send", text="a")
            client.text("b").text("c").close()
            client.read()
            client.read_close()
        puppet.end()
        with server.connect() as bad:
            bad.send(handshake("/bad", Sec_WebSocket_Version="7")).response()
        wait_empty(server)
    (line,) = [text for text in caplog.messages if "WebSocket closed" in text]
    assert "GET /open?x from 127.0.0.1:" in line and line.endswith(" s, 2 messages received, 1 sent")
    assert path.read_text().splitlines() == ["GET /open?x HTTP/1.1 101", "GET /bad HTTP/1.1 426"]


# ---- what is left


@pytest.fixture
def _no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def end_in_order(client: Socket) -> None:
    client.close()
    client.read_close()
    client.sock.close()


def end_by_error(client: Socket) -> None:
    client.send(frame(3))
    client.read_close()
    client.sock.close()


@pytest.mark.usefixtures("_no_collector")
@pytest.mark.parametrize("end", [end_in_order, end_by_error, reset])
def test_closed_websockets_are_freed_without_the_collector(end: Callable[[Socket], None]) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await accept(receive, send)
        while (message := await receive())["type"] != "websocket.disconnect":
            await send({**message, "type": "websocket.send"})

    def live() -> set[int]:
        return {id(each) for each in gc.get_objects() if type(each) is WebSocketConnection}

    before = live()
    with serve(app) as server:
        for _ in range(3):
            client = connect(server)
            assert client.text("x").read() == b"x"
            end(client)
            wait_empty(server)
        wait_for(lambda: live() <= before)


def test_pings_that_come_together_have_one_answer() -> None:
    with serve(echo) as server, connect(server) as client:
        client.send(b"".join(frame(PING, str(number)) for number in range(100)) + frame(TEXT, "after"))
        answers = [client.read_frame() for _ in range(2)]
        assert {answer.payload for answer in answers} == {b"99", b"after"}
