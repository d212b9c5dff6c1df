"""Words for the one thread that watches, from any thread and from signal handlers.

Python calls a signal's handler in the main thread, when that next runs Python code. A main thread that waits in a queue
or lock is woken if the kernel interrupts just its wait: not if the signal arrives a moment before it, nor if another
thread takes the signal. So the watch waits for a descriptor, to which Python's handler in C writes the signal's number
(signal.set_wakeup_fd). A handler puts a word here and does nothing else: it may run in the middle of anything.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from math import inf
from types import FrameType
from typing import Any

Handler = Callable[[int, FrameType | None], object]

_before: dict[int, Any] = {}  # signals that we handle -> their handlers before that


def set_handlers(handlers: Mapping[int, Handler]) -> dict[int, Any]:
    """Returns what there was before."""
    old = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    _before.update(old)
    return old


# A child that the application forks is not the server: a TERM ends it, also one that comes at once, and wakes nobody
# here. So signals wait from before the fork until the child has the handlers that there were before ours.
_forking = threading.local()


def _before_fork() -> None:
    _forking.mask = signal.pthread_sigmask(signal.SIG_BLOCK, _before)


def _after_fork() -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, _forking.mask)


def _after_fork_in_child() -> None:
    if _before:
        signal.set_wakeup_fd(-1)
    while _before:
        number, handler = _before.popitem()
        signal.signal(number, signal.SIG_DFL if handler is None else handler)
    _after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork_in_child)


class Mailbox:
    """Order of calls: `open ( put | take | get )* close`; before and after that `put` only keeps the word."""

    def __init__(self, on_signal: Callable[[], object] = lambda: None) -> None:
        """`on_signal` is called by the thread that takes when a signal has arrived, perhaps before its handler."""
        self._on_signal = on_signal
        self._words: deque[str] = deque()
        self._reader: socket.socket | None = None
        self._writer: socket.socket | None = None

    def open(self) -> None:
        self._reader, self._writer = socket.socketpair()
        self._reader.setblocking(False)
        self._writer.setblocking(False)

    def fileno(self) -> int:
        """Readable when there may be words."""
        return -1 if self._reader is None else self._reader.fileno()

    def put(self, word: str) -> None:
        self._words.append(word)
        with contextlib.suppress(OSError):  # full: enough to wake it; or closed: nobody is there any more
            if self._writer is not None:
                self._writer.send(b"\0")

    def take(self) -> list[str]:
        """All words that are there."""
        with contextlib.suppress(BlockingIOError):
            self._read()
        words = []
        while self._words:
            words.append(self._words.popleft())
        return words

    def get(self, deadline: float = inf) -> str:
        """The next word; empty if there is none until then, in seconds of time.monotonic()."""
        assert self._reader is not None
        while not self._words:
            left = deadline - time.monotonic()
            self._reader.settimeout(None if left == inf else max(left, 0.0))
            try:
                self._read()
            except (TimeoutError, BlockingIOError):
                return ""
            finally:
                self._reader.setblocking(False)
        return self._words.popleft()

    def _read(self) -> None:
        assert self._reader is not None
        if self._reader.recv(4096).strip(b"\0"):
            self._on_signal()

    @contextlib.contextmanager
    def signals(self, handlers: Mapping[int, Handler]) -> Iterator[None]:
        """Handle these signals, and be woken by them. Elsewhere than in the main thread nobody can: then do nothing."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        assert self._writer is not None
        old = set_handlers(handlers)
        old_fd = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        try:
            yield
        finally:
            signal.set_wakeup_fd(old_fd)
            for number, handler in old.items():
                signal.signal(number, handler)
                _before.pop(number, None)

    def close(self) -> None:
        if self._reader is not None and self._writer is not None:
            self._reader.close()
            self._writer.close()
