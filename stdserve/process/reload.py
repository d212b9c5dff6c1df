"""Which files of a project have changed, for --reload.

    FileWatch    dirs, patterns, extra files -> fileno | due, changes
        inotify      Linux, through ctypes: nothing is done until something changes (inotify(7))
        polling      elsewhere, or when the kernel gives no more watches: looks so often that it costs 1 % of a CPU

Folders that hold no source of the project are not entered: hidden ones, caches, virtual environments, node_modules.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fnmatch
import glob
import logging
import os
import struct
import sys
import time
from collections.abc import Iterable, Iterator

logger = logging.getLogger("stdserve.error")

_PRUNED = frozenset(("__pycache__", "node_modules", "venv", "build", "dist", "site-packages"))

# inotify.h
_IN_CLOSE_WRITE, _IN_MOVED_FROM, _IN_MOVED_TO, _IN_CREATE, _IN_DELETE = 0x8, 0x40, 0x80, 0x100, 0x200
_IN_Q_OVERFLOW, _IN_ISDIR = 0x4000, 0x40000000
_IN_MASK = _IN_CLOSE_WRITE | _IN_MOVED_FROM | _IN_MOVED_TO | _IN_CREATE | _IN_DELETE
_IN_EVENT = struct.Struct("iIII")  # wd, mask, cookie, length of the name that follows

_SHORTEST_SECONDS = 0.5
_POLL_SHARE = 100  # one part of so many of the time is spent looking


class FileWatch:
    """`changes` returns the paths that have changed since the last call; never waits."""

    def __init__(
        self, dirs: Iterable[str], include: Iterable[str], exclude: Iterable[str], extra: Iterable[str], engine: str
    ) -> None:
        """`include` and `exclude` are patterns for the path below its folder, or its last part; `extra` are paths, or
        patterns of such, that are watched wherever they are; engine: auto, inotify or poll."""
        self.due = float("inf")  # when `changes` should be called at the latest, of time.monotonic()
        self._dirs = [os.path.abspath(each) for each in dirs]
        self._include = tuple(include)
        self._exclude = tuple(exclude)
        self._extra = tuple(map(os.path.abspath, extra))
        self._inotify: _Inotify | None = None
        if engine != "poll" and sys.platform.startswith("linux"):
            with contextlib.suppress(OSError, AttributeError):
                self._inotify = _Inotify()
        if self._inotify is None:
            self._start_polling()
            return
        try:
            for each in {*self._folders(), *(os.path.dirname(path) for path in self._extra)}:
                self._inotify.watch(each)
        except OSError as error:
            logger.warning("--reload looks for changes by itself, the kernel has no more watches: %s", error.strerror)
            self.close()
            self._start_polling()

    def fileno(self) -> int:
        """Readable when something has changed; -1 where only looking tells."""
        return -1 if self._inotify is None else self._inotify.fd

    def changes(self) -> list[str]:
        if self._inotify is None:
            return self._look() if time.monotonic() >= self.due else []
        found = []
        for path, is_dir in self._inotify.read():
            if not path:  # more than the kernel could keep
                found += self._dirs[:1]
            elif is_dir:
                found += self._enter(path)
            elif self._is_wanted(path):
                found.append(path)
        return sorted(set(found))

    def close(self) -> None:
        if self._inotify is not None:
            os.close(self._inotify.fd)
            self._inotify = None

    # ---- which files

    def _is_wanted(self, path: str) -> bool:
        if any(fnmatch.fnmatch(path, pattern) for pattern in self._extra):
            return True
        for folder in self._dirs:
            if path.startswith(folder + os.sep):
                below = path[len(folder) + 1 :]
                name = os.path.basename(path)
                return self._matches(below, name, self._include) and not self._matches(below, name, self._exclude)
        return False

    @staticmethod
    def _matches(below: str, name: str, patterns: tuple[str, ...]) -> bool:
        return any(fnmatch.fnmatch(below, pattern) or fnmatch.fnmatch(name, pattern) for pattern in patterns)

    def _folders(self) -> Iterator[str]:
        for each in self._dirs:
            yield from _walk(each)

    def _files(self) -> Iterator[str]:
        for folder in self._folders():
            with contextlib.suppress(OSError), os.scandir(folder) as entries:
                for entry in entries:
                    if self._is_wanted(entry.path) and entry.is_file():
                        yield entry.path
        for pattern in self._extra:
            yield from glob.iglob(pattern)

    def _enter(self, folder: str) -> list[str]:
        """A folder that is new: watch it; what is in it already may have come before the watch."""
        assert self._inotify is not None
        found = []
        if not _is_pruned(folder) and any(folder.startswith(each + os.sep) for each in self._dirs):
            for each in _walk(folder):
                with contextlib.suppress(OSError):
                    self._inotify.watch(each)
                    found += [path for path in (os.path.join(each, name) for name in os.listdir(each))
                              if self._is_wanted(path)]  # fmt: skip
        return found

    # ---- polling

    def _start_polling(self) -> None:
        self._times: dict[str, tuple[int, int]] = {}
        self._look()

    def _look(self) -> list[str]:
        began = time.monotonic()
        before, self._times = self._times, {}
        for path in self._files():
            with contextlib.suppress(OSError):
                status = os.stat(path)
                self._times[path] = status.st_mtime_ns, status.st_size
        now = time.monotonic()
        self.due = now + max(_SHORTEST_SECONDS, _POLL_SHARE * (now - began))
        return sorted(path for path, _ in before.items() ^ self._times.items())


class _Inotify:
    """The system calls; `read` gives (path, whether it is a folder), ("", False) if events were lost."""

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self.fd: int = self._libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self.fd < 0:
            raise OSError(ctypes.get_errno(), "inotify_init1")
        self._paths: dict[int, str] = {}

    def watch(self, folder: str) -> None:
        """A folder that is gone already is no error."""
        number = self._libc.inotify_add_watch(self.fd, os.fsencode(folder), _IN_MASK)
        if number >= 0:
            self._paths[number] = folder
        elif ctypes.get_errno() != errno.ENOENT:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))

    def read(self) -> Iterator[tuple[str, bool]]:
        while True:
            try:
                data = os.read(self.fd, 65536)
            except BlockingIOError:
                return
            at = 0
            while at < len(data):
                number, mask, _, length = _IN_EVENT.unpack_from(data, at)
                name = data[at + _IN_EVENT.size : at + _IN_EVENT.size + length].rstrip(b"\0")
                at += _IN_EVENT.size + length
                folder = self._paths.get(number)
                if mask & _IN_Q_OVERFLOW:
                    yield "", False
                elif folder is not None and (mask & _IN_ISDIR or not mask & _IN_CREATE):  # a file is written later
                    yield os.path.join(folder, os.fsdecode(name)), bool(mask & _IN_ISDIR)


def _walk(folder: str) -> Iterator[str]:
    """The folder and those in it that may hold source."""
    yield folder
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False) and not _is_pruned(entry.path):
                yield from _walk(entry.path)


def _is_pruned(folder: str) -> bool:
    name = os.path.basename(folder)
    return name[:1] == "." or name in _PRUNED or os.path.exists(os.path.join(folder, "pyvenv.cfg"))
