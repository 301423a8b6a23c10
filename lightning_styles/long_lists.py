"""Lists of thousands of values in a config, at a cost that grows with their length and no faster."""

from copy import deepcopy
from typing import Any

from jsonargparse import _typehints

VALUES = ("prev_val", "orig_val")  # what was given before, often the whole list; it is only read


def copied(settings: Any) -> Any:
    """A deep copy of what jsonargparse hands on to the entries of a list, without one of the list itself.

    It makes one for each entry.
    """
    if not (isinstance(settings, dict) and settings.keys() >= set(VALUES)):
        return deepcopy(settings)
    values = {key: settings[key] for key in VALUES}
    return deepcopy({key: value for key, value in settings.items() if key not in VALUES}) | values


def make_linear() -> None:
    """Let jsonargparse use `copied`."""
    _typehints.deepcopy = copied  # type: ignore[attr-defined]
