"""Which people there are: the distribution of a portrait's attributes."""

import torch

from datamodules.scenes import palette
from datamodules.scenes.backdrop import draw_backdrop, draw_light
from datamodules.scenes.sampling import Draw

# Rows: woman, man; columns: palette.HAIR_STYLES.
_HAIR_BY_GENDER = ((0.3, 1, 1, 0.3, 2, 3, 3, 4, 4, 3, 2.5), (2.5, 5, 5, 3, 2, 0.5, 0.3, 0.7, 0.7, 0.4, 0.2))
_BEARD_BY_GENDER = ((1, 0, 0, 0, 0), (4.5, 1.2, 1, 1, 2.3))


def draw_person(draw: Draw) -> None:
    """What stays with a person: face, skin, hair, eyes, nose, beard and glasses."""
    device = draw.key.device
    gender = draw.choice("gender", (0.5, 0.5))
    skin = draw.choice("skin", (2, 3, 2.4, 2, 2, 1.6))
    draw.tint("skin_rgb", tuple(palette.SKINS.values()), skin, 0.08)
    draw.choice("face", (3, 2, 2, 2, 1.5))
    draw.choice("hair", torch.tensor(_HAIR_BY_GENDER, device=device)[gender])
    hair = draw.choice("hair_colour", (3, 3, 2, 2.5, 2, 1.3, 0.8, 0.6, 0.6, 0.4, 0.5), palette.HAIR_ORDER)
    draw.tint("hair_rgb", tuple(palette.HAIR_COLOURS.values()), hair, 0.14)
    draw.choice("beard", torch.tensor(_BEARD_BY_GENDER, device=device)[gender])
    draw.choice("glasses", (0.72, 0.14, 0.14))
    frame = draw.choice("frame_colour", (1.5, 0, 0, 0, 1, 1, 0, 0, 2, 1, 0.4, 5), palette.COLOUR_ORDER)
    draw.tint("frame_rgb", palette.COLOUR_TABLE, frame, 0.1)
    eye = draw.choice("eye_colour", (3, 1.5, 1.5, 2, 1))
    draw.tint("eye_rgb", tuple(palette.EYE_COLOURS.values()), eye, 0.12)
    draw.amount("face_width", 0.93, 1.07)
    draw.amount("jaw", -1, 1)
    draw.amount("part", -0.5, 0.5)
    draw.amount("volume", 0.8, 1.25)
    draw.amount("hair_length", -0.12, 0.12)
    draw.amount("strands", 0, 6.28)
    draw.amount("hairline", -0.06, 0.05)
    draw.amount("eye_size", 0.9, 1.15)
    draw.amount("eye_gap", -0.025, 0.03)
    draw.amount("eye_tilt", -0.06, 0.16)
    draw.amount("brow_height", -0.03, 0.03)
    draw.amount("brow_weight", 0.75, 1.3)
    draw.amount("nose_size", 0.85, 1.2)
    draw.amount("nose_length", -0.04, 0.04)
    draw.amount("mouth_width", 0.88, 1.12)
    draw.amount("lips", 0.75, 1.3)
    draw.amount("ears", 0.85, 1.15)


def draw_moment(draw: Draw) -> None:
    """What changes from picture to picture: pose, light, expression, clothes, backdrop, rare events."""
    draw.choice("expression", (3.2, 3, 2, 1, 0.8))
    draw.amount("yaw", -0.34, 0.34)
    draw.amount("pitch", -0.05, 0.05)
    draw.amount("tilt", -0.1, 0.1)
    draw.amount("shift_x", -0.06, 0.06)
    draw.amount("shift_y", -0.03, 0.05)
    draw.amount("zoom", 0.55, 0.62)
    draw.amount("gaze", -1, 1)
    draw_light(draw)
    draw.choice("hat", (0.82, 0.06, 0.06, 0.06))
    hat = draw.choice("hat_colour", (1.0,) * len(palette.COLOURS), palette.COLOUR_ORDER)
    draw.tint("hat_rgb", palette.COLOUR_TABLE, hat, 0.12)
    draw.choice("collar", (2, 1.5, 2, 1, 1.5, 1.2))
    clothes = draw.choice("clothes_colour", (1.0,) * len(palette.COLOURS), palette.COLOUR_ORDER)
    draw.tint("clothes_rgb", palette.COLOUR_TABLE, clothes, 0.15)
    inner = draw.choice("inner_colour", (1, 0, 1, 0, 0, 1, 0, 0.5, 0, 1, 5, 1), palette.COLOUR_ORDER)
    draw.tint("inner_rgb", palette.COLOUR_TABLE, inner, 0.1)
    draw.choice("hand", (0.95, 0.05))
    draw.choice("microphone", (0.95, 0.05))
    draw.choice("mask", (0.95, 0.05))
    draw_backdrop(draw)
