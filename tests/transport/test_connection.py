"""Connections on real sockets: clients that are slow, vanish, stall, flood or talk nonsense; limits; what is left."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import gc
import os
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from selectors import EVENT_READ
from typing import Any

import pytest

from stdserve.transport import connections as connections_module
from stdserve.transport.connection import READ_BYTES, Connection
from tests.support import BOUND_SECONDS, Client, Running, running, wait_for

GET = b"GET / HTTP/1.1\r\nHost: test\r\n\r\n"
ASGI = {"interface": "asgi3", "lifespan": "off"}


@pytest.fixture(autouse=True)
def _fast_sweep(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections_module, "SWEEP_SECONDS", 0.01)


# ---- applications


def hello(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"hello"]


def echo(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    body = environ["wsgi.input"].read()
    start_response("200 OK", [])
    return [environ["PATH_INFO"].encode() + b" " + body]


async def asgi_echo(scope: Any, receive: Any, send: Any) -> None:
    body, more = b"", True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        body, more = body + message["body"], message["more_body"]
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": scope["path"].encode() + b" " + body})


async def asgi_ignore(scope: Any, receive: Any, send: Any) -> None:
    """Answers without a look at the body."""
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": scope["path"].encode()})


class Stream:
    """Sends blocks of 64 KiB without end and remembers why it ended."""

    def __init__(self) -> None:
        self.ended: list[BaseException] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        try:
            while True:
                await send({"type": "http.response.body", "body": bytes(65536), "more_body": True})
        except BaseException as error:
            self.ended.append(error)
            raise


class Waiting:
    """A WSGI application that waits for the test: `entered` when it runs, `go` to let it answer."""

    def __init__(self) -> None:
        self.entered = threading.Semaphore(0)
        self.go = threading.Event()

    def __call__(self, environ: dict[str, Any], start_response: Any) -> list[bytes]:
        self.entered.release()
        assert self.go.wait(BOUND_SECONDS)
        start_response("200 OK", [])
        return [environ["PATH_INFO"].encode()]

    def wait_entered(self) -> None:
        assert self.entered.acquire(timeout=BOUND_SECONDS)


# ---- what the tests look at


def shared(server: Running) -> Any:
    return server.server._connections


def only(server: Running) -> Connection:
    """The one connection, as soon as the server has accepted it."""
    (connection,) = wait_for(lambda: list(shared(server)))
    return connection


def wait_empty(server: Running) -> None:
    """All connections are gone and no request counts as running."""
    wait_for(lambda: len(shared(server)) == 0 and shared(server).active == 0)


def set_times(server: Running, **seconds: float) -> None:
    """Time limits that are not options, or that shall change while the server runs."""
    shared(server).times = dataclasses.replace(shared(server).times, **seconds)


def in_loop(server: Running, call: Callable[[], Any]) -> Any:
    """The result of a call in the loop thread."""
    result: list[Any] = []
    server.server.call_in_loop(lambda: result.append(call()))
    return wait_for(lambda: result)[0]


def reset(client: Client) -> None:
    """Go without a word: the server gets a reset."""
    client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.sock.close()


def read_all(sock: socket.socket) -> None:
    while sock.recv(65536):
        pass


def finish(client: Client) -> None:
    client.sock.close()


def fill(client: Client, server: Running, data: bytes) -> int:
    """Send until the server reads no more and the buffers between are full; how many bytes that took."""
    sent = 0
    client.sock.setblocking(False)

    def is_full() -> bool:
        nonlocal sent
        reads = only(server)._interest & EVENT_READ
        try:
            while True:
                sent += client.sock.send(data[sent % len(data) :])
        except BlockingIOError:
            return not reads

    wait_for(is_full)
    client.sock.settimeout(BOUND_SECONDS)
    return sent


@contextlib.contextmanager
def connect_all(server: Running, count: int) -> Iterator[list[Client]]:
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(server.connect()) for _ in range(count)]


# ---- slow clients


@pytest.mark.parametrize(("app", "options"), [(echo, {}), (asgi_echo, ASGI)])
@pytest.mark.parametrize(
    "framing",
    [b"Content-Length: 5\r\n\r\nabcde", b"Transfer-Encoding: chunked\r\n\r\n5\r\nabcde\r\n0\r\n\r\n"],
)
def test_byte_by_byte(app: Any, options: dict[str, Any], framing: bytes) -> None:
    with running(app, **options) as server, server.connect() as client:
        client.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in b"POST /a HTTP/1.1\r\nHost: test\r\n" + framing:
            client.send(bytes((byte,)))
        assert client.response().body == b"/a abcde"
        assert client.get("/b").body == b"/b "


def test_many_requests_in_one_packet_are_answered_in_order() -> None:
    with running(echo) as server, server.connect() as client:
        client.send(b"".join(GET.replace(b"/ ", b"/%d " % number) for number in range(100)))
        assert [client.response().body for _ in range(100)] == [b"/%d " % number for number in range(100)]


@pytest.mark.parametrize(("app", "options"), [(echo, {}), (asgi_echo, ASGI)])
def test_bad_second_request_does_not_cost_the_first_its_answer(app: Any, options: dict[str, Any]) -> None:
    with running(app, **options) as server, server.connect() as client:
        client.send(GET + b"NONSENSE\r\n\r\n" + GET)
        assert client.response().status == 200
        assert client.response().status == 400
        assert client.is_closed()


# ---- clients that vanish


def send_nothing(client: Client) -> None:
    pass


def send_half_head(client: Client) -> None:
    client.send(GET[:20])


def send_half_body(client: Client) -> None:
    client.send(b"POST / HTTP/1.1\r\nHost: test\r\nContent-Length: 10\r\n\r\n12345")


def send_half_chunk(client: Client) -> None:
    client.send(b"POST / HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\nff\r\n12345")


def send_request(client: Client) -> None:
    client.send(GET)


def send_and_read(client: Client) -> None:
    client.get()


def send_error(client: Client) -> None:
    client.send(b"NONSENSE\r\n\r\n")


@pytest.mark.parametrize("leave", [reset, finish])
@pytest.mark.parametrize(
    "say", [send_nothing, send_half_head, send_half_body, send_half_chunk, send_request, send_and_read, send_error]
)
@pytest.mark.parametrize(("app", "options"), [(echo, {}), (asgi_echo, ASGI)])
def test_client_vanishes(
    app: Any, options: dict[str, Any], say: Callable[[Client], None], leave: Callable[[Client], None]
) -> None:
    with running(app, **options) as server:
        client = server.connect()
        say(client)
        only(server)
        leave(client)
        wait_empty(server)
        with server.connect() as other:
            assert other.get().status == 200


@pytest.mark.parametrize("leave", [reset, finish])
def test_client_of_a_stream_vanishes(leave: Callable[[Client], None]) -> None:
    app = Stream()
    with running(app, **ASGI) as server:
        client = server.connect()
        client.send(GET).read_until(b"\r\n\r\n")
        leave(client)
        wait_empty(server)
        assert isinstance(app.ended[0], OSError)


@pytest.mark.parametrize("leave", [reset, finish])
def test_client_vanishes_while_the_application_runs(leave: Callable[[Client], None]) -> None:
    app = Waiting()
    with running(app) as server:
        client = server.connect()
        client.send(GET)
        app.wait_entered()
        leave(client)
        if leave is reset:
            wait_for(lambda: len(shared(server)) == 0)
            assert shared(server).active == 1
        app.go.set()
        wait_empty(server)


def test_client_vanishes_while_the_application_waits_for_it() -> None:
    told = threading.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        assert (await receive())["type"] == "http.disconnect"
        told.set()

    with running(app, **ASGI) as server:
        client = server.connect()
        client.send(GET)
        only(server)
        client.sock.close()
        assert told.wait(BOUND_SECONDS)
        wait_empty(server)


def test_clients_that_are_gone_before_they_are_accepted() -> None:
    with running(hello) as server:
        for _ in range(50):
            reset(server.connect())
        with server.connect() as client:
            assert client.get().status == 200
        wait_empty(server)


# ---- half-closed connections


@pytest.mark.parametrize(("app", "options"), [(echo, {}), (asgi_echo, ASGI)])
@pytest.mark.parametrize("count", [1, 2, 5])
def test_requests_before_the_end_are_answered(app: Any, options: dict[str, Any], count: int) -> None:
    with running(app, **options) as server, server.connect() as client:
        client.send(GET * count).sock.shutdown(socket.SHUT_WR)
        assert [client.response().status for _ in range(count)] == [200] * count
        assert client.is_closed()
        wait_empty(server)


def test_end_that_comes_while_the_first_of_two_requests_runs() -> None:
    app = Waiting()
    with running(app) as server, server.connect() as client:
        client.send(GET * 2)
        app.wait_entered()
        client.sock.shutdown(socket.SHUT_WR)
        wait_for(lambda: only(server)._eof)
        app.go.set()
        first, second = client.response(), client.response()
        assert (first.status, first.fields.get("connection")) == (200, None)
        assert (second.status, second.fields.get("connection")) == (200, "close")
        assert client.is_closed()


@pytest.mark.parametrize(("app", "options"), [(echo, {}), (asgi_echo, ASGI)])
@pytest.mark.parametrize(
    "rest", [b"Content-Length: 10\r\n\r\n12345", b"Transfer-Encoding: chunked\r\n\r\n5\r\n12345\r\n"]
)
@pytest.mark.parametrize("before", [0, 1])
def test_truncated_body_is_refused(app: Any, options: dict[str, Any], rest: bytes, before: int) -> None:
    with running(app, **options) as server, server.connect() as client:
        client.send(GET * before + b"POST / HTTP/1.1\r\nHost: test\r\n" + rest).sock.shutdown(socket.SHUT_WR)
        assert [client.response().status for _ in range(before + 1)] == [200] * before + [400]
        assert client.is_closed()
        wait_empty(server)


def test_truncated_head_gets_no_answer() -> None:
    with running(hello) as server, server.connect() as client:
        client.send(GET + GET[:20]).sock.shutdown(socket.SHUT_WR)
        assert client.response().status == 200
        assert client.is_closed()


def test_complete_chunked_body_before_the_end_is_served() -> None:
    with running(echo) as server, server.connect() as client:
        client.send(GET + b"POST / HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n12345\r\n0\r\n\r\n")
        client.sock.shutdown(socket.SHUT_WR)
        assert [client.response().body for _ in range(2)] == [b"/ ", b"/ 12345"]
        assert client.is_closed()


# ---- clients that do not read


def test_flood_of_pipelined_requests_is_bounded_and_answered() -> None:
    with running(echo) as server, server.connect() as client:
        request = GET.replace(b"/", b"/" + b"a" * 4000, 1)
        sent = fill(client, server, request)
        connection = only(server)
        assert len(connection.engine.buffer) <= 2 * READ_BYTES
        assert connection.queued_bytes <= 2 * 65536
        whole, part = divmod(sent, len(request))
        assert whole > 1000
        for _ in range(whole):
            assert client.response().status == 200
        if part:
            client.send(request[part:])
            assert client.response().status == 200
        assert client.get("/last").body == b"/last "


def test_stalled_answer_is_cut() -> None:
    app = Stream()
    with running(app, **ASGI, timeout_write=0.05) as server, server.connect() as client:
        client.send(GET)
        only(server)
        wait_empty(server)
        assert isinstance(app.ended[0], OSError)


def test_stalled_complete_answer_is_cut() -> None:
    def big(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        start_response("200 OK", [])
        return [bytes(50_000_000)]

    with running(big, timeout_write=0.05) as server, server.connect() as client:
        client.send(GET)
        only(server)
        wait_empty(server)
        assert len(client.read_to_end()) < 50_000_000


def test_answer_that_is_read_slowly_arrives() -> None:
    def big(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", [("Content-Length", "5000000")])
        return iter([bytes(1_000_000)] * 5)

    with running(big) as server, server.connect() as client:
        for _ in range(2):
            client.send(GET)
            assert len(client.response().body) == 5_000_000


# ---- bodies that the application does not read


@pytest.mark.parametrize("framing", ["length", "chunked"])
def test_small_unread_body_is_drained(framing: str) -> None:
    with running(asgi_ignore, **ASGI) as server, server.connect() as client:
        for _ in range(5):  # what is drained is counted for each request anew
            if framing == "length":
                client.send(b"POST /a HTTP/1.1\r\nHost: test\r\nContent-Length: 50000\r\n\r\n")
                assert client.response().status == 200
                client.send(bytes(50000))
            else:
                client.send(b"POST /a HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n")
                assert client.response().status == 200
                client.send(b"c350\r\n" + bytes(50000) + b"\r\n0\r\n\r\n")
        assert client.get("/b").body == b"/b"


def test_request_behind_an_unread_body_is_answered() -> None:
    with running(asgi_ignore, **ASGI) as server, server.connect() as client:
        client.send(b"POST /a HTTP/1.1\r\nHost: test\r\nContent-Length: 100\r\n\r\n" + bytes(100) + GET)
        assert [client.response().body for _ in range(2)] == [b"/a", b"/"]


def test_large_unread_body_ends_the_connection() -> None:
    with running(asgi_ignore, **ASGI) as server, server.connect() as client:
        client.send(b"POST /a HTTP/1.1\r\nHost: test\r\nContent-Length: 10000000\r\n\r\n")
        assert client.response().body == b"/a"
        sender = threading.Thread(target=send_what_is_taken, args=(client.sock, bytes(10_000_000)))
        sender.start()
        assert client.is_closed()
        sender.join()
        client.sock.close()
        wait_empty(server)


def test_unread_body_that_does_not_come_ends_the_connection() -> None:
    with running(asgi_ignore, **ASGI) as server, server.connect() as client:
        set_times(server, discard=0.02, linger=0.02)
        client.send(b"POST /a HTTP/1.1\r\nHost: test\r\nContent-Length: 10\r\n\r\n12345")
        assert client.response().body == b"/a"
        assert client.is_closed()
        wait_empty(server)


def test_large_unread_body_while_the_answer_is_stalled() -> None:
    """The answer waits in the queue, more of the body comes than is drained: the answer still arrives, then the end."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": bytes(20_000_000)})

    with running(app, **ASGI) as server, server.connect() as client:
        client.send(b"POST / HTTP/1.1\r\nHost: test\r\nContent-Length: 400000\r\n\r\n")
        wait_for(lambda: only(server)._finishing)
        client.send(bytes(200_000))
        assert len(client.response().body) == 20_000_000
        assert client.is_closed()
        client.sock.close()
        wait_empty(server)


def send_what_is_taken(sock: socket.socket, data: bytes) -> None:
    with contextlib.suppress(OSError):
        sock.sendall(data)


# ---- refused requests


def test_refusal_is_short_plain_text_that_echoes_nothing(caplog: pytest.LogCaptureFixture) -> None:
    with running(hello) as server, server.connect() as client:
        client.send(b"GET /<script> HTTP/1.1\r\nHost: test\r\nX-A : evil\x1b[31m\r\n\r\n")
        answer = client.response()
        assert answer.status == 400
        assert answer.fields["content-type"] == "text/plain; charset=utf-8"
        assert answer.fields["connection"] == "close"
        assert answer.body == b"400 Bad Request: blank between field name and colon (RFC 9112 5.1)\n"
        assert client.is_closed()
        (line,) = [record.getMessage() for record in caplog.records]
        assert line.startswith("127.0.0.1:%d: 400 blank between field name" % client.sock.getsockname()[1])
        assert ", at byte " in line
        assert line.endswith("X-A : evil\\x1b[31m")


@pytest.mark.parametrize(
    ("data", "hint", "status"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00", "TLS handshake", None),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "HTTP/2 connection preface", 505),
        (b"PROXY TCP4 1.2.3.4 5.6.7.8 1 2\r\n" + GET, "PROXY protocol", 400),
        (b"\r\n\r\n\x00\r\nQUIT\n\x21\x11\x00\x0c" + bytes(12) + GET, "PROXY protocol", 400),
    ],
)
def test_other_protocols_are_recognised(
    caplog: pytest.LogCaptureFixture, data: bytes, hint: str, status: int | None
) -> None:
    with running(hello) as server, server.connect() as client:
        client.send(data)
        if status is not None:
            assert client.response().status == status
        assert client.is_closed()
        (line,) = [record.getMessage() for record in caplog.records]
        assert hint in line


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"NONSENSE\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: test\r\nContent-Length: 8000000\r\n\r\n", 413),
        (b"POST / HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n", 400),
    ],
)
@pytest.mark.parametrize(("app", "options"), [(echo, {}), (asgi_echo, ASGI)])
def test_refusal_survives_the_megabytes_behind_it(app: Any, options: dict[str, Any], head: bytes, status: int) -> None:
    with running(app, **options, limit_request_body=1000) as server, server.connect() as client:
        client.send(head + bytes(8_000_000))
        assert client.response().status == status
        assert client.is_closed()
        client.sock.close()
        wait_empty(server)


def test_lingering_ends_in_time() -> None:
    with running(hello) as server, server.connect() as client:
        set_times(server, linger=0.02)
        client.send(b"NONSENSE\r\n\r\n")
        wait_empty(server)
        assert client.response().status == 400


def test_nothing_behind_connection_close_is_looked_at(caplog: pytest.LogCaptureFixture) -> None:
    with running(echo) as server, server.connect() as client:
        client.send(GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n") + b"\x00garbage\r\n\r\n" * 10000)
        answer = client.response()
        assert (answer.status, answer.fields["connection"]) == (200, "close")
        assert client.is_closed()
        client.sock.close()
        wait_empty(server)
    assert not caplog.records


def test_lines_about_refused_requests_are_limited(caplog: pytest.LogCaptureFixture) -> None:
    with running(hello) as server:
        for _ in range(80):
            with server.connect() as client:
                client.send(b"NONSENSE\r\n\r\n").response()
    assert len(caplog.records) == 60


def test_broken_body_cuts_an_answer_that_has_begun() -> None:
    """The client must not take the answer for a whole one, also where only the end of the connection ends it."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"part", "more_body": True})
        while (await receive())["type"] != "http.disconnect":
            pass

    with running(app, **ASGI) as server, server.connect() as client:
        client.send(b"POST / HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n")
        client.read_until(b"part\r\n")
        client.send(b"xyz\r\n")
        assert client.is_closed()
    with running(app, **ASGI) as server, server.connect() as client:
        client.send(b"POST / HTTP/1.0\r\nContent-Length: 10\r\n\r\n123")
        client.read_until(b"part")
        client.sock.shutdown(socket.SHUT_WR)
        with pytest.raises(ConnectionResetError):
            client.sock.recv(1)


# ---- answers that are cut


def test_failure_behind_a_queue_of_bytes_ends_the_connection() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        while not only(server).queued_bytes:
            await send({"type": "http.response.body", "body": bytes(65000), "more_body": True})
        raise ValueError("boom")

    with running(app, **ASGI) as server, server.connect() as client:
        client.send(GET)
        wait_for(lambda: only(server).state == "CLOSING")
        assert not client.read_to_end().endswith(b"0\r\n\r\n")
        client.sock.close()
        wait_empty(server)


def test_answer_that_ends_with_the_connection_is_cut_by_a_reset() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"part", "more_body": True})
        raise ValueError("boom")

    with running(app, **ASGI) as server, server.connect() as client:
        client.send(b"GET / HTTP/1.0\r\n\r\n")
        wait_empty(server)
        with pytest.raises(ConnectionResetError):
            read_all(client.sock)


# ---- keep-alive


def test_http_1_0_keeps_alive_when_asked() -> None:
    with running(hello) as server, server.connect() as client:
        for _ in range(2):
            client.send(b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
            assert client.response().fields["connection"] == "keep-alive"
        client.send(b"GET / HTTP/1.0\r\n\r\n")
        assert client.response().fields["connection"] == "close"
        assert client.is_closed()


def test_keep_alive_off() -> None:
    with running(hello, timeout_keep_alive=0) as server, server.connect() as client:
        assert client.get().fields["connection"] == "close"
        assert client.is_closed()


# ---- time limits


def test_idle_connection_is_closed() -> None:
    with running(hello, timeout_keep_alive=0.02) as server, server.connect() as client:
        assert client.get().status == 200
        assert client.is_closed()
        wait_empty(server)


@pytest.mark.parametrize(("app", "options"), [(echo, {}), (asgi_echo, ASGI)])
def test_request_that_comes_with_the_end_of_its_time_is_answered(app: Any, options: dict[str, Any]) -> None:
    with running(app, **options) as server, server.connect() as client:
        assert client.get().status == 200
        connection = only(server)
        in_loop(server, lambda: (client.send(GET), connection.on_deadline(1e12)))
        assert client.response().status == 200
        assert client.get().status == 200


@pytest.mark.parametrize("before", [0, 1])
def test_half_a_head_is_refused_in_time(before: int) -> None:
    with running(hello, timeout_request_head=0.05) as server, server.connect() as client:
        client.send(GET * before + GET[:20])
        assert [client.response().status for _ in range(before + 1)] == [200] * before + [408]
        assert client.is_closed()


def test_client_that_says_nothing_is_closed_without_an_answer(caplog: pytest.LogCaptureFixture) -> None:
    with running(hello, timeout_request_head=0.05) as server, server.connect() as client:
        assert client.is_closed()
        wait_empty(server)
    assert not caplog.records


@pytest.mark.parametrize(("app", "options"), [(echo, {}), (asgi_echo, ASGI)])
@pytest.mark.parametrize("rest", [b"Content-Length: 10\r\n\r\n12345", b"Transfer-Encoding: chunked\r\n\r\n5\r\n123"])
def test_stalled_body_is_refused(app: Any, options: dict[str, Any], rest: bytes) -> None:
    with running(app, **options, timeout_request_body=0.05) as server, server.connect() as client:
        client.send(b"POST / HTTP/1.1\r\nHost: test\r\n" + rest)
        assert client.response().status == 408
        assert client.is_closed()
        client.sock.close()
        wait_empty(server)


def test_body_has_no_time_limit_while_the_application_does_not_read() -> None:
    go = threading.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        while not go.is_set():
            await pause()
        await asgi_echo(scope, receive, send)

    with running(app, **ASGI, timeout_request_body=0.05) as server, server.connect() as client:
        client.send(b"POST / HTTP/1.1\r\nHost: test\r\nContent-Length: 200000\r\n\r\n" + bytes(200_000))
        connection = only(server)
        wait_for(lambda: connection.state == "BODY" and connection.deadline == float("inf"))
        wait_for_ticks(server, 10)
        go.set()
        assert client.response().status == 200


def test_body_has_no_time_limit_before_100_continue() -> None:
    go = threading.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        while not go.is_set():
            await pause()
        await asgi_echo(scope, receive, send)

    with running(app, **ASGI, timeout_request_body=0.05) as server, server.connect() as client:
        client.send(b"POST / HTTP/1.1\r\nHost: test\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n")
        wait_for(lambda: only(server).state == "BODY")
        wait_for_ticks(server, 10)
        go.set()
        assert client.response().status == 100
        client.send(b"12345")
        assert client.response().body == b"/ 12345"
        client.send(b"POST / HTTP/1.1\r\nHost: test\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n")
        assert client.response().status == 100
        assert client.response().status == 408  # from the 100 on it has


async def pause() -> None:
    await asyncio.sleep(0.005)


def wait_for_ticks(server: Running, count: int) -> None:
    """Until the sweep has been `count` times over the connections."""
    connections = shared(server)
    seen: list[object] = []

    def sweep() -> None:
        seen.append(None)
        type(connections)._on_tick(connections)

    connections._on_tick = sweep
    wait_for(lambda: len(seen) > count)
    del connections._on_tick


def test_failing_sweep_does_not_end_the_time_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    with running(hello, timeout_keep_alive=0.02) as server, server.connect() as client, server.connect() as other:
        failed = threading.Event()
        original = Connection.on_deadline

        def fail_once(self: Connection, now: float) -> None:
            if not failed.is_set():
                failed.set()
                raise ValueError("boom")
            original(self, now)

        monkeypatch.setattr(Connection, "on_deadline", fail_once)
        assert (client.get().status, other.get().status) == (200, 200)
        assert client.is_closed()
        assert other.is_closed()
        assert failed.is_set()


# ---- limits


def test_concurrency_limit_counts_the_running_requests_only() -> None:
    app = Waiting()
    with running(app, limit_concurrency=2) as server, connect_all(server, 5) as clients:
        clients[0].send(GET)
        clients[1].send(GET)
        app.wait_entered()
        app.wait_entered()
        answer = clients[2].get()
        assert answer.status == 503
        assert answer.fields["retry-after"] == "1"
        assert "connection" not in answer.fields
        app.go.set()
        assert [client.response().status for client in clients[:2]] == [200, 200]
        wait_for(lambda: shared(server).active == 0)
        assert [client.get().status for client in clients] == [200] * 5


def test_concurrency_limit_of_one_serves_one() -> None:
    with running(hello, limit_concurrency=1) as server, server.connect() as client, server.connect() as other:
        assert [client.get().status, other.get().status, client.get().status] == [200, 200, 200]


def test_longest_idle_connection_makes_room() -> None:
    with running(hello, limit_connections=3) as server, connect_all(server, 3) as clients:
        for client in clients:
            assert client.get().status == 200
        clients[0].get()  # now the second is the longest idle
        with server.connect() as other:
            assert other.get().status == 200
            assert clients[1].is_closed()
            assert [clients[0].get().status, clients[2].get().status, other.get().status] == [200, 200, 200]


@pytest.mark.parametrize("limit", [1, 2])
def test_busy_connections_make_no_room_until_they_are_idle(limit: int) -> None:
    app = Waiting()
    with running(app, limit_connections=limit) as server, connect_all(server, limit) as clients:
        for client in clients:
            client.send(GET)
            app.wait_entered()
        wait_for(lambda: shared(server).on_room is not None)
        with server.connect() as other:
            other.send(GET)
            assert len(shared(server)) == limit
            app.go.set()
            assert other.response().status == 200
            assert [client.response().status for client in clients] == [200] * limit


def test_silent_clients_make_room_after_a_while() -> None:
    with running(hello, limit_connections=2, timeout_request_head=1000) as server, connect_all(server, 2):
        wait_for(lambda: shared(server).on_room is not None)
        with server.connect() as other:
            other.send(GET)
            # as if they had come ten seconds ago
            in_loop(server, lambda: [setattr(each, "deadline", each.deadline - 10) for each in shared(server)])
            assert other.response().status == 200
            assert len(shared(server)) == 2


def test_many_more_clients_than_the_limit_are_all_served() -> None:
    with running(hello, limit_connections=4) as server, connect_all(server, 40) as clients:
        for client in clients:
            client.send(GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
        assert [client.response().status for client in clients] == [200] * 40
        assert len(shared(server)) <= 4


def test_forwarding_fields_of_a_stranger_are_worth_one_line(caplog: pytest.LogCaptureFixture) -> None:
    with running(hello, forwarded_allow_ips=("10.0.0.1",)) as server:
        for _ in range(2):
            with server.connect() as client:
                assert client.get(X_Forwarded_For="1.2.3.4").status == 200
    (record,) = caplog.records
    assert "127.0.0.1" in record.getMessage()


# ---- what is left behind


def descriptors() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="needs /proc")
@pytest.mark.parametrize(("app", "options"), [(echo, {}), (asgi_echo, ASGI)])
def test_no_descriptor_is_left(app: Any, options: dict[str, Any]) -> None:
    with running(app, **options):
        pass  # what is opened once
    before = descriptors()
    with running(app, **options) as server:
        for say in (send_half_head, send_half_body, send_and_read, send_error):
            client = server.connect()
            say(client)
            reset(client)
        wait_empty(server)
    assert len(descriptors()) == len(before)


@pytest.fixture
def _no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("_no_collector")
@pytest.mark.parametrize(("app", "options"), [(echo, {}), (asgi_echo, ASGI)])
@pytest.mark.parametrize("body", [None, b"whole", "late"])
def test_requests_make_no_reference_cycles(app: Any, options: dict[str, Any], body: Any) -> None:
    with running(app, **options) as server, server.connect() as client:

        def ask() -> None:
            if body is None:
                client.get()
            elif body == "late":
                client.send(b"POST / HTTP/1.1\r\nHost: test\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n")
                assert client.response().status == 100
                client.send(b"12345").response()
            else:
                client.post(body)

        ask()
        gc.collect()
        for _ in range(100):
            ask()
        assert in_loop(server, gc.collect) == 0


@pytest.mark.usefixtures("_no_collector")
@pytest.mark.parametrize("leave", [reset, finish])
@pytest.mark.parametrize("say", [send_nothing, send_half_head, send_half_body, send_and_read, send_error])
@pytest.mark.parametrize(("app", "options"), [(echo, {}), (asgi_echo, ASGI)])
def test_closed_connections_are_freed_without_the_collector(
    app: Any, options: dict[str, Any], say: Callable[[Client], None], leave: Callable[[Client], None]
) -> None:
    def live() -> set[int]:
        return {id(each) for each in gc.get_objects() if type(each) is Connection}

    before = live()  # tracebacks that other tests' parameters gathered may hold some
    with running(app, **options) as server:
        for _ in range(3):
            client = server.connect()
            say(client)
            only(server)
            leave(client)
            wait_empty(server)
        wait_for(lambda: live() <= before)


# ---- no state turns the loop for nothing


def turns_in_ticks(server: Running, count: int) -> int:
    """How often the loop turns while the sweep comes `count` times."""
    turns: list[object] = []
    in_loop(server, lambda: [server.server._loop.before_poll(lambda: turns.append(None))])  # type: ignore[union-attr]
    wait_for_ticks(server, count)
    return len(turns)


def quiet_busy(client: Client, server: Running) -> None:
    client.send(GET)


def quiet_half_closed(client: Client, server: Running) -> None:
    client.send(GET).sock.shutdown(socket.SHUT_WR)
    wait_for(lambda: only(server)._eof)


def quiet_full_buffer(client: Client, server: Running) -> None:
    fill(client, server, GET)


def quiet_gone(client: Client, server: Running) -> None:
    """Half-closed first, so that the reset finds nothing watched."""
    quiet_half_closed(client, server)
    reset(client)


@pytest.mark.parametrize("become", [quiet_busy, quiet_half_closed, quiet_full_buffer, quiet_gone])
@pytest.mark.parametrize("kind", ["wsgi", "asgi"])
def test_waiting_states_do_not_spin(kind: str, become: Callable[[Client, Running], None]) -> None:
    waiting = Waiting()

    async def asgi(scope: Any, receive: Any, send: Any) -> None:
        waiting.entered.release()
        await asyncio.to_thread(waiting.go.wait, BOUND_SECONDS)
        await asgi_ignore(scope, receive, send)

    options = {} if kind == "wsgi" else ASGI
    with running(waiting if kind == "wsgi" else asgi, **options) as server, server.connect() as client:
        become(client, server)
        waiting.wait_entered()
        turns = turns_in_ticks(server, 20)
        waiting.go.set()
    # a tick is one turn, or two where asyncio polls once more; what the pool and the log do is a few more
    assert turns < 20 * 3 + 20


def test_unread_stream_does_not_spin() -> None:
    with running(Stream(), **ASGI) as server, server.connect() as client:
        client.send(GET)
        wait_for(lambda: only(server).queued_bytes)
        assert turns_in_ticks(server, 20) < 20 * 3 + 20


def test_time_of_the_head_runs_from_its_first_byte() -> None:
    with running(echo, timeout_request_head=100.0) as server, server.connect() as client:
        connection = only(server)
        before = connection.deadline
        wait_for(lambda: server.server._loop is not None and server.server._loop.now() > before - 100.0 + 0.01)
        client.send(b"G")
        wait_for(lambda: connection.deadline > before)
        after = connection.deadline
        client.send(b"ET")
        wait_for(lambda: len(connection.engine.buffer) == 3)
        assert connection.deadline == after
