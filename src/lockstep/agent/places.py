"""Where on this machine things lie that `agent.toml` names: inside the agent's directory, or anywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, StringConstraints


def check_inside(path: str) -> str:
    """The path as it is.

    Raises:
        ValueError: it does not lie inside the agent's directory by its words alone.
    """
    steps = path.split("/")
    if not path or path.startswith("/") or ".." in steps or "\0" in path or set(steps) <= {"", "."}:
        raise ValueError(f"is {path!r}: it must be a path inside the agent's directory")
    return path


RelativePath = Annotated[str, AfterValidator(check_inside)]


def _of_the_host(path: str) -> str:
    if not path.startswith(("/", "~/")) or "\0" in path or ".." in path.split("/"):
        raise ValueError(f"is {path!r}: it must begin with / or ~/, so that it is the same wherever a run starts")
    return path


def _anywhere(path: str) -> str:
    return _of_the_host(path) if path.startswith(("/", "~")) else check_inside(path)


HostPath = Annotated[str, AfterValidator(_of_the_host)]
AnyPath = Annotated[str, AfterValidator(_anywhere)]
"""A path inside the agent's directory, or one of the host that begins with / or ~/."""

MountName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]


def is_of_the_agent(path: str) -> bool:
    """Whether this `AnyPath` names a file of the agent, which is digested and mounted as its code is."""
    return not path.startswith(("/", "~"))


def host_path(path: str) -> Path:
    """A `HostPath` on this machine."""
    return Path(path).expanduser()
