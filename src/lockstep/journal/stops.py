"""The kill switch's record: who stopped which agent, why, and who let it go on.

It lies in the store beside the runs, as a hash chain of its own, so that it reaches every process of the store and no
run's chain depends on it. Unlike events it may be written while another process holds the store: a stop that had to
wait for the process it is to stop would be none.
"""

from __future__ import annotations

import json
import sqlite3
import time
from pathlib import Path
from typing import Self

from lockstep.errors import AgentStopped, StoreDamaged, StoreError
from lockstep.journal.codec import GENESIS, link
from lockstep.journal.migrations import bring_forward
from lockstep.journal.port import Stop, Stops
from lockstep.journal.sqlite_file import DATABASE, connect, translate
from lockstep.values import RunId

CHAIN = RunId("stops")
"""What stands for a run's id in this chain's hashes; a run's begins with `r`."""
STOPPED, STARTED = "agent.stopped", "agent.started"
_NEWEST = "SELECT type, CAST(body AS BLOB) FROM stops WHERE agent = ? ORDER BY seq DESC LIMIT 1"
_LAST = "SELECT CAST(seq AS INTEGER), CAST(at AS INTEGER), CAST(hash AS BLOB) FROM stops ORDER BY seq DESC LIMIT 1"


def newest(connection: sqlite3.Connection, directory: Path, agent: str) -> Stop | None:
    """The stop that stands against an agent.

    Raises:
        StoreError: it cannot be read.
    """
    try:
        row = connection.execute(_NEWEST, (agent,)).fetchone()
    except (sqlite3.Error, UnicodeEncodeError) as error:
        raise translate(error, directory) from error
    if row is None or row[0] == STARTED:
        return None
    try:
        said = json.loads(row[1])
        return Stop(agent=agent, by=str(said["by"]), because=str(said["because"]), at_ms=int(said["at_ms"]))
    except (ValueError, KeyError, TypeError) as error:
        raise StoreDamaged(
            f"The store {directory} is damaged: whether {agent} is stopped cannot be read.",
            remedy="Restore it from a copy. Until then nothing of this agent runs.",
        ) from error


def require_running(stops: Stops, agent: str) -> None:
    """Refuse what a stopped agent may not do.

    Raises:
        AgentStopped: names who stopped it, when and why.
        StoreError: it cannot be read.
    """
    stop = stops.stop_of(agent)
    if stop is not None:
        raise AgentStopped(stop_text(stop), remedy=f"`lockstep start {agent}` lets it run again.")


def stop_text(stop: Stop) -> str:
    """A stop as a sentence."""
    when = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(stop.at_ms / 1000))
    because = f": {stop.because.rstrip('.')}" if stop.because else ""
    return f"Agent {stop.agent} was stopped by {stop.by} on {when}{because}."


class StopBook:
    """The same record opened to write, by any process, whoever holds the store."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._connection = connect(directory / DATABASE, readonly=False)

    @classmethod
    def open(cls, directory: Path) -> Self:
        """Open the record of a store, made or brought forward where no process holds it.

        Raises:
            StoreBusy: the process that holds the store is of a version that does not look at stops.
            StoreError: it cannot be opened.
        """
        bring_forward(directory, "stop")
        return cls(directory)

    def stop_of(self, agent: str) -> Stop | None:
        return newest(self._connection, self._directory, agent)

    def stop(self, agent: str, *, by: str, because: str, at_ms: int) -> Stop:
        """Stop an agent: durable when this returns. One that is stopped already stays so, by whom it was."""
        return self._turn(STOPPED, Stop(agent=agent, by=by, because=because, at_ms=at_ms)) or self._stood(agent)

    def start(self, agent: str, *, by: str, because: str, at_ms: int) -> bool:
        """Let an agent go on; whether it was stopped."""
        return self._turn(STARTED, Stop(agent=agent, by=by, because=because, at_ms=at_ms)) is not None

    def close(self) -> None:
        self._connection.close()

    def _turn(self, kind: str, said: Stop) -> Stop | None:
        """Write one entry, unless things stand so already."""
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                new = (self.stop_of(said.agent) is None) == (kind == STOPPED)
                if new:
                    self._write(kind, said)
                self._connection.execute("COMMIT")
            except BaseException:
                self._connection.execute("ROLLBACK")
                raise
        except (sqlite3.Error, UnicodeEncodeError) as error:
            raise translate(error, self._directory) from error
        return said if new else None

    def _write(self, kind: str, said: Stop) -> None:
        body = json.dumps({"agent": said.agent, "by": said.by, "because": said.because, "at_ms": said.at_ms}).encode()
        seq, last_ms, head = self._connection.execute(_LAST).fetchone() or (0, 0, GENESIS)
        at_ms = max(said.at_ms, last_ms)
        digest = link(head, CHAIN, seq + 1, at_ms, kind, body)
        row = (seq + 1, at_ms, kind, said.agent, body, digest)
        self._connection.execute("INSERT INTO stops VALUES (?, ?, ?, ?, ?, ?)", row)

    def _stood(self, agent: str) -> Stop:
        stop = self.stop_of(agent)
        if stop is None:
            raise StoreError(f"Agent {agent} was started again at this moment.", remedy="Stop it again.")
        return stop
