from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from stdserve.process import reload as reload_module
from stdserve.process.reload import FileWatch
from tests.support import wait_for

ENGINES = ["poll", pytest.param("inotify", marks=pytest.mark.skipif(sys.platform != "linux", reason="no inotify"))]


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    for name in ("_SHORTEST_SECONDS", "_FOLDERS_SHARE", "_FILES_SHARE", "_WALL_SHARE"):
        monkeypatch.setattr(reload_module, name, 0)
    return str(request.param)


@pytest.fixture
def watch(tmp_path: Path, engine: str) -> Iterator[Any]:
    made: list[FileWatch] = []

    def make(
        *, dirs: Any = (tmp_path,), include: Any = ("*.py",), exclude: Any = (".*",), extra: Any = ()
    ) -> FileWatch:
        made.append(FileWatch(map(str, dirs), include, exclude, map(str, extra), engine))
        assert (made[-1].fileno() >= 0) == (engine == "inotify")
        return made[-1]

    yield make
    for each in made:
        each.close()


def changed(watch: FileWatch, *paths: Path) -> bool:
    """Whether just these come to be reported."""
    found: set[str] = set()
    wanted = set(map(str, paths))
    wait_for(lambda: found.update(watch.changes()) or found >= wanted)
    return found == wanted and watch.changes() == []


def test_nothing_changes(tmp_path: Path, watch: Any) -> None:
    (tmp_path / "a.py").write_text("1")
    assert watch().changes() == []


def test_file_is_written_made_removed_and_replaced(tmp_path: Path, watch: Any) -> None:
    path, other = tmp_path / "a.py", tmp_path / "b.py"
    path.write_text("1")
    files = watch()
    path.write_text("22")
    assert changed(files, path)
    other.write_text("3")
    assert changed(files, other)
    other.unlink()
    assert changed(files, other)
    (tmp_path / "a.tmp").write_text("an editor's")
    os.replace(tmp_path / "a.tmp", path)
    assert changed(files, path)


def test_file_in_a_folder_that_is_new(tmp_path: Path, watch: Any) -> None:
    files = watch()
    (tmp_path / "new" / "deep").mkdir(parents=True)
    (tmp_path / "new" / "deep" / "a.py").write_text("1")
    assert changed(files, tmp_path / "new" / "deep" / "a.py")
    (tmp_path / "new" / "deep" / "a.py").write_text("22")
    assert changed(files, tmp_path / "new" / "deep" / "a.py")


@pytest.mark.parametrize("name", [".git", "node_modules", "__pycache__", ".venv", "environment"])
def test_folders_without_source_are_not_entered(tmp_path: Path, watch: Any, name: str) -> None:
    (tmp_path / name).mkdir()
    if name == "environment":
        (tmp_path / name / "pyvenv.cfg").touch()
    files = watch()
    (tmp_path / name / "a.py").write_text("1")
    (tmp_path / "b.py").write_text("1")
    assert changed(files, tmp_path / "b.py")


def test_patterns(tmp_path: Path, watch: Any) -> None:
    (tmp_path / "templates").mkdir()
    files = watch(include=("*.py", "templates/*"), exclude=("test_*",))
    for name in ("notes.txt", "test_a.py", "templates/page.html", "a.py"):
        (tmp_path / name).write_text("1")
    assert changed(files, tmp_path / "templates" / "page.html", tmp_path / "a.py")


def test_hard_links_and_links_are_files(tmp_path: Path, watch: Any) -> None:
    (tmp_path / "kept.txt").write_text("1")
    files = watch()
    path = tmp_path / "a.py"
    for put in (path.hardlink_to, path.symlink_to):
        put(tmp_path / "kept.txt")
        assert changed(files, path)
        path.unlink()
        assert changed(files, path)


def test_times_alone_are_a_change(tmp_path: Path, watch: Any) -> None:
    (tmp_path / "a.py").write_text("1")
    files = watch()
    os.utime(tmp_path / "a.py", (1, 1))
    assert changed(files, tmp_path / "a.py")


def test_file_that_comes_within_a_tick_of_the_clock(tmp_path: Path, watch: Any) -> None:
    files = watch()
    before = tmp_path.stat()
    (tmp_path / "a.py").write_text("1")
    os.utime(tmp_path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert changed(files, tmp_path / "a.py")


def test_write_that_leaves_time_and_size(tmp_path: Path, watch: Any, engine: str) -> None:
    if engine == "poll":
        pytest.skip("nothing shows it")
    (tmp_path / "a.py").write_text("1")
    before = (tmp_path / "a.py").stat()
    files = watch()
    (tmp_path / "a.py").write_text("2")
    os.utime(tmp_path / "a.py", ns=(before.st_atime_ns, before.st_mtime_ns))
    assert changed(files, tmp_path / "a.py")


# ---- what paths lead to


@pytest.fixture
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("elsewhere")


def make_tree(folder: Path, text: str = "1") -> Path:
    (folder / "deep").mkdir(parents=True)
    for name in ("a.py", "deep/b.py"):
        (folder / name).write_text(text)
    return folder


def test_file_that_a_link_leads_to(tmp_path: Path, watch: Any, elsewhere: Path) -> None:
    (elsewhere / "a.py").write_text("1")
    (tmp_path / "a.py").symlink_to(elsewhere / "a.py")
    files = watch()
    (elsewhere / "a.py").write_text("22")
    assert changed(files, tmp_path / "a.py")
    (elsewhere / "a.py").unlink()
    assert changed(files, tmp_path / "a.py")
    (elsewhere / "a.py").write_text("1")
    assert changed(files, tmp_path / "a.py")


def test_folder_that_a_link_leads_to(tmp_path: Path, watch: Any, elsewhere: Path) -> None:
    make_tree(elsewhere / "one")
    make_tree(elsewhere / "two", "22")
    (tmp_path / "package").symlink_to(elsewhere / "one")
    files = watch()
    both = tmp_path / "package" / "a.py", tmp_path / "package" / "deep" / "b.py"
    (elsewhere / "one" / "deep" / "b.py").write_text("333")
    assert changed(files, both[1])
    (tmp_path / "package.new").symlink_to(elsewhere / "two")
    os.replace(tmp_path / "package.new", tmp_path / "package")
    assert changed(files, *both)
    (elsewhere / "two" / "deep" / "b.py").write_text("4444")
    assert changed(files, both[1])
    (tmp_path / "package").unlink()
    assert changed(files, *both)
    (tmp_path / "package").symlink_to(elsewhere / "one")
    assert changed(files, *both)


def test_link_to_a_folder_that_comes_later(tmp_path: Path, watch: Any, elsewhere: Path) -> None:
    (tmp_path / "package").symlink_to(elsewhere / "one")
    files = watch()
    make_tree(elsewhere / "one")
    assert changed(files, tmp_path / "package" / "a.py", tmp_path / "package" / "deep" / "b.py")


def test_links_in_a_circle(tmp_path: Path, watch: Any, elsewhere: Path) -> None:
    make_tree(tmp_path / "package")
    make_tree(elsewhere / "other")
    for link, target in (
        (tmp_path / "up", tmp_path.parent),
        (tmp_path / "self", tmp_path / "self"),
        (tmp_path / "package" / "again", tmp_path / "package"),
        (tmp_path / "other", elsewhere / "other"),
        (elsewhere / "other" / "back", tmp_path),
        (elsewhere / "other" / "again", elsewhere / "other"),
    ):
        link.symlink_to(target)
    files = watch()
    (tmp_path / "package" / "a.py").write_text("22")
    (elsewhere / "other" / "a.py").write_text("22")
    assert changed(files, tmp_path / "package" / "a.py", tmp_path / "other" / "a.py")


def test_link_to_a_folder_that_is_not_entered_otherwise(tmp_path: Path, watch: Any) -> None:
    made = make_tree(tmp_path / ".cache" / "package")
    (tmp_path / "package").symlink_to(made)
    (tmp_path / "libraries").symlink_to(make_tree(tmp_path / "node_modules"))
    files = watch()
    (tmp_path / "node_modules" / "a.py").write_text("22")
    (made / "a.py").write_text("22")
    assert changed(files, tmp_path / "package" / "a.py")


def test_folder_that_is_removed_and_made_anew(tmp_path: Path, watch: Any) -> None:
    root = make_tree(tmp_path / "app")
    files = watch(dirs=[root])
    both = root / "a.py", root / "deep" / "b.py"
    for text in ("22", "333"):
        shutil.rmtree(root)
        assert changed(files, *both)
        make_tree(root, text)
        assert changed(files, *both)
        both[1].write_text(text * 2)
        assert changed(files, both[1])
    os.rename(root / "deep", root / "other")
    assert changed(files, both[1], root / "other" / "b.py")
    (root / "other" / "b.py").write_text("55555")
    assert changed(files, root / "other" / "b.py")


def test_folders_that_change_places(tmp_path: Path, watch: Any) -> None:
    make_tree(tmp_path / "one")
    make_tree(tmp_path / "two", "22")
    files = watch()
    for old, new in (("one", "three"), ("two", "one"), ("three", "two")):
        os.rename(tmp_path / old, tmp_path / new)
    assert changed(files, *(tmp_path / each / name for each in ("one", "two") for name in ("a.py", "deep/b.py")))
    (tmp_path / "one" / "deep" / "b.py").write_text("333")
    assert changed(files, tmp_path / "one" / "deep" / "b.py")


@pytest.mark.parametrize("below", [".", "src"])
def test_release_that_is_switched(tmp_path: Path, watch: Any, below: str) -> None:
    for number in (1, 2):
        make_tree(tmp_path / "releases" / str(number) / below, "1" * number)
    (tmp_path / "current").symlink_to("releases/1")
    root = tmp_path / "current" / below
    files = watch(dirs=[root])
    (tmp_path / "next").symlink_to("releases/2")
    os.replace(tmp_path / "next", tmp_path / "current")
    assert changed(files, root / "a.py", root / "deep" / "b.py")
    (tmp_path / "releases" / "1" / below / "a.py").write_text("333")
    (tmp_path / "releases" / "2" / below / "deep" / "b.py").write_text("333")
    assert changed(files, root / "deep" / "b.py")


def test_extra_files_in_folders_of_a_pattern(tmp_path: Path, watch: Any, elsewhere: Path) -> None:
    files = watch(extra=[elsewhere / "*" / "*.yaml"])
    (elsewhere / "one").mkdir()
    for text in ("1", "22"):
        (elsewhere / "one" / "a.yaml").write_text(text)
        assert changed(files, elsewhere / "one" / "a.yaml")


def test_extra_files(tmp_path: Path, watch: Any, elsewhere: Path) -> None:
    for name in ("a.toml", "b.yaml", "c.txt"):
        (elsewhere / name).write_text("1")
    files = watch(extra=[elsewhere / "a.toml", elsewhere / "*.yaml"])
    for name in ("a.toml", "b.yaml", "c.txt"):
        (elsewhere / name).write_text("22")
    assert changed(files, elsewhere / "a.toml", elsewhere / "b.yaml")


# ---- what it costs


class Calls:
    """Counts the paths that are looked at."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.paths: list[str] = []
        self.patch = patch
        for name in ("stat", "scandir"):
            self._count(name, getattr(os, name))

    def _count(self, name: str, call: Any) -> None:
        def counted(path: Any, **options: Any) -> Any:
            self.paths.append(str(path))
            return call(path, **options)

        self.patch.setattr(reload_module.os, name, counted)

    def take(self) -> list[str]:
        paths, self.paths = self.paths, []
        return paths


@pytest.fixture
def old_tree(tmp_path: Path) -> Path:
    """Folders that have not changed for long."""
    for each in (root := make_tree(tmp_path / "app"), root / "deep"):
        os.utime(each, (1, 1))
    return root


def test_polling_looks_at_folders_more_often_than_at_files(
    old_tree: Path, watch: Any, engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if engine != "poll":
        pytest.skip("of polling")
    monkeypatch.setattr(reload_module, "_FILES_SHARE", 1e12)
    files = watch(dirs=[old_tree])
    calls = Calls(monkeypatch)
    (old_tree / "a.py").write_text("22")
    assert files.changes() == [] and len(calls.take()) == 2  # the two folders
    (old_tree / "deep" / "c.py").write_text("1")
    assert changed(files, old_tree / "deep" / "c.py")
    calls.take()
    (old_tree / "deep" / "c.py").write_text("22")  # as this has changed before
    os.utime(old_tree / "deep", (1, 1))
    assert changed(files, old_tree / "deep" / "c.py")
    files._files_due = 0.0
    assert changed(files, old_tree / "a.py")


def test_inotify_looks_at_the_root_only(
    old_tree: Path, watch: Any, engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if engine == "poll":
        pytest.skip("of inotify")
    files = watch(dirs=[old_tree])
    calls = Calls(monkeypatch)
    (old_tree / "deep" / "journal.db").write_text("1")  # not ours
    assert files.changes() == [] and calls.take() == [str(old_tree)]


@pytest.mark.parametrize(("cpu", "took", "files", "rest"), [(0.001, 0.001, 0.5, 0.5), (0.05, 0.05, 7.0, 0.5),
    (10.0, 10.0, 10.0, 10.0), (0.001, 3.0, 3.0, 3.0)])  # fmt: skip
def test_rest_is_a_share_of_the_cpu_time_and_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cpu: float, took: float, files: float, rest: float
) -> None:
    watch = FileWatch([str(tmp_path)], ("*.py",), (), (), "poll")
    monkeypatch.setattr(reload_module.time, "monotonic", lambda: 1000.0)
    watch._rest(took, cpu, True)
    assert (watch._files_due, watch.due) == pytest.approx((1000 + files, 1000 + rest))
    watch._rest(took, cpu / 50, False)
    assert watch.due <= 1000 + max(took, 10.0)


# ---- the kernel's limits


class Full:
    """The C library where the kernel has `left` watches."""

    def __init__(self, left: int) -> None:
        self.left = left
        self.libc = ctypes.CDLL(None, use_errno=True)
        self.inotify_init1 = self.libc.inotify_init1
        self.inotify_rm_watch = self.libc.inotify_rm_watch

    def inotify_add_watch(self, *arguments: Any) -> int:
        self.left -= 1
        if self.left >= 0:
            return int(self.libc.inotify_add_watch(*arguments))
        ctypes.set_errno(errno.ENOSPC)
        return -1


@pytest.mark.skipif(sys.platform != "linux", reason="no inotify")
@pytest.mark.parametrize("left", [0, 1])
def test_no_more_watches_means_polling(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, left: int
) -> None:
    make_tree(tmp_path / "one")
    full = Full(left)
    monkeypatch.setattr(reload_module.ctypes, "CDLL", lambda *_, **__: full)
    monkeypatch.setattr(reload_module, "_SHORTEST_SECONDS", 0.0)
    with contextlib.closing(FileWatch([str(tmp_path)], ("*.py",), (), (), "auto")) as files:
        assert caplog.text.count("the kernel has no more watches, other folders are polled") == 1
        for path in (tmp_path / "c.py", tmp_path / "one" / "a.py", tmp_path / "one" / "deep" / "b.py"):
            path.write_text("22")
            assert changed(files, path)


@pytest.mark.skipif(sys.platform != "linux", reason="no inotify")
def test_events_that_were_lost(tmp_path: Path, watch: Any, engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if engine == "poll":
        pytest.skip("of inotify")
    make_tree(tmp_path / "one")
    files = watch()
    (tmp_path / "one" / "deep" / "b.py").write_text("22")
    assert [*files._inotify.read()]
    monkeypatch.setattr(files._inotify, "read", lambda: iter([("", "", reload_module._IN_Q_OVERFLOW)]))
    assert changed(files, tmp_path / "one" / "deep" / "b.py")
