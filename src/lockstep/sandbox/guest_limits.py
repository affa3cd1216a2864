"""What of a sandbox's description goes to the agent in a guest, and how large its machine must be. Pure."""

from __future__ import annotations

import math

from lockstep.sandbox.contract import Limits, SandboxSpec
from lockstep.sandbox.gvisor_spec import environment
from lockstep.values import JsonObject

MIB = 2**20
GUEST_BYTES = 192 * MIB
"""What kernel, programs and agent take of a machine's memory."""
MONITOR_BYTES = 192 * MIB
"""What a monitor may use on top of the machine's memory; emulation keeps translated code."""
_SMALLEST_MIB = 768


def machine_memory_mib(limits: Limits, drive_bytes: int) -> int:
    """One of few sizes, so that machines can share a snapshot. The tool's own limit is kept inside the guest."""
    needed = limits.memory_bytes + limits.disk_bytes + 2 * (drive_bytes - 16 * MIB) + GUEST_BYTES
    size = _SMALLEST_MIB
    while size * MIB < needed:
        size *= 2
    return size


def start_request(spec: SandboxSpec) -> JsonObject:
    """The fields of the agent's `start`."""
    limits = spec.limits
    return {
        "argv": list(spec.argv),
        "env": environment(spec),
        "egress": bool(spec.egress),
        "limits": {
            "memory_bytes": limits.memory_bytes,
            "disk_bytes": limits.disk_bytes,
            "processes": limits.processes,
            "open_files": limits.open_files,
            "file_bytes": limits.file_bytes,
            "cpu_s": max(1, math.ceil(limits.cpu_s)),
        },
    }
