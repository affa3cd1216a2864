"""One `bwrap`: what is unshared and seen, how it becomes the tool, how it is measured and ended.

The launcher inside says on a pipe how far it came. So what fails before it becomes the tool is `SandboxUnavailable`
(nothing of the tool ran); what ends after that is `ProcessEnded`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import select
import signal
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath

from lockstep.errors import SandboxUnavailable
from lockstep.sandbox.cgroup import Cgroup
from lockstep.sandbox.child import kill_child, start_child
from lockstep.sandbox.contract import Limits, SandboxSpec
from lockstep.sandbox.framed import FramedChild
from lockstep.sandbox.guest import launch
from lockstep.sandbox.guest.filter import program
from lockstep.sandbox.gvisor_spec import EGRESS_SOCKET, ETC, SYSTEM, USER, environment, rlimits
from lockstep.sandbox.interpreter import interpreter
from lockstep.sandbox.leftovers import Ledger, Remains
from lockstep.sandbox.sentry import cgroup_cpu_s, tree_cpu_s, tree_memory_bytes

_REMEDY = "Run `lockstep doctor` to see what this machine can do."
_START_S = 20.0
_HOLDER_PROCESSES = 2  # bubblewrap's own, in the same group
_OVERHEAD_BYTES = 64 * 2**20
_KILLED = 128 + signal.SIGKILL
_LAUNCHER = Path(launch.__file__).read_text()


class BubblewrapBody:
    """A `bwrap` and everything below it."""

    def __init__(
        self,
        child: asyncio.subprocess.Process,
        spec: SandboxSpec,
        cgroup: Cgroup | None,
        ledger: Ledger,
        remains: Remains,
        status: int,
    ) -> None:
        """`status`: the descriptor on which the launcher inside says how far it came."""
        self.child = child
        self._status = status
        self._limit_bytes = spec.limits.memory_bytes
        self._cgroup = cgroup
        self._ledger = ledger
        self._remains = remains
        self.cpu_s: float | None = None
        self.peak_memory_bytes: int | None = None

    @property
    def memory_limit_bytes(self) -> int:
        return self._limit_bytes + _OVERHEAD_BYTES

    async def started(self, framed: FramedChild) -> None:
        """Until the launcher has become the tool."""
        said = await asyncio.to_thread(_read_all, self._status)
        if said == b"+":
            return
        if said:
            why = said.decode(errors="replace").lstrip("+")
        else:
            await asyncio.wait([framed.ended], timeout=_START_S)
            why = framed.stderr_tail().strip().rpartition("\n")[2][-300:] or "bubblewrap ended without a word"
        raise SandboxUnavailable(f"The bubblewrap sandbox did not start: {why}.", remedy=_REMEDY)

    def sample(self) -> None:
        with contextlib.suppress(OSError, ValueError, IndexError):
            measured = cgroup_cpu_s(self._cgroup.name) if self._cgroup else tree_cpu_s(self.child.pid)
            self.cpu_s = max(measured, self.cpu_s or 0.0)
        with contextlib.suppress(OSError, ValueError, IndexError):
            used = self._cgroup.peak_memory_bytes() if self._cgroup else tree_memory_bytes(self.child.pid)
            self.peak_memory_bytes = max(used, self.peak_memory_bytes or 0)

    def kill(self) -> None:
        """The first process of the namespace dies with bubblewrap, and all others in it with that one."""
        if self._cgroup is not None:
            self._cgroup.kill()
        kill_child(self.child)

    def blame(self, exit_code: int) -> str:
        killed = exit_code in (_KILLED, -signal.SIGKILL)
        return "memory_bytes" if killed and self._cgroup is not None and self._cgroup.out_of_memory() else ""

    def last_words(self) -> str:
        return ""

    async def end(self, *, exited: bool) -> None:
        if not exited:
            await self._ledger.hunt(self._remains)
        await self._ledger.remove(self._remains)


async def spawn(
    bwrap: str, spec: SandboxSpec, mounts: Mapping[str, Path], remains: Remains, ledger: Ledger
) -> BubblewrapBody:
    """Start `bwrap` in a group of its own.

    Raises:
        SandboxUnavailable: the binary cannot be executed.
    """
    as_root = os.geteuid() == 0
    limits = spec.limits
    cgroup = None
    if as_root:
        memory_bytes = limits.memory_bytes + limits.disk_bytes + _OVERHEAD_BYTES
        processes = limits.processes + _HOLDER_PROCESSES
        cgroup = Cgroup.make(remains.cgroup, memory_bytes=memory_bytes, processes=processes)
    status, said = os.pipe()
    with contextlib.ExitStack() as ours:
        ours.callback(os.close, said)
        plan = {
            "status": said,
            "uid": USER if as_root else None,
            "rlimits": _rlimits(limits, grouped=cgroup is not None),
            "argv": spec.argv,
            "env": environment(spec),
        }
        options = ours.enter_context(_readable("\0".join(_options(spec, mounts, remains, as_root)).encode()))
        rules = ours.enter_context(_readable(program()))
        command = [bwrap, "--args", str(options), "--seccomp", str(rules), "--"]
        command += [*interpreter()[0], "-c", _LAUNCHER, json.dumps(plan), remains.directory]
        try:
            child = await start_child(
                *command,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                env={},
                pass_fds=(said, options, rules),
                start_new_session=True,
                preexec_fn=cgroup.joins() if cgroup else None,
            )
        except (OSError, subprocess.SubprocessError) as error:
            os.close(status)
            raise SandboxUnavailable(f"{bwrap} does not start: {error}.", remedy=_REMEDY) from error
        except BaseException:
            os.close(status)
            raise
    return BubblewrapBody(child, spec, cgroup, ledger, remains, status)


def _rlimits(limits: Limits, *, grouped: bool) -> list[tuple[str, int]]:
    """Processes are counted by the group; without one by the user, which the one that holds the namespace is too."""
    values = dict(rlimits(limits))
    if grouped:
        del values["RLIMIT_NPROC"]
    else:
        values["RLIMIT_NPROC"] += 1
    return list(values.items())


def _options(spec: SandboxSpec, mounts: Mapping[str, Path], remains: Remains, as_root: bool) -> Iterator[str]:
    """bubblewrap's own options: what is unshared, what is seen, who one is."""
    etc = remains.bundle / "etc"
    etc.mkdir()
    for name, text in ETC.items():
        (etc / name).write_text(text)
        (etc / name).chmod(0o644)
    etc.chmod(0o755)
    if as_root:  # another user is needed to see the mounts, so privileges are given up by the launcher
        yield from ("--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts", "--unshare-cgroup-try")
        yield from ("--cap-drop", "ALL", "--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID")
    else:
        yield from ("--unshare-all", "--uid", str(USER), "--gid", str(USER))
    yield from ("--die-with-parent", "--new-session", "--hostname", "sandbox")
    for directory in sorted({parent for target in (*SYSTEM, *mounts, EGRESS_SOCKET) for parent in _parents(target)}):
        yield from ("--perms", "0755", "--dir", directory)
    for path in SYSTEM:
        yield from ("--ro-bind", path, path)
    for name in ("bin", "lib", "lib64"):
        yield from ("--symlink", f"usr/{name}", f"/{name}")
    yield from ("--ro-bind", str(etc), "/etc", "--proc", "/proc", "--dev", "/dev")
    for path in ("/tmp", "/work"):
        half = str(max(4096, spec.limits.disk_bytes // 2))
        yield from ("--perms", "1777", "--size", half, "--tmpfs", path)
    for target, source in sorted(mounts.items()):
        yield from ("--ro-bind", str(source), target)
    if spec.egress:
        yield from ("--bind", str(remains.egress_socket), EGRESS_SOCKET)
    yield from ("--remount-ro", "/dev", "--remount-ro", "/", "--chdir", "/work")


def _parents(target: str) -> list[str]:
    """The directories above a mount point, without the root; what bubblewrap makes by itself only root may enter."""
    return [str(parent) for parent in PurePosixPath(target).parents][:-1]


def _read_all(descriptor: int) -> bytes:
    """What is written to a pipe until nobody holds its other end, or nobody writes within the time to start."""
    with open(descriptor, "rb", buffering=0) as pipe:
        said = b""
        while select.select([pipe], [], [], _START_S)[0] and (piece := pipe.read(4096)):
            said += piece
        return said


@contextlib.contextmanager
def _readable(data: bytes) -> Iterator[int]:
    """A descriptor from which a child reads these bytes."""
    descriptor = os.memfd_create("lockstep", 0)
    try:
        os.write(descriptor, data)
        os.lseek(descriptor, 0, os.SEEK_SET)
        yield descriptor
    finally:
        os.close(descriptor)
