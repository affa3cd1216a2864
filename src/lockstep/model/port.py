"""The model port: what the kernel asks a model for and what comes back. A model only *asks*; it never executes.

Reasoning has no place in these types: an adapter copies text, tool calls and usage out of a provider's reply (an
allow-list), so nothing else can reach a record. Only the number of reasoning tokens stays.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from decimal import Decimal
from enum import StrEnum
from typing import Literal, Protocol

from lockstep.values import Attachment, Digest, JsonObject


@dataclass(frozen=True, kw_only=True, slots=True)
class ToolDefinition:
    """A tool as the model sees it, in the Model Context Protocol's shape."""

    name: str
    description: str
    input_schema: JsonObject


@dataclass(frozen=True, kw_only=True, slots=True)
class AskedCall:
    """A tool call as the model asked for it. `arguments` is the raw text: it may not be JSON at all.

    `provider_id` is the provider's call id, echoed back to it and to nobody else: models reuse ids.
    """

    provider_id: str
    name: str
    arguments: str


@dataclass(frozen=True, kw_only=True, slots=True)
class UserMessage:
    text: str
    role: Literal["user"] = "user"


@dataclass(frozen=True, kw_only=True, slots=True)
class AssistantMessage:
    text: str
    calls: tuple[AskedCall, ...] = ()
    role: Literal["assistant"] = "assistant"


@dataclass(frozen=True, kw_only=True, slots=True)
class ToolMessage:
    """What the model is told about one of its calls."""

    provider_id: str
    name: str
    text: str
    is_error: bool = False
    images: tuple[Attachment, ...] = ()
    """Shown with the text, which names each of them."""
    role: Literal["tool"] = "tool"


Message = UserMessage | AssistantMessage | ToolMessage


@dataclass(frozen=True, kw_only=True, slots=True)
class Prompt:
    """system message + tools + (user message and previous interactions), with the digest of all of it."""

    system: str
    tools: tuple[ToolDefinition, ...]
    messages: tuple[Message, ...]
    digest: Digest
    for_server: bool = False
    """All of it is what the server of a tool asks a model (sampling): no step of a run, and nothing of the agent's."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """Model settings from the lock; None leaves the provider's default. `timeout_s` in seconds, per request."""

    temperature: float | None = None
    top_p: float | None = None
    max_tokens: int | None = None
    seed: int | None = None
    parallel_tool_calls: bool | None = None
    timeout_s: float = 120.0
    images: bool = True
    """Whether images in results are sent; else the model has the words for them in the text."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Usage:
    """Tokens of one reply. `input_tokens` includes cached ones; `output_tokens` includes reasoning ones."""

    input_tokens: int = 0
    output_tokens: int = 0
    cache_read_tokens: int = 0
    cache_write_tokens: int = 0
    reasoning_tokens: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Reply:
    """What the model answered: text, or calls, or both."""

    text: str
    calls: tuple[AskedCall, ...] = ()
    usage: Usage = field(default_factory=Usage)
    cost_usd: Decimal | None = None
    """None is unknown, which is not zero."""
    price_book: str = ""
    """Name and version of the price book `cost_usd` came from."""
    model: str = ""
    """The model id the provider says it used."""
    provider: str = ""
    finish_reason: str = ""


class FailureKind(StrEnum):
    """Why a provider did not answer. The first four are transient: the same request may be sent again."""

    RATE_LIMITED = "rate_limited"
    OVERLOADED = "overloaded"
    TIMEOUT = "timeout"
    CONNECTION = "connection"
    REFUSED = "refused"
    BAD_REPLY = "bad_reply"
    RECORDING_ENDED = "recording_ended"
    RECORDING_MISMATCH = "recording_mismatch"

    @property
    def transient(self) -> bool:
        return self in _TRANSIENT


_TRANSIENT = frozenset({FailureKind.RATE_LIMITED, FailureKind.OVERLOADED, FailureKind.TIMEOUT, FailureKind.CONNECTION})


@dataclass(frozen=True, kw_only=True, slots=True)
class Failure:
    """A request that brought no reply; a value, because providers fail in normal operation."""

    kind: FailureKind
    message: str
    """One sentence for the operator; no secrets, no body of the request."""
    status: int | None = None
    retry_after_s: float | None = None


OnText = Callable[[str], None]
"""Called with each piece of streamed text, for the terminal only; never recorded piecewise."""


class Model(Protocol):
    """A model behind the port."""

    @property
    def name(self) -> str:
        """`provider:model`, as in the lock."""

    async def reply(self, prompt: Prompt, settings: Settings, *, on_text: OnText | None = None) -> Reply | Failure:
        """Ask once. Never retries: retrying is the kernel's decision, recorded and within the budget."""
