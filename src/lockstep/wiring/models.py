"""Models: which provider, or which file, stands behind a model's name."""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

from lockstep.agent.locked import LockedAgent
from lockstep.agent.spec import FILE_MODELS, ModelSection
from lockstep.errors import ConfigError
from lockstep.model.port import Model, Settings
from lockstep.tools.code import CodeStore

FROM_ENVIRONMENT = "model: address from the environment"


def open_model(agent: LockedAgent, code: CodeStore, env: Mapping[str, str] = os.environ) -> Model:
    """The locked model, ready to ask."""
    provider, _, name = agent.model.name.partition(":")
    if provider in FILE_MODELS:
        return _open_file_model(agent, provider, name, code)
    from lockstep.model.prices import read_prices
    from lockstep.model.providers import open_provider

    prices = agent.model.prices
    opened = open_provider(
        agent.model.name,
        base_url=agent.model.base_url,
        api_key_env=agent.model.api_key_env,
        env=env,
        prices=None if prices is None else read_prices(prices.model_dump(exclude_none=True)),
    )
    if agent.budget.limits_cost and agent.budget.unknown_price != "allow" and not opened.priced:
        raise ConfigError(
            f"The price of {agent.model.name} is unknown, so budget.cost_usd cannot be kept.",
            remedy='Give model.prices in agent.toml, remove the limit, or accept it: budget.unknown_price = "allow".',
        )
    return opened


@contextlib.asynccontextmanager
async def opened_model(agent: LockedAgent, code: CodeStore) -> AsyncIterator[Model]:
    """As `open_model`; its connections are closed at the end."""
    model = open_model(agent, code)
    try:
        yield model
    finally:
        if close := getattr(model, "close", None):
            await close()


def model_settings(model: ModelSection) -> Settings:
    return Settings(
        temperature=model.temperature,
        top_p=model.top_p,
        max_tokens=model.max_tokens,
        seed=model.seed,
        parallel_tool_calls=model.parallel_tool_calls,
        timeout_s=model.timeout_s,
        images=model.images is not False,
    )


def read_file_model(provider: str, path: Path) -> Model:
    if provider == "scripted":
        from lockstep.model.scripted import ScriptedModel, read_script

        return ScriptedModel(read_script(path))
    from lockstep.model.recorded import RecordedModel
    from lockstep.model.recording import read_recording

    return RecordedModel(recording=read_recording(path))


def address_drift(agent: LockedAgent, model: Model, env: Mapping[str, str] = os.environ) -> tuple[str, ...]:
    """What a run must say of a model that is asked where no lock but the environment says: SDKs read variables."""
    used = str(getattr(model, "base_url", ""))
    if agent.model.base_url is not None or not used:
        return ()
    named = any(value.startswith(("http://", "https://")) and _leads_to(value, used) for value in env.values())
    return (f"{FROM_ENVIRONMENT} ({used})",) if named else ()


def _leads_to(address: str, used: str) -> bool:
    return f"{used.rstrip('/')}/".startswith(f"{address.rstrip('/')}/")


def _open_file_model(agent: LockedAgent, provider: str, name: str, code: CodeStore) -> Model:
    path = Path(name)
    if agent.model_file is not None:
        file, digest = agent.model_file
        path = code.get({file: digest}) / file
    return read_file_model(provider, path)
