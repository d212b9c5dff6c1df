"""TLS with real certificates and real handshakes: what is agreed, bodies, ends, clients that misbehave."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import socket
import ssl
import struct
import subprocess
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from stdserve.transport import connections as connections_module
from stdserve.transport.tls import _name
from tests.certificates import Authority, Pair
from tests.support import BOUND_SECONDS, Client, Running, running, wait_for
from tests.tls import ByteClient, connect, trusting
from tests.wire import read_answer

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl command to make certificates with")

GET = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
CLOSE = b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
ASGI = {"interface": "asgi3", "lifespan": "off"}
MIB = 1024 * 1024


@pytest.fixture(autouse=True)
def _fast_sweep(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections_module, "SWEEP_SECONDS", 0.01)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ca"))


@pytest.fixture(scope="module")
def pair(authority: Authority) -> Pair:
    return authority.issue("localhost", "127.0.0.1")


@pytest.fixture(scope="module")
def trust(authority: Authority) -> ssl.SSLContext:
    return trusting(authority)


# ---- applications


def show(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    """What the environ says of TLS, a line for each key."""
    start_response("200 OK", [("Content-Type", "text/plain")])
    keys = [key for key in sorted(environ) if key.startswith(("SSL_", "HTTPS", "wsgi.url_scheme"))]
    return ["".join(f"{key}={environ[key]!r}\n" for key in keys).encode("latin-1")]


def echo(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    start_response("200 OK", [])
    return [environ["wsgi.input"].read()]


async def asgi_echo(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    more = True
    while more:
        message = await receive()
        more = message.get("more_body", False)
        await send({"type": "http.response.body", "body": message.get("body", b""), "more_body": more})


class Scopes:
    """An ASGI application that keeps the scopes."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.seen.append(scope)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"hello"})


ECHOES = pytest.mark.parametrize(("app", "options"), [(echo, {}), (asgi_echo, ASGI)])


# ---- what the tests look at


def connections(server: Running) -> Any:
    return server.server._connections


def wait_empty(server: Running) -> None:
    wait_for(lambda: len(connections(server)) == 0 and connections(server).active == 0)


def reset(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def read_all(sock: socket.socket) -> None:
    while sock.recv(65536):
        pass


def shown(client: Client) -> dict[str, str]:
    return dict(line.split("=", 1) for line in client.get().body.decode("latin-1").splitlines())


def wait_line(caplog: pytest.LogCaptureFixture, text: str) -> str:
    def find() -> str | None:
        return next((line for line in caplog.messages if text in line), None)

    return str(wait_for(find))


# ---- what is agreed


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_wsgi_is_told_of_tls(pair: Pair, authority: Authority, version: ssl.TLSVersion) -> None:
    context = trusting(authority, minimum_version=version, maximum_version=version)
    with running(show, **pair.options) as server, connect(server, context) as client:
        environ = shown(client)
        assert environ["HTTPS"] == "'on'" and environ["wsgi.url_scheme"] == "'https'"
        assert environ["SSL_PROTOCOL"] == repr(client.sock.version())  # type: ignore[attr-defined]
        assert environ["SSL_CIPHER"] == repr(client.sock.cipher()[0])  # type: ignore[attr-defined]
        assert environ["SSL_CLIENT_VERIFY"] == "'NONE'" and "SSL_CLIENT_S_DN" not in environ


def test_asgi_is_told_of_tls(pair: Pair, trust: ssl.SSLContext) -> None:
    app = Scopes()
    with running(app, **ASGI, **pair.options) as server, connect(server, trust) as client:
        for _ in range(2):
            assert client.get().body == b"hello"
            scope = app.seen.pop()
            facts = scope["extensions"]["tls"]
            assert scope["scheme"] == "https"
            assert facts == {
                "server_cert": ssl.DER_cert_to_PEM_cert(client.sock.getpeercert(True)),  # type: ignore[attr-defined]
                "client_cert_chain": [],
                "client_cert_name": None,
                "client_cert_error": None,
                "tls_version": 0x0304,
                "cipher_suite": {"TLS_AES_256_GCM_SHA384": 0x1302, "TLS_AES_128_GCM_SHA256": 0x1301}[
                    client.sock.cipher()[0]  # type: ignore[attr-defined]
                ],
            }
            facts.clear()  # the next request has its own


def test_without_tls_there_is_no_extension() -> None:
    app = Scopes()
    with running(app, **ASGI) as server, server.connect() as client:
        client.get()
    assert "tls" not in app.seen[0]["extensions"] and app.seen[0]["scheme"] == "http"


def test_alpn_is_http_1_1(pair: Pair, authority: Authority) -> None:
    context = trusting(authority)
    context.set_alpn_protocols(["h2", "http/1.1"])
    with running(echo, **pair.options) as server, connect(server, context) as client:
        assert client.sock.selected_alpn_protocol() == "http/1.1"  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("options", "version"), [({}, ssl.TLSVersion.TLSv1_1), ({"ssl_version": "1.3"}, ssl.TLSVersion.TLSv1_2)]
)
def test_older_versions_are_refused(
    pair: Pair, authority: Authority, options: dict[str, str], version: ssl.TLSVersion, caplog: pytest.LogCaptureFixture
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        context = trusting(authority, minimum_version=version, maximum_version=version)
    context.set_ciphers("DEFAULT@SECLEVEL=0")
    with running(echo, **pair.options, **options) as server:
        with pytest.raises(ssl.SSLError, match=r"(?i)protocol.version|internal.error|no.protocols"):
            connect(server, context)
        if version is ssl.TLSVersion.TLSv1_2:
            assert "TLS handshake: unsupported protocol" in wait_line(caplog, "TLS handshake")
        wait_empty(server)


def test_ciphers(pair: Pair, authority: Authority) -> None:
    context = trusting(authority, maximum_version=ssl.TLSVersion.TLSv1_2)
    name = "ECDHE-ECDSA-CHACHA20-POLY1305"
    with running(echo, **pair.options, ssl_ciphers=name) as server, connect(server, context) as client:
        assert client.sock.cipher()[0] == name  # type: ignore[attr-defined]


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_session_is_resumed(pair: Pair, authority: Authority, version: ssl.TLSVersion) -> None:
    context = trusting(authority, minimum_version=version, maximum_version=version)
    with running(echo, **pair.options) as server:
        with connect(server, context) as client:
            client.get()
            session = client.sock.session  # type: ignore[attr-defined]
        with connect(server, context, session=session) as client:
            client.get()
            assert client.sock.session_reused  # type: ignore[attr-defined]


# ---- bodies


@ECHOES
@pytest.mark.parametrize("size", [0, 1, 16384, 16385, 65536, 5 * MIB])
def test_bodies_both_ways(pair: Pair, trust: ssl.SSLContext, app: Any, options: dict[str, Any], size: int) -> None:
    body = os.urandom(size)
    head = b"POST / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % size
    with running(app, **options, **pair.options) as server, ByteClient(server, trust) as client:
        client.handshake()
        answer, rest = read_answer(client.talk(head + body), closed=True)
        assert answer.body == body and not rest
    with running(app, **options, **pair.options) as server, connect(server, trust) as other:
        assert [other.post(body[:MIB]).body for _ in range(2)] == [body[:MIB]] * 2


def test_many_requests_in_one_record(pair: Pair, trust: ssl.SSLContext) -> None:
    with running(echo, **pair.options) as server, connect(server, trust) as client:
        client.send(GET * 50)
        assert [client.response().status for _ in range(50)] == [200] * 50


@ECHOES
def test_handshake_and_request_byte_by_byte(
    pair: Pair, trust: ssl.SSLContext, app: Any, options: dict[str, Any]
) -> None:
    with running(app, **options, **pair.options) as server, ByteClient(server, trust) as client:
        client.handshake(1)
        client.write(b"POST / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: 5\r\n\r\nhello")
        client.flush(1)
        assert client.read_to_end().endswith(b"hello")


def test_the_request_comes_with_the_end_of_the_handshake(pair: Pair, trust: ssl.SSLContext) -> None:
    with running(echo, **pair.options) as server, ByteClient(server, trust) as client:
        client.sock.sendall(client.hello())
        while not client.try_handshake():
            client.read_raw()
        client.write(CLOSE)
        client.say_end()
        client.flush()
        assert client.read_to_end().startswith(b"HTTP/1.1 200")


def test_the_end_of_the_handshake_is_answered_at_once(pair: Pair, authority: Authority) -> None:
    """A client with Nagle's algorithm on waits for a segment of ours before it sends its request."""
    with running(echo, **pair.options) as server, ByteClient(server, trusting(authority)) as client:
        client.handshake()
        assert client.read_raw()  # the tickets of TLS 1.3


@pytest.mark.parametrize("stream", [False, True])
def test_a_slow_reader_holds_back_the_application(pair: Pair, trust: ssl.SSLContext, stream: bool) -> None:
    block, count = os.urandom(MIB), 12
    made = 0

    def app(environ: Any, start_response: Any) -> Iterator[bytes]:
        nonlocal made
        start_response("200 OK", [] if stream else [("Content-Length", str(count * MIB))])
        for _ in range(count):
            made += 1
            yield block

    with running(app, **pair.options) as server, connect(server, trust, SO_RCVBUF=8192) as client:
        client.send(CLOSE)
        (connection,) = wait_for(lambda: [each for each in connections(server) if each.exchange and each.queued_bytes])
        assert connection.queued_bytes <= 2 * MIB and made < count
        assert client.response().body == block * count
        assert client.is_closed()


def wsgi_file(path: str) -> Any:
    def app(environ: dict[str, Any], start_response: Any) -> Any:
        start_response("200 OK", [])
        return environ["wsgi.file_wrapper"](open(path, "rb"))

    return app


def asgi_file(path: str) -> Any:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        size = str(os.path.getsize(path)).encode()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", size)]})
        await send({"type": "http.response.pathsend", "path": path})

    return app


@pytest.mark.parametrize("sendfile", [True, False])
@pytest.mark.parametrize("size", [100, 3 * MIB + 7])
@pytest.mark.parametrize(("make", "options"), [(wsgi_file, {}), (asgi_file, ASGI)])
def test_files(
    pair: Pair, trust: ssl.SSLContext, tmp_path: Path, make: Any, options: dict[str, Any], size: int, sendfile: bool
) -> None:
    path = tmp_path / "file"
    path.write_bytes(os.urandom(size))
    with (
        running(make(str(path)), sendfile=sendfile, **options, **pair.options) as server,
        connect(server, trust, SO_RCVBUF=8192) as client,
    ):
        for _ in range(2):
            assert client.get().body == path.read_bytes()


def test_a_file_that_becomes_shorter_cuts_the_answer(
    pair: Pair, trust: ssl.SSLContext, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(24 * MIB))
    with running(wsgi_file(str(path)), **pair.options) as server, connect(server, trust, SO_RCVBUF=4096) as client:
        client.send(GET).read_until(b"\r\n\r\n")
        wait_for(lambda: [each for each in connections(server) if each.queued_bytes])
        os.truncate(path, 0)
        with pytest.raises((ssl.SSLError, ConnectionResetError)):
            read_all(client.sock)
        wait_line(caplog, "a file has become shorter")
        wait_empty(server)


# ---- ends


@ECHOES
def test_close_notify_ends_the_connection(pair: Pair, trust: ssl.SSLContext, app: Any, options: dict[str, Any]) -> None:
    with running(app, **options, **pair.options) as server:
        with connect(server, trust) as client:
            assert client.send(CLOSE).response().status == 200
            assert client.is_closed()
        with connect(server, trust) as client:  # only the end tells where this answer ends
            client.send(b"GET / HTTP/1.0\r\n\r\n")
            assert client.read_to_end().startswith(b"HTTP/1.1 200")
        wait_empty(server)


def test_idle_connections_are_closed_with_close_notify(pair: Pair, trust: ssl.SSLContext) -> None:
    with running(echo, timeout_keep_alive="50ms", **pair.options) as server, connect(server, trust) as client:
        client.get()
        assert client.is_closed()


def test_a_stop_closes_with_close_notify(pair: Pair, trust: ssl.SSLContext) -> None:
    with running(echo, **pair.options) as server, connect(server, trust) as client:
        client.get()
        server.server.stop()
        assert client.is_closed()


def test_an_answer_that_is_cut_has_no_close_notify(pair: Pair, trust: ssl.SSLContext) -> None:
    """Of an answer that only the end of the connection ends."""

    def app(environ: Any, start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", [])
        yield b"half"
        raise ValueError

    with running(app, **pair.options) as server, connect(server, trust) as client:
        client.send(b"GET / HTTP/1.0\r\n\r\n")
        with pytest.raises((ssl.SSLEOFError, ConnectionResetError)):
            read_all(client.sock)


def test_half_close_still_gets_its_answer(pair: Pair, trust: ssl.SSLContext) -> None:
    with running(echo, **pair.options) as server:
        for tcp_too in (False, True):
            with ByteClient(server, trust) as client:
                client.handshake()
                client.write(b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n\r\nhello")
                client.say_end()
                client.flush()
                if tcp_too:
                    client.sock.shutdown(socket.SHUT_WR)
                assert client.read_to_end().endswith(b"hello")
        wait_empty(server)


def test_close_notify_alone_ends_an_idle_connection(pair: Pair, trust: ssl.SSLContext) -> None:
    with running(echo, **pair.options) as server, ByteClient(server, trust) as client:
        client.handshake()
        client.say_end()
        client.flush()
        assert client.read_to_end() == b""
        wait_empty(server)


def test_an_end_in_the_middle_of_a_body_is_none(pair: Pair, trust: ssl.SSLContext) -> None:
    app = Scopes()
    with running(app, **ASGI, **pair.options) as server, ByteClient(server, trust) as client:
        client.handshake()
        client.write(b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 50\r\n\r\nhello")
        client.flush()
        client.sock.shutdown(socket.SHUT_WR)
        with contextlib.suppress(ssl.SSLEOFError):
            client.read_to_end()
        wait_empty(server)


# ---- clients that do not do as they should


def nothing(client: ByteClient) -> None:
    pass


def half_hello(client: ByteClient) -> None:
    client.sock.sendall(client.hello()[:40])


def whole_hello(client: ByteClient) -> None:
    client.sock.sendall(client.hello())


def handshake_only(client: ByteClient) -> None:
    client.handshake()


def half_record(client: ByteClient) -> None:
    client.handshake()
    client.write(GET)
    client.sock.sendall(client.outgoing.read()[:-5])


def half_request(client: ByteClient) -> None:
    client.handshake()
    client.write(GET[:20])
    client.flush()


def request(client: ByteClient) -> None:
    client.handshake()
    client.write(GET)
    client.flush()


def rubbish(client: ByteClient) -> None:
    client.handshake()
    client.sock.sendall(b"\x17\x03\x03\x00\x20" + bytes(32))


STATES = [nothing, half_hello, whole_hello, handshake_only, half_record, half_request, request, rubbish]


@pytest.mark.parametrize("leave", [reset, socket.socket.close])
@pytest.mark.parametrize("state", STATES)
@ECHOES
def test_a_client_vanishes(
    pair: Pair, trust: ssl.SSLContext, app: Any, options: dict[str, Any], state: Any, leave: Any,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    with running(app, **options, **pair.options) as server:
        with ByteClient(server, trust) as client:
            state(client)
            leave(client.sock)
        wait_empty(server)
        with connect(server, trust) as other:
            assert other.get().status == 200
    assert not [record for record in caplog.records if record.levelno > logging.WARNING]


@pytest.mark.parametrize("state", [nothing, half_hello, whole_hello])
def test_a_handshake_that_stops_is_ended(
    pair: Pair, trust: ssl.SSLContext, state: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with running(echo, timeout_handshake="50ms", **pair.options) as server, ByteClient(server, trust) as client:
        state(client)
        read_all(client.sock)
        wait_empty(server)
    lines = [line for line in caplog.messages if "--timeout-handshake" in line]
    assert len(lines) == (state is not nothing)


def test_a_handshake_that_stands_holds_up_nobody(pair: Pair, trust: ssl.SSLContext) -> None:
    with running(echo, **pair.options) as server, ByteClient(server, trust) as stopped:
        half_hello(stopped)
        with connect(server, trust) as client:
            assert client.get().status == 200
        stopped.flush()


def test_a_stop_does_not_wait_for_handshakes(pair: Pair, trust: ssl.SSLContext) -> None:
    with (
        running(echo, **pair.options) as server,
        ByteClient(server, trust) as client,
        ByteClient(server, trust) as other,
    ):
        half_hello(other)
        wait_for(lambda: len(connections(server)) == 2)
        server.stop()
        assert client.sock.recv(1) == b""


@pytest.mark.parametrize("data", [GET, b"POST /" + b"a" * 100_000, b"g"])
def test_plain_http_on_the_tls_port_is_told_so(pair: Pair, data: bytes, caplog: pytest.LogCaptureFixture) -> None:
    with running(echo, **pair.options) as server, server.connect() as client:
        client.send(data)
        answer = client.response()
        assert (answer.status, answer.fields["content-type"]) == (400, "text/plain; charset=utf-8")
        assert answer.body == b"400 Bad Request: plain HTTP on a port that speaks TLS: use https://\n"
        assert client.is_closed()
        assert caplog.text.count("plain HTTP on a port that speaks TLS") == 1


def test_what_is_no_http_either_gets_no_answer(pair: Pair) -> None:
    with running(echo, **pair.options) as server, server.connect() as client:
        assert client.send(b"\0\1\2").is_closed()


def test_tls_on_a_plain_port_is_closed(trust: ssl.SSLContext) -> None:
    with running(echo) as server, pytest.raises((ssl.SSLError, ConnectionResetError)):
        connect(server, trust)


def test_a_client_that_does_not_trust_us_costs_one_line(pair: Pair, caplog: pytest.LogCaptureFixture) -> None:
    with running(echo, **pair.options) as server:
        with pytest.raises(ssl.SSLCertVerificationError):
            connect(server, ssl.create_default_context())
        assert "TLS handshake: tlsv1 alert unknown ca" in wait_line(caplog, "TLS handshake")
        wait_empty(server)
    assert [record.levelname for record in caplog.records if "TLS" in record.getMessage()] == ["WARNING"]


# ---- client certificates


@pytest.fixture(scope="module")
def client_pair(authority: Authority) -> Pair:
    return authority.issue(subject="/C=DE/O=Ünî, Ltd/CN=client one")


def mutual(pair: Pair, authority: Authority, need: str) -> dict[str, Any]:
    return {**pair.options, "ssl_ca_certs": str(authority.certificate), "ssl_cert_reqs": need}


NAME = "CN=client one,O=Ünî\\, Ltd,C=DE"


@pytest.mark.parametrize("need", ["optional", "required"])
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_client_certificate_reaches_the_application(
    pair: Pair, client_pair: Pair, authority: Authority, need: str, version: ssl.TLSVersion
) -> None:
    context = trusting(authority, client_pair, maximum_version=version)
    pem = ssl.DER_cert_to_PEM_cert(ssl.PEM_cert_to_DER_cert(client_pair.certificate.read_text()))
    with running(show, **mutual(pair, authority, need)) as server, connect(server, context) as client:
        environ = shown(client)
        assert environ["SSL_CLIENT_VERIFY"] == "'SUCCESS'" and environ["SSL_CLIENT_CERT"] == repr(pem)
        assert environ["SSL_CLIENT_S_DN"] == repr(NAME.encode().decode("latin-1"))
        assert environ["SSL_CLIENT_I_DN"] == "'CN=test CA'"
    app = Scopes()
    with running(app, **ASGI, **mutual(pair, authority, need)) as server, connect(server, context) as client:
        client.get()
        facts = app.seen[0]["extensions"]["tls"]
        assert (facts["client_cert_chain"][0], facts["client_cert_name"]) == (pem, NAME)
        issuer = ssl.DER_cert_to_PEM_cert(ssl.PEM_cert_to_DER_cert(authority.certificate.read_text()))
        assert set(facts["client_cert_chain"][1:]) <= {issuer}  # which OpenSSL sends along; seen from Python 3.13 on
        assert facts["client_cert_error"] is None


def test_an_optional_certificate_may_be_left_away(pair: Pair, authority: Authority, trust: ssl.SSLContext) -> None:
    with running(show, **mutual(pair, authority, "optional")) as server, connect(server, trust) as client:
        assert shown(client)["SSL_CLIENT_VERIFY"] == "'NONE'"


def test_a_certificate_is_not_asked_for_by_default(pair: Pair, client_pair: Pair, authority: Authority) -> None:
    context = trusting(authority, client_pair)
    with running(show, **mutual(pair, authority, "none")) as server, connect(server, context) as client:
        assert shown(client)["SSL_CLIENT_VERIFY"] == "'NONE'"


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize("fault", ["missing", "unknown", "expired"])
def test_a_client_without_a_good_certificate_sees_the_alert(
    pair: Pair, authority: Authority, tmp_path: Path, version: ssl.TLSVersion, fault: str,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    """In TLS 1.3 the client has sent its request by then: no reset may destroy the alert."""
    bad = {
        "missing": lambda: None,
        "unknown": lambda: Authority(tmp_path / "other").issue(subject="/CN=x"),
        "expired": lambda: authority.issue(subject="/CN=x", begins=-2, days=1),
    }[fault]()
    context = trusting(authority, bad, maximum_version=version)
    with running(echo, **mutual(pair, authority, "required")) as server:
        with pytest.raises(ssl.SSLError, match=r"(?i)alert"), connect(server, context) as client:
            client.get()
        line = wait_line(caplog, "TLS handshake")
        words = {
            "missing": "peer did not return a certificate",
            "unknown": "certificate verify failed: ",
            "expired": "certificate verify failed: certificate has expired",
        }
        assert words[fault] in line
        wait_empty(server)


def test_the_session_of_a_client_with_a_certificate_is_resumed(
    pair: Pair, client_pair: Pair, authority: Authority
) -> None:
    context = trusting(authority, client_pair)
    with running(show, **mutual(pair, authority, "required")) as server:
        with connect(server, context) as client:
            client.get()
            session = client.sock.session  # type: ignore[attr-defined]
        with connect(server, context, session=session) as client:
            assert shown(client)["SSL_CLIENT_VERIFY"] == "'SUCCESS'"
            assert client.sock.session_reused  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ((), ""),
        (((("commonName", "a"),),), "CN=a"),
        (((("countryName", "DE"),), (("commonName", "a"), ("userId", "b"))), "CN=a+UID=b,C=DE"),
        (((("emailAddress", "a@b"),),), "emailAddress=a@b"),
        (((("commonName", '#a"+,;<>\\'),),), 'CN=\\#a\\"\\+\\,\\;\\<\\>\\\\'),
        (((("commonName", " a "),),), "CN=\\ a\\ "),
        (((("commonName", " "),),), "CN=\\ "),
        (((("commonName", "a\0"),),), "CN=a\\00"),
    ],
)
def test_distinguished_names(name: Any, text: str) -> None:
    assert _name(name) == text


# ---- other people's clients


def run(*command: object, input: bytes = b"") -> bytes:
    done = subprocess.run(list(map(str, command)), input=input, capture_output=True, timeout=BOUND_SECONDS, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl")
def test_curl(pair: Pair, authority: Authority, tmp_path: Path) -> None:
    body = os.urandom(3 * MIB)
    (tmp_path / "body").write_bytes(body)
    with running(echo, **pair.options) as server:
        url = "https://localhost:%d/" % server.address[1]
        flags = ["-sS", "--fail", "--cacert", authority.certificate]
        assert run("curl", *flags, "--data-binary", f"@{tmp_path / 'body'}", url) == body
        assert run("curl", *flags, "--tls-max", "1.2", "-d", "a", url, "--next", *flags, "-d", "b", url) == b"ab"
        wait_empty(server)


@pytest.mark.parametrize("version", ["-tls1_2", "-tls1_3"])
def test_openssl_s_client(pair: Pair, authority: Authority, version: str) -> None:
    with running(echo, **pair.options) as server:
        command = [
            "s_client",
            "-connect",
            "localhost:%d" % server.address[1],
            "-CAfile",
            authority.certificate,
            version,
        ]
        out = run("openssl", *command, "-quiet", "-verify_return_error", input=CLOSE)
        assert b"HTTP/1.1 200 OK" in out
        out = run("openssl", *command, "-ign_eof", "-alpn", "http/1.1", "-servername", "localhost", input=CLOSE)
        assert b"Verify return code: 0 (ok)" in out and b"ALPN protocol: http/1.1" in out


def test_new_keys_on_the_way(pair: Pair, authority: Authority) -> None:
    """`K` has s_client send a KeyUpdate that asks for one (RFC 8446 4.6.3)."""
    with running(echo, **pair.options) as server:
        command = ["s_client", "-connect", "localhost:%d" % server.address[1], "-CAfile", authority.certificate]
        with subprocess.Popen(
            ["openssl", *command, "-tls1_3"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        ) as client:
            assert client.stdin is not None and client.stdout is not None
            for _ in range(5):  # s_client looks for its commands at the start of what it reads
                client.stdin.write(b"K\n")
                client.stdin.flush()
                while b"KEYUPDATE" not in client.stdout.readline():
                    assert client.poll() is None
            client.stdin.write(CLOSE)
            client.stdin.flush()
            out = client.stdout.read()
        assert b"HTTP/1.1 200 OK" in out
