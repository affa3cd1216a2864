"""A typed function's MCP tool definition: JSON Schema 2020-12 and words for the model. Standard library alone.

Refuses to guess: a parameter that cannot be described is a ValueError that says how to change it.
"""

from __future__ import annotations

import re

from lockstep.tools.decorator import Marking, marking_of
from lockstep.tools.hints import Signature, signature

TYPE_CHECKING = False  # spelled out: importing `typing` would cost every sandbox start several milliseconds
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,128}")
_ARGUMENTS = re.compile(r"(Args|Arguments|Parameters):")
_SECTION = re.compile(r"(Args|Arguments|Parameters|Returns|Raises|Yields):")
_ENTRY = re.compile(r"\*{0,2}(\w+)\s*(?:\([^)]*\))?:\s*(.*)")


def definition(function: Callable[..., Any]) -> dict[str, Any]:
    """The MCP definition of a tool: name, title, description, inputSchema, outputSchema, annotations, where they apply.

    Unknown arguments are refused by the schema unless the function takes `**kwargs`. There is an outputSchema exactly
    when the function is annotated to return a TypedDict or a dataclass. Descriptions of parameters come from
    `Annotated[T, "..."]`, else from the docstring's `Args:`; a dict in Annotated adds schema keywords (`minimum`).

    Raises:
        ValueError: the function cannot be offered to a model; one sentence says why and what to change.
    """
    return describe(function, signature(function))


def describe(function: Callable[..., Any], reading: Signature) -> dict[str, Any]:
    """`definition` for a signature that has been read already."""
    marking = marking_of(function) or Marking(name=None, title=None, hints={})
    text, parameters = read_docstring(function.__doc__ or "")
    schema = reading.parameters.root_schema(closed=True)
    for name, drawn in schema["properties"].items():
        if name in parameters and "description" not in drawn:
            drawn["description"] = parameters[name]
    drawn_definition: dict[str, Any] = {"name": tool_name(function)}
    if marking.title is not None:
        drawn_definition["title"] = marking.title
    drawn_definition["description"] = text
    drawn_definition["inputSchema"] = schema
    if reading.result is not None:
        drawn_definition["outputSchema"] = reading.result.root_schema(closed=False)
    if marking.hints:
        drawn_definition["annotations"] = dict(marking.hints)
    return drawn_definition


def tool_name(function: Callable[..., Any]) -> str:
    """What the model calls this function.

    Raises:
        ValueError: the name is not one that MCP allows.
    """
    marking = marking_of(function)
    name = marking.name if marking is not None and marking.name is not None else function.__name__
    if not _NAME.fullmatch(name):
        raise ValueError(
            f"{function.__name__}(): {name!r} cannot be a tool's name; "
            'use 1 to 128 of A-Z, a-z, 0-9, "_", "-", ".", for instance with @tool(name=...).'
        )
    return name


def read_docstring(docstring: str) -> tuple[str, dict[str, str]]:
    """Split a Google-style docstring into the text before its sections and what `Args:` says of each parameter."""
    lines = _dedent(docstring)
    starts = [number for number, line in enumerate(lines) if _SECTION.fullmatch(line.rstrip())]
    if not starts:
        return "\n".join(lines).strip(), {}
    parameters: dict[str, str] = {}
    for number in starts:
        if _ARGUMENTS.fullmatch(lines[number].rstrip()):
            parameters.update(_entries(lines[number + 1 :]))
    return "\n".join(lines[: starts[0]]).strip(), parameters


def _dedent(docstring: str) -> list[str]:
    first, *lines = docstring.expandtabs().splitlines() or [""]
    margin = min((len(line) - len(line.lstrip()) for line in lines if line.strip()), default=0)
    return [first.strip(), *(line[margin:] for line in lines)]


def _entries(lines: list[str]) -> dict[str, str]:
    """`name: text` entries of an indented section; deeper lines continue the entry above."""
    entries: dict[str, str] = {}
    depth: int | None = None
    current = ""
    for line in lines:
        indent = len(line) - len(line.lstrip())
        if not line.strip():
            continue
        if indent == 0:
            break
        depth = indent if depth is None else depth
        entry = _ENTRY.fullmatch(line.strip()) if indent <= depth else None
        if entry:
            current = entry[1]
            entries[current] = entry[2]
        elif current:
            entries[current] = f"{entries[current]} {line.strip()}".strip()
    return {name: text for name, text in entries.items() if text}
