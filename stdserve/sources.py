"""Where options come from: default < file < environment < command line. HUP reads all of it again.

    gather(given, environ, directory)   -> own name -> (value, source), for Config and --print-config
        file                            --config, else what is found in the directory: stdserve.toml,
                                        [tool.stdserve] of pyproject.toml, stdserve.json

A file holds options by their own names or those of uvicorn and gunicorn, with `_` or `-`; any other name is an error.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any, NamedTuple

from .config import OPTIONS, environment_values, own_names, variable_of
from .errors import ConfigError

# Looked for in this order; the first that has options counts.
FILES = ("stdserve.toml", "pyproject.toml", "stdserve.json")


class Given(NamedTuple):
    """A checked value and who has given it."""

    value: Any
    source: str


def gather(given: Mapping[str, Any], environ: Mapping[str, str], directory: str) -> dict[str, Given]:
    """`given` are the checked values of the command line; `directory` is where relative paths of files start."""
    environment = environment_values(environ)
    path = given.get("config") or environment.get("config") or ""
    found = {name: Given(row.default, "default") for name, row in OPTIONS.items()}
    _lay(found, _read(os.path.join(directory, path)) if path else _find(directory))
    _lay(found, {name: Given(value, variable_of(OPTIONS[name], environ)) for name, value in environment.items()})
    _lay(found, {name: Given(value, "command line") for name, value in given.items()})
    return found


# Where to listen: of these the first that is given counts, if one source gives several.
_ADDRESSES = ("fd", "uds", "bind", "port", "host")


def _lay(found: dict[str, Given], new: Mapping[str, Given]) -> None:
    """Put the values of a source over those of lower ones. Its address replaces theirs, in whatever form that is."""
    ranks = [_ADDRESSES.index(name) for name in new if name in _ADDRESSES]
    # Of host and port one may come from below
    for name in _ADDRESSES[: min(*ranks, 3)] if ranks else ():
        found[name] = Given(OPTIONS[name].default, "default")
    found.update(new)


def _find(directory: str) -> dict[str, Given]:
    for name in FILES:
        path = os.path.join(directory, name)
        if os.path.isfile(path) and (found := _read(path, asked=False)):
            return found
    return {}


def _read(path: str, *, asked: bool = True) -> dict[str, Given]:
    """The options of a file. A pyproject.toml that was not `asked` for may be about other tools alone."""
    name = os.path.basename(path)
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--config {path}: {getattr(error, 'strerror', None) or error}") from None
    values = _parse(name, text, asked)
    if not isinstance(values, dict):
        raise ConfigError(f"{name}: options are name-value pairs, not {type(values).__name__}")
    flags = {_plain_name(flag): row.name for row in OPTIONS.values() for flag in row.flags}
    keys = {flags.get(_plain_name(key), _plain_name(key)): key for key in values}
    for key in values.keys() - keys.values():
        raise ConfigError(f"{name}: {key!r} is there under another name, too, and is the same option")
    try:
        own = own_names({plain: values[key] for plain, key in keys.items()})
    except ConfigError as error:
        raise ConfigError(f"{name}: {error}") from None
    return {key: Given(OPTIONS[key].check(value, f"{name}: {key}"), name) for key, value in own.items()}


def _plain_name(name: str) -> str:
    return name.lstrip("-").replace("-", "_")


def _parse(name: str, text: str, asked: bool) -> Any:
    if name.endswith(".json"):
        try:
            return json.loads(text)
        except ValueError as error:
            raise ConfigError(f"{name} is not JSON: {error}") from None
    if not name.endswith(".toml"):
        raise ConfigError(f"--config {name}: write options in a .toml or .json file")
    import tomllib  # only where there is such a file

    try:
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{name} is not TOML: {error}") from None
    if name != "pyproject.toml":
        return tables
    tool = tables.get("tool", {})
    if asked and "stdserve" not in tool:
        raise ConfigError(f"{name} has no table [tool.stdserve]")
    return tool.get("stdserve", {})


def show(found: Mapping[str, Given]) -> str:
    """For --print-config: a line for each option, in TOML's form as far as it goes, with its source."""
    lines = []
    for name, (value, source) in found.items():
        secret = name.endswith("password") and value
        text = '"***"' if secret else json.dumps(value, default=_plain, ensure_ascii=False)
        lines.append(f"{name} = {text}".ljust(50) + f"  # {source}")
    return "\n".join(lines)


def _plain(value: object) -> object:
    return list(value) if isinstance(value, (tuple, set, frozenset)) else repr(value)
