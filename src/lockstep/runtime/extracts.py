"""What is kept of a finished run for later ones: its receipts and what it used, drawn from its events.

The same events give the same bytes. What cannot be read here is as good as not kept: the events are read instead.
"""

from __future__ import annotations

import json
from decimal import Decimal

import msgspec

from lockstep.kernel.state import Left, Receipt
from lockstep.kernel.usage import Usage
from lockstep.values import RunId

SCHEMA = 5
"""Of the form, and of what counts as a receipt or as used: raised with any, so that everything is drawn again."""


class _Row(msgspec.Struct, array_like=True):
    where: str
    at_ms: int
    text: str
    in_doubt: bool
    until_ms: int | None
    freed_by: tuple[str, ...]
    freed: bool


class _Used(msgspec.Struct):
    steps: int
    calls: int
    tokens: int
    cost_usd: str
    cost_known: bool
    active_ms: int
    by_tool: dict[str, int]


class _Extract(msgspec.Struct):
    schema: int
    receipts: dict[str, _Row]
    freed: dict[str, int]
    used: _Used


_ENCODER = msgspec.json.Encoder(order="deterministic")
_DECODER = msgspec.json.Decoder(_Extract)


def extract_of(left: Left) -> bytes:
    """What one run leaves to later ones as one JSON object."""
    rows = {
        key: _Row(each.where, each.at_ms, each.text, each.in_doubt, each.until_ms, each.freed_by, each.freed)
        for key, each in left.receipts.items()
    }
    used = left.used
    kept = _Used(
        steps=used.steps,
        calls=used.calls,
        tokens=used.tokens,
        cost_usd=f"{used.cost_usd:f}",
        cost_known=used.cost_known,
        active_ms=used.active_ms,
        by_tool=dict(used.by_tool),
    )
    value = _Extract(schema=SCHEMA, receipts=rows, freed=dict(left.freed), used=kept)
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
        used = _used(value.used)
    except (msgspec.DecodeError, UnicodeDecodeError, ArithmeticError):
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
            freed=row.freed,
        )
        for key, row in value.receipts.items()
    }
    return Left(receipts=receipts, freed=value.freed, used=used)


def _used(kept: _Used) -> Usage:
    return Usage(
        runs=1,
        steps=kept.steps,
        calls=kept.calls,
        tokens=kept.tokens,
        cost_usd=Decimal(kept.cost_usd),
        cost_known=kept.cost_known,
        active_ms=kept.active_ms,
        by_tool=kept.by_tool,
    )
