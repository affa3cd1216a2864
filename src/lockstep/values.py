"""Values every room shares: digests, ids, time and money. Imports nothing of Lockstep but `errors`."""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from enum import StrEnum
from json.encoder import encode_basestring as _quoted
from typing import Any, NewType

import rfc8785

RunId = NewType("RunId", str)
Digest = NewType("Digest", str)
"""Lower-case hexadecimal SHA-256."""

Json = None | bool | int | float | str | Sequence["Json"] | Mapping[str, "Json"]
JsonObject = Mapping[str, Json]

_SAFE = 2**53
"""From here on not every integer is a number of its own to all readers of JSON."""
_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"  # Crockford's base 32: nothing that reads as something else


class Effect(StrEnum):
    """What a tool does outside; decides what a lost reply means. Undeclared is `once`."""

    READ = "read"
    IDEMPOTENT = "idempotent"
    KEYED = "keyed"
    ONCE = "once"


class Tier(StrEnum):
    """Isolation of a call, strongest first in `TIER_RANK`.

    `emulated` is the microVM guest under software emulation, for development: not a security boundary. `remote` is no
    isolation of ours: a server that runs elsewhere, of which nothing runs here. `none` is in-process: library use only,
    never a file.
    """

    MICROVM = "microvm"
    GVISOR = "gvisor"
    PROCESS = "process"
    EMULATED = "emulated"
    REMOTE = "remote"
    NONE = "none"


TIER_RANK: Mapping[Tier, int] = {
    Tier.MICROVM: 3,
    Tier.GVISOR: 2,
    Tier.PROCESS: 1,
    Tier.EMULATED: 0,
    Tier.REMOTE: 0,
    Tier.NONE: 0,
}


IMAGE_TYPES = frozenset({"image/png", "image/jpeg", "image/gif", "image/webp"})
"""What models can be shown."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Attachment:
    """What a result holds beside its text: an image or a file."""

    name: str
    """As the tool called it; empty, or anything: never a path."""
    mime_type: str
    data: bytes = field(repr=False)
    shown: bool = False
    """Whether it is an image that the model is shown; else it is kept for the user."""

    @property
    def kind(self) -> str:
        """`image/png, 12 KiB`."""
        return f"{self.mime_type}, {size_text(len(self.data))}"


def size_text(size_bytes: int) -> str:
    if size_bytes < 1024:
        return f"{size_bytes} bytes"
    return f"{size_bytes / 2**10:.0f} KiB" if size_bytes < 2**20 else f"{size_bytes / 2**20:.1f} MiB"


def sha256(data: bytes) -> Digest:
    return Digest(hashlib.sha256(data).hexdigest())


def canonical(value: Json) -> bytes:
    """RFC 8785 bytes of a JSON value.

    Raises:
        ValueError: the value has no canonical form (NaN, infinity, integers beyond 2**53, lone surrogates).
    """
    try:
        return _canonical(value).encode()
    except (rfc8785.CanonicalizationError, UnicodeEncodeError, TypeError, RecursionError) as error:
        raise ValueError(f"not canonical JSON: {error}") from error


def _canonical(value: Any) -> str:
    """What is usual, written here, since every call is digested several times; the rest is left to the library."""
    kind = type(value)
    if kind is str:
        return _quoted(value)
    if kind is dict:
        fields = []
        for name in _in_order(value):  # no comprehension, which would take another frame for each level
            fields.append(f"{_quoted(name)}:{_canonical(value[name])}")
        return f"{{{','.join(fields)}}}"
    if kind is list or kind is tuple:
        return f"[{','.join(map(_canonical, value))}]"
    if kind is int and -_SAFE < value < _SAFE:
        return str(value)
    if kind is float and value and "e" not in (text := repr(value)) and "n" not in text:
        return text.removesuffix(".0")  # without exponent, infinity and nan both languages write the same digits
    return rfc8785.dumps(value).decode()


def _in_order(names: Mapping[str, object]) -> list[str]:
    """Names by their UTF-16 code units, which for ASCII is the order they have."""
    return sorted(names) if "".join(names).isascii() else sorted(names, key=lambda name: name.encode("utf-16-be"))


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
