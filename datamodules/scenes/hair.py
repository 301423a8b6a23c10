"""Hair and hats: an outer shape with falls, an arch cut out for the face, strands and gloss."""

import torch
from torch import Tensor

from datamodules.scenes.head import Head
from datamodules.scenes.layers import Stage, Window
from datamodules.scenes.palette import PORTRAIT_LABELS
from datamodules.scenes.sdf import bump, carve, circle, ellipse, segment, smooth

HAIR, HAT = PORTRAIT_LABELS.index("hair"), PORTRAIT_LABELS.index("hat")

# Rows: palette.HAIR_STYLES. Columns: volume, y of the ends, half-width there, wave, curl, spike, half-width of the
# arch, its top, its roundness (2 an ellipse, more is flatter), how far the parting moves its top.
_STYLES = [
    [0.00, -3.0, 0.50, 0.00, 0.00, 0.00, 0.60, -0.60, 2.0, 0.0],  # bald
    [0.11, 0.02, 0.70, 0.00, 0.00, 0.00, 0.69, -0.60, 2.8, 0.4],  # short
    [0.19, 0.04, 0.72, 0.00, 0.00, 0.00, 0.69, -0.63, 2.1, 1.5],  # parted
    [0.17, 0.00, 0.70, 0.00, 0.00, 0.12, 0.69, -0.58, 2.8, 0.2],  # spiky
    [0.26, 0.42, 0.98, 0.00, 0.06, 0.00, 0.66, -0.56, 2.4, 0.3],  # curly
    [0.13, 0.84, 0.86, 0.02, 0.00, 0.00, 0.62, -0.64, 1.8, 1.3],  # bob
    [0.12, 1.05, 0.86, 0.00, 0.00, 0.00, 0.61, -0.22, 5.0, 0.1],  # fringe
    [0.12, 1.62, 0.90, 0.02, 0.00, 0.00, 0.62, -0.68, 1.8, 1.2],  # long
    [0.15, 1.50, 1.00, 0.06, 0.00, 0.00, 0.62, -0.66, 1.8, 1.3],  # wavy
    [0.06, 0.06, 0.70, 0.00, 0.00, 0.00, 0.68, -0.68, 2.3, 0.8],  # bun
    [0.08, 0.06, 0.70, 0.00, 0.00, 0.00, 0.68, -0.66, 2.3, 1.0],  # ponytail
]


class Hair:
    """Shared quantities of the back and the front of the hair."""

    def __init__(self, stage: Stage, head: Head) -> None:
        self.stage, self.head = stage, head
        (volume, end, self.foot, wave, curl, spike, self.arch, self.top, self.power, parting) = stage.table(
            "hair", _STYLES
        )
        covered = (stage["hat"] > 0).float()
        self.volume = volume * stage["volume"] * (1 - 0.72 * covered)
        self.has = (end > -2).float()
        self.side = torch.where((end < 0.2) & (end > -2), 0.45, 1.0)  # short hair lies close at the temples
        self.end = end + stage["hair_length"] * (end > 0.5)
        self.part = parting * stage["part"]
        self.window = stage.window(-1, 1, -1, 1)
        self.x, self.y = head.x, head.y
        phase = stage["strands"]
        strand = (self.x - self.part * 0.3) / (self.y + 1.75).clamp(min=0.3)
        self.wave = wave * (self.y * 9 + phase + 1.2 * self.x).sin() * smooth(self.y, -0.2, 0.6)
        self.flow = strand + self.wave * 0.8
        self.outer = self._outer(curl * (1 - 0.4 * covered), spike * (1 - covered), phase)

    def _outer(self, curl: Tensor, spike: Tensor, phase: Tensor) -> Tensor:
        x, y = self.x + 0.06 * self.head.sin, self.y
        cap = ellipse(
            x,
            y + 0.26 + 0.35 * self.volume,
            self.head.width + 0.03 + self.volume * self.side,
            0.78 + self.volume,
        )
        drop = ((y + 0.3) / (self.end + 0.3)).clamp(0, 1)
        brow = self.head.width + 0.02 + self.volume * 0.9 * self.side
        half = brow + (self.foot - brow) * drop * drop * (3 - 2 * drop)
        ends = self.end - 0.10 * x.square() + 0.035 * (self.flow * 40 + phase).sin()
        fall = carve(carve((self.x + self.wave).abs() - half, y - ends, 0.22), -0.25 - y, 0.05)
        shape = torch.minimum(cap, torch.where(self.end > 0.2, fall, cap))
        if bool((curl > 0).any()):
            angle = torch.atan2(x, -(y + 0.2))
            ring = (angle * 11 + phase).sin() * (1 + 0.3 * (angle * 5 - phase).sin())
            shape = shape - curl * ring.abs()
        if bool((spike > 0).any()):
            angle = torch.atan2(x, -(y + 0.2))
            tooth = ((angle * 3.2 + 0.16 * phase) % 1.0 - 0.5).abs() * 2
            shape = shape - spike * tooth * smooth(-y, 0.2, 0.7)
        sideburn = (y - self.end - 0.14 + 1.1 * (x.abs() - 0.62).clamp(min=0)) * 0.75  # short hair clears the ears
        return torch.maximum(shape, torch.where(self.end > 0.2, shape, sideburn))

    def opening(self) -> Tensor:
        """The arch that shows the face: half a superellipse on two legs, its top moved by the parting."""
        centre, _ = self.head.place(0.0)
        x, y = self.x, self.y
        top = self.top + self.stage["hairline"]
        foot = 0.12
        rise = ((foot - y) / (foot - top)).clamp(0, 2)
        shifted = x - centre * 0.62 - self.part * 0.42 * rise.square()
        locks = 0.007 * (self.flow * 62 + self.stage["strands"]).sin() + 0.014 * (self.flow * 23).sin()
        jag = locks * (0.25 + 0.75 * (self.power > 2.5))
        arch = ((shifted.abs() / self.arch) ** self.power + (rise + jag * 2).clamp(min=0) ** self.power) ** (
            1 / self.power
        )
        return (arch - 1) * 0.6 * self.arch.clamp(max=0.62)

    def texture(self) -> Tensor:
        """Strands along the flow, in [-1, 1]."""
        phase = self.stage["strands"]
        fine = (self.flow * 150 + 3 * (self.flow * 17 + phase).sin()).sin()
        return 0.55 * (self.flow * 64 + phase + 2 * (self.flow * 9).sin()).sin() + 0.45 * fine

    def light(self) -> Tensor:
        """Shading of the volume."""
        return self.stage.lit(self.x / 1.15, (self.y + 0.1) / 1.7) - 0.02

    def gloss(self) -> Tensor:
        """A broken band of light around the crown."""
        at = self.x - 0.35 * self.stage["light_x"]
        band = torch.exp(-((self.y + 0.72 - 0.28 * at.square()) / 0.11).square())
        return band * (0.12 + 0.018 * (self.flow * 48 + self.stage["strands"]).sin()) * torch.exp(-(at / 0.6).square())


def add_hair_back(stage: Stage, hair: Hair) -> None:
    """What is seen behind face and neck: falls, ponytail, bun."""
    colour, scale = stage["hair_rgb"], hair.head.scale
    texture, light = hair.texture(), hair.light()
    bare = (stage["hat"] == 0).float()
    kind = stage["hair"]
    x, y = hair.x, hair.y
    bun = circle(x + 0.10 * hair.head.sin, y + 1.20, 0.29 * stage["volume"].clamp(max=1.1))
    spin = 0.6 * (26 * circle(x - 0.05, y + 1.16, 0.0) + hair.stage["strands"]).sin()
    stage.add(HAIR, bun * scale, colour, hair.window, light=stage.lit(x * 2.6, (y + 1.2) * 2.6), texture=spin,
              opacity=(kind == 9).float() * bare)  # fmt: skip
    side = torch.where(hair.part >= 0, 1.0, -1.0)
    swing = side * (0.95 + 0.10 * (y * 3.0 + stage["strands"]).sin())
    tail = segment(x - swing, y, (0.0, -0.25), (0.0, 1.05), 0.0) - 0.20 * (1 - smooth(y, 0.5, 1.35)) - 0.02
    knot = segment(x, y, (side * 0.5, -0.55), (side * 0.95, -0.35), 0.13)
    stage.add(HAIR, torch.minimum(tail, knot) * scale, colour, hair.window, light=light, texture=texture,
              opacity=(kind == 10).float())  # fmt: skip
    back = torch.maximum(hair.outer, hair.y - hair.end)
    stage.add(HAIR, back * scale, colour * 0.72, hair.window, light=light, texture=texture,
              opacity=hair.has * (hair.end > 0.2))  # fmt: skip


def add_hair_front(stage: Stage, hair: Hair) -> None:
    """What frames the face."""
    distance = torch.maximum(hair.outer, -hair.opening())
    stage.add(HAIR, distance * hair.head.scale, stage["hair_rgb"], hair.window, light=hair.light(), gloss=hair.gloss(),
              texture=hair.texture(), opacity=hair.has, soft=0.02)  # fmt: skip


def add_hat(stage: Stage, head: Head) -> None:
    """Cap, beanie or brimmed hat."""
    if not bool((stage["hat"] > 0).any()):
        return
    window = stage.window(-1, 1, -1, 0.2)
    x, y = window.cut(head.x) + 0.04 * head.sin, window.cut(head.y)
    colour, kind, scale = stage["hat_rgb"], stage["hat"], head.scale
    light = stage.lit(x / 1.1, (y + 0.4) / 1.0)
    brow = -0.40 + 0.10 * (x / 0.9).square()
    tall = torch.where(kind == 3, 1.12, 1.0)
    dome = carve(ellipse(x, y + 0.42, head.width + 0.17, 0.80 * tall), y - brow, 0.05)
    knit = torch.where(kind == 2, (x / (y + 2.2) * 110).sin() * 0.8, 0 * x)
    stage.add(HAT, dome * scale, colour, window, light=light, texture=knit, opacity=(kind > 0).float())
    _add_trim(stage, head, window, x, y, brow)


def _add_trim(stage: Stage, head: Head, window: Window, x: Tensor, y: Tensor, brow: Tensor) -> None:
    colour, kind, scale = stage["hat_rgb"], stage["hat"], head.scale
    band = carve((y - brow + 0.05).abs() - 0.11, x.abs() - head.width - 0.20, 0.06)
    ribs = (x / (y + 2.2) * 150).sin()
    stage.add(HAT, band * scale, colour * 0.8 + 0.06, window, light=stage.lit(x / 1.05, 0 * y - 0.1), texture=ribs,
              opacity=(kind == 2).float())  # fmt: skip
    ball = circle(x, y + 1.24, 0.17) + 0.015 * (torch.atan2(x, y + 1.24) * 12).sin()
    stage.add(HAT, ball * scale, stage["inner_rgb"], window, light=stage.lit(x * 3.5, (y + 1.24) * 3.5), texture=ribs,
              opacity=(kind == 2).float() * (stage["strands"] > 3))  # fmt: skip
    ribbon = torch.maximum((y - brow + 0.10).abs() - 0.10, x.abs() - head.width - 0.15)
    stage.add(HAT, ribbon * scale, colour * 0.4, window, opacity=(kind == 3).float(), outline=0.5)
    middle = 0.34 * head.sin
    droop = 0.16 * ((x - middle) / 0.7).square()
    visor = ellipse(x - middle, y - brow + 0.02 - droop * 0.4, 0.60, 0.14)
    stage.add(HAT, visor * scale, colour * 0.82, window, light=0.8 + 0.9 * bump(x - middle, y - brow + 0.06, 0.5, 0.09),
              opacity=(kind == 1).float())  # fmt: skip
    button = ellipse(x, y + 1.22, 0.07, 0.04)
    stage.add(HAT, button * scale, colour * 0.82, window, opacity=(kind == 1).float())
    brim = ellipse(x, y - brow - 0.02 + 0.06 * (x / 0.9).square(), 1.30, 0.17)
    under = 0.92 + 0.2 * smooth(-y + brow, -0.08, 0.1)
    stage.add(HAT, brim * scale, colour, window, light=under, opacity=(kind == 3).float())
