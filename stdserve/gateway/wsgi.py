"""WSGI (PEP 3333): environ, start_response, write, the iterable; one request in one pool thread.

    loop thread    handle(exchange): the whole body is here, or is spooled until it is    -> threadpool.submit
    pool thread    WSGICall: environ -> application -> start_response -> blocks of the iterable
                   checks the head; every piece of the answer is handed to the loop
    loop thread    exchange.start / send: accounting, framing, writing

A slow client never holds a thread: its request is received before one is taken, and of its answer the loop holds
64 KiB before the thread has to wait. A file answer (`wsgi.file_wrapper`) leaves the thread free at once. A client that
has gone costs no thread either: the next block that the application makes is its last.
"""

from __future__ import annotations

import contextlib
import functools
import io
import logging
import os
import stat
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator
from typing import Any
from urllib.parse import unquote_to_bytes

from ..errors import AppError, ClientDisconnected
from ..exchange import HIGH_WATER_BYTES, Exchange, FileRegion, file_piece
from ..protocol.message import BODILESS, REASONS, ResponseHead, check_reason, check_status
from .threadpool import ThreadPool

logger = logging.getLogger("stdserve.error")

# Bodies up to this size stay in memory, longer ones go to a temporary file (waitress's figure too).
SPOOL_BYTES = 512 * 1024

# What a block costs the loop until it has left, besides its bytes: one-byte blocks too must end in a wait.
_BLOCK_COST_BYTES = 256

CallSoon = Callable[..., object]


class FileWrapper:
    """wsgi.file_wrapper: blocks of a file, or the file itself to os.sendfile where that can be."""

    def __init__(self, filelike: Any, blksize: int = 64 * 1024) -> None:
        self.filelike = filelike
        self.blksize = blksize
        if hasattr(filelike, "close"):
            self.close = filelike.close

    def __iter__(self) -> Iterator[bytes]:
        return iter(lambda: self.filelike.read(self.blksize), b"")

    def piece(self, limit: int | None) -> bytes | FileRegion | None:
        """From the file's position to its end, `limit` bytes at most; None if it must be read in blocks."""
        file = _plain_file(self.filelike)
        if file is None:
            return None
        try:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                return None
            offset = file.tell()
            count = status.st_size - offset
            if count <= 0:  # at its end, or one of /proc, whose length nobody knows
                return None
            return file_piece(file, offset, count if limit is None else min(count, limit))
        except (OSError, ValueError):  # closed, or cannot seek, or shorter than it says
            return None

    def blocks(self, limit: int | None) -> Iterator[bytes]:
        """Its blocks, `limit` bytes at most: "until Content-Length bytes have been written" (PEP 3333)."""
        if limit is None:
            yield from self
            return
        while limit > 0 and (block := self.filelike.read(min(self.blksize, limit))):
            limit -= len(block)
            yield block


def _plain_file(filelike: Any) -> Any:
    """The file of the io module that `filelike` is, or whose `read` it passes on (tempfile's and Django's wrappers).

    Else None: a gzip.GzipFile has a `fileno` too, of a file that holds other bytes than its `read` returns.
    """
    read = getattr(filelike, "read", None)
    file = getattr(getattr(read, "__wrapped__", read), "__self__", None)
    return file if isinstance(getattr(file, "raw", file), io.FileIO) else None


class ErrorsStream:
    """wsgi.errors: whole lines to the error log; what is left of a line goes there with `flush`."""

    _line = ""  # no __init__: one is made for every request

    def write(self, text: str) -> int:
        *lines, self._line = (self._line + text).split("\n")
        for line in lines:
            logger.error("%s", line)
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        if self._line:
            line, self._line = self._line, ""
            logger.error("%s", line)


class _FieldKeys(dict[bytes, str]):
    """Field name in lower case -> environ key; "" for a field that must not reach the application.

    At most 1,024 names of at most 64 bytes (about 250 KiB); when full it starts anew.
    """

    def __missing__(self, name: bytes) -> str:
        # A name with "_" would become the same key as the one with "-", and so could overrule what a proxy has set.
        # HTTP_PROXY is what many libraries read as their own proxy setting (httpoxy).
        if b"_" in name or name == b"proxy":
            key = ""
        elif name in (b"content-type", b"content-length"):
            key = name.decode().replace("-", "_").upper()
        else:
            key = "HTTP_" + name.decode().replace("-", "_").upper()
        if len(name) <= 64:
            if len(self) >= 1024:
                self.clear()
            self[name] = key
        return key


_field_keys = _FieldKeys()


class WSGIGateway:
    """`handle` is called in the loop thread for each request; `call_soon` hands a call to the loop thread."""

    def __init__(
        self,
        app: Callable[..., Any],
        pool: ThreadPool,
        call_soon: CallSoon,
        *,
        multiprocess: bool = False,
        keep_environ: bool = False,
        software: str = "stdserve",
    ) -> None:
        self.app = app
        self.pool = pool
        self.call_soon = call_soon
        self.keep_environ = keep_environ
        self.base_environ: dict[str, Any] = {
            "wsgi.version": (1, 0),
            "wsgi.multithread": pool.cap > 1,
            "wsgi.multiprocess": multiprocess,
            "wsgi.run_once": False,
            "wsgi.file_wrapper": FileWrapper,
            "wsgi.input_terminated": True,
            "SERVER_SOFTWARE": software,
        }

    def handle(self, exchange: Exchange) -> None:
        if exchange.body_complete:
            self.pool.submit(WSGICall.run, WSGICall(self, exchange, None))
        else:
            _Spool(self, exchange)

    def submit(self, exchange: Exchange, body: Any) -> None:
        self.pool.submit(WSGICall.run, WSGICall(self, exchange, body))


class _Spool:
    """Receives a body in the loop thread, in memory or a temporary file, then lets the application run."""

    __slots__ = ("exchange", "file", "gateway")

    def __init__(self, gateway: WSGIGateway, exchange: Exchange) -> None:
        self.gateway = gateway
        self.exchange = exchange
        self.file: Any = tempfile.SpooledTemporaryFile(max_size=SPOOL_BYTES)
        exchange.on_change = self.on_change
        # The whole body comes before the application runs, so its first read is now.
        exchange.want_body()
        if exchange.has_body:
            self.on_change()

    def on_change(self) -> None:
        exchange = self.exchange
        if exchange.disconnected:
            self._give_up()
            return
        try:
            if exchange.has_body:
                self.file.write(exchange.take_body())
            if exchange.body_complete:
                self.file.seek(0)
        except OSError as error:  # the disk is full
            logger.error("%r: cannot store the request body: %s", exchange, error)
            self._give_up()
            return
        if exchange.body_complete:
            exchange.on_change = None
            self.gateway.submit(exchange, self.file)

    def _give_up(self) -> None:
        """The application will not run: end the exchange here, so that it no longer counts as a running request."""
        self.exchange.on_change = None
        with contextlib.suppress(OSError):  # a close writes what is buffered
            self.file.close()
        self.exchange.fail()


class WSGICall:
    """One call of the application, in a pool thread. Its answer goes to the loop in the order of the calls here.

    environ -> application -> start_response ( start_response(exc_info) )? ( write | block )* close
    """

    __slots__ = (
        "_body", "_call_soon", "_called", "_cost_bytes", "_drained", "_errors", "_handed_bytes", "_head", "_sent_any",
        "exchange", "gateway",
    )  # fmt: skip

    def __init__(self, gateway: WSGIGateway, exchange: Exchange, body: Any) -> None:
        self.gateway = gateway
        self.exchange = exchange
        self._body = body
        self._call_soon = gateway.call_soon
        self._called = False  # start_response has been, with success or without
        self._head: ResponseHead | None = None
        self._sent_any = False  # the head has been handed over
        self._handed_bytes = 0  # of the body, to the loop
        self._cost_bytes = 0  # what the loop may hold of it, since it last said that the client keeps up
        self._drained: threading.Lock | None = None
        self._errors = ErrorsStream()
        exchange.task = self

    # ---- pool thread

    def run(self) -> None:
        """Exceptions of the application end here (PEP 3333, "Error Handling")."""
        exchange = self.exchange
        try:
            if exchange.disconnected:
                self._call_soon(exchange.fail)
            else:
                self._respond(self.gateway.app(self._environ(), self.start_response))
        except BaseException as error:
            self._fail(error)
        finally:
            exchange.task = None  # it refers to us: without this each request would leave a cycle behind
            if self._errors._line:
                self._errors.flush()
            if self._body is not None:
                self._body.close()

    def _respond(self, result: Any) -> None:
        """Send what the application has returned; `close` of it is called exactly once, whatever happens."""
        close_later = False
        try:
            if isinstance(result, (list, tuple)) and len(result) == 1:
                self._send(result[0], True)
            elif isinstance(result, FileWrapper):
                close_later = self._send_file(result)
            else:
                self._send_blocks(result)
        finally:
            close = getattr(result, "close", None)
            if close is not None and not close_later:
                close()

    def start_response(
        self, status: str, headers: list[tuple[str, str]], exc_info: Any = None
    ) -> Callable[[bytes], object]:
        if exc_info:
            try:
                if self._sent_any:
                    raise exc_info[1].with_traceback(exc_info[2])
            finally:
                exc_info = None  # a traceback that holds its own frame is a cycle
        elif self._called:
            raise AssertionError("start_response called twice without exc_info (PEP 3333)")
        self._called = True
        self._head = None  # what was said before does not count any more, even if this fails
        code, reason = _statuses.get(status) or _parse_status(status)
        if not isinstance(headers, list):
            raise AppError(f"response headers are {type(headers).__name__}, not a list (PEP 3333)")
        self._head = ResponseHead(code, headers, reason)
        return self.write

    def write(self, data: bytes) -> None:
        """The callable that start_response returns."""
        self._send(data, False)
        length = self._head.content_length if self._head is not None else None
        if length is not None and self._handed_bytes > length:
            raise AppError(f"write() past the Content-Length of {length} (PEP 3333)")

    def _send_blocks(self, blocks: Iterable[Any]) -> None:
        """Send what an iterable yields, as far as the answer has room for it: an endless one ends here too."""
        for block in blocks:
            if block:
                self._send(block, False)
                if self._has_too_much():
                    break
            else:
                self.exchange.check_connected()
        self._send(b"", True)

    def _has_too_much(self) -> bool:
        """Whether the application has made more of a body than its head allows. Reaching the Content-Length is not
        yet too much: the application may have work to do after its last block."""
        head = self._head
        if head is None:
            return False
        if head.status in BODILESS or self.exchange.request.method == b"HEAD":
            return True
        return head.content_length is not None and self._handed_bytes > head.content_length

    def _send(self, block: Any, end: bool) -> None:
        if not isinstance(block, bytes):
            raise AppError(f"the application's block is {type(block).__name__}, not bytes (PEP 3333)")
        exchange = self.exchange
        if self._sent_any:
            self._send_more(block, end)
            return
        if self._head is None:
            raise AppError("the application has not called start_response")
        if block or end:  # the head waits for the first block that is not empty
            self._sent_any = True
            self._handed_bytes = self._cost_bytes = len(block)
            self._call_soon(exchange.start, self._head, block, end)

    def _send_more(self, block: bytes, end: bool) -> None:
        if not end:
            self.exchange.check_connected()
        self._call_soon(self.exchange.send, block, end)
        self._handed_bytes += len(block)
        self._cost_bytes += len(block) + _BLOCK_COST_BYTES
        if self._cost_bytes >= HIGH_WATER_BYTES and not end:
            self._wait_for_client()

    def _send_file(self, wrapper: FileWrapper) -> bool:
        """Send a file; True if the loop does it and has it closed when it has left."""
        head = self._head
        if head is None or self._sent_any:  # the rules for blocks say what is to be done
            self._send_blocks(wrapper)
            return False
        if head.status in BODILESS or self.exchange.request.method == b"HEAD":
            self._send(b"", True)
            return False
        can_send_file = self.exchange.channel.can_send_file()
        piece = wrapper.piece(head.content_length) if can_send_file else None
        if piece is None:
            self._send_blocks(wrapper.blocks(head.content_length))
        elif isinstance(piece, bytes):
            self._send(piece, True)
        else:
            self._sent_any = True
            self._call_soon(self._start_file, head, piece, wrapper)
            return True
        return False

    def _wait_for_client(self) -> None:
        """Block until the loop has taken what was handed over and the client keeps up, or has gone."""
        self._cost_bytes = 0
        self._drained = threading.Lock()
        self._drained.acquire()
        self._call_soon(self._watch_drain)
        self.gateway.pool.loop.wake()  # whatever waits behind us
        self._drained.acquire()
        self.exchange.check_connected()

    def _fail(self, error: BaseException) -> None:
        """The application has raised, or we have, and nobody has caught it."""
        try:
            if not isinstance(error, ClientDisconnected):
                self._log_failure(error)
        finally:
            self._call_soon(self.exchange.fail)

    def _log_failure(self, error: BaseException) -> None:
        try:
            frames = traceback.TracebackException.from_exception(error)
        except Exception:  # one that cannot be shown
            logger.error("Exception in WSGI application: %r\n%s", self.exchange, type(error).__name__)
            return
        while frames.stack and frames.stack[0].filename == __file__ and len(frames.stack) > 1:
            del frames.stack[0]
        text = "".join(frames.format()).rstrip()
        logger.error("Exception in WSGI application: %r\n%s", self.exchange, text)

    # ---- loop thread

    def _start_file(self, head: ResponseHead, region: FileRegion, wrapper: FileWrapper) -> None:
        """Send the file; `close()` of the application's iterable is the application's code, so a pool thread calls it
        when the last byte has left."""
        exchange = self.exchange
        exchange.start(head, region, True)
        if exchange.finished or exchange.disconnected:
            self._close_file(wrapper)
        else:
            exchange.on_finished = functools.partial(self._close_file, wrapper)

    def _close_file(self, wrapper: FileWrapper) -> None:
        close = getattr(wrapper, "close", None)
        if close is not None:
            self.gateway.pool.submit(self._close, close)

    def _close(self, close: Callable[[], object]) -> None:
        """In a pool thread."""
        try:
            close()
        except BaseException as error:
            self._log_failure(error)

    def _watch_drain(self) -> None:
        if self.exchange.must_wait:
            self.exchange.on_change = self._on_change
        else:
            self._release()

    def _on_change(self) -> None:
        if not self.exchange.must_wait:
            self._release()

    def _release(self) -> None:
        self.exchange.on_change = None
        if self._drained is not None and self._drained.locked():
            self._drained.release()

    # ---- environ (PEP 3333 "environ Variables", RFC 3875)

    def _environ(self) -> dict[str, Any]:
        exchange = self.exchange
        request = exchange.request
        environ = self.gateway.base_environ.copy()
        path = request.path
        script_name = exchange.root_path
        path_info = (unquote_to_bytes(path) if b"%" in path else path).decode("latin-1")
        if script_name:
            # of decoded bytes as latin-1, like PATH_INFO (PEP 3333, "Unicode Issues")
            script_name = unquote_to_bytes(script_name).decode("latin-1")
            if path_info == script_name or path_info.startswith(script_name + "/"):
                path_info = path_info[len(script_name) :]
        host, port = exchange.server
        client = exchange.client
        target = request.target.decode("latin-1")
        environ["REQUEST_METHOD"] = request.method.decode()
        environ["SCRIPT_NAME"] = script_name
        environ["PATH_INFO"] = path_info
        environ["QUERY_STRING"] = request.query.decode("latin-1")
        environ["REQUEST_URI"] = environ["RAW_URI"] = target
        environ["SERVER_PROTOCOL"] = "HTTP/" + request.version.decode()
        if port is None:
            environ["SERVER_NAME"], environ["SERVER_PORT"] = _server_of_unix(exchange)
        else:
            environ["SERVER_NAME"] = host if ":" not in host else f"[{host}]"  # RFC 3875 4.1.14
            environ["SERVER_PORT"] = str(port)
        environ["REMOTE_ADDR"], environ["REMOTE_PORT"] = ("", "") if client is None else (client[0], str(client[1]))
        environ["wsgi.url_scheme"] = exchange.scheme
        if exchange.scheme == "https":
            environ["HTTPS"] = "on"
        if exchange.channel.tls is not None:
            environ.update(exchange.channel.tls.environ)
        environ["wsgi.input"] = io.BytesIO(request.body or b"") if self._body is None else self._body
        environ["wsgi.errors"] = self._errors
        environ["wsgi.early_hints"] = self._early_hints
        environ["stdserve.client_disconnected"] = self._client_disconnected
        for name, value in request.headers:
            key = _field_keys[name]
            if key in environ:
                environ[key] += ("; " if name == b"cookie" else ",") + value.decode("latin-1")
            elif key:
                environ[key] = value.decode("latin-1")
        if "HTTP_TRANSFER_ENCODING" in environ:
            # The body is here, decoded, and so has a length now (RFC 9112 7.1.3). Django and Bottle read no other.
            del environ["HTTP_TRANSFER_ENCODING"]
            environ["CONTENT_LENGTH"] = str(environ["wsgi.input"].seek(0, os.SEEK_END))
            environ["wsgi.input"].seek(0)
        if self.gateway.keep_environ:
            exchange.environ = environ
        return environ

    def _client_disconnected(self) -> bool:
        """environ["stdserve.client_disconnected"]: whether the client has gone."""
        return self.exchange.peer_closed

    def _early_hints(self, headers: list[tuple[str, str]]) -> None:
        """environ["wsgi.early_hints"]: send 103 (Early Hints) with these fields."""
        self._call_soon(self.exchange.send_early_hints, ResponseHead(103, headers).lines)


# Status lines of applications: few, and the same again and again
_statuses = {f"{status} {reason.decode()}": (status, reason) for status, reason in REASONS.items() if status >= 200}


def _parse_status(status: Any) -> tuple[int, bytes | None]:
    """ "404 Not Found" -> (404, b"Not Found")."""
    if not isinstance(status, str):
        raise AppError(f"response status {status!r:.80} is not a str (PEP 3333)")
    number, _, reason = status.partition(" ")
    if len(number) != 3 or not (number.isascii() and number.isdigit()):
        raise AppError(f"response status {status!r:.80} does not begin with three digits (PEP 3333)")
    try:
        return check_status(int(number)), check_reason(reason.encode("latin-1"))
    except UnicodeEncodeError:
        raise AppError(f"response status {status!r:.80} has a character beyond latin-1 (PEP 3333)") from None


def _server_of_unix(exchange: Exchange) -> tuple[str, str]:
    """SERVER_NAME and SERVER_PORT for a unix socket, which has neither: from Host, as gunicorn does."""
    host = exchange.request.authority.decode("latin-1")
    name, colon, port = host.rpartition(":")
    if not colon or "]" in port:  # b"example.org", b"[::1]"
        name, port = host, ""
    return name or "localhost", port or ("443" if exchange.scheme == "https" else "80")
