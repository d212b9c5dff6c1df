"""Import strings, factories, errors with their exit codes, and the detection of interfaces."""

from __future__ import annotations

import functools
import itertools
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn
from wsgiref.simple_server import demo_app
from wsgiref.validate import validator

import pytest

from stdserve.config import Config
from stdserve.errors import AppLoadError, ConfigError
from stdserve.gateway.loader import Application, detect_interface, load

WSGI = "def {name}(environ, start_response): return []\n"

_numbers = itertools.count(1)


class Site:
    """A directory with modules, each under a name that no other test has imported."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.prefix = f"site{next(_numbers)}"

    def write(self, name: str, text: str) -> str:
        """Write the file `name` ("main.py", "pkg/main.py"); the dotted name of its module."""
        file = self.path / f"{self.prefix}_{name}"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        return str(file.relative_to(self.path).with_suffix("")).replace("/", ".").removesuffix(".__init__")

    def load(self, app: str, **options: Any) -> Application:
        return load(Config(app=app, app_dir=str(self.path), **options))

    def refuse(self, app: str, **options: Any) -> AppLoadError:
        """The error that loading raises; its message is one line."""
        with pytest.raises(AppLoadError) as caught:
            self.load(app, **options)
        assert len(str(caught.value).splitlines()) == 1
        return caught.value


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    modules = set(sys.modules)
    yield Site(tmp_path)
    for name in set(sys.modules) - modules:
        if name.startswith("site"):
            del sys.modules[name]


# ---- import strings


def test_attribute(site: Site) -> None:
    name = site.write("main.py", WSGI.format(name="serve"))
    found = site.load(f"{name}:serve")
    assert found.app.__name__ == "serve" and found.interface == "wsgi" and found.name == f"{name}:serve"


def test_attribute_of_an_object(site: Site) -> None:
    name = site.write("main.py", "class a:\n class b:\n  @staticmethod\n  " + WSGI.format(name="c"))
    assert site.load(f"{name}:a.b.c").app.__name__ == "c"


def test_blanks_around_the_whole_are_dropped(site: Site) -> None:
    name = site.write("main.py", WSGI.format(name="app"))
    assert site.load(f" {name}:app\n").name == f"{name}:app"


def test_module_in_a_package_and_with_a_hyphen(site: Site) -> None:
    site.write("pkg/__init__.py", "")
    name = site.write("pkg/my-main.py", WSGI.format(name="app"))
    assert site.load(f"{name}:app").interface == "wsgi"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (WSGI.format(name="application") + WSGI.format(name="app"), "application"),
        (WSGI.format(name="app"), "app"),
        ("import sys as application\n" + WSGI.format(name="app"), "app"),
    ],
)
def test_module_alone_means_application_then_app(site: Site, text: str, found: str) -> None:
    assert site.load(site.write("main.py", text)).app.__name__ == found


def test_call_with_literals(site: Site) -> None:
    name = site.write(
        "main.py", "def create(*a, **k):\n " + WSGI.format(name="app") + " app.seen = a, k\n return app\n"
    )
    found = site.load(f"{name}:create(1, -2.5, 'x', [None, (True,)], name=\"y\", more={{'a': b'b'}})")
    assert found.app.seen == ((1, -2.5, "x", [None, (True,)]), {"name": "y", "more": {"a": b"b"}})
    assert found.name == f"{name}:create()", "arguments may be secrets"


def test_call_of_a_method(site: Site) -> None:
    name = site.write(
        "main.py", "class maker:\n @staticmethod\n def make():\n  " + WSGI.format(name="app") + "  return app\n"
    )
    assert site.load(f"{name}:maker.make()").app.__name__ == "app"


@pytest.mark.parametrize(
    ("app", "exit_code", "part"),
    [
        ("", 4, "module:attribute"),
        ("  ", 4, "module:attribute"),
        (":app", 4, "module:attribute"),
        ("main:", 4, "module:attribute"),
        ("main: app", 4, "white space beside the colon"),
        ("main :app", 4, "white space beside the colon"),
        ("my main:app", 3, "is not the name of a module"),
        ("main..sub:app", 3, "is not the name of a module"),
        (".main:app", 3, "relative"),
        ("main.py", 3, "did you mean 'main:app'?"),
        ("main.py:api", 3, "did you mean 'main:api'?"),
        ("./main.py:api", 3, "did you mean 'main:api'?"),
        ("src/main.py", 3, "did you mean 'main:app' with --app-dir src?"),
        ("/srv/site/main.py:api", 3, "did you mean 'main:api' with --app-dir /srv/site?"),
        ("main:a b", 4, "neither a name nor a call"),
        ("main:a[0]", 4, "neither a name nor a call"),
        ("main:a()()", 4, "neither a name nor a call"),
        ("main:a().b", 4, "neither a name nor a call"),
        ("main:'a'", 4, "neither a name nor a call"),
        ("main:a\0", 4, "neither a name nor a call"),
        ("main:create(x)", 4, "may only be literals"),
        ("main:create(open('x'))", 4, "may only be literals"),
        ("main:create(*[1])", 4, "may only be literals"),
        ("main:create({[]: 1})", 4, "may only be literals"),
        ("main:create(**{'a': 1})", 4, "** is not possible"),
    ],
)
def test_wrong_string_is_refused_before_anything_is_imported(site: Site, app: str, exit_code: int, part: str) -> None:
    error = site.refuse(app)
    assert part in str(error) and error.exit_code == exit_code and not error.details
    assert "main" not in sys.modules


def test_path_into_a_package_becomes_a_dotted_name(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.write("pkg/__init__.py", "")
    monkeypatch.chdir(site.path)
    folder = f"{site.prefix}_pkg"
    assert f"did you mean '{folder}.main:app'?" in str(site.refuse(f"{folder}/main.py:app"))


# ---- where modules are looked for


def test_app_dir_goes_to_the_front_of_the_path_once(site: Site) -> None:
    name = site.write("main.py", WSGI.format(name="app"))
    sys.path.append(str(site.path))
    site.load(f"{name}:app")
    site.load(f"{name}:app")
    assert sys.path[0] == str(site.path) and sys.path.count(str(site.path)) == 2


def test_no_app_dir_is_the_current_directory(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    name = site.write("main.py", WSGI.format(name="app"))
    monkeypatch.chdir(site.path)
    assert load(Config(app=f"{name}:app")).interface == "wsgi"
    assert sys.path[0] == str(site.path)


def test_app_dir_that_is_a_link_is_not_resolved(site: Site) -> None:
    name = site.write("release/main.py", WSGI.format(name="app")).partition(".")[0]
    link = site.path / "current"
    link.symlink_to(site.path / name)
    assert load(Config(app="main:app", app_dir=str(link))).app.__code__.co_filename == str(link / "main.py")
    del sys.modules["main"]


def test_app_dir_that_does_not_exist(site: Site) -> None:
    with pytest.raises(ConfigError, match=r"--app-dir '.*/nowhere' does not exist"):
        load(Config(app="main:app", app_dir=str(site.path / "nowhere")))


# ---- the module cannot be had: exit 3


def test_missing_module_is_answered_with_the_nearest_name(site: Site) -> None:
    name = site.write("main.py", "")
    error = site.refuse(f"{name[:-1]}:app")
    assert str(error) == f"there is no module {name[:-1]!r} in {site.path} or on sys.path; did you mean {name!r}?"
    assert error.exit_code == 3 and not error.details


def test_missing_module_that_is_one_directory_below(site: Site) -> None:
    (site.path / "src").mkdir()
    (site.path / "src" / "serve_me.py").write_text("")
    assert str(site.refuse("serve_me:app")).endswith("; there is one in 'src': say --app-dir src")


def test_missing_module_in_a_package(site: Site) -> None:
    site.write("pkg/__init__.py", "")
    name = site.write("pkg/main.py", "")
    package = name.partition(".")[0]
    error = site.refuse(f"{package}.man:app")
    assert str(error) == f"there is no module '{package}.man' in the package {package!r}; did you mean {name!r}?"
    assert error.exit_code == 3 and not error.details


def test_dot_in_place_of_the_colon(site: Site) -> None:
    name = site.write("main.py", WSGI.format(name="app"))
    assert str(site.refuse(f"{name}.app")) == f"there is no module '{name}.app'; did you mean '{name}:app'?"
    assert (
        str(site.refuse(f"{name}.api:app")) == f"there is no module '{name}.api': {name!r} is a module, not a package"
    )


def test_module_that_the_application_misses_is_the_applications_fault(site: Site) -> None:
    name = site.write("main.py", "\nimport not_there_at_all\n")
    error = site.refuse(f"{name}:app")
    assert str(error) == (
        f"module {name!r} could not be imported: ModuleNotFoundError: No module named 'not_there_at_all'"
    )
    assert error.exit_code == 3
    assert f'{name}.py", line 2' in error.details and error.details.startswith("Traceback")


def test_module_that_misses_a_part_of_its_own_name_is_the_applications_fault(site: Site) -> None:
    name = site.write("main.py", "raise ModuleNotFoundError('sic', name=__name__)")
    error = site.refuse(f"{name}:app")
    assert "could not be imported: ModuleNotFoundError: sic" in str(error) and error.details


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("def app(:", "SyntaxError: invalid syntax ("),
        ("raise SystemExit(7)", "SystemExit: 7"),
        ("raise SystemExit", "SystemExit"),
        ("raise RuntimeError('one\\ntwo')", "RuntimeError: one"),
        ("raise BaseException('deep')", "BaseException: deep"),
        ("import asyncio; raise asyncio.CancelledError", "CancelledError"),
        ("class E(Exception):\n def __str__(self): 1 / 0\nraise E", "E"),
    ],
)
def test_what_the_import_raises_ends_the_start(site: Site, text: str, what: str) -> None:
    name = site.write("main.py", text)
    error = site.refuse(f"{name}:app")
    assert f"module {name!r} could not be imported: {what}" in str(error) and error.exit_code == 3
    assert f"{name}.py" in error.details


def test_interrupt_while_importing_is_not_the_applications(site: Site) -> None:
    name = site.write("main.py", "raise KeyboardInterrupt")
    with pytest.raises(KeyboardInterrupt):
        site.load(f"{name}:app")


def test_traceback_has_only_frames_of_the_application(site: Site) -> None:
    other = site.write("importlib_user.py", "def fail(): raise ValueError('inner')\n")
    name = site.write(
        "main.py", f"import {other}\ntry: {other}.fail()\nexcept ValueError as e: raise RuntimeError('outer') from e\n"
    )
    details = site.refuse(f"{name}:app").details
    frames = [line.split('"')[1] for line in details.splitlines() if line.startswith("  File ")]
    assert [Path(frame).stem for frame in frames] == [name, other, name]
    assert "ValueError: inner" in details and details.endswith("RuntimeError: outer\n")


# ---- the attribute cannot be had: exit 4


def test_missing_attribute_is_answered_with_the_nearest_name(site: Site) -> None:
    name = site.write("main.py", "application_count = 1\n" + WSGI.format(name="application"))
    error = site.refuse(f"{name}:aplication")
    file = site.path / f"{name}.py"
    assert str(error) == f"module {name!r} ({file}) has no attribute 'aplication'; did you mean 'application'?"
    assert error.exit_code == 4 and not error.details


def test_missing_attribute_is_answered_with_the_only_application(site: Site) -> None:
    name = site.write("main.py", "from pathlib import Path\ndef helper(x): pass\n" + WSGI.format(name="site"))
    assert str(site.refuse(f"{name}:app")).endswith("; did you mean 'site'?")


def test_looking_for_a_hint_touches_no_object_that_raises(site: Site) -> None:
    text = (
        "class Proxy:\n __call__ = None\n def __getattribute__(self, name): raise RuntimeError(name)\nrequest = Proxy()"
    )
    name = site.write("main.py", text)
    assert str(site.refuse(f"{name}:app")).endswith("has no attribute 'app'")


def test_missing_attribute_that_is_a_module(site: Site) -> None:
    (site.path / f"{site.prefix}_pkg").mkdir()
    (site.path / f"{site.prefix}_pkg" / "wsgi.py").write_text(WSGI.format(name="app"))
    package = site.write("pkg/__init__.py", "").partition(".")[0]
    assert str(site.refuse(f"{package}:wsgi.app")).endswith(f"it is a module of the package: {package}.wsgi")


def test_missing_attribute_of_an_object(site: Site) -> None:
    name = site.write("main.py", "class site:\n pass\n")
    error = site.refuse(f"{name}:site.app")
    assert str(error) == f"'{name}:site' has no attribute 'app'" and error.exit_code == 4


def test_module_alone_without_an_application(site: Site) -> None:
    name = site.write("main.py", WSGI.format(name="apps"))
    error = site.refuse(name)
    assert "has neither 'application' nor 'app'; did you mean 'apps'?" in str(error) and error.exit_code == 4


def test_attribute_that_raises_is_the_applications_fault(site: Site) -> None:
    name = site.write(
        "main.py", "def __getattr__(name):\n if name == 'app': raise OSError('no database')\n raise AttributeError\n"
    )
    error = site.refuse(f"{name}:app")
    assert str(error).endswith("could not be had: OSError: no database") and error.exit_code == 3 and error.details


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("app = None", "is None, which cannot be called"),
        ("app = 5", "is a int, which cannot be called"),
        ("import sys as app", "is a module: name the application in it, sys:NAME"),
    ],
)
def test_attribute_that_is_no_application(site: Site, text: str, part: str) -> None:
    error = site.refuse(f"{site.write('main.py', text)}:app")
    assert part in str(error) and error.exit_code == 4


# ---- factories


FACTORY = "def create({}):\n " + WSGI.format(name="made") + " return made\n"


def test_factory_by_option(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    name = site.write("main.py", FACTORY.format(""))
    found = site.load(f"{name}:create", factory=True)
    assert found.app.__name__ == "made" and found.name == f"{name}:create()" and not caplog.records


@pytest.mark.parametrize(
    "parameters", ["", "config=None", "config=None, testing=False", "*, testing=False", "**options"]
)
def test_factory_is_recognised_with_a_warning(site: Site, caplog: pytest.LogCaptureFixture, parameters: str) -> None:
    name = site.write("main.py", FACTORY.format(parameters))
    with caplog.at_level(logging.WARNING, "stdserve.error"):
        assert site.load(f"{name}:create").app.__name__ == "made"
    assert "--factory" in caplog.text and name in caplog.text


@pytest.mark.parametrize(
    "text",
    [
        "import functools\n@functools.cache\n" + FACTORY.format(""),
        FACTORY.format("mode") + "import functools\ncreate = functools.partial(create, 1)\n",
        "class create:\n def __call__(self, environ, start_response): return []\n",
    ],
    ids=["cached", "partial", "class"],
)
def test_other_things_that_can_only_be_a_factory(site: Site, caplog: pytest.LogCaptureFixture, text: str) -> None:
    assert site.load(f"{site.write('main.py', text)}:create").interface == "wsgi"
    assert "--factory" in caplog.text


@pytest.mark.parametrize(
    ("text", "interface"),
    [
        ("def app(environ=None, start_response=None): 1 / 0", "wsgi"),
        ("def app(a=None, b=None): 1 / 0", "wsgi"),
        ("def app(a=None, b=None, c=None): 1 / 0", "asgi3"),
        ("def app(a=None): 1 / 0", "asgi2"),
        ("def app(*a): 1 / 0", "wsgi"),
    ],
)
def test_what_can_be_the_application_is_not_called(site: Site, text: str, interface: str) -> None:
    assert site.load(f"{site.write('main.py', text)}:app", interface=interface).interface == interface


def test_factory_by_option_and_by_parentheses(site: Site) -> None:
    name = site.write("main.py", FACTORY.format(""))
    assert "leave --factory away" in str(site.refuse(f"{name}:create()", factory=True))


@pytest.mark.parametrize("text", ["def create(): return 1 / 0", "def create(): raise SystemExit('division by zero')"])
def test_factory_that_raises_is_the_applications_fault(site: Site, text: str) -> None:
    name = site.write("main.py", text)
    error = site.refuse(f"{name}:create()")
    assert f"the factory '{name}:create' failed: " in str(error) and str(error).endswith(": division by zero")
    assert (
        error.exit_code == 3 and f'{name}.py", line 1, in create' in error.details and "loader.py" not in error.details
    )


def test_type_error_in_a_factory_is_not_taken_for_wrong_arguments(site: Site) -> None:
    name = site.write("main.py", "def create():\n len(5)\n")
    error = site.refuse(f"{name}:create", factory=True)
    assert "failed: TypeError: object of type 'int' has no len()" in str(error) and error.exit_code == 3


def test_factory_with_other_arguments(site: Site) -> None:
    name = site.write("main.py", FACTORY.format("mode"))
    error = site.refuse(f"{name}:create", factory=True)
    assert "cannot be called so: missing a required argument: 'mode'" in str(error) and error.exit_code == 4
    assert "too many positional" in str(site.refuse(f"{name}:create(1, 2)"))
    assert site.load(f"{name}:create(1)").interface == "wsgi"


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("async def create(): pass", "is an async function; it has to return the application itself"),
        ("def create(): pass", "'{}:create()' returned None: a factory has to return the application"),
        ("def create(): return 'main'", "returned a str"),
        ("create = 5", "is a int, not a factory"),
    ],
)
def test_factory_that_makes_no_application(site: Site, text: str, part: str) -> None:
    name = site.write("main.py", text)
    for error in (site.refuse(f"{name}:create()"), site.refuse(f"{name}:create", factory=True)):
        assert part.format(name) in str(error) and error.exit_code == 4


def test_async_function_without_parameters_is_no_application(site: Site) -> None:
    name = site.write("main.py", "async def create(): pass")
    assert "async function without parameters" in str(site.refuse(f"{name}:create"))


# ---- objects


def test_object() -> None:
    found = load(Config(app=plain_wsgi))
    assert (found.app, found.interface, found.name) == (plain_wsgi, "wsgi", "plain_wsgi")
    found = load(Config(app=AsyncCall()))
    assert (found.interface, found.name) == ("asgi3", "AsyncCall")


def test_explicit_interface_wins() -> None:
    assert load(Config(app=plain_wsgi, interface="asgi3")).interface == "asgi3"
    assert load(Config(app=anything, interface="wsgi")).interface == "wsgi"


def test_interface_that_cannot_be_seen_is_asked_for() -> None:
    with pytest.raises(AppLoadError, match="say --interface wsgi, asgi3 or asgi2") as caught:
        load(Config(app=anything))
    assert caught.value.exit_code == 4
    with pytest.raises(AppLoadError, match="'NeedsName' is a class that is no application by itself"):
        load(Config(app=NeedsName))


# ---- interfaces. Nothing here may be called.


def never(*_: Any) -> NoReturn:
    raise AssertionError("the application was called")


async def plain_asgi(scope: Any, receive: Any, send: Any) -> None:
    never()


async def asgi_with_other_names(a: Any, b: Any, c: Any) -> None:
    never()


def asgi_without_async(scope: Any, receive: Any, send: Any) -> Any:
    never()


def three(a: Any, b: Any, c: Any) -> Any:
    never()


def plain_asgi2(scope: Any) -> Any:
    never()


def plain_wsgi(environ: Any, start_response: Any) -> Any:
    never()


def wsgi_as_generator(environ: Any, start_response: Any) -> Iterator[bytes]:
    yield never()


def two(a: Any, b: Any) -> Any:
    never()


def two_and_more(a: Any, b: Any, c: Any = None) -> Any:
    never()


def wsgi_and_more(environ: Any, start_response: Any, exc_info: Any, other: Any) -> Any:
    never()


def anything(*args: Any, **keywords: Any) -> Any:
    never()


def four(a: Any, b: Any, c: Any, d: Any) -> Any:
    never()


def keyword_only(a: Any, b: Any, *, c: Any) -> Any:
    never()


class AsyncCall:
    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        never()

    async def method(self, scope: Any, receive: Any, send: Any) -> None:
        never()

    def wsgi_method(self, environ: Any, start_response: Any) -> Any:
        never()

    @staticmethod
    async def static(scope: Any, receive: Any, send: Any) -> None:
        never()


class AsyncChild(AsyncCall):
    pass


class WsgiCall:
    def __call__(self, environ: Any, start_response: Any) -> Any:
        never()


class Asgi2Call:
    def __call__(self, scope: Any) -> Any:
        never()


class AnyCall:
    def __call__(self, *args: Any) -> Any:
        never()


class SlotCall:
    """As Sentry's middleware."""

    __slots__ = ("__call__",)

    def __init__(self, app: Any) -> None:
        self.__call__ = app  # type: ignore[method-assign]


class Asgi3Class:
    """As Starlette's HTTPEndpoint."""

    def __init__(self, scope: Any, receive: Any, send: Any) -> None:
        never()

    def __await__(self) -> Any:
        never()


class Asgi2Class:
    def __init__(self, scope: Any) -> None:
        never()

    async def __call__(self, receive: Any, send: Any) -> None:
        never()


class WsgiClass:
    """PEP 3333's example of a class that is an application."""

    def __init__(self, environ: Any, start_response: Any) -> None:
        never()

    def __iter__(self) -> Any:
        never()


class WsgiClassWithOtherNames:
    def __init__(self, a: Any, b: Any) -> None:
        never()

    def __iter__(self) -> Any:
        never()


class NeedsName(AsyncCall):
    def __init__(self, name: str) -> None:
        never()


class NeedsNameForWsgi(WsgiCall):
    def __init__(self, name: str) -> None:
        never()


class NeedsTwo(AsyncCall):
    def __init__(self, name: str, other: str) -> None:
        never()


def transparent(app: Any) -> Any:
    @functools.wraps(app)
    def wrapper(*args: Any, **keywords: Any) -> Any:
        never()

    return wrapper


def made_wsgi(handler: Any) -> Any:
    @functools.wraps(handler)
    def wrapper(environ: Any, start_response: Any) -> Any:
        never()

    return wrapper


def made_async(handler: Any) -> Any:
    @functools.wraps(handler)
    async def wrapper(*args: Any) -> Any:
        never()

    return wrapper


async def async_handler(request: Any) -> None:
    never()


def wraps_itself() -> Any:
    def wrapper(*args: Any) -> Any:
        never()

    wrapper.__wrapped__ = wrapper  # type: ignore[attr-defined]
    return wrapper


def of_package(package: str) -> Any:
    return type("App", (type("Base", (AnyCall,), {"__module__": package}),), {"__module__": "main"})()


CASES = [
    ("async function", plain_asgi, "asgi3"),
    ("async function, other names", asgi_with_other_names, "asgi3"),
    ("function that returns an awaitable", asgi_without_async, "asgi3"),
    ("three parameters", three, "asgi3"),
    ("scope", plain_asgi2, "asgi2"),
    ("one parameter", lambda a: never(), "asgi2"),
    ("wsgi function", plain_wsgi, "wsgi"),
    ("wsgi generator", wsgi_as_generator, "wsgi"),
    ("two parameters", two, "wsgi"),
    ("two parameters and an optional one", two_and_more, "wsgi"),
    ("names before count", wsgi_and_more, "wsgi"),
    ("*args", anything, None),
    ("four parameters", four, None),
    ("keyword that is required", keyword_only, None),
    ("no parameters", lambda: never(), None),
    ("instance, async call", AsyncCall(), "asgi3"),
    ("instance, inherited async call", AsyncChild(), "asgi3"),
    ("instance, wsgi call", WsgiCall(), "wsgi"),
    ("instance, asgi2 call", Asgi2Call(), "asgi2"),
    ("instance, *args", AnyCall(), None),
    ("instance, call in a slot, asgi", SlotCall(plain_asgi), "asgi3"),
    ("instance, call in a slot, wsgi", SlotCall(plain_wsgi), "wsgi"),
    ("bound method, async", AsyncCall().method, "asgi3"),
    ("bound method, wsgi", AsyncCall().wsgi_method, "wsgi"),
    ("bound __call__", WsgiCall().__call__, "wsgi"),
    ("static method", AsyncCall.static, "asgi3"),
    ("partial of async function", functools.partial(plain_asgi), "asgi3"),
    ("partial of a partial", functools.partial(functools.partial(four, 1), 2), "wsgi"),
    ("partial of an instance", functools.partial(AsyncCall()), "asgi3"),
    ("partial of a framework's instance", functools.partial(of_package("flask.app")), "wsgi"),
    ("class, asgi3", Asgi3Class, "asgi3"),
    ("class, asgi2", Asgi2Class, "asgi2"),
    ("class, wsgi", WsgiClass, "wsgi"),
    ("class, wsgi, other names", WsgiClassWithOtherNames, "wsgi"),
    ("class that has to be made first", NeedsName, None),
    ("class that has to be made first, wsgi", NeedsNameForWsgi, None),
    ("class that has to be made of two", NeedsTwo, None),
    ("class without constructor", AsyncCall, None),
    ("wrapped async function", transparent(plain_asgi), "asgi3"),
    ("wrapped wsgi function", transparent(plain_wsgi), "wsgi"),
    ("wrapped, other names", transparent(two), "wsgi"),
    ("wrapped handler of one request", transparent(lambda request: never()), None),
    ("wsgi made of an async handler", made_wsgi(async_handler), "wsgi"),
    ("async made of a function", made_async(lambda request: never()), "asgi3"),
    ("wraps itself", wraps_itself(), None),
    ("C code", max, None),
    ("framework, wsgi", of_package("bottle"), "wsgi"),
    ("framework, asgi", of_package("starlette.applications"), "asgi3"),
    ("falcon", of_package("falcon.app"), "wsgi"),
    ("falcon, asgi", of_package("falcon.asgi.app"), "asgi3"),
    ("a package with a like name", of_package("flasket"), None),
    ("wsgiref", demo_app, "wsgi"),
    ("wsgiref's validator", validator(demo_app), "wsgi"),
]


@pytest.mark.parametrize(("app", "interface"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_interface(app: Any, interface: str | None) -> None:
    assert detect_interface(app) == interface
