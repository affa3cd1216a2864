"""The lock: deterministic, checked when read, and each thing that shapes behaviour in exactly one dimension."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from clerk import LOOK, PAY, Clerk

from lockstep.agent.builtins import pack_text
from lockstep.agent.from_lock import locked_agent
from lockstep.agent.load import load_spec
from lockstep.agent.lock import DIMENSIONS, Lock, differing_parts, from_text, read_lock, to_text, write_lock
from lockstep.agent.resolve import resolve_static
from lockstep.errors import ConfigError, LockError
from lockstep.values import digest_json, sha256


@pytest.fixture
def clerk(tmp_path: Path) -> Clerk:
    return Clerk(tmp_path)


def test_the_same_directory_gives_the_same_lock_wherever_it_lies(tmp_path: Path) -> None:
    texts = set()
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        texts.add(to_text(Clerk(tmp_path / name).lock()))
    assert len(texts) == 1


def test_the_order_in_which_a_source_names_its_tools_does_not_matter(clerk: Clerk) -> None:
    before = to_text(clerk.lock())
    clerk.definitions[0].reverse()
    assert to_text(clerk.lock()) == before


def test_a_lock_reads_back_as_it_was_written(clerk: Clerk) -> None:
    lock = clerk.lock()
    again = from_text(to_text(lock), "agent.lock")
    assert again == lock
    assert again.digest == lock.digest
    assert to_text(again) == to_text(lock)


def test_a_locked_agent_is_read_out_of_the_lock_alone(clerk: Clerk) -> None:
    agent = locked_agent(from_text(to_text(clerk.lock()), "agent.lock"))
    assert list(agent.tools) == ["look", "pay"]
    assert agent.tools["pay"].dedupe_on == ("/to",)
    pay = agent.tools["pay"]
    server = {"source": "mcp:/usr/bin/python3 server.py", "code": dict(pay.code), "runtime": {}}
    assert pay.pin == digest_json({"definition": PAY, "server": server})
    assert agent.tools["look"].code == {
        "table/a.json": sha256(b"{}\n"),
        "tools.py": sha256(b"# looks things up\n"),
    }
    assert agent.system == "You pay bills.\nAsk before you pay.\n"
    assert agent.model_file == ("script.jsonl", sha256(b'{"say": "Nothing to pay."}\n'))
    assert (agent.budget.steps, agent.window_runs) == (5, 3)


def test_digests_are_over_canonical_json_and_bytes(clerk: Clerk) -> None:
    lock = clerk.lock()
    assert lock.parts["prompt"]["prompt.md"].sha256 == sha256(b"You pay bills.\nAsk before you pay.\n")
    memory = {"schema": digest_json({"schema": 1, "window_runs": 3})}
    assert lock.dimension_digest("memory") == digest_json(memory)
    dimensions = {name: lock.dimension_digest(name) for name in DIMENSIONS}
    assert lock.digest == digest_json({"agent": "clerk", "dimensions": dimensions, "lockstep": 1})


SECRET = 'secrets = [{ env = "KEY", from = "env:KEY", host = "127.0.0.1:9", header = "Authorization" }]'


def in_toml(old: str, new: str) -> Callable[[Clerk], None]:
    return lambda clerk: clerk.change("agent.toml", old, new)


def in_schema(clerk: Clerk) -> None:
    clerk.definitions[1][0]["inputSchema"]["properties"]["cents"]["maximum"] = 6000


CHANGES: dict[str, tuple[Callable[[Clerk], None], str]] = {
    "one word of the prompt": (lambda clerk: clerk.change("prompt.md", "bills", "invoices"), "prompt: prompt.md"),
    "one field of a tool's schema": (in_schema, "tools: tool pay"),
    "a tool's description": (lambda c: c.definitions[1][0].update(description="Pay anyone."), "tools: tool pay"),
    "a Cedar rule": (lambda clerk: clerk.change("policy.cedar", "permit", "forbid"), "tools: policy policy.cedar"),
    "a budget": (in_toml("steps = 5", "steps = 6"), "tools: budget"),
    "how long an approval lasts": (in_toml("[memory]", "approval_expires_s = 9.0\n[memory]"), "tools: budget"),
    "a limit": (in_toml('effect = "read"', 'effect = "read"\nlimits = { cpu_s = 2 }'), "tools: tool look"),
    "an effect": (in_toml('effect = "read"', 'effect = "idempotent"'), "tools: tool look"),
    "what makes two calls the same": (in_toml('["to"]', '["to", "cents"]'), "tools: tool pay"),
    "the isolation": (in_toml("timeout_s = 20", 'timeout_s = 20\nisolation = "microvm"'), "tools: tool pay"),
    "egress": (in_toml("POST /pay", "POST /"), "tools: tool pay"),
    "a secret": (in_toml("timeout_s = 20", f"timeout_s = 20\n{SECRET}"), "tools: tool pay"),
    "an environment variable": (in_toml('"one"', '"two"'), "tools: tool pay"),
    "a timeout": (in_toml("timeout_s = 20", "timeout_s = 21"), "tools: tool pay"),
    "a fee": (in_toml("timeout_s = 20", "timeout_s = 20\nfee_usd = 0.01"), "tools: tool pay"),
    "a comment in the code": (lambda clerk: clerk.change("server.py", "# pays", "# Pays"), "tools: tool pay"),
    "a file the code reads": (lambda clerk: clerk.change("table/a.json", "{}", "[]"), "tools: tool look"),
    "the temperature": (in_toml("temperature = 0.0", "temperature = 0.1"), "model: settings"),
    "the script": (lambda clerk: clerk.change("script.jsonl", "Nothing", "All"), "model: file script.jsonl"),
    "the memory window": (in_toml("window_runs = 3", "window_runs = 4"), "memory: schema"),
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_change_shows_in_one_part_and_changes_the_digest_of_its_dimension_alone(clerk: Clerk, what: str) -> None:
    change, part = CHANGES[what]
    before = clerk.lock()
    change(clerk)
    after = clerk.lock()
    assert differing_parts(before, after) == (part,)
    changed = {name for name in DIMENSIONS if before.dimension_digest(name) != after.dimension_digest(name)}
    assert changed == {part.partition(":")[0]}
    assert before.digest != after.digest


def test_what_does_not_shape_behaviour_is_not_in_the_lock(clerk: Clerk) -> None:
    before = clerk.lock().digest
    clerk.change("agent.toml", 'name = "clerk"', '# a comment\nname = "clerk"\ndescription = "Pays."')
    assert clerk.lock().digest == before


def test_another_name_is_another_agent(clerk: Clerk) -> None:
    before = clerk.lock()
    clerk.change("agent.toml", 'name = "clerk"', 'name = "payer"')
    assert differing_parts(before, clerk.lock()) == ("agent: name",)
    assert clerk.lock().digest != before.digest


SAID_BY_CODE = ("one field of a tool's schema", "a tool's description")
"""What only running the tool code can tell; the code that says it shows by its digest."""


@pytest.mark.parametrize("what", [name for name in CHANGES if name not in SAID_BY_CODE])
def test_without_running_tool_code_the_same_difference_is_found(clerk: Clerk, what: str) -> None:
    before = clerk.lock()
    CHANGES[what][0](clerk)
    static = resolve_static(clerk.directory, load_spec(clerk.directory), before)
    assert differing_parts(before, static) == differing_parts(before, clerk.lock())
    assert static.digest == clerk.lock().digest


def test_a_directory_that_did_not_change_is_its_lock_without_running_tool_code(clerk: Clerk) -> None:
    lock = clerk.lock()
    assert resolve_static(clerk.directory, load_spec(clerk.directory), lock).digest == lock.digest


def test_a_new_or_removed_tool_shows_without_running_tool_code(clerk: Clerk) -> None:
    before = clerk.lock()
    clerk.change("agent.toml", 'include = ["look"]', 'include = ["unused"]')
    static = resolve_static(clerk.directory, load_spec(clerk.directory), before)
    assert differing_parts(before, static) == ("tools: tool look", "tools: tool unused")


def edited(lock: Lock, *path: str, to: Any) -> str:
    document = json.loads(to_text(lock))
    place = document
    for key in path[:-1]:
        place = place[key]
    assert path[-1] in place
    place[path[-1]] = to
    return json.dumps(document)


@pytest.mark.parametrize(
    ("path", "to", "named"),
    [
        (("dimensions", "prompt", "parts", "prompt.md", "text"), ["Pay."], "prompt: prompt.md"),
        (("dimensions", "tools", "parts", "policy policy.cedar", "text"), [""], "tools: policy policy.cedar"),
        (("dimensions", "tools", "parts", "tool pay", "value", "timeout_s"), 99, "tools: tool pay"),
        (("dimensions", "tools", "parts", "tool pay", "value", "timeout_s"), 2**60, "not a readable lock"),
        (("dimensions", "tools", "parts", "tool look", "value", "code", "tools.py"), "00", "tools: tool look"),
        (("dimensions", "tools", "parts", "budget", "value", "steps"), 9, "tools: budget"),
        (("dimensions", "model", "parts", "settings", "value", "temperature"), 2, "model: settings"),
        (("dimensions", "model", "parts", "file script.jsonl", "sha256"), "00", "the dimension model"),
        (("dimensions", "model", "digest"), "00", "the dimension model"),
        (("dimensions", "memory", "parts", "schema", "sha256"), "00", "memory: schema"),
        (("dimensions", "memory", "parts"), [], "not a readable lock"),
        (("dimensions", "memory"), {}, "not a readable lock"),
        (("digest",), "00", "the digest of the whole"),
        (("agent",), "other", "the agent's name"),
        (("lockstep",), 2, "has format 2; this version knows 1"),
    ],
)
def test_a_lock_edited_by_hand_is_refused_and_names_the_part(
    clerk: Clerk, path: tuple[str, ...], to: Any, named: str
) -> None:
    with pytest.raises(LockError) as raised:
        from_text(edited(clerk.lock(), *path, to=to), "agent.lock")
    assert named in str(raised.value)
    assert str(raised.value).startswith("agent.lock")
    assert "lockstep lock" in raised.value.remedy


@pytest.mark.parametrize("text", ["", "{}", "[]", "null", "5", "{", '{"lockstep": 1}', "[" * 100_000])
def test_what_is_no_lock_is_refused(text: str) -> None:
    with pytest.raises(LockError, match=r"^agent\.lock is not a readable lock"):
        from_text(text, "agent.lock")


def test_a_whole_lock_that_lacks_what_this_version_needs_is_refused(clerk: Clerk) -> None:
    lock = clerk.lock()
    lacking = replace(lock, parts={**lock.parts, "tools": {}})
    with pytest.raises(LockError, match="lacks what this version needs"):
        locked_agent(from_text(to_text(lacking), "agent.lock"))


def test_an_agent_that_was_never_locked_is_told_how(clerk: Clerk) -> None:
    with pytest.raises(LockError, match=r"never locked\. Run `lockstep lock "):
        read_lock(clerk.directory)


def test_a_lock_is_written_whole_and_leaves_nothing_beside_it(clerk: Clerk) -> None:
    before = {path.name for path in clerk.directory.iterdir()}
    write_lock(clerk.directory, clerk.lock())
    assert read_lock(clerk.directory).digest == clerk.lock().digest
    assert {path.name for path in clerk.directory.iterdir()} - before == {"agent.lock"}


def test_a_directory_that_cannot_be_written_keeps_no_lock(clerk: Clerk) -> None:
    lock = clerk.lock()
    with pytest.raises(ConfigError, match=r"agent\.lock cannot be written: No such file or directory"):
        write_lock(clerk.directory / "gone", lock)


def test_two_sources_of_one_tool_are_refused(clerk: Clerk) -> None:
    clerk.definitions[1].append(LOOK)
    assert list(clerk.lock().tools()) == ["look", "pay"], "the entry that names it has it"
    clerk.change("agent.toml", 'include = ["look"]\n', "")
    with pytest.raises(ConfigError, match=r"agent\.toml: tools\[1\] provides 'look', which is there already"):
        clerk.lock()


def test_including_a_tool_that_is_not_there_names_those_that_are(clerk: Clerk) -> None:
    clerk.change("agent.toml", 'include = ["look"]', 'include = ["lok"]')
    with pytest.raises(ConfigError, match=r"agent\.toml: tools\[0\]\.include names 'lok'.*It has: look, unused\."):
        clerk.lock()


def test_a_definition_without_canonical_form_names_its_source(clerk: Clerk) -> None:
    clerk.definitions[1][0]["inputSchema"]["properties"]["cents"]["maximum"] = 2**64
    with pytest.raises(ConfigError, match=r"agent\.toml: tools\[1\] offers a tool that cannot be digested"):
        clerk.lock()


@pytest.mark.parametrize("file", ["prompt.md", "policy.cedar", "tools.py", "server.py", "script.jsonl"])
def test_a_missing_file_is_named_with_what_would_correct_it(clerk: Clerk, file: str) -> None:
    (clerk.directory / file).unlink()
    with pytest.raises(ConfigError) as raised:
        clerk.lock()
    assert str(clerk.directory / file) in raised.value.message
    assert "correct" in raised.value.remedy


def test_a_directory_in_place_of_a_module_is_refused(clerk: Clerk) -> None:
    clerk.change("agent.toml", 'python = "tools.py"', 'python = "table"')
    with pytest.raises(ConfigError, match="table cannot be read: Is a directory"):
        clerk.lock()


@pytest.mark.parametrize("name", ["prompt.md", "policy.cedar", "tools.py"])
def test_a_link_that_leads_out_of_the_directory_is_refused(
    clerk: Clerk, tmp_path_factory: pytest.TempPathFactory, name: str
) -> None:
    secret = tmp_path_factory.mktemp("host") / "secret"
    secret.write_text("what must not end up in a lock")
    (clerk.directory / name).unlink()
    (clerk.directory / name).symlink_to(secret)
    with pytest.raises(ConfigError, match="leads out of the agent's directory"):
        clerk.lock()


@pytest.mark.parametrize("name", ["prompt.md", "policy.cedar", "tools.py"])
def test_a_file_that_never_ends_is_refused(clerk: Clerk, name: str) -> None:
    (clerk.directory / name).unlink()
    os.mkfifo(clerk.directory / name)
    with pytest.raises(ConfigError, match="not a regular file"):
        clerk.lock()


def test_where_a_secret_comes_from_is_locked_and_its_value_is_not(clerk: Clerk) -> None:
    in_toml("timeout_s = 20", f"timeout_s = 20\n{SECRET}")(clerk)
    lock = from_text(to_text(clerk.lock()), "agent.lock")
    declared = {"env": "KEY", "from": "env:KEY", "host": "127.0.0.1:9", "header": "Authorization"}
    assert lock.tools()["pay"]["secrets"] == [declared]
    (secret,) = locked_agent(lock).tools["pay"].secrets
    assert (secret.env, secret.source, secret.host, secret.header) == ("KEY", "env:KEY", "127.0.0.1:9", "Authorization")
    assert "secrets" not in lock.tools()["look"]


def test_what_is_said_about_results_is_locked_and_a_tool_of_which_nothing_is_said_keeps_its_digest(
    clerk: Clerk,
) -> None:
    before = clerk.lock()
    assert {"output_trust", "untrusted_fields"}.isdisjoint(before.tools()["pay"])
    in_toml("timeout_s = 20", 'timeout_s = 20\noutput_trust = "trusted"\nuntrusted_fields = ["/a/*/b"]')(clerk)
    lock = from_text(to_text(clerk.lock()), "agent.lock")
    pay, look = locked_agent(lock).tools["pay"], locked_agent(lock).tools["look"]
    assert (pay.output_trust, pay.output_trusted, pay.untrusted_fields) == ("trusted", True, ("/a/*/b",))
    assert (look.output_trust, look.untrusted_fields) == (None, ())
    assert "tools: tool pay" in differing_parts(before, lock)
    assert "tools: tool look" not in differing_parts(before, lock)


def test_a_pack_stands_in_the_lock_as_text_and_under_its_digest(clerk: Clerk) -> None:
    before = clerk.lock()
    clerk.change("agent.toml", "[policy]", '[policy]\npacks = ["injection"]')
    lock = clerk.lock()
    assert differing_parts(before, lock) == ("tools: policy pack:injection",)
    part = lock.parts["tools"]["policy pack:injection"]
    assert part.text == pack_text("injection")
    assert part.sha256 == sha256(pack_text("injection").encode())
    assert locked_agent(from_text(to_text(lock), "agent.lock")).policies["pack:injection"] == part.text


def test_a_pack_that_there_is_not_is_refused_with_those_there_are(clerk: Clerk) -> None:
    clerk.change("agent.toml", "[policy]", '[policy]\npacks = ["injektion"]')
    with pytest.raises(ConfigError, match="'injection' or 'injection-strict'"):
        clerk.lock()


def test_each_tool_of_an_entry_has_the_declared_fields_that_it_takes(clerk: Clerk) -> None:
    before = clerk.lock()
    clerk.change(
        "agent.toml", "timeout_s = 20", 'timeout_s = 20\noutput_private = true\nfields = { destination = ["/to"] }'
    )
    lock = clerk.lock()
    assert differing_parts(before, lock) == ("tools: tool pay",)
    tool = locked_agent(from_text(to_text(lock), "agent.lock")).tools["pay"]
    assert tool.fields == {"destination": ("/to",)}
    assert tool.output_private
    assert locked_agent(before).tools["pay"].fields is None


def test_a_declared_field_that_no_tool_takes_is_refused_with_those_there_are(clerk: Clerk) -> None:
    clerk.change("agent.toml", "timeout_s = 20", 'timeout_s = 20\nfields = { destination = ["/two"] }')
    with pytest.raises(ConfigError, match=r"fields\.destination names '/two'"):
        clerk.lock()
