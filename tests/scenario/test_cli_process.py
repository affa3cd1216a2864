"""What a command owes to its surroundings: errors a program can read, the model's address, what it leaves behind."""

from __future__ import annotations

import json
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from time import monotonic
from typing import Any

import pytest
from commandline import (
    BAD_INPUT,
    FINISHED,
    SANDBOX,
    SUSPENDED,
    Agent,
    call,
    command,
    environment,
    hear_interrupts,
    make_agent,
)

pytestmark = SANDBOX

INTERRUPTED = 130
CODE = '''\
import time

from lockstep import tool


@tool
def pay(to: str) -> str:
    """Pay someone."""
    return f"paid {to}"


@tool
def hang() -> str:
    """Never answer."""
    time.sleep(1000)
    return ""
'''
TOOLS = """\
[[tools]]
python = "tools.py"
include = ["pay"]

[[tools]]
python = "tools.py"
include = ["hang"]
effect = "read"
"""
POLICY = """\
permit (principal, action, resource);

@ask("Pay this?")
forbid (principal, action == Action::"pay", resource);
"""
PAY = {"index": 0, "id": "c1", "type": "function", "function": {"name": "pay", "arguments": '{"to": "bob"}'}}


@pytest.fixture(scope="module")
def clerk(tmp_path_factory: pytest.TempPathFactory) -> Agent:
    """A locked agent; nobody changes its directory."""
    directory = tmp_path_factory.mktemp("process") / "clerk"
    return make_agent(directory, code=CODE, tools=TOOLS, policy=POLICY, script=[call("hang"), {"say": "Done."}])


# Errors as JSON.


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("run", "nowhere", "hello"), "config"),
        (("runs",), "store"),
        (("show",), "store"),
        (("approvals",), "store"),
        (("resume",), "store"),
        (("verify",), "store"),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else value,
)
def test_an_error_is_the_one_object_on_stdout_and_a_sentence_on_stderr(
    clerk: Agent, tmp_path: Path, arguments: tuple[str, ...], code: str
) -> None:
    done = clerk.with_store(tmp_path / "none")(*arguments, "--json", cwd=tmp_path)
    assert done.code == BAD_INPUT
    error = done.json["error"]
    assert done.json == {"error": {"code": code, "message": error["message"], "remedy": error["remedy"]}}
    assert done.err == f"lockstep: {error['message']}\n  {error['remedy']}\n"


def test_without_json_an_error_leaves_stdout_empty(clerk: Agent, tmp_path: Path) -> None:
    done = clerk.with_store(tmp_path / "none")("runs")
    assert (done.code, done.out) == (BAD_INPUT, "")


# Processes that end in the middle of a call.


@pytest.fixture
def hanging(clerk: Agent, tmp_path: Path) -> Iterator[tuple[Agent, subprocess.Popen[str]]]:
    """A process whose tool is running in its sandbox."""
    agent = clerk.with_store(tmp_path / "store")
    arguments = command("run", agent.directory, "hang", "--json", "--store", agent.store)
    process = subprocess.Popen(
        arguments,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
        preexec_fn=hear_interrupts,
    )
    deadline = monotonic() + 60
    while not (agent("show", "--json").json.get("calls") and sandboxes(agent)):
        assert monotonic() < deadline, "the sandbox never began"
        assert process.poll() is None, process.communicate()
    yield agent, process
    process.kill()
    process.communicate(timeout=30)


def sandboxes(agent: Agent) -> list[Path]:
    """What the store holds of sandboxes that are not destroyed."""
    return list((agent.store / "sandboxes/sandboxes").glob("*.json"))


def test_ctrl_c_ends_a_command_with_one_object_and_no_sandbox(
    hanging: tuple[Agent, subprocess.Popen[str]],
) -> None:
    agent, process = hanging
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == INTERRUPTED
    assert json.loads(out)["error"]["code"] == "interrupted"
    assert "lockstep resume" in err
    assert "Traceback" not in err
    assert sandboxes(agent) == []
    assert agent("cancel", "last").code == FINISHED


def test_another_run_clears_away_what_a_killed_process_left(hanging: tuple[Agent, subprocess.Popen[str]]) -> None:
    agent, process = hanging
    process.kill()
    process.communicate(timeout=30)
    assert sandboxes(agent)
    assert agent.run("hello", script=[{"say": "Done."}]).code == FINISHED
    assert sandboxes(agent) == []


# The address of a model.


class Provider(ThreadingHTTPServer):
    """Speaks as much of OpenAI's chat completions as one payment needs."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        paid = asked["messages"][-1]["role"] == "tool"
        delta = {"content": asked["messages"][-1]["content"]} if paid else {"tool_calls": [PAY]}
        pieces = [_chunk(delta, None), _chunk({}, "stop" if paid else "tool_calls")]
        body = "".join(f"data: {json.dumps(piece)}\n\n" for piece in pieces) + "data: [DONE]\n\n"
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, format: str, *args: Any) -> None:
        return


def _chunk(delta: dict[str, Any], finish: str | None) -> dict[str, Any]:
    choices = [{"index": 0, "delta": delta, "finish_reason": finish}]
    return {"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": "gpt-4o", "choices": choices}


@pytest.fixture
def address() -> Iterator[str]:
    with Provider() as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        yield server.address
        server.shutdown()


@pytest.fixture
def asking(clerk: Agent, tmp_path: Path) -> Callable[[str], Agent]:
    """The clerk with a provider's model, locked with these settings."""

    def locked(settings: str) -> Agent:
        agent = make_agent(tmp_path / "clerk", code=CODE, tools=TOOLS, policy=POLICY, lock=False)
        agent.change("agent.toml", 'name = "scripted:script.jsonl"', f'name = "openai:gpt-4o"\n{settings}')
        assert agent("lock", agent.directory).code == FINISHED
        return agent

    return locked


def test_an_address_from_the_environment_makes_a_run_unlocked_and_is_named(
    asking: Callable[[str], Agent], address: str
) -> None:
    agent, env = asking(""), {"OPENAI_API_KEY": "k", "OPENAI_BASE_URL": address}
    done = agent("run", agent.directory, "pay bob", "--json", env=env)
    assert (done.code, done.json["unlocked"]) == (SUSPENDED, True), done.all
    assert f"unlocked: differs in model: address from the environment ({address}/)" in agent("show").out
    assert agent("approve", done.json["calls"][0]["approval"]).code == FINISHED

    for other in ({"OPENAI_API_KEY": "k"}, {**env, "OPENAI_BASE_URL": "http://127.0.0.1:9/v1"}):
        refused = agent("resume", "--json", env=other)
        assert (refused.code, refused.json["error"]["code"]) == (BAD_INPUT, "lock")
        assert "address from the environment" in refused.err
    done = agent("resume", "--json", env=env)
    assert (done.code, done.json["output"]) == (FINISHED, "paid bob"), done.all


def test_the_address_in_the_lock_stands_whatever_the_environment_says(
    asking: Callable[[str], Agent], address: str
) -> None:
    agent = asking(f'base_url = "{address}"')
    elsewhere = {"OPENAI_API_KEY": "k", "OPENAI_BASE_URL": "http://127.0.0.1:9/v1"}
    done = agent("run", agent.directory, "pay bob", "--json", "--approve", "all", env=elsewhere)
    assert (done.code, done.json["output"], done.json["unlocked"]) == (FINISHED, "paid bob", False), done.all
    assert "ResourceWarning" not in done.err
