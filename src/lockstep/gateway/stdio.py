"""The stdio face: one client, the process that started us, over standard input and output.

Our own transport in place of the SDK's, which has no bound on a line and reads in a thread: a line longer than the
bound ends the connection, and what anything prints by mistake goes to standard error and never into the protocol.
"""

from __future__ import annotations

import asyncio
import os
import stat
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream
from mcp import types
from mcp.server.lowlevel.server import Server
from mcp.shared.message import SessionMessage

from lockstep.errors import ConfigError

MAX_LINE_BYTES = 8 * 2**20
_Incoming = SessionMessage | Exception


async def serve_stdio(server: Server[Any]) -> None:
    """Serve until standard input ends."""
    async with _wire() as (reader, writer):
        sends, incoming = anyio.create_memory_object_stream[_Incoming](0)
        outgoing, takes = anyio.create_memory_object_stream[SessionMessage](0)
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(_read, reader, sends)
                tasks.start_soon(_write, writer, takes)
                await server.run(incoming, outgoing, server.create_initialization_options())
                tasks.cancel_scope.cancel()
        except* anyio.BrokenResourceError:  # a message came while we were told to stop: nobody takes it any more
            pass


def require_client() -> None:
    """Whether there can be a client at the other end: of a file, or of /dev/null, nobody is.

    Raises:
        ConfigError: there cannot be.
    """
    for number, name in ((0, "input"), (1, "output")):
        try:
            mode = os.fstat(number).st_mode
        except OSError:  # closed
            mode = 0
        if not (stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) or os.isatty(number)):
            raise ConfigError(
                f"Standard {name} is no pipe, so there is no client.",
                remedy="Have an MCP client start this command, or serve HTTP with --http PORT.",
            )


async def _read(reader: asyncio.StreamReader, sends: MemoryObjectSendStream[_Incoming]) -> None:
    async with sends:
        while True:
            try:
                line = await reader.readline()
            except ValueError:  # longer than the bound: where the next message begins is not known
                print(f"lockstep: a message of more than {MAX_LINE_BYTES} bytes; the connection ends", file=sys.stderr)
                return
            if not line:
                return
            try:
                await sends.send(SessionMessage(types.jsonrpc_message_adapter.validate_json(line, by_name=False)))
            except ValueError as error:
                await sends.send(error)


async def _write(writer: asyncio.StreamWriter, takes: MemoryObjectReceiveStream[SessionMessage]) -> None:
    async with takes:
        async for each in takes:
            writer.write(each.message.model_dump_json(by_alias=True, exclude_unset=True).encode() + b"\n")
            await writer.drain()


@asynccontextmanager
async def _wire() -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """Standard input and output for the protocol alone; descriptor 1 is standard error meanwhile."""
    loop = asyncio.get_running_loop()
    sys.stdout.flush()
    wire_in, wire_out = os.dup(0), os.dup(1)
    os.dup2(2, 1)
    try:
        reader = asyncio.StreamReader(limit=MAX_LINE_BYTES)
        source = os.fdopen(wire_in, "rb", buffering=0)
        incoming, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), source)
        sink = os.fdopen(os.dup(wire_out), "wb", buffering=0)
        outgoing, protocol = await loop.connect_write_pipe(asyncio.streams.FlowControlMixin, sink)
        try:
            yield reader, asyncio.StreamWriter(outgoing, protocol, None, loop)
        finally:
            incoming.close()
            outgoing.close()
    finally:
        os.dup2(wire_out, 1)
        os.close(wire_out)
