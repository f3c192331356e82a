"""`fastmq restore` is in fastmq/cli/backup.py, beside its mirror."""

from fastmq.cli.backup import restore_command as command

__all__ = ["command"]
