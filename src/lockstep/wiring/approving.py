"""What holds now for an agent whose run asks a person: the lock on disk, as approvals are bound to it."""

from __future__ import annotations

from pathlib import Path

from lockstep.agent.from_lock import locked_agent
from lockstep.agent.lock import from_text, read_lock
from lockstep.agent.locked import LockedAgent
from lockstep.gate.approvals import Terms
from lockstep.journal.events import RunStarted


def agent_of(started: RunStarted) -> LockedAgent:
    """The agent as it was when the run began.

    Raises:
        LockError: its lock is not readable by this version.
    """
    return locked_agent(from_text(started.lock_text, "the lock of the run"))


def terms_now(started: RunStarted) -> Terms:
    """The lock and policies that hold now. A run that never was what agent.lock says has only its own.

    Raises:
        LockError: there is no lock any more where the agent was, or it is not readable.
    """
    if started.unlocked:
        return Terms.of(agent_of(started))
    return Terms.of(locked_agent(read_lock(Path(started.directory))))
