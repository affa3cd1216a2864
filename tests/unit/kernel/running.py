"""A run without a driver: events by hand, and what the kernel makes of them. No time passes but what is said."""

from __future__ import annotations

from lockstep.agent.locked import Budget
from lockstep.journal import events as ev
from lockstep.kernel import decide as do
from lockstep.kernel.apply import apply, start
from lockstep.kernel.state import CallState, Receipt, State
from lockstep.kernel.transcript import Transcript
from lockstep.values import Digest, Effect, RunId

T0 = 1_000_000
DIGEST = Digest("3" * 64)
BOUND = Digest("4" * 64)
BUDGET = Budget(steps=10, calls=20)


class Run:
    """`run.says(event, ...)` applies events, `run.next()` asks for the next command; `run.now` is the clock."""

    def __init__(self, *, approve: str = "ask", receipts: dict[str, Receipt] | None = None) -> None:
        self.now = T0
        self.state: State = start(RunId("r1"), Transcript((), b""), receipts)
        self.says(
            ev.RunStarted(
                agent="travel",
                lock=DIGEST,
                lock_text="",
                directory="/",
                principal="ada",
                session="s1",
                input="Book it.",
                approve=approve,
            )
        )

    def says(self, *events: ev.Event) -> State:
        for event in events:
            self.state = apply(self.state, event, self.now)
        return self.state

    def next(self, budget: Budget = BUDGET) -> do.Command | None:
        return do.decide(self.state, budget, self.now)

    def call(self, call_id: str) -> CallState:
        return self.state.call(call_id)


def replied(*names: str, step: int = 1, text: str = "", cost_usd: str | None = "0.01") -> ev.ModelReplied:
    """A reply asking for these tools, as calls `step.0`, `step.1`, ..."""
    calls = tuple(
        ev.Asked(id=f"{step}.{place}", provider_id=f"c{step}{place}", name=name, arguments="{}")
        for place, name in enumerate(names)
    )
    return ev.ModelReplied(step=step, text=text, calls=calls, cost_usd=cost_usd, input_tokens=10, output_tokens=5)


def judged(call: str, verdict: str = "allow", effect: Effect = Effect.READ, key: str = "") -> ev.CallJudged:
    return ev.CallJudged(call=call, verdict=verdict, digest=DIGEST, effect=effect.value, dedupe_key=key)


def malformed(call: str, kind: str = "tool_args_malformed") -> ev.CallJudged:
    return ev.CallJudged(call=call, verdict="invalid", error_type=kind, note="Correct it.", effect="read")


def denied(call: str) -> ev.CallJudged:
    return ev.CallJudged(call=call, verdict="deny", error_type="policy_denied", note="Denied.", effect="once")


def asked(call: str, expires_at_ms: int = T0 + 1000) -> ev.ApprovalAsked:
    return ev.ApprovalAsked(
        call=call, approval=f"a{call}", digest=DIGEST, question="?", expires_at_ms=expires_at_ms, bound=BOUND
    )


def given(call: str) -> ev.ApprovalGiven:
    return ev.ApprovalGiven(call=call, approval=f"a{call}", digest=DIGEST, by="ada", bound=BOUND)


def refused(call: str, because: str = "", by: str = "ada") -> ev.ApprovalRefused:
    return ev.ApprovalRefused(call=call, approval=f"a{call}", digest=DIGEST, by=by, because=because, bound=BOUND)


def intended(call: str) -> ev.EffectIntended:
    return ev.EffectIntended(call=call, permit="p", digest=DIGEST, key="k")


def settled(call: str, outcome: str = "ok", text: str = "done") -> ev.EffectSettled:
    return ev.EffectSettled(call=call, outcome=outcome, text=text)


def failed(
    kind: str = "timeout", transient: bool = True, retry_after_s: float | None = None, attempt: int = 1
) -> ev.ModelFailed:
    return ev.ModelFailed(
        step=1, attempt=attempt, kind=kind, message="No answer.", transient=transient, retry_after_s=retry_after_s
    )


CONTEXT = ev.ContextBuilt(step=1, digest=DIGEST)
CRASHED = ev.RunResumed(by="ada", after_crash=True)
RESUMED = ev.RunResumed(by="ada")
SUSPENDED = ev.RunSuspended(reason="approval", call="1.0", message="waits")
