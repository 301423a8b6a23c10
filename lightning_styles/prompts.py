"""Prompts with the places {style} and {caption} in them."""

from string import Formatter

from lightning_styles.errors import UserError

PLACES = ("style", "caption")


def fill(prompt: str, style: str, caption: str) -> str:
    """`prompt` with its places filled in; an empty one leaves no comma behind."""
    return prompt.format(style=style, caption=caption).strip(", ")


def check_prompts(**prompts: str) -> None:
    """Refuse prompts with other places than {style} and {caption}.

    Raises:
        UserError: naming the first one.
    """
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
