"""The state of a run: a fold over its events. Values only."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from decimal import Decimal
from enum import StrEnum
from typing import Any, Self

from lockstep.journal.events import ModelReplied, ModelSampled
from lockstep.kernel.transcript import Transcript
from lockstep.kernel.usage import Usage
from lockstep.values import Attachment, Digest, Effect, RunId, parse_usd


class Phase(StrEnum):
    """Where a call stands. `DONE` has a text for the model; `DOUBTED` waits for a person or a probe; `NEEDS_INPUT` was
    let go and waits for an answer to its server, with which it goes on (`ANSWERED`)."""

    ASKED = "asked"
    ALLOWED = "allowed"
    WAITING = "waiting"
    APPROVED = "approved"
    INTENDED = "intended"
    NEEDS_INPUT = "needs_input"
    ANSWERED = "answered"
    DOUBTED = "doubted"
    DONE = "done"


class Status(StrEnum):
    NEW = "new"
    RUNNING = "running"
    SUSPENDED = "suspended"
    FINISHED = "finished"


class Changing:
    """A frozen value of many fields, a few of which each event changes. Has no slots: `dataclasses.replace` sets every
    field of a frozen class anew, which was a sixth of what a call costs."""

    def changed(self, **changes: Any) -> Self:
        """The same with other values in these fields."""
        if not changes.keys() <= self.__dict__.keys():
            raise TypeError(f"{type(self).__name__} has no {', '.join(sorted(changes.keys() - self.__dict__.keys()))}")
        new = object.__new__(type(self))
        new.__dict__.update(self.__dict__, **changes)
        return new


@dataclass(frozen=True, kw_only=True)
class CallState(Changing):
    """A requested call and what became of it."""

    id: str
    provider_id: str
    name: str
    arguments: str
    asked_at_ms: int
    phase: Phase = Phase.ASKED
    verdict: str = ""
    effect: Effect = Effect.ONCE
    digest: Digest | None = None
    policies: tuple[str, ...] = ()
    reasons: tuple[str, ...] = ()
    question: str = ""
    approval: str = ""
    approval_expires_ms: int = 0
    bound: Digest | None = None
    """What the approval is bound to, as `gate.approvals` digests it; None of a record that does not say."""
    approvers: int = 1
    """How many people must approve."""
    principal_may_approve: bool = True
    approvals: tuple[str, ...] = ()
    """Who approved so far."""
    refused_by: str = ""
    outcome: str = ""
    """`ok`, or an error type; empty while open."""
    text: str = ""
    attachments: tuple[Attachment, ...] = ()
    reply: str = ""
    """What a client of the protocol is told, where `text` does not say it all: JSON, as the server said it."""
    tier: str = ""
    degraded: str = ""
    """The tier that was asked for, where policy accepted a weaker one."""
    duration_ms: float = 0.0
    dedupe_key: str = ""
    dedupe_until_ms: int | None = None
    duplicate_of: str = ""
    frees: tuple[str, ...] = ()
    again: bool = False
    own_key: bool = False
    unsure: bool = False
    """An earlier attempt may have been carried out, so that the failure of a later one says nothing."""
    effects_seen: int = 0
    """How many calls of the run had changed something, or may have, when its result came."""
    attempts: int = 0
    """Attempts that failed and are made again."""
    retry_at_ms: int = 0
    rounds: int = 0
    """How often its server ended it with a question; the call goes on when that is answered."""
    input: str = ""
    """The newest of these questions; and what was asked, until when it may be answered, and with what it was."""
    asked: str = ""
    asked_digest: Digest | None = None
    input_expires_ms: int = 0
    answers: str = ""
    """Empty while there are none; once answered, empty ends the call."""
    because: str = ""
    """Why it is ended so."""
    sampled: tuple[ModelSampled, ...] = ()
    """What the agent's own model was asked for its server, and said; attempts that failed among them."""
    live: str = ""
    """A question that its server holds it open for, and since when."""
    live_at_ms: int = 0
    task: str = ""
    """What its server calls the task that it goes on as; empty where it does not, or that went with its sandbox."""
    task_elsewhere: bool = False
    """The task is where no end of ours ends it."""
    task_begun_ms: int = 0
    """How long the run had been active when it began."""
    task_unheard: int = 0
    """Attempts in a row to ask after it in which nothing was heard."""
    task_due: bool = False
    """In doubt, and its server is to be asked what became of the task."""
    why_doubted: str = ""
    doubted_at_ms: int = 0
    """Since when nothing of the call runs any more, as far as is known."""
    probes: int = 0
    """Answers since then that decided nothing."""
    probe_at_ms: int | None = 0
    """When to ask again; None is a person's turn."""

    @property
    def open(self) -> bool:
        return self.phase is not Phase.DONE

    @property
    def kept_task(self) -> bool:
        """Whether it goes on as a task that may be asked after at any time: that repeats nothing."""
        return bool(self.task) and self.task_elsewhere

    @property
    def approved_by(self) -> str:
        return ", ".join(self.approvals)

    @property
    def counts(self) -> bool:
        """Whether the call was let go, or may yet be: what a limit on a tool counts."""
        let = self.verdict in ("allow", "ask") and not self.duplicate_of
        return let and self.outcome != "approval_refused"

    @property
    def malformed(self) -> bool:
        """The model asked for a tool that is not there, or with arguments it does not take."""
        return self.outcome in ("tool_hallucinated", "tool_args_malformed")


@dataclass(frozen=True, kw_only=True, slots=True)
class Receipt:
    """What a call that must not be repeated came to. `in_doubt`: nobody knows yet."""

    where: str
    """`run/call`."""
    at_ms: int
    text: str
    in_doubt: bool = False
    until_ms: int | None = None
    """When it no longer stands against the same call; None is never."""
    freed_by: tuple[str, ...] = ()
    """Terms, any of which ends it once a call that frees it has succeeded."""
    freed: bool = False
    """It ended so. Kept, because the service may still know the call by its idempotency key."""
    before: Receipt | None = None
    """Of a call whose outcome is open, after an earlier one: what was there, and is again if it comes to nothing."""

    def after(self, freed: Collection[str]) -> Receipt:
        """The same, ended if any of its terms is among these."""
        return replace(self, freed=True) if any(term in freed for term in self.freed_by) else self

    def stands(self, now_ms: int) -> bool:
        """Whether it was not freed and its window is still open; a doubt has none."""
        return self.in_doubt or (not self.freed and (self.until_ms is None or now_ms < self.until_ms))


def after(receipts: Mapping[str, Receipt], freed: Collection[str]) -> dict[str, Receipt]:
    """A copy of these receipts, those that any of these terms ends ended. Most calls end none: then none is looked at,
    as a session may have thousands."""
    return {key: each.after(freed) for key, each in receipts.items()} if freed else dict(receipts)


@dataclass(frozen=True, kw_only=True, slots=True)
class Emitted:
    """A call of an earlier reply that succeeded, as an adapter that emits it again would repeat it."""

    where: str
    """`run/call`."""
    name: str
    arguments: str
    text: str
    asked_at_ms: int
    effects_seen: int
    """How many calls of this run had changed something, or may have, when its result came; of an earlier run, 0."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Left:
    """What a run leaves to later ones: its own receipts, the terms of those it ended, and what it used."""

    receipts: Mapping[str, Receipt]
    freed: Mapping[str, int] = field(default_factory=dict)
    """When, in milliseconds, the newest call that ends a term succeeded."""
    used: Usage = field(default_factory=Usage)

    def after(self, earlier: Mapping[str, Receipt]) -> dict[str, Receipt]:
        """The receipts there are after this run, where `earlier` were there before it."""
        return after(earlier, self.freed) | dict(self.receipts)


@dataclass(frozen=True, kw_only=True, slots=True)
class Totals:
    """What a run has used. `cost_usd` None once any part of it is unknown."""

    steps: int = 0
    sampled: int = 0
    """Replies of the model that servers asked for; for a budget each is a step."""
    calls: int = 0
    cost_usd: Decimal | None = Decimal(0)
    known_usd: Decimal = Decimal(0)
    """While `cost_usd` is unknown: the part of it that is known."""
    input_tokens: int = 0
    output_tokens: int = 0
    reasoning_tokens: int = 0

    def costing(self, cost: Decimal | None) -> Totals:
        """With this cost more; None is unknown."""
        whole = None if self.cost_usd is None or cost is None else self.cost_usd + cost
        return replace(self, cost_usd=whole, known_usd=self.known_usd + (cost or 0))

    def plus(self, said: ModelReplied | ModelSampled, *, steps: int = 0, sampled: int = 0, calls: int = 0) -> Totals:
        """With what a reply of the model used, and was."""
        return replace(
            self.costing(parse_usd(said.cost_usd)),
            steps=self.steps + steps,
            sampled=self.sampled + sampled,
            calls=self.calls + calls,
            input_tokens=self.input_tokens + said.input_tokens,
            output_tokens=self.output_tokens + said.output_tokens,
            reasoning_tokens=self.reasoning_tokens + said.reasoning_tokens,
        )


@dataclass(frozen=True, kw_only=True)
class State(Changing):
    """Everything a decision may look at."""

    run: RunId
    transcript: Transcript
    history: int
    """How many of the transcript's messages come from earlier runs."""
    next_seq: int = 1
    status: Status = Status.NEW
    agent: str = ""
    lock: Digest | None = None
    session: str = ""
    principal: str = ""
    input: str = ""
    previous: tuple[RunId, ...] = ()
    """The earlier runs that the transcript begins with, oldest first."""
    unlocked: bool = False
    approve: str = "ask"
    client: str = ""
    """Whose one call the run is; empty where a model is asked."""
    started_at_ms: int = 0
    last_at_ms: int = 0
    waited_ms: int = 0
    """Time spent suspended or dead, which no budget counts."""
    context_built: bool = False
    replied: bool = False
    """The newest step has a reply with no calls: the run's answer."""
    output: str = ""
    finish_reason: str = ""
    """Of the newest reply, as the provider gave it."""
    calls: tuple[CallState, ...] = ()
    """Of the newest step, in the order asked."""
    settled: tuple[CallState, ...] = ()
    """Of earlier steps, in order."""
    failures: int = 0
    """Attempts of the pending inference that brought no reply."""
    last_failure: str = ""
    last_failure_kind: str = ""
    last_failure_transient: bool = False
    retry_after_s: float | None = None
    malformed_in_a_row: int = 0
    """Newest replies that asked for malformed calls only."""
    crashes: int = 0
    """Crashes since anything was last achieved."""
    suspended_for: str = ""
    """While suspended: the reason that the driver gave."""
    stop_reason: str = ""
    message: str = ""
    receipts: Mapping[str, Receipt] = field(default_factory=dict)
    """By deduplication key: the newest receipt. Never changed in place."""
    freed: Mapping[str, int] = field(default_factory=dict)
    """Terms that calls of this run have ended, and when. Never changed in place."""
    emitted: Mapping[str, tuple[Emitted, ...]] = field(default_factory=dict)
    """By provider id: calls of earlier replies, of this run and those before it. Never changed in place."""
    effects: int = 0
    """Calls of this run that may have changed something outside."""
    totals: Totals = field(default_factory=Totals)
    asked: Mapping[str, int] = field(default_factory=dict)
    """How often each call was asked for, by `same_call`. Never changed in place."""
    others: Mapping[str, Usage] = field(default_factory=dict)
    """By scope of the budget: what the other runs of it have used, as far as is known now. Of no event."""

    def call(self, call_id: str) -> CallState:
        """The call of the newest step with this id (KeyError when there is none)."""
        for call in self.calls:
            if call.id == call_id:
                return call
        raise KeyError(call_id)

    @property
    def left(self) -> Left:
        """Of a state folded by itself, without the receipts of earlier runs: what the run leaves."""
        return Left(receipts=self.receipts, freed=self.freed, used=self.used(self.last_at_ms))

    def used(self, now_ms: int) -> Usage:
        """What the run itself has used."""
        by_tool: dict[str, int] = {}
        for call in self.all_calls:
            if call.counts:
                by_tool[call.name] = by_tool.get(call.name, 0) + 1
        return Usage(
            runs=1,
            steps=self.totals.steps + self.totals.sampled,
            calls=self.totals.calls,
            tokens=self.totals.input_tokens + self.totals.output_tokens,
            cost_usd=self.totals.known_usd if self.totals.cost_usd is None else self.totals.cost_usd,
            cost_known=self.totals.cost_usd is not None,
            active_ms=self.active_ms(now_ms),
            by_tool=by_tool,
        )

    @property
    def all_calls(self) -> tuple[CallState, ...]:
        return (*self.settled, *self.calls)

    def active_ms(self, now_ms: int) -> int:
        """Time the run has used itself: since its start, without waits."""
        return now_ms - self.started_at_ms - self.waited_ms
