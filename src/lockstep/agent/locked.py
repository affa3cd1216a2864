"""A locked agent as the runtime uses it: typed values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import TYPE_CHECKING, cast

from lockstep.agent.budget import Budget as Budget
from lockstep.agent.context import METHODS
from lockstep.values import Digest, Effect, Json, JsonObject, Tier, digest_json

if TYPE_CHECKING:  # the sections of agent.toml bring pydantic: 0.2 s that reading a record need not take
    from lockstep.agent.effect_spec import Repeats
    from lockstep.agent.mcp_spec import OAuth, WorkingFiles
    from lockstep.agent.spec import LimitsSection, ModelSection, SecretSection


def _nothing_said() -> Repeats:
    from lockstep.agent.effect_spec import Repeats  # lazy: see above

    return Repeats()


def pin(definition: JsonObject, source: str, code: Mapping[str, Digest], runtime: Mapping[str, Digest]) -> Digest:
    """The digest of every field of a definition together with the identity of the server that offers it.

    Raises:
        ValueError: the definition has no canonical form.
    """
    server: dict[str, Json] = {"source": source, "code": dict(code), "runtime": dict(runtime)}
    return digest_json({"definition": definition, "server": server})


@dataclass(frozen=True, kw_only=True, slots=True)
class Remote:
    """A server elsewhere. `headers` have `${NAME}` where a secret of the tool stands."""

    url: str
    headers: Mapping[str, str]
    oauth: OAuth | None
    prefix: str = ""

    @property
    def server(self) -> str:
        """What a person calls it: its prefix, else its URL."""
        return self.prefix or self.url


@dataclass(frozen=True, kw_only=True, slots=True)
class LockedTool:
    """One tool: what the model sees, what it does outside, and how it may run."""

    name: str
    definition: JsonObject
    """The whole MCP definition, as pinned."""
    pin: Digest
    """Of the definition and of the server that offers it: see `pin`."""
    effect: Effect
    dedupe_on: tuple[str, ...] | None
    tier: Tier
    """The weakest it may run in."""
    degrade: Tier | None = None
    """What may stand in for `tier` where a machine does not have it."""
    run_lifetime: bool = False
    """Whether one sandbox serves all calls of a run."""
    egress: tuple[str, ...]
    env: Mapping[str, str]
    limits: LimitsSection
    timeout_s: float
    fee_usd: Decimal
    source: str
    code: Mapping[str, Digest]
    secrets: tuple[SecretSection, ...] = ()
    repeats: Repeats = field(default_factory=_nothing_said)
    output_trust: str | None = None
    untrusted_fields: tuple[str, ...] = ()
    """JSON pointers, with `*` for every item, to what another party wrote in a trusted result."""
    output_private: bool = False
    fields: Mapping[str, tuple[str, ...]] | None = None
    """Kind -> JSON pointers of the arguments that are of it; None when the agent declares nothing of this tool."""
    runtime: Mapping[str, Digest] = field(default_factory=dict)
    """Of an MCP server: the directories of packages it consists of, by name."""
    files: Mapping[str, WorkingFiles] = field(default_factory=dict)
    protocol: str = ""
    """Of an MCP server: the revision that was settled on with it when it was locked."""
    asks: tuple[str, ...] = ()
    """What its server may ask for while it is called: of `elicitation`, `sampling` and `roots`."""
    task_s: float = 0.0
    """Of an MCP server: how long a task may take that it makes of a call; 0 where it may make none."""
    samples: bool = False
    """Whether the agent's own model answers what its server asks of one."""
    errors_not_done: bool = False
    """Of an MCP server: whether a result that is an error says that the effect did not happen."""
    remote: Remote | None = None
    """Of an MCP server that runs elsewhere: how it is reached."""

    @property
    def method(self) -> str:
        """The method of the protocol that it is, of what is read of a server beside its tools; of a tool, empty."""
        return self.own_name if self.source.startswith("mcp:") and self.own_name in METHODS else ""

    @property
    def for_models(self) -> bool:
        """Whether a model may ask for it; what is not is for the clients of a gateway alone."""
        return METHODS.get(self.method, True)

    @property
    def own_name(self) -> str:
        """What its server calls it; the model may know it by a prefixed name."""
        return str(self.definition["name"])

    def pin_of(self, definition: JsonObject) -> Digest:
        """The pin this tool would have with that definition.

        Raises:
            ValueError: it cannot be digested.
        """
        return pin(definition, self.source, self.code, self.runtime)

    @property
    def once_only(self) -> bool:
        """Whether the same call is made once within `repeats.scope`, and a repeat gets the first receipt."""
        declared = self.dedupe_on is not None or self.effect in (Effect.ONCE, Effect.KEYED)
        return declared and self.repeats.scope != "none"

    @property
    def once_for_principal(self) -> bool:
        """Whether that is in all sessions of a principal, so that others must be looked at."""
        return self.once_only and self.repeats.scope == "principal"

    @property
    def retries(self) -> int:
        """Attempts after the first that infrastructure may make at one call; none where a repeat does harm."""
        return 0 if self.effect is Effect.ONCE else self.repeats.retries

    @property
    def output_trusted(self) -> bool:
        """As declared; else whether the tool says that its world is closed, which MCP takes for open if it does not."""
        if self.output_trust is not None:
            return self.output_trust == "trusted"
        annotations = self.definition.get("annotations")
        return isinstance(annotations, Mapping) and annotations.get("openWorldHint") is False

    @property
    def input_schema(self) -> JsonObject:
        return cast(JsonObject, self.definition["inputSchema"])


@dataclass(frozen=True, kw_only=True, slots=True)
class LockedAgent:
    """Everything a run needs to know of its agent."""

    digest: Digest
    name: str
    model: ModelSection
    model_file: tuple[str, Digest] | None
    """Of a scripted or recorded model: its file and the digest of that."""
    system: str
    tools: Mapping[str, LockedTool]
    policies: Mapping[str, str]
    budget: Budget
    approval_expires_s: float
    window_runs: int
    four_eyes: bool = False
    principal_may_approve: bool = True

    @property
    def policy_digest(self) -> Digest:
        """Of everything that policy says: what an approval is given under."""
        return digest_json(dict(self.policies))
