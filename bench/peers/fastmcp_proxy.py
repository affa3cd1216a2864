"""FastMCP's proxy before a server of its own, in one process: what `gateway.py` puts beside the gateway.

`fastmcp_proxy.py [--fd N]` serves stdio, or HTTP on a listening socket that was handed over. No gate, no record.
"""

from __future__ import annotations

import argparse
import asyncio
import socket
from typing import Any

import uvicorn
from fastmcp import FastMCP
from fastmcp.server import create_proxy


def behind() -> FastMCP[Any]:
    """The same tool as in `gateway.py`."""
    server: FastMCP[Any] = FastMCP("behind")

    @server.tool(output_schema=None)
    def echo(text: str) -> str:
        """Echo it"""
        return f"{text} " * 20

    return server


async def main(fd: int | None) -> None:
    proxy = create_proxy(behind())
    if fd is None:
        await proxy.run_stdio_async(show_banner=False, log_level="ERROR")
        return
    app = proxy.http_app()
    await uvicorn.Server(uvicorn.Config(app, log_level="error")).serve([socket.socket(fileno=fd)])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fd", type=int)
    asyncio.run(main(parser.parse_args().fd))
