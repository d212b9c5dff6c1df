"""WebSockets over TLS: what goes both ways, who holds back whom, and how they end."""

from __future__ import annotations

import shutil
import ssl
from collections.abc import Callable
from typing import Any

import pytest

from stdserve.exchange import HIGH_WATER_BYTES
from stdserve.transport import connections as connections_module
from tests import tls
from tests.certificates import Authority, Pair
from tests.frames import BINARY, PING, TEXT, frame
from tests.sockets import Puppet, Socket, echo, only, reset, serve, socket_over, wait_empty
from tests.support import BOUND_SECONDS, Running, wait_for

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl command to make certificates with")

Connect = Callable[..., Socket]


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
    return tls.trusting(authority)


@pytest.fixture
def connect(trust: ssl.SSLContext) -> Connect:
    def connect(server: Running, behind: bytes = b"", **fields: str | None) -> Socket:
        return socket_over(tls.connect(server, trust), behind, **fields)

    return connect


def test_scope_says_so(pair: Pair, connect: Connect) -> None:
    puppet = Puppet()
    with serve(puppet, **pair.options) as server, connect(server) as client:
        assert puppet.ready.wait(BOUND_SECONDS)
        assert puppet.scope["scheme"] == "wss"
        assert puppet.scope["extensions"]["tls"]["tls_version"] == 0x0304
        client.close()
        puppet.end()


@pytest.mark.parametrize("size", [0, 5, 125, 126, 16_384, 65_536, 3_000_000])
def test_echo(pair: Pair, connect: Connect, size: int) -> None:
    data = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
    with serve(echo, **pair.options) as server, connect(server) as client:
        for _ in range(3):
            assert client.binary(data).read(BINARY) == data
        assert client.text("é").read(TEXT) == "é".encode()
        assert client.close().read_close() == (1000, "")
        assert client.is_closed()
        client.sock.close()
        wait_empty(server)


def test_frames_in_the_record_of_the_handshake(pair: Pair, connect: Connect) -> None:
    with serve(echo, **pair.options) as server, connect(server, frame(TEXT, "one") + frame(TEXT, "two")) as client:
        assert client.read() == b"one" and client.read() == b"two"


def test_many_messages_in_one_record(pair: Pair, connect: Connect) -> None:
    with serve(echo, **pair.options) as server, connect(server) as client:
        client.send(b"".join(frame(TEXT, str(number)) for number in range(500)))
        assert [int(client.read()) for _ in range(500)] == list(range(500))


def test_messages_that_nobody_takes_stop_the_reading(pair: Pair, connect: Connect) -> None:
    """Also those that are decrypted already: nothing tells of them when the reading goes on."""
    puppet = Puppet()
    with serve(puppet, ws_max_queue=4, **pair.options) as server, connect(server) as client:
        client.send(b"".join(frame(TEXT, str(number)) for number in range(200)))
        wait_for(lambda: only(server)._paused)
        assert len(only(server).messages) <= 4
        for number in range(200):
            assert puppet.receive() == {"type": "websocket.receive", "text": str(number)}
        client.text("more")
        assert puppet.receive()["text"] == "more"
        puppet.end()


def test_client_that_reads_nothing_stops_the_application(pair: Pair, connect: Connect) -> None:
    puppet = Puppet()
    sent: list[int] = []

    async def flood(receive: Any, send: Any) -> None:
        while True:
            await send({"type": "websocket.send", "bytes": bytes(10_000)})
            sent.append(1)

    with serve(puppet, **pair.options) as server, connect(server) as client:
        answers = puppet.start(flood)
        wait_for(lambda: only(server).queued_bytes > HIGH_WATER_BYTES)
        for _ in range(wait_for(lambda: len(sent)) + 50):
            assert client.read(BINARY) == bytes(10_000)
        reset(client)
        assert isinstance(answers.get(timeout=BOUND_SECONDS), OSError)
        puppet.end()
        wait_empty(server)


def test_ping_and_a_broken_rule(pair: Pair, connect: Connect) -> None:
    with serve(echo, **pair.options) as server, connect(server) as client:
        client.ping(b"there?")
        assert client.read(0xA) == b"there?"
        client.send(frame(PING, b"x" * 126))
        assert client.read_close()[0] == 1002
        assert client.is_closed()
        client.sock.close()
        wait_empty(server)


def test_a_stop_closes_with_1012(pair: Pair, connect: Connect) -> None:
    with serve(echo, **pair.options) as server, connect(server) as client:
        assert client.text("a").read() == b"a"
        server.server.stop()
        assert client.read_close() == (1012, "")
        client.close(1012)
        assert client.is_closed()
    assert not server.server.cut


def test_client_that_vanishes(pair: Pair, connect: Connect) -> None:
    puppet = Puppet()
    with serve(puppet, **pair.options) as server:
        client = connect(server)
        client.text("a")
        assert puppet.receive()["text"] == "a"
        reset(client)
        assert puppet.receive()["code"] == 1006
        puppet.end()
        wait_empty(server)


def test_the_websockets_client_with_compression(pair: Pair, trust: ssl.SSLContext) -> None:
    client_module = pytest.importorskip("websockets.sync.client")
    with serve(echo, **pair.options) as server:
        uri = f"wss://localhost:{server.address[1]}/"
        with client_module.connect(uri, ssl=trust) as client:
            for text in ("a", "é" * 10_000, "x" * 1_000_000):
                client.send(text)
                assert client.recv() == text
