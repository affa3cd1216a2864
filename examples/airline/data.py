"""Reads the public recordings and the world they were made in. Judges nothing and runs nothing.

Both are JSON, mostly packed with zstd, and stay outside the repository: `LOCKSTEP_DATA` names their directory, which is
`../shared/data` beside the repository by default.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
DEFAULT_DIRECTORY = "../shared/data"
RECORDINGS = "tau1_airline_gpt-4o.jsonl.zst"
WORLDS = "worlds_tau1.json.zst"
WORLD = "tau1_airline_at_7362a17"
ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"

Json = dict[str, Any]


class DataError(Exception):
    """A file cannot be used; the text is one sentence that names it and says what to do."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Call:
    """A tool call as the model asked for it."""

    id: str
    name: str
    arguments: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class AssistantMessage:
    text: str
    calls: tuple[Call, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class ToolMessage:
    """What a call was answered with."""

    call_id: str
    name: str
    text: str


Message = AssistantMessage | ToolMessage


@dataclass(frozen=True, kw_only=True, slots=True)
class Turn:
    """What a user said, and everything until the user spoke again: one run of the agent.

    The messages may end with a tool's: the model was then not asked again.
    """

    user: str
    messages: tuple[Message, ...]

    def plain(self) -> Iterator[Json]:
        """Yield the messages as objects of plain values."""
        yield {"role": "user", "content": self.user}
        for message in self.messages:
            if isinstance(message, AssistantMessage):
                calls = [{"id": c.id, "name": c.name, "args": dict(c.arguments)} for c in message.calls]
                yield {"role": "assistant", "content": message.text, "tool_calls": calls}
            else:
                name = message.name or "tool"
                yield {"role": "tool", "content": message.text, "tool_call_id": message.call_id, "name": name}


@dataclass(frozen=True, kw_only=True, slots=True)
class Recording:
    """One conversation. `final_state_changes` holds the records that differ from the database afterwards."""

    id: str
    model: str
    domain: str
    policy: str
    turns: tuple[Turn, ...]
    final_state_changes: Mapping[str, Mapping[str, Json]]
    labels: Mapping[str, Any]
    """What the data says about calls, by their place in the conversation from 0."""

    def exchanges(self) -> Iterator[tuple[Call, str]]:
        """Yield every answered call with its answer, in the order asked."""
        return ((call, answer) for call, answer in self.calls() if answer is not None)

    def calls(self) -> Iterator[tuple[Call, str | None]]:
        """Yield every call with its answer, in the order asked. Models reuse ids: the next answer counts."""
        for turn in self.turns:
            answers = [message for message in turn.messages if isinstance(message, ToolMessage)]
            for message in turn.messages:
                for call in message.calls if isinstance(message, AssistantMessage) else ():
                    answer = next((each for each in answers if each.call_id == call.id), None)
                    if answer is not None:
                        answers.remove(answer)
                    yield call, None if answer is None else answer.text

    def plain(self) -> list[Json]:
        """The conversation as `lockstep.model.recorded.from_messages` reads it."""
        return [message for turn in self.turns for message in turn.plain()]


@dataclass(frozen=True, kw_only=True, slots=True)
class World:
    """`database` maps collection to id to record; `tool_schemas` are name, description and parameters of each tool."""

    database: Mapping[str, Mapping[str, Json]]
    tool_schemas: tuple[Json, ...]
    policy: str


def data_directory() -> Path:
    """Return where the data is looked for; it need not exist."""
    return REPOSITORY / os.environ.get("LOCKSTEP_DATA", DEFAULT_DIRECTORY)


def load_world(path: str | Path, name: str = WORLD) -> World:
    """Read one world from a JSON file of several, or of that one alone.

    Raises:
        DataError: the file is missing, unreadable or holds no such world.
    """
    try:
        content = json.loads(read_text(path))
    except ValueError as error:
        raise DataError(f"{path} is not JSON ({error}); fetch it again.") from error
    try:
        world = content.get(name, content)
        database = world["database"]
        missing = {"flights", "reservations", "users"} - database.keys()
        if missing:
            raise DataError(f"The database in {path} has no {' and no '.join(sorted(missing))}; is it another world's?")
        return World(database=database, tool_schemas=tuple(world["tool_schemas"]), policy=world["policy"])
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path} holds no world {name!r} with database, tool_schemas and policy.") from error


def load_recordings(path: str | Path, limit: int | None = None) -> list[Recording]:
    """Read conversations, one JSON object a line; the first `limit` of them if one is given.

    Raises:
        DataError: the file is missing, unreadable or empty, or a line is no such conversation; the line is named.
    """
    recordings: list[Recording] = []
    for number, line in enumerate(io.StringIO(read_text(path)), start=1):
        if limit is not None and len(recordings) >= limit:
            break
        if line.strip():
            recordings.append(_recording(line, f"{path}, line {number}"))
    if not recordings:
        raise DataError(f"{path} holds no conversation.")
    return recordings


def read_text(path: str | Path) -> str:
    """Return a file's text, unpacked when it is packed with zstd.

    Raises:
        DataError: it is missing or unreadable, or cannot be unpacked.
    """
    try:
        packed = Path(path).read_bytes()
    except FileNotFoundError:
        raise DataError(f"There is no file {path}; set LOCKSTEP_DATA to the directory that holds the data.") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from error
    plain = unpack(packed, path) if packed.startswith(ZSTD_MAGIC) else packed
    try:
        return plain.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text; fetch it again.") from error


def unpack(packed: bytes, path: str | Path) -> bytes:
    """Unpack zstd data with the `zstandard` package, or with the `zstd` command where that is not installed.

    Raises:
        DataError: neither is there, or the data is damaged.
    """
    try:
        import zstandard  # optional: the command does as well
    except ImportError:
        return _unpack_by_command(packed, path)
    plain = b""
    try:
        while packed:
            frame = zstandard.ZstdDecompressor().decompressobj()
            plain += frame.decompress(packed)
            if not frame.eof:
                raise DataError(f"{path} cannot be unpacked (it is cut off); fetch it again.")
            packed = frame.unused_data
    except zstandard.ZstdError as error:
        raise DataError(f"{path} cannot be unpacked ({error}); fetch it again.") from error
    return plain


def _unpack_by_command(packed: bytes, path: str | Path) -> bytes:
    command = shutil.which("zstd")
    if command is None:
        raise DataError(f"{path} is packed with zstd; install the Python package zstandard or the command zstd.")
    unpacking = subprocess.run([command, "-dcq"], input=packed, capture_output=True, check=False)
    if unpacking.returncode != 0:
        problem = unpacking.stderr.decode(errors="replace").strip()
        raise DataError(f"{path} cannot be unpacked ({problem}); fetch it again.")
    return unpacking.stdout


def _recording(line: str, where: str) -> Recording:
    try:
        record = json.loads(line)
        messages = record["messages"]
        policy, spoken = _split_policy(messages)
        answers = _answers(messages)
        return Recording(
            id=str(record.get("id", where)),
            model=str(record.get("model", "")),
            domain=str(record.get("domain", "")),
            policy=policy,
            turns=tuple(_turns(spoken, answers)),
            final_state_changes=record["final_state_changes"],
            labels=record.get("labels") or {},
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        problem = f"{error.args[0]!r} is missing" if isinstance(error, KeyError) else str(error)
        raise DataError(f"{where} is no recorded conversation: {problem}.") from error


def _split_policy(messages: list[Json]) -> tuple[str, list[Json]]:
    if messages and messages[0]["role"] == "system":
        return messages[0]["content"], messages[1:]
    return "", messages


def _answers(messages: list[Json]) -> dict[int, str]:
    """The answer to each call, by the call object's identity: models reuse ids, so the ids alone would not do."""
    waiting: dict[str, list[Json]] = {}
    answers: dict[int, str] = {}
    for message in messages:
        for call in message.get("tool_calls") or ():
            waiting.setdefault(call["id"], []).append(call)
        if message["role"] == "tool" and waiting.get(message["tool_call_id"]):
            answers[id(waiting[message["tool_call_id"]].pop(0))] = message.get("content") or ""
    return answers


def _turns(messages: list[Json], answers: Mapping[int, str]) -> Iterator[Turn]:
    """Yield a turn for each user message that was answered; the last, such as "###STOP###", often was not.

    What the assistant says before anybody spoke is left out; user messages in a row are one.
    """
    user: str | None = None
    replies: list[Message] = []
    for message in messages:
        if message["role"] == "user":
            said = message.get("content") or ""
            if user is not None and replies:
                yield Turn(user=user, messages=tuple(replies))
                user, replies = None, []
            user = said if user is None else f"{user}\n{said}"
        elif user is not None:
            replies.append(_message(message, answers))
        elif message.get("tool_calls"):
            raise ValueError("it calls a tool before the user has said anything")
    if user is not None and replies:
        yield Turn(user=user, messages=tuple(replies))


def _message(message: Json, answers: Mapping[int, str]) -> Message:
    if message["role"] == "tool":
        return ToolMessage(
            call_id=message["tool_call_id"], name=message.get("name", ""), text=message.get("content") or ""
        )
    if message["role"] != "assistant":
        raise ValueError(f"a message has the role {message['role']!r}")
    calls = tuple(_call(call, answers.get(id(call), "")) for call in message.get("tool_calls") or ())
    return AssistantMessage(text=message.get("content") or "", calls=calls)


def _call(call: Json, answer: str) -> Call:
    arguments = call["args"]
    if not isinstance(arguments, dict):
        raise TypeError(f"the arguments of call {call['id']} are no object")
    if call["name"] == "book_reservation":
        arguments = _as_booked(arguments, answer)
    return Call(id=call["id"], name=call["name"], arguments=arguments)


def _as_booked(arguments: Json, answer: str) -> Json:
    """Return a booking's arguments with the payments the model sent.

    Where the recordings were made, a reservation's payment history was the very list of the call's arguments, so what
    was charged or refunded later stands in the recorded arguments too. The answer shows how long the list was.
    """
    payments = arguments.get("payment_methods")
    try:
        booked = json.loads(answer)["payment_history"]
    except (ValueError, KeyError, TypeError):
        return arguments
    if isinstance(payments, list) and len(payments) > len(booked) and payments[: len(booked)] == booked:
        return {**arguments, "payment_methods": booked}
    return arguments
