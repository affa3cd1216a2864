"""QEMU's control protocol (QMP), as much as starting, freezing and cloning a machine needs.

Protocol: docs/interop/qmp-spec of QEMU. The other end is QEMU itself, which a guest may have taken over: what it says
is parsed strictly, and nothing waits without bound.
"""

from __future__ import annotations

import asyncio
import json
import socket
from typing import Any

from lockstep.errors import SandboxUnavailable
from lockstep.sandbox.monitor import Stream

_ANSWER_S = 20.0
_LINES = 10_000


class Qmp:
    """One control connection, used by one task at a time."""

    def __init__(self, stream: Stream, control: socket.socket) -> None:
        self._reader, self._writer = stream
        self._control = control

    @classmethod
    async def over(cls, control: socket.socket) -> Qmp:
        return cls(await asyncio.open_unix_connection(sock=control), control)

    async def greet(self, timeout_s: float) -> None:
        """Read the greeting and leave negotiation mode.

        Raises:
            SandboxUnavailable: QEMU does not answer in time.
        """
        await self._until("QMP", timeout_s)
        await self.do("qmp_capabilities")

    async def do(self, command: str, **arguments: Any) -> None:
        """Carry out one command.

        Raises:
            SandboxUnavailable: QEMU refuses, ends, or does not answer in time.
        """
        self._writer.write(json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n")
        await self._until("return", _ANSWER_S)

    async def give(self, name: str, descriptor: int) -> None:
        """Let QEMU use our descriptor under a name.

        Raises:
            SandboxUnavailable: as `do`.
        """
        command = json.dumps({"execute": "getfd", "arguments": {"fdname": name}}).encode() + b"\n"
        try:
            socket.send_fds(self._control, [command], [descriptor])
        except OSError as error:
            raise SandboxUnavailable(f"QEMU does not listen ({error}).") from error
        await self._until("return", _ANSWER_S)

    async def migrated(self) -> None:
        """Wait until a migration under way has completed.

        Raises:
            SandboxUnavailable: it failed, or took too long.
        """
        while True:
            event = await self._until("event", _ANSWER_S)
            if event["event"] == "MIGRATION":
                status = event.get("data", {}).get("status")
                if status == "completed":
                    return
                if status == "failed":
                    raise SandboxUnavailable("QEMU could not save or load the state of a machine.")

    def close(self) -> None:
        self._writer.transport.abort()

    async def _until(self, key: str, timeout_s: float) -> dict[str, Any]:
        try:
            async with asyncio.timeout(timeout_s):
                for _ in range(_LINES):
                    line = await self._reader.readline()
                    message = json.loads(line) if line else {"error": {"desc": "it ended"}}
                    if "error" in message:
                        raise SandboxUnavailable(f"QEMU refused: {str(message['error'].get('desc'))[:300]}.")
                    if key in message:
                        return dict(message)
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise SandboxUnavailable(f"QEMU does not answer sensibly ({error}).") from error
        raise SandboxUnavailable("QEMU talks without end.")
