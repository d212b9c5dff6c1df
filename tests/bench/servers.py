"""How each server is started: one row per server. One worker, warnings only, no access log, keep-alive 75 s.

Limits that would end a measurement rather than slow it are lifted: waitress takes 100 connections by default and its
select() 1,024 descriptors, gunicorn 1,000 connections, hypercorn closes a connection after 1,000 requests.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from .cases import Case

HERE = Path(__file__).parent
REPOSITORY = HERE.parent.parent
HYPERCORN_CONFIG = "keep_alive_max_requests = 1000000000\nkeep_alive_timeout = 75\n"

# python, application, port, scratch directory -> command
Command = Callable[[str, str, int, Path], list[str]]


@dataclass(frozen=True, slots=True)
class Server:
    """`interface`: asgi, wsgi or floor; `needs`: distributions that must be installed."""

    name: str
    interface: str
    needs: tuple[str, ...]
    command: Command
    tls: tuple[str, str] | None = None  # its flags for certificate and key

    def fits(self, case: Case) -> bool:
        """Whether the case has an application for this server."""
        if case.tls and self.tls is None:
            return False
        return case.floor is not None if self.interface == "floor" else bool(self.app(case))

    def tls_flags(self, scratch: Path) -> list[str]:
        """With the pair that `make_pair` has put there."""
        assert self.tls is not None
        return [self.tls[0], str(scratch / "tls.crt"), self.tls[1], str(scratch / "tls.key")]

    def app(self, case: Case) -> str:
        """The application of the case in this server's interface."""
        return {"asgi": case.asgi, "wsgi": case.wsgi}.get(self.interface, "")


def _stdserve(python: str, app: str, port: int, scratch: Path) -> list[str]:
    flags = ["--host", "127.0.0.1", "--port", str(port), "--no-access-log", "--log-level", "warning"]
    return [python, "-m", "stdserve", app, *flags]


def _uvicorn(loop: str, http: str) -> Command:
    def command(python: str, app: str, port: int, scratch: Path) -> list[str]:
        flags = ["--host", "127.0.0.1", "--port", str(port), "--no-access-log", "--log-level", "warning"]
        return [python, "-m", "uvicorn", app, *flags, "--loop", loop, "--http", http, "--timeout-keep-alive", "75"]

    return command


def _gunicorn(python: str, app: str, port: int, scratch: Path) -> list[str]:
    flags = [
        "-b",
        f"127.0.0.1:{port}",
        "-w",
        "1",
        "-k",
        "gthread",
        "--threads",
        "8",
        "--keep-alive",
        "75",
        "--worker-connections",
        "20000",
    ]
    return [python, "-m", "gunicorn", *flags, "--log-level", "warning", "--no-control-socket", app]


def _granian(interface: str) -> Command:
    def command(python: str, app: str, port: int, scratch: Path) -> list[str]:
        flags = ["--interface", interface, "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
        return [python, "-m", "granian", *flags, "--no-access-log", "--log-level", "warning", app]

    return command


def _waitress(python: str, app: str, port: int, scratch: Path) -> list[str]:
    flags = [f"--listen=127.0.0.1:{port}", "--threads=8", "--connection-limit=20000", "--asyncore-use-poll"]
    return [python, "-m", "waitress", *flags, app]


def _hypercorn(python: str, app: str, port: int, scratch: Path) -> list[str]:
    config = scratch / "hypercorn.toml"
    config.write_text(HYPERCORN_CONFIG)
    flags = ["-b", f"127.0.0.1:{port}", "-w", "1", "--log-level", "warning"]
    return [python, "-m", "hypercorn", "-c", str(config), *flags, app]


def _floor(python: str, app: str, port: int, scratch: Path) -> list[str]:
    return [python, str(HERE / "floor.py"), str(port)]


_OUR_TLS = ("--ssl-certfile", "--ssl-keyfile")  # uvicorn's too

SERVERS: tuple[Server, ...] = (
    Server("stdserve-asgi", "asgi", (), _stdserve, _OUR_TLS),
    Server("stdserve-wsgi", "wsgi", (), _stdserve, _OUR_TLS),
    Server("uvicorn", "asgi", ("uvicorn", "uvloop", "httptools"), _uvicorn("uvloop", "httptools"), _OUR_TLS),
    Server("uvicorn-h11", "asgi", ("uvicorn", "h11"), _uvicorn("asyncio", "h11"), _OUR_TLS),
    Server("hypercorn", "asgi", ("hypercorn",), _hypercorn, ("--certfile", "--keyfile")),
    Server("granian-asgi", "asgi", ("granian",), _granian("asgi"), ("--ssl-certificate", "--ssl-keyfile")),
    Server("granian-wsgi", "wsgi", ("granian",), _granian("wsgi"), ("--ssl-certificate", "--ssl-keyfile")),
    Server("gunicorn-gthread", "wsgi", ("gunicorn",), _gunicorn, ("--certfile", "--keyfile")),
    Server("waitress", "wsgi", ("waitress",), _waitress),
    Server("floor", "floor", (), _floor),
)


def make_pair(scratch: Path) -> None:
    """A certificate and its key, P-256, as scratch/tls.crt and tls.key."""
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    command += ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1", "-days", "30"]
    command += ["-keyout", str(scratch / "tls.key"), "-out", str(scratch / "tls.crt")]
    subprocess.run(command, check=True, capture_output=True, timeout=30)


def choose(wanted: str, names: list[str], what: str) -> list[str]:
    """The names that a comma-separated list of names or beginnings picks; exits when one picks nothing."""
    chosen: list[str] = []
    for part in filter(None, (part.strip() for part in wanted.split(","))):
        found = [name for name in names if name == part] or [name for name in names if name.startswith(part)]
        if not found:
            sys.exit(f"no {what} is called {part!r}; there are: {', '.join(names)}")
        chosen += [name for name in found if name not in chosen]
    return [name for name in names if name in chosen]
