"""What `agent.toml` may say about an MCP server, and what of it stands in the lock."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from clerk import PAY, Clerk

from lockstep.agent.context import COMPLETE, METHODS, PROMPT, READ, definition, listed_in
from lockstep.agent.from_lock import locked_agent
from lockstep.agent.load import load_spec
from lockstep.agent.lock import Lock, differing_parts, from_text, to_text
from lockstep.agent.resolve import resolve, resolve_static
from lockstep.errors import ConfigError
from lockstep.values import Effect, JsonObject

PLAIN = 'mcp = { command = ["/usr/bin/python3", "server.py"] }'


@pytest.fixture
def clerk(tmp_path: Path) -> Clerk:
    return Clerk(tmp_path / "clerk")


@pytest.fixture
def packages(tmp_path: Path) -> Path:
    (tmp_path / "packages" / "bin").mkdir(parents=True)
    (tmp_path / "packages" / "server.js").write_text("// pays\n")
    (tmp_path / "packages" / "bin" / "server").symlink_to("../server.js")
    return tmp_path / "packages"


def serve(clerk: Clerk, more: str) -> None:
    clerk.change("agent.toml", PLAIN, PLAIN.replace(" }", f", {more} }}"))


def lock(clerk: Clerk) -> Lock:
    definitions = {0: clerk.definitions[0], 1: clerk.definitions[1]}
    made = resolve(clerk.directory, load_spec(clerk.directory), definitions, {1: "2026-07-28"})
    return from_text(to_text(made), "agent.lock")


def test_a_prefix_keeps_servers_apart_and_the_server_its_names(clerk: Clerk) -> None:
    serve(clerk, 'prefix = "bank"')
    clerk.definitions[1] = [PAY, {**PAY, "name": "pay.all/now"}]
    tools = locked_agent(lock(clerk)).tools
    assert list(tools) == ["bank__pay", "bank__pay_all_now", "look"]
    assert [tool.own_name for tool in tools.values()] == ["pay", "pay.all/now", "look"]


def test_include_knows_the_servers_own_names(clerk: Clerk) -> None:
    serve(clerk, 'prefix = "bank"')
    clerk.change("agent.toml", 'dedupe_on = ["to"]', 'dedupe_on = ["to"]\ninclude = ["pay"]')
    locked = lock(clerk)
    assert list(locked.tools()) == ["bank__pay", "look"]
    assert differing_parts(locked, resolve_static(clerk.directory, load_spec(clerk.directory), locked)) == ()


def test_what_was_settled_on_is_kept_without_asking_the_server(clerk: Clerk) -> None:
    locked = lock(clerk)
    assert {name: tool.protocol for name, tool in locked_agent(locked).tools.items()} == {
        "look": "",
        "pay": "2026-07-28",
    }
    assert resolve_static(clerk.directory, load_spec(clerk.directory), locked).digest == locked.digest


@pytest.mark.parametrize("change", ["content", "name", "more", "less"])
def test_packages_are_one_digest_over_every_file(clerk: Clerk, packages: Path, change: str) -> None:
    serve(clerk, f'runtime = {{ npm = "{packages}" }}')
    before = lock(clerk)
    old = locked_agent(before).tools["pay"]
    assert set(old.runtime) == {"npm"}
    match change:
        case "content":
            (packages / "server.js").write_text("// pays somebody else\n")
        case "name":
            (packages / "bin" / "server").rename(packages / "bin" / "servant")
        case "more":
            (packages / "__pycache__").mkdir()
            (packages / "__pycache__" / "a.pyc").write_bytes(b"")
        case "less":
            (packages / "bin" / "server").unlink()
    disk = resolve_static(clerk.directory, load_spec(clerk.directory), before)
    assert differing_parts(before, disk) == ("tools: tool pay",)
    assert locked_agent(disk).tools["pay"].pin != old.pin


def test_where_packages_lie_is_not_in_the_lock(clerk: Clerk, packages: Path) -> None:
    serve(clerk, f'runtime = {{ npm = "{packages}" }}')
    before = lock(clerk)
    packages.rename(packages.with_name("elsewhere"))
    clerk.change("agent.toml", str(packages), str(packages.with_name("elsewhere")))
    assert differing_parts(before, lock(clerk)) == ()


def test_working_files_of_the_agent_are_locked_and_those_of_the_host_are_not(clerk: Clerk, tmp_path: Path) -> None:
    (tmp_path / "repo").mkdir()
    serve(clerk, f'files = {{ rates = {{ from = "table" }}, repo = {{ from = "{tmp_path}/repo", write = true }} }}')
    before = lock(clerk)
    tool = locked_agent(before).tools["pay"]
    assert set(tool.code) == {"server.py", "table/a.json"}
    assert {name: (each.source, each.write) for name, each in tool.files.items()} == {
        "rates": ("table", False),
        "repo": (f"{tmp_path}/repo", True),
    }
    (tmp_path / "repo" / "new").write_text("new")
    assert differing_parts(before, lock(clerk)) == ()
    (clerk.directory / "table" / "a.json").write_text("[]")
    assert "tools: tool pay" in differing_parts(before, lock(clerk))


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ('runtime = { npm = "packages" }', "must begin with / or ~/"),
        ('runtime = { npm = "/a/../b" }', "must begin with / or ~/"),
        ('runtime = { "a/b" = "/a" }', "runtime"),
        ('files = { x = { from = "../x" } }', "must be a path inside the agent's directory"),
        ('files = { x = { from = "a", to = "b" } }', "to"),
        ('files = { "x y" = { from = "a" } }', "files"),
        ('prefix = "a b"', "prefix"),
        ('environment = "all"', "environment"),
    ],
)
def test_what_makes_no_sense_is_refused_with_its_place(clerk: Clerk, more: str, said: str) -> None:
    serve(clerk, more)
    with pytest.raises(ConfigError) as refused:
        load_spec(clerk.directory)
    assert "agent.toml:" in str(refused.value)
    assert said in str(refused.value)


@pytest.mark.parametrize("trouble", ["link out", "link to a directory", "missing", "pipe"])
def test_packages_that_cannot_be_taken_whole_are_refused(clerk: Clerk, packages: Path, trouble: str) -> None:
    match trouble:
        case "link out":
            (packages / "out").symlink_to("/etc/passwd")
        case "link to a directory":
            (packages / "again").symlink_to("bin")
        case "pipe":
            os.mkfifo(packages / "pipe")
    place = packages if trouble != "missing" else packages / "nowhere"
    serve(clerk, f"runtime = {{ npm = {json.dumps(str(place))} }}")
    with pytest.raises(ConfigError, match=r"is neither a file nor a directory inside|is not a directory"):
        lock(clerk)


PROMPTS: list[JsonObject] = [{"name": "greet", "description": "Greet.", "arguments": [{"name": "whom"}]}]


@pytest.mark.parametrize("prefix", ["", 'prefix = "bank", '])
@pytest.mark.parametrize("include", ["", 'include = ["pay"]\n'])
def test_what_a_server_has_beside_tools_is_read_and_cannot_cost_or_repeat(
    clerk: Clerk, prefix: str, include: str
) -> None:
    serve(clerk, f'{prefix}offer = ["tools", "resources", "prompts"]')
    clerk.change("agent.toml", 'dedupe_on = ["to"]', f'dedupe_on = ["to"]\n{include}fee_usd = 2')
    clerk.definitions[1] = [PAY, *(definition(m, PROMPTS if m == PROMPT else ()) for m in METHODS)]
    locked = lock(clerk)
    tools = locked_agent(locked).tools
    begin = "bank__" if prefix else ""
    context = {name: tool for name, tool in tools.items() if tool.method}
    assert set(context) == {begin + name for name in METHODS_AS_NAMES}
    assert {tool.effect for tool in context.values()} == {Effect.READ}
    assert {tool.fee_usd for tool in context.values()} == {0}
    assert {tool.dedupe_on for tool in context.values()} == {None}
    assert {name.removeprefix(begin): tool.for_models for name, tool in context.items()} == METHODS_AS_NAMES
    assert list(listed_in(context[f"{begin}prompts_get"].definition)) == PROMPTS
    assert tools[f"{begin}pay"].fee_usd == 2
    assert differing_parts(locked, resolve_static(clerk.directory, load_spec(clerk.directory), locked)) == ()


METHODS_AS_NAMES = {method.replace("/", "_"): models for method, models in METHODS.items()}


def test_what_is_no_longer_offered_leaves_the_lock_without_asking_the_server(clerk: Clerk) -> None:
    serve(clerk, 'offer = ["tools", "prompts"]')
    clerk.definitions[1] = [PAY, definition(PROMPT, PROMPTS), definition(COMPLETE)]
    locked = lock(clerk)
    clerk.change("agent.toml", 'offer = ["tools", "prompts"]', 'offer = ["tools"]')
    again = resolve_static(clerk.directory, load_spec(clerk.directory), locked)
    assert list(again.tools()) == ["look", "pay"]


def test_results_of_which_only_parts_are_trusted_make_no_resource_trusted(clerk: Clerk) -> None:
    serve(clerk, 'offer = ["tools", "resources"]')
    trust = 'output_trust = "trusted"\nuntrusted_fields = ["/note"]'
    clerk.change("agent.toml", 'dedupe_on = ["to"]', f'dedupe_on = ["to"]\n{trust}')
    clerk.definitions[1] = [PAY, definition(READ)]
    tools = locked_agent(lock(clerk)).tools
    assert (tools["pay"].output_trusted, tools["resources_read"].output_trusted) == (True, False)


@pytest.mark.parametrize(
    ("said", "asks", "samples"),
    [("model", ("sampling",), True), ("client", ("sampling",), False), ("decline", (), False)],
)
def test_who_answers_what_a_server_asks_of_a_model_is_locked(
    clerk: Clerk, said: str, asks: tuple[str, ...], samples: bool
) -> None:
    before = lock(clerk).digest
    serve(clerk, f'sampling = "{said}"')
    pay = locked_agent(lock(clerk)).tools["pay"]
    assert (pay.asks, pay.samples) == (asks, samples)
    assert (lock(clerk).digest == before) is (said == "decline")
