"""Clones of one machine differ where they must: randomness, clock; and share nothing that can be written."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import time
from pathlib import Path

import pytest
from guest_cache import guest_cache

from lockstep.errors import SandboxUnavailable
from lockstep.gate.permit import PermitMint
from lockstep.sandbox.contract import Limits, Process, SandboxSpec
from lockstep.sandbox.microvm import PYTHON, MicroVM
from lockstep.sandbox.qemu import Qemu
from lockstep.tools.client import McpClient
from lockstep.tools.guest import LOCKSTEP_MOUNT, TOOL_MOUNT, command, draws_anew, materialize
from lockstep.values import now_ms, sha256

pytestmark = pytest.mark.sandbox

CALL = sha256(b"a call")
CLONES = 10
TOOL = '''
import os, random, ssl, sys, time, uuid
from lockstep import tool
STARTED = os.urandom(8).hex()
print("imported", file=sys.stderr)
@tool
def draw() -> dict:
    """Draw."""
    left = os.path.exists("/work/left")
    open("/work/left", "w").close()
    return {"urandom": os.urandom(8).hex(), "random": random.random(), "uuid4": str(uuid.uuid4()),
            "ssl": ssl.RAND_bytes(8).hex(), "time": time.time(), "started": STARTED, "left": left}
'''


def spec_of(tool: str, tmp_path: Path) -> SandboxSpec:
    (tmp_path / "tool").mkdir(exist_ok=True)
    (tmp_path / "tool/tools.py").write_text(tool)
    return SandboxSpec(
        argv=command("tools.py", interpreter=PYTHON),
        mounts={TOOL_MOUNT: tmp_path / "tool", LOCKSTEP_MOUNT: materialize(tmp_path / "runner")},
        limits=Limits(wall_s=50),
    )


def backend_in(state_dir: Path) -> MicroVM:
    return MicroVM(state_dir, Qemu(kvm=False), guest_cache(), lambda spec: draws_anew(spec.argv))


async def drawn(process: Process) -> dict[str, object]:
    client = McpClient(process)
    await client.initialize()
    process.admit(PermitMint().issue(CALL, expires_at_ms=now_ms() + 60_000), CALL, {})
    result = await client.call_tool("draw", {}, {})
    said = json.loads(result["content"][0]["text"])
    return {**said, "host": time.time(), "stderr": process.stderr_tail()}


def test_clones_of_a_started_tool_share_its_start_and_none_of_its_randomness(tmp_path: Path) -> None:
    backend, spec = backend_in(tmp_path), spec_of(TOOL, tmp_path)

    async def scene() -> list[dict[str, object]]:
        first = await backend.start(spec)
        others = await asyncio.gather(*(backend.start(spec) for _ in range(CLONES - 1)))
        try:
            return [await drawn(process) for process in (first, *others)]
        finally:
            await asyncio.gather(*(process.close() for process in (first, *others)))

    said = asyncio.run(asyncio.wait_for(scene(), 300))
    assert len({str(each["started"]) for each in said}) == 1, "they are clones of a tool that was imported once"
    for source in ("urandom", "random", "uuid4", "ssl"):
        assert len({each[source] for each in said}) == CLONES, source
    for each in said:
        assert abs(float(str(each["time"])) - float(str(each["host"]))) < 1
        assert each["left"] is False
        assert "imported" in str(each["stderr"])
    assert not list((tmp_path / "sandboxes").iterdir())


def test_changed_code_is_never_served_from_an_old_snapshot(tmp_path: Path) -> None:
    backend = backend_in(tmp_path)

    async def scene(tool: str) -> object:
        process = await backend.start(spec_of(tool, tmp_path))
        try:
            client = McpClient(process)
            await client.initialize()
            return (await client.list_tools()).tools[0]["name"]
        finally:
            await process.close()

    assert asyncio.run(asyncio.wait_for(scene(TOOL), 300)) == "draw"
    assert asyncio.run(asyncio.wait_for(scene(TOOL.replace("def draw", "def pull")), 300)) == "pull"


def test_a_tool_that_speaks_before_it_is_asked_is_started_anew_each_time(tmp_path: Path) -> None:
    backend = MicroVM(tmp_path, Qemu(kvm=False), guest_cache(), lambda _: True)
    code = "import os, sys\nprint(os.urandom(8).hex(), flush=True)\nsys.stdin.read()"
    spec = SandboxSpec(argv=(*PYTHON, "-c", code), mounts={}, limits=Limits(wall_s=50))

    async def scene() -> bytes:
        process = await backend.start(spec)
        try:
            return await process.receive()
        finally:
            await process.close()

    first, second = (asyncio.run(asyncio.wait_for(scene(), 300)) for _ in range(2))
    assert first != second


def test_a_snapshot_that_does_not_load_is_named_and_removed_so_that_the_next_start_makes_it_anew(
    tmp_path: Path,
) -> None:
    cache, own = guest_cache(), tmp_path / "cache"
    spec = SandboxSpec(argv=(*PYTHON, "-c", "print('up')"), mounts={}, limits=Limits(wall_s=50))

    async def said_in(directory: Path) -> bytes:
        process = await MicroVM(tmp_path, Qemu(kvm=False), directory).start(spec)
        try:
            return await process.receive()
        finally:
            await process.close()

    assert asyncio.run(asyncio.wait_for(said_in(cache), 300)) == b"up"
    (own / "snapshots").mkdir(parents=True)
    (own / "guest").symlink_to(cache / "guest")
    for snapshot in (cache / "snapshots").iterdir():
        (own / "snapshots" / snapshot.name).mkdir()
        for file in snapshot.iterdir():
            (own / "snapshots" / snapshot.name / file.name).symlink_to(file)
        (own / "snapshots" / snapshot.name / "state").unlink()
        (own / "snapshots" / snapshot.name / "state").write_bytes(b"not a state")
    before = set((own / "snapshots").iterdir())
    with pytest.raises(SandboxUnavailable, match="could not save or load"):
        asyncio.run(asyncio.wait_for(said_in(own), 300))
    # Removed; and where the tier was tried anew after it, made anew by that.
    states = [snapshot / "state" for snapshot in before]
    assert any(not state.exists() or state.read_bytes() != b"not a state" for state in states)
    assert not list((tmp_path / "sandboxes").iterdir())


def test_the_monitor_runs_as_nobody_behind_a_filter_and_dies_with_its_owner(tmp_path: Path) -> None:
    spec = SandboxSpec(argv=(*PYTHON, "-c", "print('up'); input()"), mounts={}, limits=Limits(wall_s=50))

    async def scene() -> tuple[list[str], dict[str, str]]:
        process = await backend_in(tmp_path).start(spec)
        try:
            assert await process.receive() == b"up"
            (record,) = (tmp_path / "sandboxes").iterdir()
            return _process_with(json.loads(record.read_text())["directory"])
        finally:
            await process.close()

    command, status = asyncio.run(asyncio.wait_for(scene(), 300))
    assert status["Seccomp"] == "2"
    assert status["NoNewPrivs"] == "1"
    assert set(status["Uid"].split()) == {"65534" if os.geteuid() == 0 else str(os.geteuid())}
    assert status["CapEff"].strip("0") == ""
    assert not any(word in command for word in ("-netdev", "-nic", "-net"))


def _process_with(argument: str) -> tuple[list[str], dict[str, str]]:
    """Command line and status of the one process with this argument."""
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            command = (process / "cmdline").read_text(errors="replace").split("\0")
            if argument in command:
                lines = (process / "status").read_text().splitlines()
                return command, {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}
    raise AssertionError("no such process")
