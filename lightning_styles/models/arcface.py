"""IR-SE50, the face recognition network of ArcFace (arXiv 1801.07698), under the names of its official weights.

Residual blocks in the "improved" order (norm, conv, PReLU, conv, norm), each with squeeze and excitation
(arXiv 1709.01507).
"""

from torch import Tensor, nn
from torch.nn import functional as F

from lightning_styles.square import to_square

WIDTHS = (64, 128, 256, 512)
BLOCKS = (3, 4, 14, 3)  # of each width; the first of them halves the resolution
SIDE = 112  # px, of the network's input
ALIGNED = 256  # px, of the aligned faces that the crop is made for
ROWS, COLUMNS = slice(35, 223), slice(32, 220)  # the face in them (pSp, arXiv 2008.00951)


class SqueezeExcitation(nn.Module):
    """Scales each channel by a gate that sees all channels' means."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, channels // 16, 1, bias=False)
        self.fc2 = nn.Conv2d(channels // 16, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.fc2(self.fc1(x.mean((2, 3), keepdim=True)).relu()).sigmoid()


class Block(nn.Module):
    """A residual block from `inputs` to `outputs` channels."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.shortcut_layer = nn.MaxPool2d(1, stride) if inputs == outputs else _projection(inputs, outputs, stride)
        self.res_layer = nn.Sequential(
            nn.BatchNorm2d(inputs),
            nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
            nn.PReLU(outputs),
            nn.Conv2d(outputs, outputs, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            SqueezeExcitation(outputs),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.shortcut_layer(x) + self.res_layer(x)


def input_layer(width: int = WIDTHS[0]) -> nn.Sequential:
    """The trunk's first layer, RGB -> `width` maps of the same resolution."""
    return nn.Sequential(nn.Conv2d(3, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.PReLU(width))


def body(widths: tuple[int, ...] = WIDTHS, blocks: tuple[int, ...] = BLOCKS) -> nn.Sequential:
    """The trunk's residual blocks: `blocks` of each width, the first of which halves the resolution."""
    layers: list[nn.Module] = []
    for inputs, outputs, count in zip((widths[0], *widths), widths, blocks, strict=False):
        layers += [Block(inputs, outputs, 2), *(Block(outputs, outputs, 1) for _ in range(count - 1))]
    return nn.Sequential(*layers)


def _projection(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))


class ArcFace(nn.Module):
    """An aligned face -> a unit vector of 512; same person, same direction."""

    def __init__(self) -> None:
        super().__init__()
        last = WIDTHS[-1]
        self.input_layer, self.body = input_layer(), body()
        area = (SIDE // 2 ** len(WIDTHS)) ** 2
        self.output_layer = nn.Sequential(
            nn.BatchNorm2d(last), nn.Dropout(0.6), nn.Flatten(), nn.Linear(last * area, 512), nn.BatchNorm1d(512)
        )

    def embed(self, faces: Tensor) -> Tensor:
        """Unit vectors (B, 512) of cropped `faces` (B, 3, 112, 112) in [-1, 1]."""
        return F.normalize(self.output_layer(self.body(self.input_layer(faces))), dim=1)

    def forward(self, image: Tensor) -> Tensor:
        """Unit vectors (B, 512) of pictures (B, 3, H, W) in [-1, 1] of faces aligned as in FFHQ.

        Seen at 256 x 256 (the middle square of other aspect ratios), of which the face is cropped.
        """
        square = to_square(image, ALIGNED, "crop")
        return self.embed(F.adaptive_avg_pool2d(square[..., ROWS, COLUMNS], SIDE))
