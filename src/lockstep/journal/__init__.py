"""The record: typed events appended with a fence, hash-chained, bodies by digest.

Owns event types, storage and verification. Refuses to interpret events. Anyone above may import it.
"""
