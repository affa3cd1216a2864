"""The travel service: flights, the store, what each request means, HTTP. `travel_world.server.serve` starts it.

It stands for the world outside Lockstep and imports nothing from it. `service.py` beside it is its command line.
"""
