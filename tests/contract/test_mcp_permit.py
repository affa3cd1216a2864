"""Without a permit for exactly this call, a server hears what greets it and nothing of the call."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from lockstep.agent.locked import LockedTool, pin
from lockstep.agent.spec import LimitsSection
from lockstep.errors import PermitError
from lockstep.gate.permit import Permit, PermitMint
from lockstep.sandbox.bubblewrap import Bubblewrap
from lockstep.sandbox.contract import Process, SandboxSpec
from lockstep.tools.code import CodeStore
from lockstep.tools.host import SandboxedTools
from lockstep.tools.port import PermittedCall
from lockstep.tools.starting import Guest
from lockstep.values import Effect, RunId, Tier, digest_json, now_ms, sha256

pytestmark = [
    pytest.mark.sandbox,
    pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is not installed (Debian package bubblewrap)"),
]
DO: dict[str, Any] = {"name": "do", "inputSchema": {"type": "object"}}
SERVER = """
import json, sys
for line in sys.stdin:
    asked = json.loads(line)
    if "id" not in asked: continue
    said = {"protocolVersion": "2025-11-25", "capabilities": {}, "content": []}
    if asked["method"] == "tools/list": said = {"tools": [{"name": "do", "inputSchema": {"type": "object"}}]}
    print(json.dumps({"jsonrpc": "2.0", "id": asked["id"], "result": said}), flush=True)
"""
GREETING = ["initialize", "notifications/initialized", "tools/list"]


class Overheard(Bubblewrap):
    """The real backend, with every frame that is sent into its sandboxes."""

    def __init__(self, state_dir: Path) -> None:
        super().__init__(state_dir)
        self.methods: list[str] = []

    async def start(self, spec: SandboxSpec) -> Process:
        process = await super().start(spec)
        send = process.send

        async def heard(frame: bytes) -> None:
            self.methods.append(json.loads(frame)["method"])
            await send(frame)

        process.send = heard  # type: ignore[method-assign]
        return process


DIGEST = digest_json({"call": "this one"})
MINT = PermitMint()


def _spent(permit: Permit) -> Permit:
    permit.redeem(DIGEST, now_ms())
    return permit


PERMITS: Mapping[str, Any] = {
    "of another gate": lambda: replace(MINT.issue(DIGEST, expires_at_ms=now_ms() + 60_000), mint=PermitMint()),
    "for another call": lambda: MINT.issue(digest_json({"call": "another"}), expires_at_ms=now_ms() + 60_000),
    "that has expired": lambda: MINT.issue(DIGEST, expires_at_ms=now_ms() - 1),
    "that was spent": lambda: _spent(MINT.issue(DIGEST, expires_at_ms=now_ms() + 60_000)),
}


def _heard(tmp_path: Path, permit: Permit, *, lifetime: bool = False) -> tuple[list[str], str]:
    """What the server heard, and what came of the call."""
    code = CodeStore(tmp_path / "code")
    files = {"server.py": SERVER.encode()}
    code.put(files)
    digests = {name: sha256(data) for name, data in files.items()}
    source = "mcp:/usr/bin/python3 -I -S server.py"
    tool = LockedTool(
        name="do",
        definition=DO,
        pin=pin(DO, source, digests, {}),
        effect=Effect.READ,
        dedupe_on=None,
        tier=Tier.PROCESS,
        run_lifetime=lifetime,
        egress=(),
        env={},
        limits=LimitsSection(),
        timeout_s=20,
        fee_usd=Decimal(0),
        source=source,
        code=digests,
        protocol="2025-11-25",
    )
    call = PermittedCall(run=RunId("r1"), session="s", id="0.0", tool=tool, arguments={}, digest=DIGEST, key="k")

    async def ask() -> tuple[list[str], str]:
        backend = Overheard(tmp_path / "sandboxes")
        host = SandboxedTools((backend,), code, Guest(tmp_path / "guest"))
        try:
            outcome = (await host.call(call, permit)).kind
        except PermitError:
            outcome = "PermitError"
        finally:
            await host.close()
        return backend.methods, outcome

    return asyncio.run(ask())


@pytest.mark.parametrize("lifetime", [False, True], ids=["call", "run"])
def test_with_its_permit_a_call_is_sent(tmp_path: Path, lifetime: bool) -> None:
    permit = MINT.issue(DIGEST, expires_at_ms=now_ms() + 60_000)
    methods, outcome = _heard(tmp_path, permit, lifetime=lifetime)
    canary = methods.index("initialize") if "initialize" in methods else 0
    assert (methods[canary : canary + 4], outcome) == ([*GREETING, "tools/call"], "ok")


@pytest.mark.parametrize("which", PERMITS)
@pytest.mark.parametrize("lifetime", [False, True], ids=["call", "run"])
def test_with_a_permit_that_is_none_it_is_not(tmp_path: Path, which: str, lifetime: bool) -> None:
    methods, outcome = _heard(tmp_path, PERMITS[which](), lifetime=lifetime)
    assert (set(methods) <= {*GREETING}, outcome) == (True, "PermitError")
