"""The driver: performs what the kernel decides and records what happened.

Refuses decisions. Knows Protocols only; concrete parts come from `wiring`.
"""
