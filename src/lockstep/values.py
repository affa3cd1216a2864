"""Values every room shares: digests, ids, time and money. Imports nothing of Lockstep but `errors`."""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Mapping, Sequence
from decimal import Decimal
from enum import StrEnum
from typing import NewType

import rfc8785

RunId = NewType("RunId", str)
Digest = NewType("Digest", str)
"""Lower-case hexadecimal SHA-256."""

Json = None | bool | int | float | str | Sequence["Json"] | Mapping[str, "Json"]
JsonObject = Mapping[str, Json]

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"  # Crockford's base 32: nothing that reads as something else


class Effect(StrEnum):
    """What a tool does outside; decides what a lost reply means. Undeclared is `once`."""

    READ = "read"
    IDEMPOTENT = "idempotent"
    KEYED = "keyed"
    ONCE = "once"


class Tier(StrEnum):
    """Isolation of a call, strongest first in `TIER_RANK`.

    `emulated` is the microVM guest under software emulation, for development: not a security boundary. `none` is
    in-process: library use only, never a file.
    """

    MICROVM = "microvm"
    GVISOR = "gvisor"
    PROCESS = "process"
    EMULATED = "emulated"
    NONE = "none"


TIER_RANK: Mapping[Tier, int] = {Tier.MICROVM: 3, Tier.GVISOR: 2, Tier.PROCESS: 1, Tier.EMULATED: 0, Tier.NONE: 0}


def sha256(data: bytes) -> Digest:
    return Digest(hashlib.sha256(data).hexdigest())


def canonical(value: Json) -> bytes:
    """RFC 8785 bytes of a JSON value.

    Raises:
        ValueError: the value has no canonical form (NaN, infinity, integers beyond 2**53, lone surrogates).
    """
    try:
        return rfc8785.dumps(value)
    except (rfc8785.CanonicalizationError, UnicodeEncodeError, RecursionError) as error:
        raise ValueError(f"not canonical JSON: {error}") from error


def digest_json(value: Json) -> Digest:
    """SHA-256 over RFC 8785 JSON."""
    return sha256(canonical(value))


def now_ms() -> int:
    """Milliseconds since the epoch, UTC."""
    return time.time_ns() // 1_000_000


def new_run_id(at_ms: int) -> RunId:
    """A run id that sorts by its start: `r` + 9 characters of time + 7 of chance."""
    return RunId("r" + _base32(at_ms, 9) + _base32(secrets.randbits(35), 7))


def new_token(prefix: str) -> str:
    """A short unguessable name: `prefix` + 12 characters (60 bits)."""
    return prefix + _base32(secrets.randbits(60), 12)


def _base32(number: int, width: int) -> str:
    return "".join(_ALPHABET[(number >> (5 * place)) & 31] for place in reversed(range(width)))


def parse_usd(text: str | None) -> Decimal | None:
    """Money as it is stored (a decimal string, US dollars); None means unknown, which is not zero."""
    return None if text is None else Decimal(text)


def format_usd(amount: Decimal | None) -> str | None:
    """The stored form of an amount in US dollars, without exponent or trailing zeros."""
    if amount is None:
        return None
    text = f"{amount:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
