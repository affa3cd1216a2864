"""From an agent's directory to its lock: which parts it has, and what stands in them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

from lockstep.agent.builtins import builtin_files, pack_text
from lockstep.agent.context import METHODS, offered_by, plain_name
from lockstep.agent.declared_fields import check_fields, fields_of_tool
from lockstep.agent.files import AGENT_FILE, inside, read_file, read_text
from lockstep.agent.lock import Lock, Part
from lockstep.agent.mcp_spec import McpServer
from lockstep.agent.places import host_path, is_of_the_agent
from lockstep.agent.spec import FILE_MODELS, AgentSpec, PolicySection, ToolSource
from lockstep.agent.trees import Trees
from lockstep.errors import ConfigError
from lockstep.values import Effect, Json, JsonObject, digest_json, sha256

_NOT_IN_A_NAME = re.compile(r"[^A-Za-z0-9_-]")


def source_key(source: ToolSource) -> str:
    """Where a tool comes from, in one word: `python:FILE`, `mcp:COMMAND`, `mcp:URL` or `builtin:NAME`."""
    if source.builtin:
        return f"builtin:{source.builtin}"
    if source.python or source.mcp is None:
        return f"python:{source.python}"
    return f"mcp:{source.mcp.url or shlex.join(source.mcp.command or ())}"


def shown_name(source: ToolSource, name: str) -> str:
    """What the model calls a tool that its source calls `name`. With a prefix it is what every provider takes."""
    prefix = source.mcp.prefix if source.mcp else None
    if source.mcp and name in METHODS:
        name = plain_name(name)
    return f"{prefix}__{_NOT_IN_A_NAME.sub('_', name)}" if prefix else name


def resolve(
    directory: Path,
    spec: AgentSpec,
    definitions: Mapping[int, Sequence[JsonObject]],
    protocols: Mapping[int, str] | None = None,
    trees: Trees | None = None,
) -> Lock:
    """The lock of what is on disk.

    Args:
        definitions: index of a `[[tools]]` entry -> the MCP definitions of its source.
        protocols: index of an entry with an MCP server -> the revision that was settled on with it.
        trees: what is known already of directories of packages.

    Raises:
        ConfigError: a named file is missing, a tool is provided twice, or `include` names one that is not there.
    """
    files: dict[str, bytes] = {}
    return Lock(
        agent=spec.agent.name,
        parts={
            "model": _model_parts(directory, spec, files),
            "prompt": {
                spec.prompt.file: _text_part(inside(directory, spec.prompt.file), "Write it, or correct `prompt.file`.")
            },
            "tools": _tool_parts(directory, spec, definitions, protocols or {}, files, trees or Trees()),
            "memory": {"schema": _value_part({"schema": 1, "window_runs": spec.memory.window_runs})},
        },
        files=files,
    )


def resolve_static(directory: Path, spec: AgentSpec, locked: Lock, trees: Trees | None = None) -> Lock:
    """As `resolve`, with tool definitions taken from `locked`: no tool code runs. Changed code shows by its digest."""
    known: dict[tuple[str, str], JsonObject] = {}
    """By source, and the name that the source has for the tool."""
    for value in locked.tools().values():
        definition = cast(JsonObject, value["definition"])
        known[str(value["source"]), str(definition["name"])] = value
    claimed = _claimed(spec)
    definitions: dict[int, list[JsonObject]] = {}
    protocols: dict[int, str] = {}
    for index, source in enumerate(spec.tools):
        key = source_key(source)
        offered = [name for where, name in known if where == key]
        context = [name for name in offered if _is_context(source, name)]
        names = [*source.include, *context] if source.include else _unclaimed(source, offered, claimed)
        found = [known.get((key, name), {"definition": {"name": name}}) for name in names]
        definitions[index] = [cast(JsonObject, value["definition"]) for value in found]
        if agreed := next((str(value["protocol"]) for value in found if "protocol" in value), ""):
            protocols[index] = agreed
    return resolve(directory, spec, definitions, protocols, trees)


def _model_parts(directory: Path, spec: AgentSpec, files: dict[str, bytes]) -> dict[str, Part]:
    settings = spec.model.model_dump(mode="json", exclude_none=True)
    parts = {"settings": _value_part(settings)}
    provider, _, name = spec.model.name.partition(":")
    if provider in FILE_MODELS:
        remedy = f"Record one with `lockstep record`, or correct `model.name` in {directory / AGENT_FILE}."
        data = files[name] = _read_bytes(inside(directory, name), remedy)
        parts[f"file {name}"] = Part(sha256=sha256(data))
    return dict(sorted(parts.items()))


def _tool_parts(
    directory: Path,
    spec: AgentSpec,
    definitions: Mapping[int, Sequence[JsonObject]],
    protocols: Mapping[int, str],
    files: dict[str, bytes],
    trees: Trees,
) -> dict[str, Part]:
    parts: dict[str, Part] = {}
    claimed = _claimed(spec)
    for index, source in enumerate(spec.tools):
        place = f"{directory / AGENT_FILE}: tools[{index}]"
        settings = _source_settings(directory, spec, source, files, trees)
        if index in protocols:
            settings["protocol"] = protocols[index]
        chosen = _chosen(place, source, definitions[index], claimed)
        check_fields(place, source.fields, chosen)
        for definition in chosen:
            shown = shown_name(source, str(definition["name"]))
            name = f"tool {shown}"
            if name in parts:
                raise ConfigError(
                    f"{place} provides {shown!r}, which is there already.",
                    remedy="Name each tool in one `include`, give a server a `prefix`, or rename one.",
                )
            fields = fields_of_tool(source.fields, definition)
            declared: dict[str, Json] = {"fields": fields} if fields else {}
            own = _of_a_read(settings) if source.mcp and definition["name"] in METHODS else settings
            parts[name] = _tool_part(place, {"definition": definition, **own, **declared})
    for file in spec.policy.files:
        parts[f"policy {file}"] = _text_part(inside(directory, file), "Write it, or correct `policy.files`.")
    for pack in spec.policy.packs:
        text = pack_text(pack)
        parts[f"policy pack:{pack}"] = Part(sha256=sha256(text.encode()), text=text)
    budget = spec.budget.model_dump(mode="json", exclude_none=True)
    parts["budget"] = _value_part({**budget, **_oversight(spec.policy)})
    return dict(sorted(parts.items()))


def _oversight(policy: PolicySection) -> dict[str, Json]:
    """How approvals are given. What is not said there, but for the expiry, is not in the lock either."""
    said: dict[str, Json] = {"approval_expires_s": policy.approval_expires_s}
    if policy.four_eyes:
        said["four_eyes"] = True
    if not policy.principal_may_approve:
        said["principal_may_approve"] = False
    return said


def _tool_part(place: str, value: JsonObject) -> Part:
    try:
        return _value_part(value)
    except ValueError as error:  # definitions come from code we do not know
        raise ConfigError(f"{place} offers a tool that cannot be digested: {error}.", remedy="Correct it.") from error


def _claimed(spec: AgentSpec) -> set[str]:
    """The tools that an entry names; no other entry provides them."""
    return {shown_name(source, name) for source in spec.tools for name in source.include or ()}


def _unclaimed(source: ToolSource, offered: Sequence[str], claimed: set[str]) -> list[str]:
    """What an entry without `include` provides: tools that no other entry names, and what it is said to offer."""
    return [
        name
        for name in offered
        if (_is_context(source, name) if name in METHODS else shown_name(source, name) not in claimed)
    ]


def _is_context(source: ToolSource, name: str) -> bool:
    return source.mcp is not None and name in METHODS and offered_by(source.mcp.offer, name)


def _chosen(place: str, source: ToolSource, definitions: Sequence[JsonObject], claimed: set[str]) -> list[JsonObject]:
    if source.include is None:
        unclaimed = _unclaimed(source, [str(each["name"]) for each in definitions], claimed)
        return [each for each in definitions if each["name"] in unclaimed]
    context = [each for each in definitions if _is_context(source, str(each["name"]))]
    by_name = {definition["name"]: definition for definition in definitions}
    for name in source.include:
        if name not in by_name:
            raise ConfigError(
                f"{place}.include names {name!r}, which {source_key(source)} does not have.",
                remedy=f"It has: {', '.join(map(str, by_name)) or 'none'}.",
            )
    return [*(by_name[name] for name in source.include), *context]


def _source_settings(
    directory: Path, spec: AgentSpec, source: ToolSource, files: dict[str, bytes], trees: Trees
) -> dict[str, Json]:
    """How the tools of a source may run, with what the agent's policy makes of it."""
    settings: dict[str, Json] = source.model_dump(
        mode="json",
        exclude_none=True,
        exclude={"python", "mcp", "builtin", "include", "code", "lifetime", "untrusted", "fields", *_REPEATS},
        by_alias=True,
    )
    for name in ("secrets", "untrusted_fields", "output_private"):
        if not settings[name]:
            del settings[name]
    tier = spec.policy.tier(source)
    settings["isolation"] = tier.value
    if (instead := spec.policy.stand_in(tier)) is not None:
        settings["degrade"] = instead.value
    if source.lifetime != "call":
        settings["lifetime"] = source.lifetime
    if source.untrusted:
        settings["untrusted"] = True
    if repeats := _repeats(source):
        settings["repeats"] = repeats
    code = code_files(directory, source)
    files.update(code)
    if source.mcp:
        settings |= _server_settings(source.mcp, trees)
    return {**settings, "source": source_key(source), "code": {path: sha256(data) for path, data in code.items()}}


def _server_settings(server: McpServer, trees: Trees) -> dict[str, Json]:
    """What of a server its command and code do not say."""
    settings: dict[str, Json] = {}
    if server.prefix:
        settings["prefix"] = server.prefix
    if server.errors != "unknown":
        settings["errors"] = server.errors
    if server.url:
        settings |= {"url": server.url, "egress": list(server.egress)}
    if server.headers:
        settings["headers"] = dict(sorted(server.headers.items()))
    if server.oauth:
        settings["oauth"] = server.oauth.model_dump(mode="json", exclude_defaults=True)
    if server.runtime:
        settings["runtime"] = {name: trees.digest(host_path(path)) for name, path in sorted(server.runtime.items())}
    if server.asks:
        settings["asks"] = list(server.asks)
    if server.task_s is not None:
        settings["task_s"] = server.task_s
    if server.sampling == "model":
        settings["sampling"] = server.sampling
    if server.files:
        settings["files"] = {
            name: {"from": files.source, "write": files.write} for name, files in sorted(server.files.items())
        }
    if server.offer != ("tools",):
        settings["offer"] = sorted(server.offer)
    return settings


def _of_a_read(settings: dict[str, Json]) -> dict[str, Json]:
    """The settings of what is read of a server beside its tools, whatever its tools do and cost."""
    kept = {name: value for name, value in settings.items() if name not in ("dedupe_on", "repeats", "untrusted_fields")}
    if "untrusted_fields" in settings:  # which name places in the results of tools, and none here
        kept["output_trust"] = "untrusted"
    return {**kept, "effect": Effect.READ.value, "fee_usd": "0"}


_REPEATS: Mapping[str, str] = {
    "dedupe_scope": "scope",
    "dedupe_window_s": "window_s",
    "released_by": "released_by",
    "again": "again",
    "probe": "probe",
    "retries": "retries",
    "late_s": "late_s",
}
"""Of `[[tools]]`, by their names in a lock. What is not said there is not in the lock either."""


def _repeats(source: ToolSource) -> dict[str, Json]:
    said = source.model_dump(mode="json", exclude_unset=True, exclude_none=True, include=set(_REPEATS))
    return {_REPEATS[name]: value for name, value in said.items()}


def code_files(directory: Path, source: ToolSource) -> dict[str, bytes]:
    """The files a source is made of, by path relative to the agent, sorted.

    Raises:
        ConfigError: one does not exist, a link leads out of the directory, or one has the name of a built-in's.
    """
    working = (each.source for each in source.mcp.files.values()) if source.mcp else ()
    named = [*((source.python,) if source.python else ()), *source.code, *filter(is_of_the_agent, working)]
    out: dict[str, bytes] = {}
    for name in named:
        path = directory / name
        whole = path.is_dir() and name != source.python
        found = sorted(p for p in path.rglob("*") if p.is_file()) if whole else [path]
        for file in found:
            if "__pycache__" not in file.parts:
                remedy = f"Write it, or correct it under `[[tools]]` in {directory / AGENT_FILE}."
                relative = file.relative_to(directory).as_posix()
                out[relative] = _read_bytes(inside(directory, relative), remedy)
    for name, data in (builtin_files(source.builtin) if source.builtin else {}).items():
        if name in out:
            raise ConfigError(
                f"{directory / name} has the name of a file of the built-in {source.builtin!r}.", remedy="Rename it."
            )
        out[name] = data
    return dict(sorted(out.items()))


def _read_bytes(path: Path, remedy: str) -> bytes:
    try:
        return read_file(path)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}.", remedy=remedy) from error


def _value_part(value: JsonObject) -> Part:
    return Part(sha256=digest_json(value), value=value)


def _text_part(path: Path, remedy: str) -> Part:
    text = read_text(path, remedy=remedy)
    return Part(sha256=sha256(text.encode()), text=text)
