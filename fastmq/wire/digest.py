"""blake2b without OpenSSL, which `hashlib` would load into every process: 10 ms of each start, and half a megabyte that nobody uses."""

try:
    from _blake2 import blake2b
except ImportError:  # another Python may have it only there
    from hashlib import blake2b

__all__ = ["blake2b"]
