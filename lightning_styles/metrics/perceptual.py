"""Distances of two pictures, averaged over pictures: in pixels, in a perceptual network's features, by LPIPS."""

import warnings
from pathlib import Path

import torch
from torch import Tensor, nn
from torchmetrics import MeanMetric

from lightning_styles.errors import UserError
from lightning_styles.metrics.pictures import check_pictures
from lightning_styles.models.perceptual import feature_distance
from lightning_styles.pretrained import locate
from lightning_styles.pretrained.weights import read_torch

# A key that only this trunk of torchvision has, and its shape.
TRUNKS = {
    "alex": ("features.0.weight", (64, 3, 11, 11)),
    "vgg": ("features.28.weight", (512, 512, 3, 3)),
    "squeeze": ("features.12.expand3x3.weight", (256, 64, 3, 3)),
}
TRUNK_FILES = "alexnet-owt-7be5be79.pth, vgg16-397923af.pth or squeezenet1_1-b8a52dc0.pth of torchvision"


class PixelDistance(MeanMetric):
    """Mean absolute difference of pictures in [-1, 1]."""

    higher_is_better = False

    def __init__(self) -> None:
        super().__init__(nan_strategy="disable")

    def update(self, x: Tensor, y: Tensor) -> None:  # type: ignore[override]
        """Add the pairs `x`, `y`, each (B, 3, H, W) in [-1, 1]."""
        check_pictures("pixel distance", x, y)
        super().update((x - y).abs().mean((1, 2, 3)))


class PerceptualDistance(MeanMetric):
    """Mean distance of pictures as a network sees them.

    Args:
        network: maps two batches (B, 3, H, W) in [-1, 1] to distances (B,): `load_perceptual` or `load_lpips`.
    """

    higher_is_better = False

    def __init__(self, network: nn.Module) -> None:
        super().__init__(nan_strategy="disable")
        self.network = network

    def update(self, x: Tensor, y: Tensor) -> None:  # type: ignore[override]
        """Add the pairs `x`, `y`, each (B, 3, H, W) in [-1, 1]."""
        check_pictures("perceptual distance", x, y)
        super().update(self.network(x, y))


class LPIPS(nn.Module):
    """LPIPS (arXiv 1801.03924) of the package `lpips`, with a trunk that is given and never random.

    Args:
        trunk: state dict of torchvision's AlexNet, VGG16 or SqueezeNet 1.1; the kind is recognised.

    Raises:
        UserError: the state dict is none of these, or holds the linear heads alone.
    """

    def __init__(self, trunk: dict[str, Tensor]) -> None:
        super().__init__()
        self.kind = trunk_kind(trunk)
        import lpips

        # pnet_rand only keeps lpips from downloading; every trunk weight is replaced below.
        with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
            warnings.simplefilter("ignore")
            self.network = lpips.LPIPS(net=self.kind, pnet_rand=True, verbose=False)
        own = self.network.net.state_dict()
        self.network.net.load_state_dict({key: trunk["features." + key.partition(".")[2]] for key in own})
        self.eval().requires_grad_(False)

    def embed(self, image: Tensor) -> list[Tensor]:
        """Maps of `image` (B, 3, H, W) in [-1, 1] between which `feature_distance` is LPIPS; can be kept.

        They are the trunk's features of unit length, times the square roots of the linear heads' weights.
        """
        maps = self.network.net(self.network.scaling_layer(image))
        heads = [next(head.parameters()).clamp_min(0).sqrt() for head in self.network.lins]
        return [_unit(features) * head for features, head in zip(maps, heads, strict=True)]

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Distance (B,) of `x` and `y`, each (B, 3, H, W) in [-1, 1]."""
        return feature_distance(self.embed(x), self.embed(y))


def _unit(features: Tensor) -> Tensor:
    # The inner constant is lost in any length but 0, where it keeps the gradient of the root finite.
    return features / (features.square().sum(1, keepdim=True).add(1e-20).sqrt() + 1e-10)


def trunk_kind(trunk: dict[str, Tensor]) -> str:
    """Which LPIPS trunk a state dict of torchvision is: "alex", "vgg" or "squeeze"."""
    for kind, (key, shape) in TRUNKS.items():
        if key in trunk and tuple(trunk[key].shape) == shape:
            return kind
    heads = "the linear heads of LPIPS alone" if any(key.startswith("lin") for key in trunk) else "another network"
    raise UserError(f"The file given as lpips holds {heads}; it needs the trunk: {TRUNK_FILES}.")


def load_lpips(name: str) -> LPIPS:
    """The frozen LPIPS network whose trunk is at `name` (.pth of torchvision, or safetensors).

    The small linear heads come with the package `lpips`.
    """
    path = locate(name, "lpips")
    return LPIPS(read_weights(path, f"the trunk, {TRUNK_FILES}"))


def load_distance(lpips: str | None, perceptual: str | None) -> nn.Module:
    """LPIPS with the trunk `lpips` or, where that is None, the small network `perceptual` in its place, frozen."""
    from lightning_styles.pretrained.networks import load_perceptual

    if lpips:
        return load_lpips(lpips)
    assert perceptual, "one of the two is given"
    return load_perceptual(perceptual)


def read_weights(path: Path, expected: str) -> dict[str, Tensor]:
    """The tensors of a safetensors or PyTorch file, read without running any code from it.

    Raises:
        UserError: the file is damaged or holds more than tensors; `expected` says what is needed.
    """
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            state = load_file(path)
        else:
            state = read_torch(path)
        if not all(isinstance(value, Tensor) for value in state.values()):
            raise TypeError("more than tensors")
    except Exception as error:  # torch raises almost anything on damaged bytes
        raise UserError(f"{path} cannot be read as weights; expected {expected}.") from error
    return state
