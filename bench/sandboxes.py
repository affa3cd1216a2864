"""Measure sandboxed calls: warm and cold, one at a time and many, beside bubblewrap and a plain subprocess; exit 1 when
a target is not met.

`python bench/sandboxes.py` takes about two minutes and prints a table with the machine's load. Every call goes through
the real driver, gate, journal (synchronous FULL) and tool host; the model is instant, the tool does nothing.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from statistics import median, quantiles

from lockstep.agent.lock import Lock, to_text
from lockstep.errors import SandboxUnavailable
from lockstep.journal import events as ev
from lockstep.kernel.state import State
from lockstep.model.port import AskedCall, OnText, Prompt, Reply, Settings
from lockstep.sandbox.contract import Backend
from lockstep.sandbox.egress import EgressProxy
from lockstep.sandbox.egress_rules import parse_rule
from lockstep.sandbox.pool import Pool
from lockstep.sandbox.warm import Room
from lockstep.tools.host import SandboxedTools
from lockstep.tools.starting import Guest
from lockstep.values import Tier
from lockstep.wiring import locking, running, stores

TARGETS = {
    "gvisor warm p50 ms_max": 5.0,
    "gvisor warm p99 ms_max": 25.0,
    "gvisor cold p50 ms_max": 300.0,
    "gvisor sustained calls/s_min": 10.0,
    "gvisor CPU s per sandbox_max": 0.12,
    "egress proxy adds ms_max": 2.0,
    "emulated clone p50 ms_max": 150.0,
}
AGENT = """
[agent]
name = "bench"
[model]
name = "bench:instant"
[prompt]
file = "prompt.md"
[[tools]]
python = "tools.py"
effect = "read"
isolation = "{isolation}"
egress = {egress}
[policy]
files = ["policy.cedar"]
isolation = "{isolation}"
[policy.degrade]
{degrade}
[budget]
steps = 100000
calls = 100000
[memory]
window_runs = 0
"""
TOOLS = '''
import time
import urllib.request
from lockstep import tool


@tool
def act(number: int) -> str:
    """Do nothing."""
    return str(number)


@tool
def ask(number: int, url: str) -> str:
    """Ask a service once, and once more; how long the second took, in milliseconds."""
    for _ in range(2):
        began = time.perf_counter()
        urllib.request.urlopen(f"{url}/{number}").read()
    return str((time.perf_counter() - began) * 1000)
'''
POLICY = "permit (principal, action, resource);"


class Paced:
    """A model that asks for one call after another, `per_s` of them a second, `calls` in all."""

    name = "bench:instant"

    def __init__(self, calls: int, per_s: float | None, ask: Callable[[int], tuple[str, dict[str, object]]]) -> None:
        self._calls = calls
        self._pause_s = 0.0 if per_s is None else 1 / per_s
        self._ask = ask

    async def reply(self, prompt: Prompt, settings: Settings, *, on_text: OnText | None = None) -> Reply:
        number = len(prompt.messages) // 2
        if number >= self._calls:
            return Reply(text="done", model="instant", provider="bench", cost_usd=Decimal(0))
        await asyncio.sleep(self._pause_s)
        name, arguments = self._ask(number)
        call = AskedCall(provider_id=f"c{number}", name=name, arguments=json.dumps(arguments))
        return Reply(text="", calls=(call,), model="instant", provider="bench", cost_usd=Decimal(0))


class Watch:
    """Notes how long each call took, from the model's reply to the next prompt, and what came of it."""

    def __init__(self) -> None:
        self.took_ms: list[float] = []
        self.settled: list[ev.EffectSettled] = []
        self._asked = 0.0

    def event(self, state: State, event: ev.Event) -> None:
        if isinstance(event, ev.ModelReplied):
            self._asked = time.perf_counter()
        elif isinstance(event, ev.EffectSettled):
            self.settled.append(event)
        elif isinstance(event, ev.ContextBuilt) and self._asked:
            self.took_ms.append((time.perf_counter() - self._asked) * 1000)

    def text(self, piece: str) -> None:
        return


@dataclass(kw_only=True)
class World:
    """An agent, a store and a tool host over one backend."""

    directory: Path
    store: stores.Store
    tools: SandboxedTools
    lock: Lock

    async def run(self, model: Paced, session: str) -> Watch:
        watch = Watch()
        journal = self.store.journal() if self._journal is None else self._journal
        self._journal = journal
        driver = running.open_driver(
            self.lock,
            directory=self.directory,
            journal=journal,
            tools=self.tools,
            code=self.store.code(),
            watcher=watch,
            model=model,
        )
        started = ev.RunStarted(
            agent="bench",
            lock=self.lock.digest,
            lock_text=to_text(self.lock),
            directory=str(self.directory),
            principal="bench",
            session=session,
            input="go",
        )
        state = await driver.advance(await driver.start(started))
        wrong = [event for event in watch.settled if event.outcome != "ok"]
        assert not wrong, wrong[:1]
        assert state.stop_reason == "completed", state.message
        return watch

    _journal = None

    async def close(self) -> None:
        await self.tools.close()
        if self._journal is not None:
            await self._journal.close()


async def world(directory: Path, tier: Tier, *, room: Room | None = None, egress: str = "") -> World:
    store = stores.Store(directory=directory / "store").make()
    backend = next(each for each in store.backends() if each.tier is tier)
    await available(backend)
    declared = Tier.MICROVM if tier is Tier.EMULATED else tier
    agent = directory / "agent"
    agent.mkdir(parents=True, exist_ok=True)
    (agent / "agent.toml").write_text(
        AGENT.format(
            isolation=declared.value,
            egress=json.dumps([egress] if egress else []),
            degrade='microvm = "emulated"' if tier is Tier.EMULATED else "",
        )
    )
    for name, text in {"tools.py": TOOLS, "policy.cedar": POLICY, "prompt.md": "Act."}.items():
        (agent / name).write_text(text)
    tools = SandboxedTools((backend,), store.code(), Guest(store.directory / "guest"), Pool(room))
    lock = await locking.resolve_agent(agent, tools, store.code())
    return World(directory=agent, store=store, tools=tools, lock=lock)


async def available(backend: Backend) -> None:
    seen = await backend.available()
    if not seen.available:
        raise SandboxUnavailable(f"{backend.tier.value}: {seen.details}", remedy=seen.remedy)


def act(number: int) -> tuple[str, dict[str, object]]:
    return "act", {"number": number}


def used_s() -> float:
    """CPU seconds of this process and of its children that have ended."""
    both = (resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN))
    return sum(each.ru_utime + each.ru_stime for each in both)


async def warm(directory: Path, tier: Tier, calls: int) -> dict[str, float]:
    """Calls at three a second, each finding a sandbox that waits."""
    there = await world(directory, tier)
    await there.run(Paced(4, None, act), "first")
    watch = await there.run(Paced(calls, 3.0, act), "paced")
    await there.close()
    share = sum(event.warm for event in watch.settled) / len(watch.settled)
    return {"p50 ms": median(watch.took_ms), "p99 ms": p99(watch.took_ms), "share warm": share}


async def cold(directory: Path, tier: Tier, calls: int) -> dict[str, float]:
    """Calls one after another, each starting its own."""
    there = await world(directory, tier, room=Room(running=1, idle=0, starting=1))
    before = used_s()
    watch = await there.run(Paced(calls, None, act), "cold")
    await there.close()
    return {"p50 ms": median(watch.took_ms), "p99 ms": p99(watch.took_ms), "CPU s": (used_s() - before) / calls}


async def sustained(directory: Path, tier: Tier, calls: int, at_once: int) -> dict[str, float]:
    """As many calls as go through, several runs at once."""
    there = await world(directory, tier)
    await asyncio.gather(*(there.run(Paced(2, None, act), f"first{n}") for n in range(at_once)))
    before, began = used_s(), time.perf_counter()
    each = calls // at_once
    await asyncio.gather(*(there.run(Paced(each, None, act), f"s{n}") for n in range(at_once)))
    took_s = time.perf_counter() - began
    await there.close()
    return {"calls/s": each * at_once / took_s, "CPU s": (used_s() - before) / (each * at_once)}


async def egress(directory: Path, tier: Tier, calls: int) -> dict[str, float]:
    """A request of a tool inside, with urllib and through the proxy; and what the proxy adds, see `proxied`."""
    with serving() as (server, url):
        rule = f"127.0.0.1:{server.server_port} GET /"
        there = await world(directory, tier, egress=rule)
        watch = await there.run(Paced(calls, None, lambda n: ("ask", {"number": n, "url": url})), "egress")
        await there.close()
        inside = median(float(event.text) for event in watch.settled)
        return {"inside ms": inside, **await proxied(directory / "e.sock", rule, server.server_port, 10 * calls)}


async def proxied(path: Path, rule: str, port: int, times: int) -> dict[str, float]:
    """The same request from the same client, in turn straight to the service and through a proxy of ours.

    Both connect anew and read to the end. The difference of the medians is what the proxy adds: a connection of its own
    to the service, checking the request, recording it. gVisor's and urllib's own time is in neither.
    """
    proxy = EgressProxy([parse_rule(rule)])
    await proxy.listen(path)
    direct: list[float] = []
    through: list[float] = []
    for number in range(times):
        proxy.admit({})
        host = f"127.0.0.1:{port}"
        direct.append(await asyncio.to_thread(exchange, ("127.0.0.1", port), f"/{number}", host))
        through.append(await asyncio.to_thread(exchange, str(path), f"http://{host}/{number}", host))
    await proxy.close()
    return {"direct ms": median(direct), "proxied ms": median(through), "adds ms": median(through) - median(direct)}


def exchange(address: str | tuple[str, int], target: str, host: str) -> float:
    """One request over a connection of its own, to a unix socket or to host and port; milliseconds."""
    began = time.perf_counter()
    with socket.socket(socket.AF_UNIX if isinstance(address, str) else socket.AF_INET) as client:
        client.connect(address)
        client.sendall(f"GET {target} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
        received = b""
        while piece := client.recv(4096):
            received += piece
    assert received.startswith(b"HTTP/1.1 200"), received
    return (time.perf_counter() - began) * 1000


class serving:
    """A service that says ok."""

    def __enter__(self) -> tuple[ThreadingHTTPServer, str]:
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _Ok)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self._server, f"http://127.0.0.1:{self._server.server_port}"

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Ok(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"ok")

    def log_message(self, *_: object) -> None:
        return


def plain_subprocess(calls: int) -> dict[str, float]:
    """The floor: a Python process per call, no isolation at all."""
    before, took = used_s(), []
    for number in range(calls):
        began = time.perf_counter()
        command = ["/usr/bin/python3", "-I", "-S", "-c", "import sys; print(sys.argv[1])", str(number)]
        subprocess.run(command, capture_output=True, check=True)
        took.append((time.perf_counter() - began) * 1000)
    return {"p50 ms": median(took), "p99 ms": p99(took), "CPU s": (used_s() - before) / calls}


def p99(values: list[float]) -> float:
    return quantiles(values, n=100, method="inclusive")[98] if len(values) > 1 else values[0]


async def measure(quick: bool) -> dict[str, dict[str, float] | str]:
    few = 10 if quick else 40
    found: dict[str, dict[str, float] | str] = {"plain subprocess": plain_subprocess(few)}
    cases: list[tuple[str, Callable[[Path], Awaitable[dict[str, float]]]]] = [
        ("gvisor warm, 3 calls/s", lambda d: warm(d, Tier.GVISOR, 30 if quick else 120)),
        ("gvisor cold", lambda d: cold(d, Tier.GVISOR, few)),
        ("gvisor sustained, 6 runs", lambda d: sustained(d, Tier.GVISOR, 60 if quick else 240, 6)),
        ("gvisor egress", lambda d: egress(d, Tier.GVISOR, few)),
        ("bubblewrap warm, 3 calls/s", lambda d: warm(d, Tier.PROCESS, 30)),
        ("bubblewrap cold", lambda d: cold(d, Tier.PROCESS, few)),
        ("microvm cold (clone)", lambda d: cold(d, Tier.MICROVM, few)),
        ("emulated cold (clone)", lambda d: cold(d, Tier.EMULATED, few)),
    ]
    for name, case in cases:
        print(f"measuring {name}", file=sys.stderr, flush=True)
        with tempfile.TemporaryDirectory(prefix="lockstep-bench-") as scratch:
            try:
                found[name] = await case(Path(scratch))
            except SandboxUnavailable as error:
                found[name] = f"not measured: {error}"
    return found


def checks(found: dict[str, dict[str, float] | str]) -> list[tuple[str, float, float | None]]:
    """Target, limit and figure; a figure that is missing does not meet its target."""

    def figure(case: str, name: str) -> float | None:
        values = found.get(case)
        return values.get(name) if isinstance(values, dict) else None

    places = {
        "gvisor warm p50 ms_max": ("gvisor warm, 3 calls/s", "p50 ms"),
        "gvisor warm p99 ms_max": ("gvisor warm, 3 calls/s", "p99 ms"),
        "gvisor cold p50 ms_max": ("gvisor cold", "p50 ms"),
        "gvisor sustained calls/s_min": ("gvisor sustained, 6 runs", "calls/s"),
        "gvisor CPU s per sandbox_max": ("gvisor sustained, 6 runs", "CPU s"),
        "egress proxy adds ms_max": ("gvisor egress", "adds ms"),
        "emulated clone p50 ms_max": ("emulated cold (clone)", "p50 ms"),
    }
    return [(name, limit, figure(*places[name])) for name, limit in TARGETS.items()]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer calls")
    load = os.getloadavg()[0]
    found = asyncio.run(measure(parser.parse_args().quick))
    print(f"{os.cpu_count()} processors, load before {load:.2f}, after {os.getloadavg()[0]:.2f}\n")
    for name, values in found.items():
        said = values if isinstance(values, str) else ", ".join(f"{key} {value:.3g}" for key, value in values.items())
        print(f"  {name:28} {said}")
    missed = 0
    print()
    for name, limit, figure in checks(found):
        met = figure is not None and (figure >= limit if name.endswith("_min") else figure <= limit)
        missed += not met
        shown = "not measured" if figure is None else f"{figure:.3g}"
        print(f"  {'met   ' if met else 'MISSED'} {name.rpartition('_')[0]}: {shown}, target {limit:g}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
