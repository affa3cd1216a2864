"""Permits to try a tool against a scratch world, outside of any run.

Policy is not asked: it says what a principal may do to the world, and a scratch world is nobody's. What is tried must
reach nothing else, which is for whoever asks to see to.
"""

from __future__ import annotations

from collections.abc import Mapping

from lockstep.agent.locked import LockedTool
from lockstep.gate.arguments import ArgumentChecker, Arguments, Malformed
from lockstep.gate.gate import PERMIT_TTL_MS
from lockstep.gate.permit import Permit, PermitMint
from lockstep.values import Digest, JsonObject, canonical, digest_json, now_ms


class Trying:
    """Permits for calls of these tools, each bound to one call with valid arguments."""

    def __init__(self, tools: Mapping[str, LockedTool]) -> None:
        self._arguments = ArgumentChecker({name: tool.input_schema for name, tool in tools.items()})
        self._mint = PermitMint()

    def permit(self, tool: LockedTool, call: str, arguments: JsonObject) -> tuple[Permit, Digest]:
        """The right to make this call once, and the digest that it is bound to.

        Raises:
            Malformed: the tool does not take these arguments.
        """
        try:
            read = Arguments(arguments, canonical(arguments))
        except ValueError as error:
            raise Malformed(f"the arguments cannot be used: {error}") from error
        self._arguments.check(tool.name, read)
        digest = digest_json({"arguments": arguments, "pin": tool.pin, "try": call, "tool": tool.name})
        return self._mint.issue(digest, expires_at_ms=now_ms() + PERMIT_TTL_MS), digest
