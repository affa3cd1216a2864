"""A suite's agent, locked under one of the policies that are compared, and a record driven through it."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from judged import Judged
from records import Record
from world import SuiteTools, World

from lockstep.agent.load import load_spec
from lockstep.agent.lock import Lock, to_text
from lockstep.agent.resolve import resolve
from lockstep.gate.approvals import Terms
from lockstep.journal.events import RunStarted
from lockstep.journal.port import Journal
from lockstep.kernel.state import Phase, State, Status
from lockstep.model.recorded import RecordedModel, from_messages
from lockstep.runtime.answers import Answer, answer_approval
from lockstep.wiring import running
from lockstep.wiring.stores import Store

AGENTS = Path(__file__).resolve().parent / "agents"


@dataclass(frozen=True, kw_only=True, slots=True)
class Policy:
    """What is compared: the packs, and further Cedar files of the agents."""

    title: str
    packs: tuple[str, ...] = ()
    files: tuple[str, ...] = ()


NOBODY = Answer(given=False, by="nobody", because="nobody is there")

POLICIES: Mapping[str, Policy] = {
    "none": Policy(title="allow everything"),
    "taint": Policy(title="destination taint alone", files=("taint.cedar",)),
    "pack": Policy(title="pack `injection`", packs=("injection",)),
    "strict": Policy(title="pack `injection-strict`", packs=("injection-strict",)),
}


class Suite:
    """One world of a suite and the agent that acts in it, one record at a time."""

    def __init__(self, name: str, policy: str, store: Store, journal: Journal) -> None:
        self._name = name
        self._policy = POLICIES[policy]
        self._store = store
        self._journal = journal
        self._locks: dict[str, Lock] = {}

    @contextlib.asynccontextmanager
    async def running(self, python: Path) -> AsyncIterator[None]:
        """The suite's server runs inside."""
        self._world = await World.start(python, self._name)
        try:
            yield
        finally:
            await self._world.close()

    async def replay(self, record: Record) -> Judged:
        """Drive one record to its end; every question is answered with a refusal."""
        await self._world.begin(record)
        lock = self._lock(record.system)
        conversation = from_messages(await self._plain(record), model=f"openai:{record.model}", agent=self._name)
        model = RecordedModel(recording=conversation, checked=False)  # what was refused reads otherwise
        driver = running.open_driver(
            lock,
            directory=AGENTS / self._name,
            journal=self._journal,
            tools=SuiteTools(self._world),
            code=self._store.code(),
            model=model,
        )
        state = await driver.advance(await driver.start(_started(lock, record, model.name)))
        asked, terms = 0, Terms.of(driver.agent)
        while state.status is Status.SUSPENDED:
            call = next(call for call in state.calls if call.phase is Phase.WAITING)
            asked += 1
            await answer_approval(self._journal, call.approval, NOBODY, lambda _: terms)
            state = await driver.resume(state.run, by="nobody")
        found = await self._world.check(record)
        return Judged(
            record=record,
            utility=found["utility"] is True,
            attacked=found["attack"] is True,
            words=found["words"] is True,
            asked=asked,
            calls=state.all_calls,
            ended=_ended(state),
        )

    async def _plain(self, record: Record) -> list[dict[str, Any]]:
        """The conversation as `from_messages` reads it."""
        keys = ("role", "content", "tool_calls", "tool_call_id", "name")
        messages = [{key: each[key] for key in keys if each.get(key) is not None} for each in record.messages]
        for message in messages:
            if "tool_calls" in message:
                message["tool_calls"] = [await self._call(call) for call in message["tool_calls"]]
        return messages

    async def _call(self, call: Mapping[str, Any]) -> dict[str, Any]:
        arguments = call["args"]
        readable = isinstance(arguments, dict)
        return {**call, "args": await self._world.read(call["name"], arguments) if readable else arguments}

    def _lock(self, system: str) -> Lock:
        """The agent with the system message that the recorded model was given as its prompt."""
        if system not in self._locks:
            self._locks[system] = self._resolve(system)
        return self._locks[system]

    def _resolve(self, system: str) -> Lock:
        directory = self._store.directory / "agents" / self._name
        directory.mkdir(parents=True, exist_ok=True)
        for source in (AGENTS / self._name / "agent.toml", *AGENTS.parent.glob("*.cedar")):
            (directory / source.name).write_bytes(source.read_bytes())
        (directory / "prompt.md").write_text(system, encoding="utf-8")
        spec = load_spec(directory)
        spec = spec.model_copy(update={"policy": self._compared(spec.policy)})
        definitions = list(self._world.definitions.values())
        return resolve(directory, spec, dict.fromkeys(range(len(spec.tools)), definitions))

    def _compared(self, section: Any) -> Any:
        return section.model_copy(update={"files": (*section.files, *self._policy.files), "packs": self._policy.packs})


def _started(lock: Lock, record: Record, model: str) -> RunStarted:
    return RunStarted(
        agent=lock.agent,
        lock=lock.digest,
        lock_text=to_text(lock),
        directory=str(AGENTS / lock.agent),
        principal="user",
        session=record.id,
        input=record.user,
        unlocked=True,
        drift=("model: settings (recorded replies in place of the provider)",),
        model=model,
    )


def _ended(state: State) -> str:
    """Why a run stopped, where that is not the recording's own end; empty otherwise."""
    if state.stop_reason in ("completed", "recording_ended", "empty_reply"):
        return ""
    return f"{state.stop_reason}: {state.message}"
