"""The gateway: an agent's gate, sandboxes, ledger and journal for any MCP client, and the agent itself as a tool.

Owns the faces (stdio, Streamable HTTP), who a client is, and how results and questions are told in MCP's words. Refuses
to decide and to execute: every call goes through `runtime.calling`. Imported by the terminal alone.
"""
