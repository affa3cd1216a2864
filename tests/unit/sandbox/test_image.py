"""What a guest boots from: archives that depend on their content alone, kernels taken out of their wrapping."""

from __future__ import annotations

import bz2
import ctypes
import gzip
import io
import lzma
import os
import struct
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from lockstep.errors import ConfigError, SandboxUnavailable
from lockstep.sandbox import drive as drives
from lockstep.sandbox.cache import cache_directory
from lockstep.sandbox.drive import write_drive
from lockstep.sandbox.image import cpio
from lockstep.sandbox.image.build import find_image
from lockstep.sandbox.image.kernel import elf_image, expand, ordered_modules

ELF = b"\x7fELF" + bytes(range(256)) * 40_000


def archive(entries: dict[str, cpio.Entry]) -> bytes:
    into = io.BytesIO()
    cpio.write(entries, into)
    return into.getvalue()


def names_in(data: bytes) -> list[str]:
    names, at = [], 0
    while True:
        fields = [int(data[at + 6 + 8 * i : at + 14 + 8 * i], 16) for i in range(13)]
        size, length = fields[6], fields[11]
        name = data[at + 110 : at + 110 + length - 1].decode()
        at += (110 + length + 3) // 4 * 4
        at += (size + 3) // 4 * 4
        if name == "TRAILER!!!":
            return names
        names.append(name)


def test_an_archive_depends_on_its_content_and_not_on_the_order_it_came_in() -> None:
    entries = {"usr/bin/x": cpio.file(b"x", executable=True), "init": cpio.file(b"1"), "bin": cpio.link("usr/bin")}
    data = archive(entries)
    assert data == archive(dict(reversed(entries.items())))
    assert len(data) % 512 == 0
    assert names_in(data) == ["bin", "init", "usr", "usr/bin", "usr/bin/x"]
    assert archive({**entries, "init": cpio.file(b"2")}) != data


def _lz4(data: bytes) -> bytes:
    library = ctypes.CDLL("liblz4.so.1")
    blocks = [b"\x02\x21\x4c\x18"]
    for start in range(0, len(data), 8 * 2**20):
        block = data[start : start + 8 * 2**20]
        buffer = ctypes.create_string_buffer(len(block) + len(block) // 200 + 64)
        size = library.LZ4_compress_default(block, buffer, len(block), len(buffer))
        blocks += [struct.pack("<I", size), buffer.raw[:size]]
    return b"".join(blocks)


def _zstd(data: bytes) -> bytes:
    import zstandard

    return zstandard.ZstdCompressor().compress(data)


@pytest.mark.parametrize("pack", [gzip.compress, lzma.compress, bz2.compress, _lz4, _zstd])
def test_the_kernel_is_found_in_its_image_however_it_is_compressed(pack: Callable[[bytes], bytes]) -> None:
    payload = pack(ELF)
    setup = bytearray(5 * 512)
    setup[0x1F1] = 4
    setup[0x202:0x206] = b"HdrS"
    struct.pack_into("<II", setup, 0x248, 100, len(payload) + (0 if pack is gzip.compress else 4))
    size = b"" if pack is gzip.compress else struct.pack("<I", len(ELF))  # gzip ends with it already
    image = bytes(setup) + bytes(100) + payload + size + b"what follows"
    assert elf_image(image) == ELF


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"MZ not a kernel" * 100,
        b"\x1f\x8bcut",
        b"\x02\x21\x4c\x18\xff\xff\xff\xffx",
        b"\x28\xb5\x2f\xfd\x00\x00",
        b"\xfd7zXZ\0cut",
    ],
)
def test_what_is_no_kernel_is_refused_in_a_sentence(data: bytes) -> None:
    with pytest.raises(SandboxUnavailable):
        elf_image(data)
    with pytest.raises(SandboxUnavailable, match="kernel package"):
        expand(data)


def test_modules_come_after_those_they_depend_on(tmp_path: Path) -> None:
    def module(name: str, depends: str, pack: Callable[[bytes], bytes] = bytes, ending: str = ".ko") -> None:
        path = tmp_path / "kernel" / f"{name}{ending}"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(pack(b"\x7fELF\0depends=" + depends.encode() + b"\0name=" + name.encode() + b"\0"))

    module("virtio_blk", "virtio_ring,virtio")
    module("virtio", "virtio_ring")
    module("virtio_ring", "")
    module("virtio-rng", "virtio", lzma.compress, ".ko.xz")
    module("unrelated", "virtio")
    names = list(ordered_modules(tmp_path))
    assert set(names) == {"virtio_blk", "virtio", "virtio_ring", "virtio-rng"}
    assert names.index("virtio_ring") < names.index("virtio") < names.index("virtio_blk")


def test_a_missing_image_is_named_with_its_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCKSTEP_CACHE", str(tmp_path))
    assert cache_directory() == tmp_path
    with pytest.raises(SandboxUnavailable) as missing:
        find_image()
    assert "lockstep setup microvm" in missing.value.remedy


# Drives


def test_a_drive_depends_on_names_and_contents_alone(tmp_path: Path) -> None:
    for name in ("one", "two"):
        tool = tmp_path / name
        (tool / "sub").mkdir(parents=True)
        (tool / "sub/b.py").write_text("B = 1")
        (tool / "a.sh").write_text("exit")
        (tool / "secret").symlink_to("/etc/shadow")
    os.chmod(tmp_path / "one/a.sh", 0o700)
    os.chmod(tmp_path / "two/a.sh", 0o755)
    os.utime(tmp_path / "one/a.sh", (1, 1))
    one = write_drive(tmp_path / "1", {"/tool": tmp_path / "one"})
    two = write_drive(tmp_path / "2", {"/tool": tmp_path / "two"})
    assert (one.digest, one.size_bytes) == (two.digest, two.size_bytes)
    (tmp_path / "two/sub/b.py").write_text("B = 2")
    assert write_drive(tmp_path / "3", {"/tool": tmp_path / "two"}).digest != one.digest
    with tarfile.open(tmp_path / "1") as found:
        assert [(m.name, m.mode, m.uid, m.mtime) for m in found] == [
            ("tool", 0o755, 0, 0),
            ("tool/a.sh", 0o755, 0, 0),
            ("tool/secret", 0o777, 0, 0),
            ("tool/sub", 0o755, 0, 0),
            ("tool/sub/b.py", 0o644, 0, 0),
        ]
        assert found.getmember("tool/secret").linkname == "/etc/shadow"


def test_drives_come_in_few_sizes_and_none_is_larger_than_a_guest_can_hold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_bytes(bytes(2**20))
    assert (
        write_drive(tmp_path / "1", {}).size_bytes == write_drive(tmp_path / "2", {"/f": tmp_path / "file"}).size_bytes
    )
    monkeypatch.setattr(drives, "_LARGEST_BYTES", 2**19)
    with pytest.raises(ConfigError, match="larger than"):
        write_drive(tmp_path / "3", {"/f": tmp_path / "file"})
