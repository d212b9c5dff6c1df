"""What a proxy in front says about the request: X-Forwarded-* and Forwarded (RFC 7239), and who may say it.

    trust = ProxyTrust(("127.0.0.1", "10.0.0.0/8"))
    trust.trusts(("10.0.0.7", 41000))                    once per connection
    trust.present(request.fields)                        per request; False for most requests without a proxy
    trust.apply(request.headers, client, "http")  ->     Forwarded(("203.0.113.9", 0), "https", None, None, None)

X-Forwarded-* has no specification. Each proxy appends to X-Forwarded-For the address that it was contacted from, so
the list is believable from its right end up to the first address that is not a proxy of ours; what is left of that,
the client may have written itself. Of the other fields only the last value counts, for the same reason. In Forwarded
one element holds all that one proxy says, so scheme and host come from the elements that are believed. The two
families are exclusive: a proxy that sets one passes the other on as the client sent it.

It does not: look at the connection (the caller asks `trusts` first and applies nothing to the rest), remove or
rewrite fields, resolve names, or use `by`.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Container, Hashable, Iterable
from typing import Generic, NamedTuple, TypeVar

from ..errors import ConfigError, ProtocolError
from .grammar import HOST, TCHAR
from .message import Headers

Client = tuple[str, int] | None  # (address, port), port 0 if unknown; None on a unix socket
Node = tuple[tuple[str, int], bool]  # an address that somebody names as the client, and whether it is a proxy of ours
Found = dict[bytes, list[bytes]]  # field name -> its lines, in order
_Address = ipaddress.IPv4Address | ipaddress.IPv6Address
_Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class Forwarded(NamedTuple):
    """The request as the first proxy saw it. What no proxy said is as the caller gave it, or None.

    client   (address, port): a valid address without zone, IPv4 where IPv6 only wraps it; port 0 if not told
    scheme   "http" or "https"; "ws" or "wss" if the caller gave one of these
    host     as in a Host field, never empty, with the port if that was told
    port     1 to 65535: of X-Forwarded-Port, else the one in host
    prefix   "" or a path as sent (percent-encoded) that starts with one "/" and does not end with one
    """

    client: Client
    scheme: str
    host: bytes | None
    port: int | None
    prefix: str | None


# Option value -> the fields that it switches on. X-Forwarded-Protocol and X-Forwarded-Ssl are older spellings of
# X-Forwarded-Proto, which gunicorn knows as secure_scheme_headers.
_X_FORWARDED = {
    "for": (b"x-forwarded-for",),
    "proto": (b"x-forwarded-proto", b"x-forwarded-protocol", b"x-forwarded-ssl"),
    "host": (b"x-forwarded-host",),
    "port": (b"x-forwarded-port",),
    "prefix": (b"x-forwarded-prefix",),
}

_OPT_IN = (b"x-forwarded-host", b"x-forwarded-port", b"x-forwarded-prefix")

# Scheme -> whether it is the encrypted one. Other values say nothing.
_SCHEMES = {b"http": False, b"ws": False, b"https": True, b"wss": True}
_SECURE = {
    b"x-forwarded-proto": _SCHEMES,
    b"x-forwarded-protocol": {**_SCHEMES, b"ssl": True},
    b"x-forwarded-ssl": {b"on": True, b"off": False},
}

_CONTRADICTION = (
    "contradictory scheme headers: X-Forwarded-Proto, X-Forwarded-Protocol and X-Forwarded-Ssl name different schemes"
)

# More proxies than this in a row are nobody's; what is further left is not looked at. It bounds the work that a client
# can cause with a long list: 64 addresses never seen before take 0.6 ms.
_MAX_ENTRIES = 64

# Each cache holds 1,024 keys of at most 64 bytes, about 300 KiB; when full it starts anew.
_CACHE_ENTRIES = 1024
_CACHE_KEY_BYTES = 64

# An entry of X-Forwarded-For: IPv4 [ ":" port ] / "[" IPv6 "]" [ ":" port ] / IPv6; the last as many proxies write it.
# No zone ("%eth0"): it names an interface of another machine, and ipaddress takes any characters in it.
_ENTRY = re.compile(
    rb"(?:([0-9.]{7,15})|\[([0-9A-Fa-f:.]{2,45})\])(?::([0-9]{1,5}))?+"
    rb"|([0-9A-Fa-f:.]{2,45})"
)

# node = nodename [ ":" node-port ]                                                      RFC 7239 6
# nodename = IPv4address / "[" IPv6address "]" / "unknown" / obfnode
# node-port = 1*5DIGIT / obfport; obfnode, obfport = "_" 1*( ALPHA / DIGIT / "." / "_" / "-" )
# The groups are address and numeric port; digits of addresses are not counted here.
_OBFUSCATED = rb"_[0-9A-Za-z._\-]++"
_NODE = re.compile(
    rb"(?:([0-9.]{7,15}|\[[0-9A-Fa-f:.]{2,45}\])|(?i:unknown)|" + _OBFUSCATED + rb")"
    rb"(?::(?:([0-9]{1,5})|" + _OBFUSCATED + rb"))?+"
)

# forwarded-pair = token "=" ( token / quoted-string )                                   RFC 7239 4
# quoted-string = DQUOTE *( qdtext / quoted-pair ) DQUOTE                                RFC 9110 5.6.4
_VALUE_FORM = TCHAR + rb"++|\"(?:[\t !#-\[\]-~\x80-\xff]|\\[\t -~\x80-\xff])*+\""
_PAIR_FORM = rb"%s++=(?:%s)" % (TCHAR, _VALUE_FORM)
_PAIR = re.compile(rb"(%s++)=(%s)" % (TCHAR, _VALUE_FORM))
_QUOTED_PAIR = re.compile(rb"\\(.)")

# forwarded-element = [ forwarded-pair ] *( ";" [ forwarded-pair ] ), no blanks anywhere RFC 7239 4
_ELEMENT_FORM = rb"(?:%s)?+(?:;(?:%s)?+)*+" % (_PAIR_FORM, _PAIR_FORM)

# Forwarded = 1#forwarded-element; a list: OWS "," OWS between, members may be empty     RFC 9110 5.6.1.2
_FORWARDED_LINE = re.compile(rb"%s(?:[ \t]*+,[ \t]*+%s)*+" % (_ELEMENT_FORM, _ELEMENT_FORM))
_ELEMENT = re.compile(rb"(?:\A|,[ \t]*+)(" + _ELEMENT_FORM + rb")")  # finds each one in a line that matched

# scheme = ALPHA *( ALPHA / DIGIT / "+" / "-" / "." )                                    RFC 3986 3.1
_SCHEME = re.compile(rb"[A-Za-z][A-Za-z0-9+\-.]*+")

# path-absolute = "/" [ segment-nz *( "/" segment ) ]; segment = *pchar                  RFC 3986 3.3
# pchar = unreserved / pct-encoded / sub-delims / ":" / "@"
# So it does not start with "//" (a host, in a redirect) and has neither backslash nor control character.
_PCHAR = rb"(?:[0-9A-Za-z\-._~!$&'()*+,;=:@]|%[0-9A-Fa-f]{2})"
_PREFIX = re.compile(rb"/(?:%s++(?:/%s*+)*+)?+" % (_PCHAR, _PCHAR))

_PORT = re.compile(rb"[0-9]{1,5}")

# What HOST matches, in parts (what is in the brackets, port), and never without a name
_HOST_PARTS = re.compile(rb"(?:\[([^\]]*+)\]|[^\[:]++)(?::(.*+))?+")

# What is meant as an address or network and would, as a literal, never match anything.
_ADDRESS_LIKE = re.compile(r"[0-9.]++(?:/.*+)?+|[0-9A-Fa-f.]*+:[0-9A-Fa-f:.]*+(?:/.*+)?+")

_Key = TypeVar("_Key", bound=Hashable)
_Value = TypeVar("_Value")


class _Cache(dict[_Key, _Value], Generic[_Key, _Value]):
    """key -> make(key), kept for a bounded number of keys. Loop thread only."""

    __slots__ = ("_make",)

    def __init__(self, make: Callable[[_Key], _Value]) -> None:
        super().__init__()
        self._make = make

    def __missing__(self, key: _Key) -> _Value:
        if len(self) >= _CACHE_ENTRIES:
            self.clear()
        value = self[key] = self._make(key)
        return value


class ProxyTrust:
    """The options --forwarded-*, prepared. One per process, the loop thread's; immutable but for its caches."""

    __slots__ = ("_enabled", "_everyone", "_hint_name", "_hops", "_literals", "_networks", "_nodes", "_peers",
                 "_read", "_trust_unix", "names")  # fmt: skip

    def __init__(
        self,
        allow_ips: Iterable[str],
        trust_unix: bool = True,
        format: str = "x-forwarded",
        fields: Iterable[str] = ("for", "proto"),
        hops: int = 0,
    ) -> None:
        """Raise ConfigError if a value cannot be used.

        allow_ips    addresses, networks, "*" for everyone, or the peer as it is (a path, "fe80::1%eth0")
        trust_unix   peers on unix sockets are proxies
        fields       of "for", "proto", "host", "port", "prefix"; the last two exist as X-Forwarded-* only
        hops         how many proxies there are, 0: told by their addresses
        """
        if hops < 0:
            raise ConfigError(f"--forwarded-hops: {hops} is negative; use 0 to trust by address")
        self._trust_unix = trust_unix
        self._hops = hops
        self._everyone = False
        self._literals: set[str] = set()
        self._networks: list[_Network] = []
        for entry in filter(None, map(str.strip, allow_ips)):
            self._allow(entry)
        self._enabled = _check_fields(fields)
        self.names = _field_names(format, self._enabled)
        self._hint_name = _hint_name(format, self._enabled)
        self._read = self._read_forwarded if format == "forwarded" else self._read_x_forwarded
        self._peers: _Cache[str, bool] = _Cache(self._judge_peer)
        self._nodes: _Cache[bytes, Node | None] = _Cache(self._make_node)

    def trusts(self, client: Client, unix_path: str | None = None) -> bool:
        """Whether the peer is a proxy whose fields count; `unix_path` is the listener's path where client is None."""
        if client is None:
            return self._trust_unix or self._everyone or unix_path in self._literals
        return self._peers[client[0]]

    def present(self, fields: Iterable[bytes]) -> bool:
        """Whether `apply` would find something in these names (a Request's `fields`)."""
        return not self.names.isdisjoint(fields)

    def apply(self, headers: Headers, client: Client, scheme: str) -> Forwarded | None:
        """What the proxies say; None if they say nothing. Only for a connection that `trusts` allows.

        `headers` with names in lower case. Raise ProtocolError(400) if fields contradict each other or Forwarded is
        malformed. A malformed X-Forwarded-* value counts as not sent.
        """
        found: Found = {}
        for name, value in headers:
            if name in self.names:
                found.setdefault(name, []).append(value)
        return self._read(found, client, scheme) if found else None

    def untrusted_hint(self, client: Client) -> str:
        """For the log, once per peer: it sends such fields and they are not applied."""
        if client is None:
            return (
                f"a peer on a unix socket sends {self._hint_name} but is not trusted; use --forwarded-trust-unix or "
                "add the socket's path to --forwarded-allow-ips if it is your proxy"
            )
        return (
            f"{client[0]} sends {self._hint_name} but is not trusted; "
            "add it to --forwarded-allow-ips if it is your proxy"
        )

    # Who is trusted

    def _allow(self, entry: str) -> None:
        if entry == "*":
            self._everyone = True
        elif _ADDRESS_LIKE.fullmatch(entry) is None:
            self._literals.add(entry)
        elif "/" in entry:
            self._networks.append(_network(entry))
        else:
            self._literals.add(str(_address(entry)))

    def _judge_peer(self, host: str) -> bool:
        if self._everyone or host in self._literals:
            return True
        try:
            return self._trusts_address(_unwrapped(ipaddress.ip_address(host.partition("%")[0])))
        except ValueError:  # not an address: a name that a test client gives itself
            return False

    def _trusts_address(self, address: _Address) -> bool:
        if self._everyone or str(address) in self._literals:
            return True
        return any(address in network for network in self._networks)

    # Who is the client

    def _make_node(self, entry: bytes) -> Node | None:
        match = _ENTRY.fullmatch(entry)
        if match is None:
            return None
        ipv4, bracketed, digits, bare = match.groups()
        port = int(digits or 0)
        try:
            address: _Address = (
                ipaddress.IPv4Address(ipv4.decode()) if ipv4 else ipaddress.IPv6Address((bracketed or bare).decode())
            )
        except ValueError:
            return None
        address = _unwrapped(address)
        return ((str(address), port), self._trusts_address(address)) if port <= 65535 else None

    def _node(self, entry: bytes) -> Node | None:
        return self._nodes[entry] if len(entry) <= _CACHE_KEY_BYTES else None

    def _ends_at(self, position: int, trusted: bool) -> bool:
        """Whether the entry at this position from the right (1 is the last) is the client and not a proxy."""
        return position == self._hops if self._hops else not trusted

    def _client(self, lines: list[bytes], client: Client) -> Client:
        """The leftmost entry that can be believed; `client` if not even the last is an address.

        An entry that is no address ("unknown", "unix:", empty) ends the walk: what stands left of it was written by
        somebody of whom we know nothing.
        """
        entries = b",".join(lines).rsplit(b",", _MAX_ENTRIES)[-_MAX_ENTRIES:]
        for position, entry in enumerate(reversed(entries), 1):
            node = self._node(entry.strip(b" \t"))
            if node is None:
                break
            client, trusted = node
            if self._ends_at(position, trusted):
                break
        return client

    # The two families

    def _read_x_forwarded(self, found: Found, client: Client, scheme: str) -> Forwarded:
        if b"x-forwarded-for" in found:
            client = self._client(found[b"x-forwarded-for"], client)
        last = {name: lines[-1].rpartition(b",")[2].strip(b" \t") for name, lines in found.items()}
        scheme = _scheme(scheme, _secure(last))
        if last.keys().isdisjoint(_OPT_IN):
            return Forwarded(client, scheme, None, None, None)
        host, host_port = _host_and_port(last.get(b"x-forwarded-host", b""))
        port = _port(last.get(b"x-forwarded-port", b"")) or host_port
        return Forwarded(client, scheme, host, port, _prefix(last.get(b"x-forwarded-prefix", b"")))

    def _read_forwarded(self, found: Found, client: Client, scheme: str) -> Forwarded:
        """Walk as in `_client`. An element that ends the walk was still written by a proxy of ours: its rest counts."""
        secure, host = None, b""
        for position, element in enumerate(reversed(_elements(found[b"forwarded"])), 1):
            secure = _SCHEMES.get(element.get(b"proto", b"").lower(), secure)
            host = element.get(b"host", b"") or host
            node = self._forwarded_node(element.get(b"for", b"unknown"))
            if node is None:
                break
            if "for" in self._enabled:
                client = node[0]
            if self._ends_at(position, node[1]):
                break
        name, port = _host_and_port(host) if "host" in self._enabled else (None, None)
        return Forwarded(client, _scheme(scheme, secure if "proto" in self._enabled else None), name, port, None)

    def _forwarded_node(self, value: bytes) -> Node | None:
        match = _NODE.fullmatch(value)
        if match is None:
            raise _malformed(
                "node of Forwarded is not an address, unknown or an obfuscated identifier (RFC 7239 6)", value
            )
        address, port = match.groups()
        if address is None:
            return None
        node = self._node(address if port is None else address + b":" + port)
        if node is None:
            raise _malformed("node of Forwarded is not a valid address and port (RFC 7239 6)", value)
        return node


# Options


def _check_fields(fields: Iterable[str]) -> frozenset[str]:
    enabled = frozenset(fields)
    for field in sorted(enabled - _X_FORWARDED.keys()):
        raise ConfigError(f"--forwarded-fields: {field!r} is not one of {', '.join(_X_FORWARDED)}")
    return enabled


def _field_names(format: str, enabled: Container[str]) -> frozenset[bytes]:
    if format == "x-forwarded":
        return frozenset(name for field, names in _X_FORWARDED.items() if field in enabled for name in names)
    if format == "forwarded":
        return frozenset(b"forwarded" for field in ("for", "proto", "host") if field in enabled)
    raise ConfigError(f"--forwarded-format: {format!r} is neither x-forwarded nor forwarded")


def _hint_name(format: str, enabled: Container[str]) -> str:
    if format == "forwarded":
        return "Forwarded"
    return "X-Forwarded-" + next((field for field in _X_FORWARDED if field in enabled), "for").title()


def _address(entry: str) -> _Address:
    try:
        return _unwrapped(ipaddress.ip_address(entry))
    except ValueError:
        raise ConfigError(f"--forwarded-allow-ips: {entry!r} is not a valid IP address") from None


def _network(entry: str) -> _Network:
    try:
        network = ipaddress.ip_network(entry, strict=False)
    except ValueError:
        raise ConfigError(f"--forwarded-allow-ips: {entry!r} is not a valid network") from None
    if ipaddress.ip_address(entry.partition("/")[0]) != network.network_address:
        raise ConfigError(f"--forwarded-allow-ips: {entry!r} is an address inside {network}; write the one you mean")
    wrapped = _unwrapped(network.network_address)
    if wrapped.version != network.version:  # ::ffff:10.0.0.0/104, unwrapped as peers are; its prefix is 96 or longer
        return ipaddress.ip_network(f"{wrapped}/{network.prefixlen - 96}")
    return network


# Values


def _unwrapped(address: _Address) -> _Address:
    """An IPv4 peer of a socket that serves both versions appears as ::ffff:1.2.3.4 (RFC 4291 2.5.5.2)."""
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


def _secure(last: dict[bytes, bytes]) -> bool | None:
    secure = None
    for name, meanings in _SECURE.items():
        said = meanings.get(last[name].lower()) if name in last else None
        if said is None:
            continue
        if secure is not None and said is not secure:
            excerpt = b", ".join(last[name] for name in _SECURE if name in last)
            raise ProtocolError(400, _CONTRADICTION, -1, excerpt)
        secure = said
    return secure


def _scheme(scheme: str, secure: bool | None) -> str:
    if secure is None:
        return scheme
    plain = "ws" if scheme.startswith("ws") else "http"
    return plain + "s" if secure else plain


def _host_and_port(value: bytes) -> tuple[bytes | None, int | None]:
    """(value, its port or None); (None, None) if it is not a host that can be contacted."""
    match = _HOST_PARTS.fullmatch(value)
    if match is None or HOST.fullmatch(value) is None:
        return None, None
    literal, digits = match.groups()
    port = None if digits is None else _port(digits)
    if (digits is not None and port is None) or (literal is not None and not _is_ip_literal(literal)):
        return None, None
    return value, port


def _is_ip_literal(literal: bytes) -> bool:
    """Of what HOST lets pass: IPvFuture, or an address whose digits nobody has counted yet."""
    try:
        return literal.startswith((b"v", b"V")) or bool(ipaddress.IPv6Address(literal.decode()).compressed)
    except ValueError:
        return False


def _port(digits: bytes) -> int | None:
    if _PORT.fullmatch(digits) is None:
        return None
    number = int(digits)
    return number if 1 <= number <= 65535 else None


def _prefix(value: bytes) -> str | None:
    return value.rstrip(b"/").decode() if _PREFIX.fullmatch(value) else None


# RFC 7239


def _elements(lines: list[bytes]) -> list[dict[bytes, bytes]]:
    """The last elements, parameter names in lower case. Line by line: a quoted-string does not go on in the next."""
    elements: list[bytes] = []
    for line in lines:
        line = line.strip(b" \t")
        if _FORWARDED_LINE.fullmatch(line) is None:
            raise _malformed("Forwarded is not a list of parameters (RFC 7239 4)", line)
        elements += filter(None, _ELEMENT.findall(line))
    return [_element(element) for element in elements[-_MAX_ENTRIES:]]


def _element(element: bytes) -> dict[bytes, bytes]:
    pairs: dict[bytes, bytes] = {}
    for name, value in _PAIR.findall(element):
        name = name.lower()
        if name in pairs:
            raise _malformed("parameter more than once in an element of Forwarded (RFC 7239 4)", element)
        if value.startswith(b'"'):
            value = _QUOTED_PAIR.sub(rb"\1", value[1:-1])
        check = _CHECKS.get(name)
        if check is not None and not check(value):
            raise _malformed("parameter of Forwarded has a malformed value (RFC 7239 5)", element)
        pairs[name] = value
    return pairs


def _is_host(value: bytes) -> bool:
    return not value or _host_and_port(value)[0] is not None  # RFC 7239 5.3: a Host field, which may be empty


_CHECKS: dict[bytes, Callable[[bytes], object]] = {
    b"for": _NODE.fullmatch,
    b"by": _NODE.fullmatch,
    b"host": _is_host,
    b"proto": _SCHEME.fullmatch,
}


def _malformed(rule: str, excerpt: bytes) -> ProtocolError:
    return ProtocolError(400, rule, -1, excerpt)
