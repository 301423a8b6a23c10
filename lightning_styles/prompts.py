"""Prompts with the places {style} and {caption} in them."""

from lightning_styles.errors import UserError


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
            fill(prompt, "", "")
        except (KeyError, IndexError, ValueError, AttributeError) as error:
            raise UserError(
                f"{name} is {prompt!r}, and {error} in it cannot be filled in; expected {{style}} and {{caption}}."
            ) from error
