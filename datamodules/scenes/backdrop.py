"""Backdrops and light, shared by portraits and animals."""

import torch

from datamodules.scenes.layers import Stage
from datamodules.scenes.palette import COLOUR_ORDER, COLOUR_TABLE
from datamodules.scenes.sampling import Draw
from datamodules.scenes.sdf import circle, smooth


def draw_light(draw: Draw) -> None:
    """Direction of the light, from above and in front."""
    draw.amount("light_x", -0.75, 0.75)
    draw.amount("light_y", -0.6, -0.2)


def draw_backdrop(draw: Draw) -> None:
    """Kind and colour of the backdrop, and whether a caption names it."""
    draw.choice("backdrop", (3, 1.5, 2.5))
    colour = draw.choice("backdrop_colour", (1, 1, 1, 1.2, 1.2, 1.5, 1, 1, 0.8, 1, 1, 0.5), COLOUR_ORDER)
    draw.amount("backdrop_angle", -0.9, 0.9)
    draw.amount("backdrop_phase", 0, 6.28)
    draw.choice("backdrop_named", (0.65, 0.35))
    table = torch.tensor(COLOUR_TABLE)
    soft = (0.72 * table + 0.28 * table.mean(-1, keepdim=True) + 0.06).clamp(0, 1).tolist()
    draw.tint("backdrop_rgb", soft, colour, 0.16)


def paint_backdrop(stage: Stage) -> None:
    """Gradient, two tones or blurred lights, from one colour."""
    angle, phase, kind = stage["backdrop_angle"], stage["backdrop_phase"], stage["backdrop"]
    across = stage.x * angle.sin() + stage.y * angle.cos()
    ramp = 1.0 - 0.32 * across
    split = 1.12 - 0.30 * smooth(across, 0.08, 0.14)
    lights = 0.82 - 0.12 * stage.y
    for number in range(5):
        at_x = 1.1 * (phase * (1.7 + number) + 2.1 * number).sin()
        at_y = -0.2 + 0.8 * (phase * (2.3 + number) + 1.3 * number).cos()
        disc = circle(stage.x - at_x, stage.y - at_y, 0.20 + 0.06 * number)
        lights = lights + 0.17 * (1 - smooth(disc, -0.06, 0.08))
    field = torch.where(kind == 0, ramp, torch.where(kind == 1, split, lights))
    warm = torch.tensor([0.06, 0.0, -0.06], device=field.device).view(1, 3, 1, 1) * across[:, None]
    stage.backdrop = (stage["backdrop_rgb"][:, :, None, None] * field[:, None] + warm).clamp(0, 1)
