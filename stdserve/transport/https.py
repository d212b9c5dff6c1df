"""What https needs around the handshake, in the supervisor and in the server.

    load_certificates             before anything is bound
    open_all                      the listeners of the server and those that redirect; which of them speak TLS
    connector                     what an accepted socket becomes: a Connection or a Handshake
    redirecting                   the gateway's `handle`, with a redirect before it for what came to --https-redirect

It imports the rooms it leads to when they are needed: a supervisor has no use for HTTP, a plain server none for ssl.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from ..config import OPTIONS
from ..errors import ConfigError
from .listener import Listener, open_listeners

if TYPE_CHECKING:
    from ..config import Config
    from ..exchange import Exchange
    from .certificates import Certificates

    Handle = Callable[[Exchange], object]


def load_certificates(config: Config, old: Certificates | None = None) -> Certificates | None:
    """None without TLS; `old` if nothing has changed. ConfigError if they cannot be used."""
    if not config.ssl_certfile:
        for name in ("ssl_keyfile", "ssl_ca_certs", "ssl_context_factory", "https_redirect"):
            if getattr(config, name):
                raise ConfigError(f"{OPTIONS[name]} needs --ssl-certfile")
        return None
    from .certificates import Certificates

    return Certificates(config) if old is None else old.renewed(config)


def open_all(config: Config, *, inherited: Iterable[int] = (), kept: Iterable[Listener] = ()) -> list[Listener]:
    """Open all listeners, or none and raise BindError; see `open_listeners`."""
    if config.https_redirect and not (config.bind or config.uds) and config.port == config.https_redirect:
        raise ConfigError(f"--https-redirect: {config.port} is the --port of https itself")
    listeners = open_listeners(config, inherited=inherited, kept=kept)
    hosts = dict.fromkeys(str(each.server[0]) for each in listeners if not each.is_unix) or {config.host: None}
    if config.https_redirect is not None and all(each.server[1] != config.https_redirect for each in listeners):
        places = tuple(f"{f'[{host}]' if ':' in host else host}:{config.https_redirect}" for host in hosts)
        plain = dataclasses.replace(config, bind=places, fd=None, uds="")
        with contextlib.ExitStack() as undo:
            for listener in listeners:
                if listener not in kept:
                    undo.callback(listener.close)
            listeners = listeners + open_listeners(plain, {}, kept=kept)
            undo.pop_all()
    mark_schemes(listeners, config)
    return listeners


def mark_schemes(listeners: Iterable[Listener], config: Config) -> None:
    """Which of them speak TLS: all but those that redirect, which their port tells."""
    for listener in listeners:
        port = listener.server[1]
        redirects = port is not None and port == config.https_redirect
        listener.scheme = "https" if config.ssl_certfile and not redirects else "http"


def connector(certificates: Certificates | None) -> Callable[..., object]:
    """Call what it returns with Connections, socket, peer and listener of a connection that is accepted."""
    from .connection import Connection

    if certificates is None:
        return Connection
    from .tls import Handshake

    def connect(*accepted: Any) -> None:
        if accepted[-1].scheme == "https":
            Handshake(certificates, *accepted)
        else:
            Connection(*accepted)

    return connect


def redirecting(
    handle: Handle, certificates: Certificates | None, config: Config, listeners: Iterable[Listener]
) -> Handle:
    """The gateway's `handle`, with the redirect before it if there is one."""
    if certificates is None or config.https_redirect is None:
        return handle
    from .redirect import HttpsRedirect

    ports = (listener.server[1] for listener in listeners if listener.scheme == "https")
    return HttpsRedirect(handle, next(filter(None, ports), 443), certificates.covers).handle
