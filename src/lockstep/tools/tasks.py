"""A call that its server answers with a task: asked after until it has ended, and never called again.

The name of a task is durable before it is asked after, so whoever drives the run next can go on asking. Everything a
server says of it is attacker-controlled: names and waits are bounded here, and how it ended is held to the same rules
as the result of a call.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from lockstep.kernel.decide import MAX_ROUNDS
from lockstep.sandbox.contract import Process
from lockstep.tools.client import CANCEL_TASK, GET_TASK, UPDATE_TASK, BadReply, McpClient, ServerError
from lockstep.tools.inputs import Asked, BadQuestion, read_result
from lockstep.tools.port import Ask, Outcome, PermittedCall, Tasking
from lockstep.values import JsonObject

MIN_WAIT_S, WAIT_S, MAX_WAIT_S = 0.25, 1.0, 60.0
"""Between two questions after a task: at least, where its server wishes nothing, and at most."""
_NAME = re.compile(r"[!-~]{1,1024}")
_STATUS = frozenset({"working", "input_required", "completed", "failed", "cancelled"})
_UNKNOWN_TASK = -32602
_GOODBYE_S = 1.0
"""How long a server may take to hear that a task is not wanted any more."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """What a server says of a task. `said` is all of it."""

    name: str
    status: str
    wait_s: float
    said: Mapping[str, Any]


def read_task(said: Mapping[str, Any], name: str = "") -> Task:
    """What is said of a task, of this name where one is given.

    Raises:
        BadReply: it is of no task that can be asked after, or of another one.
    """
    found, status, wish_ms = said.get("taskId"), said.get("status"), said.get("pollIntervalMs")
    if not isinstance(found, str) or not _NAME.fullmatch(found):
        raise BadReply("it made a task with a name that is none: at most 1024 printable characters of ASCII")
    if name and found != name:
        raise BadReply(f"asked after the task {name:.60}, it speaks of {found:.60}")
    if not isinstance(status, str) or status not in _STATUS:
        raise BadReply(f"its task is {status!r:.40}, which is no status")
    wait_s = WAIT_S
    if isinstance(wish_ms, int | float) and not isinstance(wish_ms, bool):
        wait_s = min(max(wish_ms, MIN_WAIT_S * 1000), MAX_WAIT_S * 1000) / 1000
    return Task(name=found, status=status, wait_s=wait_s, said=said)


class TaskFailed(ServerError):
    """The task has ended, and not with a result."""


class Following:
    """One call that became a task, asked after over one process under one permit."""

    def __init__(self, client: McpClient, call: PermittedCall, process: Process, ask: Ask | None) -> None:
        assert call.tasks is not None
        self._client = client
        self._call = call
        self._process = process
        self._ask = ask
        self._tasks: Tasking = call.tasks
        self._name = call.round.task if call.round else ""
        self._wait_s = 0.0
        self._told: set[str] = set()
        """Keys of questions that were answered: a server may go on listing them for a while."""
        self._heard = False
        self._ends = 0.0
        self._questions = MAX_ROUNDS
        """How often it may still ask whoever is there."""

    @property
    def known(self) -> bool:
        """Whether there is a task, and its name is durable."""
        return bool(self._name)

    async def begin(self, result: Mapping[str, Any]) -> None:
        """Take a result that says that a task was made.

        Raises:
            BadReply: it is none that can be asked after.
        """
        task = read_task(result)
        await self._tasks.begun(task.name)
        self._name, self._wait_s = task.name, task.wait_s if task.status == "working" else 0.0

    async def result(self) -> Mapping[str, Any] | Asked | Outcome:
        """The result of the call, once the task has it; what its server asks for before; or how its time ended.

        Raises:
            TaskFailed: it ended otherwise.
            ProcessEnded, ServerError, BadReply: it was not learnt. `unlearnt` says what any of these means.
        """
        self._process.pause()
        try:
            return await self._to_its_end()
        except asyncio.CancelledError:
            if self._tasks.unwanted() and self._call.tool.run_lifetime:
                await self._give_up()
            raise

    def unlearnt(self, error: Exception, outcome: Outcome) -> Outcome:
        """What a failure to learn of the task means, where it would be `outcome` for a call: the task may go on."""
        tool = self._call.tool
        # Of what is elsewhere nobody here could say that it was not carried out.
        outcome = replace(outcome, unknown=tool.remote is not None or outcome.unknown, transient=False)
        if isinstance(error, TaskFailed):
            return replace(outcome, unknown=outcome.unknown and not tool.errors_not_done)
        if isinstance(error, ServerError) and error.code == _UNKNOWN_TASK:
            text = f"{tool.name} went on as a task that its server does not know any more: {error.message}"
            return replace(outcome, kind="task_lost", text=text)
        again = not isinstance(error, BadReply) and getattr(error, "limit", "") != "output_bytes"
        return replace(outcome, task_open=again, heard=self._heard and self._tasks.left_s > 0)

    async def _to_its_end(self) -> Mapping[str, Any] | Asked | Outcome:
        now = asyncio.get_running_loop().time
        self._ends, given_up = now() + self._tasks.left_s, False
        while True:
            await asyncio.sleep(max(0.0, min(self._wait_s, self._ends - now())))
            task = read_task(await self._request(GET_TASK), self._name)
            self._heard, self._wait_s = True, task.wait_s
            if task.status == "input_required" and not given_up:
                if (asks := await self._answered(task)) is not None:
                    return asks
            elif (ended := self._ended(task)) is not None:
                return ended
            if now() >= self._ends:
                if given_up:
                    return self._overdue()
                await self._give_up()
                given_up, self._ends = True, now() + min(task.wait_s, _GOODBYE_S)

    async def _request(self, method: str, more: JsonObject | None = None) -> Mapping[str, Any]:
        """One request about the task, with the time and the output of one."""
        self._process.renew()
        try:
            return await self._client.ask_task(method, self._name, more)
        finally:
            self._process.pause()

    async def _give_up(self) -> None:
        """Tell the server that the task is not wanted. What it then did is as unknown as before."""
        with contextlib.suppress(Exception):
            async with asyncio.timeout(_GOODBYE_S):
                await self._request(CANCEL_TASK)

    def _ended(self, task: Task) -> Mapping[str, Any] | None:
        """The result; None while the task has not ended. Raises TaskFailed."""
        match task.status:
            case "completed":
                if not isinstance(result := task.said.get("result"), dict):
                    raise BadReply("its task is completed and has no result")
                return result
            case "failed":
                error = task.said.get("error")
                if not isinstance(error, dict):
                    raise BadReply("its task has failed and says no error")
                code = error.get("code")
                said = str(error.get("message", ""))[:4000]
                raise TaskFailed(code if isinstance(code, int) else 0, said, error.get("data"))
            case "cancelled":
                why = f": {message:.1000}" if isinstance(message := task.said.get("statusMessage"), str) else ""
                raise TaskFailed(0, f"its task was cancelled{why}")
        return None

    def _overdue(self) -> Outcome:
        tool = self._call.tool
        text = (
            f"{tool.name} went on as a task that had not ended after {tool.task_s:g} s. Its server was told to end it."
        )
        return Outcome(kind="timeout", text=text, unknown=True)

    async def _answered(self, task: Task) -> Asked | Outcome | None:
        """Tell the server what it asks for, as far as that is known; else what is not."""
        requests = task.said.get("inputRequests")
        if not isinstance(requests, dict):
            raise BadReply("its task requires input and does not say which")
        given = self._call.round.responses if self._call.round else {}
        open_ = {key: each for key, each in requests.items() if key not in self._told}
        if known := {key: given[key] for key in open_ if key in given}:
            await self._update(known)
        if not (new := {key: each for key, each in open_.items() if key not in given}):
            return None
        try:
            asked = read_result({"inputRequests": new}, self._client.offers)
        except BadQuestion as problem:
            raise BadReply(str(problem)) from problem
        return asked if self._call.tool.run_lifetime else await self._answered_at_once(asked)

    async def _answered_at_once(self, asked: Asked) -> Outcome | None:
        """Have whoever is there answer: the task lives as long as its sandbox does, which is that of this call."""
        said = None if asked.unanswerable or asked.open else asked.responses({})
        self._questions -= 1
        if self._questions < 0:
            text = f"Not carried out: {self._call.tool.name} asked for input more than {MAX_ROUNDS} times."
            return Outcome(kind="input_refused", text=text)
        if self._ask is not None:
            now = asyncio.get_running_loop().time
            began = now()
            said = await self._ask(asked)
            self._ends += now() - began  # a person's time; what its server takes to hear the answer is its own
        if said is None:
            text = f"Not carried out: {self._call.tool.name} asked for input, and got none."
            return Outcome(kind="input_refused", text=text)
        await self._update(said)
        return None

    async def _update(self, responses: JsonObject) -> None:
        await self._request(UPDATE_TASK, {"inputResponses": responses})
        self._told |= responses.keys()
