"""How a VM's process is started and what it finds in its directory; no Firecracker is needed for that."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from lockstep.errors import SandboxUnavailable
from lockstep.sandbox.firecracker import locate
from lockstep.sandbox.firecracker_jail import Home, Limits, cgroup_version, new_home

LIMITS = Limits(memory_mib=128, vcpus=1, writes_snapshot=False)
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to give files away")


def jailed(directory: Path) -> Home:
    home = Home(directory=directory, firecracker="/opt/firecracker-v1.16.1", jailer="/opt/jailer", uid=1_500_000_000)
    home.make()
    return home


def script(path: Path, says: str) -> None:
    path.write_text(f"#!/bin/sh\necho '{says}'\n")
    path.chmod(0o755)


def test_a_jailed_process_has_an_id_namespaces_and_limits_of_its_own(tmp_path: Path) -> None:
    home = jailed(tmp_path / "lockstep-s0")
    command = home.command(LIMITS, 2)
    text = " ".join(command)
    assert text.startswith("unshare --net --ipc --uts -- /opt/jailer --id lockstep-s0 --exec-file")
    assert "--new-pid-ns --uid 1500000000 --gid 1500000000" in text
    assert f"--chroot-base-dir {tmp_path}/lockstep-s0" in text
    assert "--resource-limit fsize=1048576 --resource-limit no-file=256" in text
    assert "--cgroup-version 2 --parent-cgroup lockstep --cgroup memory.max=" in text
    assert "cpu.max=100000 100000" in command
    assert command[-3:] == ["--", "--api-sock", "api.sock"]


def test_control_groups_are_left_out_where_there_are_none(tmp_path: Path) -> None:
    assert "cgroup" not in " ".join(jailed(tmp_path / "vm").command(LIMITS, 0))
    assert cgroup_version() in (0, 1, 2)


def test_only_a_machine_that_is_to_be_kept_may_write_a_file_as_large_as_its_memory() -> None:
    assert LIMITS.file_bytes == 2**20
    assert Limits(memory_mib=128, vcpus=1, writes_snapshot=True).file_bytes > 128 * 2**20


def test_two_vms_have_two_users(tmp_path: Path) -> None:
    users = {new_home(tmp_path, "/opt/firecracker", "/opt/jailer").uid for _ in range(50)}
    assert len(users) == 50
    assert all(user is not None and user >= 2**30 for user in users)


def test_without_a_jailer_the_process_runs_in_the_vms_directory(tmp_path: Path) -> None:
    home = new_home(tmp_path, "/opt/firecracker", None)
    source = tmp_path / "kernel.elf"
    source.write_bytes(b"kernel")
    home.make()
    home.place(source, "kernel")
    assert home.root == tmp_path
    assert (home.root / "kernel").read_bytes() == b"kernel"
    assert home.command(LIMITS, 2) == ["/opt/firecracker", "--id", home.id, "--api-sock", "api.sock"]


@as_root
def test_a_file_that_all_may_read_is_linked_and_any_other_copied_for_the_jail_alone(tmp_path: Path) -> None:
    home = jailed(tmp_path / "vm")
    open_file, closed_file = tmp_path / "open", tmp_path / "closed"
    for file, mode in ((open_file, 0o444), (closed_file, 0o600)):
        file.write_bytes(b"data")
        file.chmod(mode)
        home.place(file, file.name)
    assert (home.root / "open").samefile(open_file)
    copy = (home.root / "closed").stat()
    assert (copy.st_uid, copy.st_gid, copy.st_mode & 0o777) == (0, home.uid, 0o440)
    assert closed_file.stat().st_mode & 0o777 == 0o600


def test_without_firecracker_the_remedy_names_the_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FIRECRACKER_BIN", "/nowhere/firecracker")
    with pytest.raises(SandboxUnavailable, match="FIRECRACKER_BIN and JAILER_BIN"):
        asyncio.run(locate())


@as_root
def test_root_never_runs_firecracker_without_the_jailer_of_its_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    binary, jailer = tmp_path / "firecracker", tmp_path / "jailer"
    script(binary, "Firecracker v1.16.1")
    monkeypatch.setenv("FIRECRACKER_BIN", str(binary))
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(SandboxUnavailable, match="not its jailer, which root must use"):
        asyncio.run(locate())
    script(jailer, "Jailer v1.15.0")
    with pytest.raises(SandboxUnavailable, match=r"Firecracker is 1\.16\.1, its jailer 1\.15\.0"):
        asyncio.run(locate())
    script(jailer, "Jailer v1.16.1")
    assert asyncio.run(locate()).version == "1.16.1"


def test_a_binary_that_says_no_version_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script(tmp_path / "firecracker", "hello")
    monkeypatch.setenv("FIRECRACKER_BIN", str(tmp_path / "firecracker"))
    with pytest.raises(SandboxUnavailable, match="does not say its version"):
        asyncio.run(locate())
