"""`~` is the home folder of the user: put in its place once, where words and config files come in."""

import os
import re
from argparse import Namespace
from pathlib import Path
from typing import Any

BELOW_HOME = re.compile(r"~[^/\\\s]*[/\\]")  # ~/x and ~user/x, but no text that only begins with a tilde
OPTION = re.compile(r"(--?[\w.+-]+=)?(.*)", re.DOTALL)
PLACES = ("dir", "path", "folder")  # a key that ends so can be ~ itself


def word_at_home(word: str) -> str:
    """A word of the command line with `~` replaced as by a shell, which does so only where a word begins with it."""
    option, value = OPTION.fullmatch(word).groups("")  # type: ignore[union-attr]
    return option + at_home(value)


def at_home(value: Any, key: str = "") -> Any:
    """Nested values of a config with `~` replaced in every path below the home folder.

    Args:
        value: changed in place where it is a mapping or list.
        key: name of the setting that it belongs to.
    """
    if isinstance(value, (str, Path)):
        text = str(value)
        found = BELOW_HOME.match(text) or (text == "~" and key.endswith(PLACES))
        return type(value)(os.path.expanduser(text)) if found else value
    if isinstance(value, (dict, Namespace)):
        items = value if isinstance(value, dict) else vars(value)
        for name in items:
            items[name] = at_home(items[name], str(name))
    elif isinstance(value, list):
        value[:] = [at_home(entry, key) for entry in value]
    return value
