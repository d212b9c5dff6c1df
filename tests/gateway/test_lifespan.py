"""Lifespan: what counts as unsupported, what is fatal, the time limits, the shutdown."""

from __future__ import annotations

import asyncio
import contextvars
import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import pytest

from stdserve.errors import LifespanError
from stdserve.gateway import lifespan as module
from stdserve.gateway.asgi import adapt_asgi2
from stdserve.gateway.lifespan import Lifespan

# Long, because the machine may be slow; nothing waits for it to pass.
BOUND_SECONDS = 20.0

# A limit that is to pass
SHORT_SECONDS = 0.01

App = Callable[..., Awaitable[None]]
COMPLETE, SHUT = {"type": "lifespan.startup.complete"}, {"type": "lifespan.shutdown.complete"}

variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")


@pytest.fixture(autouse=True)
def _log(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    caplog.set_level(logging.DEBUG, "stdserve.error")
    monkeypatch.setattr(module, "GRACE_SECONDS", BOUND_SECONDS)


def make(app: App, mode: str = "auto", **limits: float) -> Lifespan:
    limits = {"startup_timeout": BOUND_SECONDS, "shutdown_timeout": BOUND_SECONDS, **limits}
    return Lifespan(app, mode=mode, state={}, **limits)


def run(work: Coroutine[Any, Any, Any]) -> Any:
    """In a new loop; no task is left behind."""

    async def bounded() -> Any:
        async with asyncio.timeout(BOUND_SECONDS):
            result = await work
        assert asyncio.all_tasks() == {asyncio.current_task()}
        return result

    return asyncio.run(bounded())


def whole(app: App, mode: str = "auto", **limits: float) -> bool:
    """Start, stop; what shutdown() returns."""

    async def work() -> bool:
        lifespan = make(app, mode, **limits)
        await lifespan.startup()
        return await lifespan.shutdown()

    return bool(run(work()))


def refused(app: App, mode: str = "auto", **limits: float) -> LifespanError:
    with pytest.raises(LifespanError) as caught:
        run(make(app, mode, **limits).startup())
    assert caught.value.exit_code == 3
    assert len(str(caught.value).splitlines()) == 1
    assert "lifespan.py" not in caught.value.details.replace("test_lifespan.py", "")
    return caught.value


def lines(caplog: pytest.LogCaptureFixture, level: int = logging.INFO) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= level]


async def good(scope: Any, receive: Any, send: Any) -> None:
    """The example of the specification."""
    assert scope["type"] == "lifespan"
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return


START_LINES = ["Waiting for application startup.", "Application startup complete."]
STOP_LINES = ["Waiting for application shutdown.", "Application shutdown complete."]


# ---- what goes well


@pytest.mark.parametrize("mode", ["auto", "on"])
def test_start_and_stop(caplog: pytest.LogCaptureFixture, mode: str) -> None:
    assert whole(good, mode) is True
    assert lines(caplog) == START_LINES + STOP_LINES


def test_scope() -> None:
    seen = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(dict(scope))
        scope["state"]["pool"] = 1
        await good(scope, receive, send)

    async def work() -> None:
        lifespan = make(app)
        await lifespan.startup()
        assert lifespan.state == {"pool": 1}
        await lifespan.shutdown()

    run(work())
    asgi = {"version": "3.0", "spec_version": "2.0"}
    assert seen == [{"type": "lifespan", "asgi": asgi, "state": {"pool": 1}}]


def test_requests_can_see_the_context_of_startup() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        variable.set("startup")
        await good(scope, receive, send)

    async def work() -> None:
        lifespan = make(app)
        await lifespan.startup()
        assert lifespan.context[variable] == "startup" and variable.get() == "unset"
        await lifespan.shutdown()

    run(work())


def test_startup_waits_for_complete_and_shutdown_is_told_only_then() -> None:
    happened = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert await receive() == {"type": "lifespan.startup"}
        for _ in range(3):
            await asyncio.sleep(0)
        happened.append("app started")
        await send(COMPLETE)
        assert await receive() == {"type": "lifespan.shutdown"}
        happened.append("app stops")
        await send(SHUT)
        await asyncio.sleep(0)
        happened.append("app ended")

    async def work() -> None:
        lifespan = make(app)
        await lifespan.startup()
        happened.append("started")
        await lifespan.shutdown()
        happened.append("stopped")

    run(work())
    assert happened == ["app started", "started", "app stops", "app ended", "stopped"]


def test_asgi2() -> None:
    def app(scope: Any) -> Any:
        return lambda receive, send: good(scope, receive, send)

    assert whole(adapt_asgi2(app), "on") is True


def test_off_never_calls(caplog: pytest.LogCaptureFixture) -> None:
    def app(*_: Any) -> Any:
        raise AssertionError("called")

    assert whole(app, "off") is True
    assert not caplog.records


def test_no_limits() -> None:
    assert whole(good, startup_timeout=0, shutdown_timeout=0) is True


# ---- unsupported: served in auto, fatal in on


async def raises_at_once(scope: Any, receive: Any, send: Any) -> None:
    assert scope["type"] == "http", "no lifespan here"


async def returns_at_once(scope: Any, receive: Any, send: Any) -> None:
    pass


async def exits_at_once(scope: Any, receive: Any, send: Any) -> None:
    raise SystemExit(1)


async def returns_after_receive(scope: Any, receive: Any, send: Any) -> None:
    await receive()


async def answers_http(scope: Any, receive: Any, send: Any) -> None:
    await receive()
    await send({"type": "http.response.start", "status": 200, "headers": []})


def no_coroutine(scope: Any, receive: Any, send: Any) -> Any:
    raise ValueError("not even awaitable")


UNSUPPORTED = [raises_at_once, returns_at_once, exits_at_once, returns_after_receive, answers_http, no_coroutine]


@pytest.mark.parametrize("app", UNSUPPORTED)
def test_unsupported_is_served_in_auto(caplog: pytest.LogCaptureFixture, app: App) -> None:
    assert whole(app) is True
    assert lines(caplog) == ["Waiting for application startup."]
    assert any("does not support lifespan" in line for line in lines(caplog, logging.DEBUG))


@pytest.mark.parametrize("app", UNSUPPORTED)
def test_unsupported_is_fatal_with_on(app: App) -> None:
    error = refused(app, "on")
    returned = "return" in app.__name__
    assert ("--lifespan on" in str(error)) is returned and bool(error.details) is not returned


# ---- a start that fails


@pytest.mark.parametrize("mode", ["auto", "on"])
@pytest.mark.parametrize(
    ("kind", "text"),
    [
        (RuntimeError, "RuntimeError: no database"),
        (SystemExit, "SystemExit: no database"),
        (KeyboardInterrupt, "KeyboardInterrupt: no database"),
        (BaseException, "BaseException: no database"),
        (asyncio.CancelledError, "CancelledError: no database"),
    ],
)
def test_what_is_raised_after_receive_is_fatal(mode: str, kind: type[BaseException], text: str) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        raise kind("no database\nat all")

    error = refused(app, mode)
    assert str(error) == f"Application startup failed: {text}"
    assert error.details.startswith("Traceback") and "in app" in error.details


def test_failed_message() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "lifespan.startup.failed", "message": "no database"})

    error = refused(app)
    assert (str(error), error.details) == ("Application startup failed: no database", "")


def test_failed_without_a_message_from_one_that_waits_on() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "lifespan.startup.failed"})
        await receive()

    assert str(refused(app)) == "Application startup failed: the application gives no reason"


def test_failed_with_a_traceback_as_its_message() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "lifespan.startup.failed", "message": "Traceback ...\n  File\nOSError: no database\n"})

    error = refused(app)
    assert str(error) == "Application startup failed: OSError: no database"
    assert error.details == "Traceback ...\n  File\nOSError: no database"


def test_failed_and_then_raised_as_starlette_does() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        try:
            raise OSError("no database")
        except OSError:
            await send({"type": "lifespan.startup.failed", "message": "Traceback ...\nOSError: no database\n"})
            raise

    error = refused(app)
    assert str(error) == "Application startup failed: OSError: no database"
    assert error.details.count("Traceback") == 1 and "in app" in error.details


def test_startup_that_takes_too_long() -> None:
    ended = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(True)

    error = refused(app, startup_timeout=SHORT_SECONDS)
    assert "within 0.01 s" in str(error) and "--timeout-lifespan-startup" in str(error) and ended


def test_startup_that_is_cancelled_ends_the_application() -> None:
    async def work() -> None:
        started, ended = asyncio.Event(), asyncio.Event()

        async def app(scope: Any, receive: Any, send: Any) -> None:
            started.set()
            try:
                await asyncio.Event().wait()
            finally:
                ended.set()

        task = asyncio.create_task(make(app).startup())
        await started.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await ended.wait()
        await asyncio.sleep(0)

    run(work())


# ---- between start and stop


def test_one_that_returns_after_its_start_is_tolerated(caplog: pytest.LogCaptureFixture) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send(COMPLETE)

    assert whole(app, "on") is True
    assert lines(caplog) == START_LINES


def test_crash_while_serving_is_logged_at_once(caplog: pytest.LogCaptureFixture) -> None:
    async def work() -> bool:
        crash, crashed = asyncio.Event(), asyncio.Event()

        async def app(scope: Any, receive: Any, send: Any) -> None:
            await receive()
            await send(COMPLETE)
            await crash.wait()
            crashed.set()
            raise SystemExit("the pool is gone")

        lifespan = make(app)
        await lifespan.startup()
        crash.set()
        await crashed.wait()
        await asyncio.sleep(0)
        assert "lifespan failed while it served" in caplog.text and "in app" in caplog.text
        caplog.clear()
        return await lifespan.shutdown()

    assert run(work()) is False
    assert not caplog.records


def test_crash_in_the_same_step_as_complete_is_no_failed_start(caplog: pytest.LogCaptureFixture) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send(COMPLETE)
        raise OSError("late")

    assert whole(app) is False
    assert "Application startup complete." in caplog.text and "OSError: late" in caplog.text


def test_one_that_asks_twice_at_a_time_is_told_of_the_shutdown_once() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send(COMPLETE)
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(receive()) for _ in range(2)]
            done, waiting = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            assert [task.result() for task in done] == [{"type": "lifespan.shutdown"}]
            assert len(waiting) == 1
            waiting.pop().cancel()
        await send(SHUT)

    assert whole(app) is True


# ---- messages that do not belong


async def _is_refused(send: Any, message: Any) -> None:
    with pytest.raises(RuntimeError, match="unexpected message type"):
        await send(message)


def test_wrong_messages_raise_in_the_application() -> None:
    done = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        for wrong in (SHUT, {"type": "lifespan.startup"}, {"type": "http.response.body"}, {}, None, {"type": None}):
            await _is_refused(send, wrong)
        await send(COMPLETE)
        for wrong in (COMPLETE, SHUT, {"type": "lifespan.startup.failed"}):
            await _is_refused(send, wrong)
        await receive()
        await _is_refused(send, COMPLETE)
        await send(SHUT)
        await _is_refused(send, SHUT)
        done.append(True)

    assert whole(app) is True
    assert done


# ---- the stop


def test_one_that_asks_on_after_its_shutdown_is_ended() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        while True:
            message = await receive()
            await send({"type": f"{message['type']}.complete"})

    assert whole(app) is True
    assert whole(app, shutdown_timeout=0) is True


def test_one_that_returns_without_an_answer_has_shut_down(caplog: pytest.LogCaptureFixture) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send(COMPLETE)
        await receive()

    assert whole(app) is True
    assert lines(caplog) == START_LINES + STOP_LINES


def test_shutdown_that_fails(caplog: pytest.LogCaptureFixture) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send(COMPLETE)
        await receive()
        await send({"type": "lifespan.shutdown.failed", "message": "cannot flush"})

    assert whole(app) is False
    assert lines(caplog, logging.ERROR) == ["Application shutdown failed: cannot flush"]
    assert STOP_LINES[1] not in caplog.text


@pytest.mark.parametrize("answer", [None, SHUT])
def test_shutdown_that_raises(caplog: pytest.LogCaptureFixture, answer: Any) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send(COMPLETE)
        await receive()
        if answer is not None:
            await send(answer)
        raise SystemExit("cannot flush")

    assert whole(app) is False
    (line,) = lines(caplog, logging.ERROR)
    assert line.startswith("Application shutdown failed: SystemExit: cannot flush\nTraceback") and "in app" in line


def test_shutdown_that_takes_too_long(caplog: pytest.LogCaptureFixture) -> None:
    ended = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send(COMPLETE)
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            ended.append(True)
            raise ValueError("a consequence of the end") from None

    assert whole(app, shutdown_timeout=SHORT_SECONDS) is False
    (line,) = lines(caplog, logging.ERROR)
    assert "--timeout-lifespan-shutdown (0.01 s)" in line and ended


def test_one_that_does_not_let_itself_be_cancelled_is_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "GRACE_SECONDS", SHORT_SECONDS)

    async def work() -> None:
        release, ended = asyncio.Event(), asyncio.Event()

        async def app(scope: Any, receive: Any, send: Any) -> None:
            while not release.is_set():
                try:
                    await release.wait()
                except asyncio.CancelledError:
                    pass
            ended.set()

        with pytest.raises(LifespanError, match="has not ended within"):
            await make(app, startup_timeout=SHORT_SECONDS).startup()
        release.set()
        await ended.wait()
        await asyncio.sleep(0)

    run(work())
