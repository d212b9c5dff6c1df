"""What is asked of a server: one row per case."""

from __future__ import annotations

from dataclasses import dataclass

KIB = 1024
MIB = 1024 * KIB

# A browser's request, 13 fields with Host (which wrk adds), about 650 bytes.
BROWSER_HEADERS = (
    "Connection: keep-alive",
    "Cache-Control: max-age=0",
    'sec-ch-ua: "Chromium";v="126", "Not-A.Brand";v="8"',
    "sec-ch-ua-mobile: ?0",
    'sec-ch-ua-platform: "Linux"',
    "Upgrade-Insecure-Requests: 1",
    "User-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/126.0.0.0 Safari/537.36",
    "Accept: text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8",
    "Referer: http://127.0.0.1/articles/2024/06/a-page?id=17",
    "Accept-Encoding: gzip, deflate, br, zstd",
    "Accept-Language: en-GB,en;q=0.9,de;q=0.8",
    "Cookie: session=f3b1c2d4e5f60718293a4b5c6d7e8f90; theme=dark; _ga=GA1.1.1234567890",
)


@dataclass(frozen=True, slots=True)
class Case:
    """`asgi`, `wsgi`: the application, empty where the case is not for such servers; `floor`: likewise, its flags."""

    name: str
    title: str
    asgi: str
    wsgi: str
    connections: int
    floor: tuple[str, ...] | None = None
    path: str = "/"
    headers: tuple[str, ...] = ()
    body_bytes: int = 0
    answer_bytes: int | None = None
    package: str = ""
    tls: bool = False

    @property
    def scheme(self) -> str:
        return "https" if self.tls else "http"


def _hello(name: str, title: str, connections: int, **more: object) -> Case:
    fields: dict[str, object] = {"floor": (), "answer_bytes": 13, **more}
    return Case(name, title, "apps:asgi_hello", "apps:wsgi_hello", connections, **fields)  # type: ignore[arg-type]


def _answer(name: str, title: str, app: str, size: int) -> Case:
    floor = None if app == "file" else ("--size", str(size))
    return Case(name, title, f"apps:asgi_{app}", f"apps:wsgi_{app}", 32, floor=floor, answer_bytes=size)


def _echo(name: str, title: str, connections: int, size: int) -> Case:
    return Case(name, title, "apps:asgi_echo", "apps:wsgi_echo", connections, body_bytes=size, answer_bytes=size)


ITEM = "/items/42?q=some+text"

CASES: tuple[Case, ...] = (
    _hello("hello-1", "hello world, 1 connection", 1),
    _hello("hello-64", "hello world, 64 connections", 64),
    _hello("hello-512", "hello world, 512 connections", 512),
    _hello("head", "hello world with a browser's 13 header fields, 64 connections", 64, headers=BROWSER_HEADERS),
    _hello(
        "close",
        "hello world, a new connection each time, 32 at once",
        32,
        headers=("Connection: close",),
        floor=("--close",),
    ),
    _echo("echo-1k", "echo of 1 KiB, 64 connections", 64, KIB),
    _echo("echo-100k", "echo of 100 KiB, 32 connections", 32, 100 * KIB),
    _answer("answer-100k", "answer of 100 KiB, 32 connections", "100k", 100 * KIB),
    _answer("answer-1m", "answer of 1 MiB, 32 connections", "1m", MIB),
    _answer("file-1m", "file of 1 MiB (pathsend or chunks; wsgi.file_wrapper), 32 connections", "file", MIB),
    Case(
        "fastapi",
        "FastAPI JSON path operation, 64 connections",
        "app_fastapi:app",
        "",
        64,
        path=ITEM,
        package="fastapi",
    ),
    _hello("tls-hello", "hello world over TLS, 64 connections", 64, tls=True, floor=None),
    Case(
        "tls-1m",
        "answer of 1 MiB over TLS, 32 connections",
        "apps:asgi_1m",
        "apps:wsgi_1m",
        32,
        answer_bytes=MIB,
        tls=True,
    ),
    Case("flask", "Flask JSON view, 64 connections", "", "app_flask:app", 64, path=ITEM, package="flask"),
)
