"""The demo's page in a real browser, over https and wss: headless Chromium, driven by its DevTools protocol."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.certificates import Authority
from tests.e2e.harness import serving
from tests.support import BOUND_SECONDS, wait_for

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium"),
    pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl command to make certificates with"),
]

FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--ignore-certificate-errors",
    "--remote-debugging-port=0",
)  # fmt: skip


class Page:
    """One tab. `run` gives the value of a JavaScript expression, awaited if it is a promise."""

    def __init__(self, browser: Any, url: str) -> None:
        self._browser = browser
        self._number = 0
        self._session = ""
        target = self._call("Target.createTarget", url=url)["targetId"]
        self._session = self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        wait_for(lambda: self.run("location.href + document.readyState") == url + "complete")

    def run(self, expression: str) -> Any:
        answer = self._call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def _call(self, method: str, **params: Any) -> dict[str, Any]:
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        self._browser.send(json.dumps(message | ({"sessionId": self._session} if self._session else {})))
        while (answer := json.loads(self._browser.recv(timeout=BOUND_SECONDS))).get("id") != self._number:
            pass
        result: dict[str, Any] = answer["result"]
        return result


@contextlib.contextmanager
def opened(url: str, folder: Path) -> Iterator[Page]:
    client = pytest.importorskip("websockets.sync.client")
    assert CHROMIUM is not None
    command = [CHROMIUM, *FLAGS, f"--user-data-dir={folder}", "about:blank"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            found = (re.search(r"DevTools listening on (ws://\S+)", line) for line in process.stderr)
            address = next(filter(None, found))[1]
            with client.connect(address, max_size=None) as browser:
                yield Page(browser, url)
        finally:
            process.kill()


def test_the_page_of_the_demo_works(tmp_path: Path) -> None:
    pair = Authority(tmp_path / "ca").issue("localhost")
    with serving(tmp_path, "stdserve.demo:app", *pair.flags) as process:
        port = process.wait_line(r"stdserve running on https://127\.0\.0\.1:(\d+)")[1]
        with opened(f"https://localhost:{port}/", tmp_path / "profile") as page:
            assert page.run("document.querySelector('h1').innerText") == "It works"
            wait_for(lambda: page.run("document.getElementById('heard').textContent") == "open")
            page.run("document.getElementById('message').value = 'über wss'")
            page.run("document.getElementById('say').click()")
            wait_for(lambda: "über wss  (" in page.run("document.getElementById('heard').textContent"))
            page.run("document.getElementById('text').value = 'x'.repeat(100000)")
            page.run("document.getElementById('text').form.requestSubmit()")
            wait_for(lambda: "100000" in page.run("document.getElementById('result').textContent").replace(",", ""))
            length, extensions = page.run(
                """new Promise((resolve, reject) => {
                    const socket = new WebSocket("wss://" + location.host + "/echo");
                    socket.onopen = () => socket.send("hello".repeat(50000));
                    socket.onmessage = event => {
                        resolve([event.data.length, socket.extensions]);
                        socket.close(1000);
                    };
                    socket.onerror = () => reject("error");
                })"""
            )
            assert length == 250_000 and extensions.startswith("permessage-deflate")
            process.wait_line(r"GET /echo from .*: WebSocket closed 1000 after")
        process.signal(15)
        assert process.wait() == 0
