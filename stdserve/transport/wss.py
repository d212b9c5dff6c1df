"""A WebSocket over TLS: the frames of the one, the socket of the other."""

from __future__ import annotations

from .tls import TLSConnection
from .websocket import WebSocketConnection


class SecureWebSocketConnection(WebSocketConnection, TLSConnection):
    __slots__ = ()

    needs_tls = True  # what comes in plain text is redirected like other requests
