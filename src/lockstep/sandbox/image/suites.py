"""The next suite of the Debian archive that this machine uses: where apt finds it, without the system knowing of it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

NEXT = {"bookworm": "trixie"}
"""What is fetched from the release after this one."""
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
_ETC = Path("/etc")
_KEPT = ("URIs", "Architectures", "Check-Valid-Until")
"""Of the machine's own entry; nothing that would have apt trust what is not signed."""


def next_suite(etc: Path = _ETC) -> str | None:
    """The suite after the one that runs here; None when we want nothing of it, or this is no Debian."""
    try:
        release = (etc / "os-release").read_text()
    except OSError:
        return None
    debian = re.search(r"^ID=debian$", release, re.MULTILINE)
    codename = re.search(r"^VERSION_CODENAME=(\w+)$", release, re.MULTILINE)
    return NEXT.get(codename[1]) if debian and codename else None


def sources_of(suite: str, etc: Path = _ETC) -> str:
    """An apt source (deb822) for `suite`, in the archive that has the one before for this machine; "" without one."""
    before = next((old for old, new in NEXT.items() if new == suite), "")
    for entry in _entries(etc / "apt"):
        if before in entry.get("Suites", "").split() and "URIs" in entry:
            kept = {name: entry[name] for name in _KEPT if name in entry}
            stanza = {"Types": "deb", **kept, "Suites": suite, "Components": "main", "Signed-By": KEYRING}
            return "".join(f"{name}: {value}\n" for name, value in stanza.items())
    return ""


def _entries(apt: Path) -> Iterator[Mapping[str, str]]:
    """Every source apt is given here, of either format."""
    for file in sorted(apt.glob("sources.list.d/*.sources")):
        for stanza in re.split(r"\n\s*\n", file.read_text(errors="replace")):
            yield dict(re.findall(r"^([A-Za-z-]+):[ \t]*(.*\S)[ \t]*$", stanza, re.MULTILINE))
    for file in (apt / "sources.list", *sorted(apt.glob("sources.list.d/*.list"))):
        text = file.read_text(errors="replace") if file.is_file() else ""
        for uri, suite in re.findall(r"^deb\s+(?:\[[^]]*\]\s+)?(\S+)\s+(\S+)", text, re.MULTILINE):
            yield {"URIs": uri, "Suites": suite}
