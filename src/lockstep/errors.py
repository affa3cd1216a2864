"""Errors: what should not happen. What may happen in normal operation (denied, failed, budget spent) is a value.

LockstepError            code, sentence, remedy; exit_code for the command line
├── ConfigError          agent.toml, prompt, policy or tool module is wrong
├── LockError            agent.lock is missing, unreadable or differs from the disk
├── StoreError           the journal cannot be opened, read or written
│   ├── StoreBusy        another process holds it
│   ├── StoreFull        no space left; nothing of the failed append was kept
│   ├── JournalCorrupt   the hash chain or a body of a run does not hold
│   │   └── StoreDamaged     the file does not hold, so no run of it can be trusted
│   └── FenceConflict    somebody else already wrote this event of the run
├── RunError             no such run, wrong state for what was asked
│   ├── AgentStopped     somebody stopped the agent (kill switch); nothing is let go
│   ├── ApprovalError    an answer that counts for nothing: unknown, expired, given already, for something else
│   ├── InputError       the same of an answer to a server, or one that is not what it asked for
│   └── BudgetError      what the runs of a scope may use together is used up, so none begins
├── ModelError           the model cannot be had: name, key, provider, recording
│   └── RecordingMismatch   the conversation left the recording
├── SandboxUnavailable   no backend of the required tier; never shown to the model as tool output
│   └── SandboxBusy      every sandbox this machine has room for is in use
└── PermitError          a permit is missing, spent, expired or for another call; nothing ran
"""

from __future__ import annotations


class LockstepError(Exception):
    """An error with a stable `code`, one sentence of what is wrong and one of what to do."""

    code = "error"
    exit_code = 2

    def __init__(self, message: str, *, remedy: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.message} {self.remedy}".strip()


class ConfigError(LockstepError):
    code = "config"


class LockError(LockstepError):
    code = "lock"


class StoreError(LockstepError):
    code = "store"


class StoreBusy(StoreError):
    code = "store_busy"


class StoreFull(StoreError):
    code = "store_full"


class JournalCorrupt(StoreError):
    code = "journal_corrupt"


class StoreDamaged(JournalCorrupt):
    """Not one run, whose neighbours are whole: nothing in this store is to be relied on."""


class FenceConflict(StoreError):
    code = "fence_conflict"


class RunError(LockstepError):
    code = "run"


class ApprovalError(RunError):
    code = "approval"


class InputError(RunError):
    code = "input"


class BudgetError(RunError):
    code = "budget"
    exit_code = 4


class AgentStopped(RunError):
    code = "agent_stopped"
    exit_code = 4


class ModelError(LockstepError):
    code = "model"


class RecordingMismatch(ModelError):
    code = "recording_mismatch"


class SandboxUnavailable(LockstepError):
    code = "sandbox_unavailable"


class SandboxBusy(SandboxUnavailable):
    code = "sandbox_busy"


class PermitError(LockstepError):
    code = "permit"
    exit_code = 1
