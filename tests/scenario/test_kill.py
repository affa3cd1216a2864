"""`kill -9` at every journal boundary of the travel run, then `lockstep resume`: never two bookings.

A boundary is an append. The process kills itself with SIGKILL on entering its n-th append (what was done before is not
recorded) or on leaving it (it is), with the real journal, the real sandboxes and the real service; then a fresh process
resumes.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from commandline import bounded

ROOT = Path(__file__).resolve().parents[2]
TRAVEL = ROOT / "examples/travel"
sys.path.insert(0, str(TRAVEL))

from travel_world.server import serve  # noqa: E402

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
    """The travel service with an empty database, and a locked agent that may reach it."""

    def __init__(self, directory: Path) -> None:
        self.service = serve(str(directory / "travel.db"), "127.0.0.1", 0)
        self.agent = directory / "travel"
        self.agent.mkdir()
        address = f"{self.service.host}:{self.service.port}"
        for name in FILES:
            text = (TRAVEL / name).read_text().replace("127.0.0.1:8931", address)
            if name == "agent.toml" and shutil.which(
                "bwrap"
            ):  # the walk is about the journal: the quicker tier will do
                text = text.replace('effect = "', 'isolation = "process"\neffect = "')
                text = text.replace("[policy]", '[policy]\nisolation = "process"')
            (self.agent / name).write_text(text)

    def lockstep(
        self, *arguments: str, prefix: tuple[str, ...] = ("-m", "lockstep")
    ) -> subprocess.CompletedProcess[str]:
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
        shown = json.loads(self.lockstep("show", "last", "--json").stdout)
        return [f"{shown['run_id']}/{call['id']}" for call in shown.get("calls", []) if call["outcome"] == "ok"]

    def requests_by_call(self) -> Counter[str]:
        return Counter(request["call"] for request in self.service.requests())


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    try:
        assert made.lockstep("lock", str(made.agent)).returncode == FINISHED
        yield made
    finally:
        made.service.close()


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
    assert world.lockstep("verify", "last").returncode == FINISHED


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
