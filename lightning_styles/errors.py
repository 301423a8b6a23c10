"""The one exception that is meant for the person at the keyboard, and the commonest reason for it."""

from collections.abc import Collection, Mapping
from math import inf


class UserError(Exception):
    """A mistake that the user can mend: shown as one message without a traceback, exit code 1.

    The text says what was found, what was expected and what to do.
    """


class SharedError(UserError):
    """One that all processes of a run find in the same iteration: the first one tells, the others end quietly.

    Were they to fail too, a launcher that sees it first would kill the one that tells.
    """


def within(least: float, most: float, **settings: float | None) -> None:
    """Refuse settings that are no finite number from `least` to `most`; None is a setting that is left out.

    Raises:
        UserError: naming the first one.
    """
    for name, value in settings.items():
        if value is not None and not (isinstance(value, (int, float)) and least <= value <= most and abs(value) != inf):
            expected = f"at least {least:g}" if most == inf else f"from {least:g} to {most:g}"
            raise UserError(f"{name} is {value}; it must be {expected}.")


def at_least(least: float, **settings: float | None) -> None:
    """`within` without an upper bound."""
    within(least, inf, **settings)


def check_keys(name: str, given: Collection[str], known: Collection[str], all_of_them: bool = False) -> None:
    """Refuse a mapping `name` of a config with keys that are not `known`, or, with `all_of_them`, without one of these.

    Raises:
        UserError: naming the keys.
    """
    odd = [key for key in given if key not in known]
    if odd or (all_of_them and len(given) < len(known)):
        raise UserError(f"{name} has {', '.join(odd or given) or 'nothing'}; expected {', '.join(known)}.")


def weights_of(given: Mapping[str, float] | None, defaults: Mapping[str, float]) -> dict[str, float]:
    """The weights of a method's terms: those of a config, the method's own where it names none.

    Raises:
        UserError: a term is unknown, or a weight is negative or no number.
    """
    check_keys("weights", given or {}, defaults)
    weights = {**defaults, **(given or {})}
    at_least(0, **{f"weights.{name}": weight for name, weight in weights.items()})
    return weights
