"""Whether a structured result is what its tool's `outputSchema` promises. References beyond the schema are refused."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import jsonschema_rs
import msgspec

from lockstep.values import Json, JsonObject

_SHOWN = 300


def schema_problem(schema: Json) -> str:
    """Why this cannot be an `outputSchema`; empty when it can."""
    try:
        _compiled(msgspec.json.encode(schema))
    except (jsonschema_rs.ValidationError, jsonschema_rs.ReferencingError, ValueError, TypeError) as error:
        return str(error).splitlines()[0][:_SHOWN]
    return ""


def structure_problem(definition: JsonObject, result: Mapping[str, Any]) -> str:
    """Why a result breaks its tool's promise; empty when it does not, or nothing was promised."""
    schema = definition.get("outputSchema")
    if schema is None:
        return ""
    if "structuredContent" not in result:
        return "It holds no structuredContent, which its outputSchema promises."
    try:
        error = next(_compiled(msgspec.json.encode(schema)).iter_errors(result["structuredContent"]), None)
    except (jsonschema_rs.ValidationError, jsonschema_rs.ReferencingError, ValueError) as problem:
        return f"Its outputSchema cannot be used ({str(problem).splitlines()[0][:_SHOWN]})."
    if error is None:
        return ""
    place = "/".join(map(str, error.instance_path))
    return f"Its structuredContent is not what its outputSchema promises: {place}: {error.message[:_SHOWN]}."


@lru_cache(maxsize=256)
def _compiled(schema: bytes) -> Any:
    return jsonschema_rs.Draft202012Validator(msgspec.json.decode(schema), offline=True)
