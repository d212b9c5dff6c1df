"""What a process is to the system: pidfile, user and group, title, and what systemd is told of it (sd_notify(3))."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import socket
import sys
from typing import TYPE_CHECKING

from ..errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from ..config import Config
    from ..transport.listener import Listener


logger = logging.getLogger("stdserve.error")


class Pidfile:
    """A file with the supervisor's process number, removed at its end if the number in it is still the own one."""

    def __init__(self, path: str) -> None:
        self.path = os.path.abspath(path)

    @classmethod
    def make(cls, path: str) -> Pidfile | None:
        """Write it; ConfigError if the process in it lives. None without a path."""
        if not path:
            return None
        pidfile = cls(path)
        other = pidfile._read()
        if other and other != os.getpid() and _lives(other):
            raise ConfigError(f"--pid {path}: process {other} in it is alive: stop it, or choose another file")
        temporary = f"{pidfile.path}.{os.getpid()}"
        try:
            with open(temporary, "w") as file:
                file.write(f"{os.getpid()}\n")
            os.replace(temporary, pidfile.path)  # nobody reads half a number
        except OSError as error:
            raise ConfigError(f"--pid {path}: {error.strerror}") from None
        return pidfile

    def move(self, path: str) -> None:
        """Have it under another name, in place of the file of a process that has gone."""
        target = os.path.abspath(path)
        with contextlib.suppress(OSError):
            os.replace(self.path, target)
            self.path = target

    def remove(self) -> None:
        with contextlib.suppress(OSError):
            if self._read() == os.getpid():
                os.unlink(self.path)

    def _read(self) -> int:
        with contextlib.suppress(OSError, ValueError), open(self.path) as file:
            pid = int(file.read(32))
            return pid if 0 < pid < 1 << 31 else 0
        return 0


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # somebody else's
        return True
    return True


# ---- user and group


def drop_privileges(config: Config) -> None:
    """--user and --group, in a worker. The group first: afterwards nobody may change it."""
    user, group = find_user(config.user), find_group(config.group)
    if user is None and group is None:
        return
    uid, own_gid, name = user or (os.geteuid(), os.getegid(), "")
    if user is not None and not name and group is None and os.geteuid() == 0:
        raise ConfigError(f"--user {config.user} has no name and so no group: give --group, else it would be root's")
    gid = own_gid if group is None else group
    try:
        if config.initgroups and name:
            os.initgroups(name, gid)
        elif os.geteuid() == 0:
            os.setgroups([gid])  # else root's groups would stay
        if gid != os.getegid():
            os.setgid(gid)
        if uid != os.geteuid():
            os.setuid(uid)
    except OSError as error:
        raise ConfigError(f"cannot become --user {config.user} --group {config.group}: {error.strerror}") from None


def own_sockets(config: Config, listeners: Iterable[Listener]) -> None:
    """Give unix sockets to the user and group of the workers."""
    user, group = find_user(config.user), find_group(config.group)
    if user is None and group is None:
        return
    for listener in listeners:
        path = listener.server[0]
        if listener.is_unix and path[:1] not in ("@", "\0", ""):
            try:
                os.chown(path, -1 if user is None else user[0], _own_group(user, group))
            except OSError as error:
                raise ConfigError(f"cannot give {path} to --user {config.user}: {error.strerror}") from None


def own_logs(config: Config) -> None:
    """Make the log files, which workers open for themselves, and give them to the workers' user and group."""
    user, group = find_user(config.user), find_group(config.group)
    if user is None and group is None:
        return
    for path in (config.error_log_file, config.access_log_file if config.access_log else "-"):
        if path != "-":
            try:
                with open(path, "a"):
                    os.chown(path, -1 if user is None else user[0], _own_group(user, group))
            except OSError as error:
                logger.error("cannot give the log file %s to --user %s: %s", path, config.user, error.strerror)


def _own_group(user: tuple[int, int, str] | None, group: int | None) -> int:
    if group is not None:
        return group
    return -1 if user is None else user[1]


def find_user(text: str) -> tuple[int, int, str] | None:
    """(uid, its group, name) of a name or number; None if there is no text; ConfigError if there is no such user."""
    if not text:
        return None
    import pwd

    try:
        entry = pwd.getpwuid(int(text)) if text.isdecimal() else pwd.getpwnam(text)
    except KeyError:
        if text.isdecimal():  # containers run as numbers that nobody has named
            return int(text), os.getegid(), ""
        raise ConfigError(f"--user: there is no user {text!r}") from None
    except OverflowError:
        raise ConfigError(f"--user: {text} is too large") from None
    return entry.pw_uid, entry.pw_gid, entry.pw_name


def find_group(text: str) -> int | None:
    if not text:
        return None
    import grp

    if text.isdecimal():
        return int(text)
    try:
        return grp.getgrnam(text).gr_gid
    except KeyError:
        raise ConfigError(f"--group: there is no group {text!r}") from None


# ---- title


_PR_SET_NAME = 15


def set_title(name: str, role: str) -> None:
    """What `ps -o comm` and `top` show: the kernel keeps 15 bytes of it. Nothing where there is no prctl (Linux)."""
    if not sys.platform.startswith("linux"):
        return
    title = f"{name}: {role}".encode()[:15]
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_NAME, title, 0, 0, 0)


# ---- systemd


def notify(*lines: str) -> None:
    """Tell the service manager, if it wants to know (NOTIFY_SOCKET)."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.sendto("\n".join(lines).encode(), address)


def watchdog_seconds(environ: Mapping[str, str] = os.environ) -> float:
    """How long the service manager waits for WATCHDOG=1 before it acts; 0: it does not (sd_watchdog_enabled(3))."""
    text = environ.get("WATCHDOG_USEC", "")
    meant = environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
    return int(text) / 1e6 if meant and text.isdecimal() else 0.0
