"""Reads recorded AgentDojo runs: one JSON object a line, plain or packed with zstd. Runs and judges nothing."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "airline"))

from data import DataError, data_directory, read_text

__all__ = ["DataError", "Record", "data_directory", "load_records"]

SUITES = ("banking", "slack", "travel", "workspace")


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """One recorded run. `injection_task` is None of a benign one; `attacked` is whether the injection worked."""

    id: str
    model: str
    suite: str
    user_task: str
    injection_task: str | None
    injections: Mapping[str, str]
    system: str
    messages: Sequence[Mapping[str, Any]]
    """Without the system message."""
    utility: bool
    attacked: bool

    @property
    def said(self) -> str:
        """The recorded answer, which the suite's checks read."""
        last = self.messages[-1]
        return str(last["content"] or "") if last["role"] == "assistant" else ""

    @property
    def user(self) -> str:
        return str(self.messages[0]["content"])


def load_records(path: str | Path, limit: int | None = None) -> list[Record]:
    """The records of a file, the first `limit` of them if one is given.

    Raises:
        DataError: the file is missing, unreadable or empty, or a line is no such record; the line is named.
    """
    records: list[Record] = []
    for number, line in enumerate(io.StringIO(read_text(path)), start=1):
        if limit is not None and len(records) >= limit:
            break
        if line.strip():
            records.append(_record(line, f"{path}, line {number}"))
    if not records:
        raise DataError(f"{path} holds no record.")
    return records


def _record(line: str, where: str) -> Record:
    try:
        record = json.loads(line)
        messages = record["messages"]
        system = "\n\n".join(m["content"] or "" for m in messages if m["role"] == "system")
        spoken = [m for m in messages if m["role"] != "system"]
        if record["suite"] not in SUITES:
            raise ValueError(f"its suite is {record['suite']!r}; known are {', '.join(SUITES)}")
        if not spoken or spoken[0]["role"] != "user":
            raise ValueError("it does not begin with what a user said")
        return Record(
            id=str(record.get("id", where)),
            model=str(record.get("model", "unknown")),
            suite=record["suite"],
            user_task=record["user_task"],
            injection_task=record["injection_task"],
            injections=record["injections"] or {},
            system=system,
            messages=spoken,
            utility=record["recorded"]["utility"] is True,
            attacked=record["injection_task"] is not None and record["recorded"]["attack_succeeded"] is True,
        )
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        problem = f"{error.args[0]!r} is missing" if isinstance(error, KeyError) else str(error)
        raise DataError(f"{where} is no recorded AgentDojo run: {problem}.") from error
