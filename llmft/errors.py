"""Why a command ends early: what the user can mend, and a signal."""


class UserError(Exception):
    """A fault that the user can mend: the message says what, where and how. Exit status 2."""


class StoppedError(Exception):
    """A training was told to stop, and has saved its state. Exit status 143."""
