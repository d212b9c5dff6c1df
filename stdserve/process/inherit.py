"""Binary upgrade (USR2): a new supervisor, of new code, takes over the sockets of one that runs. gunicorn's protocol:

    old supervisor                           new supervisor
    USR2: start it with the listeners' fds,
          GUNICORN_PID, GUNICORN_FD      ->  adopts the listeners, its pidfile is PATH.2
    both serve                               both serve
    TERM, QUIT, WINCH by the operator    ->  sees that its parent has gone: its pidfile becomes PATH, MAINPID
    or goes on when the new one ends     <-  QUIT by the operator: rolled back

The new one is started by the command line, in the directory and with the environment that the old one was started
with: after a deployment that has moved a symbolic link this is the new code. The two know each other as parent and
child only, which holds for whatever program the new one is.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Iterable, Mapping, MutableMapping
from typing import TYPE_CHECKING, NamedTuple

from ..errors import BindError
from .deaths import describe_death

if TYPE_CHECKING:
    from ..transport.listener import Listener

logger = logging.getLogger("stdserve.error")

# Of the environment, what is meant for one process only: sd_listen_fds(3), sd_watchdog_enabled(3)
_OF_ONE_PROCESS = frozenset(
    ("GUNICORN_PID", "GUNICORN_FD", "LISTEN_PID", "LISTEN_PIDFDID", "LISTEN_FDS", "LISTEN_FDNAMES", "WATCHDOG_PID")
)


class Start(NamedTuple):
    """How this process was started."""

    command: list[str]
    directory: str
    environ: dict[str, str]

    @property
    def is_upgrade(self) -> bool:
        """By a supervisor that wants to be replaced."""
        return bool(self.environ.get("GUNICORN_FD"))

    @classmethod
    def of_this_process(cls) -> Start:
        """Call it before anything changes the directory or the environment."""
        return cls([sys.executable, *sys.orig_argv[1:]], _directory(os.environ), dict(os.environ))


def _directory(environ: Mapping[str, str]) -> str:
    """By the name that the shell knows, which may lead through a link to another directory later."""
    real, named = os.getcwd(), environ.get("PWD", "")
    try:
        return named if os.path.samefile(named, real) else real
    except OSError:
        return real


class Succession:
    """Who was before this supervisor, and who comes after it.

    predecessor   process number of the one whose sockets we have taken, while it lives
    successor     the one that has taken ours, while it lives; 0: none
    """

    def __init__(self, start: Start | None) -> None:
        self.predecessor = 0
        self._start = start
        self._successor: subprocess.Popen[bytes] | None = None

    @property
    def successor(self) -> int:
        return 0 if self._successor is None else self._successor.pid

    def inherit(self, environ: MutableMapping[str, str]) -> list[int]:
        """The descriptors that a predecessor has left us. Its variables are removed, so that no child takes them for
        its own; those of somebody else's parent say nothing. BindError if they make no sense."""
        pid, numbers = environ.pop("GUNICORN_PID", ""), environ.pop("GUNICORN_FD", "")
        if pid != str(os.getppid()) or not numbers:
            return []
        try:
            descriptors = [int(number) for number in numbers.split(",")]
        except ValueError:
            raise BindError(f"GUNICORN_FD={numbers!r} in the environment is not a list of file descriptors") from None
        self.predecessor = int(pid)
        return descriptors

    def has_come(self) -> bool:
        """Whether the predecessor has gone since the last time that this was asked: we are the only one now."""
        if not self.predecessor or os.getppid() == self.predecessor:
            return False
        logger.info("The supervisor [%d] has gone: this one takes its place", self.predecessor)
        self.predecessor = 0
        return True

    def upgrade(self, listeners: Iterable[Listener]) -> None:
        """Start a successor over our sockets, or say why not."""
        if self._start is None:
            logger.error("No upgrade: this supervisor was not started by a command line")
        elif self._successor is not None:
            logger.error("No upgrade: the new supervisor [%d] runs already", self.successor)
        elif self.predecessor:
            logger.error("No upgrade: this is itself the new supervisor as long as [%d] runs", self.predecessor)
        elif os.getpid() == 1:
            logger.error("No upgrade: when process 1 of a container ends all others end; reload with HUP")
        else:
            try:
                self._successor = _start_successor(self._start, listeners)
            except OSError as error:
                logger.error("No upgrade: the new supervisor cannot be started: %s", error)
                return
            logger.info("Started the new supervisor [%d] on the same sockets", self.successor)
            logger.info("TERM to [%d] completes the upgrade, QUIT to [%d] undoes it", os.getpid(), self.successor)

    def take_death(self, pid: int, status: int) -> bool:
        """Whether it was the successor who died."""
        if self._successor is None or self._successor.pid != pid:
            return False
        code = self._successor.returncode = os.waitstatus_to_exitcode(status)
        self._successor = None
        logger.warning("The new supervisor [%d] has ended: %s; this one goes on serving", pid, describe_death(code))
        return True

    def close(self) -> None:
        if self._successor is not None:
            self._successor.returncode = 0  # it lives on, and is nobody's to wait for


def _start_successor(start: Start, listeners: Iterable[Listener]) -> subprocess.Popen[bytes]:
    numbers = [listener.sock.fileno() for listener in listeners]
    environ = {name: value for name, value in start.environ.items() if name not in _OF_ONE_PROCESS}
    environ |= {"GUNICORN_PID": str(os.getpid()), "GUNICORN_FD": ",".join(map(str, numbers))}
    return subprocess.Popen(start.command, cwd=start.directory, env=environ, pass_fds=numbers)
