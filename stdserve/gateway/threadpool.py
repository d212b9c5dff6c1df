"""Threads that run a blocking application, woken by need.

Threads that are runnable at the same time fight for the GIL: eight plain pool threads make a small request two to five
times as dear as one does. With one thread a blocking application stands still. So the number of threads that run
follows what the application does:

- Jobs go to one deque. A thread that has finished takes the next job itself. Idle threads are a stack, so the one whose
  memory is warmest is woken first.
- A job that comes when no thread runs, or only such as are known to be blocked, wakes one.
- While jobs wait, at most once a millisecond, `look` reads the CPU clock of each running thread. One whose clock moved
  less than a tenth of the time that passed is blocked, in I/O or on a lock. If all are blocked, as many more as run
  already are woken (1, 2, 4, ...), up to the jobs that wait and the cap. Where threads have no such clock (macOS) they
  count as blocked when none has taken a job since the last look.
- A thread that finishes while it is not the only one that works parks instead of taking the next job.

The loop and the pool do not run at the same time if that can be helped, for each would make the other wait for the GIL
at every system call. So a thread is woken when the loop has read all there was to read (`defer`), and what the
threads hand back to the loop wakes that when the last job that waits has been taken (`wake`).

Who may call: `submit` and `look` the loop thread; everything a pool thread does is in `_run`. There is no lock: the
two sides meet in `jobs` and `_idle`, whose operations are atomic, in an order that loses no wake-up (see `_run`).
Each job that waits has a thread on its way to it, or `look` being called. How many threads work is counted anew each
time: a count that two sides keep up drifts.
"""

from __future__ import annotations

import contextlib
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sized
from typing import Any, Protocol

logger = logging.getLogger("stdserve.error")

Job = tuple[Callable[[Any], object], Any]

LOOK_SECONDS = 0.001


class _Thread:
    """One pool thread. `wake` is a semaphore with one place. The loop thread notes `cpu` and `blocked` at each look."""

    __slots__ = ("blocked", "clock", "cpu", "job", "parked", "thread", "wake")

    def __init__(self) -> None:
        self.wake = threading.Lock()
        self.wake.acquire()
        self.thread: threading.Thread | None = None
        self.clock: int | None = None
        self.cpu = 0.0
        self.blocked = False
        self.parked = False
        self.job: Job | None = None  # what it runs now, for reports


class JobSource(Protocol):
    """What a pool needs of the loop that feeds it."""

    @property
    def posted(self) -> Sized:
        """What threads have handed to the loop and it has not yet dealt with."""

    @property
    def defer(self) -> Callable[[Callable[[], object]], object]:
        """Call it before the next poll."""

    def wake(self) -> None:
        """Deal with what was posted; from any thread."""

    def pace(self, hook: Callable[[], float | None]) -> None:
        """Call `hook` before each poll, which may take no longer than the seconds it returns, until it returns None."""


class ThreadPool:
    """At most `cap` threads, started when first needed. `jobs` are those that no thread has taken yet."""

    def __init__(self, cap: int, loop: JobSource, name: str = "stdserve-pool") -> None:
        self.cap = cap
        self.watching = False
        self.jobs: deque[Job] = deque()
        self.loop = loop
        self._defer = loop.defer
        self._name = name
        self._idle: list[_Thread] = []
        self._threads: list[_Thread] = []
        self._submitted = 0  # jobs so far
        self._taken = 0  # of them, by threads, at the last look
        self._looked_at = 0.0
        self._start_failed = False
        self._closing = False

    # ---- loop thread

    def submit(self, function: Callable[[Any], object], argument: Any) -> None:
        """Run `function(argument)` in a pool thread."""
        self.jobs.append((function, argument))
        self._submitted += 1
        for thread in self._threads:
            if not (thread.parked or thread.blocked):
                break  # it works, so it may soon take the job
        else:
            if self._wake_one() and len(self.jobs) <= 1:
                return  # the thread that wakes takes it
        if not self.watching:
            self.watching = True
            self._looked_at = 0.0
            self.loop.pace(self.look)

    def look(self) -> float | None:
        """Wake more threads if all that run are blocked. Seconds until the next look is due; None if no job waits, and
        then there is nothing to look at until a job has to wait again."""
        if not self.jobs or self._closing:
            self.watching = False
            return None
        now = time.monotonic()
        if not self._looked_at:
            self._looked_at = now
            self._taken = self._submitted - len(self.jobs)
            return LOOK_SECONDS
        elapsed = now - self._looked_at
        if elapsed < LOOK_SECONDS:
            return LOOK_SECONDS - elapsed
        self._looked_at = now
        taken_before, self._taken = self._taken, self._submitted - len(self.jobs)
        running = [thread for thread in self._threads if not thread.parked]
        if not sum([_has_worked(thread, elapsed, self._taken > taken_before) for thread in running]):
            for _ in range(min(len(running) or 1, len(self.jobs), self.cap - len(running))):
                self._wake_one()
        return LOOK_SECONDS

    def _wake_one(self) -> bool:
        """Wake the thread that parked last; start one if none is parked and the cap allows. Whether one comes."""
        try:
            thread = self._idle.pop()
        except IndexError:
            return len(self._threads) < self.cap and self._start_thread()
        thread.blocked = thread.parked = False
        thread.cpu = -math.inf  # so that the next look finds that it has worked: it has only just begun
        self._defer(thread.wake.release)
        return True

    def _start_thread(self) -> bool:
        state = _Thread()
        name = f"{self._name}-{len(self._threads) + 1}"
        # Daemonic: an application that blocks for ever must not keep the process from ending.
        state.thread = threading.Thread(target=self._run, args=(state,), name=name, daemon=True)
        self._threads.append(state)
        try:
            state.thread.start()
        except RuntimeError as error:  # the system's limit; `look` tries again while the job waits
            self._threads.pop()
            if not self._start_failed:
                text = "cannot start thread %d of at most %d (--threads): %s"
                logger.error(text, len(self._threads) + 1, self.cap, error)
            self._start_failed = True
            return False
        self._start_failed = False
        return True

    def close(self, wait_seconds: float = 1.0) -> None:
        """Let the threads end: idle ones now, busy ones after their job. Waits for those that do within the time. Jobs
        that still wait are not run."""
        self._closing = True
        deadline = time.monotonic() + wait_seconds
        while self._idle:
            with contextlib.suppress(IndexError):  # it has seen for itself that the pool closes
                self._idle.pop().wake.release()
        for state in self._threads:
            if state.thread is not None:
                state.thread.join(max(0.0, deadline - time.monotonic()))

    # ---- for reports, from any thread

    def running_jobs(self) -> list[tuple[Any, int]]:
        """(argument of the job, thread identifier) of what runs now."""
        found = []
        for state in list(self._threads):
            job, thread = state.job, state.thread
            if job is not None and thread is not None and thread.ident is not None:
                found.append((job[1], thread.ident))
        return found

    @property
    def busy(self) -> bool:
        """Whether a job runs or waits, or a thread may be about to take one."""
        return bool(self.jobs) or not all(state.parked for state in self._threads)

    # ---- pool threads

    def _run(self, me: _Thread) -> None:
        me.clock = _own_clock()
        jobs, idle, posted = self.jobs, self._idle, self.loop.posted
        while not self._closing:
            try:
                job = jobs.popleft()
            except IndexError:
                me.parked = True
                idle.append(me)
                # A job may have come between the look and the parking, and its submitter saw us running. We are on the
                # stack now, so either the look here sees the job, or the submitter sees us parked. `close` likewise.
                if not ((jobs or self._closing) and self._unpark(me)):
                    me.wake.acquire()
                continue
            me.job = job
            if posted and not jobs:
                self.loop.wake()
            try:
                job[0](job[1])
            except BaseException as error:
                # SystemExit from an application ends its request, never a thread of the pool
                _log_failed_job(error)
            me.job = job = None  # type: ignore[assignment]
            if jobs and not me.blocked and len(self._threads) - len(idle) > 1:
                self._step_back(me)

    def _step_back(self, me: _Thread) -> None:
        """Park if another thread works, though jobs wait: it takes them."""
        if not any(not (thread.parked or thread.blocked or thread is me) for thread in self._threads):
            return
        me.parked = True
        self._idle.append(me)
        # Two that step back at the same time have counted on each other: who sees that nobody is left goes on.
        nobody_left = len(self._idle) == len(self._threads)
        if not ((nobody_left or self._closing) and self._unpark(me)):
            me.wake.acquire()

    def _unpark(self, me: _Thread) -> bool:
        try:
            self._idle.remove(me)
        except ValueError:  # somebody is waking us
            return False
        me.blocked = me.parked = False
        return True


def _log_failed_job(error: BaseException) -> None:
    """Whatever it takes: without this thread its requests would count as running for ever."""
    try:
        logger.exception("a job of the thread pool failed")
    except Exception:  # an exception whose traceback cannot be shown
        with contextlib.suppress(Exception):
            logger.error("a job of the thread pool failed: %s", type(error).__name__, exc_info=False)


def _own_clock() -> int | None:
    """The CPU clock of the calling thread; None where the system has none (macOS)."""
    if not hasattr(time, "pthread_getcpuclockid"):
        return None
    return time.pthread_getcpuclockid(threading.get_ident())


def _cpu_seconds(thread: _Thread) -> float:
    """CPU time of a thread that lives and has begun."""
    return 0.0 if thread.clock is None else time.clock_gettime(thread.clock)


def _has_worked(thread: _Thread, elapsed: float, job_taken: bool) -> bool:
    """Whether the thread has used a tenth of the `elapsed` seconds since the last look.

    Where there is no such clock it has if any job was taken since then: more threads are woken when none was.
    """
    cpu = _cpu_seconds(thread)
    worked = job_taken if thread.clock is None else cpu - thread.cpu > elapsed / 10
    thread.cpu = cpu
    thread.blocked = not worked
    return worked
