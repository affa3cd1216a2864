"""An agent in one process for tests: locked tools that are Python functions, and a model that is a list of replies.

Both implement the Protocols the driver knows. Nothing here decides: gate, kernel and journal are the real ones.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any, TypeVar

from lockstep.agent.effect_spec import Repeats
from lockstep.agent.locked import Budget, LockedAgent, LockedTool, Remote
from lockstep.agent.spec import LimitsSection, ModelSection
from lockstep.gate.approvals import Terms
from lockstep.gate.gate import Gate
from lockstep.gate.permit import Permit
from lockstep.gate.policy import Policies
from lockstep.journal import events as ev
from lockstep.journal.port import Journal, Stop, Stops
from lockstep.journal.sqlite import SQLiteJournal
from lockstep.kernel.state import State
from lockstep.model.port import (
    AskedCall,
    AssistantMessage,
    Failure,
    OnText,
    Prompt,
    Reply,
    Settings,
    Usage,
    UserMessage,
)
from lockstep.runtime.answers import Answer, answer_approval
from lockstep.runtime.driver import Driver
from lockstep.tools.inputs import read_result
from lockstep.tools.port import Ask, Outcome, PermittedCall
from lockstep.values import Digest, Effect, JsonObject, Tier, digest_json, now_ms

ALLOW_ALL = "permit (principal, action, resource);\n"
ASK_BOOK = ALLOW_ALL + '@ask("Book it?") forbid (principal, action == Action::"book", resource);'
ANY_ARGUMENTS: JsonObject = {"type": "object"}

T = TypeVar("T")
Function = Callable[[PermittedCall], Outcome | Awaitable[Outcome]]


def locked_tool(
    name: str,
    effect: Effect = Effect.READ,
    *,
    schema: JsonObject = ANY_ARGUMENTS,
    dedupe_on: tuple[str, ...] | None = None,
    fee_usd: str = "0",
    timeout_s: float = 5.0,
    **repeats: Any,
) -> LockedTool:
    definition: JsonObject = {"name": name, "description": f"{name} it", "inputSchema": schema}
    return LockedTool(
        name=name,
        definition=definition,
        pin=digest_json(definition),
        effect=effect,
        dedupe_on=dedupe_on,
        tier=Tier.NONE,
        egress=(),
        env={},
        limits=LimitsSection(),
        timeout_s=timeout_s,
        fee_usd=Decimal(fee_usd),
        source="python:tools.py",
        code={},
        repeats=Repeats(**repeats),
    )


LOOK = locked_tool("look")
NOTE = locked_tool("note", Effect.IDEMPOTENT)
PAY = locked_tool("pay", Effect.KEYED, dedupe_on=("/to",))
BOOK = locked_tool("book", Effect.ONCE, dedupe_on=("/flight",))
SEND = locked_tool("send", Effect.ONCE)


def locked_agent(
    *tools: LockedTool,
    policy: str = ALLOW_ALL,
    budget: Budget | None = None,
    approval_expires_s: float = 3600.0,
    window_runs: int = 20,
    system: str = "Be careful.",
) -> LockedAgent:
    return LockedAgent(
        digest=Digest("1" * 64),
        name="traveller",
        model=ModelSection(name="scripted:script.jsonl"),
        model_file=None,
        system=system,
        tools={tool.name: tool for tool in tools or (LOOK, NOTE, PAY, BOOK, SEND)},
        policies={"policy.cedar": policy},
        budget=budget or Budget(steps=50),
        approval_expires_s=approval_expires_s,
        window_runs=window_runs,
    )


class NeverStopped:
    """For a gate without a journal: nobody has stopped anything."""

    def stop_of(self, agent: str) -> Stop | None:
        return None


def elsewhere(tool: LockedTool) -> LockedTool:
    """The tool on a server that is not ours, whose calls may go on as tasks."""
    return replace(tool, task_s=100.0, remote=Remote(url="http://127.0.0.1:1/", headers={}, oauth=None))


def gate_of(agent: LockedAgent, stops: Stops | None = None) -> Gate:
    return Gate(agent, Policies.parse(agent.policies), stops or NeverStopped())


def started(
    message: str = "Book me a flight.",
    *,
    session: str = "s1",
    approve: str = "ask",
    principal: str = "ada",
    lock: Digest = Digest("1" * 64),  # noqa: B008 - a value
    lock_text: str = "{}",
) -> ev.RunStarted:
    return ev.RunStarted(
        agent="traveller",
        lock=lock,
        lock_text=lock_text,
        directory="/agents/traveller",
        principal=principal,
        session=session,
        input=message,
        approve=approve,
    )


def call(name: str, arguments: JsonObject | str | None = None, provider_id: str = "") -> AskedCall:
    """A call as a model asks for it; a string stands for itself, JSON or not."""
    raw = arguments if isinstance(arguments, str) else json.dumps(arguments or {})
    return AskedCall(provider_id=provider_id or f"p-{name}", name=name, arguments=raw)


def reply(*calls: AskedCall, text: str = "", cost_usd: str | None = "0.01") -> Reply:
    return Reply(
        text=text or ("" if calls else "done"),
        calls=calls,
        usage=Usage(input_tokens=10, output_tokens=5, reasoning_tokens=2),
        cost_usd=None if cost_usd is None else Decimal(cost_usd),
        model="fake-1",
        provider="fake",
    )


class ListedModel:
    """Says what it is told, by position in the run, so that a resumed run goes on where it was.

    Failures leave no trace in the prompt: `failed` says how many of them were heard in an earlier life.
    """

    name = "fake:listed"

    def __init__(self, *replies: Reply | Failure, failed: int = 0, to_servers: Sequence[Reply | Failure] = ()) -> None:
        self.replies = replies
        self.to_servers = list(to_servers)
        """What it says to servers that ask it, one after another."""
        self.prompts: list[Prompt] = []
        self.settings: list[Settings] = []
        self.failed = failed

    async def reply(self, prompt: Prompt, settings: Settings, *, on_text: OnText | None = None) -> Reply | Failure:
        self.prompts.append(prompt)
        self.settings.append(settings)
        if prompt.for_server:
            return self.to_servers.pop(0)
        position = 0
        for message in prompt.messages:
            if isinstance(message, UserMessage):
                position = 0
            position += isinstance(message, AssistantMessage)
        answer = self.replies[position + self.failed]
        self.failed += isinstance(answer, Failure)
        return answer


class Functions:
    """A tool host of Python functions that spends the permit as a sandbox does, and counts what ran."""

    def __init__(self, **functions: Function) -> None:
        self.functions = functions
        self.ran: Counter[str] = Counter()
        """Invocations by `run/call`."""
        self.calls: list[PermittedCall] = []
        self.permits: list[Permit] = []
        self.ask: Ask | None = None
        """Of the newest call: what a server that holds it open would ask through."""
        self.swept = 0
        self.ended: list[str] = []

    async def call(
        self,
        call: PermittedCall,
        permit: Permit,
        on_overdue: Callable[[], None] | None = None,
        ask: Ask | None = None,
    ) -> Outcome:
        permit.redeem(call.digest, now_ms())
        if on_overdue is not None:
            asyncio.get_running_loop().call_later(call.tool.timeout_s, on_overdue)
        self.ran[f"{call.run}/{call.id}"] += 1
        self.ask = ask
        self.calls.append(call)
        self.permits.append(permit)
        function = self.functions.get(call.tool.name)
        if function is None:
            return ok(f"{call.tool.name} {json.dumps(call.arguments, sort_keys=True)}")
        outcome = function(call)
        return outcome if isinstance(outcome, Outcome) else await outcome

    async def end(self, kept_for: str) -> None:
        self.ended.append(kept_for)

    async def sweep(self) -> None:
        self.swept += 1

    def count(self, tool: str) -> int:
        return sum(each.tool.name == tool for each in self.calls)


def ok(text: str = "ok") -> Outcome:
    return Outcome(kind="ok", text=text)


def lost(text: str = "no answer within 5 s") -> Outcome:
    return Outcome(kind="timeout", text=text, unknown=True)


def driver_of(journal: Journal, model: Any, tools: Any, agent: LockedAgent | None = None, **more: Any) -> Driver:
    agent = agent or locked_agent()
    return Driver(
        agent=agent,
        settings=Settings(),
        journal=journal,
        gate=gate_of(agent, journal),
        model=model,
        tools=tools,
        **more,
    )


async def answer(
    journal: Journal, approval: str, *, given: bool, by: str, because: str = "", agent: LockedAgent | None = None
) -> State:
    """Answer while nothing has changed since, of an agent that asks before it books."""
    terms = Terms.of(agent or locked_agent(policy=ASK_BOOK))
    return await answer_approval(journal, approval, Answer(given=given, by=by, because=because), lambda _: terms)


def types_of(recorded: Sequence[ev.Recorded]) -> list[str]:
    return [item.event.TYPE for item in recorded]


def during(path: Path, work: Callable[[SQLiteJournal], Awaitable[T]]) -> T:
    """What work with a store comes to, within half a minute."""

    async def bounded() -> T:
        journal = SQLiteJournal.open(path)
        try:
            return await asyncio.wait_for(work(journal), 30)
        finally:
            await journal.close()

    return asyncio.run(bounded())


def rounds(*asked: dict[str, Any]) -> Callable[[PermittedCall], Outcome]:
    """A modern server's tool that asks these, one after another, and then says what it was told last."""

    def book(call: PermittedCall) -> Outcome:
        place = 0 if call.round is None else int(call.round.state or 0)
        if place < len(asked):
            result = {"inputRequests": asked[place], "requestState": str(place + 1)}
            return Outcome(kind="input_required", text="asks", asked=read_result(result, call.may_ask))
        assert call.round is not None
        return ok(json.dumps(call.round.responses))

    return book
