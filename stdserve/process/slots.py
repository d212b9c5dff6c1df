"""The requests that a worker runs, in memory that its supervisor shares: after a crash that can say what was running.

    SLOTS records of RECORD_BYTES:   0-1 length of the text, 0: free   2- text, `GET /path from 127.0.0.1:4711`

Only the worker writes, only the supervisor reads, neither waits for the other. A request that comes when all records
are taken is not noted. 16 KiB for each worker.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Callable
from typing import Any

SLOTS = 64
RECORD_BYTES = 256

_LENGTH = struct.Struct("<H")


class RequestSlots:
    """Made before the fork. In the worker's loop thread `begin` and `end`; in the supervisor `running`.

    It counts too, for --max-requests: nothing else sees each request of a worker and of no other server.
    """

    __slots__ = ("_free", "_left", "_memory", "_on_last", "_taken")

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, SLOTS * RECORD_BYTES)  # anonymous and shared
        self._free = list(range(0, SLOTS * RECORD_BYTES, RECORD_BYTES))
        self._taken: dict[Any, int] = {}
        self._left = 0
        self._on_last: Callable[[], object] = int

    def limit(self, count: int, on_last: Callable[[], object]) -> None:
        """Call `on_last` when so many requests have ended."""
        self._left, self._on_last = count, on_last

    def begin(self, exchange: Any) -> None:
        if not self._free:
            return
        offset = self._taken[exchange] = self._free.pop()
        text = repr(exchange).encode("ascii", "backslashreplace")[: RECORD_BYTES - _LENGTH.size]
        start = offset + _LENGTH.size
        self._memory[start : start + len(text)] = text
        _LENGTH.pack_into(self._memory, offset, len(text))  # last: now it is a whole record

    def end(self, exchange: Any) -> None:
        self._left -= 1
        if not self._left:
            self._on_last()
        offset = self._taken.pop(exchange, None)
        if offset is not None:
            _LENGTH.pack_into(self._memory, offset, 0)
            self._free.append(offset)

    def running(self) -> list[str]:
        """What the records say now."""
        found = []
        for offset in range(0, SLOTS * RECORD_BYTES, RECORD_BYTES):
            (length,) = _LENGTH.unpack_from(self._memory, offset)
            start = offset + _LENGTH.size
            if length:
                found.append(self._memory[start : start + length].decode("ascii", "replace"))
        return found

    def close(self) -> None:
        self._memory.close()
