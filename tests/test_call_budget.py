"""What a keep-alive GET and a WebSocket's echo cost in Python calls on the server's side: the same on every machine,
unlike their time.

A change that needs more must be worth it: measure with tests/bench, then raise the number here with the reason.
"""

from __future__ import annotations

import itertools
import statistics
import sys
import threading
from collections import Counter
from typing import Any

import pytest

from tests import sockets
from tests.support import Client, Running, running

REQUESTS = 100
REQUEST = b"GET / HTTP/1.1\r\nHost: test\r\nUser-Agent: budget\r\nAccept: */*\r\n\r\n"


def wsgi_hello(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "5")])
    return [b"hello"]


async def asgi_hello(scope: dict[str, Any], receive: Any, send: Any) -> None:
    headers = [(b"content-type", b"text/plain"), (b"content-length", b"5")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"hello"})


def get(client: Client) -> None:
    client.send(REQUEST)
    assert client.response().body == b"hello"


def calls_per_request(
    app: Any, interface: str, connect: Any = Running.connect, ask: Any = get
) -> tuple[float, Counter[str]]:
    """(median, all calls) of 100 requests on one connection. The application's own calls do not count.

    The median, because now and then the loop's tick or the collector's hooks of a test tool fall into a request.
    """
    calls: Counter[str] = Counter()
    totals = []

    def profile(frame: Any, event: str, argument: Any) -> None:
        if event == "call" and frame.f_code.co_filename not in (__file__, sockets.__file__, threading.__file__):
            calls[f"{frame.f_code.co_filename.rpartition('/')[2]}:{frame.f_code.co_name}"] += 1

    def profile_server() -> None:
        name = threading.current_thread().name
        sys.setprofile(profile if name.startswith(("stdserve-loop", "stdserve-pool")) else None)

    # Each thread calls this once, at its first event, and from then on `profile` or nothing.
    threading.setprofile(lambda *event: profile_server())
    try:
        with running(app, interface=interface, lifespan="off") as server, connect(server) as client:
            for _ in range(REQUESTS + 10):  # the first ones warm caches and threads
                ask(client)
                totals.append(sum(calls.values()))
    finally:
        threading.setprofile(None)
    each = [after - before for before, after in itertools.pairwise(totals[9:])]
    return statistics.median(each), calls


@pytest.mark.parametrize(("app", "interface", "budget"), [(wsgi_hello, "wsgi", 30), (asgi_hello, "asgi3", 45)])
def test_a_get_stays_within_its_budget_of_calls(app: Any, interface: str, budget: int) -> None:
    median, calls = calls_per_request(app, interface)
    assert 20 < median <= budget, "\n".join(f"{count / REQUESTS:6.2f} {name}" for name, count in calls.most_common())


def test_an_echo_stays_within_its_budget_of_calls() -> None:
    def ask(client: sockets.Socket) -> None:
        assert client.text("x" * 100).read() == b"x" * 100

    median, calls = calls_per_request(sockets.echo, "asgi3", sockets.connect, ask)
    assert 20 < median <= 34, "\n".join(f"{count / REQUESTS:6.2f} {name}" for name, count in calls.most_common())
