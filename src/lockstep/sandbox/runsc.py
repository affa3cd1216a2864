"""The `runsc` binary: where it is, what this build understands, and how this machine can run it.

Knows flags and nothing else: no bundles, no processes of sandboxes.
"""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lockstep.errors import SandboxUnavailable
from lockstep.sandbox.child import start_child
from lockstep.sandbox.runsc_fetch import kept

INSTALL = "Install it with `apt-get install runsc` (Debian 12 or newer), or name a binary in LOCKSTEP_RUNSC."
SYSTRAP = "systrap"
"""The platform of builds since 2023: less CPU at every system call than ptrace."""
ANSWER_S = 10.0
RUNSC_ENV = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
"""All that runsc sees of our environment."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Runsc:
    """One way to run one build of runsc on this machine; `platform` and `cgroups` are proven by the canary."""

    path: str
    version: str
    platform: str
    cgroups: bool
    rootless: bool
    flags: tuple[str, ...]
    """Flags of this build that we use when it has them."""
    uds_flag: str
    """The flag that lets a sandbox connect to sockets that were bound into it."""

    @property
    def name(self) -> str:
        """This way in words."""
        return f"{self.platform} {'with' if self.cgroups else 'without'} control groups"

    def command(self, root: Path, *arguments: str, log: Path | None = None, egress: bool = False) -> list[str]:
        """The argument vector of one `runsc` invocation with its state below `root`."""
        options = [f"--root={root}", f"--platform={self.platform}", "--network=none", *self.flags]
        if self.rootless:
            options.append("--rootless")
        if not self.cgroups:
            options.append("--ignore-cgroups")
        if egress:
            options.append(self.uds_flag)
        if log is not None:
            options += [f"--log={log}", "--log-format=json"]
        return [self.path, *options, *arguments]


def locate(named: str | None) -> str:
    """The path of `runsc`: the argument, then LOCKSTEP_RUNSC, then the one that setup fetched, then PATH.

    Raises:
        SandboxUnavailable: there is none.
    """
    wanted = named or os.environ.get("LOCKSTEP_RUNSC") or kept() or "runsc"
    found = shutil.which(wanted)
    if found is None:
        raise SandboxUnavailable(f"gVisor's {wanted} is not an executable on this machine.", remedy=INSTALL)
    return os.path.realpath(found)


async def ways(path: str) -> list[Runsc]:
    """Every way to run this build that is worth trying, best first: systrap before ptrace, cgroups before none.

    Raises:
        SandboxUnavailable: the binary does not answer.
    """
    version = (await _answer(path, "--version")).partition("\n")[0].removeprefix("runsc version ")
    described = _described(await _answer(path, "flags"))
    rootless = os.geteuid() != 0
    flags = tuple(
        flag
        for flag in ("-overlay2=none", "-file-access-mounts=exclusive")
        if flag.removeprefix("-").partition("=")[0] in described
    )
    platforms = [SYSTRAP] if SYSTRAP in described.get("platform", "") else []
    return [
        Runsc(
            path=path,
            version=version,
            platform=platform,
            cgroups=cgroups,
            rootless=rootless,
            flags=flags,
            uds_flag="-host-uds=open" if "host-uds" in described else "-fsgofer-host-uds",
        )
        for platform in [*platforms, "ptrace"]
        for cgroups in ([False] if rootless else [True, False])
    ]


async def _answer(path: str, *arguments: str) -> str:
    try:
        child = await start_child(
            path,
            *arguments,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
    except OSError as error:
        raise SandboxUnavailable(f"{path} does not start: {error.strerror}.", remedy=INSTALL) from error
    try:
        out, _ = await asyncio.wait_for(child.communicate(), ANSWER_S)
    except TimeoutError:
        child.kill()
        await child.wait()
        raise SandboxUnavailable(f"{path} {arguments[0]} gave no answer in {ANSWER_S:.0f} s.", remedy=INSTALL) from None
    if child.returncode != 0:
        raise SandboxUnavailable(f"{path} {arguments[0]} failed (exit code {child.returncode}).", remedy=INSTALL)
    return out.decode(errors="replace")


def _described(flags: str) -> dict[str, str]:
    """Flag name -> its help text, from `runsc flags`."""
    return dict(_flag_entries(flags))


def _flag_entries(flags: str) -> Iterator[tuple[str, str]]:
    name, text = "", ""
    for line in flags.splitlines():
        if line.startswith("  -"):
            if name:
                yield name, text
            name, text = line.strip(" -").split(" ")[0], ""
        else:
            text += line
    if name:
        yield name, text
