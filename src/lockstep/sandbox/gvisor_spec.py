"""The OCI bundle of one sandbox: an empty read-only skeleton, the interpreter's directories, the mounts of the spec.

Pure description plus the few files it needs on disk; starts nothing.
"""

from __future__ import annotations

import json
import math
import os
import stat
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath

from lockstep.errors import ConfigError
from lockstep.sandbox.contract import Limits, SandboxSpec
from lockstep.values import Json, JsonObject, digest_json

USER = 65534
SYSTEM = tuple(path for path in ("/usr/bin", "/usr/lib", "/usr/lib64") if os.path.isdir(path))
"""What of the host every sandbox sees, read-only: programs and libraries, nothing from /etc."""
EGRESS_SOCKET = "/run/egress.sock"
OVERHEAD_BYTES = 128 * 2**20
"""What gVisor itself may use on top of the call's memory. Control groups, the backstop, grant twice that."""

_RESERVED = (*SYSTEM, "/bin", "/lib", "/lib64", "/dev", "/etc", "/proc", "/run", "/sys", "/tmp", "/work")
_READ_ONLY = ["rbind", "ro", "nosuid", "nodev"]
_CAPABILITY_SETS = ("bounding", "effective", "inheritable", "permitted", "ambient")
_BACKSTOP_PIDS = 512  # an idle sandbox uses about 43 host threads; hitting this crashes the sentry
ETC = {
    "passwd": "root:x:0:0:root:/:/usr/sbin/nologin\nnobody:x:65534:65534:nobody:/work:/usr/sbin/nologin\n",
    "group": "root:x:0:\nnogroup:x:65534:\n",
    "hosts": "127.0.0.1 localhost\n",
    "nsswitch.conf": "passwd: files\ngroup: files\nhosts: files\n",
}
_PROXY = "http://127.0.0.1:3128"
_EGRESS_ENV = {
    "LOCKSTEP_EGRESS": "1",
    **dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"), _PROXY),
}


def check_mounts(mounts: Mapping[str, Path]) -> dict[str, Path]:
    """The mounts with their sources resolved.

    Raises:
        ConfigError: a target is not a plain absolute path, is taken, or lies in another one; a source is missing or
            contains a socket, which would be a way out of the sandbox.
    """
    targets = [PurePosixPath(target) for target in mounts]
    for target in targets:
        if not target.is_absolute() or ".." in target.parts or str(target) not in mounts or len(target.parts) < 2:
            raise ConfigError(f"The mount point {str(target)!r} is not a plain absolute path.")
        if any(_overlap(target, PurePosixPath(taken)) for taken in _RESERVED):
            raise ConfigError(f"The mount point {target} belongs to the sandbox itself.", remedy="Use /tool/...")
        if any(other is not target and target.is_relative_to(other) for other in targets):
            raise ConfigError(f"The mount point {target} lies inside another mount.")
    return {target: _checked_source(source) for target, source in mounts.items()}


def skeleton(below: Path, targets: Mapping[str, bool]) -> Path:
    """An empty root file system with these mount points (whether each is a directory), made when first needed.

    All sandboxes with the same mount points share it, as they share the system's directories: each sees it read-only.

    Raises:
        OSError: it cannot be made.
    """
    root = below / digest_json({"targets": dict(targets), "system": list(SYSTEM), "etc": ETC})[:32]
    if root.is_dir():
        return root
    below.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=below, prefix=".") as made:
        draft = Path(made, "rootfs")
        _make_skeleton(draft, targets)
        try:
            draft.rename(root)
        except OSError:
            if not root.is_dir():  # else another process was faster
                raise
    return root


def _make_skeleton(root: Path, targets: Mapping[str, bool]) -> None:
    for directory in ("usr", "dev", "etc", "proc", "run", "sys", "tmp", "work"):
        (root / directory).mkdir(parents=True)
    for directory in ("bin", "lib", "lib64"):
        (root / directory).symlink_to(f"usr/{directory}")
    for name, text in ETC.items():
        (root / "etc" / name).write_text(text)
    for path in SYSTEM:
        (root / path[1:]).mkdir()
    for target, is_directory in targets.items():
        point = root / target[1:]
        (point if is_directory else point.parent).mkdir(parents=True, exist_ok=True)
        if not is_directory:
            point.touch()
    for made in (root, *root.rglob("*")):
        if not made.is_symlink():  # whatever the umask of whoever made it
            made.chmod(0o755 if made.is_dir() else 0o644)


def write_bundle(
    bundle: Path,
    skeletons: Path,
    spec: SandboxSpec,
    mounts: Mapping[str, Path],
    *,
    cgroup: str | None,
    egress_socket: Path | None,
) -> None:
    """Write `config.json` for these checked mounts; its root file system is one of the `skeletons`.

    Raises:
        OSError: it cannot be written.
    """
    targets = {target: source.is_dir() for target, source in mounts.items()}
    if egress_socket is not None:
        targets[EGRESS_SOCKET] = False
    root = skeleton(skeletons, targets)
    config = oci_config(spec, root, mounts, cgroup=cgroup, egress_socket=egress_socket)
    (bundle / "config.json").write_text(json.dumps(config))


def oci_config(
    spec: SandboxSpec,
    root: Path,
    mounts: Mapping[str, Path],
    *,
    cgroup: str | None,
    egress_socket: Path | None,
) -> JsonObject:
    """The OCI runtime configuration: no capabilities, no network, explicit environment, uid 65534."""
    binds: list[JsonObject] = [_bind(path, Path(path)) for path in SYSTEM]
    binds += [_bind(target, source) for target, source in sorted(mounts.items())]
    if egress_socket is not None:
        binds.append(_bind(EGRESS_SOCKET, egress_socket))
    linux: dict[str, Json] = {"namespaces": [{"type": kind} for kind in ("pid", "ipc", "uts", "mount", "network")]}
    if cgroup is not None:
        linux["cgroupsPath"] = f"/{cgroup}"
        linux["resources"] = {
            "memory": {"limit": spec.limits.memory_bytes + 2 * OVERHEAD_BYTES},
            "pids": {"limit": _BACKSTOP_PIDS},
        }
    return {
        "ociVersion": "1.0.2",
        "hostname": "sandbox",
        "root": {"path": str(root), "readonly": True},
        "process": {
            "terminal": False,
            "user": {"uid": USER, "gid": USER},
            "cwd": "/work",
            "args": list(spec.argv),
            "env": [f"{name}={value}" for name, value in environment(spec).items()],
            "capabilities": {name: [] for name in _CAPABILITY_SETS},
            "noNewPrivileges": True,
            "rlimits": [{"type": name, "hard": value, "soft": value} for name, value in rlimits(spec.limits)],
        },
        "mounts": [*binds, *_scratch(spec.limits)],
        "linux": linux,
    }


def environment(spec: SandboxSpec) -> dict[str, str]:
    """All that the process inside finds in its environment."""
    return {"HOME": "/work", **spec.env, **(_EGRESS_ENV if spec.egress else {})}


def rlimits(limits: Limits) -> Iterator[tuple[str, int]]:
    """Name and value of each resource limit of the process inside."""
    yield "RLIMIT_AS", limits.memory_bytes
    yield "RLIMIT_CPU", max(1, math.ceil(limits.cpu_s))
    yield "RLIMIT_NPROC", limits.processes
    yield "RLIMIT_NOFILE", limits.open_files
    yield "RLIMIT_FSIZE", limits.file_bytes
    yield "RLIMIT_CORE", 0


def _scratch(limits: Limits) -> Iterator[JsonObject]:
    """/tmp and /work share `disk_bytes` half and half; they live in the sandbox's memory and die with it."""
    half = f"size={max(4096, limits.disk_bytes // 2)}"
    yield {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "nodev", "noexec"]}
    yield {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]}
    for path in ("/tmp", "/work"):
        yield {
            "destination": path,
            "type": "tmpfs",
            "source": "tmpfs",
            "options": ["nosuid", "nodev", half, "mode=1777"],
        }


def _bind(target: str, source: Path) -> JsonObject:
    return {"destination": target, "type": "bind", "source": str(source), "options": _READ_ONLY}


def _overlap(one: PurePosixPath, other: PurePosixPath) -> bool:
    return one.is_relative_to(other) or other.is_relative_to(one)


def _checked_source(source: Path) -> Path:
    resolved = source.resolve()
    if not resolved.exists():
        raise ConfigError(f"{source} should be mounted into the sandbox but does not exist.")
    if resolved.is_dir():
        _refuse_sockets(resolved)
    elif not resolved.is_file():
        raise ConfigError(f"{source} is neither a file nor a directory and cannot be mounted into a sandbox.")
    return resolved


def _refuse_sockets(directory: Path) -> None:
    for parent, _, names in os.walk(directory):
        for name in names:
            kind = os.lstat(os.path.join(parent, name)).st_mode
            if stat.S_ISSOCK(kind) or stat.S_ISFIFO(kind):
                raise ConfigError(
                    f"{parent}/{name} is a socket or pipe, which would be a way out of the sandbox.",
                    remedy="Move it out of the directory that is mounted.",
                )
