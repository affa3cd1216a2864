"""From a server that wants a login to a run that has one, as a person types it."""

from __future__ import annotations

import asyncio
import json
import os
import re
import sys
from pathlib import Path

import httpx2
import pytest

pytest.importorskip("mcp", reason="the extra lockstep-agents[mcp] is not installed")
sys.path.append(str(Path(__file__).parent.parent / "security"))
from identity_peer import Identity
from remote_peer import serving

AGENT = """
[agent]
name = "bank"
[model]
name = "scripted:script.jsonl"
[prompt]
file = "prompt.md"
[[tools]]
effect = "read"
timeout_s = 20
[tools.mcp]
url = "http://127.0.0.1:{port}/mcp"
prefix = "bank"
oauth = {{}}
[policy]
files = ["policy.cedar"]
"""


class Terminal:
    """Where commands are typed, for one agent."""

    def __init__(self, directory: Path, port: int) -> None:
        self.directory = directory
        directory.mkdir()
        (directory / "agent.toml").write_text(AGENT.format(port=port))
        (directory / "prompt.md").write_text("You look after money.\n")
        (directory / "policy.cedar").write_text('@id("all")\npermit (principal, action, resource);\n')
        asked = {"calls": [{"name": "bank__do", "arguments": {}}]}
        (directory / "script.jsonl").write_text(f"{json.dumps(asked)}\n{json.dumps({'say': 'Done.'})}\n")

    async def type(self, *words: str) -> tuple[int, str]:
        """The exit code and all that was printed; an address to open is opened, and agreed to."""
        child = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "lockstep", *words),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env={name: value for name, value in os.environ.items() if name not in ("DISPLAY", "WAYLAND_DISPLAY")},
        )
        assert child.stdout is not None
        said = ""
        async for line in child.stdout:
            said += line.decode()
            if found := re.fullmatch(r"(http\S+/authorize\?\S+)\s*", line.decode()):
                async with httpx2.AsyncClient(follow_redirects=True, trust_env=False) as browser:
                    assert "can be closed" in (await browser.get(found[1])).text
        return await child.wait(), said


def test_a_person_logs_in_once_and_runs_go_by_themselves(tmp_path: Path) -> None:
    async def go() -> None:
        async with serving(Identity()) as peer:
            terminal, agent = Terminal(tmp_path / "agent", peer.port), str(tmp_path / "agent")
            code, said = await terminal.type("lock", agent)
            assert (code, "bank wants a login of" in said, "lockstep tools login AGENT bank" in said) == (2, True, True)
            code, said = await terminal.type("tools", "login", agent)
            assert (code, "is logged in at bank" in said) == (0, True), said
            code, said = await terminal.type("lock", agent)
            assert code == 0, said
            code, said = await terminal.type("run", agent, "Do it.")
            assert (code, "bank__do ok done (remote" in said) == (0, True), said
            assert "token-number" not in (tmp_path / "agent" / "agent.lock").read_text() + said
            code, said = await terminal.type("tools", "logout", agent)
            assert (code, "has no login any more" in said) == (0, True)
            code, said = await terminal.type("run", agent, "Do it.")
            assert (code, "lockstep tools login AGENT bank" in said) == (0, True), said

    asyncio.run(go())
