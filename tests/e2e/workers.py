"""A supervisor with workers, and load on it under which requests could get lost."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

from tests.e2e.harness import Process, serving
from tests.support import BOUND_SECONDS, Client, wait_for

APP = """
import asyncio, ctypes, os, sys, time

def answer(environ, start_response):
    path, _, argument = environ["PATH_INFO"].lstrip("/").partition("/")
    if path == "sleep":
        time.sleep(float(argument))
    elif path == "exit":
        os._exit(int(argument))
    elif path == "crash":
        ctypes.string_at(0)
    elif path == "fork" and not os.fork():
        os._exit(0)
    body = f"{os.getpid()} {IMPORTED_BY} {os.getuid()} {VERSION}".encode()
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]

IMPORTED_BY = os.getpid()
VERSION = 1

async def asgi(scope, receive, send):
    if scope["type"] == "lifespan":
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        os.write(1, b"shutdown %d\\n" % os.getpid())
        await send({"type": "lifespan.shutdown.complete"})
        return
    if scope["path"] == "/block":
        time.sleep(3600)
    await asyncio.sleep(float(scope["query_string"] or 0))
    body = str(os.getpid()).encode()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})

async def failing(scope, receive, send):
    await receive()
    raise ValueError("no database")
"""


@contextlib.contextmanager
def supervised(
    folder: Path, *options: str, app: str = "app:answer", workers: int = 2, **settings: object
) -> Iterator[Process]:
    """A supervisor with all its workers ready."""
    with serving(folder, app, "-w", str(workers), "--no-access-log", *options, **settings) as process:
        wait_ready(process, workers)
        yield process
        if process.popen.poll() is None:
            process.signal(signal.SIGTERM)
            assert process.wait() == 0, process.text


def wait_ready(process: Process, count: int) -> None:
    wait_for(lambda: len(re.findall(r"Worker \[\d+\] is ready", process.text)) >= count or process.popen.poll())
    assert process.popen.poll() is None, process.text


def ready_pids(process: Process) -> list[int]:
    return [int(pid) for pid in re.findall(r"Worker \[(\d+)\] is ready", process.text)]


def lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


class Load:
    """Clients that ask on and on: half of them keep their connection, half make a new one for each request."""

    def __init__(self, process: Process, clients: int = 6, paths: tuple[str, ...] = ("/", "/sleep/0.02", "/sleep/0.2")):
        self.failures: list[str] = []
        self.answered = 0
        self.pids: set[int] = set()
        self._connect = process.connect
        self._paths = paths
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(number,)) for number in range(clients)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        self.wait_answers(10)
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(BOUND_SECONDS)
            assert not thread.is_alive()

    def wait_answers(self, count: int) -> None:
        """So many more."""
        target = self.answered + count
        wait_for(lambda: self.answered >= target)

    def _ask(self, number: int) -> None:
        client: Client | None = None
        turn = number
        while not self._over.is_set():
            turn += 1
            path = self._paths[turn % len(self._paths)]
            try:
                client = client or self._connect()
                answer = client.get(path)
                assert answer.status == 200, answer
                self.pids.add(int(answer.body.split()[0]))
                self.answered += 1
                if number % 2 or answer.fields.get("connection") == "close":
                    client.sock.close()
                    client = None
            except (OSError, AssertionError, ValueError) as error:
                self.failures.append(f"{path}: {error!r}")
                if client is not None:
                    client.sock.close()
                client = None
                self._over.wait(0.01)
        if client is not None:
            client.sock.close()
