"""The numbers of verbs.pxd, readable from Python."""
