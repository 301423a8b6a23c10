"""Layer swap of a generator and its finetuned copy: weights (Toonify, arXiv 2010.05334) or maps (UI2I, 2010.05713)."""

import copy
from functools import cached_property
from math import log2
from pathlib import Path
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
        target: its finetuned copy, a file of the same architecture, such as `PseudoPairedStyleGAN` exports; None takes
            the averaged generator of the checkpoint that a command is given, one of `PseudoPairedStyleGAN`'s.
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

    reads = ("lightning_styles.methods.pseudo_paired_stylegan.PseudoPairedStyleGAN",)
    average: Generator

    def __init__(
        self,
        *,
        source: str,
        target: str | None = None,
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
        named = [(init_args["target"], "stylegan2")] if init_args.get("target") else []
        return super().required_models(init_args) + named

    def configure_model(self) -> None:
        if hasattr(self, "average"):
            return
        h = self.hparams
        self.load_source()
        self.average = copy.deepcopy(self.source)
        self.given = h.target is not None
        if self.given:
            self._take_target(locate(h.target, "stylegan2"))
        sides = sorted(set(self.source.noise_sizes))
        allowed = sides[1:] if h.swap == "weights" else sides[:-1]
        if h.resolution not in allowed:
            raise UserError(f"resolution is {h.resolution}; with swap {h.swap} expected one of {allowed}.")

    def _take_target(self, path: Path) -> None:
        h = self.hparams
        if fingerprint(path) == self.base_models[h.source]:
            raise UserError(f"target is {h.target}, the source itself; give the finetuned generator.")
        self.base_models[h.target] = fingerprint(path)
        theirs = load_stylegan2(path).generator.state_dict()
        if {k: x.shape for k, x in theirs.items()} != {k: x.shape for k, x in self.average.state_dict().items()}:
            raise UserError(f"{h.target} is no copy of {h.source}: it has another architecture; finetune the source.")
        self.average.load_state_dict(theirs)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Of a checkpoint of `PseudoPairedStyleGAN` only the averaged generator is of use."""
        state = checkpoint["state_dict"]
        checkpoint["state_dict"] = {key: x for key, x in state.items() if key.startswith("average.")}
        super().on_load_checkpoint(checkpoint)
        self.given = True

    @property
    def target(self) -> Generator:
        """The finetuned generator.

        Raises:
            UserError: neither the settings nor the command name one.
        """
        if not self.given:
            raise UserError("there is no finetuned generator: set model.target, or give --ckpt_path of its run.")
        return self.average

    @cached_property
    def mixed(self) -> Generator:
        """The generator between the two, by weights."""
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
