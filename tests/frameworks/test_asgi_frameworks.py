"""Real ASGI frameworks behind the server. Each one not installed is skipped."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import hashlib
import logging
import os
import socket
import struct
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import pytest

from tests.support import BOUND_SECONDS, Client, running, wait_for

SIZE = 300_000

# Frameworks leave files of their own to the collector.
pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore:StreamingHttpResponse must consume"),  # Django, of its own FileResponse
]


# ---- the same small site in each framework
#
# /          "hello", sets two cookies           /stream    "0123456789" in ten pieces
# /cookies   "a=..., b=..." of the request       /file      the file
# /redirect  302 to /                            /error     raises
# /upload    "name size digest title" of a form  /raw       size and digest of the body as it is
# /path/...  the rest of the path                /events    for ever, until the client goes


def digest(data: bytes) -> str:
    return f"{len(data)} {hashlib.sha256(data).hexdigest()}"


async def digits() -> AsyncIterator[bytes]:
    for number in range(10):
        await asyncio.sleep(0)
        yield b"%d" % number


class Events:
    """An endless stream that tells when somebody has ended it."""

    def __init__(self) -> None:
        self.ended = threading.Event()

    async def stream(self) -> AsyncIterator[bytes]:
        try:
            while True:
                yield b"data: x\n\n"
                await asyncio.sleep(0.001)
        finally:
            self.ended.set()


def starlette_site(path: Path, events: Events) -> Any:
    pytest.importorskip("python_multipart")
    applications = pytest.importorskip("starlette.applications")
    from starlette.responses import FileResponse, PlainTextResponse, RedirectResponse, StreamingResponse
    from starlette.routing import Route

    async def hello(request: Any) -> Any:
        response = PlainTextResponse("hello")
        response.set_cookie("a", "1")
        response.set_cookie("b", "2")
        return response

    async def cookies(request: Any) -> Any:
        return PlainTextResponse("a={a}, b={b}".format(**request.cookies))

    async def upload(request: Any) -> Any:
        async with request.form() as form:
            data = await form["file"].read()
            return PlainTextResponse(f"{form['file'].filename} {digest(data)} {form['title']}")

    async def raw(request: Any) -> Any:
        return PlainTextResponse(digest(await request.body()))

    async def error(request: Any) -> Any:
        raise ZeroDivisionError

    async def events_page(request: Any) -> Any:
        return StreamingResponse(events.stream(), media_type="text/event-stream")

    async def rest(request: Any) -> Any:
        return PlainTextResponse(request.path_params["rest"])

    return applications.Starlette(
        routes=[
            Route("/", hello),
            Route("/cookies", cookies),
            Route("/upload", upload, methods=["POST"]),
            Route("/raw", raw, methods=["POST"]),
            Route("/redirect", lambda request: RedirectResponse("/", 302)),
            Route("/stream", lambda request: StreamingResponse(digits())),
            Route("/file", lambda request: FileResponse(path)),
            Route("/error", error),
            Route("/events", events_page),
            Route("/path/{rest:path}", rest),
        ]
    )


def starlette_middleware_site(path: Path, events: Events) -> Any:
    """Through BaseHTTPMiddleware, which puts tasks and streams of its own in between, and GZipMiddleware."""
    app = starlette_site(path, events)
    from starlette.middleware.base import BaseHTTPMiddleware
    from starlette.middleware.gzip import GZipMiddleware

    async def add_header(request: Any, call_next: Any) -> Any:
        response = await call_next(request)
        response.headers["x-middleware"] = "1"
        return response

    app.add_middleware(BaseHTTPMiddleware, dispatch=add_header)
    app.add_middleware(BaseHTTPMiddleware, dispatch=add_header)
    app.add_middleware(GZipMiddleware)
    return app


def typed(function: Any, **annotations: Any) -> Any:
    """With annotations that are classes, not texts: what frameworks look at cannot be found by name in here."""
    function.__annotations__ = annotations
    return function


def fastapi_site(path: Path, events: Events) -> Any:
    pytest.importorskip("python_multipart")
    fastapi = pytest.importorskip("fastapi")
    from fastapi.responses import FileResponse, PlainTextResponse, RedirectResponse, StreamingResponse

    app = fastapi.FastAPI(default_response_class=PlainTextResponse)

    def hello(response: Any) -> str:  # in a thread
        response.set_cookie("a", "1")
        response.set_cookie("b", "2")
        return "hello"

    async def cookies(a: Any, b: Any) -> str:
        return f"a={a}, b={b}"

    async def upload(file: Any, title: Any) -> str:
        return f"{file.filename} {digest(await file.read())} {title}"

    async def raw(request: Any) -> str:
        return digest(b"".join([piece async for piece in request.stream()]))

    def add(target: str, respond: Any, **annotations: Any) -> None:
        verb = app.post if target in ("/upload", "/raw") else app.get
        verb(target, response_model=None)(typed(respond, **annotations))

    add("/", hello, response=fastapi.Response)
    add("/cookies", cookies, a=Annotated[str, fastapi.Cookie()], b=Annotated[str, fastapi.Cookie()])
    add("/upload", upload, file=fastapi.UploadFile, title=Annotated[str, fastapi.Form()])
    add("/raw", raw, request=fastapi.Request)
    add("/redirect", lambda: RedirectResponse("/", 302))
    add("/stream", lambda: StreamingResponse(digits()))
    add("/file", lambda: FileResponse(path))
    add("/error", lambda: 1 // 0)
    add("/events", lambda: StreamingResponse(events.stream(), media_type="text/event-stream"))
    add("/path/{rest:path}", lambda rest: rest, rest=str)
    return app


def django_site(path: Path, events: Events) -> Any:
    pytest.importorskip("django")
    from django.conf import settings
    from django.core.handlers.asgi import ASGIHandler, ASGIRequest
    from django.http import FileResponse, HttpResponse, HttpResponseRedirect, StreamingHttpResponse
    from django.urls import path as route

    if not settings.configured:
        settings.configure(ALLOWED_HOSTS=["*"], SECRET_KEY="test", LOGGING_CONFIG=None, ROOT_URLCONF="")

    async def hello(request: Any) -> Any:
        response = HttpResponse("hello")
        response.set_cookie("a", "1")
        response.set_cookie("b", "2")
        return response

    def upload(request: Any) -> Any:  # in a thread
        file = request.FILES["file"]
        return HttpResponse(f"{file.name} {digest(file.read())} {request.POST['title']}")

    async def events_page(request: Any) -> Any:
        return StreamingHttpResponse(events.stream(), content_type="text/event-stream")

    class Urls:
        urlpatterns = (
            route("", hello),
            route("cookies", lambda request: HttpResponse("a={a}, b={b}".format(**request.COOKIES))),
            route("upload", upload),
            route("raw", lambda request: HttpResponse(digest(request.body))),
            route("redirect", lambda request: HttpResponseRedirect("/")),
            route("stream", lambda request: StreamingHttpResponse(digits(), content_type="text/plain")),
            route("file", lambda request: FileResponse(path.open("rb"))),
            route("error", lambda request: 1 // 0),
            route("events", events_page),
            route("path/<path:rest>", lambda request, rest: HttpResponse(rest)),
        )

    class Request(ASGIRequest):
        urlconf = Urls  # so that the settings, of which a process has one, need no ROOT_URLCONF

    handler = ASGIHandler()
    handler.request_class = Request
    return handler


def litestar_site(path: Path, events: Events) -> Any:
    litestar = pytest.importorskip("litestar")
    from litestar.response import File, Redirect, Response, Stream

    async def hello() -> Any:
        response: Any = Response("hello")
        response.set_cookie("a", "1")
        response.set_cookie("b", "2")
        return response

    async def cookies(request: Any) -> str:
        return "a={a}, b={b}".format(**request.cookies)

    async def upload(request: Any) -> str:
        form = await request.form()
        return f"{form['file'].filename} {digest(await form['file'].read())} {form['title']}"

    async def raw(request: Any) -> str:
        return digest(await request.body())

    async def error() -> str:
        raise ZeroDivisionError

    async def redirect() -> Any:
        return Redirect("/")

    async def stream() -> Any:
        return Stream(digits())

    async def file() -> Any:
        return File(path)

    async def events_page() -> Any:
        return Stream(events.stream(), media_type="text/event-stream")

    async def rest(request: Any) -> str:
        return str(request.path_params["rest"]).lstrip("/")

    def page(target: str, respond: Any, status: int = 200, **annotations: Any) -> Any:
        verb = litestar.post if target in ("/upload", "/raw") else litestar.get
        respond = typed(respond, **{"return": str, **annotations})
        return verb(target, status_code=status, media_type="text/plain")(respond)

    request = {"request": litestar.Request}
    pages = [
        page("/", hello, **{"return": Response}),
        page("/cookies", cookies, **request),
        page("/upload", upload, **request),
        page("/raw", raw, **request),
        page("/redirect", redirect, 302, **{"return": Redirect}),
        page("/stream", stream, **{"return": Stream}),
        page("/file", file, **{"return": File}),
        page("/error", error),
        page("/events", events_page, **{"return": Stream}),
        page("/path/{rest:path}", rest, **request),
    ]
    return litestar.Litestar(pages, openapi_config=None)


def falcon_site(path: Path, events: Events) -> Any:
    pytest.importorskip("falcon")
    import falcon
    import falcon.asgi

    def resource(method: str, respond: Callable[..., object]) -> Any:
        return type("Resource", (), {f"on_{method}": staticmethod(respond)})()

    async def hello(request: Any, response: Any) -> None:
        response.text = "hello"
        response.set_cookie("a", "1")
        response.set_cookie("b", "2")

    async def cookies(request: Any, response: Any) -> None:
        response.text = "a={a}, b={b}".format(**request.cookies)

    async def upload(request: Any, response: Any) -> None:
        parts = {}
        async for part in await request.get_media():
            parts[part.name] = (part.filename, await part.stream.read())
        name, data = parts["file"]
        response.text = f"{name} {digest(data)} {parts['title'][1].decode()}"

    async def raw(request: Any, response: Any) -> None:
        response.text = digest(await request.stream.read())

    async def redirect(request: Any, response: Any) -> None:
        raise falcon.HTTPFound("/")

    async def stream(request: Any, response: Any) -> None:
        response.stream = digits()

    async def file(request: Any, response: Any) -> None:
        response.set_stream(_AsyncFile(path), SIZE)

    async def error(request: Any, response: Any) -> None:
        raise ZeroDivisionError

    async def events_page(request: Any, response: Any) -> None:
        response.stream = events.stream()

    async def rest(request: Any, response: Any, rest: str) -> None:
        response.text = rest

    app = falcon.asgi.App()
    gets = {"": hello, "cookies": cookies, "redirect": redirect, "stream": stream, "file": file, "error": error}
    for name, respond in {**gets, "events": events_page, "path/{rest:path}": rest}.items():
        app.add_route(f"/{name}", resource("get", respond))
    app.add_route("/upload", resource("post", upload))
    app.add_route("/raw", resource("post", raw))
    return app


class _AsyncFile:
    """A file as Falcon's stream."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb")

    async def read(self, size: int) -> bytes:
        return self._file.read(size)

    async def close(self) -> None:
        self._file.close()


def quart_site(path: Path, events: Events) -> Any:
    quart = pytest.importorskip("quart")
    app = quart.Quart(__name__)
    app.config["MAX_CONTENT_LENGTH"] = None

    @app.get("/")
    async def hello() -> Any:
        response = await quart.make_response("hello")
        response.set_cookie("a", "1")
        response.set_cookie("b", "2")
        return response

    @app.get("/cookies")
    async def cookies() -> str:
        return f"a={quart.request.cookies['a']}, b={quart.request.cookies['b']}"

    @app.post("/upload")
    async def upload() -> str:
        file = (await quart.request.files)["file"]
        return f"{file.filename} {digest(file.read())} {(await quart.request.form)['title']}"

    @app.post("/raw")
    async def raw() -> str:
        return digest(await quart.request.get_data())

    async def endless() -> Any:
        return events.stream(), {"Content-Type": "text/event-stream"}

    async def file() -> Any:
        return await quart.send_file(path)

    def page(target: str, respond: Any) -> None:
        app.get(target, endpoint=target)(respond)

    page("/redirect", lambda: quart.redirect("/"))
    page("/stream", lambda: quart.Response(digits(), mimetype="text/plain"))
    page("/file", file)
    page("/error", lambda: 1 // 0)
    page("/events", endless)
    page("/path/<path:rest>", lambda rest: rest)
    return app


SITES = {
    "starlette": starlette_site,
    "starlette with middleware": starlette_middleware_site,
    "fastapi": fastapi_site,
    "django": django_site,
    "litestar": litestar_site,
    "falcon": falcon_site,
    "quart": quart_site,
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    found = tmp_path / "file.bin"
    found.write_bytes(os.urandom(SIZE))
    return found


@pytest.fixture
def events() -> Events:
    return Events()


@pytest.fixture(params=SITES)
def site(request: pytest.FixtureRequest, path: Path, events: Events) -> Any:
    return SITES[request.param](path, events)


@pytest.fixture
def client(site: Any) -> Iterator[Client]:
    with running(site) as server, server.connect() as client:
        assert server.server._application is not None
        assert server.server._application.interface == "asgi3"
        yield client


@pytest.fixture
def errors() -> Iterator[list[str]]:
    """What the server logs as an error."""
    lines: list[str] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record.getMessage())

    handler = Handler(logging.WARNING)
    logging.getLogger("stdserve").addHandler(handler)
    yield lines
    logging.getLogger("stdserve").removeHandler(handler)


# ---- what each of them does


def test_pages_and_cookies(client: Client) -> None:
    answer = client.get("/")
    assert (answer.status, answer.body) == (200, b"hello")
    cookies = sorted(value.split(b";")[0] for name, value in answer.headers if name.lower() == b"set-cookie")
    assert cookies == [b"a=1", b"b=2"]
    assert client.get("/cookies", Cookie="a=1; b=2").body == b"a=1, b=2"


def test_redirect(client: Client) -> None:
    answer = client.get("/redirect")
    assert answer.status == 302
    assert answer.fields["location"] in ("/", "http://test/")


def test_not_found_and_errors_leave_the_connection_open(client: Client) -> None:
    assert client.get("/missing").status == 404
    assert client.get("/error").status == 500
    assert client.get("/").body == b"hello"


def test_paths_are_decoded(client: Client) -> None:
    assert client.get("/path/a%20b/%E2%82%AC").body == "a b/€".encode()


def test_head_has_no_body(client: Client) -> None:
    for target in ("/", "/stream", "/file"):
        client.send(f"HEAD {target} HTTP/1.1\r\nHost: test\r\n\r\n".encode())
        assert client.response("HEAD").status in (200, 405)
    assert client.get("/").body == b"hello"


@pytest.mark.parametrize("size", [10, 100_000, 1_500_000])
def test_file_upload(client: Client, size: int) -> None:
    data = os.urandom(size)
    form = (
        b'--limit\r\nContent-Disposition: form-data; name="title"\r\n\r\nsome title\r\n'
        b'--limit\r\nContent-Disposition: form-data; name="file"; filename="f.bin"\r\n'
        b"Content-Type: application/octet-stream\r\n\r\n" + data + b"\r\n--limit--\r\n"
    )
    answer = client.post(form, "/upload", Content_Type="multipart/form-data; boundary=limit")
    assert answer.body.decode() == f"f.bin {digest(data)} some title"
    assert client.get("/").body == b"hello"


def test_raw_body(client: Client) -> None:
    data = os.urandom(70_000)
    assert client.post(data, "/raw", Content_Type="application/octet-stream").body.decode() == digest(data)
    assert client.post(b"", "/raw", Content_Type="application/octet-stream").body.decode() == digest(b"")


def test_streaming(client: Client) -> None:
    for _ in range(2):
        answer = client.get("/stream")
        assert answer.fields["transfer-encoding"] == "chunked" and answer.body == b"0123456789"
    assert client.send(b"GET /stream HTTP/1.0\r\nHost: test\r\n\r\n").response().body == b"0123456789"


def test_file_response(client: Client, path: Path) -> None:
    for _ in range(2):
        assert client.get("/file").body == path.read_bytes()


def test_a_stream_ends_when_its_client_goes(client: Client, events: Events, errors: list[str]) -> None:
    client.send(b"GET /events HTTP/1.1\r\nHost: test\r\n\r\n").read_until(b"data: x")
    client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.sock.close()
    # Where it is sending that fails, Django leaves the application's generator to the collector
    wait_for(lambda: events.ended.is_set() or gc.collect() < 0)
    assert not errors


def test_a_client_that_goes_in_its_upload_is_no_error_of_the_server(site: Any, errors: list[str]) -> None:
    with running(site) as server:
        with server.connect() as client:
            client.send(b"POST /raw HTTP/1.1\r\nHost: test\r\nContent-Length: 1000\r\n\r\nabc")
            client.sock.shutdown(socket.SHUT_WR)
            assert b" 400 " in client.read_to_end()
        with server.connect() as client:
            assert client.get("/").body == b"hello"
    assert len(errors) == 1 and "ended before the end of the request's body" in errors[0]


# ---- Starlette's own


@contextlib.contextmanager
def starlette(path: str, endpoint: Any, **options: Any) -> Iterator[Client]:
    applications = pytest.importorskip("starlette.applications")
    from starlette.routing import Route

    app = applications.Starlette(routes=[Route(path, endpoint)])
    with running(app, **options) as server, server.connect() as client:
        yield client


def test_a_file_response_goes_by_sendfile_and_in_ranges(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    responses = pytest.importorskip("starlette.responses")
    sent: list[int] = []
    if hasattr(os, "sendfile"):
        original = os.sendfile
        monkeypatch.setattr(os, "sendfile", lambda *args: sent.append(original(*args)) or sent[-1])
    with starlette("/", lambda request: responses.FileResponse(path)) as client:
        answer = client.get()
        assert answer.fields["content-length"] == str(SIZE) and answer.body == path.read_bytes()
        wait_for(lambda: not hasattr(os, "sendfile") or sum(sent) == SIZE)  # counted after it has left
        answer = client.get(Range="bytes=10-19")
        assert (answer.status, answer.body) == (206, path.read_bytes()[10:20])


def test_background_tasks_run_after_the_answer_and_do_not_hold_it() -> None:
    responses = pytest.importorskip("starlette.responses")
    from starlette.background import BackgroundTask

    let_go, done = threading.Event(), threading.Event()

    def work() -> None:  # in a thread
        assert let_go.wait(BOUND_SECONDS)
        done.set()

    with starlette("/", lambda request: responses.PlainTextResponse("ok", background=BackgroundTask(work))) as client:
        assert client.get().body == b"ok"
        assert client.get().body == b"ok"
        assert not done.is_set()
        let_go.set()
        assert done.wait(BOUND_SECONDS)


def test_is_disconnected_may_be_asked_again_and_again() -> None:
    responses = pytest.importorskip("starlette.responses")
    asked: list[bool] = []
    over = threading.Event()

    async def endpoint(request: Any) -> Any:
        async def body() -> AsyncIterator[bytes]:
            while not await request.is_disconnected():
                asked.append(False)
                yield b"x"
                await asyncio.sleep(0)
            over.set()

        return responses.StreamingResponse(body())

    with starlette("/", endpoint) as client:
        client.send(b"GET / HTTP/1.1\r\nHost: test\r\n\r\n").read_until(b"\r\n\r\n")
        wait_for(lambda: len(asked) > 100)
        client.sock.shutdown(socket.SHUT_WR)
        assert over.wait(BOUND_SECONDS)
        client.read_to_end()


def test_state_of_a_fastapi_lifespan_reaches_its_requests() -> None:
    fastapi = pytest.importorskip("fastapi")
    stopped = threading.Event()

    @contextlib.asynccontextmanager
    async def lifespan(app: Any) -> AsyncIterator[dict[str, str]]:
        yield {"word": "from lifespan"}
        stopped.set()

    app = fastapi.FastAPI(lifespan=lifespan)

    app.get("/")(typed(lambda request: request.state.word, request=fastapi.Request))
    with running(app, lifespan="on") as server, server.connect() as client:
        assert client.get().body == b'"from lifespan"'
    assert stopped.is_set()


def test_server_sent_events_of_sse_starlette_send_their_head_at_once() -> None:
    sse = pytest.importorskip("sse_starlette.sse")
    over = threading.Event()

    async def endpoint(request: Any) -> Any:
        async def source() -> AsyncIterator[dict[str, str]]:
            try:
                await asyncio.Event().wait()
                yield {"data": "never"}
            finally:
                over.set()

        return sse.EventSourceResponse(source())

    with starlette("/", endpoint) as client:
        client.send(b"GET / HTTP/1.1\r\nHost: test\r\n\r\n")
        assert b"text/event-stream" in client.read_until(b"\r\n\r\n")
        client.sock.close()
        assert over.wait(BOUND_SECONDS)
