"""WebSockets of real frameworks behind the server. Each one not installed is skipped."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from tests.frames import BINARY
from tests.sockets import Socket, connect, connections, handshake, serve
from tests.support import wait_for

pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

# ---- the same small site in each framework
#
# /ws     accepts the subprotocol "chat"; a text comes back behind "got ", bytes come back;
#         "close" closes with 4001 "asked", "fail" raises; `gone` gets what the application is told of the end
# /deny   is refused with 403


class Gone(list[int]):
    """The close codes that applications were told."""


def starlette_site(gone: Gone) -> Any:
    pytest.importorskip("starlette")
    from starlette.applications import Starlette
    from starlette.routing import WebSocketRoute
    from starlette.websockets import WebSocketDisconnect

    async def talk(socket: Any) -> None:
        await socket.accept(subprotocol="chat")
        try:
            while True:
                message = await socket.receive()
                if message["type"] == "websocket.disconnect":
                    raise WebSocketDisconnect(message["code"])
                if message.get("bytes") is not None:
                    await socket.send_bytes(message["bytes"])
                elif message["text"] == "close":
                    await socket.close(4001, "asked")
                    return
                elif message["text"] == "fail":
                    raise ZeroDivisionError
                else:
                    await socket.send_text("got " + message["text"])
        except WebSocketDisconnect as error:
            gone.append(error.code)

    async def deny(socket: Any) -> None:
        await socket.close()

    return Starlette(routes=[WebSocketRoute("/ws", talk), WebSocketRoute("/deny", deny)])


def fastapi_site(gone: Gone) -> Any:
    fastapi = pytest.importorskip("fastapi")
    app = fastapi.FastAPI()

    async def talk(socket: Any) -> None:
        await socket.accept(subprotocol="chat")
        receiving = {"text": socket.receive_text, "bytes": socket.receive_bytes}
        try:
            while True:
                try:
                    text = await receiving["text"]()
                except KeyError:
                    raise AssertionError("bytes come by receive_bytes") from None
                if text == "bytes":
                    await socket.send_bytes(await receiving["bytes"]())
                elif text == "close":
                    await socket.close(4001, "asked")
                    return
                elif text == "fail":
                    raise ZeroDivisionError
                else:
                    await socket.send_text("got " + text)
        except fastapi.WebSocketDisconnect as error:
            gone.append(error.code)

    async def deny(socket: Any) -> None:
        raise fastapi.WebSocketException(code=1008)

    talk.__annotations__ = deny.__annotations__ = {"socket": fastapi.WebSocket}
    app.websocket("/ws")(talk)
    app.websocket("/deny")(deny)
    return app


def litestar_site(gone: Gone) -> Any:
    litestar = pytest.importorskip("litestar")
    from litestar.exceptions import PermissionDeniedException, WebSocketDisconnect

    async def talk(socket: Any) -> None:
        await socket.accept(subprotocols="chat")
        try:
            while True:
                text = await socket.receive_text()
                if text == "bytes":
                    await socket.send_bytes(await socket.receive_bytes())
                elif text == "close":
                    await socket.close(4001, "asked")
                    return
                elif text == "fail":
                    raise ZeroDivisionError
                else:
                    await socket.send_text("got " + text)
        except WebSocketDisconnect as error:
            gone.append(error.code)

    async def deny(socket: Any) -> None:
        raise PermissionDeniedException

    talk.__annotations__ = deny.__annotations__ = {"socket": litestar.WebSocket, "return": None}
    handlers = [litestar.websocket("/ws")(talk), litestar.websocket("/deny")(deny)]
    return litestar.Litestar(handlers, openapi_config=None)


def channels_site(gone: Gone) -> Any:
    pytest.importorskip("channels")
    from channels.generic.websocket import AsyncWebsocketConsumer
    from channels.routing import URLRouter
    from django.urls import path

    class Talk(AsyncWebsocketConsumer):
        async def connect(self) -> None:
            await self.accept("chat")

        async def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
            if bytes_data is not None:
                await self.send(bytes_data=bytes_data)
            elif text_data == "close":
                await self.close(4001, "asked")
            elif text_data == "fail":
                raise ZeroDivisionError
            else:
                await self.send(f"got {text_data}")

        async def disconnect(self, code: int) -> None:
            gone.append(code)

    class Deny(AsyncWebsocketConsumer):
        async def connect(self) -> None:
            await self.close()

    return URLRouter([path("ws", Talk.as_asgi()), path("deny", Deny.as_asgi())])


def configure_django() -> None:
    """Channels asks the settings for its layers."""
    try:
        from django.conf import settings
    except ImportError:
        return
    if not settings.configured:
        settings.configure(ALLOWED_HOSTS=["*"], SECRET_KEY="test", LOGGING_CONFIG=None, ROOT_URLCONF="")


SITES = [starlette_site, fastapi_site, litestar_site, channels_site]
Site = Callable[[Gone], Any]

# Those that tell text from bytes by the method that receives
BY_METHOD = (fastapi_site, litestar_site)


@pytest.fixture(params=SITES, ids=lambda site: site.__name__.removesuffix("_site"))
def site(request: pytest.FixtureRequest) -> Site:
    configure_django()
    return request.param


def open_chat(server: Any) -> Socket:
    client = connect(server, "/ws", Sec_WebSocket_Protocol="other, chat")
    assert client.answer.fields["sec-websocket-protocol"] == "chat"
    return client


def test_text_and_bytes(site: Site) -> None:
    with serve(site(Gone())) as server, open_chat(server) as client:
        assert client.text("hello").read() == b"got hello"
        assert client.text("\u20ac" * 100_000).read() == b"got " + "\u20ac".encode() * 100_000
        if site in BY_METHOD:
            client.text("bytes")
        assert client.binary(b"\xff" * 100_000).read(BINARY) == b"\xff" * 100_000


def test_close_of_the_client_is_told(site: Site) -> None:
    gone = Gone()
    with serve(site(gone)) as server, open_chat(server) as client:
        assert client.text("a").read() == b"got a"
        assert client.close(4321).read_close() == (4321, "")
        wait_for(lambda: gone == [4321])


def test_client_that_vanishes_is_told(site: Site) -> None:
    gone = Gone()
    with serve(site(gone)) as server:
        with open_chat(server) as client:
            assert client.text("a").read() == b"got a"
        wait_for(lambda: gone == [1006])


def test_close_of_the_application(site: Site) -> None:
    with serve(site(Gone())) as server, open_chat(server) as client:
        assert client.text("close").read_close() == (4001, "asked")
        client.close(4001)
        assert client.is_closed()


def test_application_that_raises(site: Site) -> None:
    with serve(site(Gone())) as server, open_chat(server) as client:
        code, _ = client.text("fail").read_close()
        # Litestar turns it into a close code of its own
        assert code == 1011 or (site is litestar_site and code == 4500)
        client.close(code)
        assert client.is_closed()


def test_refusal(site: Site) -> None:
    with serve(site(Gone())) as server, server.connect() as client:
        assert client.send(handshake("/deny")).response().status == 403


def test_unknown_path_is_refused(site: Site) -> None:
    with serve(site(Gone())) as server, server.connect() as client:
        assert client.send(handshake("/none")).response().status in (403, 404, 500)


def test_stop_is_told(site: Site) -> None:
    gone = Gone()
    with serve(site(gone)) as server, open_chat(server) as client:
        assert client.text("a").read() == b"got a"
        server.server.stop()
        assert client.read_close() == (1012, "")
        client.close(1012)
    assert gone == [1012]
    assert not server.server.cut


def test_starlette_denial_response() -> None:
    pytest.importorskip("starlette")
    from starlette.responses import PlainTextResponse
    from starlette.websockets import WebSocket

    async def app(scope: Any, receive: Any, send: Any) -> None:
        socket = WebSocket(scope, receive, send)
        await socket.send_denial_response(PlainTextResponse("log in first", 401))

    with serve(app) as server, server.connect() as client:
        answer = client.send(handshake()).response()
        assert (answer.status, answer.body) == (401, b"log in first")


# ---- Socket.IO


def test_socketio() -> None:
    """Engine.IO 4 and Socket.IO 5 on a WebSocket: open, connect to a namespace, event, acknowledgement, disconnect."""
    socketio = pytest.importorskip("socketio")
    server_side = socketio.AsyncServer(async_mode="asgi", cors_allowed_origins="*")
    left: list[str] = []

    async def echo(sid: str, data: Any) -> str:
        await server_side.emit("echoed", data, to=sid)
        return "taken"

    async def disconnect(sid: str, reason: str = "") -> None:
        left.append(sid)

    server_side.on("echo", echo)
    server_side.on("disconnect", disconnect)
    with serve(socketio.ASGIApp(server_side)) as server:
        with connect(server, "/socket.io/?EIO=4&transport=websocket") as client:
            assert client.read()[:1] == b"0"
            assert client.text("40").read()[:2] == b"40"
            client.text('421["echo",{"a":[1,2]}]')
            assert sorted([client.read(), client.read()]) == [b'42["echoed",{"a":[1,2]}]', b'431["taken"]']
        wait_for(lambda: left)
        wait_for(lambda: not len(connections(server)))


# ---- GraphQL


def test_graphql_transport_ws() -> None:
    """The subprotocol graphql-transport-ws: init, a query, a subscription, its end, a second one that is given up."""
    strawberry = pytest.importorskip("strawberry")
    from strawberry.asgi import GraphQL

    ended: list[bool] = []

    async def count(self: Any, to: int) -> AsyncIterator[int]:
        try:
            for number in range(to):
                yield number
                await asyncio.sleep(0)
        finally:
            ended.append(True)

    count.__annotations__ = {"to": int, "return": AsyncIterator[int]}
    query = strawberry.type(type("Query", (), {"hello": strawberry.field(lambda: "world", graphql_type=str)}))
    subscription = strawberry.type(type("Subscription", (), {"count": strawberry.subscription(count)}))
    app = GraphQL(strawberry.Schema(query, subscription=subscription))
    with serve(app) as server, connect(server, Sec_WebSocket_Protocol="graphql-transport-ws") as client:
        assert client.answer.fields["sec-websocket-protocol"] == "graphql-transport-ws"

        def say(**message: Any) -> None:
            client.text(json.dumps(message))

        def hear() -> Any:
            return json.loads(client.read())

        say(type="connection_init")
        assert hear()["type"] == "connection_ack"
        say(type="subscribe", id="1", payload={"query": "{ hello }"})
        assert hear()["payload"]["data"] == {"hello": "world"}
        assert hear() == {"type": "complete", "id": "1"}
        say(type="subscribe", id="2", payload={"query": "subscription { count(to: 3) }"})
        assert [hear()["payload"]["data"]["count"] for _ in range(3)] == [0, 1, 2]
        assert hear() == {"type": "complete", "id": "2"}
        say(type="subscribe", id="3", payload={"query": "subscription { count(to: 1000000000) }"})
        assert hear()["payload"]["data"] == {"count": 0}
        client.sock.close()
        wait_for(lambda: len(ended) == 2)
