"""A WebSocket client that speaks frames, also wrong ones, and what its tests need around it."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import socket
import struct
import threading
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

from tests import frames
from tests.frames import BINARY, CLOSE, PING, PONG, TEXT, Frame, frame
from tests.support import BOUND_SECONDS, Client, Response, Running, running, wait_for

KEY = "dGhlIHNhbXBsZSBub25jZQ=="  # of RFC 6455 1.3
ACCEPT = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="

Message = dict[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


def handshake(path: str = "/", **fields: str | None) -> bytes:
    """The request; a field that is None is left out, `_` stands for `-`."""
    given: dict[str, str | None] = {
        "Host": "test",
        "Upgrade": "websocket",
        "Connection": "Upgrade",
        "Sec-WebSocket-Key": KEY,
        "Sec-WebSocket-Version": "13",
        **{name.replace("_", "-"): value for name, value in fields.items()},
    }
    lines = "".join(f"{name}: {value}\r\n" for name, value in given.items() if value is not None)
    return f"GET {path} HTTP/1.1\r\n{lines}\r\n".encode()


class Socket(Client):
    """An open WebSocket; `answer` is the head of the 101."""

    def __init__(self, client: Client, answer: Response) -> None:
        super().__init__(client.sock)
        self.buffer = client.buffer
        self.answer = answer

    def text(self, text: str | bytes) -> Socket:
        self.send(frame(TEXT, text))
        return self

    def binary(self, data: bytes) -> Socket:
        self.send(frame(BINARY, data))
        return self

    def read_frame(self) -> Frame:
        head = self.read_exactly(2)
        length = head[1]
        if length > 125:
            more = self.read_exactly(2 if length == 126 else 8)
            head, length = head + more, int.from_bytes(more, "big")
        (found,) = frames.read_frames(head + self.read_exactly(length))
        return found

    def read(self, opcode: int = TEXT) -> bytes:
        """The payload of the next frame, which is a whole one of this kind."""
        found = self.read_frame()
        assert found.first == 0x80 | opcode, found
        return found.payload

    def read_close(self) -> tuple[int, str]:
        """(code, reason) of a Close frame."""
        payload = self.read(CLOSE)
        return (int.from_bytes(payload[:2], "big"), payload[2:].decode()) if payload else (1005, "")

    def close(self, code: int = 1000, reason: str = "") -> Socket:
        self.send(frames.close(code, reason))
        return self

    def ping(self, data: bytes = b"") -> Socket:
        self.send(frame(PING, data))
        return self

    def pong(self, data: bytes = b"") -> Socket:
        self.send(frame(PONG, data))
        return self


def connect(server: Running, path: str = "/", behind: bytes = b"", **fields: str | None) -> Socket:
    """An accepted handshake; `behind` is sent in the same packet."""
    return socket_over(server.connect(), behind, path, **fields)


def socket_over(client: Client, behind: bytes = b"", path: str = "/", **fields: str | None) -> Socket:
    """The same over a connection that is there."""
    client.send(handshake(path, **fields) + behind)
    head = client.read_until(b"\r\n\r\n")
    lines = [line.partition(b": ") for line in head[:-4].split(b"\r\n")[1:]]
    headers = [(name, value) for name, _, value in lines]
    answer = Response(
        int(head.split(b" ")[1]),
        head.partition(b"\r\n")[0],
        headers,
        {name.decode().lower(): value.decode("latin-1") for name, value in headers},
        b"",
    )
    assert answer.status == 101, head
    return Socket(client, answer)


@contextlib.contextmanager
def serve(app: Any, **options: Any) -> Iterator[Running]:
    with running(app, **{"interface": "asgi3", "lifespan": "off", **options}) as server:
        try:
            yield server
        finally:
            if isinstance(app, Puppet):
                app.let_go()


def connections(server: Running) -> Any:
    return server.server._connections


def only(server: Running) -> Any:
    """The one connection there is."""
    (connection,) = wait_for(lambda: list(connections(server)))
    return connection


def wait_empty(server: Running) -> None:
    """All connections are gone and no request counts as running."""
    wait_for(lambda: len(connections(server)) == 0 and connections(server).active == 0)
    assert server.server._asgi is not None
    wait_for(lambda: not server.server._asgi.tasks())  # type: ignore[union-attr]


def in_loop(server: Running, call: Callable[[], Any]) -> Any:
    """The result of a call in the loop thread."""
    result: list[Any] = []
    server.server.call_in_loop(lambda: result.append(call()))
    return wait_for(lambda: result)[0]


def reset(client: Client) -> None:
    """Go without a word: the server gets a reset."""
    client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.sock.close()


# ---- applications


async def accept(receive: Receive, send: Send, **more: Any) -> None:
    assert await receive() == {"type": "websocket.connect"}
    await send({"type": "websocket.accept", **more})


async def echo(scope: Any, receive: Receive, send: Send) -> None:
    """Also answers HTTP, with what kind of request it was."""
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"4")]})
        await send({"type": "http.response.body", "body": b"http"})
        return
    await accept(receive, send)
    while (message := await receive())["type"] == "websocket.receive":
        await send({**message, "type": "websocket.send"})


class Puppet:
    """An application that does what the test says.

    puppet.do(lambda receive, send: ...)   run it in the application, which has accepted; the result or exception of it
    puppet.receive()                       what the application receives
    puppet.end()                           let it return
    """

    def __init__(self, accepts: bool = True) -> None:
        self.accepts = accepts
        self.scope: Any = None
        self.ready = threading.Event()
        self.left = threading.Event()
        self._orders: asyncio.Queue[Any] = asyncio.Queue()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._over = False

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        self.scope = scope
        self._loop = asyncio.get_running_loop()
        if self.accepts:
            await accept(receive, send)
        self.ready.set()
        try:
            while not self._over and (order := await self._orders.get()) is not None:
                what, answers = order
                if isinstance(what, BaseException):
                    raise what
                try:
                    answers.put(await what(receive, send))
                except Exception as error:
                    answers.put(error)
        finally:
            self.left.set()

    def start(self, what: Any) -> queue.Queue[Any]:
        """Like `do`, but does not wait for the result: it will be in the queue."""
        assert self.ready.wait(BOUND_SECONDS)
        answers: queue.Queue[Any] = queue.Queue()
        self._put((what, answers))
        return answers

    def do(self, what: Callable[[Receive, Send], Awaitable[Any]]) -> Any:
        return self.start(what).get(timeout=BOUND_SECONDS)

    def receive(self) -> Any:
        return self.do(lambda receive, send: receive())

    def send(self, kind: str, **more: Any) -> Any:
        return self.do(lambda receive, send: send({"type": f"websocket.{kind}", **more}))

    def fail(self, error: BaseException) -> None:
        """Let the application raise."""
        self.start(error)
        assert self.left.wait(BOUND_SECONDS)

    def end(self) -> None:
        assert self.ready.wait(BOUND_SECONDS)
        self._put(None)
        assert self.left.wait(BOUND_SECONDS)

    def let_go(self) -> None:
        """The test is over: the application shall not hold the server's stop."""
        self._over = True
        if self.ready.is_set() and not self.left.is_set():
            self._put(None)

    def _put(self, order: Any) -> None:
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self._orders.put_nowait, order)


def disconnect(code: int, reason: str = "") -> Message:
    return {"type": "websocket.disconnect", "code": code, "reason": reason}


def text(message: str) -> Message:
    return {"type": "websocket.receive", "text": message}


def binary(message: bytes) -> Message:
    return {"type": "websocket.receive", "bytes": message}
