"""Where `agent.toml` says that a secret comes from: a variable, a file or a command of this machine."""

from __future__ import annotations

import re
import shlex
from typing import Annotated

from pydantic import AfterValidator


def variable(name: str) -> str:
    """The name as it is.

    Raises:
        ValueError: it is not the name of a variable.
    """
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{0,127}", name):
        raise ValueError(f"is {name!r}: it must be the name of a variable")
    return name


def _secret_source(text: str) -> str:
    kind, _, what = text.partition(":")
    if kind not in ("env", "file", "command") or not what.strip():
        raise ValueError(f"is {text!r}: it must be env:NAME, file:PATH or command:PROGRAM ARGUMENT...")
    if kind == "file" and not what.startswith(("/", "~/")):
        raise ValueError(f"is {text!r}: the path must begin with / or ~/, so that it is the same wherever a run starts")
    if kind == "env":
        variable(what)
    if kind == "command":
        try:
            shlex.split(what)
        except ValueError as error:
            raise ValueError(f"is {text!r}, which cannot be split into words: {error}") from None
    return text


SecretSource = Annotated[str, AfterValidator(_secret_source)]
"""`env:NAME`, `file:PATH` or `command:PROGRAM ARGUMENT...`; it stands in the lock, the value nowhere."""
