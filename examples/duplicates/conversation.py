"""One recorded conversation, driven again: its model says what it said, its tools answer what they answered.

The driver, gate and journal are the real ones. What a caught repeat means for the rest of the conversation: `_Names`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from data import AssistantMessage, Recording, Turn

from lockstep.agent.locked import LockedAgent
from lockstep.gate.gate import Gate
from lockstep.gate.permit import Permit
from lockstep.gate.policy import Policies
from lockstep.journal.events import EffectRetried, RunStarted
from lockstep.journal.port import Journal
from lockstep.kernel.state import CallState
from lockstep.model.port import (
    AskedCall,
    Failure,
    FailureKind,
    OnText,
    Prompt,
    Reply,
    Settings,
    ToolMessage,
)
from lockstep.model.port import (
    AssistantMessage as Said,
)
from lockstep.model.recorded import RecordedModel, from_messages
from lockstep.runtime.driver import Driver
from lockstep.tools.port import Ask, Outcome, PermittedCall
from lockstep.values import RunId, now_ms

Recover = Callable[[str, Mapping[str, Any]], str | None]
"""What a read answers once the service is there again."""

_NOTE = "\n\n[This call was already made"
_WORD = re.compile(r"[A-Za-z0-9_#-]+")


@dataclass(frozen=True, kw_only=True, slots=True)
class Replayed:
    """A conversation driven again. Everything by the call's place in it, from 0."""

    recording: Recording
    calls: tuple[CallState, ...]
    attempts: tuple[int, ...]
    """How often each call ran."""
    joined_to: Mapping[int, int]
    """A call that was not run, and the one whose receipt it was given."""
    retried: Mapping[int, int]
    """How many attempts infrastructure made again."""


async def replay(
    session: str, recording: Recording, agent: LockedAgent, journal: Journal, recover: Recover | None = None
) -> Replayed:
    """Drive a conversation as a session: one run for each user message.

    With `recover`, a call that the data names as an injected fault fails once in a way that may pass.
    """
    world = _World(recording, recover)
    model = _Model(recording)
    driver = Driver(
        agent=agent,
        settings=Settings(),
        journal=journal,
        gate=Gate(agent, Policies.parse(agent.policies), journal),
        model=model,
        tools=world,
        sleep=_at_once,
    )
    calls: list[CallState] = []
    retried: dict[int, int] = {}
    for turn in recording.turns:
        run = await driver.start(_started(agent, session, recording.model, turn))
        world.begin(run, len(calls))
        model.until += replies(turn)
        state = await driver.advance(run)
        for item in await journal.read(run):
            if isinstance(item.event, EffectRetried):
                place = world.place(run, item.event.call)
                retried[place] = retried.get(place, 0) + 1
        calls += state.all_calls
    joined = {n: world.place(*call.duplicate_of.split("/")) for n, call in enumerate(calls) if call.duplicate_of}
    attempts = tuple(world.attempts.get(n, 0) for n in range(len(calls)))
    return Replayed(recording=recording, calls=tuple(calls), attempts=attempts, joined_to=joined, retried=retried)


def _started(agent: LockedAgent, session: str, model: str, turn: Turn) -> RunStarted:
    return RunStarted(
        agent=agent.name,
        lock=agent.digest,
        lock_text="{}",
        directory="",
        principal="customer",
        session=session,
        input=turn.user,
        unlocked=True,
        drift=("tools, model: as recorded",),
        model=f"recorded:{model}",
    )


async def _at_once(_: float) -> None:
    return


def replies(turn: Turn) -> int:
    """How many replies of the model a turn holds: assistant messages in a row are one."""
    spoken = [isinstance(message, AssistantMessage) for message in turn.messages]
    return sum(now and not before for before, now in zip([False, *spoken], spoken, strict=False))


class _World:
    """A tool host that answers each call as it was answered when it was recorded."""

    def __init__(self, recording: Recording, recover: Recover | None) -> None:
        self._answers = [answer for _, answer in recording.calls()]
        self._failed = frozenset(recording.labels.get("failed_calls", ()))
        self._faults = frozenset(recording.labels.get("injected_fault_calls", ()))
        self._recover = recover
        self._steps: dict[str, list[int]] = {}
        self._turns = iter(recording.turns)
        self.attempts: dict[int, int] = {}

    def begin(self, run: RunId, place: int) -> None:
        """The next turn begins with this run; its first call is the conversation's at `place`."""
        sizes: list[int] = []
        speaking = False
        for message in next(self._turns).messages:
            if isinstance(message, AssistantMessage):
                sizes = [*sizes[:-1], sizes[-1] + len(message.calls)] if speaking else [*sizes, len(message.calls)]
            speaking = isinstance(message, AssistantMessage)
        self._steps[run] = [place + sum(sizes[:step]) for step in range(len(sizes))]

    def place(self, run: str, call: str) -> int:
        """Where a call stands in the conversation, from 0."""
        step, number = call.split(".")
        return self._steps[run][int(step) - 1] + int(number)

    async def call(
        self,
        call: PermittedCall,
        permit: Permit,
        on_overdue: Callable[[], None] | None = None,
        ask: Ask | None = None,
    ) -> Outcome:
        permit.redeem(call.digest, now_ms())
        place = self.place(call.run, call.id)
        self.attempts[place] = self.attempts.get(place, 0) + 1
        text = self._answers[place]
        if text is None:
            return Outcome(kind="tool_error", text="The recording has no answer to this call.")
        if place in self._faults and self._recover is not None:
            if self.attempts[place] == 1:
                return Outcome(kind="tool_error", text=text, transient=True)
            text = self._recover(call.tool.name, call.arguments)
            return Outcome(kind="ok", text=text) if text is not None else Outcome(kind="tool_error", text="still 503")
        failed = place in self._failed or place in self._faults
        return Outcome(kind="tool_error" if failed else "ok", text=text)

    async def end(self, run: RunId) -> None:
        """Nothing is kept for a run."""

    async def sweep(self) -> None:
        """Nothing outlives the process."""


class _Model:
    """The recorded model. It says no more in a run than it said until the user spoke again."""

    def __init__(self, recording: Recording) -> None:
        self._recorded = RecordedModel(recording=from_messages(recording.plain(), model=recording.model), checked=False)
        self._names = _Names(recording)
        self.name = self._recorded.name
        self.until = 0

    async def reply(self, prompt: Prompt, settings: Settings, *, on_text: OnText | None = None) -> Reply | Failure:
        said = sum(isinstance(message, Said) for message in prompt.messages)
        if said >= self.until:
            return Failure(kind=FailureKind.RECORDING_ENDED, message="The recorded model was not asked again here.")
        self._names.hear(prompt)
        answer = await self._recorded.reply(prompt, settings, on_text=on_text)
        return self._names.put(answer) if isinstance(answer, Reply) else answer


@dataclass(slots=True)
class _Names:
    """What a caught repeat is called. The recorded repeat made a second reservation, and the model goes on to speak of
    that one; here it was given the first, so where it says the second's name, the first's is put."""

    recording: Recording
    names: dict[str, str] = field(default_factory=dict)
    heard: int = 0

    def hear(self, prompt: Prompt) -> None:
        """Compare what the newest calls were answered with what the recorded model was told."""
        told = [message for message in prompt.messages if isinstance(message, ToolMessage)]
        recorded = [answer for _, answer in self.recording.calls()]
        for place in range(self.heard, len(told)):
            text, _, note = told[place].text.partition(_NOTE)
            then = recorded[place]
            if note and then is not None and text != then:
                self.names |= renamed(then, text)
        self.heard = len(told)

    def put(self, reply: Reply) -> Reply:
        if not self.names:
            return reply
        return replace(reply, calls=tuple(self._renamed(call) for call in reply.calls))

    def _renamed(self, call: AskedCall) -> AskedCall:
        return replace(call, arguments=json.dumps(self._value(json.loads(call.arguments)), ensure_ascii=False))

    def _value(self, value: Any) -> Any:
        if isinstance(value, dict):
            return {key: self._value(each) for key, each in value.items()}
        if isinstance(value, list):
            return [self._value(each) for each in value]
        return self.names.get(value, value) if isinstance(value, str) else value


def renamed(then: str, now: str) -> dict[str, str]:
    """The names in which two answers to the same request differ: fields of two records, or words of two sentences."""
    try:
        records = json.loads(then), json.loads(now)
    except ValueError:
        words = _WORD.findall(then), _WORD.findall(now)
        return dict(zip(*words, strict=True)) if len(words[0]) == len(words[1]) else {}
    if not all(isinstance(record, dict) for record in records):
        return {}
    before, after = records
    both = {key: (before[key], after[key]) for key in before if key in after}
    return {a: b for a, b in both.values() if isinstance(a, str) and isinstance(b, str) and a != b}
