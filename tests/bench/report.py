"""Medians over rounds, and the Markdown tables."""

from __future__ import annotations

import os
import platform
import statistics
from collections import Counter

from .cases import Case
from .load import Sample
from .servers import Server

HEADINGS = (
    "server",
    "CPU us/request",
    "min to max",
    "requests/s",
    "p50 ms",
    "p99 ms",
    "RSS MB",
    "stdserve CPU / this",
    "stdserve rate / this",
    "errors",
)
NOTES = """\
CPU: user and system time of the server's whole process tree during the window. RSS: sum over the tree, after it.
All figures are medians over the rounds. The ratios are to stdserve with the same interface (the floor: to ASGI); a
CPU ratio under 1 and a rate ratio over 1 are in stdserve's favour. One client thread; client and servers share the
machine's cores. Errors are sums over the rounds: socket errors by kind, and status (answers of 400 and above)."""


class Results:
    """All samples of one case, by server; `failed` holds why a server has none or stopped giving them."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.samples: dict[str, list[Sample]] = {}
        self.failed: dict[str, str] = {}

    def add(self, server: str, sample: Sample) -> None:
        """Keeps one more round of a server."""
        self.samples.setdefault(server, []).append(sample)

    def clean(self) -> bool:
        """Whether nothing failed and no request went wrong."""
        return not self.failed and not any(sample.errors for samples in self.samples.values() for sample in samples)

    def markdown(self, servers: list[Server]) -> str:
        """The table of the case, servers in the given order."""
        lines = [f"\n### {self.case.name}: {self.case.title}\n"]
        lines.append("| " + " | ".join(HEADINGS) + " |")
        lines.append("|---|" + "---:|" * (len(HEADINGS) - 2) + "---|")
        lines += ["| " + " | ".join(self._row(server)) + " |" for server in servers if self._known(server.name)]
        return "\n".join(lines)

    def _known(self, name: str) -> bool:
        return name in self.samples or name in self.failed

    def _row(self, server: Server) -> list[str]:
        samples = self.samples.get(server.name, [])
        trouble = _trouble(samples, self.failed.get(server.name, ""))
        if not samples:
            return [server.name] + ["-"] * (len(HEADINGS) - 2) + [trouble]
        costs = [sample.cpu_per_request for sample in samples]
        return [
            server.name,
            f"{statistics.median(costs):.1f}",
            f"{min(costs):.1f} to {max(costs):.1f}",
            f"{_median(samples, 'rate'):,.0f}",
            f"{_median(samples, 'p50') / 1000:.2f}",
            f"{_median(samples, 'p99') / 1000:.2f}",
            f"{_median(samples, 'rss_bytes') / 1e6:.0f}",
            self._ratio(server, "cpu_per_request"),
            self._ratio(server, "rate"),
            trouble,
        ]

    def _ratio(self, server: Server, figure: str) -> str:
        ours = self.samples.get("stdserve-wsgi" if server.interface == "wsgi" else "stdserve-asgi")
        if not ours or server.name.startswith("stdserve"):
            return "-"
        theirs = _median(self.samples[server.name], figure)
        return f"{_median(ours, figure) / theirs:.2f}" if theirs else "-"


def _median(samples: list[Sample], figure: str) -> float:
    return statistics.median(getattr(sample, figure) for sample in samples)


def _trouble(samples: list[Sample], failure: str) -> str:
    """Sums of the errors over the rounds, then why the server failed, in one table cell."""
    total: Counter[str] = Counter()
    for sample in samples:
        total.update(sample.errors)
    parts = [f"{kind} {count}" for kind, count in total.items()]
    if failure:
        parts.append("FAILED: " + " ".join(failure.split()).replace("|", "\\|")[-300:])
    return ", ".join(parts) or "none"


def heading(version: str, versions: dict[str, str], rounds: int, seconds: int) -> str:
    """What was run where: enough to judge the figures later."""
    machine = f"CPython {version}, Linux {platform.release()} {platform.machine()}, {os.cpu_count()} cores"
    load = " ".join(f"{value:.2f}" for value in os.getloadavg())
    packages = ", ".join(f"{name} {number}" for name, number in sorted(versions.items()))
    return "\n".join(
        [
            f"## stdserve and others: {rounds} rounds of {seconds} s, interleaved\n",
            f"{machine}, load average at the start {load}. {packages}.\n",
            NOTES,
        ]
    )
