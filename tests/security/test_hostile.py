"""Every hostile payload against every isolation backend of this machine: nothing gets out, everything ends typed.

`make hostile` runs the same as a table.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from hostile_payloads import PAYLOADS, SERVERS, Payload
from hostile_world import attack, serve
from test_sandbox import BACKENDS, Here

from lockstep.gate.permit import PermitMint

pytestmark = pytest.mark.sandbox


@pytest.fixture(scope="module")
def proven(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("hostile")


@pytest.fixture(params=BACKENDS)
def here(request: pytest.FixtureRequest, proven: Path) -> Here:
    return Here(backend=request.param(proven), state_dir=proven, mint=PermitMint())


@pytest.mark.parametrize("payload", PAYLOADS, ids=lambda payload: payload.name)
def test_a_payload_ends_typed_and_reaches_nothing(here: Here, payload: Payload) -> None:
    verdict = asyncio.run(attack(here, payload))
    assert verdict.escape == "", verdict


@pytest.mark.parametrize("name", SERVERS)
def test_a_server_that_breaks_the_protocol_ends_typed(here: Here, name: str) -> None:
    verdict = asyncio.run(serve(here, name, SERVERS[name]))
    assert verdict.escape == "", verdict
