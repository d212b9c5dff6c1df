"""Notices that the loop's thread does not come back to its poll, from another thread.

    wait_seconds -> look -> wait_seconds -> look ...

A handler, or an ASGI application in it, that computes or calls something blocking holds up every other connection. The
stack at that moment names the culprit, which nothing can that looks afterwards. Nothing is asked of the loop: its time
of the last poll and whether it is in one now are read. Looks become rare while the loop does nothing.
"""

from __future__ import annotations

from collections.abc import Callable

from .loop import Loop

_LOOKS_PER_LIMIT = 2
_RAREST_SECONDS = 10.0


class BlockWatch:
    """`on_block(seconds)` is called once for each time that the loop is blocked for longer than `limit` seconds."""

    def __init__(self, loop: Loop, limit: float, on_block: Callable[[float], object]) -> None:
        self.wait_seconds = self._shortest = limit / _LOOKS_PER_LIMIT
        self._loop = loop
        self._limit = limit
        self._on_block = on_block
        self._turn = 0.0  # the one that was seen last
        self._reported = 0.0  # the one that was reported

    def look(self) -> None:
        turn, self._turn = self._turn, self._loop.time
        if self._turn != turn:
            self.wait_seconds = self._shortest
        elif self._loop.polling:
            self.wait_seconds = min(2 * self.wait_seconds, _RAREST_SECONDS)
        blocked = self._loop.now() - self._turn
        if not self._loop.polling and blocked > self._limit and self._reported != self._turn:
            self._reported = self._turn
            self._on_block(blocked)
