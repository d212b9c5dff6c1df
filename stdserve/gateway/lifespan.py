"""ASGI lifespan: the application's start and stop, as one task beside the requests.

    off    never called
    auto   an application that raises or returns before its first receive(), or answers with something that is not
           lifespan, does not support it, and is served; what goes wrong after that is an error of its start, and fatal
    on     every failure is fatal

Specification: ASGI lifespan 2.0. A start that fails raises LifespanError, which ends the process with exit code 3.
It takes ASGI 3 applications; `asgi.adapt_asgi2` makes one of an ASGI 2 application.
"""

from __future__ import annotations

import asyncio
import contextvars
import enum
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from ..errors import AppError, LifespanError
from .loader import summary_of, traceback_of

logger = logging.getLogger("stdserve.error")

Message = dict[str, Any]

# What an application gets to end by itself after its last word, and once more after it was cancelled
GRACE_SECONDS = 1.0


class _State(enum.Enum):
    STARTING = "starting"
    SERVING = "serving"
    STOPPING = "stopping"
    ENDED = "ended"


STARTING, SERVING, STOPPING, ENDED = _State.STARTING, _State.SERVING, _State.STOPPING, _State.ENDED

# What the application may send -> the state in which it may
_ANSWERS = {
    "lifespan.startup.complete": STARTING,
    "lifespan.startup.failed": STARTING,
    "lifespan.shutdown.complete": STOPPING,
    "lifespan.shutdown.failed": STOPPING,
}


class Lifespan:
    """Call order: startup shutdown. Both in the asyncio loop; the application runs as one task in between.

    state     what the application puts into scope["state"]; each request gets a shallow copy
    context   the contextvars of the task: requests run in copies of it, so they see what startup has set
    """

    def __init__(
        self,
        app: Callable[..., Awaitable[None]],
        *,
        mode: str,
        state: dict[str, Any],
        startup_timeout: float,
        shutdown_timeout: float,
        asgi_version: str = "3.0",
    ) -> None:
        """Time limits in seconds, 0 for none."""
        self.state = state
        self.context = contextvars.copy_context()
        self._app = app
        self._mode = mode
        self._startup_timeout = startup_timeout
        self._shutdown_timeout = shutdown_timeout
        self._asgi = {"version": asgi_version, "spec_version": "2.0"}
        self._state = ENDED
        self._task: asyncio.Task[None] | None = None
        self._told = 0  # messages that the application has had: startup, shutdown
        self._foreign = False  # the application takes this for a request: it has sent a message of another protocol
        self._error: BaseException | None = None  # what the application raised
        # The answer of each phase; None if the application ended without one
        self._started: asyncio.Future[Message | None]
        self._stopped: asyncio.Future[Message | None]
        self._stop: asyncio.Event

    async def startup(self) -> None:
        """Return when the application is ready or does not take part; else raise LifespanError."""
        if self._mode == "off":
            return
        loop = asyncio.get_running_loop()
        self._started, self._stopped, self._stop = loop.create_future(), loop.create_future(), asyncio.Event()
        self._state = STARTING
        logger.info("Waiting for application startup.")
        self._task = task = loop.create_task(self._run(), context=self.context)
        try:
            await asyncio.wait((self._started,), timeout=self._startup_timeout or None)
        except asyncio.CancelledError:
            task.cancel()
            raise
        if not self._started.done():
            self._state = ENDED
            await self._end(task, 0)
            raise LifespanError(
                f"the application's startup has not ended within {self._startup_timeout:g} s: "
                "make it faster or --timeout-lifespan-startup longer"
            )
        answer = self._started.result()
        if answer is None:
            self._judge_end()
        elif answer["type"] == "lifespan.startup.complete":
            logger.info("Application startup complete.")
        else:
            await self._end(task, GRACE_SECONDS)
            text, details = self._reason(answer)
            raise LifespanError(f"Application startup failed: {text}", details=details)

    async def shutdown(self) -> bool:
        """Let the application end; whether it did so in time and without a failure."""
        task, limit = self._task, self._shutdown_timeout
        if task is None or self._state is not SERVING:
            return self._error is None
        self._state = STOPPING
        logger.info("Waiting for application shutdown.")
        self._stop.set()
        deadline = asyncio.get_running_loop().time() + limit
        await asyncio.wait((self._stopped,), timeout=limit or None)
        if not self._stopped.done():
            logger.error("the application's shutdown has not ended within --timeout-lifespan-shutdown (%g s)", limit)
            await self._end(task, 0)
            return False
        # It may have something left to do after its answer
        left = deadline - asyncio.get_running_loop().time()
        await self._end(task, max(left, GRACE_SECONDS) if limit else None)
        return self._judge_shutdown()

    # ---- the application's side

    async def _run(self) -> None:
        """The application's call. What it raises is kept: a SystemExit that left a task would end the loop."""
        scope = {"type": "lifespan", "asgi": self._asgi, "state": self.state}
        try:
            await self._app(scope, self._receive, self._send)
        except GeneratorExit:  # the loop is gone
            raise
        except BaseException as error:
            self._take_failure(error)
        finally:
            self._state = ENDED
            for answer in (self._started, self._stopped):
                if not answer.done():
                    answer.set_result(None)

    def _take_failure(self, error: BaseException) -> None:
        if self._task is not None and self._task.cancelling():  # by us: that it ends is no failure
            logger.debug("the application's lifespan was cancelled: %s", summary_of(error))
            return
        self._error = error
        if self._state is SERVING:
            logger.error("the application's lifespan failed while it served\n%s", traceback_of(error).rstrip())

    async def _receive(self) -> Message:
        if not self._told:
            self._told = 1
            return {"type": "lifespan.startup"}
        if self._state is not ENDED:
            await self._stop.wait()
        if self._state is STOPPING and self._told == 1:
            self._told = 2
            return {"type": "lifespan.shutdown"}
        # Nothing more will come: an application that asks for ever is done
        if self._state is ENDED and self._task is not None:
            self._task.cancel()
        never: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        return await never

    async def _send(self, message: Message) -> None:
        kind = str(message.get("type")) if isinstance(message, dict) else repr(message)
        if _ANSWERS.get(kind) is not self._state:
            self._foreign = self._foreign or not kind.startswith("lifespan.")
            raise AppError(f"unexpected message type {kind!r:.80} while {self._state.value} (ASGI lifespan spec)")
        if self._state is STARTING:
            self._state = SERVING if kind == "lifespan.startup.complete" else ENDED
            self._started.set_result(message)
        else:
            self._state = ENDED
            self._stopped.set_result(message)

    # ---- private

    def _judge_end(self) -> None:
        """The application has ended before its startup was complete."""
        error = self._error
        if error is not None and (self._mode == "on" or (self._told and not self._foreign)):
            raise LifespanError(f"Application startup failed: {summary_of(error)}", details=traceback_of(error))
        if self._mode == "on":
            raise LifespanError("the application returned without lifespan.startup.complete (--lifespan on wants it)")
        logger.debug(
            "the application does not support lifespan: %s", "it returned" if error is None else summary_of(error)
        )
        self._error = None

    def _judge_shutdown(self) -> bool:
        answer = self._stopped.result()
        if answer is not None and answer["type"] == "lifespan.shutdown.failed":
            text, details = self._reason(answer)
        elif self._error is not None:
            text, details = summary_of(self._error), traceback_of(self._error)
        else:
            logger.info("Application shutdown complete.")
            return True
        logger.error("Application shutdown failed: %s", f"{text}\n{details}".rstrip())
        return False

    def _reason(self, answer: Message) -> tuple[str, str]:
        """(one line, traceback) of a "failed" message. Starlette puts the traceback into it and raises then."""
        said = str(answer.get("message", "")).strip()
        lines = said.splitlines()
        if self._error is not None:
            return said if len(lines) == 1 else summary_of(self._error), traceback_of(self._error)
        if not lines:
            return "the application gives no reason", ""
        return lines[-1], said if len(lines) > 1 else ""

    async def _end(self, task: asyncio.Task[None], grace: float | None) -> None:
        """Wait for the task's end, then cancel it; one that does not let itself be cancelled is left behind."""
        await asyncio.wait((task,), timeout=grace)
        if not task.done():
            task.cancel()
            await asyncio.wait((task,), timeout=GRACE_SECONDS)
