"""What the other runs of an agent have used, for limits that several runs share.

Read from the journal when a run begins or goes on: of a finished run what was kept of it, else its events. Runs that
the same driver drives meanwhile count as they go. A store has one writing process, so that is everything, but for the
reply or the call that each of them is waiting for; runs that another driver of the process drives count as they stood.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from lockstep.agent.budget import SCOPES, Budget
from lockstep.errors import BudgetError, JournalCorrupt, RunError, StoreDamaged
from lockstep.journal.port import AgentRun, Journal
from lockstep.kernel.state import State
from lockstep.kernel.usage import Usage, no_start, total
from lockstep.runtime.extracts import extract_of, left_in
from lockstep.runtime.reading import read_state
from lockstep.values import RunId

_DAY_MS = 86_400_000


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """Whose run it is and when it began: which scopes it counts in. A run counts on the day it began on."""

    session: str
    principal: str
    at_ms: int

    def shares(self, scope: str, other: Place) -> bool:
        """Whether runs at these places count together."""
        if scope == "session":
            return self.session == other.session
        if scope != "day" and self.principal != other.principal:
            return False
        return scope == "principal" or self.at_ms // _DAY_MS == other.at_ms // _DAY_MS


class Spending:
    """The runs of one agent and what they have used, as far as its budget asks."""

    def __init__(self, journal: Journal, agent: str, budget: Budget) -> None:
        self._journal = journal
        self._agent = agent
        self._budget = budget
        self._scopes = tuple(scope for scope in SCOPES if scope in budget.scopes)
        self._rest: dict[RunId, tuple[Place, Usage]] = {}
        """Of runs that are not driven here now."""
        self._driven: dict[RunId, tuple[Place, Usage]] = {}
        self._sums: dict[tuple[RunId, str], Usage] = {}
        """Of `_rest`, for a run and a scope."""

    @property
    def counts(self) -> bool:
        """Whether there is any limit that several runs share."""
        return bool(self._scopes)

    async def read(self, place: Place) -> None:
        """Know the runs that share a scope with one at this place.

        Raises:
            JournalCorrupt: one of them cannot be read, so what it used is not known.
        """
        if not self._scopes:
            return
        day = place.at_ms - place.at_ms % _DAY_MS
        rows = await self._journal.of_agent(
            self._agent,
            session=place.session if "session" in self._scopes else None,
            principal=place.principal if "principal" in self._scopes else None,
            since_ms=day if {"day", "principal_day"} & set(self._scopes) else None,
        )
        drawn: dict[RunId, bytes] = {}
        for row in rows:
            if row.run not in self._driven:
                at = Place(session=row.session, principal=row.principal, at_ms=row.started_at_ms)
                self._rest[row.run] = at, await self._used(row, drawn)
        self._sums.clear()
        if drawn:
            await self._journal.keep(drawn)

    def require_room(self, place: Place) -> None:
        """Refuse a run whose scopes have nothing left.

        Raises:
            BudgetError: names the limit.
        """
        if over := no_start(self._others(RunId(""), place), self._budget):
            remedy = "Wait until it has room again, or change the limit in agent.toml and lock."
            if over.reason == "cost_unknown":
                remedy = 'Give model.prices in agent.toml, or accept it with budget.unknown_price = "allow".'
            raise BudgetError(f"No run begins: {over.message[0].lower()}{over.message[1:]}", remedy=remedy)

    def begun(self, run: RunId, place: Place) -> None:
        """A run was begun, and nothing drives it yet."""
        self._rest[run] = place, Usage(runs=1)
        self._sums.clear()

    def driving(self, state: State) -> Mapping[str, Usage]:
        """Note what a driven run has used; what the others of its scopes have."""
        if not self._scopes:
            return {}
        place = _place(state)
        if self._rest.pop(state.run, None) is not None:
            self._sums.clear()
        self._driven[state.run] = place, state.used(state.last_at_ms)
        return self._others(state.run, place)

    def rests(self, state: State) -> None:
        """A run is not driven any more."""
        if self._driven.pop(state.run, None) is not None:
            self._rest[state.run] = _place(state), state.used(state.last_at_ms)
            self._sums.clear()

    def _others(self, run: RunId, place: Place) -> dict[str, Usage]:
        return {scope: self._sum(run, place, scope) + self._live(run, place, scope) for scope in self._scopes}

    def _live(self, run: RunId, place: Place, scope: str) -> Usage:
        others = (each for name, each in self._driven.items() if name != run)
        return total(used for at, used in others if place.shares(scope, at))

    def _sum(self, run: RunId, place: Place, scope: str) -> Usage:
        known = self._sums.get((run, scope))
        if known is None:
            known = total(used for at, used in self._rest.values() if place.shares(scope, at))
            if run:
                self._sums[run, scope] = known
        return known

    async def _used(self, row: AgentRun, drawn: dict[RunId, bytes]) -> Usage:
        left = left_in(row.run, row.extract)
        if left is None:
            left = (await self._read_other(row.run)).left
            if row.finished and row.extract != (extract := extract_of(left)):
                drawn[row.run] = extract
        return left.used

    async def _read_other(self, run: RunId) -> State:
        try:
            return await read_state(self._journal, run)
        except StoreDamaged:
            raise
        except (JournalCorrupt, RunError) as error:
            raise JournalCorrupt(
                f"What run {run} used is not known, and it counts against a budget: {error.message}",
                remedy=f"`lockstep verify {run}` says where its record stops holding; restore the store from a copy.",
            ) from error


def _place(state: State) -> Place:
    return Place(session=state.session, principal=state.principal, at_ms=state.started_at_ms)
