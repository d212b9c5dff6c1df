"""One socket's life: read, feed the engine, hand requests over, write, time out, close.

    HEAD -> BUSY -> IDLE -> BUSY ...        a request that came whole
    HEAD -> BODY -> BUSY -> IDLE            its body came later
    any  -> CLOSING                         nothing is served any more: what is queued is written, what the peer still
                                            sends is read and dropped for a while, then the socket is closed

Facts. The descriptor stays registered for the connection's life. While the application works we read on into a bounded
buffer, which also shows us a client that vanishes; only a full buffer stops the watch. Closing a socket with unread
bytes makes the kernel send a reset, and a reset destroys what the client has not read yet: so after an error we shut
down writing, read and drop for a bounded time, and only then close (RFC 9112 9.6).

Everything here runs in the loop thread; errors of the operating system end here.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import struct
from collections import deque
from collections.abc import Callable
from selectors import EVENT_READ, EVENT_WRITE
from typing import TYPE_CHECKING, Any

from ..errors import ProtocolError
from ..exchange import HIGH_WATER_BYTES, Exchange, FileRegion, error_head
from ..logs import escape
from ..protocol.h1 import H1Engine
from ..protocol.message import END_OF_BODY, REASONS, Request, ResponseHead
from .connections import FOREVER

if TYPE_CHECKING:
    from .connections import Connections
    from .listener import Listener

logger = logging.getLogger("stdserve.error")

# A message of 64 KiB comes in one read together with the head of its frame or chunk.
READ_BYTES = 65 * 1024

# Buffers of one gathered write; POSIX guarantees 16, all systems of today take 1,024. More than 64 bring nothing.
_GATHER_COUNT = 64

# What of a body that the application did not want is read so that the connection can go on: one socket buffer's worth.
_DISCARD_BYTES = 64 * 1024

# How long a connection that has sent nothing yet is not taken for idle when room is needed for another.
_FRESH_SECONDS = 1.0

HEAD, BODY, BUSY, IDLE, CLOSING = "HEAD", "BODY", "BUSY", "IDLE", "CLOSING"


class Connection:
    """Call order: made (on_ready | on_deadline | drain | answers of the exchange)* abort?"""

    __slots__ = (
        "_advancing", "_discard_bytes", "_eof", "_finishing", "_handler", "_interest", "_queue", "_recv", "_send",
        "client", "deadline", "engine", "exchange", "owner", "queued_bytes", "root_path", "scheme", "server", "sock",
        "state", "tls", "trusted", "write_deadline",
    )  # fmt: skip

    def __init__(self, owner: Connections, sock: socket.socket, client: tuple[str, int] | None, listener: Listener):
        self.owner = owner
        self.sock = sock
        self.tls: Any = None  # what has been agreed, if it is encrypted
        self._recv = sock.recv
        self._send = sock.send
        self.client = client
        self.server = listener.server
        self.scheme = "http"
        self.root_path = owner.root_path
        trust = owner.trust
        self.trusted = trust is not None and trust.trusts(client, listener.server[0] if listener.is_unix else None)
        self.engine = H1Engine(owner.limits, owner.defaults)
        self.exchange: Exchange | None = None
        self.state = HEAD
        self.deadline = owner.loop.time + owner.times.head
        self.write_deadline = FOREVER
        self.queued_bytes = 0
        self._queue: deque[Any] | None = None  # what the kernel has not taken; made when first needed
        self._advancing = self._eof = False
        self._finishing: Exchange | None = None  # answered, its last bytes still in the queue
        self._discard_bytes = 0
        self._interest = EVENT_READ
        self._handler: Callable[..., None] = self.on_ready  # one bound method for all registrations
        owner.loop.watch(sock, EVENT_READ, self._handler)
        owner.add(self)

    # ---- the loop's calls

    def on_ready(self, mask: int) -> None:
        if mask & EVENT_READ and self._interest & EVENT_READ:
            try:
                data = self._recv(READ_BYTES)
            except (BlockingIOError, InterruptedError):
                pass
            except OSError as error:
                self._lose(error)
                return
            else:
                if not data:
                    self._on_eof()
                elif self.state is not CLOSING:
                    if self.state is HEAD and not self.engine.buffer:
                        self.deadline = self.owner.loop.time + self.owner.times.head  # from the first byte on
                    self.engine.receive_data(data)
                    self._advance()
        if mask & EVENT_WRITE and self._interest & EVENT_WRITE:
            self._flush()

    def on_deadline(self, now: float) -> None:
        """A time limit has passed (see the states)."""
        if self.write_deadline <= now:
            logger.debug("%s: takes no bytes of its answer for %g s; cut", self, self.owner.times.write)
            self.abort()
        elif self.state is HEAD:
            if self.engine.buffer:
                self._refuse(ProtocolError(408, "the head was not complete in time (--timeout-request-head)"))
            else:
                self.close_idle()
        elif self.state is BODY and self.exchange is not None and self.exchange.ended:
            self._shut_down()  # answered already; the rest of the body takes too long
        elif self.state is BODY:
            self._refuse(ProtocolError(408, "the body did not go on in time (--timeout-request-body)"))
        elif self.state is IDLE:
            self.close_idle()
        elif self.state is CLOSING:
            self.abort()

    def answer_overdue(self) -> None:
        """The application has not begun its answer in time: whatever it does now comes too late."""
        self._refuse(ProtocolError(504, "the application has not begun its answer in time (--timeout-request)"))

    @property
    def is_idle(self) -> bool:
        """Waits for a request of which nothing has come."""
        return self.state is IDLE or (self.state is HEAD and not self.engine.buffer)

    def can_make_room(self, now: float) -> bool:
        """Idle, and not so new that its first request is probably on its way."""
        fresh = self.state is HEAD and self.deadline >= now + self.owner.times.head - _FRESH_SECONDS
        return self.is_idle and not fresh

    def close_idle(self) -> None:
        """Close an idle connection, unless a request has just come: that one is answered."""
        answered = self.owner.requests
        self.on_ready(EVENT_READ)
        if self.is_idle and self.owner.requests == answered:
            self.abort()  # all that has come is read: no reset

    def drain(self, idle_seconds: float) -> None:
        """The server stops: no further request than the one that runs or has begun to come."""
        if self.is_idle:
            if idle_seconds <= 0:
                self.close_idle()
            else:
                self.state = IDLE
                self.deadline = self.owner.loop.now() + idle_seconds

    def abort(self) -> None:
        """Close at once, whatever is going on."""
        self._lose(None)

    # ---- what an exchange asks for (exchange.Channel)

    def send_response(self, exchange: Exchange, head: ResponseHead, body: Any, end: bool) -> None:
        engine = self.engine
        if (self._eof or self.owner.close_after_answer) and not engine.buffer:
            engine.keep_alive = False  # the last request of this connection
        engine.send_response(head, body, end)
        self._write(engine.data_to_send())

    def send_data(self, exchange: Exchange, data: Any, end: bool) -> None:
        self.engine.send_data(data, end)
        self._write(self.engine.data_to_send())

    def send_trailers(self, exchange: Exchange, lines: list[bytes]) -> None:
        self.engine.send_trailers(lines)
        self._write(self.engine.data_to_send())

    def can_send_trailers(self, exchange: Exchange) -> bool:
        return self.engine.sends_chunked and b"trailers" in exchange.request.fields.get(b"te", b"").lower()

    def can_send_file(self) -> bool:
        return self.owner.sendfile and hasattr(os, "sendfile")

    def send_informational(self, exchange: Exchange, status: int, lines: list[bytes]) -> None:
        self.engine.send_informational(status, lines)
        self._write(self.engine.data_to_send())
        if status == 100 and self.state is BODY:  # from now on the client is to send
            self.deadline = self.owner.loop.time + self.owner.times.body

    def forbid_keep_alive(self) -> None:
        self.engine.keep_alive = False

    def resume_reading(self, exchange: Exchange) -> None:
        if self.state is BODY and not self._eof:
            self.deadline = self.owner.loop.time + self.owner.times.body
            self._watch(self._interest | EVENT_READ)
            if self.engine.buffer and not self._advancing:
                self._advance()

    def finish(self, exchange: Exchange) -> None:
        """The answer is complete. The next request is served when its last byte has left."""
        if self._queue and self.sock is not None:
            self._finishing = exchange
            return
        self._finishing = None
        if exchange.finished:
            return
        exchange.finished = True
        owner = self.owner
        owner.active -= 1
        owner.requests += 1
        if owner.slots is not None:
            owner.slots.end(exchange)
        if owner.log_exchange is not None:
            owner.log_exchange(exchange)
        if exchange.on_finished is not None or exchange.on_change is not None:
            exchange.release()
        if self.exchange is not exchange or self.sock is None or self.state is CLOSING:
            return
        if self.engine.keep_alive and exchange.body_complete and not owner.close_after_answer:
            self._next_request()
        else:
            self._end_request(exchange)

    def cut(self, exchange: Exchange) -> None:
        """The answer stays incomplete, and the client must see it."""
        self._cut()

    def _cut(self) -> None:
        """Where only the end of the connection would tell that the answer is complete, a reset tells that it is not."""
        if self.sock is None:
            return
        if self.engine.ends_by_closing:
            with contextlib.suppress(OSError):
                self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.abort()
        else:
            self._shut_down()

    # ---- requests

    def _advance(self) -> None:
        """Take events from the engine until it needs more bytes or waits for an answer."""
        self._advancing = True
        try:
            while (event := self.engine.next_event()) is not None:
                if type(event) is not Request:
                    self._take_body(event)
                else:
                    self._start_exchange(event)
                    if event.body is not None and not self.engine.buffer:
                        break  # the engine is paused, or has nothing to go on with
                if self.state is CLOSING:
                    return
            if self._eof and self.state is BODY:
                self.engine.receive_eof()
                self.engine.next_event()  # raises: the rest of the body will never come
        except ProtocolError as error:
            self._refuse(error)
            error.__traceback__ = None  # its frames hold the error: a reference cycle
            return
        finally:
            self._advancing = False
        if self.exchange is None:
            self._wait_for_request()
        elif len(self.engine.buffer) >= HIGH_WATER_BYTES:
            self._watch(self._interest & ~EVENT_READ)  # a client that sends on without reading its answers

    def _wait_for_request(self) -> None:
        """All that has come is read and answered."""
        owner = self.owner
        if self.sock is None:
            return
        if self._eof:  # what has come is all there will be
            self.abort()
        elif self.state is not IDLE:
            return
        elif self.engine.buffer:  # a request has begun
            self.state = HEAD
            self.deadline = owner.loop.time + owner.times.head
        elif owner.close_after_answer:
            self.close_idle()
        elif owner.on_room is not None:
            owner.on_room()

    def _start_exchange(self, request: Request) -> None:
        owner = self.owner
        self.exchange = exchange = Exchange(request, self)
        owner.active += 1
        if owner.slots is not None:
            owner.slots.begin(exchange)
        if self._eof:
            exchange.peer_closed = True
        if request.body is None:
            self.state = BODY
            # A client that waits for 100 (Continue) has until then no body to send
            self.deadline = FOREVER if request.expect_continue else owner.loop.time + owner.times.body
            self._discard_bytes = 0
        else:
            self.state = BUSY
            self.deadline = FOREVER
        handle = owner.handle
        if not owner.noted_fields.isdisjoint(request.fields):
            handle = self._take_notes(exchange)
        if owner.active > owner.limit_concurrency:
            owner.log_refused("%s: 503, more requests than --limit-concurrency", str(self), kind="503 answers")
            exchange.start(error_head(503, (b"Retry-After", b"1")), b"Service Unavailable\n", True)
        else:
            handle(exchange)

    def _take_notes(self, exchange: Exchange) -> Callable[[Exchange], object]:
        """Read what a proxy says, and choose who handles the request: it may ask for another protocol."""
        owner, fields = self.owner, exchange.request.fields
        if not owner.forwarding_fields.isdisjoint(fields):
            self._apply_forwarded(exchange)
        if owner.upgrade is None or b"upgrade" not in fields:
            return owner.handle
        return owner.upgrade(self, exchange)

    def _apply_forwarded(self, exchange: Exchange) -> None:
        trust = self.owner.trust
        if trust is None:
            return
        if not self.trusted:
            self.owner.hint_untrusted(self.client)
            return
        forwarded = trust.apply(exchange.request.headers, exchange.client, exchange.scheme)
        if forwarded is not None:
            exchange.forward(forwarded)

    def _take_body(self, event: Any) -> None:
        exchange = self.exchange
        if exchange is None:
            return
        if event is END_OF_BODY:
            if exchange.finished:  # answered before its body came to an end
                exchange.body_complete = True
                self._end_request(exchange)
            else:
                self.state = BUSY
                self.deadline = FOREVER
                exchange.receive_end()
        elif exchange.finished or exchange.ended:
            self._discard(len(event))
        else:
            self.deadline = self.owner.loop.time + self.owner.times.body
            if not exchange.receive_data(event):
                self._watch(self._interest & ~EVENT_READ)
                self.deadline = FOREVER  # it is the application that does not read

    def _next_request(self) -> None:
        """After a complete request and its answer: wait for the next."""
        engine, owner = self.engine, self.owner
        self.exchange = None
        self.state = IDLE
        self.deadline = owner.loop.time + owner.times.keep_alive
        engine.start_next_request()
        if self._interest != EVENT_READ and not self._eof:
            self._watch(EVENT_READ)
        if self._advancing:
            return
        if engine.buffer:
            self._advance()
        elif self._eof or owner.close_after_answer or owner.on_room is not None:
            self._wait_for_request()

    def _end_request(self, exchange: Exchange) -> None:
        """After an answer that does not simply lead to the next request."""
        if not self.engine.keep_alive:
            self._close_after_answer(exchange)
        elif not exchange.body_complete:
            self.deadline = self.owner.loop.time + self.owner.times.discard
            self._watch(self._interest | EVENT_READ)
        else:
            self._next_request()

    def _close_after_answer(self, exchange: Exchange) -> None:
        """Close, and linger only if the peer has sent what nobody has read."""
        unread = not exchange.body_complete or bool(self.engine.buffer)
        if not unread and not self._eof:
            try:
                unread = bool(self._recv(READ_BYTES))
            except OSError:
                unread = False
        if unread:
            self._shut_down()
        else:
            self.abort()

    def _discard(self, count: int) -> None:
        """Drop a piece of a body that nobody wants; too much of it costs the client the connection."""
        self._discard_bytes += count
        if self._discard_bytes > _DISCARD_BYTES:
            self._shut_down()

    def _refuse(self, error: ProtocolError) -> None:
        """The one place that answers a broken request. What was answered before stays answered."""
        code = f"{error.code} " if error.code else ""
        self.owner.log_refused("%s: %s%s", str(self), code, describe(error))
        exchange = self.exchange
        unanswered = exchange is None or exchange.status == 0
        incomplete = exchange is not None and not unanswered and not exchange.ended
        if exchange is not None and not exchange.finished:
            self.exchange = None
            exchange.finished = exchange.ended = True
            self.owner.active -= 1
            if self.owner.slots is not None:
                self.owner.slots.end(exchange)
            exchange.lose()
            exchange.release()
            if unanswered:
                exchange.status = error.code
            if self.owner.log_exchange is not None:
                self.owner.log_exchange(exchange)
        if incomplete:
            self._cut()
            return
        if unanswered and error.code:
            body = b"%d %b: %b\n" % (error.code, REASONS[error.code], error.rule.encode())
            head = error_head(error.code)
            head.lines += [b"%b: %b\r\n" % field for field in error.fields]
            self.engine.keep_alive = False
            self.engine.send_response(head, body, True)
            self._write(self.engine.data_to_send())
        self._shut_down()

    # ---- reading ends

    def _on_eof(self) -> None:
        """The peer sends no more. It may still read, so a complete request is still answered."""
        self._eof = True
        exchange = self.exchange
        if exchange is None or self.state is CLOSING:
            if self._queue and self.state is CLOSING:
                self._watch(self._interest & ~EVENT_READ)
            else:
                self.abort()
            return
        self._watch(self._interest & ~EVENT_READ)
        if self.state is BODY:
            self._advance()
        elif not exchange.finished:
            exchange.close_peer()

    # ---- writing

    def _write(self, buffers: list[Any]) -> None:
        """Send now what the kernel takes; queue the rest."""
        if self.sock is None:
            return
        if self._queue:
            self._enqueue(buffers, 0)
            return
        try:
            if len(buffers) == 1 and type(buffers[0]) is bytes:
                sent = self._send(buffers[0])
                if sent == len(buffers[0]):
                    return
            elif all(type(buffer) is bytes for buffer in buffers):
                sent = self.sock.sendmsg(buffers[:_GATHER_COUNT]) if buffers else 0
            else:
                sent = 0
        except (BlockingIOError, InterruptedError):
            sent = 0
        except OSError as error:
            self._lose(error)
            return
        self._enqueue(buffers, sent)

    def _enqueue(self, buffers: list[Any], sent: int) -> None:
        """Queue all but the first `sent` bytes."""
        if self._queue is None:
            self._queue = deque()
        for buffer in buffers:
            size = len(buffer)
            if sent >= size:
                sent -= size
                continue
            self._queue.append(memoryview(buffer)[sent:] if sent else buffer)
            self.queued_bytes += size - sent
            sent = 0
        if self._queue and not self._interest & EVENT_WRITE:
            self.write_deadline = self.owner.loop.time + self.owner.times.write
            self._watch(self._interest | EVENT_WRITE)

    def _flush(self) -> None:
        """The kernel takes more: go on with the queue."""
        queue = self._queue
        assert queue is not None
        try:
            while queue:
                sent = self._send_first(queue)
                self.queued_bytes -= sent
                self.write_deadline = self.owner.loop.time + self.owner.times.write
                _drop(queue, sent)
        except (BlockingIOError, InterruptedError):
            if self.queued_bytes <= HIGH_WATER_BYTES:
                self._on_drained()
            return
        except OSError as error:
            self._lose(error)
            return
        self.write_deadline = FOREVER
        self._watch(self._interest & ~EVENT_WRITE)
        closing = self.state is CLOSING
        if self._finishing is not None:
            self.finish(self._finishing)
        elif not closing:
            self._on_drained()
        if closing:
            self._shut_down()

    def _send_first(self, queue: deque[Any]) -> int:
        first = queue[0]
        if type(first) is FileRegion:
            assert self.sock is not None
            sent = os.sendfile(self.sock.fileno(), first.fd, first.offset, min(first.count, 1 << 30))
            if not sent:
                raise self._file_is_short(first)
            return sent
        return self._send(first)

    def _file_is_short(self, region: FileRegion) -> OSError:
        text = "%s: a file has become shorter while it was sent, %d bytes are missing; connection cut"
        logger.error(text, self, region.count)
        return OSError("a file has become shorter")

    def _on_drained(self) -> None:
        if self.exchange is not None:
            self.exchange.drained()

    # ---- closing

    def _shut_down(self) -> None:
        """Write what is queued, tell the peer that no more comes, and wait a little for its own end."""
        if self.sock is None:
            return
        exchange = self.exchange
        if exchange is not None and not exchange.finished and exchange.ended is False:
            exchange.lose()
        self.state = CLOSING
        self.deadline = FOREVER
        if self._queue:
            return  # _flush comes back here; the write deadline bounds it
        if self._eof:
            self.abort()
            return
        try:
            self.sock.shutdown(socket.SHUT_WR)
        except OSError:
            self.abort()
            return
        self.deadline = self.owner.loop.now() + self.owner.times.linger
        self._watch(EVENT_READ)

    def _lose(self, error: OSError | None) -> None:
        """The connection is over: close the socket and tell whoever still works for it."""
        sock = self.sock
        if sock is None:
            return
        if error is not None:
            logger.debug("%s: %s", self, error)
        if self._interest:
            self.owner.loop.unwatch(sock)
            self._interest = 0
        self.sock = None  # type: ignore[assignment]
        if self.owner.close_after_answer:  # a child that the application has forked may hold it open
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        sock.close()
        self.state = CLOSING
        self.deadline = self.write_deadline = FOREVER
        if self._queue:
            self._queue.clear()
        self.queued_bytes = 0
        self._end()
        # Without these cycles the objects go now, not when the garbage collector comes
        self._handler = self.engine.next_event = nothing
        self.owner.discard(self)

    def _end(self) -> None:
        """The socket is closed: tell whoever still works for it."""
        self.engine.keep_alive = False
        exchange, self.exchange = self.exchange, None
        if exchange is not None and not exchange.finished:
            exchange.lose()
            if exchange.ended:
                self.finish(exchange)

    def _watch(self, interest: int) -> None:
        """Change what the loop waits for. A descriptor that nothing is wanted of leaves the poll: it would report a
        hang-up for ever."""
        if interest == self._interest or self.sock is None:
            return
        loop = self.owner.loop
        if not interest:
            loop.unwatch(self.sock)
        elif not self._interest:
            loop.watch(self.sock, interest, self._handler)
        else:
            loop.rewatch(self.sock, interest, self._handler)
        self._interest = interest

    def __repr__(self) -> str:
        return "unix" if self.client is None else "%s:%d" % self.client


def nothing(*_: object) -> None:
    """Stands for what a connection that is over does not do any more."""


def _drop(queue: deque[Any], sent: int) -> None:
    """Take `sent` bytes off the front."""
    first = queue[0]
    if sent == len(first):
        queue.popleft()
    elif type(first) is FileRegion:
        first.offset += sent
        first.count -= sent
    else:
        queue[0] = memoryview(first)[sent:]


def describe(error: ProtocolError) -> str:
    """The rule, and where and what, escaped, for the log."""
    text = error.rule
    if error.offset >= 0:
        text += f", at byte {error.offset}"
    if error.excerpt:
        text += f": {escape(error.excerpt)!s}"
    return text
