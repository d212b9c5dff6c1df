"""asyncio in the loop thread: where the loop comes from, the lifespan around the service, the tasks of requests.

A part of server.py. asyncio itself is imported only when an application speaks ASGI (7 MB and 50 ms for a worker).
"""

from __future__ import annotations

import functools
import logging
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from .config import Config
from .errors import ConfigError
from .transport.connections import Upgrader
from .transport.loop import Loop

if TYPE_CHECKING:
    import asyncio
    from concurrent.futures import ThreadPoolExecutor

    from .gateway.asgi import ASGIGateway
    from .gateway.lifespan import Lifespan
    from .gateway.loader import Application

logger = logging.getLogger("stdserve.error")


class AsyncioHost:
    """The asyncio loop in the loop thread, on top of our Loop (host 2) or beside it (host 3)."""

    def __init__(
        self,
        config: Config,
        loop: Loop,
        application: Application,
        *,
        accept: Callable[[Loop, Callable[[Any], object], Upgrader | None], None],
        abort: Callable[[], None],
        say: Callable[[str], None],
    ) -> None:
        """`accept` opens the doors for a gateway, `abort` cuts what is open, `say` tells the watch how far it is."""
        self._config = config
        self._loop = loop
        self._application = application
        self._accept = accept
        self._abort = abort
        self._say = say
        self._factory = _host_factory(config.loop, loop)
        self._gateway: ASGIGateway | None = None
        self._lifespan: Lifespan | None = None
        self._end: asyncio.Event | None = None
        self._task: asyncio.Task[None] | None = None
        self._stopping = False

    def run(self) -> None:
        import asyncio

        with asyncio.Runner(loop_factory=self._factory) as runner:
            # An application that blocks one of asyncio's own threads must not hold the stop
            runner.get_loop().set_default_executor(_executor())
            runner.run(self._serve())

    async def _serve(self) -> None:
        import asyncio

        from .gateway import asgi
        from .gateway.lifespan import Lifespan

        host = asyncio.get_running_loop()
        config = self._config
        app = self._application.app
        version = "3.0"
        if self._application.interface == "asgi2":
            app, version = asgi.adapt_asgi2(app), "2.0"
        if config.log_level == "trace":
            app = asgi.trace_messages(app)
        self._lifespan = lifespan = Lifespan(
            app,
            mode=config.lifespan,
            state={},
            startup_timeout=config.timeout_lifespan_startup,
            shutdown_timeout=config.timeout_lifespan_shutdown,
            asgi_version=version,
        )
        self._end = asyncio.Event()
        self._task = asyncio.current_task()
        if self._stopping:
            return
        nested = config.loop not in OWN_HOSTS
        if nested:
            self._loop.nest(host)
        try:
            await lifespan.startup()
            self._gateway = gateway = asgi.ASGIGateway(
                app, host, state=lifespan.state, context=lifespan.context, asgi_version=version
            )
            self._accept(self._loop, gateway.handle, _upgrader(config, gateway))
            self._say("started")
            await self._end.wait()
            await lifespan.shutdown()
            self._say("shut down")
        finally:
            self._abort()  # an end out of order leaves connections open
            if nested:
                self._loop.leave(host)

    # ---- the loop thread's calls for the stop

    def shut_down(self, at_once: bool) -> None:
        """Let `_serve` return; `at_once` without the application's shutdown."""
        self._stopping = True
        if self._end is not None:
            self._end.set()
        if self._task is not None and (at_once or self._gateway is None):
            self._task.cancel()

    def tasks(self) -> list[asyncio.Task[None]]:
        """Those of requests; from any thread."""
        return list(self._gateway.tasks) if self._gateway is not None else []

    def when_no_task(self, then: Callable[[], object]) -> None:
        """Call `then` when the last task of a request has ended."""
        waiting = set(self.tasks())
        if not waiting:
            then()

        def ended(task: asyncio.Task[None]) -> None:
            waiting.discard(task)
            if not waiting:
                then()

        for task in list(waiting):
            task.add_done_callback(ended)

    def cancel_tasks(self) -> None:
        if self._gateway is not None:
            self._gateway.cancel_all("the server stops: --timeout-graceful-shutdown has passed")


# Values of --loop that mean asyncio on our own poll
OWN_HOSTS = ("auto", "asyncio")


def _host_factory(name: str, loop: Loop) -> Callable[[], asyncio.AbstractEventLoop]:
    """`--loop`: asyncio on our Loop, or a loop of the user's choice with ours nested in it."""
    import asyncio
    import importlib

    if name in OWN_HOSTS:
        return lambda: asyncio.SelectorEventLoop(loop)
    module, _, attribute = ("uvloop", "", "new_event_loop") if name == "uvloop" else name.partition(":")
    try:
        factory = importlib.import_module(module)
        for part in attribute.split("."):
            factory = getattr(factory, part)
    except ImportError as error:
        hint = "; install it, or leave --loop away" if name == "uvloop" else ""
        raise ConfigError(f"--loop {name}: {error}{hint}") from None
    except AttributeError as error:
        raise ConfigError(f"--loop {name}: {error}") from None
    return factory  # type: ignore[return-value]


def hint_main_loop(error: BaseException) -> None:
    """Python lets only the main thread set signal handlers; an application that wants to gets the loop into it."""
    if "main thread" in getattr(error, "details", "") + str(error):
        logger.error("The application sets signal handlers, which only the main thread can: start with --main-loop")


def task_stack(task: asyncio.Task[None]) -> str:
    """Where a task waits: its coroutine, what that awaits, and so on; empty if it does not wait but runs.

    Task.get_stack shows the outermost coroutine only.
    """
    lines: list[str] = []
    waits: Any = task.get_coro()
    if waits is None or waits.cr_running:
        return ""
    while kind := next((kind for kind in _AWAITED if hasattr(waits, f"{kind}_frame")), None):
        if (frame := getattr(waits, f"{kind}_frame")) is not None:
            lines += traceback.format_stack(frame, limit=1)
        waits = getattr(waits, f"{kind}_{_AWAITED[kind]}")
    return "".join(lines)


# How coroutines, generators and asynchronous generators name their frame and what they wait for
_AWAITED = {"cr": "await", "gi": "yieldfrom", "ag": "await"}


def _executor() -> ThreadPoolExecutor:
    """asyncio's default executor, with an end that waits for no thread."""
    from concurrent.futures import ThreadPoolExecutor

    class Executor(ThreadPoolExecutor):
        def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
            super().shutdown(wait=False, cancel_futures=True)

    return Executor(thread_name_prefix="asyncio")


def _upgrader(config: Config, gateway: ASGIGateway) -> Upgrader | None:
    """What takes the requests for a WebSocket; None: they are requests like others."""
    if config.ws == "none":
        return None
    from .gateway import websocket
    from .transport.websocket import Upgrader, WebSocketConnection, WebSocketSettings

    kind: type[WebSocketConnection] = WebSocketConnection
    if config.ssl_certfile:
        from .transport.wss import SecureWebSocketConnection

        kind = SecureWebSocketConnection
    return Upgrader(WebSocketSettings.of(config), functools.partial(websocket.handle, gateway), kind)
