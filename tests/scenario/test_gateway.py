"""`lockstep gateway` as a process: the SDK's client over stdio and HTTP, real sandboxes, `kill -9`, other commands."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from commandline import (
    BAD_INPUT,
    FINISHED,
    PAID,
    SANDBOX,
    Agent,
    Terminal,
    command,
    copy_of,
    environment,
    hear_interrupts,
    lockstep,
    make_agent,
    make_clerk,
)
from mcp import Client, StdioServerParameters
from mcp import types as mcp_types

pytestmark = SANDBOX
WAIT_S = 90
ENVELOPE = {"protocolVersion": "2026-07-28", "clientInfo": {"name": "x", "version": "1"}, "clientCapabilities": {}}
SLOW = '''\
import time

from lockstep import tool


@tool
def book(flight: str) -> str:
    """Book a flight, slowly."""
    time.sleep(60)
    return flight
'''


@pytest.fixture(scope="module")
def clerk(tmp_path_factory: pytest.TempPathFactory) -> Agent:
    return make_clerk(tmp_path_factory.mktemp("agents") / "clerk")


def stdio(agent: Agent, *options: str, era: str = "auto", **more: Any) -> Client:
    first, *rest = command("gateway", agent.directory, "--as", "ada", "--store", agent.store, *options)
    return Client(StdioServerParameters(command=first, args=rest, env=environment()), mode=era, **more)


def text(result: mcp_types.CallToolResult) -> str:
    (block,) = result.content
    assert isinstance(block, mcp_types.TextContent)
    return block.text


def meta(result: mcp_types.CallToolResult, name: str) -> Any:
    return (result.meta or {}).get(f"lockstep/{name}")


@pytest.mark.parametrize("era", ["2026-07-28", "legacy"])
def test_a_client_over_stdio_is_judged_recorded_and_explained_like_a_run(
    clerk: Agent, tmp_path: Path, era: str
) -> None:
    agent = clerk.with_store(tmp_path / "store")

    async def work() -> str:
        async with asyncio.timeout(WAIT_S), stdio(agent, era=era) as client:
            names = [tool.name for tool in (await client.list_tools()).tools]
            assert names == ["look", "lose", "pay", "ask_clerk"]
            assert text(await client.call_tool("look", {"to": "ada"})) == '{"to":"ada","iban":"DE-ada"}'
            assert (await client.call_tool("pay", {"to": "mallory", "cents": 1})).is_error
            lost = await client.call_tool("lose", {"to": "bob"})
            waits = await client.call_tool("pay", {"to": "bob", "cents": 5})
            approved = await asyncio.to_thread(agent, "approve", meta(waits, "approval"), "--by", "grace")
            assert approved.code == FINISHED, approved.err
            assert "the gateway that serves this agent" in approved.out
            async with asyncio.timeout(WAIT_S):
                while (paid := await client.call_tool("pay", {"to": "bob", "cents": 5})).is_error:
                    await asyncio.to_thread(agent, "approvals")
            assert text(paid).startswith("5 cents to bob")
            assert meta(paid, "run") == meta(waits, "run") or meta(paid, "duplicate_of")
            return str(meta(lost, "run"))

    lost = asyncio.run(work())
    assert agent("show", "last", "--json").json["status"] == "finished"
    assert 'look {"to": "ada"} -> ok' in agent("runs").out
    assert len(agent("runs", "--json").json["runs"]) >= 4
    assert lost in agent("doubts").out
    assert agent("verify", lost).code == FINISHED
    assert "lose" in agent("why", lost).out
    assert agent("trace", lost).code == FINISHED
    assert agent("settle", lost, "--did-not").code == FINISHED
    exported = tmp_path / "record.jsonl"
    assert agent("audit", "export", "--all", "-o", exported).code == FINISHED
    assert lockstep("audit", "verify", exported).code == FINISHED


def test_the_agent_is_asked_and_its_approval_put_to_the_clients_user(clerk: Agent, tmp_path: Path) -> None:
    agent = clerk.with_store(tmp_path / "store")

    async def yes(context: Any, params: Any) -> mcp_types.ElicitResult:
        return mcp_types.ElicitResult(action="accept", content={"approve": True})

    async def work() -> None:
        async with asyncio.timeout(WAIT_S), stdio(agent, elicitation_callback=yes) as client:
            assert text(await client.call_tool("ask_clerk", {"message": "Pay bob."})) == PAID

    asyncio.run(work())


@contextmanager
def over_http(agent: Agent, *options: str, env: dict[str, str]) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    arguments = ("gateway", agent.directory, "--http", "0", "--as", "ada", "--store", agent.store, *options)
    process = subprocess.Popen(command(*arguments), env=environment(env), stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        line = process.stderr.readline()
        assert " at http://" in line, line
        yield line.split(" at ")[1].strip(), process
    finally:
        process.terminate()
        assert process.wait(timeout=60) in (0, -signal.SIGKILL)
        process.stderr.close()


@pytest.mark.parametrize("face", [("--http", "0", "--open"), ()], ids=["http", "stdio"])
@pytest.mark.parametrize("told", [signal.SIGTERM, signal.SIGINT])
def test_a_gateway_that_is_told_to_stop_ends_in_order_and_leaves_no_sandbox(
    clerk: Agent, tmp_path: Path, face: tuple[str, ...], told: signal.Signals
) -> None:
    agent = clerk.with_store(tmp_path / "store")
    arguments = command("gateway", agent.directory, "--store", agent.store, *face)
    pipe = subprocess.PIPE
    with subprocess.Popen(
        arguments, env=environment(), stdin=pipe, stdout=pipe, stderr=pipe, preexec_fn=hear_interrupts
    ) as process:
        until = time.monotonic() + WAIT_S
        while not _sandboxes(agent):  # one is made ready ahead of any call
            assert time.monotonic() < until
            time.sleep(0.05)
        process.send_signal(told)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert b"Traceback" not in err
    assert _sandboxes(agent) == []


def test_a_gateway_that_is_told_to_stop_while_messages_come_in_ends_in_order(clerk: Agent, tmp_path: Path) -> None:
    agent = clerk.with_store(tmp_path / "store")
    pipe = subprocess.PIPE
    arguments = command("gateway", agent.directory, "--store", agent.store)
    with subprocess.Popen(arguments, env=environment(), stdin=pipe, stdout=pipe, stderr=pipe) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b'{"jsonrpc": "2.0", "id": 0, "method": "ping"}\n')
        process.stdin.flush()
        assert process.stdout.readline()
        process.stdin.write(b'{"jsonrpc": "2.0", "method": "notifications/roots/list_changed"}\n' * 500)
        process.stdin.flush()
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, b"")


def _sandboxes(agent: Agent) -> list[Path]:
    return list((agent.store / "sandboxes").glob("sandboxes/*.json"))


def test_a_gateway_killed_in_a_call_leaves_it_in_doubt_and_the_next_does_not_repeat_it(tmp_path: Path) -> None:
    agent = make_agent(tmp_path / "slow", code=SLOW, tools='[[tools]]\npython = "tools.py"\n')
    env = {"LOCKSTEP_GATEWAY_TOKEN": "lsg_test"}

    async def call(url: str) -> mcp_types.CallToolResult:
        import httpx2
        from mcp.client.streamable_http import streamable_http_client

        http = httpx2.AsyncClient(headers={"Authorization": "Bearer lsg_test"}, timeout=60)
        async with Client(streamable_http_client(url, http_client=http), mode="2026-07-28") as client:
            return await client.call_tool("book", {"flight": "BA1"})

    async def call_and_kill(url: str, process: subprocess.Popen[str]) -> None:
        calling = asyncio.create_task(call(url))
        until = time.monotonic() + WAIT_S
        while "intended" not in agent("show", "last").all + agent("show", "last", "--json").all:
            assert time.monotonic() < until
            await asyncio.sleep(0.2)
        os.kill(process.pid, signal.SIGKILL)
        await asyncio.gather(calling, return_exceptions=True)

    with over_http(agent, env=env) as (url, process):
        asyncio.run(call_and_kill(url, process))
    with over_http(agent, env=env) as (url, _):
        again = asyncio.run(call(url))
    assert meta(again, "waits_for") == "settling"
    assert "Nobody knows whether book happened" in text(again)
    assert len(agent("runs", "--json").json["runs"]) == 1
    assert "book" in agent("doubts").out


def test_who_waits_over_http_for_a_gateway_that_stops_is_told_so(tmp_path: Path) -> None:
    agent = make_agent(tmp_path / "slow", code=SLOW, tools='[[tools]]\npython = "tools.py"\n')
    env = {"LOCKSTEP_GATEWAY_TOKEN": "lsg_test"}
    meta = {
        "io.modelcontextprotocol/protocolVersion": "2026-07-28",
        "io.modelcontextprotocol/clientInfo": {"name": "raw", "version": "1"},
        "io.modelcontextprotocol/clientCapabilities": {},
    }
    body = {"name": "book", "arguments": {"flight": "BA1"}, "_meta": meta}
    headers = {
        "Authorization": "Bearer lsg_test",
        "Accept": "application/json, text/event-stream",
        "MCP-Protocol-Version": "2026-07-28",
        "Mcp-Method": "tools/call",
        "Mcp-Name": "book",
    }

    async def ask(url: str, process: subprocess.Popen[str]) -> int:
        async with httpx.AsyncClient(headers=headers, timeout=60) as client:
            asked = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": body}
            asking = asyncio.create_task(client.post(url, json=asked))
            until = time.monotonic() + WAIT_S
            while not await asyncio.to_thread(lambda: "intended" in agent("show", "last", "--json").all):
                assert time.monotonic() < until
            process.send_signal(signal.SIGTERM)
            return (await asking).status_code

    with over_http(agent, env=env) as (url, process):
        assert asyncio.run(ask(url, process)) == 503
        assert process.stderr is not None
        assert "Traceback" not in process.stderr.read()


def test_a_line_without_an_end_ends_the_connection_and_not_the_store(clerk: Agent, tmp_path: Path) -> None:
    agent = clerk.with_store(tmp_path / "store")
    process = subprocess.Popen(
        command("gateway", agent.directory, "--store", agent.store),
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError), process.stdin as stdin:
        stdin.write(b"x" * 100 * 2**20)
    out, err = process.stdout.read(), process.stderr.read()  # type: ignore[union-attr]
    assert process.wait(timeout=60) == 0
    assert out == b""
    assert b"the connection ends" in err
    assert b"Traceback" not in err


NONE_OF_THE_PROTOCOL = (
    b"\xff\xfe\x1b[31m",
    b"",
    b"[]",
    b"[" * 100_000,
    b'{"jsonrpc":"2.0","id":{"a":1},"method":"ping"}',
    b'{"jsonrpc":"2.0","id":1.5,"method":"ping"}',
    b'{"jsonrpc":"2.0","id":"\\ud800","method":"ping"}',
    b'{"jsonrpc":"2.0","id":7,"result":{}}',
    b'{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":{"a":1}}}',
    b'{"jsonrpc":"2.0","method":"notifications/\\u001b[31m","params":[]}',
    b'{"jsonrpc":"2.0","id":"half","meth',
)


def test_what_is_none_of_the_protocol_ends_nothing_and_a_call_under_way_is_settled(tmp_path: Path) -> None:
    agent = make_agent(tmp_path / "slow", code=SLOW.replace("60", "1"), tools='[[tools]]\npython = "tools.py"\n')
    meta = {f"io.modelcontextprotocol/{name}": value for name, value in ENVELOPE.items()}
    params = {"name": "book", "arguments": {"flight": "BA1"}, "_meta": meta}
    call = {"jsonrpc": "2.0", "id": "ours", "method": "tools/call", "params": params}
    said = b"\n".join((*NONE_OF_THE_PROTOCOL[:-1], json.dumps(call).encode(), NONE_OF_THE_PROTOCOL[-1]))
    pipe = subprocess.PIPE
    gateway = command("gateway", agent.directory, "--store", agent.store)
    with subprocess.Popen(gateway, env=environment(), stdin=pipe, stdout=pipe, stderr=pipe) as process:
        _, err = process.communicate(said, timeout=WAIT_S)  # and standard input ends in the middle of the call
    assert process.returncode == 0, err
    assert b"Traceback" not in err
    assert all(each.isprintable() for each in err.decode().splitlines())
    (run,) = agent("runs", "--json").json["runs"]
    assert run["status"] == "finished", run


@pytest.mark.parametrize(
    ("options", "said"),
    [
        pytest.param(["--http", "0"], "Nobody could be told from anybody else", id="nobody named"),
        pytest.param(["--http", "0.0.0.0:0", "--open"], "--open serves this machine alone", id="open to the world"),
        pytest.param(["--http", "x"], "names no port", id="no port"),
        pytest.param(["--http", "0", "--principals", "nothing.toml"], "cannot be read", id="no file"),
        pytest.param(["--http", "0", "--issuer", "https://a.example"], "Give --issuer, --jwks", id="issuer"),
    ],
)
def test_a_mistake_is_a_sentence(clerk: Agent, tmp_path: Path, options: list[str], said: str) -> None:
    done = clerk.with_store(tmp_path / "store")("gateway", clerk.directory, *options)
    assert done.code == BAD_INPUT
    assert said in done.err


@pytest.mark.parametrize("where", ["stdin", "stdout"])
def test_a_gateway_that_nobody_can_speak_to_says_so(clerk: Agent, tmp_path: Path, where: str) -> None:
    streams: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, where: subprocess.DEVNULL}
    arguments = command("gateway", clerk.directory, "--store", tmp_path / "store")
    done = subprocess.run(arguments, stderr=subprocess.PIPE, text=True, env=environment(), timeout=60, **streams)
    assert done.returncode == BAD_INPUT
    assert "is no pipe, so there is no client" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_person_who_starts_one_at_a_terminal_is_told_what_it_waits_for(clerk: Agent, tmp_path: Path) -> None:
    arguments = command("gateway", clerk.directory, "--store", tmp_path / "store")
    with Terminal(*arguments, columns=200) as terminal:
        terminal.wait_for("serving clerk on this terminal")
        terminal.type("\x04")
        assert terminal.ended() == FINISHED
    assert "Traceback" not in terminal.seen


def test_a_token_is_shown_once_and_its_table_is_read_back(tmp_path: Path) -> None:
    from lockstep.gateway.principals import read_principals

    done = subprocess.run(command("token", 'ad"a'), capture_output=True, text=True, check=True, env=environment())
    file = tmp_path / "principals.toml"
    file.write_text(done.stdout)
    token = next(line.removeprefix("#").strip() for line in done.stdout.splitlines() if "lsg_" in line)
    principal = read_principals(file).of_token(token)
    assert principal is not None
    assert principal.name == 'ad"a'
    assert token not in done.stdout.split("[[principal]]")[1]


def test_a_second_gateway_of_a_store_is_told_who_holds_it(clerk: Agent, tmp_path: Path) -> None:
    agent = clerk.with_store(tmp_path / "store")
    with over_http(agent, env={"LOCKSTEP_GATEWAY_TOKEN": "lsg_test"}):
        busy = agent("gateway", agent.directory, process=True)  # with pipes, as a client would
        run = agent("run", agent.directory, "Pay bob.")
    assert busy.code == BAD_INPUT
    for done in (busy, run):
        assert ", a gateway." in done.err
        assert "Meanwhile `approve`" in done.err


def test_an_answer_that_would_come_to_nothing_is_refused_while_a_gateway_serves(clerk: Agent, tmp_path: Path) -> None:
    agent = copy_of(clerk, tmp_path / "clerk")

    async def work() -> None:
        async with asyncio.timeout(WAIT_S), stdio(agent) as client:
            asked = meta(await client.call_tool("pay", {"to": "bob", "cents": 5}), "approval")
            for said, options in (
                ("No approval nonsense is waiting", ("nonsense",)),
                ("is not for what has the digest 00000000", (asked, "--digest", "00000000")),
            ):
                done = await asyncio.to_thread(agent, "approve", *options)
                assert done.code == BAD_INPUT, done.out
                assert said in done.err
            agent.write("prompt.md", "You are another.\n")
            assert (await asyncio.to_thread(agent, "lock", agent.directory)).code == FINISHED
            late = await asyncio.to_thread(agent, "approve", asked)
            assert late.code == BAD_INPUT, late.out
            assert "agent.lock changed since" in late.err
            refused = await asyncio.to_thread(agent, "refuse", asked)
            assert refused.code == FINISHED, refused.err

    asyncio.run(work())
