from __future__ import annotations

import os

import pytest

from stdserve.process.slots import SLOTS, RequestSlots


def test_what_runs_is_read_by_another_process() -> None:
    slots = RequestSlots()
    pid = os.fork()
    if not pid:
        slots.begin("GET /a from 192.0.2.1:1")
        slots.begin("GET /b from 192.0.2.1:2")
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    assert sorted(slots.running()) == ["'GET /a from 192.0.2.1:1'", "'GET /b from 192.0.2.1:2'"]
    slots.close()


def test_what_has_ended_is_gone_and_its_record_free() -> None:
    slots = RequestSlots()
    for number in range(3 * SLOTS):
        slots.begin(number)
        slots.end(number)
    assert slots.running() == []
    slots.begin("x")
    assert slots.running() == ["'x'"]


def test_more_than_there_are_records_are_not_noted() -> None:
    slots = RequestSlots()
    for number in range(SLOTS + 5):
        slots.begin(number)
    assert len(slots.running()) == SLOTS
    for number in range(SLOTS + 5):
        slots.end(number)
    assert slots.running() == []


@pytest.mark.parametrize("text", ["x" * 1000, "\xe9\n\0" * 200])
def test_long_and_odd_texts_are_cut_to_the_record(text: str) -> None:
    slots = RequestSlots()
    slots.begin(text)
    slots.begin("next")
    (found,) = [each for each in slots.running() if each != "'next'"]
    assert (
        found.isascii()
        and len(found) == 254
        and repr(text).encode("ascii", "backslashreplace").startswith(found.encode())
    )


def test_limit_calls_once_at_its_number() -> None:
    slots = RequestSlots()
    called: list[int] = []
    slots.limit(3, lambda: called.append(1))
    for number in range(10):
        slots.begin(number)
        slots.end(number)
        assert len(called) == (number >= 2)
