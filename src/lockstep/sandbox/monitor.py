"""What a microVM backend asks of a virtual machine monitor; Firecracker and QEMU stand behind it.

A monitor boots one kind of machine: kernel, initramfs, read-only drives, a source of randomness and one byte stream to
the agent inside. No network card. It knows nothing of agents, tools or permits.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from lockstep.values import Tier

AGENT_PORT = 5005
"""Where the agent inside listens on vsock, for monitors that have one."""

Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@dataclass(frozen=True, kw_only=True, slots=True)
class Machine:
    """A machine to boot. `kernel` is an ELF image; `drives` are attached read-only in this order."""

    kernel: Path
    initrd: Path
    cmdline: str
    """What every monitor needs; each adds what its own devices need."""
    drives: tuple[Path, ...]
    memory_mib: int
    vcpus: int = 1


class Vm(Protocol):
    """A running machine. It dies with its starter, or carries its directory's path or name as an argument."""

    @property
    def pid(self) -> int:
        """The host process whose CPU time and memory are the machine's."""

    async def connect(self) -> Stream:
        """The one byte stream to the agent inside. Called once.

        Raises:
            SandboxUnavailable: nobody answers inside in reasonable time, or the machine has ended.
        """

    async def wait(self) -> int:
        """The exit code of the monitor's process, once it has ended."""

    def kill(self) -> None:
        """End it now; `wait` then returns soon. Nothing happens when it has ended."""

    async def close(self) -> None:
        """Kill, reap, and close what is held open; files are the caller's, who owns the directory."""


class Monitor(Protocol):
    """A way to run machines. Every directory given is the caller's, mode 0700, and used for nothing else."""

    @property
    def name(self) -> str:
        """ "firecracker", "qemu-kvm" or "qemu-tcg"."""

    @property
    def tier(self) -> Tier: ...

    async def prepare(self) -> str:
        """Find out whether this monitor can be had here; its version, on which snapshots depend. Called first.

        Raises:
            SandboxUnavailable: it is not installed, or cannot run a guest on this machine.
        """

    async def boot(self, machine: Machine, directory: Path) -> Vm:
        """Start the machine; what its process leaves on disk lies in `directory`.

        Raises:
            SandboxUnavailable: the monitor did not start; nothing is left running.
        """

    async def snapshot(self, vm: Vm, into: Path) -> None:
        """Freeze the machine for good and keep it in the existing empty directory `into`.

        The machine was booted, or cloned with `fork=True`. It is ended by this; the caller still closes it.

        Raises:
            SandboxUnavailable: it could not be kept.
        """

    async def clone(self, machine: Machine, snapshot: Path, directory: Path, *, fork: bool = False) -> Vm:
        """A machine that goes on where the snapshot was taken; clones of one snapshot share no writable memory.

        `machine` is the one of the snapshot, but for its drives: those may hold other content, in the same number of
        files of the same sizes, provided the guest had not read them yet. With `fork`, the clone can be snapshotted.

        Raises:
            SandboxUnavailable: the snapshot does not fit this monitor or does not load.
        """
