"""A small application to try the server with: `python -m stdserve stdserve.demo:app` (ASGI) or `stdserve.demo:wsgi`.

    GET /          one HTML page: the request as the server sees it, a stream, an upload, a WebSocket
    GET /headers   the same as JSON
    GET /stream    ten lines, one each 0.3 s
    POST /upload   any body; counted and hashed as it comes, never kept
    GET /health    "ok"
    /echo          WebSocket (ASGI only): every message comes back

It uses nothing of the server, so it runs under any other too.
"""

from __future__ import annotations

import asyncio
import hashlib
import html
import json
import sys
import time
from collections.abc import Awaitable, Callable, Iterable
from string import Template
from typing import Any

Message = dict[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

STREAM_LINES = 10
STREAM_PAUSE_SECONDS = 0.3

# Path -> the methods that it takes
METHODS = {
    "/": ("GET", "HEAD"),
    "/headers": ("GET", "HEAD"),
    "/stream": ("GET", "HEAD"),
    "/upload": ("POST", "PUT"),
    "/health": ("GET", "HEAD"),
}

TEXT, JSON, HTML = (f"{kind}; charset=utf-8" for kind in ("text/plain", "application/json", "text/html"))

PAGE = Template("""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark"><title>stdserve demo</title>
<link rel="icon" href="data:,"><style>
:root { color-scheme: light dark; --back: #f4f5f7; --card: #fff; --text: #1c2430; --soft: #5b6675; --line: #e1e5ea;
  --accent: #1f6fd6; --on-accent: #fff }
@media (prefers-color-scheme: dark) { :root { --back: #12161c; --card: #1b2129; --text: #e6eaf0; --soft: #98a4b3;
  --line: #2c3540; --accent: #6fb0ff; --on-accent: #0d1520 } }
* { box-sizing: border-box }
body { font: 16px/1.5 system-ui, sans-serif; margin: 0; padding: 2rem 1rem 4rem;
  background: var(--back); color: var(--text) }
main { max-width: 46rem; margin: 0 auto }
h1 { font-size: 1.75rem; line-height: 1.2; margin: 0 }
h2 { font-size: 1.05rem; margin: 0 0 .6rem }
p { margin: .3rem 0 1.5rem; color: var(--soft) }
section p { margin: 0 0 .8rem; font-size: .9rem }
section { background: var(--card); border: 1px solid var(--line); border-radius: .75rem; padding: 1.1rem 1.2rem;
  margin: 0 0 1rem }
a { color: var(--accent) }
table { border-collapse: collapse; width: 100%; table-layout: fixed }
td, th { text-align: left; vertical-align: top; padding: .35rem 0; overflow-wrap: anywhere }
tr + tr > * { border-top: 1px solid var(--line) }
th { font-weight: 500; color: var(--soft); width: 34%; padding-right: 1rem; font-size: .9rem }
td, pre, output { font: .85rem/1.5 ui-monospace, Menlo, Consolas, monospace }
pre, output { display: block; margin: .8rem 0 0; min-height: 1.5em; white-space: pre-wrap; overflow-wrap: anywhere }
button, input, textarea { font: inherit; color: inherit; max-width: 100% }
button { border: 0; border-radius: .5rem; padding: .45rem 1.1rem; background: var(--accent); color: var(--on-accent);
  font-weight: 600; cursor: pointer }
button:disabled { opacity: .5; cursor: default }
textarea { display: block; width: 100%; margin: 0 0 .8rem; padding: .5rem .7rem; border: 1px solid var(--line);
  border-radius: .5rem; background: var(--back) }
input { display: block; margin: 0 0 .8rem }
progress { display: block; width: 100%; margin: .8rem 0 0; accent-color: var(--accent) }
</style></head><body><main>
<h1>It works</h1><p>stdserve on $python answers over $interface.</p>
<section><h2>This request, as the server sees it</h2><table>$request</table></section>
<section><h2>Its header fields</h2><table>$fields</table></section>
<section><h2>Stream</h2><p><a href="$base/stream">/stream</a> sends a line each $pause seconds.</p>
<button id="read">Read it</button><pre id="stream" aria-live="polite"></pre></section>
<section><h2>Upload</h2><p>A file or a text goes to /upload, which counts it and keeps nothing.</p>
<form id="form"><input type="file" id="file" aria-label="File"><textarea id="text" rows="2" aria-label="Text"
placeholder="or any text"></textarea><button>Upload</button></form>
<progress id="progress" max="1" value="0" hidden></progress><output id="result"></output></section>
$echo<section><h2>More</h2><a href="$base/headers">/headers</a> &nbsp; <a href="$base/health">/health</a></section>
</main><script>
const base = $base_json, at = id => document.getElementById(id);
at("read").onclick = async () => {
  const out = at("stream"), button = at("read"), text = new TextDecoder();
  out.textContent = ""; button.disabled = true;
  try {
    const reader = (await fetch(base + "/stream")).body.getReader();
    for (let part; !(part = await reader.read()).done;) out.textContent += text.decode(part.value, {stream: true});
  } catch (error) { out.textContent += "the stream broke off: " + error; }
  button.disabled = false;
};
at("form").onsubmit = event => {
  event.preventDefault();
  const bar = at("progress"), out = at("result"), request = new XMLHttpRequest();
  const share = event => bar.value = event.total ? event.loaded / event.total : 1;
  bar.hidden = false; bar.value = 0; out.textContent = "";
  request.upload.onprogress = request.upload.onload = share;
  request.onload = () => out.textContent = request.responseText;
  request.onerror = () => out.textContent = "the connection was lost";
  request.open("POST", base + "/upload");
  request.send(at("file").files[0] || at("text").value);
};
if (at("echo")) {
  const out = at("heard"), button = at("say"), seen = [];
  const show = line => { seen.push(line); out.textContent = seen.slice(-8).join("\\n"); };
  const url = new URL(base + "/echo", location.href);
  url.protocol = url.protocol.replace("http", "ws");
  let socket, sent;
  const open = () => {
    socket = new WebSocket(url);
    socket.onopen = () => { button.disabled = false; show("open"); };
    socket.onmessage = event => show(event.data + "  (" + (performance.now() - sent).toFixed(1) + " ms)");
    socket.onclose = event => {
      button.disabled = true; show("closed " + event.code + " " + event.reason);
      if (event.code == 1012) setTimeout(open, 2000);
    };
  };
  at("echo").onsubmit = event => {
    event.preventDefault();
    sent = performance.now();
    socket.send(at("message").value || "hello");
  };
  open();
}
</script></body></html>
""")

ECHO = """<section><h2>WebSocket</h2><p>What is sent to /echo comes back.</p>
<form id="echo"><input id="message" aria-label="Message" placeholder="hello">
<button id="say" disabled>Send</button></form>
<pre id="heard" aria-live="polite"></pre></section>
"""


# ---- ASGI


async def app(scope: Message, receive: Receive, send: Send) -> None:
    """The ASGI side."""
    if scope["type"] == "lifespan":
        await _lifespan(receive, send)
        return
    if scope["type"] == "websocket":
        await _echo(_path(scope), receive, send)
        return
    if scope["type"] != "http":
        raise RuntimeError(f"the demo does not serve {scope['type']!r}")
    path = _path(scope)
    method = scope["method"]
    if (refusal := _refusal(path, method)) is not None:
        await _answer(send, method, *refusal)
    elif path == "/stream":
        await _stream(send, method)
    elif path == "/upload":
        await _upload(receive, send)
    else:
        await _answer(send, method, 200, *_page(path, *_facts_of_scope(scope)))


def _path(scope: Message) -> str:
    return scope["path"].removeprefix(scope.get("root_path", "")) or "/"


async def _echo(path: str, receive: Receive, send: Send) -> None:
    await receive()
    if path != "/echo":
        await send({"type": "websocket.close"})  # before it is accepted: 403
        return
    await send({"type": "websocket.accept"})
    while (message := await receive())["type"] == "websocket.receive":
        await send({**message, "type": "websocket.send"})


async def _lifespan(receive: Receive, send: Send) -> None:
    while True:
        kind = (await receive())["type"]
        await send({"type": f"{kind}.complete"})
        if kind == "lifespan.shutdown":
            return


async def _answer(send: Send, method: str, status: int, kind: str, body: bytes, allow: str = "") -> None:
    headers = [(b"content-type", kind.encode()), (b"content-length", b"%d" % len(body))]
    if allow:
        headers.append((b"allow", allow.encode()))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": b"" if method == "HEAD" else body})


async def _stream(send: Send, method: str) -> None:
    headers = [(b"content-type", TEXT.encode()), (b"cache-control", b"no-store")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    if method != "HEAD":
        for number in range(1, STREAM_LINES + 1):
            await send({"type": "http.response.body", "body": _line(number), "more_body": True})
            if number < STREAM_LINES:
                await asyncio.sleep(STREAM_PAUSE_SECONDS)
    await send({"type": "http.response.body"})


async def _upload(receive: Receive, send: Send) -> None:
    count = _Count()
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        count.add(message.get("body", b""))
        more = message.get("more_body", False)
    await _answer(send, "POST", 200, JSON, count.as_json())


def _facts_of_scope(scope: Message) -> tuple[dict[str, str], list[tuple[str, str]]]:
    query = scope["query_string"].decode("latin-1")
    target = (scope.get("raw_path") or scope["path"].encode()).decode("latin-1")
    facts = {
        "interface": "ASGI",
        "method": scope["method"],
        "target": f"{target}?{query}" if query else target,
        "path": scope["path"],
        "http_version": scope["http_version"],
        "scheme": scope.get("scheme", "http"),
        "client": _address(scope.get("client")),
        "server": _address(scope.get("server")),
        "root_path": scope.get("root_path", ""),
    }
    return facts, [(name.decode("latin-1"), value.decode("latin-1")) for name, value in scope["headers"]]


def _address(pair: Any) -> str:
    if pair is None:
        return "a unix socket"
    host, port = pair
    if port is None:
        return str(host)
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


# ---- WSGI


def wsgi(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """The WSGI side."""
    path = environ.get("PATH_INFO") or "/"
    method = environ["REQUEST_METHOD"]
    allow = ""
    if (refusal := _refusal(path, method)) is not None:
        code, kind, body, allow = refusal
        status = "404 Not Found" if code == 404 else "405 Method Not Allowed"
    elif path == "/stream":
        start_response("200 OK", [("Content-Type", TEXT), ("Cache-Control", "no-store")])
        return [] if method == "HEAD" else _lines()
    elif path == "/upload":
        status, kind, body = "200 OK", JSON, _count_input(environ)
    else:
        status, (kind, body) = "200 OK", _page(path, *_facts_of_environ(environ))
    headers = [("Content-Type", kind), ("Content-Length", str(len(body)))]
    start_response(status, [*headers, ("Allow", allow)] if allow else headers)
    return [] if method == "HEAD" else [body]


def _lines() -> Iterable[bytes]:
    for number in range(1, STREAM_LINES + 1):
        yield _line(number)
        if number < STREAM_LINES:
            time.sleep(STREAM_PAUSE_SECONDS)


def _count_input(environ: dict[str, Any]) -> bytes:
    count = _Count()
    while data := environ["wsgi.input"].read(64 * 1024):
        count.add(data)
    return count.as_json()


def _facts_of_environ(environ: dict[str, Any]) -> tuple[dict[str, str], list[tuple[str, str]]]:
    path = environ.get("PATH_INFO", "")
    client, port = environ.get("REMOTE_ADDR", ""), environ.get("REMOTE_PORT")
    facts = {
        "interface": "WSGI",
        "method": environ["REQUEST_METHOD"],
        "target": environ.get("REQUEST_URI", path),
        "path": _as_text(path),
        "http_version": environ["SERVER_PROTOCOL"].removeprefix("HTTP/"),
        "scheme": environ["wsgi.url_scheme"],
        "client": _address((client, port or None) if client else None),
        "server": _address((environ["SERVER_NAME"], environ["SERVER_PORT"] or None)),
        "root_path": _as_text(environ.get("SCRIPT_NAME", "")),
    }
    names = [name for name in environ if name.startswith("HTTP_") or name in ("CONTENT_TYPE", "CONTENT_LENGTH")]
    fields = [(name.removeprefix("HTTP_").replace("_", "-").lower(), str(environ[name])) for name in names]
    return facts, [field for field in fields if field[1]]


def _as_text(native: str) -> str:
    """PEP 3333's bytes in a str, as the UTF-8 that they are meant to be."""
    return native.encode("latin-1", "replace").decode("utf-8", "replace")


# ---- both


def _refusal(path: str, method: str) -> tuple[int, str, bytes, str] | None:
    """(status, media type, body, Allow) where there is nothing to be had."""
    allowed = METHODS.get(path)
    if allowed is None:
        return 404, TEXT, b"not found\n", ""
    if method not in allowed:
        return 405, TEXT, b"method not allowed\n", ", ".join(allowed)
    return None


def _page(path: str, facts: dict[str, str], fields: list[tuple[str, str]]) -> tuple[str, bytes]:
    """(media type, body)"""
    if path == "/health":
        return TEXT, b"ok\n"
    if path == "/headers":
        return JSON, json.dumps({**facts, "headers": fields}, indent=2).encode() + b"\n"
    page = PAGE.substitute(
        python=html.escape(f"{sys.implementation.name} {sys.version.split()[0]}"),
        interface=facts["interface"],
        request=_rows(facts.items()),
        fields=_rows(fields),
        pause=STREAM_PAUSE_SECONDS,
        echo=ECHO if facts["interface"] == "ASGI" else "",
        base=html.escape(facts["root_path"]),
        base_json=json.dumps(facts["root_path"]).replace("<", "\\u003c"),
    )
    return HTML, page.encode("utf-8", "replace")


def _rows(pairs: Iterable[tuple[str, str]]) -> str:
    return "".join(f"<tr><th>{html.escape(name)}</th><td>{html.escape(value)}</td></tr>" for name, value in pairs)


def _line(number: int) -> bytes:
    return b"line %d of %d\n" % (number, STREAM_LINES)


class _Count:
    """What an upload amounts to."""

    __slots__ = ("_bytes", "_sha256", "_started")

    def __init__(self) -> None:
        self._bytes = 0
        self._sha256 = hashlib.sha256()
        self._started = time.perf_counter()

    def add(self, data: bytes) -> None:
        self._bytes += len(data)
        self._sha256.update(data)

    def as_json(self) -> bytes:
        seconds = max(time.perf_counter() - self._started, 1e-6)
        answer = {
            "bytes": self._bytes,
            "sha256": self._sha256.hexdigest(),
            "seconds": round(seconds, 3),
            "megabytes_per_second": round(self._bytes / 1e6 / seconds, 1),
        }
        return json.dumps(answer, indent=2).encode() + b"\n"
