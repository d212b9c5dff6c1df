"""X-Forwarded-* and Forwarded (RFC 7239): who is believed, what is taken, what is refused."""

from __future__ import annotations

import ipaddress
import sys
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from stdserve.errors import ConfigError, ProtocolError
from stdserve.protocol.forwarded import Forwarded, ProxyTrust

PEER = ("127.0.0.1", 41000)
ALL = ("for", "proto", "host", "port", "prefix")
LOCAL = ("127.0.0.1", "::1")
OURS = (*LOCAL, "10.0.0.0/8", "2001:db8:aa::/48")


def lines(name: bytes, *values: bytes) -> list[tuple[bytes, bytes]]:
    return [(name, value) for value in values]


def apply(trust: ProxyTrust, headers: list[tuple[bytes, bytes]], scheme: str = "http") -> Forwarded:
    result = trust.apply([(b"host", b"inner"), *headers, (b"accept", b"*/*")], PEER, scheme)
    assert result is not None
    return result


def client_of(*values: bytes, allow: tuple[str, ...] = OURS, hops: int = 0) -> tuple[str, int] | None:
    return apply(ProxyTrust(allow, hops=hops), lines(b"x-forwarded-for", *values)).client


def x_forwarded(**values: bytes) -> Forwarded:
    headers = [(b"x-forwarded-" + name.encode(), value) for name, value in values.items()]
    return apply(ProxyTrust(LOCAL, fields=ALL), headers)


def forwarded(*values: bytes, allow: tuple[str, ...] = OURS, hops: int = 0, fields: tuple[str, ...] = ALL) -> Forwarded:
    trust = ProxyTrust(allow, format="forwarded", fields=fields, hops=hops)
    return apply(trust, lines(b"forwarded", *values))


class TestTrusts:
    @pytest.mark.parametrize(
        ("allow", "host", "trusted"),
        [
            (LOCAL, "127.0.0.1", True),
            (LOCAL, "::1", True),
            (LOCAL, "127.0.0.9", False),
            (LOCAL, "::ffff:127.0.0.1", True),  # an IPv4 peer of a dual-stack listener
            (LOCAL, "::ffff:127.0.0.9", False),
            (LOCAL, "0:0:0:0:0:0:0:1", True),
            (("0:0:0::1",), "::1", True),
            (("::ffff:10.0.0.1",), "10.0.0.1", True),
            (("::ffff:10.0.0.0/104",), "10.1.2.3", True),
            (("::ffff:10.0.0.0/104",), "::ffff:10.1.2.3", True),
            (("::ffff:10.0.0.0/104",), "11.1.2.3", False),
            (("10.0.0.0/8",), "10.255.0.1", True),
            (("10.0.0.0/8",), "11.0.0.1", False),
            (("10.0.0.0/255.0.0.0",), "10.0.0.1", True),
            (("2001:db8::/32",), "2001:db8:1::1", True),
            (("2001:db8::/32",), "2001:db9::1", False),
            (("0.0.0.0/0",), "::1", False),
            (("fe80::/10",), "fe80::1%eth0", True),
            (("fe80::1",), "fe80::1%eth0", True),
            (("fe80::1%eth0",), "fe80::1%eth0", True),
            (("fe80::1%eth0",), "fe80::1%eth1", False),
            (("*",), "203.0.113.1", True),
            (("*",), "whatever", True),
            (("10.0.0.1", "*"), "203.0.113.1", True),
            (("testclient",), "testclient", True),
            (("testclient",), "other", False),
            ((" 10.0.0.1 ", ""), "10.0.0.1", True),
            ((" 10.0.0.1 ", ""), "", False),
            ((), "127.0.0.1", False),
        ],
    )
    def test_peer_address(self, allow: tuple[str, ...], host: str, trusted: bool) -> None:
        trust = ProxyTrust(allow)
        assert trust.trusts((host, 1)) is trusted
        assert trust.trusts((host, 2)) is trusted  # the remembered answer

    @pytest.mark.parametrize(
        ("allow", "trust_unix", "path", "trusted"),
        [
            (LOCAL, True, None, True),
            (LOCAL, True, "/run/app.sock", True),
            (LOCAL, False, "/run/app.sock", False),
            (LOCAL, False, None, False),
            (("/run/app.sock",), False, "/run/app.sock", True),
            (("/run/app.sock",), False, "/run/other.sock", False),
            (("/run/app.sock",), False, None, False),
            (("*",), False, None, True),
            ((), True, None, True),
        ],
    )
    def test_unix_peer(self, allow: tuple[str, ...], trust_unix: bool, path: str | None, trusted: bool) -> None:
        assert ProxyTrust(allow, trust_unix=trust_unix).trusts(None, path) is trusted

    def test_known_peer_is_one_lookup(self) -> None:
        trust = ProxyTrust(OURS)
        trust.trusts(PEER)
        calls: list[str] = []
        sys.setprofile(lambda frame, event, arg: calls.append(frame.f_code.co_name) if event == "call" else None)
        try:
            trust.trusts(PEER)
        finally:
            sys.setprofile(None)
        assert calls == ["trusts"]

    def test_memory_of_peers_and_entries_is_bounded(self) -> None:
        trust = ProxyTrust(OURS)
        for number in range(3000):
            host = str(ipaddress.IPv4Address(0x0A000000 + number))
            assert trust.trusts((host, 1))
            apply(trust, lines(b"x-forwarded-for", b"%d.1.1.1" % (number % 200), b"10.0.%d.%d" % divmod(number, 250)))
            apply(trust, lines(b"x-forwarded-for", b"x" * 1000 + b"%d" % number))
        assert len(trust._peers) <= 1024
        assert len(trust._nodes) <= 1024
        assert max(map(len, trust._nodes)) <= 64

    @pytest.mark.parametrize(
        "entry",
        [
            "10.0.0.300",
            "10.0.0.1/8",
            "10.0.0.0/33",
            "2001:db8::1/32",
            "1.2.3",
            "10.0.0.1:80",
            ":::",
            "::/200",
            "1.2.3.4/x",
        ],
    )
    def test_broken_address_is_config_error_that_names_it(self, entry: str) -> None:
        with pytest.raises(ConfigError, match="--forwarded-allow-ips") as error:
            ProxyTrust((entry,))
        assert repr(entry) in str(error.value)

    @pytest.mark.parametrize(
        "options", [{"fields": ("for", "by")}, {"format": "x"}, {"hops": -1}], ids=["fields", "format", "hops"]
    )
    def test_broken_option_is_config_error(self, options: dict[str, Any]) -> None:
        with pytest.raises(ConfigError, match=f"--forwarded-{next(iter(options))}"):
            ProxyTrust(LOCAL, **options)

    def test_hint_names_peer_field_and_option(self) -> None:
        assert ProxyTrust(LOCAL).untrusted_hint(("127.0.0.9", 5)) == (
            "127.0.0.9 sends X-Forwarded-For but is not trusted; add it to --forwarded-allow-ips if it is your proxy"
        )
        assert "sends Forwarded but" in ProxyTrust(LOCAL, format="forwarded").untrusted_hint(PEER)
        assert "sends X-Forwarded-Proto but" in ProxyTrust(LOCAL, fields=("host", "proto")).untrusted_hint(PEER)
        assert "--forwarded-trust-unix" in ProxyTrust(LOCAL, trust_unix=False).untrusted_hint(None)
        assert ProxyTrust(LOCAL, fields=()).untrusted_hint(PEER)


class TestPresent:
    @pytest.mark.parametrize(
        ("format", "fields", "names"),
        [
            ("x-forwarded", ("for",), {"for"}),
            ("x-forwarded", ("proto",), {"proto", "protocol", "ssl"}),
            ("x-forwarded", ALL, {"for", "proto", "protocol", "ssl", "host", "port", "prefix"}),
            ("x-forwarded", (), set()),
            ("forwarded", ("for",), {""}),
            ("forwarded", ("host",), {""}),
            ("forwarded", ("prefix",), set()),
            ("forwarded", (), set()),
        ],
    )
    def test_only_the_enabled_fields_of_the_format(self, format: str, fields: tuple[str, ...], names: set[str]) -> None:
        trust = ProxyTrust(LOCAL, format=format, fields=fields)
        for suffix in ("for", "proto", "protocol", "ssl", "host", "port", "prefix", "by", ""):
            name = f"x-forwarded-{suffix}".encode() if suffix else b"forwarded"
            assert trust.present({b"host": b"a", name: b"b"}) is (suffix in names)
            assert (trust.apply([(b"host", b"a"), (name, b"")], PEER, "http") is not None) is (suffix in names)

    def test_nothing_sent_is_none(self) -> None:
        assert ProxyTrust(OURS).apply([(b"host", b"a")], PEER, "http") is None
        assert ProxyTrust(OURS).apply([], None, "http") is None
        assert not ProxyTrust(OURS).present({})

    def test_underscore_spelling_is_another_field(self) -> None:
        assert ProxyTrust(OURS).apply([(b"x_forwarded_for", b"1.1.1.1")], PEER, "http") is None


class TestForwardedFor:
    @pytest.mark.parametrize(
        ("value", "client"),
        [
            (b"203.0.113.9", ("203.0.113.9", 0)),
            (b"  203.0.113.9\t", ("203.0.113.9", 0)),
            (b"203.0.113.9:4711", ("203.0.113.9", 4711)),
            (b"2001:db8::9", ("2001:db8::9", 0)),
            (b"2001:DB8:0::9", ("2001:db8::9", 0)),
            (b"[2001:db8::9]", ("2001:db8::9", 0)),
            (b"[2001:db8::9]:4711", ("2001:db8::9", 4711)),
            (b"::ffff:203.0.113.9", ("203.0.113.9", 0)),
            (b"[::ffff:203.0.113.9]:1", ("203.0.113.9", 1)),
            (b"64:ff9b::203.0.113.9", ("64:ff9b::cb00:7109", 0)),
            (b"203.0.113.9:65535", ("203.0.113.9", 65535)),
            (b"203.0.113.9:0", ("203.0.113.9", 0)),
        ],
    )
    def test_forms_of_an_entry(self, value: bytes, client: tuple[str, int]) -> None:
        assert client_of(value) == client
        assert client_of(b"6.6.6.6, " + value + b" ,10.0.0.1") == client

    @pytest.mark.parametrize(
        "value",
        [
            b"",
            b" ",
            b"unknown",
            b"_hidden",
            b"unix:",
            b"localhost",
            b"203.0.113",
            b"203.0.113.256",
            b"203.0.113.09",
            b"203.0.113.9:",
            b"203.0.113.9:65536",
            b"203.0.113.9:+1",
            b"203.0.113.9:1_0",
            b"203.0.113.9:99999999",
            b"[203.0.113.9]",
            b"[2001:db8::9",
            b"2001:db8::9]",
            b"[2001:db8::9]4",
            b"[2001:db8::9]:",
            b":::",
            b"::1::",
            b"fe80::1%eth0",
            b"fe80::1%\x1b[31m",
            b"[fe80::1%a]:1",
            b'"203.0.113.9"',
            b"for=203.0.113.9",
            b"1" * 60000,
            "２.2.2.2".encode(),
            b"\xb2.2.2.2",
            b"203.0.113.9\x00",
            b"203.0.113.9\n",
            b"203.0.113.9 203.0.113.9",
        ],
    )
    def test_malformed_entry_ends_the_walk(self, value: bytes) -> None:
        assert client_of(value) == PEER
        assert client_of(b"6.6.6.6, " + value) == PEER
        assert client_of(b"6.6.6.6," + value + b",10.0.0.2, 10.0.0.1") == ("10.0.0.2", 0)

    @pytest.mark.parametrize(
        ("values", "client"),
        [
            ((b"6.6.6.6, 203.0.113.9",), "203.0.113.9"),
            ((b"6.6.6.6, 203.0.113.9, 10.0.0.2, 10.0.0.1",), "203.0.113.9"),
            ((b"6.6.6.6, 203.0.113.9, 2001:db8:aa::1, [::1]:80, 10.0.0.1:99",), "203.0.113.9"),
            ((b"6.6.6.6", b"203.0.113.9, 10.0.0.2", b"10.0.0.1"), "203.0.113.9"),
            ((b"6.6.6.6, ::ffff:203.0.113.9, ::ffff:10.0.0.2",), "203.0.113.9"),
            ((b"10.0.0.3, 10.0.0.2, 10.0.0.1",), "10.0.0.3"),
            ((b"10.0.0.3",), "10.0.0.3"),
            ((b"6.6.6.6", b""), "127.0.0.1"),
            ((b"", b"203.0.113.9"), "203.0.113.9"),
            ((b"203.0.113.9,,10.0.0.1",), "10.0.0.1"),
        ],
    )
    def test_last_untrusted_from_the_right(self, values: tuple[bytes, ...], client: str) -> None:
        result = client_of(*values)
        assert result is not None
        assert result[0] == client

    @pytest.mark.parametrize(
        ("value", "hops", "client"),
        [
            (b"1.1.1.1, 2.2.2.2, 3.3.3.3", 0, "1.1.1.1"),
            (b"1.1.1.1, 2.2.2.2, 3.3.3.3", 1, "3.3.3.3"),
            (b"1.1.1.1, 2.2.2.2, 3.3.3.3", 2, "2.2.2.2"),
            (b"1.1.1.1, 2.2.2.2, 3.3.3.3", 3, "1.1.1.1"),
            (b"1.1.1.1, 2.2.2.2, 3.3.3.3", 9, "1.1.1.1"),
            (b"junk, 2.2.2.2, 3.3.3.3", 0, "2.2.2.2"),
            (b"junk, 2.2.2.2, 3.3.3.3", 9, "2.2.2.2"),
            (b"1.1.1.1, junk, 3.3.3.3", 2, "3.3.3.3"),
        ],
    )
    @pytest.mark.parametrize("allow", [("*",), ("*", "10.0.0.0/8")])
    def test_everyone_trusted(self, value: bytes, hops: int, client: str, allow: tuple[str, ...]) -> None:
        assert client_of(value, allow=allow, hops=hops) == (client, 0)

    @pytest.mark.parametrize(("hops", "client"), [(1, "10.0.0.1"), (2, "2.2.2.2"), (3, "10.0.0.3"), (7, "10.0.0.3")])
    def test_hops_count_whatever_the_addresses(self, hops: int, client: str) -> None:
        assert client_of(b"10.0.0.3, 2.2.2.2, 10.0.0.1", hops=hops) == (client, 0)

    def test_hops_count_over_several_lines(self) -> None:
        assert client_of(b"6.6.6.6, 1.1.1.1", b"2.2.2.2", hops=2) == ("1.1.1.1", 0)

    def test_64_entries_from_the_right_are_looked_at(self) -> None:
        chain = [b"10.1.0.%d" % number for number in range(200)]
        assert client_of(b",".join(chain)) == ("10.1.0.136", 0)
        assert client_of(*chain) == ("10.1.0.136", 0)
        assert client_of(b",".join(chain[:64])) == ("10.1.0.0", 0)
        assert client_of(b",".join(chain), hops=100) == ("10.1.0.136", 0)
        assert client_of(b",".join([*chain, b"203.0.113.9"])) == ("203.0.113.9", 0)

    def test_client_of_a_unix_peer(self) -> None:
        trust = ProxyTrust(LOCAL)
        assert trust.apply(lines(b"x-forwarded-for", b"203.0.113.9"), None, "http") == (
            ("203.0.113.9", 0),
            "http",
            None,
            None,
            None,
        )
        assert trust.apply(lines(b"x-forwarded-for", b"unix:"), None, "http") == (None, "http", None, None, None)

    def test_off_leaves_client(self) -> None:
        trust = ProxyTrust(LOCAL, fields=("proto",))
        headers = [(b"x-forwarded-for", b"203.0.113.9"), (b"x-forwarded-proto", b"https")]
        assert apply(trust, headers) == (PEER, "https", None, None, None)


class TestScheme:
    @pytest.mark.parametrize(
        ("name", "value", "scheme"),
        [
            (b"proto", b"https", "https"),
            (b"proto", b"HTTPS ", "https"),
            (b"proto", b"wss", "https"),
            (b"proto", b"http", "http"),
            (b"proto", b"ws", "http"),
            (b"proto", b"http, https", "https"),
            (b"proto", b"https,http", "http"),
            (b"protocol", b"ssl", "https"),
            (b"protocol", b"https", "https"),
            (b"protocol", b"http", "http"),
            (b"ssl", b"on", "https"),
            (b"ssl", b"On", "https"),
            (b"ssl", b"off", "http"),
        ],
    )
    def test_value_sets_scheme(self, name: bytes, value: bytes, scheme: str) -> None:
        headers = lines(b"x-forwarded-" + name, value)
        for before in ("http", "https"):
            assert apply(ProxyTrust(LOCAL), headers, before).scheme == scheme
        for before in ("ws", "wss"):
            assert apply(ProxyTrust(LOCAL), headers, before).scheme == scheme.replace("http", "ws")

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            (b"proto", b""),
            (b"proto", b"ftp"),
            (b"proto", b"https,"),
            (b"proto", b"https, ftp"),
            (b"proto", b"ssl"),
            (b"proto", b"on"),
            (b"proto", b"https\x00"),
            (b"proto", b"https:"),
            (b"protocol", b"on"),
            (b"ssl", b"https"),
            (b"ssl", b"1"),
            (b"proto", b"\xff"),
            (b"proto", b"javascript"),
        ],
    )
    def test_other_value_leaves_scheme(self, name: bytes, value: bytes) -> None:
        for scheme in ("http", "https", "ws", "wss"):
            assert apply(ProxyTrust(LOCAL), lines(b"x-forwarded-" + name, value), scheme).scheme == scheme

    def test_last_of_several_lines(self) -> None:
        assert apply(ProxyTrust(LOCAL), lines(b"x-forwarded-proto", b"https", b"http"), "https").scheme == "http"

    @pytest.mark.parametrize(
        "values",
        [
            {"proto": b"http", "ssl": b"on"},
            {"proto": b"https", "ssl": b"off"},
            {"protocol": b"ssl", "proto": b"http"},
            {"protocol": b"ssl", "proto": b"ws"},
            {"protocol": b"ssl", "ssl": b"off"},
            {"proto": b"https", "protocol": b"ssl", "ssl": b"off"},
        ],
    )
    def test_contradiction_is_400(self, values: dict[str, bytes]) -> None:
        with pytest.raises(ProtocolError, match="contradictory scheme headers") as error:
            x_forwarded(**values)
        assert error.value.code == 400
        assert error.value.excerpt == b", ".join(
            values[name] for name in ("proto", "protocol", "ssl") if name in values
        )

    @pytest.mark.parametrize(
        ("values", "scheme"),
        [
            ({"proto": b"https", "ssl": b"on", "protocol": b"ssl"}, "https"),
            ({"proto": b"wss", "ssl": b"on"}, "https"),
            ({"proto": b"http", "ssl": b"off"}, "http"),
            ({"proto": b"http", "ssl": b"junk"}, "http"),
            ({"proto": b"junk", "ssl": b"on"}, "https"),
        ],
    )
    def test_agreement(self, values: dict[str, bytes], scheme: str) -> None:
        assert x_forwarded(**values).scheme == scheme

    def test_off_ignores_even_contradictions(self) -> None:
        headers = [(b"x-forwarded-proto", b"https"), (b"x-forwarded-ssl", b"off"), (b"x-forwarded-for", b"1.1.1.1")]
        assert apply(ProxyTrust(LOCAL, fields=("for",)), headers).scheme == "http"


class TestHostPortPrefix:
    @pytest.mark.parametrize(
        ("value", "host", "port"),
        [
            (b"example.com", b"example.com", None),
            (b"example.com:8443", b"example.com:8443", 8443),
            (b"Example.COM:1", b"Example.COM:1", 1),
            (b"a_b.example", b"a_b.example", None),
            (b"1.2.3.4:65535", b"1.2.3.4:65535", 65535),
            (b"[2001:db8::1]", b"[2001:db8::1]", None),
            (b"[2001:db8::1]:8443", b"[2001:db8::1]:8443", 8443),
            (b"[v1.a:b]:80", b"[v1.a:b]:80", 80),
            (b"evil.example, example.com", b"example.com", None),
        ],
    )
    def test_host(self, value: bytes, host: bytes, port: int | None) -> None:
        assert x_forwarded(host=value)[2:4] == (host, port)

    @pytest.mark.parametrize(
        "value",
        [
            b"",
            b":80",
            b"a:",
            b"a:0",
            b"a:65536",
            b"a:http",
            b"a:80:80",
            b"a b",
            b"a/b",
            b"a?b",
            b"a#b",
            b"u@a",
            b"a\\b",
            b"a\r\nx: y",
            b"a\x00",
            b"\xe4.example",
            b"2001:db8::1",
            b"[]",
            b"[2001:db8::1",
            b"[::1]80",
            b"[::1]:",
            b"[:::]",
            b"[1.2.3.4]",
            b"[fe80::1%25eth0]",
            b"a,",
            b"%",
            b"%0",
            b"a[::1]",
            b"[::1]a",
            b"http://a",
            b"a:+1",
            b"a:000080",
        ],
    )
    def test_malformed_host_counts_as_not_sent(self, value: bytes) -> None:
        assert x_forwarded(host=value) == (PEER, "http", None, None, None)

    @pytest.mark.parametrize(
        ("value", "port"),
        [
            (b"443", 443),
            (b"1", 1),
            (b"65535", 65535),
            (b"80, 443", 443),
            (b"00443", 443),
            (b"0", None),
            (b"65536", None),
            (b"", None),
            (b"+1", None),
            (b"-1", None),
            (b"1_0", None),
            (b"4 43", None),
            (b"0x50", None),
            (b"1" * 5000, None),
            (b"443,", None),
            ("４４３".encode(), None),
            (b"\xb2", None),
        ],
    )
    def test_port(self, value: bytes, port: int | None) -> None:
        assert x_forwarded(port=value).port == port

    def test_port_field_before_port_of_host(self) -> None:
        assert x_forwarded(host=b"a:8443", port=b"443")[2:4] == (b"a:8443", 443)
        assert x_forwarded(host=b"a:8443", port=b"none")[2:4] == (b"a:8443", 8443)

    @pytest.mark.parametrize(
        ("value", "prefix"),
        [
            (b"/api", "/api"),
            (b"/api/", "/api"),
            (b"/api///", "/api"),
            (b"/", ""),
            (b"/a/b", "/a/b"),
            (b"/a//b", "/a//b"),
            (b"/a%20b", "/a%20b"),
            (b"/a%2Fb/", "/a%2Fb"),
            (b"/x, /y", "/y"),
            (b"/~u;v=1:@", "/~u;v=1:@"),
        ],
    )
    def test_prefix(self, value: bytes, prefix: str) -> None:
        assert x_forwarded(prefix=value).prefix == prefix

    @pytest.mark.parametrize(
        "value",
        [
            b"",
            b"api",
            b"//evil.example",
            b"//",
            b"///",
            b"/\\evil.example",
            b"\\\\evil",
            b"/a b",
            b"/a\x00",
            b"/a\r\nx:y",
            b"/a\x7f",
            b"/a?b",
            b"/a#b",
            b"/\xe4",
            b"/%",
            b"/%2",
            b"http://a/",
            b"/a,",
            b"/a\x1b[31m",
        ],
    )
    def test_malformed_prefix_counts_as_not_sent(self, value: bytes) -> None:
        assert x_forwarded(prefix=value).prefix is None

    def test_off_by_default(self) -> None:
        headers = [(b"x-forwarded-" + name, b"443") for name in (b"host", b"port", b"prefix")]
        assert ProxyTrust(LOCAL).apply(headers, PEER, "http") is None


class TestRfc7239:
    @pytest.mark.parametrize(
        ("value", "client"),
        [
            (b"for=203.0.113.9", ("203.0.113.9", 0)),
            (b'For="203.0.113.9:4711"', ("203.0.113.9", 4711)),
            (b'FOR="[2001:db8::9]"', ("2001:db8::9", 0)),
            (b'for="[2001:db8:cafe::17]:4711"', ("2001:db8:cafe::17", 4711)),
            (b'for="203.0.113.9:_port"', ("203.0.113.9", 0)),
            (b'for="20\\3.0.113.9"', ("203.0.113.9", 0)),
            (b'for="[::ffff:203.0.113.9]"', ("203.0.113.9", 0)),
            (b"for=192.0.2.43, for=10.0.0.1", ("192.0.2.43", 0)),
            (b"for=192.0.2.43,for=198.51.100.17;by=203.0.113.60;proto=http;host=example.com", ("198.51.100.17", 0)),
            (b'for=192.0.2.43 \t,\tfor="[2001:db8:aa::1]"', ("192.0.2.43", 0)),
            (b", for=192.0.2.43,, ,for=10.0.0.1,", ("192.0.2.43", 0)),  # RFC 9110 5.6.1.2: empty members are no members
            (b"for=10.0.0.2, for=10.0.0.1", ("10.0.0.2", 0)),
            (b"for=6.6.6.6, for=unknown", PEER),
            (b"for=6.6.6.6, for=UNKNOWN, for=10.0.0.1", ("10.0.0.1", 0)),
            (b"for=6.6.6.6, for=_hidden;by=_SEVKISEK", PEER),
            (b'for=6.6.6.6, for="_hidden:_p"', PEER),
            (b"for=6.6.6.6, proto=https", PEER),
            (b"for=6.6.6.6, ;", PEER),
            (b'ext="a, for=6.6.6.6";for=203.0.113.9', ("203.0.113.9", 0)),
            (b'ext="\\",for=6.6.6.6";for=203.0.113.9;;', ("203.0.113.9", 0)),
            (b"", PEER),
            (b" \t", PEER),
            (b",", PEER),
            (b";", PEER),
        ],
    )
    def test_client(self, value: bytes, client: tuple[str, int]) -> None:
        assert forwarded(value).client == client

    @pytest.mark.parametrize(
        "value",
        [
            b"for",
            b"for=",
            b"=a",
            b"for=a",
            b'for=""',
            b"for = 203.0.113.9",
            b"for=203.0.113.9; proto=http",
            b"for=1.1.1.1 ;",
            b"for=203.0.113.9:80",
            b"for=[::1]",
            b"for=[2001:db8::9]",
            b'for="2001:db8::9"',
            b"for=203.0.113.256",
            b'for="203.0.113.9:65536"',
            b'for="203.0.113.9:999999"',
            b'for="203.0.113.9:"',
            b'for="[::1"',
            b'for="[:::]"',
            b'for="[1.2.3.4]"',
            b'for="unknown:x"',
            b"for=_",
            b'for="_a b"',
            b'for="_\xe4"',
            b'for=" 203.0.113.9"',
            b'for="203.0.113.9',
            b'for=203.0.113.9"',
            b'for="203.0.113.9"x',
            b"for='203.0.113.9'",
            b'for="a\\',
            b'for="\x00"',
            b"for=203.0.113.9;for=203.0.113.9",
            b"for=203.0.113.9;FOR=203.0.113.8",
            b"a=b;A=c",
            b"for=1.1.1.1 for=2.2.2.2",
            b"by=a b",
            b"by=nowhere",
            b"proto=1http",
            b'proto=""',
            b'proto="ht tp"',
            b'host="a b"',
            b'host="a:99999"',
            b'host="[:::]"',
            b'host="a\\/b"',
            b"host=a/b",
            b"host=a:80",
            b"203.0.113.9",
            b"for:203.0.113.9",
            b"\xff=a",
            b"a=\xff",
            b'for="[fe80::1%25eth0]"',
            b"for=203.0.113.9\r\n",
        ],
    )
    @pytest.mark.parametrize("others", [b"%b", b"for=6.6.6.6, %b", b"%b, for=10.0.0.1"])
    def test_malformed_is_400(self, value: bytes, others: bytes) -> None:
        with pytest.raises(ProtocolError, match="RFC 7239") as error:
            forwarded(others.replace(b"%b", value))
        assert error.value.code == 400

    def test_lines_are_one_list(self) -> None:
        assert forwarded(b"for=6.6.6.6", b"for=203.0.113.9, for=10.0.0.2", b"", b"for=10.0.0.1").client == (
            "203.0.113.9",
            0,
        )

    def test_quoted_string_does_not_reach_into_the_next_line(self) -> None:
        with pytest.raises(ProtocolError):
            forwarded(b'for=6.6.6.6;x="', b'for="[2001:db8::9]";by="_a')

    def test_scheme_and_host_come_from_the_believed_end(self) -> None:
        evil = b"for=6.6.6.6;proto=http;host=evil.example"
        edge = b'for=203.0.113.9;proto=https;host="www.example:8443"'
        inner = b"for=10.0.0.1;proto=http;host=inner.example"
        assert forwarded(b", ".join((evil, edge, inner))) == (
            ("203.0.113.9", 0),
            "https",
            b"www.example:8443",
            8443,
            None,
        )
        assert forwarded(b", ".join((evil, edge, inner)), hops=1) == (
            ("10.0.0.1", 0),
            "http",
            b"inner.example",
            None,
            None,
        )

    def test_what_the_edge_does_not_say_the_next_proxy_says(self) -> None:
        result = forwarded(b"for=203.0.113.9;proto=ftp;host=, for=10.0.0.1;proto=wss;host=b".replace(b"=,", b'="",'))
        assert result == (("203.0.113.9", 0), "https", b"b", None, None)

    def test_hidden_client_leaves_the_rest_of_its_element(self) -> None:
        result = forwarded(b"for=6.6.6.6;host=evil, for=unknown;proto=https;host=a, for=10.0.0.1")
        assert result == (("10.0.0.1", 0), "https", b"a", None, None)

    @pytest.mark.parametrize(
        ("hops", "client"), [(0, "1.1.1.1"), (1, "3.3.3.3"), (2, "2.2.2.2"), (3, "1.1.1.1"), (9, "1.1.1.1")]
    )
    def test_everyone_trusted(self, hops: int, client: str) -> None:
        assert forwarded(b"for=1.1.1.1, for=2.2.2.2, for=3.3.3.3", allow=("*",), hops=hops).client == (client, 0)

    @pytest.mark.parametrize(
        ("fields", "result"),
        [
            (("for",), (("203.0.113.9", 0), "http", None, None, None)),
            (("proto",), (PEER, "https", None, None, None)),
            (("host",), (PEER, "http", b"a:1", 1, None)),
        ],
    )
    def test_only_enabled_parameters(self, fields: tuple[str, ...], result: tuple[object, ...]) -> None:
        value = b'for=6.6.6.6;proto=http;host=e, for=203.0.113.9;proto=https;host="a:1"'
        assert forwarded(value, fields=fields) == result

    def test_families_are_exclusive(self) -> None:
        headers = [(b"x-forwarded-for", b"6.6.6.6"), (b"x-forwarded-proto", b"http"), (b"x-forwarded-ssl", b"on")]
        both = [*headers, (b"forwarded", b"for=203.0.113.9")]
        assert apply(ProxyTrust(LOCAL, format="forwarded"), both).client == ("203.0.113.9", 0)
        assert ProxyTrust(LOCAL, format="forwarded").apply(headers, PEER, "http") is None
        broken = [(b"forwarded", b"\x00"), (b"x-forwarded-for", b"203.0.113.9")]
        assert apply(ProxyTrust(LOCAL), broken).client == ("203.0.113.9", 0)

    def test_64_elements_from_the_right_are_looked_at(self) -> None:
        chain = [b"for=10.1.0.%d" % number for number in range(200)]
        assert forwarded(b",".join(chain)).client == ("10.1.0.136", 0)
        assert forwarded(*chain).client == ("10.1.0.136", 0)


# Any input gives a result or ProtocolError(400), and what is in the result can be used without a further look.

FRAGMENTS = st.sampled_from(
    b'for= by= proto= host= " \\ ; , : [ ] [::1] 1.2.3.4 10.0.0.1 :80 unknown _x https http / //a % %41'.split()
    + [b"a.example", b"443"]
    + [b" ", b"\t", b"\x00", b"\xff", b"\r\n", b"on", b"ssl"]
)
VALUES = st.one_of(
    st.binary(max_size=60),
    st.lists(FRAGMENTS, max_size=12).map(b"".join),
    st.ip_addresses().map(lambda address: str(address).encode()),
)
NAMES = st.sampled_from(
    [b"forwarded", b"host"]
    + [b"x-forwarded-" + name for name in (b"for", b"proto", b"protocol", b"ssl", b"host", b"port", b"prefix")]
)
TRUSTS = [
    ProxyTrust(allow, format=format, fields=ALL, hops=hops)
    for allow in (LOCAL, OURS, ("*",))
    for format in ("x-forwarded", "forwarded")
    for hops in (0, 1, 3)
]


def check_usable(result: Forwarded) -> None:
    if result.client is not None:
        host, port = result.client
        assert str(ipaddress.ip_address(host)) == host
        assert "%" not in host
        assert 0 <= port <= 65535
    assert result.scheme in ("http", "https")
    assert result.host is None or (
        result.host.isascii() and result.host.decode().isprintable() and b"," not in result.host
    )
    assert result.port is None or 1 <= result.port <= 65535
    if result.prefix:
        assert result.prefix.isascii() and result.prefix.isprintable()
        assert result.prefix[0] == "/" and result.prefix[:2] != "//" and result.prefix[-1] != "/"


@settings(deadline=None, database=None)
@given(st.lists(st.tuples(NAMES, VALUES), max_size=6), st.sampled_from([PEER, None]))
@example([(b"x-forwarded-for", b"fe80::1%\x1b[31m")], PEER)
@example([(b"forwarded", b'for="\\')], None)
def test_any_bytes_give_a_usable_result_or_400(
    headers: list[tuple[bytes, bytes]], client: tuple[str, int] | None
) -> None:
    for trust in TRUSTS:
        try:
            result = trust.apply(headers, client, "http")
        except ProtocolError as error:
            assert error.code == 400
            continue
        assert (result is not None) == trust.present(dict(headers))
        if result is not None:
            check_usable(result)


@settings(deadline=None, database=None)
@given(st.text(max_size=50) | st.ip_addresses().map(str))
def test_any_peer_name_is_judged(host: str) -> None:
    assert ProxyTrust(("*",)).trusts((host, 0))
    assert isinstance(ProxyTrust(OURS).trusts((host, 0)), bool)


@settings(deadline=None, database=None)
@given(st.text(max_size=30))
def test_any_allow_entry_is_taken_or_config_error(entry: str) -> None:
    try:
        trust = ProxyTrust((entry,))
    except ConfigError:
        return
    if entry.strip() and "%" not in entry:
        assert trust.trusts((entry.strip(), 0)) or "/" in entry


@settings(deadline=None, database=None)
@given(st.lists(st.ip_addresses(), min_size=1, max_size=8), st.integers(1, 10), st.sampled_from(TRUSTS[:2]))
def test_hops_pick_the_same_client_in_both_families(addresses: list[Any], hops: int, base: ProxyTrust) -> None:
    plain = b", ".join(str(address).encode() for address in addresses)
    nodes = [b'for="[%s]"' if address.version == 6 else b"for=%s" for address in addresses]
    listed = b",".join(node % str(address).encode() for node, address in zip(nodes, addresses, strict=True))
    expected = addresses[-min(hops, len(addresses))]
    expected = getattr(expected, "ipv4_mapped", None) or expected
    assert client_of(plain, hops=hops) == forwarded(listed, hops=hops).client == (str(expected), 0)


HOSTILE = [
    b",",
    b" ",
    b" ,",
    b";",
    b'"',
    b"\\",
    b'\\"',
    b"[",
    b"%41",
    b"/",
    b"/a",
    b":",
    b"1.",
    b"1,",
    b"a=b,",
    b"a=b;",
    b'a="',
    b"a=",
    b"for=1.1.1.1,",
    b'for="\\1.1.1.1",',
    b"a" * 63 + b",",
    b"10.0.0.1,",
    b"for=10.0.0.1,",
    b"for=unknown ,",
    b"\t\t,",
]


def calls_of(trust: ProxyTrust, headers: list[tuple[bytes, bytes]]) -> int:
    count = 0

    def on_event(frame: object, event: str, arg: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(on_event)
    try:
        trust.apply(headers, PEER, "http")
    except ProtocolError:
        pass
    finally:
        sys.setprofile(None)
    return count


@pytest.mark.parametrize("unit", HOSTILE)
@pytest.mark.parametrize("tail", [b"", b'"', b"x=\x00"])
def test_work_on_hostile_input_does_not_grow_faster_than_it(unit: bytes, tail: bytes) -> None:
    for trust in TRUSTS[:4]:
        for name in sorted(trust.names):
            short = calls_of(trust, [(name, unit * (32_000 // len(unit)) + tail)])
            long = calls_of(trust, [(name, unit * (64_000 // len(unit)) + tail)])
            assert long <= 2 * short + 500
