"""Listening sockets: bind or adopt them, accept from them, pause them, close them.

    open_listeners(config)      where from: the server before us, else systemd, else --fd, else --uds, else --bind,
                                else --host and --port
        parse_bind              "host:port", "unix:/path", "fd://3" -> TcpAddress | UnixAddress | FdAddress
        address.open            -> Listener for each socket; an address that cannot be had is one clear BindError
    Listener                    start (pause | resume | accept_pending)* close

Facts that shape it. Of several listeners either all are opened or none. `accept` is told of errors that belong to one
connection, which are skipped, and of errors that stay, such as having no descriptor left: the poll would report the
listener again at once and for ever, so such an error pauses the listener for a second. A listener may be shared with
other processes, so the connection that the poll reported may be gone.

It does not know what a connection is for: TLS, limits and HTTP are the business of whoever takes the accepted socket.
Protocols: systemd socket activation (sd_listen_fds(3)), Linux accept(2), unix(7), ip(7), tcp(7).
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import logging
import os
import re
import socket
import stat
import sys
from collections.abc import Callable, Iterable, Iterator, MutableMapping
from selectors import EVENT_READ
from typing import TYPE_CHECKING, Any, NamedTuple

from ..errors import BindError
from .holder import holder_of_tcp, holder_of_unix

if TYPE_CHECKING:
    from ..config import Config
    from .loop import Loop, Timer

Peer = tuple[str, int]
OnAccept = Callable[[socket.socket, Peer | None, "Listener"], object]
OnExhausted = Callable[[OSError], object]

logger = logging.getLogger("stdserve.error")

# Connections taken in one turn of the loop: those that are established wait for the length of this many accepts (64 of
# about 10 us each).
ACCEPTS_PER_TURN = 64

# And if other processes accept from the same socket: whoever takes a rush for itself has to serve it, too. With 64 two
# workers under 32 connections answered no more than one, for one of them had all; with 1 twice as many.
SHARED_ACCEPTS_PER_TURN = 1

# How long a listener rests when accept fails with an error that stays. asyncio takes 1 s, nginx 0.5 s, Go up to 1 s:
# long enough to cost nothing, short enough that a client which waits in the queue does not give up.
RETRY_SECONDS = 1.0

# The reasons to pause that are known here; the caller may invent more.
EXHAUSTED = "exhausted"
CLOSED = "closed"

# Several addresses of one host name get the same port when the kernel chooses it. The port that is free on one address
# can be taken on the next: then all of them start again.
SAME_PORT_TRIES = 8


def _errnos(*names: str) -> frozenset[int]:
    """The numbers of those errors that the platform has."""
    return frozenset(getattr(errno, name) for name in names if hasattr(errno, name))


# accept(2), "Error handling": Linux hands over errors that are pending on the new connection; treat them like EAGAIN by
# retrying. EPROTO and ECONNABORTED: the peer has gone while it was queued. EPERM: a firewall rule forbids it.
ONE_CONNECTION_LOST = _errnos(
    "ECONNABORTED", "ECONNRESET", "EHOSTDOWN", "EHOSTUNREACH", "EINTR", "ENETDOWN", "ENETUNREACH", "ENONET"
) | _errnos("ENOPROTOOPT", "EOPNOTSUPP", "EPERM", "EPROTO")
OUT_OF_ROOM = _errnos("EMFILE", "ENFILE", "ENOBUFS", "ENOMEM")
NO_IPV6 = _errnos("EADDRNOTAVAIL", "EAFNOSUPPORT", "EPROTONOSUPPORT")

AF_UNIX: int | None = getattr(socket, "AF_UNIX", None)

# sun_path of unix(7) holds 108 bytes on Linux and 104 on BSD and macOS, the last one for the final NUL.
UNIX_PATH_BYTES = 107 if sys.platform == "linux" else 103

# An accepted socket has the TCP_NODELAY of its listener on Linux; elsewhere this is not promised.
NODELAY_INHERITED = sys.platform == "linux"


# ---- the accepting side


class Listener:
    """One listening socket in one loop. Order of calls: `start (pause | resume | accept_pending)* close`.

    Immutable: sock, name (of LISTEN_FDNAMES, else empty), scheme, backlog, is_unix, and server, the real address as
    (host, port) or (path, None). The rest belongs to the loop thread.
    """

    __slots__ = (
        "_accepts_per_turn", "_file", "_loop", "_on_accept", "_on_exhausted", "_paused", "_timer", "_watched",
        "backlog", "is_unix", "name", "place", "reserved", "scheme", "server", "sock",
    )  # fmt: skip

    def __init__(
        self,
        sock: socket.socket,
        *,
        name: str = "",
        scheme: str = "http",
        backlog: int = 2048,
        file: SocketFile | None = None,
        reserved: bool = False,
        place: str = "",
    ) -> None:
        """`place` is the address as the configuration names it, `file` the unix socket's file if it is to be removed at
        close. `reserved`: it holds its address and does not listen, which `twin` does."""
        self.sock = sock
        self.name = name
        self.scheme = scheme
        self.backlog = backlog
        self.is_unix = sock.family == AF_UNIX
        self.server: tuple[str, int | None] = _real_address(sock)
        self.reserved = reserved
        self.place = place or _place(*self.server)
        self._accepts_per_turn = ACCEPTS_PER_TURN
        self._file = file
        self._loop: Loop | None = None
        self._on_accept: OnAccept  # not before start
        self._on_exhausted: OnExhausted | None = None
        self._paused: set[str] = set()
        self._watched = False
        self._timer: Timer | None = None

    @property
    def url(self) -> str:
        """The address as users read it: `http://127.0.0.1:8000` or `unix socket /run/app.sock`."""
        host, port = self.server
        return f"unix socket {host}" if port is None else f"{self.scheme}://{_host_port(host, port)}"

    def twin(self, config: Config) -> Listener:
        """Another socket that listens on the same address (SO_REUSEPORT)."""
        sock = _listen_tcp(self.sock.family, self.sock.getsockname(), dataclasses.replace(config, workers=None))
        return Listener(sock, name=self.name, scheme=self.scheme, backlog=self.backlog)

    def own_file(self) -> None:
        """Have the unix socket's file, which somebody else has made, removed at close."""
        path = self.server[0]
        if self.is_unix and path[:1] not in ("", "@"):
            with contextlib.suppress(OSError):
                self._file = SocketFile.made_at(path)

    def __repr__(self) -> str:
        return f"<Listener {self.url}{''.join(f' {reason}' for reason in sorted(self._paused))}>"

    def start(
        self, loop: Loop, on_accept: OnAccept, on_exhausted: OnExhausted | None = None, *, shared: bool = False
    ) -> None:
        """Accept from now on. Each connection is given to `on_accept(sock, peer, self)`, which owns `sock` then.

        The socket is non-blocking, TCP has no delay. `peer` is (host, port), None for a unix socket.
        `on_exhausted(error)` is called when there is no descriptor or memory for another connection, once a second as
        long as this lasts; without it an error line is logged. `shared`: other processes accept from the socket, too.
        """
        self._accepts_per_turn = SHARED_ACCEPTS_PER_TURN if shared else ACCEPTS_PER_TURN
        self._loop = loop
        self._on_accept = on_accept
        self._on_exhausted = on_exhausted
        self._update()

    def pause(self, reason: str) -> None:
        """Leave new connections in the kernel's queue until each reason given has been taken back."""
        self._paused.add(reason)
        self._update()

    def resume(self, reason: str) -> None:
        """Take a reason back; one that was not given is no error."""
        if reason == EXHAUSTED:
            self._cancel_timer()
        self._paused.discard(reason)
        self._update()

    def accept_pending(self) -> None:
        """Accept what the kernel has queued now, paused or not: what is still queued at close() gets a reset."""
        if self._loop is None:
            return
        for _ in range(max(self.backlog, ACCEPTS_PER_TURN)):
            if CLOSED in self._paused or not self._accept_one():
                return

    def close(self, *, keep_file: bool = False) -> None:
        """Stop listening; may be repeated. `keep_file`: another process has the socket too and needs its file."""
        if CLOSED in self._paused:
            return
        self.pause(CLOSED)
        self._cancel_timer()
        # The file goes first: as long as the socket is open its inode number is not given to another file.
        if self._file is not None and not keep_file:
            self._file.remove()
        self.sock.close()

    def _update(self) -> None:
        """Watch the socket or not, as the reasons to pause want it."""
        wanted = not self._paused
        if self._loop is None or wanted is self._watched:
            return
        self._watched = wanted
        if wanted:
            self._loop.watch(self.sock, EVENT_READ, self._on_ready)
        else:
            self._loop.unwatch(self.sock)

    def _on_ready(self, _mask: int) -> None:
        for _ in range(self._accepts_per_turn):
            # Looked at each time: on_accept may pause or close us, and another handler may have done so in this turn.
            if self._paused or not self._accept_one():
                return

    def _accept_one(self) -> bool:
        """Whether another connection may be waiting."""
        try:
            sock, address = self.sock.accept()
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno in ONE_CONNECTION_LOST:
                return True
            self._rest(error)
            return False
        self._hand_over(sock, address)
        return True

    def _hand_over(self, sock: socket.socket, address: Any) -> None:
        peer: Peer | None = None
        try:
            sock.setblocking(False)
            if not self.is_unix:
                # macOS gives no address for a TCP peer that has gone. It must not pass for a unix peer.
                if not address:
                    sock.close()
                    return
                peer = address[:2]
                if not NODELAY_INHERITED:
                    _set_nodelay(sock)
            self._on_accept(sock, peer, self)
        except Exception:
            # The border of the loop's callbacks: the connections behind this one shall not suffer.
            logger.exception("a connection accepted on %s could not be served", self.url)
            sock.close()

    def _rest(self, error: OSError) -> None:
        """Accept fails and would fail again at once: try again later."""
        self._cancel_timer()
        self.pause(EXHAUSTED)
        if self._loop is not None:
            self._timer = self._loop.call_later(RETRY_SECONDS, self.resume, EXHAUSTED)
        if self._on_exhausted is None or error.errno not in OUT_OF_ROOM:
            logger.error("accept on %s fails, next try in %g s: %s", self.url, RETRY_SECONDS, error.strerror or error)
            return
        try:
            self._on_exhausted(error)
        except Exception:
            # The loop gives up the descriptor of a handler that fails; this one must stay.
            logger.exception("making room for connections on %s failed", self.url)

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def _real_address(sock: socket.socket) -> tuple[str, int | None]:
    address = sock.getsockname()
    if sock.family == AF_UNIX:
        # unix(7): the name of an abstract socket starts with a NUL; Python gives it as bytes
        path = os.fsdecode(address)
        return ("@" + path[1:] if path.startswith("\0") else path), None
    return address[0], address[1]


def _place(host: str, port: int | None) -> str:
    return f"unix:{host}" if port is None else _host_port(host, port)


def _host_port(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _set_nodelay(sock: socket.socket) -> None:
    # macOS refuses every option (EINVAL) once the peer has gone; the first read will tell.
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


# ---- where the listeners come from


def open_listeners(
    config: Config,
    environ: MutableMapping[str, str] = os.environ,
    pid: int | None = None,
    *,
    inherited: Iterable[int] = (),
    kept: Iterable[Listener] = (),
    scheme: str = "http",
) -> list[Listener]:
    """Open all listeners that are asked for, or none and raise BindError. `pid` is that of this process.

    `inherited` are descriptors of the server that this one is to replace. Of `kept`, listeners that are open already,
    those that are asked for again are taken as they are.

    The variables of systemd socket activation are removed from `environ`, so that no child takes them for its own.
    """
    activated = _systemd_addresses(environ, os.getpid() if pid is None else pid)
    addresses = [FdAddress(number, takes_over=True) for number in inherited] or activated
    addresses = addresses or _configured_addresses(config)
    _check_fds_differ(addresses)
    listeners: list[Listener] = []
    opened: list[Listener] = []
    with _all_or_none(opened):
        for address in addresses:
            known = [each for each in kept if each.place == address.place]
            new = [] if known else address.open(config, scheme)
            opened += new
            listeners += known or new
    return listeners


def parse_bind(entry: str, default_port: int = 8000) -> Address:
    """`host:port` `host` `:port` `[v6]:port` `tcp://host:port` `unix:/path` `unix:@name` `fd://3`; else BindError."""
    scheme, separator, rest = entry.partition("://")
    if entry.startswith("unix:"):
        return UnixAddress(entry.removeprefix("unix:").removeprefix("//"), "--bind")
    if separator and scheme == "fd":
        return FdAddress(_number(rest, 2**31 - 1, f"bind {entry!r}: file descriptor"))
    if separator and scheme != "tcp":
        raise BindError(f"bind {entry!r} has an unknown scheme: use host:port, unix:/path or fd://N")
    return _parse_host_port(entry, rest if separator else entry, default_port)


def _parse_host_port(entry: str, text: str, default_port: int) -> TcpAddress:
    bracketed = re.fullmatch(r"\[([^\[\]]*+)\](?::(.*+))?+", text)
    if bracketed:
        host, port = bracketed.groups()
    elif text.count(":") > 1 or "[" in text or "]" in text:
        raise BindError(f"bind {entry!r}: write an IPv6 address in brackets, as [::1]:{default_port}")
    else:
        host, separator, rest = text.partition(":")
        port = rest if separator else None
    number = default_port if port is None else _number(port, 65535, f"bind {entry!r}: port")
    return TcpAddress(host, number, "--bind")


def _number(text: str, limit: int, what: str) -> int:
    # int() alone takes signs, blanks, underscores and digits that are not ASCII
    if not re.fullmatch(r"[0-9]{1,10}", text) or int(text) > limit:
        raise BindError(f"{what} {text!r} is not a number from 0 to {limit}")
    return int(text)


def _configured_addresses(config: Config) -> list[Address]:
    if config.fd is not None:
        return [FdAddress(config.fd)]
    if config.uds:
        return [UnixAddress(config.uds, "--uds")]
    if config.bind:
        return [parse_bind(entry, config.port) for entry in config.bind]
    host = config.host
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    return [TcpAddress(host, config.port, "--port")]


def _systemd_addresses(environ: MutableMapping[str, str], pid: int) -> list[Address]:
    """sd_listen_fds(3): LISTEN_FDS descriptors from 3 on are for the process whose pid LISTEN_PID names."""
    if environ.get("LISTEN_PID") != str(pid):
        return []
    # LISTEN_PIDFDID goes with LISTEN_PID since systemd 258.
    keys = ("LISTEN_PID", "LISTEN_PIDFDID", "LISTEN_FDS", "LISTEN_FDNAMES")
    *_, count, names = [environ.pop(key, "") for key in keys]
    first = 3
    last = first + _number(count, 65535, "LISTEN_FDS in the environment") - 1
    named = dict(enumerate(names.split(":"), first)) if names else {}
    return [FdAddress(number, named.get(number, "")) for number in range(first, last + 1)]


def _check_fds_differ(addresses: Iterable[Address]) -> None:
    numbers = [address.number for address in addresses if isinstance(address, FdAddress)]
    if len(set(numbers)) < len(numbers):
        twice = next(number for number in numbers if numbers.count(number) > 1)
        raise BindError(f"file descriptor {twice} is given twice: name each --bind fd://N once")


@contextlib.contextmanager
def _all_or_none(listeners: list[Listener]) -> Iterator[None]:
    try:
        yield
    except BaseException:
        for listener in listeners:
            listener.close()
        raise


# ---- TCP


class TcpAddress(NamedTuple):
    """A host name, address or "" for all interfaces; `option` is the one that a message tells the user to change."""

    host: str
    port: int
    option: str = "--bind"

    @property
    def place(self) -> str:
        return _place(self.host, self.port)

    def open(self, config: Config, scheme: str) -> list[Listener]:
        """A listener for each address that the host has."""
        if not 0 <= self.port <= 65535:
            raise BindError(f"port {self.port} is not a number from 0 to 65535: choose another {self.option}")
        if config.reuse_port and not hasattr(socket, "SO_REUSEPORT"):
            raise BindError("this platform has no SO_REUSEPORT: start without --reuse-port")
        addresses = self._resolve()
        tries = SAME_PORT_TRIES if self.port == 0 and len(addresses) > 1 else 1
        while True:
            tries -= 1
            try:
                return self._open_each(addresses, config, scheme)
            except BindError as error:
                if tries == 0 or getattr(error.__cause__, "errno", None) != errno.EADDRINUSE:
                    raise

    def _resolve(self) -> list[tuple[int, Any]]:
        """(family, socket address) of the host, in the order of the resolver, each once."""
        try:
            found = socket.getaddrinfo(self.host or None, self.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        except (OSError, ValueError) as error:
            # ValueError: a NUL, or a label that is empty or too long for IDNA
            reason = getattr(error, "strerror", None) or error
            raise BindError(f"host {self.host!r} cannot be resolved, check its spelling: {reason}") from error
        families = [socket.AF_INET, socket.AF_INET6] if socket.has_ipv6 else [socket.AF_INET]
        return list(dict.fromkeys((family, address) for family, _, _, _, address in found if family in families))

    def _open_each(self, addresses: list[tuple[int, Any]], config: Config, scheme: str) -> list[Listener]:
        listeners: list[Listener] = []
        port = self.port
        missing: OSError | None = None
        with _all_or_none(listeners):
            for family, (host, _, *scope) in addresses:
                try:
                    sock = _listen_tcp(family, (host, port, *scope), config)
                except OSError as error:
                    # "localhost" has an IPv6 address also where the kernel has no IPv6
                    if family == socket.AF_INET6 and len(addresses) > 1 and error.errno in NO_IPV6:
                        missing = error
                        continue
                    raise self._refusal(error, host, port) from error
                reserved = _reserves(config)
                listener = Listener(sock, scheme=scheme, backlog=config.backlog, reserved=reserved, place=self.place)
                listeners.append(listener)
                port = sock.getsockname()[1]
        if not listeners:
            raise BindError(f"host {self.host!r} has no address that this machine can listen on") from missing
        return listeners

    def _refusal(self, error: OSError, host: str, port: int) -> BindError:
        where = _host_port(host, port)
        if error.errno == errno.EADDRINUSE:
            holder = holder_of_tcp(host, port)
            return BindError(f"{where} is already in use by {holder}: stop it or choose another {self.option}")
        if error.errno == errno.EADDRNOTAVAIL:
            return BindError(f"cannot listen on {where}: {host} is not an address of this machine, choose another host")
        if error.errno == errno.EACCES and port < 1024:
            return BindError(
                f"no permission to listen on {where}: a port below 1024 needs root or CAP_NET_BIND_SERVICE, "
                f"or choose another {self.option}"
            )
        return BindError(f"cannot listen on {where}: {error.strerror or error}")


def _listen_tcp(family: int, address: Any, config: Config) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        # Without it the port cannot be had while connections of the last run are in TIME-WAIT. On Windows the option
        # means something else: it would let two servers have the same port.
        if os.name == "posix":
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if config.reuse_port:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        # The system's default differs; with 0 the socket would also take the port of the IPv4 address.
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        _set_nodelay(sock)
        sock.setblocking(False)
        sock.bind(address)
        if not _reserves(config):
            sock.listen(config.backlog)
    except BaseException:
        sock.close()
        raise
    return sock


def _reserves(config: Config) -> bool:
    """With --reuse-port each worker listens on a socket of its own: the supervisor's only holds the address."""
    return config.reuse_port and config.workers is not None


# ---- unix sockets


class SocketFile(NamedTuple):
    """The file that our bind made: it is ours as long as the path leads to this inode, and only in this process.

    A child that inherits the listener closes it too, and must leave the file.
    """

    path: str
    device: int
    inode: int
    pid: int

    @classmethod
    def made_at(cls, path: str) -> SocketFile:
        status = os.lstat(path)
        return cls(os.path.abspath(path), status.st_dev, status.st_ino, os.getpid())

    def remove(self) -> None:
        """Remove the file if it is still ours."""
        if os.getpid() != self.pid:
            return
        with contextlib.suppress(OSError):
            status = os.lstat(self.path)
            if (status.st_dev, status.st_ino) == (self.device, self.inode):
                os.unlink(self.path)


class UnixAddress(NamedTuple):
    """A path, or `@name` for an abstract socket of Linux (unix(7)), which has no file and no permissions."""

    path: str
    option: str = "--bind"

    @property
    def place(self) -> str:
        return _place(self.path, None)

    def open(self, config: Config, scheme: str) -> list[Listener]:
        self._check()
        abstract = self.path[0] in "@\0"
        with contextlib.ExitStack() as undo:
            try:
                sock = undo.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
                sock.setblocking(False)
                file = None
                if abstract:
                    sock.bind("\0" + self.path[1:])
                else:
                    self._remove_stale()
                    _bind_with_mode(sock, self.path, config.uds_permissions)
                    file = SocketFile.made_at(self.path)
                    undo.callback(file.remove)
                    os.chmod(self.path, config.uds_permissions)  # exactly: the umask can only take bits away
                sock.listen(config.backlog)
            except OSError as error:
                raise self._refusal(error) from error
            undo.pop_all()
        return [Listener(sock, scheme=scheme, backlog=config.backlog, file=file, place=self.place)]

    @property
    def _display(self) -> str:
        return "unix socket " + self.path.replace("\0", "@")

    def _check(self) -> None:
        """What the kernel would refuse with less clear words."""
        if AF_UNIX is None:
            raise BindError(f"this platform has no unix sockets: start without {self.option} {self.path}")
        if not self.path or "\0" in self.path[1:]:
            raise BindError(f"unix socket path {self.path!r} is empty or contains NUL: choose another {self.option}")
        size = len(os.fsencode(self.path))
        if size > UNIX_PATH_BYTES:
            raise BindError(f"{self._display}: the path has {size} bytes, the system allows {UNIX_PATH_BYTES}")
        if self.path[0] in "@\0":
            if sys.platform != "linux":
                raise BindError(f"{self._display}: only Linux has abstract sockets, use ./{self.path} for a file")
            return
        directory = os.path.dirname(self.path)
        if directory and not os.path.isdir(directory):
            raise BindError(f"{self._display}: the directory {directory} does not exist, create it first")

    def _remove_stale(self) -> None:
        """Remove the socket file of a server that has died; BindError if it is anything else."""
        try:
            mode = os.lstat(self.path).st_mode
        except FileNotFoundError:
            return
        if not stat.S_ISSOCK(mode):
            raise BindError(
                f"{self._display}: the file exists and is no socket, remove it or choose another {self.option}"
            )
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.setblocking(False)  # a connect to a server whose queue is full would wait
            code = probe.connect_ex(self.path)
        # unix(7): ECONNREFUSED if nobody listens there, EAGAIN if the queue is full, EPROTOTYPE for a datagram socket
        if code == errno.ECONNREFUSED:
            os.unlink(self.path)
        elif code in (0, errno.EAGAIN, errno.EINPROGRESS, errno.EPROTOTYPE):
            raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
        elif code != errno.ENOENT:
            raise OSError(code, os.strerror(code))

    def _refusal(self, error: OSError) -> BindError:
        if error.errno == errno.EADDRINUSE:
            holder = holder_of_unix(self.path)
            return BindError(f"{self._display} is already in use by {holder}: stop it or choose another {self.option}")
        if error.errno in (errno.EACCES, errno.EPERM):
            return BindError(f"no permission to listen on {self._display}: check the owner and mode of its directory")
        return BindError(f"cannot listen on {self._display}: {error.strerror or error}")


def _bind_with_mode(sock: socket.socket, path: str, mode: int) -> None:
    """bind() makes the file with mode 0777 less the umask: with the right umask it is never more open than asked."""
    umask = os.umask(~mode & 0o777)
    try:
        sock.bind(path)
    finally:
        os.umask(umask)


# ---- sockets that another program has opened


class FdAddress(NamedTuple):
    """A descriptor that this process was started with. `takes_over`: by a server of our kind, whose place we take."""

    number: int
    name: str = ""
    takes_over: bool = False

    @property
    def place(self) -> str:
        return f"fd://{self.number}"

    def open(self, config: Config, scheme: str) -> list[Listener]:
        reserved = self.takes_over and _reserves(config)
        listener = adopt(self.number, name=self.name, scheme=scheme, backlog=config.backlog, reserved=reserved)
        if self.takes_over:
            listener.own_file()
        else:
            listener.place = self.place
        return [listener]


Address = TcpAddress | UnixAddress | FdAddress


def adopt(
    number: int, *, name: str = "", scheme: str = "http", backlog: int = 2048, reserved: bool = False
) -> Listener:
    """The listener on an inherited descriptor, which it owns from now on; BindError leaves the descriptor open."""
    try:
        os.fstat(number)  # first: socket() cuts a number that is too large and would take another descriptor
        # Not socket.fromfd(): it would leave a second descriptor open.
        sock = socket.socket(fileno=number)
    except (OSError, ValueError, OverflowError) as error:
        if getattr(error, "errno", None) == errno.ENOTSOCK:
            raise BindError(f"file descriptor {number} is not a socket: pass a listening one") from error
        raise BindError(f"file descriptor {number} is not open: pass a listening socket under this number") from error
    fault = _adoption_fault(sock, reserved)
    if fault:
        sock.detach()
        raise BindError(f"file descriptor {number} is not a listening stream socket: {fault}")
    sock.set_inheritable(False)
    sock.setblocking(False)
    if sock.family != AF_UNIX:
        _set_nodelay(sock)
    return Listener(sock, name=name, scheme=scheme, backlog=backlog, reserved=reserved)


def _adoption_fault(sock: socket.socket, reserved: bool) -> str:
    # socket() gives numbers where Python has no name
    if sock.family not in (socket.AF_INET, socket.AF_INET6, AF_UNIX):
        return f"its address family is {getattr(sock.family, 'name', sock.family)}"
    if sock.type != socket.SOCK_STREAM:
        return f"its type is {getattr(sock.type, 'name', sock.type)}"
    # socket(7); systems that have the name but not the option answer with an error
    if not reserved and hasattr(socket, "SO_ACCEPTCONN"):
        with contextlib.suppress(OSError):
            if not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                return "nobody has called listen() on it"
    return ""
