"""From "module:attribute" to an application, and which interface it speaks.

    load(config) -> Application
        import the module      fault: exit 3, with the application's traceback where it is the application's
        walk the attribute     fault: exit 4
        call a factory         --factory, "module:create(1, name='x')", or a function that can be nothing else
        detect the interface   from how it is defined and which parameters it takes; the application is never called

Exit codes are gunicorn's: 3 the application could not be booted, 4 there is no application there.
"""

from __future__ import annotations

import ast
import contextlib
import difflib
import functools
import importlib
import inspect
import logging
import os
import sys
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

from ..errors import AppLoadError, ConfigError

if TYPE_CHECKING:
    from ..config import Config

logger = logging.getLogger("stdserve.error")

BOOT_ERROR, NO_APP = 3, 4

# What a module's application is called when nobody says it: gunicorn's default, then what users write
DEFAULT_ATTRIBUTES = ("application", "app")


class Application:
    """What is served: `app`, the `interface` it speaks ("wsgi", "asgi3" or "asgi2") and a `name` for the log."""

    __slots__ = ("app", "interface", "name")

    def __init__(self, app: Any, interface: str, name: str) -> None:
        self.app = app
        self.interface = interface
        self.name = name


def load(config: Config) -> Application:
    """The application of `config.app`, an import string or the object itself. Raises AppLoadError."""
    if isinstance(config.app, str):
        found = _import_app(config.app.strip(), _enter(config.app_dir))
    else:
        found = _Found(config.app, str(getattr(config.app, "__name__", type(config.app).__name__)))
    if config.factory and found.made:
        raise AppLoadError(f"{found.name!r} is called already by its parentheses: leave --factory away")
    if not found.made and not config.factory and _is_factory(found.app, config.interface):
        logger.warning("%s can be called without arguments, so it is taken for a factory; say --factory", found.name)
        found = _call_factory(found, [], {})
    elif config.factory:
        found = _call_factory(found, [], {})
    if not callable(found.app):
        raise AppLoadError(_not_callable(found))
    return Application(found.app, _interface(found, config.interface), found.name)


class _Found(NamedTuple):
    app: Any
    name: str
    made: bool = False  # by the call of a factory


def _not_callable(found: _Found) -> str:
    kind = "None" if found.app is None else f"a {type(found.app).__name__}"
    if found.made:
        return f"{found.name!r} returned {kind}: a factory has to return the application"
    if isinstance(found.app, ModuleType):
        return f"{found.name!r} is a module: name the application in it, {found.app.__name__}:NAME"
    return f"{found.name!r} is {kind}, which cannot be called: it is no application"


# ---- import strings


def _enter(app_dir: str) -> str:
    """Put the directory (or zip file) in front of sys.path, as `python script.py` does."""
    # Not resolved: a deployment's directory is often a link that moves on to the next release.
    directory = os.path.abspath(app_dir)
    if not os.path.exists(directory):
        raise ConfigError(f"--app-dir {app_dir!r} does not exist")
    if sys.path[:1] != [directory]:
        sys.path.insert(0, directory)
    return directory


def _import_app(target: str, directory: str) -> _Found:
    module_name, colon, expression = target.partition(":")
    if not module_name or (colon and not expression):
        raise AppLoadError(f"application {target!r} is not of the form module:attribute")
    if module_name != module_name.strip() or expression != expression.lstrip():
        raise AppLoadError(f"application {target!r} has white space beside the colon: leave it out")
    _check_module_name(module_name, expression)
    if not expression:
        return _default_attribute(_import_module(module_name, directory), module_name)
    path, call = _parse_expression(expression, target)
    found = _Found(_walk(_import_module(module_name, directory), module_name, path), f"{module_name}:{path}")
    return found if call is None else _call_factory(found, *call)


def _check_module_name(name: str, expression: str) -> None:
    text = ""
    if name.endswith(".py") or "/" in name:
        text = f"{name!r} is a path, not a module; did you mean {_as_module(name, expression or 'app')}?"
    elif name.startswith("."):
        text = f"{name!r} is a relative name: give the module's full name, as in package.module:app"
    elif not all(name.split(".")) or len(name.split()) != 1:
        text = f"{name!r} is not the name of a module"
    if text:
        raise AppLoadError(text, exit_code=BOOT_ERROR)


def _as_module(path: str, expression: str) -> str:
    """ "main.py" -> "'main:app'"; "src/main.py" -> "'main:app' with --app-dir src", or 'src.main:app' of a package."""
    directory, _, file = path.rpartition("/")
    module = file.removesuffix(".py") or "main"
    directory = directory.removeprefix("./")
    if not directory or directory == ".":
        return repr(f"{module}:{expression}")
    if not os.path.isabs(directory) and os.path.exists(os.path.join(directory, "__init__.py")):
        return repr(f"{directory.replace('/', '.')}.{module}:{expression}")
    return f"{f'{module}:{expression}'!r} with --app-dir {directory}"


def _parse_expression(expression: str, target: str) -> tuple[str, tuple[list[Any], dict[str, Any]] | None]:
    """ "obj.app" -> ("obj.app", None); "create(1, x=2)" -> ("create", ([1], {"x": 2}))."""
    try:
        node: ast.expr = ast.parse(expression, mode="eval").body
    except (SyntaxError, ValueError):  # ValueError: a NUL
        raise AppLoadError(f"application {target!r}: {expression!r} is neither a name nor a call") from None
    call = None
    if isinstance(node, ast.Call):
        call = _literal_arguments(node, target)
        node = node.func
    names = []
    while isinstance(node, ast.Attribute):
        names.append(node.attr)
        node = node.value
    if not isinstance(node, ast.Name):
        raise AppLoadError(f"application {target!r}: {expression!r} is neither a name nor a call")
    return ".".join([node.id, *reversed(names)]), call


def _literal_arguments(call: ast.Call, target: str) -> tuple[list[Any], dict[str, Any]]:
    if any(keyword.arg is None for keyword in call.keywords):
        raise AppLoadError(f"application {target!r}: ** is not possible in the call")
    try:
        arguments = [ast.literal_eval(argument) for argument in call.args]
        return arguments, {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in call.keywords}
    except (ValueError, TypeError):  # TypeError: {[]: 1}
        raise AppLoadError(f"application {target!r}: the arguments of a call may only be literals") from None


# ---- the module


def _import_module(name: str, directory: str) -> ModuleType:
    importlib.invalidate_caches()  # a file that is younger than the cached listing of its directory
    try:
        return importlib.import_module(name)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        if isinstance(error, ModuleNotFoundError) and _is_missing(name, error):
            raise AppLoadError(_no_module(error.name or name, directory), exit_code=BOOT_ERROR) from None
        raise _failed(f"module {name!r} could not be imported", error) from error


def _is_missing(name: str, error: ModuleNotFoundError) -> bool:
    """Whether it is the application's module (or its package) that is not there, not one that it imports."""
    return f"{name}.".startswith(f"{error.name}.") and not _own_frames(traceback.extract_tb(error.__traceback__))


def _no_module(name: str, directory: str) -> str:
    """The message: `name` is the first part of the dotted name that could not be found."""
    package, _, last = name.rpartition(".")
    if not package:
        hint = _did_you_mean(name, _module_names([directory])) or _below(name, directory)
        return f"there is no module {name!r} in {directory} or on sys.path{hint}"
    parent = sys.modules.get(package)
    if hasattr(parent, last):
        return f"there is no module {name!r}; did you mean '{package}:{last}'?"
    folders = getattr(parent, "__path__", None)
    if folders is None:
        return f"there is no module {name!r}: {package!r} is a module, not a package"
    hint = _did_you_mean(name, [f"{package}.{each}" for each in _module_names(folders)])
    return f"there is no module {name!r} in the package {package!r}{hint}"


def _below(name: str, directory: str) -> str:
    """A hint for who starts the server one directory too high."""
    try:
        folders = sorted(path for path in Path(directory).iterdir() if path.is_dir())
    except OSError:
        return ""
    for folder in folders:
        if name in _module_names([str(folder)]):
            return f"; there is one in {folder.name!r}: say --app-dir {folder.name}"
    return ""


def _module_names(directories: Iterable[str]) -> list[str]:
    found = []
    for directory in directories:
        try:
            paths = list(Path(directory).iterdir())
        except OSError:  # gone, or a zip file
            continue
        found += [path.stem for path in paths if path.suffix == ".py" or (path / "__init__.py").exists()]
    return found


def _did_you_mean(name: str, names: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, names, n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


# ---- the attribute


def _default_attribute(module: ModuleType, module_name: str) -> _Found:
    found = [
        _Found(_attribute(module, name, module_name), f"{module_name}:{name}")
        for name in DEFAULT_ATTRIBUTES
        if hasattr(module, name)
    ]
    if not found:
        hint = _hint(module, "app")
        raise AppLoadError(
            f"{_describe(module, module_name)} has neither 'application' nor 'app'{hint}; name it: {module_name}:NAME"
        )
    # `import app` makes a module of that name; an application behind the other name is what was meant
    return next((each for each in found if callable(each.app)), found[0])


def _walk(module: ModuleType, module_name: str, path: str) -> Any:
    """The object at a dotted path in the module."""
    found: Any = module
    names = path.split(".")
    for index, name in enumerate(names):
        walked = f"{module_name}:{'.'.join(names[:index])}"
        try:
            found = _attribute(found, name, walked)
        except AttributeError:
            where = repr(walked) if index else _describe(module, module_name)
            raise AppLoadError(f"{where} has no attribute {name!r}{_hint(found, name)}") from None
    return found


def _attribute(where: Any, name: str, walked: str) -> Any:
    """getattr; what a property or a module's __getattr__ raises is the application's."""
    try:
        return getattr(where, name)
    except (AttributeError, KeyboardInterrupt):
        raise
    except BaseException as error:
        raise _failed(f"{name!r} of {walked!r} could not be had", error) from error


def _describe(module: ModuleType, name: str) -> str:
    """With its file, since the name may have found another module than the one that was meant."""
    file = getattr(module, "__file__", None)
    return f"module {name!r} ({file})" if file else f"module {name!r}"


def _hint(where: Any, name: str) -> str:
    """A name that is nearly the same, else the only object that looks like an application."""
    public = {key: value for key, value in getattr(where, "__dict__", {}).items() if not key.startswith("_")}
    callables = [key for key, value in public.items() if callable(value)]
    if hint := _did_you_mean(name, callables):
        return hint
    apps = [key for key in callables if _looks_like_app(public[key])]
    if len(apps) == 1:
        return f"; did you mean {apps[0]!r}?"
    if isinstance(where, ModuleType) and name in _module_names(getattr(where, "__path__", ())):
        return f"; it is a module of the package: {where.__name__}.{name}"
    return ""


def _looks_like_app(value: Any) -> bool:
    if issubclass(type(value), type):
        return False
    try:
        return _by_names(_parameters(value) or []) is not None or _by_family(value) is not None
    except Exception:  # Flask's `request` raises at every touch
        return False


# ---- factories


def _call_factory(found: _Found, arguments: list[Any], keywords: dict[str, Any]) -> _Found:
    factory, name = found.app, found.name
    if not callable(factory):
        raise AppLoadError(f"{name!r} is a {type(factory).__name__}, not a factory")
    if mismatch := _mismatch(factory, arguments, keywords):
        raise AppLoadError(f"the factory {name!r} cannot be called so: {mismatch}; arguments go into {name}(...)")
    try:
        app = factory(*arguments, **keywords)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        raise _failed(f"the factory {name!r} failed", error) from error
    if inspect.iscoroutine(app):
        app.close()
        raise AppLoadError(f"the factory {name!r} is an async function; it has to return the application itself")
    return _Found(app, f"{name}()", made=True)


def _mismatch(factory: Any, arguments: list[Any], keywords: dict[str, Any]) -> str:
    """What Python would say about the arguments; said before, it is not mistaken for a TypeError of the factory."""
    try:
        inspect.signature(factory, follow_wrapped=False).bind(*arguments, **keywords)
    except TypeError as error:
        return str(error)
    except ValueError:  # C code without a signature
        pass
    return ""


_ARGUMENTS = {"wsgi": 2, "asgi3": 3, "asgi2": 1}


def _is_factory(app: Any, interface: str) -> bool:
    """Whether it can be called without arguments and does not look like an application.

    create_app() and create_app(config=None) are factories, as is a class whose instances are applications.
    """
    kinds = inspect.isroutine(app) or inspect.isclass(app) or isinstance(app, functools.partial)
    if not kinds or inspect.iscoroutinefunction(app):
        return False
    parameters = _parameters(app)
    if parameters is None and not inspect.isclass(app):
        parameters = _parameters(_unwrapped(app))  # functools.cache, which is C code
    if parameters is None or any(p.kind is p.VAR_POSITIONAL or _is_required(p) for p in parameters):
        return False
    if inspect.isclass(app):
        return _instances_call(app) is not None
    if interface != "auto":
        return len(_positional(parameters)) < _ARGUMENTS[interface]
    return _by_names(parameters) is None


# ---- interfaces


def _interface(found: _Found, choice: str) -> str:
    if choice != "auto":
        return choice
    app, name = found.app, found.name
    if inspect.iscoroutinefunction(app) and _parameters(app) == []:
        raise AppLoadError(f"{name!r} is an async function without parameters; ASGI passes scope, receive, send")
    interface = detect_interface(app)
    if interface is not None:
        return interface
    if inspect.isclass(app):
        raise AppLoadError(f"{name!r} is a class that is no application by itself: name an instance of it")
    raise AppLoadError(f"{name!r} does not show whether it speaks WSGI or ASGI: say --interface wsgi, asgi3 or asgi2")


def detect_interface(app: Any) -> str | None:
    """ "asgi3", "asgi2", "wsgi", or None if the application does not show it."""
    if inspect.isclass(app):
        return _detect_class(app)
    call = _called(app)
    if inspect.iscoroutinefunction(call):
        return "asgi3"
    # A decorator's wrapper is what is called, but often says only (*args, **kwargs). What it wraps may have another
    # signature (werkzeug's Request.application makes (environ, start_response) of (request)): its names are proof, its
    # count is the last resort.
    wrapped = _unwrapped(call)
    outer, inner = _parameters(call) or [], _parameters(wrapped) or []
    if by_names := _by_names(outer) or _by_names(inner):
        return by_names
    if inspect.iscoroutinefunction(wrapped):
        return "asgi3"
    by_inner_count = None if (count := _by_count(inner)) == "asgi2" else count
    return _by_count(outer) or _by_family(app) or by_inner_count


def _called(app: Any) -> Callable[..., Any]:
    """The function that a call of `app` runs."""
    if inspect.isroutine(app) or isinstance(app, functools.partial):
        return app
    return app.__call__  # type: ignore[no-any-return]  # of the instance: some middlewares keep it in a slot


def _unwrapped(call: Callable[..., Any]) -> Callable[..., Any]:
    with contextlib.suppress(ValueError):  # wraps itself
        call = inspect.unwrap(call)
    return call


def _detect_class(app: type) -> str | None:
    """A class is called with what its constructor takes; what that returns is awaited, called or iterated."""
    parameters = _parameters(app) or []
    interface = _by_names(parameters) or _by_count(parameters)
    awaited, iterated = hasattr(app, "__await__"), hasattr(app, "__iter__")
    if awaited and interface in (None, "asgi3"):
        return "asgi3"
    if interface == "wsgi":
        return "wsgi" if iterated or _by_names(parameters) else None
    if interface == "asgi2":  # app(scope)(receive, send)
        call = _instances_call(app)
        second = _positional(_parameters(call) or [])[1:] if call is not None else []
        return "asgi2" if len(second) == 2 and _by_names(second) is None else None
    return None


def _instances_call(app: type) -> Callable[..., Any] | None:
    """The __call__ that instances of the class have; `app.__call__` could be the metaclass's."""
    return next((base.__dict__["__call__"] for base in app.__mro__ if "__call__" in base.__dict__), None)


def _parameters(app: Any) -> list[inspect.Parameter] | None:
    """None if there is no signature to be had (C code)."""
    try:
        return list(inspect.signature(app, follow_wrapped=False).parameters.values())
    except (TypeError, ValueError):
        return None


def _positional(parameters: list[inspect.Parameter]) -> list[inspect.Parameter]:
    return [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]


def _is_required(parameter: inspect.Parameter) -> bool:
    return parameter.default is parameter.empty and parameter.kind is not parameter.VAR_KEYWORD


def _by_names(parameters: list[inspect.Parameter]) -> str | None:
    names = [p.name for p in _positional(parameters)]
    if "start_response" in names or names[:1] == ["environ"]:
        return "wsgi"
    if names[:1] == ["scope"] and len(names) == 1:
        return "asgi2"
    return "asgi3" if names[:1] == ["scope"] or names[1:3] == ["receive", "send"] else None


def _by_count(parameters: list[inspect.Parameter]) -> str | None:
    """By how many positional parameters it needs."""
    if any(p.kind is p.VAR_POSITIONAL or (p.kind is p.KEYWORD_ONLY and _is_required(p)) for p in parameters):
        return None
    required = [p for p in _positional(parameters) if _is_required(p)]
    return {1: "asgi2", 2: "wsgi", 3: "asgi3"}.get(len(required))


# Where the signature says nothing (*args, C code): the packages of frameworks, the more special before the general
_FAMILIES = {
    "django.core.handlers.asgi": "asgi3",
    "falcon.asgi": "asgi3",
    "channels": "asgi3",
    "fastapi": "asgi3",
    "litestar": "asgi3",
    "quart": "asgi3",
    "starlette": "asgi3",
    "bottle": "wsgi",
    "django.core.handlers.wsgi": "wsgi",
    "falcon": "wsgi",
    "flask": "wsgi",
    "pyramid": "wsgi",
    "webob": "wsgi",
    "werkzeug": "wsgi",
    "whitenoise": "wsgi",
    "wsgiref": "wsgi",
}


def _by_family(app: Any) -> str | None:
    """By the packages that define the application's classes, or the function that is called."""
    while isinstance(app, functools.partial):
        app = app.func
    function = getattr(app, "__func__", app)
    if inspect.isfunction(function):
        modules = [str(function.__globals__.get("__name__", ""))]  # __module__ is what functools.wraps copies
    else:
        modules = [str(base.__module__) for base in type(app).__mro__]
    for module in modules:
        for family, interface in _FAMILIES.items():
            if f"{module}.".startswith(f"{family}."):
                return interface
    return None


# ---- the application's errors


def summary_of(error: BaseException) -> str:
    """One line: "ValueError: what it says"."""
    try:
        text = str(error).strip()
    except Exception:  # the application's own __str__
        text = ""
    return f"{type(error).__name__}: {text.splitlines()[0]}" if text else type(error).__name__


def traceback_of(error: BaseException) -> str:
    """The application's traceback: without the frames of the gateway and of the import system."""
    text = traceback.TracebackException.from_exception(error)
    related: list[traceback.TracebackException | None] = [text]
    while related:
        if (each := related.pop()) is not None:
            each.stack = traceback.StackSummary.from_list(_own_frames(each.stack))
            related += (each.__cause__, each.__context__, *(each.exceptions or ()))
    return "".join(text.format())


def _own_frames(frames: Iterable[traceback.FrameSummary]) -> list[traceback.FrameSummary]:
    """Those of the application."""
    return [
        frame
        for frame in frames
        if not frame.filename.startswith("<frozen importlib")
        and frame.filename != importlib.__file__
        and os.path.dirname(frame.filename) != _OUR_DIRECTORY
    ]


_OUR_DIRECTORY = os.path.dirname(load.__code__.co_filename)


def _failed(what: str, error: BaseException) -> AppLoadError:
    return AppLoadError(f"{what}: {summary_of(error)}", exit_code=BOOT_ERROR, details=traceback_of(error))
