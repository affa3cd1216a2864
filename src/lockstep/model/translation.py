"""Prompts and replies in pydantic-ai's words, both ways.

The way in is an allow-list: text, tool calls, usage, model id and finish reason are copied out of a response. Anything
else, reasoning above all, stays behind.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from lockstep.model.port import (
    AskedCall,
    AssistantMessage,
    Message,
    Prompt,
    Settings,
    ToolMessage,
    Usage,
    UserMessage,
)
from lockstep.model.thinking import without_thinking

if TYPE_CHECKING:  # pydantic-ai takes a second to load, so its modules are imported where they are used
    from pydantic_ai.messages import ModelMessage, ModelRequestPart, ModelResponse
    from pydantic_ai.models import ModelRequestParameters
    from pydantic_ai.settings import ModelSettings

_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


# --- out ---------------------------------------------------------------------


def to_messages(prompt: Prompt, *, images: bool = True) -> list[ModelMessage]:
    """The prompt as pydantic-ai messages: everything said between two replies is one request.

    With `images`, a result carries its images, which pydantic-ai puts where the provider takes them: into the result,
    or into a message after it. Without, the result's text has the words for them.

    Call ids are made unique on the way, because providers refuse a history that repeats one, and models do repeat them.
    """
    from pydantic_ai.messages import ModelRequest, ModelResponse, SystemPromptPart

    history: list[ModelMessage] = []
    parts: list[ModelRequestPart] = [SystemPromptPart(prompt.system)] if prompt.system else []
    for message, ids in zip(prompt.messages, unique_ids(prompt.messages), strict=True):
        if isinstance(message, AssistantMessage):
            if not message.text and not message.calls:
                continue  # a provider refuses an empty message
            if parts:
                history.append(ModelRequest(parts=parts))
                parts = []
            history.append(ModelResponse(parts=_response_parts(message, ids)))
        else:
            parts.append(_request_part(message, ids, images=images))
    if parts:
        history.append(ModelRequest(parts=parts))
    return history


def _response_parts(message: AssistantMessage, ids: Sequence[str]) -> list[Any]:
    from pydantic_ai.messages import TextPart, ToolCallPart

    text = [TextPart(message.text)] if message.text else []
    calls = [
        ToolCallPart(call.name, call.arguments, tool_call_id=call_id)
        for call, call_id in zip(message.calls, ids, strict=True)
    ]
    return [*text, *calls]


def _request_part(message: UserMessage | ToolMessage, ids: Sequence[str], *, images: bool) -> ModelRequestPart:
    from pydantic_ai.messages import BinaryContent, ToolReturnPart, UserPromptPart

    if isinstance(message, UserMessage):
        return UserPromptPart(message.text)
    content: Any = message.text
    if images and message.images:
        content = [content, *(BinaryContent(image.data, media_type=image.mime_type) for image in message.images)]
    return ToolReturnPart(
        message.name, content, tool_call_id=ids[0], outcome="failed" if message.is_error else "success"
    )


def unique_ids(messages: Sequence[Message]) -> list[tuple[str, ...]]:
    """The call ids of each message as they are sent: an empty or repeated id gets a number, its result the same."""
    seen: set[str] = set()
    waiting: list[tuple[str, str, str]] = []  # provider id, tool name, id as sent: calls without a result yet
    sent: list[tuple[str, ...]] = []
    for message in messages:
        if isinstance(message, AssistantMessage):
            ids = tuple(_unused(call.provider_id, seen) for call in message.calls)
            waiting = [(call.provider_id, call.name, new) for call, new in zip(message.calls, ids, strict=True)]
            sent.append(ids)
        elif isinstance(message, ToolMessage):
            sent.append((_answered(message, waiting),))
        else:
            sent.append(())
    return sent


def _unused(provider_id: str, seen: set[str]) -> str:
    candidate, number = provider_id or "call_1", 2
    while candidate in seen:
        candidate = f"{provider_id or 'call'}_{number}"
        number += 1
    seen.add(candidate)
    return candidate


def _answered(message: ToolMessage, waiting: list[tuple[str, str, str]]) -> str:
    """The id of the call this result answers: by id and name, else by id."""
    for by_name in (True, False):
        for call in waiting:
            if call[0] == message.provider_id and (call[1] == message.name or not by_name):
                waiting.remove(call)
                return call[2]
    return message.provider_id or "call_1"


def to_parameters(prompt: Prompt) -> ModelRequestParameters:
    """The tools as pydantic-ai definitions: not strict, because strict mode rewrites schemas."""
    from pydantic_ai.models import ModelRequestParameters
    from pydantic_ai.tools import ToolDefinition

    return ModelRequestParameters(
        function_tools=[
            ToolDefinition(
                name=tool.name,
                description=tool.description,
                parameters_json_schema=dict(tool.input_schema),
                strict=False,
            )
            for tool in prompt.tools
        ]
    )


def to_settings(settings: Settings, *, ignored: frozenset[str]) -> ModelSettings:
    """Settings as pydantic-ai knows them. `ignored` names what the model cannot take."""
    chosen: dict[str, object] = {
        "temperature": settings.temperature,
        "top_p": settings.top_p,
        "max_tokens": settings.max_tokens,
        "seed": settings.seed,
        "parallel_tool_calls": settings.parallel_tool_calls,
        "timeout": settings.timeout_s,  # for the wait on the wire
        "request_timeout": settings.timeout_s,  # for all of it
        "max_retries": 0,  # a retry is the kernel's decision, recorded and paid from the budget
    }
    # An unsupported retry or timeout setting only warns; everything else the lock chose must warn.
    silent = ignored & {"timeout", "max_retries"}
    given = {key: value for key, value in chosen.items() if value is not None and key not in silent}
    return cast("ModelSettings", given)


# --- in ----------------------------------------------------------------------


def text_of(response: ModelResponse) -> str:
    """The text parts, joined as they were streamed, without reasoning written into them."""
    from pydantic_ai.messages import TextPart

    text = "".join(part.content for part in response.parts if isinstance(part, TextPart))
    return clean(without_thinking(text))


def calls_of(response: ModelResponse) -> tuple[AskedCall, ...]:
    """The tool calls. Arguments stay the text they came as; what an SDK parsed becomes JSON text again."""
    from pydantic_ai.messages import ToolCallPart

    return tuple(
        AskedCall(
            provider_id=clean(part.tool_call_id), name=clean(part.tool_name), arguments=clean(_argument_text(part.args))
        )
        for part in response.parts
        if isinstance(part, ToolCallPart) and part.tool_kind is None  # the others are the provider's own tools
    )


def _argument_text(args: str | Mapping[str, Any] | None) -> str:
    if args is None or args == "":
        return "{}"  # a call without parameters
    return args if isinstance(args, str) else json.dumps(args, ensure_ascii=False)


def usage_of(response: ModelResponse) -> Usage | None:
    """The usage, None when the provider did not say."""
    usage = response.usage
    if usage.unmeasured_requests:
        return None
    return Usage(
        input_tokens=usage.input_tokens,
        output_tokens=usage.output_tokens,
        cache_read_tokens=usage.cache_read_tokens,
        cache_write_tokens=usage.cache_write_tokens,
        reasoning_tokens=usage.output_reasoning_tokens,
    )


def clean(text: str) -> str:
    """Text that has a UTF-8 form: models do send half of a surrogate pair, and no record could hold it."""
    return _LONE_SURROGATE.sub("\ufffd", text)
