"""Distances of two sets of pictures by their features: FID, KID, and ArtFID.

Numbers compare only when features, number of pictures and resolution are the same. FID is biased upwards by few
pictures; KID is not, which makes it the one to read on small sets.
"""

import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance
from torchmetrics.utilities import dim_zero_cat

from lightning_styles.errors import UserError
from lightning_styles.metrics.perceptual import read_weights
from lightning_styles.models.perceptual import PerceptualNet
from lightning_styles.pretrained import locate

LEAST = 16  # pictures on each side, below which FID says nothing


class Given(nn.Module):
    """Takes the place of a feature network where features are handed over ready.

    Args:
        num_features: length D of the features.
    """

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, features: Tensor) -> Tensor:
        return features


class FrechetDistance(FrechetInceptionDistance):
    """Frechet distance of two sets of features (FID, arXiv 1706.08500, equation 6).

    Args:
        num_features: length D of the features.
        least: fewest pictures on each side.
    """

    def __init__(self, num_features: int, least: int = LEAST, **kwargs: Any) -> None:
        super().__init__(feature=Given(num_features), **kwargs)
        self.least = least

    def compute(self) -> Tensor:
        """The distance.

        Raises:
            UserError: fewer than `least` pictures on a side.
        """
        real, fake = int(self.real_features_num_samples), int(self.fake_features_num_samples)
        if min(real, fake) < self.least:
            raise UserError(
                f"FID of {fake} results against {real} style images says nothing; give at least {self.least} "
                "of each, or read KID."
            )
        return super().compute().clamp(min=0)  # rounding leaves a tiny negative number for equal sets


class KernelDistance(KernelInceptionDistance):
    """Unbiased squared maximum mean discrepancy, cubic kernel (KID, arXiv 1801.01401, section 4), of whole sets.

    With as many results as style images it is taken over all of them, else over 100 random subsets of the larger.
    """

    def __init__(self, num_features: int, **kwargs: Any) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that features are kept, which are a few MB
            super().__init__(feature=Given(num_features), subset_size=2, **kwargs)
        # Joined before the ranks exchange them: one exchange each, however many batches a rank had.
        self.add_state("real_features", [], dist_reduce_fx="cat")
        self.add_state("fake_features", [], dist_reduce_fx="cat")

    def compute(self) -> Tensor:  # type: ignore[override]
        """The distance; slightly negative values are usual for equal distributions.

        Raises:
            UserError: fewer than 2 pictures on a side.
        """
        real, fake = (len(dim_zero_cat(features)) for features in (self.real_features, self.fake_features))
        if min(real, fake) < 2:
            raise UserError(f"KID needs at least 2 results and 2 style images, found {fake} and {real}.")
        self.subset_size, self.subsets = min(real, fake), 1 if real == fake else 100
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return super().compute()[0]


def art_fid(content: float, fid: float) -> float:
    """ArtFID (arXiv 2207.12280): (1 + content distance to the source) (1 + FID to the style)."""
    return (1 + content) * (1 + fid)


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
        return torch.cat([features.mean((2, 3)) for features in self.network.features(images)], dim=1)


class InceptionFeatures(nn.Module):
    """The 2048 pooled features of FID's Inception-v3; pictures are resized to 299 x 299, bilinear, antialiased.

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
        from torchmetrics.image.fid import NoTrainInceptionV3

        try:
            self.network = NoTrainInceptionV3("inception-v3-compat", ["2048"], str(path))
        except ModuleNotFoundError as error:
            raise UserError("FID's Inception needs torch-fidelity: pip install 'lightning-styles[metrics]'.") from error
        except Exception as error:
            raise UserError(f"{path} does not hold the weights of FID's Inception: {error}.") from error
        self.requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        """Features (B, 2048) of `images` (B, 3, H, W) in [-1, 1]."""
        return self.network(((images.clamp(-1, 1) + 1) * 127.5).round().byte())
