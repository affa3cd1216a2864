"""A real MCP server over Streamable HTTP, in both eras: locked, pinned and called as an agent's tools are."""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from lockstep.agent.from_lock import locked_agent
from lockstep.agent.lock import read_lock, to_text, write_lock
from lockstep.cli.stores import opened
from lockstep.errors import ConfigError
from lockstep.journal.events import RunStarted
from lockstep.kernel.state import Phase, State, Status
from lockstep.wiring import running, stores
from lockstep.wiring.pinning import approved_lock, review
from lockstep.wiring.stores import Store

pytest.importorskip("mcp", reason="the extra lockstep-agents[mcp] is not installed")
SERVER = '''
import sys
from mcp.server import MCPServer
server = MCPServer("bank")

@server.tool()
def balance(of: str) -> dict[str, int]:
    """What somebody has."""
    return {"balance": len(of)}

@server.tool()
def pay(to: str) -> str:
    """Pay somebody."""
    if to == "nobody":
        raise ValueError("there is no such person")
    if to == "crash":
        import os
        os._exit(1)
    return f"paid {to}"

import uvicorn
app = server.streamable_http_app(json_response=sys.argv[2] == "json")
config = uvicorn.Config(app, host="127.0.0.1", port=0, log_level="warning")
running = uvicorn.Server(config)
import asyncio
async def main():
    task = asyncio.create_task(running.serve())
    while not running.started:
        await asyncio.sleep(0.01)
    print(running.servers[0].sockets[0].getsockname()[1], flush=True)
    await task
asyncio.run(main())
'''
AGENT = """
[agent]
name = "bank"
[model]
name = "scripted:script.jsonl"
[prompt]
file = "prompt.md"
[[tools]]
include = ["balance"]
effect = "read"
retries = 1
[tools.mcp]
url = "{url}"
prefix = "bank"
[[tools]]
include = ["pay"]
late_s = 0
[tools.mcp]
url = "{url}"
prefix = "bank"
[policy]
files = ["policy.cedar"]
"""


@contextlib.contextmanager
def started(place: Path, answers: str) -> Iterator[str]:
    """The URL of a server of its own process; `answers` as `json` or as `events`."""
    (place / "server.py").write_text(SERVER)
    command = [sys.executable, str(place / "server.py"), "0", answers]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        try:
            yield f"http://127.0.0.1:{int(process.stdout.readline())}/mcp"
        finally:
            process.kill()


@pytest.fixture(scope="module", params=["json", "events"])
def url(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[str]:
    with started(tmp_path_factory.mktemp("server"), request.param) as at:
        yield at


@pytest.fixture
def agent(tmp_path: Path, url: str) -> Path:
    return agent_of(tmp_path / "agent", url)


def agent_of(directory: Path, url: str) -> Path:
    directory.mkdir()
    (directory / "agent.toml").write_text(AGENT.format(url=url))
    (directory / "prompt.md").write_text("You look after money.\n")
    (directory / "policy.cedar").write_text('@id("all")\npermit (principal, action, resource);\n')
    script(directory)
    return directory


def script(directory: Path, *calls: tuple[str, dict[str, str]]) -> None:
    steps = [{"calls": [{"name": name, "arguments": arguments}]} for name, arguments in calls]
    (directory / "script.jsonl").write_text("\n".join(map(json.dumps, [*steps, {"say": "Done."}])) + "\n")


async def run(directory: Path, *calls: tuple[str, dict[str, str]], protocol: str = "") -> State:
    """Lock the agent and let it make these calls; `protocol` in place of what was settled on."""
    script(directory, *calls)
    where = Store.of(directory)
    async with stores.opened_tools(where) as tools, opened(where) as journal:
        seen = await review(directory, tools, where.code())
        if protocol:
            protocols = dict.fromkeys(seen.asked.protocols, protocol)
            seen = replace(seen, asked=replace(seen.asked, protocols=protocols))
        write_lock(directory, approved_lock(directory, seen))
        lock = (await running.prepare(directory, tools, where.code())).lock
        driver = running.open_driver(lock, directory=directory, journal=journal, tools=tools, code=where.code())
        started = RunStarted(
            agent="bank",
            lock=lock.digest,
            lock_text=to_text(lock),
            directory=str(directory),
            principal="ann",
            session="s",
            input="Go on.",
            approve="none",
        )
        return await driver.advance(await driver.start(started))


@pytest.mark.parametrize("protocol", ["", "2025-11-25"], ids=["as settled", "legacy"])
def test_its_tools_are_locked_and_run(agent: Path, url: str, protocol: str) -> None:
    again = ("bank__pay", {"to": "bob"})
    state = asyncio.run(run(agent, ("bank__balance", {"of": "ann"}), again, again, protocol=protocol))
    tools = locked_agent(read_lock(agent)).tools.values()
    assert {(tool.name, tool.protocol) for tool in tools} == {
        ("bank__balance", protocol or "2026-07-28"),
        ("bank__pay", protocol or "2026-07-28"),
    }
    assert {(tool.source, tool.tier.value) for tool in tools} == {(f"mcp:{url}", "remote")}
    balance, paid, repeated = state.all_calls
    assert (balance.outcome, json.loads(balance.text)) == ("ok", {"balance": 3})
    assert (paid.outcome, paid.text, paid.tier) == ("ok", "paid bob", "remote")
    assert repeated.duplicate_of


def test_a_reply_that_is_lost_is_in_doubt_and_the_call_is_not_made_again(tmp_path: Path) -> None:
    with started(tmp_path, "json") as url:
        state = asyncio.run(run(agent_of(tmp_path / "agent", url), ("bank__pay", {"to": "crash"})))
    (call,) = state.all_calls
    assert (state.status, call.phase, call.attempts) == (Status.SUSPENDED, Phase.DOUBTED, 0)
    assert "was not answered: the connection to 127.0.0.1" in call.why_doubted


@pytest.mark.parametrize("errors, phase", [("", Phase.DOUBTED), ('errors = "not_done"', Phase.DONE)])
def test_an_error_says_nothing_of_the_effect_unless_the_operator_says_so(
    agent: Path, errors: str, phase: Phase
) -> None:
    text = (agent / "agent.toml").read_text()
    (agent / "agent.toml").write_text(text.replace('prefix = "bank"', f'prefix = "bank"\n{errors}'))
    state = asyncio.run(run(agent, ("bank__pay", {"to": "nobody"})))
    (call,) = state.all_calls
    assert (call.phase, "Error executing tool pay" in f"{call.text} {call.why_doubted}") == (phase, True)


def test_a_url_where_nothing_is_cannot_be_locked(agent: Path) -> None:
    text = (agent / "agent.toml").read_text().replace("/mcp", "/elsewhere")
    (agent / "agent.toml").write_text(text)
    with pytest.raises(ConfigError, match="cannot be used"):
        asyncio.run(run(agent))
