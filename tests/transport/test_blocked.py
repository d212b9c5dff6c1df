from __future__ import annotations

from collections.abc import Iterator

import pytest

from stdserve.transport.blocked import BlockWatch
from stdserve.transport.loop import Loop


class Rig:
    """A loop whose clock and poll the test sets."""

    def __init__(self) -> None:
        self.now = 100.0
        self.loop = Loop(lambda: self.now)
        self.blocks: list[float] = []
        self.watch = BlockWatch(self.loop, 1.0, self.blocks.append)

    def turn(self, polling: bool) -> None:
        self.loop.time, self.loop.polling = self.now, polling

    def look(self) -> float:
        self.now += self.watch.wait_seconds
        self.watch.look()
        return self.watch.wait_seconds


@pytest.fixture
def rig() -> Iterator[Rig]:
    rig = Rig()
    yield rig
    rig.loop.close()


def test_block_is_told_once(rig: Rig) -> None:
    rig.turn(polling=False)
    for _ in range(10):
        rig.look()
    assert rig.blocks == [1.5]
    rig.turn(polling=False)
    for _ in range(10):
        rig.look()
    assert rig.blocks == [1.5, 1.5]


def test_waiting_and_short_work_is_no_block(rig: Rig) -> None:
    for number in range(20):
        rig.turn(polling=bool(number % 2))
        rig.look()
    rig.turn(polling=True)
    for _ in range(20):
        rig.look()
    assert rig.blocks == []


def test_looks_become_rare_while_nothing_happens(rig: Rig) -> None:
    rig.turn(polling=True)
    assert [rig.look() for _ in range(7)] == [0.5, 1.0, 2.0, 4.0, 8.0, 10.0, 10.0]
    rig.turn(polling=True)
    assert rig.look() == 0.5
