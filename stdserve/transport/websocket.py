"""A connection that has become a WebSocket: the handshake's answer, messages, back-pressure, keep-alive, the end.

    Connection ( 101 )-> WebSocketConnection
    UPGRADED -> ( our Close, the peer's Close ) -> CLOSING     closed in order; for the peer's we wait CLOSE_SECONDS
    UPGRADED -> CLOSING                                        the peer broke a rule, or gave no sign of life
    any -> the socket is closed                                the peer has vanished: 1006

Messages are read ahead until some wait for the application, then nothing is read on: the kernel's buffers fill and the
client must wait. Ping and Close are seen when what came before them has been read.

The application's side is gateway/websocket.py; they meet in exchange.Upgrade and exchange.WebSocketChannel. Everything
here runs in the loop thread.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from selectors import EVENT_READ
from typing import Any

from ..config import Config
from ..errors import ClientDisconnected, ProtocolError
from ..exchange import HIGH_WATER_BYTES, Exchange, error_head
from ..protocol.message import ResponseHead
from ..protocol.websocket import (
    Close,
    Event,
    Handshake,
    Ping,
    Pong,
    WebSocketEngine,
    WebSocketLimits,
    is_websocket,
    read_handshake,
)
from .connection import Connection, describe, nothing
from .connections import FOREVER

logger = logging.getLogger("stdserve.error")

UPGRADED = "UPGRADED"

# How long the peer may take to answer our Close
CLOSE_SECONDS = 10.0

# RFC 6455 7.4: the server restarts (registered as 1012); a condition that it did not expect
RESTART, INTERNAL_ERROR = 1012, 1011
ABNORMAL = 1006  # RFC 6455 7.1.5: no Close frame came

_SILENCE = "keepalive ping timeout"


@dataclass(frozen=True, slots=True)
class WebSocketSettings:
    """`queue` is a number of messages, the intervals are seconds, FOREVER if they are off."""

    limits: WebSocketLimits
    compress: bool = True
    queue: int = 16
    ping_interval: float = 20.0
    ping_timeout: float = 20.0

    @classmethod
    def of(cls, config: Config) -> WebSocketSettings:
        return cls(
            WebSocketLimits(message=config.ws_max_size),
            compress=config.ws_per_message_deflate,
            queue=config.ws_max_queue,
            ping_interval=config.ws_ping_interval or FOREVER,
            ping_timeout=config.ws_ping_timeout or FOREVER,
        )


class Upgrader:
    """Called by a connection for a request with Upgrade: chooses who handles it. `handle` takes an Upgrade."""

    def __init__(
        self,
        settings: WebSocketSettings,
        handle: Callable[[Any], object],
        connection_class: type[WebSocketConnection],
    ) -> None:
        """`connection_class` is what a connection becomes, over TLS or not."""
        self._settings = settings
        self._handle = handle
        self._class = connection_class

    def __call__(self, connection: Connection, exchange: Exchange) -> Callable[[Exchange], object]:
        """Raise ProtocolError for a handshake that is not in order. Other protocols are not ours: the request is
        answered as if it had not asked for them (RFC 9110 7.8)."""
        if not is_websocket(exchange.request) or (self._class.needs_tls and connection.tls is None):
            return connection.owner.handle
        if connection.owner.draining:
            return _refuse_late
        handshake = read_handshake(exchange.request, self._settings.compress)
        upgrade = Upgrade(connection, exchange, handshake, self._settings, self._class)
        return lambda exchange: self._handle(upgrade)


def _refuse_late(exchange: Exchange) -> None:
    """The server stops: a WebSocket that began now would have to end at once."""
    exchange.start(error_head(503, (b"Retry-After", b"1")), b"Service Unavailable\n", True)


class Upgrade:
    """exchange.Upgrade: a handshake in order, and the connection that it came on."""

    __slots__ = ("_class", "_connection", "_handshake", "_settings", "exchange", "subprotocols")

    def __init__(
        self,
        connection: Connection,
        exchange: Exchange,
        handshake: Handshake,
        settings: WebSocketSettings,
        connection_class: type[WebSocketConnection],
    ) -> None:
        self._class = connection_class
        self._connection = connection
        self._handshake = handshake
        self._settings = settings
        self.exchange = exchange
        self.subprotocols = handshake.subprotocols

    def accept(self, subprotocol: bytes | None, headers: Iterable[Any]) -> WebSocketConnection:
        """Answer with 101; AppError if that must not be sent, and then nothing has been."""
        connection, exchange = self._connection, self.exchange
        if exchange.disconnected or exchange.peer_closed or exchange.finished:
            raise ClientDisconnected(f"{exchange!r}: the client has gone")
        head = ResponseHead(101, headers)
        answer = self._handshake.accept(subprotocol, head, connection.owner.defaults.for_head(head))
        engine = WebSocketEngine(self._settings.limits, self._handshake.deflate)
        channel = self._class(connection, exchange, engine)
        exchange.status = 101
        exchange.response_headers = head.headers
        exchange.ended = True
        connection.finish(exchange)  # in the log and for the limits it is an answered request
        channel.open(answer, self._settings)
        return channel


class WebSocketConnection(Connection):
    """Takes the place of a Connection. Call order: made open (the loop's and the channel's calls)*

    messages, closed, on_change   see exchange.WebSocketChannel
    """

    __slots__ = (
        "_frames", "_next_ping", "_opened", "_paused", "_pong_due", "_received", "_sent", "_settings", "_silent_since",
        "_waiting_bytes", "closed", "messages", "on_change",
    )  # fmt: skip

    needs_tls = False
    _settings: WebSocketSettings

    def __init__(self, connection: Connection, exchange: Exchange, frames: WebSocketEngine) -> None:
        for name in Connection.__slots__:
            setattr(self, name, getattr(connection, name))
        frames_before = connection.engine.take_buffer()
        if frames_before:
            frames.receive_data(frames_before)
        self._frames = frames
        self.engine = frames  # type: ignore[assignment]  # has what reading needs of it
        self.state = UPGRADED
        self.exchange = None
        self.messages: list[str | bytes] = []
        self.closed: tuple[int, str] | None = None
        self.on_change: Callable[[], object] | None = None
        self._opened = exchange
        self._received = self._sent = 0  # messages
        self._waiting_bytes = 0  # of the messages
        self._paused = False  # enough of them wait
        self._pong_due = False
        self._silent_since = FOREVER  # when the first Ping was sent since the peer was last heard
        self._next_ping = FOREVER
        self._handler = self.on_ready
        owner = self.owner
        owner.add(self)
        self._interest = EVENT_READ
        if connection._interest:
            owner.loop.rewatch(self.sock, EVENT_READ, self._handler)
        else:
            owner.loop.watch(self.sock, EVENT_READ, self._handler)
        connection.sock = connection.exchange = None  # type: ignore[assignment]
        connection._interest = 0
        connection._handler = connection.engine.next_event = nothing
        owner.discard(connection)

    def open(self, answer: bytes, settings: WebSocketSettings) -> None:
        """Send the 101 and begin to read frames."""
        self._settings = settings
        self._next_ping = self.deadline = self.owner.loop.now() + settings.ping_interval
        self._write([answer])
        self._take_events()
        if self.owner.draining and self.closed is None:
            self.leave()

    # ---- the loop's calls; on_ready is the one of every connection

    def _advance(self) -> None:
        self._silent_since = FOREVER
        if self._paused:  # nobody has taken a message since: now the kernel shall keep what comes
            self._watch(self._interest & ~EVENT_READ)
        else:
            self._take_events()

    def _take_events(self) -> None:
        """Take what the engine has until it needs more bytes or enough messages wait."""
        frames = self._frames
        try:
            while frames.buffer or self._eof:
                event = frames.next_event()
                if type(event) is str or type(event) is bytes:
                    if self.closed is not None:
                        continue
                    messages = self.messages
                    messages.append(event)
                    self._waiting_bytes += len(event)
                    self._received += 1
                    if self.on_change is not None:
                        self.on_change()
                    if self._waiting_bytes >= HIGH_WATER_BYTES or len(messages) >= self._settings.queue:
                        self._paused = True
                        break
                elif event is None or not self._take_control(event):
                    break
            if self._pong_due and self.queued_bytes <= HIGH_WATER_BYTES:
                self._pong_due = False  # one for all that came together (RFC 6455 5.5.3)
                self._write_frames()
        except ProtocolError as error:
            self._fail(error)
            error.__traceback__ = None  # its frames hold the error: a reference cycle

    def _take_control(self, event: Event) -> bool:
        """False after the last event."""
        if type(event) is Close:
            if event.code == ABNORMAL:
                self._lose(None)
            else:
                self._write_frames()  # the engine has answered
                self._tell(event.code, event.reason)
                self._shut_down()
            return False
        if type(event) is Ping:
            self._pong_due = True  # at the end; a client that reads nothing is not to fill our memory
        else:
            assert type(event) is Pong
        return True

    def _on_eof(self) -> None:
        """Half a connection is of no use to this protocol (RFC 6455 7.1.1): it ends when what came has been read."""
        if self.state is not UPGRADED:
            super()._on_eof()
            return
        self._eof = True
        self._frames.receive_eof()
        self._watch(self._interest & ~EVENT_READ)
        if not self._paused:
            self._take_events()

    def _on_drained(self) -> None:
        if self._pong_due:
            self._pong_due = False
            self._write_frames()
        if self.on_change is not None:
            self.on_change()

    def on_deadline(self, now: float) -> None:
        if self.state is not UPGRADED or self.write_deadline <= now:
            super().on_deadline(now)
        elif self.closed is None:
            self._keep_alive(now)
        elif self._queue:
            self.deadline = now + CLOSE_SECONDS  # it has not even seen our Close; the write has its own time limit
        else:
            self.abort()  # the peer has not answered our Close in time

    def _keep_alive(self, now: float) -> None:
        """Whatever the peer sends is a sign of life: within a long frame it cannot send a Pong. While we do not read,
        its signs cannot be seen; while it reads slowly, our Ping waits behind the data, and writing has its own limit.
        """
        settings = self._settings
        if self._paused or self._queue:
            self._silent_since = FOREVER
        if now >= self._silent_since + settings.ping_timeout:
            self._send_close(INTERNAL_ERROR, _SILENCE)
            self._tell(ABNORMAL, _SILENCE)
            self._shut_down()
            return
        if now >= self._next_ping:
            self._next_ping = now + settings.ping_interval
            if self.queued_bytes <= HIGH_WATER_BYTES:
                self._silent_since = min(self._silent_since, now)
                self._frames.send_ping()
                self._write_frames()
        self.deadline = min(self._next_ping, self._silent_since + settings.ping_timeout)

    def drain(self, idle_seconds: float) -> None:
        """The server stops: wait for the call of `leave`."""
        self.owner.leaving.append(self)

    def leave(self) -> None:
        """Ask the client to come again (1012)."""
        if self.closed is None and self.sock is not None:
            self._start_closing(RESTART, "")

    # ---- the gateway's calls (exchange.WebSocketChannel)

    def take_message(self) -> str | bytes:
        """The first of `messages`, which must not be empty."""
        message = self.messages.pop(0)
        self._waiting_bytes -= len(message)
        if self._paused and not self.messages:
            self._resume()
        return message

    def send_text(self, text: str) -> None:
        if self.closed is not None:
            raise self._gone()
        self._frames.send_text(text)
        self._sent += 1
        self._write(self._frames.data_to_send())

    def send_binary(self, data: bytes) -> None:
        if self.closed is not None:
            raise self._gone()
        self._frames.send_binary(data)
        self._sent += 1
        self._write(self._frames.data_to_send())

    def close(self, code: int, reason: str) -> None:
        """Begin the closing handshake; AppError if there is no such code to send."""
        if self.closed is not None:
            raise self._gone()
        self._start_closing(code, reason)

    # ---- private

    def _write_frames(self) -> None:
        self._write(self._frames.data_to_send())

    def _resume(self) -> None:
        """The application has taken what there was: go on with what has come since."""
        self._paused = False
        self._take_events()
        if not self._paused and not self._eof and self.state is UPGRADED:
            self._watch(self._interest | EVENT_READ)

    def _start_closing(self, code: int, reason: str) -> None:
        self._send_close(code, reason)
        self._tell(code, reason)
        self.deadline = self.owner.loop.now() + CLOSE_SECONDS
        self._resume()  # to see the peer's Close; messages before it are dropped

    def _send_close(self, code: int, reason: str) -> None:
        self._frames.send_close(code, reason)
        self._write_frames()

    def _fail(self, error: ProtocolError) -> None:
        """The peer broke a rule (RFC 6455 7.1.7)."""
        self.owner.log_refused("%s: WebSocket %d %s", str(self), error.code, describe(error), kind="broken WebSockets")
        self._send_close(error.code, error.rule)
        self._tell(error.code, error.rule)
        self._shut_down()

    def _tell(self, code: int, reason: str) -> None:
        """Tell the application, once."""
        if self.closed is None:
            self.closed = (code, reason)
            if self.owner.log_exchange is not None:
                self._log(code)
            if self.on_change is not None:
                self.on_change()

    def _log(self, code: int) -> None:
        """The line for the end; the handshake has one in the access log."""
        seconds = time.perf_counter() - self._opened.started
        text = "%r: WebSocket closed %d after %.1f s, %d messages received, %d sent"
        logger.info(text, self._opened, code, seconds, self._received, self._sent)

    def _end(self) -> None:
        self._tell(ABNORMAL, "")

    def _gone(self) -> ClientDisconnected:
        return ClientDisconnected(f"the WebSocket of {self} is closed")
