"""A worker as its supervisor sees it."""

from __future__ import annotations

from .channel import Channel
from .deaths import LastWords
from .slots import RequestSlots

BOOTING, READY, DRAINING = "booting", "ready", "draining"


class Worker:
    """States: booting -> ready -> draining -> dead, each step may be left out."""

    __slots__ = (
        "asked", "channel", "generation", "kill_at", "killed", "last_words", "leaving", "pid", "pinged", "serial",
        "slots", "started", "state", "wish",
    )  # fmt: skip

    def __init__(
        self,
        pid: int,
        serial: int,
        generation: int,
        channel: Channel,
        slots: RequestSlots,
        last_words: LastWords,
        now: float,
    ) -> None:
        self.pid = pid
        self.serial = serial  # which of all that have been started
        self.generation = generation
        self.channel = channel
        self.slots = slots
        self.last_words = last_words
        self.started = now
        self.state = BOOTING
        self.leaving = False
        self.wish = ""  # why it wants a successor
        self.asked = False  # to stop, so that its death is no surprise
        self.pinged = 0.0  # since when an answer is due; 0: none is
        self.killed = ""  # why, if it was we who did it
        self.kill_at = float("inf")
