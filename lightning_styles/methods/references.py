"""Files of reference pictures in V space of a finetuned generator: each picture's place there is sought once."""

from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lightning_styles import noise
from lightning_styles.console import say
from lightning_styles.files import replacing
from lightning_styles.imaging import save_png
from lightning_styles.losses.semantic import shrink
from lightning_styles.methods.pseudo_pairs import Style
from lightning_styles.metrics.perceptual import load_distance
from lightning_styles.models.stylegan2 import Generator
from lightning_styles.models.stylegan2.factorization import VSpace, factorize, modulation_weights
from lightning_styles.models.stylegan2.layers import full_precision
from lightning_styles.models.stylegan2.stylize import invert_reference
from lightning_styles.reading import read_made, tensor
from lightning_styles.sheet import labelled_row


@dataclass(frozen=True)
class References:
    """Where the coordinates of a reference lie, and how they are found; see `invert_reference`.

    Attributes:
        folder: of the files.
        lpips: trunk of the network that judges, or None.
        perceptual: small network in its place, or None.
        steps: of Adam.
        seed: of the noise maps.
    """

    folder: Path
    lpips: str | None
    perceptual: str | None
    steps: int
    seed: int

    def find(self, style: Style, generator: Generator, mean: Tensor) -> tuple[VSpace, Tensor]:
        """V space of `generator`, and the coordinates (D,) there of a reference, found now if there is no file yet.

        Args:
            style: the reference, as large as the generator draws.
            generator: the finetuned one; another state of it has files of its own.
            mean: (D,) of its w, where the search begins.
        """
        recipe = (self.lpips or "", self.perceptual or "", self.steps, self.seed)
        key = noise.number(style.digest, digest(generator), *recipe)
        path = self.folder / f"reference_{style.name}_{key:016x}.safetensors"
        if not path.exists():
            self._make(path, style, generator, mean)
        count = len(mean)
        content = {"v": tensor(count), "singular_values": tensor(count), "directions": tensor(count, count)}
        stored = {name: values.to(mean.device) for name, values in read_made(path, content).items()}
        return VSpace(stored["singular_values"], stored["directions"]), stored["v"]

    @torch.inference_mode(False)  # what is loaded in `predict` could not be differentiated through
    @torch.no_grad()
    def _make(self, path: Path, style: Style, generator: Generator, mean: Tensor) -> None:
        """Write a picture of what was found, then the coordinates with their axes, which tell nothing without."""
        from safetensors.torch import save_file

        say(f"looking for reference {style.name}, {self.steps} steps")
        judge: Any = load_distance(self.lpips, self.perceptual).to(mean.device)
        target = style.image[None].to(mean.device)
        space = factorize(modulation_weights(generator))
        with full_precision(mean):  # the file is the same in a run of any precision
            found = invert_reference(generator, space, target, judge, steps=self.steps, mean=mean, seed=self.seed)
            drawn = generator(space.to_w(found.code), found.noise).clamp(-1, 1)
        columns = {"reference": shrink(target)[0], f"found {float(found.distance):.3f}": shrink(drawn)[0]}
        save_png(path.with_suffix(".png"), labelled_row(columns), {"distance": float(found.distance)})
        tensors = {"v": found.code[0], "singular_values": space.singular_values, "directions": space.directions}
        with replacing(path) as temporary:
            save_file({name: values.float().cpu().contiguous() for name, values in tensors.items()}, temporary)


def digest(network: nn.Module) -> str:
    """The same for the same parameters."""
    made_of = blake2b(digest_size=16)
    for name, parameter in network.named_parameters():
        made_of.update(name.encode())
        made_of.update(parameter.detach().float().cpu().contiguous().numpy().tobytes())
    return made_of.hexdigest()
