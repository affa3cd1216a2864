"""Reading a request: everything it can get wrong ends in one sentence that names the field."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date, datetime
from decimal import Decimal
from http import HTTPStatus
from typing import Any
from urllib.parse import parse_qsl

Record = dict[str, Any]  # one JSON object, as it goes over the wire

MAX_TEXT_CHARACTERS = 2_000
FIRST_YEAR, LAST_YEAR = 2000, 2100


class Refusal(Exception):
    """A request that is answered with an HTTP error and one sentence."""

    def __init__(self, status: HTTPStatus, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status
        self.sentence = sentence


@dataclass(frozen=True, kw_only=True)
class Request:
    """One HTTP request, read but not yet understood."""

    query_text: str
    body_bytes: bytes
    header: Callable[[str], str | None]

    def query(self, *, required: tuple[str, ...] = (), optional: tuple[str, ...] = ()) -> dict[str, str]:
        """Return the query parameters; a missing, empty or unknown one is a 400."""
        query = dict(parse_qsl(self.query_text, keep_blank_values=True))
        _check_names("Parameter", query, required, optional)
        for name, value in query.items():
            if not value.strip():
                raise bad_request(f"Parameter '{name}' is empty.")
        return query

    def body(self, *, required: tuple[str, ...], optional: tuple[str, ...] = ()) -> Record:
        """Return the JSON object in the body, fractions as `Decimal`; a missing or unknown field is a 400."""
        try:
            body = json.loads(self.body_bytes, parse_float=Decimal, parse_constant=_reject_constant)
        except (ValueError, ArithmeticError, RecursionError) as error:
            raise bad_request(f"The body is not valid JSON: {error}.") from error
        if not isinstance(body, dict):
            raise bad_request("The body must be a JSON object.")
        _check_names("Field", body, required, optional)
        return body


def bad_request(sentence: str) -> Refusal:
    return Refusal(HTTPStatus.BAD_REQUEST, sentence)


def _check_names(kind: str, given: Record, required: tuple[str, ...], optional: tuple[str, ...]) -> None:
    for name in required:
        if name not in given:
            raise bad_request(f"{kind} '{name}' is missing.")
    for name in given:
        if name not in (*required, *optional):
            raise bad_request(f"{kind} {quoted(name)} is not known here.")


def _reject_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")


def text_field(body: Record, name: str) -> str:
    value = body[name]
    if not isinstance(value, str) or not value.strip():
        raise bad_request(f"Field '{name}' must be a non-empty string.")
    if len(value) > MAX_TEXT_CHARACTERS:
        raise bad_request(f"Field '{name}' is longer than {MAX_TEXT_CHARACTERS} characters.")
    if any("\ud800" <= character <= "\udfff" for character in value):  # half a surrogate pair: no UTF-8, no SQLite
        raise bad_request(f"Field '{name}' is not valid Unicode text.")
    return value


def number_field(body: Record, name: str) -> Decimal:
    value = body[name]
    if isinstance(value, bool) or not isinstance(value, (int, Decimal)):
        raise bad_request(f"Field '{name}' must be a number.")
    return Decimal(value)


def moment_field(body: Record, name: str) -> datetime:
    try:
        moment = datetime.fromisoformat(text_field(body, name))
    except ValueError:
        moment = None
    if moment is None or moment.tzinfo is None or not FIRST_YEAR <= moment.year <= LAST_YEAR:
        raise bad_request(f"Field '{name}' must be a date and time with UTC offset, such as 2030-01-31T09:30:00+00:00.")
    return moment


def parse_date(text: str) -> date:
    try:
        # fromisoformat alone would also take 20300131 and 2030-W05-4.
        day = date.fromisoformat(text) if re.fullmatch(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", text) else None
    except ValueError:
        day = None
    if day is None or not FIRST_YEAR <= day.year <= LAST_YEAR:
        raise bad_request(f"Parameter 'date' must be a day between {FIRST_YEAR} and {LAST_YEAR} as YYYY-MM-DD.")
    return day


def quoted(text: str) -> str:
    return repr(text if len(text) <= 80 else text[:80] + "...")
