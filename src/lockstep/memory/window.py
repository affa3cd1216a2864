"""The window: which earlier runs of a session the prompt holds. Schema 1: the newest N, whole, oldest first."""

from __future__ import annotations

from collections.abc import Sequence

from lockstep.values import RunId


def window(runs_oldest_first: Sequence[RunId], size: int) -> tuple[RunId, ...]:
    """The newest `size` runs, oldest first; none when `size` is 0."""
    return tuple(runs_oldest_first[-size:]) if size else ()
