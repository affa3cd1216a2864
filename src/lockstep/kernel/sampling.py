"""What the servers of calls ask of the agent's own model: what is left to ask, whether it may be, what was said."""

from __future__ import annotations

import json
from collections.abc import Mapping

from lockstep.agent.budget import Budget
from lockstep.journal.events import ModelSampled
from lockstep.kernel.state import CallState, Phase, State
from lockstep.kernel.usage import Over, backoff_s, over_run, over_scopes

MAX_SAMPLES = 8
"""How many answers of the model the server of one call may have."""


def answers(call: CallState, question: str) -> Mapping[str, ModelSampled]:
    """What the model has said to a question (its id), by key."""
    return {each.key: each for each in call.sampled if each.input == question and not each.failure}


def unsampled(call: CallState) -> str | None:
    """The key of what the model is to be asked next of the question that the call waits for; None for nothing more."""
    if call.phase is not Phase.NEEDS_INPUT:
        return None
    said = answers(call, call.input)
    return next((key for key in json.loads(call.asked).get("model", ()) if key not in said), None)


def for_people(call: CallState) -> bool:
    """Whether the question that the call waits for is to be answered by others than the model too."""
    asked = json.loads(call.asked)
    others = {*asked["requests"]} - {*asked.get("refused", ()), *asked.get("model", ())}
    return bool(others) or not asked.get("model")


def sampled_whole(call: CallState) -> bool:
    """Whether the model has said all that the question which the call waits for asks of anybody."""
    return call.phase is Phase.NEEDS_INPUT and unsampled(call) is None and not for_people(call)


def failed(call: CallState) -> tuple[ModelSampled, ...]:
    """The newest attempts, since the model last answered this call's server, that brought no answer."""
    since = max((place for place, each in enumerate(call.sampled, start=1) if not each.failure), default=0)
    return call.sampled[since:]


def wait_s(call: CallState) -> float:
    """How long the next attempt waits."""
    attempts = failed(call)
    return backoff_s(len(attempts), attempts[-1].retry_after_s) if attempts else 0.0


def no_sample(state: State, call: CallState, budget: Budget, now_ms: int) -> Over | None:
    """Why the model is not asked for this call's server: the outcome of the call, and the sentence."""
    if sum(not each.failure for each in call.sampled) >= MAX_SAMPLES:
        return Over("input_refused", f"it asked the agent's model more than {MAX_SAMPLES} times")
    used = state.used(now_ms)
    if over := over_run(used, budget) or over_scopes(used, state.others, budget):
        return over
    attempts = failed(call)
    if attempts and (not attempts[-1].transient or len(attempts) > budget.model_retries):
        return Over("model_failed", f"the agent's model gave no answer: {attempts[-1].message}")
    if state.active_ms(now_ms) + wait_s(call) * 1000 >= budget.wall_s * 1000:
        return Over("budget_wall", f"The run has used its {budget.wall_s:g} s (budget.wall_s).")
    return None
