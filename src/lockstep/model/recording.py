"""Recordings: what a real model replied to what, in a file.

JSON Lines, versioned. A header, one line a reply with the messages that led to it, and (only when something was said
after the last reply) a line with the messages nobody answered:

    {"recording": 1, "model": "openai:gpt-4o", "agent": "airline", "lock": "…", "system_digest": "…"}
    {"expects": [{"role": "user", "text": "Hi"}], "reply": {"calls": [{"name": "f", "arguments": "{}"}], …}}
    {"expects": [{"role": "tool", "name": "f", "text": "42"}], "reply": {"text": "It is 42.", …}}
    {"expects": [{"role": "user", "text": "Bye"}]}

What the model said to servers that asked it is found by the digest of what they asked, wherever that is asked:

    {"expects": [], "for_server": "…", "reply": {"text": "Paris", …}}

System prompt and tools are not kept: their digests stand in the header for whoever asks what changed since.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Literal

import msgspec

from lockstep.errors import ModelError
from lockstep.model.lines import UsageLine, amount, decode, encode, numbered_lines, read_bytes
from lockstep.model.port import (
    AskedCall,
    Reply,
    ToolDefinition,
    ToolMessage,
    UserMessage,
)
from lockstep.values import Attachment, Digest, digest_json, format_usd, sha256

VERSION = 1
_REMEDY = "Record it again with `lockstep record`, or take it from where it came from."

Heard = UserMessage | ToolMessage
"""What a model is told between two of its replies."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Turn:
    """One reply and the messages that were added to the prompt since the reply before."""

    expects: tuple[Heard, ...]
    reply: Reply


@dataclass(frozen=True, kw_only=True, slots=True)
class Recording:
    """A conversation as the model saw it. `unanswered` is what came after the last reply."""

    model: str
    """`provider:model` that gave the replies."""
    turns: tuple[Turn, ...]
    unanswered: tuple[Heard, ...] = ()
    agent: str = ""
    lock: Digest | None = None
    system_digest: Digest | None = None
    tools_digest: Digest | None = None
    to_servers: Mapping[Digest, Reply] = field(default_factory=dict)
    """By the digest of the prompt: what servers were told."""


def digest_system(system: str) -> Digest:
    """What `system_digest` holds: SHA-256 of the system prompt in UTF-8."""
    return sha256(system.encode("utf-8", "surrogatepass"))


def digest_tools(tools: Sequence[ToolDefinition]) -> Digest:
    """What `tools_digest` holds: SHA-256 over the RFC 8785 JSON of the definitions, in order."""
    return digest_json(
        [{"name": tool.name, "description": tool.description, "inputSchema": tool.input_schema} for tool in tools]
    )


class _HeaderLine(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    recording: int
    model: str
    agent: str = ""
    lock: str | None = None
    system_digest: str | None = None
    tools_digest: str | None = None


class _ImageLine(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    mime_type: str
    data: bytes
    """In base64."""
    name: str = ""


class _MessageLine(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    role: Literal["user", "tool"]
    text: str
    name: str = ""
    provider_id: str = ""
    is_error: bool = False
    images: list[_ImageLine] = []


class _CallLine(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    name: str
    arguments: str
    provider_id: str = ""


class _ReplyLine(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    text: str = ""
    calls: list[_CallLine] = []
    usage: UsageLine = msgspec.field(default_factory=UsageLine)
    cost_usd: str | None = None
    price_book: str = ""
    model: str = ""
    provider: str = ""
    finish_reason: str = ""


class _TurnLine(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    expects: list[_MessageLine]
    reply: _ReplyLine | None = None
    for_server: str = ""


def read_recording(path: Path) -> Recording:
    """Read a recording.

    Raises:
        ModelError: the file cannot be read or is no recording; names file, line and what is wrong.
    """
    lines = numbered_lines(read_bytes(path, what="recording"))
    if not lines:
        raise ModelError(f"The recording {path} is empty.", remedy=_REMEDY)
    (first, line), *rest = lines
    header = decode(line, _HeaderLine, where=f"The recording {path}, line {first}", remedy=_REMEDY)
    if header.recording != VERSION:
        raise ModelError(
            f"The recording {path} has version {header.recording}; this Lockstep reads version {VERSION}.",
            remedy="Update Lockstep or record it again.",
        )
    turns: list[Turn] = []
    to_servers: dict[Digest, Reply] = {}
    unanswered: tuple[Heard, ...] | None = None
    for number, line in rest:
        where = f"The recording {path}, line {number}"
        turn = decode(line, _TurnLine, where=where, remedy=_REMEDY)
        if unanswered is not None:
            raise ModelError(f"{where}: it follows a line without a reply.", remedy=_REMEDY)
        expects = tuple(_heard(message) for message in turn.expects)
        if turn.reply is None:
            unanswered = expects
            continue
        reply = _reply(turn.reply, amount(turn.reply.cost_usd, where=where, remedy=_REMEDY))
        if turn.for_server:
            to_servers[Digest(turn.for_server)] = reply
        else:
            turns.append(Turn(expects=expects, reply=reply))
    return Recording(
        model=header.model,
        turns=tuple(turns),
        unanswered=unanswered or (),
        agent=header.agent,
        lock=_digest(header.lock),
        system_digest=_digest(header.system_digest),
        tools_digest=_digest(header.tools_digest),
        to_servers=to_servers,
    )


def write_recording(path: Path, recording: Recording) -> None:
    """Write a recording, replacing the file as a whole.

    Raises:
        ModelError: the file cannot be written.
    """
    header = _HeaderLine(
        recording=VERSION,
        model=recording.model,
        agent=recording.agent,
        lock=recording.lock,
        system_digest=recording.system_digest,
        tools_digest=recording.tools_digest,
    )
    lines: list[msgspec.Struct] = [header]
    for digest, reply in recording.to_servers.items():
        lines.append(_TurnLine(expects=[], reply=_reply_line(reply), for_server=digest))
    for turn in recording.turns:
        lines.append(_TurnLine(expects=_message_lines(turn.expects), reply=_reply_line(turn.reply)))
    if recording.unanswered:
        lines.append(_TurnLine(expects=_message_lines(recording.unanswered)))
    try:
        beside = path.with_name(path.name + ".partial")
        beside.write_bytes(b"".join(map(encode, lines)))
        beside.replace(path)
    except (OSError, ValueError) as error:  # ValueError: "/" and "." name no file
        reason = getattr(error, "strerror", None) or str(error)
        raise ModelError(
            f"The recording {path} cannot be written: {reason}.", remedy="Check path and space."
        ) from error


def _digest(text: str | None) -> Digest | None:
    return None if text is None else Digest(text)


def _heard(line: _MessageLine) -> Heard:
    if line.role == "user":
        return UserMessage(text=line.text)
    return ToolMessage(
        provider_id=line.provider_id,
        name=line.name,
        text=line.text,
        is_error=line.is_error,
        images=tuple(
            Attachment(name=one.name, mime_type=one.mime_type, data=one.data, shown=True) for one in line.images
        ),
    )


def _message_lines(messages: Sequence[Heard]) -> list[_MessageLine]:
    return [
        _MessageLine(
            role="tool",
            text=message.text,
            name=message.name,
            provider_id=message.provider_id,
            is_error=message.is_error,
            images=[_ImageLine(name=one.name, mime_type=one.mime_type, data=one.data) for one in message.images],
        )
        if isinstance(message, ToolMessage)
        else _MessageLine(role="user", text=message.text)
        for message in messages
    ]


def _reply(line: _ReplyLine, cost_usd: Decimal | None) -> Reply:
    return Reply(
        text=line.text,
        calls=tuple(
            AskedCall(provider_id=call.provider_id, name=call.name, arguments=call.arguments) for call in line.calls
        ),
        usage=line.usage.usage(),
        cost_usd=cost_usd,
        price_book=line.price_book,
        model=line.model,
        provider=line.provider,
        finish_reason=line.finish_reason,
    )


def _reply_line(reply: Reply) -> _ReplyLine:
    return _ReplyLine(
        text=reply.text,
        calls=[
            _CallLine(name=call.name, arguments=call.arguments, provider_id=call.provider_id) for call in reply.calls
        ],
        usage=UsageLine(
            input_tokens=reply.usage.input_tokens,
            output_tokens=reply.usage.output_tokens,
            cache_read_tokens=reply.usage.cache_read_tokens,
            cache_write_tokens=reply.usage.cache_write_tokens,
            reasoning_tokens=reply.usage.reasoning_tokens,
        ),
        cost_usd=format_usd(reply.cost_usd),
        price_book=reply.price_book,
        model=reply.model,
        provider=reply.provider.removeprefix("recorded:"),
        finish_reason=reply.finish_reason,
    )
