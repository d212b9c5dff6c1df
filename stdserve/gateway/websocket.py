"""ASGI, WebSocket (spec version 2.5): one session is one task of the asyncio loop, as a request is.

    receive  connect  receive*  disconnect*
    send     accept ( send )* close?                                 | close                        answered with 403
             | websocket.http.response.start  .body+                 any other answer to the handshake

The application ends before it has answered: 500. It returns without close: 1000; it raises: 1011. What it sends to a
WebSocket that is closed raises ClientDisconnected, what it sends in a wrong order AppError, a RuntimeError.
"""

from __future__ import annotations

import asyncio
import logging

from ..errors import AppError, ClientDisconnected
from ..exchange import HIGH_WATER_BYTES, Upgrade, WebSocketChannel, error_head
from ..protocol.message import ResponseHead, check_status
from .asgi import ASGIGateway, Message, as_bytes, http_scope, log_failure

logger = logging.getLogger("stdserve.error")

_SCHEMES = {"http": "ws", "https": "wss"}

# What is told of a client that has gone before the WebSocket was open, or that was refused
_NEVER_OPEN = {"type": "websocket.disconnect", "code": 1006, "reason": ""}


def handle(gateway: ASGIGateway, upgrade: Upgrade) -> None:
    """Called in the loop thread for each handshake that is in order."""
    session = _Session(gateway, upgrade)
    task = asyncio.Task(session.run(), loop=gateway.host, context=gateway.context.copy())
    upgrade.exchange.task = task
    gateway.tasks.add(task)


class _Session:
    """One WebSocket's receive and send. `channel` is None until it is accepted."""

    __slots__ = ("_connected", "_head", "_host", "_told_gone", "_waiters", "channel", "exchange", "gateway", "upgrade")

    def __init__(self, gateway: ASGIGateway, upgrade: Upgrade) -> None:
        self.gateway = gateway
        self.upgrade: Upgrade | None = upgrade
        self.exchange = upgrade.exchange
        self.channel: WebSocketChannel | None = None
        self._host = gateway.host
        self._connected = False  # the application has been told
        self._told_gone = False
        self._head: ResponseHead | None = None  # of another answer than 101; it waits for its body
        self._waiters: list[asyncio.Future[None]] = []

    async def run(self) -> None:
        """The application's call; what it raises ends here."""
        error = None
        try:
            await self.gateway.app(self._scope(), self.receive, self.send)
        except BaseException as raised:
            error = raised
            log_failure(self.gateway, self.exchange, raised, self._gone)
        if self.channel is None:
            self._end_handshake(error)
        else:
            self._end_session(self.channel, error)
        error = None  # its traceback holds this frame: a reference cycle, with all that the application had
        self.gateway.tasks.discard(self.exchange.task)

    def _scope(self) -> Message:
        scope = http_scope(self.gateway, self.exchange)
        del scope["method"]
        assert self.upgrade is not None
        scope["type"] = "websocket"
        scope["scheme"] = _SCHEMES[scope["scheme"]]
        scope["subprotocols"] = [name.decode("ascii") for name in self.upgrade.subprotocols]
        tls = {name: value for name, value in scope["extensions"].items() if name == "tls"}
        scope["extensions"] = {"websocket.http.response": {}, **tls}
        return scope

    @property
    def _gone(self) -> bool:
        """The client is not there any more."""
        if self.channel is not None:
            return self.channel.closed is not None
        return self.exchange.peer_closed or self.exchange.disconnected

    # ---- receive

    async def receive(self) -> Message:
        while True:
            channel = self.channel
            if channel is not None:
                if channel.messages:
                    message = channel.take_message()
                    if type(message) is str:
                        return {"type": "websocket.receive", "text": message}
                    return {"type": "websocket.receive", "bytes": message}
                if channel.closed is not None:
                    code, reason = channel.closed
                    await self._yield_if_told()
                    return {"type": "websocket.disconnect", "code": code, "reason": reason}
            elif not self._connected:
                self._connected = True
                return {"type": "websocket.connect"}
            elif self.exchange.ended or self._gone:
                await self._yield_if_told()
                return _NEVER_OPEN.copy()
            await self._change()

    async def _yield_if_told(self) -> None:
        """An application that asks again and again must not hold the loop for itself."""
        if self._told_gone:
            await asyncio.sleep(0)
        self._told_gone = True

    def _change(self) -> asyncio.Future[None]:
        """Done when something changes. A receive() that is cancelled takes no message with it: they stay where they
        are until one returns."""
        if len(self._waiters) > 8:  # those of cancelled calls
            self._waiters = [waiter for waiter in self._waiters if not waiter.done()]
        waiter: asyncio.Future[None] = asyncio.Future(loop=self._host)
        self._waiters.append(waiter)
        (self.channel or self.exchange).on_change = self._on_change
        return waiter

    def _on_change(self) -> None:
        (self.channel or self.exchange).on_change = None
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    # ---- send

    async def send(self, message: Message) -> None:
        kind = message["type"]
        channel = self.channel
        if channel is None:
            await self._answer(kind, message)
        elif kind == "websocket.send":
            text = message.get("text")
            if type(text) is str:
                channel.send_text(text)
            else:
                channel.send_binary(_binary(message, text))
            if channel.queued_bytes > HIGH_WATER_BYTES:
                await self._wait_for_client(channel)
        elif kind == "websocket.close":
            code = message.get("code")
            channel.close(1000 if code is None else code, message.get("reason") or "")
        else:
            raise AppError(f"{kind!r:.80} was sent after websocket.accept (ASGI WebSocket spec)")

    async def _wait_for_client(self, channel: WebSocketChannel) -> None:
        """Wait until the client has taken what is above the high-water mark."""
        while channel.queued_bytes > HIGH_WATER_BYTES and channel.closed is None:
            await self._change()

    async def _answer(self, kind: str, message: Message) -> None:
        """The answer to the handshake."""
        exchange = self.exchange
        if exchange.disconnected:
            raise ClientDisconnected(f"{exchange!r}: the client has gone")
        if kind == "websocket.http.response.body" and (self._head is not None or exchange.status):
            await self._send_body(message)
        elif self._head is not None or exchange.status:
            raise AppError(f"{kind!r:.80} was sent after the handshake was refused (ASGI WebSocket spec)")
        elif kind == "websocket.accept":
            self._accept(message)
        elif kind == "websocket.close":
            exchange.channel.forbid_keep_alive()
            exchange.start(error_head(403), b"Forbidden\n", True)
            self._on_change()
        elif kind == "websocket.http.response.start":
            self._head = ResponseHead(check_status(message["status"]), message.get("headers", ()))
        else:
            raise AppError(f"{kind!r:.80} was sent before websocket.accept (ASGI WebSocket spec)")

    def _accept(self, message: Message) -> None:
        subprotocol = message.get("subprotocol")
        assert self.upgrade is not None
        if subprotocol is not None:
            subprotocol = str(subprotocol).encode("latin-1", "replace")
        self.channel = self.upgrade.accept(subprotocol, message.get("headers") or ())
        self.upgrade = None

    async def _send_body(self, message: Message) -> None:
        exchange = self.exchange
        if exchange.ended:
            raise AppError("a response body was sent after the response was complete (ASGI extensions)")
        body, end = as_bytes(message.get("body", b"")), not message.get("more_body", False)
        if self._head is not None:
            head, self._head = self._head, None
            exchange.channel.forbid_keep_alive()
            exchange.start(head, body, end)
        else:
            exchange.send(body, end)
        if end:
            self._on_change()
        while exchange.must_wait:
            await self._change()

    # ---- the end

    def _end_handshake(self, error: BaseException | None) -> None:
        exchange = self.exchange
        if not exchange.ended:
            if error is None and not self._gone:
                logger.error("%r: the ASGI application returned without an answer to the handshake", exchange)
            exchange.channel.forbid_keep_alive()
            exchange.fail()
            self._on_change()

    def _end_session(self, channel: WebSocketChannel, error: BaseException | None) -> None:
        if channel.closed is None:
            if error is None:
                logger.warning("%r: the ASGI application returned without closing the WebSocket", self.exchange)
            code = 1000 if error is None else 1012 if self.gateway.cancelling else 1011
            channel.close(code, "")
        channel.on_change = None


def _binary(message: Message, text: object) -> bytes:
    """The bytes of a websocket.send without text; AppError if it has none."""
    if text is not None:
        raise AppError(f"text {text!r:.80} is not a str (ASGI WebSocket spec)")
    data = message.get("bytes")
    return data if type(data) is bytes else as_bytes(data)
