"""The demo, called as a server calls it. STREAM_PAUSE_SECONDS is 0 here."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import re
from html.parser import HTMLParser
from typing import Any
from wsgiref.util import setup_testing_defaults
from wsgiref.validate import validator

import pytest

from stdserve import demo
from stdserve.config import Config
from stdserve.gateway.loader import load
from tests.frames import BINARY
from tests.sockets import connect, handshake, serve

HOSTILE = "<script>alert(1)</script>\"'&"


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "STREAM_PAUSE_SECONDS", 0)


class Answer:
    def __init__(self, status: int, fields: dict[str, str], pieces: list[bytes]) -> None:
        self.status = status
        self.fields = fields
        self.pieces = pieces
        self.body = b"".join(pieces)


def ask_asgi(path: str, method: str = "GET", body: tuple[bytes, ...] = (b"",), **scope: Any) -> Answer | None:
    """None if the application has not answered."""
    sent: list[Any] = []
    messages = [
        {"type": "http.request", "body": piece, "more_body": number < len(body)} for number, piece in enumerate(body, 1)
    ]
    messages = scope.pop("messages", messages)

    async def receive() -> Any:
        return messages.pop(0)

    async def send(message: Any) -> None:
        sent.append(message)

    whole = {"type": "http", "method": method, "path": path, "raw_path": path.encode(), "query_string": b""}
    whole |= {"http_version": "1.1", "scheme": "http", "root_path": "", "headers": [(b"host", b"test")]}
    whole |= {"client": ("127.0.0.1", 5), "server": ("127.0.0.1", 80), **scope}
    asyncio.run(demo.app(whole, receive, send))
    if not sent:
        return None
    start, *rest = sent
    assert [message.get("more_body", False) for message in rest] == [True] * (len(rest) - 1) + [False]
    fields = {name.decode(): value.decode() for name, value in start["headers"]}
    return Answer(start["status"], fields, [message.get("body", b"") for message in rest])


def ask_wsgi(path: str, method: str = "GET", body: tuple[bytes, ...] = (b"",), **environ: Any) -> Answer:
    started: list[Any] = []

    def start_response(status: str, headers: Any, exc_info: Any = None) -> Any:
        started.append((int(status[:3]), {name.lower(): value for name, value in headers}))
        return lambda data: None

    whole: dict[str, Any] = {"REQUEST_METHOD": method, "PATH_INFO": path, "wsgi.input": io.BytesIO(b"".join(body))}
    whole |= {"SERVER_PROTOCOL": "HTTP/1.1", "QUERY_STRING": "", "SCRIPT_NAME": "", **environ}
    setup_testing_defaults(whole)
    iterable = validator(demo.wsgi)(whole, start_response)
    try:
        pieces = list(iterable)
    finally:
        iterable.close()  # type: ignore[attr-defined]
    return Answer(*started[0], pieces)


BOTH = pytest.mark.parametrize("ask", [ask_asgi, ask_wsgi])


class Page(HTMLParser):
    """Which elements there are, and the text of the table cells."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.cells: list[str] = []
        self._in_cell = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag in ("th", "td"):
            self.cells.append("")
            self._in_cell = True

    def handle_endtag(self, tag: str) -> None:
        if tag in ("th", "td"):
            self._in_cell = False

    def handle_data(self, data: str) -> None:
        if self._in_cell:
            self.cells[-1] += data

    def rows(self) -> dict[str, str]:
        return dict(zip(self.cells[::2], self.cells[1::2], strict=True))


# ---- pages


@BOTH
def test_page_is_whole_and_needs_nothing_from_elsewhere(ask: Any) -> None:
    answer = ask("/")
    assert answer.status == 200 and answer.fields["content-type"] == "text/html; charset=utf-8"
    assert answer.fields["content-length"] == str(len(answer.body))
    text = answer.body.decode()
    assert not re.search(r"https?:|\$[a-z]", text)
    assert [
        fields.get("src") or fields.get("href") for _, fields in Page(text).tags if {"src", "href"} & set(fields)
    ] == [*("data:,", "/stream", "/headers", "/health")]


def test_page_shows_the_request_asgi() -> None:
    answer = ask_asgi(
        "/api/",
        raw_path=b"/api/",
        root_path="/api",
        query_string=b"a=%3C",
        http_version="2",
        scheme="https",
        client=("::1", 5),
        server=("/run/s.sock", None),
        headers=[(b"host", b"test"), (b"x-name", HOSTILE.encode())],
    )
    assert answer is not None
    text = answer.body.decode()
    assert HOSTILE not in text and 'base = "/api"' in text and 'href="/api/stream"' in text
    rows = Page(text).rows()
    assert rows.items() >= {
        ("interface", "ASGI"),
        ("method", "GET"),
        ("target", "/api/?a=%3C"),
        ("path", "/api/"),
        ("http_version", "2"),
        ("scheme", "https"),
        ("client", "[::1]:5"),
        ("server", "/run/s.sock"),
        ("root_path", "/api"),
        ("host", "test"),
    }
    assert HOSTILE in rows["x-name"]


def test_page_shows_the_request_wsgi() -> None:
    answer = ask_wsgi(
        "/",
        SCRIPT_NAME="/\xc3\xa4",
        REQUEST_URI="/%C3%A4/?a",
        REMOTE_ADDR="127.0.0.1",
        REMOTE_PORT="5",
        HTTP_X_NAME=HOSTILE,
        CONTENT_TYPE="",
    )
    text = answer.body.decode()
    assert HOSTILE not in text
    rows = Page(text).rows()
    assert rows.items() >= {
        ("interface", "WSGI"),
        ("target", "/%C3%A4/?a"),
        ("http_version", "1.1"),
        ("client", "127.0.0.1:5"),
        ("server", "127.0.0.1:80"),
        ("root_path", "/ä"),
    }
    assert HOSTILE in rows["x-name"] and "content-type" not in rows


def test_root_path_cannot_leave_the_script() -> None:
    answer = ask_asgi("/", root_path="</script><b>")
    assert answer is not None
    page = Page(answer.body.decode())
    assert "b" not in [tag for tag, _ in page.tags] and answer.body.count(b"</script>") == 1


def test_scope_with_only_what_the_specification_demands() -> None:
    async def work() -> list[Any]:
        sent: list[Any] = []

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {
            "type": "http",
            "http_version": "1.1",
            "method": "GET",
            "path": "/ä",
            "query_string": b"",
            "headers": [],
        }
        for path in ("/ä", "/"):
            await demo.app({**scope, "path": path}, None, send)  # type: ignore[arg-type]
        return [message["status"] for message in sent if "status" in message]

    assert asyncio.run(work()) == [404, 200]


@BOTH
def test_headers_as_json(ask: Any) -> None:
    answer = ask("/headers")
    assert answer.fields["content-type"] == "application/json; charset=utf-8"
    facts = json.loads(answer.body)
    assert facts["method"] == "GET" and facts["path"] == "/headers"
    assert facts["headers"][0][0] == "host"


@BOTH
def test_health(ask: Any) -> None:
    answer = ask("/health")
    assert (answer.status, answer.body) == (200, b"ok\n")


@BOTH
@pytest.mark.parametrize("path", ["/", "/headers", "/stream", "/health"])
def test_head_is_get_without_the_body(ask: Any, path: str) -> None:
    head, get = ask(path, "HEAD"), ask(path)
    assert head.status == 200 and head.body == b"" and set(head.fields) == set(get.fields)


@BOTH
@pytest.mark.parametrize(
    ("path", "method", "allow"),
    [("/", "POST", "GET, HEAD"), ("/stream", "PUT", "GET, HEAD"), ("/upload", "GET", "POST, PUT")],
)
def test_wrong_method_is_405_with_allow(ask: Any, path: str, method: str, allow: str) -> None:
    answer = ask(path, method)
    assert (answer.status, answer.fields["allow"]) == (405, allow)


@BOTH
@pytest.mark.parametrize("path", ["/nowhere", "/stream/", "*"])
def test_unknown_path_is_404(ask: Any, path: str) -> None:
    if ask is ask_wsgi and not path.startswith("/"):
        pytest.skip("the validator wants a slash")
    answer = ask(path)
    assert answer.status == 404 and "allow" not in answer.fields


# ---- stream and upload


@BOTH
def test_stream_is_sent_line_by_line(ask: Any) -> None:
    answer = ask("/stream")
    assert [piece for piece in answer.pieces if piece] == [b"line %d of 10\n" % number for number in range(1, 11)]
    assert "content-length" not in answer.fields and answer.fields["cache-control"] == "no-store"


@BOTH
@pytest.mark.parametrize("body", [(b"",), (b"a" * 70_000, b"", b"b" * 70_000)])
def test_upload_is_counted(ask: Any, body: tuple[bytes, ...]) -> None:
    answer = ask("/upload", "POST", body)
    counted = json.loads(answer.body)
    data = b"".join(body)
    assert answer.status == 200
    assert (counted["bytes"], counted["sha256"]) == (len(data), hashlib.sha256(data).hexdigest())
    assert counted["seconds"] >= 0 and counted["megabytes_per_second"] >= 0


def test_upload_of_a_client_that_goes_is_not_answered() -> None:
    messages = [{"type": "http.request", "body": b"a", "more_body": True}, {"type": "http.disconnect"}]
    assert ask_asgi("/upload", "POST", messages=messages) is None


# ---- the rest of ASGI


def test_lifespan() -> None:
    messages = [{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}]
    sent = []

    async def receive() -> Any:
        return messages.pop(0)

    async def send(message: Any) -> None:
        sent.append(message["type"])

    asyncio.run(demo.app({"type": "lifespan"}, receive, send))
    assert sent == ["lifespan.startup.complete", "lifespan.shutdown.complete"]


def test_other_protocols_are_refused() -> None:
    with pytest.raises(RuntimeError, match="does not serve 'other'"):
        asyncio.run(demo.app({"type": "other"}, None, None))  # type: ignore[arg-type]


@pytest.mark.parametrize(("name", "interface"), [("app", "asgi3"), ("wsgi", "wsgi")])
def test_interface_is_recognised(name: str, interface: str) -> None:
    assert load(Config(app=f"stdserve.demo:{name}")).interface == interface


def test_every_message_to_echo_comes_back() -> None:
    with serve(demo.app) as server, connect(server, "/echo") as client:
        assert client.text("hello").read() == b"hello"
        assert client.binary(b"\xff").read(BINARY) == b"\xff"
        assert client.close().read_close() == (1000, "")


def test_no_other_path_takes_a_websocket() -> None:
    with serve(demo.app) as server, server.connect() as client:
        assert client.send(handshake("/")).response().status == 403


@BOTH
def test_only_asgi_shows_the_echo(ask: Any) -> None:
    answer = ask("/")
    assert (b'id="echo"' in answer.body) == (ask is ask_asgi)
