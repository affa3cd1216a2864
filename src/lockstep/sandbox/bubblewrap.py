"""bubblewrap: namespaces, seccomp, Landlock, limits on the host's own kernel; only where an agent's policy accepts it.

Fast and no more than that: a bug in the host's kernel is a way out. Amd64 alone, because its filter knows no other.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import platform
import select
import shutil
import signal
import time
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath

from lockstep.errors import SandboxUnavailable
from lockstep.sandbox.canary import passes
from lockstep.sandbox.cgroup import Cgroup
from lockstep.sandbox.contract import Findings, Limits, Process, SandboxSpec
from lockstep.sandbox.egress import EgressProxy
from lockstep.sandbox.egress_ca import EgressCA
from lockstep.sandbox.egress_inside import furnished
from lockstep.sandbox.framed import kill_child
from lockstep.sandbox.guest import launch
from lockstep.sandbox.guest.filter import program
from lockstep.sandbox.gvisor_spec import EGRESS_SOCKET, ETC, SYSTEM, USER, check_mounts, environment, rlimits
from lockstep.sandbox.interpreter import interpreter
from lockstep.sandbox.leftovers import Ledger, Remains, unwritable
from lockstep.sandbox.process import SandboxProcess
from lockstep.sandbox.proven import Proven
from lockstep.sandbox.sentry import cgroup_cpu_s, tree_cpu_s, tree_memory_bytes
from lockstep.sandbox.uncancelled import to_the_end
from lockstep.values import Tier

INSTALL = "Install it with `apt-get install bubblewrap`, or name a binary in LOCKSTEP_BWRAP."
_REMEDY = "Run `lockstep doctor` to see what this machine can do."
_START_S = 20.0
_HOLDER_PROCESSES = 2  # bubblewrap's own, in the same group
_OVERHEAD_BYTES = 64 * 2**20
_KILLED = 128 + signal.SIGKILL


class Bubblewrap:
    """The process tier. `state_dir` remembers what was proven and which sandboxes exist."""

    def __init__(self, state_dir: Path, bwrap: str | None = None) -> None:
        self._named = bwrap
        self._ledger = Ledger(state_dir)
        self._proven = Proven(state_dir / "bubblewrap.json")
        self._authority = EgressCA(state_dir / "egress-ca")
        self._findings: Findings | None = None
        self._canary_lock = asyncio.Lock()

    @property
    def tier(self) -> Tier:
        return Tier.PROCESS

    async def canary(self) -> Findings:
        async with self._canary_lock:
            if self._findings is None:
                self._findings = await self._try_out()
            return self._findings

    async def available(self) -> Findings:
        if self._findings is None:
            with contextlib.suppress(SandboxUnavailable):
                path = _locate(self._named)
                if self._proven.holds(_grounds(path)):
                    self._findings = self._result(((path, "proven before"),), available=True)
        return self._findings or await self.canary()

    async def start(self, spec: SandboxSpec) -> Process:
        began = time.monotonic()
        bwrap = _locate(self._named)
        spec, proxy = await furnished(spec, self._authority)
        mounts = check_mounts(spec.mounts)
        remains = self._ledger.create()
        process: SandboxProcess | None = None
        try:
            if proxy is not None:
                await proxy.listen(remains.egress_socket)
            body, status = await _spawn(bwrap, spec, mounts, remains, self._ledger)
            process = SandboxProcess(body, spec, proxy, began)
            await _started(status, process)
        except BaseException as error:
            await to_the_end(asyncio.create_task(self._give_up(remains, process, proxy)))
            if isinstance(error, OSError):
                raise unwritable(error) from error
            raise
        process.started()
        return process

    async def sweep(self) -> int:
        return await self._ledger.sweep()

    async def _give_up(self, remains: Remains, process: SandboxProcess | None, proxy: EgressProxy | None) -> None:
        if process is not None:
            await process.close()
            return
        if proxy is not None:
            await proxy.close()
        await self._ledger.hunt(remains)
        await self._ledger.remove(remains)

    async def _try_out(self) -> Findings:
        try:
            path = _locate(self._named)
        except SandboxUnavailable as error:
            return self._result((("bwrap", error.message),), error.remedy, available=False)
        available, seen = await passes(path, self.start)
        if available:
            self._proven.save(_grounds(path))
        remedy = "" if available else "Run as root, or allow user namespaces (sysctl user.max_user_namespaces)."
        return self._result(seen, remedy, available=available)

    def _result(self, details: tuple[tuple[str, str], ...], remedy: str = "", *, available: bool) -> Findings:
        return Findings(tier=self.tier, backend="bubblewrap", available=available, details=details, remedy=remedy)


class _Body:
    """A `bwrap` and everything below it."""

    def __init__(
        self,
        child: asyncio.subprocess.Process,
        spec: SandboxSpec,
        cgroup: Cgroup | None,
        ledger: Ledger,
        remains: Remains,
    ) -> None:
        self.child = child
        self._limit_bytes = spec.limits.memory_bytes
        self._cgroup = cgroup
        self._ledger = ledger
        self._remains = remains
        self.cpu_s: float | None = None
        self.peak_memory_bytes: int | None = None

    @property
    def memory_limit_bytes(self) -> int:
        return self._limit_bytes + _OVERHEAD_BYTES

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


async def _spawn(
    bwrap: str, spec: SandboxSpec, mounts: Mapping[str, Path], remains: Remains, ledger: Ledger
) -> tuple[_Body, int]:
    """Start `bwrap` in a group of its own; also the descriptor on which the launcher inside says how far it came."""
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
            child = await asyncio.create_subprocess_exec(
                *command,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                env={},
                pass_fds=(said, options, rules),
                start_new_session=True,
                preexec_fn=cgroup.joins() if cgroup else None,
            )
        except BaseException:
            os.close(status)
            raise
    return _Body(child, spec, cgroup, ledger, remains), status


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


async def _started(status: int, process: SandboxProcess) -> None:
    """Return when the launcher has become the tool.

    Raises:
        SandboxUnavailable: it did not get that far; nothing of the tool ran.
    """
    said = await asyncio.to_thread(_read_all, status)
    if said == b"+":
        return
    if said:
        why = said.decode(errors="replace").lstrip("+")
    else:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(asyncio.shield(process.framed.ended), _START_S)
        why = process.stderr_tail().strip().rpartition("\n")[2][-300:] or "bubblewrap ended without a word"
    raise SandboxUnavailable(f"The bubblewrap sandbox did not start: {why}.", remedy=_REMEDY)


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


def _locate(named: str | None) -> str:
    """The path of `bwrap`: the argument, then LOCKSTEP_BWRAP, then PATH.

    Raises:
        SandboxUnavailable: there is none, or this machine's processor is not one the filter is for.
    """
    if platform.machine() != "x86_64":
        raise SandboxUnavailable(f"The process tier knows no filter for {platform.machine()}.", remedy="Use gVisor.")
    wanted = named or os.environ.get("LOCKSTEP_BWRAP") or "bwrap"
    found = shutil.which(wanted)
    if found is None:
        raise SandboxUnavailable(f"bubblewrap's {wanted} is not an executable on this machine.", remedy=INSTALL)
    return os.path.realpath(found)


def _grounds(path: str) -> list[str | int]:
    return [path, os.stat(path).st_mtime_ns, os.uname().release, os.geteuid()]


_LAUNCHER = Path(launch.__file__).read_text()
