"""The option table: every option once, and the Config that is made from it.

A row is a field of Config: its name, its default with the unit, its kind, its help, its flags and the names it has in
uvicorn and gunicorn. From the table come

    Config(**values)                own names; every value is checked and brought to one form
    Config.from_names(**names)      own names and those of uvicorn and gunicorn
    environment_values(environ)     STDSERVE_<NAME>
    options_markdown()              the table for the README
    cli.py                          the command line and --help

Texts are accepted wherever values are: "30s" for a duration, "64k" for a size, "a,b" for a list. sources.py puts file,
environment and command line together.

It has no side effects: it imports no application, sets up no logging, opens and resolves nothing. Whether an address
can be listened on is the listener's question, whether an application exists the loader's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from .errors import ConfigError
from .values import (
    APPLICATION,
    CERT_REQS,
    DAYS,
    DURATION,
    FUNCTION,
    GIB,
    HEADERS,
    KIB,
    LEVEL,
    LEVELS,
    LIST,
    LOG_CONFIG,
    LOOP,
    MIB,
    MODE,
    NUMBER,
    PATH,
    PATHS,
    ROOT_PATH,
    SECONDS,
    SECRET,
    SIZE,
    SWITCH,
    TEXT,
    TLS_VERSION,
    TLS_VERSIONS,
    VERIFY,
    WEBSOCKET,
    WORKERS,
    Kind,
    shown,
)

ENVIRONMENT_PREFIX = "STDSERVE_"

# The most that an option takes if its row says nothing else: what fits in a signed 64-bit number, and for durations the
# longest wait that poll(2) and epoll_wait(2) take, which count milliseconds in an int (24.8 days).
MOST = 2**63 - 1
MOST_SECONDS = 24 * DAYS

# gunicorn's own ceiling for the number of fields. 32,768 fields of four bytes are more than a head of 64 KiB can hold.
MOST_FIELDS = 32768


# The table


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """One row. `shown` is the default in words where the value itself says little; `least` and `most` are inclusive."""

    name: str = ""
    default: Any
    help: str
    kind: Kind
    group: str = ""
    flag: str = ""
    flags: tuple[str, ...] = ()
    variables: tuple[str, ...] = ()
    uvicorn: tuple[str, ...] = ()
    gunicorn: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()
    least: float | None = None
    most: float | None = None
    metavar: str = ""
    shown: str = ""
    repeatable: bool = False

    def __str__(self) -> str:
        return self.flag or self.name

    def check(self, value: object, source: str = "") -> Any:
        """The value in its one form, or ConfigError, which names `source` (else the flag) and the value."""
        if value is None and self.default is None:
            return None
        try:
            found = self.kind.convert(value)
            self._check_range(found)
            self._check_choices(found)
        except ValueError as error:
            raise ConfigError(f"{source or self}: {error}") from None
        return found

    @property
    def spellings(self) -> tuple[str, ...]:
        """The flags, with `--no-name` behind each `--name` of a switch."""
        if self.kind is not SWITCH:
            return self.flags
        pairs = ((flag, f"--no-{flag[2:]}") if flag.startswith("--") else (flag,) for flag in self.flags)
        return tuple(flag for pair in pairs for flag in pair)

    def show_default(self) -> str:
        return self.shown or ("none" if self.default is None else self.kind.show(self.default)) or "none"

    def _check_range(self, value: Any) -> None:
        if self.least is not None and value < self.least:
            raise ValueError(f"{shown(value)} is less than {self.kind.show(self.least)}")
        if self.most is not None and value > self.most:
            raise ValueError(f"{shown(value)} is more than {self.kind.show(self.most)}")

    def _check_choices(self, value: Any) -> None:
        if self.choices:
            for part in value if isinstance(value, tuple) else (value,):
                if part not in self.choices:
                    raise ValueError(f"{shown(part)} is not one of {', '.join(self.choices)}")


def option(default: Any, help: str, kind: Kind, **row: Any) -> Any:
    """A field of Config that is a row of the table.

    `group` starts a group: the rows after it belong to it too. `flag` replaces the row's own flag, which is its name
    with dashes; `flags` are further ones. `uvicorn` and `gunicorn` are the names of its settings there.
    """
    if kind in (NUMBER, SIZE, DURATION, MODE):
        row = {"least": 0, "most": MOST_SECONDS if kind is DURATION else MOST, **row}
    row.setdefault("metavar", "|".join(row.get("choices", ())) or kind.default_metavar)
    return field(default=default, metadata={"row": {"default": default, "help": help, "kind": kind, **row}})


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """What a server is to do: plain data that does not change. A value that cannot be used raises ConfigError."""

    app: Any = option(
        "", "the application: module:attribute, or the object itself", APPLICATION, group="Application",
        metavar="module:attribute", uvicorn=("app",), gunicorn=("wsgi_app",),
    )  # fmt: skip
    config: str = option(
        "", "file with options (TOML or JSON)", PATH, shown="stdserve.toml, pyproject.toml or stdserve.json here",
        flags=("-c",), gunicorn=("config",),
    )  # fmt: skip
    factory: bool = option(
        False, "the attribute is a function that returns the application", SWITCH, uvicorn=("factory",),
    )  # fmt: skip
    app_dir: str = option(
        "", "directory to import the application from", PATH, shown="current directory", uvicorn=("app_dir",),
    )  # fmt: skip
    interface: str = option(
        "auto", "what the application speaks", TEXT, choices=("auto", "wsgi", "asgi3", "asgi2"),
        uvicorn=("interface",),
    )  # fmt: skip
    lifespan: str = option(
        "auto", "ASGI lifespan events; auto: if the application takes them", TEXT, choices=("auto", "on", "off"),
        flags=("--asgi-lifespan",), uvicorn=("lifespan",), gunicorn=("asgi_lifespan",),
    )  # fmt: skip
    timeout_lifespan_startup: float = option(
        60 * SECONDS, "how long the application's startup may take; 0: no limit", DURATION,
    )  # fmt: skip
    timeout_lifespan_shutdown: float = option(
        30 * SECONDS, "how long the application's shutdown may take; 0: no limit", DURATION,
    )  # fmt: skip
    root_path: str = option(
        "", "path under which a proxy mounts the application, such as /api", ROOT_PATH,
        uvicorn=("root_path",), gunicorn=("root_path",),
    )  # fmt: skip

    host: str = option(
        "127.0.0.1", "address or host name to listen on", TEXT, group="Listen", metavar="HOST", uvicorn=("host",),
    )  # fmt: skip
    port: int = option(
        8000, "port to listen on; 0: one that is free", NUMBER, most=65535, metavar="PORT", uvicorn=("port",),
    )  # fmt: skip
    bind: tuple[str, ...] = option(
        (), "HOST:PORT, [IPV6]:PORT, unix:PATH or fd://N to listen on, in place of host and port", LIST, flags=("-b",),
        repeatable=True, metavar="ADDRESS", gunicorn=("bind",),
    )  # fmt: skip
    uds: str = option("", "path of a unix socket to listen on", PATH, uvicorn=("uds",))
    uds_permissions: int = option(0o666, "mode of the unix socket", MODE, most=0o777)
    fd: int | None = option(
        None, "number of a listening socket's descriptor to take over", NUMBER, most=2**31 - 1, uvicorn=("fd",),
    )  # fmt: skip
    backlog: int = option(
        2048, "connections that may wait in the kernel to be accepted", NUMBER, most=2**31 - 1,
        uvicorn=("backlog",), gunicorn=("backlog",),
    )  # fmt: skip
    reuse_port: bool = option(
        False, "set SO_REUSEPORT, so that several servers share the port", SWITCH, gunicorn=("reuse_port",),
    )  # fmt: skip

    ssl_certfile: tuple[str, ...] = option(
        (), "certificate with its chain (PEM); several for several names (SNI), or a directory of pairs", PATHS,
        group="TLS", flags=("--certfile",), repeatable=True, uvicorn=("ssl_certfile",), gunicorn=("certfile",),
    )  # fmt: skip
    ssl_keyfile: tuple[str, ...] = option(
        (), "private key of each certificate, in the same order", PATHS, shown="in the certificate's file",
        flags=("--keyfile",), repeatable=True, uvicorn=("ssl_keyfile",), gunicorn=("keyfile",),
    )  # fmt: skip
    ssl_keyfile_password: str = option(
        "", "password of the private keys", SECRET, uvicorn=("ssl_keyfile_password",),
    )  # fmt: skip
    ssl_ca_certs: str = option(
        "", "certificates of those who sign client certificates (PEM)", PATH, flags=("--ca-certs",),
        uvicorn=("ssl_ca_certs",), gunicorn=("ca_certs",),
    )  # fmt: skip
    ssl_cert_reqs: str = option(
        "none", "whether clients are asked for a certificate", VERIFY, choices=CERT_REQS, flags=("--cert-reqs",),
        uvicorn=("ssl_cert_reqs",), gunicorn=("cert_reqs",),
    )  # fmt: skip
    ssl_ciphers: str = option(
        "", "cipher suites of TLS 1.2, as OpenSSL writes them", TEXT, shown="those of Python", flags=("--ciphers",),
        uvicorn=("ssl_ciphers",), gunicorn=("ciphers",),
    )  # fmt: skip
    ssl_version: str = option(
        "1.2", "least version of TLS", TLS_VERSION, choices=TLS_VERSIONS, uvicorn=("ssl_version",),
        gunicorn=("ssl_version",),
    )  # fmt: skip
    ssl_context_factory: Any = option(
        None, "called with Config and a function that makes the SSLContext of these options; returns what to use",
        FUNCTION, uvicorn=("ssl_context_factory",), gunicorn=("ssl_context",),
    )  # fmt: skip
    timeout_handshake: float = option(10 * SECONDS, "for the TLS handshake; 0: no limit", DURATION)
    https_redirect: int | None = option(
        None, "port on which plain HTTP is answered with a redirect (308) to https", NUMBER, least=1, most=65535,
        metavar="PORT", shown="off",
    )  # fmt: skip

    limit_request_line: int = option(
        8190, "bytes of the request line; 0: as much as the head may have", SIZE, group="Limits", most=GIB,
        gunicorn=("limit_request_line",),
    )  # fmt: skip
    limit_request_head: int = option(
        64 * KIB, "bytes of request line and header fields together", SIZE, least=1, most=GIB,
        flags=("--h11-max-incomplete-event-size",), uvicorn=("h11_max_incomplete_event_size",),
    )  # fmt: skip
    limit_request_fields: int = option(
        200, f"number of header fields; 0: {MOST_FIELDS}", NUMBER, most=MOST_FIELDS, gunicorn=("limit_request_fields",),
    )  # fmt: skip
    limit_request_field_size: int = option(
        64 * KIB, "bytes of one header field; 0: as much as the head may have", SIZE, most=GIB,
        flags=("--limit-request-field_size",), gunicorn=("limit_request_field_size",),
    )  # fmt: skip
    limit_request_body: int = option(0, "bytes of a request body; 0: no limit", SIZE)
    limit_chunk_extensions: int = option(16 * KIB, "bytes of all chunk extensions of a request body", SIZE, most=GIB)
    limit_trailers: int = option(16 * KIB, "bytes of the trailer fields after a request body", SIZE, most=GIB)
    limit_concurrency: int = option(
        0, "requests that run at the same time, 503 above it; 0: no limit", NUMBER, uvicorn=("limit_concurrency",),
    )  # fmt: skip
    limit_connections: int = option(
        0, "open connections; 0: as many as the descriptor limit allows", NUMBER, flags=("--worker-connections",),
        gunicorn=("worker_connections",),
    )  # fmt: skip

    ws: str = option(
        "auto", "WebSockets for ASGI applications; none: the request for one is a request like others", WEBSOCKET,
        group="WebSocket", choices=("auto", "none"), uvicorn=("ws",),
    )  # fmt: skip
    ws_max_size: int = option(
        16 * MIB, "bytes of a message that is received, inflated; 0: no limit", SIZE, uvicorn=("ws_max_size",),
        gunicorn=("websocket_max_message_size",),
    )  # fmt: skip
    ws_max_queue: int = option(
        16, "messages, of 64 KiB in all, that may wait for the application before no more are read", NUMBER, least=1,
        uvicorn=("ws_max_queue",),
    )  # fmt: skip
    ws_ping_interval: float = option(
        20 * SECONDS, "how often a WebSocket's client is asked for a sign of life; 0: never", DURATION,
        uvicorn=("ws_ping_interval",),
    )  # fmt: skip
    ws_ping_timeout: float = option(
        20 * SECONDS, "for this sign to come, else the WebSocket is closed; 0: no limit", DURATION,
        uvicorn=("ws_ping_timeout",),
    )  # fmt: skip
    ws_per_message_deflate: bool = option(
        True, "compress messages if the client wants it (RFC 7692)", SWITCH, uvicorn=("ws_per_message_deflate",),
    )  # fmt: skip

    timeout_request_head: float = option(
        10 * SECONDS, "for the request's head to arrive, from its first byte; 0: no limit", DURATION,
        group="Time limits",
    )  # fmt: skip
    timeout_request_body: float = option(
        30 * SECONDS, "for the next bytes of a request's body to arrive; 0: no limit", DURATION,
    )  # fmt: skip
    timeout_request: float = option(
        0.0, "for the application to begin its answer, from the request's head on, else 504; 0: no limit", DURATION,
    )  # fmt: skip
    timeout_write: float = option(
        30 * SECONDS, "for the client to take the next bytes of the response; 0: no limit", DURATION,
    )  # fmt: skip
    timeout_keep_alive: float = option(
        75 * SECONDS, "for the next request on a connection, longer than a proxy in front keeps it; 0: close at once",
        DURATION, flags=("--keep-alive",), uvicorn=("timeout_keep_alive",), gunicorn=("keepalive",),
    )  # fmt: skip
    timeout_graceful_shutdown: float = option(
        30 * SECONDS, "for running requests to end when the server stops; 0: do not wait", DURATION,
        flags=("--graceful-timeout",), uvicorn=("timeout_graceful_shutdown",), gunicorn=("graceful_timeout",),
    )  # fmt: skip

    workers: int | None = option(
        None, "worker processes under a supervisor; auto: one for each CPU", WORKERS, group="Processes",
        shown="one process without supervisor", flags=("-w",), least=1, most=10_000, variables=("WEB_CONCURRENCY",),
        uvicorn=("workers",), gunicorn=("workers",),
    )  # fmt: skip
    preload: bool = option(
        False, "import the application once, before the workers are forked", SWITCH, flags=("--preload-app",),
        gunicorn=("preload_app",),
    )  # fmt: skip
    timeout: float = option(
        30 * SECONDS, "for a worker's loop to answer its supervisor, else it is replaced; 0: no limit", DURATION,
        flags=("-t",), gunicorn=("timeout",),
    )  # fmt: skip
    timeout_boot: float = option(0.0, "for a worker to become ready; 0: no limit", DURATION)
    max_requests: int = option(
        0, "requests after which a worker is replaced; 0: no limit", NUMBER, flags=("--limit-max-requests",),
        uvicorn=("limit_max_requests",), gunicorn=("max_requests",),
    )  # fmt: skip
    max_requests_jitter: int = option(
        0, "at most so many more, by chance, so that not all are replaced together", NUMBER,
        flags=("--limit-max-requests-jitter",), uvicorn=("limit_max_requests_jitter",),
        gunicorn=("max_requests_jitter",),
    )  # fmt: skip
    max_worker_memory: int = option(0, "resident memory above which a worker is replaced; 0: no limit", SIZE)
    max_worker_lifetime: float = option(0.0, "age at which a worker is replaced; 0: no limit", DURATION)
    daemon: bool = option(
        False, "go on in the background as soon as the workers serve", SWITCH, flags=("-D",), gunicorn=("daemon",)
    )
    enable_stdio_inheritance: bool = option(
        False, "keep the terminal's standard output and error in the background", SWITCH, flags=("-R",),
        gunicorn=("enable_stdio_inheritance",),
    )  # fmt: skip
    pid: str = option("", "file for the supervisor's process number", PATH, flags=("-p",), gunicorn=("pidfile",))
    user: str = option("", "user name or number that workers run as", TEXT, flags=("-u",), gunicorn=("user",))
    group: str = option("", "group name or number that workers run as", TEXT, flags=("-g",), gunicorn=("group",))
    initgroups: bool = option(False, "give workers all groups of the user", SWITCH, gunicorn=("initgroups",))
    chdir: str = option("", "directory to change to before anything is loaded", PATH, gunicorn=("chdir",))
    umask: int | None = option(
        None, "mask of the modes of new files", MODE, shown="as it is", most=0o777, flags=("-m",), gunicorn=("umask",),
    )  # fmt: skip
    name: str = option("stdserve", "how process titles begin", TEXT, flags=("-n",), gunicorn=("proc_name",))

    reload: bool = option(
        False, "start anew when a file changes, for development", SWITCH, group="Reload", uvicorn=("reload",),
        gunicorn=("reload",),
    )  # fmt: skip
    reload_dirs: tuple[str, ...] = option(
        (), "directories to watch", LIST, flag="--reload-dir", repeatable=True, metavar="PATH",
        shown="that of the application", uvicorn=("reload_dirs",),
    )  # fmt: skip
    reload_includes: tuple[str, ...] = option(
        ("*.py",), "patterns of the files to watch", LIST, flag="--reload-include", repeatable=True, metavar="PATTERN",
        uvicorn=("reload_includes",),
    )  # fmt: skip
    reload_excludes: tuple[str, ...] = option(
        (".*",), "patterns of files not to watch", LIST, flag="--reload-exclude", repeatable=True, metavar="PATTERN",
        uvicorn=("reload_excludes",),
    )  # fmt: skip
    reload_extra_files: tuple[str, ...] = option(
        (), "further files to watch, or patterns of such", LIST, flag="--reload-extra-file", repeatable=True,
        metavar="PATH", gunicorn=("reload_extra_files",),
    )  # fmt: skip
    reload_delay: float = option(
        0.25, "for files to rest before the start", DURATION, uvicorn=("reload_delay",),
    )  # fmt: skip
    reload_engine: str = option(
        "auto", "how changes are noticed", TEXT, choices=("auto", "inotify", "poll"), gunicorn=("reload_engine",),
    )  # fmt: skip

    proxy_headers: bool = option(
        True, "believe trusted proxies about client address and scheme", SWITCH, group="Proxies and headers",
        uvicorn=("proxy_headers",),
    )  # fmt: skip
    forwarded_allow_ips: tuple[str, ...] = option(
        ("127.0.0.1", "::1"), "proxies to trust: addresses, networks, unix socket paths; *: everyone", LIST,
        variables=("FORWARDED_ALLOW_IPS",), uvicorn=("forwarded_allow_ips",), gunicorn=("forwarded_allow_ips",),
    )  # fmt: skip
    forwarded_trust_unix: bool = option(True, "trust peers on unix sockets as proxies", SWITCH)
    forwarded_format: str = option(
        "x-forwarded", "which fields proxies send: X-Forwarded-* or Forwarded (RFC 7239)", TEXT,
        choices=("x-forwarded", "forwarded"),
    )  # fmt: skip
    forwarded_fields: tuple[str, ...] = option(
        ("for", "proto"), "what to believe: some of for, proto, host, port, prefix", LIST,
        choices=("for", "proto", "host", "port", "prefix"), metavar="LIST",
    )  # fmt: skip
    forwarded_hops: int = option(
        0, "number of proxies in front; 0: told by the trusted addresses", NUMBER, most=64,
    )  # fmt: skip
    headers: tuple[tuple[str, str], ...] = option(
        (), "field to add to every response", HEADERS, flag="--header", repeatable=True, uvicorn=("headers",),
    )  # fmt: skip
    server_header: bool = option(True, "send a Server field", SWITCH, uvicorn=("server_header",))
    date_header: bool = option(True, "send a Date field", SWITCH, uvicorn=("date_header",))
    sendfile: bool = option(True, "let the kernel send files (wsgi.file_wrapper)", SWITCH, gunicorn=("sendfile",))

    log_level: str = option(
        "info", "least level of the error log", LEVEL, group="Logging", choices=tuple(LEVELS.values()),
        uvicorn=("log_level",), gunicorn=("loglevel",),
    )  # fmt: skip
    log_config: Any = option(
        None, "file for the logging module (JSON or ini); in Python also a dict", LOG_CONFIG,
        flags=("--log-config-json",), uvicorn=("log_config",),
        gunicorn=("logconfig", "logconfig_dict", "logconfig_json"),
    )  # fmt: skip
    access_log: bool = option(True, "write a line for each request", SWITCH, uvicorn=("access_log",))
    access_log_format: str = option(
        "", "format of this line, with gunicorn's atoms", TEXT, shown="the built-in format",
        flags=("--access-logformat",), gunicorn=("access_log_format",),
    )  # fmt: skip
    access_log_file: str = option(
        "-", "where this line goes; -: standard output", PATH, flag="--access-logfile", gunicorn=("accesslog",),
    )  # fmt: skip
    error_log_file: str = option(
        "-", "where all other messages go; -: standard error", PATH, flag="--error-logfile", flags=("--log-file",),
        gunicorn=("errorlog",),
    )  # fmt: skip
    use_colors: bool | None = option(
        None, "colour the error log", SWITCH, shown="on a terminal", uvicorn=("use_colors",),
    )  # fmt: skip

    threads: int = option(
        32, "most threads that run a WSGI application; they are started as needed", NUMBER, group="Threads and loop",
        least=1, most=10_000, gunicorn=("threads",),
    )  # fmt: skip
    loop: str = option(
        "auto", "event loop of an ASGI application; auto is asyncio", LOOP, flags=("--asgi-loop",), uvicorn=("loop",),
        gunicorn=("asgi_loop",),
    )  # fmt: skip
    main_loop: bool = option(False, "run the event loop in the main thread", SWITCH)
    warn_blocked_loop: float = option(
        1 * SECONDS, "after which the log says what blocks the event loop of an ASGI application; 0: never", DURATION,
    )  # fmt: skip

    def __post_init__(self) -> None:
        for row in OPTIONS.values():
            object.__setattr__(self, row.name, row.check(getattr(self, row.name)))
        # gunicorn's 0, "no limit", is the largest there is: the head as a whole always has a limit.
        for name, most in (
            ("limit_request_line", self.limit_request_head),
            ("limit_request_field_size", self.limit_request_head),
            ("limit_request_fields", MOST_FIELDS),
        ):
            object.__setattr__(self, name, getattr(self, name) or most)

    @classmethod
    def from_names(cls, **names: object) -> Config:
        """A Config from own names and those of uvicorn and gunicorn; None means not given."""
        return cls(**own_names(names))


def _make_options() -> dict[str, Option]:
    table: dict[str, Option] = {}
    group = ""
    for each in fields(Config):
        row = dict(each.metadata["row"])
        group = row["group"] = row.get("group", group)
        if each.name != "app":
            own = row["flag"] = row.get("flag") or "--" + each.name.replace("_", "-")
            row["flags"] = tuple(sorted((own, *row.get("flags", ())), key=lambda flag: flag.startswith("--")))
        row["variables"] = (ENVIRONMENT_PREFIX + each.name.upper(), *row.get("variables", ()))
        table[each.name] = Option(name=each.name, **row)
    return table


OPTIONS: Mapping[str, Option] = _make_options()

# Every name an option can be given by -> its own name. No name of uvicorn is another option's name in gunicorn.
NAMES: Mapping[str, str] = {
    name: row.name for row in OPTIONS.values() for name in (row.name, *row.uvicorn, *row.gunicorn)
}


# Sources


def own_names(names: Mapping[str, object]) -> dict[str, Any]:
    """Names of ours, uvicorn's or gunicorn's -> ours, without those whose value is None. ConfigError if unknown."""
    found: dict[str, Any] = {}
    given: dict[str, str] = {}
    for name, value in names.items():
        own = NAMES.get(name)
        if own is None:
            raise ConfigError(f"unknown option {name!r}{did_you_mean(name, NAMES)}")
        if value is None:
            continue
        if own in found:
            raise ConfigError(f"{given[own]!r} and {name!r} are the same option, give one of them")
        found[own], given[own] = value, name
    return found


def environment_values(environ: Mapping[str, str]) -> dict[str, Any]:
    """Own name -> checked value of the options that `environ` has. ConfigError names the variable.

    An empty variable counts as not set, for an empty host would listen everywhere; but it empties a list, for an empty
    list of trusted proxies must not become the default one.
    """
    found: dict[str, Any] = {}
    for row in OPTIONS.values():
        variable = variable_of(row, environ)
        if variable:
            found[row.name] = row.check(environ[variable], variable)
    return found


def variable_of(row: Option, environ: Mapping[str, str]) -> str:
    """The name of the variable that sets the option; empty if none does."""
    variable = next((name for name in row.variables if name in environ), "")
    return variable if variable and (environ[variable] or isinstance(row.default, tuple)) else ""


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """`; did you mean ...?`, or nothing if none of the names is close."""
    import difflib  # only when something went wrong

    plain = {each.lstrip("-").replace("_", "-").lower(): each for each in names}
    close = difflib.get_close_matches(name.lstrip("-").replace("_", "-").lower(), plain, n=1, cutoff=0.7)
    return f"; did you mean {plain[close[0]]}?" if close else ""


# The README's table


def options_markdown() -> str:
    """One table for each group: option, default, meaning, names elsewhere."""
    lines: list[str] = []
    group = ""
    for row in OPTIONS.values():
        if row.group != group:
            group = row.group
            lines += [f"\n### {group}\n", "| Option | Default | Meaning | Names elsewhere |", "|---|---|---|---|"]
        cells = (_spelling(row), row.show_default(), row.help, _elsewhere(row))
        lines.append("| " + " | ".join(cell.replace("|", "\\|").replace("*", "\\*") for cell in cells) + " |")
    return "\n".join(lines).strip() + "\n"


def _spelling(row: Option) -> str:
    if row.kind is SWITCH:
        return ", ".join(f"`{flag}`" for flag in row.spellings)
    first, *others = row.flags or ("",)
    return ", ".join([f"`{first} {row.metavar}`".replace("` ", "`"), *(f"`{flag}`" for flag in others)])


def _elsewhere(row: Option) -> str:
    servers = (("uvicorn", row.uvicorn), ("gunicorn", row.gunicorn))
    return "; ".join(f"{server} " + ", ".join(f"`{name}`" for name in names) for server, names in servers if names)
