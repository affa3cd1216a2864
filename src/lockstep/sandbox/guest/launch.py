"""Between bubblewrap and the tool: gives up what is left of privileges, sets limits, then becomes the tool.

Runs inside the sandbox as the text of this file after `python -c`; standard library alone, one argument: a plan in
JSON. Writes one byte to the descriptor `status` when nothing is left to do but execute, and what went wrong otherwise.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import struct
import sys

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_GET_VERSION, _PATH_BENEATH = 1, 1
_READ = 0b1101  # execute, read a file, list a directory
_WRITE_FILE = 1 << 1
_MAKE_DEVICES = 1 << 6 | 1 << 11


def main(plan: dict) -> None:  # type: ignore[type-arg]
    """Never returns."""
    status = plan["status"]
    try:
        if plan["uid"] is not None:
            os.setgroups([])
            os.setresgid(plan["uid"], plan["uid"], plan["uid"])
            os.setresuid(plan["uid"], plan["uid"], plan["uid"])
        for name, value in plan["rlimits"]:
            resource.setrlimit(getattr(resource, name), (value, value))
        _landlock()
        os.set_inheritable(status, False)
        os.write(status, b"+")
        os.execve(plan["argv"][0], plan["argv"], plan["env"])
    except (OSError, ValueError) as error:
        os.write(status, f"{plan['argv'][0]}: {error}".encode())
    finally:
        os._exit(127)


def _landlock() -> None:
    """A second wall behind the mounts, where the kernel has it: what may be written, and whom signals reach.

    The first wall is bubblewrap's; where the kernel has no Landlock, that one stands alone.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    version = libc.syscall(_CREATE_RULESET, None, 0, _GET_VERSION)
    if version < 1:
        return
    files = (1 << {1: 13, 2: 14, 3: 15, 4: 15}.get(version, 16)) - 1
    scoped = 0b11 if version >= 6 else 0  # abstract sockets and signals stay inside
    size = 24 if version >= 6 else 8
    rules = _checked(libc.syscall(_CREATE_RULESET, struct.pack("QQQ", files, 0, scoped), size, 0))
    for path, access in (
        ("/", _READ),
        ("/dev", _READ | _WRITE_FILE),
        ("/tmp", files & ~_MAKE_DEVICES),
        ("/work", files & ~_MAKE_DEVICES),
    ):
        directory = os.open(path, os.O_PATH | os.O_CLOEXEC)
        rule = struct.pack("=Qi", access & files, directory)
        _checked(libc.syscall(_ADD_RULE, rules, _PATH_BENEATH, rule, 0))
        os.close(directory)
    _checked(libc.syscall(_RESTRICT_SELF, rules, 0))
    os.close(rules)


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), "landlock")
    return result


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
