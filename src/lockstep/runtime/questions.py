"""What a person is asked, with all they need to decide: the call in words, its grounds, its rule, its cost."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal

from lockstep.agent.locked import LockedAgent, LockedTool
from lockstep.gate.arguments import Malformed, read
from lockstep.journal.events import CallJudged, Origin, Recorded
from lockstep.kernel.state import CallState, State
from lockstep.values import Digest, Effect, Json, RunId, canonical

_MOST_LEAVES = 60
_MEANS: Mapping[Effect, str] = {
    Effect.READ: "changes nothing outside",
    Effect.IDEMPOTENT: "repeating it does no harm",
    Effect.KEYED: "the service does it once for its key",
    Effect.ONCE: "each time it is done again does harm",
}
_TRUST: Mapping[str, str] = {
    "user": "the user's words",
    "system": "the system prompt",
    "trusted": "a trusted result",
    "untrusted": "UNTRUSTED text",
}
_HOW: Mapping[str, str] = {
    "part": "from part of {}",
    "normalised": "from {}, written otherwise",
    "composed": "put together from {}",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Given:
    """One value of the arguments and where it came from."""

    pointer: str
    value: str
    """As JSON."""
    origin: str = ""
    """In words; empty where the record does not say."""
    trust: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """Everything that one approval is about."""

    run: RunId
    call: str
    agent: str
    lock: Digest | None
    unlocked: bool
    principal: str
    approval: str
    tool: str
    title: str
    """What the tool says it does, in a line."""
    arguments: tuple[Given, ...]
    question: str
    policies: tuple[str, ...]
    reasons: tuple[str, ...]
    effect: str
    effect_means: str
    if_refused: str
    fee_usd: Decimal
    spent_usd: Decimal | None
    """By the run so far; None is unknown."""
    limit_usd: Decimal | None
    expires_at_ms: int
    approvers: int
    approvals: tuple[str, ...]
    principal_may_approve: bool
    digest: Digest | None
    bound: Digest | None


def question_of(state: State, call: CallState, recorded: Sequence[Recorded], agent: LockedAgent) -> Question:
    """The question about a call that waits; `recorded` are the events of its run, `agent` what its lock holds."""
    names = {each.id: each.name for each in state.all_calls}
    judged = [e.event for e in recorded if isinstance(e.event, CallJudged) and e.event.call == call.id]
    tool = agent.tools.get(call.name)
    return Question(
        run=state.run,
        call=call.id,
        agent=state.agent,
        lock=state.lock,
        unlocked=state.unlocked,
        principal=state.principal,
        approval=call.approval,
        tool=call.name,
        title=_title(tool),
        arguments=_arguments(call, judged[-1].origins if judged else (), names),
        question=call.question or f"Run {call.name}?",
        policies=call.policies,
        reasons=call.reasons,
        effect=call.effect.value,
        effect_means=_MEANS[call.effect],
        if_refused=f"{call.name} does not run; the model is told that you refused and why, and goes on without it.",
        fee_usd=tool.fee_usd if tool else Decimal(0),
        spent_usd=state.totals.cost_usd,
        limit_usd=agent.budget.cost_usd,
        expires_at_ms=call.approval_expires_ms,
        approvers=call.approvers,
        approvals=call.approvals,
        principal_may_approve=call.principal_may_approve,
        digest=call.digest,
        bound=call.bound,
    )


def _title(tool: LockedTool | None) -> str:
    if tool is None:
        return ""
    annotations = tool.definition.get("annotations")
    hinted = annotations.get("title") if isinstance(annotations, Mapping) else None
    named = tool.definition.get("title") or hinted or tool.definition.get("description") or ""
    return str(named).strip().partition("\n")[0]


def _arguments(call: CallState, origins: Sequence[Origin], names: Mapping[str, str]) -> tuple[Given, ...]:
    try:
        value = read(call.arguments).value
    except Malformed:
        return (Given(pointer="", value=call.arguments),)
    by_pointer = {origin.pointer: origin for origin in origins}
    leaves = list(_leaves("", value))
    if len(leaves) > _MOST_LEAVES:
        leaves = [(f"/{_escaped(name)}", each) for name, each in value.items()]
    return tuple(_given(pointer, each, by_pointer.get(pointer), names) for pointer, each in leaves)


def _leaves(pointer: str, value: Json) -> Iterator[tuple[str, Json]]:
    if isinstance(value, Mapping) and (value or not pointer):
        for name, each in value.items():
            yield from _leaves(f"{pointer}/{_escaped(name)}", each)
    elif isinstance(value, list | tuple) and value:
        for place, each in enumerate(value):
            yield from _leaves(f"{pointer}/{place}", each)
    else:
        yield pointer, value


def _escaped(name: str) -> str:
    return name.replace("~", "~0").replace("/", "~1")


def _given(pointer: str, value: Json, origin: Origin | None, names: Mapping[str, str]) -> Given:
    text = canonical(value).decode()
    if origin is None:
        return Given(pointer=pointer, value=text)
    return Given(pointer=pointer, value=text, origin=origin_in_words(origin, names), trust=origin.trust)


def origin_in_words(origin: Origin, names: Mapping[str, str]) -> str:
    """Where a value came from, for a person; `names` are the tools of the run's calls."""
    if origin.how == "none":
        return "from NOWHERE: the model made it up or worked it out"
    if origin.how == "schema":
        return "says nothing of its own, or is named by the tool"
    refs = [_ref_in_words(ref, names) for ref in origin.refs if ref not in ("input", "system")]
    whose = _TRUST.get(origin.trust, origin.trust) + (f" ({', '.join(refs)})" if refs else "")
    return _HOW.get(origin.how, "from {}").replace("{}", whose)


def _ref_in_words(ref: str, names: Mapping[str, str]) -> str:
    """`2.0/result#/offers/1` as `search 2.0 at /offers/1`."""
    place, _, pointer = ref.partition("#")
    call = place.removesuffix("/result")
    return " ".join(filter(None, (names.get(call, ""), call, f"at {pointer}" if pointer else "")))
