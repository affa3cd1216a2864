"""Child processes of the event loop: started to the end, and killed without taking their exit code from it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from typing import Any

from lockstep.sandbox.uncancelled import to_the_end

_END_S = 5.0


async def start_child(*command: str, **options: Any) -> asyncio.subprocess.Process:
    """`asyncio.create_subprocess_exec`, of which a start that is cancelled leaves nothing running.

    asyncio itself gives up a cancelled start by killing the child and waiting until nobody holds its pipes. What the
    child had started by then may hold them for ever (bubblewrap's inner half); only our caller knows how to find that.
    """
    starting = asyncio.create_task(asyncio.create_subprocess_exec(*command, **options))
    try:
        return await asyncio.shield(starting)
    except asyncio.CancelledError:
        await to_the_end(asyncio.create_task(_give_up(starting)))
        raise


async def _give_up(starting: asyncio.Task[asyncio.subprocess.Process]) -> None:
    await asyncio.wait([starting])  # a moment: nothing of the program itself is waited for
    if starting.cancelled() or starting.exception() is not None:
        return
    child = starting.result()
    kill_child(child)
    transport: asyncio.SubprocessTransport = child._transport  # type: ignore[attr-defined]
    for descriptor in range(3):  # whoever else holds them, we do not
        if (pipe := transport.get_pipe_transport(descriptor)) is not None:
            pipe.close()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_END_S):
            await child.wait()


def kill_child(child: asyncio.subprocess.Process) -> None:
    """SIGKILL, and leave the reaping to asyncio: `Process.kill` would take the exit code of one that has ended."""
    if child.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child.pid, signal.SIGKILL)
