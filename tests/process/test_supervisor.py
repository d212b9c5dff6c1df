"""The supervisor's decisions, against a system of the test's own: fork, kill, waitpid and the clock are fakes."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from stdserve.config import Config
from stdserve.errors import ConfigError
from stdserve.process import supervisor as supervisor_module
from stdserve.process.channel import Channel
from stdserve.process.child import BOOTING, DRAINING, READY, Worker
from stdserve.process.supervisor import Supervisor


class Kept(Channel):
    """The worker's end, which the supervisor closes after the fork and the test still needs."""

    def close(self) -> None:
        """Not yet."""

    def really_close(self) -> None:
        super().close()


class System:
    """fork gives numbers from 101 on; `sent` are the signals; `die` makes waitpid tell of a death."""

    def __init__(self) -> None:
        self.next_pid = 100
        self.sent: list[tuple[int, int]] = []
        self.dead: list[tuple[int, int]] = []
        self.fork_fails = False

    def fork(self) -> int:
        if self.fork_fails:
            raise OSError(11, "Resource temporarily unavailable")
        self.next_pid += 1
        return self.next_pid

    def kill(self, pid: int, number: int) -> None:
        self.sent.append((pid, number))

    def waitpid(self, pid: int, flags: int) -> tuple[int, int]:
        return self.dead.pop(0) if self.dead else (0, 0)


class Rig:
    """A supervisor that turns when the test says so."""

    def __init__(self, patch: pytest.MonkeyPatch, **options: Any) -> None:
        self.now = 1000.0
        self.system = System()
        self.theirs: dict[int, Kept] = {}
        self.reread: Any = None
        self.kept: list[Kept] = []
        patch.setattr(supervisor_module, "Channel", SimpleNamespace(pair=self._pair))
        config = Config(app="a:b", port=0, **{"workers": 2, "timeout": 30.0, **options})
        self.supervisor = Supervisor(config, self._reread, system=self.system, clock=lambda: self.now)
        self.supervisor._mailbox.open()
        self.supervisor._prepare()
        self.turn()

    def _pair(self) -> tuple[Channel, Channel]:
        ours, theirs = Channel.pair()
        kept = Kept(theirs.sock)
        self.theirs[self.system.next_pid + 1] = kept
        self.kept.append(kept)
        return ours, kept

    def _reread(self) -> Config:
        if isinstance(self.reread, Exception):
            raise self.reread
        return self.reread or self.supervisor.config

    @property
    def workers(self) -> dict[int, Worker]:
        return self.supervisor.workers

    def states(self) -> dict[int, str]:
        return {pid: worker.state for pid, worker in self.workers.items()}

    def turn(self, *verbs: str) -> None:
        for verb in verbs:
            self.supervisor._mailbox.put(verb)
        self.supervisor._mailbox.put("reap")  # so that no turn waits
        self.supervisor._turn()

    def say(self, pid: int, word: str) -> None:
        self.theirs[pid].send(word)
        self.turn()

    def ready(self, *pids: int) -> None:
        for pid in pids:
            self.say(pid, "ready")
        self.turn()

    def die(self, pid: int, code: int = 0) -> None:
        """code: exit code, or a signal's number, negative"""
        self.system.dead.append((pid, code << 8 if code >= 0 else -code))
        self.theirs[pid].really_close()
        self.turn()
        self.turn()

    def take_sent(self) -> list[tuple[int, int]]:
        sent, self.system.sent = self.system.sent, []
        return sent

    def close(self) -> None:
        self.system.dead = [(pid, 0) for pid in self.workers]
        self.supervisor._close()
        for kept in self.kept:
            kept.really_close()


@pytest.fixture
def rigs(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    made: list[Rig] = []

    def make(**options: Any) -> Rig:
        made.append(Rig(monkeypatch, **options))
        return made[-1]

    yield make
    for rig in made:
        rig.close()


@pytest.fixture
def rig(rigs: Any) -> Any:
    """Two workers that are ready: 101 and 102."""
    rig = rigs()
    rig.ready(101, 102)
    return rig


TERM, QUIT, KILL, ABRT, USR1 = signal.SIGTERM, signal.SIGQUIT, signal.SIGKILL, signal.SIGABRT, signal.SIGUSR1


# ---- start


def test_as_many_workers_as_asked_for(rigs: Any) -> None:
    rig = rigs(workers=3)
    assert rig.states() == {101: BOOTING, 102: BOOTING, 103: BOOTING}
    rig.ready(102)
    assert rig.states() == {101: BOOTING, 102: READY, 103: BOOTING}


@pytest.mark.parametrize(("code", "exit_code"), [(3, 3), (4, 4), (0, 1), (-signal.SIGSEGV, 1)])
def test_first_worker_that_does_not_boot_ends_it(rigs: Any, code: int, exit_code: int) -> None:
    rig = rigs()
    rig.die(101, code)
    assert rig.take_sent() == [(102, QUIT)]
    rig.die(102)
    assert rig.workers == {} and rig.supervisor._stopping and rig.supervisor.exit_code == exit_code


def test_fork_that_fails_is_tried_again_later(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    rig.system.fork_fails = True
    rig.die(101, 1)
    rig.turn()
    assert "cannot start a worker: [Errno 11]" in caplog.text and len(rig.workers) == 1
    rig.system.fork_fails = False
    rig.now += 60
    rig.turn()
    assert len(rig.workers) == 2


# ---- deaths


def test_dead_worker_is_replaced_at_once(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    rig.now += 60
    rig.die(101, -signal.SIGSEGV)
    assert rig.states() == {102: READY, 103: BOOTING}
    assert "Worker [101] died: SIGSEGV" in caplog.text


def test_what_a_dead_worker_ran_is_named(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    rig.workers[101].slots.begin("GET /a from 192.0.2.1:5")
    rig.die(101, 7)
    assert "Worker [101] died: exit code 7" in caplog.text
    assert "Worker [101] was running 'GET /a from 192.0.2.1:5'" in caplog.text


def test_crash_loop_backs_off_longer_and_longer(rig: Rig) -> None:
    rig.die(101, 1)
    waits = []
    for _ in range(9):
        (booting,) = [pid for pid, state in rig.states().items() if state is BOOTING]
        rig.die(booting, 1)
        before = rig.now
        while len(rig.workers) < 2:
            rig.now += 0.25
            rig.turn()
        waits.append(rig.now - before)
    assert waits == [0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]


def test_workers_that_die_together_are_replaced_together(rigs: Any) -> None:
    rig = rigs(workers=8)
    rig.ready(*range(101, 109))
    for pid in range(101, 109):
        rig.die(pid, -9)
    assert len(rig.workers) == 8
    for _ in range(2):  # and if those die, too, it is a loop
        for pid in [pid for pid, state in rig.states().items() if state is BOOTING]:
            rig.die(pid, 1)
    assert len(rig.workers) < 8


def test_no_descriptor_left_for_another_worker(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> Any:
        raise OSError(24, "Too many open files")

    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    with monkeypatch.context() as patch:
        patch.setattr(supervisor_module, "LastWords", fail)
        rig.turn("more")
        rig.turn()
    assert "cannot start a worker: [Errno 24] Too many open files" in caplog.text
    assert rig.states() == {101: READY, 102: READY}
    if before:
        while len(rig.kept) > 2:
            rig.kept.pop().really_close()
        assert len(os.listdir("/proc/self/fd")) == before
    rig.now += 1
    rig.turn()
    assert len(rig.workers) == 3


def test_child_that_cannot_become_a_worker_does_not_go_on_as_a_supervisor(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(channel: Channel, slots: Any, last_words: Any, parents: Channel) -> None:
        parents.close()
        last_words.close()
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(rig.system, "fork", lambda: 0)
    monkeypatch.setattr(rig.supervisor, "_become_worker", fail)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    try:
        rig.turn("more")
        with pytest.raises(PermissionError):
            rig.turn()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def test_steady_worker_ends_the_back_off(rig: Rig) -> None:
    for _ in range(3):
        rig.die(max(rig.workers), 1)
        rig.now += 60
        rig.turn()
    pid = max(rig.workers)
    rig.ready(pid)
    rig.now += 60
    rig.die(pid, 1)
    assert len(rig.workers) == 2  # at once


def test_strangers_are_reaped_silently(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    rig.system.dead.append((4711, 0))
    rig.turn()
    assert rig.states() == {101: READY, 102: READY} and "4711" not in caplog.text


def test_worker_that_was_told_to_stop_by_others_is_replaced_before_it_is_dead(rig: Rig) -> None:
    rig.say(101, "stopping")
    rig.turn()
    assert rig.states() == {101: DRAINING, 102: READY, 103: BOOTING}
    rig.die(101)
    rig.ready(103)
    assert rig.states() == {102: READY, 103: READY}


# ---- reload


def test_reload_starts_new_ones_first_and_then_stops_the_old(rig: Rig) -> None:
    rig.turn("reload")
    rig.turn()
    assert rig.states() == {101: READY, 102: READY, 103: BOOTING, 104: BOOTING}
    rig.ready(103)
    assert rig.take_sent() == []
    rig.ready(104)
    assert rig.take_sent() == [(101, TERM), (102, TERM)]
    rig.die(101)
    rig.die(102)
    assert rig.states() == {103: READY, 104: READY}


def test_reload_that_cannot_boot_leaves_the_old_ones(rig: Rig) -> None:
    rig.turn("reload")
    rig.turn()
    rig.die(103, 3)
    assert rig.take_sent() == [(104, QUIT)]
    rig.die(104)
    assert rig.states() == {101: READY, 102: READY} and rig.supervisor.generation == 1
    rig.turn("reload")
    rig.turn()
    rig.ready(105, 106)
    assert rig.take_sent() == [(101, TERM), (102, TERM)]


def test_old_worker_that_dies_in_a_reload_that_fails_is_replaced(rig: Rig) -> None:
    rig.turn("reload")
    rig.turn()
    rig.die(101, -9)
    rig.die(103, 3)
    rig.die(104)
    rig.now += 60
    rig.turn()
    assert rig.states() == {102: READY, 105: BOOTING}


def test_second_reload_gives_up_the_first(rig: Rig) -> None:
    """Whose workers may hang for ever."""
    rig.turn("reload")
    rig.turn()
    rig.ready(103)
    rig.turn("reload")
    assert rig.take_sent() == [(104, QUIT)]
    rig.die(104, -QUIT)
    rig.turn()
    assert rig.states() == {101: READY, 102: READY, 103: READY, 105: BOOTING, 106: BOOTING}
    rig.ready(105, 106)
    assert rig.take_sent() == [(101, TERM), (102, TERM), (103, TERM)]


def test_second_reload_that_fails_goes_back_to_the_oldest(rig: Rig) -> None:
    rig.turn("reload")
    rig.turn()
    rig.ready(103)
    rig.turn("reload")
    rig.die(104, -QUIT)
    rig.take_sent()
    rig.die(105, 3)
    assert rig.take_sent() == [(103, TERM), (106, QUIT)]
    rig.die(103)
    rig.die(106)
    assert rig.states() == {101: READY, 102: READY}


def test_ready_workers_of_a_reload_that_fails_finish_their_requests(rig: Rig) -> None:
    rig.turn("reload")
    rig.turn()
    rig.ready(103)
    rig.die(104, 3)
    assert rig.take_sent() == [(103, TERM)]


def test_reload_with_a_broken_configuration_changes_nothing(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    rig.reread = ConfigError("--port: 'x' is not a whole number")
    rig.turn("reload")
    rig.turn()
    assert rig.states() == {101: READY, 102: READY}
    assert "The configuration cannot be used, the old one stays: --port: 'x'" in caplog.text


def test_reload_takes_the_new_number_of_workers(rig: Rig) -> None:
    rig.reread = Config(app="a:b", port=0, workers=3)
    rig.turn("reload")
    rig.turn()
    assert len(rig.workers) == 5


def test_reload_takes_new_addresses_and_keeps_those_that_stay(rigs: Any) -> None:
    rig = rigs(bind=("127.0.0.1:0",))
    rig.ready(101, 102)
    (first,) = rig.supervisor.listeners
    rig.reread = Config(app="a:b", bind=("127.0.0.1:0", "unix:@stdserve-test-reload"), workers=2)
    rig.turn("reload")
    rig.turn()
    assert rig.supervisor.listeners[0] is first and len(rig.supervisor.listeners) == 2
    rig.ready(103, 104)
    rig.reread = Config(app="a:b", bind=("unix:@stdserve-test-reload",), workers=2)
    rig.turn("reload")
    rig.turn()
    assert first.sock.fileno() != -1  # the old workers still serve
    rig.ready(105, 106)
    assert first.sock.fileno() == -1 and [each.url for each in rig.supervisor.listeners] == [
        "unix socket @stdserve-test-reload"
    ]


def test_reload_that_cannot_boot_leaves_the_old_addresses(rigs: Any) -> None:
    rig = rigs(bind=("127.0.0.1:0",))
    rig.ready(101, 102)
    old = rig.supervisor.listeners
    rig.reread = Config(app="a:b", bind=("unix:@stdserve-test-reload",), workers=3)
    rig.turn("reload")
    rig.turn()
    (new,) = rig.supervisor.listeners
    rig.die(103, 3)
    assert rig.supervisor.listeners == old and new.sock.fileno() == -1
    assert rig.supervisor.target == 2 and old[0].sock.fileno() != -1


def test_address_that_cannot_be_had_leaves_everything(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    rig.reread = Config(app="a:b", bind=("unix:/no/such/folder/app.sock",), workers=2)
    rig.turn("reload")
    rig.turn()
    assert rig.states() == {101: READY, 102: READY}
    assert "the old one stays: unix socket /no/such/folder/app.sock: the directory" in caplog.text


def test_stop_during_a_reload(rig: Rig) -> None:
    rig.turn("reload")
    rig.turn()
    rig.turn("stop")
    assert rig.take_sent() == [(101, TERM), (102, TERM), (103, TERM), (104, TERM)]
    for pid in (103, 101, 104, 102):
        rig.die(pid)
    assert rig.workers == {} and rig.supervisor.exit_code == 0


# ---- other signals


def test_more_and_fewer(rig: Rig) -> None:
    rig.turn("more")
    rig.turn()
    rig.ready(103)
    assert len(rig.workers) == 3
    rig.now += 1
    rig.turn("fewer")
    rig.turn()
    assert rig.take_sent() == [(101, TERM)]  # the oldest
    rig.die(101)
    rig.turn("fewer", "fewer", "fewer")
    rig.turn()
    assert rig.supervisor.target == 1 and rig.take_sent() == [(102, TERM)]


def test_storm_of_signals(rig: Rig) -> None:
    rig.turn(*["more", "fewer", "reload", "reopen"] * 5)
    for _ in range(30):
        rig.turn()
        rig.ready(*[pid for pid, state in rig.states().items() if state is BOOTING])
        for pid, number in rig.take_sent():
            if number == TERM:
                rig.die(pid)
    assert list(rig.states().values()) == [READY, READY]


def test_winch_is_for_daemons_only(rigs: Any, rig: Rig) -> None:
    rig.turn("park")
    rig.turn()
    assert rig.take_sent() == []
    rig = rigs(daemon=True)
    rig.ready(101, 102)
    rig.turn("park")
    rig.turn()
    assert rig.take_sent() == [(101, TERM), (102, TERM)]
    rig.die(101)
    rig.die(102)
    rig.turn("fewer")
    assert rig.states() == {}
    rig.turn("more")
    rig.turn()
    assert rig.states() == {103: BOOTING}
    rig.turn("reload")
    rig.turn()
    assert rig.supervisor.target == 2


@pytest.mark.parametrize("verb", ["quick", "stop"])
def test_successor_that_is_ended_finishes_its_requests(rig: Rig, verb: str) -> None:
    rig.supervisor._succession.predecessor = os.getppid()
    rig.turn(verb)
    assert rig.take_sent() == [(101, TERM), (102, TERM)]
    rig.turn("quick")
    assert rig.take_sent() == [(101, QUIT), (102, QUIT)]


def test_no_upgrade_without_a_command_line(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    rig.turn("upgrade")
    assert "No upgrade: this supervisor was not started by a command line" in caplog.text


def test_serving_is_reported_once(rigs: Any) -> None:
    reports: list[int] = []
    rig = rigs()
    rig.supervisor._on_serving = lambda: reports.append(1)
    rig.ready(101)
    assert reports == []
    rig.ready(102)
    rig.turn("reload")
    rig.turn()
    rig.ready(103, 104)
    assert reports == [1]


def test_usr1_is_passed_on(rig: Rig) -> None:
    rig.turn("reopen")
    assert rig.take_sent() == [(101, USR1), (102, USR1)]


def test_second_interrupt_is_quick(rig: Rig) -> None:
    rig.turn("interrupt")
    assert rig.take_sent() == [(101, TERM), (102, TERM)]
    rig.turn("interrupt")
    assert rig.take_sent() == [(101, QUIT), (102, QUIT)]
    rig.now += 10
    rig.turn()
    assert rig.take_sent() == [(101, KILL), (102, KILL)]


def test_worker_that_does_not_stop_is_killed_after_its_time(rig: Rig) -> None:
    config = rig.supervisor.config
    rig.turn("stop")
    rig.take_sent()
    rig.now += config.timeout_graceful_shutdown + config.timeout_lifespan_shutdown
    rig.turn()
    assert rig.take_sent() == []
    rig.now += 11
    rig.turn()
    assert rig.take_sent() == [(101, KILL), (102, KILL)]
    rig.turn()
    assert rig.take_sent() == []  # once


# ---- recycling


def test_wish_for_a_successor_is_granted_one_at_a_time(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    rig.say(101, "recycle it is old")
    rig.say(102, "recycle it is old")
    rig.turn()
    rig.turn()
    assert rig.states() == {101: READY, 102: READY, 103: BOOTING} and rig.take_sent() == []
    rig.ready(103)
    assert rig.take_sent() == [(101, TERM)]
    assert "Worker [101] is replaced: it is old" in caplog.text
    rig.die(101)
    rig.turn()
    rig.turn()
    assert rig.states() == {102: READY, 103: READY, 104: BOOTING}
    rig.ready(104)
    assert rig.take_sent() == [(102, TERM)]


# ---- time


def test_worker_whose_loop_does_not_answer_is_aborted_and_killed(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    rig.workers[101].slots.begin("GET /block from 192.0.2.1:5")
    rig.now += 8  # a quarter of --timeout
    rig.turn()
    assert rig.theirs[101].receive() == ["ping"]
    rig.say(102, "alive")
    for _ in range(4):
        rig.now += 7.6
        rig.turn()
        rig.say(102, "alive")
    assert rig.take_sent() == [(101, ABRT)]
    assert "Worker [101] has not answered for 30.4 s (--timeout)" in caplog.text
    assert "Worker [101] is running 'GET /block from 192.0.2.1:5'" in caplog.text
    rig.now += 2
    rig.turn()
    assert rig.take_sent() == [(101, KILL)]


def test_watchdog_is_fed_only_while_all_workers_answer(rigs: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    monkeypatch.setattr(supervisor_module, "watchdog_seconds", lambda: 4.0)
    monkeypatch.setattr(supervisor_module, "notify", lambda *lines: told.extend(lines))
    rig = rigs(timeout=0.0)
    rig.ready(101, 102)
    told.clear()
    for answering in ((101, 102), (101,), (), (102,)):
        rig.now += 1.1
        rig.turn()
        for pid in answering:
            rig.say(pid, "alive")
    assert told == ["WATCHDOG=1", "WATCHDOG=1"]  # until 102 has not answered
    assert rig.take_sent() == []


def test_watchdog_does_not_wait_for_workers_that_leave(rigs: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    monkeypatch.setattr(supervisor_module, "watchdog_seconds", lambda: 4.0)
    monkeypatch.setattr(supervisor_module, "notify", lambda *lines: told.extend(lines))
    rig = rigs(timeout=0.0)
    rig.ready(101, 102)
    rig.now += 1.1
    rig.turn()
    rig.say(102, "alive")
    rig.say(101, "stopping")
    rig.turn()
    rig.ready(103)
    told.clear()
    for _ in range(3):
        rig.now += 1.1
        rig.turn()
        rig.say(102, "alive")
        rig.say(103, "alive")
    assert told == ["WATCHDOG=1"] * 3


def test_log_says_that_the_supervisor_itself_has_killed(rigs: Any, caplog: pytest.LogCaptureFixture) -> None:
    rig = rigs(timeout_boot=5.0)
    rig.ready(101)
    rig.now += 5
    rig.turn()
    rig.die(102, -9)
    assert "Worker [102] died: not ready after 5 s (--timeout-boot), while booting" in caplog.text


def test_stop_is_also_said_in_words(rig: Rig) -> None:
    """The application may have blocked the signal."""
    rig.turn("stop")
    theirs = rig.theirs[101]
    assert "stop" in (theirs.receive() or [])


def test_booting_worker_has_a_limit_of_its_own(rigs: Any) -> None:
    rig = rigs(timeout=1.0)
    rig.now += 3600
    rig.turn()
    assert rig.take_sent() == []
    limited = rigs(timeout_boot=5.0)
    limited.now += 5
    limited.turn()
    assert limited.take_sent() == [(101, KILL), (102, KILL)]
    ready = rigs(timeout_boot=5.0)
    ready.ready(101, 102)
    ready.now += 5
    ready.turn()
    assert ready.take_sent() == []


# ---- files


@pytest.mark.parametrize("engine", ["auto", "poll"])
def test_restart_that_is_due_does_not_keep_a_stop_awake(
    rigs: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engine: str
) -> None:
    rig = rigs(reload=True, reload_dirs=(str(tmp_path),), reload_delay=1.0, reload_engine=engine, timeout=0.0)
    rig.ready(101, 102)
    monkeypatch.setattr(rig.supervisor._changes.files, "changes", lambda: [str(tmp_path / "a.py")])
    rig.turn()
    monkeypatch.setattr(rig.supervisor._changes.files, "changes", list)
    rig.turn("stop")
    rig.now += 5.0
    waits: list[float | None] = []
    monkeypatch.setattr(rig.supervisor._selector, "select", lambda seconds: waits.append(seconds) or [])
    rig.supervisor._wait()
    assert waits[0] is not None and waits[0] > 1.0  # until the workers would be killed


def test_directory_to_watch_that_is_not_there(tmp_path: Path) -> None:
    config = Config(app="a:b", port=0, reload=True, reload_dirs=(str(tmp_path), str(tmp_path / "typo")))
    with pytest.raises(ConfigError, match=r"--reload-dir '.*/typo' is no directory"):
        Supervisor(config).run()


def test_preload_does_not_keep_old_code(rigs: Any, caplog: pytest.LogCaptureFixture) -> None:
    rig = rigs(reload=True, preload=True)
    assert rig.supervisor._application is None
    assert "--preload has no effect with --reload" in caplog.text
    rig.ready(101, 102)
    caplog.clear()
    rig.reread = Config(app="a:b", port=0, workers=2, reload=True, preload=True)
    rig.turn("reload")
    assert not rig.supervisor.config.preload
    assert "has no effect with --reload" in caplog.text and "stays as it was" not in caplog.text


def test_no_handle_is_left(rig: Rig) -> None:
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    for _ in range(20):
        rig.now += 60
        pid = min(rig.workers)
        rig.die(pid, 1)
        rig.ready(max(rig.workers))
    if before:
        assert len(os.listdir("/proc/self/fd")) == before
