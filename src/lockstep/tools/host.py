"""The tool host: every permitted call in a fresh sandbox, over MCP, and nothing without a permit.

Before the call is sent, the live definition must match its pin. After it was sent, a missing answer means that nobody
knows what happened; before, it means that nothing did.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any
from urllib.parse import quote

from lockstep.agent.locked import LockedTool
from lockstep.agent.spec import LimitsSection
from lockstep.errors import ConfigError, SandboxUnavailable, StoreError
from lockstep.gate.permit import Permit
from lockstep.sandbox.contract import Backend, EgressRecord, Limits, Process, ProcessEnded, SandboxSpec
from lockstep.sandbox.egress_rules import parse_rule
from lockstep.tools.client import BadReply, McpClient, ServerError
from lockstep.tools.code import CodeStore
from lockstep.tools.egress_checks import binding
from lockstep.tools.guest import LOCKSTEP_MOUNT, TOOL_MOUNT
from lockstep.tools.port import Outcome, PermittedCall
from lockstep.tools.results import ERROR_META
from lockstep.tools.secret_values import secret_values
from lockstep.tools.starting import Guest
from lockstep.values import TIER_RANK, Digest, Effect, JsonObject, digest_json

IMPORT_FAILED = -32001
_MIB = 2**20
_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS", "TRACE"})
_UNCLEAR_STATUS = frozenset({408, 425, 429, 499})
"""Of 4xx, those a server or something before it may send although the request was carried out."""


class SandboxedTools:
    """Runs calls on the backends of this machine."""

    def __init__(self, backends: Sequence[Backend], code: CodeStore, guest: Guest) -> None:
        self._backends = sorted(backends, key=lambda backend: TIER_RANK[backend.tier])
        self._code = code
        self._guest = guest

    async def call(self, call: PermittedCall, permit: Permit) -> Outcome:
        try:
            backend = self.backend_for(call.tool)
            values = await secret_values(call.tool.secrets, os.environ)
            spec = replace(self._spec(call), secret_values=values)
            async with backend.open(spec, permit, call.digest) as process:
                outcome = await _converse(process, call)
            return _with_use(outcome, backend, process)
        except (SandboxUnavailable, ConfigError, StoreError) as error:  # all of them before anything of the tool ran
            return Outcome(kind="sandbox_unavailable", text=f"Not run: {error}", detail=str(error))

    async def describe(self, tool: LockedTool, permit: Permit, digest: Digest) -> list[JsonObject]:
        """The definitions a source offers, asked for in a sandbox: tool code never runs outside one.

        Raises:
            ServerError, BadReply, ProcessEnded: the source cannot say.
            SandboxUnavailable, PermitError: nothing ran.
        """
        async with self.backend_for(tool).open(self._sandbox(tool, {}), permit, digest) as process:
            client = McpClient(process)
            await client.initialize()
            return await client.list_tools()

    async def sweep(self) -> None:
        for backend in self._backends:
            await backend.sweep()

    def backend_for(self, tool: LockedTool) -> Backend:
        """The cheapest backend that is at least as strong as the tool's tier.

        Raises:
            SandboxUnavailable: this build has none.
        """
        for backend in self._backends:
            if TIER_RANK[backend.tier] >= TIER_RANK[tool.tier]:
                return backend
        raise SandboxUnavailable(
            f"Tool {tool.name} needs isolation {tool.tier.value!r}, which is not available here.",
            remedy="`lockstep doctor` shows what this machine can do.",
        )

    def _spec(self, call: PermittedCall) -> SandboxSpec:
        identity = {
            "Lockstep-Session": call.session,
            "Lockstep-Run": call.run,
            "Lockstep-Call": f"{call.run}/{call.id}",
        }
        if call.tool.effect is Effect.KEYED:
            identity["Idempotency-Key"] = call.key
        return self._sandbox(call.tool, identity)

    def _sandbox(self, tool: LockedTool, identity: Mapping[str, str]) -> SandboxSpec:
        argv, mounts = self._guest.start(tool.source, egress=bool(tool.egress))
        limits = _limits(tool.limits, tool.timeout_s)
        return SandboxSpec(
            argv=argv,
            mounts={**mounts, TOOL_MOUNT: self._code.get(tool.code), LOCKSTEP_MOUNT: self._guest.directory},
            env={**tool.env, "LOCKSTEP_OUTPUT_BYTES": str(limits.output_bytes)},
            egress=tuple(parse_rule(rule) for rule in tool.egress),
            secrets=tuple(binding(secret) for secret in tool.secrets),
            identity={name: _header(value) for name, value in identity.items()},
            limits=limits,
        )


async def _converse(process: Process, call: PermittedCall) -> Outcome:
    """One call, start to end. `sent` is the moment after which silence means doubt."""
    client = McpClient(process)
    sent = False
    try:
        await client.initialize()
        live = {str(tool["name"]): tool for tool in await client.list_tools()}
        pinned = live.get(call.tool.name)
        if pinned is None or _pin(pinned) != call.tool.pin:
            text = f"Not run: the definition of {call.tool.name} is not the one that was locked."
            return Outcome(kind="pin_mismatch", text=text)
        sent = True
        meta = {"lockstep/run": call.run, "lockstep/call": call.id, "lockstep/key": call.key}
        return _outcome(await client.call_tool(call.tool.name, call.arguments, meta), process)
    except ProcessEnded as ended:
        return _ended(call.tool, ended, sent=sent)
    except ServerError as error:
        kind = "import_error" if error.code == IMPORT_FAILED else "tool_error"
        text = f"{call.tool.name} failed: {error.message}"
        acted = sent and may_have_acted(process.egress_log())
        return Outcome(kind=kind, text=text, detail=process.stderr_tail(), unknown=acted)
    except BadReply as error:
        text = f"{call.tool.name} broke the protocol: {error}."
        return Outcome(kind="bad_reply", text=text, detail=process.stderr_tail(), unknown=sent)


def _ended(tool: LockedTool, ended: ProcessEnded, *, sent: bool) -> Outcome:
    match ended.limit:
        case "wall_s":
            kind, text = "timeout", f"{tool.name} did not answer within {tool.timeout_s:g} s and was ended."
        case "output_bytes":
            kind, text = "output_too_large", f"{tool.name} sent more than {tool.limits.output_kb} KiB and was ended."
        case "":
            kind, text = "process_ended", f"{tool.name} ended without an answer (exit code {ended.exit_code})."
        case limit:
            kind, text = "process_ended", f"{tool.name} hit its limit {limit} and was ended."
    if not sent:
        text += " It had not been called yet."
    return Outcome(kind=kind, text=text, detail=ended.stderr, unknown=sent)


def _outcome(result: Mapping[str, Any], process: Process) -> Outcome:
    """An MCP `tools/call` result as an outcome."""
    content = result.get("content")
    if not isinstance(content, list):
        raise BadReply("its result has no content list")
    text = "\n".join(_block_text(block) for block in content)
    if not content and "structuredContent" in result:
        text = str(result["structuredContent"])
    if result.get("isError") is not True:
        return Outcome(kind="ok", text=text)
    meta = result.get("_meta")
    error = meta.get(ERROR_META) if isinstance(meta, dict) else None
    acted = may_have_acted(process.egress_log())
    if not isinstance(error, dict):  # a third-party server's word, with nothing about what it had done by then
        return Outcome(kind="tool_error", text=text, detail=process.stderr_tail(), unknown=acted)
    kind = "output_too_large" if error.get("type") == "OutputTooLarge" else "tool_error"
    if error.get("stage") == "result":  # the function returned: whatever it does outside is done
        kind, text = "result_unusable", f"The call ran to its end, so its effect is done; its result is lost. {text}"
    detail = "\n".join(filter(None, (str(error.get("traceback", "")), process.stderr_tail())))
    unknown = error.get("unknown") is True
    if error.get("stage") == "call" and error.get("not_done") is not True:
        unknown = unknown or acted
    return Outcome(kind=kind, text=text, detail=detail, unknown=unknown)


def may_have_acted(requests: Sequence[EgressRecord]) -> bool:
    """Whether a request left the sandbox that may have changed something and was not plainly refused.

    A sandbox can act only through the proxy, so this is evidence where a tool's exception is none: a reply that could
    not be read says nothing about the booking behind it.
    """
    return any(
        request.allowed and request.method not in _SAFE_METHODS and not _plainly_refused(request.status)
        for request in requests
    )


def _plainly_refused(status: int | None) -> bool:
    return status is not None and 400 <= status < 500 and status not in _UNCLEAR_STATUS


def _block_text(block: Any) -> str:
    if isinstance(block, dict):
        if block.get("type") == "text" and isinstance(block.get("text"), str):
            return str(block["text"])
        if block.get("type") in ("image", "audio") and isinstance(block.get("data"), str):
            return f"[{block['type']}: {block.get('mimeType', 'unknown type')}, {len(block['data']) * 3 // 4} bytes]"
        if block.get("type") == "resource_link":
            return f"[resource: {block.get('uri')}]"
        if isinstance(resource := block.get("resource"), dict):
            return str(resource.get("text", f"[resource: {resource.get('uri')}]"))
    raise BadReply("its result holds a content block of no known type")


def _with_use(outcome: Outcome, backend: Backend, process: Process) -> Outcome:
    use = process.use()
    return Outcome(
        kind=outcome.kind,
        text=outcome.text,
        detail=outcome.detail,
        unknown=outcome.unknown,
        tier=backend.tier,
        start_ms=round(use.start_ms, 3),
        run_ms=round(use.run_ms, 3),
        cpu_s=use.cpu_s,
        peak_memory_bytes=use.peak_memory_bytes,
        egress=tuple(asdict(record) for record in process.egress_log()),
    )


def _pin(definition: JsonObject) -> Digest | None:
    try:
        return digest_json(definition)
    except ValueError:
        return None


def _limits(limits: LimitsSection, wall_s: float) -> Limits:
    return Limits(
        memory_bytes=limits.memory_mb * _MIB,
        cpu_s=limits.cpu_s,
        processes=limits.processes,
        open_files=limits.open_files,
        file_bytes=limits.file_mb * _MIB,
        disk_bytes=limits.disk_mb * _MIB,
        output_bytes=limits.output_kb * 1024,
        wall_s=wall_s,
    )


def _header(value: str) -> str:
    """A value as it stands in an HTTP header: percent-encoded beyond plain ASCII, so two values never look alike."""
    return quote(value, safe="/:@._-+")
