"""The tool port: a permitted call in, an outcome out. A failing tool is an outcome, not an exception."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from lockstep.agent.locked import LockedTool
from lockstep.gate.permit import Permit
from lockstep.gate.rounds import Round
from lockstep.tools.inputs import Asked
from lockstep.values import Attachment, Digest, JsonObject, RunId, Tier


@dataclass(frozen=True, kw_only=True, slots=True)
class Notice:
    """What a server says while it is called and nobody asked it: a method of the protocol, and its parameters."""

    method: str
    params: JsonObject
    server: str = ""
    """The source of the tool that is called."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Watched:
    """What somebody wants to hear of when it changes: resources by URI, and whether there are others in the list."""

    resources: frozenset[str] = frozenset()
    lists: bool = False

    def __bool__(self) -> bool:
        return bool(self.resources) or self.lists


@dataclass(frozen=True, kw_only=True, slots=True)
class Listener:
    """Who hears what a server says while it is called. `hear` must return at once and never raise."""

    hear: Callable[[Notice], None]
    progress: bool = False
    """Whether the server is asked to say how far it is."""
    log_level: str = ""
    """From which level on the server is asked for log messages; empty for none."""
    watches: Callable[[str], Watched] = lambda source: Watched()
    """Of the server with this source: what it is asked to tell changes of. A modern one tells no others."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Tasking:
    """What a call needs that may become a task of its server."""

    left_s: float
    """How long it is still asked after; at least once."""
    begun: Callable[[str], Awaitable[None]]
    """Told the server's name for it, once; nothing is asked before this returns."""
    unwanted: Callable[[], bool]
    """Asked when the call is broken off: whether its server is told to end the task, or the task is left to go on."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PermittedCall:
    """What to run: the locked tool, validated arguments, and who it is for."""

    run: RunId
    session: str
    id: str
    tool: LockedTool
    arguments: JsonObject
    digest: Digest
    key: str
    """Idempotency key: the same for every attempt at the same effect in a session."""
    round: Round | None = None
    """What it goes on with, where its server asked for input before."""
    offers: frozenset[str] = frozenset()
    """Of `elicitation`, `sampling` and `roots`: what somebody is there to answer now."""
    principal: str = ""
    """For whom; a server elsewhere sees that principal's token."""
    kept_for: str = ""
    """Whose sandbox serves it where one outlives the call: the run's (empty), or that of a client's session."""
    listener: Listener | None = None
    tasks: Tasking | None = None
    """None where its server must answer the call itself."""

    @property
    def may_ask(self) -> frozenset[str]:
        """What its server may ask for in this round, of what its entry lets it.

        A person may answer at any time, and so may the agent's own model; but where a client answers for a model or for
        roots, all that is left of a question is its, because nobody else could answer that part.
        """
        asks = frozenset(self.tool.asks)
        own = asks & {"sampling"} if self.tool.samples else frozenset[str]()
        there = self.offers & (asks - own)
        return own | (there if there - {"elicitation"} else asks & {"elicitation"})


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What came of it. `kind` is `ok`, `tool_error`, `timeout`, `output_too_large`, `process_ended`, `bad_reply`,
    `pin_mismatch`, `import_error`, `sandbox_unavailable`, `sandbox_busy` (not run: no room), `result_unusable` (it ran,
    its result cannot be sent), `task_lost` (its server does not know the task that the call became), or
    `input_required` (it goes on when what it asks for is answered)."""

    kind: str
    text: str
    """For the model."""
    attachments: tuple[Attachment, ...] = ()
    """Images for the model, named in its text, and files for the user."""
    reply: str = ""
    """For a client that speaks the protocol: the result or error of the server, as JSON; empty where `text` is all."""
    detail: str = ""
    """For the operator: traceback, stderr."""
    unknown: bool = False
    """The call was let go and nobody can say whether its effect happened."""
    asked: Asked | None = None
    """What its server asks for before it goes on."""
    acted: bool = False
    """With `asked`: a request left the sandbox that may have changed something."""
    transient: bool = False
    """It failed in a way that may pass: another attempt, where one does no harm, may succeed."""
    task_open: bool = False
    """Of a call that is a task: it was not learnt what became of it, and asking again may tell."""
    heard: bool = False
    """With `task_open`: its server had answered for it before that, and its time was not over."""
    tier: Tier = Tier.NONE
    degraded: str = ""
    """The tier that was asked for, where the lock accepts a weaker one in its place."""
    warm: bool = False
    """The sandbox was waiting for the call."""
    queue_ms: float = 0.0
    """What the call waited for a sandbox, apart from a start of its own."""
    start_ms: float = 0.0
    run_ms: float = 0.0
    cpu_s: float | None = None
    peak_memory_bytes: int | None = None
    egress: tuple[Mapping[str, str | int | float | bool | None], ...] = ()


Ask = Callable[[Asked], Awaitable[JsonObject | None]]
"""Puts a question of a server that waits for it to whoever is there; the answers by key, or None."""


class ToolHost(Protocol):
    """Runs permitted calls. Knows nothing of policy."""

    async def call(
        self,
        call: PermittedCall,
        permit: Permit,
        on_overdue: Callable[[], None] | None = None,
        ask: Ask | None = None,
    ) -> Outcome:
        """Run one call once. `on_overdue` is told when its deadline has passed and its result is still waited for;
        `ask` is asked what a server that holds the call open wants to know.

        Raises:
            PermitError: the permit is not for this call; nothing ran.
        """

    async def end(self, kept_for: str) -> None:
        """Destroy what was kept for this run (it has finished, or waits for a person), or for a client's session."""

    async def sweep(self) -> None:
        """Destroy what an earlier process of this store left running. Before any reconciling."""
