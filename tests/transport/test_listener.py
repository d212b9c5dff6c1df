from __future__ import annotations

import contextlib
import errno
import logging
import os
import selectors
import signal
import socket
import stat
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from stdserve.errors import BindError
from stdserve.transport import holder
from stdserve.transport import listener as listener_module
from stdserve.transport.listener import (
    ACCEPTS_PER_TURN,
    EXHAUSTED,
    FdAddress,
    Listener,
    TcpAddress,
    UnixAddress,
    adopt,
    open_listeners,
    parse_bind,
)

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="a matter of Linux")
not_root = pytest.mark.skipif(os.geteuid() == 0, reason="root is refused nothing")
WAIT_SECONDS = 10.0


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as sock:
            sock.bind(("::1", 0))
    except OSError:
        return False
    return True


needs_ipv6 = pytest.mark.skipif(not has_ipv6(), reason="no IPv6 here")


class FakeTimer:
    def __init__(self, seconds: float, callback: Callable[..., object], args: tuple[Any, ...]) -> None:
        self.seconds = seconds
        self.callback = callback
        self.args = args
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


class FakeTime:
    """The timers of a loop; time is moved by hand."""

    def __init__(self) -> None:
        self.timers: list[FakeTimer] = []

    def call_later(self, seconds: float, callback: Callable[..., object], *args: Any) -> FakeTimer:
        self.timers.append(FakeTimer(seconds, callback, args))
        return self.timers[-1]

    def fire_timers(self) -> None:
        timers, self.timers = self.timers, []
        for timer in timers:
            if not timer.cancelled:
                timer.callback(*timer.args)


class FakeLoop(FakeTime):
    """A loop that polls when it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.selector = selectors.DefaultSelector()

    def watch(self, sock: Any, events: int, handler: Callable[[int], object]) -> None:
        self.selector.register(sock, events, handler)

    def unwatch(self, sock: Any) -> None:
        self.selector.unregister(sock)

    def turn(self, timeout: float = WAIT_SECONDS) -> int:
        """One poll; how many handlers were called."""
        ready = self.selector.select(timeout)
        for key, mask in ready:
            key.data(mask)
        return len(ready)

    @property
    def watched(self) -> list[Any]:
        return [key.fileobj for key in self.selector.get_map().values()]


class FakeSocket:
    """A listening socket whose accept does what the list says: an exception or a connection."""

    family = socket.AF_INET

    def __init__(self, *results: Any) -> None:
        self.results = list(results)
        self.closed = False
        self.accepts = 0

    def getsockname(self) -> tuple[str, int]:
        return "127.0.0.1", 8000

    def accept(self) -> Any:
        self.accepts += 1
        result = self.results.pop(0) if self.results else BlockingIOError(errno.EAGAIN, "again")
        if isinstance(result, OSError):
            raise result
        return result

    def close(self) -> None:
        self.closed = True


class FakeWatch(FakeTime):
    """A loop for FakeSocket, which has no descriptor to poll: keeps the handler."""

    def __init__(self) -> None:
        super().__init__()
        self.handler: Callable[[int], object] | None = None

    def watch(self, sock: Any, events: int, handler: Callable[[int], object]) -> None:
        assert self.handler is None, "watched twice"
        self.handler = handler

    def unwatch(self, sock: Any) -> None:
        assert self.handler is not None, "unwatched twice"
        self.handler = None

    def ready(self) -> None:
        assert self.handler is not None
        self.handler(selectors.EVENT_READ)


class Accepted:
    """Keeps what a listener hands over."""

    def __init__(self) -> None:
        self.sockets: list[socket.socket] = []
        self.peers: list[tuple[str, int] | None] = []

    def __call__(self, sock: socket.socket, peer: tuple[str, int] | None, listener: Listener) -> None:
        self.sockets.append(sock)
        self.peers.append(peer)

    def close(self) -> None:
        for sock in self.sockets:
            sock.close()


def config(**options: Any) -> Any:
    defaults: dict[str, Any] = {
        "host": "127.0.0.1",
        "port": 0,
        "bind": (),
        "uds": "",
        "uds_permissions": 0o666,
        "fd": None,
        "backlog": 2048,
        "reuse_port": False,
        "workers": None,
    }
    return SimpleNamespace(**(defaults | options))


@pytest.fixture
def scope() -> Iterator[contextlib.ExitStack]:
    with contextlib.ExitStack() as stack:
        yield stack


@pytest.fixture
def loop(scope: contextlib.ExitStack) -> FakeLoop:
    fake = FakeLoop()
    scope.callback(fake.selector.close)
    return fake


@pytest.fixture
def accepted(scope: contextlib.ExitStack) -> Accepted:
    kept = Accepted()
    scope.callback(kept.close)
    return kept


@pytest.fixture
def opened(scope: contextlib.ExitStack) -> Callable[..., list[Listener]]:
    def open_these(environ: dict[str, str] | None = None, **options: Any) -> list[Listener]:
        listeners = open_listeners(config(**options), {} if environ is None else environ)
        for listener in listeners:
            scope.callback(listener.close)
        return listeners

    return open_these


@pytest.fixture
def connect(scope: contextlib.ExitStack) -> Callable[[Listener], socket.socket]:
    def connect_to(listener: Listener) -> socket.socket:
        client = scope.enter_context(socket.socket(listener.sock.family, socket.SOCK_STREAM))
        client.settimeout(WAIT_SECONDS)
        client.connect(listener.sock.getsockname())
        return client

    return connect_to


@pytest.fixture
def folder(scope: contextlib.ExitStack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Short paths whatever the name of the temporary directory is."""
    monkeypatch.chdir(tmp_path)
    return Path(".")


def refusal(environ: dict[str, str] | None = None, **options: Any) -> str:
    with pytest.raises(BindError) as caught:
        open_listeners(config(**options), {} if environ is None else environ)
    message = str(caught.value)
    assert "\n" not in message
    return message


def listening_socket(scope: contextlib.ExitStack, host: str = "127.0.0.1") -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = scope.enter_context(socket.socket(family, socket.SOCK_STREAM))
    sock.bind((host, 0))
    sock.listen()
    return sock


def option(sock: socket.socket, level: int, name: int) -> int:
    return sock.getsockopt(level, name)


# ---- the forms of --bind


@pytest.mark.parametrize(
    ("entry", "address"),
    [
        ("127.0.0.1:80", TcpAddress("127.0.0.1", 80)),
        ("example.org", TcpAddress("example.org", 9000)),
        (":80", TcpAddress("", 80)),
        ("", TcpAddress("", 9000)),
        ("[::1]:80", TcpAddress("::1", 80)),
        ("[::1]", TcpAddress("::1", 9000)),
        ("tcp://127.0.0.1:80", TcpAddress("127.0.0.1", 80)),
        ("tcp://[::]:0", TcpAddress("::", 0)),
        ("unix:/run/a.sock", UnixAddress("/run/a.sock")),
        ("unix:///run/a.sock", UnixAddress("/run/a.sock")),
        ("unix:a.sock", UnixAddress("a.sock")),
        ("unix:@name", UnixAddress("@name")),
        ("fd://3", FdAddress(3)),
        ("fd://0", FdAddress(0)),
    ],
)
def test_bind_forms(entry: str, address: object) -> None:
    parsed = parse_bind(entry, 9000)
    assert (type(parsed), parsed) == (type(address), address)


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ("127.0.0.1:65536", "port '65536' is not a number from 0 to 65535"),
        ("127.0.0.1:+80", "port '+80' is not a number"),
        ("127.0.0.1:8_0", "port '8_0' is not a number"),
        ("127.0.0.1:", "port '' is not a number"),
        ("127.0.0.1:٣", "port '٣' is not a number"),
        ("127.0.0.1:" + "9" * 5000, "is not a number"),
        ("::1:80", "write an IPv6 address in brackets"),
        ("::", "write an IPv6 address in brackets"),
        ("[::1]80", "write an IPv6 address in brackets"),
        ("http://127.0.0.1:80", "unknown scheme"),
        ("fd://x", "file descriptor 'x' is not a number"),
        ("fd://-1", "file descriptor '-1' is not a number"),
        ("fd://4294967299", "is not a number from 0 to 2147483647"),
    ],
)
def test_malformed_bind_is_refused(entry: str, said: str) -> None:
    with pytest.raises(BindError) as caught:
        parse_bind(entry)
    assert said in str(caught.value)
    assert repr(entry) in str(caught.value)


# ---- TCP


def test_host_and_port_give_one_listener(opened: Any) -> None:
    (listener,) = opened()
    host, port = listener.server
    assert host == "127.0.0.1"
    assert port == listener.sock.getsockname()[1] != 0
    assert listener.url == f"http://127.0.0.1:{port}"
    assert listener.is_unix is False
    assert listener.name == ""
    assert repr(listener) == f"<Listener http://127.0.0.1:{port}>"


def test_scheme_is_shown(scope: contextlib.ExitStack) -> None:
    (listener,) = open_listeners(config(), {}, scheme="https")
    scope.callback(listener.close)
    assert listener.url.startswith("https://127.0.0.1:")


def test_socket_options(opened: Any) -> None:
    (listener,) = opened()
    assert option(listener.sock, socket.IPPROTO_TCP, socket.TCP_NODELAY)
    assert option(listener.sock, socket.SOL_SOCKET, socket.SO_REUSEADDR)
    assert option(listener.sock, socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    assert listener.sock.getblocking() is False
    assert listener.sock.get_inheritable() is False


@needs_ipv6
@pytest.mark.parametrize("host", ["::1", "[::1]"])
def test_ipv6_host_is_ipv6_only(opened: Any, host: str) -> None:
    (listener,) = opened(host=host)
    assert listener.url == f"http://[::1]:{listener.server[1]}"
    assert option(listener.sock, socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)


@needs_ipv6
@pytest.mark.parametrize("options", [{"host": ""}, {"bind": (":0",)}])
def test_all_interfaces_share_one_chosen_port(opened: Any, options: Any) -> None:
    listeners = opened(**options)
    assert sorted(listener.server[0] for listener in listeners) == ["0.0.0.0", "::"]
    assert len({listener.server[1] for listener in listeners}) == 1


def resolver(monkeypatch: pytest.MonkeyPatch, *hosts: str) -> None:
    def getaddrinfo(host: str | None, port: int, **_: Any) -> list[Any]:
        found: list[Any] = []
        for address in hosts:
            if ":" in address:
                found.append((socket.AF_INET6, socket.SOCK_STREAM, 6, "", (address, port, 0, 0)))
            else:
                found.append((socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)))
        return found

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)


@needs_ipv6
def test_name_with_two_addresses_binds_both_to_one_port(opened: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    resolver(monkeypatch, "127.0.0.1", "::1", "127.0.0.1")
    first, second = opened(host="localhost")
    assert (first.server[0], second.server[0]) == ("127.0.0.1", "::1")
    assert first.server[1] == second.server[1]


@needs_ipv6
def test_chosen_port_taken_on_the_second_address_is_chosen_again(
    opened: Any, scope: contextlib.ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolver(monkeypatch, "127.0.0.1", "::1")
    listen_tcp = listener_module._listen_tcp
    tried: list[int] = []

    def first_choice_is_taken(family: int, address: Any, options: Any) -> socket.socket:
        if family == socket.AF_INET6:
            tried.append(address[1])
            if len(tried) == 1:
                raise OSError(errno.EADDRINUSE, "taken")
        return listen_tcp(family, address, options)

    monkeypatch.setattr(listener_module, "_listen_tcp", first_choice_is_taken)
    first, second = opened(host="localhost")
    assert len(tried) == 2
    assert first.server[1] == second.server[1] == tried[1]


def test_missing_ipv6_is_no_failure_where_ipv4_works(opened: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    resolver(monkeypatch, "2001:db8::1", "127.0.0.1")  # RFC 3849: nobody has this address
    (listener,) = opened(host="localhost")
    assert listener.server[0] == "127.0.0.1"


def test_name_with_no_usable_address_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    resolver(monkeypatch, "2001:db8::1", "2001:db8::2")
    assert refusal(host="localhost") == "host 'localhost' has no address that this machine can listen on"


@pytest.mark.parametrize("host", ["no-such-host.invalid", "a..b", "a\0b", "x" * 300])
def test_host_that_does_not_resolve_is_named(host: str) -> None:
    assert refusal(host=host).startswith(f"host {host!r} cannot be resolved, check its spelling: ")


@pytest.mark.parametrize("port", [-1, 65536])
def test_port_out_of_range(port: int) -> None:
    assert refusal(port=port) == f"port {port} is not a number from 0 to 65535: choose another --port"


def test_foreign_address_is_refused() -> None:
    # RFC 5737: 192.0.2.0/24 belongs to nobody
    message = refusal(host="192.0.2.1", port=8000)
    assert (
        message == "cannot listen on 192.0.2.1:8000: 192.0.2.1 is not an address of this machine, choose another host"
    )


def test_low_port_without_permission(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: Any) -> socket.socket:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(listener_module, "_listen_tcp", forbidden)
    assert refusal(port=80).startswith("no permission to listen on 127.0.0.1:80: a port below 1024 needs root")
    assert refusal(port=8080) == "cannot listen on 127.0.0.1:8080: Permission denied"


def test_reuse_port_lets_two_listen(opened: Any) -> None:
    if not hasattr(socket, "SO_REUSEPORT"):
        pytest.skip("the platform has no SO_REUSEPORT")
    (first,) = opened(reuse_port=True)
    (second,) = opened(reuse_port=True, port=first.server[1])
    assert second.server == first.server


def test_reuse_port_that_the_platform_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(socket, "SO_REUSEPORT", raising=False)
    assert refusal(reuse_port=True) == "this platform has no SO_REUSEPORT: start without --reuse-port"


@linux_only
def test_backlog_is_used(opened: Any) -> None:
    (listener,) = opened(backlog=7)
    info = listener.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104)
    # tcp(7), struct tcp_info: of a listening socket tcpi_sacked, the 6th word after 8 bytes, is the backlog
    assert struct.unpack_from("=8B7I", info)[8 + 5] == 7


def test_bind_entries_open_in_order(opened: Any, folder: Path) -> None:
    listeners = opened(bind=("127.0.0.1:0", "unix:a.sock", "127.0.0.1:0"), host="192.0.2.1")
    assert [listener.is_unix for listener in listeners] == [False, True, False]


def test_a_failing_entry_closes_those_before_it(scope: contextlib.ExitStack, folder: Path) -> None:
    taken = listening_socket(scope)
    free = listening_socket(scope)
    port = free.getsockname()[1]
    free.close()
    refusal(bind=(f"127.0.0.1:{port}", "unix:a.sock", f"127.0.0.1:{taken.getsockname()[1]}"))
    assert not os.path.lexists("a.sock")
    with socket.socket() as again:
        again.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        again.bind(("127.0.0.1", port))


def test_address_in_use_by_ourselves(scope: contextlib.ExitStack) -> None:
    port = listening_socket(scope).getsockname()[1]
    holder = "this process itself" if sys.platform == "linux" else "another process"
    assert refusal(port=port) == (f"127.0.0.1:{port} is already in use by {holder}: stop it or choose another --port")
    assert refusal(bind=(f"127.0.0.1:{port}",)).endswith("stop it or choose another --bind")


HOLDER = """
import socket, sys
family, address = eval(sys.argv[1])
sock = socket.socket(family)
if family == socket.AF_INET6:
    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
sock.bind(address)
sock.listen()
print(sock.getsockname()[1], flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def another_process(family: int, address: Any) -> Iterator[tuple[int, str]]:
    """A process that listens there, until the end of its standard input: its pid and port."""
    command = [sys.executable, "-S", "-c", HOLDER, repr((int(family), address))]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield process.pid, process.stdout.readline().strip()
        process.communicate(timeout=WAIT_SECONDS)


@linux_only
def test_holder_of_a_tcp_address_is_named() -> None:
    with another_process(socket.AF_INET, ("127.0.0.1", 0)) as (pid, port):
        message = refusal(port=int(port))
    assert message.startswith(f"127.0.0.1:{port} is already in use by python")
    assert message.endswith(f" (pid {pid}): stop it or choose another --port")


@linux_only
@needs_ipv6
def test_holder_of_all_interfaces_by_ipv6_is_named() -> None:
    with another_process(socket.AF_INET6, ("::", 0)) as (pid, port):
        assert f"(pid {pid})" in refusal(port=int(port))
        assert f"(pid {pid})" in refusal(host="0.0.0.0", port=int(port))


@linux_only
def test_holder_of_a_unix_path_is_named(folder: Path) -> None:
    with another_process(socket.AF_UNIX, "a b.sock") as (pid, _):
        message = refusal(uds="a b.sock")
    assert message.startswith("unix socket a b.sock is already in use by python")
    assert message.endswith(f" (pid {pid}): stop it or choose another --uds")


def test_holder_that_cannot_be_found_is_another_process() -> None:
    assert holder._holder([]) == "another process"
    assert holder._holder(["no-such-inode"]) == "another process"


@pytest.mark.skipif(sys.byteorder == "big", reason="the bytes of a little-endian machine")
@pytest.mark.parametrize(
    ("text", "host"),
    [
        ("0100007F", "127.0.0.1"),
        ("00000000", "0.0.0.0"),
        ("00000000000000000000000001000000", "::1"),
        ("0000000000000000FFFF00000100007F", "127.0.0.1"),
    ],
)
def test_proc_address(text: str, host: str) -> None:
    assert holder._proc_host(text) == host


# ---- unix sockets


def mode_of(path: str) -> int:
    return stat.S_IMODE(os.lstat(path).st_mode)


def test_unix_socket(opened: Any, folder: Path) -> None:
    (listener,) = opened(uds="a.sock", host="ignored.invalid")
    assert listener.is_unix is True
    assert listener.server == ("a.sock", None)
    assert listener.url == "unix socket a.sock"
    assert mode_of("a.sock") == 0o666
    listener.close()
    assert not os.path.lexists("a.sock")
    listener.close()


@pytest.mark.parametrize("permissions", [0o600, 0o660, 0o777])
def test_unix_permissions_hold_from_the_first_moment(
    opened: Any, folder: Path, permissions: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    before: list[int] = []
    chmod = os.chmod

    def look_and_chmod(path: str, mode: int) -> None:
        before.append(mode_of(path))
        chmod(path, mode)

    monkeypatch.setattr(os, "chmod", look_and_chmod)
    umask = os.umask(0o022)
    try:
        opened(uds="a.sock", uds_permissions=permissions)
        assert os.umask(0o022) == 0o022
    finally:
        os.umask(umask)
    assert before[0] & ~permissions == 0
    assert mode_of("a.sock") == permissions


def leave_stale(path: str) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(path)


def test_stale_socket_file_is_replaced(opened: Any, connect: Any, folder: Path) -> None:
    leave_stale("a.sock")
    (listener,) = opened(uds="a.sock", uds_permissions=0o600)
    assert mode_of("a.sock") == 0o600
    connect(listener)


def test_live_socket_is_left_alone(opened: Any, connect: Any, folder: Path) -> None:
    (listener,) = opened(uds="a.sock")
    assert refusal(bind=("unix:a.sock",)).startswith("unix socket a.sock is already in use by ")
    connect(listener)


def test_live_socket_with_a_full_queue_is_live(opened: Any, scope: contextlib.ExitStack, folder: Path) -> None:
    opened(uds="a.sock", backlog=0)
    for _ in range(4):
        client = scope.enter_context(socket.socket(socket.AF_UNIX))
        client.setblocking(False)
        client.connect_ex("a.sock")
    assert "already in use" in refusal(uds="a.sock")


def test_datagram_socket_is_left_alone(scope: contextlib.ExitStack, folder: Path) -> None:
    scope.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)).bind("a.sock")
    assert "already in use" in refusal(uds="a.sock")


def test_file_that_is_no_socket_is_left_alone(folder: Path) -> None:
    Path("a.sock").write_text("precious")
    assert refusal(uds="a.sock") == (
        "unix socket a.sock: the file exists and is no socket, remove it or choose another --uds"
    )
    assert Path("a.sock").read_text() == "precious"


def test_symbolic_link_is_left_alone(folder: Path) -> None:
    leave_stale("real.sock")
    Path("a.sock").symlink_to("real.sock")
    assert "is no socket" in refusal(uds="a.sock")
    assert os.path.islink("a.sock")


def test_file_of_another_server_is_not_removed(opened: Any, folder: Path) -> None:
    (listener,) = opened(uds="a.sock")
    leave_stale("b.sock")
    os.rename("b.sock", "a.sock")
    listener.close()
    assert os.path.lexists("a.sock")


def test_file_that_has_gone_is_no_error_at_close(opened: Any, folder: Path) -> None:
    (listener,) = opened(uds="a.sock")
    os.unlink("a.sock")
    listener.close()


def test_file_can_be_left_to_a_successor(opened: Any, folder: Path) -> None:
    (listener,) = opened(uds="a.sock")
    listener.close(keep_file=True)
    assert os.path.lexists("a.sock")


def test_file_is_removed_after_a_change_of_directory(
    opened: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    (listener,) = opened(uds="a.sock")
    monkeypatch.chdir(tmp_path / "elsewhere")
    listener.close()
    assert not (tmp_path / "a.sock").exists()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the platform has no fork")
def test_child_that_closes_leaves_the_file(opened: Any, connect: Any, folder: Path) -> None:
    (listener,) = opened(uds="a.sock")
    child = os.fork()
    if child == 0:
        try:
            signal.alarm(int(WAIT_SECONDS))
            listener.close()
        finally:
            os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    connect(listener)


def test_too_long_path(folder: Path) -> None:
    assert "the path has 200 bytes, the system allows 10" in refusal(uds="x" * 200)


def test_missing_directory(folder: Path) -> None:
    assert refusal(uds="none/a.sock") == "unix socket none/a.sock: the directory none does not exist, create it first"


@pytest.mark.parametrize("path", ["", "a\0b"])
def test_unusable_path(path: str) -> None:
    assert "is empty or contains NUL" in refusal(bind=(f"unix:{path}",))


@not_root
def test_directory_without_permission(folder: Path) -> None:
    Path("closed").mkdir(mode=0o500)
    assert refusal(uds="closed/a.sock").startswith("no permission to listen on unix socket closed/a.sock")


def test_failure_after_bind_removes_the_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: Any) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "chmod", forbidden)
    assert "no permission to listen on unix socket a.sock" in refusal(uds="a.sock")
    assert not os.path.lexists("a.sock")


@linux_only
@pytest.mark.parametrize("prefix", ["@", "\0"])
def test_abstract_socket(opened: Any, connect: Any, folder: Path, prefix: str) -> None:
    name = f"stdserve-test-{os.getpid()}"
    (listener,) = opened(bind=(f"unix:{prefix}{name}",))
    assert listener.server == (f"@{name}", None)
    assert listener.url == f"unix socket @{name}"
    connect(listener)
    assert refusal(uds=f"@{name}").startswith(f"unix socket @{name} is already in use by this process itself")
    assert os.listdir() == []


def test_platform_without_unix_sockets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener_module, "AF_UNIX", None)
    assert refusal(uds="a.sock") == "this platform has no unix sockets: start without --uds a.sock"


# ---- adopted descriptors


def handed_over(sock: socket.socket) -> int:
    """The descriptor as another program leaves it: blocking and inheritable."""
    sock.setblocking(True)
    sock.set_inheritable(True)
    return sock.detach()


def test_fd_is_adopted(opened: Any, connect: Any, scope: contextlib.ExitStack) -> None:
    sock = listening_socket(scope)
    server = sock.getsockname()
    number = handed_over(sock)
    (listener,) = opened(fd=number, bind=("192.0.2.1:1",))
    assert listener.sock.fileno() == number
    assert listener.server == server
    assert listener.sock.getblocking() is False
    assert os.get_blocking(number) is False
    assert os.get_inheritable(number) is False
    assert option(listener.sock, socket.IPPROTO_TCP, socket.TCP_NODELAY)
    connect(listener)


def test_adopted_unix_socket_keeps_its_file(opened: Any, folder: Path) -> None:
    sock = socket.socket(socket.AF_UNIX)
    sock.bind("a.sock")
    sock.listen()
    (listener,) = opened(bind=(f"fd://{handed_over(sock)}",))
    assert listener.server == ("a.sock", None)
    listener.close()
    assert os.path.lexists("a.sock")


def test_closed_descriptor_is_refused() -> None:
    with socket.socket() as sock:
        number = sock.fileno()
    assert refusal(fd=number).startswith(f"file descriptor {number} is not open")
    assert refusal(fd=-1).startswith("file descriptor -1 is not open")
    assert refusal(fd=2**40).startswith(f"file descriptor {2**40} is not open")


def test_descriptor_that_is_no_socket_is_refused_and_left_open(scope: contextlib.ExitStack) -> None:
    number, write_end = os.pipe()
    scope.callback(os.close, number)
    scope.callback(os.close, write_end)
    assert refusal(fd=number) == f"file descriptor {number} is not a socket: pass a listening one"
    os.fstat(number)


def test_socket_that_does_not_listen_is_refused_and_left_open(scope: contextlib.ExitStack) -> None:
    sock = scope.enter_context(socket.socket())
    sock.bind(("127.0.0.1", 0))
    assert "nobody has called listen() on it" in refusal(fd=sock.fileno())
    assert sock.getsockname()[0] == "127.0.0.1"


def test_datagram_socket_is_refused(scope: contextlib.ExitStack) -> None:
    sock = scope.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    assert "SOCK_DGRAM" in refusal(fd=sock.fileno())


def test_descriptor_given_twice_is_refused() -> None:
    assert refusal(bind=("fd://5", "fd://5")).startswith("file descriptor 5 is given twice")


def test_adopt_takes_a_name(scope: contextlib.ExitStack) -> None:
    listener = adopt(handed_over(listening_socket(scope)), name="web", scheme="https")
    scope.callback(listener.close)
    assert listener.name == "web"
    assert listener.url.startswith("https://")


def test_inherited_descriptors_win_and_own_the_socket_file(scope: contextlib.ExitStack, folder: Path) -> None:
    (old,) = open_listeners(config(bind=("unix:app.sock",)), {})
    number = os.dup(old.sock.fileno())
    (new,) = open_listeners(config(bind=("192.0.2.1:1",)), {}, inherited=[number])
    assert new.server == ("app.sock", None) and new.place == old.place
    old.close(keep_file=True)
    assert Path("app.sock").exists()
    new.close()
    assert not Path("app.sock").exists()


def test_inherited_address_that_is_only_held_is_taken_when_workers_listen_themselves(
    scope: contextlib.ExitStack,
) -> None:
    options = config(bind=("127.0.0.1:0",), reuse_port=True, workers=1)
    (old,) = open_listeners(options, {})
    scope.callback(old.close)
    (new,) = open_listeners(options, {}, inherited=[os.dup(old.sock.fileno())])
    scope.callback(new.close)
    assert new.reserved and new.server == old.server
    with pytest.raises(BindError, match="nobody has called listen"):
        open_listeners(config(fd=handed_over(new.sock.dup())), {})


def test_kept_listeners_are_not_opened_again(scope: contextlib.ExitStack) -> None:
    (old,) = open_listeners(config(bind=("127.0.0.1:0",)), {})
    scope.callback(old.close)
    both = open_listeners(config(bind=("unix:@stdserve-test-kept", "127.0.0.1:0")), {}, kept=[old])
    scope.callback(both[0].close)
    assert both[1] is old
    with pytest.raises(BindError):
        open_listeners(config(bind=("127.0.0.1:0", "unix:/no/folder/app.sock")), {}, kept=[old])
    assert old.sock.fileno() != -1


# ---- systemd: descriptors start at 3, so this takes a process of its own

ACTIVATED = """
import os, sys
from types import SimpleNamespace
from stdserve.errors import BindError
from stdserve.transport.listener import open_listeners
os.environ["LISTEN_PID"] = str(os.getpid())
config = SimpleNamespace(fd=None, uds="", bind=("192.0.2.1:1",), backlog=10, workers=None)
try:
    listeners = open_listeners(config)
    print([(listener.sock.fileno(), listener.name, listener.server[1]) for listener in listeners])
except BindError as error:
    print(error)
print(sorted(name for name in os.environ if name.startswith("LISTEN_")))
"""


def activated(sockets: list[socket.socket], **environ: str) -> list[str]:
    """What a process prints that has these sockets as 3, 4, ..."""
    # Through a shell, which is the one that can place a descriptor: 3<&N
    moves = " ".join(f"{number}<&{sock.fileno()}" for number, sock in enumerate(sockets, 3))
    done = subprocess.run(
        ["bash", "-c", f'exec "$0" -c "$1" {moves}', sys.executable, ACTIVATED],
        pass_fds=[sock.fileno() for sock in sockets],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join(sys.path)} | environ,
        stdout=subprocess.PIPE,
        text=True,
        timeout=WAIT_SECONDS,
        check=True,
    )
    return done.stdout.splitlines()


def high_sockets(scope: contextlib.ExitStack, count: int) -> list[socket.socket]:
    """Listening sockets with descriptors that the places from 3 on do not overwrite."""
    fcntl = pytest.importorskip("fcntl")
    sockets = []
    for _ in range(count):
        number = fcntl.fcntl(listening_socket(scope).fileno(), fcntl.F_DUPFD_CLOEXEC, 20)
        sockets.append(scope.enter_context(socket.socket(fileno=number)))
    return sockets


def test_systemd_sockets_replace_all_binds(scope: contextlib.ExitStack) -> None:
    first, second = high_sockets(scope, 2)
    listeners, left = activated([first, second], LISTEN_FDS="2", LISTEN_FDNAMES="web:admin", LISTEN_PIDFDID="1")
    assert listeners == repr([(3, "web", first.getsockname()[1]), (4, "admin", second.getsockname()[1])])
    assert left == "[]"


def test_systemd_sockets_need_no_names(scope: contextlib.ExitStack) -> None:
    (sock,) = high_sockets(scope, 1)
    listeners, _ = activated([sock], LISTEN_FDS="1")
    assert listeners == repr([(3, "", sock.getsockname()[1])])


def test_systemd_variables_for_another_process_are_left(opened: Any) -> None:
    environ = {"LISTEN_PID": str(os.getpid() + 1), "LISTEN_FDS": "1"}
    (listener,) = opened(environ)
    assert listener.server[0] == "127.0.0.1"
    assert len(environ) == 2


def test_systemd_with_no_descriptor_binds_as_configured(opened: Any) -> None:
    environ = {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "0"}
    assert opened(environ)[0].server[0] == "127.0.0.1"
    assert environ == {}


@pytest.mark.parametrize("count", ["", "x", "-1", "70000"])
def test_malformed_listen_fds_is_refused(count: str) -> None:
    environ = {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": count}
    assert refusal(environ) == f"LISTEN_FDS in the environment {count!r} is not a number from 0 to 65535"
    assert environ == {}


# ---- accepting


def test_accepted_socket_is_ready_for_use(opened: Any, connect: Any, loop: FakeLoop, accepted: Accepted) -> None:
    (listener,) = opened()
    listener.start(loop, accepted)
    client = connect(listener)
    loop.turn()
    assert accepted.peers == [client.getsockname()]
    assert accepted.sockets[0].getblocking() is False
    assert os.get_blocking(accepted.sockets[0].fileno()) is False
    assert option(accepted.sockets[0], socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_no_delay_is_set_where_it_is_not_inherited(
    opened: Any, connect: Any, loop: FakeLoop, accepted: Accepted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listener_module, "NODELAY_INHERITED", False)
    (listener,) = opened()
    listener.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 0)
    listener.start(loop, accepted)
    connect(listener)
    loop.turn()
    assert option(accepted.sockets[0], socket.IPPROTO_TCP, socket.TCP_NODELAY)


@needs_ipv6
def test_ipv6_peer_has_two_parts(opened: Any, connect: Any, loop: FakeLoop, accepted: Accepted) -> None:
    (listener,) = opened(host="::1")
    listener.start(loop, accepted)
    client = connect(listener)
    loop.turn()
    assert accepted.peers == [client.getsockname()[:2]]


def test_unix_peer_is_none(opened: Any, connect: Any, loop: FakeLoop, accepted: Accepted, folder: Path) -> None:
    (listener,) = opened(uds="a.sock")
    listener.start(loop, accepted)
    connect(listener)
    loop.turn()
    assert accepted.peers == [None]
    assert accepted.sockets[0].getblocking() is False


def test_one_turn_takes_one_of_a_shared_socket(
    opened: Any, connect: Any, loop: FakeLoop, accepted: Accepted
) -> None:
    (listener,) = opened()
    listener.start(loop, accepted, shared=True)
    for _ in range(3):
        connect(listener)
    for count in (1, 2, 3):
        loop.turn()
        assert len(accepted.sockets) == count


def test_one_turn_takes_a_bounded_number(opened: Any, connect: Any, loop: FakeLoop, accepted: Accepted) -> None:
    (listener,) = opened()
    listener.start(loop, accepted)
    for _ in range(ACCEPTS_PER_TURN + 3):
        connect(listener)
    loop.turn()
    assert len(accepted.sockets) == ACCEPTS_PER_TURN
    loop.turn()
    assert len(accepted.sockets) == ACCEPTS_PER_TURN + 3
    assert loop.turn(0) == 0


def test_failing_callback_costs_one_connection(
    opened: Any, connect: Any, loop: FakeLoop, accepted: Accepted, caplog: pytest.LogCaptureFixture
) -> None:
    def fail_once(sock: socket.socket, peer: Any, listener: Listener) -> None:
        accepted(sock, peer, listener)
        if len(accepted.sockets) == 1:
            raise RuntimeError("broken")

    (listener,) = opened()
    listener.start(loop, fail_once)
    first, _second = connect(listener), connect(listener)
    with caplog.at_level(logging.ERROR, "stdserve.error"):
        while len(accepted.sockets) < 2:
            assert loop.turn()
    assert [sock.fileno() >= 0 for sock in accepted.sockets] == [False, True]
    assert first.recv(1) == b""
    (record,) = caplog.records
    assert record.exc_info is not None
    assert listener.url in record.getMessage()


def test_connection_that_has_gone_before_accept_is_no_error(
    opened: Any, loop: FakeLoop, accepted: Accepted, connect: Any
) -> None:
    (listener,) = opened()
    listener.start(loop, accepted)
    gone = connect(listener)
    gone.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    gone.close()
    stays = connect(listener)
    while stays.getsockname() not in accepted.peers:
        assert loop.turn()


def test_shared_listener_emptied_by_another_process(opened: Any, loop: FakeLoop, accepted: Accepted) -> None:
    (listener,) = opened()
    listener.start(loop, accepted)
    listener._on_ready(selectors.EVENT_READ)
    assert accepted.sockets == []
    assert loop.watched == [listener.sock]


def pair(scope: contextlib.ExitStack, address: Any = ("10.0.0.1", 5)) -> tuple[socket.socket, Any]:
    ours, theirs = socket.socketpair()
    scope.enter_context(ours)
    scope.enter_context(theirs)
    return ours, address


def started(sock: FakeSocket, on_accept: Any, on_exhausted: Any = None) -> tuple[Listener, FakeWatch]:
    listener, watch = Listener(sock), FakeWatch()  # type: ignore[arg-type]
    listener.start(watch, on_accept, on_exhausted)  # type: ignore[arg-type]
    return listener, watch


LOST = ["EINTR", "ECONNABORTED", "EPROTO", "ENETDOWN", "ENOPROTOOPT", "EHOSTDOWN"]
LOST += ["ENONET", "EHOSTUNREACH", "EOPNOTSUPP", "ENETUNREACH", "EPERM"]


@pytest.mark.parametrize("name", LOST)
def test_error_of_one_connection_is_skipped(scope: contextlib.ExitStack, accepted: Accepted, name: str) -> None:
    code = getattr(errno, name, None)
    if code is None:
        pytest.skip("the platform does not have it")
    _, watch = started(FakeSocket(OSError(code, name), pair(scope)), accepted)
    watch.ready()
    assert accepted.peers == [("10.0.0.1", 5)]
    assert watch.handler is not None
    assert watch.timers == []


def test_tcp_peer_without_address_does_not_pass_for_a_unix_peer(
    scope: contextlib.ExitStack, accepted: Accepted
) -> None:
    gone = pair(scope, None)
    _, watch = started(FakeSocket(gone, pair(scope)), accepted)
    watch.ready()
    assert accepted.peers == [("10.0.0.1", 5)]
    assert gone[0].fileno() == -1


@pytest.mark.parametrize("code", [errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM])
def test_exhaustion_pauses_for_a_second(scope: contextlib.ExitStack, accepted: Accepted, code: int) -> None:
    told: list[OSError] = []
    sock = FakeSocket(OSError(code, "full"), pair(scope))
    _, watch = started(sock, accepted, told.append)
    watch.ready()
    assert [error.errno for error in told] == [code]
    assert (sock.accepts, watch.handler) == (1, None)
    assert [timer.seconds for timer in watch.timers] == [1.0]
    watch.fire_timers()
    watch.ready()
    assert len(accepted.sockets) == 1


def test_exhaustion_without_a_callback_is_logged(accepted: Accepted, caplog: pytest.LogCaptureFixture) -> None:
    _, watch = started(FakeSocket(OSError(errno.EMFILE, "Too many open files")), accepted)
    with caplog.at_level(logging.ERROR, "stdserve.error"):
        watch.ready()
    assert caplog.messages == ["accept on http://127.0.0.1:8000 fails, next try in 1 s: Too many open files"]


def test_unknown_error_of_accept_does_not_spin(accepted: Accepted, caplog: pytest.LogCaptureFixture) -> None:
    told: list[OSError] = []
    _, watch = started(FakeSocket(OSError(errno.EINVAL, "Invalid argument")), accepted, told.append)
    with caplog.at_level(logging.ERROR, "stdserve.error"):
        watch.ready()
    assert (watch.handler, told) == (None, [])
    assert caplog.messages == ["accept on http://127.0.0.1:8000 fails, next try in 1 s: Invalid argument"]


def test_failing_exhausted_callback_leaves_the_listener_alive(
    accepted: Accepted, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(error: OSError) -> None:
        raise RuntimeError("broken")

    _, watch = started(FakeSocket(OSError(errno.EMFILE, "full")), accepted, broken)
    with caplog.at_level(logging.ERROR, "stdserve.error"):
        watch.ready()
    assert len(caplog.records) == 1
    watch.fire_timers()
    assert watch.handler is not None


def test_reasons_to_pause_do_not_resume_each_other(accepted: Accepted) -> None:
    listener, watch = started(FakeSocket(OSError(errno.EMFILE, "full")), accepted, lambda error: None)
    watch.ready()
    listener.pause("limit")
    watch.fire_timers()
    assert watch.handler is None
    assert repr(listener) == "<Listener http://127.0.0.1:8000 limit>"
    listener.resume("limit")
    assert watch.handler is not None


def test_old_timer_does_not_end_a_new_rest(accepted: Accepted) -> None:
    full = OSError(errno.EMFILE, "full")
    listener, watch = started(FakeSocket(full, full), accepted, lambda error: None)
    watch.ready()
    listener.resume(EXHAUSTED)
    watch.ready()
    first, second = watch.timers
    assert (first.cancelled, second.cancelled) == (True, False)


def test_pause_and_resume_may_be_repeated(opened: Any, connect: Any, loop: FakeLoop, accepted: Accepted) -> None:
    (listener,) = opened()
    listener.start(loop, accepted)
    listener.pause("limit")
    listener.pause("limit")
    connect(listener)
    assert loop.turn(0) == 0
    listener.resume("limit")
    listener.resume("limit")
    listener.resume("never given")
    assert loop.turn() == 1
    assert len(accepted.sockets) == 1


def test_pause_before_start_holds(opened: Any, loop: FakeLoop, accepted: Accepted) -> None:
    (listener,) = opened()
    listener.pause("limit")
    listener.start(loop, accepted)
    assert loop.watched == []


def test_pause_inside_the_callback_stops_at_once(opened: Any, connect: Any, loop: FakeLoop, accepted: Accepted) -> None:
    def take_one(sock: socket.socket, peer: Any, listener: Listener) -> None:
        accepted(sock, peer, listener)
        listener.pause("limit")

    (listener,) = opened()
    listener.start(loop, take_one)
    connect(listener)
    connect(listener)
    loop.turn()
    assert len(accepted.sockets) == 1


def test_accept_pending_takes_the_queue_even_when_paused(
    opened: Any, connect: Any, loop: FakeLoop, accepted: Accepted
) -> None:
    (listener,) = opened()
    listener.start(loop, accepted)
    listener.pause("limit")
    for _ in range(ACCEPTS_PER_TURN + 1):
        connect(listener)
    listener.accept_pending()
    assert len(accepted.sockets) == ACCEPTS_PER_TURN + 1


def test_accept_pending_ends_at_an_error_that_stays(accepted: Accepted) -> None:
    sock = FakeSocket(*[OSError(errno.EMFILE, "full")] * 3)
    listener, _ = started(sock, accepted, lambda error: None)
    listener.accept_pending()
    assert sock.accepts == 1


def test_accept_pending_before_start_and_after_close_does_nothing(accepted: Accepted) -> None:
    sock = FakeSocket()
    Listener(sock).accept_pending()  # type: ignore[arg-type]
    listener, _ = started(sock, accepted)
    listener.close()
    listener.accept_pending()
    assert sock.accepts == 0


def test_close_ends_watching_and_the_timer(accepted: Accepted) -> None:
    sock = FakeSocket(OSError(errno.EMFILE, "full"))
    listener, watch = started(sock, accepted, lambda error: None)
    watch.ready()
    listener.close()
    watch.fire_timers()
    assert (watch.handler, sock.closed) == (None, True)
    listener.resume(EXHAUSTED)
    assert watch.handler is None


def test_close_inside_the_callback(opened: Any, connect: Any, loop: FakeLoop, accepted: Accepted) -> None:
    def close_listener(sock: socket.socket, peer: Any, listener: Listener) -> None:
        accepted(sock, peer, listener)
        listener.close()

    (listener,) = opened()
    listener.start(loop, close_listener)
    connect(listener)
    loop.turn()
    listener._on_ready(selectors.EVENT_READ)
    assert (len(accepted.sockets), loop.watched) == (1, [])


OUT_OF_DESCRIPTORS = """
import resource, socket
from stdserve.transport.listener import EXHAUSTED, adopt
from stdserve.transport.loop import Loop

listening = socket.create_server(("127.0.0.1", 0))
loop = Loop()
client = socket.create_connection(listening.getsockname())
listener = adopt(listening.detach())
taken = []
told = []

def on_accept(sock, peer, listener):
    taken.append(sock)

soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
listener.start(loop, on_accept, lambda error: told.append(error.strerror))
resource.setrlimit(resource.RLIMIT_NOFILE, (client.fileno() + 1, hard))
loop.select(10)
assert loop.select(0) == [] and not taken, "still watched"
resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
listener.resume(EXHAUSTED)
loop.select(10)
print(told, len(taken))
"""


@linux_only
def test_real_lack_of_descriptors_with_the_real_loop() -> None:
    pytest.importorskip("stdserve.transport.loop")
    done = subprocess.run(
        [sys.executable, "-c", OUT_OF_DESCRIPTORS],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=WAIT_SECONDS,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("['Too many open files'] 1\n", "")
