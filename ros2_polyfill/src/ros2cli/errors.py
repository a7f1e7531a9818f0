"""Errors that the user can do something about."""


class CommandError(Exception):
    """Shown as one line without a traceback; the exit status is 1."""
