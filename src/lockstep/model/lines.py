"""Files of the recorded and the scripted model: JSON, one object a line, read strictly; errors name file and line."""

from __future__ import annotations

import json
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import TypeVar

import msgspec

from lockstep.errors import ModelError
from lockstep.model.port import Usage

T = TypeVar("T")


class UsageLine(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """`Usage` as it stands in a file."""

    input_tokens: int = 0
    output_tokens: int = 0
    cache_read_tokens: int = 0
    cache_write_tokens: int = 0
    reasoning_tokens: int = 0

    def usage(self) -> Usage:
        return Usage(
            input_tokens=self.input_tokens,
            output_tokens=self.output_tokens,
            cache_read_tokens=self.cache_read_tokens,
            cache_write_tokens=self.cache_write_tokens,
            reasoning_tokens=self.reasoning_tokens,
        )


def read_bytes(path: Path, *, what: str) -> bytes:
    """The bytes of a file; `what` ("recording", "script") stands in the error.

    Raises:
        ModelError: it cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise ModelError(f"The {what} {path} cannot be read: {reason}.", remedy="Check the path.") from error


def numbered_lines(data: bytes) -> list[tuple[int, bytes]]:
    """The lines that are not blank, with their numbers from 1."""
    return [(number, line) for number, line in enumerate(data.split(b"\n"), start=1) if line.strip()]


def encode(line: msgspec.Struct) -> bytes:
    """One line; half of a surrogate pair, which models and users send, is kept as JSON's escape."""
    try:
        return msgspec.json.encode(line) + b"\n"
    except UnicodeEncodeError:
        return json.dumps(msgspec.to_builtins(line), separators=(",", ":")).encode() + b"\n"


def decode(data: bytes, shape: type[T], *, where: str, remedy: str) -> T:
    """One JSON text as `shape`; `where` ("The script x.jsonl, line 3") begins the sentence of the error.

    Raises:
        ModelError: not JSON, not UTF-8, or not of that shape.
    """
    try:
        return _decode(data, shape)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, ValueError) as error:
        raise ModelError(f"{where}: {error}.", remedy=remedy) from error


def _decode(data: bytes, shape: type[T]) -> T:
    try:
        return msgspec.json.decode(data, type=shape)
    except msgspec.DecodeError as error:
        if isinstance(error, msgspec.ValidationError) or b"\\ud" not in data:
            raise
        return msgspec.convert(json.loads(data), shape)


def amount(value: str | float | None, *, where: str, remedy: str) -> Decimal | None:
    """Dollars out of a file, as text or as a number; None is unknown.

    Raises:
        ModelError: it is negative, infinite or not a number.
    """
    if value is None:
        return None
    try:
        dollars = Decimal(str(value))
    except InvalidOperation:
        dollars = Decimal("NaN")
    if not (dollars.is_finite() and dollars >= 0):
        raise ModelError(f"{where}: cost_usd is {value}, which is no amount of money.", remedy=remedy)
    return dollars
