"""Calls that go on as tasks of their servers, as far as a run has to do with it: what is recorded, and how long."""

from __future__ import annotations

from collections.abc import Callable

from lockstep.agent.locked import LockedTool
from lockstep.journal import events as ev
from lockstep.kernel.decide import TASK_RETRY_S
from lockstep.kernel.state import CallState
from lockstep.runtime.live import Live
from lockstep.tools.port import Outcome, Tasking


def tasking(live: Live, call: CallState, tool: LockedTool, now_ms: int, unwanted: Callable[[], bool]) -> Tasking:
    """What this call needs that may become a task, or is one: for what is left of `task_s`, in which the run's own time
    counts and no wait for a person."""

    async def begun(task: str) -> None:
        live.record(ev.TaskBegun(call=call.id, task=task, elsewhere=tool.remote is not None))
        await live.flush()

    used_ms = live.state.active_ms(now_ms) - call.task_begun_ms if call.task else 0
    return Tasking(left_s=max(0.0, tool.task_s - used_ms / 1000), begun=begun, unwanted=unwanted)


def asked_again(call: CallState, outcome: Outcome) -> bool:
    """Whether a task is asked after once more: while its server speaks of it now and then, and for a while without."""
    return outcome.task_open and (outcome.heard or call.task_unheard < len(TASK_RETRY_S))
