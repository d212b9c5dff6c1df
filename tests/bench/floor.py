"""The floor: a selectors loop that takes what comes and sends constant bytes. Nothing is parsed.

Run as a program with a port. One recv counts as one request, so it is right only for requests that arrive in one
segment (all bench cases without a body). What a server costs above this is its own work.
"""

from __future__ import annotations

import argparse
import selectors
import socket

RECEIVE_BYTES = 65536
HEAD = (
    b"HTTP/1.1 200 OK\r\nserver: floor\r\ndate: Thu, 01 Jan 1970 00:00:00 GMT\r\n"
    b"content-type: text/plain\r\ncontent-length: %d\r\n%s\r\n"
)


class Floor:
    """Order of use: made, run (until killed)."""

    def __init__(self, port: int, size: int, close: bool) -> None:
        self.answer = HEAD % (size, b"connection: close\r\n" if close else b"") + b"x" * size
        self.close = close
        self.selector = selectors.DefaultSelector()
        self.pending: dict[socket.socket, memoryview] = {}
        self.listener = socket.create_server(("127.0.0.1", port), backlog=2048)
        self.listener.setblocking(False)
        self.selector.register(self.listener, selectors.EVENT_READ)

    def run(self) -> None:
        """Serves for ever."""
        while True:
            for key, mask in self.selector.select():
                sock = key.fileobj
                try:
                    if sock is self.listener:
                        self.accept()
                    elif mask & selectors.EVENT_WRITE:
                        self.flush(sock)  # type: ignore[arg-type]
                    else:
                        self.read(sock)  # type: ignore[arg-type]
                except BlockingIOError:
                    continue
                except OSError:
                    self.drop(sock)  # type: ignore[arg-type]

    def accept(self) -> None:
        """Takes every connection that waits; ends with BlockingIOError."""
        while True:
            sock, _ = self.listener.accept()
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.selector.register(sock, selectors.EVENT_READ)

    def read(self, sock: socket.socket) -> None:
        """One request, one answer."""
        if not sock.recv(RECEIVE_BYTES):
            return self.drop(sock)
        sent = sock.send(self.answer)
        if sent < len(self.answer):
            self.pending[sock] = memoryview(self.answer)[sent:]
            self.selector.modify(sock, selectors.EVENT_WRITE)
        elif self.close:
            self.drop(sock)

    def flush(self, sock: socket.socket) -> None:
        """Sends on what the kernel did not take at once."""
        rest = self.pending[sock]
        rest = rest[sock.send(rest) :]
        if rest:
            self.pending[sock] = rest
            return
        del self.pending[sock]
        if self.close:
            self.drop(sock)
        else:
            self.selector.modify(sock, selectors.EVENT_READ)

    def drop(self, sock: socket.socket) -> None:
        """Forgets a connection."""
        self.pending.pop(sock, None)
        self.selector.unregister(sock)
        sock.close()


def main() -> None:
    """python floor.py PORT [--size N] [--close]."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("port", type=int)
    parser.add_argument("--size", type=int, default=13, help="bytes of the answer's body")
    parser.add_argument("--close", action="store_true", help="one request per connection")
    args = parser.parse_args()
    Floor(args.port, args.size, args.close).run()


if __name__ == "__main__":
    main()
