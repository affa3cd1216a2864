"""The contract every sandbox backend keeps; `tests/contract/test_sandbox.py` runs one suite over all of them.

A backend starts one process for one permit, carries newline-delimited frames over its stdin and stdout, and destroys
everything afterwards. It knows nothing of MCP, tools or policy. What comes out of a sandbox is attacker-controlled.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from lockstep.gate.permit import Permit
from lockstep.values import Digest, Tier


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """What one call may use. Sizes in bytes, times in seconds."""

    memory_bytes: int = 512 * 2**20
    cpu_s: float = 30.0
    processes: int = 16
    open_files: int = 256
    file_bytes: int = 32 * 2**20
    disk_bytes: int = 64 * 2**20
    output_bytes: int = 1 * 2**20
    wall_s: float = 30.0


@dataclass(frozen=True, kw_only=True, slots=True)
class EgressRule:
    """One opening in the wall: exactly this scheme, host and port, these methods, below this path.

    `methods` empty means any method; `path_prefix` "/" means any path.
    """

    scheme: str
    host: str
    port: int
    methods: tuple[str, ...] = ()
    path_prefix: str = "/"


@dataclass(frozen=True, kw_only=True, slots=True)
class SecretBinding:
    """One secret: `env` holds a placeholder inside; the value goes only to `host`:`port`, only in `header`."""

    env: str
    host: str
    port: int
    header: str


@dataclass(frozen=True, kw_only=True, slots=True)
class SandboxSpec:
    """Everything a sandbox is: what is mounted, what starts, what it may reach and use."""

    argv: tuple[str, ...]
    mounts: Mapping[str, Path]
    """Read-only: path inside -> directory or file of the host."""
    env: Mapping[str, str] = field(default_factory=dict)
    egress: tuple[EgressRule, ...] = ()
    identity: Mapping[str, str] = field(default_factory=dict)
    """Headers the egress proxy stamps on every request (`Lockstep-Run: ...`); the sandbox cannot set them."""
    secrets: tuple[SecretBinding, ...] = ()
    secret_values: Mapping[str, str] = field(default_factory=dict, repr=False)
    """`env` of each secret -> its value; for the egress proxy alone, never for the sandbox."""
    limits: Limits = field(default_factory=Limits)


@dataclass(frozen=True, kw_only=True, slots=True)
class EgressRecord:
    """One request that left, or tried to leave, the sandbox."""

    method: str
    url: str
    allowed: bool
    status: int | None
    """HTTP status the sandbox got; None when the connection broke."""
    reason: str
    bytes_out: int
    bytes_in: int
    duration_ms: float
    flag: str = ""
    """What somebody should look into: "secret_misplaced" when a placeholder was where it does not belong."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Use:
    """What a sandbox used: times in milliseconds, CPU in seconds, memory in bytes; None where not measured."""

    start_ms: float
    run_ms: float
    cpu_s: float | None
    peak_memory_bytes: int | None


class ProcessEnded(Exception):
    """The process inside ended before it answered.

    `exit_code` is None when unknown; `limit` names the limit that ended it ("wall_s", "output_bytes", ...), or "".
    `stderr` is the tail of what it printed, at most 8 KiB.
    """

    def __init__(self, *, exit_code: int | None, limit: str, stderr: str) -> None:
        super().__init__(f"the process in the sandbox ended (exit code {exit_code}, limit {limit or 'none'})")
        self.exit_code = exit_code
        self.limit = limit
        self.stderr = stderr


class Process(Protocol):
    """A running sandboxed process. Wall-clock and output limits are the backend's to enforce."""

    async def send(self, frame: bytes) -> None:
        """Write one frame; the newline is added. A frame must not contain a newline.

        Silent when the process is gone: `receive` says so.
        """

    async def receive(self) -> bytes:
        """The next frame without its newline.

        Raises:
            ProcessEnded: it ended, ran out of its wall clock (`limit="wall_s"`), or sent more than `output_bytes`
                in all (`limit="output_bytes"`).
        """

    def use(self) -> Use:
        """What was used so far; final after the context has closed."""

    def egress_log(self) -> tuple[EgressRecord, ...]: ...

    def stderr_tail(self) -> str:
        """The last 8 KiB of what the process wrote to stderr."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Findings:
    """What a canary saw. A tier is available only when `available`; else `remedy` is the sentence that helps."""

    tier: Tier
    backend: str
    available: bool
    details: tuple[tuple[str, str], ...]
    """(what was tried, what was seen)."""
    remedy: str = ""


class Backend(Protocol):
    """A way to isolate. One per tier on a machine."""

    @property
    def tier(self) -> Tier: ...

    async def canary(self) -> Findings:
        """Start a real sandbox, talk to it, and try things that must be refused. Cached for the process."""

    def open(self, spec: SandboxSpec, permit: Permit, call_digest: Digest) -> AbstractAsyncContextManager[Process]:
        """Redeem the permit, start a fresh sandbox, and destroy it on exit, whatever happened inside.

        Raises:
            PermitError: nothing was started.
            ConfigError: a mount is missing, nested or not a plain file or directory; nothing was started.
            SandboxUnavailable: the backend failed; nothing of the tool ran.
        """

    async def sweep(self) -> int:
        """Destroy what an earlier process of this store left behind; returns how many."""
