"""Where the values of secrets come from: a variable, a file or a command of this machine, asked just before use.

A value goes to the egress proxy and nowhere else; no error here says more than where it should have come from.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shlex
import signal
from collections.abc import Iterable, Mapping
from pathlib import Path

from lockstep.agent.files import read_file
from lockstep.agent.spec import SecretSection
from lockstep.errors import ConfigError
from lockstep.sandbox.child import start_child
from lockstep.sandbox.secrets import MIN_VALUE_CHARACTERS

COMMAND_S = 10.0
_END_S = 2.0
_VALUE_BYTES = 16 * 2**10
_USABLE = re.compile(r"[!-~](?:[ -~]*[!-~])?")


async def secret_values(secrets: Iterable[SecretSection], env: Mapping[str, str]) -> dict[str, str]:
    """The value of each secret by its variable inside; commands run with the environment `env`.

    Raises:
        ConfigError: one cannot be had, or cannot be used; one sentence that names it and its source.
    """
    listed = list(secrets)
    values = await asyncio.gather(*(secret_value(secret, env) for secret in listed))
    return {secret.env: value for secret, value in zip(listed, values, strict=True)}


async def secret_value(secret: SecretSection, env: Mapping[str, str]) -> str:
    """As `secret_values`, for one."""
    return await value_from(secret.source, env, f"secret {secret.env}")


async def value_from(source: str, env: Mapping[str, str], what: str, *, lines: bool = False) -> str:
    """What a source gives; `lines`: a text of several, as a key is, which no header has to carry.

    Raises:
        ConfigError: it cannot be had, or cannot be used; one sentence with `what` it is and the source.
    """
    kind, _, where = source.partition(":")
    try:
        match kind:
            case "env":
                found = env.get(where, "").encode(errors="surrogateescape")
            case "file":
                found = await asyncio.to_thread(_read, where)
            case _:
                found = await _output(shlex.split(where), env)
        return found.decode() if lines else _usable(found)
    except OSError as error:
        why = error.strerror or "it cannot be read"
    except ValueError as error:
        why = str(error)
    raise ConfigError(
        f"The {what} cannot be had from {source!r}: {why}.",
        remedy="Provide it there, or correct `secrets` in agent.toml.",
    )


def _usable(found: bytes) -> str:
    """The value as it will stand in a header."""
    text = found.decode("ascii", "replace").rstrip("\r\n")
    if not text:
        raise ValueError("there is nothing")
    if not _USABLE.fullmatch(text):
        raise ValueError("it has spaces around it, line breaks or characters beyond ASCII, so no header can carry it")
    if len(text) < MIN_VALUE_CHARACTERS:
        raise ValueError(f"it has fewer than {MIN_VALUE_CHARACTERS} characters: scrubbing it would maim replies")
    if len(text) > _VALUE_BYTES:
        raise ValueError(f"it has more than {_VALUE_BYTES} characters, and no server takes such a header")
    return text


def _read(path: str) -> bytes:
    return read_file(Path(os.path.expanduser(path)))


async def _output(argv: list[str], env: Mapping[str, str]) -> bytes:
    """What a command prints; it and what it started are ended after `COMMAND_S`."""
    quiet = asyncio.subprocess.DEVNULL
    child = await start_child(
        *argv, stdin=quiet, stdout=asyncio.subprocess.PIPE, stderr=quiet, env=dict(env), start_new_session=True
    )
    assert child.stdout is not None
    try:
        async with asyncio.timeout(COMMAND_S):
            printed = await _to_the_end(child.stdout)
            exit_code = await child.wait()
    except TimeoutError:
        raise ValueError(f"it did not end within {COMMAND_S:g} s") from None
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        # A pipe that is full is read no more, and until it is read to its end the child counts as running. Whoever left
        # the group may hold it open for ever.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_END_S):
                await child.stdout.read()
                await child.wait()
    if exit_code:
        raise ValueError(f"it ended with exit code {exit_code}")
    return printed


async def _to_the_end(stream: asyncio.StreamReader) -> bytes:
    try:
        await stream.readexactly(_VALUE_BYTES + 1)
    except asyncio.IncompleteReadError as whole:
        return whole.partial
    raise ValueError(f"it prints more than {_VALUE_BYTES} bytes")
