"""Forms that servers ask people to fill in: what is one, what they take, what is said of a value they do not."""

from __future__ import annotations

from typing import Any

import pytest

from lockstep.tools.forms import BadForm, BadValue, Form, read_form

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "title": "Name", "minLength": 2, "maxLength": 10, "pattern": "^[A-Z]"},
        "mail": {"type": "string", "format": "email"},
        "page": {"type": "string", "format": "uri"},
        "day": {"type": "string", "format": "date"},
        "at": {"type": "string", "format": "date-time"},
        "count": {"type": "integer", "minimum": 1, "maximum": 9, "default": 3},
        "share": {"type": "number", "minimum": 0.5},
        "sure": {"type": "boolean", "default": False},
        "seat": {"type": "string", "enum": ["aisle", "window"], "default": "aisle"},
        "old": {"type": "string", "enum": ["a", "b"], "enumNames": ["Ay", "Bee"]},
        "colour": {"type": "string", "oneOf": [{"const": "#f00", "title": "Red"}, {"const": "#0f0", "title": "Green"}]},
        "meals": {
            "type": "array",
            "minItems": 1,
            "maxItems": 2,
            "items": {"type": "string", "enum": ["veg", "x,y", "z"]},
        },
        "tones": {
            "type": "array",
            "items": {"anyOf": [{"const": "1", "title": "One"}, {"const": "2", "title": "Two"}]},
        },
    },
    "required": ["name"],
}
FORM = read_form(SCHEMA)
DEFAULTS = {"count": 3, "sure": False, "seat": "aisle"}


def one(schema: dict[str, Any], *, required: bool = False) -> Form:
    return read_form({"type": "object", "properties": {"x": schema}, "required": ["x"] if required else []})


@pytest.mark.parametrize(
    ("name", "texts", "value"),
    [
        ("name", ["Ada"], "Ada"),
        ("mail", ["ada@example.com"], "ada@example.com"),
        ("page", ["https://example.com/x"], "https://example.com/x"),
        ("day", ["2026-12-01"], "2026-12-01"),
        ("at", ["2026-12-01T10:00:00Z"], "2026-12-01T10:00:00Z"),
        ("count", ["9"], 9),
        ("share", ["0.75"], 0.75),
        ("share", ["2"], 2),
        ("sure", ["yes"], True),
        ("sure", ["False"], False),
        ("seat", ["window"], "window"),
        ("old", ["Bee"], "b"),
        ("colour", ["Red"], "#f00"),
        ("colour", ["#0f0"], "#0f0"),
        ("meals", ["veg", "x,y"], ["veg", "x,y"]),
        ("meals", ["veg, z"], ["veg", "z"]),
        ("tones", ["One,2"], ["1", "2"]),
    ],
)
def test_what_is_typed_becomes_the_value_that_was_asked_for(name: str, texts: list[str], value: Any) -> None:
    assert FORM.fill({"name": ["Ada"], name: texts}) == {**DEFAULTS, "name": "Ada", name: value}


@pytest.mark.parametrize(
    ("name", "texts", "says"),
    [
        ("name", ["A"], "name is 'A': it takes text, at least 2 and at most 10 characters, like ^[A-Z]."),
        ("name", ["ada"], "name is 'ada': "),
        ("name", ["Ada", "Bob"], "name is given 2 times and takes one value."),
        ("mail", ["ada"], "mail is 'ada': it takes email."),
        ("page", ["no page"], "page is 'no page': it takes uri."),
        ("day", ["tomorrow"], "day is 'tomorrow': it takes date."),
        ("day", ["2026-02-30"], "day is '2026-02-30': it takes date."),
        ("at", ["2026-12-01"], "at is '2026-12-01': it takes date-time."),
        ("count", ["10"], "count is 10: it takes whole number, at least 1 and at most 9."),
        ("count", ["2.5"], "count is 2.5: it takes whole number"),
        ("count", ["many"], "count is 'many': it takes whole number"),
        ("share", ["nan"], "share is nan: it takes number, at least 0.5."),
        ("share", ["1e999"], "share is inf: it takes number"),
        ("sure", ["perhaps"], "sure is 'perhaps': it takes yes or no."),
        ("seat", ["roof"], "seat is 'roof': it takes one of aisle, window."),
        ("colour", ["Blue"], "colour is 'Blue': it takes one of #f00 (Red), #0f0 (Green)."),
        ("meals", ["meat"], "meals is ['meat']: it takes any of veg, x,y, z, at least 1 and at most 2 of them."),
        ("meals", ["veg", "z", "x,y"], "meals is ['veg', 'z', 'x,y']: "),
        ("share", ["9" * 400], "share is 999"),
        ("count", ["9" * 400], "count is 999"),
        ("name", ["Ad\udcff"], "name is 'Ad\\udcff': "),
        ("age", ["3"], "There is no field 'age': it asks for name, mail"),
    ],
)
def test_a_value_that_is_not_taken_is_a_sentence(name: str, texts: list[str], says: str) -> None:
    with pytest.raises(BadValue) as problem:
        FORM.fill({"name": ["Ada"], name: texts})
    assert says in str(problem.value)


def test_what_is_needed_must_be_said() -> None:
    with pytest.raises(BadValue, match=r"^name is needed: it takes text"):
        FORM.fill({})


def test_a_clients_values_are_held_against_the_form_as_they_are() -> None:
    assert FORM.check({"name": "Ada", "count": 2, "mail": None}) == {"name": "Ada", "count": 2}
    for wrong in (
        {"name": 5},
        {"name": "Ada", "count": "2"},
        {"name": "Ada", "count": True},
        {"name": "Ada", "sure": 1},
    ):
        with pytest.raises(BadValue):
            FORM.check(wrong)


@pytest.mark.parametrize("schema", [{"format": "password"}, {"format": "Secret"}, {"writeOnly": True}])
def test_a_field_that_is_a_secret_makes_no_form(schema: dict[str, Any]) -> None:
    with pytest.raises(BadForm, match="'x' is a secret"):
        one({"type": "string", **schema})


def test_words_that_sound_like_a_secret_are_known() -> None:
    assert one({"type": "string", "title": "Your API key"}).fields[0].sounds_secret
    assert not one({"type": "string", "title": "Your name"}).fields[0].sounds_secret


@pytest.mark.parametrize(
    "schema",
    [
        None,
        [],
        {"type": "array"},
        {"properties": []},
        {"properties": {"x": {"type": "object"}}},
        {"properties": {"x": {"type": "array", "items": {"type": "string"}}}},
        {"properties": {"x": {"type": ["string", "null"]}}},
        {"properties": {"x": {"type": "string", "enum": []}}},
        {"properties": {"x": {"type": "string", "enum": [1]}}},
        {"properties": {"x": {"type": "string", "minLength": "a"}}},
        {"properties": {"x": {"type": "string", "pattern": "("}}},
        {"properties": {"x": {"type": "string", "pattern": "(?=(a|a)*b)x"}}},
        {"properties": {"x": {"type": "number", "minimum": 10**400}}},
        {"properties": {}, "required": [["x"]]},
        {"properties": {"x\u202e": {"type": "string"}}},
        {"properties": {"x": {"type": "string"}}, "required": ["y"]},
        {"properties": {f"x{n}": {"type": "string"} for n in range(41)}},
    ],
)
def test_what_is_no_form_is_none(schema: Any) -> None:
    with pytest.raises(BadForm):
        read_form(schema)


def test_a_default_that_the_field_would_not_take_is_left_out() -> None:
    assert one({"type": "integer", "maximum": 5, "default": 9}).fields[0].default is None
    assert one({"type": "number", "default": 10**400}).fields[0].default is None


def test_a_pattern_without_end_does_not_keep_anybody() -> None:
    form = one({"type": "string", "pattern": "^(a+)+$"})
    with pytest.raises(BadValue):
        form.fill({"x": ["a" * 200 + "!"]})
