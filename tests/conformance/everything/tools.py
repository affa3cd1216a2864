"""The tools of the conformance suite's server scenarios."""

from lockstep import tool


@tool
def test_simple_text() -> str:
    """Say one sentence."""
    return "This is a simple text response for testing."


@tool
def test_error_handling() -> str:
    """Fail on purpose."""
    raise RuntimeError("This tool intentionally returns an error for testing")
