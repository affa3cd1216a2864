"""The state of a run: a fold over its events. Values only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from enum import StrEnum

from lockstep.kernel.transcript import Transcript
from lockstep.values import Digest, Effect, RunId


class Phase(StrEnum):
    """Where a call stands. `DONE` has a text for the model; `DOUBTED` waits for a person or a probe."""

    ASKED = "asked"
    ALLOWED = "allowed"
    WAITING = "waiting"
    APPROVED = "approved"
    INTENDED = "intended"
    DOUBTED = "doubted"
    DONE = "done"


class Status(StrEnum):
    NEW = "new"
    RUNNING = "running"
    SUSPENDED = "suspended"
    FINISHED = "finished"


@dataclass(frozen=True, kw_only=True, slots=True)
class CallState:
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
    approved_by: str = ""
    outcome: str = ""
    """`ok`, or an error type; empty while open."""
    text: str = ""
    tier: str = ""
    degraded: str = ""
    """The tier that was asked for, where policy accepted a weaker one."""
    duration_ms: float = 0.0
    dedupe_key: str = ""
    duplicate_of: str = ""
    why_doubted: str = ""

    @property
    def open(self) -> bool:
        return self.phase is not Phase.DONE

    @property
    def malformed(self) -> bool:
        """The model asked for a tool that is not there, or with arguments it does not take."""
        return self.outcome in ("tool_hallucinated", "tool_args_malformed")


@dataclass(frozen=True, kw_only=True, slots=True)
class Receipt:
    """What a call that must not be repeated came to. `in_doubt`: nobody knows yet."""

    where: str
    """`run/call`."""
    text: str
    in_doubt: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Totals:
    """What a run has used. `cost_usd` None once any part of it is unknown."""

    steps: int = 0
    calls: int = 0
    cost_usd: Decimal | None = Decimal(0)
    input_tokens: int = 0
    output_tokens: int = 0
    reasoning_tokens: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class State:
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
    unlocked: bool = False
    approve: str = "ask"
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
    stop_reason: str = ""
    message: str = ""
    receipts: Mapping[str, Receipt] = field(default_factory=dict)
    """By deduplication key: the first receipt in the session. Never changed in place."""
    totals: Totals = field(default_factory=Totals)

    def call(self, call_id: str) -> CallState:
        """The call of the newest step with this id (KeyError when there is none)."""
        for call in self.calls:
            if call.id == call_id:
                return call
        raise KeyError(call_id)

    @property
    def all_calls(self) -> tuple[CallState, ...]:
        return (*self.settled, *self.calls)

    def active_ms(self, now_ms: int) -> int:
        """Time the run has used itself: since its start, without waits."""
        return now_ms - self.started_at_ms - self.waited_ms
