"""Which store and which run a command means."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from lockstep.agent.files import AGENT_FILE
from lockstep.errors import RunError, StoreError
from lockstep.journal.port import Journal
from lockstep.values import RunId
from lockstep.wiring.stores import STORE_ENV, STORE_NAME, Store

_NAMED = 5
"""How many stores are named to choose from."""


def existing(named: Path | None) -> Store:
    """The store for commands that name no agent: --store, the environment, `.lockstep` here, or the one below here.

    Raises:
        StoreError: there is none, or more than one to choose from.
    """
    store = Store.of(Path(), named)
    if store.holds_runs:
        return store
    if named is not None or os.environ.get(STORE_ENV):
        raise StoreError(f"There is no store at {store.directory}.", remedy="Run an agent first, or name another.")
    places = sorted([*Path().glob(f"*/{STORE_NAME}"), *Path().glob(f"*/*/{STORE_NAME}")])
    below = [place for place in places if Store(directory=place).holds_runs]
    if len(below) == 1:
        return Store(directory=below[0].resolve())
    more = f" and {len(below) - _NAMED} more" if len(below) > _NAMED else ""
    hint = f" There are several below: {', '.join(map(str, below[:_NAMED]))}{more}." if below else ""
    raise StoreError(
        f"There is no store at {store.directory}.{hint}",
        remedy=f"Name one with --store, or go to the directory of the agent ({AGENT_FILE}).",
    )


@asynccontextmanager
async def opened(store: Store) -> AsyncIterator[Journal]:
    """The store's journal to write; no other process may be writing."""
    journal = store.make().journal()
    try:
        yield journal
    finally:
        await journal.close()


@asynccontextmanager
async def looking(named: Path | None) -> AsyncIterator[Journal]:
    """The journal of an existing store to read, also while another process writes."""
    journal = existing(named).journal(readonly=True)
    try:
        yield journal
    finally:
        await journal.close()


async def find(journal: Journal, name: str) -> RunId:
    """The run of this id, of this unique beginning of one, or the newest for `last`.

    Raises:
        RunError: there is none, or more than one.
    """
    if name == "last":
        rows = await journal.runs(limit=1)
        if not rows:
            raise RunError("There is no run in this store yet.", remedy='`lockstep run AGENT "message"` makes one.')
        return rows[0].run
    found = await journal.find(name)
    if name in found:
        return RunId(name)
    if len(found) != 1:
        what = "There is no run" if not found else "More than one run begins with"
        raise RunError(f"{what} {name!r} in this store.", remedy="`lockstep runs` lists them.")
    return found[0]
