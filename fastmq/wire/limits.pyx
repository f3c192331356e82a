"""The protocol limits of limits.pxd, readable from Python."""
