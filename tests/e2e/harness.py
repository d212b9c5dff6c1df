"""A server as users start it: a process of its own."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import stdserve
from tests.support import BOUND_SECONDS, Client, Response

PACKAGE = Path(stdserve.__file__).parent


class Process:
    """A server process; its two outputs are read as they come, so that it never has to wait."""

    def __init__(self, *argv: str, cwd: Path, module: str = "stdserve", path: Path = PACKAGE.parent, **options: object):
        environ = {key: value for key, value in os.environ.items() if not key.startswith(("STDSERVE_", "LISTEN_"))}
        environ |= {"PYTHONPATH": str(path), "PYTHONUNBUFFERED": "1", "NO_COLOR": "1"}
        command = [*options.pop("prefix", ()), sys.executable, "-W", "error::ResourceWarning", "-m", module, *argv]  # type: ignore[misc]
        self.popen = subprocess.Popen(
            command, cwd=cwd, env=environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True, **options,
        )  # type: ignore[call-overload]  # fmt: skip
        self.out: list[str] = []
        self.err: list[str] = []
        self._changed = threading.Condition()
        self._readers = [
            threading.Thread(target=self._read, args=pair)
            for pair in ((self.popen.stdout, self.out), (self.popen.stderr, self.err))
        ]
        for reader in self._readers:
            reader.start()

    def _read(self, stream: object, lines: list[str]) -> None:
        for line in stream:  # type: ignore[attr-defined]
            with self._changed:
                lines.append(line.rstrip("\n"))
                self._changed.notify_all()
        with self._changed:
            self._changed.notify_all()

    @property
    def text(self) -> str:
        return "\n".join(self.err)

    def wait_line(self, pattern: str) -> re.Match[str]:
        """The first line of either output in which the pattern is found."""

        def find() -> re.Match[str] | None:
            return next((match for line in [*self.out, *self.err] if (match := re.search(pattern, line))), None)

        def is_over() -> bool:
            return not any(reader.is_alive() for reader in self._readers)

        with self._changed:
            self._changed.wait_for(lambda: find() or is_over(), BOUND_SECONDS)
            found = find()
            assert found is not None, f"no {pattern!r} in\n{self.out}\n{self.text}"
            return found

    def connect(self) -> Client:
        port = int(self.wait_line(r"stdserve running on http://127\.0\.0\.1:(\d+)")[1])
        return Client(socket.create_connection(("127.0.0.1", port), timeout=BOUND_SECONDS))

    def get(self, target: str = "/") -> Response:
        with self.connect() as client:
            return client.get(target)

    def signal(self, number: int) -> None:
        self.popen.send_signal(number)

    def wait(self) -> int:
        """The exit code, when all output has been read."""
        try:
            code = self.popen.wait(BOUND_SECONDS)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the server does not end\n{self.text}") from None
        for reader in self._readers:
            reader.join(BOUND_SECONDS)
        return code

    def close(self) -> None:
        if self.popen.poll() is None:
            self.popen.kill()
        self.wait()
        for stream in (self.popen.stdin, self.popen.stdout, self.popen.stderr):
            assert stream is not None
            with contextlib.suppress(BrokenPipeError):
                stream.close()


@contextlib.contextmanager
def serving(folder: Path, app: str, *options: str, port: bool = True, **settings: object) -> Iterator[Process]:
    process = Process(*(("--port", "0") if port else ()), *options, app, cwd=folder, **settings)  # type: ignore[arg-type]
    try:
        yield process
    finally:
        process.close()
