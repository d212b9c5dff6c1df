"""One request and its response: the meeting place of connection and application.

    connection                       exchange                          gateway
    -----------                      --------                          -------
    receive_data*  receive_end   ->  body, body_complete     ->        take_body
    lose                         ->  disconnected            ->        told through on_change
    send_response, send_data,    <-  accounts for lengths    <-        start  send*  ( | fail )
    send_file, finish, cut           (RFC 9110 8.6)

An exchange belongs to the loop thread. Another thread (a WSGI application's) makes the ResponseHead itself, so that
the application gets the traceback of a bad header, and hands everything else over with `loop.call_soon_threadsafe`.

It knows neither sockets nor how HTTP frames a body, nor WSGI or ASGI.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterable
from typing import Any, Protocol

from .errors import ClientDisconnected
from .protocol.forwarded import Forwarded
from .protocol.message import BODILESS, Request, ResponseHead

logger = logging.getLogger("stdserve.error")

# Above this many bytes nobody reads on or writes on: a connection stops reading until the application has taken the
# body, an application waits until the client has taken the answer. One socket buffer's worth: less costs system
# calls, more only memory (64 KiB per direction and request).
HIGH_WATER_BYTES = 64 * 1024


# A file up to this size is read and leaves with the head in one buffer, a longer one goes by os.sendfile.
_FILE_COPY_BYTES = 16 * 1024


class FileRegion:
    """Bytes of an open file that go out as a piece of a body. `len()` is how many are left to send."""

    __slots__ = ("count", "fd", "file", "offset")

    def __init__(self, file: Any, offset: int, count: int) -> None:
        self.file = file  # kept, so that the descriptor stays open
        self.fd: int = file.fileno()
        self.offset = offset
        self.count = count

    def __len__(self) -> int:
        return self.count


def file_piece(file: Any, offset: int, count: int) -> bytes | FileRegion:
    """`count` bytes of an open file as a piece of a body: the bytes themselves where a system call more costs more."""
    if count > _FILE_COPY_BYTES or not hasattr(os, "pread"):
        return FileRegion(file, offset, count)
    data = os.pread(file.fileno(), count, offset)
    if len(data) < count:
        raise OSError("a file that was to be sent has become shorter")
    return data


class Channel(Protocol):
    """What an exchange needs of the connection (or stream) that carries it."""

    client: tuple[str, int] | None
    server: tuple[str, int | None]
    scheme: str
    root_path: str
    queued_bytes: int
    tls: Any  # None, or with `extension` and `environ` for ASGI and WSGI

    def send_response(self, exchange: Exchange, head: ResponseHead, body: Any, end: bool) -> None: ...
    def send_data(self, exchange: Exchange, data: Any, end: bool) -> None: ...
    def send_trailers(self, exchange: Exchange, lines: list[bytes]) -> None: ...
    def send_informational(self, exchange: Exchange, status: int, lines: list[bytes]) -> None: ...
    def can_send_trailers(self, exchange: Exchange) -> bool: ...
    def can_send_file(self) -> bool: ...
    def resume_reading(self, exchange: Exchange) -> None: ...
    def finish(self, exchange: Exchange) -> None: ...
    def cut(self, exchange: Exchange) -> None: ...
    def forbid_keep_alive(self) -> None: ...


class Upgrade(Protocol):
    """A client's WebSocket handshake, in order. The application accepts it, or answers `exchange` like any request.

    subprotocols   those that the client offers, the best first
    """

    exchange: Exchange
    subprotocols: list[bytes]

    def accept(self, subprotocol: bytes | None, headers: Iterable[Any]) -> WebSocketChannel: ...


class WebSocketChannel(Protocol):
    """An open WebSocket as a gateway sees it. Loop thread.

    messages       those that have come and were not taken; `take_message` takes the first
    closed         (code, reason) as soon as nothing more comes or can be sent; messages that came before stay
    on_change      called once, and forgotten, when one of these or the write queue changes
    """

    messages: list[str | bytes]
    closed: tuple[int, str] | None
    on_change: Callable[[], object] | None
    queued_bytes: int

    def take_message(self) -> str | bytes: ...
    def send_text(self, text: str) -> None: ...
    def send_binary(self, data: bytes) -> None: ...
    def close(self, code: int, reason: str) -> None: ...


class Exchange:
    """Attributes for gateways and logs (all the loop thread's to write):

    request, client, server, scheme, root_path   as the client or a trusted proxy says
    started          time.perf_counter() when the head was complete
    status           0 until the response starts, and for good if the client goes before
    sent_bytes       bytes of the body handed to the connection
    response_headers what the application gave
    environ          the WSGI environ if a log wants it
    body_complete    the client has sent the whole body
    disconnected     the client has gone: nothing that is sent arrives any more
    peer_closed      the client will send no more, but may still read
    finished         the last byte of the answer has left, or never will
    on_finished      called once when `finished` becomes true
    on_change        called when one of body, body_complete, disconnected, peer_closed or the write queue changes
    """

    __slots__ = (
        "_body", "_body_bytes", "_continue_due", "_left", "_no_body", "body_complete", "channel", "client",
        "disconnected", "ended", "environ", "finished", "on_change", "on_finished", "peer_closed", "request",
        "response_headers", "root_path", "scheme", "sent_bytes", "server", "started", "status", "task",
    )  # fmt: skip

    def __init__(self, request: Request, channel: Channel) -> None:
        self.request = request
        self.channel = channel
        self.client = channel.client
        self.server = channel.server
        self.scheme = channel.scheme
        self.root_path = channel.root_path
        self.started = time.perf_counter()
        self.status = 0
        self.sent_bytes = 0
        self.response_headers: Iterable[Any] = ()
        self.environ: dict[str, Any] | None = None
        self.task: Any = None  # what runs it: an asyncio task or a pool job, for reports and cancelling
        body = request.body
        self.body_complete = body is not None
        self._body: list[bytes] = [body] if body else []
        self._body_bytes = len(body) if body else 0
        self._continue_due = request.expect_continue and body is None
        self._left: int | None = None  # bytes of the declared Content-Length still to come
        self._no_body = False
        self.disconnected = self.peer_closed = self.ended = self.finished = False
        self.on_change: Callable[[], object] | None = None
        self.on_finished: Callable[[], object] | None = None

    # ---- from the connection

    def forward(self, forwarded: Forwarded) -> None:
        """Take what a trusted proxy says of the client's side of it."""
        self.client = forwarded.client
        self.scheme = forwarded.scheme
        if forwarded.host is not None:
            self.request.set_host(forwarded.host)
            host = forwarded.host.decode("ascii")
            port = forwarded.port or (443 if forwarded.scheme == "https" else 80)
            self.server = (host[1:].partition("]")[0] if host[:1] == "[" else host.partition(":")[0], port)
        elif forwarded.port is not None and self.server[1] is not None:
            self.server = (self.server[0], forwarded.port)
        if forwarded.prefix is not None:
            self.root_path = forwarded.prefix + self.root_path

    def receive_data(self, data: bytes) -> bool:
        """Take a piece of the body; False when the connection should read no more for now."""
        self._body.append(data)
        self._body_bytes += len(data)
        if self.on_change is not None:
            self.on_change()
        return self._body_bytes < HIGH_WATER_BYTES

    def receive_end(self) -> None:
        self.body_complete = True
        self._changed()

    def close_peer(self) -> None:
        """The client has ended its side; its request is complete and the answer still counts."""
        self.peer_closed = True
        self._changed()

    def lose(self) -> None:
        """The client has gone, or its request turned out to be broken."""
        self.disconnected = self.peer_closed = True
        self._body.clear()
        self._changed()

    def release(self) -> None:
        """The answer is over: a last call to those who wait, and no reference cycle through them is left."""
        on_change, on_finished = self.on_change, self.on_finished
        self.on_change = self.on_finished = None
        if on_finished is not None:
            on_finished()
        if on_change is not None:
            on_change()

    def drained(self) -> None:
        """The write queue is empty again."""
        self._changed()

    # ---- from the application

    @property
    def has_body(self) -> bool:
        """Whether `take_body` has something."""
        return bool(self._body)

    def take_body(self) -> bytes:
        """All of the body that has arrived and not been taken; the connection reads on."""
        pieces = self._body
        data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        if pieces:
            self._body = []
            paused, self._body_bytes = self._body_bytes >= HIGH_WATER_BYTES, 0
            if paused and not self.body_complete:
                self.channel.resume_reading(self)
        return data

    def want_body(self) -> None:
        """The application reads: a client that waits for 100 (Continue) gets it now (RFC 9110 10.1.1)."""
        if self._continue_due:
            self._continue_due = False
            if not self.status and not self.body_complete and not self.disconnected:
                self.channel.send_informational(self, 100, [])

    def start(self, head: ResponseHead, body: Any, end: bool) -> None:
        """The response's head and the first piece of its body; `end` if that is all."""
        self.status = head.status
        self.response_headers = head.headers
        if self._continue_due and not self.body_complete:
            # The client still waits for our word and may send the body or the next request: nobody can tell which.
            self.channel.forbid_keep_alive()
        if self.disconnected:
            self.ended = end
            if end:
                self.channel.finish(self)
            return
        short = False
        if head.status in BODILESS or head.status == 205 or self.request.method == b"HEAD":
            self._no_body = True
            body = b""
        elif (length := head.content_length) is not None:
            self._left = length
            if len(body) == length:
                self._left = 0
            else:
                body = self._fit(body)
                short = end and self._left > 0
        self.sent_bytes = len(body)
        self.ended = end
        self.channel.send_response(self, head, body, end)
        if short:
            self._cut_short()
        elif end:
            self.channel.finish(self)

    def send(self, data: Any, end: bool) -> None:
        """The next piece of the body. Data for a client that has gone is dropped; the caller asks `disconnected`."""
        short = False
        if self._no_body:
            data = b""
        elif self._left is not None:
            data = self._fit(data)
            short = end and self._left > 0
        self.ended = end
        if not self.disconnected:
            self.sent_bytes += len(data)
            self.channel.send_data(self, data, end)
        if short:
            self._cut_short()
        elif end:
            self.channel.finish(self)

    def send_trailers(self, lines: list[bytes]) -> None:
        """End the response with trailer fields, if the body's framing and the client allow them."""
        if self.channel.can_send_trailers(self) and not self.disconnected:
            self.ended = True
            self.channel.send_trailers(self, lines)
            self.channel.finish(self)
        else:
            self.send(b"", True)

    def send_early_hints(self, lines: list[bytes]) -> None:
        """103 (Early Hints, RFC 8297); `lines` are checked field lines. Nothing once the response has started."""
        if not self.status and not self.disconnected:
            self.channel.send_informational(self, 103, lines)

    def fail(self) -> None:
        """The application cannot answer, or not to the end: 500 if nothing has been sent, else cut the connection."""
        if self.ended:
            return
        if self.status == 0 and not self.disconnected:
            self.start(error_head(500), b"Internal Server Error\n", True)
        else:
            self.ended = True
            if not self.disconnected:
                self.channel.cut(self)
            self.channel.finish(self)

    @property
    def must_wait(self) -> bool:
        """The client takes the answer more slowly than it is written: wait for `on_change`."""
        # Once this answer has left, what is queued is of the next
        return self.channel.queued_bytes > HIGH_WATER_BYTES and not self.disconnected and not self.finished

    def check_connected(self) -> None:
        if self.disconnected:
            raise ClientDisconnected(f"the client of {self} has gone")

    def __repr__(self) -> str:
        request = self.request
        peer = "unix" if self.client is None else "%s:%d" % self.client
        return f"{request.method.decode()} {request.target.decode('ascii', 'replace')} from {peer}"

    # ---- private

    def _changed(self) -> None:
        if self.on_change is not None:
            self.on_change()

    def _fit(self, data: Any) -> Any:
        """`data` cut to what the declared Content-Length has left."""
        left = self._left or 0
        if len(data) > left:
            logger.error("%r: the application sent more than its Content-Length; the rest is dropped", self)
            self.channel.forbid_keep_alive()
            data = file_piece(data.file, data.offset, left) if isinstance(data, FileRegion) else data[:left]
            self._no_body = True  # what follows is dropped without a further word
        self._left = left - len(data)
        return data

    def _cut_short(self) -> None:
        if not self.disconnected:
            text = "%r: the application ended its answer %d bytes short of its Content-Length; connection cut"
            logger.error(text, self, self._left)
            self.channel.cut(self)
        self.channel.finish(self)


def error_head(status: int, *more: tuple[bytes, bytes]) -> ResponseHead:
    """The head of a short text answer that the server gives itself."""
    return ResponseHead(status, [(b"Content-Type", b"text/plain; charset=utf-8"), *more])
