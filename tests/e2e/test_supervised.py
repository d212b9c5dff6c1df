"""A supervisor and its workers, with real forks and signals, under load where requests could get lost."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import time
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.harness import Process, serving
from tests.e2e.workers import APP, Load, lives, ready_pids, supervised, wait_ready
from tests.support import BOUND_SECONDS, Client, wait_for

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")

# ---- start and stop


def test_start_lines_and_stop(folder: Path) -> None:
    with supervised(folder) as process:
        pids = ready_pids(process)
        assert int(process.get().body.split()[0]) in pids
        process.signal(signal.SIGTERM)
        assert process.wait() == 0
        assert process.err[0] == f"INFO:     Started supervisor process [{process.popen.pid}]"
        assert "running on http://127.0.0.1:" in process.err[1]
        assert process.err[-1] == f"INFO:     Finished supervisor process [{process.popen.pid}]"
        assert not any(map(lives, pids))


def test_one_worker_is_supervised_too(folder: Path) -> None:
    with supervised(folder, workers=1) as process:
        (pid,) = ready_pids(process)
        assert pid != process.popen.pid and int(process.get().body.split()[0]) == pid


def test_lifespan_shutdown_runs_in_each_worker(folder: Path) -> None:
    with supervised(folder, app="app:asgi") as process:
        process.signal(signal.SIGTERM)
        assert process.wait() == 0
        assert sorted(process.out) == sorted(f"shutdown {pid}" for pid in ready_pids(process))


@pytest.mark.parametrize(
    ("app", "code", "text"),
    [
        ("missing:app", 3, "there is no module"),
        ("app:missing", 4, "has no attribute"),
        ("app:failing", 3, "no database"),
    ],
)
def test_first_workers_that_cannot_boot_end_it(folder: Path, app: str, code: int, text: str) -> None:
    options = ("--lifespan", "on") if app == "app:failing" else ()
    with serving(folder, app, "-w", "2", *options) as process:
        assert process.wait() == code, process.text
        assert text in process.text and "A worker could not start: the supervisor ends" in process.text


def test_second_interrupt_forces(folder: Path) -> None:
    with supervised(folder) as process, process.connect() as client:
        client.send(b"GET /sleep/3600 HTTP/1.1\r\nHost: test\r\n\r\n")
        wait_for(lambda: process.get().status == 200)
        process.signal(signal.SIGINT)
        process.wait_line("Shutting down")
        process.signal(signal.SIGINT)
        assert process.wait() == 0
        assert client.is_closed()


def test_quit_does_not_wait(folder: Path) -> None:
    with supervised(folder) as process, process.connect() as client:
        client.send(b"GET /sleep/3600 HTTP/1.1\r\nHost: test\r\n\r\n")
        wait_for(lambda: process.get().status == 200)
        process.signal(signal.SIGQUIT)
        assert process.wait() == 0


def test_workers_of_a_killed_supervisor_leave_and_free_the_port(folder: Path) -> None:
    with supervised(folder) as process:
        port = int(process.wait_line(r"http://127\.0\.0\.1:(\d+)")[1])
        pids = ready_pids(process)
        process.popen.kill()
        process.wait()
        wait_for(lambda: not any(map(lives, pids)))
        with socket.socket() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(("127.0.0.1", port))
        assert "The supervisor has gone; this worker stops" in process.text


def test_signals_for_the_supervisor_mean_nothing_to_a_worker(folder: Path) -> None:
    with supervised(folder, workers=1) as process:
        (pid,) = ready_pids(process)
        for number in (signal.SIGHUP, signal.SIGTTIN, signal.SIGTTOU, signal.SIGUSR2, signal.SIGWINCH, signal.SIGUSR1):
            os.kill(pid, number)
        assert int(process.get().body.split()[0]) == pid
        assert process.get().status == 200 and lives(pid)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT])
def test_worker_that_is_told_to_stop_is_replaced(folder: Path, number: int) -> None:
    with supervised(folder, workers=1) as process:
        os.kill(ready_pids(process)[0], number)
        wait_ready(process, 2)
        assert process.get().status == 200


def test_interrupt_of_the_whole_process_group(folder: Path) -> None:
    with serving(folder, "app:answer", "-w", "2", start_new_session=True) as process:
        wait_ready(process, 2)
        os.killpg(process.popen.pid, signal.SIGINT)
        assert process.wait() == 0
        assert not any(map(lives, ready_pids(process))) and "Traceback" not in process.text


def test_stop_while_the_application_is_imported(folder: Path) -> None:
    (folder / "slow.py").write_text("import sys, time\nprint('importing', flush=True)\ntime.sleep(3600)")
    with serving(folder, "slow:app", "-w", "1") as process:
        process.wait_line("importing")
        process.signal(signal.SIGTERM)
        assert process.wait() == 0


# ---- no request is lost


def test_reload_under_load_loses_no_request(folder: Path) -> None:
    with supervised(folder) as process, Load(process) as load:
        for number in range(10):
            before = len(ready_pids(process))
            process.signal(signal.SIGHUP)
            wait_ready(process, before + 2)
            process.wait_line(f"Reloaded: generation {number + 2} serves")
            load.wait_answers(10)
    assert load.failures == []
    assert len(load.pids) >= 20


def test_reload_with_one_worker_loses_no_request(folder: Path) -> None:
    with supervised(folder, workers=1) as process, Load(process) as load:
        process.signal(signal.SIGHUP)
        process.wait_line("Reloaded: generation 2 serves")
        load.wait_answers(20)
        first, second = ready_pids(process)
        wait_for(lambda: not lives(first))
        assert {first, second} <= load.pids
    assert load.failures == []


def test_more_and_fewer_workers_lose_no_request(folder: Path) -> None:
    with supervised(folder) as process, Load(process) as load:
        process.signal(signal.SIGTTIN)
        wait_ready(process, 3)
        load.wait_answers(20)
        process.signal(signal.SIGTTOU)
        wait_for(lambda: sum(map(lives, ready_pids(process))) == 2)
        load.wait_answers(20)
        process.signal(signal.SIGTTOU)
        process.signal(signal.SIGTTOU)
        wait_for(lambda: sum(map(lives, ready_pids(process))) == 1)
        load.wait_answers(20)
    assert load.failures == []


def test_max_requests_under_load_loses_no_request(folder: Path) -> None:
    options = ("--max-requests", "50", "--max-requests-jitter", "10")
    with supervised(folder, *options) as process, Load(process, paths=("/",)) as load:
        wait_ready(process, 6)
        load.wait_answers(20)
    assert load.failures == []
    assert "(--max-requests)" in process.text


def test_stop_under_load_answers_what_runs(folder: Path) -> None:
    with supervised(folder) as process:
        clients = [process.connect() for _ in range(8)]
        for client in clients:
            client.send(b"GET /sleep/0.3 HTTP/1.1\r\nHost: test\r\n\r\n")
        assert process.get().status == 200  # later than those, so they have all arrived
        process.signal(signal.SIGTERM)
        answers = [client.response() for client in clients]
        assert [answer.status for answer in answers] == [200] * 8
        assert process.wait() == 0
        for client in clients:
            client.sock.close()


def test_killed_worker_is_replaced_and_loses_only_its_own(folder: Path) -> None:
    with supervised(folder) as process, Load(process, clients=4, paths=("/",)) as load:
        pid = ready_pids(process)[0]
        os.kill(pid, signal.SIGKILL)
        wait_ready(process, 3)
        load.wait_answers(50)
    assert f"Worker [{pid}] died: SIGKILL" in process.text
    assert len(load.failures) <= 4, load.failures  # one for each client


# ---- reload


def test_reload_reads_the_file_again(folder: Path) -> None:
    path = folder / "stdserve.toml"
    path.write_text('app = "app:answer"\nworkers = 1\nbind = ["127.0.0.1:0", "unix:a.sock"]\naccess_log = false\n')
    process = Process("--chdir", ".", cwd=folder)
    try:
        wait_ready(process, 1)
        text = path.read_text()
        path.write_text(text.replace("workers = 1", "workers = 2").replace("a.sock", "b.sock"))
        process.signal(signal.SIGHUP)
        wait_ready(process, 3)
        wait_for(lambda: (folder / "b.sock").exists() and not (folder / "a.sock").exists())
        assert process.get().status == 200
        with Client(socket.socket(socket.AF_UNIX)) as client:
            client.sock.connect(str(folder / "b.sock"))
            assert client.get().status == 200
        path.write_text("port = 'x'\n")
        process.signal(signal.SIGHUP)
        process.wait_line("The configuration cannot be used, the old one stays: stdserve.toml: port: 'x' is not")
        path.write_text(text.replace("unix:a.sock", "unix:/no/folder/a.sock"))
        process.signal(signal.SIGHUP)
        process.wait_line("The configuration cannot be used, the old one stays: unix socket /no/folder/a.sock: ")
        assert process.get().status == 200
        process.signal(signal.SIGTERM)
        assert process.wait() == 0
    finally:
        process.close()


def test_new_code_serves_after_a_reload(folder: Path) -> None:
    with supervised(folder) as process:
        assert process.get().body.endswith(b" 1")
        (folder / "app.py").write_text(APP.replace("VERSION = 1", "VERSION = 23"))
        process.signal(signal.SIGHUP)
        process.wait_line("Reloaded")
        wait_for(lambda: sum(map(lives, ready_pids(process))) == 2)
        assert process.get().body.endswith(b" 23")


def test_broken_code_at_a_reload_leaves_the_old_workers(folder: Path) -> None:
    with supervised(folder) as process:
        pids = ready_pids(process)
        (folder / "app.py").write_text("raise ValueError('a bug in the new code')")
        process.signal(signal.SIGHUP)
        process.wait_line("The new workers cannot start: the old ones go on serving")
        assert "a bug in the new code" in process.text
        assert int(process.get().body.split()[0]) in pids and all(map(lives, pids))
        (folder / "app.py").write_text(APP)
        process.signal(signal.SIGHUP)
        process.wait_line("Reloaded")
        wait_for(lambda: not any(map(lives, pids)))


# ---- deaths


@pytest.mark.parametrize(
    ("path", "reason"), [("/exit/7", "exit code 7"), ("/exit/0", "it ended by itself"), ("/crash/", "SIGSEGV")]
)
def test_worker_that_dies_is_explained_and_replaced(folder: Path, path: str, reason: str) -> None:
    with supervised(folder) as process:
        with process.connect() as client:
            assert client.send(f"GET {path} HTTP/1.1\r\nHost: test\r\n\r\n".encode()).read_to_end() == b""
        match = process.wait_line(rf"Worker \[(\d+)\] died: {reason}")
        process.wait_line(rf"Worker \[{match[1]}\] was running GET {path} from 127\.0\.0\.1")
        wait_ready(process, 3)
        assert process.get().status == 200


def test_application_that_forks_leaves_the_worker_whole(folder: Path) -> None:
    with supervised(folder) as process, process.connect() as client:
        assert [client.get("/fork/").status for _ in range(3)] == [200, 200, 200]


def test_blocked_loop_is_aborted_with_its_stacks_and_replaced(folder: Path) -> None:
    with supervised(folder, "--timeout", "0.4", app="app:asgi") as process, process.connect() as client:
        client.send(b"GET /block HTTP/1.1\r\nHost: test\r\n\r\n")
        match = process.wait_line(r"Worker \[(\d+)\] has not answered for .* s \(--timeout\)")
        process.wait_line(rf"Worker \[{match[1]}\] is running GET /block from")
        process.wait_line(rf"Worker \[{match[1]}\] died: its loop was blocked \(--timeout\)")
        process.wait_line(rf"Worker \[{match[1]}\] stood here:")
        wait_ready(process, 3)
        assert re.search(r'File ".*app\.py", line \d+ in asgi', process.text)
        assert process.get().status == 200


# ---- the process


def test_preload_imports_once(folder: Path) -> None:
    with supervised(folder, "--preload") as process:
        pid, imported_by, *_ = map(int, process.get().body.split())
        assert imported_by == process.popen.pid != pid


def test_pidfile_lives_as_long_as_the_supervisor(folder: Path) -> None:
    with supervised(folder, "--pid", "server.pid") as process:
        assert (folder / "server.pid").read_text() == f"{process.popen.pid}\n"
        with serving(folder, "app:answer", "-w", "1", "--pid", "server.pid") as other:
            assert other.wait() == 1
            assert f"process {process.popen.pid} in it is alive" in other.text
        process.signal(signal.SIGTERM)
        assert process.wait() == 0
        assert not (folder / "server.pid").exists()


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can become somebody else")
def test_workers_run_as_the_user(folder: Path) -> None:
    for path in (folder, *folder.parents):
        with contextlib.suppress(OSError):
            if path != path.parent and not path.stat().st_mode & 0o001 and str(path).startswith("/tmp"):
                path.chmod(path.stat().st_mode | 0o055)
    # The user may not be able to read Python's own library, where root has installed it for itself alone
    (folder / "small.py").write_text("import os\n" + APP[APP.index("def answer") : APP.index("async def asgi")])
    options = ("--preload", "--user", "65534", "--group", "65534", "--uds", "app.sock")
    with supervised(folder, *options, app="small:answer") as process:
        assert (folder / "app.sock").stat().st_uid == 65534
        with Client(socket.socket(socket.AF_UNIX)) as client:
            client.sock.connect(str(folder / "app.sock"))
            assert client.get().body.split()[2] == b"65534"
        process.signal(signal.SIGTERM)
        assert process.wait() == 0
        assert not (folder / "app.sock").exists()


def test_each_worker_has_a_port_of_its_own_with_reuse_port(folder: Path) -> None:
    with supervised(folder, "--reuse-port") as process:
        pids = set(ready_pids(process))
        seen: set[int] = set()

        def ask() -> bool:
            seen.add(int(process.get().body.split()[0]))
            return seen == pids

        wait_for(ask)


def test_usr1_reopens_the_log_files_of_all(folder: Path) -> None:
    files = ("--access-logfile", "access.log", "--error-logfile", "error.log")
    with serving(folder, "app:answer", "-w", "2", *files) as process:
        log = folder / "error.log"
        wait_for(lambda: log.exists() and log.read_text().count("is ready") == 2)
        match = re.search(r"http://127\.0\.0\.1:(\d+)", log.read_text())
        assert match is not None
        for name in ("error.log", "access.log"):
            (folder / name).rename(folder / f"{name}.1")
        process.signal(signal.SIGUSR1)
        wait_for(lambda: log.exists() and (folder / "access.log").exists())
        pids = set(map(int, re.findall(r"Worker \[(\d+)\]", (folder / "error.log.1").read_text())))

        def logged() -> Any:
            with Client(socket.create_connection(("127.0.0.1", int(match[1])), timeout=BOUND_SECONDS)) as client:
                assert client.get().status == 200
            return "GET / HTTP/1.1" in (folder / "access.log").read_text()

        wait_for(logged)
        process.signal(signal.SIGTERM)
        assert process.wait() == 0
        assert pids and "Finished supervisor process" in log.read_text()


def test_systemd_is_told(folder: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(folder / "notify"))
        sock.settimeout(BOUND_SECONDS)
        os.environ["NOTIFY_SOCKET"] = str(folder / "notify")
        try:
            with supervised(folder) as process:
                assert sock.recv(1000).startswith(b"READY=1")
                process.signal(signal.SIGHUP)
                assert sock.recv(1000).startswith(b"RELOADING=1\nMONOTONIC_USEC=")
                assert sock.recv(1000).startswith(b"READY=1")
                process.signal(signal.SIGTERM)
                assert sock.recv(1000) == b"STOPPING=1"
        finally:
            del os.environ["NOTIFY_SOCKET"]


def test_chdir_and_umask(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (folder / "app.py").rename(tmp_path / "sub" / "app.py")
    with supervised(folder, "--chdir", "sub", "--umask", "077", "--pid", "pid") as process:
        assert process.get().status == 200
        assert (tmp_path / "sub" / "pid").stat().st_mode & 0o777 == 0o600
    with serving(folder, "app:answer", "--chdir", "none") as process:
        assert process.wait() == 1
        assert process.text == "stdserve: error: --chdir: 'none': No such file or directory"


def test_options_without_workers_are_named(folder: Path) -> None:
    with serving(folder, "app:answer", "--max-requests", "5") as process:
        process.wait_line("--max-requests has no effect without --workers")


def test_workers_of_the_environment(folder: Path) -> None:
    os.environ["WEB_CONCURRENCY"] = "2"
    try:
        with serving(folder, "app:answer") as process:
            wait_ready(process, 2)
    finally:
        del os.environ["WEB_CONCURRENCY"]


def test_time_of_an_idle_stop_is_short(folder: Path) -> None:
    """Not measured in seconds: an idle worker must leave long before it would be killed."""
    with supervised(folder) as process:
        started = time.monotonic()
        process.signal(signal.SIGTERM)
        assert process.wait() == 0
        assert time.monotonic() - started < BOUND_SECONDS and "is killed" not in process.text


# ---- reload of changed files


@pytest.mark.parametrize("engine", ["auto", "poll"])
def test_changed_file_is_served_by_new_workers(folder: Path, engine: str) -> None:
    with serving(folder, "app:answer", "--reload", "--reload-delay", "0.05", "--reload-engine", engine) as process:
        wait_ready(process, 1)
        assert process.get().body.endswith(b" 1")
        (folder / "app.py").write_text(APP.replace("VERSION = 1", "VERSION = 23"))
        process.wait_line("Reloading: app.py changed")
        wait_for(lambda: process.get().body.endswith(b" 23"))  # all are answered, by the old worker or the new
        (folder / "app.py").write_text("def broken(:\n")
        wait_for(lambda: process.get().status == 500)
        answer = process.get()
        assert answer.status == 500 and b"SyntaxError" in answer.body and b"def broken(:" in answer.body
        process.wait_line("SyntaxError")
        (folder / "app.py").write_text(APP.replace("VERSION = 1", "VERSION = 456"))
        wait_for(lambda: process.get().body.endswith(b" 456"))
        process.signal(signal.SIGINT)
        assert process.wait() == 0


def test_startup_that_fails_waits_for_a_change(folder: Path) -> None:
    options = ("--reload", "--reload-delay", "0.05", "--lifespan", "on")
    with serving(folder, "app:failing", *options) as process:
        process.wait_line("Waiting for a file to change")
        (folder / "app.py").write_text(APP.replace("async def failing", "failing = asgi\nasync def other"))
        wait_ready(process, 1)
        assert process.get().status == 200
        process.signal(signal.SIGTERM)
        assert process.wait() == 0


def test_preload_with_reload_serves_new_code(folder: Path) -> None:
    with serving(folder, "app:answer", "--reload", "--preload", "--reload-delay", "0.05") as process:
        process.wait_line("--preload has no effect with --reload")
        wait_ready(process, 1)
        (folder / "app.py").write_text(APP.replace("VERSION = 1", "VERSION = 23"))
        wait_for(lambda: process.get().body.endswith(b" 23"))


def test_directory_to_watch_that_does_not_exist(folder: Path) -> None:
    with serving(folder, "app:answer", "--reload", "--reload-dir", "typo") as process:
        assert process.wait() == 1
        assert process.err[-1].endswith("--reload-dir 'typo' is no directory") and "Traceback" not in process.text


def test_broken_file_that_is_put_back_by_a_link(folder: Path) -> None:
    (folder / "good.txt").write_text(APP)
    with serving(folder, "app:answer", "--reload", "--reload-delay", "0.05") as process:
        wait_ready(process, 1)
        (folder / "app.py").unlink()
        wait_for(lambda: process.get().status == 500)
        (folder / "app.py").symlink_to("good.txt")
        wait_for(lambda: process.get().status == 200)
