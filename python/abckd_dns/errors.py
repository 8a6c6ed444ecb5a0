"""The one exception that a user of the commands is meant to read, and what raises it for numbers out of range."""


class InputError(ValueError):
    """An argument, a file or a folder is not what it must be; printed without a traceback."""


def check_positive(options: object, *names: str) -> None:
    """Raise InputError for the first of these attributes that is not more than 0 (NaN is not)."""
    for name in names:
        if not getattr(options, name) > 0:
            raise InputError(f"{_flag(name)}: expected more than 0, got {getattr(options, name)}")


def check_at_least(options: object, least: float, *names: str) -> None:
    for name in names:
        if not getattr(options, name) >= least:
            raise InputError(f"{_flag(name)}: expected at least {least:g}, got {getattr(options, name)}")


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"
