"""The gate: every tool call passes it, and it is the only maker of a `Permit`.

Owns validation, pins, Cedar policy, budgets and approvals. Refuses to execute.
"""
