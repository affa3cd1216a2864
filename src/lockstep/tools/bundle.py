"""The start-up bundle: all modules that the runner needs as one file, compiled for the interpreter that will run them.

Under gVisor a system call costs many times what it costs outside, and importing is system calls. So the runner's
modules, and those of the standard library that they import or tools often do, are compiled once, by the interpreter
that sandboxes share with this machine, and mounted beside the sources. Inside, the bootstrap compares interpreter and
byte code version before it reads any further; another interpreter, like a microVM guest's, imports the sources.

Measured with Python 3.11: until its first request the runner makes 423 system calls in place of 901 (355 are Python's
own start), and 689 in place of 1594 when its tool imports `urllib.request`; 30 to 60 ms of CPU less a sandbox, and a
call that starts its own takes 450 in place of 550 ms on two busy cores.

A bundle is made again when the interpreter, the runner or one of the library's files is another. It lies in the guest
directory, its digest in a record there, and is checked against that with everything else before its first use: a record
is as trusted as the store it lies in, and a bundle runs only inside sandboxes.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lockstep.values import Digest, Json, digest_json, sha256

BUNDLE = "bundle"
"""Its name below the mount."""
HEAD_BYTES = 2**16
"""What the bootstrap reads of it: the name of its interpreter, its importer and its table must lie within."""

_MAKER = Path(__file__).with_name("bundling.py")
_MAKE_S = 60.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Made:
    """A bundle and the digests of the standard library's files that went into it."""

    data: bytes
    stdlib: Mapping[str, Digest]


def make(interpreter: Sequence[str], mount: str, files: Mapping[str, bytes]) -> Made | None:
    """Compile the runner's files (path below `mount` -> bytes) and what they import; None when this Python cannot."""
    texts = {name: data.decode() for name, data in files.items()}
    asked = json.dumps({"mount": mount, "files": texts, "package": str(Path(__file__).parents[2])})
    try:
        done = subprocess.run(
            [*interpreter, "-B", "-X", "utf8", str(_MAKER)],
            input=asked.encode(),
            capture_output=True,
            timeout=_MAKE_S,
            check=False,
            env={},
        )
        paths, _, data = done.stdout.partition(b"\n")
        if done.returncode != 0:
            return None
        return Made(data=data, stdlib={path: sha256(Path(path).read_bytes()) for path in json.loads(paths)})
    except (OSError, ValueError, subprocess.TimeoutExpired):
        return None


class Record:
    """Which bundle was made below `directory` for this interpreter and these sources."""

    def __init__(self, directory: Path, interpreter: Sequence[str], sources: Mapping[str, Digest]) -> None:
        program = Path(interpreter[0]).resolve()
        found = program.stat()
        key: Json = [*interpreter, str(program), str(found.st_size), str(found.st_mtime_ns), dict(sources)]
        self._file = directory / f"bundle-{digest_json(key)[:32]}.json"

    def load(self) -> Digest | None:
        """The digest of the bundle; None when there is none or the standard library has changed since."""
        try:
            kept = json.loads(self._file.read_text())
            if all(sha256(Path(path).read_bytes()) == digest for path, digest in kept["stdlib"].items()):
                return Digest(kept["bundle"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None
        return None

    def save(self, made: Made) -> None:
        draft = self._file.with_suffix(f".{os.getpid()}")
        draft.write_text(json.dumps({"bundle": sha256(made.data), "stdlib": dict(made.stdlib)}))
        draft.replace(self._file)
