"""ASGI 3.0 and 2.0, HTTP (spec version 2.5): scope, receive, send; one request is one task of the asyncio loop.

The asyncio loop runs in the loop thread, so nothing is handed over: `send` goes straight to the connection, `receive`
returns at once if there is something to return and else waits on a Future.

    scope  ( receive -> http.request* | http.disconnect )*   ( send <- http.response.start  http.response.body+ )

Extensions: http.response.pathsend, http.response.zerocopysend, http.response.trailers, http.response.early_hint, tls.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import os
import stat
import traceback
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import quote, unquote

from ..errors import AppError, ClientDisconnected
from ..exchange import HIGH_WATER_BYTES, Exchange, file_piece
from ..protocol.message import ResponseHead, check_status

logger = logging.getLogger("stdserve.error")

Message = dict[str, Any]
App = Callable[..., Awaitable[None]]

_SPEC_VERSION = "2.5"

# What a path may have unencoded besides letters and digits, and the sign of what is encoded (RFC 3986 3.3)
_PATH_CHARACTERS = "/%-._~!$&'()*+,;=:@"

# A response's head waits for the first piece of the body, so that both leave in one write and a short body gets its
# Content-Length. A stream may take its time for that first piece, and its client wants the head before: so the head
# waits no less than this, and no more than twice as long.
_HOLD_SECONDS = 0.005

# A file that cannot go to the socket by itself (os.sendfile is off or missing) is read in pieces of this size.
_FILE_BLOCK_BYTES = 64 * 1024


def adapt_asgi2(app: Callable[[dict[str, Any]], Callable[..., Awaitable[None]]]) -> App:
    """ASGI 2's app(scope)(receive, send) as ASGI 3's app(scope, receive, send)."""

    async def asgi3(scope: dict[str, Any], receive: Any, send: Any) -> None:
        await app(scope)(receive, send)

    return asgi3


class ASGIGateway:
    """`handle` is called in the loop thread for each request. `state` is copied into each scope; each request runs in a
    copy of `context`, the lifespan's, so that it sees what startup has set and nothing of other requests."""

    def __init__(
        self,
        app: App,
        host: asyncio.AbstractEventLoop,
        *,
        state: dict[str, Any],
        context: contextvars.Context,
        asgi_version: str = "3.0",
    ) -> None:
        self.app = app
        self.host = host
        self.state = state
        self.context = context
        self.asgi_version = asgi_version
        self.cancelling = False
        self.tasks: set[asyncio.Task[None]] = set()
        self.held: set[_Cycle] = set()  # those whose heads wait for their bodies
        self.held_longer: set[_Cycle] = set()
        self.holding = False

    def handle(self, exchange: Exchange) -> None:
        # Not an eager task (3.12): all requests that have come are read before the first is answered. A client that is
        # busy reading need not be woken by each answer, which made 64 connections a fifth cheaper; one alone pays 3 %.
        task = asyncio.Task(_Cycle(self, exchange).run(), loop=self.host, context=self.context.copy())
        exchange.task = task
        self.tasks.add(task)  # `run` takes it out: a callback for that would cost another turn of the loop

    def watch_held(self) -> None:
        """Look after `held` in a while. One timer serves all requests of its time: one for each would cost 2 us."""
        self.holding = True
        self.host.call_later(_HOLD_SECONDS, self._on_held, context=self.context)

    def _on_held(self) -> None:
        for cycle in self.held_longer:
            if cycle.held_head is not None:
                cycle.send_head()
        self.held_longer, self.held = self.held, set()
        self.holding = False
        if self.held_longer:
            self.watch_held()

    def cancel_all(self, reason: str) -> None:
        self.cancelling = True
        for task in list(self.tasks):
            task.cancel(reason)


class _Cycle:
    """One request's receive and send.

    scope  ( receive )*  start  ( body | zerocopysend | pathsend )+  trailers*
    """

    __slots__ = ("_body_ended", "_told_end", "_told_gone", "_trailers", "_waiters", "exchange", "gateway", "held_head")

    def __init__(self, gateway: ASGIGateway, exchange: Exchange) -> None:
        self.gateway = gateway
        self.exchange = exchange
        self.held_head: ResponseHead | None = None  # waits for the first body message, so that both leave together
        self._told_end = False  # the application has had the last piece of the body
        self._told_gone = False  # and that the client has gone
        self._trailers: list[bytes] | None = None  # None: the application has not announced any
        self._body_ended = False  # and trailers are to follow
        self._waiters: list[asyncio.Future[None]] = []

    async def run(self) -> None:
        """The application's call; what it raises ends here."""
        exchange = self.exchange
        try:
            await self.gateway.app(http_scope(self.gateway, exchange), self.receive, self.send)
        except BaseException as error:
            log_failure(self.gateway, exchange, error, exchange.peer_closed)
        else:
            if not exchange.ended and not exchange.peer_closed:
                logger.error("%r: the ASGI application returned without a complete answer", exchange)
        if not exchange.ended:
            exchange.fail()
            self._on_change()
        self.gateway.tasks.discard(exchange.task)

    # ---- receive

    async def receive(self) -> Message:
        exchange = self.exchange
        while True:
            if exchange.ended or exchange.disconnected or (self._told_end and exchange.peer_closed):
                if self._told_gone:
                    await asyncio.sleep(0)  # an application that asks again and again must not hold the loop
                self._told_gone = True
                return {"type": "http.disconnect"}
            if not self._told_end and (exchange.has_body or exchange.body_complete):
                self._told_end = exchange.body_complete
                return {"type": "http.request", "body": exchange.take_body(), "more_body": not exchange.body_complete}
            else:
                exchange.want_body()
            await self._wait()

    async def _wait(self) -> None:
        """Wait until something of the exchange changes. Several tasks of one application may wait at once."""
        waiter = self.gateway.host.create_future()
        self._waiters.append(waiter)
        self.exchange.on_change = self._on_change
        try:
            await waiter
        except asyncio.CancelledError:
            # Frameworks ask by a receive() that they cancel at once, again and again, whether the client has gone
            if waiter in self._waiters:
                self._waiters.remove(waiter)
            raise

    def _on_change(self) -> None:
        self.exchange.on_change = None
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    # ---- send

    async def send(self, message: Message) -> None:
        exchange = self.exchange
        if exchange.disconnected:
            raise ClientDisconnected(f"{exchange!r}: the client has gone")
        kind = message["type"]
        if kind == "http.response.start":
            if self.held_head is not None or exchange.status:
                raise AppError("http.response.start was sent twice (ASGI HTTP spec)")
            status = message["status"]
            if type(status) is not int or not 200 <= status <= 999:
                status = check_status(status)
            self.held_head = ResponseHead(status, message.get("headers", ()))
            if message.get("trailers", False):
                self._trailers = []
            self.gateway.held.add(self)
            if not self.gateway.holding:
                self.gateway.watch_held()
        elif kind == "http.response.body":
            body = message.get("body", b"")
            self._send_piece(body if type(body) is bytes else as_bytes(body), message.get("more_body", False))
            if exchange.channel.queued_bytes > HIGH_WATER_BYTES:
                await self._wait_for_client()
        else:
            await self._send_other(kind, message)

    def send_head(self) -> None:
        """Let the head go that still waits for its body, unless an error answer has taken its place."""
        head, self.held_head = self.held_head, None
        if head is not None and not self.exchange.ended:
            self.exchange.start(head, b"", False)

    def _send_piece(self, data: Any, more: bool) -> None:
        """A piece of the body: the first one takes the head along."""
        exchange = self.exchange
        end = not more and self._trailers is None
        if self.held_head is not None:
            head, self.held_head = self.held_head, None
            self.gateway.held.discard(self)
            exchange.start(head, data, end)
        elif exchange.ended or self._body_ended:
            raise AppError("a response message was sent after the response was complete (ASGI HTTP spec)")
        elif not exchange.status:
            raise AppError("a response body was sent before http.response.start (ASGI HTTP spec)")
        else:
            exchange.send(data, end)
        if end:
            if self._waiters:
                self._on_change()
        elif not more:
            self._body_ended = True

    async def _wait_for_client(self) -> None:
        """Wait until the client has taken what is above the high-water mark."""
        exchange = self.exchange
        while exchange.must_wait:
            await self._wait()
        if exchange.disconnected and not exchange.ended:
            raise ClientDisconnected(f"{exchange!r}: the client has gone")

    async def _send_other(self, kind: str, message: Message) -> None:
        if kind == "http.response.pathsend":
            opened = _OpenFile(os.open(message["path"], _OPEN_FLAGS))
            await self._send_file(opened, 0, opened.size(), False)
        elif kind == "http.response.zerocopysend":
            file = message["file"]
            opened = _OpenFile(os.dup(file.fileno()))
            offset, count = _file_range(file, opened.size(), message.get("offset"), message.get("count"))
            await self._send_file(opened, offset, count, message.get("more_body", False))
        elif kind == "http.response.trailers" and self._trailers is not None:
            self._send_trailers(message)
        elif kind == "http.response.early_hint":
            self._send_early_hint(message)
        else:
            raise AppError(f"unexpected message type {kind!r:.80} (ASGI HTTP spec)")

    def _send_trailers(self, message: Message) -> None:
        if self.exchange.ended or not self._body_ended:
            raise AppError("http.response.trailers was sent before the body's end or after its own (ASGI extensions)")
        assert self._trailers is not None
        self._trailers += ResponseHead(200, message.get("headers", ())).lines
        if not message.get("more_trailers", False):
            self.exchange.send_trailers(self._trailers)
            self._on_change()

    def _send_early_hint(self, message: Message) -> None:
        """The spec lets it come until the body has ended. On the wire it must precede the head (RFC 8297 2), so it
        counts only until that has left."""
        if self.exchange.ended:
            raise AppError("http.response.early_hint was sent after the response was complete (ASGI extensions)")
        self.exchange.send_early_hints(ResponseHead(103, [(b"Link", link) for link in message["links"]]).lines)

    async def _send_file(self, file: _OpenFile, offset: int, count: int, more: bool) -> None:
        """Send `count` bytes of the file as a piece of the body."""
        if self.exchange.channel.can_send_file():
            self._send_piece(file_piece(file, offset, count), more)
            await self._wait_for_client()
            return
        while True:
            data = file.read_at(offset, min(count, _FILE_BLOCK_BYTES))
            offset += len(data)
            count -= len(data)
            self._send_piece(data, more or count > 0)
            await self._wait_for_client()
            if not count:
                return


def log_failure(gateway: ASGIGateway, exchange: Exchange, error: BaseException, gone: bool) -> None:
    """Log what the application raised: loud if it is the application's fault, at debug if the client has gone."""
    if (gone or gateway.cancelling) and _tells_of_disconnect(error):
        logger.debug("%r: %r", exchange, error)
        return
    text = traceback.TracebackException.from_exception(error)
    if text.stack and text.stack[0].name == "run":
        del text.stack[0]  # our own
    logger.error("Exception in ASGI application: %r\n%s", exchange, "".join(text.format()).rstrip())


def http_scope(gateway: ASGIGateway, exchange: Exchange) -> Message:
    request = exchange.request
    raw_path = request.path
    path = raw_path.decode("ascii")
    if "%" in path:
        path = unquote(path)
    root_path = exchange.root_path
    if root_path:  # the path includes it (ASGI HTTP spec, root_path)
        raw_path = quote(root_path, safe=_PATH_CHARACTERS).encode() + raw_path
        root_path = unquote(root_path)
        path = root_path + path
    scope: Message = {
        "type": "http",
        "asgi": {"version": gateway.asgi_version, "spec_version": _SPEC_VERSION},
        "http_version": request.version.decode(),
        "method": request.method.decode(),
        "scheme": exchange.scheme,
        "path": path,
        "raw_path": raw_path,
        "query_string": request.query,
        "root_path": root_path,
        "headers": request.headers,
        "client": exchange.client,
        "server": exchange.server,
        "state": gateway.state.copy(),
        "extensions": (
            {"http.response.pathsend": {}, "http.response.zerocopysend": {}, "http.response.early_hint": {}}
            if request.version == b"1.1" and b"te" not in request.fields
            else _extensions(exchange)
        ),
    }
    if exchange.channel.tls is not None:
        scope["extensions"]["tls"] = exchange.channel.tls.extension.copy()
    return scope


def _extensions(exchange: Exchange) -> dict[str, dict[str, Any]]:
    """The extensions that work for this request."""
    request = exchange.request
    extensions: dict[str, dict[str, Any]] = {"http.response.pathsend": {}, "http.response.zerocopysend": {}}
    if request.version != b"1.0":
        extensions["http.response.early_hint"] = {}
        if b"trailers" in request.fields.get(b"te", b"").lower():
            extensions["http.response.trailers"] = {}
    return extensions


def as_bytes(body: Any) -> bytes:
    try:
        return bytes(memoryview(body))
    except TypeError:
        raise AppError(f"body {body!r:.80} is not bytes (ASGI HTTP spec)") from None


_OPEN_FLAGS = os.O_RDONLY | getattr(os, "O_BINARY", 0)


class _OpenFile:
    """A descriptor of our own for a file that is being sent, closed when the last of it has left.

    The application may close its own while bytes of the file still wait for the client, because it was cancelled or
    because it may: the number would then be another file's.
    """

    __slots__ = ("_fd",)

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def __del__(self) -> None:
        os.close(self._fd)

    def fileno(self) -> int:
        return self._fd

    def size(self) -> int:
        status = os.fstat(self._fd)
        if not stat.S_ISREG(status.st_mode):
            raise AppError("what was to be sent is not a regular file (ASGI extensions)")
        return status.st_size

    def read_at(self, offset: int, count: int) -> bytes:
        if hasattr(os, "pread"):
            data = os.pread(self._fd, count, offset)
        else:  # Windows
            os.lseek(self._fd, offset, os.SEEK_SET)
            data = os.read(self._fd, count)
        if len(data) < count:
            raise OSError("a file that was to be sent has become shorter")
        return data


def _file_range(file: Any, size: int, offset: int | None, count: int | None) -> tuple[int, int]:
    """(offset, count) of zerocopysend: without offset from the file's position, which moves on, without count to its
    end."""
    start = file.tell() if offset is None else offset
    left = max(0, size - start)
    count = left if count is None else min(count, left)
    if offset is None:
        file.seek(start + count)
    return start, count


def _tells_of_disconnect(error: BaseException | None) -> bool:
    """Whether it is our ClientDisconnected, a cancellation, or what a framework makes of them.

    Starlette's exception for "http.disconnect while reading" is no OSError; its name is all there is to see.
    """
    if isinstance(error, BaseExceptionGroup):
        return all(map(_tells_of_disconnect, error.exceptions))
    if isinstance(error, (ClientDisconnected, asyncio.CancelledError)):
        return True
    return error is not None and ("Disconnect" in type(error).__name__ or _tells_of_disconnect(error.__cause__))


def trace_messages(app: App) -> App:
    """The application with every message logged at level TRACE (5) on stdserve.asgi; bodies as their lengths."""
    trace = logging.getLogger("stdserve.asgi")

    async def traced(scope: Message, receive: Any, send: Any) -> None:
        name = f"{scope['type']} {scope.get('path', '')}"

        async def traced_receive() -> Message:
            message: Message = await receive()
            trace.log(5, "%s receive %s", name, _outline(message))
            return message

        async def traced_send(message: Message) -> None:
            trace.log(5, "%s send %s", name, _outline(message))
            await send(message)

        trace.log(5, "%s started, scope %s", name, {key: scope[key] for key in scope if key != "state"})
        try:
            await app(scope, traced_receive, traced_send)
        finally:
            trace.log(5, "%s completed", name)

    return traced


# Keys of messages that are shown as their lengths
_BODIES = frozenset(("body", "bytes", "text"))


def _outline(message: Message) -> Message:
    return {key: f"<{len(value)} bytes>" if key in _BODIES and value else value for key, value in message.items()}
