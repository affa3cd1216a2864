"""Makes a start-up bundle; run by the interpreter that the bundle is for, outside any sandbox, see `bundle`.

Reads from stdin, as JSON, where the runner will be mounted and its files' text; writes to stdout a line of JSON with
the files of the standard library that went in, then the bundle: what made it, how to import from it, where in it each
module lies, and the code of each. Standard library alone.
"""

from __future__ import annotations

import contextlib
import json
import marshal
import sys
from importlib.machinery import ExtensionFileLoader, SourceFileLoader
from importlib.util import MAGIC_NUMBER

OFTEN = ("dataclasses", "datetime", "typing", "urllib.request")
"""What tool modules often import; it goes in as well."""
IMPORTER = "lockstep/tools/importer.py"
_AT_START = frozenset(("encodings", "encodings.aliases", "encodings.utf_8", "__main__"))
"""Loaded before any code of ours can run."""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from types import CodeType, ModuleType

    Compiled = tuple[str, bool, bytes]
    """Where a module's file is, whether it is a package, and its marshalled code; for an extension module none."""


def main() -> None:
    """Make one bundle."""
    asked = json.load(sys.stdin)
    own = {_module(path): _compiled(f"{asked['mount']}/{path}", text) for path, text in asked["files"].items()}
    sys.path.insert(0, asked["package"])
    for name in (*own, *OFTEN):
        with contextlib.suppress(ImportError):
            __import__(name)
    library = dict(_of_library(dict(sys.modules), own))
    start = compile(asked["files"][IMPORTER], f"{asked['mount']}/{IMPORTER}", "exec", dont_inherit=True)
    sys.stdout.buffer.write(json.dumps([path for path, _, _ in library.values()]).encode() + b"\n")
    sys.stdout.buffer.write(bundle(start, {**library, **own}))


def bundle(start: CodeType, modules: Mapping[str, Compiled]) -> bytes:
    """What the bootstrap reads: this interpreter's name, then `start` and the table for it, then each module's code."""
    left = sum(len(code) for _, _, code in modules.values())
    table = {}
    for name, (path, package, code) in modules.items():
        table[name] = (path, package, left, len(code))
        left -= len(code)
    head = MAGIC_NUMBER + sys.version.encode() + b"\0" + marshal.dumps((start, table))
    return b"".join((head, *(code for _, _, code in modules.values())))


def _module(path: str) -> str:
    """`a.b` of `a/b.py` and of `a/b/__init__.py`."""
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def _compiled(path: str, source: str | bytes) -> Compiled:
    return path, path.endswith("/__init__.py"), marshal.dumps(compile(source, path, "exec", dont_inherit=True))


def _of_library(modules: Mapping[str, ModuleType], own: Mapping[str, Compiled]) -> Iterator[tuple[str, Compiled]]:
    for name, module in modules.items():
        spec = getattr(module, "__spec__", None)  # typing.io is no module
        if name in own or name in _AT_START or spec is None or spec.origin is None or spec.name != name:
            continue
        if isinstance(spec.loader, ExtensionFileLoader):
            yield name, (spec.origin, False, b"")
        elif isinstance(spec.loader, SourceFileLoader):
            yield name, _compiled(spec.origin, spec.loader.get_data(spec.origin))


if __name__ == "__main__":
    main()
