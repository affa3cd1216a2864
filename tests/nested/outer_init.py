"""Process 1 of the outer guest: makes a machine with a working /dev/kvm of the emulated one, then runs the proof in it.

What it finds goes to the second serial port as JSON lines; the first is the console.
"""

import ctypes
import fcntl
import json
import os
import socket
import struct
import subprocess
import sys
import time

LIBC = ctypes.CDLL(None, use_errno=True)
FINIT_MODULE, POWER_OFF, MS_BIND = 313, 0x4321FEDC, 4096
SIOCSIFFLAGS, UP_AND_RUNNING = 0x8914, 0x41
ROOT = "/new"
"""A tmpfs that becomes the root: the jailer's pivot_root refuses to leave the initramfs itself."""


def main():
    mount("devtmpfs", "/dev")
    for name in sorted(os.listdir("/opt/modules")):
        load(f"/opt/modules/{name}")
    mount("tmpfs", ROOT, data="size=95%")
    for directory in ("/usr", "/opt", "/dev"):
        mount(directory, ROOT + directory, MS_BIND)
    for name in ("bin", "lib", "lib64", "sbin"):
        os.symlink(f"usr/{name}", f"{ROOT}/{name}")
    os.chroot(ROOT)
    os.chdir("/")
    for kind, place in (("proc", "/proc"), ("sysfs", "/sys"), ("cgroup2", "/sys/fs/cgroup")):
        mount(kind, place)
    os.makedirs("/tmp")
    os.chmod("/tmp", 0o1777)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", UP_AND_RUNNING))
    report("outer", kvm=os.path.exists("/dev/kvm"), kernel=os.uname().release)
    environment = {"PATH": "/usr/sbin:/usr/bin", "PYTHONPATH": "/opt/python", "FIRECRACKER_BIN": "/opt/bin/firecracker"}
    done = subprocess.run([sys.executable, "-u", "/opt/proof.py"], env=environment)
    report("end", code=done.returncode)


def mount(source, target, flags=0, data=""):
    os.makedirs(target, exist_ok=True)
    if LIBC.mount(source.encode(), target.encode(), source.encode(), flags, data.encode()):
        raise OSError(ctypes.get_errno(), f"mount {source}", target)


def load(path):
    with open(path, "rb") as file:
        if LIBC.syscall(FINIT_MODULE, file.fileno(), b"", 0):
            raise OSError(ctypes.get_errno(), "finit_module", path)


def report(step, **seen):
    with open("/dev/ttyS1", "w") as port:
        print(json.dumps({"step": step, "at_s": round(time.monotonic(), 1), **seen}), file=port)


try:
    main()
finally:
    LIBC.reboot(POWER_OFF)
