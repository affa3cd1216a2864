"""The behaviour every sandbox backend keeps. Adding a backend adds a line to `BACKENDS`.

Real sandboxes, hostile code inside them. The suite runs as whoever runs pytest; as root it runs once more as another
user, so that the rootless mode is held to the same.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from guest_cache import guest_cache

import lockstep.tools
from lockstep.errors import ConfigError, PermitError, SandboxUnavailable
from lockstep.gate.permit import Permit, PermitMint
from lockstep.sandbox.bubblewrap import Bubblewrap
from lockstep.sandbox.contract import Backend, Limits, Process, ProcessEnded, SandboxSpec, SecretBinding
from lockstep.sandbox.egress_rules import parse_rule
from lockstep.sandbox.gvisor import GVisor
from lockstep.sandbox.interpreter import interpreter
from lockstep.sandbox.leftovers import Ledger
from lockstep.sandbox.microvm import MicroVM
from lockstep.sandbox.qemu import Qemu
from lockstep.values import now_ms, sha256

pytestmark = pytest.mark.sandbox

PATIENCE_S = 60.0
CALL = sha256(b"a call")
OTHER_USER = 12345
INNER = "LOCKSTEP_TEST_ROOTLESS"
ECHO = """
import sys
for line in sys.stdin.buffer:
    sys.stdout.buffer.write(line)
    sys.stdout.buffer.flush()
"""
ANSWER = """
import json, os, sys
def attempt(action, *arguments):
    try:
        return ["possible", repr(action(*arguments))[:200]]
    except Exception as error:
        return ["refused", type(error).__name__]
def answer(value):
    print(json.dumps(value), flush=True)
"""


def needs_runsc() -> None:
    if shutil.which(os.environ.get("LOCKSTEP_RUNSC") or "runsc") is None:
        pytest.skip("runsc is not installed (Debian package runsc)")


def gvisor(state_dir: Path) -> Backend:
    needs_runsc()
    return GVisor(state_dir)


def bubblewrap(state_dir: Path) -> Backend:
    if shutil.which(os.environ.get("LOCKSTEP_BWRAP") or "bwrap") is None:
        pytest.skip("bwrap is not installed (Debian package bubblewrap)")
    return Bubblewrap(state_dir)


def emulated(state_dir: Path) -> Backend:
    if INNER in os.environ:
        pytest.skip("emulated machines are run once, as whoever runs pytest")
    return MicroVM(state_dir, Qemu(kvm=False), guest_cache())


BACKENDS = [
    pytest.param(gvisor, id="gvisor"),
    pytest.param(bubblewrap, id="bubblewrap"),
    pytest.param(emulated, id="emulated", marks=pytest.mark.slow),
]


@dataclass
class Here:
    """A backend, its state directory, and a gate of our own."""

    backend: Backend
    state_dir: Path
    mint: PermitMint
    make: Callable[[Path], Backend] = gvisor

    @asynccontextmanager
    async def open(
        self,
        code: str,
        *,
        limits: Limits | None = None,
        mounts: Mapping[str, Path] | None = None,
        env: Mapping[str, str] | None = None,
        egress: tuple[str, ...] = (),
    ) -> AsyncIterator[Process]:
        python, needed = interpreter()
        spec = SandboxSpec(
            argv=(*python, "-c", code),
            mounts={**needed, **(mounts or {})},
            env=env or {},
            egress=tuple(parse_rule(rule) for rule in egress),
            limits=limits or Limits(),
        )
        async with self.started(spec) as process:
            process.admit(self.permit(), CALL, {"Lockstep-Run": "r1"})
            yield process

    @asynccontextmanager
    async def started(self, spec: SandboxSpec) -> AsyncIterator[Process]:
        """A sandbox that no call has been admitted to."""
        process = await self.backend.start(spec)
        try:
            yield process
        finally:
            await process.close()

    def permit(self) -> Permit:
        return self.mint.issue(CALL, expires_at_ms=now_ms() + 60_000)

    async def ask(self, code: str, limits: Limits | None = None, **options: object) -> object:
        """What this code, which calls `answer`, has to say."""
        async with self.open(ANSWER + code, limits=limits, **options) as process:  # type: ignore[arg-type]
            return json.loads(await process.receive())

    async def end_of(self, code: str, limits: Limits | None = None) -> ProcessEnded:
        async with self.open(code, limits=limits) as process:
            try:
                while True:
                    await process.receive()
            except ProcessEnded as ended:
                return ended

    def traces(self) -> list[str]:
        """What exists on the host because of sandboxes of this state directory."""
        records = list((self.state_dir / "sandboxes").glob("*"))
        named = [json.loads(record.read_text())["directory"] for record in records]
        found = [*map(str, records), *(directory for directory in named if os.path.exists(directory))]
        return found + [f"process {pid}" for pid in processes_of(*named)]


def processes_of(*directories: str) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            command = (entry / "cmdline").read_bytes().decode(errors="replace")
            if any(directory in command for directory in directories):
                found.append(int(entry.name))
    return found


@pytest.fixture(scope="module")
def proven(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A state directory for the module, so that the way to run is proven once."""
    return tmp_path_factory.mktemp("state")


@pytest.fixture(params=BACKENDS)
def here(request: pytest.FixtureRequest, proven: Path) -> Iterator[Here]:
    if request.param is emulated:  # the first one boots a guest, which may take longer than any test has patience
        asyncio.run(emulated(proven).available())
    world = Here(backend=request.param(proven), state_dir=proven, mint=PermitMint(), make=request.param)
    yield world
    assert world.traces() == []


def play(scene: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(PATIENCE_S):
            await scene()

    asyncio.run(bounded())


# Talking


def test_frames_come_back_in_order_and_unchanged(here: Here) -> None:
    frames = [b"one", b"", "zw\u00f6lf".encode(), b"x" * 200_000, bytes(range(11, 256)) + b"\x00\r"]

    async def scene() -> None:
        async with here.open(ECHO) as process:
            for frame in frames:
                await process.send(frame)
            assert [await process.receive() for _ in frames] == frames
            with pytest.raises(ValueError, match="newline"):
                await process.send(b"two\nlines")
            use = process.use()
        assert use.start_ms > 0
        final = process.use()
        assert final.run_ms >= use.run_ms
        assert final.cpu_s is None or final.cpu_s >= 0
        assert final.peak_memory_bytes is None or final.peak_memory_bytes > 0

    play(scene)


def test_how_a_process_ended_is_told_with_its_last_words(here: Here) -> None:
    async def scene() -> None:
        assert (await here.end_of("raise SystemExit(7)")).exit_code == 7
        assert (await here.end_of("")).exit_code == 0
        killed = await here.end_of("import os; os.kill(os.getpid(), 9)")
        assert (killed.exit_code, killed.limit) == (137, "")
        raised = await here.end_of("raise ValueError('last words')")
        assert (raised.exit_code, raised.limit) == (1, "")
        assert "ValueError: last words" in raised.stderr

    play(scene)


def test_complete_frames_are_delivered_before_the_end(here: Here) -> None:
    async def scene() -> None:
        async with here.open("print('first'); print('cut', end='')") as process:
            assert await process.receive() == b"first"
            for _ in range(2):
                with pytest.raises(ProcessEnded):
                    await process.receive()
            await process.send(b"to nobody")

    play(scene)


# Limits


def test_a_hang_ends_with_the_wall_clock(here: Here) -> None:
    async def scene() -> None:
        ended = await here.end_of("import time; time.sleep(3600)", Limits(wall_s=0.3))
        assert (ended.exit_code, ended.limit) == (None, "wall_s")

    play(scene)


def test_a_spin_ends_with_its_cpu_time(here: Here) -> None:
    async def scene() -> None:
        ended = await here.end_of("while True: pass", Limits(cpu_s=0.5, wall_s=50))
        assert ended.limit == "cpu_s" or ended.exit_code == 128 + signal.SIGKILL

    play(scene)


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
@pytest.mark.parametrize("line", ["'x' * 2**20", "('x' * 1023 + chr(10)) * 1024"])
def test_a_flood_ends_with_the_output_budget(here: Here, stream: str, line: str) -> None:
    async def scene() -> None:
        ended = await here.end_of(f"import sys\nfor _ in range(50): sys.{stream}.write({line})")
        assert (ended.exit_code, ended.limit) == (None, "output_bytes")
        assert len(ended.stderr.encode()) <= 8 * 2**10

    play(scene)


def test_a_memory_bomb_hurts_only_itself(here: Here) -> None:
    async def scene() -> None:
        ended = await here.end_of("x = []\nwhile True: x.append(bytearray(2**24))", Limits(memory_bytes=256 * 2**20))
        assert "MemoryError" in ended.stderr or ended.limit == "memory_bytes"

    play(scene)


def test_many_small_memory_bombs_are_one_large_one(here: Here) -> None:
    bombs = """
import os, time
for _ in range(10):
    if os.fork() == 0:
        x = bytearray(120 * 2**20)
        time.sleep(3600)
time.sleep(3600)
"""

    async def scene() -> None:
        ended = await here.end_of(bombs, Limits(memory_bytes=200 * 2**20, wall_s=50))
        assert ended.limit == "memory_bytes"

    play(scene)


def test_a_fork_bomb_stops_at_its_number_of_processes(here: Here) -> None:
    async def scene() -> None:
        code = """
import time
count = 0
while True:
    try:
        if os.fork() == 0:
            time.sleep(3600)
    except OSError:
        break
    count += 1
answer(count)
"""
        assert await here.ask(code, Limits(processes=8)) == 7

    play(scene)


def test_files_disk_and_descriptors_are_bounded(here: Here) -> None:
    code = """
import signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
def fill(path, size):
    with open(path, "wb") as file:
        for _ in range(size):
            file.write(b"x" * 2**20)
            file.flush()
def fill_all(folder):
    for number in range(100):
        fill(f"{folder}/{number}", 1)
def descriptors():
    for number in range(1000):
        os.dup(0)
one = attempt(fill, "/work/one", 100)
size = os.stat("/work/one").st_size
os.unlink("/work/one")
folders = {folder: attempt(fill_all, folder) for folder in ("/work", "/tmp")}
full = sum(os.stat(f"{folder}/{name}").st_size for folder in folders for name in os.listdir(folder))
answer({"file": [one, size], "folders": folders, "full": full, "descriptors": attempt(descriptors)})
"""

    async def scene() -> None:
        limits = Limits(file_bytes=2 * 2**20, disk_bytes=16 * 2**20, open_files=64)
        said = await here.ask(code, limits)
        assert isinstance(said, dict)
        assert said["file"] == [["refused", "OSError"], 2 * 2**20]
        assert said["descriptors"][0] == "refused"
        assert said["folders"] == {"/work": ["refused", "OSError"], "/tmp": ["refused", "OSError"]}
        assert said["full"] <= 16 * 2**20

    play(scene)


# What is there, and what is not


def test_nothing_of_the_host_is_seen_but_the_mounts(here: Here, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("of the host")
    tool = tmp_path / "tool"
    tool.mkdir()
    (tool / "code.py").write_text("CODE = 1")
    (tool / "link").symlink_to(secret)
    code = """
asked = json.loads(sys.stdin.readline())
read = lambda path: open(path).read()
answer({
    "refused": {path: attempt(read, path) for path in asked["paths"]},
    "listed": {path: attempt(os.listdir, path)[0] for path in ("/root", "/home", "/var", "/opt", "/proc/1/root/root")},
    "passwd": read("/etc/passwd"), "etc": sorted(os.listdir("/etc")), "tool": read("/tool/code.py"),
    "write": {path: attempt(open, path, "w") for path in ("/x", "/tool/x", "/tool/code.py", "/usr/bin/x", "/etc/x")},
    "commands": [open(f"/proc/{p}/cmdline").read()[:20] for p in os.listdir("/proc") if p.isdigit()],
    "uid": os.getuid(), "capabilities": [x for x in open("/proc/self/status") if x.startswith("CapEff")],
    "fds": sorted(int(fd) for fd in os.listdir("/proc/self/fd"))[:-1],
})
"""

    passwd = Path("/etc/passwd").read_text()

    async def scene() -> None:
        paths = [str(secret), "/etc/shadow", "/etc/machine-id", f"/proc/1/root{secret}", "/tool/link", "/proc/kcore"]
        paths += [
            f"/proc/1/cwd{secret}",
            __file__,
            "/var/lib/dpkg/status",
            "/dev/kmsg",
            "/dev/mem",
            "/sys/kernel/notes",
        ]
        async with here.open(ANSWER + code, mounts={"/tool": tool}) as process:
            await process.send(json.dumps({"paths": paths}).encode())
            said = json.loads(await process.receive())
        assert {outcome for outcome, _ in said["refused"].values()} == {"refused"}, said["refused"]
        assert set(said["listed"].values()) == {"refused"}
        assert said["tool"] == "CODE = 1"
        assert {outcome for outcome, _ in said["write"].values()} == {"refused"}
        assert said["passwd"] != passwd
        assert len(said["etc"]) <= 5
        assert len([command for command in said["commands"] if "bwrap" not in command]) == 1
        assert said["uid"] == 65534
        assert said["capabilities"] in ([], ["CapEff:\t0000000000000000\n"])
        assert said["fds"] == [0, 1, 2]
        assert (tool / "code.py").read_text() == "CODE = 1"
        assert sorted(os.listdir(tool)) == ["code.py", "link"]

    play(scene)


def test_the_environment_holds_what_was_given_and_nothing_else(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLIGHTS_KEY", "of the host")

    async def scene() -> None:
        said = await here.ask("answer(dict(os.environ))", env={"GIVEN": "a b=c"})
        assert isinstance(said, dict)
        assert said.pop("GIVEN") == "a b=c"
        assert set(said) <= {"HOME", "LC_CTYPE"}

    play(scene)


def test_there_is_no_network(here: Here) -> None:
    code = """
import socket
def packet(kind): socket.socket(kind, socket.SOCK_RAW).close()
answer({
    "host": attempt(socket.create_connection, ("127.0.0.1", int(sys.stdin.readline())), 2),
    "outside": attempt(socket.create_connection, ("192.0.2.1", 80), 2),
    "metadata": attempt(socket.create_connection, ("169.254.169.254", 80), 2),
    "dns": attempt(socket.getaddrinfo, "example.com", 80),
    "packet": attempt(packet, socket.AF_PACKET), "raw": attempt(packet, socket.AF_INET),
    "egress": attempt(socket.socket(socket.AF_UNIX).connect, "/run/egress.sock"),
})
"""

    async def scene() -> None:
        server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
        async with server, here.open(ANSWER + code) as process:
            await process.send(str(server.sockets[0].getsockname()[1]).encode())
            said = json.loads(await process.receive())
        assert {what: outcome for what, (outcome, _) in said.items()} == dict.fromkeys(said, "refused")

    play(scene)


def test_dangerous_system_calls_are_refused_or_stay_inside(here: Here) -> None:
    code = """
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
calls = {
    "mount": lambda: libc.mount(b"none", b"/tmp", b"tmpfs", 0, None), "chroot": lambda: libc.chroot(b"/tmp"),
    "sethostname": lambda: libc.sethostname(b"x", 1), "setns": lambda: libc.setns(0, 0),
    "bpf": lambda: libc.syscall(321, 0, 0, 0), "perf": lambda: libc.syscall(298, 0, 0, 0, 0, 0),
    "kexec": lambda: libc.syscall(246, 0, 0, 0, 0), "init_module": lambda: libc.syscall(175, 0, 0, 0),
    "reboot": lambda: libc.reboot(0x01234567), "setuid": lambda: libc.setuid(0),
    "ptrace of init": lambda: libc.ptrace(16, 1, 0, 0) if os.getpid() != 1 else -1,
}
answer({name: call() for name, call in calls.items()})
"""

    async def scene() -> None:
        said = await here.ask(code)
        assert isinstance(said, dict)
        assert said == dict.fromkeys(said, -1)

    play(scene)


def test_nothing_survives_to_the_next_sandbox(here: Here) -> None:
    write = "[open(f'{folder}/left', 'w').write('x') for folder in ('/tmp', '/work')]"
    daemon = "\nimport time\nif os.fork() == 0:\n    os.setsid()\n    time.sleep(3600)\n"
    look = "[os.listdir('/tmp'), os.listdir('/work'), [p for p in os.listdir('/proc') if p.isdigit()]]"

    async def scene() -> None:
        clean = await here.ask(f"answer({look})")
        await here.ask(f"{write}{daemon}answer(1)")
        assert await here.ask(f"answer({look})") == clean
        assert isinstance(clean, list)
        assert clean[:2] == [[], []]

    play(scene)


def test_sandboxes_started_at_once_draw_nothing_alike_and_have_the_right_time(here: Here) -> None:
    code = """
import random, time, uuid
answer([os.urandom(16).hex(), random.random(), str(uuid.uuid4()), time.time()])
"""

    async def scene() -> None:
        drawn = [await each for each in [asyncio.create_task(here.ask(code)) for _ in range(10)]]
        *randomness, clocks = zip(*drawn, strict=True)  # type: ignore[arg-type]
        assert [len(set(values)) for values in randomness] == [10, 10, 10]
        now = time.time()
        assert all(abs(now - clock) < 60 for clock in clocks)

    play(scene)


# Egress


def test_egress_reaches_what_is_permitted_and_nothing_else(here: Here) -> None:
    code = """
sys.path.insert(0, "/shim")
import egress_shim, urllib.request, urllib.error
assert os.environ["LOCKSTEP_EGRESS"] == "1"
assert egress_shim.start() == egress_shim.start() == 3128
def fetch(method, url, data=None):
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data, method=method), timeout=20) as reply:
            return [reply.status, len(reply.read())]
    except urllib.error.HTTPError as error:
        return [error.code, error.read().decode()]
base = sys.stdin.readline().strip()
answer([
    fetch("GET", f"{base}/v1/a?b=c"), fetch("POST", f"{base}/v1/a", b"x" * 300_000), fetch("GET", f"{base}/v2"),
    fetch("DELETE", f"{base}/v1/a"), fetch("GET", "http://192.0.2.1/v1"), fetch("GET", "http://localhost:1/v1"),
])
"""
    heads: list[bytes] = []
    reply = b"HTTP/1.1 200 OK\r\nContent-Length: 400000\r\n\r\n" + b"y" * 400_000

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        heads.append(head)
        if head.startswith(b"POST"):
            await reader.readexactly(300_000)
        writer.write(reply)
        await writer.drain()
        writer.close()

    async def scene() -> None:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        shim = Path(lockstep.tools.__file__).with_name("egress_shim.py")
        mounts = {"/shim/egress_shim.py": shim}
        async with server, here.open(ANSWER + code, mounts=mounts, egress=(f"{address} GET,POST /v1",)) as process:
            await process.send(f"http://{address}".encode())
            said = json.loads(await process.receive())
            records = process.egress_log()
        assert said[:2] == [[200, 400_000], [200, 400_000]]
        for status, sentence in said[2:]:
            assert status == 403
            assert f"permitted: http://{address} GET,POST /v1" in sentence
        assert [(record.method, record.allowed, record.status) for record in records] == [
            ("GET", True, 200),
            ("POST", True, 200),
            ("GET", False, 403),
            ("DELETE", False, 403),
            ("GET", False, 403),
            ("GET", False, 403),
        ]
        assert (records[1].bytes_out, records[1].bytes_in) == (300_000, 400_000)
        assert len(heads) == 2
        assert all(b"lockstep-run: r1" in head.lower() for head in heads)

    play(scene)


def test_https_egress_brings_roots_to_trust_and_each_secret_a_placeholder(here: Here) -> None:
    code = """
import ssl
names = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "NODE_EXTRA_CA_CERTS")
files = {os.environ.get(name, "") for name in names}
trusted = len(ssl.create_default_context(cafile=files.pop()).get_ca_certs()) if all(files) else 0
answer([trusted, os.environ.get("KEY", ""), attempt(open, "/egress/roots.pem", "a")])
"""

    async def asked(*rules: str) -> list[Any]:
        python, mounts = interpreter()
        spec = SandboxSpec(
            argv=(*python, "-c", ANSWER + code),
            mounts=mounts,
            egress=tuple(map(parse_rule, rules)),
            secrets=(SecretBinding(env="KEY", host="api.example", port=443, header="Authorization"),),
        )
        async with here.started(spec) as process:
            process.admit(here.permit(), CALL, {}, {"KEY": "the-value-of-it"})
            said: list[Any] = json.loads(await process.receive())
            return said

    async def scene() -> None:
        trusted, first, written = await asked("api.example:443 GET /v1")
        assert trusted > 0
        assert written[0] == "refused"
        without, second, _ = await asked("127.0.0.1:80")
        assert without == 0
        assert all(one.startswith("lockstep-placeholder-") for one in (first, second))
        assert first != second, "of each sandbox its own"

    play(scene)


# Permits and mounts


ASK = """
import socket, sys
for line in sys.stdin:
    outside = socket.socket(socket.AF_UNIX)
    outside.connect("/run/egress.sock")
    outside.sendall(f"GET http://{line.strip()}/v1 HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n".encode())
    print(outside.makefile("rb").readline().decode().strip(), flush=True)
"""


def test_without_a_fitting_unspent_permit_nothing_inside_reaches_out(here: Here) -> None:
    async def scene() -> None:
        server = await asyncio.start_server(_answer_ok, "127.0.0.1", 0)
        address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        spec = SandboxSpec(argv=(*interpreter()[0], "-c", ASK), mounts=interpreter()[1], egress=(parse_rule(address),))
        forged = here.mint.issue(CALL, expires_at_ms=now_ms() + 60_000)
        spent = here.permit()
        spent.redeem(CALL, now_ms())
        refused = {
            "another call": here.mint.issue(sha256(b"another"), expires_at_ms=now_ms() + 60_000),
            "expired": here.mint.issue(CALL, expires_at_ms=now_ms()),
            "not made": replace(forged),
            "spent": spent,
        }
        async with server, here.started(spec) as process:
            for why, permit in refused.items():
                with pytest.raises(PermitError, match=why):
                    process.admit(permit, CALL, {})
                await process.send(address.encode())
                assert b"403" in await process.receive()
            process.admit(here.permit(), CALL, {})
            await process.send(address.encode())
            assert b"200" in await process.receive()
            assert [record.allowed for record in process.egress_log()] == [True]
            await process.seal()
            assert [record.status for record in process.egress_log()] == [200]
            await process.send(address.encode())
            assert b"403" in await process.receive(), "a call that is over reaches nothing"

    play(scene)


async def _answer_ok(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
    await writer.drain()
    writer.close()


def test_one_sandbox_may_serve_calls_one_after_another_each_with_limits_of_its_own(here: Here) -> None:
    async def scene() -> None:
        limits = Limits(wall_s=60, output_bytes=4000)
        spec = SandboxSpec(
            argv=(*interpreter()[0], "-c", ECHO), mounts=interpreter()[1], limits=limits, single_use=False
        )
        async with here.started(spec) as process:
            process.rest()
            for _ in range(3):
                process.admit(here.permit(), CALL, {}, wall_s=2)
                await process.send(b"x" * 3000)
                assert len(await process.receive()) == 3000
                await process.seal()
                assert process.use().run_ms < 2000
            assert process.alive
            process.admit(here.permit(), CALL, {}, wall_s=0.5)
            with pytest.raises(ProcessEnded) as ended:
                await process.receive()
            assert ended.value.limit == "wall_s"
            assert not process.alive

    play(scene)


def test_what_rests_has_no_clock_and_what_never_rests_must_get_ready_in_time(here: Here) -> None:
    spec = SandboxSpec(argv=(*interpreter()[0], "-c", ECHO), mounts=interpreter()[1], limits=Limits(wall_s=0.5))

    async def scene() -> None:
        async with here.started(spec) as resting:
            resting.rest()
            async with here.started(spec) as never_ready:
                with pytest.raises(ProcessEnded) as ended:
                    await never_ready.receive()
                assert ended.value.limit == "wall_s"
            await resting.send(b"still here")
            assert await resting.receive() == b"still here"

    play(scene)


def test_a_clock_that_is_paused_stands_still_until_it_goes_on(here: Here) -> None:
    spec = SandboxSpec(argv=(*interpreter()[0], "-c", ECHO), mounts=interpreter()[1], limits=Limits(wall_s=0.5))

    async def scene() -> None:
        async with here.started(spec) as asking:
            asking.admit(here.permit(), CALL, {})
            asking.pause()
            async with here.started(spec) as other:
                with pytest.raises(ProcessEnded):
                    await other.receive()
            await asking.send(b"still here")
            assert await asking.receive() == b"still here"
            asking.go_on()
            with pytest.raises(ProcessEnded) as ended:
                await asking.receive()
            assert ended.value.limit == "wall_s"

    play(scene)


def test_a_mount_that_would_open_the_sandbox_is_refused(here: Here, tmp_path: Path) -> None:
    (tmp_path / "with_pipe").mkdir()
    os.mkfifo(tmp_path / "with_pipe" / "pipe")
    refused: list[tuple[str, Path, str]] = [
        ("/tool", tmp_path / "missing", "does not exist"),
        ("/tool", tmp_path / "with_pipe", "socket or pipe"),
        ("/tool", Path("/dev/null"), "neither a file nor a directory"),
        ("/usr/bin", tmp_path, "belongs to the sandbox"),
        ("/proc/x", tmp_path, "belongs to the sandbox"),
        ("/run/egress.sock", tmp_path, "belongs to the sandbox"),
        ("/", tmp_path, "plain absolute path"),
        ("tool", tmp_path, "plain absolute path"),
        ("/tool/../etc", tmp_path, "plain absolute path"),
    ]

    async def scene() -> None:
        for target, source, why in refused:
            with pytest.raises(ConfigError, match=why):
                async with here.open(ECHO, mounts={target: source}):
                    pass
            assert here.traces() == []

    play(scene)


# Ends


@pytest.mark.parametrize("code", [ECHO, "import time; time.sleep(3600)", "raise SystemExit"])
def test_whatever_it_does_it_is_destroyed_on_exit(here: Here, code: str) -> None:
    async def fail_within(code: str) -> None:
        async with here.open(code):
            assert here.traces()
            raise RuntimeError("in the body")

    async def scene() -> None:
        with pytest.raises(RuntimeError, match="in the body"):
            await fail_within(code)
        assert here.traces() == []

    play(scene)


@pytest.mark.parametrize("after", ["opening", "starting", "running"])
def test_a_cancelled_call_leaves_nothing(here: Here, after: str) -> None:
    async def call(reached: asyncio.Event) -> None:
        if after == "opening":
            reached.set()
        async with here.open("import time; time.sleep(3600)") as process:
            reached.set()
            await process.receive()

    async def scene() -> None:
        reached = asyncio.Event()
        task = asyncio.create_task(call(reached))
        if after == "starting":
            while not here.traces():
                await asyncio.wait([task], timeout=0.01)
        else:
            await reached.wait()
        task.cancel()
        await asyncio.wait([task], timeout=0)
        task.cancel()  # once more, into the middle of its clean-up
        with pytest.raises(asyncio.CancelledError):
            await task
        assert here.traces() == []

    play(scene)


def test_sandboxes_run_side_by_side(here: Here) -> None:
    async def one(number: int) -> object:
        return await here.ask(f"answer([{number}, os.listdir('/work')])")

    async def scene() -> None:
        assert await asyncio.gather(*map(one, range(6))) == [[number, []] for number in range(6)]

    play(scene)


@pytest.mark.parametrize("path", [None, ""], ids=["usual", "without setpriv"])
def test_what_a_killed_host_process_leaves_is_swept_by_the_next(here: Here, path: str | None, tmp_path: Path) -> None:
    code = f"""
import asyncio, sys
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_sandbox import Here, PermitMint, {here.make.__name__} as make
async def main():
    state_dir = Path({str(tmp_path)!r})
    here = Here(make(state_dir), state_dir, PermitMint())
    stubborn = "import time; print('up', flush=True)\\nwhile True: time.sleep(1)"
    async with here.open(stubborn) as one, here.open(stubborn) as two:
        await one.receive(), await two.receive()
        print("up", flush=True)
        await one.receive()
asyncio.run(main())
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    for name, command in (("RUNSC", "runsc"), ("BWRAP", "bwrap"), ("QEMU", "qemu-system-x86_64")):
        environment[f"LOCKSTEP_{name}"] = shutil.which(os.environ.get(f"LOCKSTEP_{name}") or command) or ""
    environment["LOCKSTEP_QEMU"] = shutil.which(os.environ.get("LOCKSTEP_QEMU") or "qemu-system-x86_64") or ""
    if path is not None:
        environment["PATH"] = path
    host = subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE)
    try:
        assert host.stdout is not None
        assert host.stdout.readline() == b"up\n"
        left = Here(backend=here.make(tmp_path), state_dir=tmp_path, mint=PermitMint())
        assert len(left.traces()) > 4
        asyncio.run(Ledger(tmp_path).sweep())
        assert len(processes_of(*(trace for trace in left.traces() if "/lockstep-" in trace))) >= 2, "its host lives"
    finally:
        host.send_signal(signal.SIGKILL)
        host.wait(PATIENCE_S)

    async def scene() -> None:
        assert await Ledger(tmp_path).sweep() == 2
        assert left.traces() == []
        assert await Ledger(tmp_path).sweep() == 0

    play(scene)


# Failing closed


def test_the_canary_says_what_it_tried(here: Here) -> None:
    async def scene() -> None:
        findings = await here.backend.canary()
        assert findings.available
        assert findings.tier == here.backend.tier
        tried = dict(findings.details)
        assert sum(outcome.startswith("refused") for outcome in tried.values()) == 3
        assert await here.backend.canary() is findings
        assert await here.backend.available() is findings
        later = here.make(here.state_dir)
        assert (await later.available()).available
        assert "proven before" in dict((await later.available()).details).values()
        anew = dict((await later.canary()).details)
        assert anew.keys() == tried.keys(), "an old proof is no answer to somebody who asks for the canary"
        assert await later.available() is await later.canary()

    play(scene)


BINARIES = {gvisor: "runsc", bubblewrap: "bwrap", emulated: "qemu-system-x86_64"}


@pytest.fixture
def binary(here: Here, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The backend's program behind a script of our own, which can be broken."""
    variable = f"LOCKSTEP_{BINARIES[here.make].partition('-')[0].upper()}"
    real = shutil.which(os.environ.get(variable) or BINARIES[here.make])
    with tempfile.TemporaryDirectory(prefix="lockstep-test-") as folder:
        os.chmod(folder, 0o755)  # emulated machines run as nobody
        script = Path(folder, "program")
        script.write_text(f'#!/bin/sh\nexec {real} "$@"\n')
        script.chmod(0o755)
        monkeypatch.setenv(variable, str(script))
        yield script


@pytest.mark.parametrize("broken", [False, True], ids=["gone", "broken"])
def test_a_tier_that_stops_working_is_offered_no_longer(
    here: Here, binary: Path, broken: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = SandboxSpec(argv=(*interpreter()[0], "-c", ECHO), mounts=interpreter()[1])
    working = binary.read_text()

    def change(text: str) -> None:
        if text:
            binary.write_text(text)
            binary.chmod(0o755)
        else:
            binary.unlink()

    async def scene() -> None:
        assert (await here.make(tmp_path).available()).available
        backend = here.make(tmp_path)
        assert "proven before" in dict((await backend.available()).details).values()
        change("#!/bin/sh\nexit 1\n" if broken else "")
        with pytest.raises(SandboxUnavailable):
            await backend.start(spec)
        lost = await backend.available()
        assert not lost.available
        assert lost.remedy
        assert not [name for name in os.listdir(tmp_path) if name.endswith(".json")], "the proof is forgotten"
        assert Here(backend, tmp_path, here.mint).traces() == []
        assert await backend.available() is lost, "it is not tried at every call"
        change(working)
        in_an_hour = SimpleNamespace(monotonic=lambda: time.monotonic() + 3600)
        monkeypatch.setattr("lockstep.sandbox.backend.time", in_an_hour)
        assert (await backend.available()).available, "but later again"
        assert (await here.make(tmp_path).available()).available

    play(scene)


def test_a_program_that_is_not_there_is_no_end_of_a_process_and_takes_no_tier_away(here: Here) -> None:
    async def scene() -> None:
        with pytest.raises(SandboxUnavailable, match="did not start"):
            await here.backend.start(SandboxSpec(argv=("/nowhere",), mounts={}))
        assert (await here.backend.available()).available
        assert await here.ask("answer(1)") == 1

    play(scene)


@pytest.mark.parametrize(
    ("script", "what"),
    [
        (None, "not an executable"),
        ("#!/bin/sh\nexit 3\n", "exit code 3"),
        ("#!/nowhere\n", "does not start"),
        ("#!/bin/sh\necho '  -platform value'\necho '  ptrace, systrap'\n", "no sensible answer"),
    ],
)
def test_a_missing_or_broken_runsc_fails_closed_with_a_remedy(tmp_path: Path, script: str | None, what: str) -> None:
    binary = tmp_path / "runsc"
    if script is not None:
        binary.write_text(script)
        binary.chmod(0o755)
    broken = Here(GVisor(tmp_path / "state", str(binary)), tmp_path / "state", PermitMint())

    async def scene() -> None:
        with pytest.raises(SandboxUnavailable) as unavailable:
            async with broken.open(ECHO):
                pass
        assert unavailable.value.remedy
        findings = await broken.backend.canary()
        assert not findings.available
        assert findings.remedy
        assert what in str(findings.details) + str(unavailable.value)
        assert broken.traces() == []

    play(scene)


def test_a_remembered_way_that_fails_is_forgotten_and_searched_again(tmp_path: Path) -> None:
    needs_runsc()
    here = Here(GVisor(tmp_path), tmp_path, PermitMint())
    memory = tmp_path / "gvisor.json"

    async def scene() -> None:
        assert await here.ask("answer(1)") == 1
        proven = json.loads(memory.read_text())
        aged = {**proven, "found": {**proven["found"], "platform": "no-such-platform"}}
        memory.write_text(json.dumps(aged))
        later = Here(GVisor(tmp_path), tmp_path, PermitMint())
        assert await later.ask("answer(2)") == 2
        assert json.loads(memory.read_text()) == proven

    play(scene)


def test_a_full_or_read_only_disk_fails_closed_with_a_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needs_runsc()
    here = Here(GVisor(tmp_path), tmp_path, PermitMint())

    async def scene() -> None:
        assert await here.ask("answer(1)") == 1
        monkeypatch.setattr("tempfile.tempdir", "/proc/nowhere")
        with pytest.raises(SandboxUnavailable, match="cannot be written") as unavailable:
            async with here.open(ECHO):
                pass
        assert "TMPDIR" in unavailable.value.remedy
        assert here.traces() == []

    play(scene)


def test_without_the_systems_python_our_own_is_mounted(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    if here.make is emulated:
        pytest.skip("a microVM brings its own Python and needs none of this machine")
    monkeypatch.setattr("lockstep.sandbox.interpreter._SYSTEM_PYTHON", "/nowhere/python3")
    interpreter.cache_clear()

    async def scene() -> None:
        assert await here.ask("answer(list(sys.version_info[:2]))") == list(sys.version_info[:2])

    try:
        play(scene)
    finally:
        interpreter.cache_clear()


def test_without_any_python_one_sentence_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lockstep.sandbox.interpreter._SYSTEM_PYTHON", "/nowhere/python3")
    monkeypatch.setattr("sys.base_prefix", "/nowhere")
    interpreter.cache_clear()
    with pytest.raises(SandboxUnavailable, match="No Python for the sandbox"):
        interpreter()
    interpreter.cache_clear()


# Without root


@pytest.mark.slow
def test_the_suite_holds_without_root(tmp_path_factory: pytest.TempPathFactory) -> None:
    needs_runsc()
    setpriv = shutil.which("setpriv")
    if os.geteuid() != 0 or INNER in os.environ:
        pytest.skip("already running without root")
    if setpriv is None:
        pytest.skip("setpriv is not installed (Debian package util-linux)")
    drop = [setpriv, f"--reuid={OTHER_USER}", f"--regid={OTHER_USER}", "--clear-groups", "--"]
    environment = {"PATH": os.environ["PATH"], INNER: "1", "PYTHONDONTWRITEBYTECODE": "1"}
    environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    if "LOCKSTEP_RUNSC" in os.environ:
        environment["LOCKSTEP_RUNSC"] = os.environ["LOCKSTEP_RUNSC"]
    needed = f"import sys, pytest, lockstep.sandbox.gvisor; sys.exit(sys.version_info[:2] != {sys.version_info[:2]})"
    nested = f"import subprocess, sys; sys.exit(subprocess.call([sys.executable, '-c', {needed!r}]))"
    for python in (sys.executable, "/usr/bin/python3"):
        tried = subprocess.run([*drop, python, "-c", nested], env=environment, capture_output=True, timeout=60)
        if tried.returncode == 0:
            break
    else:
        pytest.skip(f"another user can run neither {sys.executable} nor a /usr/bin/python3 of the same version")
    with tempfile.TemporaryDirectory(prefix="lockstep-test-") as folder:
        os.chown(folder, OTHER_USER, OTHER_USER)
        command = [*drop, python, "-m", "pytest", "-q", "-rs", f"--basetemp={folder}/base", __file__]
        inner = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert inner.returncode == 0, inner.stdout[-6000:] + inner.stderr[-2000:]
