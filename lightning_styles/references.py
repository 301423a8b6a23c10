"""References such as ${vars.name} in a config: variables that none reaches, and circles of them."""

import difflib
import re
from collections.abc import Iterator
from typing import Any

from lightning_styles.errors import UserError
from lightning_styles.parser import mapping_of

VARIABLE = re.compile(r"\$\{[\w.:]*\bvars[.\[](\w+)")
REFERENCE = re.compile(r"\$\{([a-zA-Z][\w.]*)\}")


def check_variables(files: list[dict[str, Any]], flags: list[str]) -> None:
    """Refuse variables that nothing refers to; in a config that a run has saved all are already filled in.

    Raises:
        UserError: naming the first one.
    """
    texts = [*map(str, files), " ".join(flags)]
    known = {name for text in texts for name in VARIABLE.findall(text)}
    if any("${vars}" in text for text in texts):
        return
    given = {f"--vars.{name}": name for name in flag_variables(flags)}
    for content, text in zip(files, texts, strict=False):
        resolved = "${" not in text and "model" in content
        own = content.get("vars")
        given |= {f"vars.{name}": name for name in (own if isinstance(own, dict) and not resolved else ())}
    for place, name in given.items():
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            others = f"it refers to {', '.join(sorted(known))}." if known else "remove it."
            hint = f"did you mean vars.{close[0]}?" if close else others
            raise UserError(f"{place} has no effect, because nothing in the config refers to ${{vars.{name}}}: {hint}")


def flag_variables(flags: list[str]) -> list[str]:
    """The variables that flags set, `--vars.name value` or `--vars {name: value}`."""
    names = []
    for flag, following in zip(flags, [*flags[1:], ""], strict=False):
        key, _, value = flag.partition("=")
        if key == "--vars":
            names += [str(name) for name in mapping_of(value or following) or ()]
        elif key.startswith("--vars."):
            names.append(key.split(".")[1])
    return names


def check_circles(tree: dict[str, Any]) -> None:
    """Refuse references that lead back to where they start.

    Raises:
        UserError: naming the key and the reference.
    """
    references = {place: REFERENCE.findall(text) for place, text in leaves(tree)}
    for start in references:
        waiting, seen = list(references[start]), set()
        while waiting:
            goal = waiting.pop()
            if start == goal or start.startswith(f"{goal}."):
                raise UserError(f"{start} refers to itself through ${{{goal}}}; give it a value of its own.")
            if goal not in seen:
                seen.add(goal)
                waiting += references.get(goal, [])


def leaves(tree: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Dotted place and text of every string in nested mappings and lists that refers to something."""
    if isinstance(tree, str):
        if "${" in tree:
            yield path, tree
        return
    entries = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in entries:
        yield from leaves(value, f"{path}.{key}" if path else str(key))
