"""The travel agent behind a real gateway, a model that says what a test has it say, and a framework that uses both."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
TRAVEL = ROOT / "examples/travel"
sys.path[:0] = [str(TRAVEL), str(ROOT / "scripts")]
sys.path += [str(ROOT / "tests/contract"), str(ROOT / "tests/scenario")]

from commandline import bounded, command, environment  # noqa: E402
from provider_server import Answer, Provider, Said, openai_plain, responses_plain  # noqa: E402
from travel_world.server import TravelService, serve  # noqa: E402

TOKEN = "lsg_adapters"
RUN_S = 200
Call = tuple[str, Mapping[str, Any]]
Line = Call | str | Callable[[], None]
"""What a model says: a call, its answer, or first what a test does before it says the next."""


def book(offer: str, price_usd: float, passenger: str = "Sam Carter") -> Call:
    return "book_flight", {"offer_id": offer, "passenger": passenger, "price_usd": price_usd}


class Model(Provider):
    """OpenAI's API, the old one and the new one; its answers are what the test wrote down beforehand."""

    def __init__(self) -> None:
        super().__init__()
        self.says: list[Line] = []

    def reply(self, path: str) -> Answer:
        while callable(line := self.says.pop(0)):
            line()
        if isinstance(line, str):
            said = Said(text=line)
        else:
            said = Said(calls=[(f"call_{len(self.requests)}", line[0], json.dumps(line[1]))])
        wire = responses_plain if path.endswith("/responses") else openai_plain
        return Answer(headers={"content-type": "application/json"}, body=wire(said))

    @property
    def heard(self) -> list[str]:
        """What it was told of its calls in the last conversation, in order."""
        last = self.requests[-1]
        told = [
            item.get("content", item.get("output"))
            for item in last.get("messages") or last["input"]
            if item.get("role") == "tool" or item.get("type") == "function_call_output"
        ]
        return [text if isinstance(text, str) else "\n".join(part["text"] for part in text) for text in told]


class World:
    """A directory in which a user would stand: `travel` lies in it, locked, and `lockstep` is on the PATH."""

    def __init__(self, directory: Path, service: TravelService, model: Model) -> None:
        self.directory = directory
        self.service = service
        self.model = model

    @classmethod
    @contextmanager
    def open(cls, directory: Path, *, people: bool = True, probes: bool = True) -> Iterator[World]:
        with serve(str(directory / "travel.db")) as service:
            model = Model()
            try:
                _write(directory / "travel", service, people=people, probes=probes)
                world = cls(directory, service, model)
                world.lockstep("lock", "travel")
                yield world
            finally:
                model.close()

    def anew(self, *, slow_s: float = 0.0) -> World:
        """The same world before anything happened in it."""
        shutil.rmtree(self.directory / "travel/.lockstep", ignore_errors=True)
        with sqlite3.connect(self.directory / "travel.db", timeout=30) as database:
            database.execute("DELETE FROM bookings")
        self.service.faults.slow_bookings_s, self.service.faults.fail_bookings = slow_s, 0
        self.model.requests.clear()
        return self

    def lockstep(self, *arguments: str) -> str:
        done = bounded(command(*arguments), cwd=self.directory, env=environment())
        assert done.returncode == 0, done.stderr
        return done.stdout

    def runs(self) -> list[dict[str, Any]]:
        listed: list[dict[str, Any]] = json.loads(self.lockstep("runs", "--json", "--store", "travel/.lockstep"))[
            "runs"
        ]
        return listed

    def approve(self) -> None:
        """Let through the booking that the model was just told waits for a person, and see it made."""
        (approval,) = re.findall(r"Approval (\w+)", self.model.heard[-1])
        before, until = len(self.service.bookings()), time.monotonic() + RUN_S
        self.lockstep("approve", approval, "--by", "grace", "--store", "travel/.lockstep")
        while len(self.service.bookings()) == before:  # the gateway takes it from there
            assert time.monotonic() < until
            time.sleep(0.05)

    @contextmanager
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

    def run(self, python: Path, script: str, *says: Line, stdin: str = "") -> subprocess.CompletedProcess[str]:
        """A script of the user's in a framework's environment, while the model says these things."""
        self.model.says = list(says)
        (self.directory / "script.py").write_text(script)
        env = {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "OPENAI_API_KEY": "sk-none",
            "OPENAI_BASE_URL": f"{self.model.url}/v1",
            "LOCKSTEP_TOKEN": TOKEN,
            "OPENAI_AGENTS_DISABLE_TRACING": "1",
        }
        return bounded(
            [str(python), "script.py"], cwd=self.directory, env=environment(env), stdin=stdin, timeout_s=RUN_S
        )


def _write(agent: Path, service: TravelService, *, people: bool, probes: bool) -> None:
    shutil.copytree(TRAVEL, agent, ignore=shutil.ignore_patterns("travel_world", "service.py", ".lockstep"))
    written = agent / "agent.toml"
    toml = written.read_text().replace("127.0.0.1:8931", f"{service.host}:{service.port}")
    toml = toml.replace("settles_after_s = 5", "settles_after_s = 1")
    written.write_text(toml if probes else re.sub(r"^probe = .*\n", "", toml, flags=re.MULTILINE))
    if not people:
        policy = agent / "policy.cedar"
        text = re.sub(r'@id\("bookings-need-a-person"\).*?\);\n', "", policy.read_text(), flags=re.DOTALL)
        policy.write_text(text)
