"""The fuzz targets: their seeds hold, a short run holds, and the harness finds what is there to be found.

Long runs are made by hand: python fuzz/h1.py --seconds 600
"""

from __future__ import annotations

import importlib
import random
import re
import sys
from collections.abc import Hashable
from pathlib import Path
from types import ModuleType

import pytest

from fuzz import harness
from tests import wire

FUZZ = Path(__file__).parent.parent / "fuzz"
NAMES = sorted(path.stem for path in FUZZ.glob("*.py") if path.stem not in ("harness", "__init__"))


@pytest.fixture(params=NAMES)
def target(request: pytest.FixtureRequest) -> harness.Target:
    return importlib.import_module(f"fuzz.{request.param}").TARGET


def test_seeds_hold(target: harness.Target) -> None:
    assert target.seeds
    for data in target.seeds:
        target.run(data)


def test_short_run_holds_and_grows(target: harness.Target) -> None:
    report = harness.fuzz(target, seed=0, runs=len(target.seeds) + 500)
    assert report.finding is None, report.trace
    assert report.executions == len(target.seeds) + 500
    assert report.corpus and report.outcomes > 10
    assert bool(report.places) is hasattr(sys, "monitoring")


@pytest.mark.parametrize("case", wire.load("../../fuzz/corpus/h1"), ids=str)
def test_h1_seed_is_a_wire_case(case: wire.Case) -> None:
    dialogue = wire.talk(case.data)
    assert (dialogue.statuses, dialogue.then) == (case.statuses, case.then)
    assert case.understood(dialogue.requests)


@pytest.mark.parametrize("name", NAMES)
def test_findings_can_be_kept_as_seeds(name: str) -> None:
    """What a target writes is read again from its corpus."""
    target = importlib.import_module(f"fuzz.{name}").TARGET
    data = b"GET / \r\n\0\xff \\"
    assert wire.parse(name, target.write(data, "Traceback\n  of several lines\n\n")).data == data
    assert {case.data for case in wire.load(f"../../fuzz/corpus/{name}")} <= set(target.seeds)


@pytest.mark.parametrize("name", NAMES)
def test_ci_runs_every_target(name: str) -> None:
    targets = re.search(r"^targets=\((.+)\)$", (FUZZ.parent / ".ci" / "run").read_text(), re.MULTILINE)
    assert targets is not None and name in targets[1].split()


def test_ways_to_cut() -> None:
    for data in (b"", b"a", b"abc"):
        some, each = harness.ways_to_cut(data, random.Random(0))
        assert b"".join(wire.split(data, some)) == data and list(each) == list(range(len(data)))


# ---- the harness itself


def needle(data: bytes) -> Hashable:
    """Fails on "abc", and each step on the way there is code of its own."""
    if b"a" in data:
        if b"ab" in data:
            if b"abc" in data:
                raise ZeroDivisionError
            return 2
        return 1
    return 0


def make_target() -> harness.Target:
    return harness.Target(
        "needle", needle, [b"hay" * 9], [b"a", b"b", b"c"], [], lambda data, trace: wire.dump(trace, data)
    )


def test_finding_is_made_short_and_written_as_a_case(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert harness.main(make_target(), ["--runs", "100000", "--seed", "1", "--findings", str(tmp_path / "new")]) == 1
    (path,) = (tmp_path / "new").iterdir()
    assert wire.parse(path.stem, path.read_text("ascii")).data == b"abc"
    output = capsys.readouterr()
    assert output.out.startswith("needle: ") and "executions" in output.out
    assert "ZeroDivisionError" in output.err and str(path) in output.err


def test_run_without_finding_is_exit_0(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = make_target()
    target.run = len
    assert harness.main(target, ["--runs", "50", "--findings", str(tmp_path)]) == 0
    assert list(tmp_path.iterdir()) == []
    assert "50 executions" in capsys.readouterr().out


def test_same_seed_gives_the_same_inputs() -> None:
    def inputs(seed: int) -> list[bytes]:
        seen: list[bytes] = []
        target = make_target()
        target.run = lambda data: seen.append(data) or len(data) % 7
        harness.fuzz(target, seed=seed, runs=200)
        return seen

    assert inputs(1) == inputs(1) != inputs(2)


def test_every_mutation_takes_every_input() -> None:
    mutator = harness.Mutator(random.Random(0), [b"token"])
    for data in (b"", b"a", b"a\r\nb\r\n", bytes(5000)):
        for _ in range(300):
            assert len(mutator.change(data, b"other")) <= harness.MAX_INPUT_BYTES


@pytest.mark.skipif(not hasattr(sys, "monitoring"), reason="coverage needs Python 3.12")
def test_coverage_counts_each_place_once(tmp_path: Path) -> None:
    module = ModuleType("covered")
    exec(  # a module of its own, so that nothing else runs in it
        compile("def choose(x):\n    if x:\n        return 1\n    return [2 for _ in 'ab']\n", "covered", "exec"),
        vars(module),
    )
    with harness.Coverage([module]) as coverage:
        counts = []
        for value in (1, 1, 0, 0):
            module.choose(value)
            counts.append(coverage.count)
    assert 0 < counts[0] == counts[1] < counts[2] == counts[3]
