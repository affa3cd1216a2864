"""docs/mcp.md, step by step: the files and commands as they stand there, with the SDK's client before the gateway."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from mcp import Client, StdioServerParameters
from mcp import types as mcp_types
from mcp_install import python_servers

pytestmark = pytest.mark.sandbox

PAGE = (Path(__file__).resolve().parents[2] / "docs/mcp.md").read_text()
(STEPS,) = re.findall(r"^## Your own server, step by step\n(.*?)^## ", PAGE, re.MULTILINE | re.DOTALL)
FILES = {"python": "server.py", "toml": "agent.toml", "cedar": "policy.cedar"}
LOCKSTEP = f'lockstep() {{ "{sys.executable}" -m lockstep "$@"; }}\n'
WAIT_S = 120


def block(kind: str) -> str:
    (text,) = re.findall(rf"^```{kind}\n(.*?)^```$", STEPS, re.MULTILINE | re.DOTALL)
    return str(text)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with the packages where the page has them, and the agent in it, made by its commands."""
    home = tmp_path_factory.mktemp("home")
    (home / "mcp").mkdir()
    (home / "mcp/sdk").symlink_to(python_servers("modern"))  # which pip installed, as the page does
    (home / "shelf").mkdir()
    for kind, name in FILES.items():
        assert f"`{name}`" in STEPS
        (home / "shelf" / name).write_text(block(kind))
    for line in re.findall(r"^\$ (.*)$", block("console"), re.MULTILINE):
        if not line.startswith(("pip ", "python3 -m compileall", "lockstep gateway")):
            assert run(home, line).returncode == 0, line
    return home


def environment(home: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("LOCKSTEP_")}
    return {**kept, "HOME": str(home)}


def run(directory: Path, line: str) -> subprocess.CompletedProcess[str]:
    home = directory if (directory / "mcp").is_dir() else directory.parent
    done = subprocess.run(
        ["bash", "-c", LOCKSTEP + line],
        cwd=directory,
        env=environment(home),
        capture_output=True,
        text=True,
        timeout=WAIT_S,
        check=False,
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done


def test_the_server_of_the_page_serves_a_client_and_asks_a_person_before_it_writes(home: Path) -> None:
    arguments = ["-m", "lockstep", "gateway", str(home / "shelf"), "--no-ask"]
    server = StdioServerParameters(command=sys.executable, args=arguments, env=environment(home), cwd="/")

    async def work() -> None:
        async with asyncio.timeout(WAIT_S), Client(server) as client:
            assert [tool.name for tool in (await client.list_tools()).tools] == ["shelf__add_note", "shelf__read_note"]
            assert "Milk." in text(await client.call_tool("shelf__read_note", {"title": "shopping"}))
            note = {"title": "shopping", "text": "Bread."}
            waits = await client.call_tool("shelf__add_note", note)
            approval = (waits.meta or {})["lockstep/approval"]
            said = await asyncio.to_thread(run, home / "shelf", f"lockstep approve {approval}")
            assert said.returncode == 0, said.stderr
            while (done := await client.call_tool("shelf__add_note", note)).is_error:  # noqa: ASYNC110 - bounded above
                await asyncio.sleep(0.2)
            assert "kept shopping" in text(done)
            assert "Bread." in text(await client.call_tool("shelf__read_note", {"title": "shopping"}))

    asyncio.run(work())


def text(result: mcp_types.CallToolResult) -> str:
    return "".join(each.text for each in result.content if isinstance(each, mcp_types.TextContent))
