"""What people say to a run: approve, refuse, reconcile, cancel. Each is one event; nothing is driven here."""

from __future__ import annotations

from lockstep.errors import RunError
from lockstep.journal.events import ApprovalGiven, ApprovalRefused, EffectReconciled, Event, RunFinished
from lockstep.journal.port import Journal
from lockstep.kernel.state import CallState, Phase, State, Status
from lockstep.runtime.reading import read_state, waiting
from lockstep.values import RunId, format_usd, now_ms


async def answer_approval(journal: Journal, approval: str, *, given: bool, by: str, because: str = "") -> State:
    """Give or refuse an approval; it is bound to the digest of exactly the call that was shown.

    Raises:
        RunError: no such approval waits, or it has expired.
    """
    found = [item for item in await waiting(journal) if item.call.approval == approval and item.call.digest]
    if not found:
        raise RunError(f"No approval {approval} is waiting.", remedy="`lockstep approvals` lists those that are.")
    state, call = found[0].state, found[0].call
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


async def reconcile(journal: Journal, run: RunId, *, happened: bool, by: str, result: str = "") -> CallState:
    """Say what became of the run's call in doubt. `result` is what the tool would have answered, if known.

    Raises:
        RunError: nothing in this run is in doubt, or it has finished.
    """
    state = await read_state(journal, run)
    if state.status is Status.FINISHED:
        raise RunError(f"Run {run} has finished already ({state.stop_reason}).")
    doubted = [call for call in state.calls if call.phase is Phase.DOUBTED]
    if not doubted:
        raise RunError(f"Nothing in run {run} is in doubt.", remedy=f"`lockstep show {run}` says where it stands.")
    call = doubted[0]
    if happened:
        text = result or f"{call.name} did happen, as {by} found out; its own reply was lost."
    else:
        text = f"{call.name} did not happen, as {by} found out. It may be called again."
    await _append(journal, state, EffectReconciled(call=call.id, happened=happened, by=by, text=text))
    return call


async def cancel(journal: Journal, run: RunId, *, by: str) -> State:
    """End an unfinished run for good.

    Raises:
        RunError: it has finished already.
    """
    state = await read_state(journal, run)
    if state.status is Status.FINISHED:
        raise RunError(f"Run {run} has finished already ({state.stop_reason}).")
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
    await _append(journal, state, event)
    return await read_state(journal, run)


async def _append(journal: Journal, state: State, event: Event) -> None:
    await journal.append(state.run, state.next_seq, [(max(now_ms(), state.last_at_ms), event)])
