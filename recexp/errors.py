"""The one exception of the project."""


class RecexpError(Exception):
    """An error for people: what was wrong, where, and what to do.

    The command line prints it without a traceback.
    """
