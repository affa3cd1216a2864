"""The microVM tier on the real Firecracker, in a machine whose hardware virtualization is emulated.

Run by `make test-nested`, with FIRECRACKER_BIN naming a statically linked release; its jailer lies beside it or is
named in JAILER_BIN. The machine is booted once, `proof.py` runs in it, and the tests below read what it reported.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from outer import initramfs, kvm_modules, run

from lockstep.errors import SandboxUnavailable
from lockstep.sandbox.cache import cache_directory
from lockstep.sandbox.image.build import Image, find_image, setup_microvm

pytestmark = pytest.mark.nested

PACKAGES = ("lockstep", "h11", "rfc8785")
"""What the tier needs of Python packages in the outer guest."""
QEMU = shutil.which(os.environ.get("LOCKSTEP_QEMU") or "qemu-system-x86_64")
FIRST_USER_OF_A_MACHINE = 2**30

Steps = Mapping[str, dict[str, Any]]


@pytest.fixture(scope="module")
def steps(tmp_path_factory: pytest.TempPathFactory) -> Steps:
    """What each step of the proof saw."""
    programs = binaries()
    if QEMU is None:
        pytest.skip("needs QEMU (Debian package qemu-system-x86)")
    image = guest_image()
    try:
        modules = kvm_modules(image, cache_directory())
    except (OSError, subprocess.SubprocessError) as error:
        pytest.skip(f"needs the package of the guest's kernel: {error}")
    archive = initramfs(image, modules, programs, [package(name) for name in PACKAGES])
    report = run(QEMU, image.kernel, archive, tmp_path_factory.mktemp("outer"))
    if report.steps.get("end", {}).get("code") != 0:
        why = report.steps.get("failed", {}).get("traceback", "")
        pytest.fail(f"It broke off after {list(report.steps)}:\n{why}\n{report.console[-6000:]}", pytrace=False)
    return report.steps


def binaries() -> dict[str, Path]:
    named = os.environ.get("FIRECRACKER_BIN")
    if not named or not Path(named).is_file():
        pytest.skip("needs the real firecracker (set FIRECRACKER_BIN)")
    jailer = Path(os.environ.get("JAILER_BIN") or Path(named).with_name("jailer"))
    if not jailer.is_file():
        pytest.skip("needs the jailer that belongs to this firecracker (set JAILER_BIN)")
    return {"firecracker": Path(named), "jailer": jailer}


def guest_image() -> Image:
    try:
        return find_image()
    except SandboxUnavailable:
        pass
    try:
        return setup_microvm(print)
    except SandboxUnavailable as error:
        pytest.skip(f"needs the guest image: {error}")


def package(name: str) -> Path:
    spec = importlib.util.find_spec(name)
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent


def test_the_canary_boots_snapshots_clones_and_is_refused_what_it_must_be(steps: Steps) -> None:
    assert steps["outer"]["kvm"]
    canary = steps["canary"]
    assert (canary["available"], canary["tier"], canary["remedy"]) == (True, "microvm", "")
    details = dict(canary["details"])
    assert details["monitor"].startswith("firecracker ")
    assert "sees Linux" in details["firecracker"]
    for action in ("read a file of the host", "write to the root file system", "connect to the host"):
        assert details[action].startswith("refused")


def test_a_tool_answers_from_inside_a_jailed_machine(steps: Steps) -> None:
    call = steps["call"]
    assert call["answer"] == "hello world"
    (process,) = call["host"]
    assert process["uid"] >= FIRST_USER_OF_A_MACHINE
    assert process["capabilities"] == 0
    assert process["pids"][-1] == "1"
    assert process["group"].startswith("0::/lockstep/lockstep-")
    assert process["interfaces"] == ["lo"]


def test_egress_reaches_what_is_permitted_and_nothing_else(steps: Steps) -> None:
    permitted, other_path, other_port = steps["egress"]["answer"]
    assert permitted == [200, "you asked for /allowed/a"]
    assert (other_path[0], other_port[0]) == (403, 403)
    assert [allowed for _, _, allowed in steps["egress"]["log"]] == [True, False, False]


def test_clones_made_at_once_share_no_randomness_and_have_the_right_clock(steps: Steps) -> None:
    chance = steps["clones"]["chance"]
    assert len(chance) == 4
    for source in zip(*(values[:3] for values in chance), strict=True):
        assert len(set(source)) == len(chance)
    for *_, clock in chance:
        assert steps["clones"]["began"] - 1 < clock < steps["clones"]["ended"] + 1


def test_a_user_other_than_root_clones_the_same_snapshot_without_a_jailer(steps: Steps) -> None:
    bare = steps["bare"]
    assert (bare["code"], bare["trouble"]) == (0, "")
    assert '"user": 1000' in bare["said"]
    assert '"kernel": "Linux' in bare["said"]


def test_a_clone_with_a_started_tool_in_it_is_kept_and_cloned_in_turn(steps: Steps) -> None:
    assert steps["ready"]["answers"] == ["hello one", "hello two"]
    assert steps["ready"]["snapshots"] == 2  # a machine that has booted, and one whose tool waits


def test_nothing_is_left_behind(steps: Steps) -> None:
    assert (steps["left"]["files"], steps["left"]["processes"], steps["left"]["swept"]) == ([], [], 0)
