"""One process's serving life: build the rooms, start, serve, drain, stop. The only file that knows all rooms.

    main thread          Server.run: load, bind -> signals -> watch: a queue of verbs, the time limits of the stop
    loop thread          the Loop alone (WSGI) or under asyncio (ASGI); all connections; the ASGI application
    pool threads         the WSGI application

    start:  load application -> open listeners -> loop thread -> (lifespan startup) -> accept
    stop:   stop accepting -> drain connections -> (limit: name what runs, tell it, cancel it) -> (lifespan shutdown)

The main thread runs no code of the application once it serves, so it answers signals and keeps the time limits of the
stop whatever the application does. With `main_loop` the loop runs in the main thread, for applications that set signal
handlers of their own, and the watch in a helper thread.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from . import logs
from .access import AccessLog, make_access_log
from .asyncio_host import OWN_HOSTS, AsyncioHost, hint_main_loop, task_stack
from .config import Config
from .errors import StdserveError
from .gateway.loader import Application, load
from .gateway.threadpool import ThreadPool
from .gateway.wsgi import WSGIGateway
from .mailbox import Handler, Mailbox
from .protocol.forwarded import ProxyTrust
from .protocol.h1 import H1Limits, ResponseDefaults
from .transport.blocked import BlockWatch
from .transport.connections import FOREVER, Connections, Slots, Times, Upgrader
from .transport.https import connector, load_certificates, mark_schemes, open_all, redirecting
from .transport.listener import Listener
from .transport.loop import Loop

if TYPE_CHECKING:

    from .exchange import Exchange
    from .transport.certificates import Certificates

logger = logging.getLogger("stdserve.error")

# After TERM a keep-alive connection that waits for its next request stays open for this long: a request that is on its
# way at the moment of the stop is answered, with `Connection: close`, instead of met by a reset. Ctrl-C does not wait.
IDLE_GRACE_SECONDS = 1.0

# Many WebSockets are closed over this time, at most a quarter of that of the stop, so that not all clients come back at
# once.
SPREAD_SECONDS = 4.0

# What is given to code that has been told to end: applications whose client is cut, cancelled tasks, the loop itself.
END_SECONDS = 2.0

# How often a stop looks whether the thread pool still works for clients that have gone. Nothing else tells it.
_LOOK_SECONDS = 0.05


class Server:
    """One server. `run()` blocks until it has stopped; `stop()` may be called from any thread and from signal handlers.

    started     it accepts connections
    cut         requests still ran when the time for the stop was over
    stuck       threads that the application holds did not end: the process should leave by os._exit
    """

    def __init__(
        self,
        config: Config,
        *,
        listeners: list[Listener] | None = None,
        application: Application | None = None,
        load: Callable[[Config], Application] = load,
        on_started: Callable[[], object] = lambda: None,
        on_stopping: Callable[[], object] = lambda: None,
        on_wish: Callable[[str], object] = lambda reason: None,
        slots: Slots | None = None,
        certificates: Certificates | None = None,
    ) -> None:
        """`listeners` and `application`, or how to `load` it: what a supervisor has prepared. The three calls are made
        by the watch: when the server accepts connections, when it no longer does, when it should be replaced. `slots`
        is where running requests are noted."""
        self.config = config
        self.listeners = listeners or []
        self._shared = listeners is not None
        self._on_started = on_started
        self._on_stopping = on_stopping
        self._on_wish = on_wish
        self._slots = slots
        self._certificates = certificates
        self._connect: Callable[..., object] = connector(None)
        self.started = threading.Event()
        self.cut = False
        self.stuck = False
        self._verbs = Mailbox(self._on_signal_byte)
        self._loop: Loop | None = None
        self._connections: Connections | None = None
        self._pool: ThreadPool | None = None
        self._access: AccessLog | None = None
        self._trust: ProxyTrust | None = None
        self._application = application
        self._load = load
        self._asgi: AsyncioHost | None = None
        self._block_watch: BlockWatch | None = None
        self._failure: BaseException | None = None
        self._lost: list[Exchange] = []  # answered with 504 while a thread still runs them
        self._ended = threading.Event()  # the loop has
        self._loop_thread = 0  # its identifier
        self._stops = 0

    # ---- from outside

    def run(self) -> None:
        """Serve until stopped. Raises StdserveError if the start fails; nothing is left open then."""
        try:
            self._prepare()
            with self._verbs.signals(self._handlers()):
                if self.config.main_loop:
                    watch = threading.Thread(target=self._watch, name="stdserve-watch", daemon=True)
                    watch.start()
                    self._run_loop()
                    watch.join()
                else:
                    self._watch(threading.Thread(target=self._run_loop, name="stdserve-loop", daemon=True))
        finally:
            self._close()
        if self._failure is not None:
            raise self._failure

    def stop(self, *, idle_grace: bool = False) -> None:
        """Stop gracefully; a second call stops at once."""
        self._stops += 1
        self._verbs.put("force" if self._stops > 1 else "drain" if idle_grace else "stop")

    def drain(self) -> None:
        """Stop gracefully, for whoever may say so twice."""
        self._stops = max(self._stops, 1)
        self._verbs.put("drain")

    @property
    def stopping(self) -> bool:
        return self._stops > 0

    def call_in_loop(self, call: Callable[..., object], *args: Any) -> None:
        """Call it in the loop thread soon; from any thread."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(call, *args)

    def _prepare(self) -> None:
        """All that can fail before there is a thread. A signal that comes while the rooms are built finds the loop."""
        config = self.config
        self._certificates = self._certificates or load_certificates(config)
        self._application = self._application or self._load(config)
        self._trust = _trust(config)
        self._access = make_access_log(config)
        if not self._shared:
            self.listeners = open_all(config)
        mark_schemes(self.listeners, config)
        self._verbs.open()
        self._loop = Loop()
        if self._application.interface != "wsgi":
            self._asgi = AsyncioHost(
                config, self._loop, self._application, accept=self._accept, abort=self._abort, say=self._verbs.put
            )
            if config.warn_blocked_loop and config.loop in OWN_HOSTS:
                self._block_watch = BlockWatch(self._loop, config.warn_blocked_loop, self._on_block)

    # ---- signals

    def _handlers(self) -> dict[int, Handler]:
        """INT and TERM stop the server while it runs, QUIT at once; USR1 has log files opened anew."""
        names = ("SIGINT", "SIGTERM", "SIGQUIT", "SIGUSR1", "SIGBREAK")  # BREAK: Ctrl-Break of Windows
        return {getattr(signal, name): self._on_signal for name in names if hasattr(signal, name)}

    def _on_signal(self, number: int, frame: Any) -> None:
        # Only this: the mailbox may be used in the middle of anything, logging may not. A second TERM is no hurry:
        # process managers repeat it, and a shell's Ctrl-C may come together with the TERM of a parent.
        if number == getattr(signal, "SIGUSR1", 0):
            self._verbs.put("reopen")
        elif number == getattr(signal, "SIGQUIT", 0):
            self._stops += 1
            self._verbs.put("force")
        elif number != signal.SIGTERM or not self._stops:
            self.stop(idle_grace=number == signal.SIGTERM)

    def _on_signal_byte(self) -> None:
        if self.config.main_loop:  # the main thread waits in the loop and shall call the handler
            self.call_in_loop(time.monotonic)

    # ---- the watch (main thread, or a helper with `main_loop`)

    def _watch(self, loop_thread: threading.Thread | None = None) -> None:
        logger.info("Started server process [%d]", os.getpid())
        if loop_thread is not None:
            loop_thread.start()
        verb = self._get_verb()
        if verb == "started":
            self._announce()
            verb = self._get_verb()
        if verb in ("stop", "drain"):
            logger.info("Shutting down")
        self._on_stopping()
        answers = verb == "ended" or self._stop_in_order(verb)
        if not self._ended.wait(END_SECONDS if answers else 0.0):
            self._give_up(loop_thread is None)
        elif loop_thread is not None:
            loop_thread.join()
        if self._failure is None:
            logger.info("Finished server process [%d]", os.getpid())

    def _stop_in_order(self, verb: str) -> bool:
        """False if the loop does not answer any more."""
        limit = self.config.timeout_graceful_shutdown
        if verb != "force":
            self.call_in_loop(self._drain, IDLE_GRACE_SECONDS if verb == "drain" else 0.0)
            deadline = time.monotonic() + limit
            verb = self._next_verb("empty", limit)
            if verb == "empty":
                verb = self._wait_for_pool(deadline)
        if verb == "timeout":
            logger.warning("%g s have passed (--timeout-graceful-shutdown): requests still running are cut", limit)
        if verb in ("timeout", "force"):
            self._report_running()
            if not self._cut(verb == "force"):
                return False
        if verb != "ended":
            self._end_loop(verb == "force")
        return True

    def _wait_for_pool(self, deadline: float) -> str:
        """A call of a WSGI application goes on after its client has gone, and files are closed after the last byte."""
        while self._pool is not None and self._pool.busy:
            left = deadline - time.monotonic()
            if left <= 0:
                return "timeout"
            verb = self._next_verb("force", min(left, _LOOK_SECONDS))
            if verb != "timeout":
                return verb
        return "empty"

    def _cut(self, at_once: bool) -> bool:
        """Tell what runs that its client has gone, then cancel it; False if the loop does not answer."""
        self.cut = True
        self.call_in_loop(self._abort)
        if at_once:
            self.call_in_loop(self._cancel)
        if self._next_verb("cut", END_SECONDS) == "timeout":
            return False
        if self._next_verb("empty", END_SECONDS) == "timeout":
            self.call_in_loop(self._cancel)
            if self._next_verb("empty", END_SECONDS) == "timeout":
                logger.error("requests that the application does not end are abandoned")
        return True

    def _end_loop(self, at_once: bool) -> None:
        """End the loop; an ASGI application has its lifespan shutdown before, except when the stop is forced."""
        assert self._loop is not None
        if self._asgi is None:
            self._loop.stop()
            return
        self.call_in_loop(self._asgi.shut_down, at_once)
        if self.started.is_set() and not at_once and not self._ended.is_set():
            # Not until the loop ends: a task that refuses to be cancelled would have it wait
            verb = self._next_verb("shut down", (self.config.timeout_lifespan_shutdown or FOREVER) + END_SECONDS)
            if verb == "force":
                self.call_in_loop(self._asgi.shut_down, True)

    def _give_up(self, in_main_thread: bool) -> None:
        """The loop does not end, so its thread is left behind; if that is the main thread, only the process can end."""
        self.stuck = True
        logger.error("the event loop does not end: the application blocks it\n%s", self._stack(self._loop_thread))
        if in_main_thread:
            self._close()
            logging.shutdown()
            os._exit(0)

    def _get_verb(self, deadline: float = FOREVER) -> str:
        """The next word of the mailbox, empty at the deadline. Log files are opened anew on the way."""
        while True:
            block = self._block_watch
            verb = self._verbs.get(deadline if block is None else min(deadline, time.monotonic() + block.wait_seconds))
            if verb == "reopen":
                logs.reopen_logs()
                if self._access is not None:
                    self._access.reopen()
            elif verb or block is None or time.monotonic() >= deadline:
                return verb
            else:
                block.look()

    def _on_block(self, seconds: float) -> None:
        text = "the event loop is blocked for %.1f s (--warn-blocked-loop); no other request is served meanwhile\n%s"
        logger.warning(text, seconds, self._stack(self._loop_thread))

    def _next_verb(self, wanted: str, seconds: float) -> str:
        """Wait for the verb, for "force" (a second signal) or "ended"; "timeout" when the time has passed."""
        deadline = time.monotonic() + seconds
        while True:
            verb = self._get_verb(deadline)
            if not verb:
                return "timeout"
            if verb in (wanted, "force", "ended"):
                return verb

    def _announce(self) -> None:
        self._on_started()
        if not self._shared:
            announce(self.listeners)

    def _report_running(self) -> None:
        """Name the requests that still run, and where they stand."""
        if self._connections is None:
            return
        tasks = self._running_tasks()
        for exchange in self._connections.exchanges():
            stack = tasks.pop(id(exchange.task), ("", ""))[1]
            logger.warning("still running: %r\n%s", exchange, stack.rstrip())
        for name, stack in tasks.values():
            logger.warning("still running: %s, whose client has gone\n%s", name, stack.rstrip())

    def _running_tasks(self) -> dict[int, tuple[str, str]]:
        """id of the task that runs a request -> (name, stack)."""
        if self._pool is not None:
            jobs = self._pool.running_jobs()
            return {id(job): (repr(getattr(job, "exchange", job)), self._stack(thread)) for job, thread in jobs}
        tasks = self._asgi.tasks() if self._asgi is not None else ()
        return {id(task): ("a request", task_stack(task) or self._stack(self._loop_thread)) for task in tasks}

    @staticmethod
    def _stack(ident: int | None) -> str:
        frame = sys._current_frames().get(ident or 0)
        return "" if frame is None else "".join(traceback.format_stack(frame))

    # ---- the loop thread

    def _run_loop(self) -> None:
        """Everything from here on happens in the loop thread; what fails ends up in `run`."""
        self._loop_thread = threading.get_ident()
        assert self._loop is not None and self._application is not None
        try:
            if self._asgi is not None:
                self._asgi.run()
            else:
                self._build_wsgi(self._loop, self._application)
                self._verbs.put("started")
                self._loop.run()
        except BaseException as error:
            if not self._stops or isinstance(error, StdserveError):
                self._failure = error if isinstance(error, Exception) else StdserveError(f"the loop ended by {error!r}")
                hint_main_loop(error)
        finally:
            self._ended.set()
            self._verbs.put("ended")

    def _build_wsgi(self, loop: Loop, application: Application) -> None:
        self._pool = pool = ThreadPool(self.config.threads, loop)
        gateway = WSGIGateway(
            application.app,
            pool,
            loop.batched_call_soon(pool.jobs),
            keep_environ=self._access is not None and self._access.needs_environ,
        )
        self._accept(loop, gateway.handle)

    def _accept(self, loop: Loop, handle: Callable[[Any], object], upgrade: Upgrader | None = None) -> None:
        """Open the doors."""
        config = self.config
        self._connections = connections = Connections(
            loop,
            redirecting(handle, self._certificates, config, self.listeners),
            limits=_h1_limits(config),
            times=_times(config),
            defaults=_defaults(config),
            date_header=config.date_header and not _names(config, "date"),
            limit_concurrency=config.limit_concurrency,
            limit_connections=config.limit_connections or _descriptor_limit(),
            slots=self._slots,
            upgrade=upgrade,
            on_overdue=self._on_overdue,
            trust=self._trust,
            root_path=config.root_path.rstrip("/"),
            sendfile=config.sendfile,
            log_exchange=None if self._access is None else self._access.log,
        )
        if self._access is not None:
            loop.before_poll(self._access.flush)
        connections.on_room = self._on_room
        self._connect = connector(self._certificates)
        if self._certificates is not None:
            connections.on_tick = self._certificates.look
        for listener in self.listeners:
            shared = self._shared and not config.reuse_port
            listener.start(loop, self._on_accept, self._on_exhausted, shared=shared)
        self.started.set()

    def _on_accept(self, sock: socket.socket, peer: tuple[str, int] | None, listener: Listener) -> None:
        connections = self._connections
        assert connections is not None
        if connections.full:
            connections.close_longest_idle()
        self._connect(connections, sock, peer, listener)
        if connections.full and connections.longest_idle() is None:
            text = "%d connections, the limit (--limit-connections): accepting again when one closes or is idle"
            connections.log_refused(text, len(connections), kind="connection limits")
            connections.on_room = self._on_room
            for each in self.listeners:
                each.pause("limit")

    def _on_overdue(self, exchange: Exchange) -> None:
        """--timeout-request has passed: say where it hangs; a task can be cancelled, a thread only be left alone."""
        running = self._running_tasks()
        _, stack = running.get(id(exchange.task), ("", "it waits for a thread (--threads)"))
        limit = self.config.timeout_request
        logger.error("%r: no answer after %g s (--timeout-request)\n%s", exchange, limit, stack.rstrip())
        if self._pool is None:
            if exchange.task is not None:
                exchange.task.cancel("--timeout-request has passed")
            return
        if id(exchange.task) in running and self._loop is not None:
            self._loop.call_later(limit, self._count_lost, exchange)

    def _count_lost(self, exchange: Exchange) -> None:
        """A thread that has run a request for as long again, or longer, is taken for lost."""
        if self._pool is None or exchange.task is None:
            return
        self._lost = [each for each in self._lost if each.task is not None] + [exchange]
        if len(self._lost) == max(1, self._pool.cap // 2):
            self._on_wish(f"{len(self._lost)} threads hang in requests (--timeout-request)")

    def _on_room(self) -> None:
        assert self._connections is not None
        self._connections.on_room = None
        for listener in self.listeners:
            listener.resume("limit")

    def _on_exhausted(self, error: OSError) -> None:
        """No descriptor is left: an idle connection goes, so that the next client can come."""
        assert self._connections is not None
        self._connections.log_refused("cannot accept: %s; trying again in a second", error, kind="failed accepts")
        self._connections.close_longest_idle()

    def _drain(self, idle_seconds: float) -> None:
        """Stop accepting; what the kernel has already accepted for us is served too."""
        for listener in self.listeners:
            if not self.config.reload:  # new code is on its way: they wait for that
                listener.accept_pending()
            listener.close(keep_file=self._shared)
        connections = self._connections
        if connections is None:
            self._verbs.put("empty")
            return
        connections.on_room = None
        connections.on_empty = self._on_empty
        connections.drain(idle_seconds, min(SPREAD_SECONDS, self.config.timeout_graceful_shutdown / 4))

    def _on_empty(self) -> None:
        """The last connection has gone; tasks of the application that outlive their requests are waited for."""
        if self._asgi is None:
            self._verbs.put("empty")
        else:
            self._asgi.when_no_task(lambda: self._verbs.put("empty"))

    def _abort(self) -> None:
        """Cut all connections: whoever still answers one is told."""
        self._verbs.put("cut")
        self._close_listeners()
        connections = self._connections
        if connections is not None:
            connections.on_room = connections.on_empty = None
            connections.abort()
        self._on_empty()

    def _cancel(self) -> None:
        if self._asgi is not None:
            self._asgi.cancel_tasks()

    def _close_listeners(self) -> None:
        for listener in self.listeners:
            listener.close(keep_file=self._shared)

    def _close(self) -> None:
        self._close_listeners()
        if self._pool is not None:
            self._pool.close()
            self.stuck = self.stuck or bool(self._pool.running_jobs())
        if self._loop is not None and not self.stuck:
            self._loop.close()
        if self._access is not None:
            self._access.close()
        self._verbs.close()


def announce(listeners: list[Listener]) -> None:
    for listener in listeners:
        logger.info("stdserve running on %s (Press CTRL+C to quit)", listener.url)


def _h1_limits(config: Config) -> H1Limits:
    return H1Limits(
        request_line=config.limit_request_line,
        head=config.limit_request_head,
        fields=config.limit_request_fields,
        field=config.limit_request_field_size,
        body=config.limit_request_body,
        chunk_extensions=config.limit_chunk_extensions,
        trailers=config.limit_trailers,
    )


def _times(config: Config) -> Times:
    """A time limit of 0 is off, but that of keep-alive: there it means no keep-alive, as in gunicorn."""
    return Times(
        handshake=config.timeout_handshake or FOREVER,
        head=config.timeout_request_head or FOREVER,
        keep_alive=config.timeout_keep_alive,
        body=config.timeout_request_body or FOREVER,
        write=config.timeout_write or FOREVER,
        request=config.timeout_request or FOREVER,
    )


def _defaults(config: Config) -> ResponseDefaults:
    extra = b"".join(b"%b: %b\r\n" % (name.encode(), value.encode("latin-1")) for name, value in config.headers)
    server = b"" if not config.server_header or _names(config, "server") else b"Server: stdserve\r\n"
    return ResponseDefaults(server, extra)


def _names(config: Config, name: str) -> bool:
    """Whether --header gives this field."""
    return any(given.lower() == name for given, _ in config.headers)


def _trust(config: Config) -> ProxyTrust | None:
    if not config.proxy_headers:
        return None
    return ProxyTrust(
        config.forwarded_allow_ips,
        trust_unix=config.forwarded_trust_unix,
        format=config.forwarded_format,
        fields=config.forwarded_fields,
        hops=config.forwarded_hops,
    )


def _descriptor_limit() -> int:
    """Connections that the limit of descriptors allows, less what files and the application need; 0 if unknown."""
    try:
        import resource
    except ImportError:  # Windows
        return 0
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 0 if soft == resource.RLIM_INFINITY else max(soft - max(32, soft // 10), 8)
