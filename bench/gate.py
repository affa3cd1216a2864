"""Measure the gate (schema, provenance, receipts, Cedar) on each call of growing runs; exit 1 when a target is missed.

`python bench/gate.py` takes some seconds. CPU time of the judging thread, so that other work on the machine counts
little; no journal, since its fsync is not the gate's.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from decimal import Decimal
from statistics import median, quantiles
from typing import Any

from lockstep.agent.builtins import pack_text
from lockstep.agent.locked import Budget, LockedAgent, LockedTool
from lockstep.agent.spec import LimitsSection, ModelSection
from lockstep.gate.gate import Gate
from lockstep.gate.policy import Policies
from lockstep.gate.sources import Tracing
from lockstep.journal import events as ev
from lockstep.journal.port import Stop
from lockstep.kernel.apply import apply, start
from lockstep.kernel.state import CallState, State
from lockstep.kernel.transcript import opening
from lockstep.values import Digest, Effect, JsonObject, RunId, Tier, digest_json

TARGETS = {
    "gate p50 ms, 50 events_max": 0.5,
    "gate p99 ms, 50 events_max": 2.0,
    "gate with the injection pack p50 ms, 50 events_max": 1.5,
    "gate with the injection pack p99 ms, 50 events_max": 4.0,
    "tracing a call p50 ms, 50 events_max": 1.0,
    "tracing a call that came from nowhere p50 ms, 50 events_max": 1.0,
    "tracing per call, 800 events against 50 (16 times the text)_max": 16.0,
    "the whole text at once (after a crash), ms per 10 kB_max": 10.0,
}


class Running:
    """Nobody has stopped the agent: what looking costs is measured in `stops.py`."""

    def stop_of(self, agent: str) -> Stop | None:
        return None


STEPS, RUNS = 12, 40
"""Four events a step: a run of 49 events."""
LONG_STEPS = 200
POLICY = """
@id("all") permit (principal, action, resource);
@id("payee") @ask("Book for them?") forbid (principal, action == Action::"book", resource)
when { context.provenance.untrusted.contains("/passenger") || context.provenance.ungrounded.contains("/passenger") };
@id("limit") forbid (principal, action == Action::"book", resource)
when { context.arguments has price_usd && context.arguments.price_usd.greaterThan(decimal("5000.0")) };
"""
PACK = "permit (principal, action, resource);\n" + pack_text("injection")
REQUEST = """Please book Ada Lovelace (passport X1234567) from London to New York on 1 December 2026, at most $1,200,
in economy. Her address is ada.lovelace@analytical.example. Add it to the calendar when it is done."""
SYSTEM = "You are a travel assistant. London is LON, New York is NYC. Book once, and only under the limit. " * 20
TEXT = "The flight leaves from terminal 5; check-in closes 60 minutes before. Bags over 23 kg cost $75 each. "


def main() -> int:
    """Print each figure beside its target and return the exit code."""
    figures = measure()
    for name, limit in TARGETS.items():
        met = figures[name] <= limit
        print(f"{'ok  ' if met else 'MISS'} {name.removesuffix('_max'):75} {figures[name]:8.3f}  at most {limit:g}")
    print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores, Python {platform.python_version()}")
    return 0 if all(figures[name] <= limit for name, limit in TARGETS.items()) else 1


def measure() -> dict[str, float]:
    """Every figure of `TARGETS`."""
    agent = travel_agent()
    judged = judging(agent)
    guarded = judging(replace(agent, policies={"policy.cedar": PACK}))
    traced = [cost for _ in range(RUNS) for cost in growing(tracing(agent), agent, STEPS)]
    invented = [cost for _ in range(RUNS) for cost in growing(tracing(agent, invented=True), agent, STEPS)]
    long = [min(pair) for pair in zip(*(growing(tracing(agent), agent, LONG_STEPS) for _ in range(3)), strict=True)]
    state = run_after(agent, LONG_STEPS)
    characters = sum(len(message.text) for message in state.transcript.messages)
    whole = min(cost_of(lambda: tracing(agent)(state, asked(LONG_STEPS))) for _ in range(3))
    return {
        "gate p50 ms, 50 events_max": median(judged),
        "gate p99 ms, 50 events_max": quantiles(judged, n=100)[98],
        "gate with the injection pack p50 ms, 50 events_max": median(guarded),
        "gate with the injection pack p99 ms, 50 events_max": quantiles(guarded, n=100)[98],
        "tracing a call p50 ms, 50 events_max": median(traced),
        "tracing a call that came from nowhere p50 ms, 50 events_max": median(invented),
        "tracing per call, 800 events against 50 (16 times the text)_max": median(long[-20:]) / median(long[2:STEPS]),
        "the whole text at once (after a crash), ms per 10 kB_max": whole / (characters / 10_000),
    }


def judging(agent: LockedAgent) -> list[float]:
    """The CPU ms of judging each call of short runs, each with a gate of its own."""
    policies = Policies.parse(agent.policies)
    return [cost for _ in range(RUNS) for cost in growing(Gate(agent, policies, Running()).judge, agent, STEPS)]


def growing(judge: Callable[[State, CallState], object], agent: LockedAgent, steps: int) -> Iterator[float]:
    """The CPU ms of judging each call of a run as it is made, which takes in what was new since the call before."""
    state = begun(agent)
    for step in range(1, steps + 1):
        state = with_reply(state, step)
        call = asked(step)
        yield cost_of(lambda state=state, call=call: judge(state, call))  # type: ignore[misc]
        state = with_result(state, step)


def tracing(agent: LockedAgent, *, invented: bool = False) -> Callable[[State, CallState], object]:
    traced = Tracing(agent)

    def trace(state: State, call: CallState) -> object:
        arguments = json.loads(call.arguments)
        if invented:
            arguments = {name: f"{name} zz{len(state.settled)}" for name in arguments}
        return traced.of_call(state, call.name, arguments)

    return trace


def cost_of(work: Callable[[], object]) -> float:
    before = time.thread_time_ns()
    work()
    return (time.thread_time_ns() - before) / 1e6


def begun(agent: LockedAgent) -> State:
    started = ev.RunStarted(
        agent="travel",
        lock=agent.digest,
        lock_text="{}",
        directory="/travel",
        principal="ada",
        session="s1",
        input=REQUEST,
    )
    return apply(start(RunId("r1"), opening(agent)), started, 1)


def with_reply(state: State, step: int) -> State:
    state = apply(state, ev.ContextBuilt(step=step, digest=Digest("0" * 64)), 1)
    call = asked(step)
    wanted = ev.Asked(id=call.id, provider_id=f"call_{step}", name=call.name, arguments=call.arguments)
    return apply(state, ev.ModelReplied(step=step, calls=(wanted,)), 1)


def with_result(state: State, step: int) -> State:
    """The call of this step as allowed and settled, with a result of 1 KB: fields, and every third time plain text."""
    state = apply(state, ev.CallJudged(call=f"{step}.0", verdict="allow", effect="read"), 1)
    offers = [
        {"offer_id": f"SK-{step}{n}-1", "from": "London", "departs": f"2026-12-{n + 1:02}T09:{step % 60:02}:00"}
        | {"price_usd": 300 + step * 10 + n + 0.5, "note": "One bag; refundable until the day before."}
        for n in range(6)
    ]
    text = f"{step}: {TEXT * 10}" if step % 3 == 0 else json.dumps({"offers": offers})
    return apply(state, ev.EffectSettled(call=f"{step}.0", outcome="ok", text=text), 1)


def run_after(agent: LockedAgent, steps: int) -> State:
    state = begun(agent)
    for step in range(1, steps + 1):
        state = with_result(with_reply(state, step), step)
    return state


def asked(step: int) -> CallState:
    """Arguments of the usual kinds: the user's, an earlier result's, composed, and one that came from nowhere."""
    arguments = {
        "offer_id": f"SK-{step - 1}3-1",
        "passenger": "Ada Lovelace",
        "date": "2026-12-01",
        "price_usd": 300 + (step - 1) * 10 + 3.5,
        "title": "Flight London to New York",
        "request_id": f"req-{step}-{step * 7919}",
    }
    return CallState(
        id=f"{step}.0", provider_id=f"call_{step}", name="book", arguments=json.dumps(arguments), asked_at_ms=1
    )


def travel_agent() -> LockedAgent:
    kinds: dict[str, Any] = {name: {"type": "string"} for name in ("offer_id", "passenger", "date", "title")}
    kinds |= {"price_usd": {"type": "number"}, "request_id": {"type": "string"}}
    schema: JsonObject = {"type": "object", "properties": kinds, "required": ["passenger"]}
    definition: JsonObject = {"name": "book", "description": "Book a flight.", "inputSchema": schema}
    book = LockedTool(
        name="book",
        definition=definition,
        pin=digest_json(definition),
        effect=Effect.ONCE,
        dedupe_on=("/offer_id", "/request_id"),
        tier=Tier.NONE,
        egress=(),
        env={},
        limits=LimitsSection(),
        timeout_s=5.0,
        fee_usd=Decimal(0),
        source="python:tools.py",
        code={},
    )
    return LockedAgent(
        digest=Digest("1" * 64),
        name="travel",
        model=ModelSection(name="scripted:script.jsonl"),
        model_file=None,
        system=SYSTEM,
        tools={"book": book},
        policies={"policy.cedar": POLICY},
        budget=Budget(),
        approval_expires_s=3600.0,
        window_runs=20,
    )


if __name__ == "__main__":
    sys.exit(main())
