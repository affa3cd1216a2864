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
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from commandline import BAD_INPUT, FINISHED, SUSPENDED, bounded

ROOT = Path(__file__).resolve().parents[2]
TRAVEL = ROOT / "examples/travel"
sys.path.insert(0, str(TRAVEL))

from travel_world.server import serve  # noqa: E402

pytestmark = pytest.mark.sandbox
NEEDS_GVISOR = pytest.mark.skipif(shutil.which("runsc") is None, reason="runsc is not installed (Debian package runsc)")
NEEDS_BUBBLEWRAP = pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is not installed")
KILLS = int(os.environ.get("LOCKSTEP_KILLS", "5"))
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
        self.database = directory / "travel.db"
        self.service = serve(str(self.database), "127.0.0.1", 0)
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
        return bounded(self.command(*arguments))

    def run(self, *more: str) -> tuple[int, dict[str, Any]]:
        done = self.lockstep("run", str(self.agent), REQUEST, "--approve", "all", "--json", *more)
        return done.returncode, json.loads(done.stdout)

    def killed_after(self, delay_s: float, *arguments: str) -> bool:
        """Run a command and kill it after so long; whether it was still running."""
        quiet = subprocess.DEVNULL
        with subprocess.Popen(self.command(*arguments), stdin=quiet, stdout=quiet, stderr=quiet) as process:
            try:
                process.wait(delay_s)
            except subprocess.TimeoutExpired:
                os.kill(process.pid, signal.SIGKILL)
                return True
        return False

    def session_began(self, session: str) -> bool:
        listed = json.loads(self.lockstep("runs", "--json").stdout or "{}")
        return any(row["session"] == session for row in listed.get("runs", []))

    def doubts(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(self.lockstep("doubts", "--json").stdout)["doubts"]
        return found

    def forget(self) -> None:
        """Empty the world, not the record."""
        with sqlite3.connect(self.database, timeout=30) as database:
            database.execute("DELETE FROM bookings")
            database.execute("DELETE FROM entries")


@NEEDS_GVISOR
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


@NEEDS_GVISOR
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


@NEEDS_BUBBLEWRAP
def test_random_kills_make_no_second_booking_and_lose_none(tmp_path: Path) -> None:
    seed = int(os.environ.get("LOCKSTEP_SEED", "1"))
    chance = random.Random(seed)
    world = World(tmp_path, timeout_s=1, late_s=1, tier="process")
    killed = 0
    try:
        for number in range(KILLS):
            world.forget()
            world.service.faults.slow_bookings_s = chance.choice([0.0, 0.3, 1.5, 4.0])
            run = ("run", str(world.agent), REQUEST, "--approve", "all", "--session", f"s{number}")
            killed += world.killed_after(chance.uniform(0.4, 6.0), *run)
            if chance.random() < 0.5 and world.session_began(f"s{number}"):
                killed += world.killed_after(chance.uniform(0.4, 4.0), "resume", "last")
            what = f"seed {seed}, kill {number}"
            if world.session_began(f"s{number}"):
                _goes_on_to_the_truth(world, what)
            else:
                assert world.service.bookings() == [], what
    finally:
        world.service.close()
    assert killed >= KILLS // 4, "most commands ended before they were killed: nothing was tried"


def _goes_on_to_the_truth(world: World, what: str) -> None:
    """Resume until the run has ended, settling doubts as a person would who looks; the record then agrees with the
    world."""
    records = {"book_flight": world.service.bookings, "add_calendar_entry": world.service.entries}
    for _ in range(6):
        done = world.lockstep("resume", "last", "--json")
        assert len(world.service.bookings()) <= 1, what
        assert len(world.service.entries()) <= 1, what
        if done.returncode != SUSPENDED:
            break
        for doubt in world.doubts():
            found = records[doubt["tool"]]()
            answer = ["--happened", "--result", json.dumps(found[0])] if found else ["--did-not"]
            settled = world.lockstep("settle", f"{doubt['run_id']}/{doubt['call']}", *answer)
            assert settled.returncode == FINISHED, settled.stderr
    shown = json.loads(done.stdout)
    assert done.returncode in (FINISHED, BAD_INPUT), (what, shown)
    for tool, of_world in records.items():
        made = [call for call in shown["calls"] if call["tool"] == tool and call["outcome"] == "ok"]
        assert bool(made) == bool(of_world()), (what, shown)
    assert world.doubts() == [], what
    assert world.lockstep("verify", "last").returncode == FINISHED, what
