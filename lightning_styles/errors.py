"""The one exception that is meant for the person at the keyboard, and the commonest reason for it."""


class UserError(Exception):
    """A mistake that the user can mend: shown as one message without a traceback, exit code 1.

    The text says what was found, what was expected and what to do.
    """


class SharedError(UserError):
    """One that all processes of a run find in the same iteration: the first one tells, the others end quietly.

    Were they to fail too, a launcher that sees it first would kill the one that tells.
    """


def at_least(least: float, **settings: float) -> None:
    """Refuse settings that are smaller than `least`, or no number.

    Raises:
        UserError: naming the first one.
    """
    for name, value in settings.items():
        if not value >= least:
            raise UserError(f"{name} is {value}; it must be at least {least:g}.")
