"""The main job, start to end, offline: a traveller's request, real tools in real sandboxes, one approval, one booking.

Starts the travel service on a free loopback port, copies the travel agent to `.demo/travel` with that port in its
egress rules, locks it, runs it with the command line a user would type, answers the approval visibly, and reads the
outcome back from the service's database.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
TRAVEL = ROOT / "examples/travel"
DEMO = ROOT / ".demo"
AGENT = DEMO / "travel"
DATABASE = DEMO / "travel.db"
PORT_IN_FILES = "127.0.0.1:8931"
REQUEST = (
    "Find me a flight from London to New York next Tuesday, and if it's under $500, book it and add it to my calendar."
)
LIMIT_USD = 500
SUSPENDED = 3

sys.path.insert(0, str(TRAVEL))
from travel_world.server import serve  # noqa: E402
from travel_world.store import Store  # noqa: E402


class DemoFailed(Exception):
    """The demo did not end as it must; the text says where."""


def main() -> int:
    try:
        run_id, booking = demo()
    except DemoFailed as failure:
        print(f"demo failed: {failure}", file=sys.stderr)
        return 1
    store = os.path.relpath(AGENT / ".lockstep")
    print(f"\nLook at it:  .venv/bin/lockstep trace {run_id} --store {store}")
    print(f"             .venv/bin/lockstep show {run_id} --store {store}")
    print(f"             .venv/bin/lockstep verify {run_id} --store {store}\n")
    print(f"demo ok: 1 booking at ${booking['price_usd']:.2f}, 1 calendar entry, run {run_id}")
    return 0


def demo() -> tuple[str, dict[str, Any]]:
    """Run it; returns the run's id and the one booking found in the service's database.

    Raises:
        DemoFailed: a command failed, or the database does not hold exactly what it must.
    """
    shutil.rmtree(DEMO, ignore_errors=True)
    DEMO.mkdir()
    with serve(str(DATABASE), "127.0.0.1", 0) as service:
        say(f"The travel service answers on {service.url} (flights, bookings, calendar; its own SQLite file).")
        copy_agent(f"{service.host}:{service.port}")
        lockstep("lock", AGENT)
        say("The traveller asks. Nothing is booked without a person: the run stops at the approval.")
        lockstep("run", AGENT, REQUEST, "--as", "sam", expect=SUSPENDED)
        waiting = json.loads(lockstep("approvals", "--json", show=False))["waiting"]
        if len(waiting) != 1 or waiting[0]["tool"] != "book_flight":
            raise DemoFailed(f"expected one approval of book_flight to wait, found {waiting}")
        say("The demo is the person here and says yes, to exactly this call:")
        print(f"    {waiting[0]['tool']} {waiting[0]['arguments']}")
        lockstep("approve", waiting[0]["approval"], "--by", "demo")
        run_id = waiting[0]["run_id"]
        lockstep("resume", run_id)
        say("Where the time went:")
        lockstep("trace", run_id)
        lockstep("verify", run_id)
    return run_id, outcome()


def outcome() -> dict[str, Any]:
    """The one booking in the service's database, not in what the agent said."""
    store = Store(str(DATABASE))
    bookings, entries = store.bookings(), store.entries()
    if len(bookings) != 1 or len(entries) != 1:
        raise DemoFailed(f"the service holds {len(bookings)} bookings and {len(entries)} calendar entries, not 1 and 1")
    if not bookings[0]["price_usd"] < LIMIT_USD:
        raise DemoFailed(f"the booking costs ${bookings[0]['price_usd']}, which is not under ${LIMIT_USD}")
    return dict(bookings[0])


def copy_agent(address: str) -> None:
    """The travel agent with the service's real address in its egress rules; so it is locked anew."""
    AGENT.mkdir()
    for name in ("agent.toml", "prompt.md", "policy.cedar", "script.jsonl", "tools.py"):
        text = (TRAVEL / name).read_text(encoding="utf-8")
        (AGENT / name).write_text(text.replace(PORT_IN_FILES, address), encoding="utf-8")


def lockstep(*arguments: str | Path, expect: int = 0, show: bool = True) -> str:
    """Run one command as a user would, shown with its output; its standard output.

    Raises:
        DemoFailed: it ended otherwise than expected.
    """
    words = [os.path.relpath(word) if isinstance(word, Path) else word for word in arguments]
    if show:
        print(f"\n$ lockstep {shlex.join(words)}", flush=True)
    command = [sys.executable, "-m", "lockstep", *words]
    environment = {**os.environ, "LOCKSTEP_STORE": str(AGENT / ".lockstep")}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=False, timeout=300)
    if show:
        print(done.stdout, end="", flush=True)
    if done.returncode != expect:
        raise DemoFailed(f"`lockstep {words[0]}` ended with {done.returncode}, not {expect}")
    return done.stdout


def say(text: str) -> None:
    print(f"\n-- {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
