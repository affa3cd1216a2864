"""A locked agent read out of its lock, never out of the directory."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Any, cast

from lockstep.agent.budget_spec import budget_of
from lockstep.agent.effect_spec import Repeats
from lockstep.agent.lock import Lock
from lockstep.agent.locked import LockedAgent, LockedTool, Remote, pin
from lockstep.agent.mcp_spec import McpServer, WorkingFiles
from lockstep.agent.pointers import check
from lockstep.agent.spec import LimitsSection, ModelSection, SecretSection
from lockstep.errors import LockError
from lockstep.values import Digest, Effect, Tier


def locked_agent(lock: Lock) -> LockedAgent:
    """Read a lock into types.

    Raises:
        LockError: it is whole, but was not written by a version that knows what this one needs.
    """
    try:
        return _read(lock)
    except (KeyError, TypeError, ValueError, ArithmeticError) as error:
        what = f"{type(error).__name__}: {error}".splitlines()[0]
        raise LockError(
            f"The lock {lock.digest[:12]} of {lock.agent} lacks what this version needs ({what}).",
            remedy="Run `lockstep lock` to write it anew.",
        ) from error


def _read(lock: Lock) -> LockedAgent:
    budget = dict(cast(Mapping[str, Any], lock.parts["tools"]["budget"].value))
    expires_s = float(budget.pop("approval_expires_s"))
    four_eyes, principal_may = budget.pop("four_eyes", False), budget.pop("principal_may_approve", True)
    (prompt,) = lock.parts["prompt"].values()
    memory = cast(Mapping[str, Any], lock.parts["memory"]["schema"].value)
    return LockedAgent(
        digest=lock.digest,
        name=lock.agent,
        model=ModelSection.model_validate(lock.parts["model"]["settings"].value),
        model_file=_model_file(lock),
        system=prompt.text or "",
        tools={name: _tool(name, value) for name, value in sorted(lock.tools().items())},
        policies=lock.policies(),
        budget=budget_of(budget),
        approval_expires_s=expires_s,
        four_eyes=bool(four_eyes),
        principal_may_approve=bool(principal_may),
        window_runs=memory["window_runs"],
    )


def _model_file(lock: Lock) -> tuple[str, Digest] | None:
    named = (n for n in lock.parts["model"] if n.startswith("file "))
    return next(((n.removeprefix("file "), lock.parts["model"][n].sha256) for n in named), None)


def _tool(name: str, value: Mapping[str, Any]) -> LockedTool:
    runtime = {where: Digest(digest) for where, digest in value.get("runtime", {}).items()}
    return LockedTool(
        name=name,
        definition=value["definition"],
        pin=pin(value["definition"], value["source"], value["code"], runtime),
        effect=Effect(value["effect"]),
        dedupe_on=tuple(map(check, value["dedupe_on"])) if "dedupe_on" in value else None,
        tier=Tier(value["isolation"]),
        degrade=Tier(value["degrade"]) if "degrade" in value else None,
        run_lifetime=value.get("lifetime") == "run",
        egress=tuple(value["egress"]),
        env=value["env"],
        limits=LimitsSection(**value["limits"]),
        timeout_s=value["timeout_s"],
        fee_usd=Decimal(value["fee_usd"]),
        source=value["source"],
        code=value["code"],
        secrets=tuple(SecretSection(**secret) for secret in value.get("secrets", ())),
        repeats=_repeats(value),
        output_trust=value.get("output_trust"),
        untrusted_fields=tuple(value.get("untrusted_fields", ())),
        runtime=runtime,
        files={name: WorkingFiles.model_validate(files) for name, files in value.get("files", {}).items()},
        protocol=value.get("protocol", ""),
        asks=tuple(value.get("asks", ())),
        task_s=value.get("task_s", 0.0),
        samples=value.get("sampling") == "model",
        errors_not_done=value.get("errors") == "not_done",
        remote=_remote(value),
        output_private=value.get("output_private", False),
        fields={kind: tuple(each) for kind, each in value["fields"].items()} if "fields" in value else None,
    )


def remote_of(server: McpServer) -> Remote | None:
    """How a server of `agent.toml` is reached that runs elsewhere."""
    if server.url is None:
        return None
    return Remote(url=server.url, headers=server.headers, oauth=server.oauth, prefix=server.prefix or "")


def _remote(value: Mapping[str, Any]) -> Remote | None:
    if "url" not in value:
        return None
    named = {key: value[key] for key in ("url", "headers", "oauth", "prefix") if key in value}
    return remote_of(McpServer.model_validate(named))


def _repeats(value: Mapping[str, Any]) -> Repeats:
    late_s = value["timeout_s"] if Effect(value["effect"]) is Effect.ONCE else 0.0
    return Repeats.model_validate({"late_s": late_s, **value.get("repeats", {})})
