"""What an agent is: `agent.toml` to a spec, the spec to `agent.lock` with four dimensions and one digest, and diffs.

Owns parsing, resolving and comparing. Refuses to run anything. Anyone above floor 2 may import it.
"""
