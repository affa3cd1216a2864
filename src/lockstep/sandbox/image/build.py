"""`lockstep setup microvm`: put the guest image together, and find it again.

The image is named by the digest of its bytes: the same packages give the same name on every machine. The agent is not
part of it but appended when a machine is readied, so a new version of Lockstep needs no new image. Only amd64.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import stat
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from lockstep.errors import SandboxUnavailable
from lockstep.sandbox.cache import cache_directory
from lockstep.sandbox.guest import wire
from lockstep.sandbox.image import cpio, kernel
from lockstep.sandbox.image.packages import Apt, Package, unpack
from lockstep.values import Digest, sha256

SETUP = "Run `lockstep setup microvm`."
_CURRENT = "current"
_DROPPED = ("doc", "man", "locale", "lintian", "bug", "doc-base", "info", "python3", "applications", "pixmaps", "menu")
_DROPPED_STDLIB = ("lib2to3", "idlelib", "ensurepip", "pydoc_data", "turtledemo", "test", "tkinter", "__pycache__")
_INITRD_AGE_S = 86400.0
_MERGED = ("bin", "lib", "lib64", "sbin")
_AGENT_FILES = ("__init__", "agent", "cage", "carrier", "filter", "system", "wire")
_INIT = b"""#!/usr/bin/python3 -IS
import sys
sys.path.insert(0, "/lib/lockstep-agent")
from lockstep.sandbox.guest.agent import main
main()
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Image:
    """What a guest boots from; `digest` covers kernel, programs and agent."""

    digest: Digest
    kernel: Path
    initrd: Path
    kernel_version: str


def setup_microvm(say: Callable[[str], None], cache: Path | None = None) -> Image:
    """Build the image from this machine's Debian packages and make it the current one.

    Args:
        say: told what is being done, one line at a time.
        cache: the directory that holds images; `cache_directory()` when None.
    Raises:
        SandboxUnavailable: not amd64, no apt, or a package that is not as it must be.
    """
    if platform.machine() != "x86_64":
        raise SandboxUnavailable(f"The microVM guest is for amd64 only; this machine is {platform.machine()}.")
    images = (cache or cache_directory()) / "guest"
    images.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="lockstep-image-") as scratch:
        workdir = Path(scratch)
        say("fetching the kernel and Python with apt-get download")
        packages = Apt(workdir).fetch()
        say(f"putting {len(packages)} packages together")
        made = workdir / "image"
        made.mkdir()
        _assemble(packages, workdir, made)
        digest = sha256(b"".join(sha256((made / name).read_bytes()).encode() for name in ("vmlinux", "base.cpio")))
        manifest = {
            "digest": digest,
            "packages": [{"name": p.name, "version": p.version, "sha256": p.sha256} for p in packages],
        }
        (made / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")
        target = images / digest
        for path in made.iterdir():
            path.chmod(0o644)  # a monitor that runs as nobody reads it
        if not target.is_dir():
            draft = images / f".{digest}.{os.getpid()}"
            shutil.copytree(made, draft)
            _into_place(draft, target)
    _point(images / _CURRENT, digest)
    for image in images.iterdir():
        if image.is_dir() and image.name != digest:
            shutil.rmtree(image, ignore_errors=True)
    say(f"guest image {digest[:12]} is ready in {target}")
    return find_image(cache)


def find_image(cache: Path | None = None) -> Image:
    """The current image with this version's agent in it.

    Raises:
        SandboxUnavailable: there is none; the remedy is to set it up.
    """
    images = (cache or cache_directory()) / "guest"
    try:
        base = images / (images / _CURRENT).read_text().strip()
        manifest = json.loads((base / "manifest.json").read_text())
        agent = _agent_archive()
        digest = sha256(f"{manifest['digest']} {sha256(agent)}".encode())
        initrd = base / f"initrd-{digest[:16]}"
        if not initrd.exists():
            draft = base / f".{initrd.name}.{os.getpid()}"
            shutil.copyfile(base / "base.cpio", draft)
            with draft.open("ab") as file:
                file.write(agent)
            draft.chmod(0o644)
            draft.replace(initrd)
            _forget_old(base, keep=initrd)
        return Image(
            digest=digest,
            kernel=base / "vmlinux",
            initrd=initrd,
            kernel_version=str(manifest["packages"][0]["version"]),
        )
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise SandboxUnavailable("There is no guest image for microVMs on this machine.", remedy=SETUP) from error


def _assemble(packages: list[Package], workdir: Path, made: Path) -> None:
    kernel_package, *programs = packages
    kernel_tree, tree = workdir / "kernel", workdir / "tree"
    unpack(kernel_package, kernel_tree)
    for package in programs:
        unpack(package, tree)
    _merge_usr(tree)
    _prune(tree)
    _compile(tree)
    (bzimage,) = kernel_tree.glob("boot/vmlinuz-*")
    (made / "vmlinux").write_bytes(kernel.elf_image(bzimage.read_bytes()))
    entries = dict(_entries(tree))
    modules = kernel.ordered_modules(kernel_tree)
    entries["usr/lib/lockstep-modules/order"] = cpio.file("\n".join(modules).encode())
    for name, data in modules.items():
        entries[f"usr/lib/lockstep-modules/{name}.ko"] = cpio.file(data)
    for name in _MERGED:
        entries[name] = cpio.link(f"usr/{name}")
    for name in ("proc", "sys", "dev", "run", "tmp", "root"):
        entries[name] = cpio.directory()
    with (made / "base.cpio").open("wb") as file:
        cpio.write(entries, file)


def _merge_usr(tree: Path) -> None:
    """Move what packages still put into /bin, /lib, ... below /usr, and give busybox its names."""
    for name in _MERGED:
        old = tree / name
        if old.is_dir() and not old.is_symlink():
            shutil.copytree(old, tree / "usr" / name, symlinks=True, dirs_exist_ok=True)
            shutil.rmtree(old)
    busybox = tree / "usr/bin/busybox"
    listed = subprocess.run([busybox, "--list"], capture_output=True, text=True, check=True).stdout
    for name in listed.split():
        command = tree / "usr/bin" / name
        if not command.exists() and not command.is_symlink():
            command.symlink_to("busybox")


def _prune(tree: Path) -> None:
    for name in _DROPPED:
        shutil.rmtree(tree / "usr/share" / name, ignore_errors=True)
    for name in ("etc", "var"):
        shutil.rmtree(tree / name, ignore_errors=True)
    for stdlib in tree.glob("usr/lib/python3.*"):
        for name in _DROPPED_STDLIB:
            for found in stdlib.glob(f"**/{name}"):
                shutil.rmtree(found, ignore_errors=True)


def _compile(tree: Path) -> None:
    """Byte code for the standard library, made by the guest's own Python; it is never checked against its source."""
    (stdlib,) = tree.glob("usr/lib/python3.[0-9]*")
    (loader,) = tree.glob("usr/lib64/ld-linux-x86-64.so.2")
    libraries = f"{tree}/usr/lib/x86_64-linux-gnu:{tree}/usr/lib"
    python = tree / "usr/bin" / stdlib.name
    command = [str(loader), "--library-path", libraries, str(python), "-S", "-m", "compileall", "-q"]
    environment = {"PYTHONHASHSEED": "0", "PYTHONHOME": f"{tree}/usr", "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [*command, "-s", str(tree), "-p", "/", "--invalidation-mode", "unchecked-hash", str(stdlib)],
        env=environment,
        capture_output=True,
        text=True,
    )
    if done.returncode != 0:
        raise SandboxUnavailable(
            f"The guest's Python does not compile its library: {done.stdout[-300:]}{done.stderr[-300:]}"
        )


def _entries(tree: Path) -> list[tuple[str, cpio.Entry]]:
    found = []
    for path in sorted(tree.rglob("*")):
        name = path.relative_to(tree).as_posix()
        mode = path.lstat().st_mode
        if stat.S_ISLNK(mode):
            found.append((name, cpio.link(os.readlink(path))))
        elif stat.S_ISDIR(mode):
            found.append((name, cpio.directory()))
        elif stat.S_ISREG(mode):
            found.append((name, cpio.file(path.read_bytes(), executable=bool(mode & 0o111))))
    return found


def _agent_archive() -> bytes:
    """The agent as an archive of its own: the kernel unpacks one after the other."""
    package = Path(wire.__file__).parent
    below = "usr/lib/lockstep-agent/lockstep"
    entries = {f"{below}/{name}": cpio.file(b"") for name in ("__init__.py", "sandbox/__init__.py")}
    for name in _AGENT_FILES:
        entries[f"{below}/sandbox/guest/{name}.py"] = cpio.file((package / f"{name}.py").read_bytes())
    entries["init"] = cpio.file(_INIT, executable=True)
    archive = BytesIO()
    cpio.write(entries, archive)
    return archive.getvalue()


def _forget_old(base: Path, *, keep: Path) -> None:
    """Remove what other versions of the agent booted from, unless one may still be in use."""
    for found in base.glob("initrd-*"):
        if found != keep and time.time() - found.stat().st_atime > _INITRD_AGE_S:
            found.unlink(missing_ok=True)


def _into_place(draft: Path, target: Path) -> None:
    try:
        draft.rename(target)
    except OSError:
        shutil.rmtree(draft, ignore_errors=True)
        if not target.is_dir():
            raise


def _point(pointer: Path, digest: str) -> None:
    draft = pointer.with_name(f".{pointer.name}.{os.getpid()}")
    draft.write_text(digest)
    draft.replace(pointer)
