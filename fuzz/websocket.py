"""Fuzz the WebSocket engine: any garbage gives messages, a Close or a ProtocolError, the same however it is cut.

    python fuzz/websocket.py --seconds 60 --seed 1

What must hold for every input, with and without compression:
1. No exception but those in ALLOWED leaves the engine, also at the end of input.
2. Whole, byte by byte and in random pieces it gives the same events, and all or none of them fail.
3. Messages keep to the limits; nothing comes after Close; nothing but a part of a frame is left in the buffer.
4. Events written again as frames are understood as the same events.
5. What is sent back can be read by a reader that shares no code with the engine.
"""

from __future__ import annotations

import random
import sys
import zlib
from collections.abc import Hashable, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from fuzz.harness import Target, main, ways_to_cut
from stdserve.errors import ProtocolError
from stdserve.protocol import deflate, websocket
from stdserve.protocol.websocket import Close, Event, Ping, Pong, WebSocketEngine, WebSocketLimits
from tests import wire
from tests.frames import (
    BINARY,
    CLOSE,
    CONTINUATION,
    PING,
    PONG,
    TEXT,
    Deflater,
    Dialogue,
    Inflater,
    Peer,
    close,
    fragments,
    frame,
    make_deflate,
    read_frames,
)
from tests.protocol.websocket_cases import CASES

ALLOWED = {
    ProtocolError: "the peer broke a rule: the engine's one way to say so, with the close code of the answer",
}
CODES = {1002, 1007, 1009}
OFFERS = [None, "client_max_window_bits", ""]

# Half of the inputs meet limits up to these, so that both sides of each are within reach of a short input.
SMALL = {"message": 100, "fragments": 6}

_ZERO = bytes(4)  # a mask that leaves the payload as it is, so that a change of it is a change of the message
TOKENS = [
    *(frame(opcode, fin=fin, mask=_ZERO) for opcode in (CONTINUATION, TEXT, BINARY, PING, CLOSE) for fin in (0, 1)),
    *(frame(opcode, payload, mask=_ZERO) for opcode in (TEXT, CONTINUATION) for payload in ("a", "abc", "äö")),
    *(bytes([byte]) for byte in (0x80, 0x81, 0x85, 0xC1, 0x41, 0xFE, 0xFF, 0x7E, 0x7F, 0x00)),
    *(code.to_bytes(2, "big") for code in (1000, 1004, 1005, 2999, 3000, 4999, 5000)),
    frame(PONG, b"p", mask=_ZERO), close(1000, "bye"), b"\xfe\x00\x7e", b"\xff" + bytes(6) + b"\x01\x00", _ZERO,
    b"\xc3", b"\xa4", b"\xe2\x82", b"\xed\xa0\x80", b"\xf4\x90", b"\xf0\x9f\x98\x80", b"\x00\x00\xff\xff", b"\x03\x00",
    b"\xf2\x48\xcd\xc9\xc9\x07\x00", b"\xf3\x48\xcd\xc9\xc9\x07\x00", b"\xf2\x00\x11\x00\x00",
    frame(TEXT, Deflater()("hello hello hello"), rsv=4, mask=_ZERO), frame(TEXT, b"\0", rsv=4, mask=_ZERO),
    frame(BINARY, Deflater()(bytes(1000)), rsv=4), fragments(TEXT, Deflater()("hello")[:3], b"", rsv=4),
]  # fmt: skip


def run(data: bytes) -> Hashable:
    checksum = zlib.crc32(data)
    chance = random.Random(checksum)
    limits = {name: chance.randint(1, most) for name, most in SMALL.items()} if checksum & 1 else {}
    outcomes = []
    for offer in OFFERS:
        whole = _talk(data, [], limits, offer)
        for cuts in ways_to_cut(data, chance):
            other = _talk(data, cuts, limits, offer)
            assert _events(whole) == _events(other), f"{offer}, cut at {cuts}:\n{whole}\n{other}"
        _check_written_again(whole, limits)
        _check_sent_back(whole.events, offer)
        outcomes.append(_outcome(whole))
    return tuple(outcomes)


def _talk(data: bytes, cuts: Sequence[int], limits: dict[str, int], offer: str | None) -> Dialogue:
    peer = Peer(limits, make_deflate(offer))
    try:
        dialogue = peer.feed(wire.split(data, cuts))
        if dialogue.error is None:
            peer.engine.receive_eof()
            peer.take_events()
    except tuple(ALLOWED) as error:
        raise AssertionError("an error left the engine where none was expected") from error
    if dialogue.error is None:
        assert isinstance(dialogue.events[-1], Close)
    else:
        assert dialogue.error.code in CODES and not peer.engine.buffer
    most = limits.get("message", 1 << 24)
    assert all(_size(event) <= most for event in dialogue.events if isinstance(event, (str, bytes)))
    return dialogue


def _events(dialogue: Dialogue) -> list[object]:
    """Which error it is may depend on the cuts: the same payload may be no UTF-8 and too long once inflated."""
    return [*((type(event), event) for event in dialogue.events), dialogue.error is None]


def _size(message: str | bytes) -> int:
    return len(message.encode() if isinstance(message, str) else message)


def _check_written_again(dialogue: Dialogue, limits: dict[str, int]) -> None:
    data = b"".join(_write_event(event) for event in dialogue.events)
    again = _talk(data, [], limits, None)
    assert again.error is None
    ended = dialogue.events if dialogue.error is None else [*dialogue.events, Close(1006, "")]
    assert again.events == ended


def _write_event(event: Event) -> bytes:
    match event:
        case str():
            return frame(TEXT, event)
        case bytes():
            return frame(BINARY, event)
        case Ping(data):
            return frame(PING, data)
        case Pong(data):
            return frame(PONG, data)
        case Close(1006):
            return b""
        case Close(1005):
            return frame(CLOSE)
        case Close(code, reason):
            return close(code, reason)
    raise AssertionError(event)


def _check_sent_back(events: list[Event], offer: str | None) -> None:
    engine, inflate = WebSocketEngine(WebSocketLimits(), make_deflate(offer)), Inflater()
    messages = [event for event in events if isinstance(event, (str, bytes))]
    for message in messages:
        if isinstance(message, str):
            engine.send_text(message)
        else:
            engine.send_binary(message)
    got = []
    for each in read_frames(b"".join(engine.data_to_send())):
        payload = inflate(each.payload) if each.first & 0x40 else each.payload
        got.append(payload.decode() if each.first & 0xF == TEXT else payload)
    assert got == messages


def _outcome(dialogue: Dialogue) -> Hashable:
    """Coarse enough that a corpus of outcomes stays small."""
    kinds = [(type(event).__name__, bool(_of_event(event))) for event in dialogue.events[:2]]
    return tuple(kinds), min(len(dialogue.events), 4), dialogue.error and dialogue.error.rule


def _of_event(event: Event) -> object:
    return event.code if isinstance(event, Close) else event.data if isinstance(event, (Ping, Pong)) else event


def _write(data: bytes, trace: str) -> str:
    return wire.dump(trace, data)


TARGET = Target(
    "websocket",
    run,
    [
        *(case.data for case in wire.load("../../fuzz/corpus/websocket")),
        *(case.data for case in CASES if 0 < len(case.data) < 200),
    ],
    TOKENS,
    [websocket, deflate],
    _write,
)

if __name__ == "__main__":
    sys.exit(main(TARGET))
