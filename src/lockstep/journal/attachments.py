"""Attachments as an event holds them: one JSON text, so that storage can keep it out of line like any large body."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from lockstep.errors import JournalCorrupt
from lockstep.values import Attachment

_ENCODER = msgspec.json.Encoder()
_DECODER = msgspec.json.Decoder(tuple[Attachment, ...])


def pack(attachments: Sequence[Attachment]) -> str:
    """The text of attachments, bytes in base64; empty when there are none."""
    return _ENCODER.encode(attachments).decode() if attachments else ""


def unpack(text: str) -> tuple[Attachment, ...]:
    """The attachments of an event; the inverse of `pack`.

    Raises:
        JournalCorrupt: it is no such text.
    """
    if not text:
        return ()
    try:
        return _DECODER.decode(text)
    except (msgspec.MsgspecError, UnicodeError) as error:
        raise JournalCorrupt(f"The attachments of an event do not parse: {error}.") from error
