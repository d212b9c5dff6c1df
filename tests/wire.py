r"""Wire cases: what a client sends on one connection and what it must get, one file each.

    # RFC 9112 6.3: what the case is about, any number of lines
    @ body=10                           limits of the engine, where they are not the usual
    > POST /a HTTP/1.1\r\n              bytes of the client; nothing is added, \r \n \t \0 \\ \xNN are the escapes
    >*70000 a                           the same piece many times
    < 200 400 close                     final statuses in order, `none` for no answer at all; then what becomes of the
                                        connection: open, close, waiting (for the rest of a request), or cut
                                        (closed before the end of the last answer)
    = POST /a 1.1 *70000 a              each complete request as understood: method, target, version, body; a target
                                        that ends in ... may be longer
    ! Transfer-Encoding                 a part of the broken rule's name

A line never ends in a blank, so \x20 stands there. A file's name says the rule and the outcome.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from stdserve.errors import ProtocolError
from stdserve.protocol.h1 import H1Engine, H1Limits, ResponseDefaults
from stdserve.protocol.message import END_OF_BODY, Request, ResponseHead

CORPUS = Path(__file__).parent / "corpus"
TAIL = b"GET /tail HTTP/1.1\r\nHost: tail\r\n\r\n"

_ESCAPES = {"r": b"\r", "n": b"\n", "t": b"\t", "0": b"\0", "\\": b"\\"}
_ESCAPE = re.compile(r"\\(?:x([0-9a-f]{2})|(.))|([ -\[\]-~])", re.DOTALL)
_REPEAT = re.compile(r"\*([0-9]+) (.+)")


@dataclass
class Case:
    name: str
    data: bytes = b""
    limits: dict[str, int] = field(default_factory=dict)
    statuses: list[int] = field(default_factory=list)
    then: str = "open"
    requests: list[tuple[str, str, str, bytes]] = field(default_factory=list)
    rule: str = ""

    def __str__(self) -> str:
        return self.name

    def understood(self, requests: list[tuple[str, str, str, bytes]]) -> bool:
        """Whether these are the requests of the case."""
        return len(requests) == len(self.requests) and all(map(_alike, self.requests, requests))


def _alike(wanted: tuple[str, str, str, bytes], request: tuple[str, str, str, bytes]) -> bool:
    method, target, *rest = wanted
    start, dots, _ = target.partition("...")
    return [method, *rest] == [request[0], *request[2:]] and (
        request[1].startswith(start) if dots else request[1] == target
    )


def unescape(text: str) -> bytes:
    out, at = [], 0
    while at < len(text):
        match = _ESCAPE.match(text, at)
        if match is None:
            raise ValueError(f"{text[at:]!r}: not ASCII, or not an escape")
        code, letter, plain = match.groups()
        out.append(bytes([int(code, 16)]) if code else _ESCAPES[letter] if letter else plain.encode())
        at = match.end()
    return b"".join(out)


def escape(data: bytes) -> str:
    names = {value[0]: "\\" + letter for letter, value in _ESCAPES.items()}
    text = "".join(names.get(byte) or (chr(byte) if 0x20 <= byte <= 0x7E else f"\\x{byte:02x}") for byte in data)
    return text[:-1] + "\\x20" if text.endswith(" ") else text


def _piece(text: str) -> bytes:
    match = _REPEAT.fullmatch(text)
    return unescape(text) if match is None else unescape(match[2]) * int(match[1])


def parse(name: str, text: str) -> Case:
    case, pieces = Case(name), []
    for number, line in enumerate(text.split("\n"), 1):
        if line != line.rstrip():
            raise ValueError(f"{name}, line {number}: a blank at the end, write \\x20")
        sign, rest = line[:1], line[2:]
        if sign == ">":
            pieces.append(unescape(rest) if line[1:2] == " " else _piece(line[1:]))
        elif sign == "<":
            *statuses, case.then = rest.split()
            case.statuses = [int(status) for status in statuses if status != "none"]
        elif sign == "=":
            method, target, version, *body = rest.split(" ", 3)
            case.requests.append((method, target, version, _piece(body[0]) if body else b""))
        elif sign == "!":
            case.rule = rest
        elif sign == "@":
            case.limits |= {key: int(value) for key, value in (pair.split("=") for pair in rest.split())}
        elif sign not in ("", "#"):
            raise ValueError(f"{name}, line {number}: unknown sign {sign!r}")
    case.data = b"".join(pieces)
    if case.then not in ("open", "close", "waiting", "cut"):
        raise ValueError(f"{name}: {case.then!r} is not open, close, waiting or cut")
    return case


def dump(comment: str, data: bytes, *, expectation: str = "") -> str:
    """The text of a case; its bytes broken into lines behind each LF."""
    lines = [f"# {line}".rstrip() for line in comment.splitlines()]
    lines += [f"> {escape(piece)}" for piece in re.findall(rb"[^\n]*\n|[^\n]+", data)]
    return "\n".join([*lines, *expectation.splitlines()]) + "\n"


def load(folder: str) -> list[Case]:
    """The cases of tests/corpus/<folder>, sorted by name."""
    return [parse(path.stem, path.read_text("ascii")) for path in sorted((CORPUS / folder).glob("*.http"))]


# ---- feeding an engine


@dataclass
class Dialogue:
    """What came of feeding an engine: everything but how the bytes were cut into pieces."""

    requests: list[tuple[str, str, str, bytes]] = field(default_factory=list)
    heads: list[Request] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)
    then: str = "open"
    error: ProtocolError | None = None
    unread: int = 0
    partial: bytes = b""  # what has arrived of a body that is not complete

    def same_events(self, other: Dialogue) -> bool:
        return self._events() == other._events()

    def _events(self) -> tuple[object, ...]:
        heads = [(head.method, head.target, head.version, head.headers) for head in self.heads]
        return heads, self.requests, self.partial, self.error is None, self.then


class Peer:
    """A server without an application: it answers each complete request with 200 and goes on with the next."""

    def __init__(self, limits: dict[str, int] | None = None, engine: type[H1Engine] = H1Engine) -> None:
        self.engine = engine(H1Limits(**limits or {}), ResponseDefaults())
        self.dialogue = Dialogue()
        self._request: Request | None = None
        self._body: list[bytes] = []

    def feed(self, pieces: Iterable[bytes]) -> Dialogue:
        for piece in pieces:
            self.engine.receive_data(piece)
            self._take_events()
        return self._finish()

    def end(self) -> Dialogue:
        self.engine.receive_eof()
        self._take_events()
        return self._finish()

    def _finish(self) -> Dialogue:
        dialogue = self.dialogue
        dialogue.unread = len(self.engine.buffer)
        dialogue.partial = b"".join(self._body)
        if dialogue.then != "close":
            dialogue.then = "waiting" if self._request is not None or dialogue.unread else "open"
        return dialogue

    def _take_events(self) -> None:
        try:
            while self.dialogue.then != "close" and (event := self.engine.next_event()) is not None:
                self._take(event)
        except ProtocolError as error:
            self.dialogue.error = error
            self.dialogue.then = "close"
            if error.code:
                self.dialogue.statuses.append(error.code)

    def _take(self, event: object) -> None:
        if isinstance(event, Request):
            assert self._request is None
            self.dialogue.heads.append(event)
            self._request = event
            if event.body is not None:
                self._answer(event.body)
        elif event is END_OF_BODY:
            self._answer(b"".join(self._body))
        else:
            assert isinstance(event, bytes) and event and self._request is not None
            self._body.append(event)

    def _answer(self, body: bytes) -> None:
        request, self._request, self._body = self._request, None, []
        assert request is not None
        assert self.engine.next_event() is None  # paused until the answer is out
        self.dialogue.requests.append(
            (request.method.decode(), request.target.decode(), request.version.decode(), body)
        )
        self.engine.send_response(ResponseHead(200, []), b"ok", True)
        self.dialogue.statuses.append(200)
        if self.engine.keep_alive:
            self.engine.start_next_request()
        else:
            self.dialogue.then = "close"


def talk(data: bytes, cuts: Iterable[int] = (), limits: dict[str, int] | None = None) -> Dialogue:
    """Feed `data` to a new engine, cut at the given offsets."""
    return Peer(limits).feed(split(data, cuts))


def split(data: bytes, cuts: Iterable[int]) -> Iterator[bytes]:
    at = 0
    for cut in [*sorted(cuts), len(data)]:
        if at < cut <= len(data):
            yield data[at:cut]
            at = cut


# ---- reading answers, without a line of the package's own


@dataclass
class Answer:
    status: int
    reason: bytes
    fields: list[tuple[bytes, bytes]]
    body: bytes = b""
    trailers: list[tuple[bytes, bytes]] = field(default_factory=list)
    chunks: list[bytes] = field(default_factory=list)

    def all(self, name: bytes) -> list[bytes]:
        return [value for each, value in self.fields if each.lower() == name]

    def get(self, name: bytes) -> bytes | None:
        values = self.all(name)
        assert len(values) <= 1, f"{name!r} more than once"
        return values[0] if values else None


class Incomplete(Exception):
    """The answer goes on."""


def read_answer(data: bytes, method: str = "GET", closed: bool = False) -> tuple[Answer, bytes]:
    """The first answer in `data`, and what follows it; `closed` if the connection ends behind `data`."""
    head, rest = _until(data, b"\r\n\r\n")
    line, *lines = head.split(b"\r\n")
    match = re.fullmatch(rb"HTTP/1\.1 ([0-9]{3}) ([\t -~\x80-\xff]*)", line)
    assert match is not None, line
    answer = Answer(int(match[1]), match[2], [_read_field(each) for each in lines])
    length, coding = answer.get(b"content-length"), answer.get(b"transfer-encoding")
    assert length is None or coding is None
    if method == "HEAD" or answer.status < 200 or answer.status in (204, 304):
        assert coding is None and (length is None or answer.status not in (204, *range(100, 200)))
        return answer, rest
    if coding is not None:
        assert coding == b"chunked"
        return answer, _read_chunked(answer, rest)
    if length is None:
        if not closed:
            raise Incomplete
        answer.body = rest
        return answer, b""
    size = int(length)
    if len(rest) < size:
        raise Incomplete
    answer.body = rest[:size]
    return answer, rest[size:]


def _read_chunked(answer: Answer, data: bytes) -> bytes:
    while True:
        line, data = _until(data, b"\r\n")
        size = int(line, 16)
        if not size:
            break
        if len(data) < size + 2:
            raise Incomplete
        assert data[size : size + 2] == b"\r\n"
        answer.chunks.append(data[:size])
        data = data[size + 2 :]
    answer.body = b"".join(answer.chunks)
    while True:
        line, data = _until(data, b"\r\n")
        if not line:
            return data
        answer.trailers.append(_read_field(line))


def _read_field(line: bytes) -> tuple[bytes, bytes]:
    match = re.fullmatch(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+):[ \t]*([\t -~\x80-\xff]*)", line)
    assert match is not None, line
    return match[1], match[2].rstrip(b" \t")


def _until(data: bytes, end: bytes) -> tuple[bytes, bytes]:
    before, found, after = data.partition(end)
    if not found:
        raise Incomplete
    return before, after
