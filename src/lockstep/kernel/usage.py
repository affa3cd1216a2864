"""What runs have used, and what their budget says to it. Values and arithmetic only."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal

from lockstep.agent.budget import Budget, Limits

SCOPE_NAMES: Mapping[str, str] = {
    "session": "this session",
    "principal": "this principal",
    "day": "this day (UTC)",
    "principal_day": "this principal on this day (UTC)",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Usage:
    """What some runs have used together. `cost_usd` is what is known of it, which is all only if `cost_known`."""

    runs: int = 0
    steps: int = 0
    calls: int = 0
    tokens: int = 0
    cost_usd: Decimal = Decimal(0)
    cost_known: bool = True
    active_ms: int = 0
    by_tool: Mapping[str, int] = field(default_factory=dict)
    """Calls that were let go, or may yet be."""

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            runs=self.runs + other.runs,
            steps=self.steps + other.steps,
            calls=self.calls + other.calls,
            tokens=self.tokens + other.tokens,
            cost_usd=self.cost_usd + other.cost_usd,
            cost_known=self.cost_known and other.cost_known,
            active_ms=self.active_ms + other.active_ms,
            by_tool=_added(self.by_tool, other.by_tool),
        )


NOTHING = Usage()
BACKOFF_S = (1.0, 2.0, 4.0, 8.0, 16.0, 30.0)


def backoff_s(failures: int, asked_s: float | None) -> float:
    """How long a model is left alone that has failed so often in a row; as long as it asks for, where it does."""
    return BACKOFF_S[min(failures, len(BACKOFF_S)) - 1] if asked_s is None else asked_s


def total(usages: Iterable[Usage]) -> Usage:
    """All of it together."""
    return sum(usages, NOTHING)


def _added(one: Mapping[str, int], other: Mapping[str, int]) -> Mapping[str, int]:
    if not one or not other:
        return one or other
    return {name: one.get(name, 0) + other.get(name, 0) for name in (*one, *(n for n in other if n not in one))}


@dataclass(frozen=True, slots=True)
class Over:
    """A limit that is reached: the typed reason with which a run ends, and the sentence."""

    reason: str
    message: str


def over_run(used: Usage, budget: Budget) -> Over | None:
    """The limit of one run that leaves no room for another step; its wall time is decided elsewhere."""
    if used.steps >= budget.steps:
        return Over("budget_steps", f"The run has used its {budget.steps} steps (budget.steps).")
    if budget.tokens is not None and used.tokens >= budget.tokens:
        return Over("budget_tokens", f"The run has used {used.tokens} of {budget.tokens} tokens (budget.tokens).")
    if budget.cost_usd is not None:
        if not used.cost_known and budget.unknown_price != "allow":
            return Over("cost_unknown", "The run has a cost limit and a cost that is unknown.")
        if used.cost_usd >= budget.cost_usd:
            said = f"The run has cost ${used.cost_usd:f} of ${budget.cost_usd:f} (budget.cost_usd)."
            return Over("budget_cost", said)
    return None


def over_scopes(used: Usage, others: Mapping[str, Usage], budget: Budget) -> Over | None:
    """The limit that this run (`used`) and the `others` of a scope have reached, so that there is no other step."""
    for scope, limits in budget.scopes.items():
        said = _over_scope(used + others.get(scope, NOTHING), limits, allow_unknown=budget.unknown_price == "allow")
        if said is not None:
            kind, sentence = said
            reason = "cost_unknown" if kind == "unknown" else f"budget_{scope}"
            key = "cost_usd" if kind == "unknown" else kind
            return Over(reason, f"The runs of {SCOPE_NAMES[scope]} {sentence} (budget.{scope}.{key}).")
    return None


def _over_scope(used: Usage, limits: Limits, *, allow_unknown: bool) -> tuple[str, str] | None:
    for kind, spent, limit in (
        ("steps", used.steps, limits.steps),
        ("calls", used.calls, limits.calls),
        ("tokens", used.tokens, limits.tokens),
    ):
        if limit is not None and spent >= limit:
            return kind, f"have used {spent} of {limit} {kind}"
    if limits.wall_s is not None and used.active_ms >= limits.wall_s * 1000:
        return "wall_s", f"have used their {limits.wall_s:g} s"
    if limits.cost_usd is not None:
        if not used.cost_known and not allow_unknown:
            return "unknown", "have a cost limit and a cost that is unknown"
        if used.cost_usd >= limits.cost_usd:
            return "cost_usd", f"have cost ${used.cost_usd:f} of ${limits.cost_usd:f}"
    return None


def no_start(others: Mapping[str, Usage], budget: Budget) -> Over | None:
    """Why no further run may begin in a scope."""
    for scope, limits in budget.scopes.items():
        begun = others.get(scope, NOTHING).runs
        if limits.runs is not None and begun >= limits.runs:
            said = f"{SCOPE_NAMES[scope]} has had {begun} of {limits.runs} runs"
            return Over(f"budget_{scope}", f"{said[0].upper()}{said[1:]} (budget.{scope}.runs).")
    return over_scopes(NOTHING, others, budget)


def over_calls(asked: int, others: Mapping[str, Usage], budget: Budget) -> Over | None:
    """The limit that a reply breaks by asking for so many calls."""
    if asked > budget.calls:
        return Over("budget_calls", f"The model asked for more than {budget.calls} calls (budget.calls).")
    for scope, limits in budget.scopes.items():
        if limits.calls is not None and asked + others.get(scope, NOTHING).calls > limits.calls:
            said = f"The runs of {SCOPE_NAMES[scope]} asked for more than {limits.calls} calls (budget.{scope}.calls)."
            return Over(f"budget_{scope}", said)
    return None


def tool_used_up(tool: str, used: int, others: Mapping[str, Usage], budget: Budget) -> str | None:
    """Why a tool may not be called any more, where `used` calls of it in this run count."""
    limit = budget.calls_per_tool.get(tool)
    if limit is not None and used >= limit:
        return f"{tool} may be called {_times(limit)} in a run (budget.calls_per_tool)"
    for scope, limits in budget.scopes.items():
        limit = limits.calls_per_tool.get(tool)
        if limit is not None and used + others.get(scope, NOTHING).by_tool.get(tool, 0) >= limit:
            whose = f"by the runs of {SCOPE_NAMES[scope]} (budget.{scope}.calls_per_tool)"
            return f"{tool} may be called {_times(limit)} {whose}"
    return None


def fee_too_high(tool: str, fee: Decimal, used: Usage, others: Mapping[str, Usage], budget: Budget) -> str | None:
    """Why the fee of a call finds no room under a cost limit."""
    scopes = {
        f"budget.{scope}": (limits.cost_usd, used + others.get(scope, NOTHING))
        for scope, limits in budget.scopes.items()
    }
    for name, (limit, spent) in {"budget": (budget.cost_usd, used), **scopes}.items():
        if limit is None or not fee:
            continue
        unknown = not spent.cost_known and budget.unknown_price != "allow"
        if unknown or spent.cost_usd + fee > limit:
            return f"the fee of {tool} (${fee:f}) would exceed {name}.cost_usd (${limit:f})"
    return None


def _times(number: int) -> str:
    return {0: "not at all", 1: "once", 2: "twice"}.get(number, f"{number} times")


def same_call(name: str, arguments: str) -> str:
    """The same text for calls that ask for the same: of one tool, with the same JSON however it is written."""
    try:
        arguments = json.dumps(json.loads(arguments), sort_keys=True)
    except (ValueError, RecursionError):
        arguments = " ".join(arguments.split())
    return f"{name} {arguments}"
