"""What the kill switch costs, and how soon it is felt.

`python bench/stops.py` prints the time of the gate's look at the stops beside a whole permit, in a store of some
thousand entries, and the time from the return of a stop to the record of the suspension, with a call in flight.
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests/unit"))

from inprocess import Functions, ListedModel, call, driver_of, gate_of, locked_agent, reply, started

from lockstep.journal.sqlite import SQLiteJournal
from lockstep.journal.stops import StopBook, require_running
from lockstep.kernel.apply import start
from lockstep.kernel.state import CallState, Phase
from lockstep.runtime.reading import UNSEEDED
from lockstep.tools.port import Outcome, PermittedCall
from lockstep.values import RunId, now_ms

LOOKS = 20_000
STOPS = 10


def percentiles(work: Callable[[], object], times: int = LOOKS) -> str:
    took = []
    for _ in range(times):
        began = time.perf_counter_ns()
        work()
        took.append((time.perf_counter_ns() - began) / 1000)
    took.sort()
    return f"p50 {took[times // 2]:.1f} µs, p99 {took[times * 99 // 100]:.1f} µs"


def print_looks(journal: SQLiteJournal) -> None:
    state = replace(start(RunId("r1"), UNSEEDED), session="s1", principal="ada")
    asked = CallState(id="1.0", provider_id="p", name="book", arguments='{"flight": "BA1"}', asked_at_ms=0)
    with_stops, without = gate_of(locked_agent(), journal), gate_of(locked_agent())
    allowed = replace(asked, phase=Phase.ALLOWED, digest=without.judge(state, asked).digest)
    print("one look:", percentiles(lambda: require_running(journal, "traveller")))
    print("a permit with it:", percentiles(lambda: with_stops.release(state, allowed, now_ms())))
    print("a permit without:", percentiles(lambda: without.release(state, allowed, now_ms())))


async def felt_ms(journal: SQLiteJournal, book: StopBook) -> float:
    """From a stop to the durable suspension of a run whose call never returns."""
    stopped_at = 0.0

    async def endless(asked: PermittedCall) -> Outcome:
        nonlocal stopped_at
        await asyncio.to_thread(book.stop, "traveller", by="bench", because="", at_ms=now_ms())
        stopped_at = time.perf_counter()
        await asyncio.Event().wait()
        raise AssertionError("never")

    driver = driver_of(journal, ListedModel(reply(call("send"))), Functions(send=endless))
    await driver.advance(await driver.start(started(session=f"s{time.perf_counter_ns()}")))
    took_ms = (time.perf_counter() - stopped_at) * 1000
    book.start("traveller", by="bench", because="", at_ms=now_ms())
    return took_ms


async def measure(directory: Path) -> None:
    journal, book = SQLiteJournal.open(directory), StopBook.open(directory)
    for number in range(1000):
        book.stop(f"agent-{number % 20}", by="bench", because="full", at_ms=number)
        book.start(f"agent-{number % 20}", by="bench", because="", at_ms=number)
    print_looks(journal)
    felt = [await felt_ms(journal, book) for _ in range(STOPS)]
    print(f"from stop to suspension: median {statistics.median(felt):.0f} ms, longest {max(felt):.0f} ms")
    book.close()
    await journal.close()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        asyncio.run(measure(Path(scratch)))
