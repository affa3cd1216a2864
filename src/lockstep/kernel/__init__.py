"""Decisions: `decide(state) -> command`, `apply(state, event) -> state`, prompt construction, budgets.

Pure: no I/O, no clock, no randomness, no await. Imported by the runtime and by readers of runs.
"""
