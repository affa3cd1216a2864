"""The part of the server of everything that asks its client back: as results that require input in the modern era,
as requests of its own in the legacy one."""

from __future__ import annotations

import json
from typing import Any

from mcp import types
from mcp.server.request_state import RequestStateBoundary, RequestStateSecurity
from mcp.shared.message import ServerMessageMetadata

MODERN = "2026-07-28"
PROMPT = "test_input_required_result_prompt"
NOTHING: dict[str, Any] = {"type": "object", "properties": {}}
Said = types.CallToolResult | types.InputRequiredResult


def text(words: str) -> types.CallToolResult:
    return types.CallToolResult(content=[types.TextContent(text=words)])


def message(block: Any) -> types.PromptMessage:
    return types.PromptMessage(role="user", content=types.TextContent(text=block) if isinstance(block, str) else block)


def form(words: str, **fields: dict[str, Any]) -> types.ElicitRequest:
    schema = {"type": "object", "properties": fields, "required": list(fields)}
    return types.ElicitRequest(params=types.ElicitRequestFormParams(message=words, requested_schema=schema))


def sampled(words: str, tokens: int = 100) -> types.CreateMessageRequest:
    asked = types.SamplingMessage(role="user", content=types.TextContent(text=words))
    return types.CreateMessageRequest(params=types.CreateMessageRequestParams(messages=[asked], max_tokens=tokens))


NAME = form("What is your name?", name={"type": "string"})
ROOTS = types.ListRootsRequest()


def required(state: str | None = None, **asked: Any) -> types.InputRequiredResult:
    return types.InputRequiredResult(input_requests=asked or None, request_state=state)


def answers(params: Any) -> dict[str, Any]:
    return params.input_responses or {}


def filled(params: Any, key: str, field: str) -> str | None:
    """What a form came back with; None when it did not, or not as asked."""
    given = answers(params).get(key)
    if not isinstance(given, types.ElicitResult) or given.action != "accept":
        return None
    value = (given.content or {}).get(field)
    return None if value is None else str(value)


async def elicitation(ctx: Any, params: Any) -> Said:
    name = filled(params, "user_name", "name")
    return required(user_name=NAME) if name is None else text(f"Hello, {name}!")


async def sampling(ctx: Any, params: Any) -> Said:
    given = answers(params).get("capital_question")
    if not isinstance(given, types.CreateMessageResult | types.CreateMessageResultWithTools):
        return required(capital_question=sampled("What is the capital of France?"))
    return text(f"LLM response: {_words(given)}")


async def list_roots(ctx: Any, params: Any) -> Said:
    given = answers(params).get("client_roots")
    if not isinstance(given, types.ListRootsResult):
        return required(client_roots=ROOTS)
    return text(f"Roots: {', '.join(str(each.uri) for each in given.roots)}")


async def request_state(ctx: Any, params: Any) -> Said:
    if params.request_state != "confirming" or filled(params, "confirm", "ok") is None:
        return required("confirming", confirm=form("Please confirm", ok={"type": "boolean"}))
    return text("state-ok")


async def multiple(ctx: Any, params: Any) -> Said:
    asked = {"user_name": NAME, "greeting": sampled("Generate a greeting", 50), "client_roots": ROOTS}
    if params.request_state is None or set(asked) - set(answers(params)):
        return required("asked", **asked)
    return text(f"{_words(answers(params)['greeting'])} {filled(params, 'user_name', 'name')}")


async def rounds(ctx: Any, params: Any) -> Said:
    state = json.loads(params.request_state) if params.request_state else {}
    if "name" not in state:
        name = filled(params, "step1", "name") if state else None
        if name is None:
            return required('{"asked": 1}', step1=form("Step 1: What is your name?", name={"type": "string"}))
        step2 = form("Step 2: What is your favorite color?", color={"type": "string"})
        return required(json.dumps({"name": name}), step2=step2)
    color = filled(params, "step2", "color")
    return text(f"{state['name']} likes {color}.")


async def capabilities(ctx: Any, params: Any) -> Said:
    can = ctx.session.client_capabilities
    asked: dict[str, Any] = {}
    if can is not None and can.sampling is not None:
        asked["greeting"] = sampled("Generate a greeting", 50)
    if can is not None and can.elicitation is not None:
        asked["user_name"] = NAME
    return required(**asked) if asked and not answers(params) else text("done")


async def prompt(ctx: Any, params: Any) -> types.GetPromptResult | types.InputRequiredResult:
    context = filled(params, "user_context", "context")
    if context is None:
        return required(user_context=form("What context should the prompt use?", context={"type": "string"}))
    return types.GetPromptResult(messages=[message(f"In the context of {context}.")])


async def samples(ctx: Any, params: Any) -> Said:
    given = await _answer(ctx, params, sampled(str((params.arguments or {})["prompt"])), types.CreateMessageResult)
    return given if isinstance(given, types.InputRequiredResult) else text(f"LLM response: {_words(given)}")


def elicits(words: str, **fields: dict[str, Any]) -> Any:
    async def tool(ctx: Any, params: Any) -> Said:
        asked = form(str((params.arguments or {}).get("message", words)), **fields)
        given = await _answer(ctx, params, asked, types.ElicitResult)
        if isinstance(given, types.InputRequiredResult):
            return given
        return text(f"Elicitation completed: action={given.action}, content={json.dumps(given.content or {})}")

    return tool


async def _answer(ctx: Any, params: Any, asked: Any, kind: Any) -> Any:
    """The client's answer; in the modern era the question first, as a result."""
    if ctx.protocol_version < MODERN:
        related = ServerMessageMetadata(related_request_id=ctx.request_id)
        return await ctx.session.send_request(asked, kind, metadata=related)
    given = answers(params).get("asked")
    return required(asked=asked) if given is None else given


def _words(given: Any) -> str:
    content = given.content[0] if isinstance(given.content, list) else given.content
    return str(getattr(content, "text", content))


def state_boundary() -> RequestStateBoundary:
    """Seals what a client is given to keep, and refuses what comes back changed."""
    return RequestStateBoundary(RequestStateSecurity.ephemeral(audience="everything"), default_audience=None)


def options(names: tuple[str, ...], titles: tuple[str, ...]) -> list[dict[str, str]]:
    return [{"const": name, "title": title} for name, title in zip(names, titles, strict=True)]


_VALUES, _TITLES = ("value1", "value2", "value3"), ("First Option", "Second Option", "Third Option")
_OPTIONS = ["option1", "option2", "option3"]
DEFAULTS = elicits(
    "Please say who you are",
    name={"type": "string", "default": "John Doe"},
    age={"type": "integer", "default": 30},
    score={"type": "number", "default": 95.5},
    status={"type": "string", "enum": ["active", "inactive", "pending"], "default": "active"},
    verified={"type": "boolean", "default": True},
)
ENUMS = elicits(
    "Please choose",
    untitledSingle={"type": "string", "enum": _OPTIONS},
    titledSingle={"type": "string", "oneOf": options(_VALUES, _TITLES)},
    legacyEnum={
        "type": "string",
        "enum": ["opt1", "opt2", "opt3"],
        "enumNames": ["Option One", "Option Two", "Option Three"],
    },
    untitledMulti={"type": "array", "items": {"type": "string", "enum": _OPTIONS}},
    titledMulti={"type": "array", "items": {"anyOf": options(_VALUES, _TITLES)}},
)
_ONE = {"type": "string"}
_REQUIRED = "test_input_required_result_"
TOOLS: dict[str, tuple[str, dict[str, Any], Any]] = {
    "test_sampling": (
        "Asks the client's model",
        {"type": "object", "properties": {"prompt": _ONE}, "required": ["prompt"]},
        samples,
    ),
    "test_elicitation": (
        "Asks the client's user",
        {"type": "object", "properties": {"message": _ONE}, "required": ["message"]},
        elicits("", response=_ONE),
    ),
    "test_elicitation_sep1034_defaults": ("Asks with defaults", NOTHING, DEFAULTS),
    "test_elicitation_sep1330_enums": ("Asks with choices", NOTHING, ENUMS),
    "test_streaming_elicitation": ("Asks in its result", NOTHING, elicitation),
    f"{_REQUIRED}elicitation": ("Asks for a name", NOTHING, elicitation),
    f"{_REQUIRED}sampling": ("Asks a model", NOTHING, sampling),
    f"{_REQUIRED}list_roots": ("Asks for roots", NOTHING, list_roots),
    f"{_REQUIRED}request_state": ("Asks, with a state", NOTHING, request_state),
    f"{_REQUIRED}tampered_state": ("Asks, with a state", NOTHING, request_state),
    f"{_REQUIRED}multiple_inputs": ("Asks for three things", NOTHING, multiple),
    f"{_REQUIRED}multi_round": ("Asks twice", NOTHING, rounds),
    f"{_REQUIRED}capabilities": ("Asks for what the client can", NOTHING, capabilities),
}
