"""The guest image of the microVM tier: a kernel and an initramfs put together from Debian packages, named by digest.

Owns building and finding it. Starts no machine and changes nothing of the system it runs on.
"""
