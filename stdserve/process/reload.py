"""Which files of a project have changed, for --reload.

    FileWatch    dirs, patterns, extra files -> fileno | due, changes

What was seen of each folder is remembered, and a change is what a new look sees otherwise. The engines differ in one
point only, which folders are looked at:

    inotify      Linux, through ctypes: one of which the kernel tells something (inotify(7)). It watches folders, not
                 paths, so a few system calls twice a second are for what no watch tells of: whether --reload-dir is
                 still the same folder, what symbolic links lead to, --reload-extra-file
    polling      elsewhere, and for folders that the kernel has no more watches for: all, in 1 % of a CPU

Polling looks at the folders' own times often and at all files less often: new, removed and replaced files show in
their folder (git and most editors replace), and what is written in place is mostly one that has changed before.

Folders that hold no source of the project are not entered: hidden ones, caches, virtual environments, node_modules.
Links to folders are, if what they lead to is not looked at anyway.
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
from collections import deque
from collections.abc import Iterable, Iterator

logger = logging.getLogger("stdserve.error")

_PRUNED = frozenset(("__pycache__", "node_modules", "venv", "build", "dist", "site-packages"))

# inotify.h
_IN_ATTRIB, _IN_CLOSE_WRITE = 0x4, 0x8
_IN_MOVED_FROM, _IN_MOVED_TO, _IN_CREATE, _IN_DELETE = 0x40, 0x80, 0x100, 0x200
_IN_Q_OVERFLOW, _IN_IGNORED, _IN_ISDIR = 0x4000, 0x8000, 0x40000000
_IN_MASK = _IN_ATTRIB | _IN_CLOSE_WRITE | _IN_MOVED_FROM | _IN_MOVED_TO | _IN_CREATE | _IN_DELETE
_IN_EVENT = struct.Struct("iIII")  # wd, mask, cookie, length of the name that follows

# Polling rests after a look so many times as long as that took of a CPU: 0.1 % is for folders, 0.7 % for all files. The
# longest rest bounds the delay, and lets it cost more where there are more than some 20,000 to 40,000 files.
_SHORTEST_SECONDS = 0.5
_LONGEST_SECONDS = 10.0
_FOLDERS_SHARE = 1000
_FILES_SHARE = 140
_WALL_SHARE = 1  # but where the file system is slow it looks half the time at most
_RECENT_COUNT = 32  # files that have changed before, which are looked at as often as folders

# A folder may change twice within one tick of its file system's clock: 2 s on FAT, and some for a server's clock.
_TICK_SECONDS = 3.0

_Stamp = tuple[int, ...]
_GONE: _Stamp = (0,)
_UNSURE: _Stamp = (1,)  # is like no other, so that the next look takes nothing for granted


class _Folder:
    """What the last look has seen of it."""

    __slots__ = ("files", "folders", "quiet", "stamp")

    def __init__(self) -> None:
        self.stamp = _UNSURE  # while it stays, so do the names in it
        self.files: dict[str, _Stamp] = {}  # by name
        self.folders: set[str] = set()  # paths
        self.quiet = False  # the kernel tells of all that happens to the files


class FileWatch:
    """`changes` returns the paths that have changed since the last call; never waits."""

    def __init__(
        self, dirs: Iterable[str], include: Iterable[str], exclude: Iterable[str], extra: Iterable[str], engine: str
    ) -> None:
        """`include` and `exclude` are patterns for the path below its folder, or its last part; `extra` are paths, or
        patterns of such, that are watched wherever they are; engine: auto, inotify or poll."""
        self.due = 0.0  # when `changes` should be called at the latest, of time.monotonic()
        self._files_due = 0.0  # polling: likewise, for all files
        self._dirs = [os.path.abspath(each) for each in dirs]
        self._include = tuple(include)
        self._exclude = tuple(exclude)
        self._extra = tuple(map(os.path.abspath, extra))
        self._folders = {each: _Folder() for each in self._dirs}
        # Where a path leads may change without a word of the kernel: --reload-dir, links to folders -> where they lead
        self._tops = {each: os.path.realpath(each) for each in self._dirs}
        self._extra_files: dict[str, _Stamp] = {}
        self._inotify: _Inotify | None = None
        if engine != "poll" and sys.platform.startswith("linux"):
            with contextlib.suppress(OSError, AttributeError):
                self._inotify = _Inotify()
        self._recent: deque[str] = deque(maxlen=_RECENT_COUNT)
        self.changes()
        self._recent.clear()

    def fileno(self) -> int:
        """Readable when something has changed; -1 where only looking tells."""
        return -1 if self._inotify is None else self._inotify.fd

    def changes(self) -> list[str]:
        todo = self._hear() if self._inotify is not None else []
        now, cpu = time.monotonic(), time.thread_time()
        is_due = now >= self.due
        all_files = now >= self._files_due
        if is_due:
            self._doubt_recent()
            todo += [path for path, folder in self._folders.items() if not folder.quiet or path in self._tops]
        elif not todo:
            return []
        found = self._look(todo, all_files)
        if is_due:
            self._rest(time.monotonic() - now, time.thread_time() - cpu, all_files)
        self._recent.extend(found.difference(self._recent))
        return sorted(found)

    def close(self) -> None:
        if self._inotify is not None:
            os.close(self._inotify.fd)
            self._inotify = None

    # ---- when to look, and where

    def _rest(self, took: float, cpu: float, all_files: bool) -> None:
        """After a look. By CPU time, since it costs no more when the machine is busy with something else."""
        now = time.monotonic()
        least = max(_SHORTEST_SECONDS, took * _WALL_SHARE)
        if all_files:
            self._files_due = now + max(least, min(cpu * _FILES_SHARE, _LONGEST_SECONDS))
            self.due = now + least
        else:
            self.due = min(now + max(least, min(cpu * _FOLDERS_SHARE, _LONGEST_SECONDS)), self._files_due)

    def _doubt_recent(self) -> None:
        for path in self._recent:
            folder = self._folders.get(os.path.dirname(path))
            if folder is None or folder.quiet:
                continue
            if folder.files.get(os.path.basename(path), _GONE) != _stamp(path):
                folder.stamp = _UNSURE

    def _hear(self) -> list[str]:
        """The folders of which the kernel has told something."""
        assert self._inotify is not None
        heard: set[str] = set()
        for path, name, mask in self._inotify.read():
            if mask & _IN_Q_OVERFLOW:
                heard.update(self._folders)
            elif path in self._folders and (not name or self._matters(path, name, mask)):
                heard.add(path)
                if mask & ~_IN_ATTRIB and name in self._folders[path].files:
                    self._folders[path].files[name] = _UNSURE  # written, though time and size may be as they were
        for path in heard:
            self._folders[path].stamp = _UNSURE
        return list(heard)

    def _matters(self, folder: str, name: str, mask: int) -> bool:
        """Whether it is about a file or folder of ours; a link may be to either."""
        path = os.path.join(folder, name)
        if mask & _IN_ISDIR:
            return not _is_pruned(name)
        return self._is_wanted(path) or path in self._folders or name == "pyvenv.cfg" or os.path.islink(path)

    # ---- looking

    def _look(self, todo: list[str], all_files: bool) -> set[str]:
        found: set[str] = set()
        seen: set[str] = set()
        while todo:
            path = todo.pop()
            folder = self._folders.get(path)
            if folder is not None and path not in seen:
                seen.add(path)
                todo += self._look_at(path, folder, all_files, found)
        before = self._extra_files
        paths = (path for pattern in self._extra for path in glob.iglob(pattern))
        self._extra_files = {path: _stamp(path) for path in paths}
        found.update(_differences(before, self._extra_files))
        return found

    def _look_at(self, path: str, folder: _Folder, all_files: bool, found: set[str]) -> Iterable[str]:
        """Adds the files that have changed; the folders in it, if they are to be looked at, too."""
        stamp = _stamp_of_folder(path)
        names_stay = stamp == folder.stamp
        if names_stay and (folder.quiet or not all_files):
            return ()
        before = folder.files
        if not names_stay:
            self._list(path, folder, found)
            is_fresh = abs(time.time() - stamp[0] / 1e9) < _TICK_SECONDS
            folder.stamp = _UNSURE if is_fresh else stamp
        folder.files = _stamps(path, folder.files)
        found.update(os.path.join(path, name) for name in _differences(before, folder.files))
        return () if names_stay else folder.folders

    def _list(self, path: str, folder: _Folder, found: set[str]) -> None:
        """Which files and folders are in it now."""
        if path in self._tops:
            self._tops[path] = os.path.realpath(path)
        # Before the names are read, so that nothing comes in between
        is_watched = self._inotify is not None and self._inotify.watch(path)
        files, folders, has_links = {}, set(), False
        for entry in _entries(path):
            is_link = entry.is_symlink()
            if os.path.isdir(entry.path) if is_link else entry.is_dir():
                if self._is_followed(entry, is_link):
                    folders.add(entry.path)
            elif self._is_wanted(entry.path):
                files[entry.name] = folder.files.get(entry.name, _GONE)
                has_links |= is_link
            elif is_link and not os.path.exists(entry.path) and self._is_followed(entry, is_link):
                folders.add(entry.path)  # it may be one, later
            if entry.name == "pyvenv.cfg" and path not in self._dirs:
                files, folders = {}, set()
                break
        for each in folder.folders - folders:
            found.update(self._forget(each))
        for each in folders:
            self._folders.setdefault(each, _Folder())
        folder.files, folder.folders, folder.quiet = files, folders, is_watched and not has_links

    def _forget(self, path: str) -> Iterator[str]:
        """A folder that is there no more; its files."""
        if path in self._dirs:
            return
        self._tops.pop(path, None)
        folder = self._folders.pop(path, None)
        if folder is not None:
            if self._inotify is not None:
                self._inotify.forget(path)
            yield from (os.path.join(path, name) for name in folder.files)
            for each in folder.folders:
                yield from self._forget(each)

    # ---- which files

    def _is_wanted(self, path: str) -> bool:
        for folder in self._dirs:
            if path.startswith(folder + os.sep):
                below = path[len(folder) + 1 :]
                name = os.path.basename(path)
                return self._matches(below, name, self._include) and not self._matches(below, name, self._exclude)
        return False

    @staticmethod
    def _matches(below: str, name: str, patterns: tuple[str, ...]) -> bool:
        return any(fnmatch.fnmatch(below, pattern) or fnmatch.fnmatch(name, pattern) for pattern in patterns)

    def _is_followed(self, entry: os.DirEntry[str], is_link: bool) -> bool:
        """Not a link to what is looked at anyway, nor up to what holds all of it: so a circle of links has an end."""
        if entry.path not in self._dirs:
            self._tops.pop(entry.path, None)
        if _is_pruned(entry.name) or not is_link:
            return not _is_pruned(entry.name)
        real = os.path.realpath(entry.path)
        if _is_pruned(os.path.basename(real)) or any(_is_reached(real, top) for top in self._tops.values()):
            return False
        if any(os.path.commonpath((real, self._tops[each])) == real for each in self._dirs):
            return False
        self._tops[entry.path] = real
        return True


class _Inotify:
    """The system calls. A watch stays with its folder wherever that is moved; here is by which path it was met."""

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self.fd: int = self._libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self.fd < 0:
            raise OSError(ctypes.get_errno(), "inotify_init1")
        self._paths: dict[int, str] = {}
        self._numbers: dict[str, int] = {}
        self._is_full = False

    def watch(self, folder: str) -> bool:
        """Whether it is watched; again if that is so, for the path may lead to another folder now."""
        number = self._libc.inotify_add_watch(self.fd, os.fsencode(folder), _IN_MASK)
        if number != self._numbers.get(folder):
            self.forget(folder)
        if number >= 0:
            self._paths[number], self._numbers[folder] = folder, number
        elif ctypes.get_errno() == errno.ENOSPC and not self._is_full:
            self._is_full = True
            logger.warning("--reload: the kernel has no more watches, other folders are polled (%s)", folder)
        return bool(number >= 0)

    def forget(self, folder: str) -> None:
        number = self._numbers.pop(folder, -1)
        if self._paths.get(number) == folder:  # else it goes by another name
            del self._paths[number]
            self._libc.inotify_rm_watch(self.fd, number)

    def read(self) -> Iterator[tuple[str, str, int]]:
        """Folder, name in it or "", mask"""
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
                yield self._paths.get(number, ""), os.fsdecode(name), mask
                if mask & _IN_IGNORED:  # the folder is no more
                    self._paths.pop(number, None)


def _entries(folder: str) -> Iterator[os.DirEntry[str]]:
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        yield from entries


def _stamp_of_folder(path: str) -> _Stamp:
    try:
        status = os.stat(path)
    except OSError:
        return _GONE
    return status.st_mtime_ns, status.st_ino, status.st_dev


def _stamp(path: str) -> _Stamp:
    try:
        status = os.stat(path)
    except OSError:
        return _GONE
    return status.st_mtime_ns, status.st_size


def _stamps(folder: str, names: Iterable[str]) -> dict[str, _Stamp]:
    """Of files in one folder: with that open the system looks up one name instead of a path, a fifth less work."""
    found = dict.fromkeys(names, _GONE)
    if not found:
        return found
    try:
        dir_fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:
        return found
    stat = os.stat
    for name in found:
        try:
            status = stat(name, dir_fd=dir_fd)
            found[name] = status.st_mtime_ns, status.st_size
        except OSError:
            found[name] = _GONE
    os.close(dir_fd)
    return found


def _differences(before: dict[str, _Stamp], after: dict[str, _Stamp]) -> list[str]:
    if before == after:
        return []
    return [each for each in before.keys() | after.keys() if before.get(each, _GONE) != after.get(each, _GONE)]


def _is_reached(path: str, top: str) -> bool:
    """Whether a walk down from `top` comes to the path."""
    return path == top or (
        path.startswith(top + os.sep) and not any(map(_is_pruned, path[len(top) + 1 :].split(os.sep)))
    )


def _is_pruned(name: str) -> bool:
    return name[:1] == "." or name in _PRUNED
