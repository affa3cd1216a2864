"""Host side of the runner: the few files that a sandbox mounts at `/lockstep`, and the command that starts them.

Copies files and builds an argv; starts nothing. Used by whoever fills a `SandboxSpec`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from lockstep.tools.bundle import BUNDLE, HEAD_BYTES, Record, make
from lockstep.tools.code import CodeStore
from lockstep.values import Digest, sha256

LOCKSTEP_MOUNT = "/lockstep"
TOOL_MOUNT = "/tool"
INTERPRETER = ("/usr/bin/python3", "-I", "-S")
"""Isolated, without site-packages: starts twice as fast as most, and finds nothing but the standard library."""

_PACKAGE = Path(__file__).parent.parent
_FILES = (
    "__init__.py",
    "tools/__init__.py",
    "tools/decorator.py",
    "tools/egress_shim.py",
    "tools/hints.py",
    "tools/importer.py",
    "tools/results.py",
    "tools/runner.py",
    "tools/schema.py",
    "tools/shapes.py",
    "tools/toolbox.py",
)
_BOOTSTRAP = f"""
import marshal, posix, sys
from _frozen_importlib_external import MAGIC_NUMBER
mount = {LOCKSTEP_MOUNT!r}
name = MAGIC_NUMBER + sys.version.encode() + b"\\0"
try:
    file = posix.open(mount + "/{BUNDLE}", posix.O_RDONLY | posix.O_CLOEXEC)
except OSError:
    file, head = -1, b""
else:
    head = posix.read(file, {HEAD_BYTES})
if head.startswith(name):
    start, table = marshal.loads(memoryview(head)[len(name):])
    exec(start, importer := dict(__name__="lockstep.tools.importer"))
    bundle = importer["install"](mount + "/{BUNDLE}", file, table)
    from lockstep.tools.runner import main
    bundle.close()
else:
    if file >= 0:
        posix.close(file)
    sys.path.insert(0, mount)
    from lockstep.tools.runner import main
main(sys.argv[1:])
"""
"""The bundle's importer where the bundle was made by this very interpreter; else the files beside it."""


def guest_files() -> tuple[Path, ...]:
    """The files of this package that belong into a sandbox; nothing else of Lockstep is ever mounted there."""
    return tuple(path for path in (_PACKAGE / name for name in _FILES) if path.is_file())


def command(
    module_file: str, only: Collection[str] = (), *, interpreter: Sequence[str] = INTERPRETER
) -> tuple[str, ...]:
    """The argv that serves the tools of one module inside a sandbox.

    Args:
        module_file: relative to the directory mounted at `/tool`.
        only: names of the tools to offer; all of them when empty.
        interpreter: the Python to start and its flags.
    """
    # `-c` rather than `-m`, which would import `runpy`.
    chosen = ("--only", ",".join(sorted(only))) if only else ()
    return (*interpreter, "-X", "utf8", "-c", _BOOTSTRAP, module_file, *chosen)


def draws_anew(argv: Sequence[str]) -> bool:
    """Whether this starts our runner, which renews its randomness at every call: copies of it may each serve one."""
    return _BOOTSTRAP in argv


def materialize(directory: Path, interpreter: Sequence[str] = ()) -> Path:
    """A directory below `directory` to mount read-only at `/lockstep`, holding exactly the guest files.

    With an `interpreter` there is a start-up bundle for it beside them, unless it cannot make one.

    Raises:
        StoreError: what lies there is not what was put there, or nothing can be put there.
    """
    files = {f"lockstep/{path.relative_to(_PACKAGE).as_posix()}": path.read_bytes() for path in guest_files()}
    digests = {name: sha256(data) for name, data in files.items()}
    store = CodeStore(directory)
    if interpreter and (bundled := _bundled(directory, store, interpreter, files, digests)):
        return store.get(bundled)
    store.put(files)
    return store.get(digests)


def _bundled(
    directory: Path,
    store: CodeStore,
    interpreter: Sequence[str],
    files: Mapping[str, bytes],
    digests: Mapping[str, Digest],
) -> dict[str, Digest] | None:
    """The digests of a snapshot that is in the store, of the files and a bundle; None when there is no bundle."""
    record = Record(directory, interpreter, digests)
    if (known := record.load()) and store.has(found := {**digests, BUNDLE: known}):
        return found
    made = make(interpreter, LOCKSTEP_MOUNT, files)
    if made is None:
        return None
    store.put({**files, BUNDLE: made.data})
    record.save(made)
    return {**digests, BUNDLE: sha256(made.data)}
