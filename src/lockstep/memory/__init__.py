"""What is remembered across runs of a session, and the versioned schema of it.

Owns the window over earlier runs. Refuses to decide what the agent does.
"""
