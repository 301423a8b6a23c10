"""Files of photorealistic twins of style pictures: each is made once, beside a sheet of all its candidates."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torchvision.utils import make_grid

from lightning_styles import noise
from lightning_styles.diffusion.twin import twin_candidates
from lightning_styles.errors import UserError
from lightning_styles.imaging import save_png
from lightning_styles.losses.osasis import twin_scores
from lightning_styles.metrics.perceptual import load_distance
from lightning_styles.pretrained import fingerprint, locate
from lightning_styles.pretrained.diffae import load_guided_unet
from lightning_styles.square import Fit, open_square


@dataclass(frozen=True)
class Twins:
    """Where the twin of a style picture lies, and how it is made (OSASIS, arXiv 2402.17275, section 3.1).

    Attributes:
        folder: of the twins.
        domain_model: diffusion model of photos, name or path.
        candidates: to choose from.
        resolution: side S of the twin in px.
        fit_to_square: how the style picture becomes a square.
        t0: how far the style picture is noised.
        lpips: trunk of the network that chooses, or None.
        perceptual: small network in its place, or None.
        seed: of the noise.
    """

    folder: Path
    domain_model: str | None
    candidates: int
    resolution: int
    fit_to_square: Fit
    t0: float
    lpips: str | None
    perceptual: str | None
    seed: int

    def find(self, style_image: Path, device: torch.device) -> Path:
        """The file of the twin, made on `device` if there is none yet.

        Raises:
            UserError: there is no `domain_model`, or a file is missing.
        """
        if not self.domain_model:
            raise UserError(
                "the style picture needs a photorealistic twin: set model.domain_model or model.twin_image."
            )
        network = locate(self.domain_model, "guided-diffusion")
        made_of = (fingerprint(style_image), fingerprint(network))
        recipe = (self.candidates, self.resolution, self.fit_to_square, self.t0, self.lpips, self.perceptual, self.seed)
        name = f"{style_image.stem[:40]}_{noise.number(*map(str, (*made_of, *recipe))):016x}.png"
        if not (self.folder / name).exists():
            self._make(self.folder / name, network, style_image, device)
        return self.folder / name

    @torch.no_grad()
    def _make(self, path: Path, network: Path, style_image: Path, device: torch.device) -> None:
        """Write the best candidate at `path`, and before it the sheet of all of them: where `path` is, both are."""
        style = open_square(style_image, self.resolution, self.fit_to_square).to(device)
        judge = load_distance(self.lpips, self.perceptual).to(device)
        sampled = twin_candidates(
            load_guided_unet(network).to(device), style, self.candidates, t0=self.t0, seed=self.seed
        )
        candidates = torch.cat(list(sampled))
        scores = twin_scores(candidates, style, lambda x: judge(x, style.expand_as(x)))
        save_png(candidates_file(path), make_grid(torch.cat([style, candidates[scores.argsort()]])))
        save_png(path, candidates[scores.argmin()], {"score": scores.min().item(), "candidates": self.candidates})


def candidates_file(twin: Path) -> Path:
    """The sheet that shows the style picture and all candidates for its twin, the best first."""
    return twin.with_name(f"{twin.stem}_candidates.png")
