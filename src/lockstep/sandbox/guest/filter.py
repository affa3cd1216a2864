"""System calls a tool in the guest is refused although the kernel would let any user make them.

A classic BPF program for seccomp: a refused call fails with EPERM, a call of another architecture ends the process.
The machine is the boundary; this keeps the guest's kernel, and so the agent's reports, harder to reach.
"""

from __future__ import annotations

import ctypes
import os
import struct

_PR_SET_SECCOMP, _MODE_FILTER = 22, 2
_LOAD, _JUMP_EQUAL, _JUMP_GREATER_EQUAL, _RETURN = 0x20, 0x15, 0x35, 0x06
_ALLOW, _KILL_PROCESS, _REFUSE = 0x7FFF0000, 0x80000000, 0x00050001
_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT = 0, 4, 16  # offsets in struct seccomp_data
_AMD64, _X32 = 0xC000003E, 0x40000000
_SOCKET = 41
_AF_UNIX, _AF_INET, _AF_INET6 = 1, 2, 10
_REFUSED = (
    101,  # ptrace
    165,  # mount
    248,  # add_key
    249,  # request_key
    250,  # keyctl
    272,  # unshare
    298,  # perf_event_open
    308,  # setns
    310,  # process_vm_readv
    311,  # process_vm_writev
    321,  # bpf
    323,  # userfaultfd
    425,  # io_uring_setup
    426,  # io_uring_enter
    427,  # io_uring_register
)


def install() -> None:
    """Put the filter on this process and all it will start; needs no_new_privs.

    Raises:
        OSError: the kernel has no seccomp.
    """
    code = program()
    buffer = ctypes.create_string_buffer(code, len(code))
    header = struct.pack("HxxxxxxP", len(code) // 8, ctypes.addressof(buffer))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_SECCOMP, _MODE_FILTER, header, 0, 0) < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error), "seccomp")


def program() -> bytes:
    """The filter: architecture, then the number, then for `socket` the address family."""
    body = [(_JUMP_EQUAL, number, "refuse", None) for number in _REFUSED]
    lines = [
        (_LOAD, _ARCHITECTURE, None, None),
        (_JUMP_EQUAL, _AMD64, None, "kill"),
        (_LOAD, _NUMBER, None, None),
        (_JUMP_GREATER_EQUAL, _X32, "kill", None),
        *body,
        (_JUMP_EQUAL, _SOCKET, None, "allow"),
        (_LOAD, _FIRST_ARGUMENT, None, None),
        (_JUMP_EQUAL, _AF_UNIX, "allow", None),
        (_JUMP_EQUAL, _AF_INET, "allow", None),
        (_JUMP_EQUAL, _AF_INET6, "allow", None),
        (_RETURN, _REFUSE, None, None),
        (_RETURN, _ALLOW, None, None),
        (_RETURN, _KILL_PROCESS, None, None),
    ]
    ends = {"refuse": len(lines) - 3, "allow": len(lines) - 2, "kill": len(lines) - 1}
    return b"".join(
        struct.pack("HBBI", code, *(ends[to] - at - 1 if to else 0 for to in (yes, no)), value)
        for at, (code, value, yes, no) in enumerate(lines)
    )
