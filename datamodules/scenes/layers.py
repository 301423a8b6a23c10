"""What a drawing is made of: layers over a stage, from back to front, the same for every style."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from datamodules.scenes.sampling import Scenes

_REACH = 0.10  # no style draws farther outside a shape than this (lines, wobble) plus half its softness


@dataclass(frozen=True)
class Geometry:
    """How a style bends the shapes: factors on the sizes of eyes, head, nose and pupils."""

    eye: float = 1.0
    head: float = 1.0
    nose: float = 1.0


@dataclass(frozen=True)
class Window:
    """Rows and columns of the canvas that a layer can touch, whatever the scene."""

    rows: slice
    columns: slice

    def cut(self, field: Tensor) -> Tensor:
        """The window of a field (..., H, W), which may be constant along rows or columns."""
        rows = self.rows if field.shape[-2] > 1 else slice(None)
        columns = self.columns if field.shape[-1] > 1 else slice(None)
        return field[..., rows, columns]


@dataclass
class Layer:
    """One shape of the drawing.

    Attributes:
        label: class in the segmentation.
        distance: (b, h, w) signed distance over the window, negative inside, in canvas units (2 wide).
        colour: (b, 3) or (b, 3, h, w) in [0, 1].
        window: where on the canvas.
        opacity: (b, 1, 1) in [0, 1]; 0 where the scene lacks this layer.
        light: (b, h, w) factor on the colour, about 1 where lit, about 0.6 in shadow.
        gloss: (b, h, w) white added.
        texture: (b, h, w) in [-1, 1], strands and fibres.
        soft: blur of the edge where a style has soft edges, canvas units.
        outline: line width around it, relative to the style's; 0 for none.
        stroke: the layer is itself a line (brow, lid): pencils fill it.
    """

    label: int
    distance: Tensor
    colour: Tensor
    window: Window
    opacity: Tensor
    light: Tensor | None = None
    gloss: Tensor | None = None
    texture: Tensor | None = None
    soft: float = 0.012
    outline: float = 1.0
    stroke: bool = False


class Stage:
    """Canvas coordinates and the attributes of a few scenes, shaped to broadcast against (b, h, w)."""

    def __init__(self, scenes: Scenes, pixels: int, geometry: Geometry) -> None:
        device = scenes.identity.device
        centres = (torch.arange(pixels, device=device, dtype=torch.float32) + 0.5) * (2 / pixels) - 1
        self.x = centres.view(1, 1, -1)
        self.y = centres.view(1, -1, 1)
        self.pixels = pixels
        self.geometry = geometry
        self.scenes = scenes
        self.layers: list[Layer] = []
        self.backdrop = torch.zeros(len(scenes), 3, pixels, pixels, device=device)
        self.everywhere = self.window(-1, 1, -1, 1)
        self.ones = torch.ones(len(scenes), 1, 1, device=device)

    def __getitem__(self, name: str) -> Tensor:
        """Attribute as (b, 1, 1) float32, or (b, 3) for a colour."""
        value = self.scenes.values[name]
        return value if value.dim() == 2 else value.to(torch.float32).view(-1, 1, 1)

    def window(self, left: float, right: float, top: float, bottom: float) -> Window:
        """The window that covers this box of canvas coordinates."""
        low, high = (
            [min(max(round((edge + 1) * self.pixels / 2), 0), self.pixels) for edge in pair]
            for pair in ((top, left), (bottom, right))
        )
        return Window(slice(low[0], high[0]), slice(low[1], high[1]))

    def table(self, name: str, columns: list[list[float]]) -> list[Tensor]:
        """Columns of a table, one row for each class of the attribute, as (b, 1, 1) each."""
        rows = torch.tensor(columns, dtype=torch.float32, device=self.x.device)[self.scenes.values[name]]
        return [column.view(-1, 1, 1) for column in rows.unbind(-1)]

    def add(self, label: int, distance: Tensor, colour: Tensor, window: Window, **options: object) -> None:
        """Put a layer on top of those so far."""
        options.setdefault("opacity", self.ones)
        layer = Layer(label, distance, colour, window, **options)  # type: ignore[arg-type]
        if distance.device.type != "cpu":
            self.layers.append(layer)
        elif bool(layer.opacity.any()):
            self._add_cropped(layer)

    def _add_cropped(self, layer: Layer) -> None:
        """Keep only the rows and columns near a shape: a CPU's time goes by area."""
        near = (layer.distance < _REACH + 0.5 * layer.soft).any(0)
        rows, columns = near.any(1).nonzero().flatten(), near.any(0).nonzero().flatten()
        if not len(rows):
            return
        inner = Window(slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1))
        top, left = layer.window.rows.start, layer.window.columns.start
        outer = Window(
            slice(top + inner.rows.start, top + inner.rows.stop),
            slice(left + inner.columns.start, left + inner.columns.stop),
        )
        fields = {name: getattr(layer, name) for name in ("distance", "light", "gloss", "texture")}
        cut = {name: inner.cut(field) for name, field in fields.items() if field is not None}
        colour = inner.cut(layer.colour) if layer.colour.dim() == 4 else layer.colour
        self.layers.append(replace(layer, window=outer, colour=colour, **cut))

    def lit(self, nx: Tensor, ny: Tensor) -> Tensor:
        """Brightness of a surface with normal (nx, ny, .), 1 about where it faces the light."""
        nz = (1 - nx * nx - ny * ny).clamp(min=0.02).sqrt()
        facing = nx * self["light_x"] + ny * self["light_y"] + nz * 0.75
        return 0.62 + 0.5 * facing.clamp(min=-0.25)
