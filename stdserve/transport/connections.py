"""All connections of one server: what they share, the sweep over their deadlines, limits, the graceful stop.

Deadlines are attributes of the connections and looked at once a second: a timer object per request costs 3 us, the
sweep of 10,000 idle connections 0.5 ms a second. There is no tick while there is no connection.
"""

from __future__ import annotations

import email.utils
import logging
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from ..exchange import Exchange
from ..logs import LineLimiter
from ..protocol.forwarded import ProxyTrust
from ..protocol.h1 import H1Limits, ResponseDefaults
from .loop import Loop, Timer

logger = logging.getLogger("stdserve.error")

FOREVER = float("inf")

# The sweep's period: a time limit is kept at most this much too late.
SWEEP_SECONDS = 1.0

# When the server stops, connections without an end of their own (WebSockets) are let go in groups, of so many at least.
LEAVE_TOGETHER_COUNT = 50
LEAVE_PAUSE_SECONDS = 0.1

# Enough to see what goes on, too few to fill a disk
_REFUSED_PER_MINUTE = 60


@dataclass(frozen=True, slots=True)
class Times:
    """Time limits in seconds; a limit that is off is FOREVER. `keep_alive` 0: each answer is its connection's last."""

    handshake: float = 10.0
    head: float = 10.0
    keep_alive: float = 75.0
    body: float = 30.0
    write: float = 30.0
    request: float = FOREVER
    # Ours, not options. Unread bytes of a refused request are read for this long so that our answer is not destroyed by
    # a reset (RFC 9112 9.6); a client that takes longer to take it than that is on its own.
    linger: float = 2.0
    # The rest of a body that the application did not want is read for so long, then the connection is closed.
    discard: float = 1.0


class Slots(Protocol):
    """Where the requests that run are noted for another process to read."""

    def begin(self, exchange: Exchange) -> None: ...
    def end(self, exchange: Exchange) -> None: ...


# Chooses who handles a request that has an Upgrade field. Raises ProtocolError.
Upgrader = Callable[[Any, Exchange], Callable[[Exchange], object]]


class Connections:
    """Owned by the loop thread. `handle(exchange)` is the gateway; `finished(exchange)` is called at each answer's end.

    active        requests that are being answered
    requests      requests answered since the start
    """

    def __init__(
        self,
        loop: Loop,
        handle: Callable[[Exchange], object],
        *,
        limits: H1Limits,
        times: Times,
        defaults: ResponseDefaults,
        date_header: bool = True,
        limit_concurrency: int = 0,
        limit_connections: int = 0,
        trust: ProxyTrust | None = None,
        root_path: str = "",
        sendfile: bool = True,
        log_exchange: Callable[[Exchange], object] | None = None,
        slots: Slots | None = None,
        upgrade: Upgrader | None = None,
        on_overdue: Callable[[Exchange], object] = lambda exchange: None,
    ) -> None:
        self.loop = loop
        self.handle = handle
        self.limits = limits
        self.times = times
        self.defaults = defaults
        self.trust = trust
        self.forwarding_fields = frozenset[bytes]() if trust is None else trust.names
        self.upgrade = upgrade
        # Requests with none of these are the application's without a further look
        self.noted_fields = self.forwarding_fields if upgrade is None else self.forwarding_fields | {b"upgrade"}
        self.root_path = root_path
        self.sendfile = sendfile
        self.log_exchange = log_exchange
        self.slots = slots
        self.on_overdue = on_overdue  # called before a request is answered with 504
        self.limit_concurrency = limit_concurrency or FOREVER
        self.limit_connections = limit_connections or FOREVER
        self.active = 0
        self.requests = 0
        self.close_after_answer = not times.keep_alive  # also from `drain` on
        self.on_tick: Callable[[float], object] | None = None  # called now and then while there are connections
        self.draining = False
        self.leaving: list[Any] = []  # connections that are to go one after another once the server stops
        self.on_room: Callable[[], object] | None = None  # called when there is room, or an idle one to make it
        self.on_empty: Callable[[], object] | None = None  # called when the last connection has closed
        self._date_header = date_header
        self._refused = LineLimiter(_REFUSED_PER_MINUTE)
        self._hinted: set[str] = set()
        self._all: set[Any] = set()
        self._tick: Timer | None = None

    def __len__(self) -> int:
        return len(self._all)

    def __iter__(self) -> Iterator[Any]:
        return iter(list(self._all))

    def exchanges(self) -> list[Exchange]:
        """The requests being answered; from any thread."""
        running = [connection.exchange for connection in self]
        return [exchange for exchange in running if exchange is not None and not exchange.finished]

    @property
    def full(self) -> bool:
        return len(self._all) >= self.limit_connections

    def add(self, connection: Any) -> None:
        self._all.add(connection)
        if self._tick is None:
            self._on_tick()

    def discard(self, connection: Any) -> None:
        self._all.discard(connection)
        if self.on_room is not None and not self.full:
            self.on_room()
        if not self._all and self.on_empty is not None:
            self.on_empty()

    def longest_idle(self) -> Any:
        """The connection that can make room for another; None if all are busy."""
        now = self.loop.now()
        return min((c for c in self._all if c.can_make_room(now)), key=lambda c: c.deadline, default=None)

    def close_longest_idle(self) -> None:
        """Make room for another connection."""
        connection = self.longest_idle()
        if connection is not None:
            connection.close_idle()

    def drain(self, idle_seconds: float, spread_seconds: float = 0.0) -> None:
        """Answer what runs and what has arrived, with `Connection: close`; idle connections go after `idle_seconds`.

        Of those that put themselves into `leaving` some go now and the rest within `spread_seconds`.
        """
        self.close_after_answer = self.draining = True
        if not self._all and self.on_empty is not None:
            self.on_empty()
        for connection in self:
            connection.drain(idle_seconds)
        turns = spread_seconds / LEAVE_PAUSE_SECONDS
        self._let_go(max(LEAVE_TOGETHER_COUNT, math.ceil(len(self.leaving) / max(1.0, turns))))

    def _let_go(self, count: int) -> None:
        """So many of `leaving` now, and as many in a while, until all have gone: their clients come back as slowly."""
        now, self.leaving = self.leaving[:count], self.leaving[count:]
        for connection in now:
            connection.leave()
        if self.leaving:
            self.loop.call_later(LEAVE_PAUSE_SECONDS, self._let_go, count)

    def abort(self) -> None:
        """Close everything now; whoever still waits for an answer sees a cut connection."""
        for connection in self:
            connection.abort()

    def _answer_overdue(self, latest: float) -> None:
        """Give up requests whose head came before `latest` (time.perf_counter) and whose answer has not begun."""
        for connection in list(self._all):
            exchange = connection.exchange
            if exchange is not None and not exchange.status and not exchange.ended and exchange.started < latest:
                self.on_overdue(exchange)
                connection.answer_overdue()

    def log_refused(self, text: str, *args: object, kind: str = "refused requests") -> None:
        """A line about a refused client; under attack only so many of a kind in a minute."""
        if self._refused.admit(kind, self.loop.time):
            logger.warning(text, *args)

    def hint_untrusted(self, client: tuple[str, int] | None) -> None:
        """Say once per address that its forwarding fields are not believed."""
        address = client[0] if client is not None else "unix"
        if self.trust is not None and address not in self._hinted and len(self._hinted) < 64:
            self._hinted.add(address)
            logger.warning("%s", self.trust.untrusted_hint(client))

    def _on_tick(self) -> None:
        """Now and then while there are connections: renew the Date line, close what is over its time."""
        self._tick = self.loop.call_later(SWEEP_SECONDS, self._on_tick) if self._all else None
        if self._date_header:
            self.defaults.set_date(b"Date: %b\r\n" % email.utils.formatdate(time.time(), usegmt=True).encode())
        now = self.loop.now()
        if self.on_tick is not None:
            self.on_tick(now)
        for connection in list(self._all):
            if connection.deadline <= now or connection.write_deadline <= now:
                connection.on_deadline(now)
        if self.times.request != FOREVER:
            self._answer_overdue(time.perf_counter() - self.times.request)
        for line in self._refused.report(now):
            logger.warning("%s", line)
        if self.on_room is not None and self.longest_idle() is not None:
            self.on_room()
