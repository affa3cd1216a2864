"""What `agent.toml` says for `lockstep tools check --scratch`: a scratch world, its state, and arguments to try.

Not part of the lock: it says how an agent is tested, and changes nothing of what the agent does.
"""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, Strict, model_validator


def _path(text: str) -> str:
    if not text.startswith("/") or any(character.isspace() for character in text):
        raise ValueError(f"is {text!r}: it must be a path of the scratch world such as /bookings")
    return text


def _examples(given: Any) -> Any:
    return [given] if isinstance(given, dict) else given


Examples = Annotated[tuple[dict[str, Any], ...], BeforeValidator(_examples), Field(min_length=1)]
"""Arguments of one call, or a list: the first is called, the others are what a probe must not find then."""


class CheckSection(BaseModel):
    """A world that may be changed at will. `{port}` and `{scratch}` in commands: its port, its own directory."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, defer_build=True)

    start: tuple[str, ...] = Field(min_length=1)
    """The command that serves it on 127.0.0.1 at `{port}`, started in the agent's directory, anew for each tool."""
    start_s: Annotated[float, Strict()] = Field(default=10, gt=0, le=600)
    """How long it may take until it can be reached."""
    instead_of: tuple[str, ...] = ()
    """The host:port of the tools' egress rules that it stands for; absent, the only one there is."""
    state: tuple[Annotated[str, AfterValidator(_path)], ...] = ()
    """Paths whose replies to GET are its state."""
    state_command: tuple[str, ...] = ()
    """A command that prints its state."""
    arguments: dict[str, Examples] = Field(default_factory=dict)
    """By tool. A text `result:TOOL:/POINTER` is taken from the result of that tool, which is called before."""

    @model_validator(mode="after")
    def _has_state(self) -> Self:
        if not self.state and not self.state_command:
            raise ValueError("needs `state` or `state_command`: what a call changed is seen there")
        return self
