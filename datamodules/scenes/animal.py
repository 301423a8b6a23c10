"""Heads of cats and dogs: their attributes and their layers."""

import torch
from torch import Tensor

from datamodules.scenes.backdrop import draw_backdrop, draw_light, paint_backdrop
from datamodules.scenes.layers import Stage, Window
from datamodules.scenes.palette import ANIMAL_EYES, ANIMAL_LABELS, COLOUR_TABLE, COLOURS, FURS
from datamodules.scenes.sampling import Draw
from datamodules.scenes.sdf import blend, bump, carve, circle, ellipse, smooth

FUR, EARS, EYES, NOSE, MOUTH, COLLAR = range(1, len(ANIMAL_LABELS))

_FUR_BY_SPECIES = ((3, 2, 2, 2, 1.5, 0.8), (1.2, 1.5, 0.8, 1.5, 2.5, 3))


def draw_animal(draw: Draw) -> None:
    """What stays with an animal."""
    species = draw.choice("species", (0.5, 0.5))
    fur = draw.choice("fur_colour", torch.tensor(_FUR_BY_SPECIES)[species])
    draw.tint("fur_rgb", tuple(FURS.values()), fur, 0.12)
    draw.choice("pattern", torch.tensor(((2, 2.5, 1.5), (3, 0, 2)))[species])
    eyes = draw.choice("eye_colour", torch.tensor(((3, 2.5, 2, 0.3), (0, 0.6, 0.4, 4)))[species])
    draw.tint("eye_rgb", tuple(ANIMAL_EYES.values()), eyes, 0.12)
    draw.choice("ears", torch.tensor(((1.0, 0.0), (0.3, 0.7)))[species])
    draw.choice("muzzle", (0.5, 0.5))
    for name, low, high in (("width", 0.92, 1.08), ("eye_size", 0.9, 1.15), ("ear_size", 0.88, 1.15),
                            ("cheeks", -0.04, 0.06), ("strands", 0, 6.28)):  # fmt: skip
        draw.amount(name, low, high)


def draw_pose(draw: Draw) -> None:
    """What changes from picture to picture."""
    for name, low, high in (("yaw", -0.3, 0.3), ("tilt", -0.16, 0.16), ("shift_x", -0.06, 0.06),
                            ("shift_y", -0.03, 0.05), ("zoom", 0.58, 0.66), ("gaze", -1, 1)):  # fmt: skip
        draw.amount(name, low, high)
    draw_light(draw)
    draw.choice("tongue", torch.tensor(((1.0, 0.0), (0.55, 0.45)))[draw.values["species"]])
    draw.choice("collar", (0.6, 0.4))
    collar = draw.choice("collar_colour", (1.0,) * len(COLOURS))
    draw.tint("collar_rgb", COLOUR_TABLE, collar, 0.1)
    draw_backdrop(draw)


class Muzzle:
    """Coordinates of the head and the outline of the face."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.scale = stage["zoom"] * stage.geometry.head
        self.window = stage.window(-1, 1, -1, 1)
        self.dog = stage["species"]
        cos, sin = stage["tilt"].cos(), stage["tilt"].sin()
        left, top = stage.x - stage["shift_x"], stage.y - stage["shift_y"] - 0.06
        self.x, self.y = (left * cos + top * sin) / self.scale, (top * cos - left * sin) / self.scale
        self.turn = stage["yaw"].sin()
        width = stage["width"] * (0.86 - 0.12 * self.dog)
        skull = ellipse(self.x, self.y + 0.02 + 0.14 * self.dog, width, 0.70)
        cheeks = ellipse(
            self.x - 0.1 * self.turn, self.y - 0.22, width * (1.06 + stage["cheeks"] - 0.16 * self.dog), 0.46
        )
        snout = ellipse(self.x - 0.45 * self.turn, self.y - 0.42, 0.42, 0.46)
        shape = blend(skull, cheeks, 0.2)
        self.face = torch.where(self.dog > 0, blend(shape, snout, 0.15), shape)
        tuft = 0.03 * smooth(self.x.abs(), 0.5, 0.8) * ((self.y * 22 + 8 * self.x.abs()).sin())
        self.face = self.face + tuft * (1 - self.dog)
        flow = torch.atan2(self.x, self.y + 0.5)
        radius = circle(self.x, self.y + 0.5, 0.0)
        tufts = (radius * 21 + 7 * (flow * 9 + stage["strands"]).sin()).sin()
        self.strands = (flow * 52 + stage["strands"] + 0.7 * tufts).sin() * (0.55 + 0.45 * tufts)
        self.light = stage.lit(self.x / 1.05, (self.y + 0.05) / 0.95)

    def part(
        self, across: Tensor | float, down: float, depth: float, window: Window, side: int = 1
    ) -> tuple[Tensor, Tensor]:
        """Coordinates about a feature that a turn moves by its depth."""
        centre = across * side * (1 - 0.12 * self.turn * side) + depth * self.turn
        return (window.cut(self.x) - centre) * side, window.cut(self.y) - down


def draw_animal_head(stage: Stage) -> None:
    """Fill the stage with the layers of its animals."""
    paint_backdrop(stage)
    head = Muzzle(stage)
    _add_body(stage, head)
    _add_ears(stage, head, floppy=False)
    _add_face(stage, head)
    _add_ears(stage, head, floppy=True)
    _add_muzzle(stage, head)
    for side in (-1, 1):
        _add_eye(stage, head, side)
    _add_whiskers(stage, head)


def _add_body(stage: Stage, head: Muzzle) -> None:
    window = stage.window(-1, 1, 0.1, 1)
    x, y = window.cut(head.x), window.cut(head.y)
    body = blend(ellipse(x, y - 1.55, 0.85, 0.75), ellipse(x, y - 0.8, 0.55, 0.5), 0.3)
    light = stage.lit(x / 1.2, (y - 1.5) / 1.2) * (1 - 0.35 * bump(x, y - 0.72, 0.7, 0.28))
    strands = window.cut(head.strands)
    stage.add(FUR, body * head.scale, stage["fur_rgb"], window, light=light, texture=strands, soft=0.03)
    bib = ellipse(x, y - 1.35, 0.36, 0.52)
    stage.add(FUR, bib * head.scale, _pale(stage), window, light=light, texture=strands, soft=0.08, outline=0.0,
              opacity=stage["muzzle"])  # fmt: skip
    band = carve((y - 0.98 - 0.16 * (1 - (x / 0.7).square())).abs() - 0.075, body, 0.02)
    stage.add(
        COLLAR,
        band * head.scale,
        stage["collar_rgb"],
        window,
        light=stage.lit(x / 0.9, 0 * y),
        opacity=stage["collar"],
    )
    gold = torch.tensor([[0.93, 0.74, 0.25]], device=x.device).expand(len(stage.scenes), 3)
    bell = circle(x, y - 1.27, 0.11)
    stage.add(
        COLLAR,
        bell * head.scale,
        gold,
        window,
        light=stage.lit(x * 6, (y - 1.27) * 6),
        opacity=stage["collar"],
    )


def _pale(stage: Stage) -> Tensor:
    return stage["fur_rgb"] * 0.22 + 0.74


def _add_ears(stage: Stage, head: Muzzle, floppy: bool) -> None:
    window, x, y = head.window, head.x, head.y
    fur, size = stage["fur_rgb"], stage["ear_size"]
    has = stage["ears"] if floppy else 1 - stage["ears"]
    if not bool(has.any()):
        return
    pink = torch.tensor([[0.90, 0.62, 0.60]], device=x.device) * (0.45 + 0.55 * fur.mean(-1, keepdim=True))
    for side in (-1, 1):
        u = (x - 0.10 * head.turn) * side
        if floppy:
            swing = 0.72 + 0.16 * (y + 0.5).clamp(min=-0.2)
            ear = ellipse(u - swing, y - 0.05, 0.24 * size, 0.60 * size)
            light = stage.lit((u - swing) * side * 2.5, (y - 0.05) * 1.2) - 0.04
            stage.add(
                EARS,
                ear * head.scale,
                fur * 0.74,
                window,
                light=light,
                texture=head.strands,
                opacity=has,
                soft=0.02,
            )
            continue
        tip = -0.58 - 0.46 * size
        inner = (tip - y) * 0.62 - (u - 0.66) * 0.78
        outer = (tip - y) * 0.34 + (u - 0.66) * 0.94
        ear = carve(carve(inner, outer, 0.06), y + 0.20, 0.1) - 0.03
        light = stage.lit(side * 0.3 + 0 * x, (y + 0.6) * 0.8)
        stage.add(
            EARS,
            ear * head.scale,
            fur * 0.92,
            window,
            light=light,
            texture=head.strands,
            opacity=has,
            soft=0.02,
        )
        stage.add(EARS, (ear + 0.10) * head.scale, pink, window, light=0.9 + 0.35 * (y + 0.7), opacity=has, soft=0.03,
                  outline=0.3)  # fmt: skip


def _add_face(stage: Stage, head: Muzzle) -> None:
    x, y, window, fur = head.x, head.y, head.window, stage["fur_rgb"]
    light, strands, pattern = head.light, head.strands, stage["pattern"]
    stage.add(FUR, head.face * head.scale, fur, window, light=light, texture=strands, soft=0.03)
    u = x - 0.3 * head.turn
    crown = (u.abs() - 0.13 * (u.abs() / 0.13).round()).abs() - 0.032 * smooth(-y, 0.22, 0.42)
    crown = torch.maximum(torch.maximum(crown, u.abs() - 0.33), y + 0.30 + 0.12 * (u * 9).cos().abs())
    flank = ((y - 0.12 - 0.25 * u.abs()) * 26).sin() * 0.05 + 0.045 - 0.05 * smooth(u.abs(), 0.55, 0.8)
    flank = torch.maximum(flank, torch.maximum(0.56 - u.abs(), (y - 0.25).abs() - 0.38))
    stripes = torch.maximum(torch.minimum(crown, flank), head.face + 0.01)
    stage.add(FUR, stripes * head.scale, fur * 0.5, window, light=light, texture=strands, soft=0.03, outline=0.0,
              opacity=(pattern == 1).float() * 0.85)  # fmt: skip
    side = torch.where(stage["strands"] > 3.14, 1.0, -1.0)
    patch = ellipse(u * side - 0.42, y + 0.10, 0.36, 0.42) + 0.02 * (12 * x + 9 * y).sin()
    patch = torch.maximum(patch, head.face)
    bright = (fur.mean(-1, keepdim=True) > 0.5).float()
    tone = fur * 0.42 * bright + (1 - bright) * _pale(stage)
    stage.add(FUR, patch * head.scale, tone, window, light=light, texture=strands, soft=0.03, outline=0.0,
              opacity=(pattern == 2).float())  # fmt: skip
    blaze = torch.maximum(u.abs() - 0.06 - 0.16 * smooth(y, -0.5, 0.5), head.face)
    stage.add(FUR, blaze * head.scale, _pale(stage), window, light=light, texture=strands, soft=0.04, outline=0.0,
              opacity=stage["muzzle"] * head.dog)  # fmt: skip


def _add_muzzle(stage: Stage, head: Muzzle) -> None:
    window = stage.window(-0.85, 0.85, -0.2, 0.85)
    dog, scale = head.dog, head.scale
    x, y = head.part(0.0, 0.36, 0.42, window)
    face = window.cut(head.face)
    puffs = torch.minimum(ellipse(x - 0.15, y - 0.12, 0.24, 0.21), ellipse(x + 0.15, y - 0.12, 0.24, 0.21))
    puffs = torch.maximum(blend(puffs, ellipse(x, y + 0.05 * dog, 0.20 + 0.08 * dog, 0.30), 0.1), face + 0.01)
    light = stage.lit(x * 1.6, (y - 0.05) * 1.8)
    fur = stage["fur_rgb"]
    colour = torch.where(stage["muzzle"][:, 0] > 0, _pale(stage), fur * 0.9 + 0.08)
    stage.add(
        FUR,
        puffs * scale,
        colour,
        window,
        light=light,
        texture=window.cut(head.strands),
        soft=0.06,
        outline=0.0,
    )
    pink = torch.tensor([[0.86, 0.42, 0.46]], device=x.device).expand_as(fur)
    tongue = torch.maximum(ellipse(x, y - 0.42, 0.12, 0.24), 0.26 - y)
    stage.add(MOUTH, tongue * scale, pink, window, light=0.85 + 0.5 * (y - 0.25), opacity=stage["tongue"])
    dark = torch.where(dog[:, 0] > 0, torch.full_like(fur, 0.10), pink * 0.9)
    wide = 0.115 + 0.06 * dog
    nose = carve(ellipse(x, y + 0.05, wide, 0.085 + 0.03 * dog), x.abs() * 0.8 + (y + 0.05) - 0.085 - 0.02 * dog, 0.04)
    ink = fur * 0.12 + 0.03
    smile = (ellipse(x.abs() - 0.125, y - 0.17, 0.125, 0.10).abs() - 0.016).maximum(0.17 - y)
    stem = torch.maximum(x.abs() - 0.014, (y - 0.10).abs() - 0.09)
    stage.add(
        MOUTH,
        torch.minimum(smile, stem) * scale,
        ink,
        window,
        outline=0.0,
        stroke=True,
        opacity=stage.ones * 0.85,
    )
    shine = 0.45 * bump(x + 0.03, y + 0.085, 0.05, 0.022)
    stage.add(NOSE, nose * scale, dark, window, light=stage.lit(x * 4, (y + 0.05) * 5), gloss=shine, outline=0.7)


def _add_eye(stage: Stage, head: Muzzle, side: int) -> None:
    window = stage.window(-0.75, 0.75, -0.45, 0.50)
    dog, scale = head.dog, head.scale
    size = stage["eye_size"] * (1 + 0.5 * (stage.geometry.eye - 1))
    x, y = head.part(0.36 - 0.03 * dog, -0.04, 0.22, window, side)
    y = y + (0.22 - 0.2 * dog) * x
    wide, high = 0.20 * size * (1 - 0.12 * dog), 0.165 * size * (1 - 0.06 * dog)
    shape = ellipse(x, y, wide, high)
    ink = stage["fur_rgb"] * 0.10 + 0.03
    stage.add(EYES, (shape - 0.028) * scale, ink, window, soft=0.02, outline=0.0, stroke=True)
    glow = (0.85 + 0.5 * y / high).clamp(0.45, 1.4)
    stage.add(EYES, shape * scale, stage["eye_rgb"], window, light=glow, outline=0.0)
    gx = x - side * 0.02 * stage["gaze"]
    pupil = torch.where(dog > 0, circle(gx, y, 0.115 * size), ellipse(gx, y, 0.062 * size, 0.135 * size))
    pupil = torch.maximum(pupil, shape + 0.01)
    black = torch.full_like(ink, 0.03)
    stage.add(EYES, pupil * scale, black, window, outline=0.0, soft=0.008, stroke=True)
    white = torch.ones_like(ink)
    glint = torch.minimum(
        circle(gx + side * 0.05, y + 0.06, 0.040 * size), circle(gx - side * 0.05, y - 0.06, 0.02 * size)
    )
    stage.add(EYES, glint * scale, white, window, outline=0.0, soft=0.006)


def _add_whiskers(stage: Stage, head: Muzzle) -> None:
    window = head.window
    white = torch.full_like(stage["fur_rgb"], 0.93)
    x, y = head.part(0.0, 0.46, 0.42, window)
    hairs = None
    for side in (-1, 1):
        for number in range(3):
            drop = 0.13 * (number - 1)
            u = (x * side - 0.20).clamp(min=-1)
            bend = y - drop * (0.4 + u * 1.3) + 0.16 * u * (1 - u)
            hair = torch.maximum(bend.abs() - 0.008 * (1.2 - u), (u - 0.36).abs() - 0.36)
            hairs = hair if hairs is None else torch.minimum(hairs, hair)
    assert hairs is not None
    stage.add(FUR, hairs * head.scale, white, window, outline=0.0, stroke=True, soft=0.004,
              opacity=(1 - head.dog) * 0.75)  # fmt: skip
