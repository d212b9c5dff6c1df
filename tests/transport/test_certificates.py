"""Certificates: what cannot be used, several by name, new files while the server runs, the end of their time."""

from __future__ import annotations

import os
import shutil
import ssl
from pathlib import Path
from typing import Any

import pytest

from stdserve.config import Config
from stdserve.errors import ConfigError
from stdserve.transport import certificates as certificates_module
from stdserve.transport import connections as connections_module
from stdserve.transport.certificates import Certificates, Pair, find_pairs
from stdserve.transport.https import load_certificates, open_all
from tests.certificates import Authority, openssl
from tests.certificates import Pair as Files
from tests.support import Running, running, wait_for
from tests.tls import ByteClient, connect, trusting

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl command to make certificates with")


@pytest.fixture(autouse=True)
def _fast_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections_module, "SWEEP_SECONDS", 0.01)
    monkeypatch.setattr(certificates_module, "LOOK_SECONDS", 0.01)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ca"))


@pytest.fixture(scope="module")
def pair(authority: Authority) -> Files:
    return authority.issue("localhost", "127.0.0.1")


@pytest.fixture(scope="module")
def trust(authority: Authority) -> ssl.SSLContext:
    return trusting(authority)


def hello(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    start_response("200 OK", [])
    return [b"hello"]


def served(server: Running, context: ssl.SSLContext, name: str = "localhost") -> int:
    """The serial number of the certificate that the server shows."""
    with connect(server, context, name) as client:
        assert client.get().body == b"hello"
        return int(client.sock.getpeercert()["serialNumber"], 16)  # type: ignore[attr-defined]


def serial(pair: Files) -> int:
    return int(openssl("x509", "-in", pair.certificate, "-noout", "-serial").partition("=")[2], 16)


# ---- what cannot be used


def refusal(**options: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        load_certificates(Config(app="a:b", **options))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_cannot_be_used_is_one_line(pair: Files, authority: Authority, tmp_path: Path) -> None:
    other = authority.issue("other")
    cert, key = str(pair.certificate), str(pair.key)
    empty = tmp_path / "empty.pem"
    empty.write_text("")
    cases: list[tuple[dict[str, Any], str]] = [
        ({"ssl_certfile": "no.pem"}, "--ssl-certfile: 'no.pem': No such file or directory"),
        ({"ssl_certfile": cert, "ssl_keyfile": "no.key"}, "--ssl-keyfile: 'no.key': No such file or directory"),
        ({"ssl_certfile": empty}, f"--ssl-certfile: no certificate (PEM) in {str(empty)!r}"),
        ({"ssl_certfile": key}, f"--ssl-certfile: no certificate (PEM) in {key!r}"),
        (
            {"ssl_certfile": cert},
            f"--ssl-keyfile: no private key (PEM) in {cert!r}; name its file with --ssl-keyfile",
        ),
        ({"ssl_certfile": cert, "ssl_keyfile": empty}, f"--ssl-keyfile: no private key (PEM) in {str(empty)!r}"),
        (
            {"ssl_certfile": cert, "ssl_keyfile": other.key},
            f"--ssl-keyfile: {str(other.key)!r} is not the key of the certificate {cert!r}",
        ),
        ({**pair.options, "ssl_keyfile": [key, key]}, f"--ssl-keyfile: {key!r} is the key of no --ssl-certfile"),
        ({"ssl_keyfile": key}, "--ssl-keyfile needs --ssl-certfile"),
        ({"https_redirect": 80}, "--https-redirect needs --ssl-certfile"),
        ({**pair.options, "ssl_ciphers": "none"}, "--ssl-ciphers: OpenSSL knows no cipher suite in 'none'"),
        ({**pair.options, "ssl_ca_certs": "no"}, "--ssl-ca-certs: 'no': No such file or directory"),
        ({**pair.options, "ssl_ca_certs": empty}, f"--ssl-ca-certs: no certificate (PEM) in {str(empty)!r}"),
        (
            {**pair.options, "ssl_cert_reqs": 2},
            "--ssl-cert-reqs required: say by --ssl-ca-certs whose certificates count",
        ),
        (
            {"ssl_certfile": tmp_path},
            f"--ssl-certfile: no pair of certificate and key in the directory {str(tmp_path)!r}",
        ),
    ]
    empty.rename(tmp_path / "empty.txt")
    for options, text in cases[-1:]:
        assert refusal(**options) == text
    (tmp_path / "empty.txt").rename(empty)
    for options, text in cases[:-1]:
        assert refusal(**options) == text


def test_a_file_that_is_no_certificate_is_refused(tmp_path: Path, pair: Files) -> None:
    bad = tmp_path / "bad.pem"
    bad.write_text("-----BEGIN CERTIFICATE-----\nMAMCAQA=\n-----END CERTIFICATE-----\n" + pair.key.read_text())
    assert refusal(ssl_certfile=bad).startswith(f"--ssl-certfile: {str(bad)!r} with the key {str(bad)!r}: not an X.509")


def test_an_encrypted_key(pair: Files, tmp_path: Path) -> None:
    key = tmp_path / "encrypted.key"
    openssl("pkey", "-in", pair.key, "-aes256", "-passout", "pass:secret", "-out", key)
    options = {"ssl_certfile": pair.certificate, "ssl_keyfile": key}
    assert refusal(**options) == f"--ssl-keyfile: the key {str(key)!r} is encrypted: give --ssl-keyfile-password"
    assert (
        refusal(**options, ssl_keyfile_password="wrong")
        == f"--ssl-keyfile-password: it does not open the key {str(key)!r}"
    )
    assert load_certificates(Config(**options, ssl_keyfile_password="secret"))  # type: ignore[arg-type]


def test_bad_certificates_stop_the_start_before_anything_is_bound() -> None:
    with pytest.raises(ConfigError, match=r"^--ssl-certfile: 'no\.pem'"), running(hello, ssl_certfile="no.pem"):
        pass


@pytest.mark.parametrize(
    ("given", "version"),
    [("1.3", "1.3"), ("TLSv1.3", "1.3"), (17, "1.2"), (ssl.PROTOCOL_TLS_SERVER, "1.2"), ("2", "1.2")],
)
def test_version(given: Any, version: str) -> None:
    assert Config(ssl_version=given).ssl_version == version


@pytest.mark.parametrize("given", ["1.1", 3, "ssl3", True])
def test_no_version(given: Any) -> None:
    with pytest.raises(ConfigError, match=r"^--ssl-version: "):
        Config(ssl_version=given)


@pytest.mark.parametrize(
    ("given", "need"), [(0, "none"), ("1", "optional"), (ssl.CERT_REQUIRED, "required"), ("Required", "required")]
)
def test_cert_reqs(given: Any, need: str) -> None:
    assert Config(ssl_cert_reqs=given).ssl_cert_reqs == need


def test_paths() -> None:
    names = {"certfile": Path("a.pem"), "keyfile": [Path("a.key"), "b.key"], "ca_certs": Path("ca"), "cert_reqs": 1}
    config = Config.from_names(**names)
    assert (config.ssl_certfile, config.ssl_keyfile, config.ssl_ca_certs) == (("a.pem",), ("a.key", "b.key"), "ca")


# ---- several


def test_the_certificate_for_the_name(authority: Authority, trust: ssl.SSLContext) -> None:
    pairs = [
        authority.issue("one.test"),
        authority.issue("two.test", "*.two.test"),
        authority.issue("TWO.test", "3.test"),
    ]
    options = {
        "ssl_certfile": [pair.certificate for pair in pairs], "ssl_keyfile": [pair.key for pair in pairs],
    }  # fmt: skip
    first, second, third = map(serial, pairs)
    with running(hello, **options) as server:
        for name, wanted in (
            ("one.test", first), ("two.test", second), ("TWO.Test", second), ("a.two.test", second), ("3.test", third),
        ):  # fmt: skip
            assert served(server, trust, name) == wanted, name
        anything = trusting(authority, check_hostname=False)
        for name in ("a.b.two.test", "unknown.test", "127.0.0.1", ""):
            assert served(server, anything, name) == first, name


def test_the_certificate_for_the_name_reaches_the_application(authority: Authority, trust: ssl.SSLContext) -> None:
    pairs = [authority.issue("one.test"), authority.issue("two.test")]
    seen: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope["extensions"]["tls"]["server_cert"])
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"hello"})

    certfile = ",".join(str(pair.certificate) for pair in pairs)
    keyfile = ",".join(str(pair.key) for pair in pairs)
    with running(app, interface="asgi3", lifespan="off", ssl_certfile=certfile, ssl_keyfile=keyfile) as server:
        served(server, trust, "two.test")
    assert seen == [pairs[1].certificate.read_text()]


def test_pairs_of_a_directory(tmp_path: Path) -> None:
    for name in (
        "b.crt", "b.key", "a.pem", "a-key.pem", "alone.crt", "both.pem", "readme.txt", ".hidden.pem",
        "live/site/fullchain.pem", "live/site/privkey.pem", "live/site/cert.pem", "k8s/tls.crt", "k8s/tls.key",
        "k8s/ca.crt", "site/fullchain.pem", "site/privkey.pem",
    ):  # fmt: skip
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = find_pairs(Config(ssl_certfile=(str(tmp_path),)))
    assert [tuple(os.path.relpath(path, tmp_path) for path in pair) for pair in found] == [
        ("a.pem", "a-key.pem"), ("b.crt", "b.key"), ("both.pem", "both.pem"), ("k8s/tls.crt", "k8s/tls.key"),
        ("site/fullchain.pem", "site/privkey.pem"),
    ]  # fmt: skip


def test_directories_and_files_together(tmp_path: Path) -> None:
    (tmp_path / "tls.crt").touch()
    (tmp_path / "tls.key").touch()
    config = Config(ssl_certfile=("x.pem", str(tmp_path), "y.pem"), ssl_keyfile=("x.key",))
    folder = str(tmp_path)
    assert find_pairs(config) == [
        Pair("x.pem", "x.key"), Pair(f"{folder}/tls.crt", f"{folder}/tls.key"), Pair("y.pem", "y.pem"),
    ]  # fmt: skip


# ---- new files


def wait_served(server: Running, context: ssl.SSLContext, wanted: int) -> None:
    wait_for(lambda: served(server, context) == wanted)


def test_new_files_are_taken_and_connections_stay(
    pair: Files, authority: Authority, trust: ssl.SSLContext, tmp_path: Path
) -> None:
    files = pair.put(tmp_path)
    new = authority.issue("localhost")
    with running(hello, **files.options) as server, connect(server, trust) as old:
        old.get()
        new.put(tmp_path)
        wait_served(server, trust, serial(new))
        assert old.get().body == b"hello"


def test_an_idle_server_shows_new_files_at_once(
    pair: Files, authority: Authority, trust: ssl.SSLContext, tmp_path: Path
) -> None:
    """Nothing looks at them while there is no connection; the first one does."""
    files = pair.put(tmp_path)
    new = authority.issue("localhost")
    with running(hello, **files.options) as server:
        new.put(tmp_path)
        assert served(server, trust) == serial(new)


def test_a_link_that_is_swapped_is_a_change(
    pair: Files, authority: Authority, trust: ssl.SSLContext, tmp_path: Path
) -> None:
    """As Kubernetes mounts a secret: tls.crt -> ..data/tls.crt, ..data -> ..2024_1."""
    new = authority.issue("localhost")
    pair.put(tmp_path / "..1")
    new.put(tmp_path / "..2")
    (tmp_path / "..data").symlink_to("..1")
    for name in ("tls.crt", "tls.key"):
        (tmp_path / name).symlink_to(f"..data/{name}")
        os.utime(tmp_path / "..1" / name, (1, 1))
        os.utime(tmp_path / "..2" / name, (1, 1))
    with running(hello, ssl_certfile=tmp_path) as server:
        assert served(server, trust) == serial(pair)
        (tmp_path / "..new").symlink_to("..2")
        (tmp_path / "..new").rename(tmp_path / "..data")
        wait_served(server, trust, serial(new))


def test_a_new_pair_in_the_directory(authority: Authority, trust: ssl.SSLContext, tmp_path: Path) -> None:
    authority.issue("one.test").put(tmp_path, "one")
    with running(hello, ssl_certfile=tmp_path) as server:
        served(server, trust, "one.test")
        new = authority.issue("two.test").put(tmp_path / "new", "two")
        anything = trusting(authority, check_hostname=False)
        wait_for(lambda: served(server, anything, "two.test") == serial(new))


def test_a_broken_new_pair_keeps_the_old_one_and_is_said_once(
    pair: Files, authority: Authority, trust: ssl.SSLContext, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    files = pair.put(tmp_path)
    new = authority.issue("localhost")
    with running(hello, **files.options) as server, connect(server, trust) as watcher:
        watcher.get()
        files.certificate.write_bytes(new.certificate.read_bytes())  # its key is still to come
        wait_for(lambda: "The new certificate cannot be used, the old one stays: --ssl-keyfile" in caplog.text)
        for _ in range(3):
            assert served(server, trust) == serial(pair)
        files.key.unlink()
        wait_for(lambda: "No such file or directory" in caplog.text)
        assert served(server, trust) == serial(pair)
        files.key.write_bytes(new.key.read_bytes())
        wait_served(server, trust, serial(new))
    errors = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert len(errors) == len(set(errors))


def test_a_certificate_authority_that_is_replaced_counts_for_resumed_sessions_too(
    pair: Files, authority: Authority, tmp_path: Path
) -> None:
    other = Authority(tmp_path / "other", "other CA")
    trusted = tmp_path / "clients.pem"
    trusted.write_bytes(authority.certificate.read_bytes())
    context = trusting(authority, authority.issue(subject="/CN=x"), maximum_version=ssl.TLSVersion.TLSv1_2)
    with running(hello, **pair.options, ssl_ca_certs=trusted, ssl_cert_reqs="required") as server:
        with connect(server, context) as client:
            session = client.sock.session  # type: ignore[attr-defined]
            trusted.write_bytes(other.certificate.read_bytes())
            certificates = server.server._certificates
            assert certificates is not None
            before = certificates.context
            wait_for(lambda: certificates.context is not before)
        with pytest.raises(ssl.SSLError):
            connect(server, context, session=session)


# ---- HUP


def test_certificates_are_kept_when_nothing_has_changed(pair: Files, authority: Authority, tmp_path: Path) -> None:
    files = pair.put(tmp_path)
    config = Config(**files.options)  # type: ignore[arg-type]
    old = Certificates(config)
    assert old.renewed(Config(**files.options, port=1)) is old  # type: ignore[arg-type]
    assert old.renewed(Config(**files.options, ssl_version="1.3")) is not old  # type: ignore[arg-type]
    authority.issue("localhost").put(tmp_path)
    assert old.renewed(config) is not old
    files.key.unlink()
    with pytest.raises(ConfigError):
        old.renewed(config)


# ---- time


@pytest.mark.parametrize(
    ("begins", "days", "text"),
    [
        (-10, 5, "has expired, on "),
        (1, 10, "is not valid before "),
        (-1, 5.5, "expires in 4 days, on "),
        (-1, 14.9, "expires in 13 days, on "),
        (-1, 15.5, ""),
    ],
)
def test_a_warning_before_the_end_and_after_it(
    authority: Authority, caplog: pytest.LogCaptureFixture, begins: float, days: float, text: str
) -> None:
    pair = authority.issue("localhost", begins=begins, days=days)
    with running(hello, **pair.options):
        warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(warnings) == bool(text)
    assert not text or f"The certificate {pair.certificate} {text}" in warnings[0]


def test_the_warning_comes_again_each_day(
    authority: Authority, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    import time

    pair = authority.issue("localhost", days=16)
    certificates = Certificates(Config(**pair.options))  # type: ignore[arg-type]
    now = time.time()
    for day in range(5):
        monkeypatch.setattr(time, "time", lambda day=day: now + day * 86400 + 1)
        for second in range(3):
            certificates.look(1e9 + day * 10 + second)
    assert [line.partition("expires in ")[2][:7] for line in caplog.messages] == [
        "13 days",
        "12 days",
        "11 days",
        "10 days",
    ]


# ---- plain HTTP beside it


def test_a_redirect_port_that_is_taken_leaves_nothing_open(pair: Files) -> None:
    taken = open_all(Config(port=0))
    port = taken[0].server[1]
    with pytest.raises(ConfigError, match="already in use"):
        open_all(Config(port=0, https_redirect=port, **pair.options))  # type: ignore[arg-type]
    for listener in taken:
        listener.close()


# ---- a context of the application's making


def test_context_factory_changes_what_the_options_make(pair: Files, trust: ssl.SSLContext) -> None:
    def factory(config: Config, make: Any) -> ssl.SSLContext:
        context: ssl.SSLContext = make()
        assert config.ssl_certfile
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        return context

    with running(hello, ssl_context_factory=factory, **pair.options) as server:
        assert served(server, trust) == serial(pair)
        old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        old.check_hostname, old.verify_mode, old.maximum_version = False, ssl.CERT_NONE, ssl.TLSVersion.TLSv1_2
        with pytest.raises(ssl.SSLError):
            served(server, old)


def test_context_factory_makes_its_own(pair: Files, trust: ssl.SSLContext) -> None:
    def factory(config: Config, make: Any) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(pair.certificate, pair.key)
        return context

    with running(hello, ssl_context_factory=factory, **pair.options) as server:
        assert served(server, trust) == serial(pair)


def test_context_factory_that_makes_none(pair: Files) -> None:
    assert refusal(ssl_context_factory=lambda config, make: None, **pair.options) == (
        "--ssl-context-factory: it returned None, which is no ssl.SSLContext"
    )
    assert "--ssl-context-factory no_such_module:f: No module named" in refusal(
        ssl_context_factory="no_such_module:f", **pair.options
    )
    assert refusal(ssl_context_factory="ssl:SSLContext") == "--ssl-context-factory needs --ssl-certfile"
    with pytest.raises(ConfigError, match="is neither a function nor module:function"):
        Config(app="a:b", ssl_context_factory="nonsense")


def test_a_file_that_vanishes_while_it_is_read(pair: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    def vanish(*_: object) -> None:
        raise FileNotFoundError(2, "No such file or directory")

    monkeypatch.setattr(ssl.SSLContext, "load_cert_chain", vanish)
    assert "No such file" in refusal(**pair.options)


def test_a_server_name_that_is_not_ascii(
    authority: Authority, trust: ssl.SSLContext, capsys: pytest.CaptureFixture[str]
) -> None:
    """Which Python itself reads before anybody is asked."""
    pairs = [authority.issue("localhost"), authority.issue("other.test")]
    certificates, keys = [str(each.certificate) for each in pairs], [str(each.key) for each in pairs]
    with running(hello, ssl_certfile=certificates, ssl_keyfile=keys) as server:
        client = ByteClient(server, trust, "other.test")
        with client:
            client.sock.sendall(client.hello().replace(b"other.test", b"\xff\xfether.test"))
            assert client.sock.recv(100)[:1] == b"\x15"  # an alert
        assert served(server, trust) == serial(pairs[0])
    assert "Traceback" not in capsys.readouterr().err
