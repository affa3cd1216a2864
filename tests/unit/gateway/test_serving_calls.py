"""The gateway's server with the SDK's own client: real journal, kernel and gate; tools are functions."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from inprocess import (
    ALLOW_ALL,
    ASK_BOOK,
    BOOK,
    LOOK,
    PAY,
    Functions,
    ListedModel,
    call,
    driver_of,
    locked_agent,
    lost,
    ok,
    reply,
    started,
    types_of,
)
from mcp import Client, MCPError
from mcp import types as mcp_types

from lockstep.agent.locked import LockedAgent, Remote
from lockstep.gate.approvals import Terms
from lockstep.gateway.http import Door, build_app
from lockstep.gateway.principals import Principal, Principals, token_digest
from lockstep.gateway.server import Served, build_server
from lockstep.gateway.serving import configured, listen
from lockstep.journal.sqlite import SQLiteJournal
from lockstep.kernel.state import Phase, Status
from lockstep.runtime.answers import Answer, answer_approval, settle
from lockstep.runtime.calling import Desk
from lockstep.runtime.reading import doubts, read_run, read_state, verify_run
from lockstep.runtime.sessions import Caller
from lockstep.tools.port import Outcome, PermittedCall

ERAS = pytest.mark.parametrize("era", ["2026-07-28", "legacy"])
BA1 = {"flight": "BA1"}
ADA = Principal(name="ada")
WAIT_S = 60


@dataclass(kw_only=True)
class World:
    """One gateway over one store."""

    journal: SQLiteJournal
    tools: Functions
    desk: Desk
    agent: LockedAgent

    def served(self, who: Callable[[Any], Principal], session: str = "") -> Served:
        return Served(
            desk=self.desk,
            journal=self.journal,
            version="1",
            description="Books flights.",
            who=who,
            terms_now=lambda started: Terms.of(self.agent),
            session=session,
        )

    def client(self, era: str, who: Principal = ADA, **more: Any) -> Client:
        return Client(build_server(self.served(lambda ctx: who, "s1")), mode=era, **more)

    async def events(self) -> list[list[str]]:
        return [types_of(await read_run(self.journal, row.run)) for row in reversed(await self.journal.runs())]


@asynccontextmanager
async def opened(
    path: Path, agent: LockedAgent | None = None, model: Any = None, **functions: Any
) -> AsyncIterator[World]:
    journal = SQLiteJournal.open(path)
    agent, tools = agent or locked_agent(), Functions(**functions)
    driver = driver_of(journal, model or ListedModel(), tools, agent)
    desk = Desk(driver, journal, replace(started(""), session="", principal=""))
    await desk.recover()
    try:
        yield World(journal=journal, tools=tools, desk=desk, agent=agent)
    finally:
        await desk.close(5)
        await journal.close()


def run(work: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(WAIT_S):
            await work()

    asyncio.run(bounded())


async def yes(journal: SQLiteJournal, approval: str, agent: LockedAgent) -> None:
    await answer_approval(journal, approval, Answer(given=True, by="grace"), lambda started: Terms.of(agent))


def text(result: mcp_types.CallToolResult) -> str:
    (block,) = result.content
    assert isinstance(block, mcp_types.TextContent)
    return block.text


def meta(result: mcp_types.CallToolResult, name: str) -> Any:
    return (result.meta or {}).get(f"lockstep/{name}")


@ERAS
def test_a_call_is_a_whole_run_in_the_journal(tmp_path: Path, era: str) -> None:
    async def work() -> None:
        async with opened(tmp_path) as world, world.client(era) as client:
            result = await client.call_tool("book", BA1)
            assert (text(result), result.is_error) == ('book {"flight": "BA1"}', False)
            state = await read_state(world.journal, meta(result, "run"))
            assert (state.principal, state.session, state.status) == ("ada", "s1", Status.FINISHED)
            assert state.client.startswith("mcp")
            assert (await verify_run(world.journal, state.run)).broken_seq is None
            assert await world.events() == [
                ["run.started", "model.replied", "call.judged", "effect.intended", "effect.settled", "run.finished"]
            ]

    run(work)


@ERAS
def test_the_tools_are_those_of_the_lock_and_the_agent_itself(tmp_path: Path, era: str) -> None:
    async def work() -> None:
        async with opened(tmp_path) as world, world.client(era) as client:
            tools = (await client.list_tools()).tools
            assert [tool.name for tool in tools] == ["look", "note", "pay", "book", "send", "ask_traveller"]
            assert tools[0].input_schema == LOOK.input_schema

    run(work)


@ERAS
def test_the_same_call_again_gets_the_first_receipt(tmp_path: Path, era: str) -> None:
    async def work() -> None:
        async with opened(tmp_path) as world, world.client(era) as client:
            first = await client.call_tool("book", BA1)
            again = await client.call_tool("book", {"flight": " ba1"})
            assert world.tools.count("book") == 1
            assert text(again).startswith(text(first))
            assert meta(again, "duplicate_of") == f"{meta(first, 'run')}/1.0"

    run(work)


BLOCKS: list[dict[str, Any]] = [
    {"type": "text", "text": "Here:", "annotations": {"priority": 0.5}},
    {"type": "image", "data": "AAAA", "mimeType": "image/png"},
    {"type": "audio", "data": "AAAA", "mimeType": "audio/wav"},
    {"type": "resource_link", "uri": "file:///a", "name": "a"},
    {"type": "resource", "resource": {"uri": "file:///b", "text": "b", "mimeType": "text/plain"}},
    {"type": "resource", "resource": {"uri": "file:///c", "blob": "AAAA"}},
]


@ERAS
def test_a_client_gets_every_block_that_the_server_sent_and_gets_them_again(tmp_path: Path, era: str) -> None:
    reply = {"content": BLOCKS, "structuredContent": {"n": [1, None]}, "_meta": {"own/key": 7}}
    outcome = replace(ok("Here: ..."), reply=json.dumps(reply))

    async def work() -> None:
        async with opened(tmp_path, book=lambda call: outcome) as world, world.client(era) as client:
            first = await client.call_tool("book", BA1)
            again = await client.call_tool("book", BA1)
            assert world.tools.count("book") == 1
            told = [each.model_dump(by_alias=True, exclude_none=True, mode="json") for each in first.content]
            assert told == BLOCKS
            assert first.structured_content == again.structured_content == {"n": [1, None]}
            assert (first.meta or {})["own/key"] == 7
            assert again.content[:-1] == first.content
            assert "was not run again" in again.content[-1].text  # type: ignore[union-attr]

    run(work)


@ERAS
@pytest.mark.parametrize("value", [[1, None], "text", 7, None], ids=str)
def test_structure_of_any_kind_reaches_a_client_whose_revision_has_it(tmp_path: Path, era: str, value: Any) -> None:
    reply = {"content": [{"type": "text", "text": "one"}], "structuredContent": value}
    outcome = replace(ok("one"), reply=json.dumps(reply))

    async def work() -> None:
        async with opened(tmp_path, look=lambda call: outcome) as world, world.client(era) as client:
            result = await client.call_tool("look", {})
            assert text(result) == "one"
            assert result.structured_content == (value if era != "legacy" else None)

    run(work)


@ERAS
@pytest.mark.parametrize("schema", [{"type": "array"}, {"anyOf": [{"type": "object"}]}, {"type": "object"}], ids=str)
def test_a_tool_whose_result_is_no_object_takes_no_list_with_it(tmp_path: Path, era: str, schema: Any) -> None:
    agent = locked_agent(replace(LOOK, definition={**LOOK.definition, "outputSchema": schema}), BOOK)

    async def work() -> None:
        async with opened(tmp_path, agent) as world, world.client(era) as client:
            tool = (await client.list_tools()).tools[0]
            kept = era != "legacy" or schema.get("type") == "object"
            assert (tool.name, tool.output_schema) == ("look", schema if kept else None)

    run(work)


@ERAS
def test_blocks_that_the_protocol_does_not_know_stay_the_text_for_them(tmp_path: Path, era: str) -> None:
    outcome = replace(ok("[audio]"), reply=json.dumps({"content": [{"type": "audio", "data": 7}]}))

    async def work() -> None:
        async with opened(tmp_path, look=lambda call: outcome) as world, world.client(era) as client:
            assert text(await client.call_tool("look", {})) == "[audio]"

    run(work)


@ERAS
def test_a_capability_that_a_server_misses_is_told_as_the_protocol_has_it(tmp_path: Path, era: str) -> None:
    error = {"code": -32021, "message": "no sampling", "data": {"requiredCapabilities": {"sampling": {}}}}
    outcome = Outcome(kind="tool_error", text="look failed: no sampling", reply=json.dumps({"error": error}))

    async def work() -> None:
        async with opened(tmp_path, look=lambda call: outcome) as world, world.client(era) as client:
            with pytest.raises(MCPError) as refused:
                await client.call_tool("look", {})
            assert (refused.value.code, refused.value.data) == (-32021, error["data"])

    run(work)


def test_what_a_run_of_a_model_keeps_is_the_text_alone(tmp_path: Path) -> None:
    outcome = replace(ok("Here"), reply=json.dumps({"content": BLOCKS}))
    model = ListedModel(reply(call("look", {})), reply(text="Seen."))

    async def work() -> None:
        async with opened(tmp_path, model=model, look=lambda call: outcome) as world:
            caller = Caller(principal="ada", client="test", session="s1")
            state = await world.desk.ask(caller, "Look.")
            assert [each.reply for each in state.all_calls] == [""]

    run(work)


def test_the_same_call_twice_at_once_is_made_once(tmp_path: Path) -> None:
    async def slow(call: PermittedCall) -> Outcome:
        await asyncio.sleep(0.05)
        return ok("booked")

    async def work() -> None:
        async with opened(tmp_path, book=slow) as world, world.client("legacy") as client:
            results = await asyncio.gather(*(client.call_tool("book", BA1) for _ in range(5)))
            assert world.tools.count("book") == 1
            assert {text(result)[:6] for result in results} == {"booked"}

    run(work)


def test_what_was_done_stands_in_the_session_of_the_next_process(tmp_path: Path) -> None:
    async def work() -> None:
        for _ in range(2):
            async with opened(tmp_path) as world, world.client("legacy") as client:
                result = await client.call_tool("book", BA1)
        assert world.tools.count("book") == 0
        assert meta(result, "duplicate_of")

    run(work)


@ERAS
def test_what_policy_denies_is_refused_and_recorded(tmp_path: Path, era: str) -> None:
    policy = f'{ALLOW_ALL} forbid (principal, action == Action::"pay", resource) when {{ context.run.calls > 0 }};'

    async def work() -> None:
        async with opened(tmp_path, locked_agent(policy=policy)) as world, world.client(era) as client:
            result = await client.call_tool("pay", {"to": "bob"})
            assert result.is_error
            assert "denied by policy" in text(result)
            assert world.tools.calls == []
            assert (await read_state(world.journal, meta(result, "run"))).calls[0].outcome == "policy_denied"

    run(work)


@ERAS
def test_what_policy_would_never_permit_is_neither_listed_nor_told_from_what_is_not_there(
    tmp_path: Path, era: str
) -> None:
    policy = f'{ALLOW_ALL} forbid (principal == User::"eve", action == Action::"pay", resource);'

    async def work() -> None:
        async with opened(tmp_path, locked_agent(policy=policy)) as world:
            async with world.client(era, Principal(name="eve")) as client:
                assert "pay" not in [tool.name for tool in (await client.list_tools()).tools]
                said = []
                for name in ("pay", "nothing"):
                    with pytest.raises(MCPError) as refused:
                        await client.call_tool(name, {"to": "bob"})
                    said.append(str(refused.value).replace(name, "X"))
                assert said[0] == said[1]
            assert [events[-2] for events in await world.events()] == ["call.judged"] * 2
            assert world.tools.calls == []

    run(work)


@ERAS
@pytest.mark.parametrize("approve", [True, False], ids=["approved", "refused"])
def test_an_approval_is_put_to_the_clients_user(tmp_path: Path, era: str, approve: bool) -> None:
    asked: list[str] = []

    async def answer(context: Any, params: Any) -> mcp_types.ElicitResult:
        asked.append(params.message)
        return mcp_types.ElicitResult(action="accept", content={"approve": approve})

    async def work() -> None:
        async with opened(tmp_path, locked_agent(policy=ASK_BOOK)) as world:
            async with world.client(era, elicitation_callback=answer) as client:
                result = await client.call_tool("book", BA1)
            assert len(asked) == 1
            assert "Book it?" in asked[0]
            assert '{"flight": "BA1"}' in asked[0]
            assert world.tools.count("book") == approve
            assert result.is_error is not approve
            state = await read_state(world.journal, (await world.journal.runs())[0].run)
            assert state.calls[0].outcome == ("ok" if approve else "approval_refused")

    run(work)


@ERAS
def test_a_question_that_is_closed_leaves_the_call_waiting(tmp_path: Path, era: str) -> None:
    async def answer(context: Any, params: Any) -> mcp_types.ElicitResult:
        return mcp_types.ElicitResult(action="cancel")

    async def work() -> None:
        async with opened(tmp_path, locked_agent(policy=ASK_BOOK)) as world:
            async with world.client(era, elicitation_callback=answer) as client:
                result = await client.call_tool("book", BA1)
            assert meta(result, "waits_for") == "approval"
            assert world.tools.calls == []

    run(work)


@ERAS
def test_without_elicitation_a_call_waits_and_its_repeat_gets_the_result(tmp_path: Path, era: str) -> None:
    async def work() -> None:
        async with opened(tmp_path, locked_agent(policy=ASK_BOOK)) as world, world.client(era) as client:
            waits = await client.call_tool("book", BA1)
            approval = meta(waits, "approval")
            assert waits.is_error
            assert f"`lockstep approve {approval}`" in text(waits)
            assert meta(await client.call_tool("book", BA1), "approval") == approval
            await yes(world.journal, approval, world.agent)
            done = await client.call_tool("book", BA1)
            assert (text(done), done.is_error) == ('book {"flight": "BA1"}', False)
            assert meta(done, "run") == meta(waits, "run")
            assert world.tools.count("book") == 1

    run(work)


def test_an_operators_approval_is_not_put_to_the_client(tmp_path: Path) -> None:
    async def never(context: Any, params: Any) -> mcp_types.ElicitResult:
        raise AssertionError("the client was asked")

    async def work() -> None:
        async with opened(tmp_path, locked_agent(policy=ASK_BOOK)) as world:
            who = Principal(name="ada", approvals="operator")
            async with world.client("legacy", who, elicitation_callback=never) as client:
                assert meta(await client.call_tool("book", BA1), "waits_for") == "approval"

    run(work)


def test_a_result_kept_after_an_approval_is_handed_out_once(tmp_path: Path) -> None:
    policy = ALLOW_ALL + '@ask("Note it?") forbid (principal, action == Action::"note", resource);'

    async def work() -> None:
        async with opened(tmp_path, locked_agent(policy=policy)) as world:
            caller = Caller(principal="ada", client="test", session="s1")
            waits = await world.desk.call(caller, "note", {"a": 1})
            await yes(world.journal, waits.calls[0].approval, world.agent)
            await world.desk.go_on(waits.run, by="grace", fetched=False)
            assert (await world.desk.call(caller, "note", {"a": 1})).run == waits.run
            assert (await world.desk.call(caller, "note", {"a": 1})).run != waits.run
            assert world.tools.count("note") == 1

    run(work)


@ERAS
def test_a_lost_reply_is_told_as_unknown_and_never_repeated(tmp_path: Path, era: str) -> None:
    async def work() -> None:
        async with opened(tmp_path, book=lambda call: lost()) as world, world.client(era) as client:
            first = await client.call_tool("book", BA1)
            again = await client.call_tool("book", BA1)
            assert "Nobody knows whether book happened" in text(first)
            assert meta(again, "run") == meta(first, "run")
            assert world.tools.count("book") == 1
            await settle(world.journal, meta(first, "run"), happened=True, by="grace", result="booked")
            assert text(await client.call_tool("book", BA1)) == "booked"
            assert world.tools.count("book") == 1

    run(work)


@ERAS
def test_what_is_known_to_have_happened_reaches_a_client_that_was_promised_structure(tmp_path: Path, era: str) -> None:
    """Which a client takes for the server's fault where it is missing, unless it is told of an error."""
    agent = locked_agent(replace(BOOK, definition={**BOOK.definition, "outputSchema": {"type": "object"}}))

    async def work() -> None:
        async with opened(tmp_path, agent, book=lambda call: lost()) as world, world.client(era) as client:
            await client.list_tools()
            first = await client.call_tool("book", BA1)
            await settle(world.journal, meta(first, "run"), happened=True, by="grace")
            for _ in range(2):
                again = await client.call_tool("book", BA1)
                assert again.is_error
                assert "book did happen, as grace found out" in text(again)
            assert world.tools.count("book") == 1

    run(work)


def test_a_call_that_was_under_way_when_the_gateway_died_is_in_doubt(tmp_path: Path) -> None:
    async def work() -> None:
        begun = asyncio.Event()

        async def hangs(call: PermittedCall) -> Outcome:
            begun.set()
            await asyncio.Event().wait()
            raise AssertionError

        journal = SQLiteJournal.open(tmp_path)
        desk = Desk(driver_of(journal, ListedModel(), Functions(book=hangs)), journal, started(""))
        caller = Caller(principal="ada", client="test", session="s1")
        under_way = asyncio.create_task(desk.call(caller, "book", BA1))
        await begun.wait()
        under_way.cancel()
        await desk.close(0)  # what is recorded now is what a killed process leaves
        await journal.close()
        async with opened(tmp_path) as world, world.client("legacy") as client:
            (doubt,) = await doubts(world.journal)
            assert doubt.call.phase is Phase.DOUBTED  # type: ignore[union-attr]
            again = await client.call_tool("book", BA1)
            assert meta(again, "waits_for") == "settling"
            assert world.tools.calls == []

    run(work)


def test_a_session_that_nobody_named_is_the_same_one_for_whoever_goes_on_with_its_runs(tmp_path: Path) -> None:
    async def work() -> None:
        agent = locked_agent(BOOK, policy=ASK_BOOK)
        async with opened(tmp_path, agent) as world:
            caller = Caller(principal="ada", client="test")
            waits = await world.desk.call(caller, "book", BA1)
            await yes(world.journal, waits.calls[0].approval, agent)
            await world.desk.go_on(waits.run, by="grace", fetched=False)
            again = await world.desk.call(caller, "book", {"flight": " ba1"})
            assert again.calls[0].duplicate_of == f"{waits.run}/1.0"
            assert world.tools.count("book") == 1

    run(work)


def test_who_asks_while_its_approved_call_runs_waits_for_that_one(tmp_path: Path) -> None:
    """Somebody else approved, and the gateway went on by itself; the client named no session."""

    async def work() -> None:
        begun, may_end = asyncio.Event(), asyncio.Event()

        async def slow(call: PermittedCall) -> Outcome:
            begun.set()
            await may_end.wait()
            return ok("booked")

        agent = locked_agent(policy=ASK_BOOK)
        async with opened(tmp_path, agent, book=slow) as world:
            caller = Caller(principal="ada", client="test")
            waits = await world.desk.call(caller, "book", BA1)
            await yes(world.journal, waits.calls[0].approval, agent)
            going_on = asyncio.create_task(world.desk.go_on(waits.run, by="grace", fetched=False))
            await begun.wait()
            again = asyncio.create_task(world.desk.call(caller, "book", BA1))
            await asyncio.wait([again], timeout=0.2)
            may_end.set()
            assert (await again).calls[0].text.startswith("booked")
            await going_on
            assert world.tools.count("book") == 1

    run(work)


def test_a_task_that_outlived_the_gateway_is_asked_after_beside_what_is_served(tmp_path: Path) -> None:
    async def work() -> None:
        begun, may_end = asyncio.Event(), asyncio.Event()

        async def as_task(call: PermittedCall) -> Outcome:
            assert call.tasks is not None
            if call.round is None:
                await call.tasks.begun("t-1")
            begun.set()
            await may_end.wait()
            return ok("booked")

        elsewhere = replace(BOOK, task_s=60.0, remote=Remote(url="http://127.0.0.1:1/", headers={}, oauth=None))
        agent = locked_agent(elsewhere, LOOK)
        journal = SQLiteJournal.open(tmp_path)
        desk = Desk(driver_of(journal, ListedModel(), Functions(book=as_task), agent), journal, started(""))
        under_way = asyncio.create_task(desk.call(Caller(principal="ada", client="test", session="s1"), "book", BA1))
        await begun.wait()
        under_way.cancel()
        await desk.close(0)
        await journal.close()
        async with opened(tmp_path, agent, book=as_task) as world, world.client("legacy") as client:
            assert text(await client.call_tool("look", {})) == "look {}"
            again = asyncio.create_task(client.call_tool("book", BA1))
            may_end.set()
            assert text(await again).startswith("booked\n\n[This call was already made")
            (asked,) = [each for each in world.tools.calls if each.tool.name == "book"]
            assert asked.round is not None
            assert asked.round.task == "t-1"

    run(work)


def test_a_client_that_goes_away_does_not_break_off_its_call(tmp_path: Path) -> None:
    async def work() -> None:
        begun, may_end = asyncio.Event(), asyncio.Event()

        async def slow(call: PermittedCall) -> Outcome:
            begun.set()
            await may_end.wait()
            return ok("booked")

        async with opened(tmp_path, book=slow) as world:
            caller = Caller(principal="ada", client="test", session="s1")
            leaving = asyncio.create_task(world.desk.call(caller, "book", BA1))
            await begun.wait()
            leaving.cancel()
            await asyncio.gather(leaving, return_exceptions=True)
            may_end.set()
            again = await world.desk.call(caller, "book", BA1)
            assert again.calls[0].text.startswith("booked")
            assert world.tools.count("book") == 1

    run(work)


@ERAS
def test_the_agent_itself_is_asked_in_the_callers_session(tmp_path: Path, era: str) -> None:
    model = ListedModel(reply(call("book", BA1)), reply(text="It is booked."))

    async def work() -> None:
        async with opened(tmp_path, model=model) as world, world.client(era) as client:
            await client.call_tool("book", BA1)
            result = await client.call_tool("ask_traveller", {"message": "Book BA1."})
            assert text(result) == "It is booked."
            assert world.tools.count("book") == 1  # what the client booked, the agent does not book again
            state = await read_state(world.journal, meta(result, "run"))
            assert (state.session, state.principal, state.client, state.input) == ("s1", "ada", "", "Book BA1.")
            with pytest.raises(MCPError):
                await client.call_tool("ask_traveller", {"message": " "})

    run(work)


def test_a_session_that_another_principal_named_so_is_not_ones_own(tmp_path: Path) -> None:
    async def work() -> None:
        async with opened(tmp_path) as world:
            for who in (ADA, Principal(name="eve")):
                async with world.client("legacy", who) as client:
                    booked = await client.call_tool("book", BA1)
                    assert not meta(booked, "duplicate_of")
            assert world.tools.count("book") == 2
            assert len({row.session for row in await world.journal.runs()}) == 2

    run(work)


def test_an_argument_that_came_from_an_earlier_call_is_traced_to_it(tmp_path: Path) -> None:
    policy = ALLOW_ALL + (
        'forbid (principal, action == Action::"pay", resource) when { context.provenance.untrusted.contains("/to") };'
    )
    agent = locked_agent(replace(LOOK, output_trust="untrusted"), PAY, BOOK, policy=policy)

    def look(call: PermittedCall) -> Outcome:
        return ok("pay to DE89370400440532013000")

    async def work() -> None:
        async with opened(tmp_path, agent, look=look) as world, world.client("legacy") as client:
            await client.call_tool("look", {})
            denied = await client.call_tool("pay", {"to": "DE89370400440532013000"})
            assert "denied by policy" in text(denied)
            assert not (await client.call_tool("pay", {"to": "FR7630006000011234567890189"})).is_error

    run(work)


# Streamable HTTP, on this machine's loopback.

TOKENS = {"ada": "lsg_ada", "eve": "lsg_eve", "slow": "lsg_slow"}


@asynccontextmanager
async def http(world: World) -> AsyncIterator[str]:
    known = {token_digest(token): Principal(name=name) for name, token in TOKENS.items()}
    known[token_digest(TOKENS["slow"])] = Principal(name="slow", requests_per_minute=3)
    door = Door(principals=Principals(known))
    listening = listen("127.0.0.1", 0)
    server = uvicorn.Server(configured(build_app(build_server(world.served(door.who)), door)))
    serving = asyncio.create_task(server.serve([listening]))
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/mcp"
    finally:
        server.should_exit = True
        await serving


def over_http(
    url: str, era: str, name: str = "ada", *, headers: Mapping[str, str] | None = None, **more: Any
) -> Client:
    import httpx2
    from mcp.client.streamable_http import streamable_http_client

    sent = {"Authorization": f"Bearer {TOKENS[name]}", **(headers or {})}
    client = httpx2.AsyncClient(headers=sent, timeout=30)
    return Client(streamable_http_client(url, http_client=client), mode=era, **more)


@ERAS
def test_over_http_a_token_is_a_principal_with_a_session_of_its_own(tmp_path: Path, era: str) -> None:
    async def work() -> None:
        async with opened(tmp_path) as world, http(world) as url:
            for name in ("ada", "eve"):
                async with over_http(url, era, name) as client:
                    assert not (await client.call_tool("book", BA1)).is_error
                    assert meta(await client.call_tool("book", BA1), "duplicate_of")
            assert world.tools.count("book") == 2
            assert {row.principal for row in await world.journal.runs()} == {"ada", "eve"}
            assert len({row.session for row in await world.journal.runs()}) == 2

    run(work)


@ERAS
def test_who_connects_anew_for_each_call_does_nothing_twice(tmp_path: Path, era: str) -> None:
    async def work() -> None:
        async with opened(tmp_path) as world, http(world) as url:
            for _ in range(2):
                async with over_http(url, era) as client:
                    told = await client.call_tool("book", BA1)
            assert meta(told, "duplicate_of")
            assert world.tools.count("book") == 1

    run(work)


@ERAS
@pytest.mark.parametrize("place", ["header", "call"])
def test_each_session_that_a_client_names_is_one_of_its_own(tmp_path: Path, era: str, place: str) -> None:
    async def work() -> None:
        async with opened(tmp_path) as world, http(world) as url:
            for name in ("one", "two", "one"):
                header = {"Lockstep-Session": name} if place == "header" else {}
                async with over_http(url, era, headers=header) as client:
                    called = {} if header else {"meta": {"lockstep/session": name}}
                    await client.call_tool("book", BA1, **called)
            assert world.tools.count("book") == 2
            assert {row.session for row in await world.journal.runs()} == {"one", "two"}

    run(work)


@ERAS
def test_twenty_clients_at_once_have_no_error(tmp_path: Path, era: str) -> None:
    async def one(url: str, number: int) -> None:
        async with over_http(url, era) as client:
            for step in range(3):
                assert not (await client.call_tool("look", {"n": f"{number}.{step}"})).is_error

    async def work() -> None:
        async with opened(tmp_path) as world, http(world) as url:
            await asyncio.gather(*(one(url, number) for number in range(20)))
            assert world.tools.count("look") == 60

    run(work)


INITIALIZE = {
    "jsonrpc": "2.0",
    "id": 1,
    "method": "initialize",
    "params": {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "raw", "version": "1"}},
}
ACCEPT = {"Accept": "application/json, text/event-stream"}


def _headers(name: str = "ada", **more: str) -> dict[str, str]:
    return {**ACCEPT, "Authorization": f"Bearer {TOKENS[name]}", **more}


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        pytest.param(ACCEPT, 401, id="no token"),
        pytest.param({**ACCEPT, "Authorization": "Bearer lsg_wrong"}, 401, id="wrong token"),
        pytest.param({**ACCEPT, "Authorization": "Basic YTpi"}, 401, id="other scheme"),
        pytest.param(_headers(Host="evil.example"), 421, id="wrong host"),
        pytest.param(_headers(Origin="https://evil.example"), 403, id="wrong page"),
        pytest.param(_headers(), 200, id="right"),
    ],
)
def test_only_who_is_known_comes_in(tmp_path: Path, headers: dict[str, str], status: int) -> None:
    async def work() -> None:
        async with opened(tmp_path) as world, http(world) as url, httpx.AsyncClient() as raw:
            answer = await raw.post(url, json=INITIALIZE, headers=headers)
            assert answer.status_code == status
            assert ("www-authenticate" in answer.headers) == (status == 401)

    run(work)


def test_a_body_that_is_too_large_is_refused(tmp_path: Path) -> None:
    async def work() -> None:
        async with opened(tmp_path) as world, http(world) as url, httpx.AsyncClient() as raw:
            body = b'{"jsonrpc":"2.0","id":1,"method":"ping","params":{"x":"' + b"x" * (5 * 2**20) + b'"}}'
            answer = await raw.post(url, content=body, headers=_headers(**{"Content-Type": "application/json"}))
            assert answer.status_code == 413
            nested = b"[" * 100_000
            answer = await raw.post(url, content=nested, headers=_headers(**{"Content-Type": "application/json"}))
            assert answer.status_code == 400
            assert (await raw.post(url, json=INITIALIZE, headers=_headers())).status_code == 200

    run(work)


def test_another_principals_session_id_opens_nothing(tmp_path: Path) -> None:
    async def work() -> None:
        async with opened(tmp_path) as world, http(world) as url, httpx.AsyncClient() as raw:
            begun = await raw.post(url, json=INITIALIZE, headers=_headers())
            stolen = {"Mcp-Session-Id": begun.headers["mcp-session-id"], "MCP-Protocol-Version": "2025-11-25"}
            ping = {"jsonrpc": "2.0", "id": 2, "method": "ping"}
            assert (await raw.post(url, json=ping, headers=_headers("eve", **stolen))).status_code == 404
            assert (await raw.post(url, json=ping, headers=_headers("ada", **stolen))).status_code == 200

    run(work)


def test_a_principal_beyond_its_rate_waits_and_others_do_not(tmp_path: Path) -> None:
    async def work() -> None:
        async with opened(tmp_path) as world, http(world) as url, httpx.AsyncClient() as raw:
            answers = [await raw.post(url, json=INITIALIZE, headers=_headers("slow")) for _ in range(4)]
            assert [answer.status_code for answer in answers] == [200, 200, 200, 429]
            assert int(answers[-1].headers["retry-after"]) > 0
            assert (await raw.post(url, json=INITIALIZE, headers=_headers())).status_code == 200

    run(work)
