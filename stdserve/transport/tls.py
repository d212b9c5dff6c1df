"""TLS (RFC 8446, RFC 5246) in the loop: the handshake, then a Connection whose socket encrypts.

    Handshake        from accept on: reads and answers until both sides are agreed, bounded by --timeout-handshake
        TLSConnection      then takes the socket over: HTTP as ever
        _Refusal           or tells the client what is wrong: plain HTTP on this port, a certificate that is missing
    TLSSocket        recv, send, shutdown, close as a Connection calls them, over OpenSSL with buffers in memory

Facts. OpenSSL can read and write the descriptor itself or buffers in memory, between which and the socket we carry the
bytes. In memory a read takes what the kernel has in one call, where OpenSSL takes each record's five bytes of head by
a call of their own; and the first byte, which tells plain HTTP from TLS, is there to be seen. Measured against the
other way: hello world the same within the noise, 1 MiB answers 11 to 20 % less CPU, 1 MiB uploads 4 to 16 % less.

The poll knows nothing of bytes that OpenSSL holds, so `recv` always takes all of them: what is left is never more than
part of a record, or the peer's close_notify, which is told at once. A write either is encrypted as a whole or not at
all: what the kernel does not take of the encrypted bytes is kept, and the caller told to come again with the same data.

An end of file without close_notify counts as an end like any other: HTTP says itself how long its messages are.
Our own close_notify tells the client that an answer without length is complete (RFC 8446 6.1), so one that is cut ends
without it.
"""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
from collections import deque
from selectors import EVENT_READ, EVENT_WRITE
from typing import TYPE_CHECKING, Any

from ..errors import ProtocolError
from ..exchange import FileRegion
from .connection import CLOSING, READ_BYTES, Connection
from .connections import FOREVER

if TYPE_CHECKING:
    from .certificates import Certificates
    from .connections import Connections
    from .listener import Listener

# The first byte of a TLS connection: ContentType handshake (RFC 8446 5.1)
_HANDSHAKE_RECORD = b"\x16"

# Given to the kernel in one call: in calls of 64 KiB an answer of 1 MiB costs 10 to 20 % more. So much may wait for a
# slow client.
_WRITE_BYTES = 256 * 1024

# Encrypted in one go: OpenSSL's buffers in memory never shrink, so that this much stays with an idle connection.
_PIECE_BYTES = 64 * 1024

# A peer that asks for new keys again and again (RFC 8446 4.6.3) is answered each time. More than so much that it does
# not read is no honest wish.
_UNREAD_ANSWER_BYTES = 16 * 1024

# A handshake that is older may have to make room for another client.
_FRESH_SECONDS = 1.0

_VERSION_NUMBERS = {"TLSv1.2": 0x0303, "TLSv1.3": 0x0304}

_WANTS_MORE = (ssl.SSLWantReadError, ssl.SSLWantWriteError)


class TLSSocket:
    """What a Connection calls of a socket. `ended`: the peer has said that it sends no more."""

    __slots__ = (
        "_fed", "_incoming", "_outgoing", "_read", "_receive", "_send", "_sock", "_taken", "_unsent", "_write", "ended",
        "fileno", "said_end", "tls",
    )  # fmt: skip

    def __init__(self, sock: socket.socket, context: ssl.SSLContext) -> None:
        self._sock = sock
        self.fileno = sock.fileno
        self._receive = sock.recv
        self._send = sock.send
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = tls = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self._fed = self._incoming.write
        self._read = tls.read
        self._write = tls.write
        self._unsent: bytes | memoryview = b""  # encrypted, not taken by the kernel yet
        self._taken = 0  # bytes of the caller's data that are in it
        self.ended = False
        self.said_end = False

    # ---- the handshake

    def take(self, data: bytes) -> None:
        self._fed(data)

    def shake(self) -> bool:
        """Go on with the handshake; whether it is done. SSLError if it has failed: then too there may be an alert to
        send."""
        try:
            self.tls.do_handshake()
        except _WANTS_MORE:
            return False
        return True

    def flush(self) -> bool:
        """Send what is encrypted; whether all of it has left."""
        if self._outgoing.pending:
            self._unsent = b"".join((self._unsent, self._outgoing.read()))
        if self._unsent:
            try:
                self._unsent = memoryview(self._unsent)[self._send(self._unsent) :] or b""
            except (BlockingIOError, InterruptedError):
                return False
        return not self._unsent

    @property
    def has_bytes(self) -> bool:
        """That have come and are not decrypted."""
        return bool(self._incoming.pending)

    @property
    def unsent_bytes(self) -> int:
        """Encrypted, and not taken by the kernel yet."""
        return len(self._unsent)

    # ---- as a socket

    def recv(self, count: int) -> bytes:
        """All that has come, b"" at the end; BlockingIOError if there is nothing."""
        if self.ended:
            return b""
        incoming = self._incoming
        try:
            data = self._receive(count)
        except (BlockingIOError, InterruptedError):
            if not incoming.pending:
                raise
        else:
            if data:
                self._fed(data)
            elif incoming.pending:  # what came with the end of the handshake
                incoming.write_eof()
            else:
                self.ended = True
                return b""
        data = self._decrypt()
        if self._outgoing.pending > _UNREAD_ANSWER_BYTES:
            self._answer_control()
        if not data and not self.ended:
            raise BlockingIOError
        return data

    def _decrypt(self) -> bytes:
        """Record by record (RFC 8446 5.1) until there is no whole one."""
        pieces: list[bytes] = []
        try:
            while piece := self._read(READ_BYTES):
                pieces.append(piece)
                if not self._incoming.pending:
                    break
            else:
                self.ended = True
        except _WANTS_MORE:
            pass
        except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
            self.ended = True
        except ssl.SSLError:
            with contextlib.suppress(OSError):
                self.flush()  # the alert
            raise
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _answer_control(self) -> None:
        """What OpenSSL answers by itself goes with our next write; who writes nothing to us but that gets it now."""
        if not self.flush() and len(self._unsent) > self._taken + _UNREAD_ANSWER_BYTES:
            raise ConnectionAbortedError("the client asks for new keys and does not read the answers")

    def send(self, data: Any) -> int:
        """How much of `data` has left; BlockingIOError if nothing, then come again with the same data."""
        if self._unsent and not self.flush():
            raise BlockingIOError
        if self._taken:
            taken, self._taken = self._taken, 0
            return taken
        taken = len(data)
        if not taken:
            return 0
        if taken > _PIECE_BYTES:
            return self._send_much(memoryview(data)[:_WRITE_BYTES])
        self._write(data)
        encrypted = self._outgoing.read()
        try:
            sent = self._send(encrypted)
        except (BlockingIOError, InterruptedError):
            sent = 0
        if sent == len(encrypted):
            return taken
        self._unsent = memoryview(encrypted)[sent:]
        self._taken = taken
        raise BlockingIOError

    def _send_much(self, data: memoryview) -> int:
        pieces: list[bytes] = []
        for at in range(0, len(data), _PIECE_BYTES):
            self._write(data[at : at + _PIECE_BYTES])
            pieces.append(self._outgoing.read())
        try:
            sent = self._sock.sendmsg(pieces)
        except (BlockingIOError, InterruptedError):
            sent = 0
        while pieces and sent >= len(pieces[0]):
            sent -= len(pieces.pop(0))
        if not pieces:
            return len(data)
        self._unsent = memoryview(b"".join(pieces))[sent:]
        self._taken = len(data)
        raise BlockingIOError

    def say_end(self) -> bool:
        """Send close_notify, without waiting for the peer's; False if there is no room for it yet."""
        if not self.said_end:
            self.said_end = True
            with contextlib.suppress(ssl.SSLError):  # it wants the peer's, or the peer's data stand before that
                self.tls.unwrap()
        return self.flush()

    def receive_raw(self, count: int) -> bytes:
        """For what nobody wants to know."""
        return self._receive(count)

    def setsockopt(self, *option: Any) -> None:
        self._sock.setsockopt(*option)

    def shutdown(self, how: int) -> None:
        self._sock.shutdown(how)

    def close(self) -> None:
        self._sock.close()


class TLSConnection(Connection):
    """A Connection over TLS. `tls` tells gateways what has been agreed."""

    __slots__ = ()

    sock: Any

    def __init__(self, owner: Connections, sock: TLSSocket, client: tuple[str, int] | None, listener: Listener) -> None:
        super().__init__(owner, sock, client, listener)  # type: ignore[arg-type]
        self.scheme = "https"
        self.tls = Facts(sock.tls)

    def on_ready(self, mask: int) -> None:
        super().on_ready(mask)
        if self.sock is not None and self.sock.ended:
            self._tell_end()

    def _tell_end(self) -> None:
        """The peer's end came with its last bytes, so no event will tell of it."""
        if self.sock is not None and not self._eof and self._interest & EVENT_READ:
            super().on_ready(EVENT_READ)

    def abort(self) -> None:
        exchange = self.exchange
        if self.sock is not None and not self._queue and (exchange is None or exchange.finished):
            with contextlib.suppress(OSError):
                self.sock.say_end()
        super().abort()

    def _write(self, buffers: list[Any]) -> None:
        """Pieces that are small together go as one record; what is refused must be offered again as it was."""
        if len(buffers) == 1:
            super()._write(buffers)
        elif buffers and all(type(buffer) is bytes for buffer in buffers) and sum(map(len, buffers)) <= _WRITE_BYTES:
            super()._write([b"".join(buffers)])
        else:
            for buffer in buffers:
                super()._write([buffer])

    def _send_first(self, queue: deque[Any]) -> int:
        first = queue[0]
        if type(first) is FileRegion:
            first_bytes = os.pread(first.fd, min(first.count, _WRITE_BYTES), first.offset)
            if not first_bytes:
                raise self._file_is_short(first)
            first = first_bytes
        before = self.sock.unsent_bytes
        try:
            return self._send(first)
        except BlockingIOError:
            if self.sock.unsent_bytes != before:  # the client takes something
                self.write_deadline = self.owner.loop.time + self.owner.times.write
            raise

    def _cut(self) -> None:
        """Without close_notify where that would say that the answer is complete."""
        if self.sock is not None and self.engine.ends_by_closing:
            self.sock.said_end = True
        super()._cut()

    def _close_after_answer(self, exchange: Any) -> None:
        if self._say_end():
            super()._close_after_answer(exchange)

    def _shut_down(self) -> None:
        if self.sock is None or self._queue or self._say_end():
            super()._shut_down()

    def _say_end(self) -> bool:
        """Whether close_notify has left; else _flush calls _shut_down when there is room, or the sweep gives up."""
        try:
            if self.sock.say_end():
                self._recv = self.sock.receive_raw
                return True
        except OSError as error:
            self._lose(error)
            return False
        self.state = CLOSING
        self.deadline = self.owner.loop.now() + self.owner.times.linger
        if self._queue is None:
            self._queue = deque()
        self._watch(EVENT_WRITE)
        return False

    def _watch(self, interest: int) -> None:
        super()._watch(interest)
        if self.sock is not None and self.sock.ended and not self._eof and interest & EVENT_READ:
            self.owner.loop.defer(self._tell_end)


class _Refusal(Connection):
    """A client that does not get as far as HTTP over TLS: one log line, an answer if it can read one, an end without a
    reset."""

    __slots__ = ()

    def __init__(self, handshake: Handshake, error: ProtocolError) -> None:
        super().__init__(handshake.owner, handshake.raw, handshake.client, handshake.listener)
        self._refuse(error)


class Handshake:
    """A connection until it is agreed how to encrypt. Owned by the loop thread; one of `owner`'s like a Connection.

    Made by the first bytes: until then nothing is spent on a client but its socket.
    """

    __slots__ = (
        "_certificates", "_drain_seconds", "_interest", "_sock", "client", "deadline", "exchange", "listener", "owner",
        "raw", "write_deadline",
    )  # fmt: skip

    def __init__(
        self,
        certificates: Certificates,
        owner: Connections,
        sock: socket.socket,
        client: tuple[str, int] | None,
        listener: Listener,
    ) -> None:
        self.owner = owner
        self.raw = sock
        self.client = client
        self.listener = listener
        self.exchange = None  # as the sweep asks it of all connections
        self.deadline = owner.loop.time + owner.times.handshake
        self.write_deadline = FOREVER
        self._certificates = certificates
        self._sock: TLSSocket | None = None
        self._drain_seconds: float | None = None
        self._interest = EVENT_READ
        owner.loop.watch(sock, EVENT_READ, self.on_ready)
        owner.add(self)

    def on_ready(self, mask: int) -> None:
        try:
            data = self.raw.recv(READ_BYTES)
        except (BlockingIOError, InterruptedError):
            data = None
        except OSError:
            self.abort()
            return
        if data == b"":  # a port scan, a balancer's probe; or a client that has thought better of it
            self.abort()
        elif self._sock is None and data and data[:1] != _HANDSHAKE_RECORD:
            self._refuse_plain(data)
        elif self._sock is not None or data:
            self._shake(data or b"")

    def _shake(self, data: bytes) -> None:
        sock = self._sock
        if sock is None:
            sock = self._sock = TLSSocket(self.raw, self._certificates.context)
        try:
            if data:
                sock.take(data)
            done = sock.shake()
            # In TLS 1.3 the last we say are tickets. They go at once although nobody waits for them: without a segment
            # of ours a client that has Nagle's algorithm on (RFC 896) would hold its request back for 40 ms.
            flushed = sock.flush()
        except ssl.SSLError as error:
            with contextlib.suppress(OSError):
                sock.flush()  # the alert
            self._refuse(ProtocolError(0, f"TLS handshake: {_describe(error)}"))
        except OSError:
            self.abort()
        else:
            if done:
                self._hand_over(sock)
            else:
                self._watch(EVENT_READ if flushed else EVENT_READ | EVENT_WRITE)

    def _hand_over(self, sock: TLSSocket) -> None:
        """Agreed: HTTP begins."""
        self._leave()
        connection = TLSConnection(self.owner, sock, self.client, self.listener)
        self.owner.discard(self)
        if sock.has_bytes:  # the request has come with the end of the handshake
            connection.on_ready(EVENT_READ)
        if self._drain_seconds is not None:
            connection.drain(self._drain_seconds)

    def _refuse_plain(self, data: bytes) -> None:
        rule = "plain HTTP on a port that speaks TLS: use https://"
        # What is no HTTP either gets no answer
        self._refuse(ProtocolError(400 if data[:1].isalpha() else 0, rule, 0, data))

    def _refuse(self, error: ProtocolError) -> None:
        self._leave()
        _Refusal(self, error)
        self.owner.discard(self)

    def _watch(self, interest: int) -> None:
        if interest != self._interest:
            self._interest = interest
            self.owner.loop.rewatch(self.raw, interest, self.on_ready)

    def _leave(self) -> None:
        if self._interest:
            self._interest = 0
            self.owner.loop.unwatch(self.raw)

    # ---- as Connections sees it

    def on_deadline(self, now: float) -> None:
        if self._sock is not None:
            text = "%s: the TLS handshake was not complete in time (--timeout-handshake)"
            self.owner.log_refused(text, str(self), kind="TLS handshakes")
        self.abort()

    def can_make_room(self, now: float) -> bool:
        return self.deadline < now + self.owner.times.handshake - _FRESH_SECONDS

    def close_idle(self) -> None:
        self.abort()

    def drain(self, idle_seconds: float) -> None:
        if idle_seconds <= 0 and self._sock is None:
            self.abort()
        else:
            self._drain_seconds = idle_seconds
            self.deadline = min(self.deadline, self.owner.loop.now() + max(idle_seconds, _FRESH_SECONDS))

    def abort(self) -> None:
        if self.raw.fileno() >= 0:
            self._leave()
            self.raw.close()
            self.owner.discard(self)

    def __repr__(self) -> str:
        return "unix" if self.client is None else "%s:%d" % self.client


def _describe(error: ssl.SSLError) -> str:
    """ "no shared cipher", "certificate verify failed: certificate has expired"."""
    text = (error.reason or str(error)).replace("_", " ").lower()
    detail = getattr(error, "verify_message", "")
    return f"{text}: {detail}" if detail else text


# ---- what gateways tell the application


class Facts:
    """What has been agreed on one connection; immutable.

    extension   the scope's "tls" (ASGI TLS extension 0.2)
    environ     SSL_* for a WSGI environ, by the names that Apache's mod_ssl has made usual
    """

    __slots__ = ("environ", "extension")

    def __init__(self, tls: ssl.SSLObject) -> None:
        context: Any = tls.context
        cipher, _, _ = tls.cipher() or ("", "", 0)
        certificate = tls.getpeercert(True)
        chain = _chain(tls, certificate) if certificate else []
        parsed = (tls.getpeercert() or {}) if certificate else {}
        name = _name(parsed.get("subject", ())) if certificate else None
        self.extension: dict[str, Any] = {
            "server_cert": getattr(context, "pem", None),
            "client_cert_chain": chain,
            "client_cert_name": name,
            "client_cert_error": None,
            "tls_version": _VERSION_NUMBERS.get(tls.version() or ""),
            "cipher_suite": _cipher_number(cipher, context),
        }
        self.environ = {
            "SSL_PROTOCOL": tls.version() or "",
            "SSL_CIPHER": cipher,
            "SSL_CLIENT_VERIFY": "SUCCESS" if certificate else "NONE",
        }
        if name is not None:
            self.environ["SSL_CLIENT_S_DN"] = name.encode().decode("latin-1")  # PEP 3333, "Unicode Issues"
            self.environ["SSL_CLIENT_I_DN"] = _name(parsed.get("issuer", ())).encode().decode("latin-1")
            self.environ["SSL_CLIENT_CERT"] = chain[0]


def _chain(tls: ssl.SSLObject, certificate: bytes) -> list[str]:
    """As the client has sent it; before Python 3.13 only its own certificate can be had."""
    get_chain = getattr(tls, "get_unverified_chain", None)
    # Of a session that is resumed nothing is known but the client's own certificate
    others = [] if get_chain is None else [each for each in get_chain() if each != certificate]
    return [ssl.DER_cert_to_PEM_cert(each) for each in (certificate, *others)]


_cipher_numbers: dict[str, int] = {}  # name -> number


def _cipher_number(name: str, context: ssl.SSLContext) -> int | None:
    """RFC 8446 B.4; OpenSSL sets a byte of its own before that."""
    if name not in _cipher_numbers:
        _cipher_numbers.update((each["name"], each["id"] & 0xFFFF) for each in context.get_ciphers())
    return _cipher_numbers.get(name)


# RFC 4514 3, by the names that OpenSSL gives
_SHORT_NAMES = {
    "commonName": "CN", "localityName": "L", "stateOrProvinceName": "ST", "organizationName": "O",
    "organizationalUnitName": "OU", "countryName": "C", "streetAddress": "STREET", "domainComponent": "DC",
    "userId": "UID",
}  # fmt: skip


def _name(name: Any) -> str:
    """A distinguished name as RFC 4514 writes it: the last part first."""
    parts = ("+".join(f"{_SHORT_NAMES.get(key, key)}={_escape(value)}" for key, value in part) for part in name)
    return ",".join(reversed([*parts]))


def _escape(value: str) -> str:
    """RFC 4514 2.4."""
    text = "".join("\\" + char if char in '"+,;<>\\' else char for char in value).replace("\0", "\\00")
    if value[:1] in ("#", " "):
        text = "\\" + text
    return text[:-1] + "\\ " if value[1:].endswith(" ") else text
