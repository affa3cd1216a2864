"""Serves modules inside a sandbox from the bundle that `bundling` made: one read each, and no directory is looked into.

Executed by the bootstrap in `guest` before anything else. What the bundle does not have is imported as ever.
"""

import marshal
import posix
import sys

# Those that Python itself started with: a module imported here is one that the bundle could not spare us.
from _frozen_importlib_external import ExtensionFileLoader, SourceFileLoader, spec_from_file_location

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from importlib.machinery import ModuleSpec
    from types import CodeType
    from typing import Any

    Entry = tuple[str, bool, int, int]
    """Where a module's file is, whether it is a package, and where its code lies, counted from the bundle's end, and
    how long it is: nothing for an extension module."""


class Bundle:
    """The file, open until `close` and again whenever a tool asks for more."""

    def __init__(self, path: str, file: int, table: "Mapping[str, Entry]") -> None:
        self._path = path
        self._file = file
        self._size = posix.fstat(file).st_size
        self.table = table

    def code(self, name: str) -> "CodeType":
        """The code of a module.

        Raises:
            ImportError: the bundle cannot be read.
        """
        _, _, from_end, length = self.table[name]
        try:
            file = self._file if self._file >= 0 else posix.open(self._path, posix.O_RDONLY | posix.O_CLOEXEC)
            try:
                read = posix.pread(file, length, self._size - from_end)
            finally:
                if file != self._file:
                    posix.close(file)
        except OSError as error:
            raise ImportError(f"the bundle cannot be read: {error.strerror}", name=name) from error
        code: CodeType = marshal.loads(read)  # made on the host, for this very interpreter
        return code

    def close(self) -> None:
        """Leave no descriptor to the tool."""
        posix.close(self._file)
        self._file = -1


class Bundled(SourceFileLoader):
    """Takes the code from the bundle; all else about the module is as if it had been read from its file."""

    def __init__(self, name: str, path: str, bundle: Bundle) -> None:
        super().__init__(name, path)
        self._bundle = bundle

    def get_code(self, fullname: str) -> "CodeType":
        return self._bundle.code(fullname)


class Importer:
    """Finds what the bundle has, before any directory is looked into."""

    def __init__(self, bundle: Bundle) -> None:
        self._bundle = bundle

    def find_spec(self, name: str, path: "Sequence[str] | None" = None, target: "Any" = None) -> "ModuleSpec | None":
        entry = self._bundle.table.get(name)
        if entry is None:
            return None
        file, package, _, length = entry
        if not length:
            return spec_from_file_location(name, file, loader=ExtensionFileLoader(name, file))
        within = [file.rpartition("/")[0]] if package else None
        loader = Bundled(name, file, self._bundle)
        return spec_from_file_location(name, file, loader=loader, submodule_search_locations=within)


def install(path: str, file: int, table: "Mapping[str, Entry]") -> Bundle:
    """Serve these modules from now on: after those built into Python, before those of directories."""
    bundle = Bundle(path, file, table)
    sys.meta_path.insert(2, Importer(bundle))
    return bundle
