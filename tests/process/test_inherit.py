"""Passing listeners to another supervisor; with real processes in e2e/test_takeover.py."""

from __future__ import annotations

import logging
import os
import signal
import sys
from pathlib import Path

import pytest

from stdserve.config import Config
from stdserve.errors import BindError
from stdserve.process.inherit import Start, Succession
from stdserve.transport.listener import open_listeners

PRINT_INHERITANCE = """
import os, sys
names = ("GUNICORN_PID", "GUNICORN_FD", "LISTEN_FDS", "WATCHDOG_PID", "KEPT")
numbers = [int(number) for number in os.environ["GUNICORN_FD"].split(",")]
text = repr(([os.environ.get(name) for name in names], [os.fstat(number).st_ino for number in numbers], os.getcwd()))
open(sys.argv[1], "w").write(text)
"""


def test_nothing_is_inherited_without_a_predecessor() -> None:
    succession = Succession(None)
    environ = {"GUNICORN_PID": str(os.getpid()), "GUNICORN_FD": "3"}  # somebody else's parent
    assert succession.inherit(environ) == [] and environ == {}
    assert succession.inherit({}) == []
    assert not succession.has_come() and succession.successor == 0


def test_descriptors_of_the_parent_are_inherited() -> None:
    succession = Succession(None)
    environ = {"GUNICORN_PID": str(os.getppid()), "GUNICORN_FD": "3,5"}
    assert succession.inherit(environ) == [3, 5] and environ == {}
    assert succession.predecessor == os.getppid() and not succession.has_come()
    succession.predecessor = 1 << 30  # it has ended, and our parent is another
    assert succession.has_come() and not succession.has_come()


def test_numbers_that_are_none_are_refused() -> None:
    with pytest.raises(BindError, match=r"GUNICORN_FD=\'3,x\' in the environment is not a list of file descriptors"):
        Succession(None).inherit({"GUNICORN_PID": str(os.getppid()), "GUNICORN_FD": "3,x"})


def test_successor_gets_the_sockets_the_directory_and_the_environment(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "stdserve.error")
    listeners = open_listeners(Config(app="a:b", bind=("127.0.0.1:0", "unix:@stdserve-test-inherit")), {})
    out = tmp_path / "out"
    environ = {"KEPT": "1", "LISTEN_FDS": "2", "WATCHDOG_PID": "1"}
    start = Start([sys.executable, "-c", PRINT_INHERITANCE, str(out)], str(tmp_path), environ)
    succession = Succession(start)
    try:
        succession.upgrade(listeners)
        pid = succession.successor
        succession.upgrade(listeners)
        assert f"No upgrade: the new supervisor [{pid}] runs already" in caplog.text
        _, status = os.waitpid(pid, 0)
        assert not succession.take_death(pid + 1, 0)
        assert succession.take_death(pid, status) and succession.successor == 0
        numbers = [listener.sock.fileno() for listener in listeners]
        inodes = [os.fstat(number).st_ino for number in numbers]
        values = [str(os.getpid()), ",".join(map(str, numbers)), None, None, "1"]
        assert out.read_text() == repr((values, inodes, str(tmp_path)))
    finally:
        for listener in listeners:
            listener.close()


def test_successor_that_cannot_be_started_is_an_error_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    succession = Succession(Start(["/no/such/python"], str(tmp_path), {}))
    succession.upgrade([])
    assert "No upgrade: the new supervisor cannot be started: " in caplog.text and succession.successor == 0


def test_successor_may_outlive_us() -> None:
    succession = Succession(Start([sys.executable, "-c", "input()"], os.curdir, {}))
    succession.upgrade([])
    pid = succession.successor
    succession.close()
    del succession  # no ResourceWarning, which is an error here
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def test_start_directory_keeps_the_name_of_a_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "1").mkdir()
    (tmp_path / "current").symlink_to("1")
    monkeypatch.chdir(tmp_path / "current")
    monkeypatch.setenv("PWD", str(tmp_path / "current"))
    assert Start.of_this_process().directory == str(tmp_path / "current")
    for wrong in (str(tmp_path), str(tmp_path / "none"), ""):
        monkeypatch.setenv("PWD", wrong)
        assert Start.of_this_process().directory == str((tmp_path / "1").resolve())
    assert Start.of_this_process().command[0] == sys.executable
