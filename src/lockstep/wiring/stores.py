"""Stores and the machine they are on: which journal, which isolation backends."""

from __future__ import annotations

import asyncio
import contextlib
import getpass
import os
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lockstep.errors import StoreError
from lockstep.journal.sqlite import SQLiteJournal
from lockstep.journal.sqlite_file import DATABASE
from lockstep.journal.standing import StandingBook
from lockstep.journal.stops import StopBook
from lockstep.tools.code import CodeStore
from lockstep.values import RunId

if TYPE_CHECKING:  # a reader of runs need not load the host of tools and the backends: see `Store.backends`
    from lockstep.journal.sqlite_audit import SQLiteAudit
    from lockstep.sandbox.contract import Backend, Findings, SandboxSpec
    from lockstep.tools.host import SandboxedTools
    from lockstep.tools.oauth import StoredTokens

STORE_ENV = "LOCKSTEP_STORE"
STORE_NAME = ".lockstep"


@dataclass(frozen=True, kw_only=True, slots=True)
class Store:
    """A store directory: journal, code snapshots, what the sandboxes left."""

    directory: Path

    @classmethod
    def of(cls, agent: Path, named: Path | None = None) -> Store:
        """The store named on the command line, else by the environment, else `.lockstep/` beside the agent."""
        chosen = named or (Path(os.environ[STORE_ENV]) if os.environ.get(STORE_ENV) else agent / STORE_NAME)
        return cls(directory=chosen.resolve())

    @property
    def holds_runs(self) -> bool:
        """Whether there is a journal in it."""
        return (self.directory / DATABASE).is_file()

    def make(self) -> Store:
        """The store itself, its directory made.

        Raises:
            StoreError: it cannot be.
        """
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(
                f"The store {self.directory} cannot be made: {error.strerror}.",
                remedy=f"Choose another with --store or {STORE_ENV}.",
            ) from error
        return self

    def journal(self, *, readonly: bool = False, full_sync: bool = True) -> SQLiteJournal:
        if readonly:
            return SQLiteJournal.open_readonly(self.directory)
        return SQLiteJournal.open(self.directory, full_sync=full_sync)

    def standing(self) -> StandingBook:
        """The approvals that were given beforehand."""
        return StandingBook(self.directory)

    def code(self) -> CodeStore:
        return CodeStore(self.directory / "code")

    def backends(self) -> tuple[Backend, ...]:
        # Imported here, as below: who reads runs, or whose tools are in its own process, need not load and hold them.
        from lockstep.sandbox.bubblewrap import Bubblewrap
        from lockstep.sandbox.cache import cache_directory
        from lockstep.sandbox.firecracker import Firecracker
        from lockstep.sandbox.gvisor import GVisor
        from lockstep.sandbox.microvm import MicroVM
        from lockstep.sandbox.qemu import Qemu

        state, cache = self._sandboxes, cache_directory()
        monitors = (Firecracker(), Qemu(kvm=True), Qemu(kvm=False))
        return (Bubblewrap(state), GVisor(state), *(MicroVM(state, each, cache, _draws_anew) for each in monitors))

    def tools(self, backends: Sequence[Backend] | None = None) -> SandboxedTools:
        """The tool host; `backends` in place of this machine's own."""
        from lockstep.tools.host import SandboxedTools
        from lockstep.tools.remote_servers import RemoteServers
        from lockstep.tools.starting import Guest

        guest = Guest(self.directory / "guest")
        there = self.backends() if backends is None else backends
        return SandboxedTools(there, self.code(), guest, sweep=self.sweep, remotes=RemoteServers(self.tokens()))

    def tokens(self) -> StoredTokens:
        """Tokens for servers elsewhere, of those who logged in."""
        from lockstep.tools.oauth import StoredTokens
        from lockstep.tools.token_files import TokenFiles

        return StoredTokens(TokenFiles(self.directory / "oauth"), operator=_user())

    async def sweep(self) -> None:
        """Destroy what a process that died left of any sandbox of this store, and snapshots beyond their bounds."""
        from lockstep.sandbox.cache import cache_directory
        from lockstep.sandbox.leftovers import Ledger
        from lockstep.sandbox.snapshots import Snapshots

        await Ledger(self._sandboxes).sweep()
        await asyncio.to_thread(Snapshots.below(cache_directory()).trim)

    @property
    def _sandboxes(self) -> Path:
        return self.directory / "sandboxes"


def _user() -> str:
    """Whose process this is."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"uid-{os.getuid()}"


def _draws_anew(spec: SandboxSpec) -> bool:
    from lockstep.tools.guest import draws_anew

    return draws_anew(spec.argv)


def make_guest_image(say: Callable[[str], None]) -> None:
    """Put the guest of the microVM tier together, or find that it is there.

    Raises:
        SandboxUnavailable: it cannot be made.
    """
    from lockstep.sandbox.image.build import setup_microvm

    setup_microvm(say)


def fetch_newer_runsc() -> str:
    """Keep the runsc of the next Debian suite in the cache; its version, or "" where none is to be had this way.

    Raises:
        SandboxUnavailable: it cannot be fetched.
    """
    from lockstep.sandbox.image.suites import next_suite
    from lockstep.sandbox.runsc_fetch import fetch

    suite = next_suite()
    return fetch(suite) if suite else ""


@contextlib.contextmanager
def opened_stops(store: Store) -> Iterator[StopBook]:
    """Who stopped which agent, to read and write, whichever process holds the store."""
    stops = StopBook.open(store.directory)
    try:
        yield stops
    finally:
        stops.close()


def audited(store: Store, *, run: RunId | None, session: str | None) -> SQLiteAudit:
    """What an audit record is made of; a context manager whose body sees one moment of the store."""
    from lockstep.journal.sqlite_audit import SQLiteAudit

    return SQLiteAudit(store.directory, run=run, session=session)


@contextlib.asynccontextmanager
async def opened_tools(store: Store) -> AsyncIterator[SandboxedTools]:
    """The store's tool host; every sandbox is gone at the end."""
    tools = store.tools()
    try:
        yield tools
    finally:
        await tools.close()


async def findings(store: Store) -> list[Findings]:
    """What each tier's canary saw on this machine."""
    return [await backend.canary() for backend in store.backends()]
