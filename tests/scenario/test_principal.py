"""Two processes, two sessions of one principal, the same call at the same moment: never two effects."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

from lockstep.journal.sqlite import SQLiteJournal

ROOT = Path(__file__).resolve().parents[2]
TRIES = 50

WORKER = """
import asyncio, os, sys
from dataclasses import replace
from pathlib import Path

from inprocess import BOOK, ListedModel, Functions, call, driver_of, locked_agent, ok, reply, started
from lockstep.agent.effect_spec import Repeats
from lockstep.journal.sqlite import SQLiteJournal

store, world, name, tries = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])
AGENT = locked_agent(replace(BOOK, repeats=Repeats(scope="principal")))

def book(asked):
    file = os.open(world, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(file, f"{asked.arguments['flight']} {name}\\n".encode())
    os.close(file)
    return ok("booked")

async def main():
    # Past the lock that keeps a store of SQLite's to one process: the order of appends alone must do.
    journal = SQLiteJournal(store, lock_fd=os.open(os.devnull, os.O_RDONLY))
    for number in range(tries):
        model = ListedModel(reply(call("book", {"flight": f"F{number}"}, f"{name}{number}")), reply())
        driver = driver_of(journal, model, Functions(book=book), AGENT)
        run = await driver.start(started(session=f"{name}{number}"))
        print("ready", flush=True)
        sys.stdin.readline()
        state = await driver.advance(run)
        print(state.all_calls[0].outcome or "joined", flush=True)
    await journal.close()

asyncio.run(main())
"""


def test_of_two_processes_that_ask_for_the_same_at_once_one_has_the_effect(tmp_path: Path) -> None:
    asyncio.run(SQLiteJournal.open(tmp_path / "store").close())
    world = tmp_path / "world"
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "tests/unit")}
    with ExitStack() as stack:
        workers = [
            stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-c", WORKER, tmp_path / "store", world, name, str(TRIES)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                    env=environment,
                )
            )
            for name in ("one", "two")
        ]
        for worker in workers:
            stack.callback(worker.kill)
        outcomes = [_at_once(workers) for _ in range(TRIES)]
        assert [worker.wait(60) for worker in workers] == [0, 0]
    effects = [line.split()[0] for line in world.read_text().splitlines()]
    assert sorted(effects) == sorted(f"F{number}" for number in range(TRIES))
    assert all("ok" in one for one in outcomes)


def _at_once(workers: list[subprocess.Popen[str]]) -> list[str]:
    """Let both go on when both are ready; what became of their calls."""
    for worker in workers:
        assert worker.stdout is not None
        assert worker.stdout.readline() == "ready\n"
    for worker in workers:
        assert worker.stdin is not None
        worker.stdin.write("\n")
        worker.stdin.flush()
    return [worker.stdout.readline().strip() for worker in workers if worker.stdout is not None]
