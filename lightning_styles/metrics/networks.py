"""Which networks the keys of `metrics` stand for, what they need, and what their numbers depend on."""

import difflib

from torch import nn

from lightning_styles.errors import UserError
from lightning_styles.metrics.features import ArtInceptionFeatures, InceptionFeatures, PooledFeatures
from lightning_styles.metrics.perceptual import LPIPS, load_distance

Features = PooledFeatures | InceptionFeatures | ArtInceptionFeatures
KINDS = {
    "perceptual": "perceptual",
    "lpips": "lpips",
    "identity": "identity",
    "structure": "structure",
    "inception": "inception",
    "art_inception": "art-inception",
    "style_features": "perceptual",
    "dreamsim": "dreamsim",
    "style_images": "file",
}
ABOUT = {
    "inception": "fid and kid: pictures resized to 299 x 299, bilinear, not antialiased, as pytorch-fid does",
    "art_inception": "artfid: LPIPS of AlexNet and ArtFID's own Inception, pictures not resized",
    "style_features": "fd, kd and artfd: features of style_features, content as above; comparable only with each other",
    "dreamsim": "dreamsim: ensemble, 1 - cosine similarity, pictures resized to 224 x 224, bicubic, antialiased",
}


def required_models(metrics: dict[str, str]) -> list[tuple[str, str]]:
    """(name or path, kind) of every file that `metrics` reads.

    Raises:
        UserError: an unknown key, two keys that exclude each other, or one without the other that it needs.
    """
    for key in metrics:
        if key not in KINDS:
            close = difflib.get_close_matches(key, KINDS, n=1)
            hint = f"did you mean {close[0]}?" if close else f"known are {', '.join(KINDS)}."
            raise UserError(f"There is no metric {key!r}: {hint}")
    if {"perceptual", "lpips"} <= metrics.keys():
        raise UserError("metrics has perceptual and lpips, which measure the same; keep one of them.")
    if "art_inception" in metrics and "lpips" not in metrics:
        raise UserError("art_inception makes ArtFID of LPIPS; add lpips: alexnet-imagenet to metrics.")
    return list(dict.fromkeys((name, KINDS[key]) for key, name in metrics.items()))


def load_distances(metrics: dict[str, str]) -> dict[str, nn.Module]:
    """The networks that measure how far two pictures are apart, by what the names of their values begin with."""
    found: dict[str, nn.Module] = {}
    if "lpips" in metrics or "perceptual" in metrics:
        found[""] = network = load_distance(metrics.get("lpips"), metrics.get("perceptual"))
        if "art_inception" in metrics and (not isinstance(network, LPIPS) or network.kind != "alex"):
            raise UserError(f"ArtFID is of LPIPS with AlexNet; give lpips: alexnet-imagenet, not {metrics['lpips']}.")
    if "dreamsim" in metrics:
        from lightning_styles.metrics.dreamsim import load_dreamsim

        found["dreamsim_"] = load_dreamsim(metrics["dreamsim"])
    return found


def load_style_networks(metrics: dict[str, str]) -> dict[str, Features]:
    """The networks whose features of results and style images are compared, by their key."""
    found: dict[str, Features] = {}
    if "inception" in metrics:
        found["inception"] = InceptionFeatures(metrics["inception"])
    if "art_inception" in metrics:
        found["art_inception"] = ArtInceptionFeatures(metrics["art_inception"])
    if "style_features" in metrics:
        from lightning_styles.pretrained.networks import load_perceptual

        found["style_features"] = PooledFeatures(load_perceptual(metrics["style_features"]))
    return found
