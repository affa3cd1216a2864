"""`lockstep setup TIER`: what a tier needs, from Debian packages."""

from __future__ import annotations

import os
import shutil
import subprocess

from rich.console import Console

from lockstep.cli.terminal import console, plain
from lockstep.errors import ConfigError, SandboxUnavailable
from lockstep.values import Tier
from lockstep.wiring import stores

_NEEDS: dict[Tier, tuple[tuple[str, str], ...]] = {
    Tier.GVISOR: (("runsc", "runsc"),),
    Tier.PROCESS: (("bwrap", "bubblewrap"),),
    Tier.MICROVM: (("qemu-system-x86_64", "qemu-system-x86"),),
}
"""Command and Debian package. Firecracker is in no Debian release: it is found by name, see the sandboxes page."""
_APT = ("apt-get", "-q", "-y", "-o", "DPkg::Lock::Timeout=300")


def set_up(tier: Tier) -> None:
    """Install what is missing of a tier's packages; for gVisor, fetch a faster build; for microVMs, make the guest.

    Raises:
        ConfigError: this user or this system cannot, with the command that would.
        SandboxUnavailable: the guest image cannot be made.
    """
    out = console()
    fetched = tier is Tier.GVISOR and _newer_runsc(out)
    missing = [package for command, package in _NEEDS[tier] if not fetched and shutil.which(command) is None]
    if missing:
        _install(missing)
        out.print(f"installed {', '.join(missing)}")
    if tier is Tier.MICROVM:
        stores.make_guest_image(lambda line: out.print(plain(line)))


def _newer_runsc(out: Console) -> bool:
    """Whether a newer runsc than this Debian's is in the cache now, with a sentence."""
    try:
        version = stores.fetch_newer_runsc()
    except SandboxUnavailable:  # what apt said names hosts
        out.print("the newer runsc of the next Debian release cannot be fetched here; this one's goes on being used")
        return False
    if version:
        out.print(f"runsc {version} of the next Debian release is in the cache and will be used; nothing was installed")
    return bool(version)


def _install(packages: list[str]) -> None:
    by_hand = f"apt-get install --no-install-recommends {' '.join(packages)}"
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        needed = "root" if shutil.which("apt-get") else "Debian's apt-get"
        raise ConfigError(f"{' and '.join(packages)} cannot be installed without {needed}.", remedy=f"Run `{by_hand}`.")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for step in (("update",), ("install", "--no-install-recommends", *packages)):
        done = subprocess.run([*_APT, *step], env=environment, capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip() or done.stdout.strip()).rpartition("\n")[2]
        raise SandboxUnavailable(f"{' and '.join(packages)} cannot be installed: {last}", remedy=f"Try `{by_hand}`.")
