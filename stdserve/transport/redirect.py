"""308 (RFC 9110 15.4.9) for plain HTTP that comes to --https-redirect; what came over TLS goes on to the gateway.

Only hosts that a certificate is good for are redirected to: a client that comes with any other Host would get a
certificate error at best, and a cache between us could be made to send others there.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable

from ..exchange import Exchange, error_head

# uri-host [ ":" port ] (RFC 9110 7.2); an IPv6 address without its brackets is group 1
_AUTHORITY = re.compile(rb"(?:\[([0-9A-Fa-f:.]++)\]|([0-9A-Za-z_.-]++))(?::[0-9]*+)?+")


class HttpsRedirect:
    """`port` is where https is; `covers(host)` whether a certificate is good for a host."""

    def __init__(self, handle: Callable[[Exchange], object], port: int, covers: Callable[[str], bool]) -> None:
        self._handle = handle
        self._port = b"" if port == 443 else b":%d" % port
        self._covers = covers

    def handle(self, exchange: Exchange) -> None:
        if exchange.channel.scheme == "https":
            self._handle(exchange)
            return
        request = exchange.request
        match = _AUTHORITY.fullmatch(request.authority)
        host = _plain_host(match[1] or match[2]) if match is not None else ""
        if match is None or not request.path.startswith(b"/"):  # no Host, or a target that is no path (OPTIONS *)
            exchange.start(error_head(400), b"This port only redirects to https://\n", True)
        elif not self._covers(host):  # RFC 9110 15.5.20
            exchange.start(error_head(421), b"There is no such host here\n", True)
        else:
            name = b"[%b]" % match[1] if match[1] else match[2]
            query = b"?" + request.query if b"?" in request.target else b""
            location = b"https://%b%b%b%b" % (name, self._port, request.path, query)
            exchange.start(error_head(308, (b"Location", location)), b"This is at %b\n" % location, True)


def _plain_host(host: bytes) -> str:
    """As certificates name it: lower case, an address in its shortest form."""
    text = host.decode().lower()
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        return text
