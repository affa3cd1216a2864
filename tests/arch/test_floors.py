"""Imports go down the floors of docs/architecture.md, and only there; nothing heavy is paid for before it is used."""

from __future__ import annotations

import subprocess
import sys
from graphlib import CycleError, TopologicalSorter

import pytest
from source import SRC, files, floors, imports, module_of, name_of, ours, room_of

OUTSIDE = ("__init__", "__main__")
"""The package's own face and `python -m lockstep`; they stand on no floor."""
CONCRETE = (
    "lockstep.journal.sqlite",
    "lockstep.sandbox.firecracker",
    "lockstep.sandbox.gvisor",
    "lockstep.model.providers",
    "lockstep.model.recorded",
    "lockstep.model.scripted",
    "lockstep.tools.host",
)
HEAVY = (
    "pydantic_ai",
    "mcp",
    "rich",
    "cedarpy",
    "pydantic",
    "msgspec",
    "jsonschema_rs",
    "httpx",
    "asyncio",
    "cryptography",
)


def test_the_page_puts_every_module_on_a_floor_and_names_none_that_is_missing() -> None:
    there = {room_of(path) for path in files()} - set(OUTSIDE)
    assert set(floors()) == there


def test_imports_only_go_down() -> None:
    floor = floors()
    wrong = [
        f"{name_of(path)}:{line} imports {module}"
        for path in files()
        if (room := room_of(path)) not in OUTSIDE
        for line, module in ours(path)
        if (target := _room(module)) != room and target not in OUTSIDE and floor[target] >= floor[room]
    ]
    assert wrong == []


def test_imports_are_absolute() -> None:
    assert [name_of(path) for path in files() for _, module in imports(path) if module.startswith(".")] == []


def test_no_module_imports_itself_by_way_of_others() -> None:
    known = {module_of(path) for path in files()}
    graph = {module_of(path): {module for _, module in ours(path)} & known - {module_of(path)} for path in files()}
    graph["lockstep"] = set()  # importing any module runs it first; what it imports is checked below
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as cycle:
        pytest.fail(" -> ".join(cycle.args[1]))


def test_only_wiring_names_concrete_parts() -> None:
    wrong = [
        f"{name_of(path)}:{line} imports {module}"
        for path in files()
        for line, module in ours(path)
        if module in CONCRETE and room_of(path) not in ("wiring", _room(module))
    ]
    assert wrong == []


def test_only_the_gate_mints_permits() -> None:
    inside = {name_of(path) for path in files() if "PermitMint" in path.read_text()}
    assert inside
    assert all(name.startswith("gate/") for name in inside), inside


def test_starting_the_command_line_loads_nothing_heavy() -> None:
    code = f"import sys, lockstep.cli.main; print([name for name in {HEAVY!r} if name in sys.modules])"
    assert _python(code) == "[]"


def test_a_tool_module_needs_the_standard_library_alone() -> None:
    code = (
        "import sys; before = set(sys.modules); from lockstep import OutcomeUnknown, tool;"
        " print(sorted({n.split('.')[0] for n in set(sys.modules) - before} - set(sys.stdlib_module_names)))"
    )
    assert _python(code, "-I", "-S") == "['lockstep']"


def test_what_goes_into_a_sandbox_needs_the_standard_library_alone() -> None:
    from lockstep.tools.guest import guest_files

    own = {module_of(path) for path in guest_files()}
    wrong = [
        f"{name_of(path)}:{line} imports {module}"
        for path in guest_files()
        for line, module in imports(path)
        if module not in own and module.split(".")[0] not in sys.stdlib_module_names
    ]
    assert wrong == []


def test_the_kernel_asks_no_clock_no_file_and_no_chance() -> None:
    refused = {"asyncio", "anyio", "os", "pathlib", "random", "secrets", "socket", "subprocess", "threading", "time"}
    wrong = [
        f"{name_of(path)}:{line} imports {module}"
        for path in files()
        if room_of(path) == "kernel"
        for line, module in imports(path)
        if module.split(".")[0] in refused
    ]
    assert wrong == []
    assert [name_of(path) for path in files() if room_of(path) == "kernel" and "async def" in path.read_text()] == []


def _room(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def _python(code: str, *flags: str) -> str:
    start = f"import sys; sys.path.insert(0, {str(SRC.parent)!r}); {code}"
    done = subprocess.run([sys.executable, *flags, "-c", start], capture_output=True, text=True, timeout=60, check=True)
    return done.stdout.strip()
