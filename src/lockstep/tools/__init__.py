"""Tools: the `@tool` decorator, the runner inside the sandbox, and the host that speaks MCP to it.

Refuses to call without a `Permit`. `decorator`, `schema` and `runner` import the standard library alone.
"""
