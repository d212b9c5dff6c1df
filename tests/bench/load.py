"""wrk as the client: one run against one server, with everything that went wrong counted."""

from __future__ import annotations

import http.client
import json
import os
import ssl
import subprocess
from dataclasses import dataclass

from .cases import Case
from .procs import ServerProcess
from .servers import HERE

WRK_TIMEOUT_SECONDS = 5
GRACE_SECONDS = 15
ERROR_KINDS = ("connect", "read", "write", "timeout", "status")


class LoadError(Exception):
    """A run gave no figures, or the server's answer is not the case's."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One measured window. Latencies in microseconds; `errors` by kind, only those that happened."""

    requests: int
    seconds: float
    cpu_seconds: float
    p50: float
    p99: float
    rss_bytes: int
    errors: dict[str, int]

    @property
    def cpu_per_request(self) -> float:
        """Server CPU microseconds for one answered request."""
        return self.cpu_seconds / self.requests * 1e6

    @property
    def rate(self) -> float:
        """Requests per second."""
        return self.requests / self.seconds


def check_answer(case: Case, port: int) -> None:
    """One request with another client: status, length and (for an echo) content must be right."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    if case.tls:
        context = ssl._create_unverified_context()  # wrk does not look at it either
        connection = http.client.HTTPSConnection("127.0.0.1", port, timeout=20, context=context)
    headers = dict(line.split(": ", 1) for line in case.headers)
    sent = b"x" * case.body_bytes
    try:
        connection.request("POST" if sent else "GET", case.path, body=sent or None, headers=headers)
        response = connection.getresponse()
        body = response.read()
    except (OSError, http.client.HTTPException) as error:
        raise LoadError(f"no answer to {case.path}: {error!r}") from error
    finally:
        connection.close()
    if response.status != 200:
        raise LoadError(f"status {response.status} instead of 200: {body[:200]!r}")
    if case.answer_bytes is not None and len(body) != case.answer_bytes:
        raise LoadError(f"{len(body)} body bytes instead of {case.answer_bytes}")
    if sent and body != sent:
        raise LoadError("the echo differs from what was sent")


def measure(case: Case, server: ServerProcess, seconds: int) -> Sample:
    """One run of wrk; the CPU of the server's tree is read right before and right after it."""
    before = server.usage().cpu_seconds
    figures = run_wrk(case, server.port, seconds)
    cpu_seconds = server.usage().cpu_seconds - before
    errors = {kind: figures[kind] for kind in ERROR_KINDS if figures[kind]}
    answered = figures["requests"] - figures["status"]
    if answered <= 0 or not figures["microseconds"]:
        raise LoadError(f"no request was answered with success; wrk's errors: {errors}")
    return Sample(
        requests=int(figures["requests"]),
        seconds=figures["microseconds"] / 1e6,
        cpu_seconds=cpu_seconds,
        p50=figures["p50"],
        p99=figures["p99"],
        rss_bytes=server.rss_bytes(),
        errors={kind: int(count) for kind, count in errors.items()},
    )


def run_wrk(case: Case, port: int, seconds: int) -> dict[str, float]:
    """wrk's figures as wrk.lua prints them."""
    command = ["wrk", "-t1", f"-c{case.connections}", f"-d{seconds}s", f"--timeout={WRK_TIMEOUT_SECONDS}s", "--latency"]
    for line in case.headers:
        command += ["-H", line]
    command += ["-s", str(HERE / "wrk.lua"), f"{case.scheme}://127.0.0.1:{port}{case.path}"]
    environment = {**os.environ, "BENCH_BODY": str(case.body_bytes)}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=seconds + GRACE_SECONDS, env=environment, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise LoadError(f"wrk did not end {GRACE_SECONDS} s after its time") from error
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or not lines:
        raise LoadError(f"wrk failed with status {done.returncode}: {(done.stderr or done.stdout).strip()[-300:]}")
    figures: dict[str, float] = json.loads(lines[-1])
    return figures
