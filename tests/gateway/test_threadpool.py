"""gateway/threadpool.py: every job runs once, and as many threads run as the application's blocking asks for.

The wake policy is tested with a clock and CPU readings of the test's own; `Rig.look()` is a look a millisecond later.
"""

from __future__ import annotations

import gc
import random
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, cast

import pytest

from stdserve.gateway import threadpool
from stdserve.gateway import threadpool as threadpool_module
from stdserve.gateway.threadpool import LOOK_SECONDS, ThreadPool
from stdserve.transport.loop import Loop
from tests.support import BOUND_SECONDS, wait_for


class Held:
    """A job that runs until it is released."""

    def __init__(self, name: str = "") -> None:
        self.name = name
        self.began = threading.Event()
        self.released = threading.Event()
        self.ended = threading.Event()
        self.thread: threading.Thread | None = None

    def run(self, _: Any = None) -> None:
        self.thread = threading.current_thread()
        self.began.set()
        assert self.released.wait(2 * BOUND_SECONDS)  # longer than any test waits for something else
        self.ended.set()


class FakeLoop:
    """A loop's side of the pool: `posted` and how often it was woken for it; what is deferred is done at once."""

    def __init__(self, on_pace: Callable[[], object] = lambda: None) -> None:
        self.posted: list[Any] = []
        self.woken = 0
        self._on_pace = on_pace

    def defer(self, call: Callable[[], object]) -> None:
        call()

    def wake(self) -> None:
        self.woken += 1

    def pace(self, hook: Callable[[], float | None]) -> None:
        self._on_pace()


class Rig:
    """A pool with a clock of its own; `working` are the threads whose CPU time goes on."""

    def __init__(self, patch: pytest.MonkeyPatch, cap: int = 32) -> None:
        self.now = 1000.0
        self.working: set[threading.Thread | None] = set()
        self.cpu: dict[Any, float] = {}
        self.waiting_calls = 0
        self.held: list[Held] = []
        self.pool = ThreadPool(cap, FakeLoop(self._on_waiting))
        clocks = SimpleNamespace(monotonic=lambda: self.now)
        patch.setattr(threadpool, "time", clocks)
        patch.setattr(threadpool, "_own_clock", lambda: 1)
        patch.setattr(threadpool, "_cpu_seconds", self._cpu_seconds)

    def _on_waiting(self) -> None:
        self.waiting_calls += 1

    def _cpu_seconds(self, thread: Any) -> float:
        used = LOOK_SECONDS if thread.thread in self.working else 0.0
        self.cpu[thread] = self.cpu.get(thread, 0.0) + used
        return self.cpu[thread]

    def submit(self, count: int = 1) -> list[Held]:
        jobs = [Held(str(number)) for number in range(count)]
        self.held += jobs
        for job in jobs:
            self.pool.submit(Held.run, job)
        return jobs

    def look(self) -> float | None:
        self.now += LOOK_SECONDS * 1.01
        return self.pool.look()

    def settle(self, running: int) -> None:
        """Wait until so many jobs run and all other threads are parked."""
        wait_for(lambda: len(self.pool.running_jobs()) == running)
        wait_for(lambda: len(self.pool._threads) - len(self.pool._idle) == running)

    def begun(self) -> list[Held]:
        return [job for job in self.held if job.began.is_set()]

    def spread(self, count: int) -> list[Held]:
        """Submit jobs and look until they all run, each in a thread of its own."""
        jobs = self.submit(count)
        self.settle(1)
        while not all(job.began.is_set() for job in jobs):
            self.look()
            self.settle(len(self.pool._threads))
        assert self.look() is None
        return jobs

    def end(self) -> None:
        for job in self.held:
            job.released.set()
        self.pool.jobs.clear()
        self.pool.close(BOUND_SECONDS)
        assert not any(state.thread.is_alive() for state in self.pool._threads if state.thread)


@pytest.fixture
def rig(monkeypatch: pytest.MonkeyPatch) -> Iterator[Rig]:
    rig = Rig(monkeypatch)
    yield rig
    rig.end()


@pytest.fixture
def pools() -> Iterator[Callable[..., ThreadPool]]:
    made: list[ThreadPool] = []

    def make(*args: Any, **options: Any) -> ThreadPool:
        made.append(ThreadPool(*args, FakeLoop(), **options))
        return made[-1]

    yield make
    for pool in made:
        pool.close(BOUND_SECONDS)
        assert not any(state.thread.is_alive() for state in pool._threads if state.thread)


# ---- jobs


def test_no_thread_before_the_first_job(pools: Callable[..., ThreadPool]) -> None:
    before = threading.active_count()
    pool = pools(4)
    assert threading.active_count() == before
    done = threading.Event()
    pool.submit(lambda argument: argument.set(), done)
    assert done.wait(BOUND_SECONDS)
    assert threading.active_count() == before + 1


def test_every_job_runs_once(pools: Callable[..., ThreadPool]) -> None:
    pool = pools(8)
    ran: list[int] = []
    for number in range(500):
        pool.submit(ran.append, number)
        pool.look()
    wait_for(lambda: pool.look() is None and len(ran) == 500)
    assert sorted(ran) == list(range(500))


@pytest.mark.parametrize("error", [ValueError("a bug"), SystemExit(3), KeyboardInterrupt(), GeneratorExit()])
def test_what_a_job_raises_ends_the_job_only(rig: Rig, caplog: pytest.LogCaptureFixture, error: BaseException) -> None:
    def fail(_: Any) -> None:
        raise error

    rig.pool.submit(fail, None)
    rig.settle(0)
    assert "a job of the thread pool failed" in caplog.text and type(error).__name__ in caplog.text
    (job,) = rig.submit()
    rig.settle(1)
    assert job.began.is_set() and len(rig.pool._threads) == 1


def test_a_job_is_not_kept_after_its_end(rig: Rig) -> None:
    class Argument:
        pass

    argument = Argument()
    gone = weakref.ref(argument)
    rig.pool.submit(lambda argument: None, argument)
    del argument
    rig.settle(0)
    gc.collect()
    assert gone() is None


def test_running_jobs_and_busy(rig: Rig) -> None:
    assert rig.pool.running_jobs() == [] and not rig.pool.busy
    (job,) = rig.submit()
    rig.settle(1)
    assert job.thread is not None
    assert rig.pool.running_jobs() == [(job, job.thread.ident)] and rig.pool.busy
    job.released.set()
    rig.settle(0)
    assert rig.pool.running_jobs() == [] and not rig.pool.busy


def test_busy_while_a_job_waits(rig: Rig) -> None:
    rig.pool.jobs.append((lambda argument: None, None))
    assert rig.pool.busy
    rig.pool.jobs.clear()


# ---- who is woken


def test_one_thread_serves_jobs_that_come_one_after_the_other(rig: Rig) -> None:
    for _ in range(20):
        (job,) = rig.submit()
        rig.settle(1)
        job.released.set()
        rig.settle(0)
    assert len(rig.pool._threads) == 1
    assert rig.waiting_calls == 0  # nobody had to look


def test_a_thread_that_works_takes_the_next_jobs_itself(rig: Rig) -> None:
    jobs = rig.submit(5)
    rig.settle(1)
    rig.working.add(jobs[0].thread)
    for job in jobs:
        rig.settle(1)
        assert [rig.look() for _ in range(3)] == [LOOK_SECONDS] * 3 or job is jobs[-1]
        job.released.set()
    rig.settle(0)
    assert len({job.thread for job in jobs}) == 1
    assert rig.waiting_calls == 1


def test_jobs_run_in_order_after_many_jobs_that_came_alone(rig: Rig) -> None:
    """A count of working threads that only waking raises would make the one thread park between two jobs."""
    for _ in range(20):
        (job,) = rig.submit()
        job.released.set()
        rig.settle(0)
    jobs = rig.submit(5)
    for job in jobs:
        assert job.began.wait(BOUND_SECONDS)  # without a look
        job.released.set()
    rig.settle(0)


def test_the_thread_that_parked_last_is_woken_first(rig: Rig) -> None:
    jobs = rig.spread(3)
    for index in (1, 0, 2):
        jobs[index].released.set()
        wait_for(lambda index=index: jobs[index].thread in {state.thread for state in rig.pool._idle})
    parked_last = jobs[2].thread
    for _ in range(3):
        (job,) = rig.submit()
        rig.settle(1)
        assert job.thread is parked_last
        job.released.set()
        rig.settle(0)


def test_threads_double_while_all_are_blocked(rig: Rig) -> None:
    rig.submit(20)
    counts = [1]
    rig.settle(1)
    while len(rig.begun()) < 20:
        before = len(rig.pool._threads)
        assert rig.look() == LOOK_SECONDS
        rig.settle(len(rig.pool._threads))
        if len(rig.pool._threads) != before:
            counts.append(len(rig.pool._threads))
    assert counts == [1, 2, 4, 8, 16, 20]  # no more than there are jobs
    assert rig.look() is None


def test_the_cap_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig(monkeypatch, cap=3)
    try:
        rig.submit(10)
        for _ in range(20):
            rig.look()
            rig.settle(len(rig.pool._threads))
        assert len(rig.pool._threads) == 3 and len(rig.pool.jobs) == 7
        for job in rig.held:
            job.released.set()
        wait_for(lambda: rig.look() is None and all(job.ended.is_set() for job in rig.held))
        assert len(rig.pool._threads) == 3
    finally:
        rig.end()


def test_threads_that_work_are_not_multiplied(rig: Rig) -> None:
    jobs = rig.submit(10)
    rig.settle(1)
    rig.working.add(jobs[0].thread)
    for _ in range(50):
        assert rig.look() == LOOK_SECONDS
    assert len(rig.pool._threads) == 1
    rig.working.clear()  # now it blocks
    rig.look()
    rig.settle(2)


def test_one_that_works_is_enough(rig: Rig) -> None:
    jobs = rig.submit(10)
    rig.settle(1)
    for _ in range(4):
        rig.look()
    rig.settle(len(rig.pool._threads))
    count = len(rig.pool._threads)
    assert count > 1
    rig.working.add(jobs[1].thread)
    for _ in range(10):
        rig.look()
    assert len(rig.pool._threads) == count


def test_a_thread_that_has_just_been_woken_is_not_blocked_yet(rig: Rig) -> None:
    _, second = rig.spread(2)
    second.released.set()
    rig.settle(1)  # one runs blocked, one is idle
    rig.submit(5)
    rig.settle(2)
    rig.look()  # notes the time
    rig.look()  # the first reading of the one that was woken
    rig.settle(2)
    rig.look()
    rig.settle(4)


def test_a_job_that_comes_when_only_blocked_threads_run_is_not_kept_waiting(rig: Rig) -> None:
    """One long poll must not make each later request wait for a look."""
    first, second = rig.spread(2)
    second.released.set()
    rig.settle(1)
    for _ in range(10):
        (job,) = rig.submit()
        assert job.began.wait(BOUND_SECONDS)  # without a look
        assert job.thread is second.thread
        job.released.set()
        rig.settle(1)
    assert len(rig.pool._threads) == 2
    assert not first.ended.is_set()


def test_of_two_threads_that_work_the_first_to_finish_parks(rig: Rig) -> None:
    jobs = rig.submit(8)
    rig.settle(1)
    while len(rig.begun()) < 2:
        rig.look()
        rig.settle(len(rig.pool._threads))
    rig.working = {jobs[0].thread, jobs[1].thread}
    rig.look()
    jobs[0].released.set()
    rig.settle(1)
    assert len(rig.pool._idle) == 1 and len(rig.pool.jobs) == 6
    jobs[1].released.set()  # the last one goes on with the jobs
    for job in jobs[2:]:
        assert job.began.wait(BOUND_SECONDS)
        assert job.thread is jobs[1].thread
        job.released.set()
    rig.settle(0)


def test_a_blocked_thread_that_finishes_goes_on_beside_one_that_works(rig: Rig) -> None:
    jobs = rig.submit(8)
    rig.settle(1)
    while len(rig.begun()) < 2:
        rig.look()
        rig.settle(len(rig.pool._threads))
    rig.working = {jobs[0].thread}
    rig.look()
    rig.look()
    jobs[1].released.set()
    assert jobs[2].began.wait(BOUND_SECONDS)
    assert jobs[2].thread is jobs[1].thread


def test_a_thread_parked_while_jobs_wait_is_woken_when_the_other_blocks(rig: Rig) -> None:
    jobs = rig.submit(8)
    rig.settle(1)
    while len(rig.begun()) < 2:
        rig.look()
        rig.settle(len(rig.pool._threads))
    rig.working = {jobs[0].thread, jobs[1].thread}
    rig.look()
    jobs[0].released.set()
    rig.settle(1)
    rig.working.clear()
    rig.look()
    assert jobs[2].began.wait(BOUND_SECONDS)
    assert len(rig.pool._threads) == 2


def test_threads_that_step_back_at_the_same_time_do_not_all_park(pools: Callable[..., ThreadPool]) -> None:
    """Two threads finish at once, each sees the other work: the jobs that wait do not wait for a look."""
    pool = pools(2)
    both = threading.Barrier(2, timeout=BOUND_SECONDS)

    class Meeting(list[Any]):
        """The idle threads; the first two that park wait for each other before they go on."""

        def append(self, thread: Any) -> None:
            super().append(thread)
            if meetings:
                meetings.pop()
                both.wait()

    meetings = [1, 1]
    pool._idle = Meeting()
    jobs = [Held() for _ in range(4)]
    pool.jobs.extend((Held.run, job) for job in jobs)
    for _ in range(2):
        pool._start_thread()
    for job in jobs[:2]:
        assert job.began.wait(BOUND_SECONDS)
    for job in jobs:
        job.released.set()
    for job in jobs:
        assert job.ended.wait(BOUND_SECONDS)


def test_without_a_cpu_clock_more_are_woken_when_no_job_was_taken(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threadpool, "_own_clock", lambda: None)
    rig.submit(7)
    rig.settle(1)
    counts = []
    for _ in range(6):
        rig.look()
        rig.settle(len(rig.pool._threads))
        counts.append(len(rig.pool._threads))
    # The first look only notes the time; those that were woken have taken jobs, which the look after that sees
    assert counts == [1, 2, 2, 4, 4, 7]
    for job in rig.held:
        job.released.set()
    rig.settle(0)
    assert rig.look() is None
    rig.held.clear()
    rig.submit(4)
    rig.settle(1)
    counts = []
    for _ in range(4):
        rig.look()
        rig.settle(len(rig.pool._threads) - len(rig.pool._idle))
        counts.append(len(rig.begun()))
    assert counts == [1, 2, 2, 4]


def test_a_system_without_a_cpu_clock_is_recognised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threadpool, "time", SimpleNamespace())
    assert threadpool._own_clock() is None
    state = threadpool._Thread()
    assert not threadpool._has_worked(state, 0.001, False) and state.blocked
    assert threadpool._has_worked(state, 0.001, True) and not state.blocked


@pytest.mark.skipif(not hasattr(time, "pthread_getcpuclockid"), reason="no CPU clock of a thread")
def test_the_real_cpu_clock_tells_work_from_blocking() -> None:
    state = threadpool._Thread()
    state.clock = threadpool._own_clock()
    before = threadpool._cpu_seconds(state)
    while threadpool._cpu_seconds(state) - before < 0.001:
        pass
    assert threadpool._has_worked(state, 0.001, False) and not state.blocked
    assert not threadpool._has_worked(state, 3600.0, True) and state.blocked


# ---- look


def test_look_is_asked_for_once_and_until_no_job_waits(rig: Rig) -> None:
    assert rig.pool.look() is None
    jobs = rig.submit(3)
    rig.settle(1)
    assert rig.waiting_calls == 1 and rig.pool.watching
    assert rig.pool.look() == LOOK_SECONDS
    rig.now += LOOK_SECONDS / 4
    assert rig.pool.look() == pytest.approx(LOOK_SECONDS * 3 / 4)  # not more often than once a millisecond
    for job in jobs:
        job.released.set()
    rig.settle(0)
    assert rig.pool.look() is None and not rig.pool.watching
    jobs = rig.submit(2)
    assert rig.waiting_calls == 2
    for job in jobs:
        job.released.set()


def test_jobs_before_which_all_threads_have_parked_are_found_by_a_look(rig: Rig) -> None:
    rig.pool.submit(lambda _: None, None)
    rig.settle(0)
    (job,) = rig.held = [Held()]
    rig.pool.jobs.append((Held.run, job))
    rig.look()
    rig.look()
    assert job.began.wait(BOUND_SECONDS)


# ---- threads that cannot be started


def test_a_thread_that_the_system_refuses_is_tried_again(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    real = threading.Thread.start
    refused = [True]

    def start(thread: threading.Thread) -> None:
        if refused[0]:
            raise RuntimeError("can't start new thread")
        real(thread)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(threading.Thread, "start", start)
        (job,) = rig.submit()
        for _ in range(5):
            assert rig.look() == LOOK_SECONDS
        assert rig.pool._threads == []
        assert caplog.text.count("cannot start thread 1 of at most 32 (--threads): can't start new thread") == 1
        refused[0] = False
        rig.look()
        assert job.began.wait(BOUND_SECONDS)
        rig.submit()
        refused[0] = True
        for _ in range(5):
            rig.look()
        assert len(rig.pool._threads) == 1
        refused[0] = False
        rig.look()
        rig.settle(2)


# ---- hand-over


def test_who_takes_the_last_job_wakes_the_loop_for_what_was_posted(rig: Rig) -> None:
    loop = cast(FakeLoop, rig.pool.loop)
    jobs = rig.submit(3)
    rig.settle(1)
    assert loop.woken == 0  # nothing was posted
    loop.posted.append("an answer")
    for number, woken in enumerate([0, 1]):
        jobs[number].released.set()
        assert jobs[number + 1].began.wait(BOUND_SECONDS)
        assert loop.woken == woken


# ---- close


def test_close_ends_idle_threads_and_waits_for_busy_ones(rig: Rig) -> None:
    jobs = rig.spread(2)
    jobs[0].released.set()
    rig.settle(1)
    (idle,) = [state.thread for state in rig.pool._idle]
    rig.pool.close(0.0)
    assert idle is not None
    idle.join(BOUND_SECONDS)
    assert not idle.is_alive()
    assert len(rig.pool.running_jobs()) == 1  # it is left alone
    jobs[1].released.set()
    assert jobs[1].thread is not None
    jobs[1].thread.join(BOUND_SECONDS)
    assert not jobs[1].thread.is_alive() and not rig.pool.running_jobs()


def test_close_without_threads_and_twice(rig: Rig) -> None:
    rig.pool.close()
    rig.pool.close()


def test_jobs_that_wait_at_the_close_are_not_run(rig: Rig) -> None:
    running, waiting = rig.submit(2)
    rig.settle(1)
    rig.pool.close(0.0)
    running.released.set()
    assert running.thread is not None
    running.thread.join(BOUND_SECONDS)
    assert not running.thread.is_alive() and not waiting.began.is_set()
    assert rig.pool.look() is None


def test_submit_after_close_leaves_no_thread(rig: Rig) -> None:
    before = threading.active_count()
    rig.pool.close()
    rig.pool.submit(lambda _: None, None)
    wait_for(lambda: threading.active_count() == before)


def test_threads_that_park_while_the_pool_closes_end() -> None:
    for _ in range(100):
        pool = ThreadPool(2, FakeLoop())
        pool.submit(lambda _: None, None)
        pool.close(BOUND_SECONDS)
        assert not any(state.thread.is_alive() for state in pool._threads if state.thread)


# ---- under load, with the real loop and the real clock


def serve_jobs(job: Callable[[int], object], count: int, width: int, cap: int = 16) -> ThreadPool:
    """Run `count` jobs, `width` at a time, as a server does: each end is told to the loop, which submits the next."""
    loop = Loop()
    pool = ThreadPool(cap, loop)
    call_soon = loop.batched_call_soon(pool.jobs)
    ran = [0] * count
    submitted = 0
    ended = 0

    def work(number: int) -> None:
        try:
            ran[number] += 1
            job(number)
        finally:
            call_soon(on_end)

    def on_end() -> None:
        nonlocal submitted, ended
        ended += 1
        if submitted < count:
            submitted += 1
            pool.submit(work, submitted - 1)
        elif ended == count:
            loop.stop()

    late: list[bool] = []
    loop.call_later(BOUND_SECONDS, lambda: (late.append(True), loop.stop()))
    for _ in range(width):
        submitted += 1
        pool.submit(work, submitted - 1)
    loop.run()
    pool.close(BOUND_SECONDS)
    loop.close()
    assert not late, f"a job was lost: {ran.count(0)} have not run"
    assert ran == [1] * count
    assert not any(state.thread.is_alive() for state in pool._threads if state.thread)
    return pool


def test_no_wake_up_is_lost_with_short_jobs() -> None:
    for width in (1, 2, 3, 64):
        serve_jobs(lambda number: None, 3000, width)


def test_no_wake_up_is_lost_with_jobs_that_block_now_and_then() -> None:
    random_number = random.Random(7)
    blocks = [random_number.random() < 0.05 for _ in range(2000)]
    lock = threading.Event()
    pool = serve_jobs(lambda number: blocks[number] and lock.wait(0.002), 2000, 24)
    assert 1 < len(pool._threads) <= 16


def test_jobs_that_wait_for_each_other_all_get_a_thread() -> None:
    meeting = threading.Barrier(16, timeout=BOUND_SECONDS)
    pool = serve_jobs(lambda number: meeting.wait(), 64, 32)
    assert len(pool._threads) == 16


def test_jobs_of_several_loops_turns_and_failures() -> None:
    def fail_sometimes(number: int) -> None:
        if number % 7 == 0:
            raise SystemExit(number)

    level = threadpool.logger.level
    threadpool.logger.setLevel("CRITICAL")
    try:
        serve_jobs(fail_sometimes, 500, 8)
    finally:
        threadpool.logger.setLevel(level)


def test_failure_that_cannot_be_logged_ends_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("its traceback cannot be shown")

    monkeypatch.setattr(threadpool_module.logger, "exception", fail)
    monkeypatch.setattr(threadpool_module.logger, "error", fail)
    threadpool_module._log_failed_job(ValueError())
