"""--reload: when to start anew. Which files have changed is reload.py's business."""

from __future__ import annotations

import dataclasses
import logging
import os
from typing import TYPE_CHECKING

from ..errors import ConfigError
from .reload import FileWatch

if TYPE_CHECKING:
    from ..config import Config

logger = logging.getLogger("stdserve.error")

# For running requests to end
_GRACE_SECONDS = 1.0

_NAMED_COUNT = 5


class Changes:
    """Changed files are gathered until they have rested for --reload-delay: an editor or git writes several."""

    def __init__(self, config: Config) -> None:
        """ConfigError if a directory to watch is none."""
        for each in config.reload_dirs:
            if not os.path.isdir(each):
                raise ConfigError(f"--reload-dir {each!r} is no directory")
        self.files = FileWatch(
            config.reload_dirs or (config.app_dir or ".",),
            config.reload_includes,
            config.reload_excludes,
            config.reload_extra_files,
            config.reload_engine,
        )
        self._delay = config.reload_delay
        self._changed: set[str] = set()
        self._rested_at = float("inf")

    def fileno(self) -> int:
        """Readable when there may be changes; -1 if they have to be looked for."""
        return self.files.fileno()

    @property
    def due(self) -> float:
        """When to look at the latest."""
        return min(self.files.due, self._rested_at)

    def take_rested(self, now: float) -> str:
        """Names of files that have changed and rested, for the log; empty while there are none."""
        changes = self.files.changes()
        if changes:
            self._changed.update(changes)
            self._rested_at = now + self._delay
        if changes or now < self._rested_at:
            return ""
        names = sorted(os.path.relpath(path) for path in self._changed)
        more = f" and {len(names) - _NAMED_COUNT} more" if len(names) > _NAMED_COUNT else ""
        self._changed.clear()
        self._rested_at = float("inf")
        return ", ".join(names[:_NAMED_COUNT]) + more

    def close(self) -> None:
        self.files.close()


def for_development(config: Config) -> Config:
    """With --reload nobody wants to wait for the end of old requests, or to be served by code from before a change."""
    if not config.reload:
        return config
    if config.preload:
        logger.warning("--preload has no effect with --reload: each worker imports the application as it is then")
    shortest = min(config.timeout_graceful_shutdown, _GRACE_SECONDS)
    return dataclasses.replace(config, timeout_graceful_shutdown=shortest, preload=False)
