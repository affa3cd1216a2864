"""The real `firecracker` and `jailer`, started and ended by our code. Their guest need not get anywhere for that.

So this runs where /dev/kvm lets a machine be made, if perhaps not run; what a guest does is proven in `tests/nested`.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import struct
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from lockstep.errors import SandboxUnavailable
from lockstep.sandbox import firecracker_vm
from lockstep.sandbox.firecracker import Firecracker, locate
from lockstep.sandbox.firecracker_api import Call, SnapshotCreate
from lockstep.sandbox.firecracker_vm import FirecrackerVm
from lockstep.sandbox.monitor import Machine

KVM_CREATE_VM = 0xAE01
WAIT_S = 20.0


def missing() -> str:
    """What these tests lack here, or ""."""
    if not os.environ.get("FIRECRACKER_BIN"):
        return "needs the real firecracker (set FIRECRACKER_BIN)"
    try:
        kvm = os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC)
        try:
            os.close(fcntl.ioctl(kvm, KVM_CREATE_VM, 0))
        finally:
            os.close(kvm)
    except OSError as error:
        return f"needs /dev/kvm ({error.strerror})"
    return ""


pytestmark = pytest.mark.skipif(bool(missing()), reason=missing())
jailed = pytest.mark.skipif(os.geteuid() != 0, reason="needs root for the jailer")


def idle_kernel() -> bytes:
    """The smallest ELF image that Firecracker loads: `hlt`, for ever, at 1 MiB."""
    code, address, offset = b"\xf4\xeb\xfd", 2**20, 120
    size = offset + len(code)
    head = b"\x7fELF\2\1\1".ljust(16, b"\0") + struct.pack(
        "<HHIQQQIHHHHHH", 2, 62, 1, address + offset, 64, 0, 0, 64, 56, 1, 0, 0, 0
    )
    return head + struct.pack("<IIQQQQQQ", 1, 5, 0, address, address, size, size, 4096) + code


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    kernel, initrd, tool = (tmp_path / name for name in ("vmlinux", "initrd", "tool"))
    for file, content in ((kernel, idle_kernel()), (initrd, bytes(4096)), (tool, bytes(4096))):
        file.write_bytes(content)
        file.chmod(0o644)
    return Machine(kernel=kernel, initrd=initrd, cmdline="", drives=(tool,), memory_mib=64)


def processes(directory: Path) -> list[int]:
    """Those that carry the name of the VM's directory as their id."""
    mark = f"--id\0{directory.name}\0".encode()
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if mark in entry.read_bytes():
                found.append(int(entry.parent.name))
    return found


def groups(directory: Path) -> list[Path]:
    return [path for path in Path("/sys/fs/cgroup").glob(f"**/lockstep/{directory.name}") if path.is_dir()]


def new_directory(tmp_path: Path, name: str) -> Path:
    directory = tmp_path / f"lockstep-{os.getpid()}-{name}"
    directory.mkdir(mode=0o700)
    return directory


def run(body: Callable[[Firecracker], Awaitable[Any]]) -> Any:
    async def prepared() -> Any:
        monitor = Firecracker(await locate())
        return await asyncio.wait_for(body(monitor), WAIT_S)

    return asyncio.run(prepared())


def status(vm: FirecrackerVm) -> dict[str, list[str]]:
    lines = Path(f"/proc/{vm.pid}/status").read_text().splitlines()
    return {name: value.split() for name, _, value in (line.partition(":") for line in lines)}


def interfaces(vm: FirecrackerVm) -> list[str]:
    return [line.split(":")[0].strip() for line in Path(f"/proc/{vm.pid}/net/dev").read_text().splitlines()[2:]]


@jailed
def test_a_machine_has_a_user_a_pid_namespace_and_a_network_of_its_own(machine: Machine, tmp_path: Path) -> None:
    directory = new_directory(tmp_path, "vm")

    async def body(monitor: Firecracker) -> None:
        vm = await monitor.boot(machine, directory)
        assert isinstance(vm, FirecrackerVm)
        seen = status(vm)
        assert int(seen["Uid"][0]) == vm.home.uid
        assert seen["NSpid"][-1] == "1"
        assert int(seen["CapEff"][0], 16) == 0
        assert interfaces(vm) == ["lo"]
        await vm.close()
        assert await vm.wait() in (-9, -1)

    run(body)
    assert (processes(directory), groups(directory)) == ([], [])


def test_a_kernel_that_is_none_is_refused_in_firecrackers_words_and_nothing_is_left(
    machine: Machine, tmp_path: Path
) -> None:
    directory = new_directory(tmp_path, "bad")
    machine.kernel.write_bytes(b"not a kernel" * 100)
    with pytest.raises(SandboxUnavailable, match=r"answered 400: .*[Kk]ernel.* \(PUT /actions\)"):
        run(lambda monitor: monitor.boot(machine, directory))
    assert (processes(directory), groups(directory)) == ([], [])


def test_a_file_that_is_missing_is_named_and_nothing_is_started(machine: Machine, tmp_path: Path) -> None:
    directory = new_directory(tmp_path, "none")
    machine.initrd.unlink()
    if os.geteuid() == 0:
        with pytest.raises(SandboxUnavailable, match="cannot be written: No such file"):
            run(lambda monitor: monitor.boot(machine, directory))
    assert processes(directory) == []


@pytest.mark.parametrize("after_s", [0.0, 0.02, 0.05, 0.1, 0.2])
def test_a_start_that_is_given_up_leaves_no_process(machine: Machine, tmp_path: Path, after_s: float) -> None:
    directory = new_directory(tmp_path, "cancelled")

    async def body(monitor: Firecracker) -> None:
        starting = asyncio.create_task(monitor.boot(machine, directory))
        done, _ = await asyncio.wait([starting], timeout=after_s)
        if done:
            await starting.result().close()
        starting.cancel()
        await asyncio.gather(starting, return_exceptions=True)
        for _ in range(500):
            if not processes(directory):
                return
            await asyncio.sleep(0.01)
        pytest.fail("it is still there")

    run(body)


def test_a_process_killed_by_somebody_else_is_noticed(machine: Machine, tmp_path: Path) -> None:
    async def body(monitor: Firecracker) -> None:
        vm = await monitor.boot(machine, new_directory(tmp_path, "killed"))
        os.kill(vm.pid, 9)
        assert await vm.wait() in (-9, -1)
        with pytest.raises(SandboxUnavailable, match="it ended"):
            await vm.connect()
        vm.kill()
        await vm.close()
        await vm.close()

    run(body)


def test_an_agent_that_never_answers_is_given_up(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(firecracker_vm, "AGENT_S", 0.3)
    monkeypatch.setattr(firecracker_vm, "_KNOCK_S", 0.2)

    async def body(monitor: Firecracker) -> None:
        vm = await monitor.boot(machine, new_directory(tmp_path, "silent"))
        try:
            with pytest.raises(SandboxUnavailable, match="does not answer in time"):
                await vm.connect()
        finally:
            await vm.close()

    run(body)


@pytest.mark.parametrize("name", ["api.sock", "v.sock"])
def test_a_link_in_the_place_of_a_socket_leads_nowhere(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """A guest that has taken over its Firecracker can put one there."""
    reached: list[bytes] = []

    async def host_service(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        reached.append(await reader.read(100))
        writer.write(b"OK 1\n")

    async def body(monitor: Firecracker) -> None:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(firecracker_vm, "AGENT_S", 0.2)
        server = await asyncio.start_unix_server(host_service, "host.sock")
        vm = await monitor.boot(machine, new_directory(tmp_path, "vm"))
        assert isinstance(vm, FirecrackerVm)
        try:
            (vm.home.root / name).unlink()
            (vm.home.root / name).symlink_to(tmp_path / "host.sock")
            with pytest.raises(SandboxUnavailable):
                await (vm.connect() if name == "v.sock" else monitor.snapshot(vm, new_directory(tmp_path, "into")))
        finally:
            await vm.close()
            server.close()

    run(body)
    assert reached == []


def test_a_link_in_the_place_of_a_snapshots_file_is_not_read(machine: Machine, tmp_path: Path) -> None:
    secret, into = tmp_path / "secret", new_directory(tmp_path, "into")
    secret.write_text("of the host")

    async def body(monitor: Firecracker) -> None:
        vm = await monitor.boot(machine, new_directory(tmp_path, "vm"))
        assert isinstance(vm, FirecrackerVm)
        asking = vm.ask

        async def ask(call: Call, timeout_s: float = 1.0) -> bytes:
            answer = await asking(call, timeout_s)
            if isinstance(call, SnapshotCreate):
                (vm.home.root / "new-memory").unlink()
                (vm.home.root / "new-memory").symlink_to(secret)
            return answer

        monkeypatch.setattr(vm, "ask", ask)
        try:
            with pytest.raises(SandboxUnavailable, match="something else has this name"):
                await monitor.snapshot(vm, into)
        finally:
            await vm.close()

    with pytest.MonkeyPatch.context() as monkeypatch:
        run(body)
    assert not (into / "memory").exists()


@jailed
def test_clones_of_a_snapshot_share_its_memory_file_and_no_user(machine: Machine, tmp_path: Path) -> None:
    snapshot = new_directory(tmp_path, "snapshot")

    async def body(monitor: Firecracker) -> None:
        vm = await monitor.boot(machine, new_directory(tmp_path, "booted"))
        await monitor.snapshot(vm, snapshot)
        await vm.close()
        assert (snapshot / "memory").stat().st_size == machine.memory_mib * 2**20
        clones = [await monitor.clone(machine, snapshot, new_directory(tmp_path, f"clone{n}")) for n in range(3)]
        for clone in clones:
            assert isinstance(clone, FirecrackerVm)
            assert (clone.home.root / "memory").samefile(snapshot / "memory")
        assert len({clone.home.uid for clone in clones if isinstance(clone, FirecrackerVm)}) == 3
        for clone in clones:
            await clone.close()

    run(body)
    assert {file.stat().st_mode & 0o777 for file in snapshot.iterdir()} == {0o444}


def test_a_clone_made_to_be_kept_is_snapshotted_and_leaves_the_snapshot_it_came_from_alone(
    machine: Machine, tmp_path: Path
) -> None:
    first, second = new_directory(tmp_path, "first"), new_directory(tmp_path, "second")

    async def body(monitor: Firecracker) -> None:
        vm = await monitor.boot(machine, new_directory(tmp_path, "booted"))
        await monitor.snapshot(vm, first)
        await vm.close()
        before = [(file.name, file.read_bytes()) for file in sorted(first.iterdir())]
        clone = await monitor.clone(machine, first, new_directory(tmp_path, "clone"), fork=True)
        await monitor.snapshot(clone, second)
        await clone.close()
        assert [(file.name, file.read_bytes()) for file in sorted(first.iterdir())] == before
        again = await monitor.clone(machine, second, new_directory(tmp_path, "again"))
        await again.close()

    run(body)


def test_a_snapshot_that_is_broken_is_refused_in_firecrackers_words(machine: Machine, tmp_path: Path) -> None:
    snapshot = new_directory(tmp_path, "broken")
    for name in ("state", "memory"):
        (snapshot / name).write_bytes(b"nonsense" * 1000)
    with pytest.raises(SandboxUnavailable, match=r"answered 400: .* \(PUT /snapshot/load\)"):
        run(lambda monitor: monitor.clone(machine, snapshot, new_directory(tmp_path, "clone")))
