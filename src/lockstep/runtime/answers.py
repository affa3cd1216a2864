"""What people say to a run: approve, refuse, settle, cancel. Each is one event; nothing is driven here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from lockstep.agent.lock import from_text
from lockstep.agent.locked import locked_agent
from lockstep.errors import JournalCorrupt, LockError, RunError, StoreDamaged
from lockstep.gate.arguments import read
from lockstep.gate.effects import freed_by
from lockstep.journal.events import (
    ENDED,
    ApprovalGiven,
    ApprovalRefused,
    DoubtSettled,
    EffectDoubted,
    EffectReconciled,
    Event,
    Recorded,
    RunFinished,
    RunStarted,
)
from lockstep.journal.port import Journal, RunRow
from lockstep.journal.stops import require_running
from lockstep.kernel.apply import apply, fold, start
from lockstep.kernel.state import CallState, Phase, State, Status, Totals
from lockstep.runtime.reading import UNSEEDED, Unreadable, read_run, read_state, unfinished, waiting
from lockstep.values import RunId, format_usd, now_ms


async def answer_approval(journal: Journal, approval: str, *, given: bool, by: str, because: str = "") -> State:
    """Give or refuse an approval; it is bound to the digest of exactly the call that was shown.

    Raises:
        RunError: no such approval waits, or it has expired.
        AgentStopped: somebody stopped the agent; refusing is possible all the same.
    """
    runs = await unfinished(journal)
    found = [item for item in waiting(runs) if item.call.approval == approval and item.call.digest]
    if not found:
        broken = [each.row.run for each in runs if isinstance(each, Unreadable)]
        but = f" What waits in {', '.join(broken)} cannot be read." if broken else ""
        raise RunError(f"No approval {approval} is waiting.{but}", remedy="`lockstep approvals` lists those that are.")
    state, call = found[0].state, found[0].call
    if given:
        require_running(journal, state.agent)
    if given and now_ms() >= call.approval_expires_ms:
        raise RunError(f"Approval {approval} has expired.", remedy=f"`lockstep resume {state.run}` goes on without it.")
    digest = call.digest
    assert digest is not None
    event: Event
    if given:
        event = ApprovalGiven(call=call.id, approval=approval, digest=digest, by=by)
    else:
        event = ApprovalRefused(call=call.id, approval=approval, digest=digest, by=by, because=because)
    await _append(journal, state, event)
    return state


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
    await _append(journal, state, kind(call=call.id, happened=happened, by=by, text=text, freed_by=terms))
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
    intended = [call for call in state.calls if call.phase is Phase.INTENDED]
    doubted = [call.name for call in state.calls if call.phase in (Phase.DOUBTED, Phase.INTENDED)]
    message = f"Cancelled by {by}." + (
        f" {', '.join(doubted)} may have happened: nobody settled it." if doubted else ""
    )
    totals = state.totals
    event = RunFinished(
        stop_reason="cancelled",
        message=message,
        steps=totals.steps,
        calls=totals.calls,
        cost_usd=format_usd(totals.cost_usd),
    )
    # What was let go and is not settled stays in doubt, and `lockstep doubts` shows it.
    why = "the run was cancelled before the outcome was recorded"
    await _append(journal, state, *(EffectDoubted(call=call.id, why=why) for call in intended), event)
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


async def _append(journal: Journal, state: State, *events: Event) -> None:
    at_ms = max(now_ms(), state.last_at_ms)
    await journal.append(state.run, state.next_seq, [(at_ms, event) for event in events])
