"""Why a run did what it did: every action with its grounds, from the journal alone. Never a model's reasoning.

What the model was given is named, not copied: by event, by run and by call.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Any, cast

from lockstep.agent.lock import DIMENSIONS, Lock
from lockstep.journal import events as ev
from lockstep.journal.events import Recorded
from lockstep.telemetry.rounds import Input, with_input
from lockstep.values import Json, canonical, format_usd, parse_usd

_DEEPEST = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class Version:
    """What shaped the agent: lock, its dimensions, model and prompt file."""

    lock: str
    dimensions: Mapping[str, str]
    model: str
    prompt_file: str
    prompt_sha256: str
    unlocked: bool
    drift: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Given:
    """What the model had before it when it asked: the digest of the prompt, and the parts it was made of."""

    prompt_sha256: str
    system_sha256: str
    user_message: int
    """The event that holds it."""
    earlier_runs: tuple[str, ...]
    results: tuple[str, ...]
    """Calls of this run whose results it had been told."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Argument:
    """One scalar of the arguments, and where it came from; `how` is empty where that was not recorded."""

    pointer: str
    value: Json
    how: str = ""
    trust: str = ""
    sources: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """What the gate said, and by what rules."""

    verdict: str
    policies: tuple[str, ...]
    reasons: tuple[str, ...]
    error_type: str
    call_digest: str
    event: int
    at_ms: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Approval:
    """What a person was asked and shown, and what they said; `answer` is `given`, `refused` or empty."""

    id: str
    question: str
    asked_at_ms: int
    expires_at_ms: int
    shown_digest: str
    """Of exactly the call that was shown: tool, definition and arguments."""
    approvers: int = 1
    """How many people had to approve."""
    answer: str = ""
    by: str = ""
    """Whoever answered; of several who approved, all of them."""
    approved_by: tuple[str, ...] = ()
    because: str = ""
    standing: str = ""
    """The approval given beforehand that answered."""
    answered_at_ms: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Permit:
    """The right to run it once, durable before it ran."""

    id: str
    key: str
    event: int
    at_ms: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Receipt:
    """What came of it."""

    outcome: str
    text: str
    late: bool
    event: int
    at_ms: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Retry:
    """An attempt that failed in a way that may pass, and after how long the next was made."""

    attempt: int
    outcome: str
    why: str
    delay_ms: int
    event: int
    at_ms: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Probe:
    """A tool was asked whether it had happened, and its answer decided nothing."""

    tool: str
    outcome: str
    event: int
    at_ms: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Doubt:
    """That nobody knew what came of it, and how that was settled: by a receipt that came late, or as `by` says."""

    why: str
    at_ms: int
    probes: tuple[Probe, ...] = ()
    happened: bool | None = None
    by: str = ""
    text: str = ""
    settled_at_ms: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Sandbox:
    """Where it ran, and what left it."""

    tier: str
    degraded: str
    warm: bool = False
    start_ms: float | None = None
    run_ms: float = 0.0
    requests: tuple[Mapping[str, str | int | float | bool | None], ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Cost:
    """In US dollars; None is unknown. `model_usd` is this call's share of the step that asked for it."""

    model_usd: str | None
    calls_of_step: int
    fee_usd: str | None = None


@dataclass(kw_only=True, slots=True)
class Action:
    """One call the model asked for, from its grounds to its outcome. What did not come to pass is None."""

    call: str
    step: int
    tool: str
    model: str
    event: int
    """The `model.replied` that asked for it."""
    at_ms: int
    given: Given
    arguments: tuple[Argument, ...]
    arguments_text: str | None
    """As the model wrote them, where they are no JSON object."""
    effect: str = ""
    verdict: Verdict | None = None
    origins_left_out: int = 0
    approval: Approval | None = None
    permits: list[Permit] = field(default_factory=list)
    retries: list[Retry] = field(default_factory=list)
    inputs: list[Input] = field(default_factory=list)
    """What its server asked for before it went on."""
    task: str | None = None
    """What its server calls the task that it went on as."""
    receipt: Receipt | None = None
    doubt: Doubt | None = None
    sandbox: Sandbox | None = None
    cost: Cost
    joined_to: str | None = None
    """`run/call` whose receipt answered it; it was not run again."""
    again: bool = False
    """A deliberate repeat of a call that was made."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Interruption:
    """The run waited or was driven on: why, and who did it."""

    event: int
    at_ms: int
    what: str
    reason: str = ""
    by: str = ""
    message: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class End:
    """How the run ended."""

    event: int
    at_ms: int
    stop_reason: str
    message: str
    steps: int
    calls: int
    cost_usd: str | None


@dataclass(kw_only=True, slots=True)
class Why:
    """The whole account of a run."""

    run: str
    agent: str
    principal: str
    session: str
    at_ms: int
    input: str
    version: Version
    actions: list[Action] = field(default_factory=list)
    interruptions: list[Interruption] = field(default_factory=list)
    end: End | None = None


def explain(run: str, recorded: Sequence[Recorded], lock: Lock) -> Why:
    """The account of a run from its events and the lock that its first event holds."""
    reading = _Reading(run, recorded[0], lock)
    for item in recorded[1:]:
        reading.add(item)
    return reading.why


class _Reading:
    def __init__(self, run: str, first: Recorded, lock: Lock) -> None:
        started = cast(ev.RunStarted, first.event)
        self._started = started
        self.why = Why(
            run=run,
            agent=started.agent,
            principal=started.principal,
            session=started.session,
            at_ms=first.at_ms,
            input=started.input,
            version=_version(started, lock),
        )
        self._calls: dict[str, Action] = {}
        self._prompt = ""
        self._told: tuple[str, ...] = ()
        self._newest: tuple[str, ...] = ()

    def add(self, item: Recorded) -> None:
        event = item.event
        match event:
            case ev.ContextBuilt():
                self._prompt = event.digest
            case ev.ModelReplied():
                self._replied(event, item)
            case ev.RunSuspended():
                self._interrupted(item, "suspended", reason=event.reason, message=event.message)
            case ev.RunResumed():
                crash = "crash" if event.after_crash else ""
                self._interrupted(item, "resumed", reason=crash, by=event.by)
            case ev.RunFinished():
                self.why.end = End(
                    event=item.seq,
                    at_ms=item.at_ms,
                    stop_reason=event.stop_reason,
                    message=event.message,
                    steps=event.steps,
                    calls=event.calls,
                    cost_usd=event.cost_usd,
                )
            case _:
                self._of_call(item)

    def _interrupted(self, item: Recorded, what: str, **more: str) -> None:
        self.why.interruptions.append(Interruption(event=item.seq, at_ms=item.at_ms, what=what, **more))

    def _replied(self, event: ev.ModelReplied, item: Recorded) -> None:
        given = Given(
            prompt_sha256=self._prompt,
            system_sha256=self.why.version.prompt_sha256,
            user_message=1,
            earlier_runs=tuple(self._started.previous),
            results=(*self._told, *self._newest),
        )
        self._told, self._newest = given.results, tuple(call.id for call in event.calls)
        for call in event.calls:
            value = _parsed(call.arguments)
            action = Action(
                call=call.id,
                step=event.step,
                tool=call.name,
                model=f"{event.provider}:{event.model}" if event.provider else event.model,
                event=item.seq,
                at_ms=item.at_ms,
                given=given,
                arguments=() if value is None else tuple(_scalars(value)),
                arguments_text=call.arguments if value is None else None,
                cost=Cost(model_usd=_share(event), calls_of_step=len(event.calls)),
            )
            self._calls[call.id] = action
            self.why.actions.append(action)

    def _of_call(self, item: Recorded) -> None:
        event = item.event
        action = self._calls.get(getattr(event, "call", ""))
        if action is None:
            return
        match event:
            case ev.CallJudged():
                _judged(action, event, item)
            case ev.ApprovalAsked():
                action.approval = Approval(
                    id=event.approval,
                    question=event.question,
                    asked_at_ms=item.at_ms,
                    expires_at_ms=event.expires_at_ms,
                    shown_digest=event.digest,
                    approvers=event.approvers,
                )
            case ev.ApprovalGiven() | ev.ApprovalRefused():
                _answered(action, event, item)
            case ev.EffectIntended():
                permit = Permit(id=event.permit, key=event.key, event=item.seq, at_ms=item.at_ms)
                action.permits.append(permit)
            case ev.EffectSettled():
                _settled(action, event, item)
            case ev.EffectDoubted():
                _doubted(action, event, item)
            case _:
                self._between(action, event, item)

    def _between(self, action: Action, event: ev.Event, item: Recorded) -> None:
        """What happened to a call that was let go, other than its outcome."""
        match event:
            case ev.EffectRetried():
                retry = Retry(
                    attempt=event.attempt,
                    outcome=event.outcome,
                    why=event.why,
                    delay_ms=event.delay_ms,
                    event=item.seq,
                    at_ms=item.at_ms,
                )
                action.retries.append(retry)
            case ev.InputAsked() | ev.InputGiven() | ev.ModelSampled():
                action.inputs = with_input(action.inputs, event, item)
            case ev.TaskBegun():
                action.task = event.task
            case ev.EffectProbed() if action.doubt is not None:
                probe = Probe(tool=event.tool, outcome=event.outcome, event=item.seq, at_ms=item.at_ms)
                action.doubt = replace(action.doubt, probes=(*action.doubt.probes, probe))
            case ev.EffectReconciled() | ev.DoubtSettled() if action.doubt is not None:
                action.doubt = replace(
                    action.doubt, happened=event.happened, by=event.by, text=event.text, settled_at_ms=item.at_ms
                )


def _judged(action: Action, event: ev.CallJudged, item: Recorded) -> None:
    action.effect = event.effect if event.verdict != "invalid" else ""
    action.joined_to = event.duplicate_of or None
    action.again = event.again
    action.arguments = _with_origins(action.arguments, event)
    action.origins_left_out = event.origins_left_out
    action.verdict = Verdict(
        verdict=event.verdict,
        policies=event.policies,
        reasons=event.reasons or ((event.note,) if event.verdict == "invalid" else ()),
        error_type=event.error_type,
        call_digest=event.digest or "",
        event=item.seq,
        at_ms=item.at_ms,
    )


def _with_origins(arguments: tuple[Argument, ...], event: ev.CallJudged) -> tuple[Argument, ...]:
    origins = {origin.pointer: origin for origin in event.origins}
    return tuple(
        replace(each, how=found.how, trust=found.trust, sources=found.refs)
        if (found := origins.get(each.pointer))
        else each
        for each in arguments
    )


def _answered(action: Action, event: ev.ApprovalGiven | ev.ApprovalRefused, item: Recorded) -> None:
    if action.approval is None:
        return
    asked = action.approval
    if isinstance(event, ev.ApprovalRefused):
        action.approval = replace(
            asked, answer="refused", by=event.by, because=event.because, answered_at_ms=item.at_ms
        )
        return
    people = (*asked.approved_by, event.by)
    action.approval = replace(
        asked,
        answer="given" if len(people) >= asked.approvers else "",
        by=", ".join(people),
        approved_by=people,
        because="; ".join(filter(None, (asked.because, event.because))),
        standing=event.standing,
        answered_at_ms=item.at_ms,
    )


def _settled(action: Action, event: ev.EffectSettled, item: Recorded) -> None:
    action.receipt = Receipt(outcome=event.outcome, text=event.text, late=event.late, event=item.seq, at_ms=item.at_ms)
    action.cost = replace(action.cost, fee_usd=event.fee_usd)
    if event.tier:
        action.sandbox = Sandbox(
            tier=event.tier,
            degraded=event.degraded,
            warm=event.warm,
            start_ms=event.start_ms,
            run_ms=event.run_ms,
            requests=event.egress,
        )


def _doubted(action: Action, event: ev.EffectDoubted, item: Recorded) -> None:
    before = action.doubt or Doubt(why="", at_ms=item.at_ms)
    action.doubt = replace(before, why=event.why)
    if event.tier:
        action.sandbox = Sandbox(tier=event.tier, degraded=event.degraded, run_ms=event.run_ms, requests=event.egress)


def _version(started: ev.RunStarted, lock: Lock) -> Version:
    ((prompt_file, prompt),) = lock.parts["prompt"].items()
    settings = lock.parts["model"]["settings"].value or {}
    return Version(
        lock=started.lock,
        dimensions={name: lock.dimension_digest(name) for name in DIMENSIONS},
        model=str(settings.get("name", "")),
        prompt_file=prompt_file,
        prompt_sha256=prompt.sha256,
        unlocked=started.unlocked,
        drift=started.drift,
    )


def _share(event: ev.ModelReplied) -> str | None:
    cost = parse_usd(event.cost_usd)
    return None if cost is None else format_usd((cost / len(event.calls)).quantize(Decimal("1e-8")))


def _parsed(text: str) -> Mapping[str, Any] | None:
    """The arguments, where they are an object that JSON can say: a model may write NaN, or nest without end."""
    try:
        value = json.loads(text) if text.strip() else {}
        canonical(value)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _scalars(value: Any, pointer: str = "", depth: int = 0) -> Iterator[Argument]:
    """Every scalar below a value, with its JSON pointer (RFC 6901); an empty object or array stands for itself."""
    items: Any = ()
    if depth < _DEEPEST and isinstance(value, dict):
        items = value.items()
    elif depth < _DEEPEST and isinstance(value, list):
        items = enumerate(value)
    if pointer and not (value and items):
        yield Argument(pointer=pointer, value=value)
    for name, below in items:
        step = str(name).replace("~", "~0").replace("/", "~1")
        yield from _scalars(below, f"{pointer}/{step}", depth + 1)
