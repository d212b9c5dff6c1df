"""transport/loop.py on real socket pairs: alone, under asyncio, nested, and where epoll or eventfd is missing."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import select
import selectors
import socket
import threading
from collections.abc import Callable, Iterator
from selectors import EVENT_READ, EVENT_WRITE
from typing import Any

import pytest

from stdserve.transport import loop as loop_module
from stdserve.transport.loop import Loop

BOUND_SECONDS = 20.0


class Pairs:
    """Makes socket pairs, non-blocking, and closes them in the end."""

    def __init__(self) -> None:
        self.made: list[socket.socket] = []

    def __call__(self) -> tuple[socket.socket, socket.socket]:
        pair = socket.socketpair()
        for sock in pair:
            sock.setblocking(False)
        self.made += pair
        return pair


class FakeClock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class CountingPoll:
    """The loop's poll, counted; `limits` are the time limits it was called with."""

    def __init__(self, loop: Loop) -> None:
        self.poll = loop._poll
        self.limits: list[float | None] = []
        self.entered = threading.Event()
        loop._poll = self

    def __call__(self, timeout: float | None) -> Any:
        self.limits.append(timeout)
        self.entered.set()
        return self.poll(timeout)


@pytest.fixture
def pairs() -> Iterator[Pairs]:
    pairs = Pairs()
    yield pairs
    for sock in pairs.made:
        sock.close()


def without_eventfd(patch: pytest.MonkeyPatch) -> None:
    patch.delattr(os, "eventfd", raising=False)


def without_epoll(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(selectors, "DefaultSelector", selectors.SelectSelector)


def without_both(patch: pytest.MonkeyPatch) -> None:
    without_eventfd(patch)
    without_epoll(patch)


def as_it_is(patch: pytest.MonkeyPatch) -> None:
    pass


@pytest.fixture(params=[as_it_is, without_eventfd, without_epoll, without_both])
def loop(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Loop]:
    request.param(monkeypatch)
    loop = Loop()
    yield loop
    loop.close()


@pytest.fixture
def fast() -> Iterator[Loop]:
    """The loop of this system only."""
    loop = Loop()
    yield loop
    loop.close()


def turn_until(loop: Loop, condition: Callable[[], object]) -> None:
    late: list[bool] = []
    guard = loop.call_later(BOUND_SECONDS, late.append, True)
    while not condition():
        loop.select(None)
        assert not late, "not in time"
    guard.cancel()


def run_in_thread(loop: Loop) -> threading.Thread:
    thread = threading.Thread(target=loop.run)
    thread.start()
    return thread


def join(*threads: threading.Thread) -> None:
    for thread in threads:
        thread.join(BOUND_SECONDS)
        assert not thread.is_alive()


# ---- descriptors


def test_handler_is_called_with_the_mask(loop: Loop, pairs: Pairs) -> None:
    a, b = pairs()
    masks: list[int] = []
    loop.watch(a, EVENT_READ, masks.append)
    loop.turn()
    assert masks == []
    b.send(b"x")
    loop.turn()
    assert masks == [EVENT_READ]
    loop.turn()  # level-triggered: nobody has read
    assert masks == [EVENT_READ, EVENT_READ]


def test_write_and_both(loop: Loop, pairs: Pairs) -> None:
    a, b = pairs()
    masks: list[int] = []
    loop.watch(a, EVENT_READ | EVENT_WRITE, masks.append)
    loop.turn()
    b.send(b"x")
    loop.turn()
    assert masks == [EVENT_WRITE, EVENT_READ | EVENT_WRITE]


def test_rewatch_changes_events_and_handler(loop: Loop, pairs: Pairs) -> None:
    a, b = pairs()
    first: list[int] = []
    second: list[int] = []
    b.send(b"x")
    loop.watch(a, EVENT_READ, first.append)
    loop.rewatch(a, EVENT_WRITE, second.append)
    loop.turn()
    assert (first, second) == ([], [EVENT_WRITE])


def test_unwatch_ends_the_calls_and_the_socket_can_be_watched_again(loop: Loop, pairs: Pairs) -> None:
    a, b = pairs()
    masks: list[int] = []
    b.send(b"x")
    loop.watch(a, EVENT_READ, masks.append)
    loop.unwatch(a)
    loop.turn()
    assert masks == []
    loop.watch(a, EVENT_READ, masks.append)
    loop.turn()
    assert masks == [EVENT_READ]


def test_a_second_watch_of_one_socket_is_an_error(loop: Loop, pairs: Pairs) -> None:
    a, _ = pairs()
    loop.watch(a, EVENT_READ, print)
    with pytest.raises(KeyError):
        loop.watch(a, EVENT_READ, print)
    with pytest.raises(KeyError):
        loop.unwatch(pairs()[0])


def test_many_descriptors_are_called_in_one_turn(loop: Loop, pairs: Pairs) -> None:
    called: list[int] = []
    for number in range(50):
        a, b = pairs()
        loop.watch(a, EVENT_READ, lambda mask, number=number: called.append(number))  # type: ignore[misc]
        b.send(b"x")
    loop.turn()
    assert sorted(called) == list(range(50))


@pytest.mark.skipif(not hasattr(select, "epoll"), reason="epoll's masks")
def test_hang_up_and_error_wake_reader_and_writer(fast: Loop, pairs: Pairs) -> None:
    masks: list[int] = []
    a, b = pairs()
    fast.watch(a, EVENT_READ, masks.append)
    b.close()  # HUP: there is an end of file to read
    fast.turn()
    assert masks == [EVENT_READ | EVENT_WRITE]
    fast.unwatch(a)
    # ERR without anything to read: a pipe that nobody reads any more
    reader, writer = os.pipe()
    try:
        fast.watch(writer, EVENT_WRITE, masks.append)
        os.close(reader)
        fast.turn()
        assert masks[1:] == [EVENT_READ | EVENT_WRITE]
        fast.unwatch(writer)
    finally:
        os.close(writer)


def test_masks_of_all_that_epoll_can_report() -> None:
    read, write, both = EVENT_READ, EVENT_WRITE, EVENT_READ | EVENT_WRITE
    in_, out, err, hup = 1, 4, 8, 16
    expected = {in_: read, out: write, in_ | out: both, err: both, hup: both, in_ | hup: both, out | err: both}
    assert {event: loop_module._MASKS[event] for event in expected} == expected
    if hasattr(select, "epoll"):
        assert (in_, out, err, hup) == (select.EPOLLIN, select.EPOLLOUT, select.EPOLLERR, select.EPOLLHUP)


def test_descriptor_closed_by_another_handler_in_the_same_turn(loop: Loop, pairs: Pairs) -> None:
    (a, a_peer), (b, b_peer) = pairs(), pairs()
    called: list[socket.socket] = []

    def closes(mine: socket.socket, other: socket.socket) -> Callable[[int], None]:
        def handler(mask: int) -> None:
            called.append(mine)
            loop.unwatch(other)
            other.close()

        return handler

    loop.watch(a, EVENT_READ, closes(a, b))
    loop.watch(b, EVENT_READ, closes(b, a))
    a_peer.send(b"x")
    b_peer.send(b"x")
    assert loop.select(0) == []
    assert len(called) == 1  # whichever came first


def test_descriptor_number_reused_in_the_same_turn_is_not_called_for_the_old_one(loop: Loop, pairs: Pairs) -> None:
    (a, a_peer), (b, b_peer), (new, new_peer) = pairs(), pairs(), pairs()
    called: list[str] = []

    def replaces(other: socket.socket) -> Callable[[int], None]:
        def handler(mask: int) -> None:
            called.append("old")
            loop.unwatch(other)
            number = other.detach()
            os.dup2(new.fileno(), number)
            reused = socket.socket(fileno=number)
            pairs.made.append(reused)
            loop.watch(reused, EVENT_READ, lambda mask: called.append("new"))

        return handler

    loop.watch(a, EVENT_READ, replaces(b))
    loop.watch(b, EVENT_READ, replaces(a))
    a_peer.send(b"x")
    b_peer.send(b"x")
    loop.turn()
    assert called == ["old"]
    del called[:]
    for sock in (a, b):
        with contextlib.suppress(KeyError, ValueError):
            loop.unwatch(sock)
    new_peer.send(b"x")
    loop.turn()
    assert called == ["new"]


def test_a_timer_that_closes_a_ready_descriptor(loop: Loop, pairs: Pairs) -> None:
    a, b = pairs()
    called: list[int] = []
    loop.watch(a, EVENT_READ, called.append)
    b.send(b"x")
    loop.call_later(0, loop.unwatch, a)
    loop.turn()
    assert called == []


# ---- failures of handlers


class Owner:
    """Watches a socket and fails when it is called; `abort` lets go."""

    def __init__(self, loop: Loop, sock: socket.socket, abort_fails: bool = False) -> None:
        self.loop = loop
        self.sock = sock
        self.aborted = 0
        self.abort_fails = abort_fails
        self.handler = self.on_ready
        loop.watch(sock, EVENT_READ, self.handler)

    def on_ready(self, mask: int) -> None:
        raise RuntimeError("a bug")

    def abort(self) -> None:
        self.aborted += 1
        if self.abort_fails:
            raise RuntimeError("another bug")
        self.loop.unwatch(self.sock)
        self.sock.close()


@pytest.mark.parametrize("abort_fails", [False, True])
def test_failed_handler_loses_its_descriptor_and_the_others_go_on(
    loop: Loop, pairs: Pairs, caplog: pytest.LogCaptureFixture, abort_fails: bool
) -> None:
    well: list[int] = []
    owners = []
    for number in range(6):
        a, b = pairs()
        b.send(b"x")
        if number % 2:
            owners.append(Owner(loop, a, abort_fails))
        else:
            loop.watch(a, EVENT_READ, well.append)
    loop.turn()
    assert len(well) == 3
    assert [owner.aborted for owner in owners] == [1, 1, 1]
    assert "a handler of the loop failed" in caplog.text and "RuntimeError: a bug" in caplog.text
    caplog.clear()
    loop.turn()
    assert len(well) == 6
    assert caplog.text == ""  # those that failed are not called again


def test_failed_handler_without_owner_is_unwatched(loop: Loop, pairs: Pairs, caplog: pytest.LogCaptureFixture) -> None:
    a, b = pairs()

    def handler(mask: int) -> None:
        raise ValueError(mask)

    loop.watch(a, EVENT_READ, handler)
    b.send(b"x")
    loop.turn()
    loop.turn()
    assert caplog.text.count("a handler of the loop failed") == 1
    loop.watch(a, EVENT_READ, print)  # it is free again


def test_failures_of_timers_calls_and_hooks_end_there(loop: Loop, caplog: pytest.LogCaptureFixture) -> None:
    seen: list[str] = []

    def fail() -> None:
        raise RuntimeError("a bug")

    loop.before_poll(fail)
    loop.before_poll(lambda: seen.append("hook"))
    loop.pace(fail)
    loop.call_later(0, fail)
    loop.call_later(0, seen.append, "timer")
    loop.call_soon_threadsafe(fail)
    loop.call_soon_threadsafe(seen.append, "call")
    turn_until(loop, lambda: len(set(seen)) == 3)
    assert caplog.text.count("a hook of the loop failed") >= 2
    assert caplog.text.count("a call in the loop failed") == 2
    assert loop._paces == []  # it would fail in each turn
    loop.defer(fail)
    loop.turn()
    assert caplog.text.count("a deferred call of the loop failed") == 1


def test_system_exit_and_keyboard_interrupt_pass(loop: Loop, pairs: Pairs) -> None:
    a, b = pairs()

    def leave(mask: int) -> None:
        raise SystemExit(3)

    loop.watch(a, EVENT_READ, leave)
    b.send(b"x")
    with pytest.raises(SystemExit):
        loop.run()


# ---- calls from other threads


def test_calls_of_many_threads_all_arrive_in_each_threads_order(loop: Loop) -> None:
    got: list[tuple[int, int]] = []
    count = 1000

    def send(thread: int) -> None:
        for number in range(count):
            loop.call_soon_threadsafe(got.append, (thread, number))

    threads = [threading.Thread(target=send, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    turn_until(loop, lambda: len(got) == 8 * count)
    join(*threads)
    for thread_number in range(8):
        assert [number for thread, number in got if thread == thread_number] == list(range(count))


def test_call_wakes_a_loop_that_waits(loop: Loop) -> None:
    poll = CountingPoll(loop)
    thread = run_in_thread(loop)
    assert poll.entered.wait(BOUND_SECONDS)
    called = threading.Event()
    loop.call_soon_threadsafe(called.set)
    assert called.wait(BOUND_SECONDS)
    loop.stop()
    join(thread)


def test_a_burst_of_calls_wakes_once(fast: Loop) -> None:
    class CountingWaker:
        def __init__(self, waker: Any) -> None:
            self.waker = waker
            self.count = 0

        def wake(self) -> None:
            self.count += 1
            self.waker.wake()

        def close(self) -> None:
            self.waker.close()

    waker = fast._waker = CountingWaker(fast._waker)  # type: ignore[assignment]
    got: list[int] = []
    for number in range(100):
        fast.call_soon_threadsafe(got.append, number)
    assert waker.count == 1
    fast.turn()
    assert got == list(range(100))
    fast.call_soon_threadsafe(got.append, 100)
    assert waker.count == 2
    fast.turn()
    assert got[-1] == 100


def test_batched_calls_wake_only_when_nothing_waits(loop: Loop) -> None:
    got: list[str] = []
    waiting = ["a job"]
    call_soon = loop.batched_call_soon(waiting)
    call_soon(got.append, "held")
    assert not loop._woken
    waiting.clear()
    call_soon(got.append, "woken")
    assert loop._woken
    loop.select(None)
    assert got == ["held", "woken"]


def test_wake_has_batched_calls_made(loop: Loop) -> None:
    got: list[str] = []
    loop.wake()
    assert not loop._woken  # for nothing
    loop.batched_call_soon(["a job"])(got.append, "held")
    loop.wake()
    loop.select(None)
    assert got == ["held"]


def test_batched_calls_are_made_when_the_poll_ends_for_another_reason(loop: Loop) -> None:
    got: list[str] = []
    loop.batched_call_soon(["a job"])(got.append, "held")
    loop.pace(lambda: 0.001)
    loop.select(None)
    assert got == ["held"]


def test_deferred_calls_are_made_once_when_all_handlers_have_run(loop: Loop, pairs: Pairs) -> None:
    order: list[str] = []
    for name in ("first", "second"):
        a, b = pairs()

        def handler(mask: int, name: str = name, a: socket.socket = a) -> None:
            order.append(name)
            a.recv(1)
            loop.defer(lambda: order.append(f"after {name}"))

        loop.watch(a, EVENT_READ, handler)
        b.send(b"x")
    loop.turn()
    assert sorted(order) == ["first", "second"]
    loop.turn()
    loop.turn()
    assert order[2:] == [f"after {name}" for name in order[:2]]


def test_a_call_that_calls_itself_again_does_not_starve_descriptors(loop: Loop, pairs: Pairs) -> None:
    a, b = pairs()
    masks: list[int] = []
    loop.watch(a, EVENT_READ, masks.append)
    b.send(b"x")
    turns: list[int] = []

    def again() -> None:
        turns.append(1)
        assert len(turns) < 1000
        loop.call_soon_threadsafe(again)

    again()
    turn_until(loop, lambda: masks)
    before = len(turns)
    turn_until(loop, lambda: len(turns) > before)  # and is not lost itself


def test_more_wake_ups_than_a_socket_buffer_holds() -> None:
    waker = loop_module._SocketWaker()
    try:
        for _ in range(5_000):
            waker.wake()
        waker.clear()
        assert not select.select([waker], [], [], 0)[0]
        waker.clear()  # nothing there: no error
    finally:
        waker.close()
    waker.wake()  # a thread may be late


def test_stop_from_another_thread_makes_the_calls_before_it(loop: Loop) -> None:
    poll = CountingPoll(loop)
    thread = run_in_thread(loop)
    assert poll.entered.wait(BOUND_SECONDS)
    got: list[int] = []
    for number in range(100):
        loop.call_soon_threadsafe(got.append, number)
    loop.stop()
    join(thread)
    assert got == list(range(100))


def test_stop_before_run_and_from_a_handler(loop: Loop) -> None:
    loop.stop()
    loop.run()
    loop.run()  # it stays stopped


def test_call_and_stop_after_close_do_nothing(loop: Loop) -> None:
    loop.close()
    loop.close()
    loop.call_soon_threadsafe(print, "never")
    loop.stop()


def test_close_frees_all_descriptors(monkeypatch: pytest.MonkeyPatch) -> None:
    for patch in (as_it_is, without_eventfd, without_epoll):
        with monkeypatch.context() as context:
            patch(context)
            first, last = os.pipe()
            os.close(first)
            os.close(last)
            loop = Loop()
            loop.close()
            pipe = os.pipe()
            os.close(pipe[0])
            os.close(pipe[1])
            assert pipe == (first, last), patch.__name__  # the lowest numbers are free again


# ---- time


def test_timers_run_in_order_when_due() -> None:
    clock = FakeClock()
    loop = Loop(clock)
    try:
        ran: list[str] = []
        loop.call_later(3, ran.append, "c")
        loop.call_later(1, ran.append, "a")
        loop.call_later(2, ran.append, "b")
        loop.turn()
        assert ran == []
        clock.now += 2
        loop.turn()
        assert ran == ["a", "b"]
        assert loop.time == loop.now() == 102.0
        clock.now += 1
        loop.turn()
        assert ran == ["a", "b", "c"]
    finally:
        loop.close()


def test_cancelled_timer_does_not_run_and_lets_go_of_its_arguments() -> None:
    clock = FakeClock()
    loop = Loop(clock)
    try:
        ran: list[str] = []
        timer = loop.call_later(1, ran.append, "a")
        loop.call_later(1, ran.append, "b")
        timer.cancel()
        timer.cancel()
        assert timer.args == ()
        clock.now += 1
        loop.turn()
        assert ran == ["b"]
        timer.cancel()  # also when its time is over
    finally:
        loop.close()


def test_timers_made_and_cancelled_by_timers() -> None:
    clock = FakeClock()
    loop = Loop(clock)
    try:
        ran: list[str] = []
        late = loop.call_later(2, ran.append, "late")

        def first() -> None:
            ran.append("first")
            late.cancel()
            loop.call_later(1, ran.append, "second")

        loop.call_later(1, first)
        clock.now += 5
        loop.turn()
        assert ran == ["first"]
        clock.now += 1
        loop.turn()
        assert ran == ["first", "second"]
    finally:
        loop.close()


def test_poll_waits_no_longer_than_the_next_timer() -> None:
    clock = FakeClock()
    loop = Loop(clock)
    poll = CountingPoll(loop)
    poll.poll = lambda timeout: []
    try:
        loop.select(None)
        loop.call_later(5, print)
        timer = loop.call_later(2, print)
        loop.select(None)
        loop.select(1)
        loop.select(0)
        timer.cancel()
        loop.select(None)  # at most one turn too many for a timer that was cancelled
        clock.now += 3
        loop.select(None)
        assert poll.limits[:4] == [None, 2, 1, 0]
        assert poll.limits[4] in (2, 5)
        loop.select(None)
        assert poll.limits[-1] == 2
        clock.now += 10  # a handler took long: the timer is overdue
        loop._timers[0].callback = None
        loop.time = clock.now
        loop.select(None)
        assert poll.limits[-1] == 0
    finally:
        loop.close()


def test_timer_ends_a_wait(loop: Loop) -> None:
    ran: list[str] = []
    loop.call_later(0.005, ran.append, "a")
    turn_until(loop, lambda: ran)


def test_idle_loop_makes_no_turns(loop: Loop, pairs: Pairs) -> None:
    poll = CountingPoll(loop)
    a, b = pairs()
    loop.watch(a, EVENT_READ, lambda mask: (a.recv(10), loop.stop()))
    thread = run_in_thread(loop)
    assert poll.entered.wait(BOUND_SECONDS)
    assert poll.limits == [None]  # it waits for ever
    b.send(b"x")
    join(thread)
    assert poll.limits == [None, None]  # the byte, the call of stop


# ---- hooks


def test_before_poll_is_called_once_before_each_poll(loop: Loop) -> None:
    order: list[str] = []
    poll = loop._poll

    def noting(timeout: float | None) -> Any:
        order.append("poll")
        return poll(timeout)

    loop._poll = noting
    loop.before_poll(lambda: order.append("hook"))
    loop.turn()
    loop.turn()
    assert order == ["hook", "poll"] * 2


def test_pace_limits_the_poll_until_it_returns_none() -> None:
    loop = Loop()
    poll = CountingPoll(loop)
    poll.poll = lambda timeout: []
    try:
        first: list[float | None] = [0.5, 0.25, None]
        second: list[float | None] = [0.4, 0.3, 0.2, None]
        loop.pace(lambda: first.pop(0))
        loop.pace(lambda: second.pop(0))
        for _ in range(4):
            loop.select(None)
        loop.select(None)
        assert poll.limits == [0.4, 0.25, 0.2, None, None]
        assert first == second == []
        loop.pace(lambda: 5.0)
        loop.select(0.001)
        assert poll.limits[-1] == 0.001  # it only ever makes the wait shorter
    finally:
        loop.close()


def test_hooks_and_timers_together() -> None:
    clock = FakeClock()
    loop = Loop(clock)
    poll = CountingPoll(loop)
    poll.poll = lambda timeout: []
    try:
        loop.before_poll(lambda: None)
        loop.call_later(1, print).cancel()
        loop.call_later(2, print)
        loop.select(None)
        assert poll.limits == [2]  # the cancelled one does not count
        loop.select(1)
        assert poll.limits[-1] == 1
    finally:
        loop.close()


# ---- host 2: asyncio polls through us


def run_under_asyncio(main: Callable[[Loop], Any]) -> Any:
    loop = Loop()
    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(loop)) as runner:
        return runner.run(asyncio.wait_for(main(loop), BOUND_SECONDS))


def test_asyncio_streams_beside_our_own_handlers(pairs: Pairs) -> None:
    a, b = pairs()

    async def main(loop: Loop) -> None:
        host = asyncio.get_running_loop()
        answered = host.create_future()

        def on_ready(mask: int) -> None:
            if not answered.done():
                answered.set_result(a.recv(10))

        async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(await reader.readexactly(100_000))
            await writer.drain()
            writer.close()
            await writer.wait_closed()

        loop.watch(a, EVENT_READ, on_ready)
        server = await asyncio.start_server(echo, "127.0.0.1", 0)
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        writer.write(b"x" * 100_000)
        b.send(b"ours")
        assert await reader.readexactly(100_000) == b"x" * 100_000
        assert await answered == b"ours"
        loop.unwatch(a)
        writer.close()
        await writer.wait_closed()
        server.close()
        await server.wait_closed()

    run_under_asyncio(main)


def test_our_timers_cap_asyncios_poll() -> None:
    async def main(loop: Loop) -> None:
        host = asyncio.get_running_loop()
        due = host.create_future()
        loop.call_later(0.005, due.set_result, "due")  # nothing of asyncio's would end its poll
        assert await due == "due"

    run_under_asyncio(main)


def test_threads_call_into_asyncio_by_either_way() -> None:
    async def main(loop: Loop) -> None:
        host = asyncio.get_running_loop()
        ours, theirs = host.create_future(), host.create_future()

        def call() -> None:
            loop.call_soon_threadsafe(ours.set_result, 1)
            host.call_soon_threadsafe(theirs.set_result, 2)

        thread = threading.Thread(target=call)
        thread.start()
        assert await ours + await theirs == 3
        join(thread)
        assert await asyncio.to_thread(lambda: 4) == 4

    run_under_asyncio(main)


def test_failing_handler_does_not_end_asyncio(pairs: Pairs, caplog: pytest.LogCaptureFixture) -> None:
    a, b = pairs()

    async def main(loop: Loop) -> int:
        owner = Owner(loop, a)
        b.send(b"x")
        while not owner.aborted:
            await asyncio.sleep(0)
        await asyncio.sleep(0.001)
        return owner.aborted

    assert run_under_asyncio(main) == 1
    assert "a handler of the loop failed" in caplog.text


def test_a_task_made_in_a_handler_runs_in_the_same_iteration(pairs: Pairs) -> None:
    a, b = pairs()

    async def main(loop: Loop) -> None:
        host = asyncio.get_running_loop()
        done = asyncio.Event()
        tasks = []

        async def answer() -> None:
            a.recv(10)
            done.set()

        def on_ready(mask: int) -> None:
            loop.unwatch(a)
            tasks.append(host.create_task(answer()))

        loop.watch(a, EVENT_READ, on_ready)
        b.send(b"x")
        await done.wait()

    run_under_asyncio(main)


def test_a_number_that_asyncio_reuses_in_our_handler_gets_no_event_of_the_old_one(pairs: Pairs) -> None:
    loop = Loop()
    (a, a_peer), (b, b_peer), (new, _) = pairs(), pairs(), pairs()

    def replaces(other: socket.socket) -> Callable[[int], None]:
        def handler(mask: int) -> None:
            loop.unwatch(other)
            number = other.detach()
            os.dup2(new.fileno(), number)
            pairs.made.append(socket.socket(fileno=number))
            loop.register(number, EVENT_READ, ("reader", None))  # as loop.add_reader does

        return handler

    try:
        loop.watch(a, EVENT_READ, replaces(b))
        loop.watch(b, EVENT_READ, replaces(a))
        a_peer.send(b"x")
        b_peer.send(b"x")
        assert loop.select(0) == []
    finally:
        loop.close()


def test_what_a_handler_takes_from_asyncio_is_not_returned_to_it(pairs: Pairs) -> None:
    loop = Loop()
    (a, a_peer), (theirs, theirs_peer) = pairs(), pairs()
    try:
        loop.register(theirs, EVENT_READ, ("reader", None))
        theirs_peer.send(b"x")
        ((key, mask),) = loop.select(0)
        assert (key.fileobj, mask, key.data) == (theirs, EVENT_READ, ("reader", None))
        loop.modify(theirs, EVENT_WRITE, ("writer", None))
        ((key, mask),) = loop.select(0)
        assert (mask, key.data) == (EVENT_WRITE, ("writer", None))
        assert loop.get_key(theirs) == key and loop.get_map()[theirs] == key

        def take(mask: int) -> None:
            loop.unregister(theirs)

        loop.watch(a, EVENT_READ, take)
        a_peer.send(b"x")
        assert loop.select(0) == []
    finally:
        loop.close()


def test_asyncio_debug_mode_and_slow_callbacks(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> str:
        await asyncio.sleep(0)
        return "ran"

    loop = Loop()
    caplog.set_level(logging.CRITICAL, "asyncio")
    with asyncio.Runner(debug=True, loop_factory=lambda: asyncio.SelectorEventLoop(loop)) as runner:
        assert runner.run(main()) == "ran"


# ---- host 3: nested in somebody's loop


def run_nested(main: Callable[[Loop], Any]) -> Any:
    async def nested() -> Any:
        loop = Loop()
        host = asyncio.get_running_loop()
        loop.nest(host)
        try:
            return await asyncio.wait_for(main(loop), BOUND_SECONDS)
        finally:
            loop.leave(host)
            loop.close()

    with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
        return runner.run(nested())


needs_nesting = pytest.mark.skipif(
    not hasattr(selectors.DefaultSelector, "fileno"), reason="the system's poll cannot be polled"
)


@needs_nesting
def test_nested_handlers_timers_and_calls(pairs: Pairs) -> None:
    a, b = pairs()

    async def main(loop: Loop) -> None:
        host = asyncio.get_running_loop()
        read, called = host.create_future(), host.create_future()
        loop.watch(a, EVENT_READ, lambda mask: (loop.unwatch(a), read.set_result(a.recv(10))))
        b.send(b"x")
        assert await read == b"x"
        thread = threading.Thread(target=loop.call_soon_threadsafe, args=(called.set_result, "called"))
        thread.start()
        assert await called == "called"
        join(thread)

    run_nested(main)


@needs_nesting
def test_nested_timers_that_are_set_outside_of_a_turn() -> None:
    async def main(loop: Loop) -> None:
        host = asyncio.get_running_loop()
        first, second = host.create_future(), host.create_future()
        loop.call_later(0.002, lambda: (first.set_result(1), loop.call_later(0.002, second.set_result, 2)))
        loop.call_later(1000, print)
        assert await first + await second == 3
        cancelled = loop.call_later(0, first.set_result, "twice")
        cancelled.cancel()
        sooner = host.create_future()
        loop.call_later(0.002, sooner.set_result, 3)
        assert await sooner == 3

    run_nested(main)


@needs_nesting
def test_nested_loop_that_is_idle_leaves_its_host_alone() -> None:
    async def main(loop: Loop) -> None:
        poll = CountingPoll(loop)
        for _ in range(20):
            await asyncio.sleep(0)
        assert poll.limits == []

    run_nested(main)


@needs_nesting
def test_nested_calls_that_are_deferred_in_a_turn_are_made(pairs: Pairs) -> None:
    async def main() -> None:
        loop = Loop()
        host = asyncio.get_running_loop()
        done = asyncio.Event()
        a, b = pairs()
        loop.watch(a, EVENT_READ, lambda mask: (a.recv(1), loop.defer(done.set)))
        loop.nest(host)
        b.send(b"x")
        await asyncio.wait_for(done.wait(), BOUND_SECONDS)
        loop.leave(host)
        loop.close()

    asyncio.run(main())


def test_leave_ends_the_turns(pairs: Pairs) -> None:
    a, b = pairs()

    async def main(loop: Loop) -> None:
        host = asyncio.get_running_loop()
        called: list[object] = []
        loop.watch(a, EVENT_READ, called.append)
        loop.call_later(0, called.append, "timer")
        loop.leave(host)
        b.send(b"x")
        for _ in range(10):
            await asyncio.sleep(0)
        assert called == []
        loop.nest(host)
        assert called == ["timer", EVENT_READ]

    run_nested(main)


@needs_nesting
def test_leave_from_a_handler(pairs: Pairs) -> None:
    a, b = pairs()

    async def main(loop: Loop) -> None:
        host = asyncio.get_running_loop()
        called: list[int] = []

        def on_ready(mask: int) -> None:
            called.append(mask)
            loop.call_later(0, print)
            loop.leave(host)

        loop.watch(a, EVENT_READ, on_ready)
        b.send(b"x")
        while not called:
            await asyncio.sleep(0)
        for _ in range(5):
            await asyncio.sleep(0)
        assert len(called) == 1

    run_nested(main)


def test_a_loop_that_cannot_be_nested_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    without_epoll(monkeypatch)
    loop = Loop()
    try:
        with pytest.raises(OSError, match="SelectSelector cannot be polled"):
            loop.fileno()
    finally:
        loop.close()
