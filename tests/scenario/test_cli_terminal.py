"""A person at a terminal: approvals are asked there, and Ctrl-C, Ctrl-D and a narrow window do what they should."""

from __future__ import annotations

import re

import pytest
from commandline import FINISHED, PAID, SANDBOX, SUSPENDED, Agent, Terminal, command, make_clerk

pytestmark = SANDBOX

INTERRUPTED = 130


@pytest.fixture(scope="module")
def clerk(tmp_path_factory: pytest.TempPathFactory) -> Agent:
    return make_clerk(tmp_path_factory.mktemp("terminal") / "clerk")


def running(clerk: Agent, *options: str) -> Terminal:
    return Terminal(*command("run", clerk.directory, "pay bob", "--store", clerk.store, *options))


def test_yes_lets_exactly_the_shown_call_run(clerk: Agent) -> None:
    with running(clerk) as terminal:
        terminal.wait_for("approve?")
        assert "Pay this?" in terminal.seen
        assert '{"to": "bob", "cents": 500}' in terminal.seen
        terminal.type("y\n")
        assert terminal.ended() == FINISHED
        assert PAID in terminal.seen
    assert clerk("show", "--json").json["calls"][1]["outcome"] == "ok"


def test_no_asks_why_and_tells_the_model(clerk: Agent) -> None:
    with running(clerk) as terminal:
        terminal.wait_for("approve?")
        terminal.type("n\n")
        terminal.wait_for("because:")
        terminal.type("too much\n")
        assert terminal.ended() == FINISHED
    refused = clerk("show", "--json").json["calls"][1]
    assert refused["outcome"] == "approval_refused"
    assert "because: too much" in refused["result"]


@pytest.mark.parametrize("keys", ["\n", "maybe\n", "\x04"], ids=["nothing", "neither", "Ctrl-D"])
def test_anything_else_leaves_it_waiting(clerk: Agent, keys: str) -> None:
    with running(clerk) as terminal:
        terminal.wait_for("approve?")
        terminal.type(keys)
        assert terminal.ended() == SUSPENDED
        assert "`lockstep approve a" in terminal.seen
    assert clerk("show", "--json").json["stop_reason"] == "approval"


def test_ctrl_c_at_the_question_ends_the_process_and_not_the_run(clerk: Agent) -> None:
    with running(clerk) as terminal:
        terminal.wait_for("approve?")
        terminal.type("\x03")
        assert terminal.ended() == INTERRUPTED
        assert "lockstep: interrupted." in terminal.seen
        assert "Traceback" not in terminal.seen
    shown = clerk("show", "--json").json
    assert shown["stop_reason"] == "approval"
    assert clerk("approve", shown["calls"][1]["approval"], "--resume").code == FINISHED


def test_a_run_asked_for_as_json_asks_nobody(clerk: Agent) -> None:
    with running(clerk, "--json") as terminal:
        assert terminal.ended() == SUSPENDED
        assert "approve?" not in terminal.seen


def test_resuming_at_a_terminal_asks_there_too(clerk: Agent) -> None:
    run_id = clerk.run("pay bob").json["run_id"]
    with Terminal(*command("resume", run_id, "--store", clerk.store)) as terminal:
        terminal.wait_for("approve?")
        terminal.type("yes\n")
        assert terminal.ended() == FINISHED


def test_the_tree_keeps_its_lines_in_a_narrow_terminal(clerk: Agent) -> None:
    clerk.run("pay bob", "--approve", "none")
    with Terminal(*command("trace", "--store", clerk.store), columns=50) as terminal:
        assert terminal.ended() == FINISHED
    lines = re.sub(r"\x1b\[[0-9;]*m", "", terminal.seen).splitlines()
    tree = lines[: next(number for number, line in enumerate(lines) if line.startswith("where the time went"))]
    assert len(tree) > 8
    assert all(len(line.rstrip()) <= 50 for line in tree)
    assert all(line[0] in "│├└ " for line in tree[1:])
