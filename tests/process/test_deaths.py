from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from stdserve.process.deaths import LastWords, OutOfMemoryCount, describe_death


@pytest.mark.parametrize(
    ("code", "text"),
    [
        (0, "it ended by itself"),
        (3, "exit code 3, it could not start the application"),
        (4, "exit code 4, there is no such application"),
        (77, "exit code 77"),
        (-signal.SIGSEGV, "SIGSEGV"),
        (-signal.SIGKILL, "SIGKILL, somebody killed it"),
        (-200, "signal 200"),
    ],
)
def test_reasons(code: int, text: str, tmp_path: Path) -> None:
    assert describe_death(code, OutOfMemoryCount(str(tmp_path / "none"))) == text


def test_the_kernel_kills_for_memory(tmp_path: Path) -> None:
    events = tmp_path / "memory.events"
    events.write_text("low 0\nhigh 0\noom 3\noom_kill 2\n")
    count = OutOfMemoryCount(str(events))
    assert describe_death(-9, count) == "SIGKILL, somebody killed it"
    events.write_text("low 0\nhigh 0\noom 4\noom_kill 3\n")
    assert describe_death(-9, count) == "out of memory, the kernel killed it"
    assert describe_death(-9, count) == "SIGKILL, somebody killed it"


def test_last_words_of_a_process_that_crashes() -> None:
    last_words = LastWords()
    pid = os.fork()
    if not pid:
        last_words.capture()
        os.abort()
    os.waitpid(pid, 0)
    assert "Fatal Python error: Aborted" in last_words.read() and "test_last_words_of" in last_words.read()
    last_words.close()
    quiet = LastWords()
    assert quiet.read() == ""
    quiet.close()


SIGNALS_TOGETHER = """
import os, signal
from stdserve.process.deaths import LastWords
LastWords().capture()
numbers = range(signal.SIGRTMIN, signal.SIGRTMIN + 24)
for number in numbers:
    signal.signal(number, lambda *_: None)
for _ in range(20):
    signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    for number in numbers:
        os.kill(os.getpid(), number)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, numbers)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGRTMIN"), reason="too few signals")
def test_signals_that_come_together_do_not_overflow_the_stack_for_crashes() -> None:
    """In a process of its own: pytest enables faulthandler, in the main thread."""
    environ = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    assert subprocess.run([sys.executable, "-c", SIGNALS_TOGETHER], env=environ, check=False).returncode == 0
