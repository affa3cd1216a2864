"""Whether KVM runs guests here at a useful speed: one that counts to ten million. A device that opens proves nothing.

Where there is no hardware virtualization a /dev/kvm may step through every instruction: two of them run at once, and a
kernel would boot for an hour. Cheap, and so tried first, in a process of its own that can be given up; what proves that
real guests run is the canary, which boots one.
API: Documentation/virt/kvm/api.rst of the kernel.
"""

from __future__ import annotations

import asyncio
import os
import sys

from lockstep.errors import SandboxUnavailable
from lockstep.sandbox.cache import cache_directory
from lockstep.sandbox.child import kill_child, start_child
from lockstep.sandbox.proven import Proven

_DEVICE = "/dev/kvm"
_PATIENCE_S = 6.0
_REMEMBERED_S = 3600.0
_REMEDY = "Use a machine with hardware virtualization that this user may use (/dev/kvm)."
_PROBE = r"""
import fcntl, mmap, os, struct, ctypes
kvm = os.open("/dev/kvm", os.O_RDWR)
machine = fcntl.ioctl(kvm, 0xAE01, 0)
memory = mmap.mmap(-1, 4096)
memory[:13] = bytes.fromhex("66b980969800" "6649" "75fc" "e610" "f4")  # ecx = 10**7; until 0: dec; out 0x10, al; hlt
address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
fcntl.ioctl(machine, 0x4020AE46, struct.pack("IIQQQ", 0, 0, 0x1000, 4096, address))
processor = fcntl.ioctl(machine, 0xAE41, 0)
shared = mmap.mmap(processor, fcntl.ioctl(kvm, 0xAE04, 0))
special = bytearray(312)
fcntl.ioctl(processor, 0x8138AE83, special)
special[0:8] = bytes(8); special[12:14] = bytes(2)  # cs: base and selector 0
fcntl.ioctl(processor, 0x4138AE84, bytes(special))
registers = bytearray(144)
registers[128:136] = struct.pack("Q", 0x1000); registers[136:144] = struct.pack("Q", 2)  # rip, rflags
fcntl.ioctl(processor, 0x4090AE82, bytes(registers))
fcntl.ioctl(processor, 0xAE80, 0)
reason = struct.unpack_from("I", shared, 8)[0]
print("ran" if reason == 2 else "ended for reason %d" % reason)
"""


async def runs_guests() -> None:
    """Run the smallest of guests. That it did not run is remembered for an hour: to find that out can take seconds.

    Raises:
        SandboxUnavailable: there is no KVM for us, or it does not run guests.
    """
    if not os.path.exists(_DEVICE):  # noqa: ASYNC240 - a device node, nothing that could block
        raise SandboxUnavailable("This machine has no /dev/kvm.", remedy=_REMEDY)
    if not os.access(_DEVICE, os.R_OK | os.W_OK):
        raise SandboxUnavailable("/dev/kvm may not be used by this user.", remedy=_REMEDY)
    refused = Proven(cache_directory() / "kvm-refused.json", valid_s=_REMEMBERED_S)
    grounds: list[str | int] = [os.uname().release, os.geteuid()]
    if refused.recall(grounds):
        raise SandboxUnavailable("/dev/kvm is there, but did not run a guest within the hour.", remedy=_REMEDY)
    try:
        await _run_one()
    except SandboxUnavailable:
        refused.save(grounds, True)
        raise


async def _run_one() -> None:
    pipe, quiet = asyncio.subprocess.PIPE, asyncio.subprocess.DEVNULL
    probe = await start_child(sys.executable, "-I", "-S", "-c", _PROBE, stdin=quiet, stdout=pipe, stderr=pipe)
    try:
        said, trouble = await asyncio.wait_for(probe.communicate(), _PATIENCE_S)
    except TimeoutError:
        raise SandboxUnavailable("/dev/kvm is there, but a guest in it makes no headway.", remedy=_REMEDY) from None
    finally:
        kill_child(probe)
        await probe.wait()
    if said.strip() != b"ran":
        why = (trouble or said).decode(errors="replace").strip().rpartition("\n")[2]
        raise SandboxUnavailable(f"/dev/kvm is there, but runs no guest ({why[:200]}).", remedy=_REMEDY)
