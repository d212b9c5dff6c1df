"""README.md says what is there: the options table, the files on the map, the commands."""

from __future__ import annotations

import re

from tests.readme import README, with_options

ROOT = README.parent
TEXT = README.read_text(encoding="utf-8")


def test_options_table_is_the_option_table() -> None:
    assert with_options(TEXT) == TEXT, "run: python3 -m tests.readme"


def test_map_names_every_module() -> None:
    section = TEXT.partition("## Map of the code")[2]
    for path in (ROOT / "stdserve").rglob("*.py"):
        if not path.name.startswith("__"):
            assert path.name in section, f"{path.relative_to(ROOT)} is not on the map of README.md"


def test_map_names_no_file_that_is_gone() -> None:
    section = TEXT.partition("## Map of the code")[2]
    names = {path.name for path in (ROOT / "stdserve").rglob("*.py")}
    assert set(re.findall(r"\b([a-z0-9_]+\.py)\b", section)) <= names


def test_every_option_that_the_text_names_exists() -> None:
    from stdserve.cli import _all_flags

    flags = {*_all_flags(), "--seconds"}  # that of fuzz/
    prose = TEXT.partition("<!-- options")[0]
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", prose)) <= flags


def test_ci_calls_the_test_command() -> None:
    """.ci/run looks for the command in README.md; this pattern is its own."""
    ci = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert "grep -x \"python3 -m pip install .* && python3 -m pytest\" README.md" in ci
    assert len(re.findall(r"^python3 -m pip install .* && python3 -m pytest$", TEXT, re.MULTILINE)) == 1
