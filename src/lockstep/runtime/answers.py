"""What people say to a run: approve, refuse, settle, cancel. Each is one event; nothing is driven here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

from lockstep.agent.from_lock import locked_agent
from lockstep.agent.lock import from_text
from lockstep.errors import ApprovalError, FenceConflict, JournalCorrupt, LockError, RunError, StoreDamaged
from lockstep.gate.approvals import Terms, bound_digest
from lockstep.gate.arguments import read
from lockstep.gate.effects import freed_by
from lockstep.journal.events import (
    ENDED,
    DoubtSettled,
    EffectReconciled,
    Event,
    Recorded,
    RunFinished,
    RunStarted,
)
from lockstep.journal.port import Journal, RunRow
from lockstep.journal.stops import require_running
from lockstep.kernel.apply import NOBODY, apply, barred, fold, start
from lockstep.kernel.state import CallState, Phase, State, Status, Totals
from lockstep.kernel.transcript import UNSEEDED
from lockstep.runtime.outcomes import answered, cancelled
from lockstep.runtime.reading import Unreadable, read_row, read_run, read_state, unfinished
from lockstep.values import RunId, now_ms

_LOOKED_BACK = 200
"""Runs in which an approval is looked for that nothing waits for, to say who answered it."""
_DIGEST_CHARS = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """What a person says to an approval. `by` is who they say they are, `login` the account they are known by here."""

    given: bool
    by: str
    because: str = ""
    login: str = ""
    digest: str = ""
    """What they were shown, or its beginning, if they say it: an answer to anything else is none."""


TermsNow = Callable[[RunStarted], Terms]
"""The lock and policies that hold now for the agent of a run; raises LockError where that cannot be told."""


async def answer_approval(journal: Journal, approval: str, answer: Answer, terms_now: TermsNow) -> State:
    """Give or refuse an approval; it is bound to exactly what was asked, and each answer is one event.

    Returns:
        The state after it. Where several people must approve, the call may still wait.
    Raises:
        ApprovalError: it is unknown, answered, expired, or for something else, or this person may not give it.
        AgentStopped: somebody stopped the agent; refusing is possible all the same.
        LockError: what is locked now cannot be told.
    """
    state, call = await approvable(journal, approval, answer, terms_now)
    event = answered(call, given=answer.given, by=answer.by, because=answer.because, login=answer.login)
    try:
        await append(journal, state, event)
    except FenceConflict:
        await _asked(journal, approval)  # says who was faster, if it was an answer
        raise
    return await read_state(journal, state.run)


async def approvable(journal: Journal, approval: str, answer: Answer, terms_now: TermsNow) -> tuple[State, CallState]:
    """The call that this answer would be for. Only reads: also for whoever hands the answer to another process.

    Raises:
        ApprovalError, AgentStopped, LockError: the answer would come to nothing, as for `answer_approval`.
    """
    state, call = await _asked(journal, approval)
    if not _is_shown(call, answer.digest):
        raise ApprovalError(
            f"Approval {approval} is not for what has the digest {answer.digest:.64}.",
            remedy="`lockstep approvals` shows what it is for.",
        )
    if answer.given:
        require_running(journal, state.agent)
        await _require_valid(journal, state, call, answer.by, terms_now)
    return state, call


async def _asked(journal: Journal, approval: str) -> tuple[State, CallState]:
    """The call that waits for this approval.

    Raises:
        ApprovalError: none does; says who answered it, as far as that is to be found.
    """
    runs = await unfinished(journal)
    for state in runs:
        if isinstance(state, State):
            for call in state.all_calls:
                if call.approval == approval and approval:
                    _require_waiting(state, call)
                    return state, call
    broken = [each.row.run for each in runs if isinstance(each, Unreadable)]
    but = f" What waits in {', '.join(broken)} cannot be read." if broken else ""
    for row in await journal.runs(limit=_LOOKED_BACK):
        if row.last in ENDED and isinstance(state := await read_row(journal, row), State):
            for call in state.all_calls:
                if call.approval == approval and approval:
                    _require_waiting(state, call)
                    raise ApprovalError(f"Approval {approval} is of run {row.run}, which has finished.")
    raise ApprovalError(f"No approval {approval} is waiting.{but}", remedy="`lockstep approvals` lists those that are.")


def _require_waiting(state: State, call: CallState) -> None:
    who = call.refused_by or call.approved_by
    if call.phase is Phase.WAITING or not who:
        return
    how = "refused" if call.refused_by else "approved"
    by = "nobody in time" if who == NOBODY else f"{who}, who {how} it"
    raise ApprovalError(
        f"Approval {call.approval} was already answered by {by}.", remedy=f"`lockstep show {state.run}` says more."
    )


async def _require_valid(journal: Journal, state: State, call: CallState, by: str, terms_now: TermsNow) -> None:
    """Refuse a yes that would be worth nothing, or that this person may not give.

    Raises:
        ApprovalError, LockError: with its reason. A no is possible all the same.
    """
    refuse = f"`lockstep refuse {call.approval}` is possible all the same."
    if now_ms() >= call.approval_expires_ms:
        raise ApprovalError(
            f"Approval {call.approval} has expired.", remedy=f"`lockstep resume {state.run}` goes on without it."
        )
    if call.bound is None:
        raise ApprovalError(
            f"Approval {call.approval} was asked for by a version that did not bind it to a lock and policies.",
            remedy=refuse,
        )
    started = (await read_run(journal, state.run))[0].event
    assert isinstance(started, RunStarted)
    now = terms_now(started)
    if now.lock != state.lock:
        raise ApprovalError(
            f"agent.lock changed since approval {call.approval} was asked for:"
            f" the run is of {str(state.lock)[:12]}, {started.directory} is now {now.lock[:12]}.",
            remedy=f"{refuse} `lockstep cancel {state.run}` ends the run; a new one runs under the new lock.",
        )
    if bound_digest(state, call, now) != call.bound:
        raise ApprovalError(
            f"Approval {call.approval} was asked for about another call, principal or policy than its run has now.",
            remedy=f"`lockstep verify {state.run}` says whether its record was changed.",
        )
    if problem := barred(state, call, by):
        raise ApprovalError(problem, remedy=f"Somebody else has to. {refuse}")


def _is_shown(call: CallState, digest: str) -> bool:
    """Whether a digest that a person names is this call's or its approval's; eight characters are enough."""
    if not digest:
        return True
    known = (call.digest or "", call.bound or "")
    return len(digest) >= _DIGEST_CHARS and any(each.startswith(digest) for each in known)


async def settle(
    journal: Journal, run: RunId, call_id: str = "", *, happened: bool, by: str, result: str = ""
) -> CallState:
    """Say what became of a call in doubt, also of a run that has ended. `result`: what the tool would have answered.

    Raises:
        RunError: nothing in this run is in doubt, that call is not, or more than one is and none was named.
    """
    recorded = await read_run(journal, run)
    state = fold(start(run, UNSEEDED), recorded)
    doubted = [call for call in state.calls if call.phase is Phase.DOUBTED and call_id in ("", call.id)]
    if not doubted:
        what = f"Call {call_id} of run {run} is not in doubt." if call_id else f"Nothing in run {run} is in doubt."
        raise RunError(what, remedy=f"`lockstep show {run}` says where it stands; `lockstep doubts` lists what is.")
    if len(doubted) > 1:
        raise RunError(
            f"{len(doubted)} calls of run {run} are in doubt.",
            remedy=f"Name one: {', '.join(f'{run}/{call.id}' for call in doubted)}.",
        )
    call = doubted[0]
    if happened:
        text = result or f"{call.name} did happen, as {by} found out; its own reply was lost."
    else:
        text = f"{call.name} did not happen, as {by} found out. It may be called again."
    kind = DoubtSettled if state.status is Status.FINISHED else EffectReconciled
    terms = _freed_by(recorded, call, result) if happened and result else ()
    await append(journal, state, kind(call=call.id, happened=happened, by=by, text=text, freed_by=terms))
    return call


def _freed_by(recorded: Sequence[Recorded], call: CallState, result: str) -> tuple[str, ...]:
    started = cast(RunStarted, recorded[0].event)
    try:
        agent = locked_agent(from_text(started.lock_text, "the run's lock"))
    except LockError:  # of a version that knows more: what happened is said all the same, and nothing frees it
        return ()
    return freed_by(agent.tools[call.name], read(call.arguments).value, result)


async def cancel(journal: Journal, run: RunId, *, by: str) -> State:
    """End an unfinished run for good, also one that cannot be read: of that the list of runs is all that is known.

    Raises:
        RunError: it has finished already.
    """
    try:
        state = await read_state(journal, run)
    except StoreDamaged:
        raise
    except JournalCorrupt as unreadable:
        return await _cancel_unread(journal, run, by=by, why=unreadable.message)
    if state.status is Status.FINISHED:
        raise RunError(f"Run {run} has finished already ({state.stop_reason}).")
    # What was let go and is not settled stays in doubt, and `lockstep doubts` shows it.
    await append(journal, state, *cancelled(state, by, "the run was cancelled before the outcome was recorded"))
    return await read_state(journal, run)


async def _cancel_unread(journal: Journal, run: RunId, *, by: str, why: str) -> State:
    row = next(row for row in await journal.runs() if row.run == run)
    state = _unread(row)
    if state.status is Status.FINISHED:
        raise RunError(f"Run {run} has finished already, and cannot be read: {why}")
    message = f"Cancelled by {by}. What it did is not known: {why}"
    event = RunFinished(stop_reason="cancelled", message=message)
    at_ms = max(now_ms(), row.last_at_ms)
    await journal.append(run, state.next_seq, [(at_ms, event)])
    return apply(state, event, at_ms)


def _unread(row: RunRow) -> State:
    """What the list of runs knows of a run whose events cannot be folded."""
    return State(
        run=row.run,
        transcript=UNSEEDED,
        history=0,
        next_seq=row.events + 1,
        status=Status.FINISHED if row.last in ENDED else Status.RUNNING,
        agent=row.agent,
        session=row.session,
        principal=row.principal,
        started_at_ms=row.started_at_ms,
        last_at_ms=row.last_at_ms,
        totals=Totals(cost_usd=None),
    )


async def append(journal: Journal, state: State, *events: Event) -> None:
    """Write these events as the next of the run; FenceConflict where somebody was faster."""
    at_ms = max(now_ms(), state.last_at_ms)
    await journal.append(state.run, state.next_seq, [(at_ms, event) for event in events])
