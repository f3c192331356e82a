"""The kinds and flags of link.pxd, readable from Python, and the sizes of its structs for tests."""
