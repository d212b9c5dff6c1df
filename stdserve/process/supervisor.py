"""The supervisor: binds, forks workers, watches them, replaces them; it never serves.

    run
        listeners, preload, pidfile
        turn*       start workers that are missing -> wait -> words of workers -> verbs of signals -> the dead -> time
        -> exit code; in a child: the Server that it is to run

A worker counts as one of ours until it is `leaving`: because its generation is old (HUP), because it asked for a
successor (--max-requests and the like), or because there are too many (TTOU). Two rules do everything:

    start       while fewer than `target` of ours live (booting or ready)
    retire      those that leave, once `target` of ours are ready

so whoever leaves serves until the successor does. A worker that dies is no special case: it is missing.

The supervisor imports neither the application (but for --preload) nor protocol code, so what they do cannot hurt it.
Signals: signals.py. It does not know HTTP.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import selectors
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from ..errors import StdserveError
from ..mailbox import Mailbox
from ..transport.https import load_certificates, mark_schemes, open_all
from ..transport.listener import Listener
from .channel import Channel
from .child import BOOTING, DRAINING, READY, Worker
from .deaths import LastWords, OutOfMemoryCount, describe_death
from .development import Changes, for_development
from .identity import Pidfile, drop_privileges, notify, own_logs, own_sockets, set_title, watchdog_seconds
from .inherit import Start, Succession
from .signals import VERBS, forget_handlers
from .slots import RequestSlots

if TYPE_CHECKING:
    from ..config import Config
    from ..gateway.loader import Application
    from ..server import Server
    from ..transport.certificates import Certificates

logger = logging.getLogger("stdserve.error")

# A worker that has lived this long was no part of a crash loop.
_STEADY_SECONDS = 10.0
_BACK_OFF_SECONDS = 0.25
_BACK_OFF_MOST_SECONDS = 30.0

# What a worker gets on top of its own time limits before it is killed: they are its own business, this is for bugs.
_KILL_SLACK_SECONDS = 10.0
_QUICK_SECONDS = 2.0
_ABORT_SECONDS = 2.0

# How often the successor of another supervisor looks whether that one has gone
_SUCCESSION_SECONDS = 0.5


class _Before(NamedTuple):
    """What a reload that fails goes back to."""

    config: Config
    generation: int
    target: int
    listeners: list[Listener]
    certificates: Certificates | None


class Supervisor:
    """`run` once. `reread` makes the Config of a reload, `start` tells how to start a successor, `on_serving` is called
    when all workers serve for the first time; the system's calls can be replaced (fork, kill, waitpid)."""

    def __init__(
        self,
        config: Config,
        reread: Callable[[], Config] | None = None,
        start: Start | None = None,
        *,
        on_serving: Callable[[], object] = lambda: None,
        system: Any = os,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.config = for_development(config)
        self.target = config.workers or 1
        self.generation = 1
        self.workers: dict[int, Worker] = {}
        self.listeners: list[Listener] = []
        self.exit_code = 0
        self._reread = reread
        self._succession = Succession(start)
        self._on_serving: Callable[[], object] | None = on_serving
        self._os = system
        self._clock = clock
        self._mailbox = Mailbox()
        self._selector: selectors.BaseSelector | None = None
        self._application: Application | None = None
        self._certificates: Certificates | None = None  # loaded here: workers may not be allowed to read the keys
        self._pidfile: Pidfile | None = None
        self._out_of_memory = OutOfMemoryCount()
        self._watchdog = watchdog_seconds()
        self._stopping = False
        self._interrupted = False
        self._booted = False  # a worker has been ready once
        self._before: _Before | None = None  # while a reload runs
        self._generations = 1  # so many have been begun
        self._prepared = False
        self._failures = 0  # in a row
        self._started = 0  # workers so far
        self._started_at_failure = 0
        self._start_at = 0.0  # not before
        self._pinged_at = 0.0
        self._changes: Changes | None = None
        self._held = False  # until a file changes: what there is cannot start
        self._child: Server | None = None

    def run(self) -> int | Server:
        """The exit code when all is over; in each child the Server to run. Raises StdserveError if the start fails."""
        own_pid = os.getpid()
        try:
            self._mailbox.open()
            with self._mailbox.signals(dict.fromkeys(VERBS, self._on_signal)):
                self._prepare()
                logger.info("Started supervisor process [%d]", own_pid)
                self._announce()
                while not (self._stopping and not self.workers):
                    self._turn()
                    if self._child is not None:
                        break
        finally:
            if os.getpid() == own_pid:
                self._close()
        if self._child is not None:
            forget_handlers()
            return self._child
        logger.info("Finished supervisor process [%d]", own_pid)
        return self.exit_code

    def _prepare(self) -> None:
        config = self.config
        inherited = self._succession.inherit(os.environ)
        self._pidfile = Pidfile.make(config.pid and config.pid + ".2" * bool(inherited))
        self._certificates = load_certificates(config)
        self.listeners = open_all(config, inherited=inherited)
        own_sockets(config, self.listeners)
        own_logs(config)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._mailbox.fileno(), selectors.EVENT_READ)
        set_title(config.name, "supervisor")
        if config.reload:
            self._changes = Changes(config)
            if self._changes.fileno() >= 0:
                self._selector.register(self._changes.fileno(), selectors.EVENT_READ)
        if config.preload:
            self._preload()
        self._prepared = True

    def _preload(self) -> None:
        """Import the application once, so that the workers share its memory."""
        from ..gateway.loader import load

        self._application = load(self.config)
        if self._application.interface != "wsgi":  # later --user may not be allowed to read it
            import asyncio  # noqa: F401

            from ..gateway import asgi, lifespan  # noqa: F401
        others = [thread.name for thread in threading.enumerate() if thread is not threading.main_thread()]
        if others:
            logger.warning("--preload: threads do not survive the fork: %s", ", ".join(others))
        gc.collect()
        gc.freeze()  # what the collector does not touch stays shared

    def _announce(self) -> None:
        for listener in self.listeners:
            logger.info("stdserve running on %s (Press CTRL+C to quit)", listener.url)

    def _on_signal(self, number: int, frame: Any) -> None:
        verb = VERBS[signal.Signals(number)]
        if not self._prepared and verb in ("stop", "interrupt", "quick"):
            raise KeyboardInterrupt  # an application that is imported here (--preload) may take its time
        self._mailbox.put(verb)

    # ---- a turn

    def _turn(self) -> None:
        self._start_missing()
        if self._child is not None:
            return
        self._retire_leaving()
        for worker in self._wait():
            self._hear(worker)
        for verb in self._mailbox.take():
            getattr(self, f"_on_{verb}")()
        self._reap()
        self._keep_time()
        if self._changes is not None:
            names = self._changes.take_rested(self._clock())
            if names and not self._stopping:
                self._start_anew(names)

    def _wait(self) -> list[Worker]:
        """Wait until something happens or is due; workers that have said something."""
        assert self._selector is not None
        now = self._clock()
        due = [worker.kill_at for worker in self.workers.values()]
        if self._ours_missing():
            due.append(self._start_at)
        if self._ping_seconds:
            due.append(self._pinged_at + self._ping_seconds)
        if self._changes is not None and not self._stopping:
            due.append(self._changes.due)
        if self._succession.predecessor:
            due.append(now + _SUCCESSION_SECONDS)
        left = min(due, default=float("inf")) - now
        ready = self._selector.select(None if left == float("inf") else max(left, 0.0))
        return [key.data for key, _ in ready if key.data is not None]

    # ---- starting

    def _ours(self) -> list[Worker]:
        return [worker for worker in self.workers.values() if not worker.leaving]

    def _ours_missing(self) -> int:
        """How many workers there should be more."""
        return 0 if self._stopping or self._held else max(0, self.target - len(self._ours()))

    def _start_missing(self) -> None:
        while self._ours_missing() and self._clock() >= self._start_at and self._child is None:
            self._start()

    def _start(self) -> None:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError, AttributeError):  # nobody reads it, it is closed, it is None
                stream.flush()
        # A signal that came to the child before it has handlers of its own would run the supervisor's: there they stay
        # blocked until `run` has ended.
        old_mask = signal.pthread_sigmask(signal.SIG_BLOCK, VERBS)
        pid = -1
        with contextlib.ExitStack() as undo:
            try:
                channel, theirs = Channel.pair()
                undo.callback(channel.close)
                undo.callback(theirs.close)
                slots = RequestSlots()
                undo.callback(slots.close)
                last_words = LastWords()
                undo.callback(last_words.close)
                pid = self._os.fork()
            except OSError as error:
                logger.error("cannot start a worker: %s", error)
                self._back_off()
                return
            finally:
                if pid:
                    signal.pthread_sigmask(signal.SIG_SETMASK, old_mask)
            undo.pop_all()
        if not pid:
            self._become_worker(theirs, slots, last_words, channel)
            return
        theirs.close()
        self._started += 1
        worker = Worker(pid, self._started, self.generation, channel, slots, last_words, self._clock())
        self.workers[pid] = worker
        if self.config.timeout_boot:
            worker.kill_at = worker.started + self.config.timeout_boot
        assert self._selector is not None
        self._selector.register(channel, selectors.EVENT_READ, worker)

    def _become_worker(self, channel: Channel, slots: RequestSlots, last_words: LastWords, parents: Channel) -> None:
        """In the child: let go of all that is the supervisor's. `run` returns the Server."""
        assert self._selector is not None
        self._selector.close()
        self._mailbox.close()
        if self._changes is not None:
            self._changes.close()
        # As long as a child held another's channel, that other would not see its parent die.
        parents.close()
        for worker in self.workers.values():
            worker.channel.close()
            worker.last_words.close()
        self.workers.clear()
        if self._before is not None:
            _close_other(self._before.listeners, self.listeners)
        self._succession.close()
        from .worker import make_server  # before the right to read our own code may be gone

        config = self.config
        set_title(config.name, "worker")
        listeners = [listener.twin(config) if listener.reserved else listener for listener in self.listeners]
        drop_privileges(config)
        last_words.capture()
        self._child = make_server(config, listeners, channel, slots, self._application, self._certificates)

    # ---- words of workers

    def _hear(self, worker: Worker) -> None:
        words = worker.channel.receive()
        if words is None:  # it is dying; waitpid tells of what
            self._forget_channel(worker)
            return
        for line in words:
            word, _, rest = line.partition(" ")
            if word == "ready":
                self._on_ready(worker)
            elif word == "alive":
                worker.pinged = 0.0
            elif word == "stopping" and worker.state is READY:
                worker.state, worker.leaving = DRAINING, True
            elif word == "recycle":
                worker.wish = rest

    def _on_ready(self, worker: Worker) -> None:
        if worker.state is not BOOTING:
            return
        worker.state = READY
        worker.kill_at = float("inf")
        self._booted = True
        logger.info("Worker [%d] is ready", worker.pid)
        if self._count_ready() >= self.target:
            if self._before is not None:
                logger.info("Reloaded: generation %d serves", self.generation)
                _close_other(self._before.listeners, self.listeners)
                self._failures = 0
            self._before = None
            notify("READY=1", f"STATUS={self.target} workers serve")
            if self._on_serving is not None:
                self._on_serving()
                self._on_serving = None

    def _count_ready(self) -> int:
        return sum(worker.state is READY for worker in self._ours())

    def _retire_leaving(self) -> None:
        """Who leaves goes when enough others serve."""
        if self._stopping or self._count_ready() < self.target:
            return
        for worker in self.workers.values():
            if worker.leaving and not worker.asked:
                self._ask_to_stop(worker)
        if len(self._ours()) == len(self.workers):  # one successor at a time
            wishes = [worker for worker in self.workers.values() if worker.wish]
            if wishes:
                logger.info("Worker [%d] is replaced: %s", wishes[0].pid, wishes[0].wish)
                wishes[0].leaving = True

    def _ask_to_stop(self, worker: Worker) -> None:
        config = self.config
        worker.asked = worker.leaving = True
        limits = config.timeout_graceful_shutdown + config.timeout_lifespan_shutdown
        worker.kill_at = self._clock() + limits + _KILL_SLACK_SECONDS
        self._kill(worker, signal.SIGTERM)
        worker.channel.send("stop")  # the application may have blocked or taken the signal

    # ---- signals

    def _on_stop(self) -> None:
        """TERM: all workers end gracefully, then the supervisor."""
        if self._stopping:
            return
        self._begin_stop()
        logger.info("Shutting down")
        for worker in self.workers.values():
            if not worker.asked:
                self._ask_to_stop(worker)

    def _on_interrupt(self) -> None:
        """INT: gracefully at first; the second one forces. A terminal sends it to the workers, too."""
        if self._interrupted:
            self._on_quick()
            return
        self._interrupted = True
        self._on_stop()

    def _on_quick(self) -> None:
        """QUIT: no request is waited for. But it also undoes an upgrade, and then nothing is lost: others serve."""
        if self._succession.predecessor and not self._stopping:
            self._on_stop()
            return
        self._begin_stop()
        for worker in self.workers.values():
            worker.asked = worker.leaving = True
            worker.kill_at = min(worker.kill_at, self._clock() + _QUICK_SECONDS)
            self._kill(worker, signal.SIGQUIT)

    def _begin_stop(self) -> None:
        if not self._stopping:
            self._stopping = True
            successor = self._succession.successor
            notify(f"MAINPID={successor}" if successor else "STOPPING=1")

    def _on_reload(self) -> None:
        """HUP: a new generation with the configuration as it is now; the old one serves until that is ready."""
        if self._stopping:
            return
        if self._before is not None:
            logger.info("Reloading anew: the workers that are starting are given up")
        else:
            logger.info("Reloading")
        notify("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")
        config, listeners = self.config, self.listeners
        try:
            if self._reread is not None:
                config = self._reread()
            certificates = load_certificates(config, self._certificates)
            if self._reread is not None:
                listeners = self._reopen(config)
        except StdserveError as error:
            logger.error("The configuration cannot be used, the old one stays: %s", error)
            notify("READY=1")
            return
        if config.preload and not config.reload:
            logger.warning("--preload: the application was imported when the supervisor started, and stays as it was")
        if self._before is None:
            self._before = _Before(self.config, self.generation, self.target, self.listeners, self._certificates)
        else:
            _close_other(self.listeners, [*listeners, *self._before.listeners])
        self.config, self.listeners, self._certificates = for_development(config), listeners, certificates
        self.target = config.workers or self.target or 1
        self._generations += 1
        self.generation = self._generations
        self._start_at = 0.0
        self._failures = 0
        for worker in self.workers.values():
            worker.leaving = True
            if worker.state is BOOTING:
                self._give_up_booting(worker)

    def _reopen(self, config: Config) -> list[Listener]:
        """The listeners for a new configuration: what is open already stays as it is."""
        if _addresses(config) == _addresses(self.config):
            mark_schemes(self.listeners, config)
            return self.listeners
        listeners = open_all(config, kept=self.listeners)
        new = [listener for listener in listeners if listener not in self.listeners]
        own_sockets(config, new)
        for listener in new:
            logger.info("stdserve running on %s", listener.url)
        return listeners

    def _abort_reload(self) -> None:
        """A worker of the new generation cannot boot: the old generation stays."""
        assert self._before is not None
        logger.error("The new workers cannot start: the old ones go on serving")
        _close_other(self.listeners, self._before.listeners)
        self.config, self.generation, self.target, self.listeners, self._certificates = self._before
        self._before = None
        for worker in self.workers.values():
            if worker.asked:
                continue
            if worker.generation == self.generation:
                worker.leaving = worker.state is DRAINING
            elif worker.state is BOOTING:
                self._give_up_booting(worker)
            else:
                self._ask_to_stop(worker)
        notify("READY=1", "STATUS=reload failed, the old workers serve")

    def _give_up_booting(self, worker: Worker) -> None:
        """It has no request to lose."""
        if not worker.asked:
            worker.leaving = worker.asked = True
            worker.kill_at = self._clock() + _QUICK_SECONDS
            self._kill(worker, signal.SIGQUIT)

    def _on_reopen(self) -> None:
        """USR1: log files are opened anew, here and in the workers."""
        from ..logs import reopen_logs

        reopen_logs()
        own_logs(self.config)
        for worker in self.workers.values():
            self._kill(worker, signal.SIGUSR1)

    def _on_more(self) -> None:
        self._scale(self.target + 1)

    def _on_fewer(self) -> None:
        self._scale(max(min(1, self.target), self.target - 1))

    def _on_park(self) -> None:
        """WINCH: no workers, until HUP or TTIN. Only of a daemon: a terminal sends it when its window changes."""
        if self.config.daemon:
            self._scale(0)

    def _scale(self, target: int) -> None:
        """TTIN and TTOU: another number of workers; of too many the oldest go."""
        if self._stopping or target == self.target:
            return
        self.target = target
        logger.info("The number of workers is now %d", target)
        surplus = sorted(self._ours(), key=lambda worker: worker.started)[: max(0, len(self._ours()) - target)]
        for worker in surplus:
            worker.leaving = True

    def _on_upgrade(self) -> None:
        """USR2: another supervisor over our sockets; which of the two goes is the operator's choice."""
        if not self._stopping:
            self._succession.upgrade(self.listeners)

    # ---- the dead

    def _on_reap(self) -> None:
        """CHLD: each turn looks for the dead."""

    def _reap(self) -> None:
        while self.workers or self._succession.successor:
            try:
                pid, status = self._os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                return
            worker = None if self._succession.take_death(pid, status) else self.workers.pop(pid, None)
            if worker is not None:  # else somebody else's: as process 1 of a container we inherit orphans
                self._on_death(worker, status)

    def _on_death(self, worker: Worker, status: int) -> None:
        self._forget_channel(worker)
        running = worker.slots.running()
        worker.slots.close()
        last_words = worker.last_words.read()
        worker.last_words.close()
        code = os.waitstatus_to_exitcode(status)
        if worker.asked or self._stopping or (worker.state is DRAINING and not code):
            logger.info("Worker [%d] has stopped", worker.pid)
            return
        reason = worker.killed or describe_death(code, self._out_of_memory)
        logger.error("Worker [%d] died: %s%s", worker.pid, reason, f", while {worker.state}" * (worker.state != READY))
        for request in running:
            logger.error("Worker [%d] was running %s", worker.pid, request)
        if last_words:
            logger.error("Worker [%d] stood here:\n%s", worker.pid, last_words)
        if worker.leaving and worker.state is not BOOTING:
            return
        if worker.state is BOOTING and self.config.reload:
            self._held = True
            logger.info("Waiting for a file to change")
        elif worker.state is BOOTING and not self._booted:
            self._give_up(code)
        elif worker.state is BOOTING and self._before is not None and worker.generation == self.generation:
            self._abort_reload()
        elif worker.state is BOOTING or self._clock() - worker.started < _STEADY_SECONDS:
            if worker.serial > self._started_at_failure:  # of those that die together only one counts
                self._back_off()
        else:
            self._failures = 0

    def _give_up(self, code: int) -> None:
        """The first workers could not boot: neither will others."""
        if not self._stopping:
            self.exit_code = code if code > 0 else 1
            logger.error("A worker could not start: the supervisor ends")
        self._on_quick()

    def _back_off(self) -> None:
        """Wait longer and longer before the next start; the first successor comes at once."""
        self._failures += 1
        self._started_at_failure = self._started
        if self._failures > 1:
            seconds = min(_BACK_OFF_SECONDS * 2 ** (self._failures - 2), _BACK_OFF_MOST_SECONDS)
            logger.warning("Workers die again and again: the next start is in %g s", seconds)
            self._start_at = self._clock() + seconds

    def _forget_channel(self, worker: Worker) -> None:
        if worker.channel.fileno() != -1 and self._selector is not None:
            self._selector.unregister(worker.channel)
            worker.channel.close()

    # ---- files (--reload)

    def _start_anew(self, names: str) -> None:
        """The old workers stop at once, so that nobody sees old code after a change; requests wait in the listeners'
        queue until the new ones serve."""
        logger.info("Reloading: %s changed", names)
        self._held = False
        self._start_at = 0.0
        for worker in self.workers.values():
            if not worker.asked:
                self._ask_to_stop(worker)

    # ---- time

    def _keep_time(self) -> None:
        now = self._clock()
        for worker in self.workers.values():
            if worker.kill_at <= now:
                self._kill_late(worker)
        if self._succession.has_come():
            if self._pidfile is not None:
                self._pidfile.move(self.config.pid)
            notify(f"MAINPID={os.getpid()}", "READY=1")
        if self._ping_seconds and now >= self._pinged_at + self._ping_seconds:
            self._pinged_at = now
            if self._watchdog and not any(worker.pinged for worker in self._ours()):
                notify("WATCHDOG=1")  # fed only while all workers answer
            for worker in self.workers.values():
                self._ping(worker, now)

    @property
    def _ping_seconds(self) -> float:
        """How often workers are asked whether they live; 0: never."""
        wanted = [seconds / 4 for seconds in (self.config.timeout, self._watchdog) if seconds]
        return max(min(wanted), 0.1) if wanted else 0.0

    def _ping(self, worker: Worker, now: float) -> None:
        """Ask the worker's loop for an answer; one that has not answered for --timeout is ended."""
        if worker.state is BOOTING or worker.kill_at != float("inf"):
            return
        if not worker.pinged:
            worker.pinged = now
            worker.channel.send("ping")
        elif self.config.timeout and now - worker.pinged >= self.config.timeout:
            text = "Worker [%d] has not answered for %g s (--timeout), its loop is blocked: aborted, see its stacks"
            logger.critical(text, worker.pid, now - worker.pinged)
            for request in worker.slots.running():
                logger.critical("Worker [%d] is running %s", worker.pid, request)
            worker.kill_at = now + _ABORT_SECONDS
            worker.killed = "its loop was blocked (--timeout)"
            self._kill(worker, signal.SIGABRT)

    def _kill_late(self, worker: Worker) -> None:
        if worker.state is BOOTING and not worker.asked:
            worker.killed = f"not ready after {self.config.timeout_boot:g} s (--timeout-boot)"
        else:
            logger.error("Worker [%d] does not end: it is killed", worker.pid)
        worker.kill_at = float("inf")
        self._kill(worker, signal.SIGKILL)

    def _kill(self, worker: Worker, number: signal.Signals) -> None:
        try:
            self._os.kill(worker.pid, number)
        except ProcessLookupError:
            logger.debug("worker [%d] has gone already", worker.pid)

    def _close(self) -> None:
        """Also after an error: no worker stays behind."""
        for worker in self.workers.values():
            self._kill(worker, signal.SIGKILL)
            self._os.waitpid(worker.pid, 0)
            self._forget_channel(worker)
            worker.last_words.close()
        self.workers.clear()
        shared = bool(self._succession.successor or self._succession.predecessor)
        for listener in {*self.listeners, *(self._before.listeners if self._before else ())}:
            listener.close(keep_file=shared)
        self._succession.close()
        if self._selector is not None:
            self._selector.close()
        self._mailbox.close()
        if self._changes is not None:
            self._changes.close()
        if self._pidfile is not None:
            self._pidfile.remove()


def _close_other(listeners: list[Listener], kept: list[Listener]) -> None:
    for listener in listeners:
        if listener not in kept:
            listener.close()


def _addresses(config: Config) -> tuple[object, ...]:
    return config.bind, config.host, config.port, config.uds, config.fd, config.https_redirect
