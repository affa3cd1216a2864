"""What of a request to a remote server stands in headers beside its body, and which definitions ask for what cannot.

The modern revision names method, tool and marked arguments in headers, so that what lies before a server can route by
them. Pure.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator, Mapping
from typing import Any

from lockstep.tools.client import CALL, CANCEL_TASK, GET_TASK, UPDATE_TASK

PARAMETER = "Mcp-Param-"
_MARK = "x-mcp-header"
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,128}")
_PLAIN = re.compile(r"[ -~]*")
_WRAPPED = re.compile(r"=\?base64\?.*\?=")
_TYPES = frozenset({"string", "integer", "boolean"})
_NAMED_BY: Mapping[str, str] = {
    CALL: "name",
    "prompts/get": "name",
    "resources/read": "uri",
    **dict.fromkeys((GET_TASK, UPDATE_TASK, CANCEL_TASK), "taskId"),
}
_DATA = frozenset({"default", "examples", "const", "enum"})
"""Keywords whose values are data and no schemas."""

Path = tuple[str, ...]


def routing_headers(method: str, params: Mapping[str, Any]) -> dict[str, str]:
    """`Mcp-Method`, and `Mcp-Name` for a request that names something."""
    headers = {"Mcp-Method": header_text(method)}
    named = params.get(_NAMED_BY.get(method, ""))
    if isinstance(named, str):
        headers["Mcp-Name"] = header_text(named)
    return headers


def parameter_headers(definition: Mapping[str, Any], arguments: Mapping[str, Any]) -> dict[str, str]:
    """`Mcp-Param-*` of a call: the marked arguments that are there, and are not null."""
    headers = {}
    for path, schema in _marked(definition.get("inputSchema")):
        value: Any = arguments
        for step in path or ():
            value = value.get(step) if isinstance(value, Mapping) else None
        if isinstance(value, bool):
            headers[f"{PARAMETER}{schema[_MARK]}"] = "true" if value else "false"
        elif isinstance(value, str | int | float):
            headers[f"{PARAMETER}{schema[_MARK]}"] = header_text(str(value))
    return headers


def header_text(value: str) -> str:
    """A value as it stands in a header: as it is, or wrapped in base64 where a header would change or end it."""
    if _PLAIN.fullmatch(value) and value == value.strip() and not _WRAPPED.fullmatch(value):
        return value
    return f"=?base64?{base64.b64encode(value.encode('utf-8', 'surrogatepass')).decode()}?="


def marks_problem(definition: Mapping[str, Any]) -> str:
    """What is wrong with the marks of a definition, as a phrase; such a tool must not be used over HTTP. "" if nothing.

    A mark stands on a property that is reached by `properties` alone, whose one type is string, integer or boolean, and
    names a header that no other mark names.
    """
    seen: set[str] = set()
    for path, schema in _marked(definition.get("inputSchema")):
        name, kind = schema[_MARK], schema.get("type")
        if not path:
            return f"its {_MARK} stands where no argument of a call does"
        if not isinstance(name, str) or not _TOKEN.fullmatch(name):
            return f"the {_MARK} of {path[-1]!r:.60} is not the name of a header"
        if not isinstance(kind, str) or kind not in _TYPES:
            return f"the {_MARK} of {path[-1]!r:.60} is on neither a string, an integer nor a boolean"
        if name.lower() in seen:
            return f"its {_MARK} {name!r} stands twice"
        seen.add(name.lower())
    return ""


def _marked(schema: Any) -> Iterator[tuple[Path | None, Mapping[str, Any]]]:
    """Every schema with a mark, and the way to it by `properties`; None where there is no such way."""
    waiting: list[tuple[Path | None, Any]] = [((), schema)]
    while waiting:
        path, found = waiting.pop()
        if isinstance(found, list):
            waiting += [(None, each) for each in reversed(found)]
        if not isinstance(found, Mapping):
            continue
        if _MARK in found:
            yield path, found
        for keyword, value in reversed(list(found.items())):
            if keyword == "properties" and isinstance(value, Mapping):
                waiting += [
                    (None if path is None else (*path, name), each) for name, each in reversed(list(value.items()))
                ]
            elif keyword in ("patternProperties", "dependentSchemas", "$defs", "definitions"):
                waiting += [(None, each) for each in value.values()] if isinstance(value, Mapping) else []
            elif keyword not in _DATA and isinstance(value, Mapping | list):
                waiting.append((None, value))
