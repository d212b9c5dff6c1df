"""python -m tests.bench.idle: what 10,000 idle keep-alive connections cost a server, in memory and in CPU.

The clients are a few processes, each with a source address of its own (127.0.0.2 on), so that neither ports nor
descriptors run out. Every connection makes one request, is left alone for a while, then makes a second one, which
shows that it was still alive. Kernel memory of sockets is not in RSS and not counted.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

from .peers import add_options, installed, prepare
from .procs import ServerProcess, StartError, raise_descriptor_limit, running, stop_on_signals
from .servers import HERE, REPOSITORY, SERVERS, Server, choose

REQUEST = b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
LAST_BYTES = (b"Hello, world!", b"x" * 13)  # the applications' and the floor's
PER_CLIENT = 2500
WARM_UP_REQUESTS = 500
SETTLE_SECONDS = 1.0
SPARE_DESCRIPTORS = 200
SOCKET_TIMEOUT_SECONDS = 10.0
CLIENT_TIMEOUT_SECONDS = 60.0


class ClientError(Exception):
    """A client process failed or was too slow."""


def request(sock: socket.socket) -> None:
    """One request and its whole answer."""
    sock.sendall(REQUEST)
    answer = b""
    while not answer.endswith(LAST_BYTES):
        data = sock.recv(4096)
        if not data:
            raise ConnectionError("closed by the server")
        answer += data


def client(port: int, count: int, address: str, pipe: Connection) -> None:
    """The client process: opens, reports; at a word from the pipe makes the second requests, reports."""
    socks: list[socket.socket] = []
    try:
        for _ in range(count):
            sock = socket.create_connection(("127.0.0.1", port), SOCKET_TIMEOUT_SECONDS, (address, 0))
            socks.append(sock)
            request(sock)
        pipe.send(len(socks))
    except OSError as error:
        pipe.send(f"connection {len(socks)} of {count} from {address}: {error!r}")
        return
    with contextlib.suppress(EOFError):
        pipe.recv()
        pipe.send(sum(_answers(sock) for sock in socks))


def _answers(sock: socket.socket) -> bool:
    try:
        request(sock)
    except OSError:
        return False
    return True


@contextlib.contextmanager
def clients(port: int, count: int) -> Iterator[list[Connection]]:
    """The client processes, ended at the end; their pipes."""
    processes: list[BaseProcess] = []
    pipes: list[Connection] = []
    context = multiprocessing.get_context("fork")
    try:
        for number, start in enumerate(range(0, count, PER_CLIENT)):
            ours, theirs = context.Pipe()
            share = min(PER_CLIENT, count - start)
            process = context.Process(target=client, args=(port, share, f"127.0.0.{number + 2}", theirs), daemon=True)
            process.start()
            theirs.close()
            processes.append(process)
            pipes.append(ours)
        yield pipes
    finally:
        for process in processes:
            process.kill()
            process.join()


def collect(pipes: list[Connection]) -> int:
    """The sum of one report of each client."""
    deadline = time.monotonic() + CLIENT_TIMEOUT_SECONDS
    total = 0
    for pipe in pipes:
        if not pipe.poll(max(0.0, deadline - time.monotonic())):
            raise ClientError(f"a client gave no word for {CLIENT_TIMEOUT_SECONDS:.0f} s")
        try:
            word = pipe.recv()
        except EOFError:
            raise ClientError("a client process ended early") from None
        if isinstance(word, str):
            raise ClientError(word)
        total += word
    return total


def row(name: str, server: ServerProcess, count: int, seconds: float) -> str:
    """Opens, measures, checks; one line of the table."""
    with socket.create_connection(("127.0.0.1", server.port), SOCKET_TIMEOUT_SECONDS) as sock:
        for _ in range(WARM_UP_REQUESTS):
            request(sock)
    before = server.rss_bytes()
    with clients(server.port, count) as pipes:
        opened = collect(pipes)
        time.sleep(SETTLE_SECONDS)
        grown = server.rss_bytes() - before
        start = server.usage()
        time.sleep(seconds)
        end = server.usage()
        for pipe in pipes:
            pipe.send("again")
        alive = collect(pipes)
    run = (end.run_seconds - start.run_seconds) * 1000
    cpu = (end.cpu_seconds - start.cpu_seconds) * 1000
    figures = f"{before / 1e6:.1f} | {grown / 1e6:.1f} | {grown / opened:,.0f} | {run:.1f} | {cpu:.0f}"
    return f"| {name} | {opened} | {figures} | {end.sleeps - start.sleeps} | {alive} |"


def measure(server: Server, python: str, count: int, seconds: float, scratch: Path) -> str:
    """One server's line, or why there is none."""
    app = {"asgi": "apps:asgi_hello", "wsgi": "apps:wsgi_hello"}.get(server.interface, "")
    try:
        with running(lambda port: server.command(python, app, port, scratch), environment(), HERE) as process:
            try:
                return row(server.name, process, count, seconds)
            except (OSError, ClientError) as error:
                return f"| {server.name} | FAILED: {error} {process.log_tail()} |"
    except StartError as error:
        return f"| {server.name} | FAILED: {error} |"


def environment() -> dict[str, str]:
    """What servers need to find stdserve."""
    return {"PYTHONPATH": str(REPOSITORY)}


def main() -> int:
    """Runs what the command line asks for; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.idle", description=__doc__.splitlines()[0])
    parser.add_argument("--connections", type=int, default=10_000)
    parser.add_argument("--seconds", type=float, default=5.0, help="how long the CPU of the idle server is watched")
    parser.add_argument("--servers", default="stdserve", help="comma-separated names or beginnings")
    add_options(parser)
    args = parser.parse_args()
    names = choose(args.servers, [server.name for server in SERVERS], "server")
    stop_on_signals()
    count = min(args.connections, raise_descriptor_limit() - SPARE_DESCRIPTORS)
    if count < args.connections:
        print(f"the limit on open files allows {count} connections, not {args.connections}", file=sys.stderr)
    python, version, versions = prepare(args.python, install=not args.no_install)
    print(f"## {count} idle connections, CPython {version}, watched for {args.seconds:g} s\n")
    print(
        "| server | opened | RSS MB before | growth MB | bytes/connection | run ms | ticks ms | sleeps | alive after |"
    )
    print("|---|---:|---:|---:|---:|---:|---:|---:|---:|", flush=True)
    failed = False
    with tempfile.TemporaryDirectory(prefix="stdserve-bench-") as scratch:
        for server in SERVERS:
            if server.name in names and installed(server.needs, versions):
                line = measure(server, python, count, args.seconds, Path(scratch))
                failed = failed or "FAILED" in line
                print(line, flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
