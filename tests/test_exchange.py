"""exchange.py: lengths, bodies that may not be, failures, waiting, with a channel that writes down what it is told."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from stdserve.errors import ClientDisconnected
from stdserve.exchange import HIGH_WATER_BYTES, Exchange, FileRegion, error_head, file_piece
from stdserve.protocol.forwarded import Forwarded
from stdserve.protocol.message import Request, ResponseHead

BIG = 100_000  # bytes of a file that is not copied


class FakeChannel:
    """The connection's side. `told` is what it was told, in order."""

    def __init__(self) -> None:
        self.client: tuple[str, int] | None = ("192.0.2.7", 4711)
        self.server: tuple[str, int | None] = ("127.0.0.1", 8000)
        self.scheme = "http"
        self.root_path = ""
        self.queued_bytes = 0
        self.tls = None
        self.told: list[Any] = []
        self.trailers_allowed = True
        self.lost_while_sending: Exchange | None = None

    def send_response(self, exchange: Exchange, head: ResponseHead, body: Any, end: bool) -> None:
        self.told.append(("response", head.status, as_bytes(body), end))
        self._lose()

    def send_data(self, exchange: Exchange, data: Any, end: bool) -> None:
        self.told.append(("data", as_bytes(data), end))
        self._lose()

    def send_trailers(self, exchange: Exchange, lines: list[bytes]) -> None:
        self.told.append(("trailers", lines))

    def send_informational(self, exchange: Exchange, status: int, lines: list[bytes]) -> None:
        self.told.append(("informational", status, lines))

    def can_send_trailers(self, exchange: Exchange) -> bool:
        return self.trailers_allowed

    def can_send_file(self) -> bool:
        return True

    def resume_reading(self, exchange: Exchange) -> None:
        self.told.append("resume")

    def finish(self, exchange: Exchange) -> None:
        if not exchange.finished:
            exchange.finished = True
            self.told.append("finish")
            exchange.release()

    def cut(self, exchange: Exchange) -> None:
        self.told.append("cut")
        exchange.lose()

    def forbid_keep_alive(self) -> None:
        self.told.append("no keep-alive")

    def _lose(self) -> None:
        """As a connection does whose socket fails in a write."""
        if self.lost_while_sending is not None:
            exchange, self.lost_while_sending = self.lost_while_sending, None
            exchange.lose()
            if exchange.ended:
                self.finish(exchange)

    def take(self) -> list[Any]:
        told, self.told = self.told, []
        return told


def as_bytes(data: Any) -> bytes:
    return os.pread(data.fd, data.count, data.offset) if isinstance(data, FileRegion) else data


def make(method: bytes = b"GET", body: bytes | None = b"", expect: bool = False) -> tuple[Exchange, FakeChannel]:
    request = Request(method, b"/path?query", b"1.1", [(b"host", b"test")], {b"host": b"test"})
    request.body = body
    request.expect_continue = expect
    channel = FakeChannel()
    return Exchange(request, channel), channel


def head(status: int = 200, length: int | None = None) -> ResponseHead:
    return ResponseHead(status, [] if length is None else [(b"Content-Length", b"%d" % length)])


@pytest.fixture
def file(tmp_path: Path) -> Iterator[Any]:
    path = tmp_path / "file"
    path.write_bytes(bytes(range(250)) * (BIG // 250))
    with path.open("rb") as file:
        yield file


# ---- lengths


def test_whole_answer_in_one_piece() -> None:
    exchange, channel = make()
    exchange.start(head(200, 5), b"hello", True)
    assert channel.told == [("response", 200, b"hello", True), "finish"]
    assert (exchange.status, exchange.sent_bytes, exchange.ended, exchange.finished) == (200, 5, True, True)


def test_whole_answer_in_pieces() -> None:
    exchange, channel = make()
    exchange.start(head(200, 10), b"hello", False)
    assert not exchange.ended
    exchange.send(b"world", False)
    exchange.send(b"", True)
    told = [("response", 200, b"hello", False), ("data", b"world", False), ("data", b"", True), "finish"]
    assert channel.told == told
    assert exchange.sent_bytes == 10


def test_without_a_length_everything_passes() -> None:
    exchange, channel = make()
    exchange.start(head(), b"", False)
    exchange.send(b"a" * 1000, False)
    exchange.send(b"b", True)
    told = [("response", 200, b"", False), ("data", b"a" * 1000, False), ("data", b"b", True), "finish"]
    assert channel.told == told
    assert exchange.sent_bytes == 1001


def test_too_long_in_one_piece_is_cut_to_length(caplog: pytest.LogCaptureFixture) -> None:
    exchange, channel = make()
    exchange.start(head(200, 5), b"hello world", True)
    # before the head is made, so that it says `Connection: close`
    assert channel.told == ["no keep-alive", ("response", 200, b"hello", True), "finish"]
    assert exchange.sent_bytes == 5
    assert "GET /path?query from 192.0.2.7:4711: the application sent more than its Content-Length" in caplog.text


def test_too_long_in_pieces_is_cut_and_said_once(caplog: pytest.LogCaptureFixture) -> None:
    exchange, channel = make()
    exchange.start(head(200, 7), b"hello", False)
    for _ in range(10):
        exchange.send(b"world", False)
    exchange.send(b"!", True)
    told = channel.take()
    assert told[:3] == [("response", 200, b"hello", False), "no keep-alive", ("data", b"wo", False)]
    assert set(told[3:-2]) == {("data", b"", False)}
    assert told[-2:] == [("data", b"", True), "finish"]
    assert exchange.sent_bytes == 7
    assert caplog.text.count("sent more than its Content-Length") == 1


def test_nothing_was_declared_but_something_is_sent(caplog: pytest.LogCaptureFixture) -> None:
    exchange, channel = make()
    exchange.start(head(200, 0), b"", False)
    exchange.send(b"x", True)
    assert channel.told == [("response", 200, b"", False), "no keep-alive", ("data", b"", True), "finish"]


def test_exact_length_then_more(caplog: pytest.LogCaptureFixture) -> None:
    exchange, channel = make()
    exchange.start(head(200, 5), b"hello", False)
    exchange.send(b"", False)
    assert caplog.text == ""
    exchange.send(b"!", True)
    assert "no keep-alive" in channel.told and ("data", b"", True) in channel.told


@pytest.mark.parametrize("pieces", [1, 2, 3])
def test_too_short_is_cut_so_that_the_client_sees_it(pieces: int, caplog: pytest.LogCaptureFixture) -> None:
    exchange, channel = make()
    exchange.start(head(200, 10), b"abc", pieces == 1)
    for number in range(1, pieces):
        exchange.send(b"d", number == pieces - 1)
    assert channel.told[-2:] == ["cut", "finish"]
    assert f"{10 - 3 - (pieces - 1)} bytes short of its Content-Length; connection cut" in caplog.text
    assert exchange.finished


def test_too_short_for_a_client_that_has_gone_is_no_error(caplog: pytest.LogCaptureFixture) -> None:
    exchange, channel = make()
    exchange.start(head(200, 10), b"abc", False)
    exchange.lose()
    exchange.send(b"", True)
    assert channel.told == [("response", 200, b"abc", False), "finish"]
    assert caplog.text == ""


# ---- answers without a body


@pytest.mark.parametrize(
    ("method", "status"), [(b"HEAD", 200), (b"HEAD", 404), (b"GET", 204), (b"GET", 304), (b"HEAD", 304)]
)
@pytest.mark.parametrize("length", [None, 5, 1000])
def test_answer_that_has_no_body_by_its_method_or_status(
    method: bytes, status: int, length: int | None, caplog: pytest.LogCaptureFixture
) -> None:
    exchange, channel = make(method)
    exchange.start(head(status, length), b"hello", False)
    exchange.send(b"world", False)
    exchange.send(b"!", True)
    told = [("response", status, b"", False), ("data", b"", False), ("data", b"", True), "finish"]
    assert channel.told == told
    assert exchange.sent_bytes == 0
    assert caplog.text == ""


def test_head_in_one_piece_and_with_a_file(file: Any) -> None:
    exchange, channel = make(b"HEAD")
    exchange.start(head(200, BIG), file_piece(file, 0, BIG), True)
    assert channel.told == [("response", 200, b"", True), "finish"]


# ---- failures


def test_failure_before_the_start_is_500() -> None:
    exchange, channel = make()
    exchange.fail()
    assert channel.told == [("response", 500, b"Internal Server Error\n", True), "finish"]
    exchange.fail()
    assert len(channel.told) == 2


def test_failure_of_head_has_no_body() -> None:
    exchange, channel = make(b"HEAD")
    exchange.fail()
    assert channel.told == [("response", 500, b"", True), "finish"]


def test_failure_for_a_client_that_has_gone_is_no_response() -> None:
    exchange, channel = make()
    exchange.lose()
    exchange.fail()
    assert channel.told == ["finish"] and exchange.status == 0


def test_failure_after_the_start_is_cut() -> None:
    exchange, channel = make()
    exchange.start(head(), b"part", False)
    exchange.fail()
    assert channel.take() == [("response", 200, b"part", False), "cut", "finish"]
    assert exchange.ended and exchange.status == 200
    exchange.fail()
    assert channel.told == []


def test_failure_after_the_end_changes_nothing() -> None:
    exchange, channel = make()
    exchange.start(head(200, 2), b"ok", True)
    channel.take()
    exchange.fail()
    assert channel.told == []


@pytest.mark.parametrize("started", [False, True])
def test_failure_for_a_client_that_has_gone_only_finishes(started: bool) -> None:
    exchange, channel = make()
    if started:
        exchange.start(head(), b"part", False)
    exchange.lose()
    channel.take()
    exchange.fail()
    assert channel.told == ["finish"]
    assert exchange.ended and exchange.finished


# ---- clients that go


def test_start_after_the_client_has_gone_sends_nothing_and_finishes() -> None:
    exchange, channel = make()
    exchange.lose()
    exchange.start(head(200, 5), b"hello", True)
    assert channel.told == ["finish"]
    assert (exchange.status, exchange.sent_bytes) == (200, 0)


def test_pieces_after_the_client_has_gone_are_dropped() -> None:
    exchange, channel = make()
    exchange.lose()
    exchange.start(head(200, 10), b"hello", False)
    exchange.send(b"wor", False)
    assert channel.told == []
    exchange.send(b"ld", True)
    assert channel.told == ["finish"]
    assert exchange.sent_bytes == 0


def test_client_that_goes_between_pieces() -> None:
    exchange, channel = make()
    exchange.start(head(), b"one", False)
    exchange.lose()
    exchange.send(b"two", False)
    exchange.send(b"", True)
    assert channel.told == [("response", 200, b"one", False), "finish"]
    assert exchange.sent_bytes == 3


@pytest.mark.parametrize("end", [False, True])
def test_connection_that_breaks_in_the_middle_of_a_send_finishes_once(end: bool) -> None:
    exchange, channel = make()
    finished: list[int] = []
    exchange.on_finished = lambda: finished.append(1)
    channel.lost_while_sending = exchange
    exchange.start(head(200, 3), b"one", end)
    assert exchange.disconnected and exchange.finished is end
    exchange.fail()
    assert channel.told.count("finish") == 1 and finished == [1]
    assert "cut" not in channel.told


def test_loss_is_told_and_drops_the_body() -> None:
    exchange, channel = make(b"POST", None)
    changes: list[bool] = []
    exchange.on_change = lambda: changes.append(exchange.disconnected)
    exchange.receive_data(b"part")
    exchange.lose()
    assert changes == [False, True]
    assert not exchange.has_body and exchange.take_body() == b""
    assert exchange.peer_closed and not exchange.body_complete
    with pytest.raises(ClientDisconnected):
        exchange.check_connected()
    assert channel.told == []


def test_closed_peer_still_gets_its_answer() -> None:
    exchange, channel = make()
    changes: list[bool] = []
    exchange.on_change = lambda: changes.append(exchange.peer_closed)
    exchange.close_peer()
    assert changes == [True] and not exchange.disconnected
    exchange.check_connected()
    exchange.start(head(200, 2), b"ok", True)
    assert channel.told == [("response", 200, b"ok", True), "finish"]


# ---- the request's body


def test_body_that_came_with_the_head() -> None:
    exchange, channel = make(b"POST", b"body")
    assert exchange.has_body and exchange.body_complete
    assert exchange.take_body() == b"body"
    assert not exchange.has_body and exchange.take_body() == b""
    assert channel.told == []


def test_body_that_comes_in_pieces() -> None:
    exchange, channel = make(b"POST", None)
    changes: list[object] = []
    exchange.on_change = lambda: changes.append(exchange.body_complete)
    assert not exchange.has_body and not exchange.body_complete
    assert exchange.receive_data(b"one ")
    assert exchange.receive_data(b"two")
    assert exchange.take_body() == b"one two"
    exchange.receive_data(b"three")
    exchange.receive_end()
    assert exchange.take_body() == b"three"
    assert changes == [False, False, False, True]
    assert channel.told == []  # it never had to stop reading


def test_reading_stops_at_the_mark_and_goes_on_when_the_body_is_taken() -> None:
    exchange, channel = make(b"POST", None)
    assert exchange.receive_data(b"x" * (HIGH_WATER_BYTES - 1))
    assert not exchange.receive_data(b"x")
    assert not exchange.receive_data(b"x")  # what had been read already
    assert len(exchange.take_body()) == HIGH_WATER_BYTES + 1
    assert channel.take() == ["resume"]
    assert exchange.take_body() == b""
    assert exchange.receive_data(b"y")
    assert exchange.take_body() == b"y"
    assert channel.told == []


def test_body_taken_at_once_never_stops_the_reading() -> None:
    exchange, _ = make(b"POST", None)
    taken: list[int] = []
    exchange.on_change = lambda: taken.append(len(exchange.take_body()))
    for _ in range(3):
        assert exchange.receive_data(b"x" * HIGH_WATER_BYTES)
    assert taken == [HIGH_WATER_BYTES] * 3


def test_complete_body_is_taken_without_reading_on() -> None:
    exchange, channel = make(b"POST", None)
    assert not exchange.receive_data(b"x" * HIGH_WATER_BYTES)
    exchange.receive_end()
    exchange.take_body()
    assert channel.told == []


# ---- 100 (Continue), 103 (Early Hints)


def test_continue_is_sent_once_and_when_the_application_reads() -> None:
    exchange, channel = make(b"POST", None, expect=True)
    assert channel.told == []
    exchange.want_body()
    exchange.want_body()
    assert channel.take() == [("informational", 100, [])]
    exchange.start(head(200, 2), b"ok", True)
    assert channel.told == [("response", 200, b"ok", True), "finish"]  # keep-alive is not in doubt


def test_no_continue_for_a_client_that_does_not_ask() -> None:
    exchange, channel = make(b"POST", None)
    exchange.want_body()
    assert channel.told == []


def test_no_continue_when_the_body_came_with_the_head() -> None:
    exchange, channel = make(b"POST", b"body", expect=True)
    exchange.want_body()
    exchange.start(head(200, 2), b"ok", True)
    assert channel.told == [("response", 200, b"ok", True), "finish"]


def test_no_continue_when_the_body_has_come_meanwhile() -> None:
    exchange, channel = make(b"POST", None, expect=True)
    exchange.receive_data(b"body")
    exchange.receive_end()
    exchange.want_body()
    assert channel.told == []


def test_no_continue_for_a_client_that_has_gone() -> None:
    exchange, channel = make(b"POST", None, expect=True)
    exchange.lose()
    exchange.want_body()
    assert channel.told == []


def test_no_continue_after_the_answer_has_begun_and_no_keep_alive() -> None:
    """Whether the client now sends the body or the next request, nobody can tell (RFC 9110 10.1.1)."""
    exchange, channel = make(b"POST", None, expect=True)
    exchange.start(head(413, 0), b"", False)
    exchange.want_body()
    exchange.send(b"", True)
    assert channel.told == ["no keep-alive", ("response", 413, b"", False), ("data", b"", True), "finish"]


def test_early_hints_only_before_the_answer() -> None:
    exchange, channel = make()
    lines = [b"Link: </a.css>; rel=preload\r\n"]
    exchange.send_early_hints(lines)
    assert channel.take() == [("informational", 103, lines)]
    exchange.start(head(), b"", False)
    exchange.send_early_hints(lines)
    assert channel.told == [("response", 200, b"", False)]
    exchange, channel = make()
    exchange.lose()
    exchange.send_early_hints(lines)
    assert channel.told == []


# ---- trailers


def test_trailers_end_the_answer() -> None:
    exchange, channel = make()
    exchange.start(head(), b"body", False)
    exchange.send_trailers([b"Digest: x\r\n"])
    assert channel.told == [("response", 200, b"body", False), ("trailers", [b"Digest: x\r\n"]), "finish"]
    assert exchange.ended


def test_trailers_that_cannot_be_sent_are_left_out() -> None:
    exchange, channel = make()
    channel.trailers_allowed = False
    exchange.start(head(200, 4), b"body", False)
    exchange.send_trailers([b"Digest: x\r\n"])
    assert channel.told == [("response", 200, b"body", False), ("data", b"", True), "finish"]


def test_trailers_after_too_short_a_body_do_not_hide_it() -> None:
    exchange, channel = make()
    channel.trailers_allowed = False
    exchange.start(head(200, 10), b"body", False)
    exchange.send_trailers([])
    assert channel.told[-2:] == ["cut", "finish"]


def test_trailers_for_a_client_that_has_gone() -> None:
    exchange, channel = make()
    exchange.start(head(), b"body", False)
    exchange.lose()
    channel.take()
    exchange.send_trailers([])
    assert channel.told == ["finish"]


# ---- back-pressure


def test_must_wait_above_the_mark_only() -> None:
    exchange, channel = make()
    channel.queued_bytes = HIGH_WATER_BYTES
    assert not exchange.must_wait
    channel.queued_bytes += 1
    assert exchange.must_wait
    exchange.finished = True  # what is queued is of the next answer
    assert not exchange.must_wait
    exchange.finished = False
    exchange.lose()
    assert not exchange.must_wait


def test_drained_is_told() -> None:
    exchange, _ = make()
    exchange.drained()  # nobody listens
    told: list[int] = []
    exchange.on_change = lambda: told.append(1)
    exchange.drained()
    assert told == [1]


def test_release_tells_those_who_wait_once_and_lets_go_of_them() -> None:
    exchange, _ = make()
    told: list[str] = []
    exchange.on_change = lambda: told.append("change")
    exchange.on_finished = lambda: told.append("finished")
    exchange.release()
    exchange.release()
    assert told == ["finished", "change"]
    assert exchange.on_change is None and exchange.on_finished is None


# ---- files


def test_small_file_is_copied_and_a_large_one_is_not(file: Any) -> None:
    assert file_piece(file, 250, 500) == bytes(range(250)) * 2
    piece = file_piece(file, 1, BIG - 1)
    assert isinstance(piece, FileRegion)
    assert (len(piece), piece.offset, piece.fd, piece.file) == (BIG - 1, 1, file.fileno(), file)


def test_small_file_that_has_become_shorter(file: Any) -> None:
    with pytest.raises(OSError, match="has become shorter"):
        file_piece(file, BIG - 10, 11)


def test_file_without_pread_is_a_region(file: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "pread")
    assert isinstance(file_piece(file, 0, 1), FileRegion)


def test_file_as_the_whole_body(file: Any) -> None:
    exchange, channel = make()
    exchange.start(head(200, BIG), file_piece(file, 0, BIG), True)
    assert channel.told == [("response", 200, bytes(range(250)) * (BIG // 250), True), "finish"]
    assert exchange.sent_bytes == BIG


@pytest.mark.parametrize("length", [0, 5, 50_000])
def test_file_longer_than_declared_is_cut_to_length(file: Any, length: int, caplog: pytest.LogCaptureFixture) -> None:
    exchange, channel = make()
    exchange.start(head(200, length), file_piece(file, 10, BIG - 10), True)
    file.seek(10)
    assert channel.told == ["no keep-alive", ("response", 200, file.read(length), True), "finish"]
    assert exchange.sent_bytes == length


def test_file_shorter_than_declared(file: Any, caplog: pytest.LogCaptureFixture) -> None:
    exchange, channel = make()
    exchange.start(head(200, BIG + 1), file_piece(file, 0, BIG), True)
    assert channel.told[-2:] == ["cut", "finish"]
    assert "1 bytes short" in caplog.text


# ---- what it tells of itself


def test_attributes_and_repr() -> None:
    exchange, channel = make()
    assert (exchange.client, exchange.server, exchange.scheme) == (channel.client, channel.server, "http")
    assert repr(exchange) == "GET /path?query from 192.0.2.7:4711"
    exchange.client = None
    assert repr(exchange) == "GET /path?query from unix"


def test_forwarded_replaces_what_the_proxy_said() -> None:
    exchange, _ = make()
    exchange.root_path = "/app"
    exchange.forward(Forwarded(("203.0.113.9", 0), "https", b"example.org", None, "/prefix"))
    assert exchange.client == ("203.0.113.9", 0) and exchange.scheme == "https"
    assert exchange.server == ("example.org", 443) and exchange.request.authority == b"example.org"
    assert exchange.root_path == "/prefix/app"


@pytest.mark.parametrize(
    ("host", "port", "scheme", "server"),
    [
        (b"example.org:8443", 8443, "https", ("example.org", 8443)),
        (b"[2001:db8::1]:81", 81, "http", ("2001:db8::1", 81)),
        (b"[2001:db8::1]", None, "http", ("2001:db8::1", 80)),
        (None, 444, "https", ("127.0.0.1", 444)),
        (None, None, "https", ("127.0.0.1", 8000)),
    ],
)
def test_forwarded_server(host: bytes | None, port: int | None, scheme: str, server: tuple[str, int]) -> None:
    exchange, _ = make()
    exchange.forward(Forwarded(exchange.client, scheme, host, port, None))
    assert exchange.server == server


def test_forwarded_port_on_a_unix_socket_means_nothing() -> None:
    exchange, _ = make()
    exchange.server = ("/run/app.sock", None)
    exchange.forward(Forwarded(None, "http", None, 81, None))
    assert exchange.server == ("/run/app.sock", None)


def test_error_head() -> None:
    made = error_head(503, (b"Retry-After", b"1"))
    assert made.status == 503
    assert made.lines == [b"Content-Type: text/plain; charset=utf-8\r\n", b"Retry-After: 1\r\n"]
