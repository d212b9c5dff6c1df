"""python -m tests.bench.workers: what a second worker brings, and how evenly new connections are spread.

The application uses 1 ms of CPU for each request, so two workers on two free CPUs can answer twice as many. Connections
are opened one after the other and all at once; each tells which worker has it, and the worst round counts.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import socket
import statistics
import sys

from .cases import Case
from .idle import environment
from .load import LoadError, run_wrk
from .peers import add_options, prepare
from .procs import StartError, running, stop_on_signals
from .servers import HERE, choose

REQUEST = b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
CONNECTIONS = 200
TIMEOUT_SECONDS = 10.0

FLAGS = {
    "stdserve": ("-m", "stdserve", "-w", "{workers}", "--bind", "127.0.0.1:{port}", "--no-access-log"),
    "stdserve-reuse-port": (
        "-m", "stdserve", "-w", "{workers}", "--reuse-port", "--bind", "127.0.0.1:{port}", "--no-access-log",
    ),
    "gunicorn": ("-m", "gunicorn", "-w", "{workers}", "-k", "gthread", "--threads", "8", "-b", "127.0.0.1:{port}"),
}  # fmt: skip


def command(name: str, python: str, workers: int, port: int) -> list[str]:
    flags = [flag.format(workers=workers, port=port) for flag in FLAGS[name]]
    return [python, *flags, "--log-level", "warning", "apps:wsgi_busy"]


def rate(name: str, python: str, workers: int, seconds: int) -> float:
    """Requests per second over 32 connections."""
    case = Case("busy", "1 ms of CPU", "", "apps:wsgi_busy", 32)
    with running(lambda port: command(name, python, workers, port), environment(), HERE) as server:
        run_wrk(case, server.port, 1)
        figures = run_wrk(case, server.port, seconds)
        return figures["requests"] / (figures["microseconds"] / 1e6)


def ask(sock: socket.socket) -> str:
    """The process that answers."""
    answer = b""
    while b"\r\n\r\n" not in answer or answer.endswith(b"\r\n\r\n"):
        data = sock.recv(4096)
        if not data:
            raise ConnectionError("closed by the server")
        answer += data
    return answer.rpartition(b"\n")[2].decode()


def spread(name: str, python: str, at_once: bool) -> float:
    """The largest share of one of two workers in 200 connections, all open at the same time."""
    found: collections.Counter[str] = collections.Counter()
    with (
        running(lambda port: command(name, python, 2, port), environment(), HERE) as server,
        contextlib.ExitStack() as stack,
    ):
        socks = []
        for _ in range(CONNECTIONS):
            sock = stack.enter_context(socket.create_connection(("127.0.0.1", server.port), TIMEOUT_SECONDS))
            socks.append(sock)
            sock.sendall(REQUEST)
            if not at_once:
                found[ask(sock)] += 1
        if at_once:
            found.update(map(ask, socks))
    return max(found.values()) / CONNECTIONS


def main() -> int:
    """Runs what the command line asks for; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.workers", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=3)
    parser.add_argument("--servers", default="stdserve", help="comma-separated names or beginnings")
    add_options(parser)
    args = parser.parse_args()
    names = choose(args.servers, list(FLAGS), "server")
    stop_on_signals()
    python, version, _ = prepare(args.python, install=not args.no_install)
    print(f"## Two workers, CPython {version}, medians of {args.rounds} rounds\n")
    print("| server | one worker, requests/s | two | ratio | largest share, one by one | at once |")
    print("|---|---:|---:|---:|---:|---:|", flush=True)
    failed = False
    for name in names:
        try:
            rates = [[rate(name, python, workers, args.seconds) for workers in (1, 2)] for _ in range(args.rounds)]
            shares = [[spread(name, python, at_once) for at_once in (False, True)] for _ in range(args.rounds)]
        except (StartError, LoadError, OSError) as error:
            print(f"| {name} | FAILED: {error} |", flush=True)
            failed = True
            continue
        one, two = (statistics.median(column) for column in zip(*rates, strict=True))
        ratio = statistics.median(pair[1] / pair[0] for pair in rates)
        slow, fast = (max(column) for column in zip(*shares, strict=True))
        print(f"| {name} | {one:.0f} | {two:.0f} | {ratio:.2f} | {slow:.0%} | {fast:.0%} |", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
