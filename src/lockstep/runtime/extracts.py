"""What is kept of a finished run for the rest of its session: its receipts, drawn from its events.

The same receipts give the same bytes. What cannot be read here is as good as not kept: the events are read instead.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

import msgspec

from lockstep.kernel.state import Receipt
from lockstep.values import RunId

SCHEMA = 1
"""Of the form, and of what counts as a receipt: raised with either, so that everything is drawn again."""


class _Extract(msgspec.Struct):
    schema: int
    receipts: dict[str, tuple[str, str, bool]]


_ENCODER = msgspec.json.Encoder(order="deterministic")
_DECODER = msgspec.json.Decoder(_Extract)


def extract_of(receipts: Mapping[str, Receipt]) -> bytes:
    """The receipts of one run as one JSON object."""
    rows = {key: (each.where, each.text, each.in_doubt) for key, each in receipts.items()}
    value = _Extract(schema=SCHEMA, receipts=rows)
    try:
        return _ENCODER.encode(value)
    except UnicodeEncodeError:  # half of a surrogate pair in what a tool said; msgspec will not read it back
        return json.dumps(msgspec.to_builtins(value)).encode()


def receipts_in(run: RunId, extract: bytes | None) -> dict[str, Receipt] | None:
    """The receipts that `extract_of` wrote for this run; None when these bytes are not that."""
    if extract is None:
        return None
    try:
        value = _DECODER.decode(extract)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    if value.schema != SCHEMA or not all(where.startswith(f"{run}/") for where, _, _ in value.receipts.values()):
        return None
    return {
        key: Receipt(where=where, text=text, in_doubt=in_doubt)
        for key, (where, text, in_doubt) in value.receipts.items()
    }
