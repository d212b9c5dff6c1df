"""Which signal asks a supervisor for what. gunicorn's table; INT is graceful, for a second one forces."""

from __future__ import annotations

import signal

from ..mailbox import set_handlers

VERBS = {
    signal.SIGTERM: "stop",
    signal.SIGINT: "interrupt",
    signal.SIGQUIT: "quick",
    signal.SIGHUP: "reload",
    signal.SIGUSR1: "reopen",
    signal.SIGUSR2: "upgrade",
    signal.SIGTTIN: "more",
    signal.SIGTTOU: "fewer",
    signal.SIGWINCH: "park",
    signal.SIGCHLD: "reap",
}

# What means nothing to a worker: a terminal or a `kill -HUP 0` sends some of these to the whole process group.
IGNORED_BY_WORKERS = (signal.SIGHUP, signal.SIGUSR2, signal.SIGTTIN, signal.SIGTTOU, signal.SIGWINCH)


def forget_handlers() -> None:
    """In a new worker, where VERBS are still blocked: nothing of what its supervisor has set applies to it."""
    for number in VERBS:
        signal.signal(number, signal.SIG_DFL)
    # Not SIG_IGN, which programs that the application starts would inherit. USR1 until the server listens to it.
    set_handlers(dict.fromkeys((*IGNORED_BY_WORKERS, signal.SIGUSR1), _nothing))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, VERBS)


def _nothing(number: int, frame: object) -> None:
    pass
