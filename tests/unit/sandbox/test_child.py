"""Children that are started and given up at once."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from pathlib import Path

import pytest

from lockstep.sandbox.child import start_child

PIPES = dict.fromkeys(("stdin", "stdout", "stderr"), asyncio.subprocess.PIPE)
LEAVES_ONE_BEHIND = "sleep 60 & echo $$ > {file}.made; mv {file}.made {file}; wait"


@pytest.mark.parametrize("turns", range(1, 8))
def test_a_start_that_is_given_up_ends_although_others_hold_its_pipes(tmp_path: Path, turns: int) -> None:
    file = tmp_path / "group"

    async def work() -> None:
        command = LEAVES_ONE_BEHIND.format(file=file)
        task = asyncio.create_task(start_child("/bin/sh", "-c", command, start_new_session=True, **PIPES))
        for _ in range(turns):
            await asyncio.sleep(0)
        until = time.monotonic() + 20
        while not file.exists() and time.monotonic() < until and turns > 1:
            time.sleep(0.01)  # noqa: ASYNC251 - the loop stands still, so that the start is under way all the while
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            async with asyncio.timeout(20):
                await task
        if not task.cancelled():
            task.result().kill()
        if file.exists():
            group = int(file.read_text())
            assert not task.cancelled() or _state(group) in ("", "Z"), "the child itself was not killed"
            os.killpg(group, signal.SIGKILL)
        if not task.cancelled():
            await task.result().wait()

    asyncio.run(work())


def _state(pid: int) -> str:
    """Z of one that is dead and not yet reaped; empty when there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""
