"""TLS under a supervisor: sessions that go on in any worker, new certificates by HUP under load, what cannot start."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import ssl
from pathlib import Path

import pytest

from tests.certificates import Authority, Pair
from tests.e2e.harness import Process, serving
from tests.e2e.workers import Load, ready_pids, supervised, wait_ready
from tests.support import BOUND_SECONDS, Client, wait_for
from tests.tls import trusting

pytestmark = pytest.mark.skipif(
    not hasattr(os, "fork") or shutil.which("openssl") is None, reason="no fork, or no openssl command"
)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "ca")


@pytest.fixture
def pair(authority: Authority, tmp_path: Path) -> Pair:
    return authority.issue("localhost").put(tmp_path / "pair")


class Https:
    """Connections to a server over TLS; looks like a Process to Load."""

    def __init__(self, process: Process, context: ssl.SSLContext) -> None:
        self.port = int(process.wait_line(r"stdserve running on https://127\.0\.0\.1:(\d+)")[1])
        self.context = context

    def connect(self, session: ssl.SSLSession | None = None) -> Client:
        sock = socket.create_connection(("127.0.0.1", self.port), timeout=BOUND_SECONDS)
        return Client(self.context.wrap_socket(sock, server_hostname="localhost", session=session))

    def serial(self) -> str:
        with self.connect() as client:
            return str(client.sock.getpeercert()["serialNumber"])  # type: ignore[attr-defined]


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_session_goes_on_in_any_worker(
    folder: Path, authority: Authority, pair: Pair, version: ssl.TLSVersion
) -> None:
    context = trusting(authority, maximum_version=version)
    with supervised(folder, *pair.flags, workers=3) as process:
        https = Https(process, context)
        with https.connect() as client:
            client.get()
            session = client.sock.session  # type: ignore[attr-defined]
        seen: set[int] = set()

        def all_seen() -> bool:
            with https.connect(session) as client:
                seen.add(int(client.get().body.split()[0]))
                assert client.sock.session_reused  # type: ignore[attr-defined]
            return len(seen) > 1

        wait_for(all_seen)


def test_hup_takes_new_certificates_and_loses_no_request(folder: Path, authority: Authority, pair: Pair) -> None:
    with supervised(folder, *pair.flags) as process:
        https = Https(process, trusting(authority))
        before = https.serial()
        with https.connect() as slow, Load(https) as load:  # type: ignore[arg-type]
            slow.send(b"GET /sleep/1 HTTP/1.1\r\nHost: localhost\r\n\r\n")
            authority.issue("localhost").put(pair.certificate.parent)
            process.signal(signal.SIGHUP)
            wait_ready(process, 4)
            wait_for(lambda: https.serial() != before)
            load.wait_answers(20)
            assert slow.response().status == 200
        assert not load.failures
        assert set(ready_pids(process)[2:]) & load.pids


def test_hup_with_a_broken_pair_keeps_the_old_workers(folder: Path, authority: Authority, pair: Pair) -> None:
    with supervised(folder, *pair.flags) as process:
        https = Https(process, trusting(authority))
        before = https.serial()
        pair.key.unlink()
        process.signal(signal.SIGHUP)
        process.wait_line("The configuration cannot be used, the old one stays: --ssl-keyfile: .* No such file")
        assert https.serial() == before
        assert len(ready_pids(process)) == 2


def test_a_worker_that_starts_later_shows_the_newest_pair(folder: Path, authority: Authority, pair: Pair) -> None:
    """The supervisor has loaded the old one."""
    with supervised(folder, *pair.flags, workers=1) as process:
        https = Https(process, trusting(authority))
        before = https.serial()
        authority.issue("localhost").put(pair.certificate.parent)
        os.kill(ready_pids(process)[0], signal.SIGKILL)
        wait_ready(process, 2)
        assert https.serial() != before


@pytest.mark.parametrize("flags", [(), ("-w", "2")])
def test_a_wrong_pair_ends_the_start_with_one_line(
    folder: Path, authority: Authority, pair: Pair, flags: tuple[str, ...]
) -> None:
    other = authority.issue("other")
    files = ["--certfile", str(pair.certificate), "--keyfile", str(other.key)]
    with serving(folder, "app:answer", *files, *flags) as process:
        assert process.wait() == 1
        text = f"--ssl-keyfile: {str(other.key)!r} is not the key of the certificate {str(pair.certificate)!r}"
        assert process.err == [f"ERROR:    {text}"]


def test_an_expired_certificate_serves_with_a_warning(folder: Path, authority: Authority) -> None:
    pair = authority.issue("localhost", begins=-3, days=1)
    with serving(folder, "app:answer", *pair.flags) as process:
        process.wait_line(rf"^WARNING:  The certificate {pair.certificate} has expired, on ")
        with Https(process, trusting(authority, check_hostname=False, verify_mode=ssl.CERT_NONE)).connect() as client:
            assert client.get().status == 200
