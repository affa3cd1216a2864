"""What is seen: readings of the journal as trees, totals and timings.

Never the content of reasoning. Refuses to change anything.
"""
