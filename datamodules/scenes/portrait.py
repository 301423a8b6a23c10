"""A portrait from back to front: backdrop, clothes, person, things."""

import torch
from torch import Tensor

from datamodules.scenes import face
from datamodules.scenes.backdrop import paint_backdrop
from datamodules.scenes.hair import Hair, add_hair_back, add_hair_front, add_hat
from datamodules.scenes.head import Head
from datamodules.scenes.layers import Stage
from datamodules.scenes.palette import PORTRAIT_LABELS
from datamodules.scenes.sdf import blend, box, bump, carve, circle, ellipse, segment, smooth

CLOTHES, GLASSES, HAND, MICROPHONE, MASK = (
    PORTRAIT_LABELS.index(name) for name in ("clothes", "glasses", "hand", "microphone", "mask")
)


def draw_portrait(stage: Stage) -> None:
    """Fill the stage with the layers of its portraits."""
    paint_backdrop(stage)
    head = Head(stage)
    hair = Hair(stage, head)
    add_hair_back(stage, hair)
    neckline = add_clothes(stage, head)
    face.add_neck(stage, head, neckline)
    add_collar(stage, head)
    face.add_skin(stage, head)
    face.add_mouth(stage, head)
    face.add_beard(stage, head)
    face.add_nose(stage, head)
    face.add_eyes(stage, head)
    face.add_brows(stage, head)
    add_mask(stage, head)
    add_glasses(stage, head)
    add_hair_front(stage, hair)
    add_hat(stage, head)
    add_microphone(stage, head)
    add_hand(stage, head)


def add_clothes(stage: Stage, head: Head) -> Tensor:
    """The torso; returns the distance to the neckline's cut over the canvas, head units."""
    window = stage.window(-1, 1, 0.3, 1)
    x, y = window.cut(head.body_x), window.cut(head.body_y)
    man, collar = stage["gender"], stage["collar"]
    wide = 1.12 + 0.2 * man
    torso = blend(ellipse(x, y - 2.05, wide, 0.80), ellipse(x, y - 1.62, 0.62, 0.42), 0.25)
    light = stage.lit(x / 1.5, (y - 2.2) / 1.5) - 0.1 * bump(x, y - 1.2, 0.5, 0.12)
    folds = 0.05 * ((x * 6 + 3 * y).sin() * (y * 5 - 2 * x + stage["strands"]).sin())
    bands = torch.where(collar == 5, smooth((y * 22).sin(), -0.2, 0.2) * 2 - 1, 0 * x)
    colour = stage["clothes_rgb"]
    stage.add(CLOTHES, torso * head.scale, colour, window, light=light + folds)
    striped = torch.maximum(torso, -bands * 0.03)
    stage.add(CLOTHES, striped * head.scale, stage["inner_rgb"], window, light=light + folds, outline=0.0,
              opacity=(collar == 5).float())  # fmt: skip
    inner = torch.maximum(torso, x.abs() * 0.95 - 0.36 + 0.30 * (y - 1.25))
    stage.add(CLOTHES, inner * head.scale, stage["inner_rgb"], window, light=light, opacity=(collar == 4).float(),
              outline=0.7)  # fmt: skip
    x, y = head.body_x, head.body_y
    crew = ellipse(x, y - 1.20, 0.44, 0.20)
    vee = torch.maximum((x.abs() * 0.88 - 0.42 + 0.62 * (y - 1.1)), 1.1 - y)
    shirt = torch.maximum((x.abs() * 0.9 - 0.26 + 0.5 * (y - 1.15)), 1.1 - y)
    cut = torch.where(collar == 1, vee, torch.where(collar == 2, shirt, crew))
    return torch.where(collar == 3, crew + 1.0, cut)


def add_collar(stage: Stage, head: Head) -> None:
    """Rims, flaps, a rolled collar, lapels."""
    window = stage.window(-1, 1, 0.3, 1)
    x, y = window.cut(head.body_x), window.cut(head.body_y)
    collar, colour, scale = stage["collar"], stage["clothes_rgb"], head.scale
    rim = torch.maximum(ellipse(x, y - 1.20, 0.44, 0.20).abs() - 0.028, 1.21 - y)
    stage.add(
        CLOTHES,
        rim * scale,
        colour * 0.78,
        window,
        opacity=((collar == 0) | (collar == 5)).float(),
        outline=0.6,
    )
    roll = box(x, y - 1.18, 0.41 + 0.06 * stage["gender"], 0.17, 0.1)
    fold = 0.85 + 0.25 * smooth((y * 30).sin(), -0.5, 0.5)
    stage.add(CLOTHES, roll * scale, colour, window, light=stage.lit(x * 1.6, 0 * y) * fold,
              opacity=(collar == 3).float())  # fmt: skip
    for side in (-1, 1):
        u = x * side
        flap = torch.maximum(
            torch.maximum(0.08 - u + 0.55 * (1.62 - y), u - 0.50 + 0.35 * (y - 1.2)), y - 1.60 + 0.35 * u
        )
        flap = torch.maximum(flap, 1.13 - y + 0.1 * u) * 0.8
        stage.add(CLOTHES, flap * scale, colour * 0.92 + 0.06, window, light=stage.lit(0.3 * side + 0 * x, 0 * y - 0.3),
                  opacity=(collar == 2).float(), outline=0.8)  # fmt: skip
        lapel = torch.maximum((u - 0.40 + 0.34 * (y - 1.25)).abs() - 0.10, 1.22 - y)
        stage.add(CLOTHES, lapel * scale, colour * 0.85, window, opacity=(collar == 4).float(), outline=0.7)
        button = circle(x, y - 1.66 - 0.2 * (side > 0), 0.026)
        stage.add(CLOTHES, button * scale, colour * 0.5, window, opacity=(collar == 2).float(), outline=0.0)


def add_glasses(stage: Stage, head: Head) -> None:
    """Thin frames around clear lenses, a bridge and temples."""
    kind = stage["glasses"]
    has = (kind > 0).float()
    if not bool(has.any()):
        return
    window = stage.window(-0.78, 0.78, -0.30, 0.40)
    colour, scale, thin = stage["frame_rgb"] * 0.85, head.scale, 0.021
    size = 1 + 0.35 * (stage.geometry.eye - 1)
    lenses, nearest = [], None
    for side in (-1, 1):
        at = head.feature(0.31 + stage["eye_gap"], face.EYE_Y + 0.01, window, side)
        rounded = circle(at.x, at.y, 0.225 * size)
        square = box(at.x, at.y, 0.235 * size, 0.165 * size, 0.06)
        lens = torch.where(kind == 1, rounded, square)
        lenses.append((lens, at))
        nearest = lens if nearest is None else torch.minimum(nearest, lens)
    assert nearest is not None
    pane = torch.tensor([[0.86, 0.92, 0.97]], device=colour.device).expand_as(colour)
    stage.add(GLASSES, nearest * scale, pane, window, opacity=has * 0.10, outline=0.0)
    for lens, at in lenses:
        streak = torch.maximum((at.x * 0.8 + at.y + 0.06).abs() - 0.035, lens + 0.03)
        stage.add(
            GLASSES,
            streak * scale,
            torch.ones_like(colour),
            window,
            opacity=has * 0.28,
            outline=0.0,
            soft=0.03,
        )
    mid = head.feature(0.0, face.EYE_Y - 0.02, window)
    bridge = carve((mid.y + 0.05 - 1.2 * mid.x.square()).abs() - thin, mid.x.abs() - 0.13, 0.01).maximum(-nearest)
    frame = torch.minimum(nearest.abs() - thin, bridge)
    edge = face.window_face(head, window) / scale - 0.02
    for lens, at in lenses:
        arm = torch.maximum((at.y + 0.05).abs() - thin, (at.x - 0.36).abs() - 0.16)
        frame = torch.minimum(frame, arm.maximum(-lens).maximum(edge))
    stage.add(GLASSES, frame * scale, colour, window, opacity=has, outline=0.0, soft=0.006, stroke=True)


def add_mask(stage: Stage, head: Head) -> None:
    """A medical mask over nose and chin."""
    has = stage["mask"]
    if not bool(has.any()):
        return
    window = stage.window(-0.76, 0.76, -0.05, 0.80)
    at = head.feature(0.0, 0.62, window)
    middle, _ = head.place(0.0)
    x = window.cut(head.x) - middle * 0.8
    outline = face.window_face(head, window) / head.scale - 0.02
    edge = 0.22 + 0.20 * x.square()
    shape = carve(outline, edge - window.cut(head.y) + stage["pitch"], 0.05)
    cloth = torch.tensor([[0.62, 0.80, 0.88]], device=x.device).expand_as(stage["skin_rgb"])
    pleat = smooth(((at.y - 0.15 * x.square()) * 26).sin(), -0.9, 0.6)
    light = stage.lit(x / 0.9, at.y / 1.2) * (0.88 + 0.14 * pleat)
    for side in (-1, 1):
        ear = torch.where(head.turn * side > 0, 0.72, 0.76)
        loop = segment(window.cut(head.x), window.cut(head.y), (side * 0.6, 0.36), (side * ear, 0.02), 0.016)
        stage.add(MASK, loop * head.scale, cloth, window, opacity=has, outline=0.5)
    stage.add(MASK, shape * head.scale, cloth, window, light=light, opacity=has)


def add_microphone(stage: Stage, head: Head) -> None:
    """A microphone held up from below, with the fist around it."""
    has = stage["microphone"]
    if not bool(has.any()):
        return
    window = stage.window(-1, 1, 0.1, 1)
    side = torch.where(stage["part"] > 0, 1.0, -1.0)
    middle, _ = head.place(0.0)
    x, y = (window.cut(head.body_x) - middle) * side, window.cut(head.body_y)
    dark = torch.full_like(stage["skin_rgb"], 0.13)
    stick = segment(x, y, (0.10, 1.0), (0.40, 1.9), 0.075)
    stage.add(MICROPHONE, stick * head.scale, dark, window, light=stage.lit(x * 2 - 0.5, 0 * y), opacity=has)
    ball = ellipse(x - 0.06, y - 0.90, 0.155, 0.165)
    grid = (x * 70).sin() * (y * 70).sin()
    stage.add(MICROPHONE, ball * head.scale, dark + 0.27, window, light=stage.lit((x - 0.06) * 6, (y - 0.9) * 6),
              texture=grid, opacity=has)  # fmt: skip
    sleeve = segment(x, y, (0.44, 1.72), (0.75, 2.3), 0.24)
    stage.add(
        CLOTHES,
        sleeve * head.scale,
        stage["clothes_rgb"],
        window,
        light=stage.lit(x - 0.5, y - 1.8),
        opacity=has,
    )
    fist = ellipse(x - 0.30, y - 1.52, 0.19, 0.23)
    shade = stage.lit((x - 0.3) * 3, (y - 1.52) * 3)
    stage.add(HAND, fist * head.scale, stage["skin_rgb"], window, light=shade, opacity=has)
    for number in range(4):
        finger = segment(x, y, (0.13, 1.40 + 0.085 * number), (0.30, 1.38 + 0.09 * number), 0.048)
        stage.add(HAND, finger * head.scale, stage["skin_rgb"], window, light=shade, opacity=has, outline=0.5)


def add_hand(stage: Stage, head: Head) -> None:
    """A raised hand beside the face, palm to the viewer."""
    has = stage["hand"]
    if not bool(has.any()):
        return
    window = stage.window(-1, 1, -0.35, 1)
    side = torch.where(stage["part"] > 0, -1.0, 1.0)
    x, y = window.cut(stage.x) * side - 0.70, window.cut(stage.y) - 0.42
    arm = segment(x, y, (0.0, 0.22), (0.12, 0.75), 0.105)
    light = stage.lit(x * 3, y * 0.8)
    skin = stage["skin_rgb"]
    stage.add(HAND, arm, skin, window, light=light - 0.05, opacity=has)
    sleeve = segment(x, y, (0.06, 0.45), (0.16, 0.85), 0.15)
    stage.add(CLOTHES, sleeve, stage["clothes_rgb"], window, light=light, opacity=has)
    thumb = segment(x, y, (-0.08, 0.12), (-0.20, -0.03), 0.045)
    stage.add(HAND, thumb, skin, window, light=light, opacity=has)
    for number, reach in enumerate((0.30, 0.37, 0.36, 0.28)):
        root = -0.105 + 0.07 * number
        tip = root * 1.75 + 0.01
        finger = segment(x, y, (root, -0.02), (tip, -reach), 0.040)
        stage.add(HAND, finger, skin, window, light=light, opacity=has)
    palm = box(x, y - 0.08, 0.145, 0.15, 0.09)
    stage.add(HAND, palm, skin, window, light=light + 0.02, opacity=has, outline=0.0)
    crease = (circle(x + 0.12, y - 0.14, 0.11).abs() - 0.008).maximum(palm + 0.03)
    stage.add(HAND, crease, skin * 0.7, window, opacity=has * 0.5, outline=0.0, soft=0.02)
