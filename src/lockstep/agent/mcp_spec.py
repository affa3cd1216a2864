"""What `agent.toml` says about a server of the Model Context Protocol: how it starts and what it finds around it."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, Strict, model_validator

from lockstep.agent.context import Offers
from lockstep.agent.places import AnyPath, HostPath, MountName


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class WorkingFiles(_Section):
    """A file or directory that a server works on. One of the agent is locked with its code; one of the host is not."""

    source: AnyPath = Field(alias="from")
    write: Annotated[bool, Strict()] = False
    """True: a copy at /work/NAME that is the server's own and goes with its sandbox; else /files/NAME, read-only."""


class McpServer(_Section):
    command: tuple[str, ...] = Field(min_length=1)
    prefix: Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_-]{0,31}$")] | None = None
    """The model sees `PREFIX__NAME`: tools of two servers never meet."""
    runtime: dict[MountName, HostPath] = Field(default_factory=dict)
    """Directories of packages that the server consists of: read-only at /runtime/NAME, digested into the lock."""
    files: dict[MountName, WorkingFiles] = Field(default_factory=dict)
    offer: tuple[Offers, ...] = Field(default=("tools",), min_length=1)
    """What of the server is taken: its tools, and as read-only tools its resources and prompts."""

    @model_validator(mode="after")
    def _command_is_text(self) -> McpServer:
        if any("\0" in part for part in self.command):
            raise ValueError("has a command with a zero byte in it")
        return self
