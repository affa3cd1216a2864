"""`kill -9` at every journal boundary of the travel run, then `lockstep resume`: never two bookings.

A boundary is an append. The process kills itself with SIGKILL on entering its n-th append (what was done before is not
recorded) or on leaving it (it is), with the real journal, the real sandboxes and the real service; then a fresh process
resumes.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from commandline import Done, bounded, lockstep

ROOT = Path(__file__).resolve().parents[2]
TRAVEL = ROOT / "examples/travel"
sys.path.insert(0, str(TRAVEL))

from travel_world.server import TravelService, serve  # noqa: E402

pytestmark = [
    pytest.mark.sandbox,
    pytest.mark.skipif(shutil.which("runsc") is None, reason="runsc is not installed (Debian package runsc)"),
]

REQUEST = "Find me a flight from London to New York next Tuesday; under $500, book it and add it to my calendar."
FILES = ("agent.toml", "prompt.md", "policy.cedar", "script.jsonl", "tools.py")
KILLER = """
import os, signal, sys
from lockstep.journal.sqlite import SQLiteJournal
when, number = sys.argv.pop(1), int(sys.argv.pop(1))
append, count = SQLiteJournal.append, 0
async def killing(self, run, first_seq, entries):
    global count
    count += 1
    if count == number and when == "before":
        os.kill(os.getpid(), signal.SIGKILL)
    await append(self, run, first_seq, entries)
    if count == number and when == "after":
        os.kill(os.getpid(), signal.SIGKILL)
SQLiteJournal.append = killing
from lockstep.cli.main import main
main()
"""
FINISHED, BAD_INPUT, SUSPENDED = 0, 2, 3


class World:
    """The travel service with nothing booked yet, and a locked agent that may reach it."""

    def __init__(self, service: TravelService, agent: Path) -> None:
        self.service = service
        self.agent = agent

    def says(self, *arguments: str) -> Done:
        """A command that only looks, or locks."""
        return lockstep(*arguments, "--store", self.agent / ".lockstep")

    def lockstep(
        self, *arguments: str, prefix: tuple[str, ...] = ("-m", "lockstep")
    ) -> subprocess.CompletedProcess[str]:
        """One that drives a run: in a fresh process, as after a crash."""
        command = [sys.executable, *prefix, *arguments, "--store", str(self.agent / ".lockstep")]
        return bounded(command)

    def run_and_die(self, when: str, number: int) -> int:
        arguments = ("run", str(self.agent), REQUEST, "--approve", "all", "--json")
        return self.lockstep(*arguments, prefix=("-c", KILLER, when, str(number))).returncode

    def resume(self, *arguments: str) -> tuple[int, dict[str, Any]]:
        done = self.lockstep("resume", "last", "--json", *arguments)
        return done.returncode, json.loads(done.stdout) if done.stdout else {}

    def settled(self) -> list[str]:
        """`run/call` of every call whose outcome is in the journal."""
        shown = self.says("show", "last", "--json").json
        return [f"{shown['run_id']}/{call['id']}" for call in shown.get("calls", []) if call["outcome"] == "ok"]

    def requests_by_call(self) -> Counter[str]:
        return Counter(request["call"] for request in self.service.requests())


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Locked once for all: the address of the service is in the lock."""
    directory = tmp_path_factory.mktemp("kill")
    agent = directory / "travel"
    agent.mkdir()
    with serve(directory / "travel.db") as service:
        address = f"{service.host}:{service.port}"
        for name in FILES:
            text = (TRAVEL / name).read_text().replace("127.0.0.1:8931", address)
            text = text.replace("settles_after_s = 5", "settles_after_s = 1")  # this service answers at once
            if name == "agent.toml" and shutil.which(
                "bwrap"
            ):  # the walk is about the journal: the quicker tier will do
                text = text.replace('effect = "', 'isolation = "process"\neffect = "')
                text = text.replace("[policy]", '[policy]\nisolation = "process"')
            (agent / name).write_text(text)
        world = World(service, agent)
        assert world.says("lock", str(agent)).code == FINISHED
        yield world


@pytest.fixture
def world(locked: World, tmp_path: Path) -> World:
    """The same with a store of its own, and a service to which nothing has come."""
    database = sqlite3.connect(locked.agent.parent / "travel.db", timeout=30)
    with contextlib.closing(database), database:
        for table in ("bookings", "entries", "requests"):
            database.execute(f"DELETE FROM {table}")
    return World(locked.service, shutil.copytree(locked.agent, tmp_path / "travel", symlinks=True))


def appends_of_a_whole_run() -> int:
    """Counted once, so that the walk below covers every boundary there is and notices when there are more."""
    return 11


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("number", range(1, appends_of_a_whole_run() + 1))
def test_a_run_killed_at_a_journal_boundary_resumes_without_a_second_booking(
    world: World, when: str, number: int
) -> None:
    assert world.run_and_die(when, number) == -signal.SIGKILL
    before = world.requests_by_call()
    recorded = world.settled()

    code, shown = world.resume()

    bookings, entries = world.service.bookings(), world.service.entries()
    if (when, number) == ("before", 1):
        assert code == BAD_INPUT, "nothing was recorded, so there is no run to resume"
        assert (bookings, entries) == ([], [])
        return
    after = world.requests_by_call()
    assert all(after[call] == before[call] for call in recorded), "a call whose outcome was recorded ran again"
    assert len(bookings) <= 1
    assert len(entries) <= 1
    assert code == FINISHED, shown
    assert shown["stop_reason"] == "completed"
    # What its probe did not find did not happen: a script cannot react to that, and goes on without it.
    outcomes = {call["tool"]: call["outcome"] for call in shown["calls"]}
    booked, entered = outcomes["book_flight"], outcomes["add_calendar_entry"]
    assert {booked, entered} <= {"ok", "did_not_happen"}
    assert (len(bookings), len(entries)) == (booked == "ok", entered == "ok")
    assert world.says("verify", "last").code == FINISHED


def test_the_walk_above_covers_every_boundary(world: World) -> None:
    counted = world.run_and_die("after", appends_of_a_whole_run() + 1)
    assert counted == FINISHED, "the run has more appends than the walk: raise appends_of_a_whole_run"


def test_two_kills_in_one_run_still_make_one_booking(world: World) -> None:
    assert world.run_and_die("after", 5) == -signal.SIGKILL
    resume = ("resume", "last", "--json")
    again = world.lockstep(*resume, prefix=("-c", KILLER, "after", "2")).returncode
    assert again == -signal.SIGKILL
    code, _ = world.resume()
    assert code in (FINISHED, SUSPENDED)
    assert len(world.service.bookings()) <= 1


def test_no_sandbox_of_a_killed_process_survives_its_resumption(world: World) -> None:
    world.service.faults.slow_bookings_s = 15
    command = [sys.executable, "-m", "lockstep", "run", str(world.agent), REQUEST, "--approve", "all"]
    process = subprocess.Popen([*command, "--store", str(world.agent / ".lockstep")], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if "approved" in line:
                break
        _wait_for_a_booking(world)
        os.kill(process.pid, signal.SIGKILL)
    finally:
        process.wait(timeout=30)
        process.stdout.close()
    code, shown = world.resume()
    assert (code, shown["stop_reason"]) == (FINISHED, "completed")
    (booked,) = (call for call in shown["calls"] if call["tool"] == "book_flight")
    assert "find_bookings found it" in booked["result"], "the reply died with its sandbox; the probe knew"
    assert list((world.agent / ".lockstep" / "sandboxes").glob("sandboxes/*.json")) == []
    assert len(world.service.bookings()) == 1


def _wait_for_a_booking(world: World) -> None:
    """The service books before it answers slowly; asked through its own database, bounded."""
    from time import monotonic

    deadline = monotonic() + 30
    while not world.service.bookings():
        assert monotonic() < deadline, "the booking never reached the service"
