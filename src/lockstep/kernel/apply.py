"""`apply(state, event) -> state`: what each event means. The only place that interprets events for a decision."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from lockstep.errors import JournalCorrupt
from lockstep.journal import events as ev
from lockstep.journal.attachments import unpack
from lockstep.kernel.state import CallState, Emitted, Phase, Receipt, State, Status, after
from lockstep.kernel.transcript import Transcript
from lockstep.kernel.usage import same_call
from lockstep.model.port import AskedCall, AssistantMessage, ToolMessage, UserMessage
from lockstep.values import Effect, RunId, parse_usd

NOBODY = "nobody"
"""Who refuses an approval that expired."""

CALL_AGAIN_MS = 125
"""How long a server that only asked to be called again is left alone; twice as long each time."""

JOINED = "joined"
"""Outcome of a call that was not run, because another session made the same one a moment before: told its result."""

_Changes = dict[str, Any]
"""Fields of the state and their new values: one event, one copy of the state."""


def start(
    run: RunId,
    opening: Transcript,
    receipts: Mapping[str, Receipt] | None = None,
    emitted: Mapping[str, tuple[Emitted, ...]] | None = None,
) -> State:
    """The state before any event; all but `run` comes from the earlier runs of the session."""
    return State(
        run=run, transcript=opening, history=len(opening.messages), receipts=receipts or {}, emitted=emitted or {}
    )


def fold(state: State, recorded: Iterable[ev.Recorded]) -> State:
    """The state after all of these events, from what `start` gave.

    Raises:
        JournalCorrupt: an event speaks of a call that was never asked for, or says what no event can.
    """
    for item in recorded:
        try:
            state = apply(state, item.event, item.at_ms)
        except (KeyError, ValueError, ArithmeticError) as error:
            raise JournalCorrupt(
                f"Event {item.seq} ({item.event.TYPE}) of run {state.run} does not fit the events before it.",
                remedy=f"`lockstep verify {state.run}` says whether the record was changed.",
            ) from error
    return state


def apply(state: State, event: ev.Event, at_ms: int) -> State:
    """The state after one more event, which happened at `at_ms`."""
    changes = _APPLY[event.TYPE](state, event, at_ms)
    if state.status is Status.SUSPENDED:
        changes["waited_ms"] = state.waited_ms + at_ms - state.last_at_ms
    return state.changed(next_seq=state.next_seq + 1, last_at_ms=at_ms, **changes)


def _run_started(state: State, event: ev.RunStarted, at_ms: int) -> _Changes:
    return {
        "status": Status.RUNNING,
        "agent": event.agent,
        "lock": event.lock,
        "session": event.session,
        "principal": event.principal,
        "input": event.input,
        "previous": event.previous,
        "unlocked": event.unlocked,
        "approve": event.approve,
        "client": event.client,
        "started_at_ms": at_ms,
        "transcript": state.transcript.add(UserMessage(text=event.input)),
    }


def _context_built(state: State, event: ev.ContextBuilt, at_ms: int) -> _Changes:
    return {"context_built": True}


def _model_replied(state: State, event: ev.ModelReplied, at_ms: int) -> _Changes:
    asked = tuple(
        CallState(id=c.id, provider_id=c.provider_id, name=c.name, arguments=c.arguments, asked_at_ms=at_ms)
        for c in event.calls
    )
    message = AssistantMessage(
        text=event.text,
        calls=tuple(AskedCall(provider_id=c.provider_id, name=c.name, arguments=c.arguments) for c in event.calls),
    )
    return {
        "transcript": state.transcript.add(message),
        "context_built": False,
        "replied": not asked,
        "finish_reason": event.finish_reason,
        "output": event.text if not asked else state.output,
        "settled": (*state.settled, *state.calls) if state.calls else state.settled,
        "emitted": with_emitted(state.emitted, state.run, state.calls) if state.calls else state.emitted,
        "calls": asked,
        "failures": 0,
        "retry_after_s": None,
        "crashes": 0,
        "asked": _counted(state.asked, asked),
        "totals": state.totals.plus(event, steps=1, calls=len(asked)),
    }


def _model_failed(state: State, event: ev.ModelFailed, at_ms: int) -> _Changes:
    return {
        "failures": state.failures + 1,
        "last_failure": event.message,
        "last_failure_kind": event.kind,
        "last_failure_transient": event.transient,
        "retry_after_s": event.retry_after_s,
    }


def _call_judged(state: State, event: ev.CallJudged, at_ms: int) -> _Changes:
    call: _Changes = {
        "verdict": event.verdict,
        "effect": Effect(event.effect) if event.effect else Effect.ONCE,
        "digest": event.digest,
        "policies": event.policies,
        "reasons": event.reasons,
        "question": event.question,
        "approvers": event.approvers,
        "dedupe_key": event.dedupe_key,
        "dedupe_until_ms": event.dedupe_until_ms,
        "duplicate_of": event.duplicate_of,
        "frees": event.frees,
        "again": event.again,
        "own_key": event.own_key,
    }
    if event.verdict in ("allow", "ask") and not event.duplicate_of:
        call["phase"] = Phase.ALLOWED if event.verdict == "allow" else Phase.ASKED
    else:
        outcome = "ok" if event.duplicate_of else event.error_type or "policy_denied"
        call |= {"phase": Phase.DONE, "outcome": outcome, "text": event.note}
    return _with_call(state, event.call, call)


def _approval_asked(state: State, event: ev.ApprovalAsked, at_ms: int) -> _Changes:
    call = {
        "phase": Phase.WAITING,
        "approval": event.approval,
        "approval_expires_ms": event.expires_at_ms,
        "bound": event.bound,
        "approvers": event.approvers,
        "principal_may_approve": event.principal_may_approve,
    }
    return _with_call(state, event.call, call)


def _approval_given(state: State, event: ev.ApprovalGiven, at_ms: int) -> _Changes:
    call = state.call(event.call)
    _require_asked(call, event)
    if problem := barred(state, call, event.by):
        raise ValueError(problem)
    approvals = (*call.approvals, event.by)
    phase = Phase.APPROVED if len(approvals) >= call.approvers else Phase.WAITING
    return _with_call(state, event.call, {"phase": phase, "approvals": approvals})


def _approval_refused(state: State, event: ev.ApprovalRefused, at_ms: int) -> _Changes:
    _require_asked(state.call(event.call), event)
    because = f" because: {event.because.rstrip('.')}." if event.because else "."
    who = "nobody approved this call in time." if event.by == NOBODY else f"{event.by} refused this call{because}"
    text = f"Not run: {who} Do not ask for it again unless the user says so."
    call = {"phase": Phase.DONE, "outcome": "approval_refused", "refused_by": event.by, "text": text}
    return _with_call(state, event.call, call)


def _require_asked(call: CallState, event: ev.ApprovalGiven | ev.ApprovalRefused) -> None:
    """An answer to another question, or about another call, is none: who wrote it did not see this one."""
    if (event.approval, event.digest, event.bound) != (call.approval, call.digest, call.bound):
        raise ValueError(f"{event.TYPE} is not of the call that was asked about")


def barred(state: State, call: CallState, by: str) -> str:
    """Why this person cannot be one who approves the call; empty when they can."""
    name = _person(by)
    if not call.principal_may_approve and name == _person(state.principal):
        return f"The run acts for {by}, who may not approve its calls (policy.principal_may_approve)."
    if name in map(_person, call.approvals):
        return f"{by} approved this already; it needs {call.approvers} different people."
    return ""


def _person(name: str) -> str:
    """Names that differ only in case or spaces are of one person."""
    return " ".join(name.split()).casefold()


def _effect_intended(state: State, event: ev.EffectIntended, at_ms: int) -> _Changes:
    # From here on the effect may have happened: if the run is ended before it settles, the session must know.
    once = state.call(event.call).effect is Effect.ONCE
    return {
        **_with_call(state, event.call, {"phase": Phase.INTENDED}),
        **(_with_receipt(state, event.call, at_ms, "in_doubt", "") if once else {}),
        "effects": state.effects + 1,
    }


def _effect_settled(state: State, event: ev.EffectSettled, at_ms: int) -> _Changes:
    fee = parse_usd(event.fee_usd)
    totals = state.totals
    if fee is not None:
        totals = totals.costing(fee)
    call = {
        "phase": Phase.DONE,
        "outcome": event.outcome,
        "text": event.text,
        "attachments": unpack(event.attachments),
        "reply": event.reply,
        "tier": event.tier,
        "degraded": event.degraded,
        "duration_ms": event.queue_ms + event.start_ms + event.run_ms,
        "effects_seen": state.effects,
    }
    return {
        "totals": totals,
        "crashes": 0,
        **_with_receipt(state, event.call, at_ms, event.outcome, event.text, event.freed_by),
        **_with_call(state, event.call, call),
    }


def _effect_retried(state: State, event: ev.EffectRetried, at_ms: int) -> _Changes:
    call = state.call(event.call)
    # Asking after a task once more is no attempt that could have been carried out.
    unsure = call.unsure or (event.unknown and not call.kept_task)
    again: _Changes = {"attempts": event.attempt, "retry_at_ms": at_ms + event.delay_ms, "unsure": unsure}
    unheard = 0 if event.heard else call.task_unheard + 1
    again |= {"task_due": True, "task_unheard": unheard} if call.kept_task else _without_task(call)
    return _with_call(state, event.call, again)


def _input_asked(state: State, event: ev.InputAsked, at_ms: int) -> _Changes:
    if event.live:
        return _with_call(state, event.call, {"live": event.input, "asked_digest": event.digest, "live_at_ms": at_ms})
    call = state.call(event.call)
    changes: _Changes = {
        "phase": Phase.NEEDS_INPUT,
        "rounds": call.rounds + 1,
        "input": event.input,
        "asked": event.asked,
        "asked_digest": event.digest,
        "input_expires_ms": event.expires_at_ms,
        "answers": "",
        "unsure": call.unsure or event.acted,
        "tier": event.tier,
    }
    return {"crashes": 0, **_with_call(state, event.call, changes)}


def _input_given(state: State, event: ev.InputGiven, at_ms: int) -> _Changes:
    call = state.call(event.call)
    if event.digest != call.asked_digest or event.input not in (call.live, call.input):
        raise ValueError(f"{event.TYPE} is not of what was asked")
    if event.input == call.live:  # a person's time, which no budget counts
        return {**_with_call(state, event.call, {"live": ""}), "waited_ms": state.waited_ms + at_ms - call.live_at_ms}
    if call.phase is not Phase.NEEDS_INPUT:
        raise ValueError(f"{event.TYPE} is of what was answered already")
    changes: _Changes = {"phase": Phase.ANSWERED, "answers": event.responses, "because": event.because}
    if event.responses == "{}":  # nothing was asked but to be called again: not at once, and later each time
        changes["retry_at_ms"] = at_ms + CALL_AGAIN_MS * 2**call.rounds
    return _with_call(state, event.call, changes)


def _model_sampled(state: State, event: ev.ModelSampled, at_ms: int) -> _Changes:
    call = state.call(event.call)
    if event.input not in (call.live, call.input):
        raise ValueError(f"{event.TYPE} is not of what was asked")
    since_ms = at_ms if event.input == call.live else call.live_at_ms  # a model's time is the run's own
    changes = _with_call(state, event.call, {"sampled": (*call.sampled, event), "live_at_ms": since_ms})
    return changes if event.failure else {**changes, "crashes": 0, "totals": state.totals.plus(event, sampled=1)}


def _task_begun(state: State, event: ev.TaskBegun, at_ms: int) -> _Changes:
    call = state.call(event.call)
    if call.phase not in (Phase.ALLOWED, Phase.APPROVED, Phase.INTENDED, Phase.ANSWERED, Phase.DOUBTED):
        raise ValueError(f"{event.TYPE} is of a call that is not under way")
    begun: _Changes = {"task": event.task, "task_elsewhere": event.elsewhere, "task_begun_ms": state.active_ms(at_ms)}
    begun |= {"asked": "", "answers": "", "attempts": 0, "retry_at_ms": 0, "task_unheard": 0}
    if call.phase is Phase.ANSWERED:  # a read, which goes on by itself now; an effect is intended, or in doubt
        begun["phase"] = Phase.ALLOWED
    crashes = 0 if event.elsewhere else state.crashes  # what a crash takes along is nothing achieved
    return {"crashes": crashes, **_with_call(state, event.call, begun)}


def _effect_doubted(state: State, event: ev.EffectDoubted, at_ms: int) -> _Changes:
    call = {
        "phase": Phase.DOUBTED,
        "why_doubted": event.why,
        "doubted_at_ms": at_ms,
        "task_due": False,
        "tier": event.tier,
        "degraded": event.degraded,
        "duration_ms": event.run_ms,
    }
    return {**_with_receipt(state, event.call, at_ms, "in_doubt", ""), **_with_call(state, event.call, call)}


def _effect_probed(state: State, event: ev.EffectProbed, at_ms: int) -> _Changes:
    call = {"probes": state.call(event.call).probes + 1, "probe_at_ms": event.again_at_ms}
    return _with_call(state, event.call, call)


def _effect_reconciled(state: State, event: ev.EffectReconciled, at_ms: int) -> _Changes:
    receipts, call = _known_outcome(state, event, at_ms)
    return {**receipts, **_with_call(state, event.call, call)}


def _doubt_settled(state: State, event: ev.DoubtSettled, at_ms: int) -> _Changes:
    # The model was told that nobody knew, and that stays said: the transcript is as it was when the run ended.
    receipts, call = _known_outcome(state, event, at_ms)
    return {**receipts, "calls": _changed(state.calls, event.call, call)}


def _known_outcome(state: State, event: ev.EffectReconciled | ev.DoubtSettled, at_ms: int) -> tuple[_Changes, _Changes]:
    """What a doubt that is no more changes in the receipts, and in its call."""
    outcome = "ok" if event.happened else "did_not_happen"
    receipts = _with_receipt(state, event.call, at_ms, outcome, event.text, event.freed_by)
    return receipts, {"phase": Phase.DONE, "outcome": outcome, "text": event.text}


def _run_suspended(state: State, event: ev.RunSuspended, at_ms: int) -> _Changes:
    return {"status": Status.SUSPENDED, "suspended_for": event.reason, "message": event.message}


def _run_resumed(state: State, event: ev.RunResumed, at_ms: int) -> _Changes:
    return {
        "calls": tuple(call.changed(**_resumed(state, call, event, at_ms)) for call in state.calls),
        "status": Status.RUNNING,
        "suspended_for": "",
        "message": "",
        "context_built": False,
        "crashes": state.crashes + event.after_crash,
        "waited_ms": state.waited_ms + at_ms - state.last_at_ms,
    }


def _resumed(state: State, call: CallState, event: ev.RunResumed, at_ms: int) -> _Changes:
    """What of a call changes: whoever resumes ends what a crash left running, and asks anew after what is in doubt."""
    changes: _Changes = {}
    if not call.task_elsewhere and (event.after_crash or state.suspended_for != "input"):
        changes = _without_task(call)  # it went with its sandbox, which only a run that waits for an answer keeps
    if call.phase is Phase.DOUBTED:
        changes |= {"probes": 0, "probe_at_ms": at_ms, "task_due": call.kept_task}
        changes |= {"task_unheard": 0, "attempts": 0, "retry_at_ms": 0}
        if event.after_crash:
            changes["doubted_at_ms"] = at_ms
    elif changes.get("phase", call.phase) is Phase.INTENDED and not call.kept_task:
        changes["unsure"] = True  # it had been let go, and where it is run again it may have been carried out
    return changes


def _without_task(call: CallState) -> _Changes:
    """A task that is no more, and what was asked and said in it: as far as the call is made again, it begins anew."""
    phase = call.phase
    if phase in (Phase.NEEDS_INPUT, Phase.ANSWERED):  # the task was under way, which is no time between rounds
        phase = Phase.ALLOWED if call.effect is Effect.READ else Phase.INTENDED
    return {"phase": phase, "task": "", "asked": "", "answers": ""} if call.task else {}


def _run_finished(state: State, event: ev.RunFinished, at_ms: int) -> _Changes:
    # A provider refuses a history in which a call has no answer, so what was cut short is answered here.
    cut = any(call.open for call in state.calls)
    answers = tuple(_answer(call) for call in state.calls) if cut else ()
    return {
        "status": Status.FINISHED,
        "stop_reason": event.stop_reason,
        "message": event.message,
        "output": event.output,
        "transcript": state.transcript.add(*answers),
    }


def _answer(call: CallState) -> ToolMessage:
    """What the model is told of a call: its result, or that the run ended first."""
    text = call.text
    if call.phase in (Phase.INTENDED, Phase.DOUBTED):
        text = "The run was stopped before it was known whether this call happened. Do not assume either, or repeat it."
    elif call.phase in (Phase.NEEDS_INPUT, Phase.ANSWERED):
        text = "Not carried on: the run was stopped while this call waited for input."
    elif call.open:
        text = "Not run: the run was stopped before this call."
    return ToolMessage(
        provider_id=call.provider_id,
        name=call.name,
        text=text,
        is_error=call.outcome not in ("ok", JOINED),
        images=tuple(attachment for attachment in call.attachments if attachment.shown),
    )


def _with_call(state: State, call_id: str, changes: _Changes) -> _Changes:
    """Change one call; when it was the last open one of the step, tell the model about all of them, in order."""
    calls = _changed(state.calls, call_id, changes)
    if any(call.open for call in calls):
        return {"calls": calls}
    return {
        "calls": calls,
        "transcript": state.transcript.add(*map(_answer, calls)),
        "malformed_in_a_row": state.malformed_in_a_row + 1 if all(call.malformed for call in calls) else 0,
    }


def _changed(calls: tuple[CallState, ...], call_id: str, changes: _Changes) -> tuple[CallState, ...]:
    return tuple(call.changed(**changes) if call.id == call_id else call for call in calls)


def _with_receipt(
    state: State, call_id: str, at_ms: int, outcome: str, text: str, freed_by: tuple[str, ...] = ()
) -> _Changes:
    """Keep, change or drop what stands against the same call; a call that succeeds ends the receipts it frees."""
    call = state.call(call_id)
    freed = frozenset(call.frees) if outcome == "ok" else frozenset()
    if not call.dedupe_key and not freed:
        return {}
    where = f"{state.run}/{call_id}"
    before = None
    if (standing := state.receipts.get(call.dedupe_key)) and (call.again or call.own_key):
        # A run that is read by itself has no receipt of earlier ones: what stands there is this call's own doubt.
        before = standing.before if standing.where == where else standing
    receipts = after(state.receipts, freed)
    receipts.pop(call.dedupe_key, None)
    if call.dedupe_key and outcome in ("ok", "result_unusable", "in_doubt"):
        in_doubt = outcome == "in_doubt"
        receipts[call.dedupe_key] = Receipt(
            where=where,
            at_ms=at_ms,
            text=text,
            in_doubt=in_doubt,
            until_ms=call.dedupe_until_ms,
            freed_by=freed_by,
            before=before if in_doubt else None,
        )
    elif before is not None:
        receipts[call.dedupe_key] = before
    return {"receipts": receipts, "freed": {**state.freed, **dict.fromkeys(freed, at_ms)}}


def with_emitted(
    emitted: Mapping[str, tuple[Emitted, ...]], run: RunId, calls: Iterable[CallState]
) -> Mapping[str, tuple[Emitted, ...]]:
    """`emitted` with these calls of a run, where they succeeded and ran themselves."""
    found = dict(emitted)
    for call in calls:
        if call.provider_id and call.outcome == "ok" and not call.duplicate_of:
            one = Emitted(
                where=f"{run}/{call.id}",
                name=call.name,
                arguments=call.arguments,
                text=call.text,
                asked_at_ms=call.asked_at_ms,
                effects_seen=call.effects_seen,
            )
            found[call.provider_id] = (*found.get(call.provider_id, ()), one)
    return found


def _counted(asked: Mapping[str, int], calls: Iterable[CallState]) -> Mapping[str, int]:
    counts = dict(asked)
    for call in calls:
        same = same_call(call.name, call.arguments)
        counts[same] = counts.get(same, 0) + 1
    return counts


_APPLY: dict[str, Callable[[State, Any, int], _Changes]] = {
    ev.RunStarted.TYPE: _run_started,
    ev.ContextBuilt.TYPE: _context_built,
    ev.ModelReplied.TYPE: _model_replied,
    ev.ModelFailed.TYPE: _model_failed,
    ev.CallJudged.TYPE: _call_judged,
    ev.ApprovalAsked.TYPE: _approval_asked,
    ev.ApprovalGiven.TYPE: _approval_given,
    ev.ApprovalRefused.TYPE: _approval_refused,
    ev.EffectIntended.TYPE: _effect_intended,
    ev.EffectSettled.TYPE: _effect_settled,
    ev.EffectRetried.TYPE: _effect_retried,
    ev.InputAsked.TYPE: _input_asked,
    ev.InputGiven.TYPE: _input_given,
    ev.TaskBegun.TYPE: _task_begun,
    ev.ModelSampled.TYPE: _model_sampled,
    ev.EffectDoubted.TYPE: _effect_doubted,
    ev.EffectProbed.TYPE: _effect_probed,
    ev.EffectReconciled.TYPE: _effect_reconciled,
    ev.RunSuspended.TYPE: _run_suspended,
    ev.RunResumed.TYPE: _run_resumed,
    ev.RunFinished.TYPE: _run_finished,
    ev.DoubtSettled.TYPE: _doubt_settled,
}
