"""What the other sessions of a principal with an agent did, live runs of other processes included.

For tools whose calls are made once for a principal (`dedupe_scope = "principal"`). It is asked twice: before such a
call is judged, and once its intent is durable and before it runs. The journal puts all appends in one order, so of two
sessions that intend the same call at one moment at least the later sees the other, and only the earlier runs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from lockstep.journal import events as ev
from lockstep.journal.port import Journal, RunRow
from lockstep.kernel.state import CallState, Left, Receipt, State
from lockstep.runtime.extracts import left_in
from lockstep.runtime.reading import read_state
from lockstep.values import RunId

Moment = tuple[int, int]
"""Milliseconds, and the place of the run in the order of their starts: of two at once, the later run's is later."""


class Elsewhere:
    """Reads what a principal's runs left. What has not changed since it was last read is not read again."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._kept: dict[RunId, tuple[int, Left]] = {}

    async def standing(self, state: State) -> Mapping[str, Receipt]:
        """By key, what stands against calls of this run now, wherever the principal's calls were made.

        Raises:
            JournalCorrupt: one of the runs cannot be read. What it did is not known.
        """
        rows = await self._rows(state)
        own = {key: each for key, each in state.receipts.items() if each.where.startswith(f"{state.run}/")}
        lefts = [
            Left(receipts=own, freed=state.freed) if row.run == state.run else await self._left(row) for row in rows
        ]
        return combined(lefts)

    async def before(self, state: State, call: CallState) -> Receipt | None:
        """What another run intended before this call (whose own intent is the newest event) and stands against it.

        Nothing does against a deliberate repeat, which is one of something that was made.
        """
        if call.again:
            return None
        rows = [row for row in await self._rows(state) if row.run != state.run]
        lefts = [*[await self._left(row) for row in rows], Left(receipts={}, freed=state.freed)]
        receipt = combined(lefts).get(call.dedupe_key)
        if receipt is None or not receipt.stands(state.last_at_ms):
            return None
        run, _, their_call = receipt.where.partition("/")
        events = await self._journal.read(RunId(run))
        intent = next((each.seq for each in events if _intends(each.event, their_call)), None)
        if intent is None:  # made by a tool that was declared a read then
            return receipt
        theirs = await self._journal.position(RunId(run), intent)
        mine = await self._journal.position(state.run, state.next_seq - 1)
        return receipt if theirs < mine else None

    async def _rows(self, state: State) -> list[RunRow]:
        """The principal's runs with this agent, oldest first; those not read yet are, by what was kept of them."""
        rows = await self._journal.runs(principal=state.principal, agent=state.agent)
        unread = [row for row in rows if row.run not in self._kept and row.run != state.run]
        for session in {row.session for row in unread}:
            events = {row.run: row.events for row in unread if row.session == session}
            for kept in await self._journal.session(session):
                left = left_in(kept.run, kept.extract)
                if left is not None and kept.run in events:
                    self._kept[kept.run] = (events[kept.run], left)
        return rows[::-1]

    async def _left(self, row: RunRow) -> Left:
        known = self._kept.get(row.run)
        if known is None or known[0] != row.events:
            state = await read_state(self._journal, row.run)
            known = self._kept[row.run] = (state.next_seq - 1, state.left)
        return known[1]


def _intends(event: ev.Event, call: str) -> bool:
    return isinstance(event, ev.EffectIntended) and event.call == call


def combined(lefts: Iterable[Left]) -> dict[str, Receipt]:
    """By key, the newest receipt of these runs (oldest run first) that no later call has ended, in any of them."""
    newest: dict[str, tuple[Moment, Receipt]] = {}
    ended: dict[str, Moment] = {}
    for place, left in enumerate(lefts):
        for key, receipt in left.receipts.items():
            moment = (receipt.at_ms, place)
            if key not in newest or newest[key][0] < moment:
                newest[key] = (moment, receipt)
        for term, at_ms in left.freed.items():
            ended[term] = max(ended.get(term, (0, 0)), (at_ms, place))
    return {
        key: receipt
        for key, (moment, receipt) in newest.items()
        if not any(term in ended and ended[term] > moment for term in receipt.freed_by)
    }
