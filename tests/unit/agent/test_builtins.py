"""A built-in in the lock: its code is locked like any other, and the policy alone decides where it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from clerk import Clerk

from lockstep.agent import builtins
from lockstep.agent.builtins import builtin_files
from lockstep.agent.from_lock import locked_agent
from lockstep.agent.load import load_spec
from lockstep.agent.lock import Lock, differing_parts, from_text, to_text
from lockstep.agent.locked import LockedTool
from lockstep.agent.resolve import resolve_static
from lockstep.errors import ConfigError
from lockstep.values import Effect, Tier, sha256

PYTHON: dict[str, Any] = {
    "name": "python",
    "description": "Run code.",
    "inputSchema": {"type": "object", "properties": {"code": {"type": "string"}}, "required": ["code"]},
}
ENTRY = '[[tools]]\nbuiltin = "python"\n\n[policy]\n'


@pytest.fixture
def clerk(tmp_path: Path) -> Clerk:
    made = Clerk(tmp_path)
    made.definitions[2] = [PYTHON]
    made.change("agent.toml", "[policy]\n", ENTRY)
    return made


def locked(lock: Lock) -> LockedTool:
    return locked_agent(from_text(to_text(lock), "agent.lock")).tools["python"]


def test_its_code_is_what_is_shipped_by_digest_beside_what_the_entry_brings(clerk: Clerk) -> None:
    clerk.change("agent.toml", 'builtin = "python"', 'builtin = "python"\ncode = ["table/a.json"]')
    lock = clerk.lock()
    shipped = builtin_files("python")
    tool = locked(lock)
    assert tool.source == "builtin:python"
    assert tool.code == {"table/a.json": sha256(b"{}\n"), **{name: sha256(data) for name, data in shipped.items()}}
    assert tool.effect is Effect.READ
    assert (tool.egress, dict(tool.env), tool.secrets, tool.run_lifetime) == ((), {}, (), False)
    assert lock.files.items() >= shipped.items()
    assert lock.tools()["python"]["untrusted"] is True


@pytest.mark.parametrize(
    ("policy", "tier"),
    [
        ("", Tier.MICROVM),
        ('untrusted = "gvisor"\n', Tier.GVISOR),
        ('untrusted = "process"\n', Tier.GVISOR),
        ('untrusted = "process"\nisolation = "process"\n', Tier.PROCESS),
    ],
)
def test_the_policy_decides_its_tier(clerk: Clerk, policy: str, tier: Tier) -> None:
    clerk.change("agent.toml", "[policy]\n", f"[policy]\n{policy}")
    assert locked(clerk.lock()).tier is tier


def test_its_own_entry_can_only_ask_for_more(clerk: Clerk) -> None:
    clerk.change("agent.toml", "[policy]\n", '[policy]\nuntrusted = "gvisor"\n')
    clerk.change("agent.toml", 'builtin = "python"', 'builtin = "python"\nisolation = "microvm"')
    assert locked(clerk.lock()).tier is Tier.MICROVM


def test_another_version_of_the_shipped_module_is_another_lock(
    clerk: Clerk, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = clerk.lock()
    elsewhere = tmp_path_factory.mktemp("newer")
    for name, data in builtin_files("python").items():
        (elsewhere / name).write_bytes(data + b"# newer\n")
    assert differing_parts(lock, resolve_static(clerk.directory, load_spec(clerk.directory), lock)) == ()
    monkeypatch.setattr(builtins, "_SHIPPED", elsewhere)
    disk = resolve_static(clerk.directory, load_spec(clerk.directory), lock)
    assert differing_parts(lock, disk) == ("tools: tool python",)
    assert disk.digest != lock.digest


def test_a_file_with_the_name_of_the_shipped_module_is_refused(clerk: Clerk) -> None:
    (name,) = builtin_files("python")
    (clerk.directory / name).write_text("print('mine')\n")
    clerk.change("agent.toml", 'builtin = "python"', f'builtin = "python"\ncode = ["{name}"]')
    with pytest.raises(ConfigError, match="has the name of a file of the built-in 'python'"):
        clerk.lock()
