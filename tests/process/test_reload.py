from __future__ import annotations

import os
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
    monkeypatch.setattr(reload_module, "_SHORTEST_SECONDS", 0.0)
    monkeypatch.setattr(reload_module, "_POLL_SHARE", 0)
    return str(request.param)


@pytest.fixture
def watch(tmp_path: Path, engine: str) -> Iterator[Any]:
    made: list[FileWatch] = []

    def make(*, include: tuple[str, ...] = ("*.py",), exclude: tuple[str, ...] = (".*",), extra: Any = ()) -> FileWatch:
        made.append(FileWatch([str(tmp_path)], include, exclude, map(str, extra), engine))
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


def test_extra_files(tmp_path: Path, watch: Any, tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    for name in ("a.toml", "b.yaml", "c.txt"):
        (elsewhere / name).write_text("1")
    files = watch(extra=[elsewhere / "a.toml", elsewhere / "*.yaml"])
    for name in ("a.toml", "b.yaml", "c.txt"):
        (elsewhere / name).write_text("22")
    assert changed(files, elsewhere / "a.toml", elsewhere / "b.yaml")


@pytest.mark.skipif(sys.platform != "linux", reason="no inotify")
def test_no_more_watches_means_polling(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(self: Any, folder: str) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(reload_module._Inotify, "watch", refuse)
    monkeypatch.setattr(reload_module, "_SHORTEST_SECONDS", 0.0)
    files = FileWatch([str(tmp_path)], ("*.py",), (), (), "auto")
    assert files.fileno() == -1 and "the kernel has no more watches: No space left" in caplog.text
    (tmp_path / "a.py").write_text("1")
    assert changed(files, tmp_path / "a.py")
