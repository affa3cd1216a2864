"""Clients of the gateway that mean harm: they hold nothing up, take nothing that is another's, and leave no mark."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

pytest.importorskip("mcp", reason="the extra lockstep-agents[mcp] is not installed")
sys.path.append(str(Path(__file__).parent.parent / "unit"))
sys.path.append(str(Path(__file__).parent.parent / "unit/gateway"))
from inprocess import ASK_BOOK, LOOK, locked_agent, ok
from mcp import Client, MCPError
from mcp import types as mcp_types
from test_context import offering, tools_of
from test_notices import saying
from test_serving_calls import ADA, BA1, INITIALIZE, http, opened, run
from test_serving_calls import _headers as headers_of

from lockstep.gateway import connections, notices, shares
from lockstep.gateway.complaints import A_MINUTE, complaining
from lockstep.gateway.principals import Principal
from lockstep.gateway.server import build_server
from lockstep.runtime import sessions
from lockstep.runtime.reading import read_state
from lockstep.runtime.sessions import Caller
from lockstep.tools.port import Outcome, PermittedCall

EVE = Principal(name="eve")
MODERN = "2026-07-28"
ENVELOPE = {
    "io.modelcontextprotocol/protocolVersion": MODERN,
    "io.modelcontextprotocol/clientInfo": {"name": "raw", "version": "1"},
    "io.modelcontextprotocol/clientCapabilities": {},
}


def frame(method: str, params: dict[str, Any] | None = None, **more: Any) -> bytes:
    said = {**(params or {}), "_meta": {**ENVELOPE, **more}}
    return json.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": said}).encode()


def head(body: bytes, method: str, name: str = "", who: str = "ada", **more: str) -> bytes:
    """The head of a request as it goes over the wire; `_` for `-` in more of it."""
    named = {"Mcp-Name": name} if name else {}
    lines = {
        **headers_of(who),
        "Host": "127.0.0.1",
        "Content-Type": "application/json",
        "Content-Length": str(len(body)),
        "MCP-Protocol-Version": MODERN,
        "Mcp-Method": method,
        **named,
        **{key.replace("_", "-"): value for key, value in more.items()},
    }
    return "\r\n".join(["POST /mcp HTTP/1.1", *(f"{k}: {v}" for k, v in lines.items()), "", ""]).encode("latin-1")


@contextlib.asynccontextmanager
async def line(url: str, *said: bytes) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", httpx.URL(url).port, limit=2**24)
    try:
        for each in said:
            writer.write(each)
        yield reader, writer
    finally:
        writer.close()


async def everything(reader: asyncio.StreamReader) -> bytes:
    """What comes until the connection ends."""
    with contextlib.suppress(ConnectionError):
        return await asyncio.wait_for(reader.read(), 20)
    return b""


async def asked(raw: httpx.AsyncClient, url: str, who: str = "ada") -> int:
    found = {**headers_of(who), "MCP-Protocol-Version": MODERN, "Mcp-Method": "tools/list"}
    return (await raw.post(url, content=frame("tools/list"), headers={**found, **JSON})).status_code


JSON = {"Content-Type": "application/json"}
LIST = frame("tools/list")


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HEAD_S", "BODY_S", "TAKE_S"):
        monkeypatch.setattr(connections, name, 0.3)


LATE = {
    "nothing": (),
    "half a head": (b"POST /mcp HTTP/1.1\r\nHost: 127.0.0.1\r\nX: ",),
    "no body": (head(LIST, "tools/list"),),
    "half a body": (head(LIST, "tools/list"), LIST[:-1]),
    "a body that nobody wants": (head(LIST, "tools/list", Authorization="Bearer x"), LIST[:-1]),
    "half of the next request": (head(LIST, "tools/list"), LIST, b"POST /mcp"),
}


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("which", LATE)
def test_what_is_not_said_in_time_ends_its_connection(tmp_path: Path, which: str) -> None:
    async def work() -> None:
        async with opened(tmp_path) as world, http(world) as url, line(url, *LATE[which]) as (reader, writer):
            gone = asyncio.create_task(everything(reader))
            while not gone.done():  # a byte now and then buys no time
                with contextlib.suppress(ConnectionError):
                    writer.write(b"x" if "head" in which or "next" in which else b"")
                await asyncio.sleep(0.05)
            assert b" 200 " not in gone.result() or which == "half of the next request"

    run(work)


@pytest.mark.usefixtures("hasty")
def test_an_answer_that_nobody_takes_is_not_kept(tmp_path: Path) -> None:
    body = frame("tools/call", {"name": "look", "arguments": {}})

    async def work() -> None:
        async with (
            opened(tmp_path, look=lambda call: ok("x" * 8 * 2**20)) as world,
            http(world) as url,
            line(url, head(body, "tools/call", "look"), body) as (reader, writer),
        ):
            writer.transport.pause_reading()  # type: ignore[attr-defined]
            while world.tools.count("look") < 1:  # noqa: ASYNC110 - a counter
                await asyncio.sleep(0.01)
            await asyncio.sleep(2)
            writer.transport.resume_reading()  # type: ignore[attr-defined]
            assert len(await everything(reader)) < 8 * 2**20

    run(work)


def once_set(goes_on: asyncio.Event) -> Callable[[PermittedCall], Awaitable[Outcome]]:
    """A tool that is done once this is set."""

    async def behave(call: PermittedCall) -> Outcome:
        await goes_on.wait()
        return ok("seen")

    return behave


def test_connections_that_ask_nothing_keep_nobody_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "room", lambda: 8)
    goes_on = asyncio.Event()

    async def work() -> None:
        body = frame("tools/call", {"name": "look", "arguments": {}})
        async with (
            opened(tmp_path, look=once_set(goes_on)) as world,
            http(world) as url,
            contextlib.AsyncExitStack() as stack,
        ):
            reader, _ = await stack.enter_async_context(line(url, head(body, "tools/call", "look"), body))
            while not world.tools.calls:  # noqa: ASYNC110 - a counter
                await asyncio.sleep(0.01)
            idle = [(await stack.enter_async_context(line(url)))[0] for _ in range(30)]
            raw = await stack.enter_async_context(httpx.AsyncClient())
            assert await asked(raw, url) == 200
            assert len([each for each in idle if each.at_eof() or await _over(each)]) >= 20
            monkeypatch.setattr(connections, "room", lambda: 1)
            late, _ = await stack.enter_async_context(line(url))
            with contextlib.suppress(ConnectionError):
                assert await asyncio.wait_for(late.read(), connections.HEAD_S / 2) == b""
            goes_on.set()
            assert b"seen" in await asyncio.wait_for(reader.readuntil(b"seen"), 20)

    run(work)


async def _over(reader: asyncio.StreamReader) -> bool:
    with contextlib.suppress(TimeoutError):
        try:
            return await asyncio.wait_for(reader.read(1), 0.05) == b""
        except ConnectionError:
            return True
    return False


AMBIGUOUS = {
    "two lengths": head(LIST, "tools/list", Transfer_Encoding="chunked"),
    "two tokens": head(LIST, "tools/list").replace(b"Authorization", b"Authorization: Bearer lsg_eve\r\nAuthorization"),
    "two sessions": head(LIST, "tools/list", Lockstep_Session="a\r\nLockstep-Session: b"),
}


@pytest.mark.parametrize("which", AMBIGUOUS)
def test_what_can_be_read_in_two_ways_is_refused_and_nothing_is_read_after_it(tmp_path: Path, which: str) -> None:
    async def work() -> None:
        async with (
            opened(tmp_path) as world,
            http(world) as url,
            line(url, AMBIGUOUS[which], b"0\r\n\r\n", head(LIST, "tools/list"), LIST) as (reader, _),
        ):
            said = await everything(reader)
            assert said.startswith(b"HTTP/1.1 400 ")
            assert said.count(b"HTTP/1.1 ") == 1

    run(work)


@pytest.mark.parametrize("lines", [1, A_MINUTE + 20])
def test_what_a_stranger_says_reaches_the_log_escaped_cut_and_not_without_end(tmp_path: Path, lines: int) -> None:
    hostile = "\x1b[2J\x1b]0;owned\x07\x9b31m" + "x" * 5000
    said = io.StringIO()

    async def work() -> None:
        async with opened(tmp_path) as world, http(world) as url:
            for _ in range(lines):
                async with line(url, head(LIST, "tools/list", Host=hostile), LIST) as (reader, _):
                    assert b" 421 " in await reader.readline()

    with contextlib.redirect_stderr(said), complaining():
        run(work)
    written = said.getvalue().splitlines()
    assert "\\x1b[2J\\x1b]0;owned\\x07\\x9b31m" in written[0]
    assert all(each.isprintable() and len(each) < 600 for each in written)
    assert len(written) == min(lines, A_MINUTE)


def test_a_client_that_goes_in_the_middle_of_its_request_is_nothing_to_complain_of(tmp_path: Path) -> None:
    said = io.StringIO()

    async def work() -> None:
        async with opened(tmp_path) as world, http(world) as url, httpx.AsyncClient() as raw:
            for era in ({}, {"MCP_Protocol_Version": "2025-11-25"}):
                async with line(url, head(LIST, "tools/list", **era), LIST[:-1]):
                    await asyncio.sleep(0.2)
            assert await asked(raw, url) == 200

    with contextlib.redirect_stderr(said), complaining():
        run(work)
    assert said.getvalue() == ""


# What one principal may take of what all share.


def test_sessions_of_one_principal_push_out_its_own_and_nobody_elses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shares, "SESSIONS", 3)

    async def work() -> None:
        async with opened(tmp_path) as world, http(world) as url, httpx.AsyncClient() as raw:

            async def begun(who: str) -> str:
                answer = await raw.post(url, json=INITIALIZE, headers=headers_of(who))
                return str(answer.headers["mcp-session-id"])

            async def pinged(who: str, session: str) -> int:
                more = {"Mcp-Session-Id": session, "MCP-Protocol-Version": "2025-11-25"}
                ping = {"jsonrpc": "2.0", "id": 2, "method": "ping"}
                return (await raw.post(url, json=ping, headers=headers_of(who, **more))).status_code

            of_ada = await begun("ada")
            first, second, third = [await begun("eve") for _ in range(3)]
            assert await pinged("eve", first) == 200
            last = await begun("eve")
            assert [await pinged("eve", each) for each in (first, second, third, last)] == [200, 404, 200, 200]
            assert await pinged("ada", of_ada) == 200

    run(work)


def test_requests_of_one_principal_at_once_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shares, "AT_ONCE", 2)
    goes_on = asyncio.Event()

    async def work() -> None:
        body = frame("tools/call", {"name": "look", "arguments": {}})
        async with opened(tmp_path, look=once_set(goes_on)) as world, http(world) as url, httpx.AsyncClient() as raw:
            said = (head(body, "tools/call", "look", "eve"), body)
            async with line(url, *said) as (one, _), line(url, *said):
                while len(world.tools.calls) < 2:  # noqa: ASYNC110 - a counter
                    await asyncio.sleep(0.01)
                assert [await asked(raw, url, who) for who in ("eve", "ada")] == [429, 200]
                goes_on.set()
                await one.readuntil(b"seen")
            while await asked(raw, url, "eve") == 429:  # noqa: ASYNC110 - until both have ended
                await asyncio.sleep(0.01)

    run(work)


def test_subscriptions_of_one_push_out_nothing_of_anothers_and_hold_up_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notices, "_MAX_SUBSCRIBED", 2)
    heard: list[str] = []
    changed = saying(("resources/updated", {"uri": "x://1"}))

    async def hear(message: Any) -> None:
        if isinstance(message, mcp_types.ResourceUpdatedNotification):
            heard.append(str(message.params.uri))

    async def stuck(message: Any) -> None:
        if isinstance(message, mcp_types.ResourceUpdatedNotification):
            await asyncio.Event().wait()

    async def work() -> None:
        agent = locked_agent(replace(LOOK, source="mcp:"), *tools_of(""))
        async with offering(tmp_path, agent, look=changed) as world:
            calls = [ADA]
            server = build_server(world.served(lambda ctx: calls[-1]))
            async with (
                Client(server, mode="legacy", message_handler=hear) as ada,
                Client(server, mode="legacy", message_handler=stuck) as eve,
            ):
                await ada.session.subscribe_resource("x://1")
                calls.append(EVE)
                for number in (2, 3, 4, 1):
                    await eve.session.subscribe_resource(f"x://{number}")
                with pytest.raises(MCPError, match="at most 2048 characters"):
                    await eve.session.subscribe_resource("x://" + "y" * 5000)
                calls.append(ADA)
                for number in range(4):
                    await ada.call_tool("look", {"n": number})
            assert heard == ["x://1"] * 4

    run(work)


# What one request may bring.

MANY = {
    "empty lists": "[" + "[]," * 1_200_000 + "[]]",
    "numbers": "[" + "1e9," * 900_000 + "1]",
    "names": "{" + ",".join(f'"{n:x}":1' for n in range(350_000)) + "}",
    "lists as many as are taken": "[" + "[]," * 240_000 + "[]]",
}


@pytest.mark.parametrize("which", MANY)
def test_arguments_of_too_many_values_are_refused_and_long_ones_not_even_recorded(tmp_path: Path, which: str) -> None:
    whole = json.dumps(
        {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "look", "_meta": ENVELOPE}}
    )
    body = whole.replace('"look"', f'"look", "arguments": {{"a": {MANY[which]}}}', 1).encode()

    async def work() -> None:
        async with opened(tmp_path) as world, http(world) as url, line(url) as (reader, writer):
            writer.write(head(body, "tools/call", "look") + body)
            assert b" 200 " in await asyncio.wait_for(reader.readline(), 60)
            assert world.tools.count("look") == 0
            assert len(await world.journal.runs()) == (which == "lists as many as are taken")

    run(work)


def test_what_sessions_hold_in_memory_is_bounded_and_nothing_is_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sessions, "MAX_HELD_BYTES", 100_000)

    async def work() -> None:
        async with opened(tmp_path) as world:
            for number in range(5):
                caller = Caller(principal="eve", client="x", session=f"s{number}")
                await world.desk.call(caller, "book", {"flight": "BA1", "note": "x" * 40_000})
            assert len(world.desk._sessions.all_held()) <= 2
            again = await world.desk.call(replace(caller, session="s0"), "book", {"flight": "BA1"})
            assert again.calls[0].duplicate_of
            assert world.tools.count("book") == 5

    run(work)


# What is another's.


def test_a_name_that_another_gave_a_session_is_still_there_for_ones_own(tmp_path: Path) -> None:
    async def work() -> None:
        eve, ada = (Caller(principal=who, client="x", session="main") for who in ("eve", "ada"))
        async with opened(tmp_path) as world:
            assert (await world.desk.call(eve, "book", BA1)).session == "main"
            state = await world.desk.call(ada, "book", BA1)
            assert (state.principal, state.calls[0].duplicate_of, world.tools.count("book")) == ("ada", "", 2)
            named = state.session
            assert named.startswith("main~")
        async with opened(tmp_path) as world:
            assert (await world.desk.call(ada, "book", BA1)).session == named
            assert (await world.desk.call(eve, "book", BA1)).session == "main"
            assert world.tools.count("book") == 0

    run(work)


@pytest.mark.parametrize("named", [["main"], {"main": 1}, "", "x" * 101, "main\u202e", "\x00", 7])
def test_a_session_that_is_named_badly_is_not_the_one_that_all_others_share(tmp_path: Path, named: Any) -> None:
    async def work() -> None:
        async with (
            opened(tmp_path) as world,
            Client(build_server(world.served(lambda ctx: ADA)), mode=MODERN) as client,
        ):
            with pytest.raises(MCPError, match="printable characters"):
                await client.call_tool("look", {}, meta={"lockstep/session": named})
            assert await world.journal.runs() == []

    run(work)


Altered = Callable[[dict[str, Any]], None]
ALTERED: dict[str, tuple[str, Altered]] = {
    "by somebody else": ("eve", lambda params: None),
    "with other arguments": ("ada", lambda params: params["arguments"].update(flight="BA2")),
    "with one more argument": ("ada", lambda params: params["arguments"].update(seat=None)),
    "for another tool": ("ada", lambda params: params.update(name="send")),
    "with another state": ("ada", lambda params: params.update(requestState=params["requestState"][:-4] + "AAAA")),
    "with none": ("ada", lambda params: params.update(requestState=json.dumps({"approval": "a0", "run": "r0"}))),
}


@pytest.mark.parametrize("which", ALTERED)
def test_a_yes_is_for_the_one_call_and_person_that_were_asked(tmp_path: Path, which: str) -> None:
    who, alter = ALTERED[which]
    can = {"io.modelcontextprotocol/clientCapabilities": {"elicitation": {"form": {}}}}

    async def work() -> None:
        async with (
            opened(tmp_path, locked_agent(policy=ASK_BOOK)) as world,
            http(world) as url,
            httpx.AsyncClient() as raw,
        ):

            async def call(params: dict[str, Any], who: str) -> dict[str, Any]:
                more = {"MCP-Protocol-Version": MODERN, "Mcp-Method": "tools/call", "Mcp-Name": params["name"], **JSON}
                body = frame("tools/call", params, **can)
                found: dict[str, Any] = (await raw.post(url, content=body, headers=headers_of(who, **more))).json()
                return found

            params: dict[str, Any] = {"name": "book", "arguments": dict(BA1)}
            required = (await call(params, "ada"))["result"]
            answer = {"approval": {"action": "accept", "content": {"approve": True}}}
            given = {**params, "requestState": required["requestState"], "inputResponses": answer}
            changed = json.loads(json.dumps(given))
            alter(changed)
            assert (await call(changed, who))["error"]["data"] == {"reason": "invalid_request_state"}
            assert world.tools.count("book") == world.tools.count("send") == 0
            done = (await call(given, "ada"))["result"]
            assert (done["isError"], world.tools.count("book")) == (False, 1)
            assert (await call(given, "ada"))["result"]["isError"]  # and it is good once
            assert world.tools.count("book") == 1

    run(work)


@pytest.mark.parametrize(
    "answer",
    [{"result": {"action": "explode"}}, {"result": {}}, {"error": {"code": 1, "message": "\x1b[31m"}}],
    ids=["odd", "empty", "error"],
)
def test_an_answer_that_is_none_leaves_the_call_waiting(tmp_path: Path, answer: dict[str, Any]) -> None:
    async def work() -> None:
        async with (
            opened(tmp_path, locked_agent(policy=ASK_BOOK)) as world,
            http(world) as url,
            httpx.AsyncClient(timeout=20) as raw,
        ):
            begin = {**INITIALIZE, "params": {**INITIALIZE["params"], "capabilities": {"elicitation": {}}}}  # type: ignore[dict-item]
            begun = await raw.post(url, json=begin, headers=headers_of())
            more = {"Mcp-Session-Id": begun.headers["mcp-session-id"], "MCP-Protocol-Version": "2025-11-25"}
            headers = headers_of(**more)
            await raw.post(url, json={"jsonrpc": "2.0", "method": "notifications/initialized"}, headers=headers)
            call = {"jsonrpc": "2.0", "id": 7, "method": "tools/call", "params": {"name": "book", "arguments": BA1}}
            async with raw.stream("POST", url, json=call, headers=headers) as said:
                found: dict[str, Any] = {}
                async for each in said.aiter_lines():
                    found = json.loads(each[5:]) if each.startswith("data: {") else found
                    if found.get("method") == "elicitation/create":
                        await raw.post(url, json={"jsonrpc": "2.0", "id": found.pop("id"), **answer}, headers=headers)
                        found = {}
            assert "waits for a person" in found["result"]["content"][0]["text"]
            state = await read_state(world.journal, found["result"]["_meta"]["lockstep/run"])
            assert state.suspended_for == "approval"

    run(work)
