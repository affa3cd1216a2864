"""The runsc of the next suite: where apt is sent for it, what is kept, and when it is the one that is used."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lockstep.cli import tier_setup
from lockstep.errors import SandboxUnavailable
from lockstep.sandbox import runsc_fetch
from lockstep.sandbox.image.packages import Apt, Package
from lockstep.sandbox.image.suites import KEYRING, next_suite, sources_of
from lockstep.sandbox.runsc import locate
from lockstep.values import Tier, sha256

DEB822 = """# the archive
Types: deb deb-src
URIs: http://archive.invalid/debian
Suites: bookworm bookworm-updates
Components: main contrib
Trusted: yes
Check-Valid-Until: no

Types: deb
URIs: http://archive.invalid/debian-security
Suites: bookworm-security
Components: main
"""


@pytest.fixture
def etc(tmp_path: Path) -> Path:
    (tmp_path / "etc/apt/sources.list.d").mkdir(parents=True)
    (tmp_path / "etc/os-release").write_text("NAME=x\nID=debian\nVERSION_CODENAME=bookworm\n")
    return tmp_path / "etc"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LOCKSTEP_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("LOCKSTEP_RUNSC", raising=False)
    return tmp_path / "cache"


def program(path: Path, mode: int = 0o755) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/bin/sh\n")
    path.chmod(mode)
    return path


def test_the_machines_own_archive_is_asked_for_the_next_suite_and_nothing_unsigned(etc: Path) -> None:
    (etc / "apt/sources.list.d/debian.sources").write_text(DEB822)
    assert next_suite(etc) == "trixie"
    assert sources_of("trixie", etc).splitlines() == [
        "Types: deb",
        "URIs: http://archive.invalid/debian",
        "Check-Valid-Until: no",
        "Suites: trixie",
        "Components: main",
        f"Signed-By: {KEYRING}",
    ]


def test_the_older_format_of_sources_is_read_too(etc: Path) -> None:
    (etc / "apt/sources.list").write_text("# deb x y\ndeb [arch=amd64] http://archive.invalid/debian bookworm main\n")
    assert "URIs: http://archive.invalid/debian\n" in sources_of("trixie", etc)


def test_without_an_archive_of_debian_there_is_no_source(etc: Path) -> None:
    assert sources_of("trixie", etc) == ""


@pytest.mark.parametrize("release", ["ID=debian\nVERSION_CODENAME=trixie\n", "ID=other\nVERSION_CODENAME=bookworm\n"])
def test_other_releases_have_no_next_suite(etc: Path, release: str) -> None:
    (etc / "os-release").write_text(release)
    assert next_suite(etc) is None


def test_named_goes_before_environment_before_cache_before_path(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    named, by_variable, in_path = (program(tmp_path / name / "runsc") for name in ("named", "variable", "path"))
    monkeypatch.setenv("PATH", str(in_path.parent))
    assert locate(None) == str(in_path)
    fetched = program(cache / "gvisor/runsc")
    assert locate(None) == str(fetched)
    monkeypatch.setenv("LOCKSTEP_RUNSC", str(by_variable))
    assert locate(None) == str(by_variable)
    assert locate(str(named)) == str(named)


@pytest.mark.parametrize("mode", [0o644, 0o775, 0o757])
def test_what_others_may_write_or_nobody_may_run_is_not_used(cache: Path, mode: int) -> None:
    program(cache / "gvisor/runsc", mode)
    assert runsc_fetch.kept() is None


def test_what_was_fetched_is_kept_with_its_version_for_all_to_read(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = Package(name="runsc", version="2.0", sha256=sha256(b""), file=tmp_path / "runsc.deb")
    monkeypatch.setattr(runsc_fetch, "sources_of", lambda suite: f"Suites: {suite}\n")
    monkeypatch.setattr(Apt, "of_source", lambda self, name, source: package)
    monkeypatch.setattr(runsc_fetch, "unpack", lambda package, into: program(into / "usr/bin/runsc", 0o700))
    assert runsc_fetch.fetch("trixie") == "2.0"
    found = runsc_fetch.kept()
    assert found is not None
    assert [path.stat().st_mode & 0o777 for path in (found, found.parent)] == [0o755, 0o755]
    assert json.loads((found.parent / "manifest.json").read_text())["version"] == "2.0"
    assert sorted(path.name for path in found.parent.iterdir()) == ["manifest.json", "runsc"]


def test_where_it_cannot_be_fetched_setup_says_so_and_names_no_host(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    program(tmp_path / "bin/runsc")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))

    def fails() -> str:
        raise SandboxUnavailable("apt-get update failed: http://archive.invalid")

    monkeypatch.setattr(tier_setup.stores, "fetch_newer_runsc", fails)
    tier_setup.set_up(Tier.GVISOR)
    said = capsys.readouterr().out
    assert "goes on being used" in said
    assert "invalid" not in said
