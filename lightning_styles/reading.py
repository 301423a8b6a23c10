"""What a file must hold, stated as types: one sentence names file, field, what was found and what was expected.

Nothing in a file is resolved, converted or called: values are compared with types, and that is all.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints, is_typeddict

from lightning_styles.errors import UserError

MADE_AGAIN = "remove it, and it is made again"
MISSING = object()
DEEPEST = 20  # levels of nested values; a pickle can hold a list that contains itself
SHOWN, LONGEST = 60, 200  # characters of a value and of a field in a message
NAMES = {
    Any: "anything",
    dict: "a mapping",
    list: "a list",
    str: "text",
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    NoneType: "nothing",
}
KINDS = {str: "text", dict: "a mapping", list: "a list", tuple: "a tuple", NoneType: "nothing"}


@dataclass(frozen=True)
class Rule:
    """A type with a condition: `what` is expected, and whether a value `holds`."""

    what: str
    holds: Callable[[Any], bool]


class Problem(NamedTuple):
    """The first value of a file that is not what it should be; `field` is empty for its whole content."""

    field: str
    found: str
    expected: str


def expect(content: Any, expected: Any, file: str | Path, mend: str) -> None:
    """Refuse content that is not of the type `expected`.

    Args:
        content: what was read.
        expected: a type; a union or a `Literal`; a `Rule`; `[X]` or `list[X]`, a list of X; `(X, Y)`, these two;
            `{str: X}` or `dict[str, X]`, a mapping of any names to X; or a mapping of fields to all of these, where
            `"name?"` is a field that may be missing. Fields that are not named may hold anything.
        file: where `content` comes from.
        mend: what to do, for the end of the message.

    Raises:
        UserError: naming file, field, found, expected and `mend`.
    """
    if problem := first_problem(content, expected):
        where = f"{problem.field[:LONGEST]} is " if problem.field else "it holds "
        raise UserError(f"{file}: {where}{problem.found}, expected {problem.expected}; {mend}.")


def first_problem(value: Any, expected: Any, field: str = "") -> Problem | None:
    """The first place where `value` is not of the type `expected`, see `expect`."""
    expected = literal(expected)
    if get_origin(expected) in (Union, UnionType):
        return _of_none(value, expected, field)
    if not _is(value, expected):
        return Problem(field, found(value), described(expected))
    inner = (
        Problem(_below(field, name), "missing", described(own))
        if part is MISSING
        else first_problem(part, own, _below(field, name))
        for name, part, own in _parts(value, expected)
    )
    return next(filter(None, inner), None)


def literal(expected: Any) -> Any:
    """`dict[str, X]`, `list[X]` and typed dictionaries as `{str: X}`, `[X]` and mappings of fields."""
    origin, arguments = get_origin(expected), get_args(expected)
    if origin is dict:
        return {arguments[0]: arguments[1]}
    if origin is list:
        return [arguments[0]]
    return get_type_hints(expected) if is_typeddict(expected) else NoneType if expected is None else expected


def _is(value: Any, expected: Any) -> bool:
    """Whether `value` is of this type, not looking into it."""
    if expected is Any:
        return True
    if isinstance(expected, Rule):
        return expected.holds(value)
    if isinstance(expected, dict):
        return isinstance(value, dict) and all(isinstance(name, str) for name in value)
    if isinstance(expected, list):
        return isinstance(value, (list, tuple))
    if isinstance(expected, tuple):
        return isinstance(value, (list, tuple)) and len(value) == len(expected)
    if get_origin(expected) is Literal:
        return any(type(value) is type(choice) and value == choice for choice in get_args(expected))
    if expected in (int, float):
        return isinstance(value, (int, expected)) and not isinstance(value, bool)
    return isinstance(value, expected)


def _parts(value: Any, expected: Any) -> Iterator[tuple[str, Any, Any]]:
    """Name, value and expected type of what `value` consists of; a field that is not there has the value `MISSING`."""
    if isinstance(expected, dict):
        fields = dict.fromkeys(value, expected[str]) if str in expected else expected
        for name, own in fields.items():
            known = name.removesuffix("?")
            if known in value or known == name:
                yield known, value.get(known, MISSING), own
    elif isinstance(expected, (list, tuple)):
        for i, part in enumerate(value):
            yield str(i), part, expected[0 if isinstance(expected, list) else i]


def _of_none(value: Any, expected: Any, field: str) -> Problem | None:
    """The problem of a value that is of none of several types: the deepest one, where one of them nearly fits."""
    problems = [first_problem(value, choice, field) for choice in get_args(expected)]
    if None in problems:
        return None
    deepest = max(filter(None, problems), key=lambda problem: len(problem.field))
    return deepest if deepest.field != field else Problem(field, found(value), described(expected))


def _below(field: str, name: Any) -> str:
    return f"{field}.{name}" if field else str(name)


# ---- words


def found(value: Any) -> str:
    """A value in a few words."""
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"a tensor of shape {tuple(value.shape)} and {str(value.dtype).removeprefix('torch.')}"
    if isinstance(value, (dict, list, tuple, set)):
        return f"{KINDS.get(type(value), 'a ' + type(value).__name__)} of {len(value)}"
    text = "nothing" if value is None else repr(value) if isinstance(value, (str, int, float)) else type(value).__name__
    return text if len(text) <= SHOWN else text[:SHOWN] + "..."


def described(expected: Any) -> str:
    """A type in a few words."""
    expected = literal(expected)
    choices = get_args(expected)
    if isinstance(expected, Rule):
        return expected.what
    if get_origin(expected) is Literal:
        return f"one of {', '.join(map(repr, choices))}"
    if choices:
        return " or ".join(map(described, choices))
    if isinstance(expected, dict):
        return "a mapping" if str in expected else f"a mapping with {', '.join(expected)}".replace("?", "")
    if isinstance(expected, list):
        return f"a list, each {described(expected[0])}"
    if isinstance(expected, tuple):
        return f"{len(expected)} values: {', '.join(map(described, expected))}"
    return NAMES[expected]


# ---- rules


FINITE = Rule("a finite number", lambda value: isinstance(value, (int, float)) and isfinite(value))


def at_least(least: int) -> Rule:
    """A whole number of at least `least`."""
    return Rule(
        f"a whole number of at least {least}",
        lambda value: isinstance(value, int) and not isinstance(value, bool) and value >= least,
    )


def exactly(expected: Any) -> Rule:
    """This value alone."""
    return Rule(found(expected), lambda value: value == expected)


def is_plain(value: Any, depth: int = 0) -> bool:
    """Whether a value is one that YAML could hold: nothing, text, a number, or lists and mappings of such."""
    if isinstance(value, (dict, list, tuple)):
        names, parts = (value, value.values()) if isinstance(value, dict) else ((), value)
        return depth < DEEPEST and all(isinstance(n, str) for n in names) and all(is_plain(p, depth + 1) for p in parts)
    return value is None or type(value) in (str, bool, int, float)


PLAIN = Rule("a plain value", is_plain)


def tensor(*sizes: int | None, whole: bool = False, finite: bool = True) -> Rule:
    """A tensor of these sizes, of which None is any.

    Args:
        sizes: of its axes.
        whole: of whole numbers, not of floating-point ones.
        finite: also look whether all its numbers are finite, for which all of them are read.
    """
    import torch

    def holds(value: Any) -> bool:
        if not isinstance(value, torch.Tensor) or value.is_floating_point() == whole or value.ndim != len(sizes):
            return False
        fits = all(own in (None, size) for own, size in zip(sizes, value.shape, strict=True))
        return fits and (not finite or bool(torch.isfinite(value).all()))

    kind = "whole numbers" if whole else "finite numbers" if finite else "numbers"
    return Rule(f"{kind} of shape ({', '.join('any' if size is None else str(size) for size in sizes)})", holds)


# ---- caches


def read_made(file: Path, expected: Any, mapped: bool = False) -> Any:
    """What this project wrote into a file of one of its caches, safetensors or torch's, on the CPU.

    Args:
        file: of the cache.
        expected: see `expect`.
        mapped: leave the tensors of a file of torch on the disk until they are needed.

    Raises:
        UserError: the file is damaged, or was changed into something else.
        OSError: it cannot be opened.
    """
    try:
        if file.suffix == ".safetensors":
            from safetensors.torch import load_file

            content = load_file(file)
        else:
            import torch

            content = torch.load(file, map_location="cpu", weights_only=True, mmap=mapped)
    except OSError:
        raise
    except Exception as error:  # both raise almost anything on damaged bytes
        raise UserError(f"{file} is damaged; {MADE_AGAIN}.") from error
    expect(content, expected, file, MADE_AGAIN)
    return content
