"""An outer guest under QEMU's emulation, AMD's virtualization included, in which a KVM monitor really runs its guest.

Slow, and silent about speed: it proves that our code, the guest image and the real `firecracker` fit together.
"""

from __future__ import annotations

import io
import json
import subprocess
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lockstep.sandbox.image import cpio
from lockstep.sandbox.image.build import Image

HERE = Path(__file__).parent
MODULES = ("irqbypass", "kvm", "kvm-amd")
"""In the order they must be loaded, which is the order of the alphabet."""
TIMEOUT_S = 900
FETCH_S = 300
MEMORY_MIB = 5120
MACHINE = ("-M", "q35", "-accel", "tcg", "-cpu", "max", "-nodefaults", "-no-user-config", "-no-reboot")
_INIT = b"#!/usr/bin/python3 -ISu\nimport runpy\nrunpy.run_path('/opt/outer_init.py')\n"


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """What the guest told: each step with what was seen in it; and its console, for when it did not get that far."""

    steps: Mapping[str, dict[str, Any]]
    console: str


def kvm_modules(image: Image, cache: Path) -> dict[str, bytes]:
    """KVM's modules from the package that the image's kernel came in, kept in `cache`."""
    manifest = json.loads((image.kernel.parent / "manifest.json").read_text())
    package = f"{manifest['packages'][0]['name']}={manifest['packages'][0]['version']}"
    kept = cache / "nested" / package.replace("=", "-")
    if not kept.is_dir():
        kept.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=kept.parent) as scratch:
            _unpack_modules(package, Path(scratch)).rename(kept)
    return {name: (kept / f"{name}.ko").read_bytes() for name in MODULES}


def initramfs(
    image: Image, modules: Mapping[str, bytes], programs: Mapping[str, Path], packages: Iterable[Path]
) -> bytes:
    """The guest image's own programs, and what the proof needs; the kernel unpacks one archive after the other.

    Args:
        programs: statically linked executables, by their names in /opt/bin.
        packages: directories of Python packages.
    """
    entries = {f"opt/modules/{at}-{name}.ko": cpio.file(modules[name]) for at, name in enumerate(MODULES)}
    entries["init"] = cpio.file(_INIT, executable=True)
    for script in ("outer_init.py", "proof.py"):
        entries[f"opt/{script}"] = cpio.file((HERE / script).read_bytes())
    for name, program in programs.items():
        entries[f"opt/bin/{name}"] = cpio.file(program.read_bytes(), executable=True)
    for package in packages:
        for path in package.rglob("*.py"):
            entries[f"opt/python/{package.name}/{path.relative_to(package)}"] = cpio.file(path.read_bytes())
    base = image.kernel.parent
    for path in (image.kernel, image.initrd, base / "manifest.json"):
        entries[f"opt/guest/{base.name}/{path.name}"] = cpio.file(path.read_bytes())
    entries["opt/guest/current"] = cpio.file(base.name.encode())
    archive = io.BytesIO()
    cpio.write(entries, archive)
    return (base / "base.cpio").read_bytes() + archive.getvalue()


def run(qemu: str, kernel: Path, archive: bytes, directory: Path) -> Report:
    """Boot, wait until the guest has switched itself off, and read its report."""
    initrd, console, report = (directory / name for name in ("outer.cpio", "console.log", "report.jsonl"))
    initrd.write_bytes(archive)
    command = [
        *(qemu, *MACHINE, "-m", str(MEMORY_MIB), "-display", "none"),
        *("-serial", f"file:{console}", "-serial", f"file:{report}"),
        *("-kernel", str(kernel), "-initrd", str(initrd), "-append", "console=ttyS0 panic=-1 quiet"),
    ]
    try:
        subprocess.run(command, stdin=subprocess.DEVNULL, timeout=TIMEOUT_S, check=True)
    except subprocess.TimeoutExpired:
        pass  # the report says how far it came
    finally:
        initrd.unlink()
    lines = [json.loads(line) for line in report.read_text().splitlines() if line.startswith("{")]
    return Report(steps={line.pop("step"): line for line in lines}, console=console.read_text(errors="replace"))


def _unpack_modules(package: str, scratch: Path) -> Path:
    """KVM's modules in a directory of their own below `scratch`."""
    subprocess.run(["apt-get", "-q", "download", package], cwd=scratch, check=True, timeout=FETCH_S)
    (archive,) = scratch.glob("*.deb")
    subprocess.run(["dpkg-deb", "-x", str(archive), str(scratch / "tree")], check=True)
    made = scratch / "modules"
    made.mkdir()
    for name in MODULES:
        (found,) = (scratch / "tree").rglob(f"{name}.ko")
        found.rename(made / found.name)
    return made
