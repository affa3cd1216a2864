"""Reading an agent directory. Every mistake becomes one sentence with file, line, key and remedy."""

from __future__ import annotations

import difflib
import json
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from lockstep.agent.files import AGENT_FILE, read_text
from lockstep.agent.spec import MODEL_NAME_RULE, AgentSpec
from lockstep.errors import ConfigError


def load_spec(directory: Path) -> AgentSpec:
    """Parse and validate `agent.toml` in `directory`.

    Raises:
        ConfigError: not there, not TOML, or something in it is wrong; the message names file, line and key.
    """
    if directory.is_file():
        raise ConfigError(f"{directory} is a file.", remedy=f"Name the directory that holds {AGENT_FILE}.")
    path = directory / AGENT_FILE
    text = read_text(path, remedy="Name an agent's directory; `lockstep init NAME` writes a small one that runs.")
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise _not_toml(path, text, str(error)) from error
    except RecursionError:
        raise ConfigError(f"{path}: its values are nested too deeply.", remedy="Write it flat.") from None
    try:
        return AgentSpec.model_validate(data)
    except ValidationError as error:
        lines = _lines(text)
        problems = [_sentence(path, lines, detail) for detail in error.errors(include_url=False)]
        raise ConfigError("\n".join(problems)) from error


Where = tuple[int | str, ...]
"""A place in the file as pydantic says it: `("tools", 1, "limits", "memory_mb")`."""

_HEADER = re.compile(r"\s*(\[\[?)\s*([^\[\]]+?)\s*\]")
_KEY = re.compile(r"""\s*([\w.'" -]+?)\s*=""")
_TOML_PLACE = re.compile(r" \(at (?:line (\d+), column (\d+)|end of document)\)$")


def _not_toml(path: Path, text: str, message: str) -> ConfigError:
    place = _TOML_PLACE.search(message)
    line = int(place[1]) if place and place[1] else text.rstrip().count("\n") + 1
    column = f", column {place[2]}" if place and place[2] else ""
    reason = _TOML_PLACE.sub("", message)
    return ConfigError(f"{path}:{line}: not valid TOML{column}: {reason}.", remedy="Correct that line.")


def _sentence(path: Path, lines: Mapping[Where, int], detail: ErrorDetails) -> str:
    where = detail["loc"]
    key = _dotted(where)
    line = next((lines[where[:end]] for end in range(len(where), 0, -1) if where[:end] in lines), None)
    place = f"{path}:{line}" if line else str(path)
    kind, given = detail["type"], detail.get("input")
    if kind == "extra_forbidden":
        return f"{place}: `{key}` is not a known key.{_did_you_mean(where)}"
    if kind == "missing" and len(where) == 1:
        return f"{place}: the section `[{key}]` is missing. Add it{_BEGINNINGS.get(key, '')}."
    if kind == "tuple_type" and where == ("tools",):
        return f"{place}: `[tools]` is one table. Write `[[tools]]`, with two brackets, above each entry."
    if kind == "missing":
        return f"{place}: `{key}` is missing. Add it."
    if kind == "value_error":
        return f"{place}: `{key}` {detail['msg'].removeprefix('Value error, ')}."
    rule = ""
    if kind == "string_pattern_mismatch":
        rule = _PATTERNS.get(tuple(part for part in where if isinstance(part, str)), "")
    if kind == "tuple_type" and isinstance(given, str):
        rule = "it must be a list, in square brackets, each text of it in quotes"
    rule = rule or (detail["msg"][:1].lower() + detail["msg"][1:]).replace("tuple", "list")
    return f"{place}: `{key}` is {_as_written(given):.80}: {rule}."


_PATTERNS: Mapping[Where, str] = {
    ("agent", "name"): "a name is at most 64 letters, digits, - and _, a letter first",
    ("model", "name"): MODEL_NAME_RULE,
    ("tools", "mcp", "prefix"): "a prefix is at most 32 letters, digits, - and _, a letter first",
}
_BEGINNINGS: Mapping[str, str] = {
    "agent": ', with `name = "..."`',
    "model": ', with `name = "provider:model"`',
    "prompt": ', with `file = "prompt.md"`, the system message',
}
"""What a section has to say at the least."""


def _as_written(value: object) -> str:
    """A value much as it stands in TOML."""
    return json.dumps(value, ensure_ascii=False, default=str) if isinstance(value, bool | str) else repr(value)


def _dotted(where: Where) -> str:
    out = ""
    for part in where:
        out += f"[{part}]" if isinstance(part, int) else f".{part}"
    return out.lstrip(".")


def _lines(text: str) -> dict[Where, int]:
    """The line of every table and key written one to a line; what is inside an inline table has none of its own."""
    found: dict[Where, int] = {}
    table: Where = ()
    counts: dict[Where, int] = {}
    for number, line in enumerate(text.split("\n"), 1):
        if header := _HEADER.match(line):
            table = _below_arrays((), header[2], counts)
            if header[1] == "[[":
                found.setdefault(table, number)
                counts[table] = counts.get(table, 0) + 1
                table = (*table, counts[table] - 1)
            found.setdefault(table, number)
        elif key := _KEY.match(line):
            found.setdefault(_below_arrays(table, key[1], {}), number)
    return found


def _below_arrays(table: Where, dotted: str, counts: Mapping[Where, int]) -> Where:
    """`table` and the names in `dotted`; a name of an array of tables stands for its newest entry."""
    *inner, last = (name.strip(" '\"") for name in dotted.split("."))
    for name in inner:
        table = (*table, name)
        if table in counts:
            table = (*table, counts[table] - 1)
    return (*table, last)


def _did_you_mean(where: Where) -> str:
    fields = _known_keys(where[:-1])
    close = difflib.get_close_matches(str(where[-1]), fields, n=1)
    if close:
        return f" Did you mean `{close[0]}`?"
    return f" Known keys: {', '.join(fields)}." if fields else ""


def _known_keys(where: Where) -> list[str]:
    model: Any = AgentSpec
    for part in where:
        if isinstance(part, int):
            continue
        model = _inner_model(model.model_fields[part].annotation) if part in model.model_fields else None
        if model is None:
            return []
    return [field.alias or name for name, field in model.model_fields.items()]


def _inner_model(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for inner in getattr(annotation, "__args__", ()):
        if (found := _inner_model(inner)) is not None:
            return found
    return None
