"""Lockstep: the layer that makes an LLM agent safe to run.

What a tool module needs inside a sandbox (`tool`, `NotDone`, `OutcomeUnknown`) is exported here and imports the
standard library alone; everything else is reached by its own module.
"""

from lockstep.tools.decorator import NotDone, OutcomeUnknown, tool

__all__ = ["NotDone", "OutcomeUnknown", "__version__", "tool"]
__version__ = "0.1.0"
