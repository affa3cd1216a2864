"""Measure repeats in recorded conversations: those caught, legitimate writes let through, re-emissions served.

    python examples/duplicates/measure.py [--recording FILE]... [--limit N]

Every conversation (tau1 or tau2 format) is a session of several runs, one for each user message, through the real
driver, gate and journal; the model says and the tools answer what was recorded, in this process. What is a repeat is
what the data's labels say; what the gate takes for one is what the agent's `agent.toml` declares. Lists what was
missed, wrongly refused or not served, and ends with
`duplicates: caught a/b, legitimate writes refused c/d, re-emissions served e/f`.
"""

from __future__ import annotations

import argparse
import asyncio
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "airline")]

from agents import DECLARATIONS, agent_of  # noqa: E402
from conversation import Recover, Replayed, replay  # noqa: E402
from data import DataError, Recording, data_directory, load_recordings  # noqa: E402
from verdicts import Verdicts, verdicts  # noqa: E402

from lockstep.agent.locked import LockedAgent  # noqa: E402
from lockstep.errors import LockstepError  # noqa: E402
from lockstep.journal.sqlite import SQLiteJournal  # noqa: E402

RECORDINGS = (
    "tau1_airline_gpt-4o.jsonl.zst",
    "tau1_retail_grok-3_injected-503.jsonl.zst",
    "tau2_airline_gpt-oss-120b+gemini-whissle.jsonl.zst",
)
AT_ONCE = 8


def main() -> int:
    options = _options()
    files = options.recording or [data_directory() / name for name in RECORDINGS]
    try:
        recordings = [each for file in files for each in load_recordings(file, options.limit)]
        found = asyncio.run(measure(recordings))
    except (DataError, LockstepError) as error:
        print(f"duplicates: {error}", file=sys.stderr)
        return 2
    for line in found.lines:
        print(line)
    print(f"{len(recordings)} conversations, {found.calls} calls; tools and model as recorded, in this process")
    print(found.summary)
    return 0 if found.perfect else 1


async def measure(recordings: Sequence[Recording]) -> Verdicts:
    """What became of the repeats of these conversations.

    Raises:
        DataError: one is of a domain for which nothing is declared.
    """
    return verdicts([(one, agent_for(one.recording)) for one in await replay_all(recordings)])


async def replay_all(recordings: Sequence[Recording], recover: Recover | None = None) -> list[Replayed]:
    """Drive all of them again, a few at a time, in one store."""
    directory = Path(tempfile.mkdtemp(prefix="lockstep-duplicates-"))
    try:
        journal = SQLiteJournal.open(directory)
        places = asyncio.Semaphore(AT_ONCE)

        async def one(number: int, recording: Recording) -> Replayed:
            async with places:
                return await replay(f"conversation-{number}", recording, agent_for(recording), journal, recover)

        try:
            return list(await asyncio.gather(*(one(n, each) for n, each in enumerate(recordings, start=1))))
        finally:
            await journal.close()
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def agent_for(recording: Recording) -> LockedAgent:
    """The agent that declares what the tools of this conversation do.

    Raises:
        DataError: there is none.
    """
    if recording.domain not in DECLARATIONS:
        known = ", ".join(sorted(DECLARATIONS))
        raise DataError(f"{recording.id} is of the domain {recording.domain!r}; there are agents for {known}.")
    return agent_of(recording.domain, [call.name for call, _ in recording.calls()])


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure what becomes of repeated calls in recorded conversations.")
    parser.add_argument("--recording", type=Path, action="append", help="tau1 or tau2 format; .jsonl or .jsonl.zst")
    parser.add_argument("--limit", type=int, help="only the first N conversations of each file")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
