"""The head as a coordinate frame: where a point of the face lands on the canvas for a pose."""

from dataclasses import dataclass

from torch import Tensor

from datamodules.scenes.layers import Stage, Window
from datamodules.scenes.sdf import Value, blend, egg, ellipse

RADIUS = 0.86  # of the cylinder that features sit on; the chin is at y = 1, the crown at y = -1

# Rows: palette.FACES; columns: width of the skull, of the cheeks, radius of the chin, height of the cheeks.
_FACES = [
    [0.74, 0.66, 0.30, 0.10], [0.77, 0.71, 0.40, 0.16], [0.75, 0.68, 0.47, 0.22], [0.77, 0.65, 0.23, 0.04],
    [0.71, 0.62, 0.33, 0.14],
]  # fmt: skip


@dataclass
class Feature:
    """Coordinates about a point of the face, +x away from the middle of the face for its right half."""

    x: Tensor
    y: Tensor
    window: Window


class Head:
    """Head coordinates over the whole canvas, the face outline, and frames for the features."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.scale = stage["zoom"] * stage.geometry.head
        self.turn = stage["yaw"]
        self.sin, self.cos = self.turn.sin(), self.turn.cos()
        cos, sin = stage["tilt"].cos(), stage["tilt"].sin()
        left, top = stage.x - stage["shift_x"], stage.y - stage["shift_y"] + 0.02
        self.x = (left * cos + top * sin) / self.scale
        self.y = (top * cos - left * sin) / self.scale
        self.body_x, self.body_y = left / self.scale, top / self.scale
        width, self.cheek, self.chin, self.cheek_y = stage.table("face", _FACES)
        jaw = stage["jaw"] * 0.03 + stage.scenes.values["gender"].view(-1, 1, 1) * 0.05 - 0.025
        self.width = width * stage["face_width"]
        self.cheek = self.cheek * stage["face_width"]
        self.chin = self.chin + jaw + 0.03
        self.window = stage.window(-0.78, 0.78, -0.82, 0.82)
        self.face = self.outline(self.window.cut(self.x), self.window.cut(self.y))

    def outline(self, x: Tensor, y: Tensor) -> Tensor:
        """Signed distance to the face without ears, canvas units."""
        skull = ellipse(x + 0.06 * self.sin, y + 0.24, self.width, 0.76)
        middle = 0.16 * self.sin * (y + 0.1).clamp(min=0)  # the chin leads when the head turns
        lower = egg(x - middle, y - self.cheek_y, self.cheek, self.chin, 1 - self.chin - self.cheek_y)
        return blend(skull, lower, 0.12) * self.scale

    def place(self, across: Value) -> tuple[Tensor, Tensor]:
        """Where a point of the face at `across` (head units from its middle) is seen, and its foreshortening."""
        stage = self.stage
        ratio = stage.ones * across / RADIUS
        angle = ratio.clamp(-0.98, 0.98).asin()
        seen = angle + self.turn
        return RADIUS * seen.sin() - 0.04 * self.sin, (seen.cos() / angle.cos()).clamp(min=0.3)

    def feature(self, across: Value, down: Value, window: Window, side: int = 1) -> Feature:
        """Frame about the face point (across, down); side = -1 mirrors it."""
        centre, narrow = self.place(side * across)
        x = (window.cut(self.x) - centre) * (side / narrow)
        y = window.cut(self.y) - down - self.stage["pitch"]
        return Feature(x, y, window)
