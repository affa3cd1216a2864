"""The package as text: its files, what each imports, and the floors of docs/architecture.md."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SRC = ROOT / "src/lockstep"
PAGE = ROOT / "docs/architecture.md"
_ROW = re.compile(r"^\|\s*(\d+)\s*\|\s*`(\w+)`\s*\|.+\|$", re.MULTILINE)


@cache
def files() -> tuple[Path, ...]:
    return tuple(sorted(SRC.rglob("*.py")))


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


def name_of(path: Path) -> str:
    """`kernel/decide.py` for messages."""
    return path.relative_to(SRC).as_posix()


def room_of(path: Path) -> str:
    """The top-level module or package a file belongs to."""
    return path.relative_to(SRC).parts[0].removesuffix(".py")


def module_of(path: Path) -> str:
    parts = path.relative_to(SRC.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def floors() -> dict[str, int]:
    """Module -> floor, from the table of the page."""
    text = PAGE.read_text().partition("| floor | module | what |")[2]
    return {module: int(floor) for floor, module in _ROW.findall(text)}


@cache
def imports(path: Path) -> tuple[tuple[int, str], ...]:
    """(line, module) of every import anywhere in a file: in functions and under TYPE_CHECKING as well."""
    return tuple(_imports(path))


@cache
def _known() -> frozenset[str]:
    return frozenset(map(module_of, files()))


def _imports(path: Path) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = f"{'.' * node.level}{node.module or ''}"
            for alias in node.names:
                below = f"{module}.{alias.name}"
                yield node.lineno, below if below in _known() else module


def ours(path: Path) -> Iterator[tuple[int, str]]:
    """The imports of Lockstep's own modules."""
    return ((line, module) for line, module in imports(path) if module.split(".")[0] == "lockstep")
