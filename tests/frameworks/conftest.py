"""Frameworks configure logging for the whole process; what comes after them shall find it as it was."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="module", autouse=True)
def _logging_as_it_was() -> Iterator[None]:
    root = logging.getLogger()
    ours = [logging.getLogger(f"stdserve.{name}") for name in ("error", "access", "asgi")]
    before = [(each, each.level, each.handlers[:], each.propagate, each.disabled) for each in [root, *ours]]
    yield
    for logger, level, handlers, propagate, disabled in before:
        logger.setLevel(level)
        logger.handlers[:] = handlers
        logger.propagate, logger.disabled = propagate, disabled
