"""`python -m stdserve` as users start it: a process of its own, its output, signals, exit code."""

from __future__ import annotations

import re
import shutil
import signal
import socket
import sys
import zipfile
from pathlib import Path

import pytest

from tests.e2e.harness import PACKAGE, Process, serving
from tests.support import BOUND_SECONDS, Client

APP = '''
import asyncio, os, sys, threading, time

def app(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"hello"]

def broken(environ, start_response):
    raise ValueError("boom in the application")

def blocked(environ, start_response):
    print("entered", flush=True)
    time.sleep(3600)  # blocked here

def slow(environ, start_response):
    print("entered", flush=True)
    sys.stdin.readline()
    return app(environ, start_response)

def greedy(environ, start_response):
    """Takes all descriptors but one; a second request gives them back."""
    if taken:
        while taken:
            os.close(taken.pop())
    else:
        try:
            while True:
                taken.append(os.open(os.devnull, os.O_RDONLY))
        except OSError:
            pass
    return app(environ, start_response)

taken = []

async def asgi(scope, receive, send):
    if scope["type"] == "lifespan":
        await receive()
        print("startup", flush=True)
        await send({"type": "lifespan.startup.complete"})
        await receive()
        print("shutdown", flush=True)
        await send({"type": "lifespan.shutdown.complete"})
        return
    path = scope["path"]
    if path == "/block":
        print("entered", flush=True)
        time.sleep(3600)  # the loop is blocked here
    if path == "/thread":
        print("entered", flush=True)
        await asyncio.to_thread(time.sleep, 3600)
    if path == "/stream":
        await send({"type": "http.response.start", "status": 200, "headers": []})
        while True:
            await send({"type": "http.response.body", "body": b"tick", "more_body": True})
            await asyncio.sleep(0.01)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"hello"})

async def hanging(scope, receive, send):
    await receive()
    print("starting", flush=True)
    await asyncio.Event().wait()

async def blocking_start(scope, receive, send):
    await receive()
    print("starting", flush=True)
    time.sleep(3600)

async def failing(scope, receive, send):
    await receive()
    raise ValueError("no database")

async def handlers(scope, receive, send):
    import signal
    if scope["type"] == "lifespan":
        await receive()
        asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, print)
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await send({"type": "lifespan.shutdown.complete"})
    else:
        await asgi(scope, receive, send)

def threads(environ, start_response):
    threading.Thread(target=time.sleep, args=(3600,), daemon=False).start()
    return app(environ, start_response)

not_an_app = 42
'''


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "app.py").write_text(APP)
    return tmp_path


# ---- start


def test_start_and_stop(folder: Path) -> None:
    with serving(folder, "app:app") as process:
        assert process.get("/a?b=c").body == b"hello"
        process.signal(signal.SIGTERM)
        assert process.wait() == 0
        pid = process.popen.pid
        assert re.fullmatch(
            rf"""INFO:     Started server process \[{pid}\]
INFO:     stdserve running on http://127.0.0.1:\d+ \(Press CTRL\+C to quit\)
INFO:     Shutting down
INFO:     Finished server process \[{pid}\]""",
            process.text,
        ), process.text
        (line,) = process.out
        assert '"GET /a?b=c HTTP/1.1" 200' in line


def test_lifespan_in_order(folder: Path) -> None:
    with serving(folder, "app:asgi", "--no-access-log") as process:
        assert process.get().body == b"hello"
        process.signal(signal.SIGINT)
        assert process.wait() == 0
        assert process.out == ["startup", "shutdown"]


def test_failure_of_the_application_is_a_traceback_in_the_log(folder: Path) -> None:
    with serving(folder, "app:broken") as process:
        assert process.get().status == 500
        process.wait_line("ValueError: boom in the application")
        process.signal(signal.SIGINT)
        assert process.wait() == 0
        assert "Traceback (most recent call last):" in process.text
        assert 'raise ValueError("boom in the application")' in process.text


@pytest.mark.parametrize(
    ("argv", "code", "text"),
    [
        (["app:app", "--no-such-option"], 2, "unknown option --no-such-option"),
        (["app:app", "--port", "many"], 2, "many"),
        ([], 2, "no application given"),
        (["app:app", "--log-config", "/no/such/file.json"], 1, "/no/such/file.json"),
        (["app:app", "--host", "192.0.2.1", "--port", "0"], 1, "192.0.2.1"),
        (["no_such_module_here:app"], 3, "no_such_module_here"),
        (["app:failing", "--port", "0"], 3, "no database"),
        (["app:no_such_name"], 4, "no_such_name"),
        (["app:not_an_app"], 4, "not_an_app"),
    ],
)
def test_start_that_fails(folder: Path, argv: list[str], code: int, text: str) -> None:
    process = Process(*argv, cwd=folder)
    try:
        assert process.wait() == code
        assert text in process.text
        assert process.out == []
    finally:
        process.close()


def test_address_in_use(folder: Path) -> None:
    with serving(folder, "app:app") as first:
        port = first.wait_line(r"127\.0\.0\.1:(\d+)")[1]
        with serving(folder, "app:app", "--port", port) as second:
            assert second.wait() == 1
            last = second.err[-1]
            assert f"127.0.0.1:{port}" in last
            assert "Traceback" not in second.text
        assert first.get().status == 200


def test_application_that_sets_signal_handlers_is_told_of_main_loop(folder: Path) -> None:
    with serving(folder, "app:handlers") as process:
        assert process.wait() == 3
        assert "--main-loop" in process.text
    with serving(folder, "app:handlers", "--main-loop") as process:
        assert process.get().status == 200
        process.signal(signal.SIGTERM)
        assert process.wait() == 0


# ---- where it listens


def test_unix_socket(folder: Path) -> None:
    path = folder / "sock"
    with serving(folder, "app:app", "--uds", str(path), port=False) as process:
        process.wait_line(f"stdserve running on unix socket {re.escape(str(path))}")
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(BOUND_SECONDS)
            sock.connect(str(path))
            assert Client(sock).get().body == b"hello"
        process.signal(signal.SIGTERM)
        assert process.wait() == 0
    assert not path.exists()


def test_inherited_descriptor(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        number = listener.fileno()
        with serving(folder, "app:app", "--fd", str(number), port=False, pass_fds=(number,)) as process:
            assert process.get().body == b"hello"
            process.signal(signal.SIGTERM)
            assert process.wait() == 0


def test_systemd_socket_activation(folder: Path) -> None:
    # what systemd does between fork and exec
    start = (
        "import os, sys; os.dup2(int(sys.argv[1]), 3); os.environ.update(LISTEN_FDS='1', LISTEN_PID=str(os.getpid()));"
        "os.execv(sys.argv[2], sys.argv[2:])"
    )
    with socket.create_server(("127.0.0.1", 0)) as listener:
        number = listener.fileno()
        prefix = (sys.executable, "-c", start, str(number))
        with serving(folder, "app:app", port=False, prefix=prefix, pass_fds=(number,)) as process:
            with process.connect() as client:
                assert client.sock.getpeername() == listener.getsockname()
                assert client.get().body == b"hello"
            process.signal(signal.SIGTERM)
            assert process.wait() == 0


# ---- stop


def test_second_term_does_not_force(folder: Path) -> None:
    with serving(folder, "app:slow") as process, process.connect() as client:
        client.send(b"GET / HTTP/1.1\r\nHost: test\r\n\r\n")
        process.wait_line("entered")
        process.signal(signal.SIGTERM)
        process.wait_line("Shutting down")
        process.signal(signal.SIGTERM)
        assert process.popen.stdin is not None
        process.popen.stdin.write("go\n")
        process.popen.stdin.flush()
        assert client.response().status == 200
        assert process.wait() == 0


@pytest.mark.parametrize(
    ("app", "target"), [("app:blocked", "/"), ("app:asgi", "/stream"), ("app:asgi", "/thread")]
)
@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
def test_second_int_forces(folder: Path, app: str, target: str, first: int) -> None:
    with serving(folder, app) as process, process.connect() as client:
        client.send(b"GET %b HTTP/1.1\r\nHost: test\r\n\r\n" % target.encode())
        client.read_more() if target == "/stream" else process.wait_line("entered")
        process.signal(first)
        process.wait_line("Shutting down")
        process.signal(signal.SIGINT)
        assert process.wait() == 0
        assert "still running: GET " in process.text


def test_blocked_thread_does_not_prevent_the_stop(folder: Path) -> None:
    with serving(folder, "app:blocked", "--timeout-graceful-shutdown", "0.05") as process, process.connect() as client:
        client.send(b"GET /where HTTP/1.1\r\nHost: test\r\n\r\n")
        process.wait_line("entered")
        process.signal(signal.SIGTERM)
        assert process.wait() == 0
        assert "still running: GET /where from 127.0.0.1:" in process.text
        assert "time.sleep(3600)  # blocked here" in process.text


@pytest.mark.parametrize("options", [(), ("--main-loop",)])
def test_blocked_event_loop_does_not_prevent_the_stop(folder: Path, options: tuple[str, ...]) -> None:
    argv = ("--timeout-graceful-shutdown", "0.05", *options)
    with serving(folder, "app:asgi", *argv) as process, process.connect() as client:
        client.send(b"GET /block HTTP/1.1\r\nHost: test\r\n\r\n")
        process.wait_line("entered")
        process.signal(signal.SIGTERM)
        assert process.wait() == 0
        assert "still running: GET /block from 127.0.0.1:" in process.text
        assert "time.sleep(3600)  # the loop is blocked here" in process.text
        assert "the event loop does not end" in process.text


def test_blocked_thread_of_asyncio_does_not_prevent_the_stop(folder: Path) -> None:
    argv = ("--timeout-graceful-shutdown", "0.05", "--no-access-log")
    with serving(folder, "app:asgi", *argv) as process, process.connect() as client:
        client.send(b"GET /thread HTTP/1.1\r\nHost: test\r\n\r\n")
        process.wait_line("entered")
        process.signal(signal.SIGTERM)
        assert process.wait() == 0
        assert process.out == ["startup", "entered", "shutdown"]
        assert "asyncio.to_thread(time.sleep, 3600)" in process.text


def test_thread_that_the_application_leaves_does_not_prevent_the_end(folder: Path) -> None:
    with serving(folder, "app:threads", "--timeout-graceful-shutdown", "0.05") as process:
        assert process.get().status == 200
        process.signal(signal.SIGTERM)
        assert process.wait() == 0
        assert "threads of the application do not end" in process.text


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_hanging_startup_does_not_prevent_the_stop(folder: Path, number: int) -> None:
    with serving(folder, "app:hanging") as process:
        process.wait_line("starting")
        process.signal(number)
        assert process.wait() == 0


def test_blocking_startup_does_not_prevent_the_stop(folder: Path) -> None:
    with serving(folder, "app:blocking_start", "--timeout-graceful-shutdown", "0.05") as process:
        process.wait_line("starting")
        process.signal(signal.SIGTERM)
        assert process.wait() == 0
        assert "the event loop does not end" in process.text


# ---- descriptors


@pytest.mark.skipif(sys.platform == "win32", reason="needs ulimit")
def test_no_descriptor_left_pauses_accepting(folder: Path) -> None:
    prefix = ("sh", "-c", 'ulimit -n 64; exec "$@"', "sh")
    with serving(folder, "app:greedy", "--limit-connections", "1000", prefix=prefix) as process:
        with process.connect() as first:
            assert first.get().status == 200  # all descriptors are taken
            with process.connect() as second:
                process.wait_line("cannot accept: ")
                # the idle connection has made room: the server hears the second client, which gives all back
                assert second.get().status == 200
            assert first.is_closed()
        assert process.get().status == 200
        process.signal(signal.SIGTERM)
        assert process.wait() == 0
        assert process.text.count("cannot accept") <= 3


# ---- copies of the package


def copy_package(target: Path) -> None:
    shutil.copytree(PACKAGE, target, ignore=shutil.ignore_patterns("__pycache__"))


@pytest.mark.parametrize("app", ["app:app", "app:asgi"])
def test_vendored_copy(folder: Path, app: str) -> None:
    for package in (folder / "myproject", folder / "myproject" / "_vendor"):
        package.mkdir()
        (package / "__init__.py").touch()
    copy_package(folder / "myproject" / "_vendor" / "stdserve")
    with serving(folder, app, module="myproject._vendor.stdserve", path=folder) as process:
        assert process.get().body == b"hello"
        process.signal(signal.SIGTERM)
        assert process.wait() == 0


@pytest.mark.parametrize("app", ["app:app", "app:asgi"])
def test_zip(folder: Path, app: str) -> None:
    archive = folder / "stdserve.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for source in PACKAGE.rglob("*.py"):
            file.write(source, Path("stdserve") / source.relative_to(PACKAGE))
    with serving(folder, app, path=archive) as process:
        assert process.get().body == b"hello"
        process.signal(signal.SIGTERM)
        assert process.wait() == 0
