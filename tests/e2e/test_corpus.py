"""The wire cases against a running server, with a WSGI and an ASGI application, whole and byte by byte.

corpus/h1 says what the server does with what clients send; corpus/app what it does with what applications do, which the
path of the request names (see SCRIPTS); corpus/wsgi and corpus/asgi have the cases in which the two differ.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Awaitable, Callable, Iterable, Iterator
from typing import Any

import pytest

from tests import wire
from tests.support import Client, Running, running

# A path, and what the application does: status, fields, pieces of the body. An exception is raised where it stands.
SCRIPTS: dict[str, list[Any]] = {
    "/raise": [ValueError("before the start")],
    "/raise-late": ["200 OK", [], b"abc", ValueError("after the start")],
    "/bad-header": ["200 OK", [("X-A", "b\r\nX-B: c")], b"abc"],
    "/short": ["200 OK", [("Content-Length", "6")], b"abc"],
    "/long": ["200 OK", [("Content-Length", "3")], b"abcdef"],
    "/no-content": ["204 No Content", [("Content-Length", "3")], b"abc"],
    "/not-modified": ["304 Not Modified", [("Content-Length", "3")], b"abc"],
    "/stream": ["200 OK", [], b"abc", b"def"],
    "/close": ["200 OK", [("Connection", "close"), ("Content-Length", "3")], b"abc"],
    "/unread": ["200 OK", [("Content-Length", "3")], b"abc"],
}


def wsgi_app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    script = SCRIPTS.get(environ["PATH_INFO"])
    if script is not None:
        return play_wsgi(script, start_response)
    line = " ".join((environ["REQUEST_METHOD"], environ["RAW_URI"], environ["SERVER_PROTOCOL"]))
    body = line.encode("latin-1") + b"\n" + environ["wsgi.input"].read()
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]


def again(error: Exception) -> Exception:
    """A new exception like this one: one object would gather the tracebacks, and so the connections, of all cases."""
    return type(error)(*error.args)


def play_wsgi(script: list[Any], start_response: Callable[..., Any]) -> Iterator[bytes]:
    steps = iter(script)
    status = next(steps)
    if isinstance(status, Exception):
        raise again(status)
    start_response(status, next(steps))
    for step in steps:
        if isinstance(step, Exception):
            raise again(step)
        yield step


async def asgi_app(
    scope: dict[str, Any], receive: Callable[[], Awaitable[Any]], send: Callable[[Any], Awaitable[None]]
) -> None:
    if scope["type"] != "http":
        raise NotImplementedError(scope["type"])
    script = SCRIPTS.get(scope["path"])
    if script is None:
        query = b"?" + scope["query_string"] if scope["query_string"] else b""
        line = b"%b %b%b HTTP/%b\n" % (
            scope["method"].encode(),
            scope["raw_path"],
            query,
            scope["http_version"].encode(),
        )
        body = line + await read_asgi(receive)
        script = ["200 OK", [("Content-Length", str(len(body)))], body]
    await play_asgi(script, send)


async def read_asgi(receive: Callable[[], Awaitable[Any]]) -> bytes:
    pieces = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ConnectionError("the client has gone")
        pieces.append(message.get("body", b""))
        if not message.get("more_body", False):
            return b"".join(pieces)


async def play_asgi(script: list[Any], send: Callable[[Any], Awaitable[None]]) -> None:
    steps = iter(script)
    status = next(steps)
    if isinstance(status, Exception):
        raise again(status)
    fields = [(name.encode().lower(), value.encode()) for name, value in next(steps)]
    await send({"type": "http.response.start", "status": int(status[:3]), "headers": fields})
    for step in steps:
        if isinstance(step, Exception):
            raise again(step)
        await send({"type": "http.response.body", "body": step, "more_body": True})
    await send({"type": "http.response.body"})


# ---- the server


class Servers:
    """One server per application and set of limits, started when first needed."""

    def __init__(self, stack: contextlib.ExitStack) -> None:
        self._stack = stack
        self._running: dict[Any, Running] = {}

    def connect(self, interface: str, limits: dict[str, int]) -> Client:
        key = interface, tuple(sorted(limits.items()))
        if key not in self._running:
            app = wsgi_app if interface == "wsgi" else asgi_app
            options = {OPTIONS[name]: value for name, value in limits.items()}
            self._running[key] = self._stack.enter_context(running(app, error_log_file="/dev/null", **options))
        client = self._running[key].connect()
        client.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return client


OPTIONS = {
    "body": "limit_request_body",
    "chunk_extensions": "limit_chunk_extensions",
    "field": "limit_request_field_size",
    "trailers": "limit_trailers",
}


@pytest.fixture(scope="module")
def servers() -> Iterator[Servers]:
    with contextlib.ExitStack() as stack:
        yield Servers(stack)


# ---- the dialogue


def send(client: Client, data: bytes, piece_bytes: int) -> None:
    """A server that has refused a request may close before it has read everything: that is no error of ours."""
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        for at in range(0, len(data), piece_bytes):
            client.send(data[at : at + piece_bytes])


def read_answers(client: Client, case: wire.Case) -> list[wire.Answer]:
    """As many answers as the case has; 100 (Continue) is one only where the case speaks of it."""
    methods = [method for method, *_ in case.requests] or [case.data.split(b" ")[0].decode("latin-1")]
    answers: list[wire.Answer] = []
    while len(answers) < len(case.statuses):
        final = sum(answer.status >= 200 for answer in answers)
        method = methods[final] if final < len(methods) else "GET"
        try:
            answer, client.buffer = wire.read_answer(client.buffer, method, client.at_end)
        except wire.Incomplete:
            assert not client.at_end, f"ended after {[each.status for each in answers]} with {client.buffer[:200]!r}"
            client.read_more()
            continue
        if answer.status >= 200 or any(status < 200 for status in case.statuses):
            answers.append(answer)
    return answers


def check_cut(client: Client, case: wire.Case) -> None:
    rest = client.read_to_end()
    *whole, last = case.statuses
    for status in whole:
        answer, rest = wire.read_answer(rest)
        assert answer.status == status
    # Of an answer without length a reset is all that tells the end, and it may overtake the answer itself
    assert rest.startswith(b"HTTP/1.1 %d " % last) or (not rest and b"HTTP/1.0" in case.data)
    with pytest.raises(wire.Incomplete):
        wire.read_answer(rest)


def check_then(client: Client, then: str) -> None:
    if then == "open":
        assert client.send(wire.TAIL).response().body == b"GET /tail HTTP/1.1\n"
        client.sock.shutdown(socket.SHUT_WR)
        assert client.is_closed()
    elif then == "close":
        assert client.is_closed()
    else:  # nothing is answered before the request is whole; then its end comes too early
        client.sock.shutdown(socket.SHUT_WR)
        rest = client.read_to_end()
        assert not rest or wire.read_answer(rest, closed=True)[0].status == 400


def check_understood(case: wire.Case, answers: list[wire.Answer]) -> None:
    for (method, target, version, body), answer in zip(case.requests, answers, strict=False):
        if method == "HEAD":
            continue
        line, _, echoed = answer.body.partition(b"\n")
        got_method, got_target, got_version = line.decode("latin-1").split(" ")
        assert (got_method, got_version, echoed) == (method, f"HTTP/{version}", body)
        if target.startswith("/"):
            assert got_target.startswith(target.partition("...")[0].removesuffix("?"))


def converse(servers: Servers, case: wire.Case, interface: str, piece_bytes: int) -> list[wire.Answer]:
    with servers.connect(interface, case.limits) as client:
        send(client, case.data, piece_bytes)
        if case.then == "cut":
            check_cut(client, case)
            return []
        answers = read_answers(client, case)
        assert [answer.status for answer in answers] == case.statuses
        check_then(client, case.then)
    return answers


WHOLE = 1 << 20
H1 = wire.load("h1")
APP = [(each, case) for each in ("wsgi", "asgi") for folder in ("app", each) for case in wire.load(folder)]
interfaces = pytest.mark.parametrize("interface", ["wsgi", "asgi"])


@interfaces
@pytest.mark.parametrize("case", H1, ids=str)
def test_case_whole(servers: Servers, case: wire.Case, interface: str) -> None:
    answers = converse(servers, case, interface, WHOLE)
    check_understood(case, answers)
    for answer in answers:
        if answer.status >= 400:
            assert answer.get(b"connection") == b"close"
            assert answer.get(b"content-type") == b"text/plain; charset=utf-8"
            assert case.rule.encode() in answer.body


@interfaces
@pytest.mark.parametrize("case", H1, ids=str)
def test_case_byte_by_byte(servers: Servers, case: wire.Case, interface: str) -> None:
    piece_bytes = 1 if len(case.data) < 2000 else 499  # large ones are cut finely in the engine's tests
    check_understood(case, converse(servers, case, interface, piece_bytes))


@pytest.mark.parametrize("piece_bytes", [WHOLE, 1], ids=["whole", "byte-by-byte"])
@pytest.mark.parametrize(("interface", "case"), APP, ids=str)
def test_application_case(servers: Servers, interface: str, case: wire.Case, piece_bytes: int) -> None:
    for answer in converse(servers, case, interface, piece_bytes):
        assert b"X-B" not in repr(answer).encode()
        if answer.status == 500:
            assert b"Error" not in answer.body.replace(b"Internal Server Error", b"")  # nothing of the traceback
        elif b"/long" in case.data:
            assert answer.body == b"abc"
        elif b"/stream" in case.data and answer.get(b"content-length") is None and b"HEAD" not in case.data:
            assert answer.body == b"abcdef"
