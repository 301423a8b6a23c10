"""Prompts with the places {style} and {caption} in them."""

from collections.abc import Iterable
from string import Formatter
from typing import Any

from lightning_styles.errors import UserError

PLACES = ("style", "caption")
MOST_LETTERS = 10_000  # of a text in a config or beside a picture; text encoders read the first 300 or so


def check_lengths(settings: Iterable[tuple[str, Any]]) -> None:
    """Refuse texts that are too long to be meant, in lists too: a tokenizer takes minutes for them.

    Raises:
        UserError: naming the first one.
    """
    for name, value in settings:
        if isinstance(value, str) and len(value) > MOST_LETTERS:
            raise UserError(f"{name} has {len(value):,} letters; expected at most {MOST_LETTERS:,}.")
        if isinstance(value, dict):
            check_lengths((f"{name}.{key}", entry) for key, entry in value.items())
        elif isinstance(value, list | tuple):
            check_lengths((f"{name}[{i}]", entry) for i, entry in enumerate(value))


def fill(prompt: str, style: str, caption: str) -> str:
    """`prompt` with its places filled in; an empty one leaves no comma behind."""
    return prompt.format(style=style, caption=caption).strip(", ")


def check_prompts(**prompts: str) -> None:
    """Refuse prompts with other places than {style} and {caption}.

    Raises:
        UserError: naming the first one.
    """
    check_lengths(prompts.items())
    for name, prompt in prompts.items():
        try:
            places = [place for place in Formatter().parse(prompt) if place[1] is not None]
        except ValueError as error:
            raise UserError(
                f"{name} is {shown(prompt)} ({error}); write {{{{ and }}}} for braces of its own."
            ) from error
        for _, place, width, conversion in places:
            if place not in PLACES or width or conversion:
                raise UserError(f"{name} is {shown(prompt)}; expected no other places than {{style}} and {{caption}}.")


def shown(text: str, most: int = 80) -> str:
    """`text` in quotes, its beginning where it is long."""
    return repr(text if len(text) <= most else f"{text[:most]}...")
