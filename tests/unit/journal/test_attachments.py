"""Attachments in events: out of line, read back as they were, and no trace where there are none."""

from __future__ import annotations

import pytest

from lockstep.errors import JournalCorrupt
from lockstep.journal.attachments import pack, unpack
from lockstep.journal.codec import decode, encode
from lockstep.journal.events import EffectSettled
from lockstep.values import Attachment

KEPT = (
    Attachment(name="plot.png", mime_type="image/png", data=bytes(range(256)) * 20, shown=True),
    Attachment(name="", mime_type="application/octet-stream", data=b""),
)


def test_attachments_read_back_as_they_were() -> None:
    assert unpack(pack(KEPT)) == KEPT
    assert (pack(()), unpack("")) == ("", ())


def test_an_event_without_attachments_is_stored_as_before_there_were_any() -> None:
    event = EffectSettled(call="1.0", outcome="ok", text="x", attachments=pack(()))
    assert encode(event).body == b'{"call":"1.0","outcome":"ok","text":"x"}'


def test_a_large_attachment_is_kept_out_of_line() -> None:
    event = EffectSettled(call="1.0", outcome="ok", text="x", attachments=pack(KEPT))
    encoded = encode(event)
    assert len(encoded.body) < 200
    blobs = dict(encoded.blobs)
    assert decode(encoded.type, encoded.body, blobs.__getitem__) == event


@pytest.mark.parametrize("text", ["x", "{}", "[{}]", '[{"name":"x","mime_type":"y","data":"%"}]', "[\ud800]"])
def test_what_is_no_list_of_attachments_is_a_corrupt_record(text: str) -> None:
    with pytest.raises(JournalCorrupt):
        unpack(text)
