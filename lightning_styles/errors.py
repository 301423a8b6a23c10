"""The one exception that is meant for the person at the keyboard, and the commonest reason for it."""

import os
import re
from collections.abc import Collection, Iterator, Mapping
from math import inf

MEMORY = re.compile(
    "out of memory|(can't|cannot|unable to) allocate|not enough memory|ALLOC_FAILED|bad_alloc", re.IGNORECASE
)
ASKED = re.compile(r"allocate (?:more than )?([\d.]+) ?(bytes|[KMGT]iB)", re.IGNORECASE)
WORKER = re.compile(r"DataLoader worker \(pid.*?\) (is killed by signal: [\w ]+|exited unexpectedly)")
UNITS = {"bytes": 1.0, "kib": 2.0**10, "mib": 2.0**20, "gib": 2.0**30, "tib": 2.0**40}


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


def out_of_memory(error: BaseException) -> UserError | None:
    """What to do when memory ran out, in this process or in a worker of the data loader; None for other errors."""
    if isinstance(error, UserError):
        return None
    text = str(error)
    if worker := WORKER.search(text):
        return UserError(
            f"A worker of the data loader {worker.group(1)}: there is too little memory, or too little shared memory "
            "(/dev/shm; docker run --shm-size); lower data.num_workers, 0 needs none."
        )
    if not isinstance(error, MemoryError) and not MEMORY.search(text):
        return None
    asked = ASKED.search(text)
    amount = f" for {float(asked.group(1)) * UNITS[asked.group(2).lower()] / 1e9:.1f} GB more" if asked else ""
    return UserError(
        f"There is not enough memory{amount}: lower the resolution (data.resolution, --resolution) or data.batch_size, "
        "or set model.gradient_checkpointing to true where a method has it."
    )


def system_error(error: BaseException) -> OSError | None:
    """The system's error behind `error`: torch and safetensors wrap it in their own."""
    for link in chain(error):
        if isinstance(link, OSError):
            return link
        if number := re.search(r"\(os error (\d+)\)", str(link)):
            return OSError(int(number.group(1)), os.strerror(int(number.group(1))))
    return None


def chain(error: BaseException) -> Iterator[BaseException]:
    """`error` and what it was raised after."""
    found: BaseException | None = error
    while found is not None:
        yield found
        found = found.__cause__ or found.__context__


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
