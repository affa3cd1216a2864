"""What a server asks of the agent's own model (`sampling/createMessage`): its own words, and nothing of the agent's.

The server is a stranger to the model as the model is to it. The prompt is made of what the server said alone: no system
prompt, tools or conversation of ours. What would bring more in is refused where that cannot be left out, and else left
out and named.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from lockstep.journal.events import ModelSampled
from lockstep.model.port import AssistantMessage, Message, Prompt, UserMessage
from lockstep.tools.inputs import SAMPLE, Asked, BadQuestion, Request
from lockstep.values import JsonObject, sha256

MAX_TOKENS = 4096
"""The longest answer, whatever the server asks for; the agent's own `model.max_tokens` where that is less."""
MAX_MESSAGES = 100
_IGNORED = ("includeContext", "modelPreferences", "stopSequences", "temperature")
_NOTHING: tuple[Any, ...] = (None, [], {}, "none")
_STOP = {"stop": "endTurn", "length": "maxTokens"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """One request of a server to a model."""

    prompt: Prompt
    max_tokens: int
    ignored: tuple[str, ...]
    """What else it says and nobody follows: with which context, by which model, how warm."""


def for_model(asked: Asked) -> Asked:
    """The same, with what it asks of a model given to the agent's own, or refused where that could not be asked so."""
    return replace(asked, requests=tuple(_given(each) if each.method == SAMPLE else each for each in asked.requests))


def _given(request: Request) -> Request:
    if request.refused:
        return request
    try:
        read_sample(request.params)
    except BadQuestion as problem:
        return replace(request, refused=str(problem))
    return replace(request, by_model=True)


def read_sample(params: Mapping[str, Any]) -> Sample:
    """What the model is asked.

    Raises:
        BadQuestion: it is none that words alone ask, of a model without tools.
    """
    if params.get("tools") or params.get("toolChoice") not in (None, {}, {"mode": "auto"}, {"mode": "none"}):
        raise BadQuestion("it gives the model tools, and a model that answers a server has none")
    most, system, said = params.get("maxTokens"), params.get("systemPrompt", ""), params.get("messages")
    if not isinstance(most, int) or isinstance(most, bool) or most < 1:
        raise BadQuestion("it does not say how long the model's answer may be")
    if not isinstance(system, str):
        raise BadQuestion("its system prompt is no text")
    if not isinstance(said, list) or not 0 < len(said) <= MAX_MESSAGES:
        raise BadQuestion(f"it asks the model with no messages, or with more than {MAX_MESSAGES}")
    messages = tuple(_message(each) for each in said)
    if not isinstance(messages[-1], UserMessage):
        raise BadQuestion("its last message to the model is the model's own")
    ignored = tuple(name for name in _IGNORED if params.get(name) not in _NOTHING)
    digest = sha256(json.dumps([system, [[each.role, each.text] for each in messages]]).encode())
    prompt = Prompt(system=system, tools=(), messages=messages, digest=digest, for_server=True)
    return Sample(prompt=prompt, max_tokens=min(most, MAX_TOKENS), ignored=ignored)


def _message(said: Any) -> Message:
    blocks = said.get("content") if isinstance(said, dict) else None
    blocks = blocks if isinstance(blocks, list) else [blocks]
    for each in blocks:
        if not isinstance(each, dict) or each.get("type") != "text" or not isinstance(each.get("text"), str):
            kind = str(each.get("type"))[:20] if isinstance(each, dict) else "nothing"
            raise BadQuestion(f"it shows the model {kind}, and only words are passed on")
    text = "\n".join(each["text"] for each in blocks)
    match said.get("role") if text else None:
        case "user":
            return UserMessage(text=text)
        case "assistant":
            return AssistantMessage(text=text)
    raise BadQuestion("one of its messages to the model has no words, or is of neither user nor assistant")


def told(said: ModelSampled) -> JsonObject:
    """What the server is told: the model's words, as the protocol has them."""
    return {
        "role": "assistant",
        "content": {"type": "text", "text": said.text},
        "model": said.model or "unknown",
        "stopReason": _STOP.get(said.finish_reason, said.finish_reason or "endTurn"),
    }
