"""The applications under test: the same answers over ASGI and WSGI, as small as the interface allows.

Imported by the servers as the top-level module `apps` (their working directory is this one). One application is one
attribute, so no routing is measured. The file that `*_file` sends is named by BENCH_FILE.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from typing import Any

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]
AsgiApp = Callable[[Scope, Receive, Send], Awaitable[None]]
Environ = dict[str, Any]
StartResponse = Callable[..., Any]
WsgiApp = Callable[[Environ, StartResponse], Iterable[bytes]]

KIB = 1024
MIB = 1024 * KIB
CHUNK_BYTES = 64 * KIB
HELLO = b"Hello, world!"
# streams.py sets the size; the pauses make an application that takes about 100 MB/s after two seconds of nothing.
STREAM_BYTES = int(os.environ.get("BENCH_STREAM_BYTES", 200 * MIB))
FIRST_PAUSE_SECONDS = 2.0
PAUSE_SECONDS_PER_MIB = 0.01


async def _lifespan(receive: Receive, send: Send) -> None:
    while True:
        message = await receive()
        if message["type"] == "lifespan.startup":
            await send({"type": "lifespan.startup.complete"})
        elif message["type"] == "lifespan.shutdown":
            await send({"type": "lifespan.shutdown.complete"})
            return


def _constant_asgi(body: bytes) -> AsgiApp:
    start = {"type": "http.response.start", "status": 200}
    headers = [(b"content-type", b"text/plain"), (b"content-length", b"%d" % len(body))]

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await _lifespan(receive, send)
        await send({**start, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    return app


def _constant_wsgi(body: bytes) -> WsgiApp:
    length = str(len(body))

    def app(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", length)])
        return [body]

    return app


asgi_hello = _constant_asgi(HELLO)
wsgi_hello = _constant_wsgi(HELLO)
asgi_100k = _constant_asgi(b"x" * (100 * KIB))
wsgi_100k = _constant_wsgi(b"x" * (100 * KIB))
asgi_1m = _constant_asgi(b"x" * MIB)
wsgi_1m = _constant_wsgi(b"x" * MIB)


async def asgi_echo(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers with the request's body."""
    if scope["type"] == "lifespan":
        return await _lifespan(receive, send)
    parts = []
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        parts.append(message.get("body", b""))
        more = message.get("more_body", False)
    body = b"".join(parts)
    await send(_octets(len(body)))
    await send({"type": "http.response.body", "body": body})


def wsgi_echo(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    """Answers with the request's body."""
    body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
    start_response("200 OK", _octets_wsgi(len(body)))
    return [body]


async def asgi_file(scope: Scope, receive: Receive, send: Send) -> None:
    """Sends a file: by its path where the server announces that it can, else in chunks."""
    if scope["type"] == "lifespan":
        return await _lifespan(receive, send)
    path = os.environ["BENCH_FILE"]
    await send(_octets(os.path.getsize(path)))
    if "http.response.pathsend" in (scope.get("extensions") or {}):
        await send({"type": "http.response.pathsend", "path": path})
        return
    with open(path, "rb", buffering=0) as file:  # from the page cache, as most would write it
        while chunk := file.read(CHUNK_BYTES):
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
    await send({"type": "http.response.body", "body": b""})


def wsgi_file(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    """Sends a file with wsgi.file_wrapper, or in chunks where the server has none."""
    path = os.environ["BENCH_FILE"]
    start_response("200 OK", _octets_wsgi(os.path.getsize(path)))
    file = open(path, "rb")  # closed by the wrapper, or by _chunks
    wrapper = environ.get("wsgi.file_wrapper", _chunks)
    return wrapper(file, CHUNK_BYTES)


def _chunks(file: Any, size: int) -> Iterator[bytes]:
    with file:
        while chunk := file.read(size):
            yield chunk


def _octets(length: int) -> dict[str, Any]:
    headers = [(b"content-type", b"application/octet-stream"), (b"content-length", b"%d" % length)]
    return {"type": "http.response.start", "status": 200, "headers": headers}


def _octets_wsgi(length: int) -> list[tuple[str, str]]:
    return [("Content-Type", "application/octet-stream"), ("Content-Length", str(length))]


async def asgi_stream(scope: Scope, receive: Receive, send: Send) -> None:
    """STREAM_BYTES in chunks, as fast as the server takes them; a GET of /warm gets one chunk."""
    if scope["type"] == "lifespan":
        return await _lifespan(receive, send)
    total = CHUNK_BYTES if scope["path"] == "/warm" else STREAM_BYTES
    await send(_octets(total))
    for size in _sizes(total):
        await send({"type": "http.response.body", "body": bytes(size), "more_body": True})
    await send({"type": "http.response.body", "body": b""})


def wsgi_stream(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    """STREAM_BYTES in chunks, as fast as the server takes them; a GET of /warm gets one chunk."""
    total = CHUNK_BYTES if environ["PATH_INFO"] == "/warm" else STREAM_BYTES
    start_response("200 OK", _octets_wsgi(total))
    return (bytes(size) for size in _sizes(total))


def _sizes(total: int) -> Iterator[int]:
    for start in range(0, total, CHUNK_BYTES):
        yield min(CHUNK_BYTES, total - start)


async def asgi_slow_sink(scope: Scope, receive: Receive, send: Send) -> None:
    """Waits, then takes the body slowly; answers with the number of bytes."""
    if scope["type"] == "lifespan":
        return await _lifespan(receive, send)
    if scope["path"] != "/warm":
        await asyncio.sleep(FIRST_PAUSE_SECONDS)
    total = since_pause = 0
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        total += len(message.get("body", b""))
        since_pause += len(message.get("body", b""))
        if since_pause >= MIB:
            await asyncio.sleep(PAUSE_SECONDS_PER_MIB * (since_pause // MIB))
            since_pause %= MIB
        more = message.get("more_body", False)
    answer = b"%d" % total
    await send(_octets(len(answer)))
    await send({"type": "http.response.body", "body": answer})


def wsgi_slow_sink(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    """Waits, then takes the body slowly; answers with the number of bytes."""
    if environ["PATH_INFO"] != "/warm":
        time.sleep(FIRST_PAUSE_SECONDS)
    left = int(environ.get("CONTENT_LENGTH") or 0)
    total = since_pause = 0
    while left and (data := environ["wsgi.input"].read(min(CHUNK_BYTES, left))):
        left -= len(data)
        total += len(data)
        since_pause += len(data)
        if since_pause >= MIB:
            time.sleep(PAUSE_SECONDS_PER_MIB)
            since_pause -= MIB
    answer = b"%d" % total
    start_response("200 OK", _octets_wsgi(len(answer)))
    return [answer]


def wsgi_busy(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    """1 ms of CPU, then the number of the process."""
    end = time.thread_time() + 0.001
    while time.thread_time() < end:
        pass
    body = b"%d" % os.getpid()
    start_response("200 OK", _octets_wsgi(len(body)))
    return [body]
_room: set[Send] = set()


async def asgi_socket(scope: Scope, receive: Receive, send: Send) -> None:
    """WebSockets: /echo sends each message back, /room sends it to all who are in the room."""
    if scope["type"] == "lifespan":
        return await _lifespan(receive, send)
    await receive()
    await send({"type": "websocket.accept"})
    in_room = scope["path"] == "/room"
    if in_room:
        _room.add(send)
    try:
        while (message := await receive())["type"] == "websocket.receive":
            answer = {"type": "websocket.send", "text": message["text"]}
            for each in list(_room) if in_room else (send,):
                await each(answer)
    finally:
        _room.discard(send)
