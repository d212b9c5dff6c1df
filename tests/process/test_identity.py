from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from stdserve.config import Config
from stdserve.errors import ConfigError
from stdserve.process.identity import Pidfile, drop_privileges, find_group, find_user, notify, watchdog_seconds


def test_pidfile_of_nobody_and_of_the_dead_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "pid"
    for before in (None, "", "nonsense", "999999999", "9" * 30, "-1", "0"):
        if before is not None:
            path.write_text(before)
        pidfile = Pidfile.make(str(path))
        assert pidfile is not None and path.read_text() == f"{os.getpid()}\n"
        pidfile.remove()
        assert not path.exists() and list(tmp_path.iterdir()) == []


def test_pidfile_of_the_living_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "pid"
    path.write_text(f"{os.getppid()}\n")
    with pytest.raises(ConfigError, match=f"process {os.getppid()} in it is alive"):
        Pidfile.make(str(path))


def test_pidfile_that_became_somebody_elses_stays(tmp_path: Path) -> None:
    path = tmp_path / "pid"
    pidfile = Pidfile.make(str(path))
    path.write_text("4711\n")
    assert pidfile is not None
    pidfile.remove()
    assert path.exists()


def test_pidfile_in_no_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--pid .*: No such file or directory"):
        Pidfile.make(str(tmp_path / "none" / "pid"))
    assert Pidfile.make("") is None


def test_users_and_groups() -> None:
    import grp
    import pwd

    me = pwd.getpwuid(os.getuid())
    assert find_user(me.pw_name) == find_user(str(me.pw_uid)) == (me.pw_uid, me.pw_gid, me.pw_name)
    assert find_group(grp.getgrgid(me.pw_gid).gr_name) == find_group(str(me.pw_gid)) == me.pw_gid
    assert find_user("") is None and find_group("") is None
    assert find_user("54321") == (54321, os.getegid(), "")
    with pytest.raises(ConfigError, match="--user: there is no user 'no-such-user'"):
        find_user("no-such-user")
    with pytest.raises(ConfigError, match="--group: there is no group 'no-such-group'"):
        find_group("no-such-group")


def test_nothing_is_dropped_where_nobody_asks() -> None:
    drop_privileges(Config(app="a:b"))


@pytest.mark.parametrize("abstract", [False, True])
def test_notify(abstract: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"stdserve-test-{os.getpid()}" if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(f"\0{name}" if abstract else name)
        monkeypatch.setenv("NOTIFY_SOCKET", f"@{name}" if abstract else name)
        notify("READY=1", "STATUS=ok")
        assert sock.recv(100) == b"READY=1\nSTATUS=ok"


def test_notify_without_a_manager_or_with_one_that_has_gone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    notify("READY=1")
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "none"))
    notify("READY=1")


def test_watchdog() -> None:
    assert watchdog_seconds({}) == 0.0
    assert watchdog_seconds({"WATCHDOG_USEC": "2500000"}) == 2.5
    assert watchdog_seconds({"WATCHDOG_USEC": "2500000", "WATCHDOG_PID": str(os.getpid())}) == 2.5
    assert watchdog_seconds({"WATCHDOG_USEC": "2500000", "WATCHDOG_PID": "1"}) == 0.0
