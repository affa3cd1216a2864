"""Calls of clients that take long, or wait for a person, as tasks that the client asks after.

A task is a run: its name is the run's, its state is read from the journal, and so it outlives a gateway. It is there
for the principal whose run it is, and for nobody else. Nothing here runs anything: answers and cancellations go to the
desk.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, TypeVar

from mcp import MCPError, types
from mcp.server.lowlevel.server import Server

from lockstep.errors import InputError, LockstepError, RunError
from lockstep.gateway.asking import MODERN, Client, Context, client_name
from lockstep.gateway.principals import Principal
from lockstep.gateway.telling import waiting_text
from lockstep.journal.port import Journal
from lockstep.kernel.state import CallState, Phase, State, Status
from lockstep.runtime.calling import Desk
from lockstep.runtime.following import Follower
from lockstep.runtime.inputs import Said, answer_input, problem_of, waiting_input
from lockstep.runtime.reading import read_state
from lockstep.tools.inputs import Asked, parse
from lockstep.tools.port import Notice
from lockstep.values import JsonObject, RunId

TASKS = "io.modelcontextprotocol/tasks"
AFTER_S = 5.0
"""How long a call may take before it is answered with a task, where its client takes one."""
POLL_MS = 1000
_HEADER_MISMATCH = -32020
_RUN = re.compile(r"r[0-9a-z]{16}")
T = TypeVar("T")


class TaskParams(types.RequestParams):
    task_id: str
    input_responses: dict[str, Any] | None = None


@dataclass(kw_only=True)
class Handing:
    """A call while it may still become a task: its run, once that has begun, and who hears of it until then."""

    follower: Follower | None = None
    run: RunId | None = None
    handed: bool = False

    def follow(self, follower: Follower) -> Follower:
        """`follower`, who hears nothing any more once the call is a task: its request has its answer then."""
        listener = follower.listener

        def hear(notice: Notice) -> None:
            if listener is not None and not self.handed:
                listener.hear(notice)

        def began(run: RunId) -> None:
            self.run = run

        muted = replace(listener, hear=hear) if listener is not None else None
        self.follower = replace(follower, listener=muted, began=began)
        return self.follower


@dataclass(frozen=True, kw_only=True)
class Faces:
    """What tasks need of the face that they are part of."""

    desk: Desk
    journal: Journal
    who: Callable[[Context], Principal]
    told: Callable[[Context, State, bool], Awaitable[types.CallToolResult]]
    """The result of a run, or of a whole run of the agent."""
    question: Callable[[Context, CallState, Principal], types.ElicitRequest | None]
    """What this client may be asked about an approval; None where it may not."""
    approve: Callable[[CallState, Any, Principal, str], Awaitable[bool]]
    """Record what a client's user says to that; whether they said anything."""


@dataclass(kw_only=True)
class TaskFace:
    """The tasks of one gateway."""

    faces: Faces
    _followers: dict[RunId, Follower] = field(default_factory=dict)
    """Of calls under way: how they are broken off."""
    _asked: set[RunId] = field(default_factory=set)
    """Whole runs of the agent that a client of this process asked for."""
    _parts: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By question: answers that are there while others are not."""
    _working: set[asyncio.Task[Any]] = field(default_factory=set)

    def offer(self, server: Server[Any]) -> None:
        server.extensions[TASKS] = {}
        server.add_request_handler("tasks/get", TaskParams, self.get)
        server.add_request_handler("tasks/update", TaskParams, self.update)
        server.add_request_handler("tasks/cancel", TaskParams, self.cancel)

    def taken_by(self, ctx: Context) -> bool:
        """Whether this request's client takes a task for an answer."""
        capabilities = ctx.session.client_capabilities
        extensions = (capabilities.extensions if capabilities else None) or {}
        return ctx.protocol_version >= MODERN and TASKS in extensions

    async def within(self, work: Coroutine[Any, Any, T], handing: Handing, *, asks: bool) -> T | dict[str, Any]:
        """What work comes to; or, where that takes long, the task that its run is from now on."""
        doing = asyncio.create_task(work)
        try:
            while True:
                await asyncio.wait([doing], timeout=AFTER_S)
                if doing.done():
                    return doing.result()
                if handing.run is not None and (state := await self._begun(handing.run)) is not None:
                    handing.handed = True
                    assert handing.follower is not None
                    self._keep(doing, state.run, handing.follower)
                    return self.made(state, asks=asks)
        except asyncio.CancelledError:
            doing.cancel()
            await asyncio.gather(doing, return_exceptions=True)
            raise

    def made(self, state: State, *, asks: bool) -> dict[str, Any]:
        """The answer that a call has become a task."""
        if asks:
            self._asked.add(state.run)
        return {"resultType": "task", **_task(state, "working")}

    async def get(self, ctx: Context, params: TaskParams) -> dict[str, Any]:
        principal = self.faces.who(ctx)
        state = await self._task_of(ctx, principal, params)
        return {"resultType": "complete", **await self._told(ctx, principal, state)}

    async def update(self, ctx: Context, params: TaskParams) -> dict[str, Any]:
        principal = self.faces.who(ctx)
        state = await self._task_of(ctx, principal, params)
        said = params.input_responses or {}
        client = client_name(ctx)
        try:
            if (waits := waiting_input(state)) is not None:
                goes_on = await self._answered(waits, said, Client(ctx, principal, self.faces.desk.agent))
            elif (call := approving(state)) is not None and self.faces.question(ctx, call, principal):
                goes_on = call.approval in said and await self.faces.approve(
                    call, said[call.approval], principal, client
                )
            else:
                goes_on = False
        except LockstepError as problem:  # it is none that was asked for, or comes too late
            raise MCPError(types.INVALID_PARAMS, problem.message) from problem
        if goes_on:
            follower = Follower()
            work = self.faces.desk.go_on(state.run, by=principal.name, fetched=True, follower=follower)
            self._keep(asyncio.create_task(work), state.run, follower)
        return {"resultType": "complete"}

    async def cancel(self, ctx: Context, params: TaskParams) -> dict[str, Any]:
        principal = self.faces.who(ctx)
        state = await self._task_of(ctx, principal, params)
        if (follower := self._followers.get(state.run)) is not None:
            follower.breaking.off(effects=True)
        elif state.status is Status.RUNNING:
            self.faces.desk.break_off(state.run)
        elif state.status is Status.SUSPENDED and state.suspended_for != "in_doubt":  # which is an end, and said
            self._keep(asyncio.create_task(self.faces.desk.cancel(state.run, by=principal.name)), state.run, None)
        return {"resultType": "complete"}

    async def _begun(self, run: RunId) -> State | None:
        """The run as it stands in the journal; None while it does not."""
        try:
            return await read_state(self.faces.journal, run)
        except RunError:
            return None
        except LockstepError as error:
            raise MCPError(types.INTERNAL_ERROR, f"The task cannot be read: {error.code}.") from error

    async def _task_of(self, ctx: Context, principal: Principal, params: TaskParams) -> State:
        """The run that is this task.

        Raises:
            MCPError: the client takes no tasks, or there is no such task of this principal.
        """
        if not self.taken_by(ctx):
            needed: JsonObject = {"requiredCapabilities": {"extensions": {TASKS: {}}}}
            raise MCPError(types.MISSING_REQUIRED_CLIENT_CAPABILITY, "Declare the tasks extension.", needed)
        headers = getattr(ctx.request, "headers", None)
        if headers is not None and headers.get("mcp-name") != params.task_id:
            raise MCPError(_HEADER_MISMATCH, "Mcp-Name is not the task that is asked after.")
        state = await self._begun(RunId(params.task_id)) if _RUN.fullmatch(params.task_id) else None
        if state is None or (state.principal, state.agent) != (principal.name, self.faces.desk.agent.name):
            raise MCPError(types.INVALID_PARAMS, "Task not found.")
        if not state.client and state.run not in self._asked:
            raise MCPError(types.INVALID_PARAMS, "Task not found.")
        return state

    async def _told(self, ctx: Context, principal: Principal, state: State) -> dict[str, Any]:
        if state.stop_reason == "cancelled":
            return {**_task(state, "cancelled"), "statusMessage": state.message}
        if (requests := self._requests(ctx, principal, state)) is not None:
            return {**_task(state, "input_required"), "inputRequests": requests}
        if state.status is Status.RUNNING:
            return _task(state, "working")
        if state.suspended_for in ("approval", "input"):  # for somebody else than this client, or it goes on at once
            waits = next((call for call in state.calls if call.phase in (Phase.WAITING, Phase.NEEDS_INPUT)), None)
            message = {"statusMessage": waiting_text(state, waits)} if waits is not None else {}
            return {**_task(state, "working"), **message}
        try:
            result = await self.faces.told(ctx, state, not state.client)
        except MCPError as error:
            return {**_task(state, "failed"), "error": error.error.model_dump(mode="json", exclude_none=True)}
        self.faces.desk.fetched(state)
        said = result.model_dump(mode="json", by_alias=True, exclude_none=True)
        return {**_task(state, "completed"), "result": {**said, "resultType": "complete"}}

    def _requests(self, ctx: Context, principal: Principal, state: State) -> JsonObject | None:
        """What the client is asked before the run goes on; None where it is not asked anything."""
        requests: dict[str, Any] = {}
        if (waits := waiting_input(state)) is not None:
            client, asked = Client(ctx, principal, self.faces.desk.agent), parse(waits.asked)
            if not client.can(asked):
                return None
            required = client.required(state, waits).input_requests or {}
            given = self._parts.get(waits.input, {})
            requests = {f"{waits.input}.{key}": each for key, each in required.items() if key not in given}
        elif (call := approving(state)) is not None:
            if (question := self.faces.question(ctx, call, principal)) is None:
                return None
            requests = {call.approval: question}
        return {
            key: each.model_dump(mode="json", by_alias=True, exclude_none=True) for key, each in requests.items()
        } or None

    async def _answered(self, waits: CallState, said: dict[str, Any], client: Client) -> bool:
        """Take answers to what a server asks; whether all are there, and recorded. Raises InputError."""
        asked = parse(waits.asked)
        if not client.can(asked):
            return False
        given = self._parts.setdefault(waits.input, {})
        given |= {key: said[f"{waits.input}.{key}"] for key in _keys(asked) if f"{waits.input}.{key}" in said}
        if any(key not in given for key in _keys(asked)):
            return False
        del self._parts[waits.input]
        if problem := problem_of(asked, given):
            raise InputError(problem)
        await answer_input(self.faces.journal, waits.input, Said(responses=given, by=client.by, login=client.login))
        return True

    def _keep(self, doing: asyncio.Task[Any], run: RunId, follower: Follower | None) -> None:
        """Let work go on by itself, until it ends."""
        if follower is not None:
            self._followers[run] = follower
        self._working.add(doing)

        def over(task: asyncio.Task[Any]) -> None:
            self._working.discard(task)
            if self._followers.get(run) is follower:
                self._followers.pop(run, None)
            if not task.cancelled() and (error := task.exception()) and not isinstance(error, LockstepError | MCPError):
                asyncio.get_running_loop().call_exception_handler({"message": "a task ended", "exception": error})

        doing.add_done_callback(over)


def _task(state: State, status: str) -> dict[str, Any]:
    return {
        "taskId": state.run,
        "status": status,
        "createdAt": _time(state.started_at_ms),
        "lastUpdatedAt": _time(state.last_at_ms),
        "ttlMs": None,
        "pollIntervalMs": POLL_MS,
    }


def _time(at_ms: int) -> str:
    return datetime.fromtimestamp(at_ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _keys(asked: Asked) -> list[str]:
    return [each.key for each in asked.open]


def approving(state: State) -> CallState | None:
    """The call of a suspended run that waits for an approval."""
    if state.status is not Status.SUSPENDED or state.suspended_for != "approval":
        return None
    return next((call for call in state.calls if call.phase is Phase.WAITING), None)
