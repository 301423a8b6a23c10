"""What methods on StyleGAN2 share that draw a photo again from its codes: faces in, faces out."""

from abc import abstractmethod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_styles.alignment import Face, align, find_face, landmarks_beside, paste_back, rescaled
from lightning_styles.batches import EVALUATION, Needs
from lightning_styles.errors import UserError
from lightning_styles.imaging import image_size, read_image
from lightning_styles.models.psp import Space
from lightning_styles.models.stylegan2 import Generator
from lightning_styles.models.stylegan2.pairing import encode_w
from lightning_styles.module import StyleModule
from lightning_styles.pretrained import fingerprint, locate
from lightning_styles.pretrained.psp import PSP, load_psp
from lightning_styles.pretrained.stylegan2 import StyleGAN2, load_stylegan2
from lightning_styles.square import to_square


def faces_of(batch: dict[str, Any], trainer: Any, size: int) -> list[Face]:
    """The faces of a batch of `Pictures` as squares of `size` px, by landmarks beside their files; see `find_face`."""
    folder, data = Path(trainer.default_root_dir), trainer.datamodule
    reader = getattr(getattr(data, "photos", data), "reader", None)
    found = []
    for photo, name, index in zip(batch["image"], batch["name"], batch["index"].tolist(), strict=True):
        path = None if reader is None else reader.sources[index].path
        landmarks = None if path is None else landmarks_beside(path)
        if path is not None and landmarks is not None:
            landmarks = rescaled(landmarks, photo.shape[-1] / image_size(path)[1])
        found.append(find_face(photo, landmarks, size, name, folder))
    return found


def open_face(path: Path, size: int, folder: Path) -> Tensor:
    """The face of a picture file as a square (1, 3, size, size), by landmarks beside it; see `find_face`."""
    return find_face(read_image(path), landmarks_beside(path), size, path.stem, folder).square[None]


def put_back(squares: Tensor, faces: list[Face], photos: Tensor) -> list[Tensor]:
    """Results (B, 3, S, S) in the photos where their faces were cut out; those of aligned pictures as they are."""
    trios = zip(squares, faces, photos, strict=True)
    return [square if face.quad is None else paste_back(photo, square, face.quad) for square, face, photo in trios]


def load_encoder(name: str, space: Space | None, generator: Generator, source: str, device: torch.device) -> PSP:
    """The encoder `name` for `generator`, which messages call `source`.

    Raises:
        UserError: it is made for another generator.
    """
    model = load_psp(locate(name, "psp"), space)
    made = tuple(model.encoder.arguments[key] for key in ("n_styles", "style_dim"))
    if made != (generator.n_latent, generator.style_dim):
        raise UserError(
            f"{name} encodes for another generator: {source} has {generator.n_latent} styles of length "
            f"{generator.style_dim}; give the encoder that was trained with it."
        )
    model.encoder.to(device)
    if model.latent_avg is not None:
        model.latent_avg = model.latent_avg.to(device)
    return model


class EncodedFaces(StyleModule):
    """Photos through an encoder into w+ of `source`, which `stylize` draws with another generator.

    Subclasses have the settings source, encoder and paste_back, and call `load_source` in `configure_model`. Those
    with several encoders name the setting of the one for photos in `content`.

    Attributes:
        source: the frozen generator of photos.
        latent_avg: (D,), the mean of its w.
    """

    needs = dict.fromkeys(EVALUATION, (Needs(("image", "name", "index")),))
    own_size = True  # faces are cut out of photos of any size
    source: Generator
    latent_avg: Tensor

    @classmethod
    def required_models(cls, init_args: dict[str, Any]) -> list[tuple[str, str]]:
        kinds = {"source": "stylegan2", "encoder": "psp"}
        named = [(init_args[key], kind) for key, kind in kinds.items() if init_args.get(key)]
        return named + super().required_models(init_args)

    def load_source(self, finetune: bool = False) -> StyleGAN2:
        """Load the generator; plain attributes, so that no precision of a run casts it."""
        name = self.hparams.source
        path = locate(name, "stylegan2")
        self.base_models = {name: fingerprint(path)}
        model = load_stylegan2(path, finetune)
        self.__dict__["source"] = model.generator.to(self.run_device)
        self.__dict__["latent_avg"] = model.latent_avg.to(self.run_device)
        return model

    @property
    def content(self) -> str:
        """The setting that names the encoder of photos."""
        return "encoder"

    @property
    def encoder(self) -> PSP:
        """The encoder, loaded when first needed.

        Raises:
            UserError: there is none, or it is made for another generator.
        """
        if "_encoder" not in self.__dict__:
            h, setting = self.hparams, self.content
            if h[setting] is None:
                raise UserError(f"photos need an encoder of the source generator: set model.{setting}.")
            space = h.get(f"{setting}_space")
            self.__dict__["_encoder"] = load_encoder(h[setting], space, self.source, h.source, self.device)
        return self.__dict__["_encoder"]

    @torch.no_grad()
    def encode(self, squares: Tensor) -> Tensor:
        """w+ (B, L, D) of squares (B, 3, S, S) in [-1, 1]."""
        return encode_w(self.encoder, self.source, squares)

    @abstractmethod
    def stylize(self, w: Tensor, names: list[str]) -> Tensor:
        """Results (B, 3, S, S) of photos' w+; `names` are keys of what is random."""
        raise NotImplementedError

    def draw_noise(self, batch: int, purpose: str) -> list[Tensor]:
        """This iteration's noise maps of `batch` pictures, drawn on the device: at 1024 px they are millions."""
        draw = self.generator(purpose)
        if self.device.type != "cpu":
            draw = torch.Generator(self.device).manual_seed(draw.initial_seed())
        return self.source.draw_noise(batch, draw)

    @torch.no_grad()
    def results(self, squares: Tensor, names: list[str]) -> Tensor:
        """Squares (B, 3, S, S), encoded and stylized."""
        return self.stylize(self.encode(squares), names).float().clamp(-1, 1)

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Any] | None:
        """Stylize faces; with `paste_back`, in the photos that they were cut out of."""
        if self.finished.issuperset(batch["name"]):
            return None
        images = self.images(batch, faces_of(batch, self.trainer, self.source.size))
        return {"image": images, "name": batch["name"], "settings": dict(self.hparams)}

    def on_test_epoch_start(self) -> None:
        super().on_test_epoch_start()
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        if self.evaluation and hasattr(data, "squares") and "style_images" not in self.metrics:
            self.evaluation.set_style_images(torch.stack(list(data.squares().values())))

    def images(self, batch: dict[str, Any], faces: list[Face]) -> list[Tensor]:
        """What `predict` returns of the faces of a batch."""
        squares = self.results(torch.stack([face.square for face in faces]), batch["name"])
        return self.placed(squares, faces, batch["image"])

    def placed(self, squares: Tensor, faces: list[Face], photos: Tensor) -> list[Tensor]:
        """Squares (B, 3, S, S) as they are or, with `paste_back`, in the photos (B, 3, H, W)."""
        return put_back(squares, faces, photos) if self.hparams.paste_back else list(squares)

    def test_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Measure the squares."""
        if not self.evaluations:
            return
        faces, size = faces_of(batch, self.trainer, self.source.size), self.source.size
        squares, twin = torch.stack([face.square for face in faces]), None
        if "twin" in batch:
            pairs = zip(batch["twin"], faces, strict=True)
            cut = [to_square(x[None], size, "crop")[0] if f.quad is None else align(x, f.quad, size) for x, f in pairs]
            twin = torch.stack(cut).to(squares)
        self.evaluation.update(self.results(squares, batch["name"]), squares, twin)
