"""A locked agent as the runtime uses it: typed values read out of a lock, never out of the directory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, cast

from lockstep.agent.budget_spec import Budget as Budget
from lockstep.agent.budget_spec import budget_of
from lockstep.agent.context import METHODS
from lockstep.agent.effect_spec import Repeats
from lockstep.agent.lock import Lock
from lockstep.agent.mcp_spec import McpServer, OAuth, WorkingFiles
from lockstep.agent.pointers import check
from lockstep.agent.spec import LimitsSection, ModelSection, SecretSection
from lockstep.errors import LockError
from lockstep.values import Digest, Effect, Json, JsonObject, Tier, digest_json

_NOTHING_SAID = Repeats()


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
    repeats: Repeats = _NOTHING_SAID
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


def locked_agent(lock: Lock) -> LockedAgent:
    """Read a lock into types.

    Raises:
        LockError: it is whole, but was not written by a version that knows what this one needs.
    """
    try:
        return _read(lock)
    except (KeyError, TypeError, ValueError, ArithmeticError) as error:
        what = f"{type(error).__name__}: {error}".splitlines()[0]
        raise LockError(
            f"The lock {lock.digest[:12]} of {lock.agent} lacks what this version needs ({what}).",
            remedy="Run `lockstep lock` to write it anew.",
        ) from error


def _read(lock: Lock) -> LockedAgent:
    budget = dict(cast(Mapping[str, Any], lock.parts["tools"]["budget"].value))
    expires_s = float(budget.pop("approval_expires_s"))
    four_eyes, principal_may = budget.pop("four_eyes", False), budget.pop("principal_may_approve", True)
    (prompt,) = lock.parts["prompt"].values()
    memory = cast(Mapping[str, Any], lock.parts["memory"]["schema"].value)
    return LockedAgent(
        digest=lock.digest,
        name=lock.agent,
        model=ModelSection.model_validate(lock.parts["model"]["settings"].value),
        model_file=_model_file(lock),
        system=prompt.text or "",
        tools={name: _tool(name, value) for name, value in sorted(lock.tools().items())},
        policies=lock.policies(),
        budget=budget_of(budget),
        approval_expires_s=expires_s,
        four_eyes=bool(four_eyes),
        principal_may_approve=bool(principal_may),
        window_runs=memory["window_runs"],
    )


def _model_file(lock: Lock) -> tuple[str, Digest] | None:
    named = (n for n in lock.parts["model"] if n.startswith("file "))
    return next(((n.removeprefix("file "), lock.parts["model"][n].sha256) for n in named), None)


def _tool(name: str, value: Mapping[str, Any]) -> LockedTool:
    runtime = {where: Digest(digest) for where, digest in value.get("runtime", {}).items()}
    return LockedTool(
        name=name,
        definition=value["definition"],
        pin=pin(value["definition"], value["source"], value["code"], runtime),
        effect=Effect(value["effect"]),
        dedupe_on=tuple(map(check, value["dedupe_on"])) if "dedupe_on" in value else None,
        tier=Tier(value["isolation"]),
        degrade=Tier(value["degrade"]) if "degrade" in value else None,
        run_lifetime=value.get("lifetime") == "run",
        egress=tuple(value["egress"]),
        env=value["env"],
        limits=LimitsSection(**value["limits"]),
        timeout_s=value["timeout_s"],
        fee_usd=Decimal(value["fee_usd"]),
        source=value["source"],
        code=value["code"],
        secrets=tuple(SecretSection(**secret) for secret in value.get("secrets", ())),
        repeats=_repeats(value),
        output_trust=value.get("output_trust"),
        untrusted_fields=tuple(value.get("untrusted_fields", ())),
        runtime=runtime,
        files={name: WorkingFiles.model_validate(files) for name, files in value.get("files", {}).items()},
        protocol=value.get("protocol", ""),
        asks=tuple(value.get("asks", ())),
        errors_not_done=value.get("errors") == "not_done",
        remote=_remote(value),
        output_private=value.get("output_private", False),
        fields={kind: tuple(each) for kind, each in value["fields"].items()} if "fields" in value else None,
    )


def remote_of(server: McpServer) -> Remote | None:
    """How a server of `agent.toml` is reached that runs elsewhere."""
    if server.url is None:
        return None
    return Remote(url=server.url, headers=server.headers, oauth=server.oauth, prefix=server.prefix or "")


def _remote(value: Mapping[str, Any]) -> Remote | None:
    if "url" not in value:
        return None
    named = {key: value[key] for key in ("url", "headers", "oauth", "prefix") if key in value}
    return remote_of(McpServer.model_validate(named))


def _repeats(value: Mapping[str, Any]) -> Repeats:
    late_s = value["timeout_s"] if Effect(value["effect"]) is Effect.ONCE else 0.0
    return Repeats.model_validate({"late_s": late_s, **value.get("repeats", {})})
