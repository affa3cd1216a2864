"""What other runs of a principal with an agent did, in other sessions and live in other processes included.

For tools whose calls are made once for a principal (`dedupe_scope = "principal"`) it is asked twice: before such a
call is judged, and once its intent is durable and before it runs. The journal puts all appends in one order, so of two
sessions that intend the same call at one moment at least the later sees the other, and only the earlier runs. The
second question is asked as well of a call made once in its session that was judged before its run was resumed: while
it waited for a person, or nobody drove it, another run of the session may have made the same one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from lockstep.journal import events as ev
from lockstep.journal.port import Journal, RunRow
from lockstep.kernel.state import CallState, Left, Receipt, State
from lockstep.runtime.extracts import left_in
from lockstep.runtime.reading import read_state
from lockstep.tools.port import PermittedCall
from lockstep.values import Effect, RunId

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
        return {key: receipts[-1] for key, receipts in ordered(lefts).items()}

    async def before(self, state: State, call: CallState, item: PermittedCall, *, resumed: bool) -> Receipt | None:
        """What another run intended before this call (whose own intent is the newest event) and stands against it: any
        of the principal's; or of this session, where this run was `resumed` after the call may have been judged.

        Only `once` needs it: the calls of one `keyed` effect have one key. Nothing stands against a deliberate repeat,
        which is one of something that was made.
        """
        everywhere = item.tool.once_for_principal
        looks = everywhere or (resumed and item.tool.once_only and item.tool.repeats.scope == "session")
        if not looks or call.effect is not Effect.ONCE or item.round is not None or call.again:
            return None
        within = None if everywhere else state.session
        rows = [row for row in await self._rows(state, within) if row.run != state.run]
        lefts = [*[await self._left(row) for row in rows], Left(receipts={}, freed=state.freed)]
        mine = await self._journal.position(state.run, state.next_seq - 1)
        for receipt in ordered(lefts, call.dedupe_key).get(call.dedupe_key, ()):
            if receipt.stands(state.last_at_ms) and await self._intended_at(receipt) < mine:
                return receipt
        return None

    async def _intended_at(self, receipt: Receipt) -> int:
        """Where the intent of this call stands in the journal; 0 where it had none, being of what was a read then."""
        run, _, call = receipt.where.partition("/")
        for each in await self._journal.read(RunId(run)):
            if isinstance(each.event, ev.EffectIntended) and each.event.call == call:
                return await self._journal.position(RunId(run), each.seq)
        return 0

    async def _rows(self, state: State, within: str | None = None) -> list[RunRow]:
        """The principal's runs with this agent (of one session, if it is named), oldest first; those not read yet are,
        by what was kept of them."""
        rows = await self._journal.runs(within, principal=state.principal, agent=state.agent)
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


def ordered(lefts: Iterable[Left], only: str | None = None) -> dict[str, list[Receipt]]:
    """By key (`only` this one, if it is named) the receipts of these runs (oldest run first): those that a later call
    of any has ended, then the others, each oldest first.
    """
    made: dict[str, list[tuple[Moment, Receipt]]] = {}
    ended: dict[str, Moment] = {}
    for place, left in enumerate(lefts):
        for key, receipt in left.receipts.items() if only is None else _of(left, only):
            made.setdefault(key, []).append(((receipt.at_ms, place), receipt))
        for term, at_ms in left.freed.items():
            ended[term] = max(ended.get(term, (0, 0)), (at_ms, place))
    found: dict[str, list[Receipt]] = {}
    for key, receipts in made.items():
        after = [
            receipt.after([term for term in receipt.freed_by if ended.get(term, (0, 0)) > moment])
            for moment, receipt in sorted(receipts, key=lambda each: each[0])
        ]
        found[key] = sorted(after, key=lambda each: not each.freed)
    return found


def _of(left: Left, key: str) -> list[tuple[str, Receipt]]:
    return [(key, left.receipts[key])] if key in left.receipts else []
