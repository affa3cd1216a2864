"""Process 1 of a guest: readies the machine, then does what the host asks and carries bytes.

The host's requests, each answered once: `attach` (the machine has just been booted or cloned: new randomness, new
credit), `clock` (what time it is), `start`, `rest` (whether the tool waits for input and nothing is on its way),
`kill`. One event comes unasked: `ended`.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import time

from lockstep.sandbox.guest import cage, system, wire
from lockstep.sandbox.guest.carrier import Carrier

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

PORT = 5005
_HOST_CID = 2
_ANY_CID = 0xFFFFFFFF
_SERIAL = "/dev/vport0p1"
_DEVICE_S = 20.0
_LOOK_S = 0.005
_STDIO = (wire.STDIN, wire.STDOUT, wire.STDERR)


class Agent:
    """The guest's one conversation with the host, and the one tool in it."""

    def __init__(self) -> None:
        self._carrier = Carrier(self._on_request)
        self._tool: cage.Started | None = None
        self._code: int | None = None
        self._wake, wake = os.pipe()
        for end in (self._wake, wake):
            os.set_blocking(end, False)
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        self._carrier.watch(self._wake, self._on_children)

    def serve(self) -> None:
        listener = _vsock_listener()
        if listener is None:
            self._carrier.set_link(_serial_port(), ends=False)
        else:
            self._carrier.watch(listener.fileno(), lambda _: self._on_connection(listener))
        while True:
            self._carrier.turn()

    def _on_connection(self, listener: socket.socket) -> None:
        connection, (peer, _) = listener.accept()
        if peer != _HOST_CID:
            connection.close()  # the tool itself, by way of the guest's own address
            return
        connection.setblocking(False)
        self._carrier.set_link(connection.detach(), ends=True)

    # Requests

    def _on_request(self, message: wire.Message) -> None:
        requests: dict[str, Callable[[wire.Message], wire.Message | None]] = {
            "attach": self._attach,
            "clock": self._set_clock,
            "start": self._start,
            "rest": self._rest,
            "kill": self._kill,
        }
        asked = str(message.get("ask"))
        try:
            answer = requests[asked](message)
        except (OSError, KeyError, ValueError, TypeError) as error:
            answer = {"error": f"{asked}: {type(error).__name__}: {error}"[:1000]}
        if answer is not None:
            self._carrier.tell({"answer": asked, **answer})

    def _attach(self, message: wire.Message) -> wire.Message:
        system.reseed(bytes.fromhex(message["entropy"]))
        self._carrier.renew(bytes.fromhex(message["nonce"]))
        system_name, _, release, version, machine = os.uname()
        return {
            "kernel": f"{system_name} {release}",
            "version": version,
            "machine": machine,
            "python": sys.version.split()[0],
        }

    def _set_clock(self, message: wire.Message) -> wire.Message:
        time.clock_settime_ns(time.CLOCK_REALTIME, int(message["clock_ns"]))
        return {}

    def _start(self, message: wire.Message) -> wire.Message:
        if self._tool is not None:
            raise ValueError("there is a tool in this guest already")
        limits = message["limits"]
        cage.build(_drives(), limits["disk_bytes"])
        if message["egress"]:
            listener = cage.listen_for_egress()
            self._carrier.watch(listener.fileno(), lambda _: self._on_egress(listener))
        cage.seal()
        tool = cage.start(message["argv"], message["env"], limits)
        self._tool = tool
        self._carrier.add(wire.STDIN, sink=tool.stdin)
        self._carrier.add(wire.STDOUT, source=tool.stdout)
        self._carrier.add(wire.STDERR, source=tool.stderr)
        return {}

    def _rest(self, _: wire.Message) -> wire.Message:
        tool = self._tool
        waits = tool is not None and system.waits_for_input(tool.pid, tool.stdin_inode)
        return {"resting": waits and self._carrier.is_silent(_STDIO), "ended": self._code is not None}

    def _kill(self, _: wire.Message) -> wire.Message:
        system.kill_user(cage.USER)
        return {}

    # Events

    def _on_egress(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            connection, _ = listener.accept()
            connection.setblocking(False)
            self._carrier.connect(connection)

    def _on_children(self, _: int) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self._wake, 4096)
        with contextlib.suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid == 0:
                    break
                if self._tool is not None and pid == self._tool.pid:
                    self._on_end(os.waitstatus_to_exitcode(status))

    def _on_end(self, code: int) -> None:
        """The tool has ended: nothing it started outlives it, and the host hears how."""
        self._code = code if code >= 0 else 128 - code
        system.kill_user(cage.USER)
        self._carrier.tell({"event": "ended", "code": self._code, "out_of_memory": system.ran_out_of_memory()})


def _vsock_listener() -> socket.socket | None:
    """A listener for the host, when the machine has a vsock device."""
    devices = "/sys/bus/virtio/drivers/vmw_vsock_virtio_transport"
    if not any(name.startswith("virtio") for name in os.listdir(devices)):
        return None
    listener = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
    listener.bind((_ANY_CID, PORT))
    listener.listen(4)
    return listener


def _serial_port() -> int:
    deadline = time.monotonic() + _DEVICE_S
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            return os.open(_SERIAL, os.O_RDWR | os.O_NONBLOCK)
        time.sleep(_LOOK_S)
    raise SystemExit("no way to reach the host")


def _drives() -> list[str]:
    return [f"/dev/{name}" for name in sorted(os.listdir("/sys/block")) if name.startswith("vd")]


def main() -> None:
    """Never returns; the kernel panics, and the machine ends, if this does."""
    system.prepare()
    Agent().serve()
