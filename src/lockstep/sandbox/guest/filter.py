"""System calls that sandboxed code is refused although the kernel would let any user make them.

A classic BPF program for seccomp (amd64): a refused call fails with EPERM, a call of another architecture ends the
process. Under bubblewrap this guards the host's kernel; in a guest it keeps the agent's reports harder to reach.
"""

from __future__ import annotations

import ctypes
import os
import struct

_PR_SET_SECCOMP, _MODE_FILTER = 22, 2
_LOAD, _JUMP_EQUAL, _JUMP_GREATER_EQUAL, _JUMP_SET, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _KILL_PROCESS, _REFUSE, _NOT_THERE = 0x7FFF0000, 0x80000000, 0x00050001, 0x00050026
_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT = 0, 4, 16  # offsets in struct seccomp_data
_AMD64, _X32 = 0xC000003E, 0x40000000
_SOCKET, _CLONE, _CLONE3 = 41, 56, 435
_AF_UNIX, _AF_INET, _AF_INET6 = 1, 2, 10
_NEW_NAMESPACES = 0x7E020080  # CLONE_NEW*: a user namespace of one's own opens half of what is refused below
_REFUSED = (
    *(101, 310, 311, 312),  # ptrace, process_vm_readv, process_vm_writev, kcmp: other processes
    *(155, 161, 165, 166),  # pivot_root, chroot, mount, umount2: another view of files
    *(428, 429, 430, 431, 432, 433, 442),  # open_tree to fspick, mount_setattr: the same, newer
    *(272, 308),  # unshare, setns: namespaces
    *(303, 304),  # name_to_handle_at, open_by_handle_at: files past their directories
    *(175, 176, 313, 246, 320),  # init_module, delete_module, finit_module, kexec_load, kexec_file_load: another kernel
    *(298, 321, 323),  # perf_event_open, bpf, userfaultfd: what exploits of the kernel are made with
    *(425, 426, 427),  # io_uring: system calls that no filter sees
    *(248, 249, 250),  # add_key, request_key, keyctl: keys are not kept apart by namespaces
    *(159, 164, 227, 305),  # adjtimex, settimeofday, clock_settime, clock_adjtime: the clock
    *(153, 163, 167, 168, 169, 170, 171, 172, 173, 179),  # vhangup, acct, swap, reboot, names, ports, quotactl
    *(103, 237, 238, 279),  # syslog; mbind, set_mempolicy, move_pages: another's memory
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
    """The filter: architecture, then the number, then the address family of `socket` and the flags of `clone`."""
    lines = [
        (_LOAD, _ARCHITECTURE, None, None),
        (_JUMP_EQUAL, _AMD64, None, "kill"),
        (_LOAD, _NUMBER, None, None),
        (_JUMP_GREATER_EQUAL, _X32, "kill", None),
        *((_JUMP_EQUAL, number, "refuse", None) for number in _REFUSED),
        (_JUMP_EQUAL, _CLONE3, "not there", None),  # its flags cannot be seen; libraries then use clone
        (_JUMP_EQUAL, _CLONE, "clone", None),
        (_JUMP_EQUAL, _SOCKET, None, "allow"),
        (_LOAD, _FIRST_ARGUMENT, None, None),
        (_JUMP_EQUAL, _AF_UNIX, "allow", None),
        (_JUMP_EQUAL, _AF_INET, "allow", None),
        (_JUMP_EQUAL, _AF_INET6, "allow", "refuse"),
        (_LOAD, _FIRST_ARGUMENT, None, None),
        (_JUMP_SET, _NEW_NAMESPACES, "refuse", "allow"),
        (_RETURN, _REFUSE, None, None),
        (_RETURN, _NOT_THERE, None, None),
        (_RETURN, _ALLOW, None, None),
        (_RETURN, _KILL_PROCESS, None, None),
    ]
    places = dict(
        zip(("clone", "", "refuse", "not there", "allow", "kill"), range(len(lines) - 6, len(lines)), strict=True)
    )
    return b"".join(
        struct.pack("HBBI", code, *(places[to] - at - 1 if to else 0 for to in (yes, no)), value)
        for at, (code, value, yes, no) in enumerate(lines)
    )
