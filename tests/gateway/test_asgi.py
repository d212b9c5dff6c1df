"""gateway/asgi.py: ASGI 3.0 (HTTP spec 2.5) and 2.0 as an application sees it, and what of it reaches the wire."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import gc
import logging
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import types
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from stdserve.exchange import HIGH_WATER_BYTES
from stdserve.transport import connections
from stdserve.transport.connection import READ_BYTES
from tests.support import BOUND_SECONDS, Client, Running, running, wait_for

ROOT = Path(__file__).resolve().parents[2]

Scope = dict[str, Any]
Message = dict[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

START: Message = {"type": "http.response.start", "status": 200, "headers": []}
BODY: Message = {"type": "http.response.body", "body": b"done"}


def start(status: int = 200, *headers: tuple[bytes, bytes], **more: Any) -> Message:
    return {"type": "http.response.start", "status": status, "headers": list(headers), **more}


def piece(body: bytes, more: bool = True) -> Message:
    return {"type": "http.response.body", "body": body, "more_body": more}


async def answer(send: Send, body: bytes = b"done") -> None:
    await send(start(200, (b"content-length", b"%d" % len(body))))
    await send({"type": "http.response.body", "body": body})


async def read_body(receive: Receive) -> bytes:
    body = b""
    while True:
        message = await receive()
        assert message["type"] == "http.request"
        body += message["body"]
        if not message["more_body"]:
            return body


def serve(app: Any, **options: Any) -> contextlib.AbstractContextManager[Running]:
    return running(app, **{"interface": "asgi3", "lifespan": "off", **options})


class Gate:
    """Where an application waits until the test lets it go on."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._future: asyncio.Future[None] | None = None

    async def wait(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._future = self._loop.create_future()
        self.reached.set()
        await self._future

    def await_reached(self) -> None:
        assert self.reached.wait(BOUND_SECONDS), "the application did not come here"

    def open(self) -> None:
        self.await_reached()
        assert self._loop is not None and self._future is not None
        self._loop.call_soon_threadsafe(self._future.set_result, None)


class Log(logging.Handler):
    """Keeps what is logged."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)

    def texts(self, level: int = logging.WARNING) -> list[str]:
        return [record.getMessage() for record in self.records if record.levelno >= level]

    def has(self, text: str, level: int = logging.WARNING) -> bool:
        return any(text in line for line in self.texts(level))


@pytest.fixture
def log() -> Iterator[Log]:
    """All lines of the server, whatever other tests have set up."""
    handler = Log()
    logger = logging.getLogger("stdserve")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(5)
    yield handler
    logger.setLevel(level)
    logger.removeHandler(handler)


@pytest.fixture
def fast_sweep(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "SWEEP_SECONDS", 0.02)


# ---- scope


def scope_of(request: bytes, **options: Any) -> Scope:
    scopes: list[Scope] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        scopes.append(scope)
        await answer(send)

    with serve(app, **options) as server, server.connect() as client:
        assert client.send(request).response().status == 200
        scopes[0]["__address"] = (client.sock.getsockname(), server.address)
    return scopes[0]


def test_scope_has_every_key_of_the_spec() -> None:
    fields = b"Host: test\r\nX-Two: 1\r\nx-two: 2\r\nContent-Length: 0\r\n"
    scope = scope_of(b"PUT /a%20b;c?d=%20&e HTTP/1.1\r\n" + fields + b"\r\n")
    client, server = scope.pop("__address")
    assert scope == {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.5"},
        "http_version": "1.1",
        "method": "PUT",
        "scheme": "http",
        "path": "/a b;c",
        "raw_path": b"/a%20b;c",
        "query_string": b"d=%20&e",
        "root_path": "",
        "headers": [(b"host", b"test"), (b"x-two", b"1"), (b"x-two", b"2"), (b"content-length", b"0")],
        "client": client,
        "server": server,
        "state": {},
        "extensions": {"http.response.pathsend": {}, "http.response.zerocopysend": {}, "http.response.early_hint": {}},
    }


def test_a_path_is_decoded_as_utf8_and_never_fails() -> None:
    scope = scope_of(b"GET /%E2%82%AC%2F%ff//x%zz HTTP/1.1\r\nHost: test\r\n\r\n")
    assert scope["path"] == "/\u20ac/\ufffd//x%zz"
    assert scope["raw_path"] == b"/%E2%82%AC%2F%ff//x%zz"


def test_a_path_includes_the_root_path() -> None:
    scope = scope_of(b"GET /a%20b HTTP/1.1\r\nHost: test\r\n\r\n", root_path="/mounted/")
    assert (scope["root_path"], scope["path"], scope["raw_path"]) == ("/mounted", "/mounted/a b", b"/mounted/a%20b")


@pytest.mark.parametrize(
    ("root_path", "decoded", "raw"),
    [("/a%20b", "/a b", b"/a%20b"), ("/é", "/é", b"/%C3%A9"), ("/a b", "/a b", b"/a%20b")],
)
def test_the_root_path_is_decoded_where_the_path_is(root_path: str, decoded: str, raw: bytes) -> None:
    scope = scope_of(b"GET /x HTTP/1.1\r\nHost: test\r\n\r\n", root_path=root_path)
    assert (scope["root_path"], scope["path"], scope["raw_path"]) == (decoded, decoded + "/x", raw + b"/x")


def test_a_trusted_proxy_names_client_and_scheme() -> None:
    fields = b"X-Forwarded-For: 192.0.2.7\r\nX-Forwarded-Proto: https\r\n"
    scope = scope_of(b"GET / HTTP/1.1\r\nHost: test\r\n" + fields + b"\r\n")
    assert (scope["client"][0], scope["scheme"]) == ("192.0.2.7", "https")


def test_an_untrusted_client_names_nothing() -> None:
    fields = b"X-Forwarded-For: 192.0.2.7\r\nX-Forwarded-Proto: https\r\n"
    scope = scope_of(b"GET / HTTP/1.1\r\nHost: test\r\n" + fields + b"\r\n", forwarded_allow_ips=("192.0.2.1",))
    assert (scope["client"][0], scope["scheme"]) == ("127.0.0.1", "http")


@pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="no unix sockets")
def test_on_a_unix_socket_there_is_no_client_and_the_server_is_the_path(tmp_path: Path) -> None:
    scopes: list[Scope] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        scopes.append(scope)
        await answer(send)

    path = str(tmp_path / "s")
    with serve(app, uds=path), socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(BOUND_SECONDS)
        sock.connect(path)
        assert Client(sock).get().status == 200
    assert (scopes[0]["client"], scopes[0]["server"]) == (None, (path, None))


@pytest.mark.parametrize(
    ("head", "names"),
    [
        (b"HTTP/1.1\r\nTE: trailers\r\nConnection: te", {"early_hint", "trailers"}),
        (b"HTTP/1.1\r\nTE: gzip", {"early_hint"}),
        (b"HTTP/1.0", set()),
        (b"HTTP/1.0\r\nTE: trailers", set()),
    ],
)
def test_only_extensions_that_work_are_announced(head: bytes, names: set[str]) -> None:
    scope = scope_of(b"GET / " + head + b"\r\nHost: test\r\n\r\n")
    always = {"pathsend", "zerocopysend"}
    assert scope["extensions"] == {f"http.response.{name}": {} for name in names | always}


def test_a_request_cannot_change_the_scope_of_another() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        fresh = "mark" not in scope["asgi"] and "mark" not in scope["state"] and "mark" not in scope["extensions"]
        for key in ("asgi", "state", "extensions"):
            scope[key]["mark"] = True
        scope["headers"].append((b"mark", b""))
        await answer(send, b"fresh" if fresh and len(scope["headers"]) == 2 else b"stale")

    with serve(app) as server, server.connect() as client:
        assert [client.get().body for _ in range(3)] == [b"fresh"] * 3


def test_state_of_the_lifespan_is_copied_for_each_request() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            scope["state"]["list"] = []
            await lifespan(receive, send)
            return
        scope["state"]["list"].append(1)  # the copy is shallow
        seen = "own" in scope["state"]
        scope["state"]["own"] = True
        await answer(send, b"%d %d" % (len(scope["state"]["list"]), seen))

    with serve(app, lifespan="on") as server, server.connect() as client:
        assert [client.get().body for _ in range(3)] == [b"1 0", b"2 0", b"3 0"]


async def lifespan(receive: Receive, send: Send) -> None:
    """Start and stop of an application that does nothing there."""
    assert (await receive())["type"] == "lifespan.startup"
    await send({"type": "lifespan.startup.complete"})
    assert (await receive())["type"] == "lifespan.shutdown"
    await send({"type": "lifespan.shutdown.complete"})


@pytest.mark.parametrize("waits", [False, True])
def test_a_request_has_the_context_of_the_lifespan_and_not_of_other_requests(waits: bool) -> None:
    inherited: contextvars.ContextVar[str] = contextvars.ContextVar("inherited", default="unset")
    own: contextvars.ContextVar[str] = contextvars.ContextVar("own", default="unset")

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            inherited.set("lifespan")
            await lifespan(receive, send)
            return
        before = own.get()
        own.set("request")
        inherited.set(inherited.get())
        if waits:
            await asyncio.sleep(0)
        await answer(send, f"{inherited.get()} {before} {own.get()}".encode())

    with serve(app, lifespan="on") as server, server.connect() as client:
        assert [client.get().body for _ in range(3)] == [b"lifespan unset request"] * 3


def test_asgi2_is_called_in_two_steps() -> None:
    class App:
        def __init__(self, scope: Scope) -> None:
            self.scope = scope

        async def __call__(self, receive: Receive, send: Send) -> None:
            body = await read_body(receive)
            await answer(send, self.scope["asgi"]["version"].encode() + b" " + body)

    with serve(App, interface="asgi2") as server, server.connect() as client:
        assert client.post(b"hello").body == b"2.0 hello"


# ---- receive


def test_a_body_in_many_pieces_comes_whole_and_says_when_it_ends() -> None:
    messages: list[Message] = []
    gates = [Gate() for _ in range(3)]

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        for gate in gates:
            messages.append(await receive())
            await gate.wait()
        messages.append(await receive())
        await answer(send)

    with serve(app) as server, server.connect() as client:
        client.send(b"POST / HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n")
        for gate, data in zip(gates, (b"one", b"two", b"three"), strict=True):
            client.send(b"%x\r\n%b\r\n" % (len(data), data))
            gate.open()
        client.send(b"0\r\n\r\n")
        assert client.response().status == 200
    assert [message["body"] for message in messages] == [b"one", b"two", b"three", b""]
    assert [message["more_body"] for message in messages] == [True, True, True, False]


def test_no_body_is_one_empty_message() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await answer(send, repr(await receive()).encode())

    with serve(app) as server, server.connect() as client:
        assert client.get().body == b"{'type': 'http.request', 'body': b'', 'more_body': False}"


def test_several_tasks_may_wait_in_receive_at_once() -> None:
    gate = Gate()
    ends: list[list[str]] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        tasks = [asyncio.ensure_future(receive()) for _ in range(5)]
        await asyncio.sleep(0)
        await gate.wait()
        done, waiting = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        assert [task.result()["body"] for task in done] == [b"x"]
        await answer(send)
        ends.append([(await task)["type"] for task in waiting])

    with serve(app) as server, server.connect() as client:
        client.send(b"POST / HTTP/1.1\r\nHost: test\r\nContent-Length: 1\r\n\r\n")
        gate.open()
        assert client.send(b"x").response().body == b"done"
    assert ends == [["http.disconnect"] * 4]


def test_a_cancelled_receive_loses_nothing_and_leaves_nothing() -> None:
    gate = Gate()
    left: list[int] = []

    async def app(scope: Scope, receive: Any, send: Send) -> None:
        for _ in range(50):
            task = asyncio.ensure_future(receive())
            await asyncio.sleep(0)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        left.append(len(receive.__self__._waiters))
        await gate.wait()
        await answer(send, await read_body(receive))

    with serve(app) as server, server.connect() as client:
        client.send(b"POST / HTTP/1.1\r\nHost: test\r\nContent-Length: 3\r\n\r\n")
        gate.await_reached()
        client.send(b"abc")
        gate.open()
        assert client.response().body == b"abc"
    assert left == [0]


def test_after_the_answer_receive_gives_disconnect_at_once() -> None:
    seen: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] == "POST":
            await read_body(receive)
        await answer(send)
        seen.append((await receive())["type"])

    with serve(app) as server, server.connect() as client:
        assert client.post(b"abc").status == 200
        assert client.get().status == 200  # its body has not been asked for
    assert seen == ["http.disconnect"] * 2


def test_a_client_that_half_closes_still_gets_its_answer() -> None:
    seen: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        body = await read_body(receive)
        seen.append((await receive())["type"])
        await answer(send, body)

    with serve(app) as server, server.connect() as client:
        client.send(b"POST / HTTP/1.1\r\nHost: test\r\nContent-Length: 3\r\n\r\nabc")
        client.sock.shutdown(socket.SHUT_WR)
        response = client.response()
        assert (response.status, response.body, response.fields["connection"]) == (200, b"abc", "close")
        assert client.is_closed()
    assert seen == ["http.disconnect"]


def test_an_error_of_the_application_is_loud_though_the_client_has_half_closed(log: Log) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        raise OSError("the application's own")

    with serve(app) as server, server.connect() as client:
        client.send(b"GET / HTTP/1.1\r\nHost: test\r\n\r\n")
        client.sock.shutdown(socket.SHUT_WR)
        assert client.response().status == 500
    assert log.has("the application's own", logging.ERROR)


def test_a_body_that_ends_too_early_is_a_disconnect_and_never_whole(log: Log) -> None:
    gate = Gate()
    seen: list[Message] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(await receive())
        gate.reached.set()
        seen.append(await receive())
        await send(START)

    with serve(app) as server, server.connect() as client:
        client.send(b"POST / HTTP/1.1\r\nHost: test\r\nContent-Length: 10\r\n\r\nabc")
        gate.await_reached()
        client.sock.shutdown(socket.SHUT_WR)
        assert client.response().status == 400
    assert seen == [{"type": "http.request", "body": b"abc", "more_body": True}, {"type": "http.disconnect"}]
    assert not log.texts(logging.ERROR)


def vanish(client: Client) -> None:
    """Close with a reset."""
    client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.sock.close()


def test_a_client_that_vanishes_wakes_an_application_that_waits() -> None:
    gate, told = Gate(), threading.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        gate.reached.set()
        assert (await receive())["type"] == "http.disconnect"
        assert (await receive())["type"] == "http.disconnect"
        told.set()

    with serve(app) as server:
        client = server.connect()
        client.send(b"GET / HTTP/1.1\r\nHost: test\r\n\r\n")
        gate.await_reached()
        vanish(client)
        assert told.wait(BOUND_SECONDS)


def test_expect_is_answered_when_the_application_reads_first() -> None:
    gate = Gate()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] == "POST":
            await gate.wait()
        await answer(send, await read_body(receive))

    with serve(app) as server, server.connect() as client:
        client.send(b"POST / HTTP/1.1\r\nHost: test\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n")
        gate.await_reached()
        client.sock.setblocking(False)
        with pytest.raises(BlockingIOError):
            client.sock.recv(1)
        client.sock.settimeout(BOUND_SECONDS)
        gate.open()
        assert client.read_until(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        assert client.send(b"abc").response().body == b"abc"
        assert client.get().status == 200


def test_an_answer_without_reading_to_a_client_that_waits_for_100_is_final_and_closes() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await answer(send)
        await receive()

    with serve(app) as server, server.connect() as client:
        client.send(b"POST / HTTP/1.1\r\nHost: test\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n")
        response = client.response()
        assert (response.status, response.fields["connection"]) == (200, "close")
        assert client.is_closed()


async def deaf(scope: Scope, receive: Receive, send: Send) -> None:
    await answer(send)


def test_a_small_body_that_nobody_reads_is_skipped() -> None:
    with serve(deaf) as server, server.connect() as client:
        for _ in range(5):  # each with its own allowance
            client.send(b"POST / HTTP/1.1\r\nHost: test\r\nContent-Length: 20000\r\n\r\n")
            assert client.response().status == 200
            client.send(b"x" * 20000)
        assert client.get().body == b"done"


def test_a_large_body_that_nobody_reads_ends_the_connection() -> None:
    with serve(deaf) as server, server.connect() as client:
        client.send(b"POST / HTTP/1.1\r\nHost: test\r\nContent-Length: 9000000\r\n\r\n")
        assert client.response().status == 200
        with contextlib.suppress(OSError):
            client.send(b"x" * 9000000)
        assert not client.read_to_end()


def test_a_large_upload_to_a_slow_application_is_held_back() -> None:
    size = 8_000_000
    gate = Gate()
    held: list[int] = []
    got: list[int] = []

    async def app(scope: Scope, receive: Any, send: Send) -> None:
        exchange = receive.__self__.exchange
        await gate.wait()
        more = True
        while more:
            held.append(exchange._body_bytes)
            message = await receive()
            got.append(len(message["body"]))
            more = message["more_body"]
        await answer(send)

    with serve(app) as server, server.connect() as client:
        client.send(b"POST / HTTP/1.1\r\nHost: test\r\nContent-Length: %d\r\n\r\n" % size)
        sender = threading.Thread(target=client.send, args=(b"x" * size,))
        sender.start()
        gate.open()
        assert client.response().status == 200
        sender.join(BOUND_SECONDS)
    assert sum(got) == size
    assert max(held) <= HIGH_WATER_BYTES + READ_BYTES


# ---- send


async def hello(scope: Scope, receive: Receive, send: Send) -> None:
    await send(START)
    await send({"type": "http.response.body", "body": b"hello"})


async def chunks(scope: Scope, receive: Receive, send: Send) -> None:
    await send(START)
    await send(piece(b"hel"))
    await send(piece(b""))
    await send(piece(b"lo", False))


def test_a_body_in_one_piece_has_its_length_and_in_several_chunks() -> None:
    with serve(hello) as server, server.connect() as client:
        assert client.get().fields["content-length"] == "5"
    with serve(chunks) as server, server.connect() as client:
        response = client.get()
        assert (response.body, response.fields["transfer-encoding"]) == (b"hello", "chunked")


@pytest.mark.parametrize("body", [bytearray(b"hello"), memoryview(b"hello")])
def test_other_bytes_are_taken_as_they_are_now(body: Any) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        headers = [[b"x-list", b"1"], [b"Set-Cookie", b"a"]]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body, "extra": "ignored"})

    with serve(app) as server, server.connect() as client:
        response = client.get()
        assert (response.body, response.fields["x-list"]) == (b"hello", "1")


@pytest.mark.parametrize("app", [hello, chunks])
@pytest.mark.parametrize(("method", "status"), [("HEAD", 200), ("GET", 204), ("GET", 304)])
def test_an_answer_without_a_body_has_none(app: Any, method: str, status: int) -> None:
    async def with_status(scope: Scope, receive: Receive, send: Send) -> None:
        async def send_status(message: Message) -> None:
            await send({**message, "status": status} if "status" in message else message)

        await app(scope, receive, send_status)

    with serve(with_status) as server, server.connect() as client:
        for _ in range(2):  # nothing of a body is left over for the next answer
            response = client.send(f"{method} / HTTP/1.1\r\nHost: test\r\n\r\n".encode()).response(method)
            assert response.status == status
            assert not client.buffer
        assert "transfer-encoding" not in response.fields


def test_the_head_of_a_stream_leaves_before_its_first_piece() -> None:
    gate = Gate()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(start(200, (b"content-type", b"text/event-stream")))
        await gate.wait()
        await send(piece(b"data: 1\n\n", False))

    with serve(app) as server, server.connect() as client:
        client.send(b"GET / HTTP/1.1\r\nHost: test\r\n\r\n")
        head = client.read_until(b"\r\n\r\n")
        assert b"text/event-stream" in head
        gate.open()
        assert client._chunks() == b"data: 1\n\n"


def test_a_head_that_never_left_does_not_follow_the_error_answer() -> None:
    gate = Gate()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/wait":
            await gate.wait()
            await answer(send)
            return
        await send(start(201))
        raise ValueError("after the start, but nothing has been sent")

    with serve(app) as server, server.connect() as client:
        assert client.get().status == 500
        with server.connect() as other:
            other.send(b"GET /wait HTTP/1.1\r\nHost: test\r\n\r\n")
            gate.await_reached()
            assert gate._loop is not None
            passed = threading.Event()
            gate._loop.call_soon_threadsafe(gate._loop.call_later, 0.05, passed.set)
            assert passed.wait(BOUND_SECONDS)
            gate.open()
            assert other.response().status == 200
        assert client.get().status == 500
        assert not client.buffer


def test_work_after_the_answer_does_not_hold_the_connection() -> None:
    gate = Gate()
    done = threading.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await answer(send, scope["path"].encode())
        if scope["path"] == "/first":
            await gate.wait()
            done.set()

    with serve(app) as server, server.connect() as client:
        assert client.get("/first").body == b"/first"
        gate.await_reached()
        assert [client.get(f"/{number}").body for number in range(3)] == [b"/0", b"/1", b"/2"]
        gate.open()
        assert done.wait(BOUND_SECONDS)


def test_work_after_a_large_answer_begins_when_the_client_has_taken_it() -> None:
    done = threading.Event()
    body = b"x" * 6_000_000

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await answer(send, body)
        done.set()

    with serve(app) as server, server.connect() as client:
        for _ in range(3):
            done.clear()
            client.send(b"GET / HTTP/1.1\r\nHost: test\r\n\r\n" * 2)  # the next answer waits behind it
            assert client.response().body == body
            assert client.response().body == body
            assert done.wait(BOUND_SECONDS)
    # `running` demands that the server ends: no task hangs


def test_pipelined_requests_are_answered_in_order_without_deep_recursion() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"].endswith("7"):
            await asyncio.sleep(0)
        await answer(send, scope["path"].encode())

    count = 500
    with serve(app) as server, server.connect() as client:
        client.send(b"".join(b"GET /%d HTTP/1.1\r\nHost: test\r\n\r\n" % number for number in range(count)))
        assert [client.response().body for _ in range(count)] == [b"/%d" % number for number in range(count)]


def test_an_endless_answer_waits_for_a_slow_reader_and_is_cut_in_the_end(fast_sweep: None, log: Log) -> None:
    sent: list[int] = []
    raised: list[BaseException] = []
    ended = threading.Event()

    async def app(scope: Scope, receive: Receive, send: Any) -> None:
        exchange = send.__self__.exchange
        await send(START)
        try:
            while True:
                await send(piece(b"x" * 50_000))
                sent.append(exchange.channel.queued_bytes)
        except OSError as error:
            raised.append(error)
            raise
        finally:
            ended.set()

    with serve(app, timeout_write=0.1) as server, server.connect() as client:
        client.send(b"GET / HTTP/1.1\r\nHost: test\r\n\r\n")
        assert ended.wait(BOUND_SECONDS)
    assert max(sent) <= HIGH_WATER_BYTES + 50_000 + 100
    assert len(raised) == 1
    assert not log.texts(logging.ERROR)
    assert log.has("has gone", logging.DEBUG)


def test_a_slow_reader_that_reads_gets_everything() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(START)
        for number in range(300):
            await send(piece(b"%05d" % number * 10_000))
        await send(piece(b"", False))

    with serve(app) as server, server.connect() as client:
        body = client.get().body
    assert body == b"".join(b"%05d" % number * 10_000 for number in range(300))


def test_sending_to_a_client_that_has_gone_raises_an_oserror_that_is_logged_at_debug(log: Log) -> None:
    gate, ended = Gate(), threading.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(START)
        await send(piece(b"x"))
        await gate.wait()
        while (await receive())["type"] != "http.disconnect":
            pass
        try:
            while True:
                await send(piece(b"x"))
                await asyncio.sleep(0)
        except BaseException as error:
            assert isinstance(error, OSError)
            raise
        finally:
            ended.set()

    with serve(app) as server:
        client = server.connect()
        client.send(b"GET / HTTP/1.1\r\nHost: test\r\n\r\n").read_until(b"x")
        gate.await_reached()
        vanish(client)
        gate.open()
        assert ended.wait(BOUND_SECONDS)
        wait_for(lambda: log.has("ClientDisconnected", logging.DEBUG))
    assert not log.texts(logging.WARNING)


class ClientDisconnect(Exception):
    """As Starlette names it."""


@pytest.mark.parametrize(
    ("make", "quiet"),
    [
        (lambda: ClientDisconnect(), True),
        (lambda: asyncio.CancelledError(), True),
        (lambda: BaseExceptionGroup("", [ClientDisconnect(), asyncio.CancelledError()]), True),
        (lambda: ExceptionGroup("", [ClientDisconnect(), ValueError("own")]), False),
        (lambda: ValueError("own"), False),
        (lambda: ConnectionError("own"), False),  # to its database, perhaps
    ],
)
def test_what_an_application_raises_after_its_client_has_gone(make: Any, quiet: bool, log: Log) -> None:
    gate = Gate()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        gate.reached.set()
        await receive()
        raise make()

    with serve(app) as server:
        client = server.connect()
        client.send(b"GET / HTTP/1.1\r\nHost: test\r\n\r\n")
        gate.await_reached()
        vanish(client)
        wait_for(lambda: log.has(type(make()).__name__, logging.DEBUG))
    assert bool(log.texts(logging.ERROR)) is not quiet


def test_no_request_leaves_anything_for_the_garbage_collector(log: Log) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/raise":
            raise ValueError
        body = await read_body(receive)
        if scope["path"] == "/stream":
            await send(START)
            await send(piece(b"x"))
            while (await receive())["type"] != "http.disconnect":
                pass
        await answer(send, b"x" * 3_000_000 if scope["path"] == "/large" else body)

    def request(server: Running) -> None:
        with server.connect() as client:
            client.get("/large")
            client.get("/raise")
            client.send(b"POST / HTTP/1.1\r\nHost: test\r\nContent-Length: 3\r\n\r\n")
            wait_for(lambda: server.server._asgi.tasks())
            client.send(b"abc").response()
            client.send(b"GET /stream HTTP/1.1\r\nHost: test\r\n\r\n").read_until(b"x")
        wait_for(lambda: not server.server._connections and not server.server._asgi.tasks())

    with serve(app) as server:
        request(server)
        gc.collect()
        gc.disable()
        gc.set_debug(gc.DEBUG_SAVEALL)
        try:
            request(server)
            gc.collect()
            left = [repr(found) for found in gc.garbage if type(found).__module__.startswith("stdserve")]
        finally:
            gc.set_debug(0)
            gc.garbage.clear()
            gc.enable()
    assert not left


# ---- both ways to be wrong


@pytest.mark.parametrize(
    ("messages", "text"),
    [
        ([BODY], "before http.response.start"),
        ([START, START], "twice"),
        ([START, piece(b"a"), START], "twice"),
        ([START, BODY, BODY], "after the response was complete"),
        ([START, BODY, START], "twice"),
        ([{"type": "http.response.unknown"}], "unexpected message type"),
        ([{"type": "websocket.accept"}], "unexpected message type"),
        ([START, {"type": "http.response.trailers", "headers": []}], "unexpected message type"),
        ([{**START, "trailers": True}, {"type": "http.response.trailers", "headers": []}], "before the body's end"),
        ([{**START, "trailers": True}, piece(b""), {"type": "http.response.trailers"}], "before the body's end"),
        ([{**START, "trailers": True}, BODY, BODY], "after the response was complete"),
        ([START, BODY, {"type": "http.response.early_hint", "links": []}], "after the response was complete"),
        ([{**START, "status": 99}], "response status 99"),
        ([{**START, "status": "200"}], "response status '200'"),
        ([{**START, "status": True}], "response status True"),
        ([START, {**BODY, "body": "text"}], "is not bytes"),
        ([START, {**BODY, "body": None}], "is not bytes"),
    ],
)
def test_a_wrong_message_raises_runtimeerror_in_the_application(messages: list[Message], text: str) -> None:
    raised: list[BaseException] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            for message in messages:
                await send(message)
        except RuntimeError as error:
            raised.append(error)

    with serve(app) as server, server.connect() as client:
        client.send(b"GET / HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n").read_to_end()
    assert len(raised) == 1
    assert text in str(raised[0])


@pytest.mark.parametrize("message", [{}, None, {"type": "http.response.start"}, {**START, "headers": None}])
def test_a_message_that_is_none_raises_in_the_application(message: Any, log: Log) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(message)

    with serve(app) as server, server.connect() as client:
        assert client.get().status == 500
        assert client.get().status == 500
    assert log.has("Exception in ASGI application", logging.ERROR)


@pytest.mark.parametrize(
    "header",
    [
        (b"x:y", b"1"),
        (b"", b"1"),
        (b"x y", b"1"),
        (b"x\r\ny", b"1"),
        (b"x", b"1\r\ninjected: 1"),
        (b"x", b"1\ninjected: 1"),
        (b"x", b"\x00injected"),
        (b"content-length", b"+4"),
        (b"content-length", b"injected"),
        ("x\u20ac", b"injected"),
        (b"x", "injected\u20ac"),
        (b"x", None),
        (b"injected",),
        b"injected",
    ],
)
def test_a_bad_header_is_500_and_nothing_of_it_reaches_the_wire(header: Any, log: Log) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 201, "headers": [(b"x-before", b"1"), header]})
        await send({"type": "http.response.body", "body": b"injected"})

    with serve(app) as server, server.connect() as client:
        client.send(b"GET / HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n")
        wire = client.read_to_end()
    assert wire.startswith(b"HTTP/1.1 500 ")
    assert b"injected" not in wire and b"x-before" not in wire
    assert log.has("Exception in ASGI application", logging.ERROR)


def test_after_a_bad_header_the_application_may_still_answer_well() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await send(start(200, (b"bad name", b"1")))
        except RuntimeError:
            await answer(send, b"sorry")

    with serve(app) as server, server.connect() as client:
        assert client.get().body == b"sorry"


def fails(kind: str) -> Any:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/good":
            await answer(send)
            return
        if scope["method"] == "POST":
            await read_body(receive)
        if kind == "raises":
            raise ValueError("why")
        if kind == "exits":
            raise SystemExit("why")
        if kind == "interrupts":
            raise KeyboardInterrupt("why")
        if kind == "cancels itself":
            task = asyncio.current_task()
            assert task is not None
            task.cancel("why")
            await asyncio.sleep(0)
        if kind == "raises later":
            await asyncio.sleep(0)
            raise ValueError("why")
        if kind == "a future that is cancelled":
            future = asyncio.get_running_loop().create_future()
            future.cancel("why")
            await future

    return app


@pytest.mark.parametrize(
    "kind", ["raises", "raises later", "exits", "interrupts", "cancels itself", "a future that is cancelled"]
)
def test_an_application_that_fails_before_its_start_is_500_and_the_connection_goes_on(kind: str, log: Log) -> None:
    with serve(fails(kind)) as server, server.connect() as client:
        response = client.get()
        assert (response.status, response.body) == (500, b"Internal Server Error\n")
        assert client.post(b"x" * 100_000).status == 500
        assert client.get("/good").status == 200
    assert log.has("Exception in ASGI application: GET / from 127.0.0.1", logging.ERROR)
    assert log.has("Traceback", logging.ERROR)
    assert log.has("why", logging.ERROR)


def test_an_application_that_never_starts_is_500(log: Log) -> None:
    with serve(fails("never starts")) as server, server.connect() as client:
        assert client.get().status == 500
        assert client.get("/good").status == 200
    assert log.has("returned without a complete answer", logging.ERROR)


@pytest.mark.parametrize("result", [None, 1, "text"])
def test_an_application_that_is_not_async_is_500(result: Any, log: Log) -> None:
    with serve(lambda scope, receive, send: result) as server, server.connect() as client:
        assert client.get().status == 500
    assert log.has("TypeError", logging.ERROR)


def receive_all(sock: socket.socket) -> None:
    while sock.recv(65536):
        pass


@pytest.mark.parametrize("fault", ["raises", "returns", "exits"])
@pytest.mark.parametrize("version", ["1.1", "1.0"])
def test_an_application_that_fails_in_its_body_has_its_connection_cut(fault: str, version: str, log: Log) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(START)
        await send(piece(b"part"))
        if fault != "returns":
            raise ValueError("why") if fault == "raises" else SystemExit

    with serve(app) as server, server.connect() as client:
        client.send(f"GET / HTTP/{version}\r\nHost: test\r\n\r\n".encode())
        if version == "1.1":
            wire = client.read_to_end()
            assert b"part" in wire and b"0\r\n\r\n" not in wire
        else:  # its end is the connection's end: only a reset tells it from a good one
            with pytest.raises(ConnectionResetError):
                receive_all(client.sock)
    assert log.texts(logging.ERROR)


def test_too_few_bytes_cut_the_connection(log: Log) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(start(200, (b"content-length", b"10")))
        await send(piece(b"abc"))
        await send(piece(b"def", False))

    with serve(app) as server, server.connect() as client:
        client.send(b"GET / HTTP/1.1\r\nHost: test\r\n\r\n" * 2)
        assert client.read_to_end().endswith(b"\r\n\r\nabcdef")
    assert log.has("4 bytes short", logging.ERROR)


@pytest.mark.parametrize("bodies", [[b"abcdef"], [b"ab", b"cdef"], [b"abc", b"def", b"ghi", b"jkl"]])
def test_too_many_bytes_are_cut_off_and_said_once(bodies: list[bytes], log: Log) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(start(200, (b"content-length", b"3")))
        for body in bodies:
            await send(piece(body))
        await send(piece(b"", False))

    with serve(app) as server, server.connect() as client:
        client.send(b"GET / HTTP/1.1\r\nHost: test\r\n\r\n" * 2)
        assert client.read_to_end().endswith(b"\r\n\r\nabc")
    assert len(log.texts(logging.ERROR)) == 1


# ---- extensions


def test_trailers_follow_a_chunked_body_for_a_client_that_wants_them() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(start(200, (b"trailer", b"x-sum"), trailers=True))
        await send(piece(b"body", False))
        await send({"type": "http.response.trailers", "headers": [(b"x-sum", b"1")], "more_trailers": True})
        await send({"type": "http.response.trailers", "headers": [(b"x-more", b"2")]})

    with serve(app) as server, server.connect() as client:
        client.send(b"GET / HTTP/1.1\r\nHost: test\r\nTE: trailers\r\nConnection: te\r\n\r\n")
        client.read_until(b"\r\n\r\n")
        assert client.read_until(b"\r\n\r\n") == b"4\r\nbody\r\n0\r\nx-sum: 1\r\nx-more: 2\r\n\r\n"
        assert client.get().body == b"body"  # and without for one that does not
        assert not client.buffer


def test_announced_trailers_that_never_come_cut_the_connection(log: Log) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(start(200, trailers=True))
        await send(piece(b"body", False))

    with serve(app) as server, server.connect() as client:
        client.send(b"GET / HTTP/1.1\r\nHost: test\r\nTE: trailers\r\nConnection: te\r\n\r\n")
        assert not client.read_to_end().endswith(b"0\r\n\r\n")
    assert log.has("without a complete answer", logging.ERROR)


@pytest.mark.parametrize("version", ["1.1", "1.0"])
def test_early_hints_precede_the_head(version: str) -> None:
    hint = {"type": "http.response.early_hint", "links": [b"</a.css>; rel=preload", b"</b.js>; rel=preload"]}

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(hint)
        await send(START)
        await send(hint)  # the head has not left yet
        await send(piece(b"body"))
        await send(hint)  # too late: ignored
        await send(piece(b"", False))

    links = b"Link: </a.css>; rel=preload\r\nLink: </b.js>; rel=preload\r\n"
    with serve(app) as server, server.connect() as client:
        client.send(f"GET / HTTP/{version}\r\nHost: test\r\nConnection: close\r\n\r\n".encode())
        wire = client.read_to_end()
    expected = (b"HTTP/1.1 103 Early Hints\r\n" + links + b"\r\n") * 2 if version == "1.1" else b""
    assert wire.startswith(expected + b"HTTP/1.1 200 OK\r\n")
    assert wire.count(b"103") == (2 if version == "1.1" else 0)


@pytest.mark.parametrize("sendfile", [True, False])
@pytest.mark.parametrize("size", [0, 5, 16 * 1024, 16 * 1024 + 1, 3_000_000])
def test_pathsend_sends_the_file(size: int, sendfile: bool, tmp_path: Path) -> None:
    path = tmp_path / "file"
    content = (b"0123456789abcdef" * (size // 16 + 1))[:size]
    path.write_bytes(content)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        headers = [(b"content-length", b"%d" % size)] if scope["path"] == "/length" else []
        await send(start(200, *headers))
        await send({"type": "http.response.pathsend", "path": str(path)})

    with serve(app, sendfile=sendfile) as server, server.connect() as client:
        assert client.get("/length").body == content
        assert client.get("/").body == content
        head = client.send(b"HEAD /length HTTP/1.1\r\nHost: test\r\n\r\n").response("HEAD")
        assert head.fields["content-length"] == str(size)
        assert client.send(b"GET / HTTP/1.0\r\n\r\n").response().body == content


@pytest.mark.parametrize("path", ["missing", "."])
def test_pathsend_of_what_is_no_file_is_500(path: str, tmp_path: Path, log: Log) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(START)
        await send({"type": "http.response.pathsend", "path": str(tmp_path / path)})

    with serve(app) as server, server.connect() as client:
        assert client.get().status == 500
    assert log.has("Exception in ASGI application", logging.ERROR)


@pytest.mark.parametrize("sendfile", [True, False])
def test_zerocopysend_sends_ranges_between_other_pieces(sendfile: bool, tmp_path: Path) -> None:
    path = tmp_path / "file"
    content = bytes(range(256)) * 1000
    path.write_bytes(content)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        message = {"type": "http.response.zerocopysend", "more_body": True}
        await send(START)
        with path.open("rb") as file:
            file.read(10)
            await send({**message, "file": file, "count": 10})  # from its position, which moves on
            await send(piece(b"|"))
            await send({**message, "file": file, "offset": 100_000, "count": 50_000})
            await send(piece(b"|"))
            await send({**message, "file": file, "count": 5})
            await send(piece(b"|"))
            await send({**message, "file": file, "offset": 255_990, "count": 99})  # ends with the file
            await send({"type": "http.response.zerocopysend", "file": file})

    with serve(app, sendfile=sendfile) as server, server.connect() as client:
        parts = (content[10:20], b"|", content[100_000:150_000], b"|", content[20:25], b"|", content[255_990:])
        assert client.get().body == b"".join(parts) + content[25:]


def test_a_file_whose_sender_is_cancelled_goes_on_and_is_never_another_file(tmp_path: Path) -> None:
    size = 4_000_000
    (tmp_path / "right").write_bytes(b"r" * size)
    (tmp_path / "wrong").write_bytes(b"w" * size)
    gate = Gate()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(start(200, (b"content-length", b"%d" % size)))
        with (tmp_path / "right").open("rb") as file:
            sending = asyncio.ensure_future(send({"type": "http.response.zerocopysend", "file": file}))
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)
        with (tmp_path / "wrong").open("rb"):  # has the number that the other one had
            await gate.wait()

    with serve(app) as server, server.connect() as client:
        client.send(b"GET / HTTP/1.1\r\nHost: test\r\n\r\n")
        gate.await_reached()
        assert client.response().body == b"r" * size
        gate.open()


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="no /proc")
def test_no_file_stays_open_for_clients_that_vanish(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x" * 4_000_000)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(START)
        await send({"type": "http.response.pathsend", "path": str(tmp_path / "file")})

    with serve(app) as server:
        with server.connect() as client:
            client.send(b"GET / HTTP/1.0\r\n\r\n").read_to_end()
        wait_for(lambda: not server.server._connections)
        before = open_descriptors()
        for _ in range(5):
            client = server.connect()
            client.send(b"GET / HTTP/1.1\r\nHost: test\r\n\r\n").read_until(b"\r\n\r\n")
            vanish(client)
        wait_for(lambda: open_descriptors() == before)


# ---- hosts


@pytest.mark.parametrize("name", ["auto", "asyncio", "local_factory:make", "uvloop"])
def test_every_host_serves(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if name == "uvloop":
        pytest.importorskip("uvloop")
    module: Any = types.ModuleType("local_factory")
    module.make = asyncio.new_event_loop
    monkeypatch.setitem(sys.modules, "local_factory", module)
    gate = Gate()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await lifespan(receive, send)
        elif scope["path"] == "/work":
            process = await asyncio.create_subprocess_exec(sys.executable, "-c", "print('out')", stdout=subprocess.PIPE)
            output, _ = await process.communicate()
            name = await asyncio.to_thread(lambda: threading.current_thread().name)
            await answer(send, output.strip() + name[:7].encode())
        elif scope["path"] == "/stream":
            await send(START)
            await gate.wait()
            for _ in range(100):
                await send(piece(b"x" * 100_000))
            await send(piece(b"", False))
        else:
            await asyncio.sleep(0.001)
            await answer(send, await read_body(receive))

    with serve(app, loop=name, lifespan="on") as server, server.connect() as client:
        assert client.post(b"abc").body == b"abc"
        assert client.get("/work").body == b"outasyncio"
        client.send(b"GET /stream HTTP/1.1\r\nHost: test\r\n\r\n").read_until(b"\r\n\r\n")  # by a timer of the host
        gate.open()
        assert len(client._chunks()) == 10_000_000
        assert client.post(b"x" * 1_000_000).body == b"x" * 1_000_000


@pytest.mark.parametrize("name", ["no_such_module_here:make", "asyncio:no_such_factory"])
def test_a_loop_that_cannot_be_had_is_a_start_that_fails(name: str) -> None:
    from stdserve.errors import ConfigError

    with pytest.raises(ConfigError, match=f"--loop {name}"), serve(hello, loop=name):
        pass


def test_trace_logs_every_message_but_no_body(log: Log) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await lifespan(receive, send)
        else:
            await answer(send, await read_body(receive))

    with serve(app, log_level="trace", lifespan="on") as server, server.connect() as client:
        assert client.post(b"secret", "/traced").body == b"secret"
    lines = [record.getMessage() for record in log.records if record.name == "stdserve.asgi"]
    assert any(line.startswith("http /traced receive") and "<6 bytes>" in line for line in lines)
    assert any(line.startswith("http /traced send") and "http.response.start" in line for line in lines)
    assert any("lifespan.startup.complete" in line for line in lines)
    assert any(line.startswith("http /traced completed") for line in lines)
    assert not any("secret" in line for line in lines)


# ---- the process


SIGNALS_APP = """
import signal

def on_usr1(number, frame):
    pass

async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        await receive()
        signal.signal(signal.SIGUSR1, on_usr1)
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await send({"type": "lifespan.shutdown.complete"})
        return
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"main"})
"""


@contextlib.contextmanager
def process(directory: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "stdserve", "app:app", "--app-dir", str(directory), "--port", "0", *arguments]
    environ = {**os.environ, "NO_COLOR": "1"}
    out = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    child = subprocess.Popen(command, cwd=ROOT, env=environ, text=True, **out)
    try:
        yield child
    finally:
        child.kill()
        child.communicate()


@pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="no SIGUSR1")
def test_with_main_loop_an_application_may_set_signal_handlers(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(SIGNALS_APP)
    with process(tmp_path, "--main-loop") as child:
        assert child.stderr is not None
        port = 0
        for line in child.stderr:
            if "running on" in line:
                port = int(line.partition("http://127.0.0.1:")[2].split()[0])
                break
        with Client(socket.create_connection(("127.0.0.1", port), timeout=BOUND_SECONDS)) as client:
            assert client.get().body == b"main"
        child.send_signal(signal.SIGINT)
        _, rest = child.communicate(timeout=BOUND_SECONDS)
        assert child.returncode == 0, rest
        assert "Application shutdown complete" in rest


@pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="no SIGUSR1")
def test_without_main_loop_the_error_of_a_signal_handler_names_the_option(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(SIGNALS_APP)
    with process(tmp_path) as child:
        _, text = child.communicate(timeout=BOUND_SECONDS)
        assert child.returncode == 3, text
        assert "--main-loop" in text
        assert "signal.signal(signal.SIGUSR1" in text  # the application's traceback
