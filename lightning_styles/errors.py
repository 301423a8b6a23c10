"""The one exception that is meant for the person at the keyboard, and the commonest reason for it."""

from collections.abc import Collection


class UserError(Exception):
    """A mistake that the user can mend: shown as one message without a traceback, exit code 1.

    The text says what was found, what was expected and what to do.

    Attributes:
        code: the exit code.
    """

    code = 1


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


def check_keys(name: str, given: Collection[str], known: Collection[str], all_of_them: bool = False) -> None:
    """Refuse a mapping `name` of a config with keys that are not `known`, or, with `all_of_them`, without one of these.

    Raises:
        UserError: naming the keys.
    """
    odd = set(given) - set(known) or (all_of_them and set(known) - set(given))
    if odd:
        raise UserError(f"{name} has {', '.join(given) or 'nothing'}; expected {', '.join(known)}.")
