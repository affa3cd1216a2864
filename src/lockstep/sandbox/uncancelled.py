"""Work that must be done to its end: whatever destroys a sandbox is not stopped half-way by a cancelled call."""

from __future__ import annotations

import asyncio


async def to_the_end(task: asyncio.Task[None]) -> None:
    """Wait for this task however often we are cancelled meanwhile, then let the cancellation through."""
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled
    task.result()
