"""A deterministic model: its replies stand in a file, with places that are filled in from the conversation.

A script is JSON Lines (one reply a line) or one JSON array of replies:

    {"script": 1, "per": "run"}
    {"say": "Let me look.", "call": {"name": "search_flights", "arguments": {"to": "SFO", "max_usd": 500}}}
    {"call": {"name": "book", "arguments": {"flight": "${search_flights.flights[0].id}"}}}
    {"say": "Booked ${book.flight} for ${book.price_usd} dollars. You asked: ${user}"}

- The header may be left out. `per` says where counting begins: `run` (default) starts the script anew at each user
  message, `session` goes on through all runs of a conversation.
- A line with `for_server` is no reply of the run: it is what the model says to the server of a tool that asks one
  (`sampling = "model"`), where the server's newest message has these words in it. The first that fits is taken.
- A reply is `say`, and `call` or `calls`, at least one of them; `usage` and `cost_usd` are optional (free by default).
- `arguments` may be a string: the raw text a model would have sent, JSON or not.
- `${tool.path[0].to}` is taken from the JSON of the latest result of `tool`, `${user}` is the latest user message.
  A string that is nothing but a placeholder takes the value's type; inside text the value is inserted as text.
  `$${` writes a plain `${`.

The position in the script is read off the prompt, so the model holds no state and a resumed run goes on where it was.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal

import msgspec

from lockstep.errors import ModelError
from lockstep.model.lines import UsageLine, amount, decode, numbered_lines, read_bytes
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
    Usage,
    UserMessage,
)
from lockstep.values import Json

VERSION = 1
PRICE_BOOK = "scripted"
_REMEDY = 'A script line is like {"say": "text"} or {"call": {"name": "tool", "arguments": {}}}.'
_PLACEHOLDER = re.compile(r"\$?\$\{([^{}]*)\}")
_STEP = re.compile(r"\.([^.\[\]]+)|\[(-?\d+)\]")

Per = Literal["run", "session"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ScriptedCall:
    name: str
    arguments: Json
    """Arguments with placeholders, or a string: the raw text to send."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ScriptedReply:
    say: str
    calls: tuple[ScriptedCall, ...]
    usage: Usage
    cost_usd: Decimal | None
    for_server: str | None = None
    """Of a reply to a server: words of what it asks."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Script:
    name: str
    """`scripted:<file stem>`."""
    per: Per
    replies: tuple[ScriptedReply, ...]
    to_servers: tuple[ScriptedReply, ...] = ()


class _Header(msgspec.Struct, forbid_unknown_fields=True):
    script: int
    per: Per = "run"


class _CallLine(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    arguments: dict[str, Any] | str = {}


class _Line(msgspec.Struct, forbid_unknown_fields=True):
    say: str = ""
    call: _CallLine | None = None
    calls: list[_CallLine] = []
    usage: UsageLine = msgspec.field(default_factory=UsageLine)
    for_server: str | None = None
    cost_usd: str | float | None = 0
    """`null` is a price nobody knows."""


def read_script(path: Path) -> Script:
    """Read a script from JSON Lines, or from a JSON array when the file begins with `[`.

    Raises:
        ModelError: the file cannot be read or is no script; names file and line.
    """
    data = read_bytes(path, what="script")
    lines = _entries(data, path)
    per: Per = "run"
    if lines and _is_header(lines[0][1]):
        where, line = lines.pop(0)
        header = decode(line, _Header, where=where, remedy='The header is like {"script": 1, "per": "run"}.')
        if header.script != VERSION:
            raise ModelError(
                f"{where}: the script has version {header.script}; this Lockstep reads version {VERSION}.",
                remedy="Write it in version 1 or update Lockstep.",
            )
        per = header.per
    said = [_reply(line, where) for where, line in lines]
    if not said:
        raise ModelError(f"The script {path} holds no reply.", remedy=_REMEDY)
    return Script(
        name=f"scripted:{path.stem}",
        per=per,
        replies=tuple(each for each in said if each.for_server is None),
        to_servers=tuple(each for each in said if each.for_server is not None),
    )


def _entries(data: bytes, path: Path) -> list[tuple[str, bytes]]:
    if data.lstrip().startswith(b"["):
        where = f"The script {path}"
        entries = decode(data, list[msgspec.Raw], where=where, remedy=_REMEDY)
        return [(f"{where}, entry {number}", bytes(entry)) for number, entry in enumerate(entries, start=1)]
    return [(f"The script {path}, line {number}", line) for number, line in numbered_lines(data)]


def _is_header(line: bytes) -> bool:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return False  # reported by the strict reading that follows
    return isinstance(value, dict) and "script" in value


def _reply(data: bytes, where: str) -> ScriptedReply:
    line = decode(data, _Line, where=where, remedy=_REMEDY)
    if line.call is not None and line.calls:
        raise ModelError(f"{where}: it has both `call` and `calls`.", remedy="Put all of them into `calls`.")
    calls = [line.call] if line.call is not None else line.calls
    if not calls and not line.say:
        raise ModelError(f"{where}: it neither says nor calls anything.", remedy=_REMEDY)
    if calls and line.for_server is not None:
        raise ModelError(f"{where}: it says something to a server and calls.", remedy="A server is told words alone.")
    return ScriptedReply(
        for_server=line.for_server,
        say=line.say,
        calls=tuple(ScriptedCall(name=call.name, arguments=call.arguments) for call in calls),
        usage=line.usage.usage(),
        cost_usd=amount(line.cost_usd, where=where, remedy="Write dollars, like 0.0125."),
    )


@dataclass(frozen=True, slots=True)
class ScriptedModel:
    """The model a script describes; the same prompt always brings the same reply."""

    script: Script

    @property
    def name(self) -> str:
        return self.script.name

    async def reply(self, prompt: Prompt, settings: Settings, *, on_text: OnText | None = None) -> Reply | Failure:
        """The reply at the prompt's position; `Failure` when the script has ended or a placeholder has no value."""
        if prompt.for_server:
            return self._to_server(prompt.messages)
        position = _position(prompt.messages, self.script.per)
        if position >= len(self.script.replies):
            return Failure(
                kind=FailureKind.RECORDING_ENDED,
                message=f"{self.name} has {len(self.script.replies)} replies and was asked for reply {position + 1}.",
            )
        try:
            reply = _fill(self.script.replies[position], prompt.messages, position)
        except _Unresolvable as error:
            return Failure(
                kind=FailureKind.BAD_REPLY, message=f"{self.name}, reply {position + 1}: ${{{error.name}}} {error}."
            )
        if on_text is not None and reply.text:
            on_text(reply.text)
        return reply

    def _to_server(self, messages: Sequence[Message]) -> Reply | Failure:
        asked = messages[-1].text
        for each in self.script.to_servers:
            if each.for_server is not None and each.for_server in asked:
                return _said(each.say, each)
        return Failure(
            kind=FailureKind.RECORDING_ENDED, message=f"{self.name} has no reply for a server that asks {asked!r:.100}."
        )


def _position(messages: Sequence[Message], per: Per) -> int:
    count = 0
    for message in messages:
        if isinstance(message, AssistantMessage):
            count += 1
        elif per == "run" and isinstance(message, UserMessage):
            count = 0
    return count


def _fill(scripted: ScriptedReply, messages: Sequence[Message], position: int) -> Reply:
    turn = sum(isinstance(message, AssistantMessage) for message in messages) + 1
    calls = tuple(
        AskedCall(
            provider_id=f"script_{turn}_{number}",  # counted over the conversation, so that ids do not repeat
            name=call.name,
            arguments=_arguments(call.arguments, messages),
        )
        for number, call in enumerate(scripted.calls, start=1)
    )
    return _said(_fill_text(scripted.say, messages), scripted, calls)


def _said(text: str, scripted: ScriptedReply, calls: tuple[AskedCall, ...] = ()) -> Reply:
    return Reply(
        text=text,
        calls=calls,
        usage=scripted.usage,
        cost_usd=scripted.cost_usd,
        price_book=PRICE_BOOK,
        model="scripted",
        provider="scripted",
        finish_reason="tool_call" if calls else "stop",
    )


def _arguments(arguments: Json, messages: Sequence[Message]) -> str:
    if isinstance(arguments, str):
        return _fill_text(arguments, messages)
    return json.dumps(_fill_json(arguments, messages), ensure_ascii=False)


def _fill_json(value: Json, messages: Sequence[Message]) -> Json:
    if isinstance(value, str):
        whole = _PLACEHOLDER.fullmatch(value)
        if whole is not None and not value.startswith("$$"):
            return _resolve(whole.group(1), messages)
        return _fill_text(value, messages)
    if isinstance(value, dict):
        return {key: _fill_json(item, messages) for key, item in value.items()}
    if isinstance(value, list):
        return [_fill_json(item, messages) for item in value]
    return value


def _fill_text(text: str, messages: Sequence[Message]) -> str:
    def text_of(match: re.Match[str]) -> str:
        if match.group().startswith("$$"):
            return match.group()[1:]
        value = _resolve(match.group(1), messages)
        return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)

    return _PLACEHOLDER.sub(text_of, text)


class _Unresolvable(Exception):
    """A placeholder without a value; never leaves this module."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(reason)
        self.name = name


def _resolve(name: str, messages: Sequence[Message]) -> Json:
    if name == "user":
        for message in reversed(messages):
            if isinstance(message, UserMessage):
                return message.text
        raise _Unresolvable(name, "has no value: there is no user message")
    result, path = _latest_result(name, messages)
    if not path:
        return _parsed(result.text)[1]
    is_json, value = _parsed(result.text)
    if not is_json:
        raise _Unresolvable(name, f"has no value: the latest result of {result.name} is not JSON")
    try:
        return _follow(value, path)
    except LookupError as error:
        failed = " (an error)" if result.is_error else ""
        raise _Unresolvable(name, f"has no value: {error.args[0]} of {result.name}{failed}") from error


def _latest_result(name: str, messages: Sequence[Message]) -> tuple[ToolMessage, str]:
    """The latest result of the tool `name` begins with, and the path behind it."""
    # Tool names may hold dots themselves, so the longest name wins.
    latest: ToolMessage | None = None
    for message in messages:
        if not isinstance(message, ToolMessage) or not name.startswith(message.name):
            continue
        if name[len(message.name) :][:1] in ("", ".", "[") and (
            latest is None or len(message.name) >= len(latest.name)
        ):
            latest = message
    if latest is None:
        raise _Unresolvable(name, "has no value: no such tool has answered yet")
    return latest, name[len(latest.name) :]


def _parsed(text: str) -> tuple[bool, Json]:
    """Whether `text` is JSON, and its value; text that is not JSON is its own value."""
    try:
        value: Json = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        return False, text
    return True, value


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _follow(value: Json, path: str) -> Json:
    """Walk `.key` and `[index]` into a value.

    Raises:
        LookupError: a step leads nowhere; its first argument says which.
    """
    at = 0
    while at < len(path):
        step = _STEP.match(path, at)
        if step is None:
            raise LookupError(f"{path[at:]!r} is not a path into the result")
        key, index = step.groups()
        if key is not None and isinstance(value, dict) and key in value:
            value = value[key]
        elif index is not None and isinstance(value, list) and -len(value) <= int(index) < len(value):
            value = value[int(index)]
        else:
            raise LookupError(f"nothing at {path[: step.end()]!r} in the latest result")
        at = step.end()
    return value
