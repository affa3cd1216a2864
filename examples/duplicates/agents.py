"""The agents that recordings are judged by: what each tool does outside, and which of its calls are the same one.

That is read from an `agent.toml`: the airline example's own, or `retail.toml` beside this file. Schemas, policy and
isolation are left open, because only repeats are judged here.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Iterator
from decimal import Decimal
from pathlib import Path

from lockstep.agent.effect_spec import Repeats
from lockstep.agent.locked import Budget, LockedAgent, LockedTool
from lockstep.agent.spec import AgentSpec, LimitsSection, ToolSource
from lockstep.values import Digest, Effect, JsonObject, Tier, digest_json

HERE = Path(__file__).resolve().parent
DECLARATIONS = {"airline": HERE.parent / "airline" / "agent.toml", "retail": HERE / "retail.toml"}
FURTHER_READS = {"airline": ("get_flight_status",), "retail": ()}
"""Reads that a later edition of the domain has and the agent's file does not."""
EVERYTHING = "permit (principal, action, resource);"
NO_LIMIT = 1_000_000


def agent_of(domain: str, called: Iterable[str]) -> LockedAgent:
    """The agent of this domain, with every tool that is called; one that nobody declared is `once`, as everywhere."""
    spec = AgentSpec.model_validate(tomllib.loads(DECLARATIONS[domain].read_text(encoding="utf-8")))
    tools = {tool.name: tool for tool in _declared(spec)}
    for name in FURTHER_READS[domain]:
        tools[name] = _tool(name, ToolSource(python="tools.py", effect=Effect.READ))
    for name in called:
        if name not in tools:
            tools[name] = _tool(name, ToolSource(python="tools.py"))
    return LockedAgent(
        digest=Digest(digest_json({"agent": spec.model_dump(mode="json")})),
        name=spec.agent.name,
        model=spec.model,
        model_file=None,
        system="",
        tools=tools,
        policies={"everything.cedar": EVERYTHING},
        budget=Budget(steps=NO_LIMIT, calls=NO_LIMIT, malformed=NO_LIMIT, repeats=NO_LIMIT),
        approval_expires_s=3600.0,
        window_runs=NO_LIMIT,
    )


def _declared(spec: AgentSpec) -> Iterator[LockedTool]:
    for source in spec.tools:
        for name in source.include or ():
            yield _tool(name, source)


def _tool(name: str, source: ToolSource) -> LockedTool:
    definition: JsonObject = {"name": name, "inputSchema": {"type": "object"}}
    return LockedTool(
        name=name,
        definition=definition,
        pin=digest_json(definition),
        effect=source.effect,
        dedupe_on=source.dedupe_on,
        tier=Tier.NONE,
        egress=(),
        env={},
        limits=LimitsSection(),
        timeout_s=source.timeout_s,
        fee_usd=Decimal(0),
        source="recorded",
        code={},
        repeats=Repeats(
            scope=source.dedupe_scope,
            window_s=source.dedupe_window_s,
            released_by=source.released_by,
            retries=source.retries,
        ),
    )
