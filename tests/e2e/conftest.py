"""What the tests of workers share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.workers import APP


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "app.py").write_text(APP)
    return tmp_path
