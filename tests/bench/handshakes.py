"""python -m tests.bench.handshakes: what a TLS handshake costs a server, new and resumed.

One client connects, asks once, is answered and closes, again and again; for `resumed` each connection presents the
session of the one before. The client is Python too, so the rate says little; the server's CPU is what counts.
"""

from __future__ import annotations

import argparse
import socket
import ssl
import statistics
import sys
import tempfile
import time
from pathlib import Path

from .peers import add_options, installed, prepare
from .procs import ServerProcess, StartError, running, stop_on_signals
from .servers import HERE, REPOSITORY, SERVERS, Server, choose, make_pair

REQUEST = b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n"
TIMEOUT_SECONDS = 20
WARM_UP_COUNT = 50


class HandshakeError(Exception):
    """A session that was to be resumed was not, or there was no answer."""


def connect_once(port: int, context: ssl.SSLContext, session: ssl.SSLSession | None) -> ssl.SSLSession | None:
    """One connection; the session that it leaves."""
    with (
        socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT_SECONDS) as sock,
        context.wrap_socket(sock, session=session) as tls,
    ):
        tls.sendall(REQUEST)
        if not tls.recv(65536).startswith(b"HTTP/1.1 200"):
            raise HandshakeError("no answer with status 200")
        if session is not None and not tls.session_reused:
            raise HandshakeError("the session was not resumed")
        return tls.session


def measure(server: ServerProcess, context: ssl.SSLContext, resumed: bool, count: int) -> tuple[float, float]:
    """(CPU microseconds of the server for each connection, connections per second)."""
    first = connect_once(server.port, context, None) if resumed else None
    before, start = server.usage().cpu_seconds, time.monotonic()
    for _ in range(count):
        session = connect_once(server.port, context, first)
        first = session if resumed else None
    seconds = time.monotonic() - start
    return (server.usage().cpu_seconds - before) / count * 1e6, count / seconds


def rounds_of(server: Server, python: str, args: argparse.Namespace, scratch: Path) -> list[str]:
    """The server's lines of the table: new and resumed."""
    environment = {"PYTHONPATH": str(REPOSITORY)}
    app = f"apps:{server.interface}_hello"

    def command(port: int) -> list[str]:
        return server.command(python, app, port, scratch) + server.tls_flags(scratch)

    lines = []
    with running(command, environment, HERE) as process:
        context = ssl._create_unverified_context()
        measure(process, context, False, WARM_UP_COUNT)
        for resumed in (False, True):
            label = f"| {server.name} | {'resumed' if resumed else 'new'} "
            try:
                samples = [measure(process, context, resumed, args.count) for _ in range(args.rounds)]
            except (OSError, HandshakeError) as error:
                lines.append(f"{label}| FAILED: {error!r} |")
                continue
            cpu, rate = (statistics.median(values) for values in zip(*samples, strict=True))
            lines.append(f"{label}| {cpu:.0f} | {rate:.0f} |")
    return lines


def main() -> int:
    """Runs what the command line asks for; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.handshakes", description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=500, help="connections in each round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--servers", default="stdserve,uvicorn", help="comma-separated names or beginnings")
    add_options(parser)
    args = parser.parse_args()
    names = choose(args.servers, [server.name for server in SERVERS if server.tls is not None], "server")
    stop_on_signals()
    python, version, versions = prepare(args.python, install=not args.no_install)
    print(f"## One connection after another over TLS, P-256, {ssl.OPENSSL_VERSION}, CPython {version}\n")
    print("| server | handshake | server CPU us | per second |\n|---|---|---:|---:|", flush=True)
    failed = False
    with tempfile.TemporaryDirectory(prefix="stdserve-bench-") as folder:
        scratch = Path(folder)
        make_pair(scratch)
        for server in SERVERS:
            if server.name in names and installed(server.needs, versions):
                try:
                    lines = rounds_of(server, python, args, scratch)
                except StartError as error:
                    lines = [f"| {server.name} | FAILED: {error} |"]
                failed = failed or any("FAILED" in line for line in lines)
                print("\n".join(lines), flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
