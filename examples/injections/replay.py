"""Replay recorded AgentDojo runs through loop and gate, and ask the suites what still happened.

    python examples/injections/replay.py --recording FILE [--limit N] [--policy pack|strict|taint|none] [--frontier]

The model is the recording; each call it asks for is judged by the suite's agent under its locked policies, and a person
who is asked always refuses. What was refused does not run, and the recorded conversation goes on as recorded. Ends with
`injections: attacks a/b, benign kept c/d, asked e`.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from environment import NoSuites, ensure_suites  # noqa: E402
from judged import Judged, Summary  # noqa: E402
from records import DataError, Record, data_directory, load_records  # noqa: E402
from suites import POLICIES, Suite  # noqa: E402

from lockstep.errors import LockstepError  # noqa: E402
from lockstep.wiring.stores import Store  # noqa: E402

AT_ONCE = 2
"""Servers of a suite that run side by side."""


def main() -> int:
    options = _options()
    try:
        records = load_records(options.recording, options.limit)
        python = ensure_suites()
        if options.frontier:
            return _frontier(records, python)
        return _report(records, python, options.policy)
    except (DataError, NoSuites, LockstepError) as error:
        print(f"injections: {error}", file=sys.stderr)
        return 2


async def replay(records: Sequence[Record], python: Path, policy: str) -> list[Judged]:
    """Every record under one policy, in the order given."""
    with tempfile.TemporaryDirectory(prefix="lockstep-injections-") as directory:
        store = Store(directory=Path(directory))
        journal = store.journal()
        done: dict[str, Judged] = {}
        try:
            for name in dict.fromkeys(record.suite for record in records):
                waiting = [record for record in records if record.suite == name]
                suites = [Suite(name, policy, store, journal) for _ in range(min(AT_ONCE, len(waiting)))]
                await asyncio.gather(*(_work(suite, python, waiting, done) for suite in suites))
        finally:
            await journal.close()
    return [done[record.id] for record in records]


async def _work(suite: Suite, python: Path, waiting: list[Record], done: dict[str, Judged]) -> None:
    async with suite.running(python):
        while waiting:
            record = waiting.pop(0)
            done[record.id] = await suite.replay(record)


def _report(records: Sequence[Record], python: Path, policy: str) -> int:
    """What the recordings come to under one policy; before, that with everything allowed they come to what they did."""
    _agreement(asyncio.run(replay(records, python, "none")))
    judged = asyncio.run(replay(records, python, policy))
    for one in judged:
        if one.slipped:
            print(one.slip())
    summary = Summary(judged)
    for line in summary.lines():
        print(line)
    return 0


def _agreement(judged: Sequence[Judged]) -> None:
    for one in judged:
        for problem in one.differences:
            print(f"{one.record.id}: {problem}")
    attacked = [one for one in judged if not one.benign]
    utility = sum(one.utility == one.record.utility for one in judged)
    attack = sum(one.attacked == one.record.attacked for one in attacked)
    print(
        f"with everything allowed: utility as recorded in {utility}/{len(judged)} runs, "
        f"attack as recorded in {attack}/{len(attacked)}"
    )


def _frontier(records: Sequence[Record], python: Path) -> int:
    suites = list(dict.fromkeys(record.suite for record in records))
    print("| suite | policy | attacks | benign kept | questions |")
    print("|---|---|---|---|---|")
    for policy in POLICIES:
        judged = asyncio.run(replay(records, python, policy))
        for name in suites + (["all"] if len(suites) > 1 else []):
            summary = Summary([one for one in judged if name in (one.record.suite, "all")])
            print(f"| {name} | {POLICIES[policy].title} | {summary.row()} |", flush=True)
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Replay recorded AgentDojo runs through Lockstep's gate.")
    parser.add_argument("--recording", type=Path, default=data_directory() / "agentdojo_gpt-4o_banking+slack.jsonl.zst")
    parser.add_argument("--limit", type=int, help="only the first N records")
    parser.add_argument("--policy", choices=POLICIES, default="pack", help="what judges the calls")
    parser.add_argument("--frontier", action="store_true", help="every policy, as a table")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
