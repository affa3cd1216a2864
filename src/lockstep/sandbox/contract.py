"""The contract every sandbox backend keeps; `tests/contract/test_sandbox.py` runs one suite over all of them.

A backend starts one process, carries newline-delimited frames over its stdin and stdout, and destroys everything
afterwards. Until a permit is redeemed (`Process.admit`) nothing inside reaches anything outside, so a process may be
started, and talked to, before anybody knows which call it is for. A backend knows nothing of MCP, tools or policy. What
comes out of a sandbox is attacker-controlled.
"""

from __future__ import annotations

from collections.abc import Mapping
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
    secrets: tuple[SecretBinding, ...] = ()
    limits: Limits = field(default_factory=Limits)
    single_use: bool = True
    """False where one sandbox serves several calls, one after another; each call has the limits anew."""


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
    purpose: str = ""
    """Of a request that the host itself sends to a server elsewhere: the method of the protocol, or "oauth"."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Use:
    """What a call used: times in milliseconds, CPU in seconds, memory in bytes; None where not measured."""

    start_ms: float
    """How long the sandbox took to start, whether or not anybody waited for it."""
    run_ms: float
    """From admission to the end of the call."""
    cpu_s: float | None
    """With the start of the sandbox, in its first call."""
    peak_memory_bytes: int | None


class ProcessEnded(Exception):
    """The process inside ended before it answered.

    `exit_code` is None when unknown; `limit` names the limit that ended it ("wall_s", "output_bytes", ...), or "".
    `stderr` is the tail of what it printed, at most 8 KiB. Of a server elsewhere `limit` is "connection" when that
    broke, `stderr` says how, and `reached` is False where nothing that was sent last can have got there.
    """

    def __init__(self, *, exit_code: int | None, limit: str, stderr: str, reached: bool = True) -> None:
        super().__init__(f"the process in the sandbox ended (exit code {exit_code}, limit {limit or 'none'})")
        self.reached = reached
        self.exit_code = exit_code
        self.limit = limit
        self.stderr = stderr


class Process(Protocol):
    """A running sandboxed process. Wall-clock and output limits are the backend's to enforce."""

    def admit(
        self,
        permit: Permit,
        call_digest: Digest,
        identity: Mapping[str, str],
        secret_values: Mapping[str, str] | None = None,
        wall_s: float | None = None,
    ) -> None:
        """Redeem the permit: from now on this is the sandbox of that call.

        Opens egress, whose every request carries `identity` as headers (`Lockstep-Run: ...`) that the sandbox cannot
        set, and starts the call's wall clock, output budget and measurements. `secret_values` has the value of every
        secret of the spec, by variable: for the egress proxy, never for the sandbox. `wall_s` is how long this call
        may take, where that is not what the spec says: calls of several tools may share a sandbox.

        Raises:
            PermitError: nothing was opened.
        """

    async def send(self, frame: bytes) -> None:
        """Write one frame; the newline is added. A frame must not contain a newline.

        Silent when the process is gone: `receive` says so.
        """

    async def receive(self) -> bytes:
        """The next frame without its newline.

        Raises:
            ProcessEnded: it ended, ran out of its wall clock (`limit="wall_s"`), or sent more than `output_bytes`
                (`limit="output_bytes"`).
        """

    def rest(self) -> None:
        """Stop the clock: nothing is asked of the process until it is admitted. Before `rest` it has `wall_s` to get
        ready."""

    def pause(self) -> None:
        """Stop the wall clock while what the process asked for is found out; everything else is still measured."""

    def go_on(self) -> None:
        """Let the wall clock run on from where it stood."""

    def renew(self) -> None:
        """Begin the wall clock and the output budget anew, for a further request of the same call."""

    @property
    def alive(self) -> bool:
        """Whether the process still runs, as far as is known."""

    async def seal(self) -> None:
        """The call is over: shut egress, break off and record what was under way, and measure for the last time."""

    async def close(self) -> None:
        """Destroy the sandbox and everything of it; done to its end even when cancelled. Safe to call again."""

    def use(self) -> Use:
        """What was used so far; final once sealed."""

    def egress_log(self) -> tuple[EgressRecord, ...]:
        """The requests since admission; before it, those that were refused."""

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

    async def available(self) -> Findings:
        """As `canary`, or what an earlier process of this store proved for the same binary, kernel and user.

        After a start that failed, what a canary then found: a tier that stopped working is not available any more.
        """

    async def start(self, spec: SandboxSpec) -> Process:
        """Start a fresh sandbox whose egress is shut; whoever holds the process closes it.

        Raises:
            ConfigError: a mount is missing, nested or not a plain file or directory; nothing was started.
            SandboxUnavailable: the backend failed; nothing of the tool ran.
        """
