"""Models of real providers, through pydantic-ai's `direct` API and its model classes.

Names are `provider:model`. `openai:` speaks chat completions, and with a `base_url` so does everything compatible with
it; `openai-responses:` speaks the Responses API; the others are what pydantic-ai infers from the name.

pydantic-ai and the providers' SDKs take a second to load, so they are imported inside functions.
"""

from __future__ import annotations

import asyncio
import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lockstep.errors import ModelError
from lockstep.model.failures import expected_errors, failure_of, one_sentence
from lockstep.model.port import Failure, OnText, Prompt, Reply, Settings, Usage
from lockstep.model.prices import UNKNOWN, Cost, Prices, cost_by, cost_by_book, is_priced
from lockstep.model.thinking import ThinkingFilter
from lockstep.model.translation import calls_of, text_of, to_messages, to_parameters, to_settings, usage_of

if TYPE_CHECKING:
    from pydantic_ai.messages import ModelResponse
    from pydantic_ai.models import Model as Upstream
    from pydantic_ai.providers import Provider

_OWN_EXTRAS = frozenset({"openai", "anthropic", "google", "groq", "mistral", "bedrock"})
_WITHOUT_IMAGES = frozenset({"cohere"})
"""Whose results hold text alone, in pydantic-ai's translation."""
_ADDRESS_PARAMETERS = ("base_url", "api_base", "azure_endpoint", "api_host")


@dataclass(frozen=True, kw_only=True, slots=True)
class _Known:
    """What has to be there before a provider can be asked: the SDK's extra and the names of variables."""

    extra: str
    keys: tuple[str, ...]
    address: str = ""
    key_needed: bool = True


_OPENAI = _Known(extra="openai", keys=("OPENAI_API_KEY",), address="OPENAI_BASE_URL")
_KNOWN: Mapping[str, _Known] = {
    "openai": _OPENAI,
    "openai-chat": _OPENAI,
    "openai-responses": _OPENAI,
    "anthropic": _Known(extra="anthropic", keys=("ANTHROPIC_API_KEY",), address="ANTHROPIC_BASE_URL"),
    "google": _Known(extra="google", keys=("GOOGLE_API_KEY", "GEMINI_API_KEY"), address="GOOGLE_GEMINI_BASE_URL"),
    "groq": _Known(extra="groq", keys=("GROQ_API_KEY",), address="GROQ_BASE_URL"),
    "mistral": _Known(extra="mistral", keys=("MISTRAL_API_KEY",)),
    "bedrock": _Known(extra="bedrock", keys=("AWS_BEARER_TOKEN_BEDROCK",), key_needed=False),
    "azure": _Known(extra="openai", keys=("AZURE_OPENAI_API_KEY",), address="AZURE_OPENAI_ENDPOINT"),
    "cerebras": _Known(extra="openai", keys=("CEREBRAS_API_KEY",)),
    "cohere": _Known(extra="cohere", keys=("CO_API_KEY",)),
    "deepseek": _Known(extra="openai", keys=("DEEPSEEK_API_KEY",)),
    "fireworks": _Known(extra="openai", keys=("FIREWORKS_API_KEY",)),
    "huggingface": _Known(extra="huggingface", keys=("HF_TOKEN",)),
    "moonshotai": _Known(extra="openai", keys=("MOONSHOTAI_API_KEY",)),
    "ollama": _Known(extra="openai", keys=("OLLAMA_API_KEY",), address="OLLAMA_BASE_URL", key_needed=False),
    "openrouter": _Known(extra="openai", keys=("OPENROUTER_API_KEY",)),
    "together": _Known(extra="openai", keys=("TOGETHER_API_KEY",)),
    "vllm": _Known(extra="openai", keys=("VLLM_API_KEY",), address="VLLM_BASE_URL", key_needed=False),
    "xai": _Known(extra="xai", keys=("XAI_API_KEY",)),
}


def open_provider(
    name: str,
    *,
    base_url: str | None,
    api_key_env: str | None,
    env: Mapping[str, str],
    prices: Prices | None = None,
) -> ProviderModel:
    """The model behind `provider:model`; no request is made yet.

    Args:
        name: `provider:model`.
        base_url: address of the API; None is the provider's own, or the one the SDK's variable in `env` names.
        api_key_env: variable that holds the key; None is the provider's usual one.
        env: environment variables.
        prices: prices that stand instead of the price book's.
    Raises:
        ModelError: unknown provider, its SDK is not installed, or its key is missing.
    """
    provider, colon, model = name.partition(":")
    if provider.startswith("gateway/"):
        raise _unknown(provider)
    if not (provider and colon and model):
        raise ModelError(f"The model {name!r} names no provider.", remedy="Write provider:model, like openai:gpt-4o.")
    kind = "openai-chat" if provider == "openai" else provider  # pydantic-ai's `openai:` is the Responses API
    known = _KNOWN.get(provider)
    address = base_url or (known and known.address and env.get(known.address)) or None
    key = _key(provider, known, has_address=address is not None, api_key_env=api_key_env, env=env)

    def connect() -> Upstream:
        return _upstream(_provider(kind, known, key=key, address=address), kind, model, name)

    upstream = connect()
    return ProviderModel(
        name=name,
        base_url=str(upstream.base_url or ""),
        prices=prices,
        _connect=connect,
        _secret=key or "",
        _upstream=upstream,
    )


def _key(
    provider: str, known: _Known | None, *, has_address: bool, api_key_env: str | None, env: Mapping[str, str]
) -> str | None:
    names = (api_key_env,) if api_key_env else known.keys if known else ()
    key = next((env[name] for name in names if env.get(name)), None)
    # A server of one's own that speaks OpenAI's protocol often wants no key.
    needed = api_key_env or (known is not None and known.key_needed and not (known is _OPENAI and has_address))
    if key is None and names and needed:
        raise ModelError(
            f"The key for {provider} is missing: {' or '.join(names)} is not set.",
            remedy=f"Run `export {names[0]}=…`, or name another variable as api_key_env in agent.toml.",
        )
    return key or ("api-key-not-set" if known is not None and known.extra == "openai" else None)


def _provider(kind: str, known: _Known | None, *, key: str | None, address: str | None) -> Provider[Any]:
    from pydantic_ai.exceptions import UserError
    from pydantic_ai.providers import infer_provider_class

    name = "openai" if kind == "openai-chat" else kind
    try:
        provider_class = infer_provider_class("openai" if kind.startswith("openai-") else kind)
    except ValueError as error:
        raise _unknown(name) from error
    except ImportError as error:
        raise _not_installed(name, known) from error
    accepted = inspect.signature(provider_class.__init__).parameters
    arguments: dict[str, str] = {"api_key": key} if key is not None and "api_key" in accepted else {}
    if address is not None:
        parameter = next((name for name in _ADDRESS_PARAMETERS if name in accepted), None)
        if parameter is None:
            raise ModelError(
                f"{name} always uses its own address; base_url cannot change it.",
                remedy="Leave base_url out, or use openai: with it when the server is compatible with OpenAI's API.",
            )
        arguments[parameter] = address
    try:
        return provider_class(**arguments)
    except ImportError as error:
        raise _not_installed(name, known) from error
    except (UserError, ValueError, TypeError) as error:
        raise _unusable(name, error) from error


def _upstream(provider: Provider[Any], kind: str, model: str, name: str) -> Upstream:
    from pydantic_ai.exceptions import UserError
    from pydantic_ai.models import infer_model

    try:
        upstream = infer_model(f"{kind}:{model}", provider_factory=lambda _: provider)
    except ImportError as error:
        raise _not_installed(kind, _KNOWN.get(kind)) from error
    except (UserError, ValueError) as error:
        raise _unusable(name, error) from error
    if kind not in ("openai-chat", "openai-responses", "anthropic"):
        return upstream
    # These take any JSON Schema, so the model sees the schema the lock pins; others need theirs adapted.
    profile: Any = {"json_schema_transformer": None}
    if "api.openai.com" in provider.base_url:
        # OpenAI always sends a finish reason, so a stream without one was cut short.
        profile["openai_chat_streaming_requires_finish_reason"] = True
    upstream_class: Any = _tolerant_chat_model() if kind == "openai-chat" else type(upstream)
    made: Upstream = upstream_class(model, provider=provider, profile=profile)
    return made


def _tolerant_chat_model() -> type[Upstream]:
    """Chat completions as compatible servers send them: some leave out a call's type, some its empty arguments."""
    from pydantic_ai.models.openai import OpenAIChatModel

    class TolerantChatModel(OpenAIChatModel):
        def _validate_completion(self, response: Any) -> Any:  # a hook pydantic-ai keeps for subclasses
            for choice in response.choices or ():
                for call in choice.message.tool_calls or ():
                    function = getattr(call, "function", None)
                    if function is not None:
                        call.type = "function"
                        function.arguments = function.arguments if getattr(function, "arguments", None) else ""
            return super()._validate_completion(response)

    return TolerantChatModel


def _unknown(provider: str) -> ModelError:
    return ModelError(
        f"No provider is called {provider!r}.",
        remedy=f"Known are {', '.join(sorted(_KNOWN))}; a server that speaks OpenAI's API is openai: with base_url.",
    )


def _unusable(name: str, error: Exception) -> ModelError:
    """What pydantic-ai objects to, in one sentence; most often a variable that is not set."""
    variable = re.search(r"Set the `([A-Z][A-Z0-9_]+)`", str(error))
    if variable is not None:
        return ModelError(
            f"{name} cannot be used: {variable.group(1)} is not set.", remedy=f"Run `export {variable.group(1)}=…`."
        )
    return ModelError(f"{name} cannot be used: {one_sentence(str(error))}", remedy="Check its name and settings.")


def _not_installed(provider: str, known: _Known | None) -> ModelError:
    extra = known.extra if known else provider
    package = f"lockstep-agents[{extra}]" if extra in _OWN_EXTRAS else f"pydantic-ai-slim[{extra}]"
    return ModelError(
        f"The package for {provider} is not installed.",
        remedy=f"Run `pip install '{package}'`.",
    )


class _ListenerFailed(Exception):
    """`on_text` raised; kept apart from the provider's errors. Never leaves this module."""

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error


@dataclass(kw_only=True)
class ProviderModel:
    """A provider's model behind the port. Use it on one event loop at a time; `close` when done."""

    name: str
    base_url: str
    prices: Prices | None = None
    _connect: Callable[[], Upstream] = field(repr=False)
    _secret: str = field(repr=False)
    _upstream: Upstream | None = field(repr=False)
    _loop: asyncio.AbstractEventLoop | None = field(default=None, repr=False)

    @property
    def priced(self) -> bool:
        """Whether its price is known before the first request, which a cost limit needs."""
        provider, _, model = self.name.partition(":")
        return self.prices is not None or is_priced(provider=provider, model=model, base_url=self.base_url)

    async def reply(self, prompt: Prompt, settings: Settings, *, on_text: OnText | None = None) -> Reply | Failure:
        """Ask once; streams when `on_text` is given. What goes wrong on the way is a `Failure`."""
        provider = self.name.partition(":")[0]
        try:
            response = await self._ask(prompt, settings, on_text)
            return self._reply(response)
        except _ListenerFailed as failed:
            raise failed.error from None
        except expected_errors() as error:
            return failure_of(error, provider=provider, secret=self._secret)

    async def _ask(self, prompt: Prompt, settings: Settings, on_text: OnText | None) -> ModelResponse:
        from pydantic_ai.direct import model_request, model_request_stream

        upstream = await self._on_this_loop()
        model_settings = to_settings(settings, ignored=upstream.unsupported_settings)
        if upstream.system == "anthropic":
            model_settings["cache"] = True  # nothing is cached there unless it is asked for
        images = settings.images and upstream.system not in _WITHOUT_IMAGES
        messages, parameters = to_messages(prompt, images=images), to_parameters(prompt)
        # instrument=False: what a request holds is ours to record, never a global tracer's.
        if on_text is None:
            return await model_request(
                upstream,
                messages,
                model_settings=model_settings,
                model_request_parameters=parameters,
                instrument=False,
            )
        async with model_request_stream(
            upstream, messages, model_settings=model_settings, model_request_parameters=parameters, instrument=False
        ) as stream:
            thinking = ThinkingFilter()
            async for event in stream:
                _tell(on_text, thinking.feed(_text_in(event)))
            _tell(on_text, thinking.end())
            return stream.get()

    async def _on_this_loop(self) -> Upstream:
        """The connection for the running event loop; connections belong to the loop that opened them."""
        loop = asyncio.get_running_loop()
        if self._upstream is None or self._loop not in (None, loop):
            self._upstream, self._loop = self._connect(), None
        if self._loop is None:
            await self._upstream.__aenter__()
            self._loop = loop
        return self._upstream

    async def close(self) -> None:
        """Close the connections; the next request would open new ones."""
        if self._upstream is not None and self._loop is asyncio.get_running_loop():
            await self._upstream.__aexit__(None, None, None)
            self._upstream = self._loop = None

    def _reply(self, response: ModelResponse) -> Reply:
        provider = response.provider_name or self.name.partition(":")[0]
        model = response.model_name or self.name.partition(":")[2]
        usage = usage_of(response)
        cost = self._cost(usage, provider=provider, model=model)
        return Reply(
            text=text_of(response),
            calls=calls_of(response),
            usage=usage or Usage(),
            cost_usd=cost.usd,
            price_book=cost.book,
            model=model,
            provider=provider,
            finish_reason=response.finish_reason or "",
        )

    def _cost(self, usage: Usage | None, *, provider: str, model: str) -> Cost:
        if usage is None:
            return UNKNOWN
        if self.prices is not None:
            return cost_by(self.prices, usage)
        return cost_by_book(usage, provider=provider, model=model, base_url=self.base_url)


def _text_in(event: object) -> str:
    """The text in a stream event; every other event, reasoning among them, has none."""
    from pydantic_ai.messages import PartDeltaEvent, PartStartEvent, TextPart, TextPartDelta

    if isinstance(event, PartStartEvent) and isinstance(event.part, TextPart):
        return event.part.content
    if isinstance(event, PartDeltaEvent) and isinstance(event.delta, TextPartDelta):
        return event.delta.content_delta
    return ""


def _tell(on_text: OnText, piece: str) -> None:
    try:
        if piece:
            on_text(piece)
    except Exception as error:  # the caller's own error, handed back to it unchanged
        raise _ListenerFailed(error) from error
