"""The system call filter, run through a small interpreter of its own language."""

from __future__ import annotations

import operator
import struct

import pytest

from lockstep.sandbox.guest.filter import program

AMD64, I386 = 0xC000003E, 0x40000003
ALLOWED, REFUSED, NOT_THERE, KILLED = 0x7FFF0000, 0x00050001, 0x00050026, 0x80000000
TESTS = {0x15: operator.eq, 0x35: operator.ge, 0x45: operator.and_}


def verdict(number: int, first: int = 0, architecture: int = AMD64) -> int:
    data = struct.pack("<IIQ6Q", number, architecture, 0, first, 0, 0, 0, 0, 0)
    lines = list(struct.iter_unpack("HBBI", program()))
    at = accumulator = 0
    while True:
        code, yes, no, value = lines[at]
        at += 1
        if code == 0x20:
            (accumulator,) = struct.unpack_from("<I", data, value)
        elif code in TESTS:
            at += yes if TESTS[code](accumulator, value) else no
        else:
            assert code == 0x06
            return value


@pytest.mark.parametrize(
    ("number", "first", "architecture", "expected"),
    [
        (0, 0, AMD64, ALLOWED),  # read
        (59, 0, AMD64, ALLOWED),  # execve
        (56, 0x11, AMD64, ALLOWED),  # clone: a child
        (56, 0x10000000, AMD64, REFUSED),  # clone: a user namespace
        (435, 0, AMD64, NOT_THERE),  # clone3, whose flags cannot be seen
        (161, 0, AMD64, REFUSED),  # chroot
        (101, 0, AMD64, REFUSED),  # ptrace
        (321, 0, AMD64, REFUSED),  # bpf
        (425, 0, AMD64, REFUSED),  # io_uring_setup
        (41, 1, AMD64, ALLOWED),  # socket: unix
        (41, 2, AMD64, ALLOWED),  # inet
        (41, 40, AMD64, REFUSED),  # vsock: the way to the agent
        (41, 17, AMD64, REFUSED),  # packet
        (41, 16, AMD64, REFUSED),  # netlink
        (0, 0, I386, KILLED),
        (0x40000000, 0, AMD64, KILLED),  # the x32 numbers
    ],
)
def test_what_a_tool_may_ask_of_the_kernel(number: int, first: int, architecture: int, expected: int) -> None:
    assert verdict(number, first, architecture) == expected
