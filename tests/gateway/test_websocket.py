"""gateway/websocket.py: ASGI WebSocket (spec 2.5) as an application sees it, and what of it reaches the wire."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import logging
import socket
from pathlib import Path
from typing import Any

import pytest

from stdserve.errors import ClientDisconnected
from tests.frames import BINARY, TEXT, Frame, Inflater, close, frame
from tests.sockets import (
    Puppet,
    accept,
    binary,
    connect,
    disconnect,
    echo,
    handshake,
    only,
    serve,
    text,
    wait_empty,
)
from tests.support import BOUND_SECONDS, Client, Response, wait_for

CONNECT = {"type": "websocket.connect"}


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.DEBUG, "stdserve")
    return caplog


def warnings(log: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in log.records if record.levelno >= logging.WARNING]


# ---- scope


def scope_of(request: bytes, **options: Any) -> dict[str, Any]:
    puppet = Puppet()
    with serve(puppet, **options) as server, server.connect() as client:
        client.send(request).read_until(b"\r\n\r\n")
        puppet.scope["__addresses"] = (client.sock.getsockname(), server.address)
    return puppet.scope


def test_scope_has_every_key_of_the_spec() -> None:
    scope = scope_of(handshake("/a%20b;c?d=%20&e", Sec_WebSocket_Protocol="chat, b"))
    client, server = scope.pop("__addresses")
    headers = scope.pop("headers")
    assert scope == {
        "type": "websocket",
        "asgi": {"version": "3.0", "spec_version": "2.5"},
        "http_version": "1.1",
        "scheme": "ws",
        "path": "/a b;c",
        "raw_path": b"/a%20b;c",
        "query_string": b"d=%20&e",
        "root_path": "",
        "client": client,
        "server": server,
        "subprotocols": ["chat", "b"],
        "state": {},
        "extensions": {"websocket.http.response": {}},
    }
    assert headers[0] == (b"host", b"test") and headers[-1] == (b"sec-websocket-protocol", b"chat, b")


def test_a_path_includes_the_root_path() -> None:
    scope = scope_of(handshake("/a%20b"), root_path="/mounted")
    assert (scope["root_path"], scope["path"], scope["raw_path"]) == ("/mounted", "/mounted/a b", b"/mounted/a%20b")


@pytest.mark.parametrize(("proto", "scheme"), [("https", "wss"), ("wss", "wss"), ("http", "ws"), ("ws", "ws")])
def test_a_trusted_proxy_names_client_scheme_and_prefix(proto: str, scheme: str) -> None:
    fields = {"X_Forwarded_For": "192.0.2.7", "X_Forwarded_Proto": proto, "X_Forwarded_Prefix": "/api"}
    scope = scope_of(handshake("/a", **fields), forwarded_fields=["for", "proto", "prefix"])
    assert (scope["client"][0], scope["scheme"], scope["path"]) == ("192.0.2.7", scheme, "/api/a")


def test_an_untrusted_client_names_nothing() -> None:
    fields = {"X_Forwarded_For": "192.0.2.7", "X_Forwarded_Proto": "https"}
    scope = scope_of(handshake(**fields), forwarded_allow_ips=("192.0.2.1",))
    assert (scope["client"][0], scope["scheme"]) == ("127.0.0.1", "ws")


@pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="no unix sockets")
def test_on_a_unix_socket_there_is_no_client_and_the_server_is_the_path(tmp_path: Path) -> None:
    puppet = Puppet()
    path = str(tmp_path / "s")
    with serve(puppet, uds=path), socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(BOUND_SECONDS)
        sock.connect(path)
        Client(sock).send(handshake()).read_until(b"\r\n\r\n")
        assert (puppet.scope["client"], puppet.scope["server"]) == (None, (path, None))


def test_each_session_has_a_copy_of_the_state_and_of_the_context_of_the_lifespan() -> None:
    seen: list[Any] = []
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await receive()
            scope["state"]["shared"] = seen
            variable.set("of the lifespan")
            await send({"type": "lifespan.startup.complete"})
            await receive()
            await send({"type": "lifespan.shutdown.complete"})
            return
        scope["state"]["shared"].append((variable.get(), "own" in scope["state"]))
        scope["state"]["own"] = True
        variable.set("of a session")
        await echo(scope, receive, send)

    with serve(app, lifespan="on") as server:
        for _ in range(2):
            with connect(server) as client:
                client.close().read_close()
    assert seen == [("of the lifespan", False)] * 2


def test_asgi2() -> None:
    class App:
        def __init__(self, scope: Any) -> None:
            self.scope = scope

        async def __call__(self, receive: Any, send: Any) -> None:
            assert self.scope["asgi"]["version"] == "2.0"
            await echo(self.scope, receive, send)

    with serve(App, interface="asgi2") as server, connect(server) as client:
        assert client.text("two").read() == b"two"


# ---- accept


def test_accept_with_subprotocol_and_headers() -> None:
    puppet = Puppet(accepts=False)
    with serve(puppet) as server, server.connect() as client:
        client.send(handshake(Sec_WebSocket_Protocol="a, b"))
        assert puppet.receive() == CONNECT
        headers = [(b"set-cookie", b"a=1"), [b"set-cookie", b"b=2"], (b"server", b"mine")]
        assert puppet.send("accept", subprotocol="b", headers=headers) is None
        head = client.read_until(b"\r\n\r\n").split(b"\r\n")
        assert b"Sec-WebSocket-Protocol: b" in head
        assert [line for line in head if line.startswith(b"set-cookie")] == [b"set-cookie: a=1", b"set-cookie: b=2"]
        assert [line for line in head if line.lower().startswith(b"server:")] == [b"server: mine"]


@pytest.mark.parametrize(
    "message",
    [
        {"subprotocol": "c"},
        {"subprotocol": "\u20ac"},
        {"headers": [(b"sec-websocket-protocol", b"b")]},
        {"headers": [(b"x", b"a\r\nb: c")]},
        {"headers": [b"x"]},
    ],
)
def test_accept_that_must_not_be_sent_raises_and_sends_nothing(message: dict[str, Any]) -> None:
    puppet = Puppet(accepts=False)
    with serve(puppet) as server, server.connect() as client:
        client.send(handshake(Sec_WebSocket_Protocol="a, b"))
        puppet.receive()
        assert isinstance(puppet.send("accept", **message), RuntimeError)
        assert puppet.send("accept") is None
        assert client.read_until(b"\r\n\r\n").startswith(b"HTTP/1.1 101 ")


# ---- refusals


def refused(puppet: Puppet, answer: Any, **options: Any) -> Response:
    """What the client gets if the application answers so."""
    with serve(puppet, **options) as server, server.connect() as client:
        client.send(handshake())
        assert puppet.receive() == CONNECT
        answer()
        response = client.response()
        assert client.is_closed()
        wait_empty(server)
    return response


def test_close_before_accept_is_403() -> None:
    puppet = Puppet(accepts=False)

    def answer() -> None:
        assert puppet.send("close", code=4000, reason="no") is None
        assert puppet.receive() == disconnect(1006)
        assert isinstance(puppet.send("send", text="late"), (OSError, RuntimeError))
        puppet.end()

    response = refused(puppet, answer)
    assert (response.status, response.fields["connection"]) == (403, "close")


def test_denial_response() -> None:
    puppet = Puppet(accepts=False)

    def answer() -> None:
        headers = [(b"content-type", b"text/x-sorry"), (b"www-authenticate", b"Basic")]
        assert puppet.send("http.response.start", status=401, headers=headers) is None
        assert isinstance(puppet.send("accept"), RuntimeError)
        assert isinstance(puppet.send("http.response.start", status=401), RuntimeError)
        assert puppet.send("http.response.body", body=b"so", more_body=True) is None
        assert isinstance(puppet.send("close"), RuntimeError)
        assert puppet.send("http.response.body", body=b"rry") is None
        assert isinstance(puppet.send("http.response.body", body=b"more"), (OSError, RuntimeError))
        assert puppet.receive() == disconnect(1006)
        puppet.end()

    response = refused(puppet, answer)
    assert (response.status, response.body) == (401, b"sorry")
    assert response.fields["content-type"] == "text/x-sorry" and response.fields["www-authenticate"] == "Basic"


def test_denial_response_in_one_piece_has_a_length() -> None:
    puppet = Puppet(accepts=False)

    def answer() -> None:
        puppet.send("http.response.start", status=503)
        puppet.send("http.response.body", body=b"later")
        puppet.end()

    response = refused(puppet, answer)
    assert (response.status, response.body, response.fields["content-length"]) == (503, b"later", "5")


def test_denial_response_waits_for_a_slow_client() -> None:
    puppet = Puppet(accepts=False)

    async def flood(receive: Any, send: Any) -> None:
        await send({"type": "websocket.http.response.start", "status": 200, "headers": []})
        for _ in range(200):
            await send({"type": "websocket.http.response.body", "body": bytes(100_000), "more_body": True})
        await send({"type": "websocket.http.response.body"})

    with serve(puppet) as server, server.connect() as client:
        client.send(handshake())
        puppet.receive()
        done = puppet.start(flood)
        wait_for(lambda: only(server).queued_bytes > 65536)
        assert only(server).queued_bytes < 300_000
        assert len(client.response().body) == 20_000_000
        assert done.get(timeout=BOUND_SECONDS) is None


def test_denial_response_with_status_101_is_refused() -> None:
    puppet = Puppet(accepts=False)

    def answer() -> None:
        assert isinstance(puppet.send("http.response.start", status=101), RuntimeError)
        puppet.send("close")
        puppet.end()

    assert refused(puppet, answer).status == 403


def test_application_that_raises_before_the_answer_is_500(log: pytest.LogCaptureFixture) -> None:
    puppet = Puppet(accepts=False)
    assert refused(puppet, lambda: puppet.fail(ZeroDivisionError("oh"))).status == 500
    (line,) = warnings(log)
    assert "Exception in ASGI application" in line and line.endswith("ZeroDivisionError: oh")


def test_application_that_returns_before_the_answer_is_500(log: pytest.LogCaptureFixture) -> None:
    puppet = Puppet(accepts=False)
    assert refused(puppet, puppet.end).status == 500
    (line,) = warnings(log)
    assert "returned without an answer" in line


def test_application_that_raises_within_a_denial_response_cuts_it(log: pytest.LogCaptureFixture) -> None:
    puppet = Puppet(accepts=False)
    with serve(puppet) as server, server.connect() as client:
        client.send(handshake())
        puppet.receive()
        puppet.send("http.response.start", status=200)
        puppet.send("http.response.body", body=b"half", more_body=True)
        puppet.fail(ZeroDivisionError())
        data = client.read_to_end()
    assert data.endswith(b"4\r\nhalf\r\n")


# ---- open


def test_receive_and_send_text_and_bytes() -> None:
    puppet = Puppet()
    with serve(puppet) as server, connect(server) as client:
        client.text("h\u00e4").binary(b"\xff").text("").binary(b"")
        assert [puppet.receive() for _ in range(4)] == [text("h\u00e4"), binary(b"\xff"), text(""), binary(b"")]
        puppet.send("send", text="\u20ac")
        puppet.send("send", bytes=b"1", text=None)
        puppet.send("send", bytes=None, text="")
        puppet.send("send", bytes=bytearray(b"2"))
        puppet.send("send", bytes=memoryview(b"3"))
        assert client.read() == "\u20ac".encode()
        assert client.read(BINARY) == b"1"
        assert client.read() == b""
        assert client.read(BINARY) + client.read(BINARY) == b"23"


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        ("accept", {}),
        ("connect", {}),
        ("http.response.start", {"status": 200}),
        ("nonsense", {}),
        ("send", {}),
        ("send", {"text": None, "bytes": None}),
        ("send", {"text": b"bytes"}),
        ("send", {"bytes": "text"}),
        ("send", {"text": "\ud800"}),
        ("close", {"code": 1006}),
        ("close", {"code": 999}),
        ("close", {"code": "1000"}),
    ],
)
def test_wrong_message_raises_and_the_websocket_goes_on(kind: str, more: dict[str, Any]) -> None:
    puppet = Puppet()
    with serve(puppet) as server, connect(server) as client:
        assert isinstance(puppet.send(kind, **more), RuntimeError)
        puppet.send("send", text="goes on")
        assert client.read() == b"goes on"


@pytest.mark.parametrize("kind", ["send", "http.response.body", "nonsense"])
def test_wrong_message_before_the_answer_raises(kind: str) -> None:
    puppet = Puppet(accepts=False)
    with serve(puppet) as server, server.connect() as client:
        client.send(handshake())
        assert isinstance(puppet.send(kind, text="x", body=b"x"), RuntimeError)
        assert puppet.send("accept") is None  # also without having received websocket.connect
        assert client.read_until(b"\r\n\r\n").startswith(b"HTTP/1.1 101 ")


def test_a_cancelled_receive_loses_no_message() -> None:
    puppet = Puppet()

    async def impatient(receive: Any, send: Any) -> list[Any]:
        found = []
        while len(found) < 200:
            try:
                found.append((await asyncio.wait_for(receive(), 0.0001))["text"])
            except TimeoutError:
                pass
        return found

    with serve(puppet) as server, connect(server) as client:
        answers = puppet.start(impatient)
        for number in range(200):
            client.text(str(number))
        assert answers.get(timeout=BOUND_SECONDS) == [str(number) for number in range(200)]
        assert len(puppet.scope) and not only(server).messages


def test_several_tasks_may_receive_and_send() -> None:
    puppet = Puppet()

    async def many(receive: Any, send: Any) -> list[str]:
        messages = await asyncio.gather(*(receive() for _ in range(20)))
        await asyncio.gather(*(send({**message, "type": "websocket.send"}) for message in messages))
        return sorted(message["text"] for message in messages)

    with serve(puppet) as server, connect(server) as client:
        answers = puppet.start(many)
        for number in range(20):
            client.text(f"{number:02}")
        assert answers.get(timeout=BOUND_SECONDS) == [f"{number:02}" for number in range(20)]
        assert sorted(client.read() for _ in range(20)) == [b"%02d" % number for number in range(20)]


@pytest.mark.parametrize("offered", [True, False])
@pytest.mark.parametrize("on", [True, False])
def test_compression_if_both_want_it(offered: bool, on: bool) -> None:
    fields = {"Sec_WebSocket_Extensions": "permessage-deflate; client_max_window_bits"} if offered else {}
    with serve(echo, ws_per_message_deflate=on) as server, connect(server, **fields) as client:
        agreed = client.answer.fields.get("sec-websocket-extensions")
        assert (agreed is not None) == (offered and on)
        client.text("a" * 1000)
        found = client.read_frame()
        if agreed is not None:
            assert found.first == 0xC1 and Inflater()(found.payload) == b"a" * 1000 and len(found.payload) < 50
        else:
            assert found == Frame(0x81, b"a" * 1000)


def test_messages_are_traced(log: pytest.LogCaptureFixture) -> None:
    log.set_level(5, "stdserve.asgi")
    with serve(echo, log_level="trace") as server, connect(server, "/traced") as client:
        client.text("secret").read()
    assert "websocket /traced receive {'type': 'websocket.receive', 'text': '<6 bytes>'}" in log.text
    assert "secret" not in log.text


# ---- the end


@pytest.mark.parametrize(
    ("message", "sent"),
    [
        ({}, (1000, "")),
        ({"code": None, "reason": None}, (1000, "")),
        ({"code": 4000, "reason": "bye"}, (4000, "bye")),
        ({"code": 1012}, (1012, "")),
    ],
)
def test_close_of_the_application(message: dict[str, Any], sent: tuple[int, str]) -> None:
    puppet = Puppet()
    with serve(puppet) as server, connect(server) as client:
        assert puppet.send("close", **message) is None
        assert client.read_close() == sent
        assert puppet.receive() == disconnect(*sent)
        assert isinstance(puppet.send("send", text="late"), ClientDisconnected)
        assert isinstance(puppet.send("close"), ClientDisconnected)
        client.close(sent[0])
        assert client.is_closed()
        puppet.end()


def test_application_that_raises_closes_with_1011(log: pytest.LogCaptureFixture) -> None:
    puppet = Puppet()
    with serve(puppet) as server, connect(server) as client:
        puppet.fail(ZeroDivisionError("oh"))
        assert client.read_close() == (1011, "")
        client.close(1011)
        assert client.is_closed()
    (line,) = warnings(log)
    assert "Exception in ASGI application" in line and line.endswith("ZeroDivisionError: oh")
    assert "gateway/websocket.py" not in line


def test_application_that_returns_closes_with_1000_and_a_warning(log: pytest.LogCaptureFixture) -> None:
    puppet = Puppet()
    with serve(puppet) as server, connect(server) as client:
        puppet.end()
        assert client.read_close() == (1000, "")
        client.close()
        assert client.is_closed()
    (line,) = warnings(log)
    assert "returned without closing the WebSocket" in line


def test_what_comes_of_a_client_that_has_gone_is_no_error(log: pytest.LogCaptureFixture) -> None:
    ended: list[str] = []

    class WebSocketDisconnect(Exception):
        """Starlette's, by its name."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await accept(receive, send)
        await receive()
        try:
            if scope["path"] == "/send":
                while True:
                    await send({"type": "websocket.send", "text": "x"})
                    await asyncio.sleep(0)
            raise WebSocketDisconnect
        finally:
            ended.append(scope["path"])

    with serve(app) as server:
        for path in ("/send", "/receive"):
            with connect(server, path) as client:
                client.send(close(1000)).read_until(b"\x88\x02\x03\xe8")
            wait_for(lambda path=path: path in ended)
        wait_empty(server)
    assert not warnings(log)


def test_an_application_that_breaks_after_the_client_has_gone_is_an_error(log: pytest.LogCaptureFixture) -> None:
    puppet = Puppet()
    with serve(puppet) as server, connect(server) as client:
        client.close().read_close()
        assert puppet.receive() == disconnect(1000)
        puppet.fail(KeyError("x"))
    assert len(warnings(log)) == 1


def test_close_code_of_a_cancelled_application_is_1012() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await accept(receive, send)
        await asyncio.Event().wait()

    with serve(app, timeout_graceful_shutdown=0) as server, connect(server) as client:
        server.server.stop()
        code = client.read_to_end()
        assert code in (b"", b"\x88\x02\x03\xf4")  # the connection may be cut before


def test_text_frame_reaches_the_application_while_it_sends() -> None:
    """Both directions at once."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await accept(receive, send)

        async def chatter() -> None:
            while True:
                await send({"type": "websocket.send", "bytes": bytes(1000)})
                await asyncio.sleep(0)

        task = asyncio.ensure_future(chatter())
        message = await receive()
        task.cancel()
        await send({**message, "type": "websocket.send"})
        await send({"type": "websocket.close"})

    with serve(app) as server, connect(server) as client:
        client.read(BINARY)
        client.send(frame(TEXT, "stop"))
        while (found := client.read_frame()).first != 0x81:
            pass
        assert found.payload == b"stop"
        assert client.read_close() == (1000, "")


# ---- other clients


def test_the_websockets_client() -> None:
    module = pytest.importorskip("websockets.sync.client")
    with serve(echo) as server, module.connect("ws://%s:%d/a" % server.address, max_size=None) as client:
        for message in ("text", "\u20ac" * 1000, b"\xff" * 100_000, "", b"", "x" * 2_000_000):
            client.send(message)
            assert client.recv() == message
        client.send(["in ", "three ", "fragments"])
        assert client.recv() == "in three fragments"
        assert client.ping().wait(BOUND_SECONDS)
        client.close(4000, "bye")
        assert (client.close_code, client.close_reason) == (4000, "")


def test_the_websockets_client_is_told_why(caplog: pytest.LogCaptureFixture) -> None:
    module = pytest.importorskip("websockets.sync.client")
    from websockets.exceptions import ConnectionClosed, InvalidStatus

    puppet = Puppet(accepts=False)
    with serve(puppet) as server:
        puppet.ready.clear()

        async def refuse(scope: Any, receive: Any, send: Any) -> None:
            await receive()
            await send({"type": "websocket.close"})

        async def shut(scope: Any, receive: Any, send: Any) -> None:
            await accept(receive, send, subprotocol="b")
            await send({"type": "websocket.close", "code": 4001, "reason": "no more"})

        server.server._asgi._gateway.app = refuse  # type: ignore[union-attr]
        with pytest.raises(InvalidStatus) as refusal:
            module.connect("ws://%s:%d/" % server.address)
        assert refusal.value.response.status_code == 403
        server.server._asgi._gateway.app = shut  # type: ignore[union-attr]
        with module.connect("ws://%s:%d/" % server.address, subprotocols=["a", "b"]) as client:
            assert client.subprotocol == "b"
            with pytest.raises(ConnectionClosed) as closed:
                client.recv()
            assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (4001, "no more")


def test_the_wsproto_client() -> None:
    wsproto = pytest.importorskip("wsproto")
    from wsproto.events import AcceptConnection, CloseConnection, Message, Ping, Pong, Request
    from wsproto.extensions import PerMessageDeflate

    with serve(echo) as server, server.connect() as raw:
        peer = wsproto.WSConnection(wsproto.ConnectionType.CLIENT)
        events = peer.events()

        def ask(event: Any) -> Any:
            """Send it and wait for the next event."""
            raw.send(peer.send(event))
            while True:
                for found in peer.events():
                    return found
                peer.receive_data(raw.sock.recv(65536) or None)

        answer = ask(Request(host="test", target="/", extensions=[PerMessageDeflate()]))
        assert isinstance(answer, AcceptConnection) and len(answer.extensions) == 1
        for data in ("short", "long " * 1000):
            pieces = [ask(Message(data=data))]
            while not pieces[-1].message_finished:
                peer.receive_data(raw.sock.recv(65536))
                pieces += list(peer.events())
            assert "".join(piece.data for piece in pieces) == data
        assert ask(Ping(payload=b"p")) == Pong(payload=b"p")
        assert ask(CloseConnection(code=1000, reason="bye")) == CloseConnection(code=1000, reason="")
        del events


def test_serving_asgi_over_a_nested_loop() -> None:
    with serve(echo, loop="asyncio:new_event_loop") as server, connect(server) as client:
        assert client.text("nested").read() == b"nested"


def test_application_that_raises_leaves_no_cycle_behind() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await accept(receive, send)
        await receive()
        raise ValueError("no cycle")

    with serve(app) as server:
        gc.collect()
        gc.disable()
        try:
            for _ in range(10):
                with connect(server) as client:
                    assert client.text("a").read_close()[0] == 1011
            wait_empty(server)
            assert not [each for each in gc.get_objects() if type(each).__name__ == "_Session"]
        finally:
            gc.enable()


def test_application_that_receives_for_ever_does_not_hold_the_loop() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/careless":
            await accept(receive, send)
            while True:
                await receive()
        await echo(scope, receive, send)

    with serve(app, timeout_graceful_shutdown=0.2) as server, connect(server, "/careless") as careless:
        careless.close().read_close()
        with connect(server) as client:
            assert client.text("a").read() == b"a"
