"""`agent.toml` as types: the parsing boundary. Everything a user may write, with its default and its range."""

from __future__ import annotations

from decimal import Decimal
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, Strict, field_validator, model_validator

from lockstep.agent.budget_spec import BudgetSection, Number, Whole
from lockstep.agent.builtins import Builtin, Pack
from lockstep.agent.check_spec import CheckSection
from lockstep.agent.effect_spec import Pointer, ProbeSection, ReleaseRule, Scope
from lockstep.agent.mcp_spec import McpServer, placeholders
from lockstep.agent.places import RelativePath, check_inside
from lockstep.agent.secret_spec import SecretSource, variable
from lockstep.values import TIER_RANK, Effect, Tier

FILE_MODELS = ("scripted", "recorded")
"""Models whose replies come from a file of the agent; the file is part of the model dimension."""

MODEL_NAME_RULE = "a model is named `provider:model`, like openai:gpt-4o or scripted:script.jsonl"

Name = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_-]{0,63}$")]


Flag = Annotated[bool, Strict()]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, defer_build=True)


Isolation = Literal["microvm", "gvisor", "process"]


class AgentSection(_Section):
    name: Name
    description: str = ""


class Prices(_Section):
    """US dollars per million tokens."""

    input: Decimal = Field(ge=0)
    output: Decimal = Field(ge=0)
    cache_read: Decimal | None = Field(default=None, ge=0)
    cache_write: Decimal | None = Field(default=None, ge=0)


class ModelSection(_Section):
    name: str = Field(pattern=r"^[a-z0-9_-]+:.+$")
    """`provider:model`; `scripted:FILE` and `recorded:FILE` need no provider."""
    temperature: Number | None = Field(default=None, ge=0, le=2)
    top_p: Number | None = Field(default=None, gt=0, le=1)
    max_tokens: Whole | None = Field(default=None, gt=0)
    seed: Whole | None = None
    parallel_tool_calls: Flag | None = None
    timeout_s: Number = Field(default=120, gt=0)
    base_url: str | None = None
    api_key_env: str | None = None
    images: Flag | None = None
    """False: images in results are not sent, for a model that refuses them."""
    prices: Prices | None = None


class PromptSection(_Section):
    file: RelativePath


class LimitsSection(_Section):
    """What one call may use."""

    memory_mb: Whole = Field(default=512, ge=32, le=65536)
    cpu_s: Number = Field(default=30, gt=0)
    processes: Whole = Field(default=16, ge=1, le=4096)
    open_files: Whole = Field(default=256, ge=16, le=65536)
    file_mb: Whole = Field(default=32, ge=1)
    disk_mb: Whole = Field(default=64, ge=1)
    output_kb: Whole = Field(default=1024, ge=1, le=8192)


class SecretSection(_Section):
    """A value that a tool may use and never sees. Where it comes from stands in the lock; the value nowhere."""

    env: Annotated[str, AfterValidator(variable)]
    """The variable that holds a placeholder inside the sandbox."""
    source: SecretSource = Field(alias="from")
    host: str
    """host:port; the only server that gets the value."""
    header: str
    """The only header it is sent in."""


class FieldsSection(_Section):
    """What some arguments are to a policy, by JSON pointer; each tool of an entry has those that it takes."""

    destination: tuple[Pointer, ...] = ()
    """Who or what a call sends to, reaches or acts on."""
    credential: tuple[Pointer, ...] = ()
    """What opens something: a password, a key."""
    terms: tuple[Pointer, ...] = ()
    """How much and when."""
    content: tuple[Pointer, ...] = ()
    """What is said there."""

    @property
    def declared(self) -> dict[str, tuple[Pointer, ...]]:
        return {kind: pointers for kind, pointers in self if pointers}


class ToolSource(_Section):
    """One `[[tools]]`: a Python module, an MCP server or a built-in, and how its tools may run."""

    python: RelativePath | None = None
    mcp: McpServer | None = None
    builtin: Builtin | None = None
    """A tool that comes with Lockstep. What it runs a model wrote, so it is untrusted and reaches nothing."""
    code: tuple[RelativePath, ...] = ()
    """Further files or directories the tools need, mounted beside the module."""
    include: tuple[str, ...] | None = None
    """The tools this entry provides; absent means all of the source."""
    effect: Effect = Effect.ONCE
    dedupe_on: tuple[Pointer, ...] | None = None
    """The fields of the arguments that make two calls the same one; absent means all arguments."""
    dedupe_scope: Scope = "session"
    """Within what the same call with an effect is made once."""
    dedupe_window_s: Number | None = Field(default=None, gt=0)
    """For how long; absent means as long as the scope lasts."""
    released_by: tuple[ReleaseRule, ...] = ()
    """Calls that undo one of these, so that it may be made again."""
    again: Flag = False
    """Whether the model may ask for a deliberate repeat, about which a person is always asked."""
    probe: ProbeSection | None = None
    """The tool that says whether a call whose reply was lost happened."""
    retries: Whole = Field(default=2, ge=0, le=10)
    """Attempts after the first, at a call that may be repeated and failed in a way that may pass."""
    late_s: Number | None = Field(default=None, ge=0, le=86400)
    """Of `once`: how long past `timeout_s` a late result is still waited for; absent means `timeout_s` again."""
    isolation: Isolation = "gvisor"
    """The weakest tier its calls may run in; the policy may ask for more."""
    untrusted: Flag = False
    """Whether nobody vouches for this code: it then needs the tier of `policy.untrusted`."""
    lifetime: Literal["call", "run"] = "call"
    """How long a sandbox lives: one call, or for a server with state, one run."""
    output_trust: Literal["trusted", "untrusted"] | None = None
    """Whether results are as good as the operator's own words; absent, only those of tools in a closed world are."""
    untrusted_fields: tuple[Pointer, ...] = ()
    """What another party wrote inside a trusted result that is JSON; `*` is every item of an array."""
    output_private: Flag = False
    """Whether results are private data, which must not leave unnoticed."""
    fields: FieldsSection = Field(default_factory=FieldsSection)
    egress: tuple[str, ...] = ()
    env: dict[str, str] = Field(default_factory=dict)
    secrets: tuple[SecretSection, ...] = ()
    limits: LimitsSection = Field(default_factory=LimitsSection)
    timeout_s: Number = Field(default=30, gt=0, le=86400)
    fee_usd: Decimal = Field(default=Decimal(0), ge=0)

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_kind(cls, given: Any) -> Any:
        """What an entry of this kind is when it does not say."""
        if isinstance(given, dict) and "builtin" in given:
            # Code of a model's that changes nothing outside. The weakest tier is left to the policy alone, so that it
            # may accept less than gVisor for this.
            return {"effect": "read", "untrusted": True, "isolation": "process", **given}
        if isinstance(given, dict) and isinstance(server := given.get("mcp"), dict) and "url" in server:
            return {"lifetime": "run", **given}  # one connection and one session for all calls of a run
        return given

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if sum(source is not None for source in (self.python, self.mcp, self.builtin)) != 1:
            raise ValueError(
                'needs either `python = "FILE"` or `mcp = { command = [...] }` or `builtin = "python"`, and only one'
            )
        return self

    @model_validator(mode="after")
    def _builtin_is_confined(self) -> Self:
        if self.builtin is not None:
            opened = [key for key in ("egress", "secrets", "env") if getattr(self, key)]
            if opened:
                raise ValueError(
                    f"is a built-in and has `{opened[0]}`: code that a model wrote reaches nothing outside"
                )
            if not self.untrusted:
                raise ValueError("is a built-in and says `untrusted = false`: nobody vouches for what a model wrote")
            if self.lifetime != "call":
                raise ValueError('is a built-in and says `lifetime = "run"`: every call of it starts afresh')
        return self

    @model_validator(mode="after")
    def _elsewhere_runs_nothing_here(self) -> Self:
        if self.mcp is None or self.mcp.url is None:
            return self
        here: list[str] = [
            key for key in ("code", "egress", "env", "isolation", "untrusted") if key in self.model_fields_set
        ]
        here += [f"limits.{key}" for key in sorted(self.limits.model_fields_set - {"output_kb"})]
        if here:
            raise ValueError(f"has a server with a `url` and `{here[0]}`: nothing of such a server runs here")
        if self.lifetime != "run":
            raise ValueError('has a server with a `url` and says `lifetime = "call"`: its connection serves a run')
        self._check_secrets_of_headers(self.mcp)
        return self

    def _check_secrets_of_headers(self, server: McpServer) -> None:
        secrets = {secret.env: secret for secret in self.secrets}
        used = [(header, name) for header, text in server.headers.items() for name in placeholders(text)]
        for header, name in used:
            if name not in secrets:
                raise ValueError(f"has a header {header!r} with ${{{name}}}, and no secret with env = {name!r}")
            if secrets[name].header.lower() != header.lower() or secrets[name].host.lower() != server.place:
                bound = f'host = "{server.place}", header = "{header}"'
                raise ValueError(f"sends the secret {name} in {header!r} to {server.place}: bind it so, {bound}")
        if unused := sorted(set(secrets) - {name for _, name in used}):
            raise ValueError(f"has a secret {unused[0]}, which stands in none of `mcp.headers`")


class PolicySection(_Section):
    files: tuple[RelativePath, ...] = ()
    packs: tuple[Pack, ...] = ()
    """Policies that come with Lockstep, beside the agent's own."""
    isolation: Isolation = "gvisor"
    """The weakest tier for any tool; `process` only where it is accepted here."""
    untrusted: Isolation = "microvm"
    """The weakest tier for code that nobody vouches for."""
    degrade: dict[Isolation, Literal["gvisor", "process", "emulated"]] = Field(default_factory=dict)
    """What may stand in for a tier that a machine does not have; written into every result."""
    approval_expires_s: Number = Field(default=86400, gt=0)
    four_eyes: Flag = False
    """Whether two people must approve whatever is asked about; `@approvers("2")` says so of one question."""
    principal_may_approve: Flag = True
    """Whether the one for whom a run acts may also approve its calls."""

    @field_validator("degrade")
    @classmethod
    def _weaker(cls, degrade: dict[Isolation, str]) -> dict[Isolation, str]:
        for tier, instead in degrade.items():
            if TIER_RANK[Tier(instead)] >= TIER_RANK[Tier(tier)]:
                raise ValueError(f"says {tier} = {instead!r}: only a weaker tier can stand in for another")
        return degrade

    def stand_in(self, tier: Tier) -> Tier | None:
        """What may stand in for this tier where a machine does not have it."""
        return next((Tier(instead) for name, instead in self.degrade.items() if name == tier.value), None)

    def tier(self, source: ToolSource) -> Tier:
        """The weakest tier that the calls of this source may run in; of a server elsewhere it is none of ours."""
        if source.mcp and source.mcp.url:
            return Tier.REMOTE
        wanted = [Tier(source.isolation), Tier(self.isolation), *([Tier(self.untrusted)] if source.untrusted else [])]
        return max(wanted, key=lambda tier: TIER_RANK[tier])


class MemorySection(_Section):
    window_runs: Whole = Field(default=20, ge=0)
    """How many earlier runs of the session the prompt holds."""


class ScenariosSection(_Section):
    files: tuple[RelativePath, ...] = ()


class AgentSpec(_Section):
    """A whole `agent.toml`."""

    agent: AgentSection
    model: ModelSection
    prompt: PromptSection
    tools: tuple[ToolSource, ...] = ()
    policy: PolicySection = Field(default_factory=PolicySection)
    memory: MemorySection = Field(default_factory=MemorySection)
    budget: BudgetSection = Field(default_factory=BudgetSection)
    scenarios: ScenariosSection = Field(default_factory=ScenariosSection)
    check: CheckSection | None = None

    @field_validator("model")
    @classmethod
    def _model_file_inside(cls, model: ModelSection) -> ModelSection:
        """Here and not in `ModelSection`: a model given on the command line may be a file anywhere."""
        provider, _, file = model.name.partition(":")
        if provider in FILE_MODELS:
            try:
                check_inside(file)
            except ValueError as error:
                raise ValueError(f"has a name whose file {error}") from None
        return model
