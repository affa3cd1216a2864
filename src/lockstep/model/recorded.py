"""The recorded model: a recording's replies given again, by position and checked against the request.

The position is the number of assistant messages in the prompt, so the model holds no state and a resumed run goes on
where it was. Provider ids are not compared: models reuse them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import msgspec

from lockstep.errors import ModelError
from lockstep.model.port import (
    AskedCall,
    AssistantMessage,
    Failure,
    FailureKind,
    Message,
    OnText,
    Prompt,
    Reply,
    Settings,
    ToolMessage,
    UserMessage,
)
from lockstep.model.recording import Heard, Recording, Turn, digest_system, read_recording, write_recording
from lockstep.values import Json

__all__ = ["RecordedModel", "Recording", "Turn", "from_messages", "read_recording", "write_recording"]

_SHOWN = 40  # characters shown of a difference


@dataclass(frozen=True, slots=True)
class RecordedModel:
    """Gives a recording's replies again; the same prompt always brings the same reply."""

    recording: Recording
    checked: bool = True
    """Stop where the prompt differs from the recording. Without it the replies go on: for who compares by himself."""

    @property
    def name(self) -> str:
        return f"recorded:{self.recording.model}"

    async def reply(self, prompt: Prompt, settings: Settings, *, on_text: OnText | None = None) -> Reply | Failure:
        """The reply at the prompt's position; `Failure` when the prompt differs or the recording has ended."""
        if prompt.for_server:
            return self._to_server(prompt)
        turns = self.recording.turns
        position, heard = _position(prompt.messages)
        expected = turns[position].expects if position < len(turns) else self.recording.unanswered
        difference = _difference(expected, heard) if self.checked else ""
        if difference and (position < len(turns) or (position == len(turns) and expected)):
            return Failure(
                kind=FailureKind.RECORDING_MISMATCH,
                message=f"The conversation left the recording of {self.recording.model} before reply "
                f"{position + 1} of {len(turns)}: {difference}.",
            )
        if position >= len(turns):
            return Failure(
                kind=FailureKind.RECORDING_ENDED,
                message=f"The recording of {self.recording.model} has {len(turns)} replies and was asked for "
                f"reply {position + 1}.",
            )
        recorded = turns[position].reply
        if on_text is not None and recorded.text:
            on_text(recorded.text)
        return _again(recorded)

    def _to_server(self, prompt: Prompt) -> Reply | Failure:
        recorded = self.recording.to_servers.get(prompt.digest)
        if recorded is not None:
            return _again(recorded)
        asked = prompt.messages[-1].text
        return Failure(
            kind=FailureKind.RECORDING_MISMATCH,
            message=f"The recording of {self.recording.model} has no reply to a server that asks {asked!r:.100}.",
        )


def _again(recorded: Reply) -> Reply:
    return replace(recorded, provider=f"recorded:{recorded.provider}".rstrip(":"))


def _position(messages: Sequence[Message]) -> tuple[int, tuple[Heard, ...]]:
    """How many replies the prompt holds, and what was said since the last of them."""
    position = 0
    heard: list[Heard] = []
    for message in messages:
        if isinstance(message, AssistantMessage):
            position += 1
            heard.clear()
        else:
            heard.append(message)
    return position, tuple(heard)


def _difference(expected: Sequence[Heard], heard: Sequence[Heard]) -> str:
    """The first difference in words, empty when there is none."""
    for number, (then, now) in enumerate(zip(expected, heard, strict=False), start=1):
        if _speaker(then) != _speaker(now):
            return f"message {number} was {_speaker(then)} and is {_speaker(now)}"
        if then.text != now.text:
            return f"message {number}, {_speaker(then)}, {_text_difference(then.text, now.text)}"
        if _images(then) != _images(now):
            return f"message {number}, {_speaker(then)}, has other images"
    if len(expected) != len(heard):
        return f"{len(expected)} messages were recorded and {len(heard)} came"
    return ""


def _speaker(message: Heard) -> str:
    return f"the result of {message.name}" if isinstance(message, ToolMessage) else "the user's"


def _images(message: Heard) -> list[tuple[str, bytes]]:
    return [(image.mime_type, image.data) for image in message.images] if isinstance(message, ToolMessage) else []


def _text_difference(then: str, now: str) -> str:
    shorter = min(len(then), len(now))
    at = next((place for place in range(shorter) if then[place] != now[place]), shorter)
    return f"differs from character {at + 1}: recorded {_excerpt(then, at)}, now {_excerpt(now, at)}"


def _excerpt(text: str, at: int) -> str:
    start = max(0, at - _SHOWN // 4)
    shown = text[start : start + _SHOWN]
    return f"{'…' if start else ''}{shown!r}{'…' if start + _SHOWN < len(text) else ''}"


# --- public recordings -------------------------------------------------------


class _PlainCall(msgspec.Struct):
    name: str
    args: dict[str, Any] | str = {}
    id: str | None = None


class _PlainMessage(msgspec.Struct):
    role: Literal["system", "user", "assistant", "tool"]
    content: str | None = None
    tool_calls: list[_PlainCall] | None = None
    tool_call_id: str | None = None
    name: str | None = None
    error: Any = None


def from_messages(messages: Sequence[Mapping[str, Json]], *, model: str, agent: str = "") -> Recording:
    """A recording out of a plain conversation, as public data sets keep them.

    Each message has `role` (system, user, assistant, tool) and `content`. An assistant's may have `tool_calls` (`id`,
    `name`, `args` as object or raw text). A tool's has `tool_call_id` and `name` (found by the id when left out), and
    may have an `error`: true, or the text the model was shown instead of a content.

    What the assistant said before anybody spoke to it is left out, since nobody asked for it; two assistant messages
    in a row are one reply. Usage and cost are unknown.

    Raises:
        ModelError: a message is none of these; names its position.
    """
    provider, _, model_id = model.partition(":") if ":" in model else ("", "", model)
    system = ""
    turns: list[Turn] = []
    heard: list[Heard] = []
    for number, raw in enumerate(messages, start=1):
        message = _plain(raw, number)
        if message.role == "system":
            system = "\n\n".join(part for part in (system, message.content) if part)
        elif message.role == "user":
            heard.append(UserMessage(text=message.content or ""))
        elif message.role == "tool":
            heard.append(_tool_message(message, turns, number))
        elif heard:
            reply = Reply(text="", model=model_id, provider=provider, finish_reason="stop")
            turns.append(Turn(expects=tuple(heard), reply=_continued(reply, message)))
            heard.clear()
        elif turns:
            turns[-1] = replace(turns[-1], reply=_continued(turns[-1].reply, message))
    return Recording(
        model=model,
        turns=tuple(turns),
        unanswered=tuple(heard),
        agent=agent,
        system_digest=digest_system(system) if system else None,
    )


def _plain(raw: Mapping[str, Json], number: int) -> _PlainMessage:
    try:
        return msgspec.convert(raw, _PlainMessage)
    except msgspec.ValidationError as error:
        raise ModelError(
            f"Message {number} of the conversation: {error}.",
            remedy="A message has role, content and, where they apply, tool_calls, tool_call_id, name.",
        ) from error


def _continued(reply: Reply, message: _PlainMessage) -> Reply:
    calls = tuple(
        AskedCall(
            provider_id=call.id or "",
            name=call.name,
            arguments=call.args if isinstance(call.args, str) else json.dumps(call.args, ensure_ascii=False),
        )
        for call in message.tool_calls or ()
    )
    text = "\n".join(part for part in (reply.text, message.content) if part)
    calls = reply.calls + calls
    return replace(reply, text=text, calls=calls, finish_reason="tool_call" if calls else "stop")


def _tool_message(message: _PlainMessage, turns: Sequence[Turn], number: int) -> ToolMessage:
    name = message.name
    if name is None:
        calls = turns[-1].reply.calls if turns else ()
        name = next((call.name for call in calls if call.provider_id == message.tool_call_id), None)
    if name is None:
        raise ModelError(
            f"Message {number} of the conversation is the result of a call nobody asked for.",
            remedy="Give it a name, or the tool_call_id of a call just before it.",
        )
    said = message.error if isinstance(message.error, str) else ""
    return ToolMessage(
        provider_id=message.tool_call_id or "",
        name=name,
        text=message.content or said,
        is_error=bool(message.error),
    )
