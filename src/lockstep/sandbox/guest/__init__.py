"""What runs inside a microVM as process 1, and the wire format both ends speak; standard library alone.

Owns the inside of a guest: devices, the tool's cage, the carrying of bytes. Refuses to know of tools or policy.
"""
