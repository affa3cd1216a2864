"""What the gateway and its libraries complain of, on standard error: strangers' words in it steer no terminal.

They say what they like in headers and bodies, and libraries quote it. So every line is escaped and cut, and no more
than so many are written a minute.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager

from lockstep.agent.diff import visible

A_MINUTE = 60
_MAX_LINE = 500


class _Escaped(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return "\n".join(complaint(line) for line in super().format(record).split("\n"))


class _Bounded(logging.Filter):
    """So many a minute; then how many were left out."""

    def __init__(self) -> None:
        super().__init__()
        self._until = 0.0
        self._left = 0
        self._dropped = 0

    def filter(self, record: logging.LogRecord) -> bool:
        if (now := time.monotonic()) >= self._until:
            self._until, self._left = now + 60, A_MINUTE
            if self._dropped:
                record.msg = f"{record.getMessage()}\n({self._dropped} more were left out before this one)"
                record.args, self._dropped = (), 0
        if not self._left:
            self._dropped += 1
            return False
        self._left -= 1
        return True


@contextmanager
def complaining() -> Iterator[None]:
    """Libraries' warnings and errors go to standard error meanwhile."""
    root, handler = logging.getLogger(), logging.StreamHandler()
    handler.setFormatter(_Escaped("lockstep: %(message)s"))
    handler.addFilter(_Bounded())
    root.addHandler(handler)
    try:
        yield
    finally:
        root.removeHandler(handler)


def complaint(text: str) -> str:
    """A line that strangers may have had a say in."""
    line = visible(text)
    return line if len(line) <= _MAX_LINE else f"{line[:_MAX_LINE]}…"
