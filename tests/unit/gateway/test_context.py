"""Resources, prompts and completion for a gateway's clients; the servers are functions behind the real gate."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from inprocess import ALLOW_ALL, LOOK, ListedModel, call, locked_agent, reply
from mcp import Client, MCPError
from mcp import types as mcp_types
from test_serving_calls import ADA, ERAS, World, opened, run

from lockstep.agent.context import COMPLETE, LIST, METHODS, PROMPT, READ, definition, plain_name
from lockstep.agent.locked import LockedAgent, LockedTool
from lockstep.gateway.context import _fits
from lockstep.gateway.principals import Principal
from lockstep.gateway.server import build_server
from lockstep.runtime.reading import read_state
from lockstep.tools.port import Outcome, PermittedCall

TEMPLATES: list[Any] = [{"uriTemplate": "x://{id}/data", "name": "data", "description": "Data of an id"}]
PROMPTS: list[Any] = [{"name": "greet", "description": "Greet.", "arguments": [{"name": "whom", "required": True}]}]
LISTED: dict[str, list[Any]] = {READ: TEMPLATES, PROMPT: PROMPTS}


def tools_of(prefix: str, *methods: str) -> list[LockedTool]:
    return [
        replace(
            LOOK,
            name=f"{prefix}{plain_name(method)}",
            definition=definition(method, LISTED.get(method, ())),
            source=f"mcp:{prefix}",
        )
        for method in methods or METHODS
    ]


def agent_of(*prefixes: str, policy: str = ALLOW_ALL) -> LockedAgent:
    return locked_agent(LOOK, *(tool for prefix in prefixes for tool in tools_of(prefix)), policy=policy)


def said(text: str, **reply: Any) -> Callable[[PermittedCall], Outcome]:
    return lambda call: Outcome(kind="ok", text=text, reply=json.dumps(reply))


def failed(code: int, message: str, data: Any = None) -> Callable[[PermittedCall], Outcome]:
    error = {"code": code, "message": message, "data": data}
    return lambda call: Outcome(kind="tool_error", text=message, reply=json.dumps({"error": error}))


def reads(call: PermittedCall) -> Outcome:
    uri = call.arguments["uri"]
    contents = [{"uri": uri, "mimeType": "text/plain", "text": f"{call.tool.name} has {uri}"}]
    return said("read", contents=contents, ttlMs=500, cacheScope="public")(call)


def prompts(call: PermittedCall) -> Outcome:
    content = {"type": "text", "text": json.dumps(call.arguments)}
    return said("filled", description="Filled", messages=[{"role": "user", "content": content}])(call)


SERVED: dict[str, Any] = {
    "resources_list": said("x://1", resources=[{"uri": "x://1", "name": "one"}, {"name": "no uri"}]),
    "resources_read": reads,
    "prompts_get": prompts,
    "completion_complete": said("a", completion={"values": ["a", "ab"], "total": 2}),
}


def offering(path: Path, agent: LockedAgent | None = None, **functions: Any) -> Any:
    return opened(path, agent or agent_of(""), **{**SERVED, **functions})


async def last(world: World) -> Any:
    return await read_state(world.journal, (await world.journal.runs(limit=1))[0].run)


@ERAS
def test_a_resource_is_a_call_that_is_judged_recorded_and_told_as_the_protocol_has_it(tmp_path: Path, era: str) -> None:
    async def work() -> None:
        async with offering(tmp_path) as world, world.client(era) as client:
            (listed,) = (await client.list_resources()).resources
            assert (str(listed.uri), listed.name) == ("x://1", "one")
            read = await client.read_resource("x://1")
            assert read.contents[0].text == "resources_read has x://1"  # type: ignore[union-attr]
            assert read.contents[0].mime_type == "text/plain"
            state = await last(world)
            assert (state.principal, state.calls[0].name, state.calls[0].outcome) == ("ada", "resources_read", "ok")
            assert json.loads(state.calls[0].arguments) == {"uri": "x://1"}
            assert [events[-2] for events in await world.events()] == ["effect.settled"] * 2
            if era != "legacy":
                assert (read.ttl_ms, read.cache_scope) == (500, "private")

    run(work)


@ERAS
def test_prompts_and_templates_are_those_of_the_lock_and_cost_no_call(tmp_path: Path, era: str) -> None:
    async def work() -> None:
        async with offering(tmp_path) as world, world.client(era) as client:
            (prompt,) = (await client.list_prompts()).prompts
            assert (prompt.name, prompt.arguments[0].name) == ("greet", "whom")  # type: ignore[index]
            (template,) = (await client.list_resource_templates()).resource_templates
            assert template.uri_template == "x://{id}/data"
            assert await world.journal.runs() == []
            filled = await client.get_prompt("greet", {"whom": "Bob"})
            assert json.loads(filled.messages[0].content.text) == {"name": "greet", "arguments": {"whom": "Bob"}}  # type: ignore[union-attr]
            assert filled.description == "Filled"
            assert (await last(world)).calls[0].name == "prompts_get"

    run(work)


@ERAS
def test_arguments_of_prompts_and_templates_are_completed(tmp_path: Path, era: str) -> None:
    async def work() -> None:
        async with offering(tmp_path) as world, world.client(era) as client:
            for ref in (
                mcp_types.PromptReference(name="greet"),
                mcp_types.ResourceTemplateReference(uri="x://{id}/data"),
            ):
                found = await client.complete(ref, {"name": "whom", "value": "a"})
                assert found.completion.values == ["a", "ab"]
            assert (await last(world)).calls[0].name == "completion_complete"
            elsewhere = mcp_types.ResourceTemplateReference(uri="y://{id}")
            assert (await client.complete(elsewhere, {"name": "id", "value": "a"})).completion.values == []

    run(work)


@ERAS
def test_what_a_principal_may_not_have_is_not_there(tmp_path: Path, era: str) -> None:
    policy = ALLOW_ALL + "".join(
        f'forbid (principal == User::"eve", action == Action::"{plain_name(method)}", resource);\n'
        for method in METHODS
    )

    async def work() -> None:
        async with (
            offering(tmp_path, agent_of("", policy=policy)) as world,
            world.client(era, Principal(name="eve")) as client,
        ):
            assert (await client.list_resources()).resources == []
            assert (await client.list_resource_templates()).resource_templates == []
            assert (await client.list_prompts()).prompts == []
            ref = mcp_types.PromptReference(name="greet")
            refused = []
            for asked in (
                client.read_resource("x://1"),
                client.get_prompt("greet", {"whom": "Bob"}),
                client.complete(ref, {"name": "whom", "value": "a"}),
            ):
                with pytest.raises(MCPError) as error:
                    await asked
                refused.append((error.value.code, error.value.message))
            assert refused == [
                (-32602, "Resource not found"),
                (-32602, "Unknown prompt: greet"),
                (-32602, "Unknown prompt: greet"),
            ]
            assert world.tools.calls == []

    run(work)


@ERAS
def test_policy_sees_the_uri_and_a_denial_is_said_and_recorded(tmp_path: Path, era: str) -> None:
    secret = 'context.arguments.uri like "x://secret*"'
    policy = f'{ALLOW_ALL} forbid (principal, action == Action::"resources_read", resource) when {{ {secret} }};'

    async def work() -> None:
        async with offering(tmp_path, agent_of("", policy=policy)) as world, world.client(era) as client:
            assert (await client.read_resource("x://1")).contents
            with pytest.raises(MCPError, match="denied by policy"):
                await client.read_resource("x://secret/1")
            assert world.tools.count("resources_read") == 1
            assert (await last(world)).calls[0].outcome == "policy_denied"

    run(work)


def test_policy_is_not_passed_by_with_another_spelling_of_a_uri(tmp_path: Path) -> None:
    policy = ALLOW_ALL + (
        'forbid (principal, action == Action::"resources_read", resource)'
        ' when { context.arguments.uri like "file:///work/private/*" };'
    )
    spellings = (
        "file:///work/private/a",
        "file:///work/x/../private/a",
        "file:///work/x%2F..%2fprivate/a",
        "file:///work/./private/a",
        "file:///work//private/a",
        "file:///work/%70rivate/a",
        "file:///work\\private\\a",
        "FILE:///work/private/a",
        "file:///work/\x00/a",
    )

    async def work() -> None:
        async with offering(tmp_path, agent_of("", policy=policy)) as world, world.client("2026-07-28") as client:
            for spelt in spellings:
                with pytest.raises(MCPError):
                    await client.read_resource(spelt)
            assert "resources_read" not in [call.tool.name for call in world.tools.calls]
            for plain in ("file:///work/public/a%20b/", "https://x.example/a//b?c=../d", "x://1"):
                await client.read_resource(plain)

    run(work)


def test_a_prompt_that_two_servers_have_is_got_of_none(tmp_path: Path) -> None:
    async def work() -> None:
        mimic = replace(tools_of("", PROMPT)[0], definition=definition(PROMPT, [{"name": "b__greet"}]))
        async with offering(tmp_path, locked_agent(mimic, *tools_of("b__"))) as world:
            async with world.client("2026-07-28") as client:
                with pytest.raises(MCPError, match="claimed by more than one server"):
                    await client.get_prompt("b__greet", {"whom": "Bob"})
            assert world.tools.calls == []

    run(work)


@ERAS
@pytest.mark.parametrize("code", [-32602, -32002])
def test_a_resource_that_is_not_there_is_an_error_with_its_uri(tmp_path: Path, era: str, code: int) -> None:
    async def work() -> None:
        missing = failed(code, "Resource not found")
        async with offering(tmp_path, resources_read=missing) as world, world.client(era) as client:
            with pytest.raises(MCPError) as refused:
                await client.read_resource("x://2")
            assert refused.value.code == -32602
            assert refused.value.data["uri"] == "x://2"  # type: ignore[index]

    run(work)


@ERAS
def test_what_is_not_there_or_no_argument_is_not_asked_of_a_server(tmp_path: Path, era: str) -> None:
    async def work() -> None:
        async with offering(tmp_path) as world, world.client(era) as client:
            with pytest.raises(MCPError, match="Unknown prompt"):
                await client.get_prompt("other")
            with pytest.raises(MCPError) as refused:
                await client.read_resource("x://" + "a" * 5000)
            assert refused.value.code == -32602
            assert world.tools.calls == []

    run(work)


def test_what_is_read_of_a_server_is_no_tool_of_a_client_and_not_all_of_it_a_tool_of_a_model(tmp_path: Path) -> None:
    model = ListedModel(
        reply(call("prompts_get", {"name": "greet"})), reply(call("resources_list")), reply(text="Done.")
    )

    async def work() -> None:
        async with offering(tmp_path, model=model) as world, world.client("legacy") as client:
            assert [tool.name for tool in (await client.list_tools()).tools] == ["look", "ask_traveller"]
            with pytest.raises(MCPError, match="Unknown tool"):
                await client.call_tool("resources_list", {})
            await client.call_tool("ask_traveller", {"message": "Look."})
            shown = {tool.name for tool in model.prompts[0].tools}
            assert shown == {"look", "resources_list", "resources_read"}
            assert [each.outcome for each in (await last(world)).all_calls] == ["tool_hallucinated", "ok"]

    run(work)


def test_what_somebody_types_does_not_push_their_calls_out_of_the_window(tmp_path: Path) -> None:
    agent = replace(agent_of(""), window_runs=2)

    async def work() -> None:
        async with offering(tmp_path, agent) as world, world.client("legacy") as client:
            looked = [(await client.call_tool("look", {"n": n})).meta["lockstep/run"] for n in range(2)]  # type: ignore[index]
            for typed in ("a", "ab", "abc"):
                await client.complete(mcp_types.PromptReference(name="greet"), {"name": "whom", "value": typed})
            await client.read_resource("x://1")
            assert list((await last(world)).previous) == looked
        async with offering(tmp_path, agent) as world, world.client("legacy") as client:  # read from the journal
            await client.read_resource("x://2")
            assert len((await last(world)).previous) == 2
            assert (await last(world)).previous[0] == looked[1]

    run(work)


TWO = ("a__", "b__")


def both(**functions: Any) -> dict[str, Any]:
    return {f"{prefix}{name}": function for prefix in TWO for name, function in {**SERVED, **functions}.items()}


@ERAS
def test_of_two_servers_each_has_its_own_and_neither_hides_the_other(tmp_path: Path, era: str) -> None:
    functions = both()
    functions["a__resources_list"] = said("", resources=[{"uri": "x://a", "name": "a"}])
    functions["b__resources_list"] = said("", resources=[{"uri": "y://b", "name": "b"}])

    async def work() -> None:
        async with offering(tmp_path, agent_of(*TWO), **functions) as world, world.client(era) as client:
            assert [str(each.uri) for each in (await client.list_resources()).resources] == ["x://a", "y://b"]
            read = await client.read_resource("y://b")
            assert read.contents[0].text == "b__resources_read has y://b"  # type: ignore[union-attr]
            assert [each.name for each in (await client.list_prompts()).prompts] == ["a__greet", "b__greet"]
            filled = await client.get_prompt("b__greet", {"whom": "Bob"})
            assert json.loads(filled.messages[0].content.text)["name"] == "greet"  # type: ignore[union-attr]
            assert (await last(world)).calls[0].name == "b__prompts_get"

    run(work)


@ERAS
def test_a_server_that_fails_takes_no_other_with_it(tmp_path: Path, era: str) -> None:
    functions = both()
    functions["a__resources_list"] = lambda call: Outcome(kind="timeout", text="a did not answer.")

    async def work() -> None:
        async with offering(tmp_path, agent_of(*TWO), **functions) as world, world.client(era) as client:
            listed = await client.list_resources()
            assert [str(each.uri) for each in listed.resources] == ["x://1"]
            assert (listed.meta or {})["lockstep/failed"] == ["a did not answer."]
            assert (await client.read_resource("x://1")).contents
            assert world.tools.calls[-1].tool.name == "b__resources_read"

    run(work)


def lists(*uris: str) -> Callable[[PermittedCall], Outcome]:
    return said("", resources=[{"uri": uri, "name": "n"} for uri in uris])


async def refused(read: Any) -> MCPError:
    with pytest.raises(MCPError) as error:
        await read
    return error.value


@ERAS
def test_a_server_that_lists_anothers_resource_does_not_answer_in_its_place(tmp_path: Path, era: str) -> None:
    """Nor does the other then, as far as a client can tell which is which; what only one claims is read of that one."""
    functions = both()
    functions["a__resources_list"] = lists("y://payroll", "y://a")
    functions["b__resources_list"] = lists("y://payroll", "y://b")

    async def work() -> None:
        async with offering(tmp_path, agent_of(*TWO), **functions) as world, world.client(era) as client:
            for _ in range(2):
                listed = await client.list_resources()
                assert [str(each.uri) for each in listed.resources] == ["y://a", "y://b"]
                (sentence,) = (listed.meta or {})["lockstep/disputed"]
                problem = await refused(client.read_resource("y://payroll"))
                assert (problem.code, problem.message, problem.data) == (-32602, sentence, {"uri": "y://payroll"})
            assert sentence.startswith("y://payroll is claimed by more than one server (a__resources_read and b__")
            for name in ("a", "b"):
                read = await client.read_resource(f"y://{name}")
                assert read.contents[0].text.startswith(f"{name}__")  # type: ignore[union-attr]

    run(work)


@ERAS
def test_a_list_does_not_take_what_the_template_of_another_server_says_nor_one_template_what_another_does(
    tmp_path: Path, era: str
) -> None:
    functions = both()
    functions["a__resources_list"] = lists("x://7/data")
    functions["b__resources_list"] = lists()

    async def work() -> None:
        other = [*tools_of("a__", LIST), replace(tools_of("a__", READ)[0], definition=definition(READ, ())), LOOK]
        agent = locked_agent(*other, *tools_of("b__"))
        async with offering(tmp_path, agent, **functions) as world, world.client(era) as client:
            assert (await client.read_resource("x://8/data")).contents  # only the template claims it so far
            assert (await client.list_resources()).resources == []
            assert "claimed by more than one" in (await refused(client.read_resource("x://7/data"))).message
        async with offering(tmp_path, agent_of(*TWO), **functions) as world, world.client(era) as client:
            assert "claimed by more than one" in (await refused(client.read_resource("x://9/data"))).message
            ref = mcp_types.ResourceTemplateReference(uri="x://{id}/data")
            assert (await client.complete(ref, {"name": "id", "value": "a"})).completion.values == []
            assert all(each.tool.method == LIST for each in world.tools.calls)

    run(work)


@ERAS
def test_what_nobody_listed_yet_is_asked_about_before_it_is_read_and_what_nobody_has_is_not_there(
    tmp_path: Path, era: str
) -> None:
    functions = both()
    functions["a__resources_list"] = lists("y://a")
    functions["b__resources_list"] = lists("y://b")

    async def work() -> None:
        async with offering(tmp_path, agent_of(*TWO), **functions) as world, world.client(era) as client:
            read = await client.read_resource("y://b")
            assert read.contents[0].text == "b__resources_read has y://b"  # type: ignore[union-attr]
            assert (await refused(client.read_resource("y://c"))).message == "Resource not found"
            assert world.tools.count("a__resources_read") == 0

    run(work)


@ERAS
def test_a_server_that_policy_keeps_from_a_principal_claims_nothing_of_theirs(tmp_path: Path, era: str) -> None:
    functions = both(resources_list=lists("y://payroll"))
    only = "".join(f'forbid (principal, action == Action::"a__{plain_name(each)}", resource);\n' for each in METHODS)

    async def work() -> None:
        agent = agent_of(*TWO, policy=ALLOW_ALL + only)
        async with offering(tmp_path, agent, **functions) as world, world.client(era) as client:
            assert len((await client.list_resources()).resources) == 1
            read = await client.read_resource("y://payroll")
            assert read.contents[0].text == "b__resources_read has y://payroll"  # type: ignore[union-attr]

    run(work)


def test_what_a_server_lists_for_one_principal_says_nothing_of_anothers(tmp_path: Path) -> None:
    functions = both()
    functions["a__resources_list"] = lambda call: lists(*["y://b"] * (call.principal == "eve"))(call)
    functions["b__resources_list"] = lists("y://b")

    async def work() -> None:
        async with offering(tmp_path, agent_of(*TWO), **functions) as world:
            asking = ["eve"]
            server = build_server(world.served(lambda ctx: Principal(name=asking[-1])))
            for name, disputed in (("eve", True), ("ada", False)):
                asking.append(name)
                async with Client(server, mode="legacy") as client:
                    assert ((await client.list_resources()).resources == []) is disputed

    run(work)


@ERAS
def test_a_read_that_a_person_must_approve_is_asked_about(tmp_path: Path, era: str) -> None:
    policy = ALLOW_ALL + '@ask("Read it?") forbid (principal, action == Action::"resources_read", resource);'

    async def yes(context: Any, params: Any) -> mcp_types.ElicitResult:
        return mcp_types.ElicitResult(action="accept", content={"approve": True})

    async def work() -> None:
        async with offering(tmp_path, agent_of("", policy=policy)) as world:
            async with world.client(era, ADA, elicitation_callback=yes) as client:
                assert (await client.read_resource("x://1")).contents
            async with world.client(era, ADA) as client:
                with pytest.raises(MCPError, match="waits for a person"):
                    await client.read_resource("x://2")

    run(work)


@pytest.mark.parametrize(
    ("uri", "template", "fits"),
    [
        ("x://1/data", "x://{id}/data", True),
        ("x://1/date", "x://{id}/data", False),
        ("x://1", "x://{id}", True),
        ("x://", "x://1", False),
        ("x://1", "x://1", True),
        ("x://a/b/c", "x://{+path}/c", True),
        ("x://a", "x://{a}{b}{c}", True),
        ("y" * 4000, "{a}y" * 500 + "x", False),
    ],
)
def test_a_template_says_whose_a_uri_may_be(uri: str, template: str, fits: bool) -> None:
    assert _fits(uri, template) is fits


def test_an_agent_without_resources_does_not_speak_of_them(tmp_path: Path) -> None:
    async def work() -> None:
        async with opened(tmp_path, locked_agent(LOOK)) as world, world.client("legacy") as client:
            assert client.server_capabilities.resources is None
            assert client.server_capabilities.prompts is None
        agent = locked_agent(LOOK, *tools_of("", LIST, READ, COMPLETE))
        async with opened(tmp_path / "more", agent) as world, world.client("legacy") as client:
            assert client.server_capabilities.resources is not None
            assert client.server_capabilities.prompts is None

    run(work)
