"""What the constructor of a configurable class takes, keywords that it hands on to its parents included."""

import inspect
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import yaml


def parameters_of(cls: Any) -> dict[str, inspect.Parameter]:
    """The arguments of a class by name, with resolved types; those of parents where keywords are handed on to them."""
    found: dict[str, inspect.Parameter] = {}
    for base in inspect.getmro(cls):
        if "__init__" not in vars(base) or base is object:
            continue
        parameters = list(inspect.signature(base.__init__).parameters.values())[1:]
        hints = get_type_hints(base.__init__)
        named = [p for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
        found = {p.name: p.replace(annotation=hints.get(p.name, Any)) for p in named} | found
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            break
    return found


def types_of(cls: Any) -> dict[str, Any]:
    """Names of the arguments of a class -> their types."""
    return {name: parameter.annotation for name, parameter in parameters_of(cls).items()}


def alternatives(hint: Any) -> tuple[Any, ...]:
    """The members of a union, or the type itself."""
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)


def text_of(hint: Any, value: str) -> Any:
    """What `value` on a command line means for an argument of type `hint` that takes text: itself, as it is typed.

    `null` stands for None where None is possible, [...] for a list and {...} for a mapping where they are.

    Raises:
        ValueError: the argument takes no text, or other things too, or the list or mapping cannot be read.
    """
    kinds = {get_origin(kind) or kind for kind in alternatives(hint)}
    if str not in kinds or kinds - {str, type(None), list, dict}:
        raise ValueError(f"no text: {hint}")
    if value == "null" and type(None) in kinds:
        return None
    if {"[": list, "{": dict}.get(value[:1]) not in kinds:
        return value
    try:
        return yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error
