"""Firecracker's HTTP API: the requests we send, as values, and a client over its unix socket.

Field names are the API's own; `tests/contract/test_firecracker_api.py` holds them against Firecracker's published
OpenAPI file. What we never ask for has no name here: network interfaces, metadata service, balloon, hot-plug.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, ClassVar

import h11

from lockstep.errors import SandboxUnavailable
from lockstep.values import Json, JsonObject

ANSWER_S = 15.0
_ANSWER_BYTES = 64 * 2**10
_REMEDY = "Run `lockstep doctor` to see what this machine can do."


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenBucket:
    """`size` bytes or operations each `refill_time` milliseconds, after `one_time_burst` more at the start."""

    size: int
    refill_time: int
    one_time_burst: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class RateLimiter:
    """Limits of a device: bytes (`bandwidth`) and operations (`ops`)."""

    bandwidth: TokenBucket | None = None
    ops: TokenBucket | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Call:
    """One request: the fields of a subclass are its body, `METHOD` and `path` where it goes. None is left out."""

    METHOD: ClassVar[str] = "PUT"
    PATH: ClassVar[str] = "/"

    @property
    def path(self) -> str:
        return self.PATH

    def body(self) -> bytes:
        """The JSON that is sent; nothing for a GET."""
        return b"" if self.METHOD == "GET" else json.dumps(_plain(self), sort_keys=True).encode()


@dataclass(frozen=True, kw_only=True, slots=True)
class MachineConfig(Call):
    PATH = "/machine-config"

    vcpu_count: int
    mem_size_mib: int
    smt: bool = False
    """One hardware thread each: two guests never share a core's siblings through us."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BootSource(Call):
    PATH = "/boot-source"

    kernel_image_path: str
    initrd_path: str
    boot_args: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Drive(Call):
    """A read-only block device; the initrd stays the root."""

    PATH = "/drives"

    drive_id: str
    path_on_host: str
    rate_limiter: RateLimiter
    is_root_device: bool = False
    is_read_only: bool = True

    @property
    def path(self) -> str:
        return f"{self.PATH}/{self.drive_id}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Vsock(Call):
    PATH = "/vsock"

    guest_cid: int
    uds_path: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Entropy(Call):
    PATH = "/entropy"

    rate_limiter: RateLimiter


@dataclass(frozen=True, kw_only=True, slots=True)
class Action(Call):
    """`InstanceStart`. We ask no guest to end by `SendCtrlAltDel`: it need not obey, and killing is certain."""

    PATH = "/actions"

    action_type: str


@dataclass(frozen=True, kw_only=True, slots=True)
class VmState(Call):
    """`Paused`, before a snapshot; a clone resumes as it is loaded."""

    METHOD = "PATCH"
    PATH = "/vm"

    state: str


@dataclass(frozen=True, kw_only=True, slots=True)
class SnapshotCreate(Call):
    PATH = "/snapshot/create"

    snapshot_path: str
    mem_file_path: str
    snapshot_type: str = "Full"


@dataclass(frozen=True, kw_only=True, slots=True)
class MemoryBackend:
    backend_path: str
    backend_type: str = "File"


@dataclass(frozen=True, kw_only=True, slots=True)
class SnapshotLoad(Call):
    """No `vsock_override`: our sockets and drives have relative paths, the same in every VM's directory."""

    PATH = "/snapshot/load"

    snapshot_path: str
    mem_backend: MemoryBackend
    resume_vm: bool = True


@dataclass(frozen=True, kw_only=True, slots=True)
class Describe(Call):
    METHOD = "GET"


@dataclass(frozen=True, kw_only=True, slots=True)
class InstanceInfo:
    """What `Describe` answers; `state` is "Not started", "Running" or "Paused"."""

    id: str
    state: str
    vmm_version: str


async def ask(socket: Path, call: Call, timeout_s: float = ANSWER_S) -> bytes:
    """Send one request and return the body of the answer, empty where there is none.

    Raises:
        SandboxUnavailable: Firecracker refused (with its own `fault_message`), is gone, or did not answer in time.
    """
    try:
        async with asyncio.timeout(timeout_s):
            status, body = await _exchange(socket, call)
    except TimeoutError:
        raise _unavailable(call, f"did not answer within {timeout_s:g} s") from None
    except (OSError, h11.ProtocolError) as error:
        raise _unavailable(call, f"broke the connection: {error}") from error
    if not 200 <= status < 300:
        raise _unavailable(call, f"answered {status}: {fault(body)}")
    return body


def instance_info(body: bytes) -> InstanceInfo:
    """The answer to `Describe`.

    Raises:
        SandboxUnavailable: it is not Firecracker's.
    """
    try:
        answer = json.loads(body)
        return InstanceInfo(**{field.name: str(answer[field.name]) for field in fields(InstanceInfo)})
    except (ValueError, KeyError, TypeError) as error:
        raise _unavailable(Describe(), f"answered something else: {body[:80]!r}") from error


def fault(body: bytes) -> str:
    """The `fault_message` of an error answer, or the start of whatever it is."""
    try:
        return str(json.loads(body)["fault_message"])
    except (ValueError, KeyError, TypeError):
        return body[:200].decode(errors="replace") or "no reason given"


async def _exchange(socket: Path, call: Call) -> tuple[int, bytes]:
    reader, writer = await asyncio.open_unix_connection(socket)
    try:
        http = h11.Connection(our_role=h11.CLIENT)
        body = call.body()
        headers = [("host", "localhost"), ("accept", "application/json")]
        if body:
            headers += [("content-type", "application/json"), ("content-length", str(len(body)))]
        request = h11.Request(method=call.METHOD, target=call.path, headers=headers)
        for event in (request, h11.Data(data=body), h11.EndOfMessage()):
            writer.write(http.send(event) or b"")
        await writer.drain()
        return await _answer(reader, http)
    finally:
        writer.transport.abort()


async def _answer(reader: asyncio.StreamReader, http: h11.Connection) -> tuple[int, bytes]:
    status, body = 0, b""
    while True:
        event = http.next_event()
        if event is h11.NEED_DATA:
            http.receive_data(await reader.read(_ANSWER_BYTES))
        elif isinstance(event, h11.Response):
            status = event.status_code
        elif isinstance(event, h11.Data):
            body += event.data
            if len(body) > _ANSWER_BYTES:
                raise ConnectionResetError("its answer has no end")
        elif isinstance(event, h11.EndOfMessage):
            return status, body
        elif isinstance(event, h11.ConnectionClosed):
            raise ConnectionResetError("closed without an answer")


def _plain(value: Any) -> JsonObject:
    """A dataclass as JSON, without the fields that are None."""
    given: Mapping[str, Any] = {field.name: getattr(value, field.name) for field in fields(value)}
    return {name: _json(item) for name, item in given.items() if item is not None}


def _json(item: Any) -> Json:
    return _plain(item) if is_dataclass(item) else item


def _unavailable(call: Call, what: str) -> SandboxUnavailable:
    return SandboxUnavailable(f"Firecracker {what} ({call.METHOD} {call.path}).", remedy=_REMEDY)
