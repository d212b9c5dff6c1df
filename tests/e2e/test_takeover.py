"""Sockets that pass from process to process: binary upgrade, daemon, socket activation; and too few descriptors."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.harness import Process, serving
from tests.e2e.workers import Load, lives, supervised, wait_ready
from tests.support import BOUND_SECONDS, Client, wait_for

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")


def read_pid(path: Path) -> int:
    with contextlib.suppress(OSError, ValueError):
        return int(path.read_text())
    return 0


@pytest.fixture(autouse=True)
def nobody_left(folder: Path) -> Iterator[None]:
    """Also after a failure: the harness knows the first process only."""
    yield
    for name in ("pid", "pid.2"):
        pid = read_pid(folder / name)
        if pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def upgrade(process: Process, folder: Path) -> int:
    """USR2; the process number of the new supervisor when its workers serve."""
    before = process.text.count(" is ready")
    process.signal(signal.SIGUSR2)
    wait_ready(process, before + 2)
    return read_pid(folder / "pid.2")


def stop_successor(process: Process, pid: int) -> None:
    os.kill(pid, signal.SIGTERM)
    for reader in process._readers:  # until the last process that has the outputs has gone
        reader.join(BOUND_SECONDS)
    wait_for(lambda: not lives(pid))


# ---- binary upgrade


def test_upgrade_loses_no_request(folder: Path) -> None:
    with supervised(folder, "--pid", "pid") as process, Load(process) as load:
        old = process.popen.pid
        (folder / "app.py").write_text((folder / "app.py").read_text().replace("VERSION = 1", "VERSION = 2"))
        new = upgrade(process, folder)
        assert new not in (0, old) and read_pid(folder / "pid") == old
        load.wait_answers(20)
        process.signal(signal.SIGTERM)
        assert process.popen.wait(BOUND_SECONDS) == 0
        wait_for(lambda: read_pid(folder / "pid") == new)
        assert not (folder / "pid.2").exists()
        load.wait_answers(20)
        assert process.get().body.split()[3] == b"2"
        load.stop()
        assert load.failures == []
        stop_successor(process, new)
        assert not (folder / "pid").exists()
        assert f"The supervisor [{old}] has gone: this one takes its place" in process.text


def test_upgrade_that_is_undone_loses_no_request(folder: Path) -> None:
    with supervised(folder, "--pid", "pid") as process, Load(process) as load:
        for _ in range(2):  # and again
            new = upgrade(process, folder)
            load.wait_answers(20)
            os.kill(new, signal.SIGQUIT)
            process.wait_line(rf"The new supervisor \[{new}\] has ended: it ended by itself; this one goes on serving")
            load.wait_answers(20)
        load.stop()
        assert load.failures == []
        assert read_pid(folder / "pid") == process.popen.pid and not (folder / "pid.2").exists()
        assert process.get().status == 200
        process.signal(signal.SIGTERM)
        assert process.wait() == 0


def test_upgrade_whose_code_is_broken_leaves_the_old_one(folder: Path) -> None:
    with supervised(folder, "--pid", "pid") as process:
        (folder / "app.py").write_text("1 / 0\n")
        process.signal(signal.SIGUSR2)
        process.wait_line(
            r"The new supervisor \[\d+\] has ended: exit code 3, it could not start the application; this"
        )
        assert process.get().status == 200
        assert not (folder / "pid.2").exists()


def test_only_one_upgrade_at_a_time(folder: Path) -> None:
    with supervised(folder, "--pid", "pid") as process:
        new = upgrade(process, folder)
        process.signal(signal.SIGUSR2)
        process.wait_line(rf"No upgrade: the new supervisor \[{new}\] runs already")
        os.kill(new, signal.SIGUSR2)
        process.wait_line(rf"No upgrade: this is itself the new supervisor as long as \[{process.popen.pid}\] runs")
        process.signal(signal.SIGKILL)  # it is missed as little as one that stops
        wait_for(lambda: read_pid(folder / "pid") == new)
        assert process.get().status == 200
        stop_successor(process, new)


def test_upgrade_of_a_unix_socket_keeps_its_file(folder: Path) -> None:
    path = folder / "app.sock"

    def ask() -> int:
        with Client(socket.socket(socket.AF_UNIX)) as client:
            client.sock.connect(str(path))
            return client.get().status

    with supervised(folder, "--pid", "pid", "--uds", "app.sock") as process:
        new = upgrade(process, folder)
        os.kill(new, signal.SIGQUIT)
        process.wait_line(rf"The new supervisor \[{new}\] has ended")
        assert ask() == 200
        new = upgrade(process, folder)
        process.signal(signal.SIGTERM)
        assert process.popen.wait(BOUND_SECONDS) == 0
        wait_for(lambda: read_pid(folder / "pid") == new)
        assert ask() == 200
        stop_successor(process, new)
        assert not path.exists()


def test_upgrade_with_reuse_port_and_from_another_directory(folder: Path) -> None:
    """The directory is a link that a deployment moves to the new release."""
    (folder / "releases").mkdir()
    for name in ("1", "2"):
        (folder / "releases" / name).mkdir()
        text = (folder / "app.py").read_text().replace("VERSION = 1", f"VERSION = {name}")
        (folder / "releases" / name / "app.py").write_text(text)
    current = folder / "current"
    current.symlink_to("releases/1")
    os.environ["PWD"], old_pwd = str(current), os.environ["PWD"]
    try:
        with supervised(current, "--pid", "../../pid", "--reuse-port") as process:
            assert process.get().body.split()[3] == b"1"
            current.unlink()
            current.symlink_to("releases/2")
            new = upgrade(process, folder)
            process.signal(signal.SIGTERM)
            assert process.popen.wait(BOUND_SECONDS) == 0
            assert process.get().body.split()[3] == b"2"
            wait_for(lambda: read_pid(folder / "pid") == new)
            stop_successor(process, new)
    finally:
        os.environ["PWD"] = old_pwd


def test_systemd_is_told_of_the_new_main_process(folder: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(folder / "notify"))
        sock.settimeout(BOUND_SECONDS)
        os.environ["NOTIFY_SOCKET"] = str(folder / "notify")
        try:
            with supervised(folder, "--pid", "pid") as process:
                assert sock.recv(1000).startswith(b"READY=1")
                new = upgrade(process, folder)
                assert sock.recv(1000).startswith(b"READY=1")
                process.signal(signal.SIGTERM)
                assert sock.recv(1000) == b"MAINPID=%d" % new
                assert sock.recv(1000) == b"MAINPID=%d\nREADY=1" % new
                stop_successor(process, new)
                assert sock.recv(1000) == b"STOPPING=1"
        finally:
            del os.environ["NOTIFY_SOCKET"]


# ---- daemon


@contextlib.contextmanager
def daemon(folder: Path, *options: str) -> Iterator[tuple[Process, int]]:
    """The command, which has ended, and the daemon's process number."""
    with serving(folder, "app:answer", "-w", "2", "-D", "--pid", "pid", *options) as process:
        assert process.wait() == 0, process.text  # and the daemon has let go of its outputs
        pid = read_pid(folder / "pid")
        try:
            yield process, pid
        finally:
            os.kill(pid, signal.SIGTERM)
            wait_for(lambda: not lives(pid))


def test_daemon_tells_of_its_start_and_goes_on_without_a_terminal(folder: Path) -> None:
    with daemon(folder) as (process, pid):
        assert len(re.findall(r"Worker \[\d+\] is ready", process.text)) == 2
        assert "--daemon: once the workers serve nobody sees the log" in process.text
        assert process.get().status == 200
        assert os.getsid(pid) != os.getsid(0) and os.getsid(pid) != pid


def test_daemon_that_cannot_start_says_why(folder: Path) -> None:
    for app, code, text in (("app:missing", 4, "has no attribute 'missing'"), ("broken:app", 3, "ZeroDivisionError")):
        (folder / "broken.py").write_text("1 / 0\n")
        with serving(folder, app, "-w", "1", "-D") as process:
            assert process.wait() == code
            assert text in process.text
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port = str(sock.getsockname()[1])
        with serving(folder, "app:answer", "-D", "--port", port, port=False) as process:
            assert process.wait() == 1
            assert "is already in use" in process.text


def test_winch_stops_the_workers_of_a_daemon(folder: Path) -> None:
    log = folder / "error.log"
    with daemon(folder, "--error-logfile", "error.log") as (process, pid):
        assert process.text == ""
        match = re.search(r"http://127\.0\.0\.1:(\d+)", log.read_text())
        assert match is not None
        os.kill(pid, signal.SIGWINCH)
        wait_for(lambda: log.read_text().count("has stopped") == 2)
        with socket.create_connection(("127.0.0.1", int(match[1])), BOUND_SECONDS) as sock:
            os.kill(pid, signal.SIGHUP)
            assert Client(sock).get().status == 200  # it has waited in the listener's queue
        assert log.read_text().count("is ready") in (3, 4)


# ---- socket activation


def test_systemd_sockets_are_served_by_workers(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as two:
        activator = (
            f"exec 8<&{one.fileno()} 9<&{two.fileno()}; "
            'LISTEN_PID=$$ LISTEN_FDS=2 LISTEN_FDNAMES=web:admin exec "$0" "$@" 3<&8 4<&9 8<&- 9<&-'
        )
        options = {"prefix": ("bash", "-c", activator), "pass_fds": (one.fileno(), two.fileno())}
        with supervised(folder, **options) as process:
            for sock in (one, two):
                with socket.create_connection(sock.getsockname(), BOUND_SECONDS) as connection:
                    assert Client(connection).get().status == 200
                assert f"stdserve running on http://127.0.0.1:{sock.getsockname()[1]}" in process.text


# ---- descriptors run out


@pytest.mark.skipif(sys.platform == "win32", reason="no ulimit")
@pytest.mark.parametrize("workers", [1, 2])
def test_few_descriptors_are_enough(folder: Path, workers: int) -> None:
    """Silent clients take every descriptor; those that ask are served all the same, and later everybody is."""
    limited = {"prefix": ("bash", "-c", 'ulimit -n 64; exec "$0" "$@"')}
    with supervised(folder, workers=workers, **limited) as process, contextlib.ExitStack() as crowd:
        for _ in range(200):
            crowd.enter_context(process.connect())
        for _ in range(5):
            assert process.get().status == 200
        crowd.close()
        for _ in range(20):
            assert process.get().status == 200
        assert "died" not in process.text
