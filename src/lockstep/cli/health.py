"""What this machine can do: the checks behind `lockstep doctor`."""

from __future__ import annotations

import importlib.util
import os
import platform
import sqlite3
import sys
from dataclasses import dataclass

from lockstep import __version__
from lockstep.errors import LockstepError
from lockstep.sandbox.interpreter import interpreter
from lockstep.values import Tier
from lockstep.wiring import stores
from lockstep.wiring.stores import Store


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    name: str
    ok: bool
    needed: bool
    """Without it agents cannot run here."""
    found: str
    remedy: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    items: tuple[Check, ...]

    @property
    def ready(self) -> bool:
        return all(item.ok for item in self.items if item.needed)


async def examine(store: Store, scratch: Store) -> Report:
    """Look at everything an agent needs; tiers are tried with real sandboxes, whose files are in `scratch`."""
    items = [_versions(), _store(store), _guest_python()]
    for seen in await stores.findings(scratch):
        details = "; ".join(f"{what}: {saw}" for what, saw in seen.details)
        items.append(
            Check(
                name=f"tier {seen.tier.value} ({seen.backend})",
                ok=seen.available,
                needed=seen.tier is Tier.GVISOR,
                found=details,
                remedy=seen.remedy,
            )
        )
    return Report(items=(*items, *_providers()))


def _versions() -> Check:
    python = platform.python_version()
    found = (
        f"{__version__} on Python {python}, SQLite {sqlite3.sqlite_version}, {platform.system()} {platform.release()}"
    )
    return Check(
        name="lockstep", ok=sys.version_info >= (3, 11), needed=True, found=found, remedy="Use Python 3.11 or newer."
    )


def _store(store: Store) -> Check:
    place = store.directory
    while not place.exists():
        place = place.parent
    ok = place.is_dir() and os.access(place, os.W_OK)
    found = f"{store.directory} {'can be written' if ok else 'cannot be written'}"
    return Check(name="store", ok=ok, needed=True, found=found, remedy="Name another with --store or LOCKSTEP_STORE.")


def _guest_python() -> Check:
    try:
        argv, _ = interpreter()
    except LockstepError as error:
        return Check(name="python in sandboxes", ok=False, needed=True, found=error.message, remedy=error.remedy)
    return Check(name="python in sandboxes", ok=True, needed=True, found=argv[0])


def _providers() -> list[Check]:
    out = []
    for extra, module in (("openai", "openai"), ("anthropic", "anthropic"), ("google", "google.genai")):
        try:
            ok = importlib.util.find_spec(module) is not None
        except ModuleNotFoundError:
            ok = False
        found = "installed" if ok else "not installed"
        remedy = f"pip install 'lockstep-agents[{extra}]'"
        out.append(Check(name=f"model provider {extra}", ok=ok, needed=False, found=found, remedy=remedy))
    return out
