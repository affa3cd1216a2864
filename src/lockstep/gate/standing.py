"""Whether a standing approval covers a call: exactly what was stated, and never what needs more than one word. Pure."""

from __future__ import annotations

import json

from lockstep.agent.pointers import Missing, select
from lockstep.gate.arguments import Malformed, read
from lockstep.journal.standing import Standing
from lockstep.kernel.apply import barred
from lockstep.kernel.state import CallState, State
from lockstep.values import JsonObject, canonical


def covers(standing: Standing, state: State, call: CallState) -> bool:
    """Whether it answers what is asked about this call. Whether it has ended is asked of the book when it is used.

    Not where several people must look, not a deliberate repeat, not a run that is not what its lock says.
    """
    if state.unlocked or call.again or call.approvers > 1 or barred(state, call, standing.by):
        return False
    asked = (state.agent, state.lock, call.name)
    if asked != (standing.agent, standing.lock, standing.tool) or standing.principal not in ("", state.principal):
        return False
    try:
        arguments = read(call.arguments).value
    except Malformed:
        return False
    return all(_stands(arguments, pointer, value) for pointer, value in standing.where)


def _stands(arguments: JsonObject, pointer: str, value: str) -> bool:
    try:
        return canonical(select(arguments, pointer)) == canonical(json.loads(value))
    except (Missing, ValueError):
        return False
