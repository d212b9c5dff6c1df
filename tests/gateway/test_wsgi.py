"""WSGI over real sockets: the rules of PEP 3333, and every way an application or a client can break them."""

from __future__ import annotations

import contextlib
import gc
import gzip
import io
import logging
import os
import socket
import struct
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from stdserve.exchange import Exchange
from stdserve.gateway import wsgi
from tests.support import BOUND_SECONDS, Client, Response, Running, running, wait_for

Environ = dict[str, Any]
StartResponse = Callable[..., Callable[[bytes], object]]

PLAIN = [("Content-Type", "text/plain")]
MEGABYTE = 1 << 20


# ---- helpers


def serve(app: Any, **options: Any) -> contextlib.AbstractContextManager[Running]:
    return running(app, interface="wsgi", **options)


def ask(app: Any, request: bytes | None = None, **options: Any) -> Response:
    """The answer to one request."""
    with serve(app, **options) as server, server.connect() as client:
        return client.send(request or b"GET / HTTP/1.1\r\nHost: test\r\n\r\n").response()


def environ_of(request: bytes, **options: Any) -> Environ:
    """The environ that a request makes."""
    seen: list[Environ] = []

    def app(environ: Environ, start_response: StartResponse) -> list[bytes]:
        seen.append(environ)
        start_response("200 OK", [])
        return [b""]

    assert ask(app, request, **options).status == 200
    return seen[0]


def returns(result: Any, status: str = "200 OK", headers: Any = PLAIN) -> Any:
    """An application that answers with `result`, or with what it returns if it can be called."""

    def app(environ: Environ, start_response: StartResponse) -> Any:
        start_response(status, list(headers))
        return result() if callable(result) else result

    return app


def get(*lines: str, method: str = "GET", version: str = "1.1") -> bytes:
    fields = "".join(f"{line}\r\n" for line in lines)
    return f"{method} / HTTP/{version}\r\nHost: test\r\n{fields}\r\n".encode("latin-1")


def slow_client(server: Running) -> Client:
    """A client whose kernel takes little for it."""
    sock = socket.socket()
    sock.settimeout(BOUND_SECONDS)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.connect(server.address)
    return Client(sock)


def vanish(client: Client) -> None:
    """Close with a reset."""
    client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.sock.close()


def running_exchange(server: Running) -> Exchange:
    connections = server.server._connections
    assert connections is not None
    exchanges: list[Exchange] = wait_for(connections.exchanges)
    return exchanges[0]


def wait_until_idle(server: Running) -> None:
    """No request is being answered any more."""
    connections = server.server._connections
    assert connections is not None
    wait_for(lambda: connections.active == 0)


class Blocks:
    """An iterable that counts its calls of close."""

    def __init__(self, blocks: Iterable[Any]) -> None:
        self.blocks = iter(blocks)
        self.closed = 0
        self.ended = threading.Event()

    def __iter__(self) -> Iterator[Any]:
        return self.blocks

    def close(self) -> None:
        self.closed += 1
        self.ended.set()

    def wait_closed_once(self) -> None:
        assert self.ended.wait(BOUND_SECONDS)
        assert self.closed == 1


class File:
    """An open file whose calls of close are counted."""

    def __init__(self, file: Any) -> None:
        self.file = file
        self.closed = 0
        self.ended = threading.Event()
        self._close = file.close
        file.close = self.close

    def close(self) -> None:
        self._close()
        self.closed += 1
        self.ended.set()

    def wait_closed_once(self) -> None:
        assert self.ended.wait(BOUND_SECONDS)
        assert self.closed == 1


def sends_file(file: Any, *headers: tuple[str, str], status: str = "200 OK", blksize: int = 8192) -> Any:
    def app(environ: Environ, start_response: StartResponse) -> Any:
        if environ["PATH_INFO"] == "/next":
            return returns([b"next"])(environ, start_response)
        start_response(status, [*PLAIN, *headers])
        return environ["wsgi.file_wrapper"](getattr(file, "file", file) if isinstance(file, File) else file, blksize)

    return app


def ask_for_file(file: Any, **options: Any) -> Response:
    """The answer that is this file; it has been closed when this returns."""
    with serve(sends_file(file), **options) as server, server.connect() as client:
        answer = client.get()
        wait_for(lambda: file.closed)
    return answer


class Opened:
    """An application that answers with a file it opens itself."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.files: list[File] = []

    def __call__(self, environ: Environ, start_response: StartResponse) -> Any:
        self.files.append(File(self.path.open("rb")))
        return sends_file(self.files[-1])(environ, start_response)

    def wait_closed_once(self) -> None:
        for file in self.files:
            file.wait_closed_once()


# ---- environ


def test_environ_has_every_variable_of_pep_3333() -> None:
    environ = environ_of(b"GET /a%20b/%E9?q=%20 HTTP/1.1\r\nHost: example.org:81\r\nAccept: text/html\r\n\r\n")
    assert type(environ) is dict
    wanted = {
        "REQUEST_METHOD": "GET",
        "SCRIPT_NAME": "",
        "PATH_INFO": "/a b/\xe9",
        "QUERY_STRING": "q=%20",
        "REQUEST_URI": "/a%20b/%E9?q=%20",
        "RAW_URI": "/a%20b/%E9?q=%20",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "SERVER_NAME": "127.0.0.1",
        "REMOTE_ADDR": "127.0.0.1",
        "HTTP_HOST": "example.org:81",
        "HTTP_ACCEPT": "text/html",
        "SERVER_SOFTWARE": "stdserve",
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": "http",
        "wsgi.multithread": True,
        "wsgi.multiprocess": False,
        "wsgi.run_once": False,
        "wsgi.input_terminated": True,
        "wsgi.file_wrapper": wsgi.FileWrapper,
    }
    assert {name: environ[name] for name in wanted} == wanted
    assert environ["SERVER_PORT"].isdigit() and environ["REMOTE_PORT"].isdigit()
    assert all(type(value) is str for name, value in environ.items() if name.isupper())
    assert {"CONTENT_TYPE", "CONTENT_LENGTH", "HTTPS"}.isdisjoint(environ)


def test_path_info_is_the_decoded_bytes_as_latin_1() -> None:
    environ = environ_of(b"GET /%E2%82%AC%2F%00 HTTP/1.1\r\nHost: test\r\n\r\n")
    assert environ["PATH_INFO"] == "/€".encode().decode("latin-1") + "/\0"


def test_double_slash_and_absolute_form_are_kept_apart() -> None:
    assert environ_of(b"GET //a HTTP/1.1\r\nHost: test\r\n\r\n")["PATH_INFO"] == "//a"
    environ = environ_of(b"GET http://test/a?b HTTP/1.1\r\nHost: test\r\n\r\n")
    assert (environ["PATH_INFO"], environ["QUERY_STRING"]) == ("/a", "b")
    assert environ["REQUEST_URI"] == "http://test/a?b"


def test_http_1_0_is_told_to_the_application() -> None:
    assert environ_of(b"GET / HTTP/1.0\r\n\r\n")["SERVER_PROTOCOL"] == "HTTP/1.0"


def test_repeated_headers_are_joined() -> None:
    environ = environ_of(get("X-A: 1", "Cookie: a=1", "x-a: 2", "Cookie: b=2", "X-Empty:"))
    assert environ["HTTP_X_A"] == "1,2"
    assert environ["HTTP_COOKIE"] == "a=1; b=2"
    assert environ["HTTP_X_EMPTY"] == ""


def test_header_values_are_latin_1() -> None:
    assert environ_of(get("X-A: \xe9"))["HTTP_X_A"] == "\xe9"


def test_names_with_underscores_and_proxy_do_not_reach_the_application() -> None:
    environ = environ_of(get("X_A: evil", "X-A: good", "Proxy: evil", "Content_Length: 7", "X_B: evil"))
    assert environ["HTTP_X_A"] == "good"
    assert {"HTTP_PROXY", "HTTP_X_B", "CONTENT_LENGTH", "HTTP_CONTENT_LENGTH"}.isdisjoint(environ)


def test_content_type_and_length_have_no_http_prefix() -> None:
    environ = environ_of(get("Content-Type: text/x", "Content-Length: 2", method="POST") + b"ab")
    assert (environ["CONTENT_TYPE"], environ["CONTENT_LENGTH"]) == ("text/x", "2")
    assert {"HTTP_CONTENT_TYPE", "HTTP_CONTENT_LENGTH"}.isdisjoint(environ)


def test_the_cache_of_field_names_is_bounded() -> None:
    keys = wsgi._FieldKeys()
    for number in range(3000):
        assert keys[b"x-%d" % number] == f"HTTP_X_{number}"
        assert len(keys) <= 1024
    long = b"x" * 65
    assert keys[long] == "HTTP_" + "X" * 65 and long not in keys


@pytest.mark.parametrize(
    ("root_path", "target", "script_name", "path_info"),
    [
        ("/api", "/api/x", "/api", "/x"),
        ("/api", "/api", "/api", ""),
        ("/api", "/x", "/api", "/x"),  # the proxy has stripped it
        ("/api", "/apix", "/api", "/apix"),
        ("/api/", "/api/x", "/api", "/x"),
        ("/é", "/%C3%A9/x", "/\xc3\xa9", "/x"),
    ],
)
def test_root_path_is_script_name(root_path: str, target: str, script_name: str, path_info: str) -> None:
    environ = environ_of(f"GET {target} HTTP/1.1\r\nHost: test\r\n\r\n".encode(), root_path=root_path)
    assert (environ["SCRIPT_NAME"], environ["PATH_INFO"]) == (script_name, path_info)


def test_forwarded_prefix_is_script_name() -> None:
    request = get("X-Forwarded-For: 10.0.0.1", "X-Forwarded-Proto: https", "X-Forwarded-Prefix: /a%20b")
    environ = environ_of(request, forwarded_fields=("for", "proto", "prefix"))
    assert (environ["SCRIPT_NAME"], environ["PATH_INFO"]) == ("/a b", "/")
    assert (environ["wsgi.url_scheme"], environ["HTTPS"], environ["REMOTE_ADDR"]) == ("https", "on", "10.0.0.1")


@pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="no unix sockets")
@pytest.mark.parametrize(
    ("host", "name", "port"),
    [
        ("example.org:8080", "example.org", "8080"),
        ("example.org", "example.org", "80"),
        ("example.org:", "example.org", "80"),
        ("[::1]", "[::1]", "80"),
        ("[::1]:81", "[::1]", "81"),
        ("", "localhost", "80"),
    ],
)
def test_unix_socket_has_its_server_name_from_host(tmp_path: Path, host: str, name: str, port: str) -> None:
    seen: list[Environ] = []
    app = returns([b""])
    path = str(tmp_path / "s")
    with serve(lambda environ, start: seen.append(environ) or app(environ, start), uds=path):
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(BOUND_SECONDS)
        sock.connect(path)
        with Client(sock) as client:
            client.send(f"GET / HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()).response()
    assert (seen[0]["SERVER_NAME"], seen[0]["SERVER_PORT"]) == (name, port)
    assert (seen[0]["REMOTE_ADDR"], seen[0]["REMOTE_PORT"]) == ("", "")


def test_ipv6_server_name_is_in_brackets() -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("no IPv6 here")
    assert environ_of(b"GET / HTTP/1.0\r\n\r\n", host="::1")["SERVER_NAME"] == "[::1]"


def test_one_thread_is_not_multithread() -> None:
    assert environ_of(get(), threads=1)["wsgi.multithread"] is False


def test_two_requests_do_not_share_an_environ() -> None:
    def app(environ: Environ, start_response: StartResponse) -> list[bytes]:
        start_response("200 OK", [])
        found = environ.get("mine", "fresh")
        environ["mine"] = "used"
        environ.pop("wsgi.file_wrapper")
        return [found.encode()]

    with serve(app) as server, server.connect() as client:
        assert client.get().body == client.get().body == b"fresh"


# ---- wsgi.input


def reads(read: Callable[[Any], Any]) -> Any:
    """An application that answers with repr of what `read` makes of wsgi.input."""

    def app(environ: Environ, start_response: StartResponse) -> list[bytes]:
        body = repr(read(environ["wsgi.input"])).encode()
        start_response("200 OK", PLAIN)
        return [body]

    return app


CHUNKED = b"POST / HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n3\r\na\nb\r\n5\r\nb\n\ncc\r\n0\r\n\r\n"
WHOLE = b"POST / HTTP/1.1\r\nHost: test\r\nContent-Length: 8\r\n\r\na\nbb\n\ncc"
EXPECTS = b"POST / HTTP/1.1\r\nHost: test\r\nContent-Length: 8\r\nExpect: 100-continue\r\n\r\n"


@pytest.mark.parametrize("request_bytes", [WHOLE, CHUNKED], ids=["whole", "chunked"])
@pytest.mark.parametrize(
    ("read", "wanted"),
    [
        (lambda body: body.read(), b"a\nbb\n\ncc"),
        (lambda body: (body.read(3), body.read(100), body.read(), body.read(1)), (b"a\nb", b"b\n\ncc", b"", b"")),
        (lambda body: (body.readline(), body.readline(1), body.readline(9)), (b"a\n", b"b", b"b\n")),
        (lambda body: body.readlines(), [b"a\n", b"bb\n", b"\n", b"cc"]),
        (lambda body: body.readlines(1), [b"a\n"]),
        (list, [b"a\n", b"bb\n", b"\n", b"cc"]),
        (lambda body: (body.read(-1), body.readline(), body.readlines(), list(body)), (b"a\nbb\n\ncc", b"", [], [])),
    ],
    ids=["read", "past the end", "readline(size)", "readlines", "readlines(hint)", "iteration", "exhausted"],
)
def test_input_reads_like_a_file(request_bytes: bytes, read: Callable[[Any], Any], wanted: Any) -> None:
    assert ask(reads(read), request_bytes).body == repr(wanted).encode()


def test_input_of_a_request_without_a_body_is_empty() -> None:
    assert ask(reads(lambda body: (body.read(), body.readline(), list(body)))).body == b"(b'', b'', [])"


@pytest.mark.parametrize("size", [0, 3, 600 * 1024])
def test_chunked_body_has_the_length_of_what_was_decoded(size: int) -> None:
    chunks = b"%x\r\n%b\r\n" % (size, b"x" * size) if size else b""
    head = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
    environ = environ_of(head + chunks + b"0\r\n\r\n")
    assert environ["CONTENT_LENGTH"] == str(size) and "HTTP_TRANSFER_ENCODING" not in environ


def test_body_in_many_pieces_arrives_whole_before_a_thread_is_taken() -> None:
    called = threading.Event()

    def app(environ: Environ, start_response: StartResponse) -> Any:
        called.set()
        return reads(lambda body: body.read())(environ, start_response)

    with serve(app) as server, server.connect() as client:
        client.send(WHOLE[:-4])
        exchange = running_exchange(server)
        wait_for(lambda: exchange.task is not None or exchange.on_change is not None)
        pool = server.server._pool
        assert pool is not None and not pool.busy and not called.is_set()
        assert client.send(WHOLE[-4:]).response().body == b"b'a\\nbb\\n\\ncc'"


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize(("size", "in_file"), [(100 * 1024, False), (600 * 1024, True)])
def test_a_long_body_goes_to_a_temporary_file(size: int, in_file: bool, chunked: bool) -> None:
    body = os.urandom(size)
    found: list[Any] = []

    def app(environ: Environ, start_response: StartResponse) -> list[bytes]:
        stream = environ["wsgi.input"]
        found.extend((stream, stream._rolled, stream.read()))
        start_response("200 OK", [])
        return [b""]

    with serve(app) as server, server.connect() as client:
        if chunked:
            client.send(get("Transfer-Encoding: chunked", method="POST") + b"%x\r\n%b\r\n0\r\n\r\n" % (size, body))
        else:
            client.send(get(f"Content-Length: {size}", method="POST") + body)
        assert client.response().status == 200
    assert found[1] is in_file and found[2] == body
    assert found[0].closed


def test_a_body_that_cannot_be_stored_is_500(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    request = get(f"Content-Length: {600 * 1024}", method="POST")
    with serve(returns([b"never"])) as server, server.connect() as client:
        client.send(request + bytes(520 * 1024))
        assert client.response().status == 500
        wait_until_idle(server)


def test_expect_100_continue_is_answered_before_the_application_runs() -> None:
    with serve(reads(lambda body: body.read())) as server, server.connect() as client:
        assert client.send(EXPECTS).response().status == 100
        assert client.send(b"a\nbb\n\ncc").response().body == b"b'a\\nbb\\n\\ncc'"
        assert client.get().status == 200


def test_an_unread_body_leaves_the_connection_open() -> None:
    with serve(returns([b"ok"])) as server, server.connect() as client:
        client.send(get("Content-Length: 200000", method="POST") + bytes(200000))
        assert client.response().body == b"ok"
        assert client.get().body == b"ok"


# ---- the answer: framing


def test_one_block_gets_a_content_length() -> None:
    answer = ask(returns([b"hello"]))
    assert answer.fields["content-length"] == "5" and answer.body == b"hello"


@pytest.mark.parametrize("blocks", [[b"a", b"b"], (b"a", b"b"), [b"", b"a", b"", b"", b"b", b""]])
def test_more_blocks_go_in_chunks(blocks: Any) -> None:
    with serve(returns(lambda: iter(blocks))) as server, server.connect() as client:
        for _ in range(2):
            answer = client.get()
            assert answer.fields["transfer-encoding"] == "chunked" and answer.body == b"ab"


@pytest.mark.parametrize("empty", [[], (), [b""], [b"", b""], ""])
def test_an_empty_answer_has_length_0(empty: Any) -> None:
    answer = ask(returns(empty))
    assert (answer.status, answer.fields["content-length"], answer.body) == (200, "0", b"")


def test_http_1_0_gets_no_chunks_but_the_end_of_the_connection() -> None:
    answer = ask(returns(lambda: iter([b"a", b"b"])), b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
    assert "transfer-encoding" not in answer.fields and "content-length" not in answer.fields
    assert answer.fields["connection"] == "close" and answer.body == b"ab"


def test_http_1_0_with_a_length_is_kept_alive() -> None:
    with serve(returns([b"ab"])) as server, server.connect() as client:
        for _ in range(2):
            answer = client.send(b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n").response()
            assert answer.fields["connection"] == "keep-alive" and answer.body == b"ab"


@pytest.mark.parametrize(
    ("method", "status"), [("HEAD", "200 OK"), ("GET", "204 No Content"), ("GET", "304 Not Modified")]
)
@pytest.mark.parametrize("length", ["5", None])
@pytest.mark.parametrize("blocks", [[b"hello"], [b"hel", b"lo"], []])
def test_what_has_no_body_sends_none(method: str, status: str, length: str | None, blocks: list[bytes]) -> None:
    headers = [("Content-Length", length)] if length else []
    with serve(returns(blocks, status, headers)) as server, server.connect() as client:
        for _ in range(2):
            answer = client.send(get(method=method)).response(method)
            assert "transfer-encoding" not in answer.fields
            assert answer.fields.get("content-length") == (None if status[:3] == "204" else length)
        client.send(get("Connection: close", method=method)).response(method)
        assert client.read_to_end() == b""


def endless(count: list[int]) -> Iterator[bytes]:
    while True:
        count.append(1)
        yield b"x" * 1000


def test_head_ends_an_endless_answer() -> None:
    blocks = Blocks(endless([]))
    with serve(returns(blocks)) as server, server.connect() as client:
        assert client.send(get(method="HEAD")).response("HEAD").status == 200
        blocks.wait_closed_once()


# ---- the answer: order of calls


def test_the_head_waits_for_the_first_block_that_is_not_empty() -> None:
    def app(environ: Environ, start_response: StartResponse) -> Iterator[bytes]:
        start_response("200 OK", [("X-First", "1"), ("Content-Length", "99")])
        yield b""
        try:
            raise ValueError("no")
        except ValueError:
            start_response("503 Service Unavailable", [("X-Second", "2")], sys.exc_info())
        yield b""
        yield b"sorry"

    answer = ask(app)
    assert answer.status == 503 and answer.body == b"sorry"
    assert "x-first" not in answer.fields and answer.fields["x-second"] == "2"
    assert "content-length" not in answer.fields


def test_exc_info_after_the_head_has_gone_raises_it_again(caplog: pytest.LogCaptureFixture) -> None:
    raised: list[BaseException] = []

    def app(environ: Environ, start_response: StartResponse) -> Iterator[bytes]:
        start_response("200 OK", PLAIN)
        yield b"half"
        try:
            raise ValueError("the first error")
        except ValueError:
            try:
                start_response("500 Oops", PLAIN, sys.exc_info())
            except ValueError as error:
                raised.append(error)
                raise

    with serve(app) as server, server.connect() as client:
        client.send(get())
        client.read_until(b"4\r\nhalf\r\n")
        assert client.read_to_end() == b""
    assert str(raised[0]) == "the first error"
    assert "the first error" in caplog.text


def test_start_response_twice_is_an_error(caplog: pytest.LogCaptureFixture) -> None:
    def app(environ: Environ, start_response: StartResponse) -> list[bytes]:
        start_response("200 OK", PLAIN)
        start_response("404 Not Found", PLAIN)
        return [b""]

    assert ask(app).status == 500
    assert "AssertionError: start_response called twice" in caplog.text


def test_start_response_twice_is_an_error_even_if_the_first_one_failed() -> None:
    def app(environ: Environ, start_response: StartResponse) -> list[bytes]:
        with contextlib.suppress(RuntimeError):
            start_response("200 OK", [("X-A", "a\r\nb")])
        with contextlib.suppress(AssertionError):
            start_response("200 OK", PLAIN)
        return [b"never"]

    assert ask(app).status == 500


def test_a_head_replaced_by_a_bad_one_is_not_sent() -> None:
    def app(environ: Environ, start_response: StartResponse) -> list[bytes]:
        start_response("200 OK", PLAIN)
        try:
            raise ValueError("no")
        except ValueError:
            with contextlib.suppress(RuntimeError):
                start_response("bad", PLAIN, sys.exc_info())
        return [b"never"]

    assert ask(app).status == 500


def test_start_response_may_come_from_the_first_step_of_the_iteration() -> None:
    def app(environ: Environ, start_response: StartResponse) -> Iterator[bytes]:
        start_response("201 Created", PLAIN)
        yield b"late"

    answer = ask(app)
    assert (answer.status, answer.body) == (201, b"late")


def test_write_then_iterable() -> None:
    def app(environ: Environ, start_response: StartResponse) -> list[bytes]:
        write = start_response("200 OK", PLAIN)
        write(b"")
        write(b"a")
        write(b"b")
        return [b"c"]

    with serve(app) as server, server.connect() as client:
        assert client.get().body == b"abc"
        assert client.send(b"GET / HTTP/1.0\r\n\r\n").response().body == b"abc"


def test_write_sends_at_once() -> None:
    go_on = threading.Event()

    def app(environ: Environ, start_response: StartResponse) -> list[bytes]:
        write = start_response("200 OK", PLAIN)
        write(b"first")
        assert go_on.wait(BOUND_SECONDS)
        return []

    with serve(app) as server, server.connect() as client:
        client.send(get())
        client.read_until(b"5\r\nfirst\r\n")
        go_on.set()
        assert client.read_until(b"0\r\n\r\n") == b"0\r\n\r\n"


def test_write_past_the_content_length_raises() -> None:
    raised: list[BaseException] = []

    def app(environ: Environ, start_response: StartResponse) -> list[bytes]:
        write = start_response("200 OK", [("Content-Length", "4")])
        write(b"abcd")
        try:
            write(b"e")
        except RuntimeError as error:
            raised.append(error)
        return []

    with serve(app) as server, server.connect() as client:
        assert client.get().body == b"abcd"
        assert client.is_closed()
    assert "Content-Length" in str(raised[0])


def test_write_of_str_is_an_error() -> None:
    def app(environ: Environ, start_response: StartResponse) -> list[bytes]:
        start_response("200 OK", PLAIN)("text")  # type: ignore[arg-type]
        return []

    assert ask(app).status == 500


# ---- the answer: status and headers


@pytest.mark.parametrize(
    ("status", "line"),
    [
        ("200 OK", b"HTTP/1.1 200 OK"),
        ("200 Fine by me", b"HTTP/1.1 200 Fine by me"),
        ("404 Pas trouv\xe9", b"HTTP/1.1 404 Pas trouv\xe9"),
        ("299 ", b"HTTP/1.1 299 "),
        ("299", b"HTTP/1.1 299 "),
        ("799 (odd) <phrase>!", b"HTTP/1.1 799 (odd) <phrase>!"),
    ],
)
def test_the_reason_phrase_is_the_applications(status: str, line: bytes) -> None:
    assert ask(returns([b""], status)).line == line


@pytest.mark.parametrize(
    "status",
    ["", "OK", "20 OK", "2000 OK", "200OK", " 200 OK", "²00 OK", "100 Continue", "101 Switching Protocols", "000 No",
     "200 OK\r\nX-Evil: 1", "200 a\x00b", "200 \u20ac", b"200 OK", 200, None],
)  # fmt: skip
def test_a_bad_status_is_500_and_nothing_of_it_is_sent(status: Any) -> None:
    with serve(returns([b"evil"], status, [("X-Evil", "1")])) as server, server.connect() as client:
        answer = client.get()
        assert answer.status == 500 and "x-evil" not in answer.fields and b"evil" not in answer.body
        assert client.get().status == 500


@pytest.mark.parametrize(
    "header",
    [("X-A", "1\r\nX-Evil: 1"), ("X-A", "1\n"), ("X-A", "a\0b"), ("X-Evil:", "1"), ("X Evil", "1"), ("", "evil"),
     ("X-Evil\r\n", "1"), ("X-\xe9vil", "1"), ("X-Evil", "\u20ac"), ("X-Evil", 1), ("X-Evil", None), ("X-Evil",),
     ("X-Evil", "1", "2"), "X-Evil: 1", None, ("Content-Length", "evil"), ("Content-Length", "-1")],
)  # fmt: skip
def test_a_bad_header_is_500_and_nothing_of_it_is_sent(header: Any, caplog: pytest.LogCaptureFixture) -> None:
    with serve(returns([b"evil"], headers=[("X-Good", "1"), header])) as server, server.connect() as client:
        answer = client.get()
        wire = b"".join(b"%b:%b" % pair for pair in answer.headers).lower() + answer.body
        assert answer.status == 500 and b"evil" not in wire and "x-good" not in answer.fields
        assert client.get().status == 500
    assert "in app" in caplog.text  # the traceback shows the application's line


@pytest.mark.parametrize("headers", [(("X-A", "1"),), {"X-A": "1"}, None])
def test_headers_that_are_no_list_are_500(headers: Any) -> None:
    def app(environ: Environ, start_response: StartResponse) -> list[bytes]:
        start_response("200 OK", headers)
        return [b""]

    assert ask(app).status == 500


def test_two_content_lengths_are_500() -> None:
    assert ask(returns([b"a"], headers=[("Content-Length", "1"), ("content-length", "1")])).status == 500


def test_header_names_are_sent_as_given_and_repeated_ones_stay_apart() -> None:
    answer = ask(returns([b""], headers=[("sEt-CooKie", "a=1"), ("Set-Cookie", "b=2"), ("X-Latin", "\xe9")]))
    assert (b"sEt-CooKie", b"a=1") in answer.headers and (b"Set-Cookie", b"b=2") in answer.headers
    assert (b"X-Latin", b"\xe9") in answer.headers


def test_hop_by_hop_headers_are_the_servers() -> None:
    headers = [("Transfer-Encoding", "chunked"), ("Keep-Alive", "5"), ("Connection", "X-A"), ("Upgrade", "h2c")]
    with serve(returns([b"a"], headers=headers)) as server, server.connect() as client:
        answer = client.get()
        assert {"transfer-encoding", "keep-alive", "connection", "upgrade"}.isdisjoint(answer.fields)
        assert client.get().body == b"a"


def test_connection_close_is_obeyed() -> None:
    with serve(returns([b"a"], headers=[("Connection", "close")])) as server, server.connect() as client:
        assert client.get().fields["connection"] == "close"
        assert client.is_closed()


def test_early_hints_go_before_the_answer() -> None:
    def app(environ: Environ, start_response: StartResponse) -> list[bytes]:
        environ["wsgi.early_hints"]([("Link", "</a.css>; rel=preload"), ("Link", "</b.js>; rel=preload")])
        start_response("200 OK", PLAIN)
        return [b"page"]

    with serve(app) as server, server.connect() as client:
        hints = client.get()
        assert hints.status == 103
        assert [value for name, value in hints.headers if name == b"Link"] == [
            b"</a.css>; rel=preload", b"</b.js>; rel=preload",
        ]  # fmt: skip
        assert client.response().body == b"page"
        assert client.send(b"GET / HTTP/1.0\r\n\r\n").response().status == 200  # RFC 9110 15.2


def test_early_hints_after_the_head_are_dropped_and_bad_ones_raise() -> None:
    raised: list[BaseException] = []

    def app(environ: Environ, start_response: StartResponse) -> Iterator[bytes]:
        start_response("200 OK", PLAIN)
        yield b"a"
        environ["wsgi.early_hints"]([("Link", "late")])
        try:
            environ["wsgi.early_hints"]([("Link", "a\r\nb")])
        except RuntimeError as error:
            raised.append(error)
        yield b"b"

    assert ask(app).body == b"ab"
    assert raised


# ---- applications that go wrong


def test_an_error_before_the_start_is_500_and_the_connection_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    def app(environ: Environ, start_response: StartResponse) -> list[bytes]:
        if environ["PATH_INFO"] == "/bad":
            start_response("200 OK", [("X-Evil", "1")])
            raise LookupError("secret reason")
        return returns([b"good"])(environ, start_response)

    with serve(app) as server, server.connect() as client:
        answer = client.post(b"body", "/bad")
        assert answer.status == 500 and "x-evil" not in answer.fields and b"secret" not in answer.body
        assert "connection" not in answer.fields
        assert client.get().body == b"good"
    assert "LookupError: secret reason" in caplog.text and "POST /bad from 127.0.0.1" in caplog.text
    assert "gateway/wsgi.py" not in caplog.text  # the traceback begins in the application


@pytest.mark.parametrize("length", [None, "100"])
def test_an_error_after_the_start_cuts_the_connection(length: str | None, caplog: pytest.LogCaptureFixture) -> None:
    def blocks() -> Iterator[bytes]:
        yield b"half"
        raise LookupError("mid")

    iterable = Blocks(blocks())
    headers = [("Content-Length", length)] if length else []
    with serve(returns(iterable, headers=headers)) as server, server.connect() as client:
        client.send(get())
        rest = client.read_to_end()
        assert rest.endswith(b"half" if length else b"4\r\nhalf\r\n")
        iterable.wait_closed_once()
    assert "LookupError: mid" in caplog.text


def test_an_error_after_the_start_is_a_reset_where_only_the_end_would_say_that_it_is_complete() -> None:
    def blocks() -> Iterator[bytes]:
        yield b"half"
        raise LookupError("mid")

    with serve(returns(blocks)) as server, server.connect() as client:
        client.send(b"GET / HTTP/1.0\r\n\r\n")
        with pytest.raises(ConnectionResetError):
            list(iter(lambda: client.sock.recv(65536), b""))


@pytest.mark.parametrize("fault", ["error", "short"])
def test_a_broken_answer_ends_for_a_slow_client_too(fault: str) -> None:
    """What is queued still goes out, then the connection ends."""

    def blocks() -> Iterator[bytes]:
        yield bytes(8 * MEGABYTE)
        if fault == "error":
            raise LookupError("mid")

    headers = [("Content-Length", str(9 * MEGABYTE))]
    with serve(returns(blocks, headers=headers)) as server, server.connect() as client:
        client.send(get())
        exchange = running_exchange(server)
        wait_for(lambda: exchange.ended and exchange.channel.queued_bytes)
        client.read_until(b"\r\n\r\n")
        assert len(client.read_to_end()) == 8 * MEGABYTE
        wait_until_idle(server)


def test_no_start_response_is_500(caplog: pytest.LogCaptureFixture) -> None:
    for result in ([b"x"], [], iter([b"x"])):
        assert ask(lambda environ, start_response, result=result: result).status == 500
    assert "has not called start_response" in caplog.text


@pytest.mark.parametrize(
    "result", ["text", ["text"], b"bytes", [bytearray(b"x")], [memoryview(b"x")], [1], [None], None, 5, object()]
)
def test_a_result_that_is_no_iterable_of_bytes_is_500(result: Any, caplog: pytest.LogCaptureFixture) -> None:
    with serve(returns(result if result is not None else lambda: None)) as server, server.connect() as client:
        assert client.get().status == 500
        assert client.get().status == 500
    assert "Exception in WSGI application" in caplog.text


@pytest.mark.parametrize("blocks", [[b"abc"], [b"a", b"bc"], []])
def test_too_few_bytes_cut_the_connection(blocks: list[bytes], caplog: pytest.LogCaptureFixture) -> None:
    with serve(returns(blocks, headers=[("Content-Length", "10")])) as server, server.connect() as client:
        client.send(get())
        client.read_until(b"\r\n\r\n")
        assert client.read_to_end() == b"".join(blocks)
    assert "short of its Content-Length" in caplog.text


@pytest.mark.parametrize("blocks", [[b"abcdef"], [b"abc", b"def"], [b"abcd", b"ef"]])
def test_too_many_bytes_are_cut_off_logged_and_closed(blocks: list[bytes], caplog: pytest.LogCaptureFixture) -> None:
    with serve(returns(blocks, headers=[("Content-Length", "4")])) as server, server.connect() as client:
        assert client.get().body == b"abcd"
        assert client.is_closed()
    assert "more than its Content-Length" in caplog.text


def test_an_endless_answer_ends_at_its_content_length() -> None:
    count: list[int] = []
    blocks = Blocks(endless(count))
    with serve(returns(blocks, headers=[("Content-Length", "2500")])) as server, server.connect() as client:
        assert client.get().body == b"x" * 2500
        blocks.wait_closed_once()
    assert len(count) == 3


def test_what_follows_the_last_block_is_still_run() -> None:
    ended = threading.Event()

    def blocks() -> Iterator[bytes]:
        yield b"abcd"
        ended.set()

    with serve(returns(blocks, headers=[("Content-Length", "4")])) as server, server.connect() as client:
        assert client.get().body == b"abcd"
        assert client.get().body == b"abcd"
    assert ended.is_set()


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), GeneratorExit()])
def test_an_application_that_exits_ends_its_request_only(error: BaseException) -> None:
    def app(environ: Environ, start_response: StartResponse) -> list[bytes]:
        if environ["PATH_INFO"] == "/exit":
            raise error
        return returns([b"alive"])(environ, start_response)

    with serve(app) as server, server.connect() as client:
        assert client.get("/exit").status == 500
        assert client.get().body == b"alive"


def test_an_application_that_blocks_holds_up_nobody_else() -> None:
    go_on = threading.Event()

    def app(environ: Environ, start_response: StartResponse) -> list[bytes]:
        if environ["PATH_INFO"] == "/block":
            assert go_on.wait(BOUND_SECONDS)
        return returns([environ["PATH_INFO"].encode()])(environ, start_response)

    with serve(app, threads=2) as server, server.connect() as one, server.connect() as two:
        one.send(b"GET /block HTTP/1.1\r\nHost: test\r\n\r\n")
        assert two.get("/b").body == b"/b"
        go_on.set()
        assert one.response().body == b"/block"


def test_threads_is_a_cap() -> None:
    go_on = threading.Event()
    at_once: list[int] = []
    now = [0]
    lock = threading.Lock()

    def app(environ: Environ, start_response: StartResponse) -> list[bytes]:
        with lock:
            now[0] += 1
            at_once.append(now[0])
        assert go_on.wait(BOUND_SECONDS)
        with lock:
            now[0] -= 1
        return returns([b"ok"])(environ, start_response)

    with serve(app, threads=3) as server, contextlib.ExitStack() as stack:
        clients = [stack.enter_context(server.connect()).send(get()) for _ in range(6)]
        wait_for(lambda: len(at_once) == 3)
        pool = server.server._pool
        assert pool is not None
        wait_for(lambda: len(pool.jobs) == 3)
        go_on.set()
        assert [client.response().body for client in clients] == [b"ok"] * 6
    assert max(at_once) == 3


# ---- close


@pytest.mark.parametrize(
    ("blocks", "headers"),
    [
        ([b"abc"], []),
        ([], []),
        ([b"abc", b"def"], [("Content-Length", "4")]),
        ([b"abc"], [("Content-Length", "9")]),
        (["text"], []),
    ],
)
def test_close_is_called_once(blocks: list[Any], headers: list[tuple[str, str]]) -> None:
    iterable = Blocks(blocks)
    with serve(returns(iterable, headers=headers)) as server, server.connect() as client:
        client.send(get("Connection: close")).read_to_end()
        iterable.wait_closed_once()


def test_close_is_called_once_if_start_response_never_was() -> None:
    iterable = Blocks([b"abc"])
    assert ask(lambda environ, start_response: iterable).status == 500
    iterable.wait_closed_once()


def test_close_of_a_list_is_called_too() -> None:
    closed: list[int] = []

    class Closing(list[bytes]):
        def close(self) -> None:
            closed.append(1)

    assert ask(returns(Closing([b"abc"]))).body == b"abc"
    assert closed == [1]


def test_a_close_that_raises_does_not_spoil_the_answer(caplog: pytest.LogCaptureFixture) -> None:
    class Failing(Blocks):
        def close(self) -> None:
            raise LookupError("close failed")

    with serve(returns(lambda: Failing([b"a", b"b"]))) as server, server.connect() as client:
        assert client.get().body == b"ab"
        assert client.get().body == b"ab"
    assert "LookupError: close failed" in caplog.text


# ---- clients that vanish


def test_the_application_can_see_that_the_client_has_gone(caplog: pytest.LogCaptureFixture) -> None:
    seen: list[bool] = []
    done = threading.Event()
    in_app = threading.Event()

    def app(environ: Environ, start_response: StartResponse) -> list[bytes]:
        seen.append(environ["stdserve.client_disconnected"]())
        in_app.set()
        seen.append(wait_for(environ["stdserve.client_disconnected"]))
        done.set()
        return returns([b"late"])(environ, start_response)

    with serve(app) as server:
        with server.connect() as client:
            client.send(get())
            assert in_app.wait(BOUND_SECONDS)
        assert done.wait(BOUND_SECONDS)
        wait_until_idle(server)
    assert seen == [False, True]
    assert "Traceback" not in caplog.text


@pytest.mark.parametrize("block", [b"", b"x"])
@pytest.mark.parametrize("leave", [vanish, lambda client: client.sock.close()], ids=["reset", "close"])
def test_a_generator_whose_client_has_gone_is_closed(
    block: bytes, leave: Callable[[Client], None], caplog: pytest.LogCaptureFixture
) -> None:
    ended = threading.Event()

    def blocks() -> Iterator[bytes]:
        try:
            yield b"first"
            while True:
                yield block if leave is vanish else b"x"  # a client that closes properly is noticed by sending to it
        finally:
            ended.set()

    with serve(returns(blocks), threads=1) as server:
        client = server.connect()
        client.send(get()).read_until(b"first")
        leave(client)
        assert ended.wait(BOUND_SECONDS)
        wait_until_idle(server)
    assert "Traceback" not in caplog.text


def test_write_to_a_client_that_has_gone_raises_an_os_error_without_traceback(
    caplog: pytest.LogCaptureFixture,
) -> None:
    raised: list[BaseException] = []

    def app(environ: Environ, start_response: StartResponse) -> list[bytes]:
        write = start_response("200 OK", PLAIN)
        write(b"first")
        try:
            while True:
                write(b"x")
        except OSError as error:
            raised.append(error)
            raise

    with serve(app) as server:
        client = server.connect()
        client.send(get()).read_until(b"first")
        vanish(client)
        wait_until_idle(server)
        wait_for(lambda: raised)
    assert "Traceback" not in caplog.text


@pytest.mark.parametrize("block_bytes", [1, 1000, 300_000])
def test_a_slow_reader_holds_bounded_memory_and_ends_the_generator_by_leaving(block_bytes: int) -> None:
    made = [0]
    go_on = threading.Event()

    def blocks() -> Iterator[bytes]:
        block = bytes(block_bytes)
        yield block
        assert go_on.wait(BOUND_SECONDS)
        while True:
            made[0] += 1
            yield block

    iterable = Blocks(blocks())
    with serve(returns(iterable), threads=1) as server:
        client = slow_client(server)
        client.send(get()).read_until(b"\r\n\r\n")
        exchange = running_exchange(server)
        exchange.channel.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)  # type: ignore[attr-defined]
        go_on.set()
        wait_for(lambda: exchange.must_wait and exchange.on_change is not None)  # the thread waits
        assert made[0] * block_bytes < 4 * MEGABYTE  # in our queue and in the kernel
        assert exchange.channel.queued_bytes <= 128 * 1024 + 2 * block_bytes
        client.sock.close()
        iterable.wait_closed_once()
        wait_until_idle(server)


def test_a_slow_reader_gets_everything() -> None:
    blocks = [bytes([number]) * 10_000 for number in range(200)] * 4
    with serve(returns(lambda: iter(blocks))) as server, slow_client(server) as client:
        client.send(get())
        exchange = running_exchange(server)
        wait_for(lambda: exchange.must_wait)
        assert client.response().body == b"".join(blocks)


def test_a_client_that_leaves_in_its_body_leaves_nothing_behind(caplog: pytest.LogCaptureFixture) -> None:
    files: list[Any] = []
    original = wsgi._Spool.on_change

    def on_change(spool: Any) -> None:
        files.append(spool.file)
        original(spool)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(wsgi._Spool, "on_change", on_change)
        with serve(returns([b"never"])) as server:
            for leave in (vanish, lambda client: client.sock.close()):
                client = server.connect()
                client.send(get("Content-Length: 1000", method="POST") + bytes(500))
                exchange = running_exchange(server)
                wait_for(lambda exchange=exchange: exchange.on_change is not None)
                leave(client)
                wait_until_idle(server)
    assert files and all(file.closed for file in files)
    assert "Traceback" not in caplog.text


def test_an_application_is_not_called_for_a_client_that_left_while_its_request_waited() -> None:
    go_on = threading.Event()
    calls: list[str] = []

    def app(environ: Environ, start_response: StartResponse) -> list[bytes]:
        calls.append(environ["PATH_INFO"])
        assert go_on.wait(BOUND_SECONDS)
        return returns([b"ok"])(environ, start_response)

    with serve(app, threads=1) as server, server.connect() as first:
        connections, pool = server.server._connections, server.server._pool
        assert connections is not None and pool is not None
        first.send(b"GET /first HTTP/1.1\r\nHost: test\r\n\r\n")
        wait_for(lambda: calls)
        second = server.connect().send(b"GET /second HTTP/1.1\r\nHost: test\r\n\r\n")
        wait_for(lambda: len(pool.jobs) == 1)
        vanish(second)
        wait_for(lambda: len(connections) == 1)
        go_on.set()
        assert first.response().body == b"ok"
        wait_until_idle(server)
    assert calls == ["/first"]


def test_a_client_that_ends_its_side_still_gets_its_answer() -> None:
    with serve(returns(lambda: iter([b"a", b"b"]))) as server, server.connect() as client:
        client.send(get())
        client.sock.shutdown(socket.SHUT_WR)
        assert client.response().body == b"ab"
        assert client.is_closed()


# ---- wsgi.file_wrapper


SIZE = 300_000


@pytest.fixture
def path(tmp_path: Path) -> Path:
    found = tmp_path / "file"
    found.write_bytes(bytes(range(250)) * (SIZE // 250))
    return found


@pytest.fixture
def sendfile_calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for each call of os.sendfile."""
    calls: list[int] = []
    original = getattr(os, "sendfile", None)
    if original is None:
        pytest.skip("no sendfile here")

    def sendfile(out: int, source: int, offset: int, count: int) -> int:
        sent: int = original(out, source, offset, count)
        calls.append(sent)
        return sent

    monkeypatch.setattr(os, "sendfile", sendfile)
    return calls


def test_a_file_goes_by_sendfile(path: Path, sendfile_calls: list[int]) -> None:
    file = File(path.open("rb"))
    with serve(sends_file(file)) as server, server.connect() as client:
        answer = client.get()
        assert answer.fields["content-length"] == str(SIZE) and answer.body == path.read_bytes()
        file.wait_closed_once()
    assert sum(sendfile_calls) == SIZE


def test_the_connection_goes_on_after_a_file(path: Path) -> None:
    app = Opened(path)
    for version in ("1.1", "1.0"):
        with serve(app) as server, server.connect() as client:
            for _ in range(3):
                answer = client.send(get("Connection: keep-alive", version=version)).response()
                assert answer.body == path.read_bytes()
            app.wait_closed_once()


def test_without_sendfile_a_file_goes_in_blocks(path: Path, sendfile_calls: list[int]) -> None:
    file = File(path.open("rb"))
    answer = ask_for_file(file, sendfile=False)
    assert answer.fields["transfer-encoding"] == "chunked" and answer.body == path.read_bytes()
    file.wait_closed_once()
    assert not sendfile_calls


def test_a_file_is_sent_from_its_position(path: Path) -> None:
    for sendfile in (True, False):
        file = File(path.open("rb"))
        file.file.read(1000)
        assert ask_for_file(file, sendfile=sendfile).body == path.read_bytes()[1000:]


@pytest.mark.parametrize("sendfile", [True, False])
@pytest.mark.parametrize("length", [0, 100, 100_000])
def test_a_file_is_sent_up_to_the_content_length(
    path: Path, length: int, sendfile: bool, caplog: pytest.LogCaptureFixture
) -> None:
    file = File(path.open("rb"))
    app = sends_file(file, ("Content-Length", str(length)))
    with serve(app, sendfile=sendfile) as server, server.connect() as client:
        assert client.get().body == path.read_bytes()[:length]
        file.wait_closed_once()
        assert client.get("/next").body == b"next"
    assert "more than its Content-Length" not in caplog.text


@pytest.mark.parametrize("sendfile", [True, False])
def test_a_file_shorter_than_the_content_length_cuts_the_connection(path: Path, sendfile: bool) -> None:
    file = File(path.open("rb"))
    with serve(sends_file(file, ("Content-Length", str(SIZE + 1))), sendfile=sendfile) as server:
        with server.connect() as client:
            client.send(get()).read_until(b"\r\n\r\n")
            assert client.read_to_end() == path.read_bytes()
        file.wait_closed_once()


@pytest.mark.parametrize("size", [0, 1, 16 * 1024])
def test_a_small_file_leaves_with_the_head(path: Path, size: int, sendfile_calls: list[int]) -> None:
    path.write_bytes(b"x" * size)
    file = File(path.open("rb"))
    answer = ask_for_file(file)
    assert answer.fields["content-length"] == str(size) and answer.body == b"x" * size
    file.wait_closed_once()
    assert not sendfile_calls


@pytest.mark.parametrize("size", [10, SIZE])
@pytest.mark.parametrize(("method", "status"), [("HEAD", "200 OK"), ("GET", "304 Not Modified")])
def test_a_file_is_closed_where_it_is_not_sent(path: Path, method: str, status: str, size: int) -> None:
    path.write_bytes(bytes(size))
    file = File(path.open("rb"))
    app = sends_file(file, ("Content-Length", str(size)), status=status)
    with serve(app) as server, server.connect() as client:
        answer = client.send(get("Connection: close", method=method)).response(method)
        assert answer.fields["content-length"] == str(size)
        assert client.read_to_end() == b""
    file.wait_closed_once()


class Reader:
    """Has read and close, nothing else of a file."""

    def __init__(self, data: bytes) -> None:
        self.stream = io.BytesIO(data)
        self.closed = 0

    def read(self, size: int = -1) -> bytes:
        return self.stream.read(size)

    def close(self) -> None:
        self.closed += 1


@pytest.mark.parametrize("headers", [[], [("Content-Length", "70000")]])
def test_what_is_no_file_goes_in_blocks(headers: list[tuple[str, str]]) -> None:
    data = os.urandom(100_000)
    reader = Reader(data)
    with serve(sends_file(reader, *headers)) as server, server.connect() as client:
        assert client.get().body == (data[:70_000] if headers else data)
        assert client.get("/next").body == b"next"
    assert reader.closed == 1


def test_a_reader_without_close_is_sent_too() -> None:
    class Bare:
        read = io.BytesIO(b"bare").read

    assert ask(sends_file(Bare())).body == b"bare"


def test_a_file_that_reads_other_bytes_than_its_descriptor_holds_is_read(tmp_path: Path) -> None:
    path = tmp_path / "file.gz"
    with gzip.open(path, "wb") as packed:
        packed.write(b"unpacked" * 10_000)
    assert ask_for_file(gzip.open(path, "rb")).body == b"unpacked" * 10_000


def test_a_pipe_goes_in_blocks() -> None:
    reader, writer = os.pipe()
    os.write(writer, b"through a pipe")
    os.close(writer)
    assert ask_for_file(os.fdopen(reader, "rb")).body == b"through a pipe"


@pytest.mark.skipif(not Path("/proc/version").exists(), reason="no /proc")
def test_a_file_that_does_not_know_its_length_goes_in_blocks() -> None:
    assert ask_for_file(open("/proc/version", "rb")).body == Path("/proc/version").read_bytes()


def test_temporary_files_go_by_sendfile(sendfile_calls: list[int]) -> None:
    for make in (tempfile.NamedTemporaryFile, tempfile.TemporaryFile):
        file = make()
        file.write(bytes(SIZE))
        file.seek(0)
        del sendfile_calls[:]
        assert ask_for_file(file).body == bytes(SIZE)
        assert sum(sendfile_calls) == SIZE


def test_a_spooled_file_is_sent() -> None:
    file = tempfile.SpooledTemporaryFile()
    file.write(bytes(SIZE))
    file.seek(0)
    assert ask_for_file(file).body == bytes(SIZE)


def test_a_closed_file_is_500(path: Path) -> None:
    file = path.open("rb")
    file.close()
    assert ask(sends_file(file)).status == 500


def test_a_file_after_write_goes_in_blocks(path: Path) -> None:
    def app(environ: Environ, start_response: StartResponse) -> Any:
        start_response("200 OK", PLAIN)(b"first ")
        return environ["wsgi.file_wrapper"](path.open("rb"))

    assert ask(app).body == b"first " + path.read_bytes()


def test_a_file_without_start_response_is_500_and_closed(path: Path) -> None:
    file = File(path.open("rb"))
    assert ask(lambda environ, start_response: environ["wsgi.file_wrapper"](file.file)).status == 500
    file.wait_closed_once()


def test_middleware_may_iterate_a_file_wrapper(path: Path) -> None:
    app = sends_file(File(path.open("rb")), blksize=1000)
    sizes: list[int] = []

    def middleware(environ: Environ, start_response: StartResponse) -> Iterator[bytes]:
        result = app(environ, start_response)
        for block in result:
            sizes.append(len(block))
            yield block
        result.close()

    assert ask(middleware).body == path.read_bytes()
    assert set(sizes) == {1000}


@pytest.mark.parametrize("leave", [vanish, lambda client: client.sock.close()], ids=["reset", "close"])
def test_a_file_is_closed_once_if_the_client_leaves(tmp_path: Path, leave: Callable[[Client], None]) -> None:
    path = tmp_path / "large"
    path.touch()
    os.truncate(path, 64 * MEGABYTE)
    file = File(path.open("rb"))
    with serve(sends_file(file)) as server:
        client = slow_client(server)
        client.send(get()).read_until(b"\r\n\r\n")
        pool = server.server._pool
        assert pool is not None
        wait_for(lambda: not pool.busy)  # the thread does not wait for the client
        assert not file.closed
        leave(client)
        file.wait_closed_once()
        wait_until_idle(server)


def test_a_file_that_shrinks_cuts_the_connection(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "large"
    path.touch()
    os.truncate(path, 64 * MEGABYTE)
    file = File(path.open("rb"))
    with serve(sends_file(file)) as server, slow_client(server) as client:
        client.send(get()).read_until(b"\r\n\r\n")
        exchange = running_exchange(server)
        wait_for(lambda: exchange.must_wait)
        os.truncate(path, 1000)
        assert len(client.read_to_end()) < 64 * MEGABYTE
        file.wait_closed_once()
        wait_until_idle(server)
    assert "a file has become shorter while it was sent" in caplog.text


def test_a_close_of_a_file_that_raises_is_logged(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def app(environ: Environ, start_response: StartResponse) -> Any:
        file = path.open("rb")
        original = file.close

        def close() -> None:
            original()
            raise LookupError("close failed")

        file.close = close  # type: ignore[method-assign]
        return sends_file(file)(environ, start_response)

    with serve(app) as server, server.connect() as client:
        assert client.get().body == path.read_bytes()
        assert client.get().body == path.read_bytes()
        wait_for(lambda: caplog.text.count("LookupError: close failed") == 2)


# ---- wsgi.errors


def test_lines_of_wsgi_errors_reach_the_error_log(caplog: pytest.LogCaptureFixture) -> None:
    def app(environ: Environ, start_response: StartResponse) -> list[bytes]:
        errors = environ["wsgi.errors"]
        assert errors.write("one\ntw") == 6
        errors.write("o\n")
        errors.writelines(["th", "ree\n", "fo"])
        errors.flush()
        errors.flush()
        print("five", file=errors)
        errors.write("six")  # no end of line
        return returns([b""])(environ, start_response)

    with caplog.at_level(logging.ERROR, "stdserve.error"), serve(app) as server, server.connect() as client:
        assert client.get().status == 200
        wait_for(lambda: len(caplog.messages) >= 6)
    assert caplog.messages == ["one", "two", "three", "fo", "five", "six"]


# ---- what stays


def test_a_request_leaves_no_cycle_behind(path: Path) -> None:
    """Else each request's memory, and the application's objects in its environ, would wait for the collector."""

    def exchanges() -> int:
        return sum(isinstance(each, (Exchange, wsgi.WSGICall)) for each in gc.get_objects())

    files = Opened(path)

    def app(environ: Environ, start_response: StartResponse) -> Any:
        if environ["PATH_INFO"] == "/file":
            return files(environ, start_response)
        return returns(lambda: iter([bytes(50_000)] * 3))(environ, start_response)

    with serve(app) as server:
        gc.collect()
        before = exchanges()
        gc.disable()
        try:
            with server.connect() as client:
                for target in ("/file", "/blocks") * 5:
                    assert client.post(bytes(70_000), target).status == 200
            files.wait_closed_once()
            wait_for(lambda: exchanges() <= before)
        finally:
            gc.enable()


@pytest.mark.parametrize("fields", [[], [("Content-Length", "3")]])
def test_205_has_no_content_and_says_so(fields: list[tuple[str, str]]) -> None:
    def app(environ: Environ, start_response: StartResponse) -> list[bytes]:
        start_response("205 Reset Content", fields)
        return [b"abc"]

    with serve(app) as server, server.connect() as client:
        for _ in range(2):
            answer = client.get()
            assert (answer.status, answer.fields["content-length"], answer.body) == (205, "0", b"")


def test_a_file_whose_close_raises_names_the_request(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Broken(io.FileIO):
        def close(self) -> None:
            super().close()
            raise ValueError("cannot close")

    def app(environ: Environ, start_response: StartResponse) -> Any:
        start_response("200 OK", [])
        return environ["wsgi.file_wrapper"](Broken(path))

    with serve(app) as server, server.connect() as client:
        assert client.get("/file").status == 200
        wait_for(lambda: "cannot close" in caplog.text)
    assert "Exception in WSGI application: GET /file from 127.0.0.1" in caplog.text
