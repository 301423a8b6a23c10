"""Every metric refuses what is no picture in [-1, 1], in one sentence."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_styles.errors import UserError
from lightning_styles.metrics.diversity import Diversity
from lightning_styles.metrics.dreamsim import DreamSim
from lightning_styles.metrics.evaluation import Evaluation
from lightning_styles.metrics.features import ArtInceptionFeatures, InceptionFeatures, PooledFeatures
from lightning_styles.metrics.identity import IdentitySimilarity
from lightning_styles.metrics.perceptual import PerceptualDistance, PixelDistance
from lightning_styles.metrics.rapsd import RadialSpectrum, rapsd
from lightning_styles.metrics.structure import StructureDistance
from lightning_styles.models.perceptual import PerceptualNet
from lightning_styles.models.self_similarity import DinoKeys
from tests.micro_judges import micro_vit


class Colours(nn.Module):
    """Sees of a picture its colours alone: embeds it, and is how far two of them are apart."""

    def embed(self, images: Tensor) -> Tensor:
        return images.mean((2, 3)) + 2

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        return self.embed(x) if y is None else (x - y).abs().mean((1, 2, 3))


def without_weights(kind: type[nn.Module]) -> Any:
    """Features whose network is a stand-in."""
    features = kind.__new__(kind)
    nn.Module.__init__(features)
    features.trunk = nn.Identity()
    return features


def evaluation() -> Any:
    return Evaluation({"perceptual": "tiny/perceptual"}).update


# name in the message -> what takes pictures of (result, source)
METRICS: dict[str, Callable[[], Callable[[Tensor, Tensor], Any]]] = {
    "pixel distance": lambda: PixelDistance().update,
    "perceptual distance": lambda: PerceptualDistance(Colours()).update,
    "identity": lambda: IdentitySimilarity(Colours()).update,
    "structure": lambda: StructureDistance(DinoKeys(micro_vit(), 32)).update,
    "the evaluation": evaluation,
    "spectrum": lambda: lambda x, y: (rapsd(x), RadialSpectrum(8).update(y)),
    "diversity": lambda: lambda x, y: (
        Diversity(Colours()).update(x, torch.zeros(len(x))), Diversity(Colours()).update(y, torch.zeros(len(y)))
    ),
    "dreamsim": lambda: DreamSim(Colours()),
    "style_features": lambda: each(PooledFeatures(PerceptualNet((4, 8)))),
    "inception": lambda: each(without_weights(InceptionFeatures)),
    "art_inception": lambda: each(without_weights(ArtInceptionFeatures)),
}  # fmt: skip


def each(one: Callable[[Tensor], Any]) -> Callable[[Tensor, Tensor], Any]:
    return lambda x, y: (one(x), one(y))


GREY = torch.zeros(2, 3, 96, 96)
BAD = {
    "floats to 255": (GREY + 200, r"float32 values from 200 to 200"),
    "8 bits": ((GREY + 200).byte(), r"uint8 values from 200 to 200"),
    "0 and 1 in 8 bits": ((GREY + 1).byte(), r"uint8 values from 1 to 1"),
    "NaN": (GREY.clone().index_fill_(2, torch.tensor([5]), torch.nan), r"float32 values from nan to nan"),
    "infinite": (GREY + torch.inf, r"float32 values from inf to inf"),
    "negative": (GREY - 1.5, r"float32 values from -1\.5 to -1\.5"),
    "one channel": (GREY[:, :1], r"pictures of shape .*\(2, 1, 96, 96\).*"),
    "no batch": (GREY[0], r"pictures of shape .*\(3, 96, 96\).*"),
    "channels last": (GREY.permute(0, 2, 3, 1), r"pictures of shape .*\(2, 96, 96, 3\).*"),
}
EXPECTED = r"; expected float pictures \(B, 3, H, W\) of one shape in \[-1, 1\]\.$"


@pytest.mark.parametrize("name", METRICS)
def test_what_is_no_picture_in_range_is_refused(name: str) -> None:
    metric = METRICS[name]()
    metric(GREY, GREY)
    metric(GREY + 1.0005, GREY - 1)  # the rounding of a resize
    for bad, found in BAD.values():
        for pair in ((bad, GREY), (GREY, bad)):
            with pytest.raises(UserError, match=rf"^{name} was given {found}{EXPECTED}"):
                metric(*pair)


@pytest.mark.parametrize("name", ["pixel distance", "perceptual distance", "identity", "structure", "the evaluation"])
def test_pairs_of_two_sizes_are_refused(name: str) -> None:
    with pytest.raises(UserError, match=rf"^{name} was given pictures of shape .* and \(2, 3, 96, 80\){EXPECTED}"):
        METRICS[name]()(GREY, GREY[..., :80])
