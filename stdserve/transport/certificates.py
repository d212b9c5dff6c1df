"""Certificates: from the options to SSL contexts, one for each pair; the right one by name; new ones when files change.

    Certificates(config)          ConfigError if something is missing or does not fit, a warning if it expires
        find_pairs                files or directories -> pairs of certificate and key
        make_context              a pair -> SSLContext with all that the options say
    context                       of the first pair; a client that names a host gets that host's (SNI, RFC 6066 3)
    look(now)                     have the files changed? Then new contexts take the place of the old ones

New handshakes take the new context, connections keep theirs. Files are compared by what stat says of them behind all
symbolic links, so that a link that is swapped counts as a change too (Kubernetes mounts secrets that way). A pair that
is broken, or half written, leaves the old one in place.

Session tickets (RFC 8446 4.6.1) are sealed with a key of the context, which Python does not let us set. Contexts made
before the fork are the same in all workers: there a client's session goes on in any of them. After a change of the
files each worker has contexts of its own, until the workers are replaced (HUP).
"""

from __future__ import annotations

import calendar
import functools
import importlib
import logging
import os
import re
import ssl
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from ..errors import ConfigError
from ..protocol.x509 import Certificate, matches, read_certificate

if TYPE_CHECKING:
    from ..config import Config

logger = logging.getLogger("stdserve.error")

# How often the files are looked at. A look costs about 2 us for each.
LOOK_SECONDS = 2.0

_DAY_SECONDS = 86400.0
_WARN_DAYS = 14

# Names that tools give to the two files of one pair: Kubernetes, certbot
_PAIR_NAMES = (("tls.crt", "tls.key"), ("fullchain.pem", "privkey.pem"))
_CERTIFICATE_ENDINGS = (".pem", ".crt", ".cert", ".cer")
_KEY_ENDINGS = (".key", "-key.pem", ".key.pem")

_CERTIFICATE = re.compile(r"-----BEGIN CERTIFICATE-----[^-]+-----END CERTIFICATE-----")
_PRIVATE_KEY = re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----")

_VERIFY = {"none": ssl.CERT_NONE, "optional": ssl.CERT_OPTIONAL, "required": ssl.CERT_REQUIRED}
_VERSIONS = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}


class Pair(NamedTuple):
    certificate: str
    key: str  # may be the same file


class Context(ssl.SSLContext):
    """An SSLContext that knows its certificate: `pem` for ASGI's "tls" extension."""

    pair: Pair
    certificate: Certificate
    pem: str


class Certificates:
    """Made before the fork or in the loop's process; afterwards the loop thread's."""

    def __init__(self, config: Config) -> None:
        self._options = _options(config)
        self._config = config
        self._look_at = 0.0
        self._warn_at = 0.0
        self._state = self._read_state()  # before the files: a change while they are read is seen later
        self._contexts = _load(config)
        self.context = self._contexts[0]
        self._warn()

    def renewed(self, config: Config) -> Certificates:
        """Those for a new configuration: the same, with their tickets, if nothing has changed."""
        if self._options == _options(config) and self._state == self._read_state():
            return self
        return Certificates(config)

    def covers(self, host: str) -> bool:
        """Whether one of the certificates is good for this host."""
        return any(matches(name, host) for context in self._contexts for name in context.certificate.names)

    def look(self, now: float) -> None:
        """Now and then (time.monotonic()): take files that have changed."""
        if now < self._look_at:
            return
        self._look_at = now + LOOK_SECONDS
        state = self._read_state()
        if state != self._state:
            self._state = state  # also if they are broken: that is said once
            self._reload()
        elif time.time() >= self._warn_at:
            self._warn()

    def _reload(self) -> None:
        try:
            contexts = _load(self._config)
        except ConfigError as error:
            logger.error("The new certificate cannot be used, the old one stays: %s", error)
            return
        self._contexts = contexts
        self.context = contexts[0]
        logger.info("Certificates loaded anew: %s", ", ".join(context.pair.certificate for context in contexts))
        self._warn()

    def _warn(self) -> None:
        """Say, once a day, which certificates are not valid now or will not be soon."""
        now = time.time()
        self._warn_at = now + _DAY_SECONDS
        for context in self._contexts:
            begins, ends = (calendar.timegm(when) for when in context.certificate[1:])
            days = (ends - now) / _DAY_SECONDS
            path = context.pair.certificate
            if days < 0:
                logger.warning("The certificate %s has expired, on %s", path, _day(ends))
            elif now < begins:
                logger.warning("The certificate %s is not valid before %s", path, _day(begins))
            elif days < _WARN_DAYS:
                logger.warning("The certificate %s expires in %d days, on %s", path, days, _day(ends))

    def _read_state(self) -> tuple[object, ...]:
        """What changes when one of the files does."""
        config = self._config
        paths = {*config.ssl_certfile, *config.ssl_keyfile, config.ssl_ca_certs} - {""}
        try:
            paths.update(path for pair in find_pairs(config) for path in pair)
        except ConfigError as error:
            return (str(error),)
        return tuple(map(_stat, sorted(paths)))


def _options(config: Config) -> tuple[object, ...]:
    return (
        config.ssl_certfile, config.ssl_keyfile, config.ssl_keyfile_password, config.ssl_ca_certs,
        config.ssl_cert_reqs, config.ssl_ciphers, config.ssl_version, config.ssl_context_factory,
    )  # fmt: skip


def _stat(path: str) -> tuple[object, ...]:
    try:
        status = os.stat(path)
    except OSError as error:
        return path, error.errno
    return path, status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _day(seconds: float) -> str:
    return time.strftime("%Y-%m-%d", time.gmtime(seconds))


# ---- which files


def find_pairs(config: Config) -> list[Pair]:
    """The pairs that the options name; ConfigError if there are none or keys are left over."""
    keys = list(config.ssl_keyfile)
    pairs: list[Pair] = []
    for path in config.ssl_certfile:
        if os.path.isdir(path):
            found = list(_pairs_in(path))
            if not found:
                raise ConfigError(f"--ssl-certfile: no pair of certificate and key in the directory {path!r}")
            pairs += found
        else:
            pairs.append(Pair(path, keys.pop(0) if keys else path))
    if keys:
        raise ConfigError(f"--ssl-keyfile: {keys[0]!r} is the key of no --ssl-certfile")
    return pairs


def _pairs_in(folder: str, deep: bool = True) -> Iterator[Pair]:
    """tls.crt and tls.key, fullchain.pem and privkey.pem, else NAME.crt and NAME.key; then those of the folders."""
    try:
        names = sorted(name for name in os.listdir(folder) if not name.startswith("."))
    except OSError as error:
        raise ConfigError(f"--ssl-certfile: {folder!r}: {error.strerror}") from None
    usual = [pair for pair in _PAIR_NAMES if names.count(pair[0]) and names.count(pair[1])]
    for certificate, key in usual or _pairs_of(names):
        yield Pair(os.path.join(folder, certificate), os.path.join(folder, key))
    for path in (os.path.join(folder, name) for name in names):
        if deep and os.path.isdir(path):
            yield from _pairs_in(path, deep=False)


def _pairs_of(names: list[str]) -> Iterator[tuple[str, str]]:
    for name in names:
        stem, ending = os.path.splitext(name)
        if ending in _CERTIFICATE_ENDINGS and not name.endswith(_KEY_ENDINGS):
            key = next((stem + each for each in _KEY_ENDINGS if stem + each in names), "")
            if key or ending == ".pem":
                yield name, key or name


# ---- contexts


def _load(config: Config) -> list[Context]:
    """A context for each pair. The first one chooses among them."""
    contexts = [make_context(config, pair) for pair in find_pairs(config)]
    if len(contexts) > 1:
        _choose_by_name(contexts[0], contexts)
    return contexts


def _choose_by_name(first: Context, contexts: Iterable[Context]) -> None:
    """Server Name Indication: a name that no certificate has gets the first one (RFC 6066 3 leaves that to us)."""
    by_name: dict[str, Context] = {}
    for context in contexts:
        for name in context.certificate.names:
            by_name.setdefault(name, context)

    def choose(tls: ssl.SSLObject, name: str | None, _: ssl.SSLContext) -> None:
        host = (name or "").lower()
        found = by_name.get(host) or by_name.get("*." + host.partition(".")[2])
        if found is not None and found is not first:
            tls.context = found

    first.sni_callback = choose  # its first argument is what wrap_bio has made
    _expect_bad_names()


def _expect_bad_names() -> None:
    """A name that is not ASCII (RFC 6066 3) never reaches the callback: Python prints a traceback, as often as a
    client likes to see it, and the handshake fails, which is said elsewhere. Without the traceback, then."""
    before = sys.unraisablehook
    if getattr(before, "expects_bad_names", False):
        return

    def hook(unraisable: sys.UnraisableHookArgs) -> None:
        if not (unraisable.exc_type is UnicodeDecodeError and type(unraisable.object) is bytes):
            before(unraisable)

    hook.expects_bad_names = True  # type: ignore[attr-defined]
    sys.unraisablehook = hook


def make_context(config: Config, pair: Pair) -> Context:
    """The options' context, or what --ssl-context-factory makes of it."""
    factory = _factory(config.ssl_context_factory)
    if factory is None:
        return _make_context(config, pair)
    made: list[Context] = []

    def make() -> Context:
        made.append(_make_context(config, pair))
        return made[-1]

    context = factory(config, make)
    if not isinstance(context, ssl.SSLContext):
        raise ConfigError(f"--ssl-context-factory: it returned {context!r:.80}, which is no ssl.SSLContext")
    if made and context is made[-1]:
        return made[-1]
    known = made[-1] if made else make()
    context.set_alpn_protocols(["http/1.1"])
    for name in ("pair", "certificate", "pem"):  # of the files; what a context has loaded it does not tell
        setattr(context, name, getattr(known, name))
    return context  # type: ignore[return-value]


def _factory(given: Any) -> Callable[[Config, Callable[[], Context]], Any] | None:
    if not isinstance(given, str):
        return given  # type: ignore[no-any-return]
    module, _, name = given.partition(":")
    try:
        found = functools.reduce(getattr, name.split("."), importlib.import_module(module))
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"--ssl-context-factory {given}: {error}") from None
    return found  # type: ignore[return-value]


def _make_context(config: Config, pair: Pair) -> Context:
    context = Context(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = _VERSIONS[config.ssl_version]
    # A client that could make us renegotiate could make us compute (RFC 5746 is off with it)
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
    context.set_alpn_protocols(["http/1.1"])  # RFC 7301
    if config.ssl_ciphers:
        try:
            context.set_ciphers(config.ssl_ciphers)
        except ssl.SSLError:
            raise ConfigError(f"--ssl-ciphers: OpenSSL knows no cipher suite in {config.ssl_ciphers!r}") from None
    _load_pair(context, pair, config.ssl_keyfile_password)
    _load_authorities(context, config)
    return context


def _load_pair(context: Context, pair: Pair, password: str) -> None:
    text = _read("--ssl-certfile", pair.certificate)
    found = _CERTIFICATE.search(text)
    if found is None:
        raise ConfigError(f"--ssl-certfile: no certificate (PEM) in {pair.certificate!r}")
    if pair.key != pair.certificate:
        text = _read("--ssl-keyfile", pair.key)
    if not _PRIVATE_KEY.search(text):
        hint = "" if pair.key != pair.certificate else "; name its file with --ssl-keyfile"
        raise ConfigError(f"--ssl-keyfile: no private key (PEM) in {pair.key!r}{hint}")
    asked: list[bool] = []

    def answer() -> str:  # without it OpenSSL would ask at the terminal
        asked.append(True)
        return password

    try:
        data = ssl.PEM_cert_to_DER_cert(found[0])
        context.certificate = read_certificate(data)
        context.load_cert_chain(pair.certificate, pair.key, answer)
    except (OSError, ValueError) as error:  # SSLError is an OSError; and the file may have just gone
        raise ConfigError(_explain(error, pair, bool(asked), bool(password))) from None
    context.pair = pair
    context.pem = ssl.DER_cert_to_PEM_cert(data)


def _explain(error: Exception, pair: Pair, encrypted: bool, has_password: bool) -> str:
    reason = getattr(error, "reason", None) or error
    if reason == "KEY_VALUES_MISMATCH":
        return f"--ssl-keyfile: {pair.key!r} is not the key of the certificate {pair.certificate!r}"
    if encrypted and not has_password:
        return f"--ssl-keyfile: the key {pair.key!r} is encrypted: give --ssl-keyfile-password"
    if encrypted:
        return f"--ssl-keyfile-password: it does not open the key {pair.key!r}"
    return f"--ssl-certfile: {pair.certificate!r} with the key {pair.key!r}: {reason}"


def _load_authorities(context: Context, config: Config) -> None:
    """Whom client certificates must come from."""
    if config.ssl_ca_certs:
        _read("--ssl-ca-certs", config.ssl_ca_certs)
        try:
            context.load_verify_locations(config.ssl_ca_certs)
        except OSError:
            raise ConfigError(f"--ssl-ca-certs: no certificate (PEM) in {config.ssl_ca_certs!r}") from None
    elif config.ssl_cert_reqs != "none":
        raise ConfigError(f"--ssl-cert-reqs {config.ssl_cert_reqs}: say by --ssl-ca-certs whose certificates count")
    context.verify_mode = _VERIFY[config.ssl_cert_reqs]


def _read(option: str, path: str) -> str:
    try:
        with open(path, encoding="latin-1") as file:
            return file.read()
    except OSError as error:
        raise ConfigError(f"{option}: {path!r}: {error.strerror}") from None
