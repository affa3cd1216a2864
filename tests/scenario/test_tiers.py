"""Tiers and lifetimes as a user meets them: what stands in is said everywhere, and only a run's server keeps state."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from commandline import BAD_INPUT, FINISHED, SANDBOX, Agent, call, make_agent

pytestmark = SANDBOX

CODE = '''\
from lockstep import tool

CALLS = []


@tool(read_only=True)
def count() -> int:
    """Count the calls of this process."""
    CALLS.append(1)
    return len(CALLS)
'''
ALLOW = "permit (principal, action, resource);\n"


def agent_with(directory: Path, entry: str, policy: str = "", calls: int = 3) -> Agent:
    tools = f'[[tools]]\npython = "tools.py"\neffect = "read"\n{entry}'
    script = [call("count") for _ in range(calls)] + [{"say": "Counted."}]
    agent = make_agent(directory, code=CODE, tools=tools, policy=ALLOW, script=script, lock=False)
    file = agent.directory / "agent.toml"
    file.write_text(file.read_text().replace("[policy]\n", f"[policy]\n{policy}\n"))
    return agent


def test_untrusted_code_does_not_run_where_no_tier_is_strong_enough(tmp_path: Path) -> None:
    agent = agent_with(tmp_path / "agent", "untrusted = true")
    locked = agent("lock", str(agent.directory), env={"FIRECRACKER_BIN": "/nowhere", "LOCKSTEP_QEMU": "/nowhere"})
    assert locked.code == BAD_INPUT
    assert "needs isolation 'microvm', which is not available on this machine" in locked.err


@pytest.mark.parametrize(("instead", "policy"), [("gvisor", ""), ("process", "")])
def test_what_stands_in_for_a_tier_is_said_in_every_result(tmp_path: Path, instead: str, policy: str) -> None:
    if instead == "process" and shutil.which("bwrap") is None:
        pytest.skip("bwrap is not installed (Debian package bubblewrap)")
    agent = agent_with(tmp_path / "agent", "untrusted = true", f'degrade = {{ microvm = "{instead}" }}')
    env = {"FIRECRACKER_BIN": "/nowhere", "LOCKSTEP_QEMU": "/nowhere"}
    assert agent("lock", str(agent.directory), env=env).code == FINISHED
    done = agent.run("count", env=env)
    assert done.code == FINISHED, done.all
    assert [(each["tier"], each["degraded"]) for each in done.json["calls"]] == [(instead, "microvm")] * 3
    assert "degraded: microvm was asked for" in agent("trace").out


@pytest.mark.parametrize(
    ("stops", "entry", "policy", "ran"),
    [
        ("bwrap", 'isolation = "process"', 'isolation = "process"', ("gvisor", "")),
        ("runsc", "", 'degrade = { gvisor = "process" }', ("process", "gvisor")),
    ],
    ids=["stronger", "degraded"],
)
def test_a_tier_that_stops_working_gives_way_to_the_next(
    tmp_path: Path, stops: str, entry: str, policy: str, ran: tuple[str, str]
) -> None:
    if shutil.which("bwrap") is None:
        pytest.skip("bwrap is not installed (Debian package bubblewrap)")
    variable = f"LOCKSTEP_{stops.upper()}"
    script = tmp_path / stops
    script.write_text(f'#!/bin/sh\nexec {shutil.which(os.environ.get(variable) or stops)} "$@"\n')
    script.chmod(0o755)
    env = {"FIRECRACKER_BIN": "/nowhere", "LOCKSTEP_QEMU": "/nowhere", variable: str(script)}
    agent = agent_with(tmp_path / "agent", entry, policy, calls=2)
    assert agent("lock", str(agent.directory), env=env).code == FINISHED
    proven = script.stat()
    script.write_text("#!/bin/sh\nexit 1\n")
    os.utime(script, ns=(proven.st_atime_ns, proven.st_mtime_ns))  # nothing tells a later process but that it fails
    done = agent.run("count", env=env, process=True)
    assert done.code == FINISHED, done.all
    assert [(each["tier"], each.get("degraded", "")) for each in done.json["calls"]] == [ran] * 2


def test_only_the_server_of_a_run_keeps_state_and_for_that_run_alone(tmp_path: Path) -> None:
    single = agent_with(tmp_path / "single", "")
    kept = agent_with(tmp_path / "kept", 'lifetime = "run"')
    for agent in (single, kept):
        assert agent("lock", str(agent.directory)).code == FINISHED
    assert [each["result"] for each in single.run("count").json["calls"]] == ["1", "1", "1"]
    for _ in range(2):
        assert [each["result"] for each in kept.run("count").json["calls"]] == ["1", "2", "3"]
