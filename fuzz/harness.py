"""A small coverage-guided fuzzer on the standard library: mutate what led somewhere new, keep what leads further.

    python fuzz/h1.py --seconds 60 --seed 1 --findings /tmp/findings

New is: a line or a branch of the code under test that had not run (from Python 3.12 on, where `sys.monitoring` tells it
at no cost once a place has been seen), or an outcome that the target had not returned. A finding, that is any exception
that leaves the target, is made shorter, written as a file and ends the run with exit code 1. The same seed and number
of runs give the same inputs.

It does not: run in parallel, catch crashes of the interpreter, or bound the time of a single run.
"""

from __future__ import annotations

import argparse
import hashlib
import random
import sys
import time
import traceback
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

MAX_INPUT_BYTES = 4096  # long enough for every rule under small limits, short enough for thousands of runs a second
SHORTENING_RUNS = 2000
TOOL = 4  # of sys.monitoring: one of the two numbers that no kind of tool claims


@dataclass
class Target:
    """What to fuzz.

    run          feeds one input, checks what must hold for every input and returns what came of it, roughly
    seeds        inputs to begin with
    tokens       pieces of the protocol, to insert
    modules      whose lines and branches count
    write        input and traceback -> text of a file that a test can replay
    """

    name: str
    run: Callable[[bytes], Hashable]
    seeds: Sequence[bytes]
    tokens: Sequence[bytes]
    modules: Sequence[ModuleType]
    write: Callable[[bytes, str], str]


def ways_to_cut(data: bytes, chance: random.Random) -> list[Sequence[int]]:
    """Where to cut an input that has been fed whole: at some places, and behind each byte."""
    return [[chance.randrange(len(data) + 1) for _ in range(chance.randrange(1, 6))], range(len(data))]


# ---- coverage


class Coverage:
    """Counts places of the code under test that have run, each once; counts nothing before Python 3.12."""

    def __init__(self, modules: Sequence[ModuleType]) -> None:
        self.count = 0
        self._branches: dict[tuple[CodeType, int], int] = {}
        self._modules = modules

    def __enter__(self) -> Coverage:
        monitoring = getattr(sys, "monitoring", None)
        if monitoring is not None:
            self._start(monitoring)
        return self

    def __exit__(self, *exception: object) -> None:
        monitoring = getattr(sys, "monitoring", None)
        if monitoring is not None:
            monitoring.free_tool_id(TOOL)

    def _start(self, monitoring: Any) -> None:
        tool, events = TOOL, monitoring.events
        monitoring.use_tool_id(tool, "fuzz")
        callbacks: dict[int, Callable[..., Any]] = {events.LINE: self._on_place}
        if hasattr(events, "BRANCH_LEFT"):  # Python 3.14: each direction is an event that can be switched off
            callbacks |= {events.BRANCH_LEFT: self._on_place, events.BRANCH_RIGHT: self._on_place}
        else:
            callbacks[events.BRANCH] = self._on_branch
        for event, callback in callbacks.items():
            monitoring.register_callback(tool, event, callback)
        for code in {code for module in self._modules for code in _codes_of(module)}:
            monitoring.set_local_events(tool, code, sum(callbacks))
        monitoring.restart_events()
        self._disable = monitoring.DISABLE

    def _on_place(self, code: CodeType, *place: int) -> Any:
        self.count += 1
        return self._disable

    def _on_branch(self, code: CodeType, start: int, end: int) -> Any:
        """Switched off only when both directions have been seen: one event stands for the two."""
        known = self._branches.setdefault((code, start), -1)
        if known == end:
            return None
        self.count += 1
        self._branches[code, start] = end
        return None if known == -1 else self._disable


def _codes_of(module: ModuleType) -> Iterator[CodeType]:
    """The code of every function and method that the module defines."""
    owners = [module, *(each for each in vars(module).values() if isinstance(each, type))]
    for owner in owners:
        for each in list(vars(owner).values()):
            function = getattr(each, "fget", each)
            code = getattr(function, "__code__", None)
            if code is not None and function.__module__ == module.__name__:
                yield from _with_inner(code)


def _with_inner(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _with_inner(constant)


# ---- mutation


class Mutator:
    """Changes an input a little, in ways that matter to a line-based protocol."""

    def __init__(self, chance: random.Random, tokens: Sequence[bytes]) -> None:
        self._chance = chance
        self._tokens = tokens
        self._ways: list[Callable[[bytes, bytes], bytes]] = [
            self._insert_token, self._insert_token, self._replace_by_token, self._replace_by_token, self._remove,
            self._change_byte, self._flip_case, self._repeat, self._move, self._splice, self._cut_off, self._swap_lines,
        ]  # fmt: skip

    def change(self, data: bytes, other: bytes) -> bytes:
        for _ in range(1 + min(int(self._chance.expovariate(0.7)), 7)):
            data = self._chance.choice(self._ways)(data, other)
        return data[:MAX_INPUT_BYTES]

    def _place(self, data: bytes, longest: int = 16) -> tuple[int, int]:
        start = self._chance.randint(0, len(data))
        return start, min(len(data), start + self._chance.randint(1, longest))

    def _insert_token(self, data: bytes, other: bytes) -> bytes:
        at, _ = self._place(data)
        return data[:at] + self._chance.choice(self._tokens) + data[at:]

    def _replace_by_token(self, data: bytes, other: bytes) -> bytes:
        start, end = self._place(data, 4)
        return data[:start] + self._chance.choice(self._tokens) + data[end:]

    def _remove(self, data: bytes, other: bytes) -> bytes:
        start, end = self._place(data)
        return data[:start] + data[end:]

    def _change_byte(self, data: bytes, other: bytes) -> bytes:
        start, _ = self._place(data)
        return data[:start] + bytes([self._chance.randrange(256)]) + data[start + 1 :]

    def _flip_case(self, data: bytes, other: bytes) -> bytes:
        start, end = self._place(data)
        return data[:start] + data[start:end].swapcase() + data[end:]

    def _repeat(self, data: bytes, other: bytes) -> bytes:
        start, end = self._place(data, 40)
        return data[:start] + data[start:end] * self._chance.choice((2, 2, 3, 5, 20)) + data[end:]

    def _move(self, data: bytes, other: bytes) -> bytes:
        start, end = self._place(data, 40)
        piece, rest = data[start:end], data[:start] + data[end:]
        at = self._chance.randint(0, len(rest))
        return rest[:at] + piece + rest[at:]

    def _splice(self, data: bytes, other: bytes) -> bytes:
        return data[: self._chance.randint(0, len(data))] + other[self._chance.randint(0, len(other)) :]

    def _cut_off(self, data: bytes, other: bytes) -> bytes:
        return data[: self._chance.randint(0, len(data))]

    def _swap_lines(self, data: bytes, other: bytes) -> bytes:
        lines = data.split(b"\n")
        one, two = self._chance.randrange(len(lines)), self._chance.randrange(len(lines))
        lines[one], lines[two] = lines[two], lines[one]
        return b"\n".join(lines)


# ---- the run


@dataclass
class Report:
    executions: int = 0
    corpus: int = 0
    outcomes: int = 0
    places: int = 0
    finding: bytes | None = None
    trace: str = ""

    def __str__(self) -> str:
        return f"{self.executions} executions, corpus {self.corpus}, outcomes {self.outcomes}, places {self.places}"


def fuzz(target: Target, *, seed: int, seconds: float = float("inf"), runs: float = float("inf")) -> Report:
    """Run until the time or the number of runs is used up, or something is found."""
    chance = random.Random(seed)
    mutator = Mutator(chance, target.tokens)
    report, outcomes, corpus = Report(), set(), []
    deadline = time.monotonic() + seconds
    queue = list(reversed(target.seeds))
    with Coverage(target.modules) as coverage:
        while queue or (report.executions < runs and time.monotonic() < deadline):
            data = queue.pop() if queue else mutator.change(_choose(chance, corpus), chance.choice(corpus))
            places = coverage.count
            report.executions += 1
            try:
                outcome = target.run(data)
            except Exception:
                report.finding, report.trace = data, traceback.format_exc()
                break
            if outcome not in outcomes or coverage.count > places or not corpus:
                outcomes.add(outcome)
                corpus.append(data)
        report.places = coverage.count
    report.corpus, report.outcomes = len(corpus), len(outcomes)
    if report.finding is not None:
        report.finding = shorten(target, report.finding, chance)
    return report


def _choose(chance: random.Random, corpus: list[bytes]) -> bytes:
    """Half of the time one of the newest: what has just led somewhere may lead further."""
    return chance.choice(corpus[-20:] if chance.random() < 0.5 else corpus)


def shorten(target: Target, data: bytes, chance: random.Random) -> bytes:
    """Drop pieces as long as the target still fails with an exception of the same type."""
    kind = _failure(target, data)
    for _ in range(SHORTENING_RUNS):
        size = chance.choice((1, 1, 2, 4, 16, 64))
        at = chance.randint(0, max(len(data) - 1, 0))
        shorter = data[:at] + data[at + size :]
        if shorter and _failure(target, shorter) is kind:
            data = shorter
    return data


def _failure(target: Target, data: bytes) -> type[Exception] | None:
    try:
        target.run(data)
    except Exception as error:
        return type(error)
    return None


def main(target: Target, arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=f"Fuzz {target.name}.")
    parser.add_argument("--seconds", type=float, default=60, help="stop after this time (60)")
    parser.add_argument("--runs", type=float, default=float("inf"), help="stop after this many executions")
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same inputs (0)")
    parser.add_argument("--findings", type=Path, default=Path(), help="folder for what is found (.)")
    options = parser.parse_args(arguments)
    report = fuzz(target, seed=options.seed, seconds=options.seconds, runs=options.runs)
    print(f"{target.name}: {report}")
    if report.finding is None:
        return 0
    digest = hashlib.sha256(report.finding).hexdigest()[:12]
    path = options.findings / f"{target.name}-{digest}.http"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(target.write(report.finding, report.trace), "ascii", "backslashreplace")
    print(f"{report.trace}\nfound: {path}", file=sys.stderr)
    return 1
