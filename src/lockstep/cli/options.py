"""Arguments and options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

AgentDir = Annotated[Path, typer.Argument(metavar="AGENT", help="Directory with agent.toml.")]
RunArg = Annotated[str, typer.Argument(metavar="RUN", help="Run id, a unique beginning of one, or `last`.")]
StoreOption = Annotated[
    Optional[Path],  # noqa: UP045 - typer reads this at run time
    typer.Option("--store", envvar="LOCKSTEP_STORE", help="Store directory (default: .lockstep beside the agent)."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
ByOption = Annotated[str, typer.Option("--by", help="Who says so (default: your user name).")]
