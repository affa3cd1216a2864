"""One running Firecracker process: started, waited for, talked to over vsock, ended.

A jailed one is not our child (its jailer starts it in a new pid namespace and ends), so it is held by a pidfd, which
can neither be confused with another process nor missed.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import signal
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from lockstep.errors import SandboxUnavailable
from lockstep.sandbox.firecracker_api import ANSWER_S, Call, Describe, ask, instance_info
from lockstep.sandbox.firecracker_jail import API_SOCKET, VSOCK_SOCKET, Home, remove_cgroups
from lockstep.sandbox.monitor import AGENT_PORT, Stream

START_S = 10.0
AGENT_S = 60.0
_KNOCK_S = 3.0  # a second more than Firecracker itself waits for a guest's answer
_POLL_S = 0.01
_TAIL_BYTES = 4 * 2**10
_UNTOLD = -1
_ENV = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
_REMEDY = "Run `lockstep doctor` to see what this machine can do."


class FirecrackerVm:
    """A machine and its process. Made by `launch`."""

    def __init__(self, home: Home, pid: int, child: asyncio.subprocess.Process, output: Tail) -> None:
        self.home = home
        self._pid = pid
        self._child = child
        self._output = output
        self._pidfd = os.pidfd_open(pid)
        self._root = os.open(home.root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        self._closed = False
        self._gone = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().add_reader(self._pidfd, self._notice_end)

    @property
    def pid(self) -> int:
        return self._pid

    @contextlib.contextmanager
    def own(self, name: str, kind: Callable[[int], bool]) -> Iterator[Path]:
        """A path, for as long as the context lasts, to what the process has in its directory under this name itself.

        The process owns that directory, and its guest may own the process: a link there would lead us to any file or
        socket of the host. The path is short, too; a socket's may have 107 bytes.

        Raises:
            OSError: there is nothing, or not of this kind.
        """
        found = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self._root)
        try:
            if not kind(os.fstat(found).st_mode):
                raise OSError(errno.EINVAL, "something else has this name", name)
            yield Path(f"/proc/self/fd/{found}")
        finally:
            os.close(found)

    async def ask(self, call: Call, timeout_s: float = ANSWER_S) -> bytes:
        """Send a request to the API; raises what `firecracker_api.ask` does."""
        try:
            with self.own(API_SOCKET, stat.S_ISSOCK) as socket:
                return await ask(socket, call, timeout_s)
        except OSError as error:
            raise SandboxUnavailable(f"Firecracker's API is gone: {error}.", remedy=_REMEDY) from error

    async def answers(self) -> None:
        """Wait until the API does.

        Raises:
            SandboxUnavailable: the process ended, or said nothing for `START_S`.
        """
        deadline = time.monotonic() + START_S
        while not await self._is_described():
            self._refuse_to_wait(deadline, "Firecracker did not start")
            await asyncio.sleep(_POLL_S)

    async def connect(self) -> Stream:
        deadline = time.monotonic() + AGENT_S
        while (stream := await self._knock()) is None:
            self._refuse_to_wait(deadline, "The agent in the microVM does not answer")
            await asyncio.sleep(_POLL_S)
        return stream

    async def wait(self) -> int:
        """As `Vm` says; -1 for a jailed process whose end was told to somebody else."""
        code = await asyncio.shield(self._gone)
        return code if self.home.uid is not None else await self._child.wait()

    def kill(self) -> None:
        with contextlib.suppress(OSError):
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    async def close(self) -> None:
        self.kill()
        await self.wait()
        await self._child.wait()
        if self._closed:
            return
        self._closed = True
        self._output.close()
        os.close(self._root)
        os.close(self._pidfd)
        self._pidfd = self._root = -1
        with contextlib.suppress(OSError):  # a group that is still busy is the janitor's
            remove_cgroups(self.home.id)

    def _notice_end(self) -> None:
        asyncio.get_running_loop().remove_reader(self._pidfd)
        self._gone.set_result(_UNTOLD if self.home.uid is None else self._reaped())

    def _reaped(self) -> int:
        """A jailed process is ours to reap where we are process 1 of a container, else its end is told to init."""
        try:
            info = os.waitid(os.P_PIDFD, self._pidfd, os.WEXITED)
        except ChildProcessError:
            return _UNTOLD
        assert info is not None
        return info.si_status if info.si_code == os.CLD_EXITED else -info.si_status

    async def _is_described(self) -> bool:
        try:
            instance_info(await self.ask(Describe()))
        except SandboxUnavailable:
            return False
        return True

    async def _knock(self) -> Stream | None:
        """Ask Firecracker for the agent's port; None when nobody listens there yet."""
        try:
            async with asyncio.timeout(_KNOCK_S):
                with self.own(VSOCK_SOCKET, stat.S_ISSOCK) as socket:
                    reader, writer = await asyncio.open_unix_connection(socket)
                return await _greeted(reader, writer)
        except (OSError, ValueError, TimeoutError):  # ValueError: a line without end
            return None

    def _refuse_to_wait(self, deadline: float, what: str) -> None:
        if self._gone.done():
            raise SandboxUnavailable(f"{what}: it ended, saying {self._output.text()!r}.", remedy=_REMEDY)
        if time.monotonic() > deadline:
            raise SandboxUnavailable(f"{what} in time.", remedy=_REMEDY)


async def _greeted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Stream | None:
    """Firecracker's side of the socket: a line that names the port, answered by `OK` and a number, or by the end."""
    answer = b""
    try:
        writer.write(b"CONNECT %d\n" % AGENT_PORT)
        answer = await reader.readline()
    finally:
        if not answer.startswith(b"OK "):
            writer.transport.abort()
    return (reader, writer) if answer.startswith(b"OK ") else None


class Tail:
    """The end of what a process prints, at most 4 KiB; the rest is read and forgotten, so that it never blocks."""

    def __init__(self) -> None:
        self._kept = b""
        self._fd, self.write_end = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        os.set_blocking(self.write_end, True)
        asyncio.get_running_loop().add_reader(self._fd, self._read)

    def text(self) -> str:
        self._read()
        return self._kept.decode(errors="replace")

    def close(self) -> None:
        if self._fd >= 0:
            asyncio.get_running_loop().remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1

    def _read(self) -> None:
        with contextlib.suppress(BlockingIOError):
            chunk = os.read(self._fd, 64 * 2**10)
            self._kept = (self._kept + chunk)[-_TAIL_BYTES:]
            if not chunk:
                asyncio.get_running_loop().remove_reader(self._fd)


async def launch(home: Home, command: list[str]) -> FirecrackerVm:
    """Start the process of a VM.

    Raises:
        SandboxUnavailable: it could not be started; nothing is left running.
    """
    output = Tail()
    try:
        child = await _spawn(home, command, output)
        pid = child.pid if home.uid is None else await _jailed_pid(home, child, output)
        return FirecrackerVm(home, pid, child, output)
    except (OSError, ValueError) as error:
        _kill_all_of(home)
        said = output.text()
        output.close()
        raise SandboxUnavailable(f"Firecracker did not start: {error} {said}".strip(), remedy=_REMEDY) from error
    except BaseException:
        _kill_all_of(home)
        output.close()
        raise


async def _spawn(home: Home, command: list[str], output: Tail) -> asyncio.subprocess.Process:
    try:
        return await asyncio.create_subprocess_exec(
            *command,
            cwd=home.root,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output.write_end,
            stderr=output.write_end,
            env=_ENV,
        )
    finally:
        os.close(output.write_end)


async def _jailed_pid(home: Home, jailer: asyncio.subprocess.Process, output: Tail) -> int:
    """The process that the jailer left behind when it ended."""
    try:
        code = await asyncio.wait_for(jailer.wait(), START_S)
    except TimeoutError:
        raise ValueError(f"its jailer was not done after {START_S:g} s.") from None
    if code != 0:
        raise ValueError(f"its jailer ended with {code}.")
    return int(home.pid_file.read_text())


def _kill_all_of(home: Home) -> None:
    """Kill every process that carries the VM's id: jailer or Firecracker, whichever it had come to."""
    mark = b"--id\0%s\0" % home.id.encode()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                fd = os.pidfd_open(int(entry.name))
                try:
                    if mark in (entry / "cmdline").read_bytes():
                        signal.pidfd_send_signal(fd, signal.SIGKILL)
                finally:
                    os.close(fd)
