"""What became of a call, in the protocol's words: content, structured content, and what a client can do about it."""

from __future__ import annotations

import base64
import json
from typing import Any

from mcp import MCPError, types
from pydantic import ValidationError

from lockstep.agent.locked import LockedTool
from lockstep.errors import LockstepError
from lockstep.kernel.apply import JOINED
from lockstep.kernel.state import CallState, Phase, State, Status
from lockstep.runtime.stopping import AGENT_STOPPED
from lockstep.values import Attachment

_JOINED = "\n\n[This call was already made"
META = "lockstep"


def result_of_call(state: State, tool: LockedTool | None, first: CallState | None = None) -> types.CallToolResult:
    """The result of a run that is one call of a client. `first`: the call whose result answers it, if there is one."""
    call = state.calls[0]
    meta = {f"{META}/run": state.run, f"{META}/call": call.id}
    if call.open:
        return _said(waiting_text(state, call), {**meta, **_waits(call)}, error=True)
    if call.duplicate_of:
        meta[f"{META}/duplicate_of"] = call.duplicate_of
    is_error = call.outcome not in ("ok", JOINED)
    if (said := _as_the_server_said(call, first, meta, is_error)) is not None:
        return said
    structured = None
    if tool is not None and "outputSchema" in tool.definition and not is_error:
        structured = _structured(call.text)
        is_error = structured is None  # it happened and its result was lost; clients refuse what only says so
    images = [_image(attachment) for attachment in (first or call).attachments if attachment.shown]
    content: list[types.ContentBlock] = [types.TextContent(text=call.text)] if call.text or not images else []
    return types.CallToolResult(
        content=[*content, *images], structured_content=structured, is_error=is_error, _meta=meta
    )


def error_of_call(call: CallState) -> MCPError | None:
    """The error of the protocol that a client is owed in place of a result; None for a tool's own failure."""
    error = reply_of(call).get("error")
    if not isinstance(error, dict) or error.get("code") != types.MISSING_REQUIRED_CLIENT_CAPABILITY:
        return None
    return MCPError(error["code"], str(error.get("message", "")), error.get("data"))


def reply_of(call: CallState) -> dict[str, Any]:
    """What the server itself said, where that was kept; empty otherwise."""
    return json.loads(call.reply) if call.reply else {}


def _as_the_server_said(
    call: CallState, first: CallState | None, meta: dict[str, Any], is_error: bool
) -> types.CallToolResult | None:
    """The server's own result, block by block; None where none was kept, or it is none that the protocol knows."""
    reply = reply_of(first or call)
    if "content" not in reply:
        return None
    joined = call.text.rpartition(_JOINED) if first is not None else ("", "", "")
    blocks = reply["content"] + [{"type": "text", "text": f"{_JOINED}{joined[2]}".strip()}] * bool(joined[1])
    told = {**reply, "content": blocks, "isError": is_error, "_meta": {**reply.get("_meta", {}), **meta}}
    try:
        return types.CallToolResult.model_validate(told)
    except ValidationError:
        return None


def _image(attachment: Attachment) -> types.ImageContent:
    return types.ImageContent(data=base64.b64encode(attachment.data).decode(), mime_type=attachment.mime_type)


def result_of_ask(state: State) -> types.CallToolResult:
    """The result of a run of the agent itself."""
    meta = {f"{META}/run": state.run}
    waiting = (Phase.WAITING, Phase.NEEDS_INPUT, Phase.DOUBTED)
    waits = next((call for call in state.calls if call.phase in waiting), None)
    if waits is not None and state.suspended_for:
        return _said(waiting_text(state, waits), {**meta, **_waits(waits)}, error=True)
    if state.stop_reason == "completed":
        return _said(state.output, meta, error=False)
    return _said(state.message or f"The run ended: {state.stop_reason}.", meta, error=True)


def failed(text: str) -> types.CallToolResult:
    """Why nothing was done, or nobody knows yet what was."""
    return _said(text, {}, error=True)


def nothing_done(error: LockstepError) -> str:
    """That a request came to nothing. It may be the retry of one that did not."""
    return f"This request did nothing, and says nothing of an earlier one: {error.code}. The operator sees why."


def question_of(call: CallState, principal: str) -> str:
    """What a person is asked about exactly this call."""
    asked = call.question or f"Run {call.name}?"
    return f"{asked}\n\n{call.name} for {principal}, with exactly these arguments:\n{call.arguments}"


def waiting_text(state: State, call: CallState) -> str:
    """What a call waits for and what can be done about it."""
    if state.suspended_for == AGENT_STOPPED or state.status is Status.FINISHED:
        return state.message
    if call.phase is Phase.WAITING:
        question = f" ({call.question})" if call.question else ""
        name = call.approval
        return (
            f"Not run yet: {call.name} waits for a person{question}. Approval {name}, for exactly this call:"
            f" `lockstep approve {name}` or `lockstep refuse {name}` in the agent's directory. Then make the same call"
            " again to get its result; it is not run twice."
        )
    if call.phase is Phase.NEEDS_INPUT:
        return (
            f"Not done yet: the server of {call.name} asks a person for input. `lockstep approvals` shows what,"
            f" `lockstep answer {call.input}` answers it, in the agent's directory. Then make the same call again to"
            " get its result; it is not made twice."
        )
    return (
        f"Nobody knows whether {call.name} happened: {call.why_doubted.rstrip('.')}. Do not make another call for the"
        f" same thing. A person settles it: `lockstep settle {state.run}/{call.id} --happened` or `--did-not`."
    )


def _waits(call: CallState) -> dict[str, Any]:
    if call.phase is Phase.WAITING:
        return {
            f"{META}/waits_for": "approval",
            f"{META}/approval": call.approval,
            f"{META}/expires_at_ms": call.approval_expires_ms,
        }
    if call.phase is Phase.NEEDS_INPUT:
        return {
            f"{META}/waits_for": "input",
            f"{META}/input": call.input,
            f"{META}/expires_at_ms": call.input_expires_ms,
        }
    return {f"{META}/waits_for": "settling" if call.phase is Phase.DOUBTED else "start"}


def _structured(text: str) -> Any:
    """The value a tool returned, which its text holds as JSON; a joined call says after it that it was joined."""
    try:
        return json.loads(text.rpartition(_JOINED)[0] or text)
    except ValueError:
        return None


def _said(text: str, meta: dict[str, Any], *, error: bool) -> types.CallToolResult:
    return types.CallToolResult(content=[types.TextContent(text=text)], is_error=error, _meta=meta)
