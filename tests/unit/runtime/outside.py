"""A world outside that can lose replies, act late and be slow, and a process that can die at any step beside it.

Everything that may go either way is drawn by `Chance`, so a failing history can be made small and told again.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, TypeVar

from inprocess import ALLOW_ALL, call, reply

from lockstep.agent.from_lock import locked_agent
from lockstep.agent.lock import Lock, Part, to_text
from lockstep.agent.locked import LockedAgent
from lockstep.gate.permit import Permit
from lockstep.journal.port import Entry, Journal
from lockstep.model.port import AskedCall, Failure, FailureKind, OnText, Prompt, Reply, Settings
from lockstep.tools.inputs import read_request, read_result
from lockstep.tools.port import Ask, Outcome, PermittedCall
from lockstep.values import Effect, JsonObject, RunId, digest_json, sha256

T = TypeVar("T")
SETTLES_S = 5
"""How long after its tool has ended a request may still be carried out, as the probe's section says."""
WINDOW_S = 20
POLICY = ALLOW_ALL + (
    '@ask("Book it?") forbid (principal, action == Action::"book", resource)'
    ' when { context.arguments.flight == "BA2" };'
)


class Chance(Protocol):
    """Where whatever may go either way is decided. The first option is the plain one."""

    def of(self, what: str, *options: T) -> T: ...


class Killed(Exception):
    """The process died here."""


class Clock:
    """The only time there is."""

    def __init__(self) -> None:
        self.now = 1_800_000_000_000

    def __call__(self) -> int:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.now += int(seconds * 1000)


# --- the agent ---


def _tool(name: str, effect: Effect, *arguments: str, **more: Any) -> JsonObject:
    schema: JsonObject = {
        "type": "object",
        "properties": {each: {"type": "string"} for each in arguments},
        "required": list(arguments),
        "additionalProperties": False,
    }
    return {
        "definition": {"name": name, "description": f"{name} it", "inputSchema": schema},
        "effect": effect.value,
        "isolation": "none",
        "egress": [],
        "env": {},
        "limits": {},
        "timeout_s": 5.0,
        "fee_usd": "0",
        "source": "python:tools.py",
        "code": {},
        **more,
    }


def _freed(by: str, argument: str) -> JsonObject:
    return {"tool": by, "where": {argument: "result:/id"}}


_ELSEWHERE: JsonObject = {"url": "http://127.0.0.1:1/mcp", "task_s": 60.0}
_PROBE: JsonObject = {
    "tool": "find",
    "arguments": {"key": "key"},
    "found": "/found",
    "settles_after_s": SETTLES_S,
}
TOOLS: Sequence[JsonObject] = (
    _tool("look", Effect.READ, asks=["elicitation", "sampling"], sampling="model", **_ELSEWHERE),
    _tool("find", Effect.READ, "key"),
    _tool("note", Effect.IDEMPOTENT, "text"),
    _tool(
        "book",
        Effect.ONCE,
        "flight",
        "seat",
        dedupe_on=["/flight"],
        asks=["elicitation"],
        **_ELSEWHERE,
        repeats={"probe": _PROBE, "again": True, "released_by": [_freed("cancel", "/booking")], "late_s": 5.0},
    ),
    _tool("cancel", Effect.IDEMPOTENT, "booking"),
    _tool("send", Effect.ONCE, "text", repeats={"window_s": float(WINDOW_S), "late_s": 0.0}),
    _tool(
        "pay",
        Effect.KEYED,
        "to",
        dedupe_on=["/to"],
        repeats={"released_by": [_freed("refund", "/payment")]},
        asks=["elicitation", "sampling"],
        sampling="model",
        **_ELSEWHERE,
    ),
    _tool("refund", Effect.IDEMPOTENT, "payment"),
    _tool("tip", Effect.KEYED, "to", repeats={"window_s": float(WINDOW_S)}),
    _tool("give", Effect.KEYED, "to", repeats={"scope": "none"}),
)
ONCE_PER_KEY = ("book", "send", "pay", "tip")
MADE_ONCE_PER_CALL = (*ONCE_PER_KEY, "give")


def _value(value: JsonObject) -> Part:
    return Part(sha256=digest_json(value), value=value)


def _text(text: str) -> Part:
    return Part(sha256=sha256(text.encode()), text=text)


def _lock() -> Lock:
    budget: JsonObject = {
        "steps": 4,
        "calls": 12,
        "wall_s": 100_000,
        "malformed": 2,
        "model_retries": 2,
        "approval_expires_s": 600,
    }
    parts: Mapping[str, Mapping[str, Part]] = {
        "model": {"settings": _value({"name": "scripted:script.jsonl"})},
        "prompt": {"prompt.md": _text("Be careful.")},
        "tools": {
            "budget": _value(budget),
            "policy policy.cedar": _text(POLICY),
            **{f"tool {each['definition']['name']}": _value(each) for each in TOOLS},  # type: ignore[call-overload,index]
        },
        "memory": {"schema": _value({"schema": 1, "window_runs": 2})},
    }
    return Lock(agent="traveller", parts=parts)


LOCK = _lock()
LOCK_TEXT = to_text(LOCK)
AGENT: LockedAgent = locked_agent(LOCK)


# --- the world ---


@dataclass(kw_only=True)
class Done:
    """Something that was really done outside."""

    id: str
    tool: str
    what: str
    """What of its arguments makes it this thing: the flight, the payee, the text."""
    key: str
    call: str
    """`run/call` of the first request for it."""
    at: int
    """Its place in the order of everything that was done."""
    undone_at: int | None = None

    @property
    def result(self) -> str:
        return json.dumps({"id": self.id})


@dataclass(kw_only=True)
class Task:
    """A call that went on as a task. `ended`: it will not be carried out any more."""

    item: PermittedCall
    text: str | None = None
    ended: bool = False


@dataclass(kw_only=True)
class World:
    """What was done, requests that are still on their way, and tasks by name."""

    clock: Clock
    done: list[Done] = field(default_factory=list)
    notes: set[str] = field(default_factory=set)
    on_their_way: list[tuple[int, PermittedCall]] = field(default_factory=list)
    tasks: dict[str, Task] = field(default_factory=dict)
    order: int = 0

    def end_tasks_of(self, call_id: str) -> None:
        """Whoever says what became of a call has its task ended first."""
        for task in self.tasks.values():
            if f"{task.item.run}/{task.item.id}" == call_id:
                task.ended = True

    def catch_up(self) -> None:
        """Carry out what was on its way and has arrived by now."""
        arrived = [item for due, item in self.on_their_way if due <= self.clock.now]
        self.on_their_way = [each for each in self.on_their_way if each[0] > self.clock.now]
        for item in arrived:
            self.carry_out(item)

    def carry_out(self, item: PermittedCall) -> str | None:
        """Do what is asked for; None where there is nothing to do it to. A keyed service knows its keys."""
        self.order += 1
        name, arguments = item.tool.name, item.arguments
        if name == "note":
            self.notes.add(str(arguments["text"]))
            return "noted"
        if name in ("cancel", "refund"):
            return self._undo(str(next(iter(arguments.values()))))
        if item.tool.effect is Effect.KEYED:
            for each in self.done:
                if each.key == item.key:
                    return each.result
            self.on_their_way = [each for each in self.on_their_way if each[1].key != item.key]
        made = Done(
            id=f"{name}{len(self.done)}",
            tool=name,
            what=_thing(name, arguments),
            key=item.key,
            call=f"{item.run}/{item.id}",
            at=self.order,
        )
        self.done.append(made)
        return made.result

    def _undo(self, named: str) -> str | None:
        for each in self.done:
            if each.id == named:
                each.undone_at = each.undone_at or self.order
                return "undone"
        return None

    def by(self, call_id: str) -> list[Done]:
        """What a call (`run/call`) did."""
        return [each for each in self.done if each.call == call_id]

    def answer(self, item: PermittedCall) -> str:
        """What a read is told."""
        if item.tool.name == "look":
            return json.dumps([each.id for each in self.done if each.undone_at is None])
        found = [each.id for each in self.done if each.key == item.arguments["key"] and each.undone_at is None]
        return json.dumps({"found": found})


def _thing(name: str, arguments: JsonObject) -> str:
    told = {"book": "flight", "pay": "to", "tip": "to", "give": "to", "send": "text"}
    value = str(arguments[told[name]])
    return value.casefold().strip() if AGENT.tools[name].dedupe_on else value


# --- a process ---


class Life:
    """One life of a process: it dies at one of its steps, or at none."""

    def __init__(self, dies_at: int | None) -> None:
        self._left = dies_at

    def step(self) -> None:
        """Something between which and the next the process may die."""
        if self._left is not None:
            if self._left == 0:
                raise Killed
            self._left -= 1


class Mortal:
    """A journal in whose appends the process may die, before they are durable or after."""

    def __init__(self, journal: Journal, life: Life) -> None:
        self._journal = journal
        self._life = life

    async def append(self, run: RunId, first_seq: int, entries: Sequence[Entry]) -> None:
        self._life.step()
        await self._journal.append(run, first_seq, entries)
        self._life.step()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._journal, name)


class Host:
    """A tool host in front of the world: it spends permits, loses replies, is late, and dies with its process."""

    def __init__(self, world: World, chance: Chance, ran: Counter[str]) -> None:
        self._world = world
        self._chance = chance
        self.life = Life(None)
        self.ran = ran
        """Requests by `run/call`."""

    async def call(
        self,
        item: PermittedCall,
        permit: Permit,
        on_overdue: Callable[[], None] | None = None,
        ask: Ask | None = None,
    ) -> Outcome:
        clock = self._world.clock
        self.life.step()
        permit.redeem(item.digest, clock.now)
        if item.round is not None and item.round.task:
            outcome = self._of_task(item, item.round.task)
            self.life.step()
            return outcome
        self.ran[f"{item.run}/{item.id}#{_round(item)}"] += 1
        assert item.round is None or item.round.responses in (ANSWERS, {"m": THOUGHT}, {**ANSWERS, "m": THOUGHT})
        clock.now += self._chance.of("takes", 1, 400, 6000)
        self._world.catch_up()
        fates = _READ if item.tool.effect is Effect.READ else _WRITE
        if item.tool.repeats.late_s and on_overdue is not None:
            fates = (*fates, "late", "late and lost", "late and nothing", "late and on its way")
        if item.tool.asks:
            fates = (*fates, "asks", "acts and asks")
        if item.tasks is not None:
            fates = (*fates, "task", "task", *(["late and task"] * ("late" in fates)))
        if item.tool.samples:
            fates = (*fates, "asks a model", "asks both", "acts and asks a model")
        if ask is not None and self._chance.of("asks meanwhile", False, False, True):
            assert await ask(read_request(_FORM, item.tool.asks)) == {"request": {"action": "cancel"}}
        if ask is not None and item.tool.samples and self._chance.of("asks a model meanwhile", False, False, True):
            assert await ask(read_request(_think(item), item.may_ask)) in ({"request": THOUGHT}, None)
        fate = self._chance.of(f"fate of {item.tool.name} {item.id}", *fates)
        outcome = _asks(item, fate) if fate.startswith("asks") else await self._meets(item, fate, on_overdue)
        self.life.step()
        return outcome

    async def _meets(self, item: PermittedCall, fate: str, on_overdue: Callable[[], None] | None) -> Outcome:
        world, read = self._world, item.tool.effect is Effect.READ
        if fate.startswith("late"):
            await self._is_late(on_overdue)
        if fate.endswith("task"):
            return await self._becomes_task(item)
        match fate:
            case "garbled":
                return Outcome(kind="ok", text="<html>")
            case "refused":
                return Outcome(kind="tool_error", text="no")
            case "busy":
                return Outcome(kind="sandbox_busy", text="no room", transient=True)
            case "lost" | "late and nothing":
                return _lost()
            case "lost on its way" | "late and on its way":
                due = world.clock.now + self._chance.of("arrives after", 1000, 3000, SETTLES_S * 1000 - 1)
                world.on_their_way.append((due, item))
                return _lost()
        text = world.answer(item) if read else world.carry_out(item)
        self.life.step()
        if text is None:
            return Outcome(kind="tool_error", text="there is no such thing")
        if fate in ("done and lost", "late and lost"):
            return _lost()
        if fate.startswith("acts and asks"):
            return replace(_asks(item, fate.removeprefix("acts and ")), acted=not read)
        if fate == "unusable":
            return Outcome(kind="result_unusable", text="done, but what it said is lost")
        return Outcome(kind="ok", text=text)

    async def _is_late(self, on_overdue: Callable[[], None] | None) -> None:
        assert on_overdue is not None
        on_overdue()
        for _ in range(self._chance.of("is waited for", 0, 30)):
            await asyncio.sleep(0.0001)  # gives the driver time to record the doubt
        self.life.step()
        self._world.clock.now += 3000

    async def _becomes_task(self, item: PermittedCall) -> Outcome:
        assert item.tasks is not None
        name = f"task{len(self._world.tasks)}"
        self._world.tasks[name] = Task(item=item)
        self.life.step()
        await item.tasks.begun(name)
        self.life.step()
        return self._of_task(item, name)

    def _of_task(self, item: PermittedCall, name: str) -> Outcome:
        """What is learnt of a task, which may have been carried out meanwhile, or is now, or never."""
        world, task = self._world, self._world.tasks[name]
        assert (task.item.run, task.item.id) == (item.run, item.id)
        world.clock.now += self._chance.of("is asked after for", 1, 400, 70_000)
        answered = bool(item.round and item.round.responses)
        fate = self._chance.of(f"task of {item.tool.name} {item.id}", *_TASK, *(["asks"] * (not answered)))
        if fate.startswith("done") and task.text is None and not task.ended:
            read = item.tool.effect is Effect.READ
            task.text = world.answer(task.item) if read else world.carry_out(task.item)
        if fate == "asks" and task.text is None:
            return Outcome(
                kind="input_required",
                text="well?",
                asked=read_result({"inputRequests": {"well": _FORM}}, item.tool.asks),
            )
        if fate == "done" and task.text is not None:
            return Outcome(kind="ok", text=task.text)
        task.ended = task.ended or fate in ("failed", "overdue")
        again = fate in ("unheard", "done and unheard")
        return Outcome(
            kind="task_lost", text=fate, unknown=True, task_open=again, heard=self._chance.of("heard", True, False)
        )

    async def end(self, run: RunId) -> None:
        return

    async def sweep(self) -> None:
        return


_TASK = ("done", "done", "unheard", "done and unheard", "lost", "failed", "overdue", "done and lost")
_READ = ("ok", "refused", "busy", "garbled", "lost")
_WRITE = ("ok", "ok", "refused", "busy", "lost", "done and lost", "lost on its way", "unusable")


def _lost() -> Outcome:
    return Outcome(kind="timeout", text="no answer within 5 s", unknown=True, transient=True)


_FORM = {"method": "elicitation/create", "params": {"message": "Well?", "requestedSchema": {"type": "object"}}}
ANSWERS: JsonObject = {"well": {"action": "accept", "content": {}}}
"""What people say to servers, if they say anything."""


THOUGHT: JsonObject = {
    "role": "assistant",
    "content": {"type": "text", "text": "Hm."},
    "model": "fake-1",
    "stopReason": "endTurn",
}
"""What the model says to servers, if it says anything."""


def _think(item: PermittedCall) -> JsonObject:
    words = {"role": "user", "content": {"type": "text", "text": f"{item.run}/{item.id}#{_round(item)}"}}
    return {"method": "sampling/createMessage", "params": {"messages": [words], "maxTokens": 10}}


def _asks(item: PermittedCall, whom: str) -> Outcome:
    """The server asks a person, the agent's model or both; its state is how often it has."""
    requests = {"asks": {"well": _FORM}, "asks a model": {"m": _think(item)}}
    requests["asks both"] = {**requests["asks"], **requests["asks a model"]}
    result = {"inputRequests": requests[whom], "requestState": str(_round(item) + 1)}
    return Outcome(kind="input_required", text="well?", asked=read_result(result, item.may_ask))


def _round(item: PermittedCall) -> int:
    return int(item.round.state or 0) if item.round else 0


_OTHERS = ("refund", "tip", "give", "note", "look", "nonsense")


class Asking:
    """A model that asks for anything, also for the same again, under ids that it uses twice."""

    name = "fake:asking"

    def __init__(self, world: World, chance: Chance) -> None:
        self._world = world
        self._chance = chance
        self.life = Life(None)

    async def reply(self, prompt: Prompt, settings: Settings, *, on_text: OnText | None = None) -> Reply | Failure:
        self.life.step()
        if prompt.for_server:
            said = self._chance.of("says to a server", "Hm.", "Hm.", "nothing for now", "nothing")
            if said == "Hm.":
                return reply(text=said)
            kind = FailureKind.TIMEOUT if said == "nothing for now" else FailureKind.REFUSED
            return Failure(kind=kind, message=said)
        count = self._chance.of("calls", 0, 1, 1, 2, 3, "failure")
        if isinstance(count, str):
            return Failure(kind=FailureKind.TIMEOUT, message="slow")
        return reply(*(self._ask() for _ in range(count)))

    def _ask(self) -> AskedCall:
        of = self._chance.of
        name = of("tool", *["book"] * 4, "pay", "pay", "send", *["cancel"] * 3, *_OTHERS)
        ids = [each.id for each in self._world.done] or ["nothing"]
        arguments: JsonObject = {}
        match name:
            case "book":
                arguments = {"flight": of("flight", "BA1", " ba1", "BA2"), "seat": of("seat", "1A", "2B")}
                arguments |= of("again", {}, {"again": True})
            case "pay" | "tip" | "give":
                arguments = {"to": of("to", "ann", "bob")}
            case "send" | "note":
                arguments = {"text": of("text", "hello", "Hello")}
            case "cancel" | "refund":
                arguments = {"booking" if name == "cancel" else "payment": of("which", *reversed(ids))}
        return call(name, arguments, provider_id=of("id", "c1", "c2", ""))
