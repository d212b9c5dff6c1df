"""--https-redirect: where plain HTTP is sent, and what is not redirected."""

from __future__ import annotations

import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from stdserve.config import Config
from stdserve.errors import ConfigError
from stdserve.transport.https import open_all
from tests import sockets
from tests.certificates import Authority, Pair
from tests.support import BOUND_SECONDS, Client, Running, running
from tests.tls import connect, trusting

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl command to make certificates with")


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ca"))


@pytest.fixture(scope="module")
def pair(authority: Authority) -> Pair:
    return authority.issue("site.test", "*.site.test", "127.0.0.1")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return int(sock.getsockname()[1])


def hello(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    start_response("200 OK", [])
    return [environ["wsgi.url_scheme"].encode()]


@pytest.fixture(scope="module")
def server(pair: Pair) -> Iterator[Running]:
    with running(hello, https_redirect=free_port(), **pair.options) as found:
        yield found


def plain(server: Running) -> Client:
    address: Any = server.server.listeners[1].server
    return Client(socket.create_connection(address, timeout=BOUND_SECONDS))


def ask(server: Running, request: bytes) -> Any:
    with plain(server) as client:
        return client.send(request).response()


@pytest.mark.parametrize(
    ("target", "host", "location"),
    [
        ("/", "site.test", "https://site.test:{port}/"),
        ("/a%20b?c=d&e", "Site.Test:8080", "https://Site.Test:{port}/a%20b?c=d&e"),
        ("/?", "a.site.test", "https://a.site.test:{port}/?"),
        ("//other.test/a", "127.0.0.1", "https://127.0.0.1:{port}//other.test/a"),
        ("http://site.test/a?b", "site.test", "https://site.test:{port}/a?b"),
    ],
)
def test_redirect(server: Running, target: str, host: str, location: str) -> None:
    answer = ask(server, f"GET {target} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
    assert answer.status == 308
    assert answer.fields["location"] == location.format(port=server.address[1])


@pytest.mark.parametrize(
    ("request_line", "host", "status"),
    [
        ("GET / HTTP/1.1", "other.test", 421),
        ("GET / HTTP/1.1", "a.b.site.test", 421),
        ("GET / HTTP/1.1", "site.test.other.test", 421),
        ("GET / HTTP/1.1", "127.0.0.2", 421),
        ("GET / HTTP/1.1", "[::1]", 421),
        ("GET / HTTP/1.1", "", 400),
        ("GET / HTTP/1.1", "other.test%2f", 400),
        ("GET / HTTP/1.1", "a@site.test", 400),
        ("OPTIONS * HTTP/1.1", "site.test", 400),
    ],
)
def test_what_is_not_redirected(server: Running, request_line: str, host: str, status: int) -> None:
    answer = ask(server, f"{request_line}\r\nHost: {host}\r\n\r\n".encode())
    assert answer.status == status and "location" not in answer.fields


def test_no_host_is_no_redirect(server: Running) -> None:
    assert ask(server, b"GET / HTTP/1.0\r\n\r\n").status == 400


def test_a_body_is_not_waited_for_and_the_connection_goes_on(server: Running) -> None:
    with plain(server) as client:
        head = b"POST / HTTP/1.1\r\nHost: site.test\r\nContent-Length: 5\r\n\r\n"
        assert [client.send(head + b"12345").response().status for _ in range(3)] == [308] * 3


def test_https_beside_it_is_served(server: Running, authority: Authority) -> None:
    with connect(server, trusting(authority), "site.test") as client:
        assert client.get().body == b"https"


def test_a_proxy_that_says_https_is_redirected_too(server: Running) -> None:
    head = b"GET / HTTP/1.1\r\nHost: site.test\r\nX-Forwarded-Proto: https\r\n\r\n"
    assert ask(server, head).status == 308


def test_listeners(pair: Pair, tmp_path: Path) -> None:
    port = free_port()
    config = Config(
        bind=(f"unix:{tmp_path}/app.sock", "127.0.0.1:0", "127.0.0.2:0"), https_redirect=port, **pair.options
    )  # type: ignore[arg-type]
    listeners = open_all(config)
    assert [listener.scheme for listener in listeners] == ["https"] * 3 + ["http"] * 2
    assert [listener.server for listener in listeners[3:]] == [("127.0.0.1", port), ("127.0.0.2", port)]
    assert open_all(config, kept=listeners) == listeners
    for listener in listeners:
        listener.close()


def test_the_port_of_https_itself_is_refused(pair: Pair) -> None:
    with pytest.raises(ConfigError, match="--https-redirect: 8000 is the --port of https itself"):
        open_all(Config(https_redirect=8000, **pair.options))  # type: ignore[arg-type]


def test_a_websocket_in_plain_text_is_redirected_too(pair: Pair, authority: Authority) -> None:
    options = {"interface": "asgi3", "lifespan": "off", "https_redirect": free_port(), **pair.options}
    with running(sockets.echo, **options) as server:
        answer = ask(server, sockets.handshake("/echo", Host="site.test"))
        port = server.address[1]
        assert (answer.status, answer.fields["location"]) == (308, f"https://site.test:{port}/echo")
        with connect(server, trusting(authority), "site.test") as client:
            assert sockets.socket_over(client, Host="site.test").text("a").read() == b"a"
