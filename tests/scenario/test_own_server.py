"""Somebody's own MCP server behind an agent for the first time: what is forgotten, and what a person is then told."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from commandline import BAD_INPUT, FINISHED, SANDBOX, Agent, call, command, copy_of, environment, make_agent
from mcp import Client, StdioServerParameters

pytestmark = SANDBOX
SERVER = '''\
"""Keeps notes in its memory; three tools, of which two only look."""

import json, sys

OBJECT = {"type": "object"}
NAMES = ("notes", "fail", "add")
NOTES = []
for line in sys.stdin:
    asked = json.loads(line)
    if "id" not in asked:
        continue
    said = {"error": {"code": -32601, "message": "no"}}
    if asked["method"] == "initialize":
        info = {"name": "notes", "version": "1"}
        said = {"result": {"protocolVersion": "2025-06-18", "capabilities": {}, "serverInfo": info}}
    elif asked["method"] == "tools/list":
        said = {"result": {"tools": [{"name": name, "inputSchema": OBJECT} for name in NAMES]}}
    elif asked["method"] == "tools/call":
        name = asked["params"]["name"]
        if name == "add":
            NOTES.append("milk")
        if name == "fail":
            print("no such shelf: /srv/shelf", file=sys.stderr, flush=True)
        text = "it failed" if name == "fail" else f"{len(NOTES)} notes"
        said = {"result": {"content": [{"type": "text", "text": text}], "isError": name == "fail"}}
    print(json.dumps({"jsonrpc": "2.0", "id": asked["id"], **said}), flush=True)
'''
ENTRY = """\
[[tools]]
mcp = {{ command = ["/usr/bin/python3", "server.py"], prefix = "my" }}
code = ["server.py"]
include = {include}
effect = "{effect}"
lifetime = "run"
timeout_s = 20
"""
READS = ENTRY.format(include='["notes", "fail"]', effect="read")
WRITES = ENTRY.format(include='["add"]', effect="once")


@pytest.fixture(scope="module")
def keeper(tmp_path_factory: pytest.TempPathFactory) -> Agent:
    directory = tmp_path_factory.mktemp("own") / "keeper"
    return make_agent(directory, code="", tools=READS + WRITES, files={"server.py": SERVER})


def test_what_a_server_reads_and_what_it_changes_may_be_declared_apart_and_share_its_state(keeper: Agent) -> None:
    script = [call("my__notes"), call("my__add"), call("my__notes"), {"say": "${my__notes}"}]
    done = keeper.run("add one", script=script)
    assert done.code == FINISHED, done.all
    results = [(each["tool"], each["effect"], each["result"]) for each in done.json["calls"]]
    assert results == [
        ("my__notes", "read", "0 notes"),
        ("my__add", "once", "1 notes"),
        ("my__notes", "read", "1 notes"),
    ]


def test_what_a_server_wrote_to_standard_error_is_shown_with_the_call_that_failed(keeper: Agent) -> None:
    assert keeper.run("fail", script=[call("my__fail"), {"say": "Sorry."}]).code == FINISHED
    assert "│ no such shelf: /srv/shelf" in keeper("show", "last").out
    (failed,) = keeper("show", "last", "--json").json["calls"]
    assert failed["outcome"] == "tool_error"
    assert "no such shelf" in failed["detail"]
    assert "no such shelf" not in failed["result"]


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('code = ["server.py"]\n', "", "server.py lies in the agent's directory and not in the sandbox: name it in"),
        ("/usr/bin/python3", "/usr/bin/python-none", "/usr/bin/python-none is not in the sandbox"),
        ("/usr/bin/python3", "/opt/nothing/python", "/opt/nothing/python is not in the sandbox"),
        ("/usr/bin/python3", "npx", "npx fetches or starts a server from elsewhere"),
    ],
    ids=["code", "program", "elsewhere", "npx"],
)
def test_a_server_that_starts_by_hand_and_not_here_is_told_apart(
    keeper: Agent, tmp_path: Path, old: str, new: str, said: str
) -> None:
    agent = copy_of(keeper, tmp_path / "keeper")
    agent.write("agent.toml", (agent.directory / "agent.toml").read_text().replace(WRITES, ""))
    agent.change("agent.toml", old, new)
    done = agent("lock", agent.directory)
    assert done.code == BAD_INPUT, done.all
    assert said in done.err


def test_what_a_server_imports_is_said_to_be_named_in_runtime(keeper: Agent, tmp_path: Path) -> None:
    agent = copy_of(keeper, tmp_path / "keeper")
    agent.change("server.py", "import json, sys", "import json, sys, nothing_of_the_kind")
    done = agent("lock", agent.directory)
    assert done.code == BAD_INPUT, done.all
    assert "Nothing of your site-packages is in the sandbox" in done.err


def test_a_file_that_is_missing_is_said_before_any_server_is_started(keeper: Agent, tmp_path: Path) -> None:
    agent = copy_of(keeper, tmp_path / "keeper")
    agent.write("server.py", "raise SystemExit('started')\n")
    (agent.directory / "prompt.md").unlink()
    done = agent("lock", agent.directory)
    assert done.code == BAD_INPUT, done.all
    assert "prompt.md" in done.err
    assert "started" not in done.err


def test_every_server_that_is_wrong_is_said_at_once(keeper: Agent, tmp_path: Path) -> None:
    agent = copy_of(keeper, tmp_path / "keeper")
    agent.write("server.py", "raise SystemExit('no shelf')\n")
    agent.change("agent.toml", WRITES, WRITES.replace("server.py", "other.py"))
    agent.write("other.py", "raise SystemExit('no pen')\n")
    done = agent("lock", agent.directory)
    assert done.code == BAD_INPUT, done.all
    assert "no shelf" in done.err
    assert "no pen" in done.err


def test_locking_says_what_holds_because_nothing_was_said(keeper: Agent, tmp_path: Path) -> None:
    agent = copy_of(keeper, tmp_path / "keeper")
    agent.change("agent.toml", 'effect = "once"\n', "")
    agent.write("policy.cedar", '@id("look")\npermit (principal, action == Action::"my__notes", resource);\n')
    done = agent("lock", agent.directory)
    assert done.code == FINISHED, done.all
    assert "denied my__add, my__fail: no policy names them in a permit" in done.out
    assert "once my__add: no effect is declared" in done.out
    assert "once my__notes" not in keeper("lock", keeper.directory).out


def test_a_gateway_says_which_tools_no_client_will_see(keeper: Agent, tmp_path: Path) -> None:
    agent = copy_of(keeper, tmp_path / "keeper")
    agent.change("agent.toml", 'files = ["policy.cedar"]', "files = []")
    assert "[policy] names no files" in agent("lock", agent.directory).out
    first, *rest = command("gateway", agent.directory, "--no-ask", "--store", agent.store)
    server = StdioServerParameters(command=first, args=rest, env=environment())

    async def listed(errors: Any) -> int:
        from mcp.client.stdio import stdio_client

        async with asyncio.timeout(90), Client(stdio_client(server, errlog=errors)) as client:
            return len((await client.list_tools()).tools)

    with (tmp_path / "stderr").open("w") as errors:
        assert asyncio.run(listed(errors)) == 0
    assert "no client sees them: my__add, my__fail, my__notes" in (tmp_path / "stderr").read_text()
