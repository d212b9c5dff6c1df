"""python -m tests.bench.sockets: what WebSockets cost a server: echoes, a broadcast, many that are idle.

One client process with bare sockets and a selector, frames made beforehand, so that the client does as little as can be
done. In each round every server is started afresh, warmed up, measured and stopped; the order rotates.

This file must not be called websockets.py: servers run in this directory and would import it for the package.
"""

from __future__ import annotations

import argparse
import selectors
import socket
import statistics
import struct
import sys
import tempfile
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from .peers import add_options, installed, prepare
from .procs import ServerProcess, StartError, raise_descriptor_limit, running, stop_on_signals
from .servers import HERE, REPOSITORY, SERVERS, Server, choose

KIB = 1024
MASK = b"\x37\xfa\x21\x3d"
HANDSHAKE = (
    b"GET %b HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n%b\r\n"
)
OFFER = b"Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n"
SOCKET_TIMEOUT_SECONDS = 10.0
WARM_UP_SECONDS = 0.5
SETTLE_SECONDS = 1.0
APP = "apps:asgi_socket"


class ClientError(Exception):
    """The server has closed a connection, or has not answered."""


@dataclass(frozen=True, slots=True)
class Case:
    """`measure(case, server, seconds)` gives a figure in `unit`."""

    name: str
    title: str
    unit: str
    connections: int
    size: int
    measure: Callable[[Case, ServerProcess, float], float]
    compressed: bool = False


def head(first: int, size: int, mask: int) -> bytes:
    """The head of a frame (RFC 6455 5.2); `mask` is 0x80 or 0."""
    if size < 126:
        return bytes((first, mask | size))
    if size < 65536:
        return struct.pack("!BBH", first, mask | 126, size)
    return struct.pack("!BBQ", first, mask | 127, size)


def frame(payload: bytes, first: int = 0x81) -> bytes:
    """A client's frame."""
    masked = bytes(byte ^ MASK[at & 3] for at, byte in enumerate(payload))
    return head(first, len(payload), 0x80) + MASK + masked


def connect(port: int, path: bytes, more: bytes = b"") -> socket.socket:
    """An open WebSocket."""
    sock = socket.create_connection(("127.0.0.1", port), SOCKET_TIMEOUT_SECONDS)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.sendall(HANDSHAKE % (path, more))
    answer = b""
    while b"\r\n\r\n" not in answer:
        data = sock.recv(4096)
        if not data:
            raise ClientError(f"handshake failed: {answer[:100]!r}")
        answer += data
    if not answer.startswith(b"HTTP/1.1 101 "):
        raise ClientError(f"handshake refused: {answer[:100]!r}")
    return sock


class Clients:
    """Open WebSockets that count the bytes of whole answers."""

    def __init__(self, port: int, path: bytes, count: int, size: int) -> None:
        self.selector = selectors.DefaultSelector()
        self.socks = [connect(port, path) for _ in range(count)]
        self.message = frame(b"x" * size)
        self.answer_bytes = len(head(0x81, size, 0)) + size
        self.got = dict.fromkeys(self.socks, 0)
        self.buffer = bytearray(1 << 20)
        for sock in self.socks:
            self.selector.register(sock, selectors.EVENT_READ)

    def ready(self) -> list[socket.socket]:
        """Those whose next answer is complete now."""
        complete = []
        for key, _ in self.selector.select(SOCKET_TIMEOUT_SECONDS) or [(None, 0)]:
            if key is None:
                raise ClientError("no answer")
            sock = key.fileobj
            assert isinstance(sock, socket.socket)
            count = sock.recv_into(self.buffer)
            if not count:
                raise ClientError("closed by the server")
            self.got[sock] += count
            if self.got[sock] >= self.answer_bytes:
                self.got[sock] -= self.answer_bytes
                complete.append(sock)
        return complete

    def close(self) -> None:
        for sock in self.socks:
            sock.close()
        self.selector.close()


def echo(case: Case, server: ServerProcess, seconds: float) -> float:
    """Server CPU microseconds for one message that comes back; each client has one under way."""
    clients = Clients(server.port, b"/echo", case.connections, case.size)
    try:
        for sock in clients.socks:
            sock.sendall(clients.message)

        def run(seconds: float) -> int:
            count = 0
            end = time.monotonic() + seconds
            while time.monotonic() < end:
                for sock in clients.ready():
                    sock.sendall(clients.message)
                    count += 1
            return count

        return _cpu_each(server, run, seconds)
    finally:
        clients.close()


def broadcast(case: Case, server: ServerProcess, seconds: float) -> float:
    """Server CPU microseconds for each copy of a message that one client sends to all."""
    clients = Clients(server.port, b"/room", case.connections, case.size)
    try:

        def run(seconds: float) -> int:
            count = 0
            end = time.monotonic() + seconds
            while time.monotonic() < end:
                clients.socks[0].sendall(clients.message)
                waiting = len(clients.socks)
                while waiting:
                    waiting -= len(clients.ready())
                count += len(clients.socks)
            return count

        return _cpu_each(server, run, seconds)
    finally:
        clients.close()


def _cpu_each(server: ServerProcess, run: Callable[[float], int], seconds: float) -> float:
    run(WARM_UP_SECONDS)
    before = server.usage().run_seconds
    count = run(seconds)
    return (server.usage().run_seconds - before) / count * 1e6


def idle(case: Case, server: ServerProcess, seconds: float) -> float:
    """Resident bytes for each WebSocket that has had one message and is idle now."""
    payload = b"".join(b"%d,%d;" % (number, number * number) for number in range(case.size // 8))[: case.size]
    if case.compressed:
        deflate = zlib.compressobj(wbits=-12)
        message = frame((deflate.compress(payload) + deflate.flush(zlib.Z_SYNC_FLUSH))[:-4], 0xC1)
    else:
        message = frame(payload)

    def one() -> socket.socket:
        sock = connect(server.port, b"/echo", OFFER if case.compressed else b"")
        sock.sendall(message)
        if not sock.recv(65536):
            raise ClientError("closed by the server")
        return sock

    socks = [one() for _ in range(100)]
    before = server.rss_bytes()
    try:
        socks += [one() for _ in range(case.connections)]
        time.sleep(SETTLE_SECONDS)
        return (server.rss_bytes() - before) / case.connections
    finally:
        for sock in socks:
            sock.close()


US, BYTES = "us of server CPU per message", "bytes per connection"
CASES = (
    Case("echo-128", "echo of 128 bytes, 32 connections", US, 32, 128, echo),
    Case("echo-64k", "echo of 64 KiB, 8 connections", US, 8, 64 * KIB, echo),
    Case("broadcast", "128 bytes to 500 connections", US, 500, 128, broadcast),
    Case("idle", "5,000 idle connections", BYTES, 5000, 1000, idle),
    Case("idle-deflate", "5,000 idle connections with compression", BYTES, 5000, 1000, idle, compressed=True),
)


def run_case(case: Case, servers: list[Server], rounds: int, seconds: float, python: str, scratch: Path) -> str:
    """The case's table."""
    figures: dict[str, list[float]] = {server.name: [] for server in servers}
    failed: dict[str, str] = {}
    environment = {"PYTHONPATH": str(REPOSITORY)}
    for number in range(rounds):
        turn = number % len(servers)
        for server in servers[turn:] + servers[:turn]:
            command = server.command
            try:
                with running(lambda port, make=command: make(python, APP, port, scratch), environment, HERE) as process:
                    figures[server.name].append(case.measure(case, process, seconds))
            except (OSError, ClientError, StartError) as error:
                failed[server.name] = str(error)
    lines = [
        f"### {case.name}: {case.title}\n",
        f"| server | {case.unit}, median | least | most |",
        "|---|---:|---:|---:|",
    ]
    for name, found in figures.items():
        if name in failed:
            lines.append(f"| {name} | FAILED: {failed[name]} | | |")
        else:
            shown = [f"{figure:,.1f}" for figure in (statistics.median(found), min(found), max(found))]
            lines.append(f"| {name} | {' | '.join(shown)} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    """Runs what the command line asks for; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.sockets", description=__doc__.splitlines()[0])
    parser.add_argument("--cases", default=",".join(case.name for case in CASES))
    parser.add_argument("--servers", default="stdserve-asgi,uvicorn", help="comma-separated names or beginnings")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3.0, help="measured for each server and round")
    add_options(parser)
    args = parser.parse_args()
    fitting = [server for server in SERVERS if server.interface == "asgi"]
    names = choose(args.servers, [server.name for server in fitting], "server")
    case_names = choose(args.cases, [case.name for case in CASES], "case")
    stop_on_signals()
    raise_descriptor_limit()
    python, version, versions = prepare(args.python, install=not args.no_install)
    servers = [server for server in fitting if server.name in names and installed(server.needs, versions)]
    print(f"## WebSockets, CPython {version}, {args.rounds} rounds of {args.seconds:g} s\n")
    failed = False
    with tempfile.TemporaryDirectory(prefix="stdserve-bench-") as scratch:
        for case in (case for case in CASES if case.name in case_names):
            table = run_case(case, servers, args.rounds, args.seconds, python, Path(scratch))
            failed = failed or "FAILED" in table
            print(table, flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
