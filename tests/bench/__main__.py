"""python -m tests.bench: stdserve and the other servers side by side, with wrk as the client.

For each case: in each round every fitting server is started afresh, checked, warmed up, measured and killed; the order
rotates from round to round, so that a slow minute of the machine hits all of them alike. Tables go to standard output,
progress to standard error. Exit status 1 when a server failed or a request went wrong.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from .cases import CASES, MIB, Case
from .load import LoadError, check_answer, measure, run_wrk
from .peers import add_options, installed, prepare
from .procs import StartError, raise_descriptor_limit, running, stop_on_signals
from .report import Results, heading
from .servers import HERE, REPOSITORY, SERVERS, Server, choose, make_pair

WARM_UP_SECONDS = 1
QUICK_CASES = "hello"


class Bench:
    """One run: the chosen servers in one environment. Order of use: made, run_case*."""

    def __init__(self, python: str, servers: list[Server], scratch: Path) -> None:
        self.python = python
        self.servers = servers
        self.scratch = scratch
        self.file = scratch / "file.bin"
        self.file.write_bytes(b"x" * MIB)
        make_pair(scratch)
        self.environment = {"PYTHONPATH": str(REPOSITORY), "BENCH_FILE": str(self.file)}

    def run_case(self, case: Case, rounds: int, seconds: int) -> Results:
        """All rounds of a case; a server that fails once is not tried again in it."""
        results = Results(case)
        fitting = [server for server in self.servers if server.fits(case)]
        for number in range(rounds):
            turn = number % max(1, len(fitting))
            for server in fitting[turn:] + fitting[:turn]:
                if server.name not in results.failed:
                    say(f"{case.name}, round {number + 1} of {rounds}: {server.name}")
                    self.run_once(case, server, seconds, results)
        return results

    def run_once(self, case: Case, server: Server, seconds: int, results: Results) -> None:
        """Start, check, warm up, measure, stop."""
        try:
            with running(self.command_for(case, server), self.environment, HERE) as process:
                try:
                    check_answer(case, process.port)
                    run_wrk(case, process.port, WARM_UP_SECONDS)
                    sample = measure(case, process, seconds)
                except LoadError as error:
                    raise LoadError(f"{error} {process.log_tail()}") from error
        except (StartError, LoadError) as error:
            results.failed[server.name] = str(error)
            say(f"{server.name} FAILED: {error}")
            return
        results.add(server.name, sample)
        trouble = f", errors {sample.errors}" if sample.errors else ""
        say(f"    {sample.cpu_per_request:.1f} us, {sample.rate:,.0f}/s{trouble}")

    def command_for(self, case: Case, server: Server) -> Callable[[int], list[str]]:
        """The server's command as a function of the port."""
        more = list(case.floor or ()) if server.interface == "floor" else []
        if case.tls:
            more += server.tls_flags(self.scratch)
        return lambda port: server.command(self.python, server.app(case), port, self.scratch) + more


def say(line: str) -> None:
    """Progress, apart from the tables."""
    print(line, file=sys.stderr, flush=True)


def parse_arguments() -> argparse.Namespace:
    """The command line; --quick only changes defaults."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__.splitlines()[0])
    names = ", ".join(case.name for case in CASES)
    parser.add_argument("--cases", help=f"comma-separated names or beginnings of: {names} (default: all)")
    names = ", ".join(server.name for server in SERVERS)
    parser.add_argument("--servers", help=f"comma-separated names or beginnings of: {names} (default: all)")
    parser.add_argument("--rounds", type=int, help="rounds for each case (default 5)")
    parser.add_argument("--seconds", type=int, help="seconds measured for each server and round (default 3)")
    parser.add_argument(
        "--quick", action="store_true", help="the hello cases, 3 rounds of 1 s, where not given otherwise"
    )
    add_options(parser)
    args = parser.parse_args()
    args.cases = args.cases or (QUICK_CASES if args.quick else ",".join(case.name for case in CASES))
    args.servers = args.servers or ",".join(server.name for server in SERVERS)
    args.rounds = args.rounds or (3 if args.quick else 5)
    args.seconds = args.seconds or (1 if args.quick else 3)
    if args.rounds < 1 or args.seconds < 1:
        parser.error("--rounds and --seconds must be at least 1")
    return args


def main() -> int:
    """Runs what the command line asks for; the exit status."""
    args = parse_arguments()
    case_names = choose(args.cases, [case.name for case in CASES], "case")
    server_names = choose(args.servers, [server.name for server in SERVERS], "server")
    if shutil.which("wrk") is None:
        sys.exit("wrk is not installed: it is the client (Debian: apt-get install wrk)")
    stop_on_signals()
    raise_descriptor_limit()
    python, version, versions = prepare(args.python, install=not args.no_install)
    servers = [server for server in SERVERS if server.name in server_names and installed(server.needs, versions)]
    print(heading(version, versions, args.rounds, args.seconds), flush=True)
    clean = True
    with tempfile.TemporaryDirectory(prefix="stdserve-bench-") as scratch:
        bench = Bench(python, servers, Path(scratch))
        for case in (case for case in CASES if case.name in case_names and installed((case.package,), versions)):
            results = bench.run_case(case, args.rounds, args.seconds)
            print(results.markdown(servers), flush=True)
            clean = clean and results.clean()
    return 0 if clean else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
