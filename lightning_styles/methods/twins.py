"""Files of photorealistic twins of style pictures: each is made once, beside a sheet of all its candidates."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torchvision.utils import make_grid

from lightning_styles import noise
from lightning_styles.diffusion.twin import twin_candidates
from lightning_styles.errors import UserError
from lightning_styles.imaging import save_png
from lightning_styles.losses.osasis import twin_scores
from lightning_styles.pretrained import fingerprint, locate


@dataclass(frozen=True)
class Twins:
    """Where the twin of a style picture lies, and how it is made (OSASIS, arXiv 2402.17275, section 3.1).

    Attributes:
        folder: of the twins.
        domain_model: diffusion model of photos, name or path.
        candidates: to choose from.
        fit_to_square: how the style picture became a square, a part of the twin's name.
        t0: how far the style picture is noised.
        seed: of the noise.
    """

    folder: Path
    domain_model: str | None
    candidates: int
    fit_to_square: str
    t0: float
    seed: int

    def find(self, style_image: str, make: Callable[[Path, nn.Module], None]) -> Path:
        """The file of the twin; `make` is given it and the diffusion model where there is none yet."""
        if not self.domain_model:
            raise UserError(
                "the style picture needs a photorealistic twin: set model.domain_model or model.twin_image."
            )
        from lightning_styles.pretrained.diffae import load_guided_unet

        network = locate(self.domain_model, "guided-diffusion")
        made_of = (fingerprint(Path(style_image)), fingerprint(network))
        parts = (*made_of, self.candidates, self.fit_to_square, self.t0, self.seed)
        path = self.folder / f"{Path(style_image).stem}_{noise.number(*map(str, parts)):016x}.png"
        if not path.exists():
            make(path, load_guided_unet(network))
        return path

    @torch.no_grad()
    def make(self, path: Path, network: nn.Module, style: Tensor, judge: nn.Module) -> None:
        """Write the best candidate for `style` (1, 3, S, S) at `path`, and the sheet of all of them beside it."""
        candidates = torch.cat(list(twin_candidates(network, style, self.candidates, t0=self.t0, seed=self.seed)))
        scores = twin_scores(candidates, style, lambda x: judge(x, style.expand_as(x)))
        save_png(candidates_file(path), make_grid(torch.cat([style, candidates[scores.argsort()]])))
        save_png(path, candidates[scores.argmin()], {"score": scores.min().item(), "candidates": self.candidates})


def candidates_file(twin: Path) -> Path:
    """The sheet that shows the style picture and all candidates for its twin, the best first."""
    return twin.with_name(f"{twin.stem}_candidates.png")
