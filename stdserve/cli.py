"""The command line: arguments, environment and file -> Config -> a running server -> an exit code.

    main
        read_command_line           argparse, made from config.OPTIONS; sources.py puts environment and file below it
        serve
            logs.configure_logging
            server.Server.run       blocks until the server is stopped

Exit codes: 0 a normal stop, 1 an option or address that cannot be used, 2 usage, 3 the application's start failed, 4 it
is not an application, 130 interrupted before the server took over the signals. 3 and 4 are gunicorn's.

It does not check values (config.py does) and does not import the server before the options are known to be good, so
--help and a typing error are answered at once.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from . import __version__
from .config import OPTIONS, Config, Option, did_you_mean
from .errors import ConfigError, StdserveError
from .sources import gather, show
from .values import SWITCH

if TYPE_CHECKING:
    from .process.inherit import Start
    from .server import Server

# The last part, so that a copy in yourapp/_vendor goes by the same name.
PROGRAM = (__package__ or "stdserve").rpartition(".")[2]

USAGE_ERROR = 2
INTERRUPTED = 130  # 128 + SIGINT, as a shell says it

EPILOG = """\
Durations: 30, 30s, 5m, 1h30m, 500ms. Sizes: 65536, 64KiB, 1MiB. Lists: a,b.
Every option can also be set in a file, as port = 8000, and in the environment, as STDSERVE_PORT; the environment wins
over the file, the command line over both.
"""

logger = logging.getLogger("stdserve.error")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line (without the program's name; None: that of the process) and return the exit code."""
    try:
        given = sys.argv[1:] if argv is None else argv
        directory = os.getcwd()  # --chdir changes it
        config = _read(given)
        if isinstance(config, int):
            return config
        return serve(config, reread=lambda: read_command_line(given, os.environ, directory), owns_process=argv is None)
    except KeyboardInterrupt:
        return INTERRUPTED


def serve(config: Config, *, reread: Callable[[], Config] | None = None, owns_process: bool = False) -> int:
    """Set up logging, serve until stopped, return the exit code; a start that fails is one line. A worker that the
    supervisor has forked does not return: it ends with SystemExit.

    `reread` makes the Config anew for a reload. With `owns_process` the process must end soon after that, whatever
    threads the application has left.
    """
    from .logs import configure_logging

    supervised = config.workers is not None or config.reload or config.daemon
    try:
        start = _start_context() if supervised else None
        _settle(config)
        configure_logging(config)
    except StdserveError as error:
        return _refuse(error)
    own_pid = os.getpid()
    try:
        server = _alone(config) if start is None else _supervise(config, reread, start)
    except StdserveError as error:
        server = _report(error)
    in_worker = os.getpid() != own_pid
    code = server if isinstance(server, int) else _run(server)
    if not isinstance(server, int):
        if server.stuck:
            _leave(code)
        if owns_process or in_worker:
            _end_in_time(code, 0.0 if server.cut else config.timeout_graceful_shutdown)
    if in_worker:
        _end_worker(code, owns_process)
    return code


def _settle(config: Config) -> None:
    """--chdir and --umask, before anything is opened."""
    if config.chdir:
        try:
            os.chdir(config.chdir)
        except OSError as error:
            raise ConfigError(f"--chdir: {config.chdir!r}: {error.strerror}") from None
    if config.umask is not None:
        os.umask(config.umask)


def _alone(config: Config) -> Server:
    """For one process that serves by itself."""
    from .process.identity import notify, watchdog_seconds
    from .server import Server

    for name in ("preload", "max_requests", "max_worker_memory", "max_worker_lifetime", "pid", "user", "group"):
        if getattr(config, name) != OPTIONS[name].default:
            logger.warning("%s has no effect without --workers", OPTIONS[name])
    server = Server(config, on_started=lambda: notify("READY=1"), on_stopping=lambda: notify("STOPPING=1"))
    if watchdog_seconds():
        _feed_watchdog(server, watchdog_seconds() / 4)
    return server


def _feed_watchdog(server: Server, seconds: float) -> None:
    """Tell systemd again and again that the loop answers."""
    import threading

    from .process.identity import notify

    def feed() -> None:
        while True:
            server.call_in_loop(notify, "WATCHDOG=1")
            pause.wait(seconds)

    pause = threading.Event()
    threading.Thread(target=feed, name="stdserve-watchdog", daemon=True).start()


def _start_context() -> Start:
    if not hasattr(os, "fork"):
        raise ConfigError("--workers needs os.fork, which this system does not have: run one process")
    from .process.inherit import Start

    return Start.of_this_process()


def _supervise(config: Config, reread: Callable[[], Config] | None, start: Start) -> Server | int:
    """The supervisor's exit code; in a worker the Server that it is to run."""
    from .process.daemon import Daemon, daemonize, detach_streams
    from .process.supervisor import Supervisor

    daemon: Daemon | None = None
    if config.daemon and not start.is_upgrade:
        if config.error_log_file == "-" and not config.log_config and not config.enable_stdio_inheritance:
            logger.warning("--daemon: once the workers serve nobody sees the log; name a file with --error-logfile")
        daemon = daemonize()

    def on_serving() -> None:
        if daemon is not None:
            daemon.report(0)
        if config.daemon and not config.enable_stdio_inheritance:
            detach_streams()

    own_pid = os.getpid()
    try:
        server = Supervisor(config, reread, start, on_serving=on_serving).run()
    except StdserveError as error:
        server = _report(error)
    except Exception:
        if os.getpid() == own_pid:
            raise
        logger.exception("a worker cannot start")  # and must not end in the supervisor's caller
        server = 1
    if daemon is not None and isinstance(server, int):
        daemon.report(server)
    return server


def _run(server: Server) -> int:
    try:
        server.run()
    except StdserveError as error:
        return _report(error)
    return 0


def _report(error: StdserveError) -> int:
    """One line in the log, below the application's own traceback if there is one; the exit code for it."""
    details = getattr(error, "details", "")
    if details:
        logger.error("%s", details.rstrip())
    logger.error("%s", error)
    return error.exit_code


def _end_in_time(code: int, seconds: float) -> None:
    """Python waits at its end for threads without a limit: give those of the application as long as its requests.

    Which it waits for nobody can ask: all that are no daemons, and those of each ThreadPoolExecutor.
    """
    import threading  # the server has it

    if threading.active_count() > 1:
        timer = threading.Timer(max(seconds, 1.0), _give_up, (code,))
        timer.daemon = True
        timer.start()


def _end_worker(code: int, owns_process: bool) -> NoReturn:
    """Never back into the caller's code, whose `finally` are the supervisor's: then as multiprocessing ends a child."""
    if not owns_process:
        import atexit
        import threading

        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        _leave(code)
    raise SystemExit(code)


def _give_up(code: int) -> None:
    logger.error("threads of the application do not end and are left behind")
    _leave(code)


def _leave(code: int) -> NoReturn:
    """End although the application holds threads: Python would wait for some of them for ever."""
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stream.flush()
    os._exit(code)


def read_command_line(argv: Sequence[str], environ: Mapping[str, str], directory: str = "") -> Config:
    """The Config; ConfigError for what file and environment hold, SystemExit after a usage error and after all flags
    that ask for something else than to serve. `directory` is where the file is looked for."""
    parser = make_parser()
    given = _parse(parser, argv)
    wanted = given.pop("wanted", "")
    try:
        values = {name: OPTIONS[name].check(value) for name, value in given.items()}
    except ConfigError as error:
        parser.error(str(error))
    found = gather(values, environ, directory)
    if wanted == "print":
        print(show(found))
        parser.exit()
    if not found["app"].value:
        parser.error(f"no application given; name its module and attribute, as in: {PROGRAM} main:app")
    config = Config(**{name: value for name, (value, _) in found.items()})
    if wanted == "check":
        parser.exit(_check(config))
    return config


def _check(config: Config) -> int:
    """--check-config: 0 if the application can be loaded."""
    from .gateway.loader import load

    try:
        _settle(config)
        application = load(config)
    except StdserveError as error:
        print(f"{getattr(error, 'details', '')}\n{PROGRAM}: error: {error}".strip(), file=sys.stderr)
        return 1
    print(f"{config.app}: {application.interface}, the configuration can be used")
    return 0


def make_parser() -> argparse.ArgumentParser:
    """A parser that leaves out what was not given and does not look into values."""
    parser = _Parser(
        prog=PROGRAM,
        usage=f"{PROGRAM} [options] {OPTIONS['app'].metavar}",
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )
    parser.add_argument("--version", action=_Version)
    parser.add_argument("--print-config", dest="wanted", action="store_const", const="print")
    parser.add_argument("--check-config", dest="wanted", action="store_const", const="check")
    for option in OPTIONS.values():
        if not option.flags:
            parser.add_argument(option.name, nargs="?")
        elif option.kind is SWITCH:
            parser.add_argument(*option.flags, dest=option.name, action=argparse.BooleanOptionalAction)
        else:
            parser.add_argument(*option.flags, dest=option.name, action="append" if option.repeatable else "store")
    return parser


def help_text(columns: int = 100) -> str:
    """--help, from the option table."""
    lines = ["Serve a WSGI or ASGI application."]
    group = ""
    for option in OPTIONS.values():
        if option.group != group:
            group = option.group
            lines += ["", f"{group}:"]
        lines += _help_entry(_spelling(option), f"{option.help} (default: {option.show_default()})", columns)
    lines += ["", "Other:", *_help_entry("-h, --help", "show this and exit", columns)]
    lines += _help_entry("--version", "show the versions of server and Python and exit", columns)
    lines += _help_entry("--print-config", "show each option's value and where it comes from, and exit", columns)
    lines += _help_entry("--check-config", "load the application and exit: 0 if it can be served, else 1", columns)
    return "\n".join(lines) + "\n\n" + EPILOG


# Reading


class _Parser(argparse.ArgumentParser):
    """With help of our own: argparse repeats the metavar after each flag and sets the rest in a narrow column."""

    def format_help(self) -> str:
        import shutil  # only for --help

        return self.format_usage() + "\n" + help_text(min(shutil.get_terminal_size().columns, 100))

    def error(self, message: str) -> NoReturn:
        self.exit(USAGE_ERROR, f"{self.format_usage()}{self.prog}: error: {message}\n")


class _Version(argparse.Action):
    def __init__(self, option_strings: Sequence[str], dest: str, **settings: Any) -> None:
        super().__init__(option_strings, dest, nargs=0, **settings)

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        import platform  # only for --version

        python = f"{platform.python_implementation()} {platform.python_version()}"
        print(f"stdserve {__version__} with {python} on {platform.system()}")
        parser.exit()


def _parse(parser: argparse.ArgumentParser, argv: Sequence[str]) -> dict[str, Any]:
    namespace, unknown = parser.parse_known_args(list(argv))
    for argument in unknown:
        # The value of an unknown flag may have been taken for the application, so flags are what to speak about.
        if argument.startswith("-") and argument != "--":
            flag = argument.partition("=")[0]
            parser.error(f"unknown option {flag}{did_you_mean(flag, _all_flags())}")
    if unknown:
        parser.error(f"unexpected argument {unknown[0]!r}: give one application, and options as --name value")
    return vars(namespace)


def _all_flags() -> Iterator[str]:
    yield from ("--help", "--version", "--print-config", "--check-config")
    for option in OPTIONS.values():
        yield from option.spellings


def _spelling(option: Option) -> str:
    if option.kind is SWITCH:
        return ", ".join(option.spellings)
    return f"{', '.join(option.flags)} {option.metavar}".strip()


def _help_entry(spelling: str, text: str, columns: int) -> list[str]:
    import textwrap  # only for --help

    return [f"  {spelling}", *textwrap.wrap(text, max(columns, 40), initial_indent=" " * 8, subsequent_indent=" " * 8)]


def _read(argv: Sequence[str]) -> Config | int:
    """The Config, or the exit code of a command line that asks for something else or is wrong."""
    try:
        try:
            return read_command_line(argv, os.environ)
        except SystemExit as done:
            if sys.stdout is not None:
                sys.stdout.flush()
            return done.code if isinstance(done.code, int) else 0
    except ConfigError as error:
        return _refuse(error)
    except BrokenPipeError:  # `stdserve --help | head`
        _discard_output()
        return 0


def _refuse(error: StdserveError) -> int:
    """There is no log yet."""
    print(f"{PROGRAM}: error: {error}", file=sys.stderr)
    return error.exit_code


def _discard_output() -> None:
    """Python flushes standard output once more when it ends and would complain then."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stdout.fileno())
    os.close(null)
