"""The one exception that a user of the commands is meant to read."""


class InputError(Exception):
    """An argument, a file or a folder is not what it must be; printed without a traceback."""
