"""What is said to a server in a sandbox, and what its answers and its silence mean.

Nothing it says is trusted: a failure inside it is evidence only together with what left the sandbox.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec

from lockstep.agent.diff import definition_changes
from lockstep.agent.locked import LockedTool
from lockstep.sandbox.contract import EgressRecord, Process, ProcessEnded
from lockstep.sandbox.warm import NotReady
from lockstep.tools.client import (
    CALL,
    CANCEL_TASK,
    GET_TASK,
    LOG_LEVEL,
    MODERN,
    UPDATE_TASK,
    BadReply,
    McpClient,
    ServerError,
)
from lockstep.tools.content import read_content, read_context, reply_of, reply_of_error
from lockstep.tools.inputs import Asked, BadQuestion, read_pages, read_result
from lockstep.tools.offering import live
from lockstep.tools.port import Ask, Notice, Outcome, PermittedCall
from lockstep.tools.results import ERROR_META, IMPORT_FAILED
from lockstep.tools.structure import structure_problem
from lockstep.tools.tasks import Following
from lockstep.values import JsonObject, sha256

_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS", "TRACE"})
_UNCLEAR_STATUS = frozenset({408, 425, 429, 499})
"""Of 4xx, those a server or something before it may send although the request was carried out."""

_NOT_CARRIED_OUT = frozenset({-32700, -32600, -32601, -32602, -32020, -32021, -32022})
"""Errors by which the protocol says that a request was not carried out: unreadable, unknown, invalid, refused."""

_PAGES_FIRST = -32042
"""The error of the legacy revision 2025-11-25 that pages must be visited before the call is made again."""
_ACTING = frozenset({"", CALL, GET_TASK, UPDATE_TASK, CANCEL_TASK})
"""What a request is about that has to do with the call itself: of a task, the call was made before."""
_DONE = "The call ran to its end, so its effect is done; its result is lost."
_KEPT_CHARACTERS = 4000
_MAX_NOTICE_BYTES = 16 * 2**10
_PASSING_STATUS = frozenset({408, 425, 429, 502, 503, 504})
_FRESH_S = 2.0
"""How long after a call what a server then said it offers holds for its next one."""


@dataclass(kw_only=True, slots=True)
class Ready:
    """A server that has been greeted: the client that speaks to it, and what it said it offers.

    One elsewhere is greeted by its first call (`met` is False until then): nothing is sent to it without a permit.
    """

    client: McpClient
    met: bool = True
    live: dict[str, Mapping[str, JsonObject]] = field(default_factory=dict)
    """By method (of tools, empty; else one of `agent.context`): the definitions that its calls are held against."""
    learnt: float = 0.0
    """When it last said what it offers, after a call."""
    looking: asyncio.Task[None] | None = None
    """Asks it again after a call, while nobody waits."""

    async def learn(self, method: str) -> Mapping[str, JsonObject]:
        """Ask what it offers of this method.

        Raises:
            ProcessEnded, ServerError, BadReply: it does not say.
        """
        found = self.live[method] = await live(self.client, method)
        return found

    def look_ahead(self, tool: LockedTool) -> None:
        """Ask it again for its next call, while nobody waits."""

        async def look() -> None:
            with contextlib.suppress(ProcessEnded, ServerError, BadReply):  # the next call asks, and is told
                await self.learn(tool.method)
                self.learnt = time.monotonic()

        self.looking = asyncio.create_task(look())

    async def meet(self, tool: LockedTool) -> None:
        """Have it to oneself: greeted, where that waited for a permit, and with no question of ours under way.

        Raises as `learn`.
        """
        if not self.met:
            await self.client.resume(tool.protocol)
            self.met = True
        if self.looking is not None:
            await self.looking
            self.looking = None
            if time.monotonic() - self.learnt > _FRESH_S:
                self.live.clear()

    async def now(self, tool: LockedTool) -> Mapping[str, JsonObject]:
        """What it offers as a call is made: asked again of a server that has served one, which it may have learnt from.

        Raises as `learn`.
        """
        await self.meet(tool)
        known = self.live.get(tool.method)
        offered = await self.learn(tool.method) if known is None else known
        self.live.clear()  # from here on it may be another's
        return offered


class NotServing(NotReady):
    """The server in a started sandbox is of no use; the outcome says why to a call that was not sent."""

    def __init__(self, outcome: Outcome) -> None:
        super().__init__(outcome.text)
        self.outcome = outcome


async def meet(tool: LockedTool, process: Process) -> Ready:
    """As `greet`, of a server elsewhere: it hears nothing yet."""
    return Ready(client=McpClient(process, tool.asks), met=False)


async def greet(tool: LockedTool, process: Process) -> Ready:
    """Shake hands and ask what is offered, so that only the call itself is left to send.

    Raises:
        NotServing: it does not get that far.
    """
    client = McpClient(process, tool.asks)
    try:
        await client.resume(tool.protocol)
        ready = Ready(client=client)
        await ready.learn(tool.method)
        return ready
    except (ProcessEnded, ServerError, BadReply) as error:
        raise NotServing(_failed(tool, error, process, sent=False)) from error


async def converse(
    ready: Ready,
    call: PermittedCall,
    process: Process,
    on_overdue: Callable[[], None] | None = None,
    ask: Ask | None = None,
) -> Outcome:
    """One call, start to end; from the moment it is sent, silence means doubt.

    Its deadline is the tool's `timeout_s`. Past that a late result is waited for as long as the sandbox lives. One that
    has become a task is not sent again, so nothing is held against its pin: it is asked after.
    """
    task = Following(ready.client, call, process, ask) if call.tasks is not None else None
    ready.client.offers = call.may_ask
    ready.client.takes_tasks = task is not None and not call.tool.method and call.tool.protocol == MODERN
    if task is not None and task.known:
        return await _followed(ready, call, process, task)
    try:
        offered = await ready.now(call.tool)
    except (ProcessEnded, ServerError, BadReply) as error:
        return _failed(call.tool, error, process, sent=False)
    if (drifted := _drifted(call.tool, offered)) is not None:
        return drifted
    late = on_overdue is not None and call.tool.repeats.late_s > 0
    clock = _Clock(process, call.tool.timeout_s, on_overdue if late else None)
    try:
        ready.client.ask = clock.outside(ask) if ask is not None else None
        if (no := _not_visited(ready.client, call)) is not None:
            return no
        result = await _asked(ready.client, call)
        if result.get("resultType") == "input_required" and ready.client.protocol == MODERN:
            return _asking(call.tool, ready.client, result, process)
        if result.get("resultType") == "task" and task is not None and ready.client.takes_tasks:
            clock.stop()
            await task.begin(result)
            return await _followed(ready, call, process, task)
        return _with_declined(_checked(call.tool, result, process), ready.client.declined)
    except (ProcessEnded, ServerError, BadReply) as error:
        if (pages := _pages(ready.client, error)) is not None:
            return _waiting(call.tool, pages, process)
        return _with_declined(_failed(call.tool, error, process, sent=True), ready.client.declined)
    finally:
        clock.stop()
        ready.client.ask = None


async def _followed(ready: Ready, call: PermittedCall, process: Process, task: Following) -> Outcome:
    """What came of a call that has become a task."""
    try:
        await ready.meet(call.tool)
        found = await task.result()
        if isinstance(found, Mapping):
            return _checked(call.tool, found, process)
    except (ProcessEnded, ServerError, BadReply) as error:
        return task.unlearnt(error, _failed(call.tool, error, process, sent=True))
    acted = may_have_acted(process.egress_log())
    if isinstance(found, Asked):
        return replace(_waiting(call.tool, found, process), acted=acted)
    return replace(found, unknown=found.unknown or acted)


class _Clock:
    """The deadline of a call, and its process's clock: a person's time counts for neither."""

    def __init__(self, process: Process, timeout_s: float, on_overdue: Callable[[], None] | None) -> None:
        self._process = process
        self._on_overdue = on_overdue
        self._timer: asyncio.TimerHandle | None = None
        self._start(timeout_s)

    def _start(self, left_s: float) -> None:
        if self._on_overdue is not None:
            self._timer = asyncio.get_running_loop().call_later(left_s, self._on_overdue)

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def outside(self, ask: Ask) -> Ask:
        """`ask`, with the clock standing still while it is awaited."""

        async def asking(asked: Asked) -> JsonObject | None:
            left_s = self._timer.when() - asyncio.get_running_loop().time() if self._timer else 0.0
            self.stop()
            self._process.pause()
            try:
                return await ask(asked)
            finally:
                self._process.go_on()
                if left_s > 0:  # else it had passed before
                    self._start(left_s)

        return asking


def _failed(tool: LockedTool, error: ProcessEnded | ServerError | BadReply, process: Process, *, sent: bool) -> Outcome:
    if isinstance(error, ProcessEnded):
        return _ended(tool, error, sent=sent)
    detail = process.stderr_tail()
    if isinstance(error, ServerError):
        kind = "import_error" if error.code == IMPORT_FAILED else "tool_error"
        reply = reply_of_error(error.code, error.message, error.data)
        acted, passing = sent and may_have_acted(process.egress_log()), sent and _may_pass(process.egress_log())
        if tool.errors_not_done or (tool.remote and error.code in _NOT_CARRIED_OUT):
            acted = False
        text = f"{tool.name} failed: {error.message}"
        return Outcome(kind=kind, text=text, reply=reply, detail=detail, unknown=acted, transient=passing)
    return Outcome(kind="bad_reply", text=f"{tool.name} broke the protocol: {error}.", detail=detail, unknown=sent)


def _ended(tool: LockedTool, ended: ProcessEnded, *, sent: bool) -> Outcome:
    match ended.limit:
        case "wall_s":
            waited_s = tool.timeout_s + tool.repeats.late_s
            kind, text = "timeout", f"{tool.name} did not answer within {waited_s:g} s and was ended."
        case "output_bytes":
            kind, text = "output_too_large", f"{tool.name} sent more than {tool.limits.output_kb} KiB and was ended."
        case "connection":
            kind, text = "process_ended", f"{tool.name} was not answered: {ended.stderr}."
        case "":
            kind, text = "process_ended", f"{tool.name} ended without an answer (exit code {ended.exit_code})."
        case limit:
            kind, text = "process_ended", f"{tool.name} hit its limit {limit} and was ended."
    if not sent:
        text += " It had not been called yet."
    passing = ended.limit in ("", "wall_s", "connection")
    return Outcome(kind=kind, text=text, detail=ended.stderr, unknown=sent and ended.reached, transient=passing)


async def _asked(client: McpClient, call: PermittedCall) -> Mapping[str, Any]:
    """The result of the call itself; whoever listens to it hears what is said meanwhile."""
    client.hear = _hearing(call)
    await _watch(client, call)
    try:
        if call.tool.method:
            result = await client.ask_context(call.tool.method, call.arguments, _meta(call), call.round)
        else:
            result = await client.call_tool(call.tool.own_name, call.arguments, _meta(call), call.round)
        await client.linger()
        return result
    finally:
        client.hear = None


async def _watch(client: McpClient, call: PermittedCall) -> None:
    """Have a modern server that outlives the call say what changes meanwhile of what somebody subscribed to."""
    await client.unwatch()  # what was watched for the call before
    if call.listener is None or call.tool.protocol != MODERN or not (call.tool.run_lifetime or call.tool.remote):
        return
    if watched := call.listener.watches(call.tool.source):
        await client.watch(watched)


def _meta(call: PermittedCall) -> JsonObject:
    meta = {
        "lockstep/run": call.run,
        "lockstep/call": call.id,
        "lockstep/key": call.key,
        "traceparent": traceparent(call.run, call.id),
    }
    if call.listener is not None and call.listener.progress:
        meta["progressToken"] = _token(call)
    if call.listener is not None and call.listener.log_level and call.tool.protocol == MODERN:
        meta[LOG_LEVEL] = call.listener.log_level
    return meta


def _token(call: PermittedCall) -> str:
    return f"{call.run}/{call.id}"


def _hearing(call: PermittedCall) -> Callable[[Notice], None] | None:
    """What hears this call: of progress, that of this call alone, and nothing that is long."""
    listener = call.listener
    if listener is None:
        return None

    def hear(notice: Notice) -> None:
        other = notice.method == "notifications/progress" and notice.params.get("progressToken") != _token(call)
        if not other and len(msgspec.json.encode(notice.params)) <= _MAX_NOTICE_BYTES:
            listener.hear(replace(notice, server=call.tool.source))

    return hear


def _asking(tool: LockedTool, client: McpClient, result: Mapping[str, Any], process: Process) -> Outcome:
    """A result that requires input."""
    try:
        return _waiting(tool, read_result(result, client.offers), process)
    except BadQuestion as problem:
        raise BadReply(str(problem)) from problem


def _waiting(tool: LockedTool, asked: Asked, process: Process) -> Outcome:
    """As far as its server says, the call has not been carried out yet."""
    # Of one elsewhere the only request is the call itself, and of that it says that it is not carried out.
    acted = not tool.remote and may_have_acted(process.egress_log())
    return Outcome(kind="input_required", text=f"{tool.name} asks for input.", asked=asked, acted=acted)


def _pages(client: McpClient, error: Exception) -> Asked | None:
    """The pages that a legacy server wants visited before it is called again, if it may ask for that."""
    if not isinstance(error, ServerError) or error.code != _PAGES_FIRST or client.protocol == MODERN:
        return None
    with contextlib.suppress(BadQuestion):
        return read_pages(error.data, client.offers) if "elicitation" in client.offers else None
    return None


def _not_visited(client: McpClient, call: PermittedCall) -> Outcome | None:
    """The end of a call whose legacy server wanted pages visited, and somebody would not: it is not called again."""
    said: Any = {} if call.round is None or client.protocol == MODERN else call.round.responses
    if all(each.get("action") == "accept" for each in said.values()):
        return None
    text = f"Not carried out: the server of {call.tool.name} wants a page to be visited first, and that was declined."
    return Outcome(kind="tool_error", text=text)


def _checked(tool: LockedTool, result: Mapping[str, Any], process: Process) -> Outcome:
    """An MCP result as an outcome, held against what its tool says of results."""
    outcome = _outcome(tool, result, process)
    if outcome.kind == "ok" and (problem := structure_problem(tool.definition, result)):
        return Outcome(kind="result_unusable", text=f"{_DONE} {problem}", detail=outcome.text[:_KEPT_CHARACTERS])
    return outcome


def _outcome(tool: LockedTool, result: Mapping[str, Any], process: Process) -> Outcome:
    """An MCP result as an outcome."""
    if (kind := result.get("resultType", "complete")) != "complete":
        raise BadReply(f"its result is {kind!r:.40}")
    if tool.method:
        text, attachments = read_context(tool.method, result)
        return Outcome(kind="ok", text=text, attachments=attachments, reply=reply_of(result))
    content = result.get("content")
    if not isinstance(content, list):
        raise BadReply("its result has no content list")
    text, attachments = read_content(content)
    if not content and "structuredContent" in result:
        text = str(result["structuredContent"])
    return replace(_judged(tool, result, text, process), attachments=attachments, reply=reply_of(result))


def _judged(tool: LockedTool, result: Mapping[str, Any], text: str, process: Process) -> Outcome:
    """What a result says of the call and its effect."""
    if result.get("isError") is not True:
        return Outcome(kind="ok", text=text)
    meta = result.get("_meta")
    error = meta.get(ERROR_META) if isinstance(meta, dict) else None
    acted = may_have_acted(process.egress_log()) and not tool.errors_not_done
    passing = _may_pass(process.egress_log())
    if not isinstance(error, dict):  # a third-party server's word, with nothing about what it had done by then
        detail = process.stderr_tail()
        return Outcome(kind="tool_error", text=text, detail=detail, unknown=acted, transient=passing)
    kind = "output_too_large" if error.get("type") == "OutputTooLarge" else "tool_error"
    if error.get("stage") == "result":  # the function returned: whatever it does outside is done
        kind, text = "result_unusable", f"{_DONE} {text}"
    detail = "\n".join(filter(None, (str(error.get("traceback", "")), process.stderr_tail())))
    unknown = error.get("unknown") is True
    if error.get("stage") == "call" and error.get("not_done") is not True:
        unknown = unknown or acted
    passing = error.get("stage") == "call" and (passing or error.get("transient") is True)
    return Outcome(kind=kind, text=text, detail=detail, unknown=unknown, transient=passing)


def may_have_acted(requests: Sequence[EgressRecord]) -> bool:
    """Whether a request left the sandbox that may have changed something and was not plainly refused.

    Of what the host says to a server elsewhere only the call itself counts, not what is about sessions and tokens.
    A sandbox can act only through the proxy, so this is evidence where a tool's exception is none: a reply that could
    not be read says nothing about the booking behind it.
    """
    return any(
        request.allowed
        and request.method not in _SAFE_METHODS
        and request.purpose in _ACTING
        and not _plainly_refused(request.status)
        for request in requests
    )


def _may_pass(requests: Sequence[EgressRecord]) -> bool:
    """Whether the last thing that the tool heard was that a service is overloaded, down or out of reach for now."""
    sent = [request for request in requests if request.allowed]
    return bool(sent) and (sent[-1].status is None or sent[-1].status in _PASSING_STATUS)


def _plainly_refused(status: int | None) -> bool:
    return status is not None and 400 <= status < 500 and status not in _UNCLEAR_STATUS


def _drifted(tool: LockedTool, live: Mapping[str, JsonObject]) -> Outcome | None:
    """What is said instead of a call when the live definition is not the locked one; None when it is."""
    offered = live.get(tool.own_name)
    if offered is None:
        text = f"Not run: {tool.name} is not offered by its server any more."
        return Outcome(
            kind="pin_mismatch", text=text, detail=f"It offers: {', '.join(sorted(live)) or 'nothing'}."[:4000]
        )
    try:
        if tool.pin_of(offered) == tool.pin:
            return None
    except ValueError:
        pass  # nothing that could have been locked
    text = f"Not run: the definition of {tool.name} is not the one that was locked."
    changes = tuple(definition_changes(tool.definition, offered)) or ("the server itself is another one",)
    return Outcome(kind="pin_mismatch", text=text, detail="\n".join(changes)[:_KEPT_CHARACTERS])


def _with_declined(outcome: Outcome, declined: Mapping[str, int]) -> Outcome:
    if not declined:
        return outcome
    asked = ", ".join(f"{method} ({times})" for method, times in declined.items())
    return replace(
        outcome, detail="\n".join(filter(None, (f"Its server asked for, and was refused: {asked}.", outcome.detail)))
    )


def traceparent(run: str, call: str) -> str:
    """W3C trace context of a call: the same trace for all calls of a run, and never any baggage."""
    return f"00-{sha256(run.encode())[:32]}-{sha256(f'{run}/{call}'.encode())[:16]}-01"
