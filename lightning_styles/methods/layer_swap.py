"""Layer swap between a generator and its finetuned copy: of weights (Toonify) or of maps (UI2I), arXiv 2010.05334."""

import copy
from math import log2
from typing import Any, Literal

import torch
from torch import Tensor

from lightning_styles import noise
from lightning_styles.errors import UserError, at_least
from lightning_styles.methods.encoded_faces import EncodedFaces
from lightning_styles.models.stylegan2 import Generator
from lightning_styles.models.stylegan2.mixing import blend, swap_at, swap_features, truncate
from lightning_styles.pretrained import fingerprint, locate
from lightning_styles.pretrained.stylegan2 import load_stylegan2


class LayerSwap(EncodedFaces):
    """Some resolutions of the source and some of a finetuned generator; trains nothing.

    With `swap: weights` a third generator is put together of the two, with the source's mapping network. With
    `swap: maps` the source draws the maps up to `resolution`, from which the finetuned one goes on; the colours of the
    resolutions below are the finetuned one's.

    Args:
        source: generator of photos.
        target: its finetuned copy, a file of the same architecture, such as `PseudoPairedStyleGAN` exports.
        encoder: pSp encoder of the source.
        swap: "weights" or "maps".
        resolution: px; of the first layers that come from the other network (weights), of the maps (maps).
        low: whose layers below `resolution` are taken (weights): "target" keeps the drawn faces' shapes and the photos'
            texture, as Toonify did; "source" keeps the photos' shapes.
        ramp: resolutions over which one network fades into the other (weights); 0 swaps at once.
        style: what the finetuned generator draws (maps): the photo's own styles ("content"), or random ones.
        psi: truncation of random styles.
        paste_back: put faces that were cut out of photos back there.
        metrics: name -> network or folder for `validate` and `test`, see `lightning_styles.metrics`.
        seed: key of the random styles.
    """

    target: Generator
    mixed: Generator

    def __init__(
        self,
        *,
        source: str,
        target: str,
        encoder: str,
        swap: Literal["weights", "maps"] = "weights",
        resolution: int = 32,
        low: Literal["target", "source"] = "target",
        ramp: int = 0,
        style: Literal["content", "random"] = "content",
        psi: float = 0.7,
        paste_back: bool = False,
        metrics: dict[str, str] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(iterations=1, seed=seed, metrics=metrics)
        at_least(0, ramp=ramp, psi=psi)
        self.save_hyperparameters()

    @classmethod
    def required_models(cls, init_args: dict[str, Any]) -> list[tuple[str, str]]:
        return [*super().required_models(init_args), (init_args["target"], "stylegan2")]

    def configure_model(self) -> None:
        if hasattr(self, "target"):
            return
        h, path = self.hparams, locate(self.hparams.target, "stylegan2")
        self.load_source()
        if fingerprint(path) == self.base_models[h.source]:
            raise UserError(f"target is {h.target}, the source itself; give the finetuned generator.")
        self.base_models[h.target] = fingerprint(path)
        target = load_stylegan2(path).generator.to(self.run_device)
        ours, theirs = ({k: x.shape for k, x in g.state_dict().items()} for g in (self.source, target))
        if ours != theirs:
            raise UserError(f"{h.target} is no copy of {h.source}: it has another architecture; finetune the source.")
        sides = sorted(set(self.source.noise_sizes))
        allowed = sides[1:] if h.swap == "weights" else sides[:-1]
        if h.resolution not in allowed:
            raise UserError(f"resolution is {h.resolution}; with swap {h.swap} expected one of {allowed}.")
        self.__dict__["target"] = target
        self.__dict__["mixed"] = self.put_together() if h.swap == "weights" else target

    def put_together(self) -> Generator:
        """The generator between the two."""
        h, ours, theirs = self.hparams, self.source.state_dict(), self.target.state_dict()
        low, high = (theirs, ours) if h.low == "target" else (ours, theirs)
        mixed = copy.deepcopy(self.source)
        mixed.load_state_dict(blend(low, high, swap_at(h.resolution, h.ramp), ours))
        return mixed

    def stylize(self, w: Tensor, names: list[str]) -> Tensor:
        h = self.hparams
        if h.swap == "weights":
            return self.mixed(w)
        style = w if h.style == "content" else self.random_styles(names)
        return swap_features(self.source, self.target, w, style, 2 * int(log2(h.resolution)) - 5, None)

    def random_styles(self, names: list[str]) -> Tensor:
        """w (B, D), a pure function of the seed and the pictures' names."""
        draws = [torch.randn(self.source.style_dim, generator=noise.generator(self.seed, name)) for name in names]
        w = self.target.mapping(torch.stack(draws).to(self.latent_avg))
        return truncate(w, self.latent_avg, self.hparams.psi)
