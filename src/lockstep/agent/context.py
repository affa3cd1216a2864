"""What a server offers beside tools, as tools of the lock: its resources and prompts, and the completion of their
arguments.

Each is a read that goes through the gate like any other call. Its own name is the method of the protocol that it is.
Prompts and resource templates are definitions, so they are part of the tool's definition and pinned with it; a list of
resources is data, and is asked for.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Literal

from lockstep.values import Json, JsonObject

Offers = Literal["tools", "resources", "prompts"]
LIST = "resources/list"
READ = "resources/read"
PROMPT = "prompts/get"
COMPLETE = "completion/complete"
METHODS: Mapping[str, bool] = {LIST: True, READ: True, PROMPT: False, COMPLETE: False}
"""Method -> whether a model may ask for it. Prompts are for a person to choose, and completion helps in that."""
LISTED: Mapping[str, tuple[str, str, str]] = {
    PROMPT: ("prompts/list", "prompts", "name"),
    READ: ("resources/templates/list", "resourceTemplates", "uriTemplate"),
}
"""Method -> what is locked with it: the method that lists it, the name of the list, the name of an item in it."""
_PINNED = "lockstep/listed"
_MAX_URI_CHARACTERS = 4096
_MAX_NAMED = 2000
_TEXTS: JsonObject = {"type": "object", "additionalProperties": {"type": "string"}}


def definition(method: str, listed: Sequence[JsonObject] = ()) -> JsonObject:
    """The definition of one of `METHODS`, with what the server lists for it."""
    properties, required = _arguments(method, listed)
    schema: JsonObject = {
        "type": "object",
        "properties": properties,
        "required": list(required),
        "additionalProperties": False,
    }
    about = _ABOUT[method]
    if method == READ and listed:
        named = ", ".join(str(each["uriTemplate"]) for each in listed)
        about += f" Templates: {named[:_MAX_NAMED]}"
    made: dict[str, Json] = {"name": method, "description": about, "inputSchema": schema}
    if method in LISTED:
        made["_meta"] = {_PINNED: list(listed)}
    return made


def listed_in(made: JsonObject) -> Sequence[JsonObject]:
    """What was locked with a definition of one of `METHODS`."""
    meta = made.get("_meta")
    listed = meta.get(_PINNED) if isinstance(meta, Mapping) else None
    return [each for each in listed if isinstance(each, Mapping)] if isinstance(listed, list) else []


def offered_by(offers: Collection[str], method: str) -> bool:
    """Whether a server of which this is taken has the method."""
    if method == COMPLETE:
        return "resources" in offers or "prompts" in offers
    return ("prompts" if method == PROMPT else "resources") in offers


def plain_name(method: str) -> str:
    """A method as part of a tool's name: what every provider takes."""
    return method.replace("/", "_")


_ABOUT: Mapping[str, str] = {
    LIST: "The resources that this server has: the URI, name and kind of each.",
    READ: "What a resource of this server holds, by its URI.",
    PROMPT: "One of this server's prompts, filled in.",
    COMPLETE: "What an argument of a prompt or of a resource template may be completed to.",
}


def _arguments(method: str, listed: Sequence[JsonObject]) -> tuple[dict[str, Json], tuple[str, ...]]:
    """The properties of the arguments, and which of them are required."""
    text: JsonObject = {"type": "string"}
    match method:
        case "resources/read":
            return {"uri": {**text, "minLength": 1, "maxLength": _MAX_URI_CHARACTERS}}, ("uri",)
        case "prompts/get":
            names: list[Json] = [each["name"] for each in listed]
            return {"name": {**text, "enum": names}, "arguments": _TEXTS}, ("name",)
        case "completion/complete":
            ref: JsonObject = {
                "type": "object",
                "properties": {"type": text, "name": text, "uri": text, "title": text},
                "required": ["type"],
            }
            argument: JsonObject = {
                "type": "object",
                "properties": {"name": text, "value": text},
                "required": ["name", "value"],
            }
            context: JsonObject = {"type": "object", "properties": {"arguments": _TEXTS}}
            return {"ref": ref, "argument": argument, "context": context}, ("ref", "argument")
        case _:
            return {}, ()
