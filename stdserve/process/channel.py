"""What a supervisor and its worker say to each other: words, one a line, over a socket pair.

    worker -> supervisor    ready        it accepts connections
                            stopping     it does not any more
                            alive        its loop has answered `ping`
                            recycle      it has reached a limit and wants to be replaced; the reason follows the word
    supervisor -> worker    ping
                            stop         end gracefully

The end of the file means that the other one is dead, however that came about.
"""

from __future__ import annotations

import contextlib
import socket

_READ_BYTES = 4096


class Channel:
    """One end. `send` may be called by any thread, a word is far shorter than what one send takes whole."""

    __slots__ = ("_rest", "sock")

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self._rest = b""

    @classmethod
    def pair(cls) -> tuple[Channel, Channel]:
        ours, theirs = socket.socketpair()
        return cls(ours), cls(theirs)

    def fileno(self) -> int:
        return self.sock.fileno()

    def send(self, word: str) -> None:
        """Say it, if somebody is still there to hear it; never waits."""
        with contextlib.suppress(OSError):
            self.sock.send(word.encode("ascii", "replace") + b"\n", socket.MSG_DONTWAIT)

    def receive(self) -> list[str] | None:
        """The words that have come, after waiting for one; None when the other end is closed."""
        try:
            data = self.sock.recv(_READ_BYTES)
        except OSError:  # reset: closed with words unread
            data = b""
        if not data:
            return None
        *lines, self._rest = (self._rest + data).split(b"\n")
        return [line.decode("ascii", "replace") for line in lines]

    def close(self) -> None:
        self.sock.close()
