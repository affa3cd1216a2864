"""Code snapshots: what was locked is what is mounted, or nothing is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from lockstep.errors import StoreError
from lockstep.tools.code import CodeStore
from lockstep.values import sha256

FILES = {"tools.py": b"x = 1\n", "lib/table.json": b"{}"}
CODE = {name: sha256(data) for name, data in FILES.items()}


def test_a_snapshot_holds_exactly_the_files_and_is_made_once(tmp_path: Path) -> None:
    store = CodeStore(tmp_path)
    made = store.put(FILES)
    assert store.put(FILES) == made == store.get(CODE)
    assert {p.relative_to(made).as_posix(): p.read_bytes() for p in made.rglob("*") if p.is_file()} == FILES


def test_other_files_are_another_snapshot(tmp_path: Path) -> None:
    store = CodeStore(tmp_path)
    assert store.put(FILES) != store.put({**FILES, "tools.py": b"x = 2\n"})


def test_code_that_was_never_kept_is_named(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"tools\.py.*is not in the store"):
        CodeStore(tmp_path).get(CODE)


def _changed(made: Path) -> None:
    (made / "tools.py").write_bytes(b"x = 2\n")


def _added(made: Path) -> None:
    (made / "json.py").write_bytes(b"")


def _removed(made: Path) -> None:
    (made / "lib/table.json").unlink()


def _linked(made: Path) -> None:
    (made / "tools.py").unlink()
    (made / "tools.py").symlink_to("/etc/hostname")


@pytest.mark.parametrize("tamper", [_changed, _added, _removed, _linked])
def test_a_snapshot_that_was_changed_is_refused(tmp_path: Path, tamper: Callable[[Path], None]) -> None:
    tamper(CodeStore(tmp_path).put(FILES))
    with pytest.raises(StoreError, match="was changed in the store"):
        CodeStore(tmp_path).get(CODE)
