"""The life of an agent through the command line: real journal, real sandboxes, a process of its own where it counts."""

from __future__ import annotations

import json
import shutil
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from commandline import (
    BAD_INPUT,
    FINISHED,
    INTERNAL,
    PAID,
    SANDBOX,
    STOPPED,
    SUSPENDED,
    Agent,
    Terminal,
    call,
    command,
    copy_of,
    lockstep,
    make_clerk,
)

from lockstep.agent.lock import read_lock
from lockstep.tools.host import SandboxedTools

pytestmark = SANDBOX


@pytest.fixture(scope="module")
def clerk(tmp_path_factory: pytest.TempPathFactory) -> Agent:
    """A locked agent. Nobody changes its directory; what needs a store of its own takes one."""
    return make_clerk(tmp_path_factory.mktemp("cli") / "clerk")


def approval_of(agent: Agent, run_id: str) -> str:
    (found,) = [item for item in agent("approvals", "--json").json["waiting"] if item["run_id"] == run_id]
    approval: str = found["approval"]
    return approval


def calls_of(shown: dict[str, Any]) -> list[tuple[str, str, str]]:
    return [(call["tool"], call["verdict"], call["outcome"]) for call in shown["calls"]]


# The first minutes.


def test_init_writes_an_agent_that_is_locked_and_runs_as_it_is(tmp_path: Path) -> None:
    made = lockstep("init", "hello", cwd=tmp_path)
    assert made.code == FINISHED, made.err
    assert "locked hello: " in made.out
    done = lockstep("run", "hello", "What is 2 + 2?", cwd=tmp_path)
    assert done.code == FINISHED, done.err
    assert "2 + 2 is 4." in done.out
    assert 'asks  add {"a": 2, "b": 2}' in done.out
    assert "gate  add allow sums-are-fine" in done.out
    assert "tool  add ok 4 (gvisor start " in done.out
    assert "2 steps, 1 call, $0, lock " in done.out
    # From above the agent, its store is found: it is the only one.
    assert "What is 2 + 2?" in lockstep("runs", cwd=tmp_path).out
    assert lockstep("verify", cwd=tmp_path).code == FINISHED


def test_doctor_says_what_this_machine_can_do_and_leaves_nothing_behind(tmp_path: Path) -> None:
    done = lockstep("doctor", "--json", cwd=tmp_path)
    checks = {item["name"]: item for item in done.json["checks"]}
    assert checks["tier gvisor (gvisor)"]["ok"]
    assert "refused" in checks["tier gvisor (gvisor)"]["found"]
    assert done.code == FINISHED
    assert list(tmp_path.iterdir()) == []


def test_the_json_object_of_a_run_holds_what_is_promised(clerk: Agent) -> None:
    done = clerk.run("pay bob", "--approve", "all")
    assert done.code == FINISHED, done.err
    shown = done.json
    assert shown["status"] == "finished"
    assert shown["stop_reason"] == "completed"
    assert shown["output"] == PAID
    assert shown["lock"] == json.loads((clerk.directory / "agent.lock").read_text())["digest"]
    assert shown["unlocked"] is False
    assert shown["steps"] == 3
    assert shown["cost_usd"] == 0
    look, pay = shown["calls"]
    assert look.items() >= {"tool": "look", "arguments": {"to": "bob"}, "verdict": "allow", "effect": "read"}.items()
    assert pay.items() >= {"tool": "pay", "verdict": "ask", "effect": "once", "outcome": "ok", "tier": "gvisor"}.items()
    assert pay["arguments"] == {"to": "bob", "cents": 500}
    assert pay["duration_ms"] > 0
    assert clerk("show", shown["run_id"], "--json").json == shown


# Approvals.


def test_an_approval_is_given_later_and_from_another_process(clerk: Agent) -> None:
    first = clerk.run("pay bob", process=True)
    assert first.code == SUSPENDED
    run_id = first.json["run_id"]
    assert (first.json["status"], first.json["stop_reason"]) == ("suspended", "approval")
    assert calls_of(first.json)[-1] == ("pay", "ask", "waiting")
    approval = approval_of(clerk, run_id)
    listed = clerk("approvals").out
    assert f"{approval} run {run_id}" in listed
    assert "cents = 500" in listed

    still = clerk("resume", run_id, process=True)
    assert still.code == SUSPENDED, "nobody has answered"
    assert f"`lockstep approve {approval}`" in still.out

    assert clerk("approve", approval, "--by", "ann", process=True).code == FINISHED
    again = clerk("approve", approval)
    assert (again.code, "was already answered by ann, who approved it" in again.err) == (BAD_INPUT, True)

    done = clerk("resume", run_id, "--json", process=True)
    assert (done.code, done.json["output"]) == (FINISHED, PAID)
    assert "approved by ann" in clerk("trace", run_id).out
    assert clerk("verify", run_id).code == FINISHED


def test_a_refusal_is_told_to_the_model_with_its_reason(clerk: Agent) -> None:
    run_id = clerk.run("pay bob").json["run_id"]
    refused = clerk("refuse", approval_of(clerk, run_id), "--because", "too much", "--by", "ann", "--resume")
    assert refused.code == FINISHED, refused.err
    shown = clerk("show", run_id, "--json").json
    assert calls_of(shown)[-1] == ("pay", "ask", "approval_refused")
    assert "ann refused this call because: too much" in shown["calls"][-1]["result"]


def test_approve_none_answers_no_without_a_person(clerk: Agent) -> None:
    done = clerk.run("pay bob", "--approve", "none")
    assert (done.code, calls_of(done.json)[-1]) == (FINISHED, ("pay", "ask", "approval_refused"))


def test_an_approval_that_expired_is_a_refusal(clerk: Agent, tmp_path: Path) -> None:
    brief = copy_of(clerk, tmp_path / "clerk")
    brief.change("agent.toml", "[policy]", "[policy]\napproval_expires_s = 0.001")
    assert brief("lock", brief.directory).code == FINISHED
    first = brief.run("pay bob")
    if first.code == SUSPENDED:  # it expires before or after the process ends: both are right
        approval = first.json["calls"][-1]["approval"]
        late = brief("approve", approval)
        assert (late.code, "has expired" in late.err) == (BAD_INPUT, True)
        first = brief("resume", "last", "--json")
    assert first.code == FINISHED
    assert calls_of(first.json)[-1] == ("pay", "ask", "approval_refused")


def test_a_run_is_ended_for_good_by_cancel(clerk: Agent) -> None:
    run_id = clerk.run("pay bob").json["run_id"]
    ended = clerk("cancel", run_id, "--by", "ann")
    assert ended.code == FINISHED
    assert "Cancelled by ann." in ended.out
    assert clerk("cancel", run_id).code == BAD_INPUT
    resumed = clerk("resume", run_id, "--json")
    assert (resumed.code, resumed.json["stop_reason"]) == (STOPPED, "cancelled")
    assert run_id not in clerk("approvals").out


# In doubt.


@pytest.mark.parametrize(
    ("said", "outcome", "told"),
    [
        (("--happened", "--result", "it went through"), "ok", "it went through"),
        (("--did-not-happen",), "did_not_happen", "lose did not happen, as ann found out"),
    ],
)
def test_a_call_in_doubt_waits_until_somebody_says_what_happened(
    clerk: Agent, said: tuple[str, ...], outcome: str, told: str
) -> None:
    first = clerk.run("lose it", script=[call("lose", to="bob"), {"say": "It says: ${lose}"}])
    assert first.code == SUSPENDED
    assert (first.json["stop_reason"], calls_of(first.json)) == ("in_doubt", [("lose", "allow", "doubted")])
    run_id = first.json["run_id"]
    assert "--did-not-happen" in first.json["message"]
    assert clerk("resume", run_id).code == SUSPENDED, "nobody has said what happened"
    done = clerk("resume", run_id, *said, "--by", "ann", "--json")
    assert (done.code, done.json["calls"][0]["outcome"]) == (FINISHED, outcome)
    assert told in done.json["output"]
    assert len(done.json["calls"]) == 1, "it was not run again"


def test_saying_what_happened_where_nothing_is_in_doubt_is_refused(clerk: Agent) -> None:
    run_id = clerk.run("pay bob").json["run_id"]
    done = clerk("resume", run_id, "--happened")
    assert (done.code, f"Nothing in run {run_id} is in doubt" in done.err) == (BAD_INPUT, True)
    assert clerk("resume", run_id, "--result", "x").code == BAD_INPUT
    clerk("cancel", run_id)
    assert clerk("resume", run_id, "--happened").code == BAD_INPUT


# Sessions.


def test_a_session_remembers_its_runs(clerk: Agent) -> None:
    two = [{"script": 1, "per": "session"}, call("look", to="eve"), {"say": "First."}, {"say": "It was ${look.iban}."}]
    script = clerk.script(two)
    first = clerk.run("look up eve", "--session", "s-eve", "--model", f"scripted:{script}")
    assert first.json["output"] == "First."
    second = clerk.run("what was it?", "--session", "s-eve", "--model", f"scripted:{script}")
    assert (second.code, second.json["output"]) == (FINISHED, "It was DE-eve."), second.err
    listed = clerk("runs", "--session", "s-eve", "--json").json["runs"]
    assert [item["input"] for item in listed] == ["what was it?", "look up eve"]


def test_the_same_effect_in_a_session_is_answered_with_its_first_receipt(clerk: Agent) -> None:
    script = [call("pay", to="bob", cents=1), {"say": "${pay}"}]
    first = clerk.run("pay bob", "--session", "s-twice", "--approve", "all", script=script)
    assert first.json["output"] == "1 cents to bob"
    second = clerk.run("pay bob again", "--session", "s-twice", "--approve", "none", script=script)
    assert second.code == FINISHED
    (again,) = second.json["calls"]
    assert (again["outcome"], again["tier"]) == ("ok", None), "it ran nowhere"
    assert f"already made ({first.json['run_id']}/1.0)" in again["result"]


def test_a_session_with_an_unfinished_run_takes_no_other(clerk: Agent) -> None:
    first = clerk.run("pay bob", "--session", "s-busy")
    assert first.code == SUSPENDED
    second = clerk.run("pay eve", "--session", "s-busy")
    assert second.code == BAD_INPUT
    assert f"`lockstep cancel {first.json['run_id']}`" in second.err
    clerk("cancel", first.json["run_id"])


# What stops a run, and what does not.


def test_a_budget_stops_a_run(clerk: Agent) -> None:
    done = clerk.run("look", script=[{"script": 1}, *(call("look", to=f"bob {number}") for number in range(9))])
    assert (done.code, done.json["stop_reason"], done.json["steps"]) == (STOPPED, "budget_steps", 8)
    assert "8 steps (budget.steps)" in done.json["message"]


def test_the_model_recovers_from_what_it_got_wrong(clerk: Agent) -> None:
    script = [
        call("fly", to="bob"),
        call("look"),
        {"call": {"name": "look", "arguments": '{"to": '}},
        call("pay", to="mallory", cents=1),
        {"say": "Sorry."},
    ]
    done = clerk.run("try things", script=script)
    assert (done.code, done.json["output"]) == (FINISHED, "Sorry."), done.err
    assert calls_of(done.json) == [
        ("fly", "invalid", "tool_hallucinated"),
        ("look", "invalid", "tool_args_malformed"),
        ("look", "invalid", "tool_args_malformed"),
        ("pay", "deny", "policy_denied"),
    ]
    assert done.json["calls"][-1]["policies"] == ["never-mallory"]
    assert done.json["calls"][2]["arguments"] == '{"to": '
    assert "Tools: look, lose, pay" in done.json["calls"][0]["result"]


def test_a_denial_is_explained_to_a_person(clerk: Agent) -> None:
    clerk.run("pay mallory", script=[call("pay", to="mallory", cents=1), {"say": "Sorry."}])
    shown = clerk("show", "last").out
    assert "deny (never-mallory)" in shown
    assert "policy.cedar:8, policy `never-mallory`: forbids it." in shown
    assert str(clerk.directory) not in clerk("show", "last", "--json").json["calls"][0]["result"]


def test_malformed_calls_stop_a_run_after_a_while(clerk: Agent) -> None:
    done = clerk.run("fly", script=[call("fly")] * 6)
    assert (done.code, done.json["stop_reason"]) == (STOPPED, "malformed_limit")


# Records.


def test_a_recording_runs_again_without_a_provider_and_says_the_same(clerk: Agent, tmp_path: Path) -> None:
    first = clerk.run("pay bob", "--approve", "all").json
    recording = tmp_path / "run.jsonl"
    saved = clerk("record", first["run_id"], recording)
    assert (saved.code, "3 replies" in saved.out) == (FINISHED, True)
    again = clerk.run("pay bob", "--approve", "all", "--model", f"recorded:{recording}")
    assert again.code == FINISHED, again.err
    assert again.json["output"] == first["output"]
    results = [[(c["tool"], c["arguments"], c["result"]) for c in run["calls"]] for run in (first, again.json)]
    assert results[0] == results[1]
    other = clerk.run("pay eve", "--model", f"recorded:{recording}")
    assert (other.code, other.json["stop_reason"]) == (BAD_INPUT, "recording_mismatch")
    assert "'pay bob'" in other.json["message"]


@pytest.fixture
def tampered(clerk: Agent, tmp_path: Path) -> Callable[[str], tuple[Agent, str]]:
    """A copy of the store with one finished run in which SQL was let loose."""
    run_id: str = clerk.run("pay bob", "--approve", "all").json["run_id"]

    def tamper(sql: str) -> tuple[Agent, str]:
        copy = clerk.with_store(tmp_path / "store")
        shutil.copytree(clerk.store, copy.store, ignore=shutil.ignore_patterns("sandboxes"))
        connection = sqlite3.connect(copy.store / "journal.db")
        with connection:
            (number,) = connection.execute("SELECT number FROM runs WHERE run_id = ?", (run_id,)).fetchone()
            changed = connection.execute(sql.format(number=number)).rowcount
        connection.close()
        assert changed == 1
        return copy, run_id

    return tamper


@pytest.mark.parametrize(
    ("sql", "broken"),
    [
        ("UPDATE events SET body = replace(body, 'bob', 'eve') WHERE run = {number} AND seq = 3", 3),
        ("UPDATE events SET at = at + 1 WHERE run = {number} AND seq = 2", 2),
        ("DELETE FROM events WHERE run = {number} AND seq = 4", 4),
        ("UPDATE runs SET principal = 'mallory' WHERE number = {number}", 1),
    ],
)
def test_a_record_that_was_changed_is_found_out(
    tampered: Callable[[str], tuple[Agent, str]], sql: str, broken: int
) -> None:
    agent, run_id = tampered(sql)
    seen = agent("verify", run_id, "--json")
    assert seen.code == INTERNAL
    assert (seen.json["whole"], seen.json["broken_event"]) == (False, broken)
    assert seen.json["problem"]
    told = agent("verify", run_id)
    assert (told.code, seen.json["problem"] in told.out) == (INTERNAL, True)


def test_a_run_whose_past_was_changed_is_not_resumed(clerk: Agent, tmp_path: Path) -> None:
    agent = clerk.with_store(tmp_path / "store")
    approval = agent.run("pay bob").json["calls"][-1]["approval"]
    assert agent("approve", approval).code == FINISHED
    connection = sqlite3.connect(agent.store / "journal.db")
    with connection:
        connection.execute("UPDATE events SET at = at + 1 WHERE seq = 2")
    connection.close()
    refused = agent("resume", "--json")
    assert (refused.code, refused.json["error"]["code"]) == (BAD_INPUT, "journal_corrupt")
    assert "is not resumed" in refused.err
    assert calls_of(agent("show", "--json").json)[-1] == ("pay", "ask", "approved"), "approved, and not run"


def test_a_run_that_cannot_be_read_is_named_hides_no_other_and_can_be_ended(clerk: Agent, tmp_path: Path) -> None:
    agent = clerk.with_store(tmp_path / "store")
    broken = agent.run("pay bob").json["run_id"]
    whole = agent.run("pay bob").json
    connection = sqlite3.connect(agent.store / "journal.db")
    with connection:
        connection.execute("UPDATE events SET body = x'ff' WHERE run = 1 AND seq = 2")
    connection.close()
    for name, listed in (("runs", "runs"), ("approvals", "waiting")):
        told, shown = agent(name), agent(name, "--json")
        assert (told.code, shown.code) == (FINISHED, FINISHED)
        assert f"`lockstep verify {broken}`" in told.out
        assert f"`lockstep cancel {broken}`" in told.out
        assert [item["run_id"] for item in shown.json[listed]] == [whole["run_id"]]
        (unreadable,) = shown.json["unreadable"]
        assert (unreadable["run_id"], unreadable["finished"]) == (broken, False)
        assert "Event 2" in unreadable["why"]
    assert agent("approve", whole["calls"][-1]["approval"]).code == FINISHED
    ended = agent("cancel", broken, "--by", "ann")
    assert (ended.code, "What it did is not known" in ended.out) == (FINISHED, True)
    assert agent("approvals", "--json").json["unreadable"] == []
    assert agent("runs", "--json").json["unreadable"][0]["finished"] is True


# One writer, many readers.


@pytest.fixture
def held(clerk: Agent, tmp_path: Path) -> Iterator[tuple[Agent, Terminal]]:
    """A store that another process holds: a run that waits for a person at a terminal."""
    agent = clerk.with_store(tmp_path / "store")
    with Terminal(*command("run", agent.directory, "pay bob", "--store", agent.store)) as terminal:
        terminal.wait_for("approve?")
        yield agent, terminal


def test_a_second_process_is_told_who_holds_the_store_and_reads_all_the_same(
    held: tuple[Agent, Terminal],
) -> None:
    agent, terminal = held
    for done in (agent.run("pay eve"), agent("resume", "last"), agent("cancel", "last")):
        assert done.code == BAD_INPUT
        assert f"is in use by process {terminal.pid}" in done.err
        assert "--store" in done.err
    assert "suspended" in agent("runs").out
    assert "pay" in agent("approvals").out
    assert agent("verify").code == FINISHED
    assert agent("trace").code == agent("show").code == FINISHED


def test_a_run_whose_process_was_killed_goes_on(held: tuple[Agent, Terminal]) -> None:
    agent, terminal = held
    terminal.kill()
    assert agent("approve", approval_of(agent, agent("show", "--json").json["run_id"])).code == FINISHED
    done = agent("resume", "--json")
    assert (done.code, done.json["output"]) == (FINISHED, PAID)


# Lock and disk.


@pytest.mark.parametrize(("entry", "times"), [('dedupe_on = ["to"]', 1), ('env = { PLACE = "B" }', 2)])
def test_a_module_is_asked_once_for_all_entries_that_run_it_alike(
    clerk: Agent, tmp_path: Path, entry: str, times: int
) -> None:
    agent = copy_of(clerk, tmp_path / "clerk")
    agent.change("agent.toml", 'dedupe_on = ["to"]', entry)
    describe = SandboxedTools.describe
    with mock.patch.object(SandboxedTools, "describe", autospec=True, side_effect=describe) as asked:
        assert agent("lock", agent.directory).code == FINISHED
    assert asked.call_count == times
    lock = read_lock(agent.directory)
    assert list(lock.tools()) == ["look", "lose", "pay"]


def in_toml(old: str, new: str) -> Callable[[Agent], None]:
    return lambda agent: agent.change("agent.toml", old, new)


CHANGES: dict[str, tuple[Callable[[Agent], None], str, str, str]] = {
    "one word of the prompt": (
        lambda agent: agent.change("prompt.md", "told", "asked"),
        "prompt: prompt.md",
        "prompt",
        "+You do as you are asked.",
    ),
    "one field of a tool's schema": (
        lambda agent: agent.change("tools.py", "cents: int", "cents: float"),
        "tools: tool pay",
        "tools",
        'definition.inputSchema.properties.cents.type: "integer" -> "number"',
    ),
    "one Cedar rule": (
        lambda agent: agent.change("policy.cedar", '"mallory"', '"eve"'),
        "tools: policy policy.cedar",
        "tools",
        '+forbid (principal, action == Action::"pay", resource) when { context.arguments.to == "eve" };',
    ),
    "one limit": (
        in_toml("steps = 8", "steps = 9"),
        "tools: budget",
        "tools",
        "steps: 8 -> 9",
    ),
    "the model's temperature": (
        in_toml('script.jsonl"', 'script.jsonl"\ntemperature = 0.5'),
        "model: settings",
        "model",
        "temperature: added 0.5",
    ),
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_run_refuses_what_is_not_locked_and_diff_says_what_changed(clerk: Agent, tmp_path: Path, what: str) -> None:
    change, part, dimension, line = CHANGES[what]
    agent = copy_of(clerk, tmp_path / "clerk")
    change(agent)
    refused = agent.run("pay bob")
    assert refused.code == BAD_INPUT
    assert part in refused.err
    assert f"`lockstep diff {agent.directory}`" in refused.err
    assert not (agent.store / "journal.db").exists(), "nothing began"
    told = agent("diff", agent.directory)
    assert told.code == FINISHED
    headings = [text for text in told.out.splitlines()[1:] if not text.startswith(" ")]
    assert headings == [dimension]
    assert line in [text.strip() for text in told.out.splitlines()]


def test_a_changed_comment_in_the_code_shows_its_lines(clerk: Agent, tmp_path: Path) -> None:
    agent = copy_of(clerk, tmp_path / "clerk")
    assert agent("lock", agent.directory).code == FINISHED  # the store now has the code as it was
    agent.change("tools.py", "no reply came", "no reply came in time")
    told = agent("diff", agent.directory).out
    assert '-    raise OutcomeUnknown("no reply came")' in told
    assert '+    raise OutcomeUnknown("no reply came in time")' in told


def test_two_locks_and_two_directories_are_compared_alike(clerk: Agent, tmp_path: Path) -> None:
    agent = copy_of(clerk, tmp_path / "clerk")
    assert "no difference" in agent("diff", clerk.directory, agent.directory).out
    agent.change("prompt.md", "told", "asked")
    for one, other in ((clerk.directory, agent.directory), (clerk.directory / "agent.lock", agent.directory)):
        assert "+You do as you are asked." in agent("diff", one, other).out


def test_locking_again_accepts_the_change(clerk: Agent, tmp_path: Path) -> None:
    agent = copy_of(clerk, tmp_path / "clerk")
    agent.change("prompt.md", "told", "asked")
    assert agent("lock", agent.directory).code == FINISHED
    done = agent.run("pay bob")
    assert (done.code, done.json["unlocked"]) == (SUSPENDED, False)


def test_an_unlocked_run_says_so_wherever_it_is_looked_at(clerk: Agent, tmp_path: Path) -> None:
    agent = copy_of(clerk, tmp_path / "clerk")
    agent.change("prompt.md", "told", "asked")
    live = agent("run", agent.directory, "pay bob", "--unlocked", "--approve", "all")
    assert live.code == FINISHED, live.err
    assert "unlocked" in live.out
    assert agent("show", "--json").json["unlocked"] is True
    assert agent("runs", "--json").json["runs"][0]["unlocked"] is True
    assert "unlocked: differs in prompt: prompt.md" in agent("show").out
    assert "completed unlocked" in agent("runs").out
    assert "(unlocked)" in agent("trace").out


def test_a_model_given_for_one_run_makes_it_unlocked(clerk: Agent) -> None:
    run_id = clerk.run("nothing", script=[{"say": "Done."}]).json["run_id"]
    shown = clerk("show", run_id)
    assert "unlocked: differs in model: settings (--model scripted:" in shown.out


def test_the_locked_model_given_by_name_changes_nothing(clerk: Agent) -> None:
    done = clerk.run("pay bob", "--model", "scripted:script.jsonl", "--approve", "none")
    assert (done.code, done.json["unlocked"]) == (FINISHED, False)


# What a person sees.


def test_what_is_piped_is_never_broken_into_lines_of_our_making(clerk: Agent) -> None:
    question = "word " * 60 + "end"
    narrow = {"COLUMNS": "60"}
    live = clerk("run", clerk.directory, question, "--approve", "none", env=narrow)
    assert live.code == FINISHED
    shown = clerk("show", env=narrow)
    assert question in shown.out
    tree = clerk("trace", env=narrow).out.splitlines()
    (node,) = [line for line in tree if "call pay" in line]
    assert node.endswith('{"to": "bob", "cents": 500}; gate: ask by payments-need-a-person')
    run_id = clerk("show", "--json").json["run_id"]
    (row,) = [line for line in clerk("runs", env=narrow).out.splitlines() if run_id in line]
    assert "completed  3 steps, $0" in row


def test_what_a_model_says_cannot_steer_the_terminal(clerk: Agent) -> None:
    script = [
        {"say": "\x1b[2Jgone", "call": {"name": "look", "arguments": {"to": "\u202eb\x9bob"}}},
        {"say": "ok"},
    ]
    path = clerk.script(script)
    live = clerk("run", clerk.directory, "look", "--model", f"scripted:{path}")
    assert live.code == FINISHED, live.err
    for text in (live.out, clerk("show").out, clerk("trace").out):
        assert not {"\x1b", "\x9b", "\u202e"} & set(text)
        assert "\\u202e" in text
    assert clerk("show", "--json").json["calls"][0]["arguments"] == {"to": "\u202eb\x9bob"}


def test_output_is_readable_where_the_terminal_knows_only_ascii(clerk: Agent) -> None:
    ascii_only = {"PYTHONIOENCODING": "ascii"}
    path = clerk.script([{"say": "grüße 👋"}])
    live = clerk("run", clerk.directory, "hi", "--model", f"scripted:{path}", env=ascii_only)
    assert live.code == FINISHED, live.err
    assert clerk("show", "--json", env=ascii_only).json["output"] == "grüße 👋"
    assert clerk("trace", env=ascii_only).code == FINISHED


def test_a_closed_pipe_ends_a_command_quietly(clerk: Agent) -> None:
    clerk.run("nothing", script=[{"say": "Done."}])
    shell = " ".join(command("runs", "--store", clerk.store)) + " | true"
    done = subprocess.run(["/bin/sh", "-c", shell], capture_output=True, text=True, timeout=60, check=False)
    assert done.stderr == ""


def test_a_message_is_read_from_standard_input(clerk: Agent) -> None:
    done = clerk("run", clerk.directory, "-", "--json", "--approve", "none", stdin="pay bob\n")
    assert done.code == FINISHED
    assert clerk("runs", "--json", "--limit", "1").json["runs"][0]["input"] == "pay bob\n"


def test_a_run_is_named_by_a_unique_beginning(clerk: Agent) -> None:
    run_id = clerk.run("nothing", script=[{"say": "Done."}]).json["run_id"]
    assert clerk("show", run_id[:14], "--json").json["run_id"] == run_id
    assert "More than one run begins with 'r'" in clerk("show", "r").err
    assert "There is no run 'x'" in clerk("show", "x").err
