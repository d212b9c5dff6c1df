"""The event loop: one poll for everything that the server waits for.

    turn:  before-poll hooks -> deferred calls -> poll -> clock -> timers due -> posted calls -> handlers of what is
           ready

It runs in three ways with the same handlers on top:

1. alone: `run()` polls until `stop()` (WSGI; asyncio is not even imported);
2. under asyncio: the Loop is a `selectors.BaseSelector`; `asyncio.SelectorEventLoop(selector=loop)` polls through it.
   Handlers of our own descriptors run inside `select()`, only asyncio's own descriptors are returned to it;
3. nested in somebody's loop: an epoll or kqueue descriptor can itself be polled, so
   `host.add_reader(loop.fileno(), loop.turn)` and a timer of the host's are enough: `nest(host)`.

Facts that shape it. A handler called straight from the poll saves asyncio's Handle per event. A descriptor stays
registered for its connection's life: to register and unregister for each request halved the throughput. An exception
that left `select()` would end the asyncio loop, so handlers end at one `except` here. asyncio may poll without a time
limit, so the poll's limit is cut to our own next timer and an empty list returned. With no timer set an idle server
makes no system call at all.

It knows nothing of HTTP. Only its own thread may call it, except `call_soon_threadsafe`, what `batched_call_soon`
makes, `wake` and `stop`.
"""

from __future__ import annotations

import contextlib
import functools
import heapq
import logging
import os
import select
import selectors
import socket
import time
from collections import deque
from collections.abc import Callable, Mapping, Sized
from selectors import EVENT_READ, EVENT_WRITE, SelectorKey
from typing import Any

Handler = Callable[[int], object]
Hook = Callable[[], object]
Pace = Callable[[], float | None]

logger = logging.getLogger("stdserve.error")


class Timer:
    """A call in the future; `cancel` it as often as you like."""

    __slots__ = ("args", "callback", "when")

    def __init__(self, when: float, callback: Callable[..., object], args: tuple[Any, ...]) -> None:
        self.when = when
        self.callback: Callable[..., object] | None = callback
        self.args = args

    def cancel(self) -> None:
        self.callback = None
        self.args = ()

    def __lt__(self, other: Timer) -> bool:
        return self.when < other.when


class Loop(selectors.BaseSelector):
    """`time` is the clock at the last poll, in seconds of time.monotonic(); handlers use it instead of asking again."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._selector = selectors.DefaultSelector()
        self._poll, self._close_poll = _poller(self._selector)
        self._handlers: dict[int, Handler] = {}
        self._forgotten: set[int] = set()  # since the poll: what it said of these numbers is of no descriptor of now
        self._clock = clock
        self.time = clock()
        self.polling = False  # in the poll now; read by other threads
        self._timers: list[Timer] = []
        self._hooks: list[Hook] = []
        self._paces: list[Pace] = []
        self._deferred: deque[Hook] = deque()
        # defer(call): make it before the next poll, when all that this one found has been read
        self.defer: Callable[[Hook], None] = self._deferred.append
        self._stopping = False
        self._host: Any = None  # the loop we are nested in
        self._host_timer: Any = None
        # call_soon_threadsafe: appending to a deque is atomic; `_woken` says that a wake-up is already on its way, so a
        # burst of calls costs one system call.
        self._calls: deque[tuple[Callable[..., object], tuple[Any, ...]]] = deque()
        self.posted: Sized = self._calls
        self._woken = False
        self._waker = _make_waker()
        self._clear_waker = self._waker.clear
        self.watch(self._waker, EVENT_READ, self._run_calls)

    # ---- our own descriptors

    def watch(self, sock: Any, events: int, handler: Handler) -> None:
        """Call `handler(mask)` in each turn in which `sock` is ready for one of `events` (EVENT_READ | EVENT_WRITE)."""
        self._handlers[self._selector.register(sock, events).fd] = handler

    def rewatch(self, sock: Any, events: int, handler: Handler) -> None:
        """Change what is waited for; `events` is not 0."""
        self._handlers[self._selector.modify(sock, events).fd] = handler

    def unwatch(self, sock: Any) -> None:
        """Forget `sock`; call it before the socket is closed."""
        del self._handlers[self.unregister(sock).fd]

    # ---- time and other threads

    def call_later(self, seconds: float, callback: Callable[..., object], *args: Any) -> Timer:
        timer = Timer(self._clock() + seconds, callback, args)
        heapq.heappush(self._timers, timer)
        if self._host is not None and self._timers[0] is timer:
            self.call_soon_threadsafe(_nothing)  # a turn sets the host's timer
        return timer

    def call_soon_threadsafe(self, callback: Callable[..., object], *args: Any) -> None:
        """Call it in the loop thread soon; from any thread."""
        self._calls.append((callback, args))
        if not self._woken:
            self._woken = True
            self._waker.wake()

    def batched_call_soon(self, waiting: Sized) -> Callable[..., None]:
        """A call_soon_threadsafe for threads that work through a queue. It does not wake the poll while `waiting` holds
        something: the thread that empties it calls `wake`, and until then a `pace` keeps the poll short.

        A poll that wakes at the first of many answers would fight with those threads for the GIL at each system call:
        of 64 requests at a time each costs a third less so.
        """
        calls, waker = self._calls, self._waker

        def call_soon(callback: Callable[..., object], *args: Any) -> None:
            calls.append((callback, args))
            if not waiting and not self._woken:
                self._woken = True
                waker.wake()

        return call_soon

    def wake(self) -> None:
        """Have the calls made that wait for it; from any thread."""
        if self._calls and not self._woken:
            self._woken = True
            self._waker.wake()

    def before_poll(self, hook: Hook) -> None:
        """Call `hook` before each poll."""
        self._hooks.append(hook)

    def pace(self, hook: Pace) -> None:
        """Call `hook` before each poll, which may take no longer than the seconds it returns, until it returns None."""
        self._paces.append(hook)

    def now(self) -> float:
        return self._clock()

    # ---- host 1: alone

    def run(self) -> None:
        """Turn until `stop`. The calls that `stop` found waiting are still made."""
        while not self._stopping:
            self.select(None)

    def stop(self) -> None:
        """End `run`; from any thread."""
        self.call_soon_threadsafe(self._stop)

    def _stop(self) -> None:
        self._stopping = True

    # ---- host 3: nested

    def turn(self) -> None:
        """One turn that does not wait."""
        self.select(0)

    def fileno(self) -> int:
        """A descriptor that is readable when a turn has something to do (epoll, kqueue; else OSError)."""
        fileno = getattr(self._selector, "fileno", None)
        if fileno is None:
            raise OSError(f"{type(self._selector).__name__} cannot be polled by another loop")
        return int(fileno())

    def nest(self, host: Any) -> None:
        """Take turns inside `host`, a running asyncio loop of any make, until `leave`."""
        self._host = host
        host.add_reader(self.fileno(), self._nested_turn)
        self._nested_turn()

    def leave(self, host: Any) -> None:
        host.remove_reader(self.fileno())
        self._host = None
        if self._host_timer is not None:
            self._host_timer.cancel()
            self._host_timer = None

    def _nested_turn(self) -> None:
        """A turn, and the host's timer set to our next one."""
        self.turn()
        if self._host_timer is not None:
            self._host_timer.cancel()
            self._host_timer = None
        limit = 0.0 if self._deferred else self._limit(None)
        if limit is not None and self._host is not None:
            self._host_timer = self._host.call_later(max(limit, 0.0), self._nested_turn)

    # ---- host 2: what asyncio calls (selectors.BaseSelector)

    def select(self, timeout: float | None = None) -> list[tuple[SelectorKey, int]]:
        """One turn; wait at most `timeout` seconds (None: until something happens). Returns asyncio's ready keys."""
        if self._hooks or self._paces:
            timeout = self._limit(timeout)
        elif self._timers:
            # by the clock of the last turn, which is at most that turn too old: a timer comes so much later
            left = self._timers[0].when - self.time
            if timeout is None or left < timeout:
                timeout = left
        deferred = self._deferred
        while deferred:
            try:
                deferred.popleft()()
            except Exception:
                logger.exception("a deferred call of the loop failed")
        forgotten = self._forgotten
        forgotten.clear()
        self.polling = True
        ready = self._poll(0 if timeout is not None and timeout < 0 else timeout)
        self.time = self._clock()
        self.polling = False
        if self._timers and self._timers[0].when <= self.time:
            self._run_timers()
        if self._calls and not self._woken:
            self._run_calls(0)
        foreign: list[tuple[int, int]] = []
        handlers = self._handlers
        for fd, event in ready:
            if fd in forgotten:
                continue
            handler = handlers.get(fd)
            if handler is None:
                foreign.append((fd, event))
                continue
            try:
                handler(_MASKS[event])
            except Exception:
                logger.exception("a handler of the loop failed")
                self._drop_failed(fd, handler)
        return self._foreign_keys(foreign) if foreign else []

    def register(self, fileobj: Any, events: int, data: Any = None) -> SelectorKey:
        return self._selector.register(fileobj, events, data)

    def unregister(self, fileobj: Any) -> SelectorKey:
        key = self._selector.unregister(fileobj)
        self._forgotten.add(key.fd)
        return key

    def modify(self, fileobj: Any, events: int, data: Any = None) -> SelectorKey:
        return self._selector.modify(fileobj, events, data)

    def get_map(self) -> Mapping[Any, SelectorKey]:
        return self._selector.get_map()

    def get_key(self, fileobj: Any) -> SelectorKey:
        return self._selector.get_key(fileobj)

    def close(self) -> None:
        """Free the descriptors of the loop itself; those it watches are their owners' to close. May be called twice."""
        if self._selector.get_map() is not None:
            self._selector.close()
            self._close_poll()
            self._waker.close()

    # ---- private

    def _limit(self, timeout: float | None) -> float | None:
        """Call the hooks; `timeout` cut by the paces and the next timer."""
        for hook in self._hooks:
            try:
                hook()
            except Exception:
                logger.exception("a hook of the loop failed")
        for pace in tuple(self._paces):
            try:
                limit = pace()
            except Exception:
                logger.exception("a hook of the loop failed")
                limit = None
            if limit is None:
                self._paces.remove(pace)
            elif timeout is None or limit < timeout:
                timeout = limit
        timers = self._timers
        while timers and timers[0].callback is None:
            heapq.heappop(timers)
        if timers:
            left = timers[0].when - self._clock()
            if timeout is None or left < timeout:
                timeout = left
        return timeout

    def _run_timers(self) -> None:
        timers = self._timers
        while timers and timers[0].when <= self.time:
            timer = heapq.heappop(timers)
            if timer.callback is not None:
                self._call(timer.callback, timer.args)

    def _run_calls(self, mask: int) -> None:
        """The waker's handler; with mask 0 for calls that have not woken the poll."""
        if mask:
            # The flag goes down before the queue is measured: a call that is added later wakes us anew, for the next
            # turn. To go on until the queue is empty would let threads that never stop calling starve the descriptors.
            self._clear_waker()
            self._woken = False
        calls = self._calls
        for _ in range(len(calls)):
            callback, args = calls.popleft()
            try:
                callback(*args)
            except Exception:
                logger.exception("a call in the loop failed")

    def _foreign_keys(self, events: list[tuple[int, int]]) -> list[tuple[SelectorKey, int]]:
        """asyncio's own descriptors that are ready, as they are registered now that our handlers have run."""
        found = []
        for fd, event in events:
            key = None if fd in self._forgotten else self._selector.get_map().get(fd)
            if key is not None and _MASKS[event] & key.events:
                found.append((key, _MASKS[event] & key.events))
        return found

    def _call(self, callback: Callable[..., object], args: tuple[Any, ...]) -> None:
        try:
            callback(*args)
        except Exception:
            logger.exception("a call in the loop failed")

    def _drop_failed(self, fd: int, handler: Handler) -> None:
        """A handler that fails would fail again at once and for ever: its owner gives up, or its descriptor goes."""
        abort = getattr(getattr(handler, "__self__", None), "abort", None)
        if abort is not None:
            self._call(abort, ())
        if self._handlers.get(fd) is handler:
            with contextlib.suppress(KeyError, ValueError, OSError):
                self.unwatch(fd)


# What epoll reports -> EVENT_READ | EVENT_WRITE. An error or a hang-up is both: reading or writing will tell which.
_EPOLLIN, _EPOLLOUT, _EPOLLERR, _EPOLLHUP = 1, 4, 8, 16
_MASKS = [
    (EVENT_READ if event & ~_EPOLLOUT else 0) | (EVENT_WRITE if event & ~_EPOLLIN else 0)
    for event in range(_EPOLLIN + _EPOLLOUT + _EPOLLERR + _EPOLLHUP + 3)
]


def _poller(selector: selectors.BaseSelector) -> tuple[Callable[[float | None], list[tuple[int, int]]], Hook]:
    """A function that polls for (descriptor, event as epoll names it), and one that frees what it holds.

    The selector registers, and where it is an epoll one we poll the same kernel object by a second descriptor: the
    selector's own select() looks up a key and makes two tuples for each event, 1.2 us that nobody needs here.
    """
    if hasattr(selectors, "EpollSelector") and isinstance(selector, selectors.EpollSelector):
        epoll = select.epoll.fromfd(os.dup(selector.fileno()))
        return epoll.poll, epoll.close

    def poll(timeout: float | None) -> list[tuple[int, int]]:
        return [
            (key.fd, (_EPOLLIN if mask & EVENT_READ else 0) | (_EPOLLOUT if mask & EVENT_WRITE else 0))
            for key, mask in selector.select(timeout)
        ]

    return poll, _nothing


class _EventfdWaker:
    """Wakes the poll from another thread: a counter in the kernel, half the price of a socket pair."""

    __slots__ = ("_fd", "clear", "wake")

    def __init__(self) -> None:
        self._fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.wake: Callable[[], object] = functools.partial(os.eventfd_write, self._fd, 1)
        self.clear: Callable[[], object] = functools.partial(os.eventfd_read, self._fd)

    def fileno(self) -> int:
        return self._fd

    def close(self) -> None:
        self.wake = _nothing  # a thread may be late; the number may soon be somebody else's
        os.close(self._fd)


class _SocketWaker:
    """The same where there is no eventfd. A full socket buffer is as good as one more byte in it."""

    __slots__ = ("_reader", "_writer")

    def __init__(self) -> None:
        self._reader, self._writer = socket.socketpair()
        self._reader.setblocking(False)
        self._writer.setblocking(False)

    def fileno(self) -> int:
        return self._reader.fileno()

    def wake(self) -> None:
        with contextlib.suppress(OSError):
            self._writer.send(b"\0")

    def clear(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while len(self._reader.recv(4096)) == 4096:
                pass

    def close(self) -> None:
        self._reader.close()
        self._writer.close()


def _nothing() -> None:
    pass


def _make_waker() -> _EventfdWaker | _SocketWaker:
    return _EventfdWaker() if hasattr(os, "eventfd") else _SocketWaker()
