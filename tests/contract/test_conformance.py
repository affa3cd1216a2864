"""The protocol's own conformance suite against the gateway: all server scenarios that a revision requires.

In front of the server of everything in `tests/conformance/everything`, in a sandbox, behind gate and journal.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "scripts"))

import conformance  # noqa: E402 - a script, not a package

pytestmark = pytest.mark.sandbox


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("npm is not installed (Debian package npm): the conformance suite is not run")
    if sys.version_info[:2] != (3, 11) or not os.path.exists("/usr/bin/python3.11"):
        pytest.skip("the pinned packages of the suite's server are for Python 3.11 here and in /usr/bin")
    try:
        conformance.set_up(npm)
        serving = conformance.gateway(True)
        found = serving.__enter__()
    except subprocess.CalledProcessError as error:
        pytest.skip(f"the conformance suite cannot be set up: {error}")
    try:
        yield found
    finally:
        serving.__exit__(None, None, None)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("revision", conformance.REVISIONS)
def test_every_scenario_that_is_required_of_a_server_passes(url: str, revision: str) -> None:
    """Over 3 s: some forty scenarios with a client each, and a sandbox for each session of the legacy era."""
    assert conformance.scored(revision, url) == conformance.REVISIONS[revision]
