"""--daemon: go on in the background, without a terminal.

    the command                 child                grandchild, the daemon
    waits for the outcome  <-   setsid, ends    ->   supervises; its first report is the command's exit code

So a start that fails is not silent: the command prints what a start in the foreground prints, and ends with its code.
Standard output and error stay open until the workers serve, then they lead to nowhere.
"""

from __future__ import annotations

import contextlib
import os
import sys


class Daemon:
    """The daemon's side of it."""

    def __init__(self, writer: int) -> None:
        self._writer = writer
        self._pid = os.getpid()

    def report(self, code: int) -> None:
        """Let the waiting command end with this exit code; only the first report counts, and none of a worker."""
        if self._writer >= 0 and os.getpid() == self._pid:
            with contextlib.suppress(OSError):  # somebody has killed the command
                os.write(self._writer, bytes([code & 0xFF]))
            os.close(self._writer)
            self._writer = -1


def daemonize() -> Daemon:
    """Returns in the daemon only."""
    reader, writer = os.pipe()
    if os.fork():
        os.close(writer)
        code = os.read(reader, 1)
        os._exit(code[0] if code else 1)
    os.close(reader)
    os.setsid()
    if os.fork():  # who leads no session cannot get a terminal again by opening one
        os._exit(0)
    return Daemon(writer)


def detach_streams(*numbers: int) -> None:
    """Have standard input, output and error, or those given, lead to nowhere."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stream.flush()
    null = os.open(os.devnull, os.O_RDWR)
    for number in numbers or (0, 1, 2):
        os.dup2(null, number)
    if null > 2:
        os.close(null)
