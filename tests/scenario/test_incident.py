"""The incident: a slow booking tool, a model that asks again in other words. One booking, whatever dies in between.

The real command line, sandboxes and travel service. `LOCKSTEP_KILLS=200` makes the walk of random kills as long as one
likes; the default is short.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from commandline import FINISHED, SUSPENDED

ROOT = Path(__file__).resolve().parents[2]
TRAVEL = ROOT / "examples/travel"
sys.path.insert(0, str(TRAVEL))

from travel_world.server import serve  # noqa: E402

pytestmark = pytest.mark.sandbox
NEEDS_GVISOR = pytest.mark.skipif(shutil.which("runsc") is None, reason="runsc is not installed (Debian package runsc)")
NEEDS_BUBBLEWRAP = pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is not installed")
KILLS = int(os.environ.get("LOCKSTEP_KILLS", "8"))
REQUEST = "Find me a flight from London to New York next Tuesday; under $500, book it and add it to my calendar."
OFFER = "${search_flights.offers[0].offer_id}"
PRICE = "${search_flights.offers[0].price_usd}"
BOOK = {"offer_id": OFFER, "passenger": "Sam Carter", "price_usd": PRICE}
AGAIN = {"offer_id": OFFER, "passenger": " sam  CARTER", "price_usd": PRICE}
ENTRY = {
    "title": "Flight to New York",
    "starts_at": "${search_flights.offers[0].departs_at}",
    "ends_at": "${search_flights.offers[0].arrives_at}",
}


def asks(name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    return {"call": {"name": name, "arguments": arguments}}


SCRIPT: list[dict[str, Any]] = [
    {"script": 1, "per": "run"},
    asks("current_date", {}),
    asks("search_flights", {"origin": "LON", "destination": "NYC", "date": "${current_date.next.tuesday}"}),
    asks("book_flight", BOOK),
    {"say": "That took long; booking again to be sure.", **asks("book_flight", AGAIN)},
    asks("add_calendar_entry", ENTRY),
    {"say": "Booked."},
]


class World:
    """The travel service with an empty database, and the travel agent with the incident's script."""

    def __init__(self, directory: Path, *, timeout_s: int = 2, late_s: int = 20, tier: str = "gvisor") -> None:
        self.service = serve(str(directory / "travel.db"), "127.0.0.1", 0)
        self.agent = directory / "travel"
        shutil.copytree(TRAVEL, self.agent, ignore=shutil.ignore_patterns("travel_world", "service.py", ".lockstep"))
        toml = (self.agent / "agent.toml").read_text()
        toml = toml.replace("127.0.0.1:8931", f"{self.service.host}:{self.service.port}")
        toml = toml.replace("settles_after_s = 5", "settles_after_s = 1")
        before, marker, after = toml.partition('include = ["book_flight"]')
        after = after.replace("timeout_s = 25", f"timeout_s = {timeout_s}\nlate_s = {late_s}", 1)
        toml = before + marker + after
        if tier == "process":
            toml = toml.replace('effect = "', 'isolation = "process"\neffect = "')
            toml = toml.replace("[policy]", '[policy]\nisolation = "process"')
        (self.agent / "agent.toml").write_text(toml)
        (self.agent / "script.jsonl").write_text("".join(json.dumps(line) + "\n" for line in SCRIPT))
        assert self.lockstep("lock", str(self.agent)).returncode == FINISHED

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "lockstep", *arguments, "--store", str(self.agent / ".lockstep")]

    def lockstep(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*arguments),
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
            stdin=subprocess.DEVNULL,
        )

    def run(self, *more: str) -> tuple[int, dict[str, Any]]:
        done = self.lockstep("run", str(self.agent), REQUEST, "--approve", "all", "--json", *more)
        return done.returncode, json.loads(done.stdout)

    def show(self, *arguments: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.lockstep(*arguments, "--json").stdout)
        return found

    def events(self) -> list[str]:
        done = self.lockstep("show", "last", "--events", "--json")
        return [json.loads(line)["type"] for line in done.stdout.splitlines()] if done.returncode == FINISHED else []


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path


def test_a_slow_booking_that_is_asked_for_again_is_one_booking_joined_in_the_trace(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.service.faults.slow_bookings_s = 4  # past the deadline of 2 s, within what is waited for a late result
    try:
        code, shown = world.run()
        assert (code, shown["stop_reason"]) == (FINISHED, "completed"), shown
        assert len(world.service.bookings()) == 1
        assert len(world.service.entries()) == 1
        first, second = (call for call in shown["calls"] if call["tool"] == "book_flight")
        assert second["result"].startswith(first["result"])
        assert f"already made ({shown['run_id']}/{first['id']})" in second["result"]
        trace = world.lockstep("trace", "last").stdout
        assert "settled by its late result" in " ".join(trace.split())
        assert f"joined to {shown['run_id']}/{first['id']}" in " ".join(trace.split())
    finally:
        world.service.close()


def test_a_booking_answered_after_everybody_stopped_waiting_is_found_by_its_probe(tmp_path: Path) -> None:
    world = World(tmp_path, timeout_s=1, late_s=1)
    world.service.faults.slow_bookings_s = 8
    try:
        code, shown = world.run()
        assert (code, shown["stop_reason"]) == (FINISHED, "completed"), shown
        assert len(world.service.bookings()) == 1
        first, second = (call for call in shown["calls"] if call["tool"] == "book_flight")
        assert "find_bookings found it" in first["result"]
        assert "already made" in second["result"]
    finally:
        world.service.close()
