"""A gateway that dies, is stopped, loses its sandboxes and has no space left, at moments drawn by chance, while clients
try again whatever happens to them. The service keeps its own ledger: whatever was done, every booking is in it once,
and what anybody was told agrees with it. `LOCKSTEP_EPISODES=50` tries that many histories.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from commandline import FINISHED, SANDBOX, SUSPENDED, Agent, command, environment, make_agent

pytestmark = SANDBOX

EPISODES = int(os.environ.get("LOCKSTEP_EPISODES", "3"))
FATES = ("kill", "kill group", "kill sandbox", "stop", "no space", "no space")
BEHAVIOURS = ("plain", "slow", "drops the connection", "late", "fails")
TIER = "process" if shutil.which("bwrap") else "gvisor"
META = "io.modelcontextprotocol/"
TOOLS = f"""\
[[tools]]
python = "tools.py"
include = ["book"]
effect = "once"
dedupe_on = ["/flight"]
isolation = "{TIER}"
egress = ["ADDRESS POST /bookings"]
env = {{ SERVICE = "http://ADDRESS" }}
timeout_s = 10
"""
CODE = '''\
import os
from urllib.request import Request, urlopen
from lockstep import tool


@tool
def book(flight: str, seat: str = "") -> str:
    """Book a flight."""
    request = Request(os.environ["SERVICE"] + "/bookings", data=flight.encode(), method="POST")
    with urlopen(request, timeout=8) as reply:
        return reply.read().decode()
'''


class Service(ThreadingHTTPServer):
    """Books whatever it is asked to, every time, and then behaves as the flight's name says."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.ledger: list[tuple[str, str]] = []
        """Flight, and the run that asked."""
        self.came = threading.Semaphore(0)
        self.busy = 0

    def quiet(self) -> None:
        until = time.monotonic() + 30
        while self.busy:
            assert time.monotonic() < until
            time.sleep(0.02)

    def booked(self, flight: str) -> int:
        return [each for each, _ in self.ledger].count(flight)


class _Handler(BaseHTTPRequestHandler):
    server: Service

    def do_POST(self) -> None:
        flight = self.rfile.read(int(self.headers["Content-Length"])).decode()
        behaviour = flight.partition(":")[2]
        self.server.busy += 1
        self.server.came.release()
        try:
            if behaviour == "late":
                time.sleep(0.5)
            self.server.ledger.append((flight, self.headers["Lockstep-Run"]))
            if behaviour == "drops the connection":
                return
            if behaviour == "slow":
                time.sleep(0.5)
            with contextlib.suppress(OSError):
                self.send_response(500 if behaviour == "fails" else 201)
                self.send_header("Content-Length", "6")
                self.end_headers()
                self.wfile.write(b"booked")
        finally:
            self.server.busy -= 1

    def log_message(self, format: str, *args: Any) -> None:
        return


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    with Service() as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture(scope="module")
def booker(tmp_path_factory: pytest.TempPathFactory, service: Service) -> Agent:
    tools = TOOLS.replace("ADDRESS", f"127.0.0.1:{service.server_port}")
    agent = make_agent(tmp_path_factory.mktemp("agents") / "booker", code=CODE, tools=tools, lock=False)
    agent.change("agent.toml", "[policy]", f'[policy]\nisolation = "{TIER}"')
    assert agent("lock", agent.directory).code == FINISHED
    return agent


@dataclass(kw_only=True)
class Gateway:
    """One gateway after another over one store."""

    agent: Agent
    process: subprocess.Popen[str] | None = None
    port: int = 0

    def start(self) -> None:
        arguments = ("gateway", self.agent.directory, "--http", str(self.port), "--open", "--as", "ada")
        self.process = subprocess.Popen(
            command(*arguments, "--store", self.agent.store),
            env=environment(),
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert self.process.stderr is not None
        line = self.process.stderr.readline()
        assert " at http://" in line, line + self.process.stderr.read()
        self.port = int(line.rpartition(":")[2].partition("/")[0])

    def end(self, told: signal.Signals = signal.SIGTERM, *, group: bool = False) -> None:
        assert self.process is not None
        (os.killpg if group else os.kill)(self.process.pid, told)
        _, err = self.process.communicate(timeout=60)
        assert self.process.returncode in (0, -signal.SIGKILL), err
        assert "Traceback" not in err
        assert "internal error" not in err

    def suffer(self, fate: str, chance: random.Random) -> None:
        assert self.process is not None
        match fate:
            case "kill sandbox":
                for pid in _sandboxed(self.process.pid):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
            case "no space":
                limits = resource.prlimit(self.process.pid, resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
                time.sleep(chance.uniform(0.5, 1.5))
                resource.prlimit(self.process.pid, resource.RLIMIT_FSIZE, limits)
            case _:
                self.end(signal.SIGTERM if fate == "stop" else signal.SIGKILL, group=fate == "kill group")
                self.start()


def _sandboxed(parent: int) -> list[int]:
    """The children of a process."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError, IndexError):
            if int((entry / "stat").read_text().rpartition(")")[2].split()[1]) == parent:
                found.append(int(entry.name))
    return found


@dataclass(kw_only=True)
class Client:
    """As frameworks are: any failure is a reason to try again, over a new connection."""

    gateway: Gateway
    service: Service
    flight: str
    patience: random.Random
    wrong: list[str] = field(default_factory=list)
    done: bool = False

    def pursue(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while not self.done and time.monotonic() < until:
            with contextlib.suppress(OSError, http.client.HTTPException, ValueError):
                self.try_once()
            time.sleep(0.1)

    def try_once(self) -> None:
        before = self.service.booked(self.flight)
        result = self._ask()
        text = json.dumps(result)
        if "result" not in result:
            return
        if not result["result"]["isError"]:
            self.done = True
            if not self.service.booked(self.flight):
                self.wrong.append(f"told that {self.flight} was booked: {text}")
        elif before and not ("obody knows" in text or "not known yet" in text):
            self.wrong.append(f"not told that {self.flight} may be booked: {text}")

    def _ask(self) -> dict[str, Any]:
        connection = http.client.HTTPConnection(
            "127.0.0.1", self.gateway.port, timeout=self.patience.choice([1, 3, 10])
        )
        meta = {
            META + "protocolVersion": "2026-07-28",
            META + "clientInfo": {"name": "raw", "version": "1"},
            META + "clientCapabilities": {},
        }
        # A model that tries again does not say all of it in the same words.
        arguments = {"flight": self.flight} | self.patience.choice([{}, {"seat": "3A"}])
        params = {"name": "book", "arguments": arguments, "_meta": meta}
        headers = {
            "Content-Type": "application/json",
            "Accept": "application/json, text/event-stream",
            "MCP-Protocol-Version": "2026-07-28",
            "Mcp-Method": "tools/call",
            "Mcp-Name": "book",
        }
        with contextlib.closing(connection):
            body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params})
            connection.request("POST", "/mcp", body, headers)
            said = connection.getresponse().read().decode()
        frames = [line[5:] for line in said.splitlines() if line.startswith("data:")] or [said]
        found: dict[str, Any] = json.loads(frames[-1])
        return found


@pytest.mark.parametrize("seed", range(EPISODES))
def test_whatever_befalls_a_gateway_nothing_is_booked_twice_and_nobody_is_told_otherwise(
    booker: Agent, service: Service, tmp_path: Path, seed: int
) -> None:
    chance = random.Random(seed)
    agent = booker.with_store(tmp_path / "store")
    gateway = Gateway(agent=agent)
    flights = [f"BA{seed}.{number}:{chance.choice(BEHAVIOURS)}" for number in range(2)]
    clients = [
        Client(gateway=gateway, service=service, flight=flight, patience=random.Random(f"{seed}{place}"))
        for place, flight in enumerate([*flights, flights[0]])
    ]
    gateway.start()
    pursuing = [threading.Thread(target=client.pursue, args=(6.0,)) for client in clients]
    for each in pursuing:
        each.start()
    for fate in chance.choices(FATES, k=2):
        service.came.acquire(timeout=3)
        time.sleep(chance.choice([0.0, 0.02, 0.2]))
        gateway.suffer(fate, chance)
    for each in pursuing:
        each.join(60)
    gateway.end()
    service.quiet()
    _settle(agent, service)
    _hold(agent, service, flights)
    assert [wrong for client in clients for wrong in client.wrong] == []


def _settle(agent: Agent, service: Service) -> None:
    """What people do about it: say of every doubt what became of it. Then every run ends."""
    for _ in range(2):
        for run in agent("runs", "--json").json["runs"]:
            if run["status"] != "finished":
                assert agent("resume", run["run_id"]).code in (FINISHED, SUSPENDED)
        for doubt in agent("doubts", "--json").json["doubts"]:
            flight = json.loads(doubt["arguments"])["flight"]
            happened = "--happened" if service.booked(flight) else "--did-not"
            assert agent("settle", f"{doubt['run_id']}/{doubt['call']}", happened).code == FINISHED


def _hold(agent: Agent, service: Service, flights: list[str]) -> None:
    for run in agent("runs", "--json").json["runs"]:
        assert run["status"] == "finished", run
        assert agent("verify", run["run_id"]).code == FINISHED
        (call,) = agent("show", run["run_id"], "--json").json["calls"]
        by_it = [flight for flight, asked in service.ledger if asked == run["run_id"]]
        assert not by_it or call["outcome"] == "ok", call
    assert all(service.booked(flight) <= 1 for flight in flights), service.ledger
    assert list((agent.store / "sandboxes").glob("sandboxes/*.json")) == []
