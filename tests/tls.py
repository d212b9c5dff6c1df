"""Clients for tests over TLS: one like all others, and one whose every byte is the test's own."""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
from typing import Any

from tests.certificates import Authority, Pair
from tests.support import BOUND_SECONDS, Client, Running


def trusting(authority: Authority, client: Pair | None = None, **attributes: Any) -> ssl.SSLContext:
    """A client's context; `attributes` are set on it."""
    context = ssl.create_default_context(cafile=str(authority.certificate))
    if client is not None:
        context.load_cert_chain(client.certificate, client.key)
    for name, value in attributes.items():
        setattr(context, name, value)
    return context


def connect(
    server: Running,
    context: ssl.SSLContext,
    name: str = "localhost",
    session: ssl.SSLSession | None = None,
    **options: int,
) -> Client:
    """A client over TLS; the end of the connection without close_notify is an ssl.SSLEOFError. `options` are those of
    the socket, as `SO_RCVBUF=4096`."""
    sock = socket.socket()
    for option, value in options.items():
        sock.setsockopt(socket.SOL_SOCKET, getattr(socket, option), value)
    sock.settimeout(BOUND_SECONDS)
    sock.connect(server.address)
    return Client(
        context.wrap_socket(sock, server_hostname=name or None, session=session, suppress_ragged_eofs=False)
    )  # fmt: skip


class ByteClient:
    """TLS in memory over a socket: nothing is sent but by `send_raw`, nothing read but by `read_raw`."""

    def __init__(self, server: Running, context: ssl.SSLContext, name: str = "localhost") -> None:
        self.sock = socket.create_connection(server.address, timeout=BOUND_SECONDS)
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self.incoming, self.outgoing, server_hostname=name)

    def __enter__(self) -> ByteClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()

    def hello(self) -> bytes:
        """The first bytes of a handshake."""
        self.try_handshake()
        return self.outgoing.read()

    def try_handshake(self) -> bool:
        try:
            self.tls.do_handshake()
        except ssl.SSLWantReadError:
            return False
        return True

    def handshake(self, piece_bytes: int = 65536) -> None:
        """The whole of it, in pieces of so many bytes."""
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while True:
            done = self.try_handshake()
            self.flush(piece_bytes)
            if done:
                return
            assert self.read_raw(), "the connection ended in the handshake"

    def flush(self, piece_bytes: int = 65536) -> None:
        data = self.outgoing.read()
        for at in range(0, len(data), piece_bytes):
            self.sock.sendall(data[at : at + piece_bytes])

    def write(self, data: bytes) -> None:
        """Encrypted, to be sent by `flush`."""
        self.tls.write(data)

    def say_end(self) -> None:
        """close_notify, without its flush."""
        try:
            self.tls.unwrap()
        except ssl.SSLWantReadError:
            pass

    def read_raw(self) -> bytes:
        data = self.sock.recv(65536)
        self.incoming.write(data)
        return data

    def read(self) -> bytes:
        """Decrypted; b"" for close_notify, ssl.SSLEOFError for an end without it."""
        while True:
            try:
                return self.tls.read(65536)
            except ssl.SSLZeroReturnError:
                return b""
            except ssl.SSLWantReadError:
                if not self.read_raw():
                    self.incoming.write_eof()

    def read_to_end(self) -> bytes:
        return b"".join(iter(self.read, b""))

    def talk(self, data: bytes) -> bytes:
        """Send `data` and read to the end, both at a time: what is echoed does not fit into the buffers between.

        In one thread: OpenSSL does not take reads and writes of one connection from two.
        """
        answer = bytearray()
        unsent = b""
        self.sock.setblocking(False)
        while True:
            if not unsent and data:
                self.write(data[:65536])
                data, unsent = data[65536:], self.outgoing.read()
            ready = select.select([self.sock], [self.sock] if unsent else [], [], BOUND_SECONDS)
            assert any(ready), "nothing happens"
            if ready[1]:
                unsent = unsent[self.sock.send(unsent) :]
            if ready[0]:
                at_end = not self.read_raw()
                with contextlib.suppress(ssl.SSLWantReadError):
                    while piece := self.tls.read(65536):
                        answer += piece
                    return bytes(answer)
                assert not at_end, "an end without close_notify"
