"""Certificates read from their bytes: those that the openssl command makes, and bytes that are none."""

from __future__ import annotations

import datetime
import shutil
import ssl
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stdserve.protocol import x509
from stdserve.protocol.x509 import matches, read_certificate
from tests.certificates import Authority, Pair, openssl

needs_openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl command")


def read(pair: Pair) -> bytes:
    return ssl.PEM_cert_to_DER_cert(pair.certificate.read_text())


@needs_openssl
@pytest.mark.parametrize("key_type", ["ec", "rsa"])
def test_names_and_times(tmp_path: Path, key_type: str) -> None:
    pair = Authority(tmp_path).issue("A.test", "*.b.test", "127.0.0.1", subject="/CN=other", key_type=key_type, days=3)
    found = read_certificate(read(pair))
    assert found.names == ("a.test", "*.b.test", "127.0.0.1")
    begins, ends = (datetime.datetime(*when, tzinfo=datetime.UTC) for when in found[1:])
    dates = openssl("x509", "-in", pair.certificate, "-noout", "-dates")
    assert f"notBefore={begins:%b} {begins.day:2} {begins:%H:%M:%S %Y} GMT" in dates
    assert ends - begins == datetime.timedelta(days=3)


@needs_openssl
def test_the_common_name_counts_without_other_names(tmp_path: Path) -> None:
    pair = Authority(tmp_path).issue(subject="/C=DE/CN=Site.Test", days=30 * 365)  # after 2049: GeneralizedTime
    found = read_certificate(read(pair))
    assert found.names == ("site.test",) and found.ends[0] > 2049


@needs_openssl
def test_what_is_cut_or_changed_is_no_certificate_or_another(tmp_path: Path) -> None:
    data = read(Authority(tmp_path).issue("a.test"))
    for count in range(len(data)):
        with pytest.raises(ValueError, match="not an X"):
            read_certificate(data[:count])
    for at in range(len(data)):
        try:
            read_certificate(data[:at] + bytes((data[at] ^ 0x81,)) + data[at + 1 :])
        except ValueError as error:
            assert "not an X.509 certificate" in str(error)


@given(st.binary())
def test_any_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="not an X"):
        read_certificate(data)


@pytest.mark.parametrize(
    ("name", "host", "good"),
    [
        ("a.test", "a.test", True),
        ("a.test", "b.a.test", False),
        ("*.a.test", "b.a.test", True),
        ("*.a.test", "a.test", False),
        ("*.a.test", "c.b.a.test", False),
        ("*.a.test", ".a.test", False),
        ("b*.a.test", "bc.a.test", False),
        ("*", "a", False),
        ("127.0.0.1", "127.0.0.1", True),
    ],
)
def test_matches(name: str, host: str, good: bool) -> None:
    assert matches(name, host) is good


@pytest.mark.parametrize("value", [b"991301000000Z", b"990132000000Z", b"990101240000Z", b"990100000000Z"])
def test_times_that_are_none(value: bytes) -> None:
    with pytest.raises(ValueError, match="no time of day"):
        x509._read_time(x509.UTC_TIME, value)
