"""From a kernel package: the ELF image inside the bzImage, and modules in the order they must be loaded.

The bzImage layout is the x86 boot protocol's (Documentation/arch/x86/boot.rst of the kernel).
"""

from __future__ import annotations

import bz2
import ctypes
import lzma
import re
import struct
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lockstep.errors import SandboxUnavailable

MODULES = (
    "virtio_mmio",
    "virtio_blk",
    "virtio_console",
    "virtio-rng",
    "vmw_vsock_virtio_transport",
)
_LZ4_BLOCK_BYTES = 8 * 2**20
_ELF = b"\x7fELF"
_HEADER_MAGIC, _PAYLOAD = 0x202, 0x248
_DEPENDS = re.compile(rb"\0depends=([^\0]*)\0")


def elf_image(bzimage: bytes) -> bytes:
    """The kernel proper, as monitors load it.

    Raises:
        SandboxUnavailable: not a bzImage, or compressed in a way that cannot be undone here.
    """
    if bzimage[_HEADER_MAGIC : _HEADER_MAGIC + 4] != b"HdrS":
        raise SandboxUnavailable("The kernel package holds no bzImage.")
    setup_sectors = bzimage[0x1F1] or 4
    offset, length = struct.unpack_from("<II", bzimage, _PAYLOAD)
    start = (setup_sectors + 1) * 512 + offset
    image = expand(bzimage[start : start + length])
    if image[:4] != _ELF:
        raise SandboxUnavailable("What the kernel package's bzImage holds is not an ELF image.")
    return image


def expand(data: bytes) -> bytes:
    """Undo whichever compression the first bytes name; what follows the stream (a kernel's size) is not looked at.

    Raises:
        SandboxUnavailable: they name none that is known here, or it fails.
    """
    for magic, undo in _WAYS.items():
        if data.startswith(magic):
            try:
                return undo(data)
            except (OSError, ValueError, lzma.LZMAError, zlib.error, EOFError) as error:
                raise SandboxUnavailable(f"A part of the kernel package does not unpack: {error}.") from error
    raise SandboxUnavailable(f"A part of the kernel package is compressed in an unknown way ({data[:4].hex()}).")


def ordered_modules(tree: Path) -> dict[str, bytes]:
    """The modules that a guest needs below the unpacked kernel package, each after those it depends on."""
    files = {path.name.partition(".ko")[0]: path for path in sorted(tree.glob("**/*.ko*"))}
    chosen: dict[str, bytes] = {}

    def take(name: str) -> None:
        path = files.get(name) or files.get(name.replace("_", "-")) or files.get(name.replace("-", "_"))
        if path is None:
            return  # built into this kernel
        key = path.name.partition(".ko")[0]
        if key in chosen:
            return
        data = path.read_bytes()
        module = data if data.startswith(_ELF) else expand(data)
        found = _DEPENDS.search(module)
        for needed in (found.group(1).decode() if found else "").split(","):
            take(needed)
        chosen[key] = module

    for name in MODULES:
        take(name)
    return chosen


def _lz4(data: bytes) -> bytes:
    """The "legacy" LZ4 stream that kernels use: blocks of at most 8 MiB, each after its compressed size."""
    library = _library("liblz4.so.1")
    buffer = ctypes.create_string_buffer(_LZ4_BLOCK_BYTES)
    blocks, at = [], 4
    while at + 4 < len(data):
        (size,) = struct.unpack_from("<I", data, at)
        block = data[at + 4 : at + 4 + size]
        made = library.LZ4_decompress_safe(block, buffer, len(block), _LZ4_BLOCK_BYTES)
        if made < 0 or len(block) != size:
            raise ValueError("a broken LZ4 block")
        blocks.append(buffer.raw[:made])
        at += 4 + size
    return b"".join(blocks)


def _zstd(data: bytes) -> bytes:
    library = _library("libzstd.so.1")
    library.ZSTD_createDStream.restype = ctypes.c_void_p
    library.ZSTD_decompressStream.restype = ctypes.c_size_t
    stream = ctypes.c_void_p(library.ZSTD_createDStream())
    source = _ZstdBuffer(ctypes.cast(ctypes.c_char_p(data), ctypes.c_void_p), len(data), 0)
    made = bytearray()
    chunk = ctypes.create_string_buffer(2**20)
    try:
        while True:
            out = _ZstdBuffer(ctypes.cast(chunk, ctypes.c_void_p), len(chunk), 0)
            left = library.ZSTD_decompressStream(stream, ctypes.byref(out), ctypes.byref(source))
            if library.ZSTD_isError(ctypes.c_size_t(left)):
                raise ValueError("a broken zstd stream")
            made += chunk.raw[: out.pos]
            if left == 0:
                return bytes(made)
            if source.pos == source.size and out.pos == 0:
                raise EOFError("a zstd stream that is cut off")
    finally:
        library.ZSTD_freeDStream(stream)


class _ZstdBuffer(ctypes.Structure):
    """ZSTD_inBuffer and ZSTD_outBuffer are laid out alike."""

    _fields_ = (("data", ctypes.c_void_p), ("size", ctypes.c_size_t), ("pos", ctypes.c_size_t))
    size: int
    pos: int


def _library(name: str) -> ctypes.CDLL:
    """apt itself is linked with both, so where packages can be fetched these are there."""
    try:
        return ctypes.CDLL(name)
    except OSError as error:
        raise SandboxUnavailable(f"{name} is needed to unpack the kernel and is not there: {error}.") from error


def _xz(data: bytes) -> bytes:
    return _whole(lzma.LZMADecompressor(), data)


def _gzip(data: bytes) -> bytes:
    return _whole(zlib.decompressobj(wbits=31), data)


def _bzip2(data: bytes) -> bytes:
    return _whole(bz2.BZ2Decompressor(), data)


def _whole(decompressor: Any, data: bytes) -> bytes:
    expanded: bytes = decompressor.decompress(data)
    if not decompressor.eof:
        raise EOFError("it is cut off")
    return expanded


_WAYS: Mapping[bytes, Callable[[bytes], bytes]] = {
    b"\x1f\x8b": _gzip,
    b"\xfd7zXZ\0": _xz,
    b"BZh": _bzip2,
    b"\x02\x21\x4c\x18": _lz4,
    b"\x28\xb5\x2f\xfd": _zstd,
}
