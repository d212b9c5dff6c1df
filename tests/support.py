"""A running server for a test, a client that speaks bytes, and waiting with a bound."""

from __future__ import annotations

import contextlib
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from stdserve.config import Config
from stdserve.server import Server

# How long anything may take before a test gives up. Long, because the machine may be slow; nothing waits it out.
BOUND_SECONDS = 20.0

QUIET = {"port": 0, "access_log": False}


class Running:
    """A server that runs in a thread of this process."""

    def __init__(self, server: Server, thread: threading.Thread, failure: list[BaseException]) -> None:
        self.server = server
        self.thread = thread
        self.failure = failure

    @property
    def address(self) -> tuple[str, int]:
        host, port = self.server.listeners[0].server
        return host, int(port or 0)

    @property
    def url(self) -> str:
        return "http://%s:%d" % self.address

    def connect(self) -> Client:
        return Client(socket.create_connection(self.address, timeout=BOUND_SECONDS))

    def stop(self) -> None:
        if self.thread.is_alive():
            self.server.stop()
        self.thread.join(BOUND_SECONDS)
        assert not self.thread.is_alive(), "the server did not stop"


@contextlib.contextmanager
def running(app: Any, **options: Any) -> Iterator[Running]:
    """Serve `app` on a free port of 127.0.0.1 until the block ends."""
    server = Server(Config(app=app, **{**QUIET, **options}))
    failure: list[BaseException] = []

    def run() -> None:
        try:
            server.run()
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=run, name="server-under-test")
    thread.start()
    try:
        wait_for(lambda: server.started.is_set() or failure)
        if failure:
            raise failure[0]
        yield Running(server, thread, failure)
    finally:
        if thread.is_alive() and not server.stopping:  # a second stop would not let anything end
            server.stop()
        thread.join(BOUND_SECONDS)
        assert not thread.is_alive(), "the server did not stop"


def wait_for(condition: Callable[[], Any], seconds: float = BOUND_SECONDS) -> Any:
    """The condition's first true value; AssertionError if there is none in time. For what sends no event of its own."""
    deadline = time.monotonic() + seconds
    pause = threading.Event()
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not within {seconds} s: {condition}"
        pause.wait(0.002)
    return value


class Client:
    """A socket and what has come from it. `response()` reads one whole answer."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.buffer = b""
        self.at_end = False

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()

    def send(self, data: bytes) -> Client:
        self.sock.sendall(data)
        return self

    def get(self, target: str = "/", **fields: str) -> Response:
        lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in fields.items())
        return self.send(f"GET {target} HTTP/1.1\r\nHost: test\r\n{lines}\r\n".encode()).response()

    def post(self, body: bytes, target: str = "/", **fields: str) -> Response:
        lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in fields.items())
        head = f"POST {target} HTTP/1.1\r\nHost: test\r\nContent-Length: {len(body)}\r\n{lines}\r\n"
        return self.send(head.encode() + body).response()

    def read_more(self) -> bool:
        """Wait for more bytes; False at the end of the connection (also by a reset)."""
        try:
            data = self.sock.recv(65536)
        except ConnectionResetError:
            data = b""
        self.buffer += data
        self.at_end = self.at_end or not data
        return bool(data)

    def read_until(self, mark: bytes) -> bytes:
        while mark not in self.buffer:
            assert self.read_more(), f"the connection ended before {mark!r}: {self.buffer[-200:]!r}"
        data, _, self.buffer = self.buffer.partition(mark)
        return data + mark

    def read_exactly(self, count: int) -> bytes:
        while len(self.buffer) < count:
            assert self.read_more(), f"the connection ended {count - len(self.buffer)} bytes early"
        data, self.buffer = self.buffer[:count], self.buffer[count:]
        return data

    def read_to_end(self) -> bytes:
        while self.read_more():
            pass
        data, self.buffer = self.buffer, b""
        return data

    def is_closed(self) -> bool:
        """Whether the server ends the connection without another byte; waits for it."""
        return not self.buffer and not self.read_more()

    def response(self, method: str = "GET") -> Response:
        """Read one answer; its body is framed by RFC 9112 6.3."""
        head = self.read_until(b"\r\n\r\n")[:-4].split(b"\r\n")
        status = int(head[0].split(b" ")[1])
        headers = [tuple(line.split(b": ", 1)) for line in head[1:]]
        fields = {name.decode().lower(): value.decode("latin-1") for name, value in headers}
        if method == "HEAD" or status in (204, 304) or status < 200:
            body = b""
        elif fields.get("transfer-encoding") == "chunked":
            body = self._chunks()
        elif "content-length" in fields:
            body = self.read_exactly(int(fields["content-length"]))
        else:
            body = self.read_to_end()
        return Response(status, head[0], headers, fields, body)

    def _chunks(self) -> bytes:
        pieces = []
        while size := int(self.read_until(b"\r\n")[:-2], 16):
            pieces.append(self.read_exactly(size))
            assert self.read_exactly(2) == b"\r\n"
        while self.read_until(b"\r\n") != b"\r\n":
            pass
        return b"".join(pieces)


class Response:
    def __init__(self, status: int, line: bytes, headers: list[Any], fields: dict[str, str], body: bytes) -> None:
        self.status = status
        self.line = line
        self.headers = headers
        self.fields = fields
        self.body = body

    def __repr__(self) -> str:
        return f"<Response {self.status} {self.fields} {self.body[:80]!r}>"
