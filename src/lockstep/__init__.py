"""Lockstep: the layer that makes an LLM agent safe to run.

What a tool module needs inside a sandbox (`tool`, `NotDone`, `Unavailable`, `OutcomeUnknown`) is exported here and
imports the standard library alone; everything else is reached by its own module.
"""

from lockstep.tools.decorator import NotDone, OutcomeUnknown, Unavailable, tool

__all__ = ["NotDone", "OutcomeUnknown", "Unavailable", "__version__", "tool"]
__version__ = "0.1.0"
