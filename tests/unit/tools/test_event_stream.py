"""Server-sent events: the same events wherever the stream is cut."""

from __future__ import annotations

import pytest

from lockstep.tools.event_stream import EventStream

STREAM = (
    b"\xef\xbb\xbf: a comment\r\n"
    b"id: 1\r\nretry: 250\r\ndata:\r\n\r\n"
    b'event: message\ndata: {"a":\ndata: 1}\n\n'
    b"event: other\rdata: x\r\r"
    b"id: 2\r\ndata: last\r\n\r\n"
    b"data: never ended"
)
EVENTS = [("message", b'{"a":\n1}'), ("other", b"x"), ("message", b"last")]


@pytest.mark.parametrize("size", [1, 2, 3, 7, len(STREAM)])
def test_events_do_not_depend_on_where_the_stream_is_cut(size: int) -> None:
    stream = EventStream()
    pieces = [STREAM[at : at + size] for at in range(0, len(STREAM), size)]
    events = [(event.kind, event.data) for piece in pieces for event in stream.feed(piece)]
    assert (events, stream.last_id, stream.retry_ms) == (EVENTS, "2", 250)


def test_what_was_cut_off_is_not_part_of_what_is_sent_anew() -> None:
    stream = EventStream()
    assert list(stream.feed(b"id: 7\ndata: half")) == []
    stream.begin_again()
    (event,) = stream.feed(b"data: whole\n\n")
    assert (event.data, stream.last_id) == (b"whole", "7")


@pytest.mark.parametrize("retry", [b"soon", b"-1", b"99999999999", b""])
def test_a_time_that_is_none_is_not_taken(retry: bytes) -> None:
    stream = EventStream()
    assert list(stream.feed(b"retry: " + retry + b"\n\n")) == []
    assert stream.retry_ms is None
