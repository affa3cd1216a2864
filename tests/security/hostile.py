"""`make hostile`: every payload against every isolation backend of this machine, as a table.

The last line counts them: `hostile: <n> payloads, backends <list>, escapes <n>`. Exit code 1 when anything got out, or
when there was no backend to try.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
from pathlib import Path

import pytest
from hostile_payloads import PAYLOADS, SERVERS
from hostile_world import Verdict, attack, serve
from test_sandbox import BACKENDS, Here

from lockstep.gate.permit import PermitMint


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="lockstep-hostile-") as folder:
        backends = dict(_backends(Path(folder)))
        width = max(len(name) for name in (*(payload.name for payload in PAYLOADS), *SERVERS))
        print(f"{'payload':{width}}  " + "".join(f"{name:28}" for name in backends))
        escapes = 0
        for name, attempt in _attempts().items():
            verdicts = [asyncio.run(attempt(here)) for here in backends.values()]
            escapes += sum(bool(verdict.escape) for verdict in verdicts)
            print(f"{name:{width}}  " + "".join(f"{_shown(verdict):28}" for verdict in verdicts), flush=True)
    print(
        f"hostile: {len(PAYLOADS) + len(SERVERS)} payloads, backends {', '.join(backends) or 'none'}, escapes {escapes}"
    )
    return 1 if escapes or not backends else 0


def _attempts():  # type: ignore[no-untyped-def]
    named = {payload.name: lambda here, payload=payload: attack(here, payload) for payload in PAYLOADS}
    for name, code in SERVERS.items():
        named[f"a server: {name}"] = lambda here, name=name, code=code: serve(here, name, code)
    return named


def _backends(folder: Path):  # type: ignore[no-untyped-def]
    for param in BACKENDS:
        state = folder / str(param.id)
        state.mkdir()
        try:
            yield param.id, Here(backend=param.values[0](state), state_dir=state, mint=PermitMint())
        except pytest.skip.Exception as missing:
            print(f"not tried: {param.id}: {missing}")


def _shown(verdict: Verdict) -> str:
    return f"ESCAPE: {verdict.escape}" if verdict.escape else verdict.outcome


if __name__ == "__main__":
    sys.exit(main())
