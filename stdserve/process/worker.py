"""The worker's side: the Server that a child of the supervisor runs, and the thread that listens to the parent.

A worker that has lost its parent stops: it would hold the port and nobody would watch it. It learns of that by the end
of the channel, whatever killed the parent.
"""

from __future__ import annotations

import contextlib
import logging
import os
import random
import threading
import time
from typing import TYPE_CHECKING, Any

from ..errors import StdserveError
from ..gateway.loader import Application, load
from ..server import Server
from .channel import Channel
from .daemon import detach_streams
from .slots import RequestSlots

if TYPE_CHECKING:
    from ..config import Config
    from ..transport.certificates import Certificates
    from ..transport.listener import Listener

logger = logging.getLogger("stdserve.error")

# How often a worker looks whether it has used up what it may.
_LIMIT_SECONDS = 1.0

_ORPHAN_SECONDS = 10.0


def make_server(
    config: Config,
    listeners: list[Listener],
    channel: Channel,
    slots: RequestSlots,
    application: Application | None = None,
    certificates: Certificates | None = None,
) -> Server:
    """The worker's Server, with its threads to the parent running."""
    serving = threading.Event()

    def on_started() -> None:
        serving.set()
        channel.send("ready")
        if config.daemon and not config.enable_stdio_inheritance:
            detach_streams()

    server = Server(
        config,
        listeners=listeners,
        application=application,
        load=_load_or_explain if config.reload else load,
        on_started=on_started,
        on_stopping=lambda: channel.send("stopping"),
        on_wish=lambda reason: channel.send(f"recycle {reason}"),
        slots=slots,
        certificates=certificates,
    )
    threading.Thread(target=_listen, args=(server, channel, serving), name="stdserve-parent", daemon=True).start()
    if config.max_requests:
        most = config.max_requests + random.randint(0, config.max_requests_jitter)
        slots.limit(most, lambda: channel.send(f"recycle it has answered {most} requests (--max-requests)"))
    if config.max_worker_memory or config.max_worker_lifetime:
        threading.Thread(target=_watch_limits, args=(server, channel), name="stdserve-limits", daemon=True).start()
    return server


def _load_or_explain(config: Config) -> Application:
    """With --reload: an application that cannot be imported is answered with why, until its file is mended."""
    try:
        return load(config)
    except StdserveError as error:
        text = f"{getattr(error, 'details', '')}\n{error}".strip()
        logger.error("%s", text)

    def explain(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        body = f"The application cannot be loaded.\n\n{text}\n".encode()
        start_response("500 Internal Server Error", [("Content-Type", "text/plain; charset=utf-8")])
        return [body]

    return Application(explain, "wsgi", "why the application cannot be loaded")


def _listen(server: Server, channel: Channel, serving: threading.Event) -> None:
    """Answer the parent's pings from the loop; stop when it says so or has gone."""
    while (words := channel.receive()) is not None:
        if "ping" in words:
            server.call_in_loop(channel.send, "alive")
        if "stop" in words:
            server.drain()
    if server.stopping:
        return
    logger.error("The supervisor has gone; this worker stops")
    if not serving.is_set():
        os._exit(1)  # the application may hang while it is imported, and has no request to lose
    server.drain()
    config = server.config
    time.sleep(config.timeout_graceful_shutdown + config.timeout_lifespan_shutdown + _ORPHAN_SECONDS)
    os._exit(1)


def _watch_limits(server: Server, channel: Channel) -> None:
    """Ask for a successor when a limit is reached. Until that is ready this worker serves on."""
    config = server.config
    started = time.monotonic()
    pause = threading.Event()
    while not pause.wait(_LIMIT_SECONDS):
        reason = ""
        if config.max_worker_memory and resident_bytes() > config.max_worker_memory:
            reason = f"it uses {resident_bytes() >> 20} MiB (--max-worker-memory)"
        elif config.max_worker_lifetime and time.monotonic() - started > config.max_worker_lifetime:
            reason = "it is old enough (--max-worker-lifetime)"
        if reason:
            channel.send(f"recycle {reason}")
            return


def resident_bytes() -> int:
    """Memory that this process uses (RSS); 0 where nobody tells."""
    with contextlib.suppress(OSError, ValueError), open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    with contextlib.suppress(ImportError):
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # macOS: bytes, the most so far
    return 0
