"""A scratch world as a process: started, waited for, looked at, ended with all it started. Everything has its time."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import os
import signal
import socket
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

from lockstep.agent.check_spec import CheckSection
from lockstep.agent.files import AGENT_FILE
from lockstep.errors import ConfigError
from lockstep.values import Digest, digest_json, sha256

_HOST = "127.0.0.1"
_STATE_S = 10.0
"""What one look at the state may take."""
_STATE_BYTES = 16 << 20
_END_S = 5.0
_LOOK_S = 0.02


class ScratchWorld:
    """A world that runs, until `scratch_world` ends it."""

    def __init__(self, directory: Path, section: CheckSection, scratch: Path, port: int) -> None:
        self.port = port
        self._directory = directory
        self._section = section
        self._scratch = scratch

    async def state(self) -> Digest:
        """What its paths answer and its command prints, digested.

        Raises:
            ConfigError: it does not answer 200, or the command fails, in time.
        """
        seen: list[str] = [await asyncio.to_thread(self._get, path) for path in self._section.state]
        if self._section.state_command:
            seen.append(await self._printed())
        return digest_json(list(seen))

    def command(self, words: Sequence[str]) -> list[str]:
        """The words with `{port}` and `{scratch}` filled in."""
        return [word.replace("{port}", str(self.port)).replace("{scratch}", str(self._scratch)) for word in words]

    def _get(self, path: str) -> Digest:
        connection = http.client.HTTPConnection(_HOST, self.port, timeout=_STATE_S)
        try:
            connection.request("GET", path)
            reply = connection.getresponse()
            body = reply.read(_STATE_BYTES)
        except (OSError, http.client.HTTPException) as error:
            raise _trouble(f"The scratch world does not answer GET {path} ({error or type(error).__name__})") from error
        finally:
            connection.close()
        if reply.status != http.client.OK:
            raise _trouble(f"The scratch world answers GET {path} with {reply.status}")
        return sha256(body)

    async def _printed(self) -> Digest:
        words = self.command(self._section.state_command)
        async with _running(words, self._directory, asyncio.subprocess.PIPE) as child:
            assert child.stdout is not None
            try:
                async with asyncio.timeout(_STATE_S):
                    printed = await child.stdout.read(_STATE_BYTES)
                    code = await child.wait()
            except TimeoutError:
                raise _trouble(f"The command check.state_command did not end within {_STATE_S:g} s") from None
        if code:
            raise _trouble(f"The command check.state_command ended with exit code {code}")
        return sha256(printed)


@contextlib.asynccontextmanager
async def scratch_world(directory: Path, section: CheckSection) -> AsyncIterator[ScratchWorld]:
    """Start a world with a directory and a port of its own; it and its directory are gone at the end.

    Raises:
        ConfigError: it cannot be started, ends, or cannot be reached in time.
    """
    with tempfile.TemporaryDirectory(prefix="lockstep-scratch-") as scratch:
        world = ScratchWorld(directory, section, Path(scratch), _free_port())
        with (Path(scratch) / "said").open("w+b") as said:
            async with _running(world.command(section.start), directory, said.fileno()) as child:
                await _reachable(world.port, section.start_s, child, Path(scratch) / "said")
                yield world


@contextlib.asynccontextmanager
async def _running(words: Sequence[str], directory: Path, said: int) -> AsyncIterator[asyncio.subprocess.Process]:
    try:
        child = await asyncio.create_subprocess_exec(
            *words,
            cwd=directory,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=said,
            stderr=asyncio.subprocess.STDOUT if said != asyncio.subprocess.PIPE else asyncio.subprocess.DEVNULL,
            start_new_session=True,
        )
    except OSError as error:
        raise _trouble(f"The program {words[0]!r} cannot be started: {error.strerror}") from error
    try:
        yield child
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_END_S):
                await child.wait()


async def _reachable(port: int, within_s: float, child: asyncio.subprocess.Process, said: Path) -> None:
    until = time.monotonic() + within_s
    while time.monotonic() < until:
        if child.returncode is not None:
            why = f"(exit code {child.returncode}): {_last_line(said)}"
            raise _trouble(f"The scratch world ended before it could be reached {why}")
        with contextlib.suppress(OSError):
            _, writer = await asyncio.open_connection(_HOST, port)
            writer.close()
            return
        await asyncio.sleep(_LOOK_S)
    raise _trouble(f"The scratch world cannot be reached at {_HOST}:{port} after {within_s:g} s (check.start_s)")


def _last_line(said: Path) -> str:
    return (said.read_text(errors="replace").strip().splitlines() or ["It printed nothing."])[-1]


def _free_port() -> int:
    with socket.socket() as taken:
        taken.bind((_HOST, 0))
        port: int = taken.getsockname()[1]
        return port


def _trouble(what: str) -> ConfigError:
    return ConfigError(f"{what.rstrip('.')}.", remedy=f"Correct [check] in {AGENT_FILE}.")
