"""ResponseHead: what an application may send, what becomes of each field, and what is remembered of it."""

from __future__ import annotations

import http
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stdserve.errors import AppError
from stdserve.protocol import message
from stdserve.protocol.message import Request, ResponseHead, check_reason, check_status

checked_fields = message._find_checked.__self__  # the memory itself, to look into


def refused(headers: Any, status: int = 200) -> str:
    with pytest.raises(AppError) as error:
        ResponseHead(status, headers)
    return str(error.value)


# ---- fields


def test_fields_are_lines_in_order() -> None:
    head = ResponseHead(200, [(b"B", b"1"), ("a", "2"), (b"B", b"3")])
    assert head.lines == [b"B: 1\r\n", b"a: 2\r\n", b"B: 3\r\n"]
    assert (head.status, head.reason, head.content_length) == (200, None, None)
    assert not (head.close or head.has_date or head.has_server)


@pytest.mark.parametrize(
    "pair",
    [
        (b"X-A", b"b"),
        ("X-A", "b"),
        ("X-A", b"b"),
        [b"X-A", b"b"],
        ["X-A", "b"],
        (memoryview(b"X-A"), memoryview(b"b")),
        ("X-A", " \tb\t "),
    ],
)
def test_pair_may_be_of_bytes_or_str_tuple_or_list(pair: Any) -> None:
    assert ResponseHead(200, [pair]).lines == [b"X-A: b\r\n"]


@pytest.mark.parametrize("make", [list, tuple, iter, dict, lambda pairs: dict(pairs).items()])
def test_headers_may_be_any_iterable(make: Any) -> None:
    pairs = [("A", "1"), ("B", "2")]
    headers = list(dict(pairs).items()) if make is dict else make(pairs)
    assert ResponseHead(200, headers).lines == [b"A: 1\r\n", b"B: 2\r\n"]


def test_iterator_of_lists_loses_no_field() -> None:
    head = ResponseHead(200, (pair for pair in [["A", "1"], ("B", "2"), ["C", "3"]]))
    assert head.lines == [b"A: 1\r\n", b"B: 2\r\n", b"C: 3\r\n"]
    assert len(list(head.headers)) == 3


def test_str_is_latin_1() -> None:
    assert ResponseHead(200, [("X-A", "\xe9")]).lines == [b"X-A: \xe9\r\n"]


def test_empty_value() -> None:
    assert ResponseHead(200, [("X-A", "")]).lines == [b"X-A: \r\n"]


@pytest.mark.parametrize(
    "name", ["", " ", "X A", "X:", "X\r\n", "X\n", "X\0", "X\t", "X(", "a\x7f", b"\xe9", b"X-A\r\nB"]
)
def test_name_that_is_no_token_is_refused(name: str | bytes) -> None:
    assert "is not a token" in refused([(name, "b")])


@pytest.mark.parametrize("name", ["\xe9", "\u212a"])
def test_name_that_is_not_ascii_is_refused(name: str) -> None:
    assert "is not a pair of byte strings" in refused([(name, "b")])


@pytest.mark.parametrize(
    "value",
    ["b\r\nX-B: c", "b\r", "\nb", "b\nc", "a\0b", "a\x01b", "a\x1b[0m", "a\x7fb", b"b\r\n\r\nbody", "a\x0bb", "\x0c"],
)
def test_value_with_a_control_character_is_refused(value: str | bytes) -> None:
    assert "control character" in refused([("X-A", value)])
    assert "control character" in refused([["X-A", value]])


def test_value_beyond_latin_1_is_refused() -> None:
    assert "is not a pair of byte strings" in refused([("X-A", "\u20ac")])


@pytest.mark.parametrize(
    "pair",
    [
        ("X-A", None), (None, "b"), ("X-A", 1), (b"X-A",), ("X-A", "b", "c"), None, 1, "abc", [], ["X-A"],
        ["X-A", ["b"]], ("X-A", ["b"]), ("X-A", bytearray(b"b")), ["X-A", None], {"X-A": "b"},
    ],
)  # fmt: skip
def test_what_is_no_pair_of_byte_strings_is_refused(pair: Any) -> None:
    assert "is not a pair of byte strings" in refused([pair])


def test_message_for_a_long_value_is_short() -> None:
    assert len(refused([("X-A", "\0" * 100_000)])) < 500
    assert len(refused([("X-A", "\u20ac" * 100_000)])) < 500
    assert len(refused([("\0" * 100_000, "")])) < 500


def test_error_of_the_application_is_a_runtime_error() -> None:
    with pytest.raises(RuntimeError):
        ResponseHead(200, [("X A", "")])


# ---- fields with a meaning to the server


@pytest.mark.parametrize("name", ["Content-Length", "CONTENT-LENGTH", b"content-length"])
def test_content_length_is_known(name: str | bytes) -> None:
    head = ResponseHead(200, [(name, "12")])
    assert head.content_length == 12 and len(head.lines) == 1


@pytest.mark.parametrize("value", ["", "+1", "-1", "1 1", "1,1", "0x1", "1_0", "1.0", "\xb2", "9" * 20, "abc"])
def test_content_length_that_is_no_number_is_refused(value: str) -> None:
    assert "is not a number" in refused([("Content-Length", value)])


@pytest.mark.parametrize("second", ["3", "4"])
@pytest.mark.parametrize("name", ["Content-Length", "content-length"])
def test_second_content_length_is_refused(name: str, second: str) -> None:
    assert "twice" in refused([("Content-Length", "3"), (name, second)])


@pytest.mark.parametrize(("status", "lines"), [(204, 0), (103, 0), (304, 1), (200, 1)])
def test_content_length_is_not_sent_where_it_must_not_be(status: int, lines: int) -> None:
    assert len(ResponseHead(status, [("Content-Length", "3")]).lines) == lines


@pytest.mark.parametrize(
    "name", ["Keep-Alive", "PROXY-CONNECTION", "te", "Transfer-Encoding", "Upgrade", "Connection", b"upgrade"]
)
def test_hop_by_hop_fields_are_not_lines(name: str | bytes) -> None:
    assert ResponseHead(200, [(name, "x")]).lines == []


@pytest.mark.parametrize(
    ("value", "close"), [("close", True), ("Close", True), ("x, close", True), ("keep-alive", False)]
)
def test_connection_is_looked_at_for_close_only(value: str, close: bool) -> None:
    head = ResponseHead(200, [("Connection", value)])
    assert head.close is close and head.lines == []


def test_own_date_and_server_are_noticed() -> None:
    head = ResponseHead(200, [("DATE", "now"), ("server", "own")])
    assert head.has_date and head.has_server
    assert head.lines == [b"DATE: now\r\n", b"server: own\r\n"]


# ---- what is remembered


@pytest.mark.parametrize(
    "name",
    ["Set-Cookie", "set-cookie", "Location", "ETag", "Authorization", "WWW-Authenticate", "Link", "X-Request-Id"],
)
def test_field_of_one_answer_is_not_remembered(name: str) -> None:
    ResponseHead(200, [(name, "secret-of-one-answer")])
    ResponseHead(200, [[name, "secret-of-one-answer"]])
    assert "secret-of-one-answer" not in repr(list(checked_fields))


def test_common_field_is_remembered_and_the_same_again() -> None:
    pair = ("Content-Type", "text/x-remembered")
    first = ResponseHead(200, [pair]).lines
    assert pair in checked_fields
    assert ResponseHead(200, [pair]).lines == first


def test_long_value_is_not_remembered() -> None:
    ResponseHead(200, [("Content-Security-Policy", "x" * 257)])
    assert ("Content-Security-Policy", "x" * 257) not in checked_fields


def test_memory_is_bounded() -> None:
    for number in range(3000):
        assert ResponseHead(200, [("Content-Length", str(number))]).content_length == number
        assert len(checked_fields) <= 1024


def test_bad_field_is_refused_each_time() -> None:
    for _ in range(3):
        refused([("Content-Type", "a\r\nb")])


# ---- status and reason


@pytest.mark.parametrize("status", [200, 204, 304, 404, 599, 999, http.HTTPStatus.NOT_FOUND])
def test_final_status(status: int) -> None:
    assert check_status(status) == int(status) and type(check_status(status)) is int


@pytest.mark.parametrize("status", [0, -1, 100, 103, 199, 1000, 20000, True, "200", b"200", 200.0, None, [200]])
def test_other_status_is_refused(status: Any) -> None:
    with pytest.raises(AppError, match="is not a number from 200 to 999"):
        check_status(status)


@pytest.mark.parametrize("reason", [b"", b"OK", b"Not \xc3\xa9 Found", b"a\tb"])
def test_reason(reason: bytes) -> None:
    assert check_reason(reason) == reason


@pytest.mark.parametrize("reason", [b"OK\r\nX-A: b", b"\r", b"\n", b"\0", b"\x7f", b"\x1b"])
def test_reason_with_a_control_character_is_refused(reason: bytes) -> None:
    with pytest.raises(AppError, match="control character"):
        check_reason(reason)


# ---- Request


def test_host_of_a_proxy_replaces_host() -> None:
    request = Request(b"GET", b"/", b"1.1", [(b"host", b"a"), (b"x", b"y")], {b"host": b"a", b"x": b"y"})
    request.set_host(b"b")
    assert request.authority == b"b"
    assert request.headers == [(b"host", b"b"), (b"x", b"y")]


# ---- all input


@given(st.lists(st.tuples(st.text(max_size=6) | st.binary(max_size=6), st.text(max_size=10) | st.binary(max_size=10))))
@settings(derandomize=True, database=None, deadline=None)
def test_whatever_is_accepted_is_one_line_per_field(headers: list[Any]) -> None:
    try:
        head = ResponseHead(200, headers)
    except AppError:
        return
    for line in head.lines:
        assert line.endswith(b"\r\n") and line.count(b"\r") == line.count(b"\n") == 1 and line.count(b"\0") == 0
        assert b": " in line


@pytest.mark.parametrize(("value", "closes"), [(b"close", True), (b"x, Close ", True), (b"x-not-close", False)])
def test_only_the_option_close_ends_the_connection(value: bytes, closes: bool) -> None:
    assert ResponseHead(200, [(b"Connection", value)]).close is closes
