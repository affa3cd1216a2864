"""The forms that servers ask people to fill in: a flat JSON Schema read with care, and values held against it.

All of a schema is attacker-controlled. What the protocol does not know (nested objects, other keywords that constrain)
is no form; a field that is marked as secret makes none either, because what is typed into one is recorded.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeGuard

import jsonschema_rs

from lockstep.values import Json, JsonObject

MAX_FIELDS = 40
MAX_OPTIONS = 200
MAX_TEXT = 4000
"""Characters of a text that a person gives, where the schema says no less."""
_MAX_NAME = 100
_SHOWN = 60
_LARGEST = sys.float_info.max
_ONE_PASS = jsonschema_rs.RegexOptions()
_SECRET_FORMATS = ("password", "secret")
_SOUNDS_SECRET = re.compile(
    r"pass(word|wd|phrase|code)|secret|api.?key|token|credential|\bpin\b|cvv|card.?number", re.I
)
_YES, _NO = ("true", "yes", "y"), ("false", "no", "n")

Kind = Literal["text", "number", "integer", "boolean", "choice", "choices"]


class BadForm(ValueError):
    """What is asked for is no form that a person can be shown; the message is a phrase that says why."""


class BadValue(ValueError):
    """A value that the form does not take; the message is a sentence for whoever gave it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Option:
    value: str
    title: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Field:
    """One value that is asked for. `least` and `most` bound a number, a text's characters, or how many are chosen."""

    name: str
    kind: Kind
    title: str = ""
    description: str = ""
    required: bool = False
    default: Json = None
    """None is no default."""
    options: tuple[Option, ...] = ()
    least: float | None = None
    most: float | None = None
    format: str = ""
    pattern: str = ""

    @property
    def sounds_secret(self) -> bool:
        """Whether its words ask for what should not be typed into a form."""
        return bool(_SOUNDS_SECRET.search(f"{self.name} {self.title} {self.description}"))

    @property
    def takes(self) -> str:
        """What it takes, in words."""
        chosen = ", ".join(
            f"{each.value} ({each.title})" if each.title and each.title != each.value else each.value
            for each in self.options
        )
        words = {
            "text": self.format or "text",
            "number": "number",
            "integer": "whole number",
            "boolean": "yes or no",
            "choice": f"one of {chosen}",
            "choices": f"any of {chosen}",
        }[self.kind]
        unit = " characters" if self.kind == "text" else " of them" if self.kind == "choices" else ""
        if self.least is not None or self.most is not None:
            low = f"at least {self.least:g}" if self.least is not None else ""
            high = f"at most {self.most:g}" if self.most is not None else ""
            words += f", {' and '.join(filter(None, (low, high)))}{unit}"
        return words + (f", like {self.pattern}" if self.pattern else "")

    def read(self, texts: Sequence[str]) -> Json:
        """What a person typed, as a value; several texts only where several may be chosen.

        Raises:
            BadValue: it is none that this field takes.
        """
        if self.kind == "choices":
            known = {each.value for each in self.options}
            chosen = [part for text in texts for part in ([text] if text in known else _parts(text))]
            return self.check(list(dict.fromkeys(self._by_title(part) for part in chosen)))
        if len(texts) > 1:
            raise BadValue(f"{self.name} is given {len(texts)} times and takes one value.")
        return self.check(self._typed(texts[0]))

    def check(self, value: Json) -> Json:
        """The same value, if this field takes it.

        Raises:
            BadValue: it does not.
        """
        if problem := self._problem(value):
            raise BadValue(f"{self.name} {problem}: it takes {self.takes}.")
        return value

    def _typed(self, text: str) -> Json:
        match self.kind:
            case "boolean":
                word = text.strip().casefold()
                return True if word in _YES else False if word in _NO else text
            case "integer" | "number":
                return _number(text)
            case "choice":
                return self._by_title(text)
        return text

    def _by_title(self, text: str) -> str:
        """An option's value, where it was named by its title."""
        if any(each.value == text for each in self.options):
            return text
        named = [each.value for each in self.options if each.title == text]
        return named[0] if len(named) == 1 else text

    def _problem(self, value: Json) -> str:
        shown = repr(value)[:_SHOWN]
        size: float
        match self.kind:
            case "boolean":
                return "" if isinstance(value, bool) else f"is {shown}"
            case "integer" | "number":
                if not _is_number(value):
                    return f"is {shown}"
                if self.kind == "integer" and value != int(value):
                    return f"is {shown}"
                size = value
            case "choices":
                if not isinstance(value, list) or len(set(map(repr, value))) != len(value):
                    return f"is {shown}"
                if any(each not in [option.value for option in self.options] for each in value):
                    return f"is {shown}"
                size = len(value)
            case "choice":
                return "" if value in [option.value for option in self.options] else f"is {shown}"
            case _:
                if not isinstance(value, str):
                    return f"is {shown}"
                size = len(value)
                if size > MAX_TEXT and self.most is None:
                    return f"has {size} characters, of which {MAX_TEXT} are taken"
                if not self._fits(value):
                    return f"is {shown}"
        within = (self.least is None or size >= self.least) and (self.most is None or size <= self.most)
        return "" if within else f"is {shown}"

    def _fits(self, value: str) -> bool:
        try:
            value.encode()
        except UnicodeEncodeError:
            return False  # half a character, as a terminal passes on what is no UTF-8
        if not self.format and not self.pattern:
            return True
        return bool(_text_validator(self.format, self.pattern).is_valid(value))


@dataclass(frozen=True, kw_only=True, slots=True)
class Form:
    """The fields of one question, in the order asked."""

    fields: tuple[Field, ...]

    def fill(self, given: Mapping[str, Sequence[str]]) -> JsonObject:
        """What a person typed, by field, with defaults where they said nothing.

        Raises:
            BadValue: there is no such field, one that is needed has no value, or a value is none that it takes.
        """
        by_name = {each.name: each for each in self.fields}
        for name in given:
            if name not in by_name:
                raise BadValue(f"There is no field {name!r:.100}: it asks for {', '.join(by_name) or 'nothing'}.")
        content: dict[str, Json] = {each.name: each.default for each in self.fields if each.default is not None}
        content |= {name: by_name[name].read(texts) for name, texts in given.items()}
        return self.check(content)

    def check(self, content: Mapping[str, Any]) -> JsonObject:
        """The same values, if the form takes them.

        Raises:
            BadValue: it does not; says of which field.
        """
        by_name = {each.name: each for each in self.fields}
        if unknown := next((name for name in content if name not in by_name), None):
            raise BadValue(f"There is no field {unknown!r:.100}: it asks for {', '.join(by_name) or 'nothing'}.")
        if missing := next((each for each in self.fields if each.required and content.get(each.name) is None), None):
            raise BadValue(f"{missing.name} is needed: it takes {missing.takes}.")
        return {name: by_name[name].check(value) for name, value in content.items() if value is not None}


def read_form(schema: Any) -> Form:
    """The form that a `requestedSchema` describes.

    Raises:
        BadForm: it describes none that a person may be shown.
    """
    properties = schema.get("properties", {}) if isinstance(schema, dict) else None
    if not isinstance(properties, dict) or schema.get("type", "object") != "object":
        raise BadForm("its schema is not that of a form")
    if len(properties) > MAX_FIELDS:
        raise BadForm(f"it asks for {len(properties)} fields, of which {MAX_FIELDS} are taken")
    required = schema.get("required", [])
    if not isinstance(required, list) or any(not isinstance(name, str) or name not in properties for name in required):
        raise BadForm("it needs a field that it does not have")
    return Form(fields=tuple(_field(name, each, name in required) for name, each in properties.items()))


def _field(name: str, schema: Any, required: bool) -> Field:
    if not isinstance(schema, dict) or not name.isprintable() or not 0 < len(name) <= _MAX_NAME:
        raise BadForm("it has a field that is none")
    if str(schema.get("format", "")).casefold() in _SECRET_FORMATS or schema.get("writeOnly") is True:
        raise BadForm(f"{name!r} is a secret, and no form may ask for one")
    kind, options = _kind(name, schema)
    low, high = {"text": ("minLength", "maxLength"), "choices": ("minItems", "maxItems")}.get(
        kind, ("minimum", "maximum")
    )
    field = Field(
        name=name,
        kind=kind,
        title=_words(schema.get("title")),
        description=_words(schema.get("description")),
        required=required,
        options=options,
        least=_bound(name, schema.get(low)),
        most=_bound(name, schema.get(high)),
        format=_words(schema.get("format")) if kind == "text" else "",
        pattern=_pattern(name, schema.get("pattern")) if kind == "text" else "",
    )
    default = schema.get("default")
    try:
        return field if default is None else replace(field, default=field.check(default))
    except BadValue:  # a default that it would not take itself helps nobody
        return field


def _kind(name: str, schema: Mapping[str, Any]) -> tuple[Kind, tuple[Option, ...]]:
    match schema.get("type"):
        case "array":
            items = schema.get("items")
            options = _options(items) if isinstance(items, dict) else None
            if options is None:
                raise BadForm(f"{name!r} is a list of anything")
            return "choices", options
        case "string":
            options = _options(schema)
            return ("text", ()) if options is None else ("choice", options)
        case "number" | "integer" | "boolean" as plain:
            return plain, ()
    raise BadForm(f"{name!r} is neither text, number, yes or no, nor a choice")


def _options(schema: Mapping[str, Any]) -> tuple[Option, ...] | None:
    """What may be chosen; None where anything may be said."""
    titled = schema.get("oneOf", schema.get("anyOf"))
    if titled is None and "enum" not in schema:
        return None
    if titled is None:
        titles: Any = schema.get("enumNames")
        values = schema["enum"] if isinstance(schema["enum"], list) else []
        named = isinstance(titles, list) and len(titles) == len(values)
        titled = [{"const": v, "title": titles[n] if named else ""} for n, v in enumerate(values)]
    if not isinstance(titled, list) or not 0 < len(titled) <= MAX_OPTIONS:
        raise BadForm("it has a choice between nothing, or too much")
    if any(not isinstance(each, dict) or not isinstance(each.get("const"), str) for each in titled):
        raise BadForm("it has a choice between what is no text")
    return tuple(Option(value=each["const"], title=_words(each.get("title"))) for each in titled)


def _words(value: Any) -> str:
    return value[:MAX_TEXT] if isinstance(value, str) else ""


def _bound(name: str, value: Any) -> float | None:
    if value is None:
        return None
    if not _is_number(value):
        raise BadForm(f"a bound of {name!r} is no number")
    return value


def _pattern(name: str, value: Any) -> str:
    if not isinstance(value, str):
        return ""
    try:
        _text_validator("", value)
    except (jsonschema_rs.ValidationError, ValueError) as error:
        raise BadForm(f"the pattern of {name!r} is none, or none that is read in one pass") from error
    return value


def _text_validator(format_: str, pattern: str) -> Any:
    """Its patterns are read in one pass: a stranger wrote them, and the texts that a default has them held against."""
    schema = {"type": "string"} | ({"format": format_} if format_ else {}) | ({"pattern": pattern} if pattern else {})
    return jsonschema_rs.Draft202012Validator(schema, validate_formats=True, offline=True, pattern_options=_ONE_PASS)


def _is_number(value: Any) -> TypeGuard[float]:
    """Whether it is one that every reader of JSON takes: JSON itself knows no end of digits."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= _LARGEST


def _number(text: str) -> Json:
    try:
        return int(text)
    except ValueError:
        pass
    try:
        return float(text)
    except ValueError:
        return text


def _parts(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]
