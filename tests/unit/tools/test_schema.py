"""Type annotations and docstrings become MCP tool definitions."""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import enum
import functools
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal, NewType, NotRequired, Optional, Required, TypedDict, TypeVar, Union

import jsonschema_rs
import pytest

from lockstep.tools.decorator import tool
from lockstep.tools.schema import definition, read_docstring

UserId = NewType("UserId", str)
T = TypeVar("T")


class Cabin(enum.Enum):
    ECONOMY = "economy"
    BUSINESS = "business"


class Rank(enum.IntEnum):
    LOW = 1
    HIGH = 2


class Odd(enum.Enum):
    THING = b"bytes"


class Flight(TypedDict):
    number: str
    stops: NotRequired[Annotated[int, "How often it lands on the way."]]


class Filter(TypedDict, total=False):
    cabin: Cabin
    origin: Required[str]


class Node(TypedDict):
    name: str
    children: list[Node]


@dataclasses.dataclass
class Passenger:
    name: str
    born: datetime.date
    cabin: Cabin = Cabin.ECONOMY
    bags: list[str] = dataclasses.field(default_factory=list)
    internal: int = dataclasses.field(default=0, init=False)


@dataclasses.dataclass
class Broken:
    body: bytes


def parameter(annotation: Any, **more: Any) -> dict[str, Any]:
    """The schema drawn for a parameter `value` with this annotation."""

    def look(value): ...  # type: ignore[no-untyped-def]

    look.__annotations__["value"] = annotation
    drawn = definition(look)["inputSchema"]
    jsonschema_rs.meta.validate(drawn)
    result: dict[str, Any] = drawn["properties"]["value"]
    return result


PASSENGER = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "born": {"type": "string", "format": "date"},
        "cabin": {"type": "string", "enum": ["economy", "business"], "default": "economy"},
        "bags": {"type": "array", "items": {"type": "string"}},
    },
    "required": ["name", "born"],
}

NUMBER_OR_NULL = {"anyOf": [{"type": "integer"}, {"type": "null"}]}


@pytest.mark.parametrize(
    ("annotation", "expected"),
    [
        (str, {"type": "string"}),
        (int, {"type": "integer"}),
        (float, {"type": "number"}),
        (bool, {"type": "boolean"}),
        (None, {"type": "null"}),
        (type(None), {"type": "null"}),
        (Any, {}),
        (object, {}),
        ("int | None", NUMBER_OR_NULL),
        (Optional[int], NUMBER_OR_NULL),  # noqa: UP045
        (Union[int, str], {"anyOf": [{"type": "integer"}, {"type": "string"}]}),  # noqa: UP007
        (Literal["one", "two"], {"type": "string", "enum": ["one", "two"]}),
        (Literal["one", 2, True, None], {"enum": ["one", 2, True, None]}),
        (Cabin, {"type": "string", "enum": ["economy", "business"]}),
        (Rank, {"type": "integer", "enum": [1, 2]}),
        (list, {"type": "array"}),
        (list[int], {"type": "array", "items": {"type": "integer"}}),
        ("list['Cabin']", {"type": "array", "items": {"type": "string", "enum": ["economy", "business"]}}),
        (Sequence[str], {"type": "array", "items": {"type": "string"}}),
        (set[int], {"type": "array", "items": {"type": "integer"}, "uniqueItems": True}),
        (tuple[int, ...], {"type": "array", "items": {"type": "integer"}}),
        (
            tuple[int, str],
            {"type": "array", "prefixItems": [{"type": "integer"}, {"type": "string"}], "minItems": 2, "maxItems": 2},
        ),
        (dict, {"type": "object"}),
        (dict[str, Any], {"type": "object"}),
        (Mapping[str, int], {"type": "object", "additionalProperties": {"type": "integer"}}),
        (
            dict[Cabin, int],
            {
                "type": "object",
                "propertyNames": {"type": "string", "enum": ["economy", "business"]},
                "additionalProperties": {"type": "integer"},
            },
        ),
        (datetime.date, {"type": "string", "format": "date"}),
        (datetime.datetime, {"type": "string", "format": "date-time"}),
        (datetime.time, {"type": "string", "format": "time"}),
        (uuid.UUID, {"type": "string", "format": "uuid"}),
        (decimal.Decimal, {"type": "string"}),
        (UserId, {"type": "string"}),
        (Annotated[int, "How many."], {"type": "integer", "description": "How many."}),
        (Annotated[int, "How many.", {"minimum": 1}], {"type": "integer", "description": "How many.", "minimum": 1}),
        (Passenger, {**PASSENGER, "additionalProperties": False}),
        (
            Flight,
            {
                "type": "object",
                "properties": {
                    "number": {"type": "string"},
                    "stops": {"type": "integer", "description": "How often it lands on the way."},
                },
                "required": ["number"],
                "additionalProperties": False,
            },
        ),
        (
            Filter,
            {
                "type": "object",
                "properties": {
                    "cabin": {"type": "string", "enum": ["economy", "business"]},
                    "origin": {"type": "string"},
                },
                "required": ["origin"],
                "additionalProperties": False,
            },
        ),
    ],
    ids=str,
)
def test_an_annotation_becomes_the_schema_that_says_the_same(annotation: Any, expected: dict[str, Any]) -> None:
    assert parameter(annotation) == expected


def test_the_definition_of_a_plain_function_is_minimal() -> None:
    @tool
    def search(origin: str, limit: int = 5) -> str:
        """Search flights."""
        return ""

    assert definition(search) == {
        "name": "search",
        "description": "Search flights.",
        "inputSchema": {
            "type": "object",
            "properties": {"origin": {"type": "string"}, "limit": {"type": "integer", "default": 5}},
            "required": ["origin"],
            "additionalProperties": False,
        },
    }


def test_a_function_without_parameters_takes_an_empty_object() -> None:
    def now() -> str:
        return ""

    assert definition(now)["inputSchema"] == {"type": "object", "properties": {}, "additionalProperties": False}


def test_what_the_decorator_was_told_stands_in_the_definition() -> None:
    @tool(name="book.flight", title="Book a flight", destructive=True, open_world=True)
    def book() -> None: ...

    drawn = definition(book)
    assert (drawn["name"], drawn["title"]) == ("book.flight", "Book a flight")
    assert drawn["annotations"] == {"destructiveHint": True, "openWorldHint": True}


def test_defaults_without_a_json_form_only_make_the_parameter_optional() -> None:
    marker = object()

    def look(
        day: datetime.date = datetime.date(2026, 3, 1), cabin: Cabin = Cabin.BUSINESS, odd: Any = marker
    ) -> None: ...

    schema = definition(look)["inputSchema"]
    assert schema["properties"]["day"]["default"] == "2026-03-01"
    assert schema["properties"]["cabin"]["default"] == "business"
    assert schema["properties"]["odd"] == {}
    assert "required" not in schema


def test_a_default_of_nan_is_left_out() -> None:
    def look(limit: float = float("nan")) -> None: ...

    assert definition(look)["inputSchema"]["properties"]["limit"] == {"type": "number"}


def test_keyword_only_parameters_are_parameters() -> None:
    def look(*, origin: str, limit: int | None = None) -> None: ...

    schema = definition(look)["inputSchema"]
    assert schema["required"] == ["origin"]
    assert schema["properties"]["limit"] == {**NUMBER_OR_NULL, "default": None}


def test_keyword_arguments_open_the_schema_to_values_of_their_type() -> None:
    def look(origin: str, **more: int) -> None: ...

    def anything(**more: Any) -> None: ...

    assert definition(look)["inputSchema"]["additionalProperties"] == {"type": "integer"}
    assert "additionalProperties" not in definition(anything)["inputSchema"]


def test_a_record_that_contains_itself_is_drawn_once_under_defs() -> None:
    def look(tree: Node) -> Node: ...  # type: ignore[empty-body]

    drawn = definition(look)
    assert drawn["inputSchema"]["properties"]["tree"] == {"$ref": "#/$defs/Node"}
    assert drawn["outputSchema"]["type"] == "object"
    for schema in (drawn["inputSchema"], drawn["outputSchema"]):
        assert schema["$defs"]["Node"]["properties"]["children"]["items"] == {"$ref": "#/$defs/Node"}
        jsonschema_rs.meta.validate(schema)
    valid = jsonschema_rs.validator_for(drawn["inputSchema"])
    assert valid.is_valid({"tree": {"name": "a", "children": [{"name": "b", "children": []}]}})
    assert not valid.is_valid({"tree": {"name": "a", "children": [{"name": "b"}]}})


@pytest.mark.parametrize("annotation", [Flight, Passenger, "Flight", Annotated[Flight, "note"]], ids=str)
def test_a_typed_dict_or_dataclass_result_has_an_output_schema(annotation: Any) -> None:
    def look(): ...  # type: ignore[no-untyped-def]

    look.__annotations__["return"] = annotation
    schema = definition(look)["outputSchema"]
    assert schema["type"] == "object"
    assert "additionalProperties" not in schema, "a result may say more than was promised"


@pytest.mark.parametrize("annotation", [str, dict[str, int], list[Flight], None, bytes, "Flight | None", "Missing"])
def test_other_results_have_no_output_schema(annotation: Any) -> None:
    def look(): ...  # type: ignore[no-untyped-def]

    look.__annotations__["return"] = annotation
    assert "outputSchema" not in definition(look)


def test_a_coroutine_function_is_described_like_any_other() -> None:
    async def look(origin: str) -> Flight: ...  # type: ignore[empty-body]

    drawn = definition(look)
    assert drawn["inputSchema"]["required"] == ["origin"]
    assert drawn["outputSchema"]["required"] == ["number"]


def test_a_wrapping_decorator_does_not_hide_the_parameters() -> None:
    def logged(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            return function(*args, **kwargs)

        return wrapper

    @tool
    @logged
    def search(origin: str) -> None: ...

    assert list(definition(search)["inputSchema"]["properties"]) == ["origin"]


DOCSTRING = """Search flights.

    Prices are in dollars.

    Args:
        origin: where from, an IATA code
            such as SFO.
        limit (int): how many.

    Returns:
        A list: of flights.
    Raises:
        ValueError: never.
    """


def test_the_docstring_tells_the_model_about_the_tool_and_each_parameter() -> None:
    def search(origin: Annotated[str, "An airport."], limit: int, other: str) -> None: ...

    search.__doc__ = DOCSTRING
    drawn = definition(search)
    assert drawn["description"] == "Search flights.\n\nPrices are in dollars."
    properties = drawn["inputSchema"]["properties"]
    assert properties["origin"]["description"] == "An airport.", "the annotation stands nearer to the parameter"
    assert properties["limit"]["description"] == "how many."
    assert "description" not in properties["other"]


def test_the_docstring_sections_are_split_and_continued_lines_joined() -> None:
    text, parameters = read_docstring(DOCSTRING)
    assert text == "Search flights.\n\nPrices are in dollars."
    assert parameters == {"origin": "where from, an IATA code such as SFO.", "limit": "how many."}


@pytest.mark.parametrize(
    ("docstring", "expected"),
    [
        ("", ("", {})),
        ("One line.", ("One line.", {})),
        ("\n    Args:\n        a: b\n    ", ("", {"a": "b"})),
        ("Text\n\nReturns:\n    x: y", ("Text", {})),
        ("Text with Args: inside a line.", ("Text with Args: inside a line.", {})),
        ("Text\n\nArgs:\n    a:\n        below\n    **more: rest", ("Text", {"a": "below", "more": "rest"})),
    ],
)
def test_odd_docstrings_are_read_as_they_stand(docstring: str, expected: tuple[str, dict[str, str]]) -> None:
    assert read_docstring(docstring) == expected


@pytest.mark.parametrize(
    ("annotation", "said"),
    [
        (bytes, r'look\(\): parameter "value" has the annotation bytes, which has no JSON form; use str, int'),
        (T, r"has the annotation ~T"),
        (Callable[[], int], r"has no JSON form"),
        ("Missing", r'has the annotation "Missing", which cannot be read: name \'Missing\' is not defined'),
        (dict[int, str], r"keys of a JSON object are strings; use str keys"),
        (Odd, r"has the annotation Odd, whose value b'bytes' has no JSON form"),
        (Broken, r'parameter "value" is a Broken, whose field "body" has the annotation bytes'),
        (list[Broken], r'whose field "body" has the annotation bytes'),
        (5, r"has the annotation 5"),
    ],
    ids=str,
)
def test_what_json_cannot_say_is_refused_with_function_parameter_and_remedy(annotation: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        parameter(annotation)


def test_a_missing_annotation_is_refused() -> None:
    def look(value): ...  # type: ignore[no-untyped-def]

    with pytest.raises(ValueError, match=r'look\(\): parameter "value" has no annotation; a model must be told'):
        definition(look)


def test_positional_only_parameters_are_refused() -> None:
    def look(value: int, /) -> None: ...

    with pytest.raises(ValueError, match=r'look\(\): parameter "value" is positional-only.*remove the "/"'):
        definition(look)


def test_variable_positional_parameters_are_refused() -> None:
    def look(first: int, *values: int) -> None: ...

    with pytest.raises(ValueError, match=r'look\(\): "\*values" cannot be offered.*take a list instead'):
        definition(look)


def test_unannotated_keyword_arguments_are_refused() -> None:
    def look(**more): ...  # type: ignore[no-untyped-def]

    with pytest.raises(ValueError, match=r'parameter "more" has no annotation'):
        definition(look)


def test_a_promised_result_that_json_cannot_say_is_refused() -> None:
    def look() -> Broken: ...  # type: ignore[empty-body]

    with pytest.raises(ValueError, match=r'look\(\): the result is a Broken, whose field "body"'):
        definition(look)


@pytest.mark.parametrize("name", ["", "two words", "naïve", "a" * 129, "line\nbreak"])
def test_a_name_that_mcp_does_not_allow_is_refused(name: str) -> None:
    @tool(name=name)
    def look() -> None: ...

    with pytest.raises(ValueError, match=r"cannot be a tool's name; use 1 to 128"):
        definition(look)


def test_a_class_is_refused() -> None:
    with pytest.raises(ValueError, match="is not a function"):
        definition(Passenger)
