"""Layers of the face: skin, ears, eyes, brows, nose, mouth, beard."""

import torch
from torch import Tensor

from datamodules.scenes.head import Feature, Head
from datamodules.scenes.layers import Stage, Window
from datamodules.scenes.palette import PORTRAIT_LABELS
from datamodules.scenes.sdf import box, bump, carve, circle, ellipse, smooth

SKIN, EYES, BROWS, MOUTH, NOSE, BEARD = (
    PORTRAIT_LABELS.index(name) for name in ("skin", "eyes", "brows", "mouth", "nose", "beard")
)
EYE_Y, BROW_Y, NOSE_Y, MOUTH_Y = 0.07, -0.17, 0.40, 0.645

# Rows: palette.EXPRESSIONS; columns: lift of the corners, opening, width, lids, brow slope, brow lift.
_EXPRESSIONS = [
    [0.15, 0.0, 1.0, 1.0, 0.0, 0.0], [1.0, 0.0, 1.12, 0.92, 0.0, 0.01], [1.0, 0.14, 1.22, 0.84, 0.0, 0.02],
    [-0.65, 0.0, 0.92, 0.9, 0.25, 0.01], [0.1, 0.17, 0.66, 1.18, 0.05, 0.06],
]  # fmt: skip


def head_light(stage: Stage, head: Head) -> Tensor:
    """Shading of the face: an ellipsoid with nose, sockets, cheeks and lips pressed into it."""
    x, y = head.window.cut(head.x), head.window.cut(head.y)
    light = stage.lit((x + 0.06 * head.sin) / 0.92, (y + 0.05) / 1.2)
    nose, _ = head.place(0.0)
    nose = nose * (1 + 0.12 * (y - 0.1).clamp(0, 0.3))
    ridge = (x - nose) / 0.13
    along = smooth(y, -0.15, 0.2) * (1 - smooth(y, 0.36, 0.48))
    light = light + 0.30 * stage["light_x"] * ridge * torch.exp(-ridge.square()) * along
    for side in (-1, 1):
        centre, narrow = head.place(side * 0.31)
        light = light - 0.09 * bump(x - centre, y - EYE_Y + 0.04, 0.2 * narrow, 0.13)
        light = light + 0.06 * bump(x - centre * 1.12, y - 0.34, 0.2, 0.14)
    centre, _ = head.place(0.0)
    return light - 0.10 * bump(x - centre, y - 0.80, 0.16, 0.05) - 0.1 * bump(x - centre, y - 0.5, 0.12, 0.05)


def add_skin(stage: Stage, head: Head) -> None:
    """Far ear, face, near ear, blush."""
    skin = stage["skin_rgb"]
    turned = torch.where(head.turn >= 0, 1.0, -1.0)
    _add_ear(stage, head, turned, (0.74 - 0.22 * head.sin.abs()) * turned)
    x, y = head.window.cut(head.x), head.window.cut(head.y)
    centre, _ = head.place(0.0)
    gloss = 0.16 * bump(x - centre * 1.15, y - 0.33, 0.06, 0.07) + 0.06 * bump(x - centre * 0.6, y + 0.42, 0.3, 0.12)
    light = head_light(stage, head)
    stage.add(SKIN, head.face, skin, head.window, light=light, gloss=gloss, soft=0.008)
    _add_ear(stage, head, -turned, (-0.78 + 0.34 * head.sin.abs()) * turned)
    rosy = skin * torch.tensor([1.0, 0.72, 0.72], device=skin.device)
    opacity = stage.ones * 0.2 + 0.12 * (1 - stage["gender"])
    for side in (-1, 1):
        window = stage.window(-0.7, 0.7, -0.05, 0.55)
        at = head.feature(0.40, 0.36, window, side)
        distance = ellipse(at.x, at.y, 0.15, 0.10) * head.scale
        inside = torch.maximum(distance, window_face(head, window))
        stage.add(SKIN, inside, rosy, window, opacity=opacity, soft=0.16, outline=0.0)


def window_face(head: Head, window: Window) -> Tensor:
    """The face's distance over another window inside the head's."""
    rows, columns = window.rows, window.columns
    top, left = head.window.rows.start, head.window.columns.start
    return head.face[:, rows.start - top : rows.stop - top, columns.start - left : columns.stop - left]


def _add_ear(stage: Stage, head: Head, side: Tensor, centre: Tensor) -> None:
    window = stage.window(-0.75, 0.75, -0.22, 0.42)
    size = stage["ears"]
    x = (window.cut(head.x) - centre) * side
    y = window.cut(head.y) - 0.10 - stage["pitch"]
    outer = ellipse(x - 0.12 * y, y, 0.12 * size, 0.18 * size) * head.scale
    light = stage.lit(0.5 * side + x * 0, y * 2) - 0.06
    stage.add(SKIN, outer, stage["skin_rgb"], window, light=light)
    inner = ellipse(x - 0.12 * y - 0.02, y, 0.065 * size, 0.12 * size) * head.scale
    stage.add(SKIN, inner, stage["skin_rgb"] * 0.78, window, outline=0.0, opacity=stage.ones * 0.7, soft=0.03)


def add_eyes(stage: Stage, head: Head) -> None:
    """Both eyes, each with sclera, iris, pupil, highlights, lid and crease."""
    _, _, _, lids, _, _ = stage.table("expression", _EXPRESSIONS)
    window = stage.window(-0.64, 0.64, -0.26, 0.34)
    for side in (-1, 1):
        at = head.feature(0.31 + stage["eye_gap"], EYE_Y, window, side)
        at.y = at.y + stage["eye_tilt"] * at.x
        _add_eye(stage, head, at, side, lids)


def _add_eye(stage: Stage, head: Head, at: Feature, side: int, lids: Tensor) -> None:
    size, scale, window = stage["eye_size"] * stage.geometry.eye, head.scale, at.window
    woman = 1 - stage["gender"]
    half, height = 0.170 * (0.6 + 0.4 * size), 0.092 * size * lids * (1 + 0.1 * woman)
    bow = (1 - (at.x / half).square()).clamp(min=-0.6)
    slope = 1 / (1 + (2 * height * (at.x / half).clamp(-1.2, 1.2) / half).square()).sqrt()
    upper, lower = (-height * bow - at.y) * slope, (at.y - 0.72 * height * bow) * slope
    opening = torch.maximum(torch.maximum(upper, lower), at.x.abs() - 1.1 * half)
    shade = 1.0 - 0.32 * smooth(-at.y / height, 0.0, 1.0)
    white = stage["skin_rgb"] * 0.12 + 0.85
    stage.add(EYES, opening * scale, white, window, light=shade, soft=0.008, outline=0.5)
    radius = 0.090 * size * (0.94 + 0.06 * lids)
    gaze_x = at.x - side * 0.028 * stage["gaze"]
    gaze_y = at.y + 0.012 * size
    iris = torch.maximum(circle(gaze_x, gaze_y, radius), opening + 0.006)
    reach = (gaze_x.square() + gaze_y.square()) / radius.square()
    glow = (0.92 + 0.55 * gaze_y / radius - 0.45 * smooth(reach, 0.55, 1.0)).clamp(0.3, 1.5)
    stage.add(EYES, iris * scale, stage["eye_rgb"], window, light=glow, soft=0.006, outline=0.0, stroke=True)
    black = torch.full_like(white, 0.04)
    pupil = torch.maximum(circle(gaze_x, gaze_y, radius * 0.48), opening + 0.006)
    stage.add(EYES, pupil * scale, black, window, soft=0.006, outline=0.0, stroke=True)
    glint = circle(gaze_x + side * 0.32 * radius, gaze_y + 0.36 * radius, 0.30 * radius)
    stage.add(EYES, torch.maximum(glint, opening) * scale, torch.ones_like(white), window, soft=0.004, outline=0.0)
    low = circle(gaze_x - side * 0.4 * radius, gaze_y - 0.4 * radius, 0.16 * radius)
    stage.add(EYES, torch.maximum(low, opening) * scale, torch.ones_like(white), window, soft=0.004, outline=0.0,
              opacity=stage.ones * 0.55)  # fmt: skip
    reach = at.x.abs() - half * (1.03 + 0.10 * woman * (at.x > 0))
    lash = upper.abs() - (0.016 + 0.010 * woman) * (0.75 + 0.25 * at.x / half) * size
    colour = stage["hair_rgb"] * 0.15 + stage["skin_rgb"] * 0.06
    stage.add(EYES, carve(lash, reach, 0.02) * scale, colour, window, soft=0.008, outline=0.0, stroke=True)
    crease = torch.maximum((upper - 0.052 * size).abs() - 0.008, at.x.abs() - 0.9 * half)
    stage.add(SKIN, crease * scale, stage["skin_rgb"] * 0.5, window, soft=0.012, outline=0.0, stroke=True,
              opacity=stage.ones * 0.4)  # fmt: skip


def add_brows(stage: Stage, head: Head) -> None:
    """Tapered arcs, darker than the hair."""
    _, _, _, _, slope, lift = stage.table("expression", _EXPRESSIONS)
    window = stage.window(-0.66, 0.66, -0.42, 0.14)
    man = stage["gender"]
    colour = stage["hair_rgb"] * 0.62 + stage["skin_rgb"] * 0.08
    down = BROW_Y - stage["brow_height"] - lift - 0.035 * (stage.geometry.eye - 1) * 3 + 0.02 * man
    for side in (-1, 1):
        at = head.feature(0.31 + stage["eye_gap"], down, window, side)
        along = at.x / 0.22
        arc = -0.055 * (1 - along.square()) + 0.02 + slope * at.x * 0.8 - 0.05 * at.x
        thick = (0.026 + 0.012 * man) * stage["brow_weight"] * (0.95 - 0.45 * along)
        distance = carve((at.y - arc).abs() - thick, at.x.abs() - 0.22, 0.04) * head.scale
        stage.add(BROWS, distance, colour, window, soft=0.016, outline=0.0, stroke=True)


def add_nose(stage: Stage, head: Head) -> None:
    """Wings and nostrils; the ridge is in the shading of the face."""
    window = stage.window(-0.5, 0.5, 0.0, 0.5)
    size = stage["nose_size"] * stage.geometry.nose * (0.94 + 0.12 * stage["gender"])
    at = head.feature(0.0, NOSE_Y + stage["nose_length"], window)
    x = at.x - 0.06 * head.sin
    dark = stage["skin_rgb"] * torch.tensor([0.58, 0.46, 0.42], device=at.x.device)
    width = 0.115 * size
    bow = 1 - (x / width).square()
    under = (at.y - 0.012 - 0.035 * bow * size).abs() - 0.013 * (0.6 + 0.4 * bow.clamp(0, 1))
    distance = carve(under, x.abs() - width, 0.02) * head.scale
    stage.add(NOSE, distance, dark, window, soft=0.022, outline=0.0, stroke=True, opacity=stage.ones * 0.62)
    for side in (-1, 1):
        nostril = ellipse(x - side * 0.05 * size, at.y - 0.02 * size, 0.026 * size, 0.014 * size) * head.scale
        stage.add(NOSE, nostril, dark * 0.5, window, soft=0.012, outline=0.0, opacity=stage.ones * 0.6)


def mouth_lines(stage: Stage, head: Head) -> tuple[Feature, Tensor, Tensor, Tensor, Tensor]:
    """Frame of the mouth, x over its half-width, the line between the lips, the opening, the half-width."""
    lift, opening, width, _, _, _ = stage.table("expression", _EXPRESSIONS)
    window = stage.window(-0.56, 0.56, 0.1, 0.72)
    at = head.feature(0.0, MOUTH_Y, window)
    half = 0.205 * width * stage["mouth_width"]
    along = at.x / half
    line = -0.075 * lift * (along.square() - 0.45)
    return at, along, line, opening * (1 - along.square()).clamp(min=-0.3), half


def add_mouth(stage: Stage, head: Head) -> None:
    """Lips, and between them a line or an opening with teeth and tongue."""
    at, along, line, opening, half = mouth_lines(stage, head)
    woman, full, window, scale = 1 - stage["gender"], stage["lips"], at.window, head.scale
    bow = (1 - along.square()).clamp(min=-0.5)
    full = full * (0.82 + 0.25 * woman)
    dip = 1 - 0.38 * torch.exp(-(along / 0.2).square())
    top = line - 0.058 * full * bow * dip
    bottom = line + opening + 0.076 * full * bow
    lips = torch.maximum(top - at.y, at.y - bottom)
    blood = torch.tensor([0.74, 0.32, 0.33], device=at.x.device)
    colour = stage["skin_rgb"] * (0.55 - 0.15 * woman[:, 0]) + blood * stage["skin_rgb"] * 0.2 + blood * (
        0.24 + 0.22 * woman[:, 0]) * stage["skin_rgb"].mean(-1, keepdim=True).sqrt()  # fmt: skip
    shade = 0.86 + 0.22 * smooth(at.y - line - opening, -0.01, 0.02)
    gloss = 0.20 * bump(along, at.y - line - opening - 0.035, 0.4, 0.014)
    stage.add(MOUTH, lips * scale, colour, window, light=shade, gloss=gloss, soft=0.012, outline=0.35)
    is_open = (opening.amax((1, 2), keepdim=True) > 0.05).float()
    inside = torch.maximum(line - at.y, at.y - line - opening) + 0.004
    dark = torch.tensor([[0.30, 0.07, 0.08]], device=at.x.device).expand_as(colour)
    stage.add(MOUTH, inside * scale, dark, window, opacity=is_open, soft=0.008, outline=0.4, stroke=True)
    teeth = torch.maximum(inside + 0.006, at.y - line - 0.45 * opening)
    laugh = is_open * (stage["expression"] == 2)
    stage.add(MOUTH, teeth * scale, torch.full_like(colour, 0.95), window, opacity=laugh, soft=0.008, outline=0.0)
    tongue = torch.maximum(inside, ellipse(at.x, at.y - line - opening - 0.02, 0.6 * half, 0.055))
    rose = torch.tensor([[0.80, 0.38, 0.38]], device=at.x.device).expand_as(colour)
    stage.add(MOUTH, tongue * scale, rose, window, opacity=is_open * 0.9, soft=0.012, outline=0.0)
    seam = carve((at.y - line).abs() - 0.011, at.x.abs() - half, 0.02)
    seam_rgb = colour * 0.42
    stage.add(MOUTH, seam * scale, seam_rgb, window, opacity=1 - is_open, soft=0.010, outline=0.0, stroke=True)


def add_beard(stage: Stage, head: Head) -> None:
    """Full beard and stubble follow the jaw; goatee on the chin; moustache above the lip (drawn after the mouth)."""
    kind = stage["beard"]
    window = stage.window(-0.64, 0.64, 0.0, 0.80)
    at, along, line, opening, half = mouth_lines(stage, head)
    centre, _ = head.place(0.0)
    x, y = window.cut(head.x) - centre * 0.9, window.cut(head.y) - stage["pitch"]
    face = window_face(head, window) / head.scale
    full = ((kind == 1) | (kind == 4)).float()
    grown = 0.015 + 0.05 * (kind == 4).float()
    edge = 0.60 - 0.36 * smooth((x - 0.04 * head.sin).abs(), 0.26, 0.66) + 0.008 * (x * 60 + stage["strands"]).sin()
    jaw = carve(face - grown * smooth(y, 0.3, 0.9), edge - y, 0.06)
    mouth_gap = ellipse(
        x - 0.1 * centre, y - MOUTH_Y - 0.02, half * 1.08, 0.085 + 0.5 * opening.amax((1, 2), keepdim=True)
    )
    jaw = torch.maximum(jaw, -mouth_gap)
    goatee = torch.maximum(ellipse(x, y - 0.86, 0.25, 0.19), torch.maximum(-mouth_gap, face - 0.05))
    shape = torch.where(full > 0, jaw, goatee)
    colour = stage["hair_rgb"] * 0.86 + stage["skin_rgb"] * 0.03
    light = stage.lit(x / 0.95, (y - 0.2) / 1.1)
    hairs = _hairs(x, y, stage["strands"])
    opacity = (kind == 4).float() * 0.97 + (kind == 1).float() * 0.38 + (kind == 3).float() * 0.95
    stage.add(BEARD, shape * head.scale, colour, window, light=light, texture=hairs, opacity=opacity,
              soft=0.03, outline=0.6)  # fmt: skip
    lip = line - 0.030 * stage["lips"] + 0.045 * along.square()
    rise = 0.085 * (1 - 0.62 * along.abs()) * smooth(along.abs(), -0.30, 0.15)
    tash = carve(torch.maximum(lip - rise - at.y, at.y - lip), at.x.abs() - half * 1.15, 0.06)
    has = (kind >= 2).float() * 0.96 + (kind == 1).float() * 0.34
    stage.add(BEARD, tash * head.scale, colour, at.window, light=stage.lit(at.x, at.y), opacity=has, soft=0.02,
              outline=0.5, texture=_hairs(at.x, at.y, stage["strands"]))  # fmt: skip


def _hairs(x: Tensor, y: Tensor, phase: Tensor) -> Tensor:
    flow = x / (1.6 + y)
    return 0.6 * (flow * 70 + 5 * y + phase).sin() + 0.4 * (flow * 120 - 9 * y + 2 * phase).sin()


def add_neck(stage: Stage, head: Head, neckline: Tensor) -> None:
    """Neck and what the neckline shows, under the shadow of the chin."""
    window = stage.window(-1, 1, 0.1, 1)
    x, y = window.cut(head.body_x), window.cut(head.body_y)
    man = stage["gender"]
    width = (0.29 + 0.08 * man) * (1 + 0.25 * (y - 1.0).square())
    column = torch.maximum(x.abs() - width, y - 1.36).maximum(0.2 - y)
    distance = torch.minimum(column, window.cut(neckline)) * head.scale
    light = stage.lit(x / 0.75, 0 * y - 0.1) - 0.03
    shadow = circle(x + 0.12 * stage["light_x"] - 0.3 * head.sin, (y - 0.72) * 0.9, 0.42)
    light = light * (1 - 0.42 * (1 - smooth(shadow, -0.12, 0.1)))
    stage.add(SKIN, distance, stage["skin_rgb"], window, light=light)
    for side in (-1, 1):  # collar bones
        bone = box(x - side * 0.22, y - 1.40 + 0.25 * side * x, 0.14, 0.012, 0.01)
        bone = torch.maximum(bone, window.cut(neckline))
        stage.add(SKIN, bone * head.scale, stage["skin_rgb"] * 0.75, window, opacity=stage.ones * 0.35, soft=0.03,
                  outline=0.0)  # fmt: skip
