"""How a finetuned StyleGAN2 draws photographs: as they are, with random styles, or with those of a reference.

Notation: B batch, L styles of a picture, D length of a style, S side of the generator's pictures, w+ and z+ (B, L, D).
"""

import itertools
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_styles import noise
from lightning_styles.alignment import Face
from lightning_styles.errors import UserError, at_least
from lightning_styles.files import existing
from lightning_styles.methods.encoded_faces import open_face
from lightning_styles.methods.finetuned_stylegan import FinetunedStyleGAN
from lightning_styles.methods.pseudo_pairs import Style
from lightning_styles.methods.references import References
from lightning_styles.models.stylegan2.factorization import VSpace
from lightning_styles.models.stylegan2.mixing import truncate
from lightning_styles.models.stylegan2.stylize import (
    MULTIMODAL,
    PSI,
    REFERENCE,
    check_layer,
    multimodal,
    reference_guided,
    scaled,
    standard,
)
from lightning_styles.sheet import labelled_row, labelled_sheets

LAYERS = {"multimodal": MULTIMODAL[1], "reference": REFERENCE[1]}  # of 18, where the settings name none


class StylizedFaces(FinetunedStyleGAN):
    """The modes of `predict` and `test`; settings are those of `PseudoPairedStyleGAN`."""

    def check_mode(self) -> None:
        """Refuse settings that the mode has no use for, or cannot do without.

        Raises:
            UserError: naming the first one.
        """
        h = self.hparams
        at_least(1, samples=h.samples, reference_steps=h.reference_steps)
        at_least(0, psi=1.0 if h.psi is None else h.psi)
        if h.layer == []:
            raise UserError("layer is an empty list; name one layer, several, or null.")
        if h.layer is not None and h.mode == "standard":
            raise UserError(f"layer is {h.layer}, and mode is standard, where the photo has all layers: set it to "
                            "multimodal or reference, or layer to null.")  # fmt: skip
        if h.samples > 1 and h.mode != "multimodal":
            raise UserError(f"samples is {h.samples}, and mode is {h.mode}, which has one result: set it to "
                            "multimodal, or samples to 1.")  # fmt: skip
        if (h.reference is None) == (h.mode == "reference"):
            found = "there is none" if h.reference is None else f"it is {h.reference}"
            raise UserError(f"reference is the picture whose styles mode reference takes; {found}, "
                            f"and mode is {h.mode}: set both.")  # fmt: skip
        if h.mode == "reference" and h.lpips is None and h.perceptual is None:
            raise UserError("mode reference needs a judge: set model.lpips or model.perceptual.")

    def setup(self, stage: str) -> None:
        super().setup(stage)
        self.__dict__.pop("_reference", None)  # of weights that another stage may have changed

    def configure_model(self) -> None:
        super().configure_model()
        for layer in self.layers:
            check_layer(layer, self.source.n_latent)

    @property
    def layers(self) -> list[int]:
        """First layers of the style, each of which a photograph has results of; in mode standard it has none."""
        h = self.hparams
        if h.mode == "standard":
            return [self.source.n_latent]
        if h.layer is None:
            return [scaled(LAYERS[h.mode], self.source.n_latent)]
        return list(h.layer) if isinstance(h.layer, list) else [h.layer]

    def stylize(self, w: Tensor, names: list[str], sample: int = 0, layer: int | None = None) -> Tensor:
        """Results (B, 3, S, S) of photographs' w+, with the stored noise maps.

        Args:
            w: (B, L, D).
            names: keys of what is random.
            sample: counts random styles.
            layer: first one of the style; None takes the first of the settings.
        """
        h, photo_psi = self.hparams, 1.0 if self.hparams.psi is None else self.hparams.psi
        if h.mode == "standard":
            return standard(self.average, w, mean=self.mean, psi=photo_psi)
        layer = self.layers[0] if layer is None else layer
        if h.mode == "multimodal":
            psi = PSI if h.psi is None else h.psi
            return multimodal(self.average, w, self.random_codes(names, sample), self.mean, layer, psi)
        space, v = self.reference
        return reference_guided(self.average, truncate(w, self.mean, photo_psi), v, space, layer)

    def random_codes(self, names: list[str], sample: int) -> Tensor:
        """z+, a pure function of the seed, the pictures' names and the number of the sample."""
        shape = (self.source.n_latent, self.source.style_dim)
        draws = [torch.randn(shape, generator=noise.generator(self.seed, "sample", name, sample)) for name in names]
        return torch.stack(draws).to(self.device)

    def on_predict_start(self) -> None:
        """One process looks for the reference, the others then find its file."""
        if self.hparams.mode == "reference" and self.trainer.state.fn != "fit":
            if self.trainer.is_global_zero:
                _ = self.reference
            self.trainer.strategy.barrier()

    on_validation_start = on_test_start = on_predict_start

    @property
    def reference(self) -> tuple[VSpace, Tensor]:
        """V space of the average, and the coordinates (D,) of the reference, found when first needed."""
        if "_reference" not in self.__dict__:
            h, path = self.hparams, existing(self.hparams.reference)
            square = open_face(path, self.source.size, Path(self.trainer.default_root_dir))[0]
            files = References(Path(h.cache), h.lpips, h.perceptual, h.reference_steps, h.seed)
            self.__dict__["_reference"] = files.find(Style(path.stem, square), self.average, self.mean)
        return self.__dict__["_reference"]

    @torch.no_grad()
    def images(self, batch: dict[str, Any], faces: list[Face]) -> list[Tensor]:
        """Results of faces; with several layers or samples, each photo and its results as one labelled picture."""
        layers, numbers = self.layers, range(1, self.hparams.samples + 1)
        if len(layers) == len(numbers) == 1:
            return super().images(batch, faces)
        squares, names = torch.stack([face.square for face in faces]), batch["name"]
        w = self.encode(squares)

        def placed(drawn: Tensor) -> list[Tensor]:
            return self.placed(drawn.float().clamp(-1, 1), faces, batch["image"])

        before = placed(squares)
        cells = [[placed(self.stylize(w, names, n - 1, layer)) for n in numbers] for layer in layers]
        if len(layers) > 1 and len(numbers) > 1:
            return labelled_sheets(before, cells, {"layer": layers, "sample": numbers})
        labels = [f"sample {n}" for n in numbers] if len(layers) == 1 else [f"layer {layer}" for layer in layers]
        after = dict(zip(labels, itertools.chain(*cells), strict=True))
        return [
            labelled_row({"photo": photo} | {label: drawn[i] for label, drawn in after.items()})
            for i, photo in enumerate(before)
        ]
