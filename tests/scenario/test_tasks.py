"""Calls that go on as tasks of their servers, at the command line: a process that dies loses no booking and makes none
twice. The server elsewhere is one on the SDK with its own tasks; those in sandboxes are a few lines of Python.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from commandline import FINISHED, SUSPENDED, Agent, call, command, environment, make_agent, make_clerk

pytest.importorskip("mcp", reason="the extra lockstep-agents[mcp] is not installed")

ENTRY = """\
[[tools]]
effect = "once"
timeout_s = 20
{more}
[tools.mcp]
{server}
prefix = "air"
elicitation = "ask"
task_s = 60
"""
HERE = r"""
import json, os, sys, time
STATUS = {}
def send(frame): print(json.dumps({"jsonrpc": "2.0", **frame}), flush=True)
def ended(task):
    text = f"booked {task} in {os.getpid()} for " + STATUS[task]
    return {"status": "completed", "result": {"content": [{"type": "text", "text": text}]}}
for line in sys.stdin:
    asked = json.loads(line)
    method, params = asked["method"], asked.get("params", {})
    result = {}
    if method == "server/discover": result = {"supportedVersions": ["2026-07-28"]}
    if method == "tools/list":
        result = {"tools": [{"name": name, "inputSchema": {"type": "object"}} for name in ("book", "ask")]}
    if method == "tools/call":
        task = f"task-{len(STATUS) + 1}"
        STATUS[task] = "" if params["name"] == "ask" else "nobody"
        result = {"resultType": "task", "taskId": task, "status": "working", "pollIntervalMs": 1, "ttlMs": None}
    if method == "tasks/update":
        STATUS[params["taskId"]] = params["inputResponses"]["who"]["action"]
    if method == "tasks/get":
        task, form = params["taskId"], {"type": "object", "properties": {"name": {"type": "string"}}}
        if task not in STATUS:
            send({"id": asked["id"], "error": {"code": -32602, "message": "Task not found"}})
            continue
        asks = {"who": {"method": "elicitation/create", "params": {"message": "Who?", "requestedSchema": form}}}
        now = ended(task) if STATUS[task] else {"status": "input_required", "inputRequests": asks}
        result = {"resultType": "complete", "taskId": task, "ttlMs": None, **now}
    if "id" in asked: send({"id": asked["id"], "result": result})
"""


class Airline:
    """The server in a process of its own, and what it did."""

    def __init__(self, place: Path) -> None:
        self.place = place
        place.mkdir()
        arguments = [sys.executable, str(Path(__file__).with_name("task_server.py")), str(place)]
        self._process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        self.did: list[str] = []
        self.url = f"http://127.0.0.1:{self._next()}/mcp"

    def _next(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline().strip()
        assert line, "the server has ended"
        return line

    def until(self, line: str) -> None:
        """Wait until it does this."""
        while not self.did or self.did[-1] != line:
            self.did.append(self._next())

    def lets_it_happen(self) -> None:
        (self.place / "go").touch()

    def count(self, what: str) -> int:
        return sum(line.startswith(what) for line in self.did)

    def end(self) -> None:
        self._process.kill()
        assert self._process.stdout is not None
        self.did += self._process.stdout.read().split("\n")
        self._process.wait(10)


@pytest.fixture
def airline(tmp_path: Path) -> Iterator[Airline]:
    world = Airline(tmp_path / "airline")
    try:
        yield world
    finally:
        world.end()


def agent_of(tmp_path: Path, server: str, tool: str = "book", more: str = "", **files: str) -> Agent:
    script = [call(f"air__{tool}", flight="BA1"), {"say": f"${{air__{tool}}}"}]
    tools = ENTRY.format(server=server, more=more)
    return make_agent(tmp_path / "clerk", code="", tools=tools, script=script, files=files)


@contextlib.contextmanager
def running(agent: Agent) -> Iterator[subprocess.Popen[str]]:
    """`lockstep run`, which is killed with its children where it is still there at the end."""
    arguments = command("run", agent.directory, "Book it.", "--json", "--store", agent.store)
    pipe = subprocess.PIPE
    process = subprocess.Popen(
        arguments, env=environment(), stdout=pipe, stderr=pipe, text=True, start_new_session=True
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate(timeout=30)


def the_run(agent: Agent) -> str:
    (run,) = agent("runs", "--json").json["runs"]
    return str(run["run_id"])


def the_call(agent: Agent, run: str) -> Any:
    (one,) = agent("show", run, "--json").json["calls"]
    return one


def kill_while_its_task_runs(agent: Agent, airline: Airline) -> str:
    with running(agent) as process:
        airline.until("asked after task-1")
        process.kill()
        process.wait(30)
    return the_run(agent)


def test_a_process_that_dies_while_a_task_runs_costs_no_booking_and_makes_none_twice(
    tmp_path: Path, airline: Airline
) -> None:
    agent = agent_of(tmp_path, f'url = "{airline.url}"')
    run = kill_while_its_task_runs(agent, airline)
    airline.lets_it_happen()
    done = agent("resume", run)
    assert done.code == FINISHED, done.all
    booked = the_call(agent, run)
    assert (booked["outcome"], booked["result"]) == ("ok", "booked as task-1 for nobody")
    airline.end()
    assert (airline.count("called"), airline.count("booked")) == (1, 1)
    (action,) = agent("why", run, "--json").json["actions"]
    assert (action["task"], len(action["permits"]), action["doubt"]) == ("task-1", 1, None)
    assert "task-1" in agent("why", run, action["call"]).out
    assert "goes on as the task task-1" in agent("trace", run).out
    assert agent("verify", run).code == FINISHED


def test_it_may_die_again_and_again(tmp_path: Path, airline: Airline) -> None:
    agent = agent_of(tmp_path, f'url = "{airline.url}"')
    run = kill_while_its_task_runs(agent, airline)
    arguments = command("resume", run, "--store", agent.store)
    with subprocess.Popen(arguments, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        airline.did.clear()
        airline.until("asked after task-1")
        process.kill()
    airline.lets_it_happen()
    assert agent("resume", run).code == FINISHED
    airline.end()
    assert (airline.count("called"), airline.count("booked")) == (0, 1)


def test_what_a_task_asks_for_is_answered_by_another_process(tmp_path: Path, airline: Airline) -> None:
    airline.lets_it_happen()
    agent = agent_of(tmp_path, f'url = "{airline.url}"', "ask")
    begun = agent.run("Book it.")
    assert (begun.code, begun.json["stop_reason"]) == (SUSPENDED, "input"), begun.all
    (asked,) = agent("approvals", "--json").json["waiting"]
    done = agent("answer", asked["input"], "--field", "name=Ada", "--resume")
    assert done.code == FINISHED, done.all
    assert the_call(agent, begun.json["run_id"])["result"] == "booked as task-1 for Ada"
    airline.end()
    assert (airline.count("called"), airline.count("told"), airline.count("booked")) == (1, 1, 1)


def test_a_server_that_has_forgotten_it_leaves_it_in_doubt(tmp_path: Path, airline: Airline) -> None:
    agent = agent_of(tmp_path, f'url = "{airline.url}"')
    run = kill_while_its_task_runs(agent, airline)
    (airline.place / "forget").touch()
    done = agent("resume", run, "--json")
    assert (done.code, done.json["stop_reason"]) == (SUSPENDED, "in_doubt"), done.all
    (airline.place / "forget").unlink()
    airline.lets_it_happen()
    done = agent("resume", run, "--json")
    assert done.code == FINISHED, done.all
    airline.end()
    assert (airline.count("called"), airline.count("booked")) == (1, 1)


def test_a_stop_tells_the_server_and_leaves_the_call_in_doubt(tmp_path: Path, airline: Airline) -> None:
    agent = agent_of(tmp_path, f'url = "{airline.url}"')
    with running(agent) as process:
        airline.until("asked after task-1")
        assert agent("stop", "clerk").code == FINISHED
        airline.until("cancelled task-1")
        assert process.wait(60) == SUSPENDED
    run = the_run(agent)
    assert agent("start", "clerk").code == FINISHED
    done = agent("resume", run, "--json")
    assert (done.code, done.json["stop_reason"]) == (SUSPENDED, "in_doubt"), done.all
    assert "cancelled" in done.out
    done = agent("resume", run, "--did-not-happen")
    assert done.code == FINISHED, done.all
    airline.end()
    assert (airline.count("called"), airline.count("booked")) == (1, 0)


IN_SANDBOXES = pytest.mark.parametrize("lifetime", ["call", "run"])


@pytest.mark.sandbox
@pytest.mark.skipif(shutil.which("runsc") is None, reason="runsc is not installed (Debian package runsc)")
class TestInSandboxes:
    @IN_SANDBOXES
    def test_a_task_lives_as_long_as_its_sandbox(self, tmp_path: Path, lifetime: str) -> None:
        server = 'command = ["/usr/bin/python3", "server.py"]'
        more = f'code = ["server.py"]\nlifetime = "{lifetime}"'
        agent = agent_of(tmp_path, server, more=more, **{"server.py": HERE})
        done = agent.run("Book it.")
        assert done.code == FINISHED, done.all
        assert the_call(agent, done.json["run_id"])["result"].startswith("booked task-1 in ")

    def test_where_nobody_is_there_to_answer_it_is_told_so_at_once(self, tmp_path: Path) -> None:
        server = 'command = ["/usr/bin/python3", "server.py"]'
        agent = agent_of(tmp_path, server, "ask", 'code = ["server.py"]', **{"server.py": HERE})
        done = agent.run("Book it.")
        assert done.code == FINISHED, done.all
        assert the_call(agent, done.json["run_id"])["result"].endswith("for cancel")

    def test_a_sandbox_of_a_run_is_gone_with_its_process_and_so_is_the_task(self, tmp_path: Path) -> None:
        server = 'command = ["/usr/bin/python3", "server.py"]'
        more = 'code = ["server.py"]\nlifetime = "run"'
        agent = agent_of(tmp_path, server, "ask", more, **{"server.py": HERE})
        begun = agent.run("Book it.")
        assert (begun.code, begun.json["stop_reason"]) == (SUSPENDED, "input"), begun.all
        (asked,) = agent("approvals", "--json").json["waiting"]
        done = agent("answer", asked["input"], "--field", "name=Ada", "--resume")
        assert done.code == FINISHED, done.all
        lost = the_call(agent, begun.json["run_id"])
        assert (lost["outcome"], "does not know any more" in lost["result"]) == ("task_lost", True)


@contextlib.contextmanager
def served(agent: Agent) -> Iterator[str]:
    """The agent's gateway over HTTP, for this machine alone."""
    arguments = command("gateway", agent.directory, "--http", "0", "--open", "--as", "ada", "--store", agent.store)
    process = subprocess.Popen(arguments, env=environment(), stderr=subprocess.PIPE, text=True, start_new_session=True)
    try:
        assert process.stderr is not None
        yield process.stderr.readline().split()[-1]
    finally:
        process.terminate()
        process.communicate(timeout=60)


def eventually(look: Callable[[], Any]) -> Any:
    """What `look` finds, as soon as it finds something."""
    until = time.monotonic() + 60
    while time.monotonic() < until:
        if found := look():
            return found
        time.sleep(0.1)
    raise AssertionError("it never came")


def what_waits(agent: Agent) -> Any:
    (waiting,) = eventually(lambda: agent("approvals", "--json").json["waiting"])
    return waiting


def knows_its_task(agent: Agent) -> bool:
    """Whether the agent's record names the task; killed before that, its call is in doubt, and must be."""
    (action,) = agent("why", the_run(agent), "--json").json["actions"]
    return bool(action["task"])


@pytest.mark.sandbox
@pytest.mark.skipif(shutil.which("runsc") is None, reason="runsc is not installed (Debian package runsc)")
def test_our_host_asks_our_gateway_after_a_call_that_waits_for_a_person_and_may_die_meanwhile(tmp_path: Path) -> None:
    bank = make_clerk(tmp_path / "bank")
    with served(bank) as url:
        entry = f'[[tools]]\neffect = "once"\ninclude = ["pay"]\n[tools.mcp]\nurl = "{url}"\ntask_s = 60\n'
        script = [call("pay", to="bob", cents=5), {"say": "${pay}"}]
        agent = make_agent(tmp_path / "clerk", code="", tools=entry, script=script)
        with running(agent):
            waits = what_waits(bank)
            eventually(lambda: knows_its_task(agent))
        run = the_run(agent)  # it was killed while it asked
        assert bank("approve", waits["approval"], "--by", "grace").code == FINISHED
        done = agent("resume", run)
        assert done.code == FINISHED, done.all
        assert the_call(agent, run)["result"].startswith("5 cents to bob")
        assert len(bank("runs", "--json").json["runs"]) == 1
