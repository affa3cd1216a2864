"""The agent's own model, asked what the server of a call asks of one: within the run's budget, and on its record."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace

from lockstep.agent.locked import Budget
from lockstep.journal import events as ev
from lockstep.kernel import decide as do
from lockstep.kernel.sampling import answers, no_sample, wait_s
from lockstep.kernel.state import CallState, State
from lockstep.model.port import Model, Settings
from lockstep.runtime.live import Live
from lockstep.runtime.outcomes import sampled
from lockstep.tools.inputs import Request, parse
from lockstep.tools.samples import read_sample, told
from lockstep.values import JsonObject, now_ms

MODEL = "the agent's model"
"""Who answers a question that is for the model alone."""


class Sampler:
    """Asks the model of one agent for the servers of its calls."""

    def __init__(
        self,
        model: Model,
        settings: Settings,
        budget: Budget,
        informed: Callable[[Live], State],
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """`informed`: the state, knowing what other runs have used by now."""
        self._model = model
        self._settings = settings
        self._budget = budget
        self._informed = informed
        self._sleep = sleep

    async def perform(self, live: Live, command: do.Sample | do.Tell) -> None:
        """What the kernel decided of a call that waits for the model."""
        call = command.call
        if isinstance(command, do.Tell):
            live.record(_given(call))
        else:
            await self.ask(live, call.id, call.input, _request(call, command.key), command.delay_s)

    async def ask(self, live: Live, call_id: str, question: str, request: Request, delay_s: float = 0.0) -> None:
        """One attempt at one request, recorded when it is over and durable before anything else happens."""
        await live.flush()
        if delay_s:
            await self._sleep(delay_s)
        sample = read_sample(request.params)
        settings = within(self._settings, live.state, self._budget)
        most = min(sample.max_tokens, settings.max_tokens or sample.max_tokens)
        began = time.perf_counter()
        answer = await self._model.reply(sample.prompt, replace(settings, max_tokens=most))
        latency_ms = round((time.perf_counter() - began) * 1000, 3)
        live.record(sampled(call_id, question, request.key, sample, answer, latency_ms))
        await live.flush()

    async def held_open(self, live: Live, call_id: str, question: str, request: Request) -> str:
        """As `ask`, for a server that holds its call open, until there is an answer; why there is none, or empty."""
        while not answers(call := self._informed(live).call(call_id), question):
            if over := no_sample(live.state, call, self._budget, now_ms()):
                return over.message
            await self.ask(live, call_id, question, request, wait_s(call))
        return ""


def within(settings: Settings, state: State, budget: Budget) -> Settings:
    """Settings by which a request ends no later than the run's time, and a second."""
    left_s = budget.wall_s - state.active_ms(now_ms()) / 1000
    return settings if left_s >= settings.timeout_s else replace(settings, timeout_s=max(left_s, 1.0))


def _given(call: CallState) -> ev.InputGiven:
    """The answer to a question that the model has answered, and that was for nobody else."""
    assert call.asked_digest is not None
    said = parse(call.asked).responses(said_by_model(call, call.input))
    responses = json.dumps(said, separators=(",", ":"))
    return ev.InputGiven(call=call.id, input=call.input, digest=call.asked_digest, responses=responses, by=MODEL)


def said_by_model(call: CallState, question: str) -> JsonObject:
    """What the server is told of all that the model said to this question, by key."""
    return {key: told(each) for key, each in answers(call, question).items()}


def _request(call: CallState, key: str) -> Request:
    """What is asked under this key of the question that the call waits for."""
    return next(each for each in parse(call.asked).requests if each.key == key)
