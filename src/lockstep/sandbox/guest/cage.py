"""The tool's cage inside the guest: a root of its own, limits, no privileges; and the process in it.

The machine is the boundary to the host. The cage keeps the tool from the agent, so that limits and reports hold.
"""

from __future__ import annotations

import os
import resource
import signal
import socket
import tarfile

from lockstep.sandbox.guest import system
from lockstep.sandbox.guest.filter import install

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

USER = 65534
ROOT = "/cage"
EGRESS_SOCKET = "/run/egress.sock"

_INODES = 16384
_DEVICES = ("null", "zero", "full", "random", "urandom")
_QUIET = system.MS_NOSUID | system.MS_NODEV
_ETC = {
    "passwd": "root:x:0:0:root:/:/usr/sbin/nologin\nnobody:x:65534:65534:nobody:/work:/usr/sbin/nologin\n",
    "group": "root:x:0:\nnogroup:x:65534:\n",
    "hosts": "127.0.0.1 localhost\n",
    "nsswitch.conf": "passwd: files\ngroup: files\nhosts: files\n",
}


class Started:
    """The tool's process: its pid, our ends of its pipes, and where it finds egress."""

    def __init__(self, pid: int, stdin: int, stdout: int, stderr: int, stdin_inode: int) -> None:
        self.pid = pid
        self.stdin = stdin
        self.stdout = stdout
        self.stderr = stderr
        self.stdin_inode = stdin_inode


def build(drives: list[str], disk_bytes: int) -> None:
    """The root the tool will see: the image's /usr, an /etc of our own, what the drives hold, and scratch space."""
    os.mkdir(ROOT)
    system.mount("cage", ROOT, "tmpfs", _QUIET, "mode=755")
    for name in ("usr", "dev", "etc", "proc", "run", "sys", "tmp", "work"):
        os.mkdir(f"{ROOT}/{name}")
    for name in ("bin", "lib", "lib64", "sbin"):
        os.symlink(f"usr/{name}", f"{ROOT}/{name}")
    for name, text in _ETC.items():
        with open(f"{ROOT}/etc/{name}", "w") as file:
            file.write(text)
    system.mount("/usr", f"{ROOT}/usr", flags=system.MS_BIND)
    for drive in drives:
        _unpack(drive)
    _devices()
    system.mount("proc", f"{ROOT}/proc", "proc", _QUIET | system.MS_NOEXEC, "hidepid=2")
    for name in ("tmp", "work"):
        options = f"mode=1777,nr_inodes={_INODES},size={max(4096, disk_bytes // 2)}"
        system.mount(name, f"{ROOT}/{name}", "tmpfs", _QUIET, options)


def listen_for_egress() -> socket.socket:
    """The socket inside the cage whose connections lead out through the host."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(f"{ROOT}{EGRESS_SOCKET}")
    os.chmod(f"{ROOT}{EGRESS_SOCKET}", 0o666)  # noqa: S103 - the tool is another user, alone in its guest
    listener.listen(16)
    listener.setblocking(False)
    return listener


def seal() -> None:
    """From now on nothing in the cage can be written but /tmp and /work."""
    for path in (f"{ROOT}/usr", ROOT):
        system.mount("none", path, flags=system.MS_REMOUNT | system.MS_BIND | system.MS_RDONLY | _QUIET)


def start(argv: list[str], env: dict[str, str], limits: dict[str, Any]) -> Started:
    """Start the tool in the cage.

    Raises:
        OSError: it cannot be executed, or the kernel refused a step before; nothing of it runs.
    """
    system.make_cgroup(limits["memory_bytes"] + limits["disk_bytes"], limits["processes"])
    inside, stdin = os.pipe()
    stdout, out = os.pipe()
    stderr, err = os.pipe()
    failed, failure = os.pipe()
    pid = os.fork()
    if pid == 0:
        _become_tool(argv, env, limits, (inside, out, err), failure)
    started = Started(pid, stdin, stdout, stderr, os.fstat(stdin).st_ino)
    for end in (inside, out, err, failure):
        os.close(end)
    with open(failed, "rb") as pipe:
        trouble = pipe.read()
    if trouble:
        os.waitpid(pid, 0)
        for end in (stdin, stdout, stderr):
            os.close(end)
        number, _, what = trouble.decode(errors="replace").partition(" ")
        raise OSError(int(number), os.strerror(int(number)), what)
    for end in (stdin, stdout, stderr):
        os.set_blocking(end, False)
    return started


def _become_tool(
    argv: list[str], env: dict[str, str], limits: dict[str, Any], stdio: tuple[int, int, int], failure: int
) -> None:
    """In the child: everything between fork and exec. Never returns; trouble is written to `failure`."""
    try:
        os.setsid()
        with open(f"{system.CGROUP}/cgroup.procs", "w") as file:
            file.write("0")
        system.unshare(system.CLONE_NEWNS | system.CLONE_NEWUTS | system.CLONE_NEWIPC)
        system.mount("none", "/", flags=system.MS_REC_PRIVATE)
        os.chdir(ROOT)
        system.mount(".", "/", flags=system.MS_MOVE)
        os.chroot(".")
        os.chdir("/work")
        for number, end in enumerate(stdio):
            os.dup2(end, number)
        os.umask(0o022)
        for name in (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGCHLD):
            signal.signal(name, signal.SIG_DFL)
        _limit(limits)
        system.drop_privileges(USER)
        install()
        os.execve(argv[0], argv, env)
    except OSError as error:
        os.write(failure, f"{error.errno or 5} {error.filename or argv[0]}".encode())
    finally:
        os._exit(127)


def _limit(limits: dict[str, Any]) -> None:
    for name, value in (
        ("AS", limits["memory_bytes"]),
        ("CPU", limits["cpu_s"]),
        ("NPROC", limits["processes"]),
        ("NOFILE", limits["open_files"]),
        ("FSIZE", limits["file_bytes"]),
        ("CORE", 0),
    ):
        resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (value, value))


def _unpack(drive: str) -> None:
    """What the drive's tar archive holds, owned by root; the host made it, so its paths are plain."""
    with open(drive, "rb", buffering=2**20) as device, tarfile.open(fileobj=device, mode="r|") as archive:
        for member in archive:
            archive.extract(member, ROOT, numeric_owner=True)


def _devices() -> None:
    system.mount("dev", f"{ROOT}/dev", "tmpfs", system.MS_NOSUID | system.MS_NOEXEC, "mode=755,size=65536")
    for name in _DEVICES:
        info = os.stat(f"/dev/{name}")
        os.mknod(f"{ROOT}/dev/{name}", 0o20666, info.st_rdev)
        os.chmod(f"{ROOT}/dev/{name}", 0o666)  # noqa: S103 - as everywhere
    os.symlink("/proc/self/fd", f"{ROOT}/dev/fd")
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        os.symlink(f"/proc/self/fd/{number}", f"{ROOT}/dev/{name}")
    read_only = system.MS_REMOUNT | system.MS_BIND | system.MS_RDONLY
    system.mount("none", f"{ROOT}/dev", flags=read_only | system.MS_NOSUID | system.MS_NOEXEC)
