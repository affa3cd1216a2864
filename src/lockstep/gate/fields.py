"""What a tool's arguments are to a policy: destination, credential, terms or content, by JSON pointer.

Declared in `agent.toml`, else guessed from the names and formats in the tool's schema. A guess errs towards asking: it
makes a destination of what may be none. It says nothing about tools that only read, but for addresses on the web.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from lockstep.agent.locked import LockedTool
from lockstep.agent.pointers import steps
from lockstep.values import Effect, JsonObject

_WORDS: Mapping[str, frozenset[str]] = {
    "credential": frozenset({"password", "passphrase", "passcode", "secret", "token", "apikey", "credential", "pin"}),
    "destination": frozenset(
        {"recipient", "recipients", "to", "cc", "bcc", "email", "emails", "address", "addresses", "iban", "account"}
        | {"payee", "beneficiary", "channel", "user", "users", "username", "participant", "participants", "attendees"}
        | {"guest", "guests", "phone", "url", "uri", "link", "host", "webhook", "endpoint", "domain", "id", "ids"}
        | {"repo", "repository", "branch", "bucket", "group", "room", "target", "destination", "receiver", "contact"}
    ),
    "terms": frozenset(
        {
            "amount",
            "price",
            "sum",
            "total",
            "quantity",
            "limit",
            "date",
            "time",
            "day",
            "start",
            "end",
            "due",
            "expires",
        }
        | {"permission", "permissions", "role", "scope"}
    ),
    "content": frozenset(
        {"body", "message", "text", "content", "subject", "title", "description", "note", "comment", "memo", "html"}
    ),
}
_FORMATS = {"email": "destination", "uri": "destination", "hostname": "destination", "password": "credential"}
_WEB = frozenset({"url", "uri", "link", "endpoint", "webhook"})
_PIECES = re.compile(r"[A-Z]?[a-z]+|[A-Z]+")


def fields_of(tool: LockedTool) -> Mapping[str, tuple[str, ...]]:
    """Kind -> pointers: as declared, else guessed."""
    if tool.fields is not None:
        return tool.fields
    properties = tool.input_schema.get("properties")
    found: dict[str, list[str]] = {}
    for name, schema in properties.items() if isinstance(properties, Mapping) else ():
        kind = _guess(name, schema)
        if kind and (tool.effect is not Effect.READ or _words(name) & _WEB):
            found.setdefault(kind, []).append("/" + name.replace("~", "~0").replace("/", "~1"))
    return {kind: tuple(pointers) for kind, pointers in found.items()}


def present(fields: Mapping[str, Sequence[str]], arguments: JsonObject) -> dict[str, list[str]]:
    """Of these pointers, those under which a call has something; null is nothing."""
    return {
        kind: [pointer for pointer in pointers if arguments.get(steps(pointer)[0]) is not None]
        for kind, pointers in fields.items()
    }


def _guess(name: str, schema: Any) -> str:
    formats = str(schema.get("format", "")) if isinstance(schema, Mapping) else ""
    if formats in _FORMATS:
        return _FORMATS[formats]
    words = _words(name)
    return next((kind for kind, known in _WORDS.items() if words & known), "")


def _words(name: str) -> set[str]:
    """`userEmail` and `user_email` as their words, and joined, since `api_key` is one word to its reader."""
    pieces = [piece.lower() for piece in _PIECES.findall(name)]
    return {*pieces, "".join(pieces)}
