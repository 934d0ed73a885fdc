"""Errors that end a command early: those that the user can fix, and a signal."""


class UserError(Exception):
    """An error that the user can fix: the message says what, where and how."""

    exit_status = 2


class StoppedError(Exception):
    """A training was stopped by a signal, and has saved its state."""

    exit_status = 143
