"""A server's life in this process: start, serve, stop in every state. Signals and the process's end are in e2e."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import threading
from pathlib import Path
from typing import Any

import pytest

from stdserve.config import Config
from stdserve.errors import AppLoadError, BindError, ConfigError, LifespanError
from stdserve.server import Server
from stdserve.transport import connections as connections_module
from tests.support import BOUND_SECONDS, QUIET, Running, running, wait_for

GET = b"GET / HTTP/1.1\r\nHost: test\r\n\r\n"
HALF_HEAD = GET[:20]
HALF_BODY = b"POST / HTTP/1.1\r\nHost: test\r\nContent-Length: 10\r\n\r\n12345"


@pytest.fixture(autouse=True)
def _fast_sweep(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections_module, "SWEEP_SECONDS", 0.01)


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO, "stdserve.error")
    return caplog


class WsgiApp:
    """Answers when the test lets it."""

    def __init__(self) -> None:
        self.entered = threading.Semaphore(0)
        self.go = threading.Event()

    def __call__(self, environ: dict[str, Any], start_response: Any) -> list[bytes]:
        body = environ["wsgi.input"].read()
        self.entered.release()
        assert self.go.wait(BOUND_SECONDS)
        start_response("200 OK", [])
        return [b"hello " + body]


class AsgiApp:
    """The same, with a lifespan; `events` is what it was told, in order."""

    def __init__(self) -> None:
        self.entered = threading.Semaphore(0)
        self.go = threading.Event()
        self.events: list[str] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await self.live(receive, send)
            return
        body, more = b"", True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body, more = body + message["body"], message["more_body"]
        self.entered.release()
        while not self.go.is_set():
            await asyncio.sleep(0.002)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"hello " + body})

    async def live(self, receive: Any, send: Any) -> None:
        await receive()
        self.events.append("startup")
        await send({"type": "lifespan.startup.complete"})
        await receive()
        self.events.append("shutdown")
        await send({"type": "lifespan.shutdown.complete"})


@pytest.fixture(params=[WsgiApp, AsgiApp])
def app(request: pytest.FixtureRequest) -> Any:
    return request.param()


def wait_entered(app: Any, count: int = 1) -> None:
    for _ in range(count):
        assert app.entered.acquire(timeout=BOUND_SECONDS)


def is_draining(server: Running) -> bool:
    connections = server.server._connections
    return connections is not None and connections.close_after_answer


# ---- start


def fails(app: Any, **options: Any) -> BaseException:
    """The error of a start, which leaves nothing open."""
    server = Server(Config(app=app, **{**QUIET, **options}))
    with pytest.raises(Exception) as caught:  # noqa: PT011
        server.run()
    assert not server.started.is_set()
    assert all(listener.sock.fileno() == -1 for listener in server.listeners)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("stdserve")]
    return caught.value


def test_missing_application() -> None:
    assert isinstance(fails("no_such_module_here:app"), AppLoadError)


def test_address_in_use(app: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        error = fails(app, port=port)
        assert isinstance(error, BindError)
        assert str(port) in str(error)


def test_address_in_use_leaves_no_open_log(app: Any, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        path = tmp_path / "access.log"
        fails(app, port=taken.getsockname()[1], access_log=True, access_log_file=str(path))
        if os.path.isdir("/proc/self/fd"):
            open_files = [os.path.realpath(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")]
            assert str(path) not in open_files


def test_unknown_loop() -> None:
    assert isinstance(fails(AsgiApp(), loop="no_such_module_here:new_loop"), ConfigError)


def test_failing_startup() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        raise ValueError("no database")

    error = fails(app)
    assert isinstance(error, LifespanError)
    assert "no database" in str(error)


def test_loop_that_the_application_stops_is_an_error() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "http"
        asyncio.get_running_loop().stop()

    with running(app) as server, server.connect() as client:
        client.send(GET)
        server.thread.join(BOUND_SECONDS)
        assert client.read_to_end().startswith(b"HTTP/1.1 500 ")
        (failure,) = server.failure
        assert isinstance(failure, RuntimeError)


def test_lines_of_a_life(log: pytest.LogCaptureFixture) -> None:
    with running(AsgiApp()) as server:
        url = server.url
    lines = [record.getMessage() for record in log.records]
    pid = os.getpid()
    assert lines == [
        f"Started server process [{pid}]",
        "Waiting for application startup.",
        "Application startup complete.",
        f"stdserve running on {url} (Press CTRL+C to quit)",
        "Shutting down",
        "Waiting for application shutdown.",
        "Application shutdown complete.",
        f"Finished server process [{pid}]",
    ]


@pytest.mark.parametrize("kind", [WsgiApp, AsgiApp])
def test_several_listeners(kind: Any, tmp_path: Path) -> None:
    app = kind()
    app.go.set()
    path = tmp_path / "sock"
    with running(app, bind=("127.0.0.1:0", f"unix:{path}")) as server:
        with server.connect() as client:
            assert client.get().status == 200
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(BOUND_SECONDS)
            sock.connect(str(path))
            sock.sendall(GET)
            assert sock.recv(100).startswith(b"HTTP/1.1 200 OK\r\n")
    assert not path.exists()


# ---- stop


@pytest.mark.parametrize("grace", [True, False])
def test_idle_server_stops(app: Any, grace: bool) -> None:
    with running(app) as server:
        server.server.stop(idle_grace=grace)


@pytest.mark.parametrize("grace", [True, False])
def test_idle_connections_are_closed(app: Any, grace: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stdserve.server.IDLE_GRACE_SECONDS", 0.02)
    app.go.set()
    with running(app) as server, server.connect() as client, server.connect() as silent:
        assert client.get().status == 200
        server.server.stop(idle_grace=grace)
        assert client.is_closed()
        assert silent.is_closed()


def test_request_on_an_idle_connection_after_term_is_answered(app: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stdserve.server.IDLE_GRACE_SECONDS", BOUND_SECONDS)
    app.go.set()
    with running(app) as server, server.connect() as client, server.connect() as silent:
        assert client.get().status == 200
        server.server.stop(idle_grace=True)
        wait_for(lambda: is_draining(server))
        for each in (client, silent):
            answer = each.get()
            assert (answer.status, answer.fields["connection"]) == (200, "close")
            assert each.is_closed()


def test_running_request_is_finished(app: Any) -> None:
    with running(app) as server, server.connect() as client:
        client.send(GET)
        wait_entered(app)
        server.server.stop()
        wait_for(lambda: is_draining(server))
        app.go.set()
        answer = client.response()
        assert (answer.status, answer.fields["connection"]) == (200, "close")
        assert client.is_closed()


def test_pipelined_requests_that_have_come_are_answered(app: Any) -> None:
    with running(app) as server, server.connect() as client:
        client.send(GET * 3)
        wait_entered(app)
        server.server.stop()
        wait_for(lambda: is_draining(server))
        app.go.set()
        answers = [client.response() for _ in range(3)]
        assert [answer.fields.get("connection") for answer in answers] == [None, None, "close"]
        assert client.is_closed()


def test_nobody_is_accepted_after_the_stop(app: Any) -> None:
    with running(app) as server, server.connect() as client:
        client.send(GET)
        wait_entered(app)
        server.server.stop()
        wait_for(lambda: is_draining(server))
        with pytest.raises(ConnectionRefusedError):
            server.connect()
        app.go.set()
        assert client.response().status == 200


@pytest.mark.parametrize("begun", [HALF_HEAD, HALF_BODY])
def test_request_that_has_begun_to_come_is_answered(app: Any, begun: bytes) -> None:
    app.go.set()
    with running(app) as server, server.connect() as client:
        client.send(begun)
        wait_for(lambda: any(each.engine.buffer or each.exchange for each in server.server._connections or ()))
        server.server.stop()
        wait_for(lambda: is_draining(server))
        client.send(GET[20:] if begun is HALF_HEAD else b"67890")
        answer = client.response()
        assert (answer.status, answer.fields["connection"]) == (200, "close")
        assert client.is_closed()


@pytest.mark.parametrize("begun", [HALF_HEAD, HALF_BODY])
def test_request_that_does_not_come_ends_with_its_own_time(app: Any, begun: bytes) -> None:
    limits = {"timeout_request_head": 0.05, "timeout_request_body": 0.05}
    with running(app, **limits) as server, server.connect() as client:
        client.send(begun)
        wait_for(lambda: any(each.engine.buffer or each.exchange for each in server.server._connections or ()))
        server.server.stop()
        assert client.response().status == 408
        client.sock.close()


def test_connections_that_the_kernel_has_accepted_are_served(app: Any) -> None:
    app.go.set()
    with running(app) as server:
        loop_waits, loop_goes = threading.Event(), threading.Event()

        def hold() -> None:
            loop_waits.set()
            loop_goes.wait(BOUND_SECONDS)

        server.server.call_in_loop(hold)
        assert loop_waits.wait(BOUND_SECONDS)
        with server.connect() as client:
            client.send(GET)
            server.server.stop()
            wait_for(lambda: server.server._loop._calls)
            loop_goes.set()
            answer = client.response()
            assert (answer.status, answer.fields["connection"]) == (200, "close")


def test_limit_of_the_stop_names_what_runs(log: pytest.LogCaptureFixture) -> None:
    app = WsgiApp()
    with running(app, timeout_graceful_shutdown=0.05) as server, server.connect() as client:
        client.send(GET)
        wait_entered(app)
        server.server.stop()
        assert client.is_closed()
        app.go.set()
    text = log.text
    assert "0.05 s have passed (--timeout-graceful-shutdown)" in text
    assert "still running: GET / from 127.0.0.1:%d" % client_port(text) in text
    assert "self.go.wait(BOUND_SECONDS)" in text


def client_port(text: str) -> int:
    return int(text.partition("from 127.0.0.1:")[2].split()[0])


def test_limit_of_the_stop_tells_asgi_applications(log: pytest.LogCaptureFixture) -> None:
    told: list[str] = []
    entered = threading.Event()

    class App(AsgiApp):
        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            if scope["type"] == "lifespan":
                await self.live(receive, send)
                return
            await receive()
            entered.set()
            told.append((await self.wait_deep(receive))["type"])

        async def wait_deep(self, receive: Any) -> Any:
            return await receive()  # deep in the application

    app = App()
    with running(app, timeout_graceful_shutdown=0.05) as server, server.connect() as client:
        client.send(GET)
        assert entered.wait(BOUND_SECONDS)
        server.server.stop()
        assert client.is_closed()
    assert told == ["http.disconnect"]
    assert app.events == ["startup", "shutdown"]
    assert "deep in the application" in log.text


def test_endless_stream_is_cut() -> None:
    ended: list[BaseException] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        try:
            while True:
                await send({"type": "http.response.body", "body": b"tick\n", "more_body": True})
                await asyncio.sleep(0.002)
        except BaseException as error:
            ended.append(error)
            raise

    with running(app, lifespan="off", timeout_graceful_shutdown=0.05) as server, server.connect() as client:
        client.send(GET).read_until(b"tick\n")
        server.server.stop()
        assert not client.read_to_end().endswith(b"0\r\n\r\n")
    assert isinstance(ended[0], OSError)


def test_task_that_does_not_listen_is_cancelled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stdserve.server.END_SECONDS", 0.2)
    app, cancelled = AsgiApp(), threading.Event()

    async def deaf(scope: Any, receive: Any, send: Any) -> None:
        try:
            await app(scope, receive, send)
        except asyncio.CancelledError:
            cancelled.set()
            raise

    with running(deaf, timeout_graceful_shutdown=0.05) as server, server.connect() as client:
        client.send(GET)
        wait_entered(app)
        server.server.stop()
        assert client.is_closed()
    assert cancelled.is_set()
    assert app.events == ["startup", "shutdown"]


def test_task_that_refuses_to_be_cancelled_is_left_behind(
    monkeypatch: pytest.MonkeyPatch, log: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("stdserve.server.END_SECONDS", 0.1)
    app = AsgiApp()

    async def deaf(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await app(scope, receive, send)
        app.entered.release()
        while not app.go.is_set():
            try:
                await asyncio.sleep(0.002)
            except asyncio.CancelledError:
                app.events.append("refused")

    with running(deaf, timeout_graceful_shutdown=0.05) as server, server.connect() as client:
        client.send(GET)
        wait_entered(app)
        server.server.stop()
        wait_for(lambda: "abandoned" in log.text)
        wait_for(lambda: "shutdown" in app.events)
        app.go.set()
    assert "refused" in app.events


def test_second_stop_does_not_wait(app: Any) -> None:
    with running(app) as server, server.connect() as client:
        client.send(GET)
        wait_entered(app)
        server.server.stop()
        wait_for(lambda: is_draining(server))
        server.server.stop()
        assert client.is_closed()
        app.go.set()
    if isinstance(app, AsgiApp):
        assert app.events == ["startup"]  # a forced stop leaves the shutdown out


def test_stop_waits_for_a_call_whose_client_has_gone(app: Any) -> None:
    with running(app) as server:
        client = server.connect()
        client.send(GET)
        wait_entered(app)
        client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        client.sock.close()
        wait_for(lambda: not server.server._connections)
        server.server.stop()
        wait_for(lambda: is_draining(server))
        assert not server.server._ended.wait(0.1)
        app.go.set()


def test_stop_waits_for_files_to_be_closed(tmp_path: Path) -> None:
    path = tmp_path / "large"
    path.write_bytes(bytes(100_000))
    go = threading.Event()
    closed = []

    def app(environ: dict[str, Any], start_response: Any) -> Any:
        file = path.open("rb")
        wrapper = environ["wsgi.file_wrapper"](file)

        def close() -> None:
            go.wait(BOUND_SECONDS)
            file.close()
            closed.append(file)

        wrapper.close = close
        start_response("200 OK", [("Content-Length", "100000")])
        return wrapper

    with running(app, threads=1) as server, server.connect() as one, server.connect() as two, server.connect() as three:
        clients = [client.send(GET) for client in (one, two, three)]
        assert clients[0].response().status == 200
        pool = server.server._pool
        assert pool is not None
        wait_for(lambda: pool.running_jobs())
        server.server.stop()
        wait_for(lambda: is_draining(server))
        assert not server.server._ended.wait(0.1)
        go.set()
        assert [client.response().status for client in clients[1:]] == [200, 200]
    assert len(closed) == 3


def test_stop_during_startup() -> None:
    entered, ended = threading.Event(), threading.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        entered.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    server = Server(Config(app=app, interface="asgi3", **QUIET))
    thread = threading.Thread(target=server.run)
    thread.start()
    assert entered.wait(BOUND_SECONDS)
    server.stop()
    thread.join(BOUND_SECONDS)
    assert not thread.is_alive()
    assert ended.is_set()
    assert not server.started.is_set()


@pytest.mark.parametrize("kind", [WsgiApp, AsgiApp])
def test_stop_before_the_start(kind: Any) -> None:
    server = Server(Config(app=kind(), **QUIET))
    server.stop()
    server.run()


def test_hanging_shutdown_is_bounded(log: pytest.LogCaptureFixture) -> None:
    class App(AsgiApp):
        async def live(self, receive: Any, send: Any) -> None:
            await receive()
            await send({"type": "lifespan.startup.complete"})
            await receive()
            await asyncio.Event().wait()

    with running(App(), timeout_lifespan_shutdown=0.05):
        pass
    assert "the application's shutdown has not ended within" in log.text


def test_second_stop_ends_a_hanging_shutdown() -> None:
    entered = threading.Event()

    class App(AsgiApp):
        async def live(self, receive: Any, send: Any) -> None:
            await receive()
            await send({"type": "lifespan.startup.complete"})
            await receive()
            entered.set()
            await asyncio.Event().wait()

    with running(App()) as server:
        server.server.stop()
        assert entered.wait(BOUND_SECONDS)
        server.server.stop()


def test_background_work_behind_an_answer_is_waited_for() -> None:
    go, done = threading.Event(), threading.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})
        while not go.is_set():
            await asyncio.sleep(0.002)
        done.set()

    with running(app, lifespan="off") as server, server.connect() as client:
        assert client.get().status == 200
        server.server.stop()
        assert client.is_closed()
        assert not server.server._ended.wait(0.05)
        go.set()
    assert done.is_set()


def test_thread_of_asyncio_does_not_hold_the_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stdserve.server.END_SECONDS", 0.1)
    go, entered = threading.Event(), threading.Event()

    def block() -> None:
        entered.set()
        go.wait(BOUND_SECONDS)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await asyncio.to_thread(block)

    with running(app, lifespan="off", timeout_graceful_shutdown=0.05) as server, server.connect() as client:
        client.send(GET)
        assert entered.wait(BOUND_SECONDS)
        server.server.stop()
        assert client.is_closed()
        server.thread.join(BOUND_SECONDS)
        assert not server.thread.is_alive()
        go.set()


def test_no_thread_is_left(app: Any) -> None:
    app.go.set()
    with running(app) as server, server.connect() as client:
        assert client.get().status == 200
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("stdserve")]


def test_what_blocks_the_event_loop_is_named(log: pytest.LogCaptureFixture) -> None:
    go = threading.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        go.wait(BOUND_SECONDS)  # blocked here
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body"})

    with running(app, lifespan="off", warn_blocked_loop=0.05) as server, server.connect() as client:
        client.send(GET)
        wait_for(lambda: "the event loop is blocked for" in log.text)
        go.set()
        assert client.response().status == 200
    assert "blocked here" in log.text and log.text.count("the event loop is blocked for") == 1


# ---- requests that take too long


def test_overdue_wsgi_request_is_504_and_its_thread_is_left_alone(log: pytest.LogCaptureFixture) -> None:
    go = threading.Event()
    wishes: list[str] = []

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        if environ["PATH_INFO"] == "/hang":
            go.wait(BOUND_SECONDS)  # hangs here
        start_response("200 OK", [("Content-Length", "5")])
        return [b"hello"]

    with running(app, timeout_request=0.05, threads=4) as server, server.connect() as client, server.connect() as other:
        server.server._on_wish = wishes.append
        response = client.get("/hang")
        assert (response.status, response.fields["connection"]) == (504, "close")
        assert b"has not begun its answer in time" in response.body
        assert client.is_closed()
        assert other.get("/").status == 200 and wishes == []
        assert other.get("/hang").status == 504
        wait_for(lambda: wishes == ["2 threads hang in requests (--timeout-request)"])
        go.set()
        pool = server.server._pool
        assert pool is not None
        wait_for(lambda: not pool.busy)
        with server.connect() as third:
            assert third.get("/").body == b"hello"
    assert "hangs here" in log.text and log.text.count("no answer after 0.05 s (--timeout-request)") == 2


def test_overdue_asgi_request_is_504_and_its_task_is_cancelled(log: pytest.LogCaptureFixture) -> None:
    cancelled = threading.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        try:
            await asyncio.sleep(3600)  # hangs here
        except asyncio.CancelledError:
            cancelled.set()
            raise

    with running(app, lifespan="off", timeout_request=0.05) as server, server.connect() as client:
        assert client.get().status == 504
        assert cancelled.wait(BOUND_SECONDS)
        wait_for(lambda: server.server._asgi is not None and not server.server._asgi.tasks())
    assert "hangs here" in log.text and "Exception in ASGI" not in log.text


@pytest.mark.parametrize("kind", ["wsgi", "asgi"])
def test_answer_that_has_begun_is_not_overdue(kind: str) -> None:
    async def asgi(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(20):
            await send({"type": "http.response.body", "body": b"x", "more_body": True})
            await asyncio.sleep(0.01)
        await send({"type": "http.response.body"})

    def wsgi(environ: dict[str, Any], start_response: Any) -> Any:
        start_response("200 OK", [])
        for _ in range(20):
            yield b"x"
            threading.Event().wait(0.01)

    app: Any = {"wsgi": wsgi, "asgi": asgi}[kind]
    with running(app, lifespan="off", timeout_request=0.05) as server, server.connect() as client:
        assert client.get().body == b"x" * 20
