"""What a client hears of a call while it runs, and how it breaks one off; servers are functions behind the gate."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from inprocess import ALLOW_ALL, BOOK, LOOK, NOTE, locked_agent, ok
from mcp import Client, MCPError
from mcp import types as mcp_types
from test_context import offering, said, tools_of
from test_serving_calls import ADA, BA1, ERAS, World, http, meta, opened, over_http, run, text

from lockstep.agent.context import LIST, READ, definition
from lockstep.agent.effect_spec import ProbeSection, Repeats
from lockstep.gateway.notices import MAX_WAITING
from lockstep.gateway.principals import Principal
from lockstep.gateway.server import build_server
from lockstep.kernel.state import Phase, Status
from lockstep.runtime.reading import doubts, read_state
from lockstep.tools.port import Listener, Notice, Outcome, PermittedCall, Watched

FAR = "mcp:server"
PROBE = ProbeSection(tool="look", found="/found", settles_after_s=0)
AGENT = locked_agent(replace(LOOK, source=FAR), replace(NOTE, source=FAR), replace(BOOK, source=FAR))


def listener(call: PermittedCall) -> Listener:
    assert call.listener is not None
    return call.listener


def saying(*notices: tuple[str, dict[str, Any]]) -> Callable[[PermittedCall], Outcome]:
    def tool(call: PermittedCall) -> Outcome:
        for method, params in notices:
            listener(call).hear(Notice(method=f"notifications/{method}", params=params, server=call.tool.source))
        return ok("seen")

    return tool


STEPS = saying(
    ("progress", {"progress": 1, "total": 2, "message": "half"}),
    ("progress", {"progress": True}),
    ("progress", {"progress": "all"}),
    ("progress", {"progress": 2, "total": "x", "message": 5}),
)


@ERAS
def test_progress_reaches_the_client_that_asked_for_it(tmp_path: Path, era: str) -> None:
    heard: list[Any] = []

    async def hear(progress: float, total: float | None, message: str | None) -> None:
        heard.append((progress, total, message))

    async def work() -> None:
        async with opened(tmp_path, AGENT, look=STEPS) as world, http(world) as url, over_http(url, era) as client:
            assert text(await client.call_tool("look", {}, progress_callback=hear)) == "seen"
            assert heard == [(1, 2, "half"), (2, None, None)]
            assert [listener(call).progress for call in world.tools.calls] == [True]
            await client.call_tool("look", {"n": 2})
            assert [listener(call).progress for call in world.tools.calls] == [True, False]
            assert len(heard) == 2

    run(work)


LOGS = saying(
    ("message", {"level": "debug", "data": "small"}),
    ("message", {"level": "warning", "data": {"n": 1}, "logger": "far"}),
    ("message", {"level": "loud", "data": "none"}),
    ("message", {"data": "no level"}),
)


def test_a_legacy_client_hears_what_is_at_least_as_loud_as_it_said(tmp_path: Path) -> None:
    heard: list[Any] = []

    async def hear(params: mcp_types.LoggingMessageNotificationParams) -> None:
        heard.append((params.level, params.data))

    async def work() -> None:
        async with opened(tmp_path, AGENT, look=LOGS) as world:
            async with world.client("legacy", logging_callback=hear) as client:
                await client.call_tool("look", {"n": 1})
                await client.session.set_logging_level("debug")
                await client.call_tool("look", {"n": 2})
                await client.session.set_logging_level("error")
                await client.call_tool("look", {"n": 3})
            assert heard == [("warning", {"n": 1}), ("debug", "small"), ("warning", {"n": 1})]
            assert [listener(call).log_level for call in world.tools.calls] == ["info", "debug", "error"]

    run(work)


def test_a_modern_client_hears_what_its_request_asked_for_and_nothing_unasked(tmp_path: Path) -> None:
    heard: list[Any] = []

    async def hear(params: mcp_types.LoggingMessageNotificationParams) -> None:
        heard.append(params.level)

    async def work() -> None:
        async with (
            opened(tmp_path, AGENT, look=LOGS) as world,
            http(world) as url,
            over_http(url, "2026-07-28", logging_callback=hear) as client,
        ):
            await client.call_tool("look", {"n": 1})
            assert heard == []
            await client.call_tool("look", {"n": 2}, meta={"io.modelcontextprotocol/logLevel": "info"})
            assert heard == ["warning"]
            assert [listener(call).log_level for call in world.tools.calls] == ["", "info"]

    run(work)


def test_a_server_that_does_not_stop_talking_holds_up_nothing(tmp_path: Path) -> None:
    heard: list[Any] = []

    async def hear(progress: float, total: float | None, message: str | None) -> None:
        heard.append(progress)

    many = saying(*(("progress", {"progress": number}) for number in range(MAX_WAITING * 20)))

    async def work() -> None:
        async with opened(tmp_path, AGENT, look=many) as world, world.client("legacy") as client:
            assert text(await client.call_tool("look", {}, progress_callback=hear)) == "seen"
            assert 0 < len(heard) <= MAX_WAITING + 1

    run(work)


def test_a_session_that_subscribed_hears_that_a_resource_changed(tmp_path: Path) -> None:
    heard: list[str] = []
    changed = saying(("resources/updated", {"uri": "x://1"}), ("resources/updated", {"uri": "x://2"}))

    async def hear(message: Any) -> None:
        if isinstance(message, mcp_types.ResourceUpdatedNotification):
            heard.append(str(message.params.uri))

    async def work() -> None:
        agent = locked_agent(replace(LOOK, source="mcp:"), *tools_of(""))
        async with offering(tmp_path, agent, look=changed) as world:
            async with world.client("legacy", message_handler=hear) as client:
                await client.session.subscribe_resource("x://1")
                await client.call_tool("look", {"n": 1})
                await client.session.unsubscribe_resource("x://1")
                await client.call_tool("look", {"n": 2})
            assert heard == ["x://1"]

    run(work)


def test_nobody_hears_of_a_server_whose_resources_they_may_not_read(tmp_path: Path) -> None:
    heard: list[str] = []
    changed = saying(("resources/updated", {"uri": "x://1"}))

    async def hear(message: Any) -> None:
        if isinstance(message, mcp_types.ResourceUpdatedNotification):
            heard.append(asked[-1])

    asked: list[str] = []
    policy = ALLOW_ALL + 'forbid (principal == User::"eve", action == Action::"b__resources_read", resource);'
    looks = [replace(LOOK, name=f"{name}look", source=f"mcp:{name}") for name in ("a__", "b__")]
    agent = locked_agent(*looks, *tools_of("a__"), *tools_of("b__"), policy=policy)

    async def work() -> None:
        async with opened(tmp_path, agent, a__look=changed, b__look=changed) as world:
            calls = [ADA]
            server = build_server(world.served(lambda ctx: calls[-1]))
            async with (
                Client(server, mode="legacy", message_handler=hear) as eve,
                Client(server, mode="legacy") as ada,
            ):
                calls.append(Principal(name="eve"))
                await eve.session.subscribe_resource("x://1")
                calls.append(ADA)
                for name in ("b__look", "a__look"):
                    asked.append(name)
                    assert text(await ada.call_tool(name, {})) == "seen"
            assert heard == ["a__look"]

    run(work)


# Breaking off.


def hanging(begun: asyncio.Event, ended: list[str]) -> Callable[[PermittedCall], Awaitable[Outcome]]:
    async def tool(call: PermittedCall) -> Outcome:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(call.tool.name)
        raise AssertionError

    return tool


async def cancelled(world: World, tool: str, era: str = "legacy", *, over: str = "") -> list[str]:
    """What ended of a call whose client said that it is to be cancelled, or over `over` went away."""
    begun, ended = asyncio.Event(), list[str]()
    world.tools.functions[tool] = hanging(begun, ended)
    async with over_http(over, era) if over else world.client(era) as client:
        calling = asyncio.create_task(client.call_tool(tool, BA1))
        await begun.wait()
        calling.cancel()
        await asyncio.gather(calling, return_exceptions=True)
        if not over:
            await until_finished(world)
    return ended


async def state_of(world: World) -> Any:
    return await read_state(world.journal, (await world.journal.runs(limit=1))[0].run)


async def until_finished(world: World) -> Any:
    while (state := await state_of(world)).status is not Status.FINISHED:  # noqa: ASYNC110 - `run` bounds it
        await asyncio.sleep(0.01)
    return state


def test_a_read_that_is_cancelled_ends_and_leaves_no_doubt(tmp_path: Path) -> None:
    async def work() -> None:
        async with opened(tmp_path, AGENT) as world:
            assert await cancelled(world, "look") == ["look"]
            state = await until_finished(world)
            assert (state.stop_reason, state.calls[0].phase) == ("cancelled", Phase.ALLOWED)
            assert await doubts(world.journal) == []

    run(work)


@pytest.mark.parametrize("tool", ["note", "book"])
def test_an_effect_that_is_cancelled_ends_and_is_in_doubt(tmp_path: Path, tool: str) -> None:
    async def work() -> None:
        async with opened(tmp_path, AGENT) as world:
            assert await cancelled(world, tool) == [tool]
            state = await until_finished(world)
            assert (state.stop_reason, state.calls[0].phase) == ("cancelled", Phase.DOUBTED)
            assert "may have happened" in state.message
            (doubt,) = await doubts(world.journal)
            assert doubt.call.name == tool  # type: ignore[union-attr]
            if tool == "book":
                async with world.client("legacy") as client:
                    again = await client.call_tool("book", BA1)
                assert again.is_error
                assert "nobody knows yet" in text(again)
                assert world.tools.count("book") == 1

    run(work)


@pytest.mark.parametrize("happened", [True, False])
def test_a_cancelled_effect_that_can_be_asked_after_is_settled_before_the_client_asks_again(
    tmp_path: Path, happened: bool
) -> None:
    """Clients cancel what their own timeout ends, and ask again."""
    agent = locked_agent(replace(BOOK, repeats=Repeats(probe=PROBE)), LOOK)

    async def work() -> None:
        async with opened(tmp_path, agent, look=lambda call: ok(json.dumps({"found": happened or None}))) as world:
            assert await cancelled(world, "book") == ["book"]
            assert await doubts(world.journal) == []
            world.tools.functions["book"] = lambda call: ok("booked")
            async with world.client("legacy") as client:
                again = await client.call_tool("book", BA1)
            assert world.tools.count("book") == (1 if happened else 2)
            assert bool(meta(again, "duplicate_of")) == happened

    run(work)


def test_over_modern_http_a_client_that_goes_ends_its_read_and_not_its_effect(tmp_path: Path) -> None:
    async def work() -> None:
        async with opened(tmp_path, AGENT) as world, http(world) as url:
            await cancelled(world, "look", "2026-07-28", over=url)
            assert (await until_finished(world)).stop_reason == "cancelled"
            assert await cancelled(world, "book", "2026-07-28", over=url) == []
            assert (await state_of(world)).calls[0].phase is Phase.INTENDED
            await world.desk.close(0)

    run(work)


def test_a_server_that_keeps_its_state_is_not_ended_because_a_client_went(tmp_path: Path) -> None:
    agent = locked_agent(replace(LOOK, source=FAR, run_lifetime=True))

    async def work() -> None:
        async with opened(tmp_path, agent) as world, http(world) as url:
            assert await cancelled(world, "look", "2026-07-28", over=url) == []
            assert (await state_of(world)).status is Status.RUNNING
            await world.desk.close(0)
        async with opened(tmp_path / "more", agent) as world:
            assert await cancelled(world, "look") == ["look"]  # in words

    run(work)


def test_what_waits_behind_another_call_does_not_begin_once_it_is_cancelled(tmp_path: Path) -> None:
    async def work() -> None:
        begun, may_end = asyncio.Event(), asyncio.Event()

        async def slow(call: PermittedCall) -> Outcome:
            begun.set()
            await may_end.wait()
            return ok("noted")

        async with opened(tmp_path, AGENT, note=slow) as world, world.client("legacy") as client:
            first = asyncio.create_task(client.call_tool("note", {"n": 1}))
            await begun.wait()
            second = asyncio.create_task(client.call_tool("note", {"n": 2}))
            await asyncio.sleep(0)
            await client.send_ping()  # the second has been heard by now
            second.cancel()
            await asyncio.gather(second, return_exceptions=True)
            await client.send_ping()
            may_end.set()
            assert text(await first) == "noted"
            assert not (await client.call_tool("look", {})).is_error
            assert world.tools.count("note") == 1

    run(work)


def test_a_level_that_is_none_is_refused(tmp_path: Path) -> None:
    async def work() -> None:
        async with opened(tmp_path, AGENT) as world, world.client("legacy") as client:
            with pytest.raises((MCPError, ValueError)):
                await client.session.set_logging_level("loud")  # type: ignore[arg-type]
            assert meta(await client.call_tool("look", {}), "run")

    run(work)


# What servers are asked to say.


@ERAS
def test_a_server_is_asked_to_tell_changes_of_its_own_resources_that_its_caller_subscribed_to(
    tmp_path: Path, era: str
) -> None:
    """Not of another server's, whose addresses are none of its business, nor of what other principals want to know."""
    watched: dict[str, Watched] = {}

    def look(call: PermittedCall) -> Outcome:
        watched[call.tool.name] = listener(call).watches(call.tool.source)
        return ok("seen")

    looks = [replace(LOOK, name=f"{name}look", source=f"mcp:{name}") for name in ("a__", "b__")]
    bare = [replace(each, definition=definition(READ, ())) for each in tools_of("b__", READ)]
    agent = locked_agent(*looks, *tools_of("a__", READ), *bare, *tools_of("b__", LIST))
    lists = said("", resources=[{"uri": "y://b", "name": "b"}])

    async def calls(client: Client) -> None:
        for name in ("a__look", "b__look"):
            await client.call_tool(name, {"n": len(watched)})

    async def work() -> None:
        functions = {"a__look": look, "b__look": look, "b__resources_list": lists}
        async with opened(tmp_path, agent, **functions) as world:
            who = [ADA]
            server = build_server(world.served(lambda ctx: who[-1]))
            async with Client(server, mode=era) as client:
                await client.list_resources()
                uris = ["x://1/data", "y://b", "z://nobody"]
                if era == "legacy":
                    for uri in uris:
                        await client.session.subscribe_resource(uri)
                    await calls(client)
                else:
                    async with client.listen(resource_subscriptions=uris, resources_list_changed=True):
                        await calls(client)
                lists_too = era != "legacy"
                assert watched["a__look"] == Watched(resources=frozenset({"x://1/data"}), lists=lists_too)
                assert watched["b__look"] == Watched(resources=frozenset({"y://b"}), lists=lists_too)
                if era != "legacy":
                    await calls(client)
                    assert not any(watched.values())
                who.append(Principal(name="eve"))
                await calls(client)
                assert not any(watched.values())

    run(work)
