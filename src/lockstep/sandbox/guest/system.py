"""The kernel calls that Python does not offer, and what a machine needs before anything else: devices, mounts, limits.

Linux on amd64. Every function raises OSError when the kernel refuses.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import signal
import socket
import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

MODULES = "/lib/lockstep-modules"
"""Holds `order`, the names of the modules beside it in the order they must be loaded."""
CGROUP = "/sys/fs/cgroup/tool"
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT, MS_BIND, MS_MOVE = 1, 2, 4, 8, 32, 4096, 8192
MS_REC_PRIVATE = 0x4000 | 0x40000
CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWIPC = 0x20000, 0x4000000, 0x8000000

_FINIT_MODULE = 313
_RNDADDENTROPY, _RNDRESEEDCRNG = 0x40085203, 0x5207
_SIOCSIFFLAGS, _UP_AND_RUNNING = 0x8914, 0x41
_PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS, _LAST_CAPABILITY = 24, 38, 63
_EEXIST = 17
_SETTINGS = {
    "kernel/dmesg_restrict": "1",
    "kernel/kptr_restrict": "2",
    "kernel/unprivileged_bpf_disabled": "1",
    "kernel/perf_event_paranoid": "3",
    "kernel/printk": "1 1 1 1",
    "user/max_user_namespaces": "0",
    "vm/unprivileged_userfaultfd": "0",
    "vm/panic_on_oom": "0",
}

_libc = ctypes.CDLL(None, use_errno=True)


def _checked(result: int, what: str) -> None:
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error), what)


def mount(source: str, target: str, kind: str = "", flags: int = 0, data: str = "") -> None:
    _checked(_libc.mount(source.encode(), target.encode(), kind.encode(), flags, data.encode()), target)


def unshare(flags: int) -> None:
    _checked(_libc.unshare(flags), "unshare")


def drop_privileges(user: int) -> None:
    """Become this user for good: no groups, no capabilities, none to be had by executing anything."""
    for capability in range(_LAST_CAPABILITY + 1):
        _libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0)  # fails beyond the last one this kernel knows
    os.setgroups([])
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)
    _checked(_libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs")


def prepare() -> None:
    """Mount what the agent needs, load the modules of the image, and tighten what an ordinary user may ask for."""
    for source, target, kind in (("proc", "/proc", "proc"), ("sysfs", "/sys", "sysfs"), ("dev", "/dev", "devtmpfs")):
        os.makedirs(target, exist_ok=True)
        mount(source, target, kind, MS_NOSUID)
    mount("run", "/run", "tmpfs", MS_NOSUID | MS_NODEV, "mode=700")
    _load_modules()
    for name, value in _SETTINGS.items():
        _write(f"/proc/sys/{name}", value)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, _SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", _UP_AND_RUNNING))
    mount("cgroup", "/sys/fs/cgroup", "cgroup2", MS_NOSUID | MS_NODEV | MS_NOEXEC)
    _write("/sys/fs/cgroup/cgroup.subtree_control", "+memory +pids")


def make_cgroup(memory_bytes: int, processes: int) -> None:
    """The control group of the tool: what is over its memory ends all of it together."""
    os.makedirs(CGROUP, exist_ok=True)
    for name, value in (("memory.max", memory_bytes), ("memory.oom.group", 1), ("pids.max", processes)):
        _write(f"{CGROUP}/{name}", str(value))


def ran_out_of_memory() -> bool:
    """Whether the kernel killed the tool for its memory."""
    with open(f"{CGROUP}/memory.events") as file:
        counts: Mapping[str, str] = dict(line.split() for line in file)
    return counts.get("oom_kill", "0") != "0"


def reseed(entropy: bytes) -> None:
    """Give the kernel's generator a state of its own; that of a cloned machine is the same in every clone till then."""
    with open("/dev/urandom", "wb", buffering=0) as device:
        request = struct.pack("ii", len(entropy) * 8, len(entropy)) + entropy
        fcntl.ioctl(device, _RNDADDENTROPY, request)
        fcntl.ioctl(device, _RNDRESEEDCRNG, 0)


def kill_user(user: int) -> None:
    """SIGKILL every process of this user at once. A child becomes that user, so that nobody else can be hit."""
    child = os.fork()
    if child == 0:
        try:
            os.setresuid(user, user, user)
            os.kill(-1, signal.SIGKILL)
        finally:
            os._exit(0)
    os.waitpid(child, 0)


def waits_for_input(pid: int, pipe_inode: int) -> bool:
    """Whether the main thread of a process is inside `read` on the pipe with this inode."""
    try:
        with open(f"/proc/{pid}/syscall") as file:
            number, first, *_ = file.read().split()
        return number == "0" and os.stat(f"/proc/{pid}/fd/{int(first, 16)}").st_ino == pipe_inode
    except (OSError, ValueError):
        return False


def _load_modules() -> None:
    with open(f"{MODULES}/order") as file:
        names = file.read().split()
    for name in names:
        with open(f"{MODULES}/{name}.ko", "rb") as module:
            result = _libc.syscall(_FINIT_MODULE, module.fileno(), b"", 0)
            if result < 0 and ctypes.get_errno() != _EEXIST:
                _checked(result, name)


def _write(path: str, value: str) -> None:
    with open(path, "w") as file:
        file.write(value)
