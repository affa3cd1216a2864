"""`lockstep why` and `lockstep audit` on a run that went through everything: a rule, a person, a repeat, a doubt."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from commandline import BAD_INPUT, FINISHED, INTERNAL, SANDBOX, Agent, call, lockstep, make_clerk

pytestmark = SANDBOX
SCRIPT = (
    call("look", to="bob"),
    {
        "calls": [
            {"name": "pay", "arguments": {"to": "${look.to}", "cents": 500}},
            {"name": "pay", "arguments": {"to": "mallory", "cents": 1}},
        ]
    },
    call("pay", to="bob", cents=600),
    call("lose", to="al"),
    {"say": "A secret thought."},
)


@pytest.fixture(scope="module")
def clerk(tmp_path_factory: pytest.TempPathFactory) -> Agent:
    clerk = make_clerk(tmp_path_factory.mktemp("account") / "clerk")
    clerk.run("Pay bob.", script=SCRIPT)
    approval = clerk("approvals", "--json").json["waiting"][0]["approval"]
    clerk("approve", approval, "--resume", "--by", "ada")
    clerk("resume", "last", "--happened", "--by", "bob")
    assert clerk("show", "last", "--json").json["stop_reason"] == "completed"
    return clerk


def test_why_tells_every_action_of_a_run(clerk: Agent) -> None:
    said = clerk("why").out
    for expected in (
        "1.0 look ok",
        "allow by anything",
        "ask by payments-need-a-person",
        "approved by ada",
        "2.1 pay not run: policy_denied",
        "deny by never-mallory",
        "3.0 pay joined to",
        "4.0 lose happened",
        "it happened, as bob said",
        "completed",
    ):
        assert expected in said, expected
    assert "secret thought" not in said


def test_why_tells_one_action_from_its_grounds_to_its_cost(clerk: Agent) -> None:
    said = clerk("why", "last", "2.0").out
    for expected in (
        "lock ",
        "prompt prompt.md",
        "user message (event 1)",
        "results of this run: 1.0 look",
        '/to "bob"',
        "shown 'Pay this?'",
        "once, permit p",
        "500 cents to bob",
        "gvisor",
        "one of 2 calls of the step",
    ):
        assert expected in said, expected


def test_why_as_json_keeps_its_documented_shape(clerk: Agent) -> None:
    whole = clerk("why", "--json").json
    one = clerk("why", "last", f"{whole['run']}/2.0", "--json").json
    page = (Path(__file__).resolve().parents[2] / "docs/why.md").read_text()
    assert [action["call"] for action in whole["actions"]] == ["1.0", "2.0", "2.1", "3.0", "4.0"]
    assert one["actions"] == [whole["actions"][1]]
    missing = sorted(name for name in _names(whole) if f"`{name}`" not in page)
    assert missing == []


def _names(value: object) -> set[str]:
    if isinstance(value, list):
        return set().union(*map(_names, value))
    return {*value, *set().union(*map(_names, value.values()))} if isinstance(value, dict) else set()


def test_a_call_that_is_not_there_is_a_sentence(clerk: Agent) -> None:
    done = clerk("why", "last", "9.9")
    assert (done.code, "It has: 1.0, 2.0, 2.1, 3.0, 4.0." in done.err) == (BAD_INPUT, True)


def test_a_record_is_handed_over_and_checked_with_plain_python(clerk: Agent, tmp_path: Path) -> None:
    file = tmp_path / "record.jsonl"
    clerk("stop", "clerk", "--by", "ada", "--because", "audit")
    clerk("start", "clerk")
    exported = clerk("audit", "export", "--all", "-o", file, "--json")
    verifier = clerk("audit", "export", "--verifier").out.strip()
    digest = exported.json["digest"]
    plain = subprocess.run(
        [sys.executable, "-I", "-S", verifier, str(file), digest],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (exported.code, plain.returncode) == (FINISHED, 0), plain.stdout

    assert lockstep("audit", "verify", file, "--digest", digest).code == FINISHED
    lines = file.read_text().splitlines()
    assert [json.loads(line)["type"] for line in lines if '"run":"stops"' in line] == ["agent.stopped", "agent.started"]
    file.write_text(file.read_text().replace("ada", "eve", 1))
    changed = lockstep("audit", "verify", file, "--json")
    assert (changed.code, changed.json["whole"]) == (INTERNAL, False)
    assert changed.json["problem"]


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("last",), "Where to?"),
        (("-o", "x"), "What is to be exported?"),
        (("last", "--all", "-o", "x"), "What is to be exported?"),
        (("--session", "none", "-o", "x"), "no run of session"),
        (("last", "-o", "/nowhere/x"), "No such file"),
    ],
    ids=["no file", "nothing", "two things", "no session", "no directory"],
)
def test_what_cannot_be_exported_is_a_sentence(clerk: Agent, arguments: tuple[str, ...], problem: str) -> None:
    done = clerk("audit", "export", *arguments)
    assert (done.code, problem in done.err) == (BAD_INPUT, True), done.err
