"""What machines start from: sealed memory, and snapshots that are whole, few, and made once."""

from __future__ import annotations

import asyncio
import mmap
import os
from pathlib import Path

import pytest

from lockstep.errors import SandboxUnavailable
from lockstep.sandbox import memory_image, snapshots
from lockstep.sandbox.snapshots import Snapshots
from lockstep.values import sha256


def filled(*places: int) -> int:
    memory = memory_image.blank(64 * 2**20)
    for place in places:
        os.pwrite(memory, b"here", place)
    return memory


def test_memory_comes_back_from_disk_as_it_was_and_stays_sparse(tmp_path: Path) -> None:
    memory = filled(0, 5_000_000, 64 * 2**20 - 4)
    memory_image.save(memory, tmp_path / "memory")
    assert (tmp_path / "memory").stat().st_blocks * 512 < 2**20
    loaded = memory_image.load(tmp_path / "memory")
    for place in (0, 5_000_000, 64 * 2**20 - 4):
        assert os.pread(loaded, 4, place) == b"here"
    assert os.pread(loaded, 4096, 10_000_000) == bytes(4096)
    assert os.fstat(loaded).st_size == 64 * 2**20
    os.close(memory)
    os.close(loaded)


def test_sealed_memory_can_be_mapped_privately_and_changed_by_nobody() -> None:
    memory = filled(0)
    memory_image.seal(memory)
    with pytest.raises(PermissionError):
        os.pwrite(memory, b"evil", 0)
    with pytest.raises(PermissionError):
        mmap.mmap(memory, 4096)
    private = mmap.mmap(memory, 4096, mmap.MAP_PRIVATE)
    private[:4] = b"mine"
    assert os.pread(memory, 4, 0) == b"here"
    forked = memory_image.copy(memory)
    os.pwrite(forked, b"evil", 0)
    assert os.pread(memory, 4, 0) == b"here"
    os.close(memory)
    os.close(forked)


async def _fill(draft: Path) -> None:
    await asyncio.sleep(0)
    (draft / "memory").write_bytes(b"x")


def test_a_snapshot_is_made_once_however_many_ask_at_once(tmp_path: Path) -> None:
    made = []

    async def make(draft: Path) -> None:
        made.append(draft)
        await _fill(draft)

    async def scene() -> list[Path]:
        kept = Snapshots(tmp_path / "s")
        return list(await asyncio.gather(*(kept.get(sha256(b"key"), make) for _ in range(5))))

    paths = asyncio.run(scene())
    assert len(made) == 1
    assert set(paths) == {tmp_path / "s" / sha256(b"key")}
    assert (tmp_path / "s").stat().st_mode & 0o777 == 0o700
    assert os.listdir(tmp_path / "s") == [sha256(b"key")]


def test_a_snapshot_that_fails_half_way_leaves_nothing(tmp_path: Path) -> None:
    async def fail(draft: Path) -> None:
        await _fill(draft)
        raise SandboxUnavailable("no")

    with pytest.raises(SandboxUnavailable, match="no"):
        asyncio.run(Snapshots(tmp_path).get(sha256(b"key"), fail))
    assert os.listdir(tmp_path) == []


def test_a_directory_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(SandboxUnavailable, match="cannot be kept") as refused:
        asyncio.run(Snapshots(tmp_path / "file").get(sha256(b"key"), _fill))
    assert "LOCKSTEP_CACHE" in refused.value.remedy


def test_only_the_snapshots_used_last_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshots, "_KEPT", 2)

    async def scene() -> None:
        kept = Snapshots(tmp_path)
        for at, name in enumerate((b"one", b"two")):
            os.utime(await kept.get(sha256(name), _fill), (1000 + at, 1000 + at))
        await kept.get(sha256(b"one"), _fill)  # used again
        await kept.get(sha256(b"three"), _fill)

    asyncio.run(scene())
    assert set(os.listdir(tmp_path)) == {sha256(b"one"), sha256(b"three")}


def test_drafts_that_a_crash_left_are_removed_once_they_are_old(tmp_path: Path) -> None:
    for name, at in ((".old", 1000), (".new", None)):
        (tmp_path / name).mkdir()
        if at is not None:
            os.utime(tmp_path / name, (at, at))
    assert Snapshots(tmp_path).trim() == 1
    assert os.listdir(tmp_path) == [".new"]
