"""The travel agent behind a real gateway, a model that says what a test has it say, and a framework that uses both."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
TRAVEL = ROOT / "examples/travel"
sys.path[:0] = [str(TRAVEL)]
sys.path += [str(ROOT / "tests/contract"), str(ROOT / "tests/scenario")]

from commandline import bounded, command, environment  # noqa: E402
from provider_server import Answer, Provider, Said, openai_plain, responses_plain  # noqa: E402
from travel_world.server import serve  # noqa: E402

OFFER = {"offer_id": "LON-NYC-2031-03-04-SK136", "passenger": "Sam Carter", "price_usd": 373.1}
SEARCH = ("search_flights", {"origin": "LON", "destination": "NYC", "date": "2031-03-04"})
BOOK = ("book_flight", OFFER)
DEAR = ("book_flight", {"offer_id": "LON-NYC-2031-03-04-NK787", "passenger": "Sam Carter", "price_usd": 513.4})
TOKEN = "lsg_adapters"
Call = tuple[str, Mapping[str, Any]]


class Model(Provider):
    """OpenAI's API, both of them; its answers are what the test wrote down beforehand."""

    def __init__(self) -> None:
        super().__init__()
        self.says: list[Call | str] = []

    def _answer(self, handler: Any) -> None:
        said, number = self.says.pop(0), len(self.requests)
        if isinstance(said, str):
            one = Said(text=said)
        else:
            one = Said(calls=[(f"call_{number}", said[0], json.dumps(said[1]))])
        wire = responses_plain if handler.path.endswith("/responses") else openai_plain
        self.answers.append(Answer(headers={"content-type": "application/json"}, body=wire(one)))
        super()._answer(handler)

    @property
    def heard(self) -> list[str]:
        """What it was told of its calls, in order."""
        last = self.requests[-1]
        said = []
        for item in last.get("messages") or last["input"]:
            if item.get("role") == "tool":
                said.append(_text(item["content"]))
            elif item.get("type") == "function_call_output":
                said.append(_text(item["output"]))
        return said


def _text(content: Any) -> str:
    if isinstance(content, str):
        return content
    return "\n".join(each.get("text", "") for each in content)


class World:
    """A directory in which a user would stand: `travel` lies in it, and `lockstep` is on the PATH."""

    def __init__(self, directory: Path, *, slow_s: float = 0.0, people: bool = True, late_s: int = 20) -> None:
        self.directory = directory
        self.service = serve(str(directory / "travel.db"), "127.0.0.1", 0, slow_bookings_s=slow_s)
        self.model = Model()
        self.agent = directory / "travel"
        shutil.copytree(TRAVEL, self.agent, ignore=shutil.ignore_patterns("travel_world", "service.py", ".lockstep"))
        toml = (self.agent / "agent.toml").read_text()
        toml = toml.replace("127.0.0.1:8931", f"{self.service.host}:{self.service.port}")
        (self.agent / "agent.toml").write_text(toml.replace("settles_after_s = 5", "settles_after_s = 1"))
        if not people:
            policy = self.agent / "policy.cedar"
            asks = policy.read_text().index('@id("bookings-need-a-person")')
            policy.write_text(policy.read_text()[:asks])
        self.lockstep("lock", "travel")

    @property
    def env(self) -> dict[str, str]:
        more = {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "OPENAI_API_KEY": "sk-none",
            "OPENAI_BASE_URL": f"{self.model.url}/v1",
            "LOCKSTEP_TOKEN": TOKEN,
            "LANGSMITH_TRACING": "false",
            "OPENAI_AGENTS_DISABLE_TRACING": "1",
        }
        return environment(more)

    def lockstep(self, *arguments: str) -> str:
        done = bounded(command(*arguments), cwd=self.directory, env=environment())
        assert done.returncode == 0, done.stderr
        return done.stdout

    @contextlib.contextmanager
    def gateway(self, *options: str) -> Iterator[str]:
        """The URL of a gateway over HTTP."""
        arguments = command("gateway", "travel", "--http", "0", "--as", "ada", *options)
        env = environment({"LOCKSTEP_GATEWAY_TOKEN": TOKEN})
        process = subprocess.Popen(arguments, cwd=self.directory, env=env, stderr=subprocess.PIPE, text=True)
        assert process.stderr is not None
        try:
            line = process.stderr.readline()
            assert " at http://" in line, line
            yield line.split(" at ")[1].strip()
        finally:
            process.terminate()
            assert process.wait(timeout=60) in (0, -signal.SIGKILL)
            process.stderr.close()

    def run(self, python: Path, script: str, *says: Call | str) -> subprocess.CompletedProcess[str]:
        """A script of the user's in a framework's environment, while the model says these things."""
        self.model.says = list(says)
        (self.directory / "script.py").write_text(script)
        return bounded([str(python), "script.py"], cwd=self.directory, env=self.env, timeout_s=150)

    def close(self) -> None:
        self.service.close()
        self.model.close()
