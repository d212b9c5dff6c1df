"""python -m tests.bench.streams: how much memory long bodies take when one end is slow.

Answer: the application gives 200 MB as fast as it is let, the client reads nothing for two seconds and then slowly.
Upload: the client sends 200 MB as fast as it is let, the application takes nothing for two seconds and then slowly.
A server that holds back the fast end grows by little. What it spools to disk is not counted.
"""

from __future__ import annotations

import argparse
import http.client
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from .peers import add_options, installed, prepare
from .procs import ServerProcess, StartError, raise_descriptor_limit, running, stop_on_signals
from .servers import HERE, REPOSITORY, SERVERS, Server, choose

MB = 1_000_000
PIECE_BYTES = 1024 * 1024
FIRST_PAUSE_SECONDS = 2.0
PAUSE_SECONDS = 0.01
RECEIVE_BUFFER_BYTES = 256 * 1024  # small and fixed: the kernel must not swallow the answer for the client
TIMEOUT_SECONDS = 60


class StreamError(Exception):
    """The body did not arrive whole."""


def connect(port: int) -> http.client.HTTPConnection:
    """A connection whose receive buffer does not grow."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_SECONDS)
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_BYTES)
    sock.settimeout(TIMEOUT_SECONDS)
    sock.connect(("127.0.0.1", port))
    connection.sock = sock
    return connection


def read_slowly(port: int, path: str, size: int) -> None:
    """Takes an answer of that many bytes, slowly unless it is the warm-up."""
    connection = connect(port)
    connection.request("GET", path)
    if path != "/warm":
        time.sleep(FIRST_PAUSE_SECONDS)
    response = connection.getresponse()
    total = 0
    while data := response.read(PIECE_BYTES):
        total += len(data)
        time.sleep(PAUSE_SECONDS)
    connection.close()
    if response.status != 200 or (path != "/warm" and total != size):
        raise StreamError(f"status {response.status}, {total} of {size} bytes")


def upload(port: int, path: str, size: int) -> None:
    """Sends that many bytes (the warm-up: one piece) as fast as possible; the application must have counted them."""
    size = min(size, PIECE_BYTES) if path == "/warm" else size
    piece = b"x" * PIECE_BYTES
    connection = connect(port)
    connection.putrequest("POST", path)
    connection.putheader("Content-Length", str(size))
    connection.endheaders()
    for start in range(0, size, PIECE_BYTES):
        connection.send(piece[: size - start])
    response = connection.getresponse()
    answer = response.read()
    connection.close()
    if response.status != 200 or answer != str(size).encode():
        raise StreamError(f"status {response.status}, answer {answer[:100]!r} instead of {size}")


TRANSFERS: dict[str, tuple[str, Callable[[int, str, int], None]]] = {
    "answer to a slow reader": ("stream", read_slowly),
    "upload to a slow application": ("slow_sink", upload),
}


def row(label: str, server: ServerProcess, transfer: Callable[[int, str, int], None], size: int) -> str:
    """Warms up, transfers, one line of the table."""
    transfer(server.port, "/warm", size)
    before = server.rss_bytes()
    server.reset_peak()
    start = time.monotonic()
    transfer(server.port, "/", size)
    seconds = time.monotonic() - start
    grown = (server.peak_bytes() - before) / MB
    return f"| {label} | {seconds:.1f} | {before / MB:.1f} | {grown:.1f} |"


def measure(server: Server, python: str, what: str, size: int, scratch: Path) -> str:
    """One server's line for one transfer, or why there is none."""
    name, transfer = TRANSFERS[what]
    app = f"apps:{server.interface}_{name}"
    label = f"{server.name} | {what}"
    environment = {"PYTHONPATH": str(REPOSITORY), "BENCH_STREAM_BYTES": str(size)}
    try:
        with running(lambda port: server.command(python, app, port, scratch), environment, HERE) as process:
            try:
                return row(label, process, transfer, size)
            except (OSError, http.client.HTTPException, StreamError) as error:
                return f"| {label} | FAILED: {error!r} {process.log_tail()} |"
    except StartError as error:
        return f"| {label} | FAILED: {error} |"


def main() -> int:
    """Runs what the command line asks for; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.streams", description=__doc__.splitlines()[0])
    parser.add_argument("--megabytes", type=int, default=200)
    parser.add_argument("--servers", default="stdserve", help="comma-separated names or beginnings")
    add_options(parser)
    args = parser.parse_args()
    fitting = [server.name for server in SERVERS if server.interface != "floor"]
    names = choose(args.servers, fitting, "server")
    stop_on_signals()
    raise_descriptor_limit()
    python, version, versions = prepare(args.python, install=not args.no_install)
    print(f"## {args.megabytes} MB, one end slow, CPython {version}\n")
    print("| server | transfer | seconds | RSS MB before | peak growth MB |\n|---|---|---:|---:|---:|", flush=True)
    failed = False
    with tempfile.TemporaryDirectory(prefix="stdserve-bench-") as scratch:
        for server in SERVERS:
            if server.name in names and installed(server.needs, versions):
                for what in TRANSFERS:
                    line = measure(server, python, what, args.megabytes * MB, Path(scratch))
                    failed = failed or "FAILED" in line
                    print(line, flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
