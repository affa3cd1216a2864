"""What stands in headers beside a call over HTTP, and definitions that ask for what no header can be."""

from __future__ import annotations

from typing import Any

import pytest

from lockstep.tools.remote_headers import header_text, marks_problem, parameter_headers, routing_headers


def marked(**properties: Any) -> dict[str, Any]:
    return {"name": "do", "inputSchema": {"type": "object", "properties": properties}}


REGION = {"type": "string", "x-mcp-header": "Region"}


@pytest.mark.parametrize(
    "value, text",
    [
        ("plain words", "plain words"),
        ("", ""),
        (" padded ", "=?base64?IHBhZGRlZCA=?="),
        ("a\r\nHost: evil", "=?base64?YQ0KSG9zdDogZXZpbA==?="),
        ("世界", "=?base64?5LiW55WM?="),
        ("=?base64?eA==?=", "=?base64?PT9iYXNlNjQ/ZUE9PT89?="),
    ],
)
def test_a_value_comes_through_a_header_as_it_is(value: str, text: str) -> None:
    assert header_text(value) == text


def test_a_request_says_its_method_and_whom_it_names() -> None:
    assert routing_headers("tools/call", {"name": "do"}) == {"Mcp-Method": "tools/call", "Mcp-Name": "do"}
    assert routing_headers("resources/read", {"uri": "file:///x"})["Mcp-Name"] == "file:///x"
    assert routing_headers("tools/list", {"name": "do"}) == {"Mcp-Method": "tools/list"}


def test_marked_arguments_stand_in_headers_and_no_others_do() -> None:
    inner = {"type": "object", "properties": {"n": {"type": "integer", "x-mcp-header": "N"}}}
    definition = marked(region=REGION, deep=inner, yes={"type": "boolean", "x-mcp-header": "Yes"}, q={"type": "string"})
    assert marks_problem(definition) == ""
    found = parameter_headers(definition, {"region": "eu", "deep": {"n": 4}, "yes": False, "q": "secret"})
    assert found == {"Mcp-Param-Region": "eu", "Mcp-Param-N": "4", "Mcp-Param-Yes": "false"}
    assert parameter_headers(definition, {"region": None, "deep": 5}) == {}


@pytest.mark.parametrize(
    "definition, says",
    [
        (marked(a={"type": "string", "x-mcp-header": ""}), "not the name of a header"),
        (marked(a={"type": "string", "x-mcp-header": "a b"}), "not the name of a header"),
        (marked(a={"type": "string", "x-mcp-header": "a\r\nb"}), "not the name of a header"),
        (marked(a={"type": "string", "x-mcp-header": 7}), "not the name of a header"),
        (marked(a={"type": "number", "x-mcp-header": "A"}), "neither a string"),
        (marked(a={"type": ["string"], "x-mcp-header": "A"}), "neither a string"),
        (marked(a=REGION, b={**REGION, "x-mcp-header": "REGION"}), "stands twice"),
        (marked(a={"type": "array", "items": REGION}), "where no argument"),
        (marked(a={"anyOf": [REGION]}), "where no argument"),
        ({"name": "do", "inputSchema": {"type": "object", "x-mcp-header": "A"}}, "where no argument"),
        ({"name": "do", "inputSchema": {"type": "object", "$defs": {"a": REGION}}}, "where no argument"),
    ],
)
def test_a_mark_that_no_header_can_carry_makes_the_tool_useless(definition: dict[str, Any], says: str) -> None:
    assert says in marks_problem(definition)


def test_data_in_a_schema_is_no_mark() -> None:
    assert (
        marks_problem(marked(a={"type": "object", "default": {"x-mcp-header": 5}, "enum": [{"x-mcp-header": 1}]})) == ""
    )
