from __future__ import annotations

import asyncio
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from lockstep.agent.spec import SecretSection
from lockstep.errors import ConfigError
from lockstep.tools import secret_values as module
from lockstep.tools.secret_values import secret_values

VALUE = "sk-live-5e1f0c7d"


def secret(source: str, env: str = "KEY") -> SecretSection:
    return SecretSection(env=env, host="api.example:443", header="Authorization", **{"from": source})


def value(source: str, env: Mapping[str, str] | None = None) -> str:
    return asyncio.run(secret_values([secret(source)], env or {}))["KEY"]


def problem(source: str, env: Mapping[str, str] | None = None) -> str:
    with pytest.raises(ConfigError) as refused:
        value(source, env)
    said = str(refused.value)
    assert said.startswith(f"The secret KEY cannot be had from {source!r}: ")
    assert "\n" not in said
    return said


def python(code: str) -> str:
    return f"command:{shlex.join([sys.executable, '-c', code])}"


def test_a_value_comes_from_a_variable_a_file_or_a_command(tmp_path: Path) -> None:
    (tmp_path / "key").write_text(f"{VALUE}\n")
    env = {"API_KEY": VALUE, "HOME": str(tmp_path)}
    assert value("env:API_KEY", env) == VALUE
    assert value(f"file:{tmp_path}/key") == VALUE
    assert value(python(f"print({VALUE!r})")) == VALUE
    assert value(python("import os; print(os.environ['API_KEY'])"), env) == VALUE


def test_each_secret_has_its_own() -> None:
    wanted = [secret("env:ONE", "A"), secret("env:TWO", "B")]
    env = {"ONE": "value-of-one", "TWO": "value-of-two"}
    assert asyncio.run(secret_values(wanted, env)) == {"A": "value-of-one", "B": "value-of-two"}


def test_a_command_is_run_without_a_shell(tmp_path: Path) -> None:
    assert value(f"command:printf %s '{VALUE};$(touch {tmp_path}/x)'") == f"{VALUE};$(touch {tmp_path}/x)"
    assert list(tmp_path.iterdir()) == []


def test_a_source_that_has_nothing_is_named_with_the_reason(tmp_path: Path) -> None:
    assert "there is nothing" in problem("env:UNSET")
    assert "there is nothing" in problem("env:EMPTY", {"EMPTY": ""})
    assert "No such file" in problem(f"file:{tmp_path}/none")
    assert "directory" in problem(f"file:{tmp_path}")
    assert "not a regular file" in problem("file:/dev/zero")
    assert "No such file" in problem("command:/nowhere/at-all")
    assert "exit code 3" in problem(python("print('x' * 20); raise SystemExit(3)"))
    assert "prints more than" in problem(python("while True: print('x' * 1000)"))


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ("short77", "fewer than 8"),
        ("two\nlines of it", "no header can carry it"),
        (" padded-value ", "no header can carry it"),
        ("s\u00e4kret-value", "no header can carry it"),
        ("with\0nothing-in-it", "no header can carry it"),
        ("x" * 20_000, "more than"),
    ],
)
def test_a_value_that_cannot_be_used_is_refused_and_not_told(given: str, why: str) -> None:
    said = problem("env:API_KEY", {"API_KEY": given})
    assert why in said
    assert given not in said


def test_a_command_that_does_not_end_is_ended_with_what_it_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "COMMAND_S", 3.0)
    code = f"""
import os, time
if os.fork() == 0:
    open({str(tmp_path / "child")!r}, "w").write(str(os.getpid()))
time.sleep(3600)
"""
    assert "did not end within 3 s" in problem(python(code))
    child = Path("/proc") / (tmp_path / "child").read_text()
    assert not child.exists() or "Z" in (child / "stat").read_text().split()[2]
