"""A run as one JSON object, and as an exit code."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from lockstep.cli.show import call_outcome
from lockstep.gate.arguments import MAX_DEPTH, is_deeper
from lockstep.journal.port import RunRow
from lockstep.kernel.state import CallState, Phase, State, Status
from lockstep.runtime.reading import Unreadable, Waiting
from lockstep.values import canonical, format_usd, sha256

FINISHED, INTERNAL, BAD_INPUT, SUSPENDED, STOPPED = 0, 1, 2, 3, 4
"""Exit codes of every command."""

_EXIT_BY_REASON = {
    "completed": FINISHED,
    "model_refused": BAD_INPUT,
    "model_bad_reply": BAD_INPUT,
    "model_unavailable": BAD_INPUT,
    "empty_reply": BAD_INPUT,
    "recording_ended": BAD_INPUT,
    "recording_mismatch": BAD_INPUT,
    "sandbox_unavailable": BAD_INPUT,
    "crashed": INTERNAL,
}


def exit_code(state: State) -> int:
    """0 finished, 3 suspended, 4 stopped by budget or policy, 2 model or sandbox not to be had, 1 crashed."""
    if state.status is Status.FINISHED:
        return _EXIT_BY_REASON.get(state.stop_reason, STOPPED)
    return SUSPENDED


def as_json(state: State, details: Mapping[str, str] | None = None) -> dict[str, Any]:
    """The object that `--json` prints. `cost_usd` is null when unknown.

    `details` says by call what its operator should know of its failure.
    """
    return {
        "run_id": state.run,
        "session": state.session,
        "status": state.status.value,
        "stop_reason": _stop_reason(state),
        "message": state.message,
        "output": state.output,
        "lock": state.lock,
        "unlocked": state.unlocked,
        "steps": state.totals.steps,
        "cost_usd": _cost(state),
        "calls": [_call(call, (details or {}).get(call.id, "")) for call in state.all_calls],
    }


def row_as_json(row: RunRow, state: State) -> dict[str, Any]:
    """A run as it stands in the list of runs."""
    return {
        "run_id": row.run,
        "session": row.session,
        "agent": row.agent,
        "started_at_ms": row.started_at_ms,
        "status": state.status.value,
        "stop_reason": _stop_reason(state),
        "input": state.input,
        "lock": state.lock,
        "unlocked": state.unlocked,
        "steps": state.totals.steps,
        "cost_usd": _cost(state),
    }


def _unreadable_as_json(run: Unreadable) -> dict[str, Any]:
    """A run that cannot be read, and why."""
    row = run.row
    return {
        "run_id": row.run,
        "session": row.session,
        "agent": row.agent,
        "started_at_ms": row.started_at_ms,
        "finished": run.finished,
        "why": run.why,
    }


def unreadable(runs: Iterable[State | Unreadable]) -> list[dict[str, Any]]:
    """Those of the runs that cannot be read, for JSON."""
    return [_unreadable_as_json(run) for run in runs if isinstance(run, Unreadable)]


def waiting_as_json(item: Waiting) -> dict[str, Any]:
    """A call that waits for a person."""
    call = item.call
    return {
        "run_id": item.state.run,
        "call": call.id,
        "approval": call.approval or None,
        "in_doubt": call.phase is Phase.DOUBTED,
        "tool": call.name,
        "arguments": call.arguments,
        "question": call.question or call.why_doubted,
        "input": call.input if call.phase is Phase.NEEDS_INPUT else None,
        "digest": call.digest,
        "expires_at_ms": call.approval_expires_ms or None,
    }


def _stop_reason(state: State) -> str | None:
    if state.status is not Status.SUSPENDED:
        return state.stop_reason or None
    if state.suspended_for == "agent_stopped":
        return "agent_stopped"
    phases = {call.phase for call in state.calls}
    return "in_doubt" if Phase.DOUBTED in phases else "input" if Phase.NEEDS_INPUT in phases else "approval"


def _cost(state: State) -> float | None:
    cost = format_usd(state.totals.cost_usd)
    return None if cost is None else float(cost)


def _call(call: CallState, detail: str) -> dict[str, Any]:
    out: dict[str, Any] = {
        "id": call.id,
        "tool": call.name,
        "arguments": _arguments(call.arguments),
        "verdict": call.verdict or None,
        "policies": list(call.policies),
        "effect": call.effect.value if call.digest else None,
        "outcome": call_outcome(call),
        "result": call.text,
        "tier": call.tier or None,
        "duration_ms": round(call.duration_ms, 3),
    }
    if call.attachments:
        out["attachments"] = [
            {"name": one.name, "mime_type": one.mime_type, "bytes": len(one.data), "sha256": sha256(one.data)}
            for one in call.attachments
        ]
    if detail:
        out["difference" if call.outcome == "pin_mismatch" else "detail"] = detail
    if call.degraded:
        out["degraded"] = call.degraded
    if call.approval:
        out["approval"] = call.approval
    return out


def _arguments(text: str) -> Any:
    """A value, or the text as it came when it is none that JSON can say: a model may write NaN, or nest without end."""
    try:
        value = json.loads(text) if text.strip() else {}
        canonical(value)
    except (ValueError, RecursionError):
        return text
    return text if is_deeper(value, MAX_DEPTH) else value
