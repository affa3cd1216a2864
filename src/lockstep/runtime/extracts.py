"""What is kept of a finished run for the rest of its session: its receipts, drawn from its events.

The same receipts give the same bytes. What cannot be read here is as good as not kept: the events are read instead.
"""

from __future__ import annotations

import json

import msgspec

from lockstep.kernel.state import Left, Receipt
from lockstep.values import RunId

SCHEMA = 3
"""Of the form, and of what counts as a receipt: raised with either, so that everything is drawn again."""


class _Row(msgspec.Struct, array_like=True):
    where: str
    at_ms: int
    text: str
    in_doubt: bool
    until_ms: int | None
    freed_by: tuple[str, ...]


class _Extract(msgspec.Struct):
    schema: int
    receipts: dict[str, _Row]
    freed: dict[str, int]


_ENCODER = msgspec.json.Encoder(order="deterministic")
_DECODER = msgspec.json.Decoder(_Extract)


def extract_of(left: Left) -> bytes:
    """What one run leaves to its session as one JSON object."""
    rows = {
        key: _Row(each.where, each.at_ms, each.text, each.in_doubt, each.until_ms, each.freed_by)
        for key, each in left.receipts.items()
    }
    value = _Extract(schema=SCHEMA, receipts=rows, freed=dict(left.freed))
    try:
        return _ENCODER.encode(value)
    except UnicodeEncodeError:  # half of a surrogate pair in what a tool said; msgspec will not read it back
        return json.dumps(msgspec.to_builtins(value)).encode()


def left_in(run: RunId, extract: bytes | None) -> Left | None:
    """What `extract_of` wrote for this run; None when these bytes are not that."""
    if extract is None:
        return None
    try:
        value = _DECODER.decode(extract)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    if value.schema != SCHEMA or not all(row.where.startswith(f"{run}/") for row in value.receipts.values()):
        return None
    receipts = {
        key: Receipt(
            where=row.where,
            at_ms=row.at_ms,
            text=row.text,
            in_doubt=row.in_doubt,
            until_ms=row.until_ms,
            freed_by=row.freed_by,
        )
        for key, row in value.receipts.items()
    }
    return Left(receipts=receipts, freed=value.freed)
