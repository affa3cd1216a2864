"""Prompt construction in the Model Context Protocol's shape, deterministic, with a digest.

prompt = system message + tools + messages (previous interactions, the user message, this run so far). The digest is
rolling: each message extends it, so a long run never hashes its past again, and two prompts with the same digest have
the same prefix all the way, which is what provider caches need.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import cast

from lockstep.agent.locked import LockedAgent, LockedTool
from lockstep.model.port import AssistantMessage, Message, Prompt, ToolDefinition, ToolMessage, UserMessage
from lockstep.values import Digest, JsonObject, sha256


@dataclass(frozen=True, slots=True)
class Transcript:
    """Messages in order, and the digest of them and of everything before them; empty where no prompt is made of them,
    and stays so."""

    messages: tuple[Message, ...]
    digest: bytes

    def add(self, *messages: Message) -> Transcript:
        digest = self.digest
        if not digest:
            return Transcript((*self.messages, *messages), digest)
        for message in messages:
            digest = hashlib.sha256(digest + _encoded(message)).digest()
        return Transcript((*self.messages, *messages), digest)


UNSEEDED = Transcript((), b"")
"""The opening where no model is asked: nothing is digested."""


def opening(agent: LockedAgent, history: Iterable[Message] = ()) -> Transcript:
    """The transcript before the user speaks: system message and tools in the digest, earlier runs as messages."""
    seed = json.dumps([agent.system, [tool.definition for tool in _shown(agent)]], sort_keys=True)
    return Transcript((), hashlib.sha256(seed.encode()).digest()).add(*history)


def definitions(agent: LockedAgent) -> tuple[ToolDefinition, ...]:
    """The tools as the model sees them, in name order."""
    return tuple(
        ToolDefinition(
            name=tool.name, description=str(tool.definition.get("description", "")), input_schema=_shown_schema(tool)
        )
        for tool in _shown(agent)
    )


def _shown(agent: LockedAgent) -> list[LockedTool]:
    return [tool for tool in agent.tools.values() if tool.for_models]


def _shown_schema(tool: LockedTool) -> JsonObject:
    """The tool's schema, with `again` where its entry lets the model ask for a deliberate repeat."""
    if not tool.repeats.again:
        return tool.input_schema
    properties = cast(JsonObject, tool.input_schema.get("properties", {}))
    return {**tool.input_schema, "properties": {**properties, "again": _AGAIN}}


_AGAIN: JsonObject = {
    "type": "boolean",
    "description": "Only when the user has clearly asked for the very same thing a second time. A person is asked.",
}


def build_prompt(agent: LockedAgent, tools: tuple[ToolDefinition, ...], transcript: Transcript) -> Prompt:
    """The prompt of the next inference. `tools` is `definitions(agent)`, made once."""
    return Prompt(
        system=agent.system, tools=tools, messages=transcript.messages, digest=Digest(transcript.digest.hex())
    )


def _encoded(message: Message) -> bytes:
    match message:
        case UserMessage():
            parts: list[object] = ["user", message.text]
        case AssistantMessage():
            calls = [[call.provider_id, call.name, call.arguments] for call in message.calls]
            parts = ["assistant", message.text, calls]
        case ToolMessage():
            parts = ["tool", message.provider_id, message.name, message.text, message.is_error]
            if message.images:
                parts.append([[image.mime_type, sha256(image.data)] for image in message.images])
    return json.dumps(parts).encode()
