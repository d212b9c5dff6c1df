"""Why a worker died, in words."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import signal
import tempfile
import threading

_EXIT_CODES = {
    0: "it ended by itself",
    1: "exit code 1, an error",
    3: "exit code 3, it could not start the application",
    4: "exit code 4, there is no such application",
}


def describe_death(code: int, out_of_memory: OutOfMemoryCount | None = None) -> str:
    """`code` as os.waitstatus_to_exitcode gives it: negative for a signal."""
    if code >= 0:
        return _EXIT_CODES.get(code, f"exit code {code}")
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    if code == -signal.SIGKILL:
        killed_for_memory = out_of_memory is not None and out_of_memory.has_risen()
        return "out of memory, the kernel killed it" if killed_for_memory else f"{name}, somebody killed it"
    return name


# More than the stacks of a hundred threads
_MOST_BYTES = 256 * 1024


class LastWords:
    """The stacks that a worker writes when it is aborted or crashes, in a file without a name; the supervisor reads it.

    They are written by C code that needs no GIL, to a descriptor of its own: that of a log could since have been
    closed, and now be the number of some client's connection.
    """

    __slots__ = ("_fd",)

    def __init__(self) -> None:
        """Before the fork; OSError if there is no descriptor left."""
        if hasattr(os, "memfd_create"):
            self._fd = os.memfd_create("stdserve-last-words")
        else:
            with tempfile.TemporaryFile() as file:
                self._fd = os.dup(file.fileno())

    def capture(self) -> None:
        """In the worker.

        By a thread of its own: faulthandler gives the thread that enables it a small stack for signals, and Python runs
        its handlers of all signals there (SA_ONSTACK). In the main thread a few that come together overflow it and
        write over whatever memory lies below.
        """
        thread = threading.Thread(target=self._enable, name="stdserve-faulthandler")
        thread.start()
        thread.join()

    def _enable(self) -> None:
        with contextlib.suppress(OSError, RuntimeError, ValueError):
            faulthandler.enable(self._fd)

    def read(self) -> str:
        """In the supervisor."""
        return os.pread(self._fd, _MOST_BYTES, 0).decode("utf-8", "replace").rstrip()

    def close(self) -> None:
        os.close(self._fd)


class OutOfMemoryCount:
    """How many processes of this control group the kernel has killed for memory (cgroup v2, memory.events)."""

    def __init__(self, path: str | None = None) -> None:
        self._path = _memory_events() if path is None else path
        self._count = self._read()

    def has_risen(self) -> bool:
        """Since the last time that it was asked."""
        before, self._count = self._count, self._read()
        return self._count > before

    def _read(self) -> int:
        with contextlib.suppress(OSError, ValueError), open(self._path) as file:
            for line in file:
                name, _, value = line.partition(" ")
                if name == "oom_kill":
                    return int(value)
        return 0


def _memory_events() -> str:
    with contextlib.suppress(OSError), open("/proc/self/cgroup") as file:
        for line in file:
            if line.startswith("0::"):
                return f"/sys/fs/cgroup{line[3:].rstrip()}/memory.events".replace("//", "/")
    return "/sys/fs/cgroup/memory.events"
