"""Which backend a tool gets: the cheapest available that is strong enough, else what its lock accepts, else none."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from lockstep.agent.locked import LockedTool
from lockstep.agent.spec import LimitsSection, PolicySection, ToolSource
from lockstep.errors import SandboxUnavailable
from lockstep.sandbox.contract import Findings, Process, SandboxSpec
from lockstep.tools.code import CodeStore
from lockstep.tools.host import SandboxedTools
from lockstep.tools.starting import Guest
from lockstep.values import Effect, Tier, digest_json

TOOL = LockedTool(
    name="act",
    definition={},
    pin=digest_json({}),
    effect=Effect.READ,
    dedupe_on=None,
    tier=Tier.GVISOR,
    egress=(),
    env={},
    limits=LimitsSection(),
    timeout_s=30,
    fee_usd=0,  # type: ignore[arg-type]
    source="python:tools.py",
    code={},
)


class Stated:
    """A backend of which only is known whether it is available."""

    def __init__(self, tier: Tier, *, available: bool = True) -> None:
        self.tier = tier
        self._available = available

    async def available(self) -> Findings:
        remedy = "" if self._available else f"Install {self.tier.value}."
        details = ((self.tier.value, "seen"),)
        return Findings(tier=self.tier, backend="stated", available=self._available, details=details, remedy=remedy)

    async def canary(self) -> Findings:
        return await self.available()

    async def start(self, spec: SandboxSpec) -> Process:
        raise AssertionError("nothing is started to choose")


def chosen(tmp_path: Path, tool: LockedTool, *there: Stated) -> tuple[Tier, str]:
    host = SandboxedTools(there, CodeStore(tmp_path), Guest(tmp_path))
    choice = asyncio.run(host.choose(tool))
    return choice.backend.tier, choice.degraded


ALL = tuple(Stated(tier) for tier in (Tier.MICROVM, Tier.EMULATED, Tier.PROCESS, Tier.GVISOR))


@pytest.mark.parametrize(
    ("asked", "there", "got"),
    [
        (Tier.PROCESS, ALL, Tier.PROCESS),
        (Tier.GVISOR, ALL, Tier.GVISOR),
        (Tier.MICROVM, ALL, Tier.MICROVM),
        (Tier.PROCESS, (Stated(Tier.PROCESS, available=False), Stated(Tier.GVISOR)), Tier.GVISOR),
        (Tier.GVISOR, (Stated(Tier.GVISOR, available=False), Stated(Tier.MICROVM)), Tier.MICROVM),
    ],
)
def test_the_cheapest_available_backend_that_is_strong_enough_is_taken(
    tmp_path: Path, asked: Tier, there: tuple[Stated, ...], got: Tier
) -> None:
    assert chosen(tmp_path, replace(TOOL, tier=asked), *there) == (got, "")


@pytest.mark.parametrize("tier", [Tier.PROCESS, Tier.GVISOR, Tier.MICROVM])
def test_an_emulated_machine_is_strong_enough_for_nothing(tmp_path: Path, tier: Tier) -> None:
    with pytest.raises(SandboxUnavailable, match=f"needs isolation '{tier.value}'"):
        chosen(tmp_path, replace(TOOL, tier=tier), Stated(Tier.EMULATED))


def test_a_missing_tier_is_refused_with_what_was_seen_and_what_helps(tmp_path: Path) -> None:
    with pytest.raises(SandboxUnavailable) as refused:
        chosen(tmp_path, replace(TOOL, tier=Tier.MICROVM), Stated(Tier.GVISOR), Stated(Tier.MICROVM, available=False))
    assert "microvm: seen" in refused.value.message
    assert refused.value.remedy == "Install microvm."


@pytest.mark.parametrize("instead", [Tier.GVISOR, Tier.EMULATED, Tier.PROCESS])
def test_a_weaker_tier_stands_in_only_where_the_lock_names_it(tmp_path: Path, instead: Tier) -> None:
    there = [backend for backend in ALL if backend.tier is not Tier.MICROVM]
    tool = replace(TOOL, tier=Tier.MICROVM, degrade=instead)
    assert chosen(tmp_path, tool, *there) == (instead, "microvm")
    assert chosen(tmp_path, tool, *ALL) == (Tier.MICROVM, ""), "not where the real one is there"
    with pytest.raises(SandboxUnavailable):
        chosen(tmp_path, replace(tool, degrade=None), *there)


@pytest.mark.parametrize(
    ("tool", "policy", "tier"),
    [
        ({}, {}, Tier.GVISOR),
        ({"isolation": "process"}, {}, Tier.GVISOR),
        ({"isolation": "process"}, {"isolation": "process"}, Tier.PROCESS),
        ({"isolation": "gvisor"}, {"isolation": "process"}, Tier.GVISOR),
        ({"isolation": "microvm"}, {}, Tier.MICROVM),
        ({}, {"isolation": "microvm"}, Tier.MICROVM),
        ({"untrusted": True}, {}, Tier.MICROVM),
        ({"untrusted": True}, {"untrusted": "gvisor"}, Tier.GVISOR),
        ({"untrusted": True, "isolation": "process"}, {"untrusted": "process"}, Tier.GVISOR),
    ],
)
def test_the_strongest_of_what_tool_and_policy_name_is_asked_for(
    tool: dict[str, object], policy: dict[str, object], tier: Tier
) -> None:
    source = ToolSource.model_validate({"python": "tools.py", **tool})
    assert PolicySection.model_validate(policy).tier(source) is tier


@pytest.mark.parametrize("degrade", [{"gvisor": "gvisor"}, {"process": "gvisor"}, {"process": "process"}])
def test_only_a_weaker_tier_may_be_named_to_stand_in(degrade: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="only a weaker tier"):
        PolicySection.model_validate({"degrade": degrade})
