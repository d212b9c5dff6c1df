"""Which process holds an address that is in use, as far as Linux tells (proc(5)). Only ever asked on the way out."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
from collections.abc import Iterable, Iterator


def holder_of_tcp(host: str, port: int) -> str:
    """`python3 (pid 1234)`: who listens where this address should be; `another process` if nobody can tell."""
    return _holder(_tcp_inodes(host, port))


def holder_of_unix(path: str) -> str:
    """The same for a unix socket's path."""
    return _holder(_unix_inodes(path))


def _holder(inodes: Iterable[str]) -> str:
    """`python3 (pid 1234)`, the first process that has one of these sockets; else `another process`."""
    for inode in inodes:
        for pid in _pids():
            if _has_socket(pid, inode):
                return "this process itself" if pid == os.getpid() else f"{_process_name(pid)} (pid {pid})"
    return "another process"


def _pids() -> list[int]:
    """In order: of processes that share a listener the parent mostly has the lowest number."""
    with contextlib.suppress(OSError):
        return sorted(int(entry) for entry in os.listdir("/proc") if entry.isdecimal())
    return []


def _has_socket(pid: int, inode: str) -> bool:
    """False also where we may not look: the process of another user."""
    folder = f"/proc/{pid}/fd"
    with contextlib.suppress(OSError):
        for descriptor in os.listdir(folder):
            with contextlib.suppress(OSError):  # it may be closed by now
                if os.readlink(f"{folder}/{descriptor}") == f"socket:[{inode}]":
                    return True
    return False


def _process_name(pid: int) -> str:
    with contextlib.suppress(OSError), open(f"/proc/{pid}/comm", errors="replace") as file:
        return file.read().strip()
    return "a process"


def _proc_rows(table: str, columns: int) -> Iterator[list[str]]:
    """The rows of /proc/net/<table>; none where there is no such file."""
    with contextlib.suppress(OSError), open(f"/proc/net/{table}", errors="surrogateescape") as file:
        next(file, None)
        for line in file:
            row = line.rstrip("\n").split(None, columns - 1)
            if len(row) == columns:
                yield row


def _tcp_inodes(host: str, port: int) -> list[str]:
    """Inodes of the listening sockets that are in the way of this address, the best match first."""
    everywhere = ("0.0.0.0", "::")
    found = []
    for _, local, _, state, *_, inode, _ in (row for table in ("tcp", "tcp6") for row in _proc_rows(table, 11)):
        address, _, port_hex = local.partition(":")
        if state != "0A" or int(port_hex, 16) != port:  # TCP_LISTEN
            continue
        other = _proc_host(address)
        if other == host or other in everywhere or host in everywhere:
            found.append((other != host, (":" in other) != (":" in host), inode))
    return [inode for *_, inode in sorted(found)]


def _proc_host(text: str) -> str:
    """`0100007F` -> `127.0.0.1`: words of 32 bits in the byte order of the machine; IPv4 in IPv6 as IPv4."""
    data = bytes.fromhex(text)
    if sys.byteorder == "little":
        data = b"".join(data[start : start + 4][::-1] for start in range(0, len(data), 4))
    host = socket.inet_ntop(socket.AF_INET if len(data) == 4 else socket.AF_INET6, data)
    return host.removeprefix("::ffff:") if "." in host else host


def _unix_inodes(path: str) -> list[str]:
    wanted = {"@" + path[1:]} if path[0] in "@\0" else {path, os.path.abspath(path)}
    listening = 1 << 16  # __SO_ACCEPTCON
    return [
        inode
        for _, _, _, flags, _, _, inode, name in _proc_rows("unix", 8)
        if name in wanted and int(flags, 16) & listening
    ]
