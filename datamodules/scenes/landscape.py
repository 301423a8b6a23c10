"""Landscapes: a place at a time of day, with mountains, trees, a house, a boat."""

import torch
from torch import Tensor

from datamodules.scenes.layers import Stage, Window
from datamodules.scenes.palette import LANDSCAPE_LABELS
from datamodules.scenes.sampling import Draw
from datamodules.scenes.sdf import box, circle, ellipse, smooth

SUN, CLOUDS, MOUNTAINS, HILLS, GROUND, WATER, TREES, HOUSE, BOAT = range(1, len(LANDSCAPE_LABELS))

# One row for each of palette.TIMES: sky above, sky at the horizon, sun or moon, factor of the land's colours.
_ZENITH = ((0.26, 0.52, 0.90), (0.30, 0.24, 0.52), (0.55, 0.62, 0.86), (0.04, 0.06, 0.18))
_HORIZON = ((0.76, 0.88, 0.97), (0.99, 0.58, 0.30), (0.99, 0.80, 0.76), (0.16, 0.20, 0.40))
_SUN = ((1.0, 0.96, 0.70), (1.0, 0.80, 0.42), (1.0, 0.92, 0.82), (0.95, 0.95, 0.88))
_TINT = ((1.0, 1.0, 1.0), (1.0, 0.74, 0.62), (0.94, 0.86, 0.92), (0.28, 0.34, 0.56))
# One row for each of palette.PLACES.
_GROUND = ((0.36, 0.56, 0.26), (0.88, 0.78, 0.55), (0.45, 0.66, 0.26), (0.90, 0.68, 0.40), (0.93, 0.95, 0.98))
_HILL = ((0.28, 0.46, 0.26), (0.34, 0.50, 0.36), (0.38, 0.58, 0.26), (0.80, 0.54, 0.30), (0.82, 0.88, 0.95))
_TREE = ((0.12, 0.34, 0.20), (0.18, 0.46, 0.24), (0.16, 0.42, 0.18), (0.30, 0.48, 0.24), (0.20, 0.38, 0.34))


def draw_land(draw: Draw) -> None:
    """What stays with a landscape: the place and what stands there."""
    place = draw.choice("place", (2.5, 1.5, 2, 1.2, 1.5))
    draw.choice("mountains", torch.tensor(((0.2, 0.8), (0.7, 0.3), (0.4, 0.6), (0.6, 0.4), (0.2, 0.8)))[place])
    draw.choice("trees", torch.tensor(((0.2, 0.8), (0.6, 0.4), (0.25, 0.75), (0.7, 0.3), (0.2, 0.8)))[place])
    draw.choice("house", torch.tensor(((0.7, 0.3), (0.85, 0.15), (0.55, 0.45), (0.9, 0.1), (0.55, 0.45)))[place])
    draw.choice("boat", torch.tensor(((0.7, 0.3), (0.6, 0.4), (1, 0), (1, 0), (1, 0)))[place])
    for name, low, high in (("horizon", 0.02, 0.26), ("ridge_a", 0, 6.28), ("ridge_b", 0, 6.28), ("peak", 0.75, 1.2),
                            ("trees_at", 0, 1), ("house_at", -0.65, 0.65), ("boat_at", -0.6, 0.6)):  # fmt: skip
        draw.amount(name, low, high)
    draw.tint("ground_rgb", _GROUND, place, 0.10)
    draw.tint("hill_rgb", _HILL, place, 0.12)
    draw.tint("tree_rgb", _TREE, place, 0.20)
    draw.tint("wall_rgb", ((0.86, 0.80, 0.70), (0.70, 0.32, 0.26), (0.62, 0.46, 0.32), (0.92, 0.92, 0.90)),
              (draw.uniform("wall") * 4).long(), 0.1)  # fmt: skip
    draw.tint("roof_rgb", ((0.55, 0.22, 0.18), (0.32, 0.30, 0.34)), (draw.uniform("roof") * 2).long(), 0.1)


def draw_weather(draw: Draw) -> None:
    """What passes: time of day, clouds, where the sun stands."""
    time = draw.choice("time", (3, 2, 1.3, 1.5))
    draw.amount("sun_x", -0.7, 0.7)
    draw.amount("sun_height", 0.1, 0.75)
    draw.choice("clouds", (0.35, 0.65))
    draw.amount("cloud_phase", 0, 6.28)
    for name, table in (
        ("zenith_rgb", _ZENITH),
        ("horizon_rgb", _HORIZON),
        ("sun_rgb", _SUN),
        ("tint_rgb", _TINT),
    ):
        draw.tint(name, table, time, 0.06)
    draw.values["light_x"] = draw.values["sun_x"]
    draw.values["light_y"] = torch.full_like(draw.values["sun_x"], -0.5)


def draw_landscape(stage: Stage) -> None:
    """Fill the stage with the layers of its landscapes."""
    level = stage["horizon"]
    drop = ((stage.y + 1) / (level + 1)).clamp(0, 1)
    fade = (drop.square() + 0 * stage.x)[:, None]
    _paint_sky(stage, fade)
    _add_sun(stage, level)
    _add_clouds(stage)
    _add_mountains(stage, level)
    hills = level - 0.05 - 0.07 * _ridge(stage, stage["ridge_b"], 1.6)
    _slope(stage, HILLS, hills, stage["hill_rgb"], stage.everywhere, haze=0.25)
    _add_land(stage, level)
    _add_boat(stage, level)
    _add_house(stage, level)
    _add_trees(stage, level)


def _tinted(stage: Stage, colour: Tensor, haze: float = 0.0) -> Tensor:
    return colour * stage["tint_rgb"] * (1 - haze) + stage["horizon_rgb"] * haze


def _paint_sky(stage: Stage, fade: Tensor) -> None:
    zenith, low = stage["zenith_rgb"][:, :, None, None], stage["horizon_rgb"][:, :, None, None]
    sky = zenith + (low - zenith) * fade
    night = (stage["time"] == 3).float()
    cell_x, cell_y = (stage.x * 7 + 3 * stage["cloud_phase"]), stage.y * 7 + stage["cloud_phase"]
    seat = (12.9 * cell_x.floor() + 78.2 * cell_y.floor()).sin() * 500
    at_x, at_y = (seat % 1) * 0.8 + 0.1, (seat * 7.3 % 1) * 0.8 + 0.1
    star = circle(cell_x % 1 - at_x, cell_y % 1 - at_y, 0.0)
    star = (0.09 - star).clamp(min=0) * 12 * (seat * 3.1 % 1) * night * (1 - fade[:, 0])
    glow_at = circle(stage.x - stage["sun_x"], stage.y - _sun_y(stage, stage["horizon"]), 0.0)
    glow = 0.28 * torch.exp(-(glow_at / 0.42).square()) * (1 - 0.5 * night)
    sky = sky + star[:, None] + glow[:, None] * (stage["sun_rgb"][:, :, None, None] - sky)
    stage.backdrop = sky.clamp(0, 1)


def _sun_y(stage: Stage, level: Tensor) -> Tensor:
    low = ((stage["time"] == 1) | (stage["time"] == 2)).float()
    return level - 0.10 - stage["sun_height"] * (0.95 - 0.55 * low)


def _add_sun(stage: Stage, level: Tensor) -> None:
    disc = circle(stage.x - stage["sun_x"], stage.y - _sun_y(stage, level), 0.115)
    stage.add(SUN, disc, stage["sun_rgb"], stage.everywhere, outline=0.5, soft=0.02)


def _add_clouds(stage: Stage) -> None:
    phase, has = stage["cloud_phase"], stage["clouds"]
    window = stage.window(-1, 1, -1, 0.1)
    colour = stage["horizon_rgb"] * 0.45 + stage["tint_rgb"] * 0.5
    for number in range(3):
        u = window.cut(stage.x) - (phase * (1.3 + number) + 2.2 * number).sin() * 0.85
        v = window.cut(stage.y) + 0.78 - 0.20 * number
        size = 1.0 - 0.18 * number
        puffs = ellipse(u, v, 0.30 * size, 0.075 * size)
        for dx, dy, radius in ((-0.12, -0.05, 0.10), (0.03, -0.08, 0.13), (0.16, -0.03, 0.085)):
            puffs = torch.minimum(puffs, circle(u - dx * size, v - dy * size, radius * size))
        puffs = torch.maximum(puffs, v - 0.055 * size)
        light = 1.06 - 1.3 * (v / size + 0.04)
        stage.add(CLOUDS, puffs, colour, window, light=light, opacity=has * 0.92, soft=0.05, outline=0.7)


def _ridge(stage: Stage, phase: Tensor, pitch: float) -> Tensor:
    """Smooth silhouette over x, about in [-1, 1]."""
    x = stage.x * pitch
    return 0.6 * (x * 2.1 + phase).sin() + 0.4 * (x * 4.7 + 2.3 * phase).sin()


def _peaks(stage: Stage, phase: Tensor) -> Tensor:
    """Jagged silhouette over x, in [0, 1]."""
    height = 0.0 * stage.x
    for pitch, weight in ((0.9, 0.62), (2.3, 0.25), (5.9, 0.10), (12.7, 0.03)):
        saw = ((stage.x * pitch + phase * (0.3 + pitch)) % 1.0 - 0.5).abs() * 2
        height = height + weight * saw
    return height


def _slope(stage: Stage, label: int, top: Tensor, colour: Tensor, window: Window, haze: float) -> None:
    ground = (top - stage.y) * 0.8
    light = 1.06 - 0.35 * smooth(stage.y - top, 0.0, 0.5)
    stage.add(label, ground, _tinted(stage, colour, haze), window, light=light, soft=0.02)


def _add_mountains(stage: Stage, level: Tensor) -> None:
    has = stage["mountains"]
    if not bool(has.any()):
        return
    for number, (height, haze) in enumerate(((0.66, 0.42), (0.42, 0.22))):
        phase = stage["ridge_a"] + 1.9 * number
        top = level - stage["peak"] * height * _peaks(stage, phase) - 0.02
        rock = torch.tensor([[0.42, 0.42, 0.50]], device=stage.x.device).expand(len(stage.scenes), 3)
        rock = torch.where(stage["place"][:, 0] == 3, rock.new_tensor([[0.66, 0.40, 0.28]]), rock)
        distance = (top - stage.y) * 0.6
        fall = torch.cat([top[..., :1] - top[..., 1:2], top[..., :-1] - top[..., 1:]], dim=-1) * stage.pixels / 2
        light = 1.0 - 0.18 * torch.tanh(3 * fall * stage["light_x"].sign()).expand(-1, stage.pixels, -1)
        stage.add(MOUNTAINS, distance, _tinted(stage, rock, haze), stage.everywhere, light=light, opacity=has,
                  soft=0.015)  # fmt: skip
        saw = ((stage.x * 9 + phase) % 1.0 - 0.5).abs()
        line = level - stage["peak"] * (0.34 - 0.08 * number) - 0.09 * saw
        cap = torch.maximum(distance, (stage.y - line) * 0.8)
        snow = torch.full_like(rock, 0.96)
        stage.add(MOUNTAINS, cap, _tinted(stage, snow, haze * 0.6), stage.everywhere, light=light, outline=0.0,
                  opacity=has * (stage["place"] != 3), soft=0.015)  # fmt: skip


def _add_land(stage: Stage, level: Tensor) -> None:
    place, window = stage["place"], stage.window(-1, 1, -0.1, 1)
    x, y = window.cut(stage.x), window.cut(stage.y)
    wet = (place <= 1).float()
    depth = ((y - level) / (1 - level)).clamp(0, 1)
    zenith, low = stage["zenith_rgb"], stage["horizon_rgb"]
    near = (zenith * 0.62 + torch.tensor([[0.02, 0.10, 0.14]], device=x.device) * stage["tint_rgb"])[:, :, None, None]
    water = low[:, :, None, None] * 0.92 * (1 - depth[:, None].sqrt()) + near * depth[:, None].sqrt()
    water = (water + 0 * x[:, None]).clamp(0, 1)
    waves = ((y - level + 0.02).clamp(min=0.01).log() * 26 + (x * 5 + stage["ridge_a"]).sin() * 1.5).sin()
    shine = torch.exp(-((x - stage["sun_x"]) / (0.07 + 0.22 * depth)).square())
    gloss = 0.30 * shine * (0.5 + 0.5 * waves) * smooth(depth, 0.0, 0.1)
    light = 1.0 + 0.06 * waves
    stage.add(WATER, (level - y) + 0 * x, water, window, light=light, gloss=gloss, opacity=wet, outline=0.6)
    grass = level + 0.02 + 0.035 * _ridge(stage, stage["ridge_a"], 1.1)
    shore = level + 0.52 + 0.10 * _ridge(stage, stage["ridge_a"], 1.0) - 0.10 * stage.x * stage["trees_at"]
    top = window.cut(torch.where(wet > 0, shore, grass))
    tufts = ((x * 40 + 9 * y).sin() + (y * 55 + 21 * x).sin() + (x * 23 - y * 31 + stage["ridge_b"]).sin()) / 3
    dunes = torch.where(place >= 3, (((y - top) * 16 + 1.6 * (x * 3 + stage["ridge_b"]).sin()).sin()) * 0.6, tufts)
    light = 1.06 - 0.26 * smooth(y - top, 0.0, 0.9) + 0.05 * dunes
    stage.add(GROUND, (top - y) * 0.9, _tinted(stage, stage["ground_rgb"]), window, light=light, soft=0.015)


def _add_boat(stage: Stage, level: Tensor) -> None:
    has = stage["boat"]
    if not bool(has.any()):
        return
    window = stage.window(-1, 1, -0.45, 0.55)
    x, y = window.cut(stage.x) - stage["boat_at"], window.cut(stage.y) - level - 0.14
    hull = torch.maximum(torch.maximum(-0.01 - y, y - 0.055), x.abs() - 0.16 + 0.9 * y)
    wood = torch.tensor([[0.48, 0.24, 0.16]], device=x.device).expand(len(stage.scenes), 3)
    mast = box(x, y + 0.16, 0.008, 0.16)
    sail = torch.maximum(torch.maximum(0.018 - x, y + 0.04), (x * 2.1 - y - 0.30) * 0.43)
    jib = torch.maximum(torch.maximum(x + 0.018, y + 0.05), (-x * 2.4 - y - 0.25) * 0.4)
    canvas = torch.full_like(wood, 0.96)
    stage.add(BOAT, mast, _tinted(stage, wood * 0.7), window, opacity=has, outline=0.0, stroke=True)
    stage.add(BOAT, torch.minimum(sail, jib), _tinted(stage, canvas), window, light=1 - 0.5 * x.abs(), opacity=has)
    stage.add(BOAT, hull, _tinted(stage, wood), window, opacity=has)


def _add_house(stage: Stage, level: Tensor) -> None:
    has = stage["house"]
    if not bool(has.any()):
        return
    window = stage.window(-1, 1, -0.6, 1)
    wet = (stage["place"] <= 1).float()
    foot = level + 0.20 + 0.46 * wet
    x, y = window.cut(stage.x) - stage["house_at"], window.cut(stage.y) - foot
    wall = box(x, y + 0.12, 0.20, 0.13)
    roof = torch.maximum((x.abs() * 0.75 - (y + 0.46)) * 0.8, y + 0.24)
    chimney = box(x - 0.12, y + 0.42, 0.03, 0.09)
    yellow = torch.tensor([[1.0, 0.86, 0.45]], device=x.device).expand(len(stage.scenes), 3)
    lit = ((stage["time"] == 3) | (stage["time"] == 1)).float()[:, 0]
    pane = yellow * lit + (1 - lit) * _tinted(stage, yellow.new_tensor([[0.42, 0.56, 0.66]]).expand_as(yellow))
    shade = 1.02 - 0.22 * smooth(x * stage["light_x"].sign(), 0.2, -0.2)
    stage.add(HOUSE, chimney, _tinted(stage, stage["roof_rgb"] * 0.8), window, opacity=has)
    stage.add(HOUSE, wall, _tinted(stage, stage["wall_rgb"]), window, light=shade, opacity=has)
    stage.add(HOUSE, roof, _tinted(stage, stage["roof_rgb"]), window, light=shade, opacity=has)
    door = box(x, y + 0.075, 0.04, 0.075)
    stage.add(HOUSE, door, _tinted(stage, stage["roof_rgb"] * 0.7), window, opacity=has, outline=0.5)
    for side in (-1, 1):
        stage.add(HOUSE, box(x - side * 0.12, y + 0.13, 0.034, 0.04), pane, window, opacity=has, outline=0.5)


def _add_trees(stage: Stage, level: Tensor) -> None:
    has, place = stage["trees"], stage["place"]
    if not bool(has.any()):
        return
    wet = (place <= 1).float()
    wood = torch.tensor([[0.36, 0.25, 0.17]], device=stage.x.device).expand(len(stage.scenes), 3)
    pine = ((place == 0) | (place == 4)).float()
    for number in range(5):
        seat = (stage["trees_at"] * (7 + 5 * number) + 0.21 * number) % 1
        side = 1 if number % 2 else -1
        x = stage.x - side * (0.34 + 0.62 * seat)
        size = 0.42 + 0.12 * number + 0.12 * seat
        foot = level + 0.10 + 0.44 * wet + 0.10 * number
        y = (stage.y - foot) / size
        x = x / size
        trunk = box(x, y + 0.10, 0.04, 0.14)
        stage.add(TREES, trunk * size, _tinted(stage, wood), stage.everywhere, opacity=has, outline=0.6)
        round_crown = torch.minimum(circle(x, y + 0.48, 0.25), circle(x.abs() - 0.15, y + 0.36, 0.17))
        round_crown = round_crown + 0.015 * ((x * 34).sin() + (y * 31).sin())
        tiers = ((y + 1.02) * 3.2).clamp(min=0)
        flare = 0.30 * (y + 1.02) * (0.72 + 0.42 * (tiers % 1.0))
        needle = torch.maximum((x.abs() - flare) * 0.9, y + 0.14)
        crown = torch.where(pine > 0, torch.maximum(needle, -1.02 - y), round_crown)
        light = 0.98 + 0.9 * x * stage["light_x"].sign() - 0.25 * (y + 0.5)
        leaves = ((x * 52 + 20 * y).sin() + (y * 61 - 14 * x).sin()) / 2
        stage.add(TREES, crown * size, _tinted(stage, stage["tree_rgb"]), stage.everywhere, light=light + 0.1 * leaves,
                  opacity=has)  # fmt: skip
