"""The kill switch from another process, while a slow tool runs in its sandbox: stop, kill -9, start, resume."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from commandline import (
    BAD_INPUT,
    FINISHED,
    SANDBOX,
    STOPPED,
    SUSPENDED,
    Agent,
    call,
    command,
    environment,
    lockstep,
    make_agent,
    make_clerk,
)

pytestmark = SANDBOX
SLOW_S = 12
"""Longer than a stop takes; a read runs again in full afterwards."""
SLOW = '''\
import time

from lockstep import tool


@tool
def wait(seconds: int) -> str:
    """Wait."""
    time.sleep(seconds)
    return "waited"


@tool
def send(seconds: int) -> str:
    """Send, slowly."""
    time.sleep(seconds)
    return "sent"
'''
TOOLS = """\
[[tools]]
python = "tools.py"
include = ["wait"]
effect = "read"
timeout_s = 60

[[tools]]
python = "tools.py"
include = ["send"]
timeout_s = 60
"""


@pytest.fixture
def slow(tmp_path: Path) -> Agent:
    return make_agent(tmp_path / "slow", code=SLOW, tools=TOOLS)


@contextmanager
def running(agent: Agent, tool: str) -> Iterator[subprocess.Popen[str]]:
    """`lockstep run` in a process of its own, up to where the tool has been let go in its sandbox."""
    replies = agent.script([call(tool, seconds=SLOW_S), {"say": "Done."}])
    options = ("--store", agent.store, "--model", f"scripted:{replies}", "--json")
    process = subprocess.Popen(
        command("run", agent.directory, "Do it.", *options), env=environment(), stdout=subprocess.PIPE, text=True
    )
    try:
        _wait_until(lambda: len(sandboxes(agent)) > 0 and judged(agent), "no sandbox was started")
        yield process
    finally:
        process.kill()
        process.wait(timeout=30)
        assert process.stdout is not None
        process.stdout.close()


def sandboxes(agent: Agent) -> list[Path]:
    return list((agent.store / "sandboxes").glob("sandboxes/*.json"))


def judged(agent: Agent) -> bool:
    listed = lockstep("show", "last", "--json", "--store", agent.store)
    return listed.code == FINISHED and any(each["verdict"] for each in listed.json["calls"])


def _wait_until(holds: object, problem: str) -> None:
    until = time.monotonic() + 60
    while not holds():  # type: ignore[operator]
        assert time.monotonic() < until, problem
        time.sleep(0.05)


@pytest.mark.parametrize(("tool", "phase"), [("wait", "allowed"), ("send", "doubted")])
def test_a_stop_kills_the_sandbox_of_another_process_and_suspends_its_run(slow: Agent, tool: str, phase: str) -> None:
    with running(slow, tool) as process:
        stopped = slow("stop", "slow", "--because", "it sends too much", "--by", "ada", "--json")
        out, _ = process.communicate(timeout=30)
    ended = json.loads(out)
    assert (process.returncode, ended["stop_reason"]) == (SUSPENDED, "agent_stopped")
    assert (stopped.code, stopped.json["suspended"]) == (FINISHED, [ended["run_id"]])
    assert "stopped by ada" in ended["message"]
    assert "it sends too much" in ended["message"]
    assert ended["calls"][0]["outcome"] == phase
    assert sandboxes(slow) == []

    for refused in (slow.run("Again."), slow("resume", "last", "--json")):
        assert (refused.code, refused.json["error"]["code"]) == (STOPPED, "agent_stopped")
        assert "stopped by ada on" in refused.json["error"]["message"]
        assert "it sends too much" in refused.json["error"]["message"]

    assert slow("start", "slow").code == FINISHED
    answer = ("--did-not-happen",) if tool == "send" else ()
    assert slow("resume", "last", "--json", *answer).json["stop_reason"] == "completed"


def test_after_kill_9_a_stop_kills_what_is_left_and_the_run_goes_on_when_started(slow: Agent) -> None:
    with running(slow, "send") as process:
        os.kill(process.pid, signal.SIGKILL)
        process.wait(timeout=30)
        assert slow("stop", slow.directory, "--by", "ada").code == FINISHED
        assert sandboxes(slow) == []
    assert slow("resume", "last", "--json").json["error"]["code"] == "agent_stopped"
    assert slow("start", slow.directory).code == FINISHED
    resumed = slow("resume", "last", "--json")
    assert (resumed.code, resumed.json["stop_reason"]) == (SUSPENDED, "in_doubt")
    assert slow("resume", "last", "--happened", "--json").json["stop_reason"] == "completed"


def test_an_approval_is_refused_while_the_agent_is_stopped_and_counts_afterwards(tmp_path: Path) -> None:
    clerk = make_clerk(tmp_path / "clerk")
    waiting = clerk.run("Pay bob.")
    approval = clerk("approvals", "--json").json["waiting"][0]["approval"]
    assert clerk("stop", "clerk", "--by", "ada").code == FINISHED
    refused = clerk("approve", approval)
    assert (refused.code, "stopped by ada" in refused.err) == (STOPPED, True)
    assert clerk("start", "clerk").code == FINISHED
    assert clerk("approve", approval, "--resume").code == FINISHED
    assert clerk("show", waiting.json["run_id"], "--json").json["stop_reason"] == "completed"


def test_a_mistyped_name_stops_nothing_and_says_so(tmp_path: Path) -> None:
    clerk = make_clerk(tmp_path / "clerk")
    clerk.run("Pay bob.")
    done = clerk("stop", "clark")
    assert done.code == BAD_INPUT
    assert "it has runs of clerk" in done.err


def test_a_directory_stops_the_agent_under_every_name_it_goes_by(tmp_path: Path) -> None:
    """Renamed on disk and not locked yet, it still runs under the old name."""
    clerk = make_clerk(tmp_path / "clerk")
    clerk.run("Pay bob.")
    clerk.change("agent.toml", 'name = "clerk"', 'name = "teller"')
    stopped = clerk("stop", clerk.directory, "--json").json["stopped"]
    assert [each["agent"] for each in stopped] == ["clerk", "teller"]
    clerk.write("agent.toml", "broken")
    assert clerk("start", clerk.directory).out.startswith("Agent clerk may run again")


def test_an_agent_can_be_stopped_before_its_first_run(tmp_path: Path) -> None:
    clerk = make_clerk(tmp_path / "clerk")
    assert clerk("stop", clerk.directory, "--because", "not reviewed").code == FINISHED
    refused = clerk.run("Pay bob.")
    assert (refused.code, "not reviewed" in refused.err) == (STOPPED, True)
    assert clerk("start", clerk.directory).code == FINISHED
    assert clerk("start", clerk.directory).out == "Agent clerk was not stopped.\n"
    assert clerk.run("Pay bob.").code == SUSPENDED
