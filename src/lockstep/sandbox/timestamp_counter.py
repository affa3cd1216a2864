"""How fast this processor's time stamp counter runs. An emulated machine counts with it, and cannot measure it well."""

from __future__ import annotations

import ctypes
import functools
import mmap
import platform
import time
from collections.abc import Callable

_READ_COUNTER = b"\x0f\x31\x48\xc1\xe2\x20\x48\x09\xd0\xc3"  # rdtsc; shl rdx, 32; or rax, rdx; ret
_SPAN_NS = 40_000_000
_TRIES = 5


@functools.cache
def counter_khz() -> int | None:
    """Ticks per millisecond; None where it cannot be read. Takes a fraction of a second, once."""
    if platform.machine() != "x86_64":
        return None
    try:
        code = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    except OSError:
        return None  # a system that lets nobody write code
    code.write(_READ_COUNTER)
    read = ctypes.CFUNCTYPE(ctypes.c_uint64)(ctypes.addressof(ctypes.c_char.from_buffer(code)))
    return sorted(_measured_khz(read) for _ in range(_TRIES))[_TRIES // 2]


def _measured_khz(read: Callable[[], int]) -> int:
    began_ns, began = time.monotonic_ns(), read()
    while time.monotonic_ns() - began_ns < _SPAN_NS:
        pass  # sleeping would add the time it takes to wake up
    ended_ns, ended = time.monotonic_ns(), read()
    return (ended - began) * 1_000_000 // (ended_ns - began_ns)
