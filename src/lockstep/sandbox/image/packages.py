"""Debian packages: the guest's, or one of another suite; fetched and unpacked into a directory, nothing installed.

Asks apt as it is configured here. When apt knows no kernel, its lists are brought into a directory of our own.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lockstep.errors import SandboxUnavailable
from lockstep.values import Digest, sha256

KERNEL = "linux-image-cloud-amd64"
PROGRAMS = ("python3-minimal", "libpython3-stdlib", "busybox-static")
_LEFT_OUT = re.compile(
    r"(dpkg|perl.*|debconf.*|media-types|mime-support|mailcap|install-info|readline-common|libnsl2|libtirpc.*|libdb5.*"
    r"|libncursesw6|libtinfo6|libreadline8.*|gcc-\d+-base|libc-bin|tzdata.*|netbase|openssl-provider-legacy)"
)
"""What the programs depend on for terminals, NIS, Berkeley DB and maintainer scripts."""
_FETCH_S = 900.0
_REMEDY = "This needs Debian's apt with a reachable mirror; `apt-get update` shows what is wrong."


@dataclass(frozen=True, kw_only=True, slots=True)
class Package:
    """A fetched package."""

    name: str
    version: str
    sha256: Digest
    file: Path


class Apt:
    """apt, used without touching the system; `workdir` is ours to fill."""

    def __init__(self, workdir: Path) -> None:
        self._workdir = workdir
        self._options: tuple[str, ...] = ()

    def fetch(self) -> list[Package]:
        """The kernel's package first, then the programs with what they depend on, by name.

        Raises:
            SandboxUnavailable: apt cannot say or cannot get them.
        """
        if not self._knows(KERNEL):
            self._own_lists()
        kernel = next((name for name in self._depends(KERNEL) if name.startswith("linux-image-")), None)
        if kernel is None:
            raise SandboxUnavailable(f"apt knows no {KERNEL}.", remedy=_REMEDY)
        names = [kernel, *sorted(self._closure(PROGRAMS))]
        packages = self._download(*names)
        return sorted(packages, key=lambda package: (package.name != kernel, package.name))

    def of_source(self, name: str, source: str) -> Package:
        """One package from this source (deb822) alone, instead of those that apt is given here.

        Raises:
            SandboxUnavailable: apt cannot get it.
        """
        file = self._workdir / "our.sources"
        file.write_text(source)
        self._own_lists("-o", f"Dir::Etc::SourceList={file}", "-o", "Dir::Etc::SourceParts=-")
        return self._download(name)[0]

    def _download(self, *names: str) -> list[Package]:
        archives = self._workdir / "archives"
        archives.mkdir()
        self._run("apt-get", "-q", "download", *names, cwd=archives)
        return [_described(file) for file in archives.glob("*.deb")]

    def _knows(self, name: str) -> bool:
        return bool(self._run("apt-cache", "show", "--no-all-versions", name, check=False).strip())

    def _own_lists(self, *options: str) -> None:
        lists, cache = self._workdir / "lists", self._workdir / "cache"
        for directory in (lists / "partial", cache / "archives/partial"):
            directory.mkdir(parents=True)
        self._options = ("-o", f"Dir::State::Lists={lists}", "-o", f"Dir::Cache={cache}", *options)
        self._run("apt-get", "-q", "update")

    def _closure(self, names: Sequence[str]) -> set[str]:
        found: set[str] = set()
        todo = list(names)
        while todo:
            name = todo.pop()
            if name not in found and not _LEFT_OUT.fullmatch(name):
                found.add(name)
                todo += self._depends(name)
        return found

    def _depends(self, name: str) -> list[str]:
        """What a package depends on; of alternatives the first."""
        shown = self._run("apt-cache", "show", "--no-all-versions", name, check=False)
        fields = [line.partition(": ")[2] for line in shown.splitlines() if re.match(r"(Pre-)?Depends: ", line)]
        terms = (term.split("|")[0].strip() for field in fields for term in field.split(","))
        return [re.split(r"[ :(]", term)[0] for term in terms if term]

    def _run(self, command: str, *arguments: str, cwd: Path | None = None, check: bool = True) -> str:
        environment = {"PATH": os.environ.get("PATH", "/usr/bin:/bin"), "LC_ALL": "C.UTF-8", **_proxies()}
        try:
            done = subprocess.run(
                [command, *self._options, *arguments],
                cwd=cwd,
                env=environment,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=_FETCH_S,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise SandboxUnavailable(f"{command} cannot be used: {error}.", remedy=_REMEDY) from error
        if check and done.returncode != 0:
            said = (done.stderr.strip() or done.stdout.strip())[-500:]
            raise SandboxUnavailable(f"{command} {arguments[0]} failed: {said}", remedy=_REMEDY)
        return done.stdout


def unpack(package: Package, into: Path) -> None:
    """Unpack one package; its scripts are not run."""
    done = subprocess.run(["dpkg-deb", "-x", package.file, into], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SandboxUnavailable(f"{package.file.name} does not unpack: {done.stderr.strip()[-300:]}")


def _described(file: Path) -> Package:
    command = ["dpkg-deb", "--show", "--showformat=${Package} ${Version}", str(file)]
    name, version = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    return Package(name=name, version=version, sha256=sha256(file.read_bytes()), file=file)


def _proxies() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name.lower().endswith("_proxy")}
