"""stdserve: a web server for WSGI and ASGI applications on the Python standard library alone.

stdserve.run("module:app", port=8000)          serve until stopped; exits when the start fails
Server(Config(app=app, port=0)).run()          the same in pieces
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .config import Config
    from .server import Server

__all__ = ["Config", "Server", "__version__", "run"]

__version__ = "0.1.0"


def run(app: Any, **options: Any) -> None:
    """Serve `app`, an import string or an application, until INT or TERM.

    `options` are the fields of Config, or the names that they have in uvicorn and gunicorn. Configures logging. When
    the start fails the reason is logged and the process exits with the code that the command line has for it.
    """
    from .cli import serve
    from .config import Config

    code = serve(Config.from_names(app=app, **options))
    if code:
        raise SystemExit(code)


def __getattr__(name: str) -> Any:
    # Only when asked for: `import stdserve` and a supervisor need no protocol code.
    if name == "Config":
        from .config import Config

        return Config
    if name == "Server":
        from .server import Server

        return Server
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
