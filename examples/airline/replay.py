"""Replay recorded conversations of a real model through loop, gate and gVisor sandboxes, and compare.

    python examples/airline/replay.py --recording FILE [--limit N] [--keep DIR] [--isolation TIER]

Each conversation is a session of several runs, one for each user message; each has its own airline outside the sandbox.
The model's replies come from the recording; every tool call is judged and run for real. Ends with
`airline: results a/b, states c/d, runs e`: tool results and final database states equal to the recorded ones.
"""

from __future__ import annotations

import argparse
import asyncio
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from data import DataError, Recording, data_directory, load_recordings, load_world  # noqa: E402
from service import AirlineService, serve  # noqa: E402

from lockstep.agent.from_lock import locked_agent  # noqa: E402
from lockstep.agent.lock import LOCK_FILE, to_text  # noqa: E402
from lockstep.errors import LockstepError  # noqa: E402
from lockstep.journal.events import RunStarted  # noqa: E402
from lockstep.journal.port import Journal  # noqa: E402
from lockstep.kernel.state import State  # noqa: E402
from lockstep.model.recorded import RecordedModel, from_messages  # noqa: E402
from lockstep.wiring import locking, running  # noqa: E402
from lockstep.wiring.stores import Store  # noqa: E402

ADDRESS_IN_FILES = "127.0.0.1:8932"
AGENT_FILES = ("agent.toml", "policy.cedar", "prompt.md", "tools.py", "arithmetic.py")
NOTE = "\n\n[This call was already made"
AT_ONCE = 3
"""Conversations driven at once: a sandbox start is about a quarter of a second of CPU."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Compared:
    """One conversation, replayed. `problems` are sentences about what differs."""

    id: str
    results: int
    results_equal: int
    state_equal: bool
    runs: int
    problems: tuple[str, ...]


def main() -> int:
    options = _options()
    try:
        recordings = load_recordings(options.recording, options.limit)
        world = load_world(options.world)
        compared = asyncio.run(replay(recordings, world.database, options.keep, options.isolation))
    except (DataError, LockstepError) as error:
        print(f"airline: {error}", file=sys.stderr)
        return 2
    for one in compared:
        for problem in one.problems:
            print(f"{one.id}: {problem}")
    results, equal = sum(one.results for one in compared), sum(one.results_equal for one in compared)
    states, runs = sum(one.state_equal for one in compared), sum(one.runs for one in compared)
    print(f"airline: results {equal}/{results}, states {states}/{len(compared)}, runs {runs}")
    return 0 if equal == results and states == len(compared) else 1


async def replay(
    recordings: Sequence[Recording],
    database: Mapping[str, Mapping[str, Any]],
    keep: Path | None = None,
    isolation: str = "gvisor",
) -> list[Compared]:
    """Replay every conversation, a few at a time, in one store; `keep` is where the agent and its store stay."""
    directory = Path(tempfile.mkdtemp(prefix="lockstep-airline-")) if keep is None else keep
    try:
        with serve(database) as service:
            return await _Replay(directory, service, isolation).all(recordings)
    finally:
        if keep is None:
            shutil.rmtree(directory, ignore_errors=True)


class _Replay:
    def __init__(self, directory: Path, service: AirlineService, isolation: str) -> None:
        self._directory = directory
        self._isolation = isolation
        self._service = service
        self._store = Store(directory=directory / ".lockstep")
        self._tools = self._store.tools()
        self._code = self._store.code()

    async def all(self, recordings: Sequence[Recording]) -> list[Compared]:
        _copy_agent(self._directory, f"127.0.0.1:{self._service.port}", self._isolation, recordings)
        self._lock = await locking.resolve_agent(self._directory, self._tools, self._code)
        (self._directory / LOCK_FILE).write_text(to_text(self._lock), encoding="utf-8")
        await running.require_tiers(self._tools, locked_agent(self._lock))
        journal = self._store.journal()
        places = asyncio.Semaphore(AT_ONCE)

        async def one(number: int, recording: Recording) -> Compared:
            async with places:
                return await self._one(f"conversation-{number}", recording, journal)

        try:
            return list(await asyncio.gather(*(one(n, recording) for n, recording in enumerate(recordings, start=1))))
        finally:
            await self._tools.close()
            await journal.close()

    async def _one(self, session: str, recording: Recording, journal: Journal) -> Compared:
        conversation = from_messages(recording.plain(), model="openai:gpt-4o", agent="airline")
        model = RecordedModel(recording=conversation, checked=False)  # one differing result must not hide the others
        driver = running.open_driver(
            self._lock, directory=self._directory, journal=journal, tools=self._tools, code=self._code, model=model
        )
        states = []
        for turn in recording.turns:
            run = await driver.start(self._started(session, turn.user, model.name))
            states.append(await driver.advance(run))
        return self._compare(session, recording, states)

    def _started(self, session: str, text: str, model: str) -> RunStarted:
        return RunStarted(
            agent=self._lock.agent,
            lock=self._lock.digest,
            lock_text=to_text(self._lock),
            directory=str(self._directory),
            principal="customer",
            session=session,
            input=text,
            unlocked=True,
            drift=("model: settings (recorded replies in place of the provider)",),
            model=model,
        )

    def _compare(self, session: str, recording: Recording, states: Sequence[State]) -> Compared:
        done = [call for state in states for call in state.all_calls]
        expected = list(recording.exchanges())
        problems = []
        equal = 0
        for place, (call, text) in enumerate(expected):
            # An answer given once more, to a call that was emitted again, is the answer and a note.
            got = done[place].text.partition(NOTE)[0] if place < len(done) else None
            if got == text and done[place].name == call.name:
                equal += 1
            else:
                problems.append(f"call {place} {call.name}: expected {text[:200]!r}, got {(got or 'no call')[:200]!r}")
        ends = ("completed", "recording_ended", "empty_reply")  # what a recorded model said last, or nothing
        problems += [f"run {s.run} ended {s.stop_reason}: {s.message}" for s in states if s.stop_reason not in ends]
        state_equal = self._service.changes(session) == recording.final_state_changes
        if not state_equal:
            problems.append("the final database state differs from the recorded one")
        return Compared(
            id=recording.id,
            results=len(expected),
            results_equal=equal,
            state_equal=state_equal,
            runs=len(states),
            problems=tuple(problems),
        )


def _copy_agent(directory: Path, address: str, isolation: str, recordings: Sequence[Recording]) -> None:
    """The agent with the service's real address, this isolation, and as its prompt the policy the model was given."""
    directory.mkdir(parents=True, exist_ok=True)
    for name in AGENT_FILES:
        text = (HERE / name).read_text(encoding="utf-8").replace(ADDRESS_IN_FILES, address)
        if name == "agent.toml":
            # Whatever was made twice then is made twice now: `make duplicates` is about what the gate keeps back.
            text = text.replace('effect = "once"\n', 'effect = "once"\ndedupe_scope = "none"\n')
            text = text.replace("[budget]\n", "[budget]\nrepeats = 1000\n")
            for table in ("[[tools]]\n", "[policy]\n"):
                text = text.replace(table, f'{table}isolation = "{isolation}"\n')
        (directory / name).write_text(text, encoding="utf-8")
    if recordings and recordings[0].policy:
        (directory / "prompt.md").write_text(recordings[0].policy, encoding="utf-8")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Replay recorded airline conversations through Lockstep.")
    parser.add_argument("--recording", type=Path, default=data_directory() / "tau1_airline_gpt-4o.jsonl.zst")
    parser.add_argument("--world", type=Path, default=data_directory() / "worlds_tau1.json.zst")
    parser.add_argument("--limit", type=int, help="only the first N conversations")
    parser.add_argument("--isolation", default="gvisor", help="the weakest tier for the tools (gvisor)")
    parser.add_argument("--keep", type=Path, help="directory for agent and store, kept afterwards")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
