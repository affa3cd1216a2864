"""The terminal face. Refuses logic that a library user would miss."""
