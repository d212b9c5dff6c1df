from __future__ import annotations

from stdserve.process.channel import Channel


def test_words_arrive_whole_and_in_order() -> None:
    ours, theirs = Channel.pair()
    theirs.send("ready")
    theirs.send("recycle it is old")
    assert ours.receive() == ["ready", "recycle it is old"]
    theirs.sock.send(b"ali")
    assert ours.receive() == []
    theirs.sock.send(b"ve\nst")
    assert ours.receive() == ["alive"]
    ours.close()
    theirs.close()


def test_end_of_the_other_is_none_and_sending_to_it_no_error() -> None:
    ours, theirs = Channel.pair()
    ours.send("ping")
    theirs.close()
    assert ours.receive() is None  # reset, for the ping was not read
    ours.send("ping")
    ours.close()
    assert ours.receive() is None


def test_sending_never_waits() -> None:
    ours, theirs = Channel.pair()
    for _ in range(100_000):
        ours.send("ping")
    words = theirs.receive()
    assert words is not None and set(words) == {"ping"}
    ours.close()
    theirs.close()
