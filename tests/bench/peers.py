"""The environment that all servers run in: a venv in the user's cache, one for each Python, with the other servers.

stdserve itself is not installed there: it is found through PYTHONPATH. What pip cannot install is left out and named.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

PACKAGES = {
    "uvicorn": "uvicorn[standard]",
    "uvloop": "uvloop",
    "httptools": "httptools",
    "h11": "h11",
    "gunicorn": "gunicorn",
    "granian": "granian",
    "waitress": "waitress",
    "hypercorn": "hypercorn",
    "fastapi": "fastapi",
    "starlette": "starlette",
    "flask": "flask",
}
INSTALL_TIMEOUT_SECONDS = 300
_VERSION = "import sys; print('.'.join(map(str, sys.version_info[:3])) + sys.abiflags)"
_VERSIONS = """
import importlib.metadata as metadata, json, sys
found = {}
for name in sys.argv[1:]:
    try:
        found[name] = metadata.version(name)
    except metadata.PackageNotFoundError:
        pass
print(json.dumps(found))
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options that prepare needs."""
    parser.add_argument("--python", default=sys.executable, help="the Python that runs all servers (default: this one)")
    parser.add_argument("--no-install", action="store_true", help="compare with what the environment has already")


def installed(needs: tuple[str, ...], versions: dict[str, str]) -> bool:
    """Whether all that a server or case needs is there; says so if not."""
    missing = [name for name in needs if name and name not in versions]
    if missing:
        print(f"left out: {', '.join(missing)} not installed", file=sys.stderr)
    return not missing


def prepare(python: str, install: bool) -> tuple[str, str, dict[str, str]]:
    """The interpreter to run servers with, its version, and the installed packages with theirs."""
    version = _output([python, "-c", _VERSION]).strip()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    interpreter = cache / "stdserve-bench" / version / "bin" / "python"
    if not interpreter.exists():
        print(f"making {interpreter.parent.parent}", file=sys.stderr)
        subprocess.run([python, "-m", "venv", interpreter.parent.parent], check=True, timeout=INSTALL_TIMEOUT_SECONDS)
    versions = _versions(interpreter)
    missing = [name for name in PACKAGES if name not in versions]
    if install and missing:
        _install(interpreter, missing)
        versions = _versions(interpreter)
    return str(interpreter), version, versions


def _install(interpreter: Path, missing: list[str]) -> None:
    """All in one go; if that fails one by one, so that one bad package takes no other with it."""
    print(f"installing {', '.join(missing)}", file=sys.stderr)
    if _pip(interpreter, missing):
        return
    for name in missing:
        if not _pip(interpreter, [name]):
            print(f"pip cannot install {name}: its servers and cases are left out", file=sys.stderr)


def _pip(interpreter: Path, names: list[str]) -> bool:
    command = [interpreter, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    specs = [PACKAGES[name] for name in names]
    try:
        done = subprocess.run(
            [*command, *specs], capture_output=True, text=True, timeout=INSTALL_TIMEOUT_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        print(f"pip took more than {INSTALL_TIMEOUT_SECONDS} s for {', '.join(specs)}", file=sys.stderr)
        return False
    if done.returncode:
        print(done.stderr.strip()[-1000:], file=sys.stderr)
    return done.returncode == 0


def _versions(interpreter: Path) -> dict[str, str]:
    found: dict[str, str] = json.loads(_output([str(interpreter), "-c", _VERSIONS, *PACKAGES]))
    return found


def _output(command: list[str]) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=30).stdout
