"""Event types: the vocabulary of a run. A run is the list of these; everything else is a reading of the list.

Each event is a frozen value of JSON-friendly fields. Fields named in `BODIES` may be large: storage keeps them as blobs
by digest. Adding an optional field is compatible; anything else needs a new event type.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, get_args

from lockstep.values import Digest, RunId


@dataclass(frozen=True, kw_only=True, slots=True)
class RunStarted:
    """The root of the chain: which locked agent, for whom, in which session, asked what."""

    TYPE: ClassVar[str] = "run.started"
    BODIES: ClassVar[tuple[str, ...]] = ("input", "lock_text")

    agent: str
    lock: Digest
    lock_text: str
    """The lock as it was, whole, so that the record stands on its own."""
    directory: str
    principal: str
    session: str
    input: str
    previous: tuple[RunId, ...] = ()
    """Earlier runs of the session whose interactions are in the prompt, oldest first."""
    unlocked: bool = False
    drift: tuple[str, ...] = ()
    """With `unlocked`: the parts that differed from agent.lock."""
    model: str = ""
    """A model given for this run in place of the lock's; also makes the run unlocked."""
    approve: str = "ask"
    """What answers approvals: `ask`, `all` or `none`."""
    client: str = ""
    """Of a run that is one call of a client (an editor, another framework): its name. No model is asked then."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ContextBuilt:
    """The prompt of one inference, by digest. It drew on `run.started` and on every earlier event of the run."""

    TYPE: ClassVar[str] = "context.built"

    step: int
    digest: Digest


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """A call as the model asked for it; `arguments` is its raw text."""

    id: str
    """Ours: `step.position`. Providers' ids are reused by models."""
    provider_id: str
    name: str
    arguments: str


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelReplied:
    """Text and calls, never reasoning. `cost_usd` None is unknown, not zero."""

    TYPE: ClassVar[str] = "model.replied"
    BODIES: ClassVar[tuple[str, ...]] = ("text",)

    step: int
    text: str = ""
    calls: tuple[Asked, ...] = ()
    model: str = ""
    provider: str = ""
    finish_reason: str = ""
    latency_ms: float = 0.0
    input_tokens: int = 0
    output_tokens: int = 0
    cache_read_tokens: int = 0
    cache_write_tokens: int = 0
    reasoning_tokens: int = 0
    cost_usd: str | None = None
    price_book: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelFailed:
    """One attempt that brought no reply."""

    TYPE: ClassVar[str] = "model.failed"

    step: int
    attempt: int
    kind: str
    message: str
    transient: bool
    status: int | None = None
    retry_after_s: float | None = None
    latency_ms: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Origin:
    """Where one scalar of a call's arguments came from."""

    pointer: str
    """RFC 6901, into the arguments."""
    how: str
    """`exact`, `part` (of a text), `normalised`, `composed` (of pieces), `schema` (the tool's own) or `none`."""
    trust: str
    """Of its best source: `user`, `system`, `trusted`, `untrusted` or `none`."""
    refs: tuple[str, ...] = ()
    """The sources, best first: `input`, `system`, `2.0/result#/offers/1/price_usd`, `RUN/2.0/result`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CallJudged:
    """The gate's verdict on one call: `allow`, `deny`, `ask`, or `invalid` (`error_type` says how)."""

    TYPE: ClassVar[str] = "call.judged"
    BODIES: ClassVar[tuple[str, ...]] = ("note",)

    call: str
    verdict: str
    digest: Digest | None = None
    effect: str = ""
    policies: tuple[str, ...] = ()
    reasons: tuple[str, ...] = ()
    error_type: str = ""
    """`tool_hallucinated`, `tool_args_malformed`, `policy_denied`, `pin_mismatch` or empty."""
    note: str = ""
    """What the model is told when the call does not run."""
    question: str = ""
    dedupe_key: str = ""
    """Of calls that are made once: the digest of what makes another the same one."""
    dedupe_until_ms: int | None = None
    """When another of that key is a new call (`dedupe_window_s`)."""
    duplicate_of: str = ""
    """Run and call whose receipt answers this one: the same call, made before, or the same one emitted again."""
    frees: tuple[str, ...] = ()
    """Terms of earlier receipts that this call ends when it succeeds (`released_by`)."""
    again: bool = False
    """A deliberate repeat of a call that was made."""
    own_key: bool = False
    """The same call was made before and its receipt has ended: under that call's idempotency key a service would answer
    with its result."""
    origins: tuple[Origin, ...] = ()
    """Of each argument, in order; none for an invalid call."""
    origins_left_out: int = 0
    """How many more there were. What is kept then is what is trusted least."""
    approvers: int = 1
    """With the verdict `ask`: how many people must approve."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ApprovalAsked:
    """A person is asked about exactly this call."""

    TYPE: ClassVar[str] = "approval.asked"

    call: str
    approval: str
    digest: Digest
    question: str
    expires_at_ms: int
    bound: Digest | None = None
    """Over all that an approval is good for: this call, its principal, lock and policies, this approval, its terms."""
    approvers: int = 1
    principal_may_approve: bool = True


@dataclass(frozen=True, kw_only=True, slots=True)
class ApprovalGiven:
    """One person's yes. Where several must approve, each says so in an event of their own."""

    TYPE: ClassVar[str] = "approval.given"

    call: str
    approval: str
    digest: Digest
    by: str
    bound: Digest | None = None
    because: str = ""
    login: str = ""
    """The account of the machine under which it was said; `by` is what was claimed."""
    standing: str = ""
    """The standing approval that answered, in the name of whoever gave it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ApprovalRefused:
    TYPE: ClassVar[str] = "approval.refused"

    call: str
    approval: str
    digest: Digest
    by: str
    because: str = ""
    bound: Digest | None = None
    login: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class EffectIntended:
    """Durable before a call that does something outside is let go."""

    TYPE: ClassVar[str] = "effect.intended"

    call: str
    permit: str
    digest: Digest
    key: str


@dataclass(frozen=True, kw_only=True, slots=True)
class EffectSettled:
    """The outcome of a call that ran. `outcome` is `ok` or an error type; `text` is what the model is told."""

    TYPE: ClassVar[str] = "effect.settled"
    BODIES: ClassVar[tuple[str, ...]] = ("text", "detail", "attachments", "reply")

    call: str
    outcome: str
    text: str
    detail: str = ""
    """For the operator only: traceback, stderr."""
    attachments: str = ""
    """Images that the model is shown, and files for the user, as `journal.attachments` packs them."""
    reply: str = ""
    """Of a client's call: what its client is told, as the server said it, where that is more than `text`."""
    tier: str = ""
    degraded: str = ""
    """The tier that was asked for, where policy accepted a weaker one in its place."""
    warm: bool = False
    """Whether the sandbox was waiting for the call, so that nobody waited for its start."""
    queue_ms: float = 0.0
    start_ms: float = 0.0
    run_ms: float = 0.0
    cpu_s: float | None = None
    peak_memory_bytes: int | None = None
    fee_usd: str | None = None
    egress: tuple[Mapping[str, str | int | float | bool | None], ...] = ()
    freed_by: tuple[str, ...] = ()
    """Terms that end this receipt, so that the same call may be made anew."""
    late: bool = False
    """It came after the deadline, and settled a doubt."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EffectRetried:
    """An attempt at a call that may be repeated failed in a way that may pass. It is made again after `delay_ms`."""

    TYPE: ClassVar[str] = "effect.retried"
    BODIES: ClassVar[tuple[str, ...]] = ("detail",)

    call: str
    attempt: int
    outcome: str
    why: str
    delay_ms: int
    unknown: bool = False
    """It may have been carried out all the same."""
    heard: bool = False
    """Of a task that is asked after: its server had answered for it in this attempt, before it did not."""
    detail: str = ""
    tier: str = ""
    run_ms: float = 0.0
    egress: tuple[Mapping[str, str | int | float | bool | None], ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class InputAsked:
    """The server of a call that was let go asks for something before it goes on: the end of one round of the call.

    With `live` it is no end: the server holds the call open until it has an answer.
    """

    TYPE: ClassVar[str] = "input.asked"
    BODIES: ClassVar[tuple[str, ...]] = ("asked",)

    call: str
    input: str
    asked: str
    """What it asks for and the state it wants back, as `tools.inputs` writes it."""
    digest: Digest
    """Of `asked`: an answer names it."""
    expires_at_ms: int
    """Of all rounds of the call together."""
    live: bool = False
    acted: bool = False
    """A request left the sandbox in this round that may have changed something."""
    tier: str = ""
    start_ms: float = 0.0
    run_ms: float = 0.0
    egress: tuple[Mapping[str, str | int | float | bool | None], ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class InputGiven:
    """What the server is told: the answers by key, as the protocol has them. None at all ends the call."""

    TYPE: ClassVar[str] = "input.given"
    BODIES: ClassVar[tuple[str, ...]] = ("responses",)

    call: str
    input: str
    digest: Digest
    by: str
    responses: str = ""
    because: str = ""
    login: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelSampled:
    """The agent's own model was asked what a server asks of one: its answer, or (`failure`) one attempt without.

    It was given the server's words alone, as they stand in `input.asked` under `key`. An answer counts as a step.
    """

    TYPE: ClassVar[str] = "model.sampled"
    BODIES: ClassVar[tuple[str, ...]] = ("text",)

    call: str
    input: str
    key: str
    digest: Digest
    """Of the prompt."""
    ignored: tuple[str, ...] = ()
    """What the server said of how it is to be answered, and was not followed."""
    text: str = ""
    model: str = ""
    provider: str = ""
    finish_reason: str = ""
    latency_ms: float = 0.0
    input_tokens: int = 0
    output_tokens: int = 0
    cache_read_tokens: int = 0
    cache_write_tokens: int = 0
    reasoning_tokens: int = 0
    cost_usd: str | None = None
    price_book: str = ""
    failure: str = ""
    message: str = ""
    transient: bool = False
    retry_after_s: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskBegun:
    """The server of a call that was let go answers with a task, by which it is asked after. Durable before it is."""

    TYPE: ClassVar[str] = "task.begun"

    call: str
    task: str
    elsewhere: bool = False
    """It goes on when this process ends, and so it can be asked after by another."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EffectDoubted:
    """The intent is recorded, the outcome is not known. Never repeated; a late result, a probe or a person settles it.

    A call may be doubted twice: when its deadline passes, and when what was still waited for did not come.
    """

    TYPE: ClassVar[str] = "effect.doubted"
    BODIES: ClassVar[tuple[str, ...]] = ("detail",)

    call: str
    why: str
    detail: str = ""
    tier: str = ""
    degraded: str = ""
    run_ms: float = 0.0
    egress: tuple[Mapping[str, str | int | float | bool | None], ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class EffectProbed:
    """A call in doubt was asked after and the answer decides nothing: it may still happen, or nobody could say."""

    TYPE: ClassVar[str] = "effect.probed"
    BODIES: ClassVar[tuple[str, ...]] = ("text",)

    call: str
    tool: str
    outcome: str
    """`not_found`, or the error type of a probe that failed."""
    text: str = ""
    again_at_ms: int | None = None
    """When it is asked again; None is a person's turn."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EffectReconciled:
    """What became of an effect in doubt, and who says so."""

    TYPE: ClassVar[str] = "effect.reconciled"
    BODIES: ClassVar[tuple[str, ...]] = ("text",)

    call: str
    happened: bool
    by: str
    text: str
    freed_by: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class RunSuspended:
    """The run waits for a person (`approval`, `input`, `in_doubt`, `agent_stopped`). It costs nothing while it does."""

    TYPE: ClassVar[str] = "run.suspended"

    reason: str
    call: str
    message: str


@dataclass(frozen=True, kw_only=True, slots=True)
class RunResumed:
    """Somebody drove the run on, after a wait or a crash."""

    TYPE: ClassVar[str] = "run.resumed"

    by: str
    after_crash: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class RunFinished:
    """The end: why, what was answered, and the totals."""

    TYPE: ClassVar[str] = "run.finished"
    BODIES: ClassVar[tuple[str, ...]] = ("output",)

    stop_reason: str
    output: str = ""
    message: str = ""
    steps: int = 0
    calls: int = 0
    cost_usd: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class DoubtSettled:
    """What became of an effect that was in doubt when its run ended. The one event that may follow `run.finished`."""

    TYPE: ClassVar[str] = "doubt.settled"
    BODIES: ClassVar[tuple[str, ...]] = ("text",)

    call: str
    happened: bool
    by: str
    text: str
    freed_by: tuple[str, ...] = ()


Event = (
    RunStarted
    | ContextBuilt
    | ModelReplied
    | ModelFailed
    | CallJudged
    | ApprovalAsked
    | ApprovalGiven
    | ApprovalRefused
    | EffectIntended
    | EffectSettled
    | EffectRetried
    | InputAsked
    | InputGiven
    | TaskBegun
    | ModelSampled
    | EffectDoubted
    | EffectProbed
    | EffectReconciled
    | RunSuspended
    | RunResumed
    | RunFinished
    | DoubtSettled
)

EVENT_TYPES: Mapping[str, type[Event]] = {kind.TYPE: kind for kind in get_args(Event)}

ENDED = frozenset({RunFinished.TYPE, DoubtSettled.TYPE})
"""What the newest event of a finished run is."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Recorded:
    """An event in its place: number within the run (from 1), time (milliseconds, UTC), link of the chain."""

    seq: int
    at_ms: int
    event: Event
    hash: bytes = field(repr=False)
