"""What can go wrong in a way that the user can mend."""


class UserError(Exception):
    """A fault that the user can mend: the message says what, where and how. Exit status 2."""
