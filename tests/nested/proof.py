"""Runs in the outer guest: the microVM tier on the real Firecracker, from its canary to what is left in the end.

Each step is reported as it is done, so that a report that breaks off says where.
"""

import asyncio
import contextlib
import json
import os
import subprocess
import sys
import time
import traceback
from pathlib import Path

from lockstep.errors import LockstepError
from lockstep.gate.permit import PermitMint
from lockstep.sandbox.contract import Limits, SandboxSpec
from lockstep.sandbox.egress_rules import parse_rule
from lockstep.sandbox.firecracker import Firecracker
from lockstep.sandbox.guest_limits import machine_memory_mib
from lockstep.sandbox.leftovers import Ledger
from lockstep.sandbox.link import Link
from lockstep.sandbox.microvm import PYTHON, MicroVM
from lockstep.sandbox.monitor import Machine
from lockstep.values import now_ms, sha256

STATE, CACHE, TOOL, BARE = (Path("/var", name) for name in ("state", "cache", "tool", "bare"))
USER = 1000
CALL = sha256(b"a call")
PORT, OTHER_PORT = 8081, 8082
CLONES = 4
ECHO = """
import sys
sys.path.insert(0, "/tool")
import greeting
for line in sys.stdin:
    print(greeting.of(line.strip()), flush=True)
"""
CHANCE = """
import json, os, random, time, uuid
print(json.dumps([os.urandom(16).hex(), random.getrandbits(64), str(uuid.uuid4()), time.time()]), flush=True)
"""
FETCH = f"""
import json, socket
def fetch(port, path):
    with socket.socket(socket.AF_UNIX) as proxy:
        proxy.connect("/run/egress.sock")
        place = f"127.0.0.1:{{port}}"
        proxy.sendall(f"GET http://{{place}}{{path}} HTTP/1.1\\r\\nHost: {{place}}\\r\\n\\r\\n".encode())
        head, _, body = b"".join(iter(lambda: proxy.recv(4096), b"")).partition(b"\\r\\n\\r\\n")
        return [int(head.split()[1]), body.decode()]
print(json.dumps([fetch({PORT}, "/allowed/a"), fetch({PORT}, "/other"), fetch({OTHER_PORT}, "/allowed/a")]), flush=True)
"""
LIMITS = Limits(wall_s=300, cpu_s=300)
"""Emulated twice, everything takes its time."""


def report(step, **seen):
    with open("/dev/ttyS1", "w") as port:
        print(json.dumps({"step": step, "at_s": round(time.monotonic(), 1), **seen}), file=port)


class Here:
    def __init__(self, backend):
        self.backend = backend
        self.mint = PermitMint()

    async def call(self, code, question=b"", mounts=None, egress=()):
        """(what the tool answered, the monitor's pid and what the host sees of it, the egress log)."""
        rules = tuple(parse_rule(rule) for rule in egress)
        spec = SandboxSpec(argv=(*PYTHON, "-c", code), mounts=mounts or {}, egress=rules, limits=LIMITS)
        process = await self.backend.start(spec)
        try:
            process.admit(self.mint.issue(CALL, expires_at_ms=now_ms() + 600_000), CALL, {"Lockstep-Run": "r1"})
            if question:
                await process.send(question)
            answer, seen = (await process.receive()).decode(), host_view()
        finally:
            await process.close()
        return answer, seen, [[record.method, record.url, record.allowed] for record in process.egress_log()]


def host_view():
    """The Firecracker processes, as the host sees them."""
    found = []
    for directory in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            arguments = (directory / "cmdline").read_bytes().decode().split("\0")
            if arguments[0].endswith("/firecracker"):
                found.append(described(directory))
    return found


def described(process):
    status = dict(line.split(":", 1) for line in (process / "status").read_text().splitlines())
    interfaces = (process / "net/dev").read_text().splitlines()[2:]
    return {
        "uid": int(status["Uid"].split()[0]),
        "capabilities": int(status["CapEff"], 16),
        "pids": status["NSpid"].split(),
        "group": (process / "cgroup").read_text().strip(),
        "interfaces": [line.split(":")[0].strip() for line in interfaces],
    }


def left_behind():
    files = [*Path("/tmp").iterdir(), *(STATE / "sandboxes").iterdir()]
    return [str(path) for path in (*files, *Path("/sys/fs/cgroup/lockstep").glob("*/"))]


async def serve(port):
    async def answer(reader, writer):
        line = await reader.readline()
        while (await reader.readline()).strip():
            pass
        body = b"you asked for " + line.split()[1]
        writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
        await writer.drain()
        writer.close()

    return await asyncio.start_server(answer, "127.0.0.1", port)


async def prove():
    backend = MicroVM(STATE, Firecracker(), CACHE)
    findings = await backend.canary()
    report("canary", available=findings.available, tier=findings.tier, details=findings.details, remedy=findings.remedy)
    here = Here(backend)
    answer, seen, _ = await here.call(ECHO, b"world", {"/tool": TOOL})
    report("call", answer=answer, host=seen)
    servers = [await serve(PORT), await serve(OTHER_PORT)]
    answer, _, log = await here.call(FETCH, egress=(f"127.0.0.1:{PORT} GET /allowed",))
    report("egress", answer=json.loads(answer), log=log)
    for server in servers:
        server.close()
    began = time.time()
    answers = await asyncio.gather(*(here.call(CHANCE) for _ in range(CLONES)))
    report("clones", chance=[json.loads(answer) for answer, *_ in answers], began=began, ended=time.time())
    report("bare", **without_root())
    here = Here(MicroVM(STATE, Firecracker(), CACHE, draws_anew=lambda spec: True))
    answers = [(await here.call(ECHO, question, {"/tool": TOOL}))[0] for question in (b"one", b"two")]
    report("ready", answers=answers, snapshots=len(list((CACHE / "snapshots").iterdir())))
    report("left", files=left_behind(), processes=host_view(), swept=await Ledger(STATE).sweep())


def without_root():
    """What a user other than root, who has no jailer, makes of the snapshot that root's machines came from."""
    (snapshot,) = (CACHE / "snapshots").glob("[0-9a-f]*")
    for directory in ("snapshot", "vm"):
        (BARE / directory).mkdir(parents=True)
    for file in snapshot.iterdir():
        os.link(file, BARE / "snapshot" / file.name)
    os.chown(BARE / "vm", USER, USER)
    os.chmod("/dev/kvm", 0o666)
    command = [sys.executable, __file__, "bare"]
    done = subprocess.run(command, user=USER, group=USER, extra_groups=[], capture_output=True, text=True)
    return {"code": done.returncode, "said": done.stdout, "trouble": done.stderr}


async def clone_bare():
    monitor = Firecracker()
    await monitor.prepare()
    files = Machine(
        kernel=BARE,
        initrd=BARE,
        cmdline="",
        drives=(BARE / "snapshot/drive",),
        memory_mib=machine_memory_mib(LIMITS, 0),
    )
    vm = await monitor.clone(files, BARE / "snapshot", BARE / "vm")
    try:
        link = Link(await vm.connect())
        hello = await link.attach(60)
        print(json.dumps({"user": os.stat(f"/proc/{vm.pid}").st_uid, "command": vm.home.command(None, 0), **hello}))
        await link.close()
    finally:
        await vm.close()


def main():
    for directory in (STATE, CACHE, TOOL):
        directory.mkdir(parents=True)
    os.symlink("/opt/guest", CACHE / "guest")
    (TOOL / "greeting.py").write_text("def of(name):\n    return f'hello {name}'\n")
    try:
        asyncio.run(prove())
    except LockstepError as error:
        report("failed", error=str(error), traceback=traceback.format_exc())
        sys.exit(1)


if sys.argv[1:] == ["bare"]:
    asyncio.run(clone_bare())
else:
    main()
