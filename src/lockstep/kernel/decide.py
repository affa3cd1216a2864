"""`decide(state) -> command`: what happens next. Pure: the same state and clock reading give the same command.

Calls of one reply are taken in the order asked: neighbouring reads together, a call with an effect alone. An effect
that was intended and not settled can only mean a crash in between, because the driver settles or doubts every call it
starts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from lockstep.agent.locked import Budget, LockedTool
from lockstep.kernel.apply import NOBODY
from lockstep.kernel.sampling import for_people, no_sample, sampled_whole, unsampled, wait_s
from lockstep.kernel.state import CallState, Phase, State, Status
from lockstep.kernel.usage import Over, backoff_s, over_calls, over_run, over_scopes, same_call
from lockstep.values import Effect

RETRY_S = (0.5, 1.0, 2.0, 4.0)
PROBE_S = (1.0, 2.0, 4.0)
"""Between questions that brought no answer; after the last, a person is asked."""
CRASH_LIMIT = 5
"""Crashes in a row without progress after which a run is stopped: it may be what kills the process."""
TASK_RETRY_S = (1.0, 2.0, 5.0, 15.0, 30.0, 60.0)
"""Before a task is asked after again; after so many times in a row without a word of it, the call is in doubt."""
MAX_ROUNDS = 8
"""How often the server of one call may ask for input."""


@dataclass(frozen=True, slots=True)
class Infer:
    """Ask the model, after waiting `delay_s` (a repeat after a transient failure)."""

    step: int
    attempt: int
    delay_s: float


@dataclass(frozen=True, slots=True)
class Judge:
    """Have the gate judge this call."""

    call: CallState


@dataclass(frozen=True, slots=True)
class Ask:
    """Ask for the approval of this call."""

    call: CallState


@dataclass(frozen=True, slots=True)
class Answer:
    """Settle an approval without a person: by `--approve`, or because it expired."""

    call: CallState
    given: bool
    by: str
    because: str = ""


@dataclass(frozen=True, slots=True)
class Execute:
    """Run these calls, after waiting `delay_s`: several reads at once, or one call with an effect."""

    calls: tuple[CallState, ...]
    delay_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Doubt:
    """Record that nobody knows whether this effect happened."""

    call: CallState
    why: str


@dataclass(frozen=True, slots=True)
class Drop:
    """End a call whose server asked for input and gets none: as far as it says, nothing was done."""

    call: CallState
    outcome: str
    why: str


@dataclass(frozen=True, slots=True)
class Sample:
    """Ask the agent's model, after waiting `delay_s`, what the server of this call asks of one under `key`."""

    call: CallState
    key: str
    delay_s: float


@dataclass(frozen=True, slots=True)
class Tell:
    """Let this call go on with what the model said: nothing else was asked."""

    call: CallState


@dataclass(frozen=True, slots=True)
class Probe:
    """Ask, after waiting `delay_s`, whether this call in doubt happened."""

    call: CallState
    delay_s: float


@dataclass(frozen=True, slots=True)
class Suspend:
    """Stop driving until a person has spoken."""

    reason: str
    call: CallState
    message: str


@dataclass(frozen=True, slots=True)
class Finish:
    """End the run."""

    stop_reason: str
    message: str = ""


Command = Infer | Judge | Ask | Answer | Execute | Doubt | Drop | Sample | Tell | Probe | Suspend | Finish


def decide(state: State, budget: Budget, now_ms: int, tools: Mapping[str, LockedTool] | None = None) -> Command | None:
    """The next command of a run, or None when it is finished or waits. `tools` say which doubts can be probed."""
    if state.status in (Status.NEW, Status.FINISHED, Status.SUSPENDED):
        return None
    if state.crashes >= CRASH_LIMIT:
        intended = next((call for call in state.calls if call.phase is Phase.INTENDED), None)
        if intended is not None:
            return Doubt(intended, "the process ended after the call was let go and before its outcome was recorded")
        if begun := next((call for call in state.calls if _is_between(call)), None):
            return Drop(begun, "not_continued", "the process ended again and again")
        return Finish("crashed", f"The process ended {state.crashes} times in a row without progress.")
    for call in state.calls:
        if call.outcome == "sandbox_unavailable":
            return Finish("sandbox_unavailable", call.text)
    if any(call.open for call in state.calls):
        return _on_calls(state, budget, now_ms, tools or {})
    if state.client:
        return Finish("completed")
    if state.replied:
        return _answer(state)
    return _over_budget(state, budget, now_ms) or _infer(state, budget, now_ms)


def _answer(state: State) -> Finish:
    """How a run ends whose model asked for no more calls: completed, unless the answer is none or only part of one."""
    if state.finish_reason == "content_filter":
        return Finish("content_filter", "The provider's content filter withheld the model's answer.")
    if state.finish_reason == "length":
        return Finish("truncated", "The model's answer was cut off at its token limit (model.max_tokens).")
    if not state.output.strip():
        return Finish("empty_reply", "The model answered with neither text nor a call.")
    return Finish("completed")


def resumable(state: State, now_ms: int, tools: Mapping[str, LockedTool] | None = None) -> bool:
    """Whether a suspended run has something to do again: nothing waits for a person any more, time has decided, or
    what is in doubt can be asked after."""
    waiting = [call for call in state.calls if call.phase in (Phase.WAITING, Phase.NEEDS_INPUT, Phase.DOUBTED)]
    return not waiting or any(_moves(call, now_ms, tools or {}) for call in waiting)


def _moves(call: CallState, now_ms: int, tools: Mapping[str, LockedTool]) -> bool:
    if call.phase is Phase.WAITING:
        return now_ms >= call.approval_expires_ms
    if call.phase is Phase.NEEDS_INPUT:
        return now_ms >= call.input_expires_ms or unsampled(call) is not None or sampled_whole(call)
    return call.kept_task or _has_probe(call, tools)


def _has_probe(call: CallState, tools: Mapping[str, LockedTool]) -> bool:
    return call.name in tools and tools[call.name].repeats.probe is not None


def _on_calls(state: State, budget: Budget, now_ms: int, tools: Mapping[str, LockedTool]) -> Command:
    fresh = not any(call.verdict for call in state.calls)  # a reply is taken as a whole or not at all
    if fresh and (over := _loop(state, budget) or over_calls(state.totals.calls, state.others, budget)):
        return Finish(over.reason, over.message)
    batch = _batch(state.calls)
    for call in batch:
        if call.phase is Phase.ASKED:
            return Ask(call) if call.verdict == "ask" else Judge(call)
    first = batch[0]
    if first.phase is Phase.INTENDED and not _may_run(first):
        return Doubt(first, "the process ended after the call was let go and before its outcome was recorded")
    for call in batch:
        if (lapsed := _without_approval(call, now_ms) or _without_input(state, call, now_ms)) is not None:
            return lapsed
    ready = tuple(call for call in batch if _may_run(call))
    if ready:
        # What became of a task is asked once more even when there is no time left: that takes none to speak of.
        if not first.kept_task and (ended := over_wall(state, budget, now_ms)) is not None:
            return Drop(first, "not_continued", ended.message) if _is_between(first) else ended
        return _execute(ready, now_ms)
    if (sampling := _sampling(state, batch, budget, now_ms)) is not None:
        return sampling
    if first.phase is Phase.DOUBTED and _has_probe(first, tools) and first.probe_at_ms is not None:
        delay_s = max(0, first.probe_at_ms - now_ms) / 1000
        if state.active_ms(now_ms) + delay_s * 1000 < budget.wall_s * 1000:
            return Probe(first, delay_s)
    return _wait(state, first, now_ms)


def _sampling(state: State, batch: tuple[CallState, ...], budget: Budget, now_ms: int) -> Sample | Tell | Drop | None:
    """What the agent's model still has to say to the server of one of these calls."""
    for call in batch:
        if sampled_whole(call):
            return Tell(call)
        if (key := unsampled(call)) is None:
            continue
        if over := no_sample(state, call, budget, now_ms):
            return Drop(call, over.reason, over.message[0].lower() + over.message[1:])
        return Sample(call, key, wait_s(call))
    return None


def _loop(state: State, budget: Budget) -> Over | None:
    """The end of a run whose model asks for the very same call again and again, whatever became of it."""
    for call in state.calls:
        if state.asked[same_call(call.name, call.arguments)] > budget.repeats:
            said = f"The model asked for {call.name:.100} with the same arguments more than {budget.repeats} times"
            return Over("loop", f"{said} (budget.repeats).")
    return None


def _execute(ready: tuple[CallState, ...], now_ms: int) -> Execute:
    """Those whose time has come; when none has, the first that will."""
    due = tuple(call for call in ready if call.retry_at_ms <= now_ms)
    if due:
        return Execute(due)
    soonest = min(ready, key=lambda call: call.retry_at_ms)
    return Execute((soonest,), delay_s=(soonest.retry_at_ms - now_ms) / 1000)


def _batch(calls: tuple[CallState, ...]) -> tuple[CallState, ...]:
    """The first open call, with the open reads that follow it when it is a read itself.

    An unjudged call ends the batch: only the gate knows whether it is a read. It is judged first and joins then.
    """
    batch: list[CallState] = []
    for call in calls:
        if not call.open:
            continue
        judged = bool(call.verdict)
        if batch and judged and call.effect is not Effect.READ:
            break
        batch.append(call)
        if not judged or call.effect is not Effect.READ:
            break
    return tuple(batch)


def _may_run(call: CallState) -> bool:
    if call.phase is Phase.DOUBTED:
        return call.task_due
    if call.phase is Phase.INTENDED:
        return call.effect in (Effect.IDEMPOTENT, Effect.KEYED) or call.kept_task
    return call.phase in (Phase.ALLOWED, Phase.APPROVED, Phase.ANSWERED)


def _is_between(call: CallState) -> bool:
    """Whether an effect was let go, and its server waits to be answered before it goes on."""
    return call.phase in (Phase.NEEDS_INPUT, Phase.ANSWERED) and call.effect is not Effect.READ


def _without_approval(call: CallState, now_ms: int) -> Answer | None:
    """The end of a call whose approval is good for nothing any more."""
    if call.phase is Phase.APPROVED and now_ms >= call.approval_expires_ms:
        return Answer(call, given=False, by=NOBODY, because="the approval expired before the call could run")
    if call.phase is Phase.APPROVED and call.bound is None:
        return Answer(call, given=False, by=NOBODY, because="the approval is of a version that did not bind it")
    return None


def _without_input(state: State, call: CallState, now_ms: int) -> Drop | None:
    """The end of a call that gets no answer to what its server asked."""
    if call.phase not in (Phase.NEEDS_INPUT, Phase.ANSWERED):
        return None
    if call.phase is Phase.ANSWERED and not call.answers:
        return Drop(call, "input_refused", call.because or "what its server asked for was refused")
    if now_ms >= call.input_expires_ms:
        return Drop(call, "input_expired", "what its server asked for was not answered in time")
    if call.phase is Phase.NEEDS_INPUT and state.approve == "none" and for_people(call):
        return Drop(call, "input_refused", "nobody is there to answer what its server asked for (--approve none)")
    return None


def _wait(state: State, call: CallState, now_ms: int) -> Command:
    if call.phase is Phase.DOUBTED:
        why = call.why_doubted.rstrip(".")
        asks = f" `lockstep resume {state.run}` asks its server once more what became of the task." * call.kept_task
        message = (
            f"{call.name} is in doubt: {why}.{asks} Find out whether it happened, then"
            f" `lockstep resume {state.run} --happened` or `lockstep resume {state.run} --did-not-happen`."
        )
        return Suspend("in_doubt", call, message)
    if call.phase is Phase.NEEDS_INPUT:
        message = (
            f"The server of {call.name} asks for input, {call.input}: `lockstep approvals` shows it,"
            f" `lockstep answer {call.input}` answers it, then `lockstep resume {state.run}`."
        )
        return Suspend("input", call, message)
    if now_ms >= call.approval_expires_ms:
        return Answer(call, given=False, by=NOBODY, because="the approval was not given in time")
    if state.approve == "none" or (state.approve == "all" and _one_may_answer(call)):
        return Answer(call, given=state.approve == "all", by=f"--approve {state.approve}")
    left = call.approvers - len(call.approvals)
    people = (
        ""
        if call.approvers == 1
        else f" by {left} {'more ' if call.approvals else ''}{'people' if left > 1 else 'person'}"
    )
    message = (
        f"{call.name} waits for approval {call.approval}{people}: `lockstep approve {call.approval}` or"
        f" `lockstep refuse {call.approval} --because ...`, then `lockstep resume {state.run}`."
    )
    return Suspend("approval", call, message)


def _one_may_answer(call: CallState) -> bool:
    """Whether a word given beforehand is enough: not where two must look, nor where the principal's does not count."""
    return call.approvers == 1 and call.principal_may_approve


def _infer(state: State, budget: Budget, now_ms: int) -> Command:
    if state.failures and not state.last_failure_transient:
        return Finish(_FAILURES.get(state.last_failure_kind, "model_refused"), state.last_failure)
    if state.failures > budget.model_retries:
        return Finish("model_unavailable", f"{state.last_failure} Tried {state.failures} times.")
    delay_s = 0.0
    if state.failures:
        delay_s = backoff_s(state.failures, state.retry_after_s)
        if state.active_ms(now_ms) + delay_s * 1000 >= budget.wall_s * 1000:
            wait = f"The next attempt is due in {delay_s:g} s, later than budget.wall_s allows."
            return Finish("model_unavailable", f"{state.last_failure} {wait}")
    return Infer(step=state.totals.steps + 1, attempt=state.failures + 1, delay_s=delay_s)


_FAILURES: Mapping[str, str] = {
    "recording_ended": "recording_ended",
    "recording_mismatch": "recording_mismatch",
    "bad_reply": "model_bad_reply",
}


def _over_budget(state: State, budget: Budget, now_ms: int) -> Finish | None:
    if state.malformed_in_a_row > budget.malformed:
        return Finish("malformed_limit", f"{state.malformed_in_a_row} replies in a row asked for malformed calls only.")
    used = state.used(now_ms)
    if over := over_run(used, budget) or over_scopes(used, state.others, budget):
        return Finish(over.reason, over.message)
    return over_wall(state, budget, now_ms)


def over_wall(state: State, budget: Budget, now_ms: int) -> Finish | None:
    """The end of a run that has used up its time."""
    if state.active_ms(now_ms) >= budget.wall_s * 1000:
        return Finish("budget_wall", f"The run has used its {budget.wall_s:g} s (budget.wall_s).")
    return None
