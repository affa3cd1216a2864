"""Tools as plain functions in this process: no isolation at all. For library users, tests and benchmarks.

No file can choose this host: an agent directory always gets sandboxes. It keeps the same rules otherwise, a permit for
every call among them.
"""

from __future__ import annotations

import inspect
import json
import time
from collections.abc import Callable, Mapping
from typing import Any

from lockstep.gate.permit import Permit
from lockstep.tools.decorator import NotDone, OutcomeUnknown, Unavailable
from lockstep.tools.port import Ask, Outcome, PermittedCall
from lockstep.values import now_ms


class InProcessTools:
    """A `ToolHost` of functions by tool name; coroutine functions are awaited."""

    def __init__(self, functions: Mapping[str, Callable[..., Any]]) -> None:
        self._functions = functions

    async def call(
        self,
        call: PermittedCall,
        permit: Permit,
        on_overdue: Callable[[], None] | None = None,
        ask: Ask | None = None,
    ) -> Outcome:
        permit.redeem(call.digest, now_ms())
        began = time.perf_counter()
        try:
            result = self._functions[call.tool.name](**call.arguments)
            if inspect.isawaitable(result):
                result = await result
            text = result if isinstance(result, str) else json.dumps(result, ensure_ascii=False, allow_nan=False)
            outcome = Outcome(kind="ok", text=text, run_ms=_since(began))
        except OutcomeUnknown as error:
            outcome = Outcome(kind="tool_error", text=str(error), unknown=True, run_ms=_since(began))
        except Exception as error:  # noqa: BLE001 - a tool's own failure is an outcome, and recorded as one
            text = f"{type(error).__name__}: {error}"
            unknown = not isinstance(error, NotDone)  # here nobody saw what the function did before it failed
            passing = isinstance(error, Unavailable)
            outcome = Outcome(kind="tool_error", text=text, unknown=unknown, transient=passing, run_ms=_since(began))
        return outcome

    async def end(self, kept_for: str) -> None:
        """Nothing is kept for a run."""

    async def sweep(self) -> None:
        """Nothing outlives the process."""


def _since(began: float) -> float:
    return round((time.perf_counter() - began) * 1000, 3)
