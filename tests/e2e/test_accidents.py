"""Applications that hang, fork, block signals; supervisors that die; logs that nobody reads or that have moved."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.harness import Process, serving
from tests.e2e.workers import lives, ready_pids, supervised, wait_ready
from tests.support import BOUND_SECONDS, Client, wait_for

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")

HANGING = """
import os, time
with open("importing", "a") as file:
    file.write(f"{os.getpid()}\\n")
while os.path.exists("hang"):
    time.sleep(0.01)
def app(environ, start_response):
    start_response("200 OK", [])
    return [b"served"]
"""

FORKING = """
import os, signal, subprocess
def app(environ, start_response):
    path = environ["PATH_INFO"]
    if path == "/fork":
        pid = os.fork()
        if not pid:
            while True:
                signal.pause()
        os.kill(pid, signal.SIGTERM)
        body = repr(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    elif path == "/program":
        body = subprocess.run(["grep", "SigIgn", "/proc/self/status"], capture_output=True, text=True).stdout
    else:
        body = str(os.getpid())
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body.encode()]
"""

STUBBORN = """
import asyncio
async def app(scope, receive, send):
    if scope["type"] != "http":
        raise NotImplementedError
    while True:
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            print("refused", flush=True)
"""


def importing(folder: Path, count: int = 1) -> list[int]:
    """The processes that import the application, when there are so many."""
    path = folder / "importing"
    wait_for(lambda: path.exists() and path.read_text().count("\n") >= count)
    return list(map(int, path.read_text().split()))


@pytest.fixture
def hanging(folder: Path) -> Path:
    (folder / "hanging.py").write_text(HANGING)
    (folder / "hang").touch()
    return folder


# ---- an application that hangs while it is imported


@pytest.mark.parametrize("options", [("-w", "1"), ("--reload",)])
def test_hanging_import_does_not_outlive_its_supervisor(hanging: Path, options: tuple[str, ...]) -> None:
    with serving(hanging, "hanging:app", *options) as process:
        (pid,) = importing(hanging)
        process.popen.kill()
        wait_for(lambda: not lives(pid))


@pytest.mark.parametrize("options", [("-w", "1"), ("--reload",)])
def test_hanging_import_is_ended_by_term(hanging: Path, options: tuple[str, ...]) -> None:
    with serving(hanging, "hanging:app", *options) as process:
        importing(hanging)
        process.signal(signal.SIGTERM)
        process.wait_line("Shutting down")
        (hanging / "hang").unlink()  # what waits for the import's end sees it: nobody had to be killed
        assert process.wait() == 0
        assert "killed" not in process.text


def test_hanging_preload_is_ended_by_term(hanging: Path) -> None:
    options = ("-w", "1", "--preload", "--pid", "pid", "--uds", "app.sock")
    with serving(hanging, "hanging:app", *options, port=False) as process:
        importing(hanging)
        process.signal(signal.SIGHUP)  # means nothing yet
        process.signal(signal.SIGTERM)
        assert process.wait() == 130
        assert not (hanging / "pid").exists() and not (hanging / "app.sock").exists()


def test_reload_after_one_that_hangs(hanging: Path) -> None:
    (hanging / "hang").unlink()
    with supervised(hanging, app="hanging:app", workers=1) as process:
        (hanging / "hang").touch()
        process.signal(signal.SIGHUP)
        stuck = importing(hanging, 2)[1]
        (hanging / "hang").rename(hanging / "no hang")
        (hanging / "hanging.py").write_text(HANGING.replace("served", "new").replace('"hang"', '"none"'))
        process.signal(signal.SIGHUP)
        wait_ready(process, 2)
        wait_for(lambda: process.get().body == b"new")
        wait_for(lambda: not lives(stuck))


# ---- forks and signals of the application


def test_children_of_the_application_have_no_handlers_of_ours(folder: Path) -> None:
    (folder / "forking.py").write_text(FORKING)
    with supervised(folder, app="forking:app", workers=1) as process:
        assert process.get("/fork").body == b"%d" % -signal.SIGTERM
        ignored = int(process.get("/program").body.split()[1], 16)
        for number in (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGTTIN, signal.SIGWINCH, signal.SIGTERM):
            assert not ignored & 1 << number - 1
        assert process.get().status == 200
    with serving(folder, "forking:app") as process:
        assert process.get("/fork").body == b"%d" % -signal.SIGTERM


def test_application_that_blocks_the_signals_is_stopped_all_the_same(folder: Path) -> None:
    text = "import signal\nsignal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT])\n"
    (folder / "blocking.py").write_text(text + FORKING)
    with supervised(folder, app="blocking:app") as process:
        process.signal(signal.SIGTERM)
        assert process.wait() == 0
        assert "killed" not in process.text


def test_task_that_refuses_to_be_cancelled_does_not_hold_the_stop(folder: Path) -> None:
    (folder / "stubborn.py").write_text(STUBBORN)
    with (
        serving(folder, "stubborn:app", "--timeout-graceful-shutdown", "0.2s") as process,
        process.connect() as client,
    ):
        client.send(b"GET / HTTP/1.1\r\nHost: test\r\n\r\n")
        process.signal(signal.SIGTERM)
        process.wait_line("the event loop does not end: the application blocks it")
        assert process.wait() == 0
        assert "refused" in process.out


def test_workers_do_not_return_into_the_program_that_runs_the_server(folder: Path) -> None:
    (folder / "program.py").write_text(
        "import os, stdserve\n"
        "try:\n"
        "    stdserve.run('app:answer', workers=2, port=0)\n"
        "finally:\n"
        "    print('finally', os.getpid(), flush=True)\n"
    )
    process = Process(cwd=folder, module="program")
    try:
        wait_ready(process, 2)
        os.kill(ready_pids(process)[0], signal.SIGTERM)
        wait_ready(process, 3)
        process.signal(signal.SIGTERM)
        assert process.wait() == 0
        assert process.out == [f"finally {process.popen.pid}"]
    finally:
        process.close()


# ---- requests


def test_requests_that_wait_for_a_thread_are_no_hung_threads(folder: Path) -> None:
    options = ("--threads", "2", "--timeout-request", "0.5s")
    with supervised(folder, *options, workers=1) as process:
        statuses: list[int] = []
        threads = [
            threading.Thread(target=lambda: statuses.append(process.get("/sleep/0.3").status)) for _ in range(14)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(BOUND_SECONDS)
        assert 504 in statuses and 200 in statuses
        assert "it waits for a thread (--threads)" in process.text
        assert "is replaced" not in process.text


# ---- logs


def test_stacks_go_to_the_log_and_to_no_client(folder: Path) -> None:
    log = folder / "error.log"
    options = ("--error-logfile", "error.log", "--timeout", "0.5")
    with serving(folder, "app:asgi", "-w", "1", *options) as process:
        wait_for(lambda: log.exists() and "is ready" in log.read_text())
        match = re.search(r"http://127\.0\.0\.1:(\d+)", log.read_text())
        assert match is not None
        log.rename(folder / "error.log.1")
        process.signal(signal.SIGUSR1)
        wait_for(log.exists)

        def connect() -> Client:
            return Client(socket.create_connection(("127.0.0.1", int(match[1])), timeout=BOUND_SECONDS))

        clients = [connect() for _ in range(5)]
        assert clients[0].get().status == 200
        clients[1].send(b"GET /block HTTP/1.1\r\nHost: test\r\n\r\n")
        wait_for(lambda: "stood here" in log.read_text())
        assert re.search(r'File ".*app\.py", line \d+ in asgi', log.read_text())
        for client in clients:
            with client:
                assert client.sock.recv(1000) == b""
        process.signal(signal.SIGTERM)
        assert process.wait() == 0


def test_standard_error_that_nobody_reads_does_not_stop_the_supervision(folder: Path) -> None:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with socket.create_server(("127.0.0.1", 0)) as sock:
        options = ("-w", "1", "--fd", str(sock.fileno()), "--no-access-log")
        command = [sys.executable, "-m", "stdserve", *options, "app:answer"]
        popen = subprocess.Popen(command, cwd=folder, env=environ, stderr=writer, pass_fds=(sock.fileno(),))

        def ask() -> int:
            with Client(socket.create_connection(sock.getsockname(), timeout=BOUND_SECONDS)) as client:
                return int(client.get().body.split()[0])

        try:
            first = ask()
            with contextlib.suppress(BlockingIOError):
                while True:
                    os.write(writer, b"x" * 4096)
            os.set_blocking(writer, True)  # the server shares this flag
            popen.send_signal(signal.SIGTTIN)
            os.kill(first, signal.SIGKILL)
            wait_for(lambda: ask() != first)
            popen.send_signal(signal.SIGTERM)
            assert popen.wait(BOUND_SECONDS) == 0
        finally:
            popen.kill()
            popen.wait()
            os.close(reader)
            os.close(writer)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can become somebody else")
def test_log_files_belong_to_the_user_of_the_workers(folder: Path) -> None:
    for path in (folder, *folder.parents):
        if str(path).startswith("/tmp/") and not path.stat().st_mode & 0o001:
            path.chmod(path.stat().st_mode | 0o055)
    text = "def answer(environ, start_response):\n    start_response('200 OK', [])\n    return [b'1']\n"
    (folder / "small.py").write_text(text)
    files = ("--access-logfile", "access.log", "--error-logfile", "error.log")
    user = ("--preload", "--user", "65534", "--group", "65534")
    with serving(folder, "small:answer", "-w", "1", *files, *user) as process:
        log = folder / "error.log"
        wait_for(lambda: log.exists() and "is ready" in log.read_text())
        match = re.search(r"http://127\.0\.0\.1:(\d+)", log.read_text())
        assert match is not None
        assert {(folder / name).stat().st_uid for name in ("access.log", "error.log")} == {65534}
        for name in ("access.log", "error.log"):
            (folder / name).rename(folder / f"{name}.1")
        process.signal(signal.SIGUSR1)

        def logged() -> Any:
            with Client(socket.create_connection(("127.0.0.1", int(match[1])), timeout=BOUND_SECONDS)) as client:
                assert client.get().status == 200
            path = folder / "access.log"
            return path.exists() and "GET / " in path.read_text()

        wait_for(logged)
        assert log.stat().st_uid == 65534
        process.signal(signal.SIGTERM)
        assert process.wait() == 0


# ---- systemd, without workers


def test_systemd_is_told_by_one_process_too(folder: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(folder / "notify"))
        sock.settimeout(BOUND_SECONDS)
        os.environ.update({"NOTIFY_SOCKET": str(folder / "notify"), "WATCHDOG_USEC": "200000"})
        try:
            with serving(folder, "app:answer") as process:
                words = [sock.recv(1000)]
                while len(words) < 4:
                    words.append(sock.recv(1000))
                assert words.count(b"READY=1") == 1 and words.count(b"WATCHDOG=1") == 3
                process.signal(signal.SIGTERM)
                while sock.recv(1000) != b"STOPPING=1":
                    pass
                assert process.wait() == 0
        finally:
            del os.environ["NOTIFY_SOCKET"], os.environ["WATCHDOG_USEC"]
