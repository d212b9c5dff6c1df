"""A server process under measurement: start it, wait until it accepts, read the cost of its tree, kill all of it.

Each server gets a session of its own, and its tree is every process of that session: this holds children whose parent
has died, and needs no walk. Linux only: /proc/PID/stat and /proc/PID/smaps_rollup.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

TICK_SECONDS = 1 / os.sysconf("SC_CLK_TCK")
START_TIMEOUT_SECONDS = 20.0
STOP_TIMEOUT_SECONDS = 3.0
LOG_TAIL_BYTES = 1500


# Servers that run: what no finally block stopped (a second Ctrl-C) ends with the interpreter.
_LIVE: set[ServerProcess] = set()


class StartError(Exception):
    """A server did not come up; the message ends with the last of its output."""


@dataclass(frozen=True, slots=True)
class Usage:
    """Cost of a process tree so far: CPU by the scheduler's ticks (with reaped children), by its run time in ns
    (living threads only, but finer), and how often its threads went to sleep."""

    cpu_seconds: float
    run_seconds: float
    sleeps: int


class ServerProcess:
    """Order of use: made (started) wait_accepting (usage | rss_bytes ...)* stop."""

    def __init__(self, command: list[str], port: int, environment: dict[str, str], directory: Path) -> None:
        self.command = command
        self.port = port
        self.log = tempfile.TemporaryFile()  # closed by stop
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=self.log,
            stderr=self.log,
            cwd=directory,
            env={**os.environ, **environment},
            start_new_session=True,
        )
        _LIVE.add(self)

    def wait_accepting(self) -> None:
        """Returns when a connection is taken; StartError when the server ends or the time is over."""
        deadline = time.monotonic() + START_TIMEOUT_SECONDS
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise StartError(f"ended with status {self.process.returncode}: {self.log_tail()}")
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
                return
            time.sleep(0.02)
        raise StartError(f"does not accept after {START_TIMEOUT_SECONDS:.0f} s: {self.log_tail()}")

    def log_tail(self) -> str:
        """The last of what the server wrote to its standard streams."""
        end = self.log.seek(0, os.SEEK_END)
        self.log.seek(max(0, end - LOG_TAIL_BYTES))
        return self.log.read().decode("utf-8", "replace").strip()

    def usage(self) -> Usage:
        """CPU and sleeps of the whole tree since its start."""
        pids = self._pids()
        ticks = sum(sum(map(int, _stat_fields(pid)[11:15])) for pid in pids)  # utime stime cutime cstime
        tasks = [task for pid in pids for task in Path(f"/proc/{pid}/task").glob("*")]
        run = sum(int((_read(task / "schedstat") or "0").split()[0]) for task in tasks)
        sleeps = sum(_field(_read(task / "status"), "voluntary_ctxt_switches:") for task in tasks)
        return Usage(ticks * TICK_SECONDS, run / 1e9, sleeps)

    def rss_bytes(self) -> int:
        """Resident memory of the tree; pages that processes share count once for each."""
        return sum(_field(_read(Path(f"/proc/{pid}/smaps_rollup")), "Rss:") for pid in self._pids()) * 1024

    def reset_peak(self) -> None:
        """Lets peak_bytes start again from what is resident now."""
        for pid in self._pids():
            Path(f"/proc/{pid}/clear_refs").write_text("5")

    def peak_bytes(self) -> int:
        """The sum of the processes' highest resident memory since reset_peak."""
        return sum(_field(_read(Path(f"/proc/{pid}/status")), "VmHWM:") for pid in self._pids()) * 1024

    def stop(self) -> None:
        """Ends the whole session: TERM, a short wait, KILL. Safe to call again."""
        self._signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(STOP_TIMEOUT_SECONDS)
        self.kill()
        self.process.wait(STOP_TIMEOUT_SECONDS)
        self.log.close()
        _LIVE.discard(self)

    def kill(self) -> None:
        """Ends the whole session at once."""
        for pid in self._pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def _signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, number)

    def _pids(self) -> list[int]:
        numbers = (int(entry.name) for entry in os.scandir("/proc") if entry.name.isdigit())
        return [pid for pid in numbers if _session(pid) == self.process.pid]


def _session(pid: int) -> int:
    fields = _stat_fields(pid)
    return int(fields[3]) if fields[0] != "Z" else 0


def _stat_fields(pid: int) -> list[str]:
    """proc(5) /proc/PID/stat from field 3 on: the name before it may hold blanks and parentheses."""
    text = _read(Path(f"/proc/{pid}/stat"))
    return text.rpartition(")")[2].split() if text else ["Z"] + ["0"] * 50


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def _field(text: str, name: str) -> int:
    for line in text.splitlines():
        if line.startswith(name):
            return int(line.split()[1])
    return 0


def free_port() -> int:
    """A port of 127.0.0.1 that was free just now."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@contextlib.contextmanager
def running(
    command_for: Callable[[int], list[str]], environment: dict[str, str], directory: Path
) -> Iterator[ServerProcess]:
    """A started server, stopped at the end whatever happens. `command_for(port)` gives its command."""
    for attempt in (1, 2, 3):
        port = free_port()
        server = ServerProcess(command_for(port), port, environment, directory)
        try:
            server.wait_accepting()
            break
        except StartError as error:
            server.stop()
            if attempt == 3 or "in use" not in str(error):  # somebody else took the port meanwhile: try another
                raise
        except BaseException:
            server.stop()
            raise
    try:
        yield server
    finally:
        server.stop()


@atexit.register
def _kill_the_rest() -> None:
    for server in list(_LIVE):
        server.kill()


def raise_descriptor_limit() -> int:
    """The soft limit on open files becomes the hard one, for us and the children to come; returns it."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def stop_on_signals() -> None:
    """TERM and HUP end us like Ctrl-C: through the finally blocks that stop the servers."""

    def leave(number: int, frame: object) -> None:
        sys.exit(128 + number)

    signal.signal(signal.SIGTERM, leave)
    signal.signal(signal.SIGHUP, leave)
