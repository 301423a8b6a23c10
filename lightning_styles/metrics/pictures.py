"""What every metric asks of its pictures."""

from torch import Tensor

from lightning_styles.errors import UserError

EXPECTED = "expected float pictures (B, 3, H, W) of one shape in [-1, 1]"
ROUNDING = 1e-3  # beyond the range, of resized and half-precision pictures


def check_pictures(metric: str, *pictures: Tensor) -> None:
    """Refuse what is no picture of the range that all of this package has; values are those before any clamp.

    Args:
        metric: its name in the message.
        pictures: batches of which each picture is compared with that in the same place of the others.

    Raises:
        UserError: integers, another shape or range, or NaN; it names what was found and what is expected.
    """
    shapes = list(dict.fromkeys(tuple(x.shape) for x in pictures))
    if len(shapes) > 1 or any(len(shape) != 4 or shape[1] != 3 for shape in shapes):
        raise UserError(f"{metric} was given pictures of shape {' and '.join(map(str, shapes))}; {EXPECTED}.")
    for x in pictures:
        if x.numel() == 0:
            continue
        low, high = (float(bound) for bound in x.aminmax())
        if not (x.is_floating_point() and low >= -1 - ROUNDING and high <= 1 + ROUNDING):  # NaN fits no comparison
            kind = str(x.dtype).removeprefix("torch.")
            raise UserError(f"{metric} was given {kind} values from {low:.4g} to {high:.4g}; {EXPECTED}.")
