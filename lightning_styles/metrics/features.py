"""Networks whose features of a set of pictures are compared: FID's and ArtFID's Inception, and the embedded one."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from lightning_styles.errors import UserError
from lightning_styles.metrics.perceptual import read_weights
from lightning_styles.metrics.pictures import check_pictures
from lightning_styles.models.perceptual import PerceptualNet
from lightning_styles.pretrained import locate
from lightning_styles.pretrained.weights import check_fit

SIDE = 299  # px, of what FID's Inception sees
SMALLEST = 75  # px each way, from which Inception has a feature
HEADS = ("fc", "AuxLogits")  # with these the names of Inception's classifiers begin
LAYERS = (
    "Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "pool1", "Conv2d_3b_1x1", "Conv2d_4a_3x3", "pool2",
    "Mixed_5b", "Mixed_5c", "Mixed_5d", "Mixed_6a", "Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e",
    "Mixed_7a", "Mixed_7b", "Mixed_7c",
)  # fmt: skip


class PooledFeatures(nn.Module):
    """Style features of the embedded world: each channel's mean over the picture, all levels side by side.

    Distances in them compare only with each other, never with numbers from Inception.

    Args:
        network: the perceptual network.
    """

    def __init__(self, network: PerceptualNet) -> None:
        super().__init__()
        self.network = network
        self.num_features = sum(network.widths)

    def forward(self, images: Tensor) -> Tensor:
        """Features (B, D) of `images` (B, 3, H, W) in [-1, 1]."""
        check_pictures("style_features", images)
        return torch.cat([features.mean((2, 3)) for features in self.network.features(images)], dim=1)


class InceptionFeatures(nn.Module):
    """The 2048 pooled features of FID's Inception-v3 (arXiv 1706.08500), the TensorFlow network of 2015-12-05.

    Pictures are resized to 299 x 299 px as pytorch-fid does: bilinear, in floats, not antialiased. Numbers with
    torchmetrics' antialiased resize, or with TensorFlow's own, differ.

    Args:
        name: inception-fid, or the path of its weights.

    Raises:
        UserError: torch-fidelity is not installed, or the file holds something else.
    """

    num_features = 2048

    def __init__(self, name: str) -> None:
        super().__init__()
        path = locate(name, "inception")
        read_weights(path, "the weights of FID's Inception, inception-fid")  # first of all, that they are nothing else
        try:
            from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
        except ModuleNotFoundError as error:
            raise UserError("FID's Inception needs torch-fidelity: pip install 'lightning-styles[metrics]'.") from error
        try:
            network = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], str(path))
        except Exception as error:
            raise UserError(f"{path} does not hold the weights of FID's Inception: {error}.") from error
        self.trunk = _trunk(network, "MaxPool_")

    def forward(self, images: Tensor) -> Tensor:
        """Features (B, 2048) of `images` (B, 3, H, W) in [-1, 1]."""
        check_pictures("inception", images)
        return self.trunk(to_inception(images)).mean((2, 3))


def to_inception(images: Tensor, side: int = SIDE) -> Tensor:
    """`images` (B, 3, H, W) as squares of `side` px, bilinear with half-pixel centres and without antialias."""
    return interpolate(images.float(), (side, side), mode="bilinear", align_corners=False)


class ArtInceptionFeatures(nn.Module):
    """The 2048 pooled features of ArtFID's Inception-v3 (arXiv 2207.12280), trained on artworks.

    Pictures stay as large as they are, so that numbers depend on the resolution.

    Args:
        name: art-inception, or the path of its weights.

    Raises:
        UserError: the file holds something else.
    """

    num_features = 2048

    def __init__(self, name: str) -> None:
        super().__init__()
        path = locate(name, "art-inception")
        self.trunk = _art_trunk(read_weights(path, "the weights of ArtFID's Inception, art-inception"), path)

    def forward(self, images: Tensor) -> Tensor:
        """Features (B, 2048) of `images` (B, 3, H, W) in [-1, 1], at least 75 px each way."""
        check_pictures("art_inception", images)
        height, width = images.shape[-2:]
        if min(height, width) < SMALLEST:
            raise UserError(f"ArtFID needs pictures of at least {SMALLEST} px each way, these have {height} x {width}.")
        return self.trunk((images.float() + 1) / 2).mean((2, 3))


def _art_trunk(state: Mapping[str, Tensor], path: Path) -> nn.Sequential:
    """Inception without its heads; that it has two of them tells the artworks' network from others."""
    from torchvision.models import Inception3

    if not {"fc1.weight", "fc2.weight"} <= state.keys():
        raise UserError(
            f"{path} does not hold the weights of ArtFID's Inception, whose heads are fc1 and fc2; "
            "give art_inception.pth."
        )
    with torch.device("meta"):
        network = Inception3(aux_logits=False, init_weights=False)
    del network.fc
    own = {key: value for key, value in state.items() if not key.startswith(HEADS)}
    check_fit(network, own, path.name)
    network.load_state_dict(own, assign=True)
    return _trunk(network, "maxpool")


def _trunk(network: nn.Module, pool: str) -> nn.Sequential:
    """The layers of an Inception up to its last feature map, frozen; `pool` is what its poolings are called."""
    layers = (network.get_submodule(name.replace("pool", pool)) for name in LAYERS)
    return nn.Sequential(*layers).eval().requires_grad_(False)
