"""The model port: one Protocol, providers behind it, and the recorded and scripted models.

Owns requests, replies, usage and prices. Refuses tools and retries of side effects; reasoning text stops here.
"""
