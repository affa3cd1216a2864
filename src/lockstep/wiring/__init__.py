"""The only room that names concrete parts: which journal, which backends, which model.

Faces (terminal, later web and gateway) and the library user come here to get an agent locked or a driver to run it.
"""
