"""Real WSGI frameworks, and the standard library's validator, behind the server. Each one not installed is skipped."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from wsgiref.validate import validator

import pytest

from tests.support import Client, running, wait_for

SIZE = 300_000

# Frameworks leave files of their own to the collector (WebOb the copy it makes of an upload).
pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


# ---- the same small site in each framework
#
# /          "hello", sets two cookies           /stream    "0123456789" in ten blocks
# /cookies   "a=..., b=..." of the request       /file      the file, by wsgi.file_wrapper
# /redirect  302 to /                            /error     raises
# /upload    "name size digest title" of a form  /raw       size and digest of the body as it is
# /path/...  the rest of the path


def digest(data: bytes) -> str:
    return f"{len(data)} {hashlib.sha256(data).hexdigest()}"


def digits() -> Iterator[bytes]:
    for number in range(10):
        yield b"%d" % number


def flask_site(path: Path) -> Any:
    flask = pytest.importorskip("flask")
    app = flask.Flask(__name__)

    @app.get("/")
    def hello() -> Any:
        response = flask.make_response("hello")
        response.set_cookie("a", "1")
        response.set_cookie("b", "2")
        return response

    @app.get("/cookies")
    def cookies() -> str:
        return f"a={flask.request.cookies['a']}, b={flask.request.cookies['b']}"

    @app.post("/upload")
    def upload() -> str:
        file = flask.request.files["file"]
        return f"{file.filename} {digest(file.read())} {flask.request.form['title']}"

    @app.post("/raw")
    def raw() -> str:
        return digest(flask.request.get_data())

    app.get("/redirect", endpoint="redirect")(lambda: flask.redirect("/"))
    app.get("/stream", endpoint="stream")(lambda: flask.Response(digits(), mimetype="text/plain"))
    app.get("/file", endpoint="file")(lambda: flask.send_file(path))
    app.get("/error", endpoint="error")(lambda: 1 // 0)
    app.get("/path/<path:rest>", endpoint="path")(lambda rest: rest)
    return app


def django_site(path: Path) -> Any:
    pytest.importorskip("django")
    from django.conf import settings
    from django.core.handlers.wsgi import WSGIHandler, WSGIRequest
    from django.http import FileResponse, HttpResponse, HttpResponseRedirect, StreamingHttpResponse
    from django.urls import path as route

    if not settings.configured:
        settings.configure(ALLOWED_HOSTS=["*"], SECRET_KEY="test", LOGGING_CONFIG=None, ROOT_URLCONF="")

    def hello(request: Any) -> Any:
        response = HttpResponse("hello")
        response.set_cookie("a", "1")
        response.set_cookie("b", "2")
        return response

    def upload(request: Any) -> Any:
        file = request.FILES["file"]
        return HttpResponse(f"{file.name} {digest(file.read())} {request.POST['title']}")

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
            route("path/<path:rest>", lambda request, rest: HttpResponse(rest)),
        )

    class Request(WSGIRequest):
        urlconf = Urls  # so that the settings, of which a process has one, need no ROOT_URLCONF

    handler = WSGIHandler()
    handler.request_class = Request
    return handler


def falcon_site(path: Path) -> Any:
    falcon = pytest.importorskip("falcon")

    def resource(method: str, respond: Callable[..., object]) -> Any:
        return type("Resource", (), {f"on_{method}": staticmethod(respond)})()

    def hello(request: Any, response: Any) -> None:
        response.text = "hello"
        response.set_cookie("a", "1")
        response.set_cookie("b", "2")

    def cookies(request: Any, response: Any) -> None:
        response.text = "a={a}, b={b}".format(**request.cookies)

    def upload(request: Any, response: Any) -> None:
        parts = {}
        for part in request.get_media():
            parts[part.name] = (part.filename, part.stream.read())
        name, data = parts["file"]
        response.text = f"{name} {digest(data)} {parts['title'][1].decode()}"

    def raw(request: Any, response: Any) -> None:
        response.text = digest(request.stream.read())

    def redirect(request: Any, response: Any) -> None:
        raise falcon.HTTPFound("/")

    def stream(request: Any, response: Any) -> None:
        response.stream = digits()

    def file(request: Any, response: Any) -> None:
        response.set_stream(path.open("rb"), SIZE)

    def error(request: Any, response: Any) -> None:
        raise ZeroDivisionError

    def rest(request: Any, response: Any, rest: str) -> None:
        response.text = rest

    app = falcon.App()
    for name, respond in {"": hello, "cookies": cookies, "redirect": redirect, "stream": stream, "file": file}.items():
        app.add_route(f"/{name}", resource("get", respond))
    app.add_route("/error", resource("get", error))
    app.add_route("/upload", resource("post", upload))
    app.add_route("/raw", resource("post", raw))
    app.add_route("/path/{rest:path}", resource("get", rest))
    return app


def pyramid_site(path: Path) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pkg_resources
        pytest.importorskip("pyramid")
        from pyramid.config import Configurator
        from pyramid.httpexceptions import HTTPFound
        from pyramid.response import FileResponse, Response

    def hello(request: Any) -> Any:
        response = Response("hello")
        response.set_cookie("a", "1")
        response.set_cookie("b", "2")
        return response

    def upload(request: Any) -> Any:
        field = request.POST["file"]
        return Response(f"{field.filename} {digest(field.file.read())} {request.POST['title']}")

    def error(request: Any) -> Any:
        raise ZeroDivisionError

    views = {
        "/": hello,
        "/cookies": lambda request: Response("a={a}, b={b}".format(**request.cookies)),
        "/upload": upload,
        "/raw": lambda request: Response(digest(request.body)),
        "/redirect": lambda request: HTTPFound("/"),
        "/stream": lambda request: Response(app_iter=digits(), content_type="text/plain"),
        "/file": lambda request: FileResponse(str(path), request=request),
        "/error": error,
        "/path/*rest": lambda request: Response("/".join(request.matchdict["rest"])),
    }
    config = Configurator()
    for pattern, view in views.items():
        config.add_route(pattern, pattern)
        config.add_view(view, route_name=pattern)
    return config.make_wsgi_app()


def bottle_site(path: Path) -> Any:
    bottle = pytest.importorskip("bottle")
    app = bottle.Bottle()

    def hello() -> str:
        bottle.response.set_cookie("a", "1")
        bottle.response.set_cookie("b", "2")
        return "hello"

    def cookies() -> str:
        return f"a={bottle.request.get_cookie('a')}, b={bottle.request.get_cookie('b')}"

    def upload() -> str:
        file = bottle.request.files["file"]
        return f"{file.raw_filename} {digest(file.file.read())} {bottle.request.forms['title']}"

    app.get("/", callback=hello)
    app.get("/cookies", callback=cookies)
    app.post("/upload", callback=upload)
    app.post("/raw", callback=lambda: digest(bottle.request.body.read()))
    app.get("/redirect", callback=lambda: bottle.redirect("/", 302))
    app.get("/stream", callback=digits)
    app.get("/file", callback=lambda: bottle.static_file(path.name, str(path.parent)))
    app.get("/error", callback=lambda: 1 // 0)
    app.get("/path/<rest:path>", callback=lambda rest: rest)
    return app


SITES = {
    "flask": flask_site,
    "django": django_site,
    "falcon": falcon_site,
    "pyramid": pyramid_site,
    "bottle": bottle_site,
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    found = tmp_path / "file.bin"
    found.write_bytes(os.urandom(SIZE))
    return found


@pytest.fixture(params=SITES)
def site(request: pytest.FixtureRequest, path: Path) -> Any:
    return SITES[request.param](path)


@pytest.fixture
def client(site: Any) -> Iterator[Client]:
    with running(site, interface="wsgi") as server, server.connect() as client:
        yield client


# ---- what each of them does


def test_pages_and_cookies(client: Client) -> None:
    answer = client.get("/")
    assert (answer.status, answer.body) == (200, b"hello")
    cookies = sorted(value.split(b";")[0] for name, value in answer.headers if name.lower() == b"set-cookie")
    assert cookies == [b"a=1", b"b=2"]
    client.send(b"GET /cookies HTTP/1.1\r\nHost: test\r\nCookie: a=1\r\nCookie: b=2\r\n\r\n")
    assert client.response().body == b"a=1, b=2"


def test_redirect(client: Client) -> None:
    answer = client.get("/redirect")
    assert answer.status == 302
    assert answer.fields["location"] in ("/", "http://test/")


def test_not_found_and_errors_leave_the_connection_open(client: Client, site: Any) -> None:
    assert client.get("/missing").status == 404
    assert client.get("/error").status == 500
    assert client.get("/").body == b"hello"


def test_paths_are_decoded(client: Client) -> None:
    assert client.get("/path/a%20b/%E2%82%AC").body == "a b/€".encode()


def test_head_has_no_body(client: Client, site: Any) -> None:
    if type(site).__module__.startswith("falcon"):
        pytest.skip("Falcon has no HEAD of its own")
    for target in ("/", "/stream", "/file"):
        client.send(f"HEAD {target} HTTP/1.1\r\nHost: test\r\n\r\n".encode())
        assert client.response("HEAD").status in (200, 405)
    assert client.get("/").body == b"hello"


@pytest.mark.parametrize("size", [10, 100_000, 700_000, 3_000_000])
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


def test_file_response_goes_by_sendfile(client: Client, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[int] = []
    if hasattr(os, "sendfile"):
        original = os.sendfile
        monkeypatch.setattr(os, "sendfile", lambda *args: sent.append(original(*args)) or sent[-1])
    for _ in range(2):
        answer = client.get("/file")
        assert answer.fields["content-length"] == str(SIZE) and answer.body == path.read_bytes()
    assert sum(sent) == 2 * SIZE or not hasattr(os, "sendfile")


def test_file_response_to_a_client_that_leaves(site: Any) -> None:
    with running(site, interface="wsgi") as server:
        client = server.connect()
        client.send(b"GET /file HTTP/1.1\r\nHost: test\r\n\r\n")
        client.read_until(b"\r\n\r\n")
        client.sock.close()
        connections = server.server._connections
        assert connections is not None
        wait_for(lambda: connections.active == 0)
        with server.connect() as other:
            assert other.get("/").body == b"hello"


# ---- wsgiref.validate


def test_the_validator_finds_no_fault_with_the_frameworks(site: Any) -> None:
    with running(validator(site), interface="wsgi") as server, server.connect() as client:
        assert client.get("/").body == b"hello"
        assert client.get("/stream").body == b"0123456789"
        assert client.get("/missing").status == 404


def test_the_validator_finds_no_fault_with_the_server(path: Path) -> None:
    def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        stream = environ["wsgi.input"]
        read = [stream.read(3), stream.readline(), stream.readline(2), *stream.readlines(1), *stream, stream.read(9)]
        environ["wsgi.errors"].write("a line\n")
        environ["wsgi.errors"].writelines(["and", " another\n"])
        environ["wsgi.errors"].flush()
        write = start_response("200 Fine", [("Content-Type", "text/plain")])
        write(b"written ")
        return [b"|".join(read)] if environ["PATH_INFO"] != "/file" else environ["wsgi.file_wrapper"](path.open("rb"))

    with running(validator(app), interface="wsgi", root_path="/root") as server, server.connect() as client:
        assert client.post(b"abcdef\nghi\njkl\nmno", "/root/x?y").body == b"written abc|def\n|gh|i\n|jkl\n|mno|"
        assert client.get("/").body == b"written |||"
        assert client.get("/file").body == b"written " + path.read_bytes()
        client.send(b"POST /x HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nabcd\r\n0\r\n\r\n")
        assert client.response().body == b"written abc|d||"
