"""Arguments as models send them: taken when valid and exact, else refused in words a model can correct itself by."""

from __future__ import annotations

import json

import pytest

from lockstep.errors import ConfigError
from lockstep.gate.arguments import MAX_BYTES, MAX_DEPTH, MAX_VALUES, ArgumentChecker, Arguments, Malformed, read

SCHEMA = {
    "type": "object",
    "properties": {
        "flight": {"type": "string", "maxLength": 10},
        "seats": {"type": "integer", "minimum": 1},
        "price": {"type": "number"},
        "tags": {"type": "array", "items": {"type": "string"}},
        "any": {},
    },
    "required": ["flight"],
    "additionalProperties": False,
}
CHECKER = ArgumentChecker({"book": SCHEMA, "open": {"type": "object"}})


def parse(checker: ArgumentChecker, tool: str, text: str) -> Arguments:
    arguments = read(text)
    checker.check(tool, arguments)
    return arguments


def refusal(text: str, tool: str = "book") -> str:
    with pytest.raises(Malformed) as caught:
        parse(CHECKER, tool, text)
    return str(caught.value)


def test_valid_arguments_come_back_as_value_and_in_canonical_form() -> None:
    parsed = parse(CHECKER, "book", ' {"seats": 2,\n "flight": "BA1", "price": 100.0} ')
    assert parsed.value == {"flight": "BA1", "seats": 2, "price": 100.0}
    assert parsed.canonical == b'{"flight":"BA1","price":100,"seats":2}'


@pytest.mark.parametrize("text", ["", "  ", "\n"])
def test_no_text_is_no_arguments(text: str) -> None:
    assert parse(CHECKER, "open", text).value == {}
    assert "flight" in refusal(text)


def test_reading_again_gives_the_same_identity_without_asking_the_schema() -> None:
    text = '{"flight": "BA1", "seats": 1}'
    assert read(text) == parse(CHECKER, "book", text)
    assert read('{"moon": 1}').value == {"moon": 1}


@pytest.mark.parametrize(
    "text",
    [
        '{"flight": "BA1"',
        '{"flight": "BA1",}',
        "{'flight': 'BA1'}",
        '{"flight": "BA1"} {"flight": "BA2"}',
        'Sure! {"flight": "BA1"}',
        '```json\n{"flight": "BA1"}\n```',
        '{"flight": "a\nb"}',
        '\ufeff{"flight": "BA1"}',
        '{"flight": "\\ud83d"',
        "\0",
        '{"seats": 01, "flight": "BA1"}',
        '{"seats": 0x10, "flight": "BA1"}',
        "[" * 100,
    ],
)
def test_what_is_not_json_is_refused(text: str) -> None:
    assert "not valid JSON" in refusal(text)


@pytest.mark.parametrize("constant", ["NaN", "Infinity", "-Infinity"])
def test_numbers_that_json_does_not_have_are_refused_by_name(constant: str) -> None:
    assert f"{constant} is not a JSON value" in refusal(f'{{"flight": "BA1", "price": {constant}}}')


@pytest.mark.parametrize("levels", [MAX_DEPTH + 1, 260, 900, 20_000])
@pytest.mark.parametrize(("tool", "field"), [("book", "seats"), ("book", "any"), ("open", "any")])
def test_arguments_nested_beyond_the_limit_are_refused_whatever_the_schema(tool: str, field: str, levels: int) -> None:
    inner = levels - 1
    for text in ("[" * inner + "]" * inner, '{"a":' * inner + "1" + "}" * inner):
        assert "nested too deeply" in refusal(f'{{"flight": "BA1", "{field}": {text}}}', tool)


def test_arguments_nested_up_to_the_limit_are_judged_by_the_schema() -> None:
    inner = MAX_DEPTH - 1
    nested = '{"a":' * inner + "1" + "}" * inner
    assert "nested too deeply" not in refusal(f'{{"flight": "BA1", "seats": {nested}}}')
    assert "any" in parse(CHECKER, "book", f'{{"flight": "BA1", "any": {nested}}}').value
    assert "any" in parse(CHECKER, "book", '{"flight": "BA1", "any": [' + ",".join(["{}"] * 1000) + "]}").value


@pytest.mark.parametrize("text", ["[]", '"BA1"', "1", "null", "true"])
def test_arguments_are_an_object(text: str) -> None:
    assert refusal(text) == "the arguments must be a JSON object"


@pytest.mark.parametrize(
    "text",
    [
        '{"flight": "BA1", "flight": "BA2"}',
        '{"flight": "BA1", "flight": "BA1"}',
        '{"flight": "BA1", "any": {"deep": [{"x": 1, "x": 2}]}}',
        '{"flight": "BA1", "\\u0066light": "BA2"}',
    ],
)
def test_a_key_that_stands_twice_is_refused_because_two_readers_could_see_two_calls(text: str) -> None:
    assert "stands twice" in refusal(text)


def test_a_repeated_key_in_a_huge_object_is_found_without_going_through_it_again_and_again() -> None:
    text = "{" + ",".join(f'"k{number}":1' for number in range(80_000)) + ',"k79999":1}'
    assert len(text) <= MAX_BYTES
    assert "'k79999' stands twice" in refusal(text, "open")


@pytest.mark.parametrize(
    "text, problem",
    [
        ("{}", '"flight" is a required property'),
        ('{"flight": 1}', "flight: 1 is not of type"),
        ('{"flight": null}', "flight: null is not of type"),
        ('{"flight": "BA1", "seats": "two"}', 'seats: "two" is not of type'),
        ('{"flight": "BA1", "seats": 1.5}', "seats: 1.5 is not of type"),
        ('{"flight": "BA1", "seats": true}', "seats: true is not of type"),
        ('{"flight": "BA1", "seats": 0}', "seats: 0 is less than the minimum"),
        ('{"flight": "BA1", "moon": 1}', "Additional properties are not allowed"),
        ('{"flight": "BA1", "tags": ["a", 2]}', "tags[1]: 2 is not of type"),
        ('{"flight": "a much too long name"}', "flight:"),
    ],
)
def test_a_problem_is_named_with_its_place(text: str, problem: str) -> None:
    assert problem in refusal(text)


def test_many_problems_are_shown_by_the_first_few_and_briefly() -> None:
    text = json.dumps({"flight": "x" * 100_000, "tags": list(range(1000))})
    said = refusal(text)
    assert said.endswith("; and more")
    assert len(said) < 2000


@pytest.mark.parametrize("seats", [2**53, -(2**53), 10**30, 10**400])
def test_an_integer_too_big_to_be_the_same_everywhere_is_refused(seats: int) -> None:
    assert "cannot be used" in refusal(f'{{"flight": "BA1", "seats": {seats}}}')


def test_the_biggest_exact_integer_is_taken() -> None:
    assert parse(CHECKER, "book", f'{{"flight": "BA1", "seats": {2**53 - 1}}}').value["seats"] == 2**53 - 1


def test_an_integer_of_thousands_of_digits_is_refused_and_costs_nothing() -> None:
    assert "not valid JSON" in refusal(f'{{"flight": "BA1", "seats": {"9" * 100_000}}}')


@pytest.mark.parametrize("number", ["1e400", "-1e999"])
def test_a_number_beyond_the_floats_is_refused(number: str) -> None:
    assert "cannot be used" in refusal(f'{{"flight": "BA1", "price": {number}}}')


@pytest.mark.parametrize(
    "text", ['{"flight": "\\ud83d"}', '{"flight": "\udeeb"}', '{"flight": "BA1", "any": {"\\udfff": 1}}']
)
def test_half_a_surrogate_pair_is_refused_in_values_and_in_keys(text: str) -> None:
    assert "cannot be used" in refusal(text)


def test_what_is_beyond_the_basic_plane_is_taken_written_either_way() -> None:
    escaped, plain = '{"flight": "\\ud83d\\udeeb"}', '{"flight": "🛫"}'
    assert parse(CHECKER, "book", escaped) == parse(CHECKER, "book", plain)


@pytest.mark.parametrize("depth", [200, 2000, 100_000])
@pytest.mark.parametrize("brackets", [("[", "]"), ('{"a":', "}")])
def test_deep_nesting_is_taken_or_refused_but_never_breaks_anything(depth: int, brackets: tuple[str, str]) -> None:
    text = '{"flight": "BA1", "any": ' + brackets[0] * depth + "1" + brackets[1] * depth + "}"
    if depth <= 200:
        assert parse(CHECKER, "book", text).canonical
    else:
        assert refusal(text)


def test_text_that_is_too_long_is_refused_before_it_is_read() -> None:
    text = json.dumps({"flight": "x" * MAX_BYTES})
    assert f"at most {MAX_BYTES}" in refusal(text)
    assert f"at most {MAX_BYTES}" in refusal("[" * (MAX_BYTES + 1))


@pytest.mark.parametrize(
    "reference",
    [
        "http://127.0.0.1:9/schema.json",
        "https://example.com/schema.json",
        "file:///etc/passwd",
        "other.json",
        "#/$defs/missing",
    ],
)
def test_a_schema_that_refers_beyond_itself_is_refused_and_nothing_is_fetched(reference: str) -> None:
    schema = {"type": "object", "properties": {"x": {"$ref": reference}}}
    with pytest.raises(ConfigError, match="The input schema of tool 'book' is not usable") as caught:
        ArgumentChecker({"book": schema})
    assert "must stay inside" in caught.value.remedy


@pytest.mark.parametrize("value", ["[]", "1", '"a,b[c{d"', "{}"])
def test_values_are_counted_whatever_they_are_and_no_comma_in_a_text_is_one(value: str) -> None:
    most = MAX_VALUES - 2  # with the object, and the list in it
    text = '{"x": [%s]}'
    assert read(text % ",".join([value] * most)).value
    with pytest.raises(Malformed, match=f"more than {MAX_VALUES} values"):
        read(text % ",".join([value] * (most + 1)))


def test_a_schema_may_refer_to_its_own_definitions() -> None:
    schema = {"type": "object", "properties": {"x": {"$ref": "#/$defs/n"}}, "$defs": {"n": {"type": "integer"}}}
    checker = ArgumentChecker({"book": schema})
    assert parse(checker, "book", '{"x": 1}').value == {"x": 1}
    with pytest.raises(Malformed):
        parse(checker, "book", '{"x": "1"}')


@pytest.mark.parametrize("schema", [{"type": "objekt"}, {"type": "object", "properties": {"x": {"pattern": "("}}}])
def test_a_schema_that_is_none_is_refused_when_the_agent_is_opened(schema: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="is not usable"):
        ArgumentChecker({"book": schema})  # type: ignore[dict-item]
