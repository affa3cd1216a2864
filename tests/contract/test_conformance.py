"""What the conformance script makes of the protocol's own suite, all of which `make conformance` runs, and CI."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "scripts"))

import conformance  # noqa: E402 - a script, not a package

pytestmark = pytest.mark.sandbox


@pytest.fixture(scope="module")
def suite() -> None:
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("npm is not installed (Debian package npm): the conformance suite is not run")
    try:
        conformance.set_up(npm)
    except (OSError, subprocess.SubprocessError) as error:
        pytest.skip(f"the conformance suite cannot be set up: {error}")


def script(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["conformance.py", *arguments])
    return conformance.main()


def test_a_scenario_that_does_not_pass_is_tried_once_more_and_ends_the_script_with_1(
    suite: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Over 3 s: the suite and a client, three times."""
    tried = tmp_path / "tried"
    client = (
        f"import sys\nif 'serve' in sys.argv: print('ready', flush=True)\nelse: open({str(tried)!r}, 'a').write('.')"
    )
    (tmp_path / "forked.py").write_text(client)
    monkeypatch.setattr(conformance, "CLIENT", {"2026-07-28": 32})
    assert script(monkeypatch, "client", "json-schema-ref-no-deref") == 0
    monkeypatch.setattr(conformance, "SOURCE", tmp_path)
    monkeypatch.setattr(conformance, "set_up", lambda npm: None)
    assert script(monkeypatch, "client", "json-schema-ref-no-deref") == 1
    said = capsys.readouterr().out
    assert said.endswith("conformance: client 0/32, gateway -/37 -/30\n")
    assert "FAIL json-schema-ref-no-deref" in said
    assert tried.read_text() == ".."


def test_passing_only_when_tried_again_is_passing_and_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert conformance.total([("one", ""), ("two", "late")], lambda name: "") == conformance.Score(2, 0)
    assert "two (when tried again; before: late)" in capsys.readouterr().out


def test_a_suite_that_lists_fewer_scenarios_than_are_required_is_not_passed() -> None:
    assert not conformance.reaches({"2026-07-28": conformance.Score(31, 0)}, conformance.CLIENT)
    assert conformance.reaches({"2026-07-28": conformance.Score(32, 0)}, conformance.CLIENT)


@pytest.mark.parametrize(("npm", "code"), [("", 0), ("#!/bin/sh\nexit 7\n", 3)], ids=["none", "cannot install"])
def test_without_the_suite_nothing_is_said_against_us(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str], npm: str, code: int
) -> None:
    if npm:
        (tmp_path / "npm").write_text(npm)
        (tmp_path / "npm").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(conformance, "WORK", tmp_path / "work")
    assert script(monkeypatch) == code
    assert ("skipped" if code == 0 else "could not be set up") in capsys.readouterr().out
