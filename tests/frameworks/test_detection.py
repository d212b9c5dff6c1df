"""Which interface the applications and middlewares of real frameworks speak. Each one not installed is skipped."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest

from stdserve.config import Config
from stdserve.gateway.loader import detect_interface, load


def module(name: str) -> Any:
    return pytest.importorskip(name)


def flask() -> Any:
    return module("flask").Flask(__name__)


def fastapi() -> Any:
    return module("fastapi").FastAPI()


def starlette() -> Any:
    return module("starlette.applications").Starlette()


def django(name: str) -> Any:
    settings = module("django.conf").settings
    if not settings.configured:
        settings.configure(ALLOWED_HOSTS=["*"], SECRET_KEY="test", LOGGING_CONFIG=None, ROOT_URLCONF="")
    return getattr(module(f"django.core.{name}"), f"get_{name}_application")()


def webob_view() -> Any:
    return module("webob.dec").wsgify(lambda request: "")


def werkzeug_view() -> Any:
    return module("werkzeug").Request.application(lambda request: None)


WSGI: dict[str, Callable[[], Any]] = {
    "Flask": flask,
    "Flask.wsgi_app": lambda: flask().wsgi_app,
    "partial of Flask": lambda: functools.partial(flask()),
    "Django": lambda: django("wsgi"),
    "Bottle": lambda: module("bottle").Bottle(),
    "Falcon": lambda: module("falcon").App(),
    "Pyramid": lambda: module("pyramid.config").Configurator().make_wsgi_app(),
    "WebOb view": webob_view,
    "Werkzeug view": werkzeug_view,
    "Werkzeug Response": lambda: module("werkzeug").Response(),
    "Werkzeug dispatcher": lambda: module("werkzeug.middleware.dispatcher").DispatcherMiddleware(flask()),
    "Werkzeug ProxyFix": lambda: module("werkzeug.middleware.proxy_fix").ProxyFix(flask()),
    "WhiteNoise": lambda: module("whitenoise").WhiteNoise(flask()),
    "a2wsgi, of ASGI": lambda: module("a2wsgi").ASGIMiddleware(starlette()),
}

ASGI: dict[str, Callable[[], Any]] = {
    "FastAPI": fastapi,
    "partial of FastAPI": lambda: functools.partial(fastapi()),
    "Starlette": starlette,
    "Starlette router": lambda: module("starlette.routing").Router(),
    "Starlette middleware": lambda: module("starlette.middleware.cors").CORSMiddleware(starlette()),
    "Starlette response": lambda: module("starlette.responses").PlainTextResponse(""),
    "Starlette endpoint class": lambda: module("starlette.endpoints").HTTPEndpoint,
    "Django": lambda: django("asgi"),
    "Falcon": lambda: module("falcon.asgi").App(),
    "Litestar": lambda: module("litestar").Litestar([]),
    "Quart": lambda: module("quart").Quart(__name__),
    "Quart.asgi_app": lambda: module("quart").Quart(__name__).asgi_app,
    "asgiref, of WSGI": lambda: module("asgiref.wsgi").WsgiToAsgi(flask()),
    "a2wsgi, of WSGI": lambda: module("a2wsgi").WSGIMiddleware(flask()),
    "Hypercorn dispatcher": lambda: module("hypercorn.middleware").DispatcherMiddleware({}),
}

# Frameworks leave files and loops of their own to the collector.
pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.mark.parametrize("name", WSGI)
def test_wsgi(name: str) -> None:
    assert detect_interface(WSGI[name]()) == "wsgi"


@pytest.mark.parametrize("name", ASGI)
def test_asgi(name: str) -> None:
    assert detect_interface(ASGI[name]()) == "asgi3"


def test_application_is_not_taken_for_a_factory(caplog: pytest.LogCaptureFixture) -> None:
    app = flask()
    assert load(Config(app=app)).app is app and not caplog.records


def test_class_of_an_application_is_made_one(caplog: pytest.LogCaptureFixture) -> None:
    bottle = module("bottle").Bottle
    assert load(Config(app=bottle)).interface == "wsgi"
    assert "--factory" in caplog.text
