"""The plan of the house, checked: who imports whom, the standard library only, sizes, public names."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

import stdserve

PACKAGE = Path(__file__).resolve().parent.parent / "stdserve"
FILES = sorted(PACKAGE.rglob("*.py"))

FUNCTION_LINES = 70
FILE_LINES = 750

# room -> rooms that it may import. A room is a folder or a module of the package. Imports point down:
#     cli -> process -> server -> { transport, gateway } -> exchange -> protocol -> errors
# config, logs and mailbox are leaves.
_LEAVES = {"errors", "config", "logs", "mailbox"}
ROOMS = {
    "errors": set[str](),
    "protocol": {"errors"},
    "config": {"errors"},
    "sources": {"errors", "config"},
    "logs": {"errors", "config"},
    "mailbox": set(),
    "exchange": {*_LEAVES, "protocol"},
    "transport": {*_LEAVES, "protocol", "exchange"},
    "gateway": {*_LEAVES, "protocol", "exchange"},
    "server": {*_LEAVES, "protocol", "exchange", "transport", "gateway"},
    "process": {*_LEAVES, "transport", "gateway", "server"},
    "cli": {*_LEAVES, "sources", "gateway", "process", "server", "package"},
    "demo": set(),  # an application like any other: it knows nothing of the server, and no room knows it
    "package": {"config", "server", "cli"},
}

# modules at the top that belong to another room
ALIASES = {"__init__": "package", "__main__": "package", "access": "logs", "values": "config", "asyncio_host": "server"}

# What the protocol room may use: nothing that touches a socket, a clock, a thread, a log or a file.
PROTOCOL_MODULES = {
    *("__future__", "base64", "collections", "dataclasses", "enum", "hashlib", "re", "struct", "typing", "zlib"),
    "codecs",  # UTF-8 of which the end has not come
    "http",  # HTTPStatus: the table of the registered reason phrases
    "ipaddress",  # whether an address belongs to the trusted networks: pure arithmetic
}

# Packages that the user may have installed. They are never imported by name, only by importlib and inside a function.
OPTIONAL = {"yaml", "uvloop"}


class Import(NamedTuple):
    file: Path
    line: int
    room: str  # of the importer
    target: str  # room of the package, or the absolute name of a module
    relative: bool
    for_types: bool  # under `if TYPE_CHECKING:`

    def __str__(self) -> str:
        return f"{self.file.relative_to(PACKAGE.parent)}:{self.line}: {self.room} imports {self.target}"


def parse(file: Path) -> ast.Module:
    return ast.parse(file.read_text(), str(file))


def room_of(parts: tuple[str, ...]) -> str:
    name = parts[0] if parts else "__init__"
    return ALIASES.get(name, name)


def package_of(file: Path) -> tuple[str, ...]:
    return file.relative_to(PACKAGE).parent.parts


def read_imports(file: Path) -> Iterator[Import]:
    tree = parse(file)
    room = room_of(file.relative_to(PACKAGE).with_suffix("").parts)
    for_types = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"
        for statement in block.body
        for node in ast.walk(statement)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            targets = [(alias.name, False) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            targets = [(node.module or "", False)]
        elif isinstance(node, ast.ImportFrom):
            targets = [(target, True) for target in relative_targets(file, node)]
        else:
            continue
        for target, relative in targets:
            yield Import(file, node.lineno, room, target, relative, id(node) in for_types)


def relative_targets(file: Path, node: ast.ImportFrom) -> list[str]:
    """The rooms that `from ..x import y` brings in."""
    package = package_of(file)
    base = package[: len(package) - (node.level - 1)]
    assert len(package) >= node.level - 1, f"{file}:{node.lineno} leaves the package"
    if node.module is not None:
        return [room_of((*base, *node.module.split(".")))]
    if base:
        return [room_of(base)]
    modules = {path.stem for path in PACKAGE.iterdir()}
    return [room_of((alias.name,)) if alias.name in modules else "package" for alias in node.names]


IMPORTS = [each for file in FILES for each in read_imports(file)]


def listed(found: list[object]) -> str:
    return "\n" + "\n".join(str(each) for each in found)


# ---- imports


def test_the_rooms_are_those_of_the_plan() -> None:
    rooms = {room_of(file.relative_to(PACKAGE).with_suffix("").parts) for file in FILES}
    assert rooms == set(ROOMS), "a new room needs a row in ROOMS: what may it import, and who may import it?"


def test_imports_point_down() -> None:
    wrong = [
        each
        for each in IMPORTS
        if each.relative and not each.for_types and each.target != each.room and each.target not in ROOMS[each.room]
    ]
    assert not wrong, listed(wrong)


def test_not_even_types_cross_between_transport_and_gateway_or_enter_protocol() -> None:
    wrong = [
        each
        for each in IMPORTS
        if (each.room, each.target) in (("transport", "gateway"), ("gateway", "transport"))
        or (each.room == "protocol" and each.relative and each.target not in ("protocol", "errors"))
    ]
    assert not wrong, listed(wrong)


def test_imports_inside_the_package_are_relative() -> None:
    """So that it works under any name: yourapp._vendor.stdserve."""
    wrong = [each for each in IMPORTS if not each.relative and each.target.split(".")[0] == PACKAGE.name]
    assert not wrong, listed(wrong)


def test_protocol_imports_nothing_that_acts() -> None:
    wrong = [
        each
        for each in IMPORTS
        if each.room == "protocol" and not each.relative and each.target.split(".")[0] not in PROTOCOL_MODULES
    ]
    assert not wrong, listed(wrong)


def test_only_the_standard_library_is_imported() -> None:
    wrong = [each for each in IMPORTS if not each.relative and each.target.split(".")[0] not in sys.stdlib_module_names]
    assert not wrong, listed(wrong)


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_importlib_is_used_inside_functions_and_for_known_packages(file: Path) -> None:
    tree = parse(file)
    inside = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef))
        for node in ast.walk(function)
    }
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or ast.unparse(node.func) not in ("importlib.import_module", "__import__"):
            continue
        assert id(node) in inside, f"{file}:{node.lineno}: imported at the start"
        name = node.args[0]
        if isinstance(name, ast.Constant):
            module = str(name.value).split(".")[0]
            assert module in OPTIONAL or module in sys.stdlib_module_names, f"{file}:{node.lineno}: {module}"


# ---- sizes and manners


def test_functions_are_short() -> None:
    long = [
        f"{file.relative_to(PACKAGE.parent)}:{node.lineno}: {node.name} has {node.end_lineno - node.lineno + 1} lines"
        for file in FILES
        for node in ast.walk(parse(file))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        and node.end_lineno is not None
        and node.end_lineno - node.lineno + 1 > FUNCTION_LINES
    ]
    assert not long, listed(list(long))


def test_files_are_short() -> None:
    sizes = {str(file.relative_to(PACKAGE.parent)): len(file.read_text().splitlines()) for file in FILES}
    assert not {name: lines for name, lines in sizes.items() if lines > FILE_LINES}


def test_no_work_is_left_for_later() -> None:
    marks = re.compile(r"\b(TODO|FIXME|XXX)\b")
    found = [
        f"{file.relative_to(PACKAGE.parent)}:{number}: {line.strip()}"
        for file in FILES
        for number, line in enumerate(file.read_text().splitlines(), 1)
        if marks.search(line)
    ]
    assert not found, listed(list(found))


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_every_file_says_what_it_is_and_postpones_annotations(file: Path) -> None:
    tree = parse(file)
    assert ast.get_docstring(tree), "no docstring"
    if len(tree.body) > 1:
        assert ast.unparse(tree.body[1]) == "from __future__ import annotations"


# ---- from outside


def test_public_names() -> None:
    assert sorted(stdserve.__all__) == ["Config", "Server", "__version__", "run"]
    assert re.fullmatch(r"\d+\.\d+\.\d+([a-z]+\d+)?", stdserve.__version__)
    assert callable(stdserve.run)
    assert stdserve.Config.__name__ == "Config" and stdserve.Config(app="a:b").app == "a:b"
    assert stdserve.Server(stdserve.Config(app="a:b")).config.app == "a:b"
    with pytest.raises(AttributeError, match="no attribute 'serve_forever'"):
        _ = stdserve.serve_forever


def python(code: str, *path: Path) -> str:
    """What a new interpreter prints that finds packages only in `path`."""
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, path)), "PYTHONDONTWRITEBYTECODE": "1"}
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], env=environ, capture_output=True, text=True, timeout=60
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def test_importing_the_package_imports_no_room() -> None:
    code = "import sys, stdserve; print(*[name for name in sys.modules if name.startswith('stdserve')])"
    assert python(code, PACKAGE.parent) == "stdserve"


SERVE_ONCE = """
import socket, sys, threading
from {name} import Config, Server

def app(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"hello"]

server = Server(Config(app=app, port=0, access_log_file={devnull!r}))
answers = []

def ask():
    try:
        assert server.started.wait(30)
        with socket.create_connection(server.listeners[0].server, 30) as client:
            client.sendall(b"GET / HTTP/1.1\\r\\nHost: test\\r\\nConnection: close\\r\\n\\r\\n")
            answers.append(client.makefile("rb").read())
    finally:
        server.stop()

thread = threading.Thread(target=ask)
thread.start()
server.run()
thread.join()
assert answers[0].startswith(b"HTTP/1.1 200 OK") and answers[0].endswith(b"hello"), answers
print([name for name in ("asyncio", "ssl", "multiprocessing") if name in sys.modules])
"""


def serve_once(name: str, *path: Path) -> str:
    return python(SERVE_ONCE.format(name=name, devnull=os.devnull), *path)


def test_serving_wsgi_imports_no_asyncio() -> None:
    """7 MB and 50 ms less for each worker."""
    assert serve_once("stdserve", PACKAGE.parent) == "[]"


def test_the_package_works_under_another_name(tmp_path: Path) -> None:
    vendored = tmp_path / "yourapp" / "_vendor" / "served"
    for file in FILES:
        copy = vendored / file.relative_to(PACKAGE)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(file.read_bytes())
    assert serve_once("yourapp._vendor.served", tmp_path) == "[]"


def test_the_package_works_from_a_zip(tmp_path: Path) -> None:
    archive = tmp_path / "stdserve.zip"
    with zipfile.ZipFile(archive, "w") as packed:
        for file in FILES:
            packed.write(file, f"zipped/{file.relative_to(PACKAGE)}")
    assert serve_once("zipped", archive) == "[]"
