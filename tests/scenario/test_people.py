"""People who let calls go, from terminals of their own: the real command line, one process each."""

from __future__ import annotations

import re
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from commandline import (
    BAD_INPUT,
    CODE,
    FINISHED,
    PAID,
    POLICY,
    SANDBOX,
    SCRIPT,
    STOPPED,
    SUSPENDED,
    TOOLS,
    Agent,
    Terminal,
    call,
    command,
    copy_of,
    environment,
    make_agent,
)

pytestmark = SANDBOX


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Agent:
    return make_agent(tmp_path_factory.mktemp("clerk") / "clerk", code=CODE, tools=TOOLS, policy=POLICY, script=SCRIPT)


@pytest.fixture
def clerk(locked: Agent, tmp_path: Path) -> Agent:
    return copy_of(locked, tmp_path / "clerk")


def relock(agent: Agent) -> None:
    done = agent("lock", agent.directory)
    assert done.code == FINISHED, done.err


def asked(agent: Agent, *options: str) -> str:
    """Run until somebody is asked; the approval."""
    done = agent.run("Pay bob 5.", *options)
    assert done.code == SUSPENDED, done.all
    (waiting,) = agent("approvals", "--json").json["waiting"]
    approval: str = waiting["approval"]
    return approval


def outcome(agent: Agent) -> Any:
    done = agent("resume", "--json")
    assert done.code == FINISHED, done.all
    return done.json


def test_an_approver_sees_the_call_its_rule_its_cost_and_what_refusing_does(clerk: Agent) -> None:
    approval = asked(clerk, "--as", "ada")
    seen = clerk("approvals").out
    for part in (
        f"{approval} run ",
        "asks      Pay this?",
        "for ada, lock ",
        "pay (Pay someone.)",
        'to = "bob"',
        "cents = 500",
        "payments-need-a-person",
        "once: each time it is done again does harm",
        "no fee; the run so far: $0",
        "pay does not run; the model is told that you refused and why",
        "(in 24 h)",
    ):
        assert part in seen, f"{part!r} is not in: {seen}"
    (item,) = clerk("approvals", "--json").json["waiting"]
    assert [(each["pointer"], each["value"]) for each in item["given"]] == [("/to", '"bob"'), ("/cents", "500")]
    assert (item["principal"], item["approvers"], item["policies"]) == ("ada", 1, ["payments-need-a-person"])
    assert item["bound"] != item["digest"]


def test_an_approval_may_have_a_reason_and_name_what_was_shown(clerk: Agent) -> None:
    approval = asked(clerk)
    (item,) = clerk("approvals", "--json").json["waiting"]
    other = clerk("approve", approval, "--digest", "0" * 64)
    assert (other.code, "is not for what has the digest 0000" in other.err) == (BAD_INPUT, True)
    done = clerk("approve", approval, "--because", "her usual", "--by", "eve", "--digest", item["bound"], "--resume")
    assert done.code == FINISHED, done.all
    assert PAID in done.out


def test_of_two_terminals_that_answer_at_once_one_counts_and_the_other_is_told_so(clerk: Agent) -> None:
    approval = asked(clerk)
    both = [
        subprocess.Popen(
            command("approve" if by == "eve" else "refuse", approval, "--by", by, "--store", clerk.store),
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for by in ("eve", "bob")
    ]
    ends = [(each.communicate(timeout=120), each.returncode) for each in both]
    assert sorted(code for _, code in ends) == [FINISHED, BAD_INPUT]
    (late,) = [error for (_, error), code in ends if code == BAD_INPUT]
    assert re.search(rf"Approval {approval} was already answered by (eve, who approved|bob, who refused) it\.", late)


def test_after_the_lock_has_changed_an_approval_is_refused_and_a_refusal_is_not(clerk: Agent) -> None:
    approval = asked(clerk)
    clerk.change("prompt.md", "told", "told now")
    relock(clerk)
    done = clerk("approve", approval)
    assert done.code == BAD_INPUT
    assert f"agent.lock changed since approval {approval} was asked for" in done.err
    assert clerk("refuse", approval, "--because", "start anew").code == FINISHED
    assert outcome(clerk)["calls"][1]["outcome"] == "approval_refused"


def test_where_there_is_no_lock_any_more_nobody_approves(clerk: Agent) -> None:
    approval = asked(clerk)
    (clerk.directory / "agent.lock").unlink()
    done = clerk("approve", approval)
    assert (done.code, "was never locked" in done.err) == (BAD_INPUT, True)


def test_an_unlocked_run_is_approved_as_what_it_is(clerk: Agent) -> None:
    clerk.change("prompt.md", "told", "told now")
    approval = asked(clerk, "--unlocked")
    assert "unlocked: not what agent.lock says" in clerk("approvals").out
    assert clerk("approve", approval).code == FINISHED
    assert outcome(clerk)["output"] == PAID


def test_an_approval_that_has_expired_is_refused_and_the_run_goes_on_without(clerk: Agent) -> None:
    clerk.change("agent.toml", 'files = ["policy.cedar"]', 'files = ["policy.cedar"]\napproval_expires_s = 1')
    relock(clerk)
    approval = asked(clerk)
    time.sleep(1.1)
    assert "(it has)" in clerk("approvals").out
    done = clerk("approve", approval)
    assert (done.code, f"Approval {approval} has expired." in done.err) == (BAD_INPUT, True)
    assert outcome(clerk)["calls"][1]["outcome"] == "approval_refused"


def test_an_approval_that_was_never_asked_for_is_unknown(clerk: Agent) -> None:
    asked(clerk)
    done = clerk("approve", "a000000000000")
    assert (done.code, "No approval a000000000000 is waiting." in done.err) == (BAD_INPUT, True)


def test_two_people_must_look_and_neither_is_the_principal(clerk: Agent) -> None:
    clerk.change("policy.cedar", '@ask("Pay this?")', '@ask("Pay this?")\n@approvers("2")')
    clerk.change("agent.toml", 'files = ["policy.cedar"]', 'files = ["policy.cedar"]\nprincipal_may_approve = false')
    relock(clerk)
    approval = asked(clerk, "--as", "ada")
    assert "2 different people must approve, not ada" in clerk("approvals").out
    own = clerk("approve", approval, "--by", "Ada")
    assert (own.code, "The run acts for Ada, who may not approve its calls" in own.err) == (BAD_INPUT, True)
    first = clerk("approve", approval, "--by", "eve", "--resume")
    assert (first.code, f"approved {approval} as eve; 1 more person must approve it" in first.out) == (FINISHED, True)
    again = clerk("approve", approval, "--by", "eve")
    assert (again.code, "eve approved this already; it needs 2 different people." in again.err) == (BAD_INPUT, True)
    assert "so far eve" in clerk("approvals").out
    assert clerk("approve", approval, "--by", "bob").code == FINISHED
    assert outcome(clerk)["output"] == PAID


def test_what_is_allowed_beforehand_asks_nobody_within_its_scope_until_it_is_revoked(clerk: Agent) -> None:
    scope = ("--tool", "pay", "--where", "/to=bob", "--for", "8h", "--by", "eve", "--because", "the fair")
    given = clerk("allow", clerk.directory, *scope, "--json").json
    assert clerk.run("Pay bob 5.").json["output"] == PAID
    listed = clerk("approvals", "--standing").out
    assert f'{given["id"]} pay of clerk where /to = "bob" until' in listed
    assert "given by eve: the fair; used 1" in listed
    other = (call("pay", to="carl", cents=1), {"say": "Done."})
    assert clerk.run("Pay carl.", "--unlocked", script=other).code == SUSPENDED
    assert clerk("revoke", given["id"], "--by", "bob").code == FINISHED
    again = clerk("revoke", given["id"])
    assert (again.code, "does not stand any more: revoked by bob" in again.err) == (BAD_INPUT, True)
    assert clerk.run("Pay bob 5.").code == SUSPENDED
    assert "revoked by bob" in clerk("approvals", "--standing").out


def test_what_is_allowed_beforehand_is_void_once_the_lock_changes(clerk: Agent) -> None:
    clerk("allow", clerk.directory, "--tool", "pay", "--for", "8h")
    clerk.change("prompt.md", "told", "told now")
    relock(clerk)
    assert clerk.run("Pay bob 5.").code == SUSPENDED
    assert "void: agent.lock has changed" in clerk("approvals", "--standing").out


@pytest.mark.parametrize(
    "options, says",
    [
        (("--tool", "fly", "--for", "8h"), "clerk has no tool 'fly'"),
        (("--tool", "pay", "--for", "forever"), "--for is 'forever'"),
        (("--tool", "pay", "--for", "99d"), "--for is '99d'"),
        (("--tool", "pay", "--for", "8h", "--where", "bob"), "--where is 'bob': it must be POINTER=VALUE"),
        (("--tool", "pay", "--for", "8h", "--where", "/whom=bob"), "pay has no argument 'whom'"),
        (("--tool", "pay", "--for", "8h", "--where", "/to=5"), """to is text.\n  Write '/to="5"'."""),
        (("--tool", "pay", "--for", "8h", "--where", "/cents=five"), "cents is of type integer"),
    ],
    ids=["tool", "no time", "too long", "no value", "no argument", "a number", "a text"],
)
def test_what_is_allowed_beforehand_must_be_something(clerk: Agent, options: tuple[str, ...], says: str) -> None:
    done = clerk("allow", clerk.directory, *options)
    assert (done.code, says in done.err) == (BAD_INPUT, True), done.err


def test_a_reason_may_be_typed_behind_the_yes(clerk: Agent) -> None:
    with Terminal(*command("run", clerk.directory, "Pay bob 5.", "--store", clerk.store), columns=200) as terminal:
        terminal.wait_for("approve?")
        assert "does not run; the model is told" in terminal.seen
        terminal.type("y her usual\n")
        terminal.wait_for(PAID)
        assert terminal.ended() == FINISHED


# --- budgets ---


def test_a_model_that_asks_for_the_same_thing_again_and_again_is_stopped(clerk: Agent) -> None:
    done = clerk.run("Look.", "--unlocked", script=[call("look", to="bob")] * 7)
    assert (done.code, done.json["stop_reason"]) == (STOPPED, "loop")
    assert [each["outcome"] for each in done.json["calls"]] == ["ok"] * 5 + ["asked"]


def test_a_tool_that_is_used_up_is_denied_and_the_run_goes_on(clerk: Agent) -> None:
    clerk.change("agent.toml", "steps = 8", "steps = 8\ncalls_per_tool = { look = 1 }")
    relock(clerk)
    script = (call("look", to="bob"), call("look", to="carl"), {"say": "Done."})
    done = clerk.run("Look.", "--unlocked", script=script)
    assert (done.code, done.json["output"]) == (FINISHED, "Done.")
    assert [each["outcome"] for each in done.json["calls"]] == ["ok", "budget"]
    assert "may be called once in a run (budget.calls_per_tool)" in done.json["calls"][1]["result"]


def test_a_session_that_is_used_up_begins_no_other_run(clerk: Agent) -> None:
    clerk.change("agent.toml", "steps = 8", "steps = 8\n[budget.session]\nruns = 1")
    relock(clerk)
    script = ({"say": "Done."},)
    assert clerk.run("Hi.", "--session", "s1", "--unlocked", script=script).code == FINISHED
    done = clerk.run("Hi.", "--session", "s1", "--unlocked", script=script)
    assert (done.code, done.json["error"]["code"]) == (STOPPED, "budget")
    assert "this session has had 1 of 1 runs (budget.session.runs)" in done.json["error"]["message"]


def test_a_limit_on_a_tool_that_is_not_there_is_an_error_when_locking(clerk: Agent) -> None:
    clerk.change("agent.toml", "steps = 8", "steps = 8\ncalls_per_tool = { fly = 1 }")
    done = clerk("lock", clerk.directory)
    assert (done.code, "`budget.calls_per_tool` names 'fly', which is no tool of this agent" in done.err) == (2, True)
