"""Where permitted calls run: one contract, backends behind it, the egress proxy, limits.

Owns isolation and its proof (canaries). Refuses policy: what may run was decided at the gate.
"""
