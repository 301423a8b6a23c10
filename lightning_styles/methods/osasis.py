"""OSASIS: a stylizer of photos from one style picture (arXiv 2402.17275).

Notation: A the frozen diffusion autoencoder, B its finetuned copy, SPN the structure-preserving network. I_B^style is
the style picture, I_A^style its photorealistic twin, I_A a batch of P photos, S the side of the network's squares; z
codes, x pictures noised to t0, j steps of the decoder. The twin and the photos go through B together, the twin first.
"""

from functools import partial
from math import inf
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim import Adam, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from lightning_styles import noise
from lightning_styles.batches import EVALUATION, Needs
from lightning_styles.diffusion import ddim, half_way
from lightning_styles.diffusion.half_way import Encoding, decoder_indices, picture_process
from lightning_styles.diffusion.respacing import Respaced
from lightning_styles.diffusion.text_edit import TextEdit, move_code, text_loss
from lightning_styles.errors import UserError, at_least, check_keys, weights_of, within
from lightning_styles.files import existing, places
from lightning_styles.losses.clip_direction import ClipPreprocess, check_directions
from lightning_styles.losses.osasis import WEIGHTS, Anchors, embedding_terms, picture_terms
from lightning_styles.methods.twins import Twins, candidates_file
from lightning_styles.metrics.perceptual import load_distance
from lightning_styles.models.diffae import DiffAE, DiffAEUNet, style_levels
from lightning_styles.models.diffusion_blocks import gradient_checkpointing
from lightning_styles.models.spn import fresh_spn
from lightning_styles.module import StyleModule
from lightning_styles.pretrained import fingerprint, locate
from lightning_styles.pretrained.clip import load_clip
from lightning_styles.pretrained.diffae import frozen_diffae
from lightning_styles.pretrained.osasis import save_osasis, take_trained
from lightning_styles.sheet import Axis, check_axes, labelled_sheets
from lightning_styles.square import from_square, open_square, to_square

STEPS = ("encode", "decode")
GRID: dict[str, Axis] = {
    "t0": ("between 0 and 1", lambda t0: 0 < t0 < 1),
    "lambda_spn": ("of 0 or more", lambda strength: 0 <= strength < inf),
}


class OSASIS(StyleModule):
    """Finetune a copy of a diffusion autoencoder until photos move as one style picture moved from its twin.

    `prepare` makes the twin (fit does it where it is missing); `fit` trains on photos that the data samples from the
    autoencoder itself; `predict` stylizes photos. One iteration is one batch of photos with an optimizer step at every
    step of the decoder, as in the paper.

    Args:
        diffae: the diffusion autoencoder A with its semantic encoder.
        style_image: I_B^style, a picture of any size.
        twin_image: I_A^style; None makes it with `domain_model`.
        domain_model: diffusion model with learned variances of the photos' domain, for the twin.
        clip: CLIP whose embeddings give the directions.
        lpips: trunk of LPIPS; None where `perceptual` is given instead.
        perceptual: small perceptual network in place of LPIPS.
        iterations: batches of photos.
        resolution: side S of the pictures that the autoencoder was trained on, in px.
        fit_to_square: how other aspect ratios become the network's square: "letterbox" (nothing is lost, and predict
            crops the borders again), "crop" (its middle) or "squash" (official code).
        candidates: twins to choose from (the official code makes 1).
        weights: of the terms cross, in, re_clip, re_l1, re_lpips; those of the official code where left out.
        lr: Adam's learning rate of B.
        spn_lr: Adam's learning rate of the SPN.
        spn: the structure-preserving network: with "time", without ("plain"), or "none".
        lambda_spn: factor on SPN(I_A); 0.1 in the paper, more keeps more structure.
        lambda_style: factor on SPN(I_A^style) in training (official code 1, the paper's equation 13 lambda_spn).
        spn_time: what the SPN is told: the step's "index" (official code) or the "timestep".
        t0: how far pictures are noised, in (0, 1): before B decodes them, and the style picture for its twin.
        start: first step of the decoder: the one "below" the level of x (official code) or the "aligned" one.
        steps: {encode, decode} in training and `text`; each divides 1000 evenly.
        predict_steps: the same in `predict`.
        f_ch: feature maps of at least this side take the style picture's code, smaller ones the photo's.
        swap_codes: exchange the two codes in `predict` (ablation of the paper).
        grid: {t0: [...], lambda_spn: [...]}: `predict` makes of each photo one labelled sheet over both.
        text: {source, target} in words: `predict` changes the photo so before it stylizes it (B.2 of the paper); its
            other keys are those of `diffusion.text_edit.TextEdit`.
        encoded: folder in which `predict` keeps what it made of each photo before B, for the next style; None keeps
            nothing.
        trained: official checkpoint iter_<n>.pt that B and the SPN come from where no checkpoint of a run is given.
        dropout: dropout of B in training, as in the official code.
        clip_preprocess: "osasis" shows CLIP the nearest pixels in [-1, 1], "clip" what it was trained on.
        normalize_directions: take directions between embeddings of unit length (MTG).
        re_clip: the reconstruction's embedding by "cosine" (official code) or "l1" (paper).
        frozen_precision: of A, whatever the trainer's precision; "auto" is float16 on a GPU and float32 elsewhere. Of
            the embedded autoencoder float16 puts pictures noised half-way off by 0.9 %, bfloat16 by 7 %. CLIP and LPIPS
            stay in float32.
        gradient_checkpointing: recompute B's activations in the backward pass: less memory, slower.
        compile: compile B with torch.compile.
        cache: folder of the twins.
        metrics: name -> network or folder for `validate` and `test`, see `lightning_styles.metrics`.
        seed: key of all randomness.
    """

    formats = {"osasis": "iter.pt"}
    folders = ("encoded", "cache")
    needs = {"fit": (Needs(("image",)),), **dict.fromkeys(EVALUATION, (Needs(("image", "name")),))}
    fit_only = ("style_image", "twin_image", "domain_model", "clip", "lpips", "perceptual")

    A: Any
    clip: Any
    judge: Any
    edit: Any
    pictures: Tensor

    def __init__(
        self,
        *,
        diffae: str,
        style_image: str,
        twin_image: str | None = None,
        domain_model: str | None = None,
        clip: str,
        lpips: str | None = None,
        perceptual: str | None = None,
        iterations: int = 200,
        resolution: int = 256,
        fit_to_square: Literal["letterbox", "crop", "squash"] = "letterbox",
        candidates: int = 30,
        weights: dict[str, float] | None = None,
        lr: float = 5e-6,
        spn_lr: float = 1e-4,
        spn: Literal["time", "plain", "none"] = "time",
        lambda_spn: float = 0.1,
        lambda_style: float = 1.0,
        spn_time: Literal["index", "timestep"] = "index",
        t0: float = 0.5,
        start: Literal["below", "aligned"] = "below",
        steps: dict[str, int],
        predict_steps: dict[str, int],
        f_ch: int = 32,
        swap_codes: bool = False,
        grid: dict[str, list[float]] | None = None,
        text: dict[str, Any] | None = None,
        encoded: str | None = None,
        trained: str | None = None,
        dropout: bool = True,
        clip_preprocess: ClipPreprocess = "osasis",
        normalize_directions: bool = False,
        re_clip: Literal["cosine", "l1"] = "cosine",
        frozen_precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto",
        gradient_checkpointing: bool = False,
        compile: bool = False,
        cache: str = "runs/osasis_twins",
        metrics: dict[str, str] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(iterations=iterations, seed=seed, metrics=metrics)
        if not 0 < t0 < 1:
            raise UserError(f"t0 is {t0}; expected a share of the noise between 0 and 1, such as 0.5.")
        at_least(1, candidates=candidates, f_ch=f_ch)
        at_least(0, lr=lr, spn_lr=spn_lr, lambda_spn=lambda_spn, lambda_style=lambda_style)
        within(16, 8192, resolution=resolution)
        self.terms = weights_of(weights, WEIGHTS)
        for name, given in (("steps", steps), ("predict_steps", predict_steps)):
            check_keys(name, given, STEPS, all_of_them=True)
            for count in given.values():
                picture_process(count)  # refuses what does not divide the timesteps
        if (lpips is None) == (perceptual is None):
            raise UserError("set one of model.lpips (trunk of LPIPS) and model.perceptual, not both or neither.")
        if grid is not None:
            check_axes("grid", grid, GRID)
        self.edit = None if text is None else TextEdit.of(text)
        self.save_hyperparameters()

    @classmethod
    def required_models(cls, init_args: dict[str, Any]) -> list[tuple[str, str]]:
        kinds = {"diffae": "diffae", "clip": "clip", "lpips": "lpips", "perceptual": "perceptual"}
        kinds |= {"style_image": "file", "twin_image": "file", "trained": "file"}
        if not init_args.get("twin_image"):
            kinds["domain_model"] = "guided-diffusion"
        named = [(init_args[key], kind) for key, kind in kinds.items() if init_args.get(key)]
        return named + super().required_models(init_args)

    # ---- networks and the style picture

    def kept(self, name: str) -> bool:
        return name.startswith(("B.", "spn.", "pictures"))

    def configure_model(self) -> None:
        if hasattr(self, "B"):
            return
        h = self.hparams
        self.base_models = {h.diffae: fingerprint(locate(h.diffae, "diffae"))}
        self.A = frozen_diffae(h.diffae, self.frozen_dtype(h.frozen_precision, torch.float16)).model
        self.B = DiffAEUNet(self.A.config)
        multiple = 2 ** (self.B.levels - 1)
        if h.resolution % multiple:
            raise UserError(f"resolution is {h.resolution}; {h.diffae} needs a multiple of {multiple}.")
        start = self.base().state_dict()
        self.B.load_state_dict({key: start[key] for key in self.B.state_dict()})
        self.B.train(h.dropout)
        self.spn = fresh_spn(h.spn, noise.number(self.seed, "spn"))
        self.register_buffer("pictures", torch.zeros(2, 3, h.resolution, h.resolution))  # I_A^style, I_B^style
        gradient_checkpointing(self.B, h.gradient_checkpointing)
        if h.compile:
            self.B.compile()
        self.encoder, self.decoder = (picture_process(h.steps[key]) for key in STEPS)
        self._load_judges()

    def base(self) -> DiffAE:
        """The autoencoder in full precision, whatever that of A is: what B starts from and is stored with."""
        return frozen_diffae(self.hparams.diffae).model

    def _load_judges(self) -> None:
        """CLIP and LPIPS. They are no submodules, so that no precision of a run casts them: small differences count."""
        h, fits = self.hparams, self._trainer is not None and self.trainer.state.fn == "fit"
        if fits:
            self.__dict__["judge"] = load_distance(h.lpips, h.perceptual).to(self.run_device)
        if fits or self.edit:
            self.__dict__["clip"] = load_clip(h.clip).to(self.run_device)

    # ---- the twin of the style picture

    def prepare(self, datamodule: Any) -> None:
        """Make the photorealistic twin of the style picture, unless it is there."""
        from lightning_styles.console import say

        twin = self.find_twin()
        say(f"twin of the style picture:  {twin}")
        if not self.hparams.twin_image:
            say(f"all candidates, best first: {candidates_file(twin)}")

    def find_twin(self) -> Path:
        """The file of I_A^style, made now if need be; beside it a sheet of all candidates, the best first."""
        h = self.hparams
        if h.twin_image:
            return existing(h.twin_image)
        recipe = ("domain_model", "candidates", "resolution", "fit_to_square", "t0", "lpips", "perceptual", "seed")
        return Twins(Path(h.cache), *(h[key] for key in recipe)).find(existing(h.style_image), self.run_device)

    def on_fit_start(self) -> None:
        h = self.hparams
        if self.pictures.any():  # a resumed run has them from its checkpoint
            self._refuse_another_style()
        else:
            if h.trained:
                take_trained(existing(h.trained), self.base(), self.B, self.spn)
            if self.trainer.is_global_zero:
                self.find_twin()
            self.trainer.strategy.barrier()
            files = (self.find_twin(), existing(h.style_image))
            self.pictures.copy_(torch.cat([open_square(file, h.resolution, h.fit_to_square) for file in files]))
        self.twin, self.style = self.pictures[:1], self.pictures[1:]
        self.e_twin, self.e_style = self.embed(self.twin), self.embed(self.style)
        check_directions(self.e_twin, self.e_style, h.normalize_directions)
        self.z_twin, self.x_twin = self.encode(self.twin, self.encoder, h.t0)

    def _refuse_another_style(self) -> None:
        """The picture of a checkpoint would win silently over that of the config."""
        h = self.hparams
        given = next(filter(Path.exists, places(h.style_image)), None)
        if given is not None:
            style = open_square(given, h.resolution, h.fit_to_square).to(self.pictures[1:])
            if (style - self.pictures[1:]).abs().mean() > 0.01:
                raise UserError(f"the checkpoint was trained on another style picture than {given}; start a new run.")

    # ---- official checkpoints

    def on_predict_start(self) -> None:
        h = self.hparams
        if self.trainer.state.fn == "fit" or self.pictures.any():
            return
        if not h.trained:
            raise UserError("nothing is trained yet; give a run's checkpoint as --ckpt_path, or model.trained.")
        take_trained(existing(h.trained), self.base(), self.B, self.spn)
        self.pictures[1:] = open_square(existing(h.style_image), h.resolution, h.fit_to_square)

    on_validation_start = on_test_start = on_predict_start

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        self.iteration = checkpoint.get("global_step", 0)

    def export(self, path: Path, layout: str) -> None:
        """Write the official `iter_<n>.pt`, without the optimizers' states."""
        done = self.iteration if self._trainer is None else self.trainer.global_step
        save_osasis(path, done, self.base(), self.B, self.spn)

    # ---- the parts of the algorithm

    def encode(self, images: Tensor, encoder: Respaced, t0: float) -> Encoding:
        """Codes z (P, D) of `images` (P, 3, S, S), and the pictures noised to t0 with A, (P, 3, S, S)."""
        return half_way.encode_half_way(self.A, images, encoder, t0)

    def offset(self, images: Tensor, decoder: Respaced, j: int) -> Tensor:
        """SPN(I, j) (P, 3, S, S) of clean `images`."""
        time = decoder.timesteps[j] if self.hparams.spn_time == "timestep" else j
        return self.spn(images, torch.full((len(images),), time, device=images.device))

    def embed(self, images: Tensor) -> Tensor:
        """CLIP embeddings (P, D) of `images` (P, 3, S, S)."""
        return self.clip.image(images, self.hparams.clip_preprocess)

    # ---- training

    def named_optimizers(self) -> dict[str, tuple[Optimizer, LambdaLR | None]]:
        h = self.hparams
        groups = [{"params": self.B.parameters(), "lr": h.lr}, {"params": self.spn.parameters(), "lr": h.spn_lr}]
        return {"stylizer": (Adam(groups), None)}

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        h = self.hparams
        photos, z, x = self.encoded_photos(batch)
        with torch.no_grad():
            anchors = Anchors(self.e_twin, self.e_style, self.embed(photos))
        images, z, x = (torch.cat(pair) for pair in ((self.twin, photos), (self.z_twin, z), (self.x_twin, x)))
        strength = x.new_tensor([h.lambda_style] + [h.lambda_spn] * len(photos))[:, None, None, None]
        indices = decoder_indices(self.encoder, self.decoder, h.t0, h.start)
        for j in indices:
            x = x + strength * self.offset(images, self.decoder, j)  # equations 12 and 13
            x_next, x_0 = ddim.step_down(self.decoder, j, x, self.B(x, self.decoder.t(j, x), z))
            losses = self.losses(anchors, x_0[1:], x_0[:1])
            self.optimize("stylizer", self.total_loss(losses, self.terms), ends_iteration=j == indices[-1])
            x = x_next.detach()  # no gradient through several steps
        self.shown = photos[:4]

    def encoded_photos(self, batch: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
        """I_A (P, 3, S, S) of a batch with their encoding, which the batch may bring."""
        h = self.hparams
        photos = to_square(batch["image"], h.resolution, h.fit_to_square)
        recipe = {"steps": h.steps["encode"], "t0": h.t0, "diffae": self.base_models[h.diffae], "size": h.resolution}
        return photos, *(half_way.brought(batch, recipe) or self.encode(photos, self.encoder, h.t0))

    def losses(self, anchors: Anchors, result: Tensor, reconstruction: Tensor) -> dict[str, Tensor]:
        """The five terms, in float32, for the x_0 predicted for photos (P, 3, S, S) and for the twin (1, 3, S, S)."""
        h, e = self.hparams, self.embed(torch.cat([reconstruction, result]))
        with torch.autocast(result.device.type, enabled=False):
            terms = embedding_terms(anchors, e[1:], e[:1], h.re_clip, h.normalize_directions)
            return terms | picture_terms(reconstruction, self.style, lambda x: self.judge(x, self.style))

    # ---- stylizing

    def start(self, images: Tensor, encoder: Respaced, t0: float) -> Encoding:
        """What photos (P, 3, S, S) are stylized from: kept encodings where there are, with codes moved by `text`."""
        h = self.hparams
        make = partial(self.encode, encoder=encoder, t0=t0)
        if h.encoded:
            recipe = (self.base_models[h.diffae], str(self.A.dtype), str(self.trainer.precision), len(encoder), t0)
            make = partial(half_way.KeptEncodings(Path(h.encoded), self.A.config.embedding, *recipe), make=make)
        z, x = make(images)
        if self.edit:  # A decodes to what the text asks for; CLIP is shown what it was trained on
            loss = text_loss(self.clip, images, self.edit, h.normalize_directions)
            indices = decoder_indices(encoder, self.decoder, t0, h.start)
            z = move_code(self.A, z, x, self.decoder, indices, loss, self.edit)
        return z, x

    @torch.no_grad()
    def stylize(
        self, images: Tensor, start: Encoding, encoder: Respaced, decoder: Respaced, t0: float, lambda_spn: float
    ) -> Tensor:
        """Results (P, 3, S, S) for photos of the same shape and what they start from (equation 27)."""
        h, (z, x) = self.hparams, start
        z_style = half_way.codes(self.A, self.pictures[1:]).expand_as(z)
        if h.swap_codes:
            z, z_style = z_style, z
        levels = style_levels(h.f_ch, h.resolution, self.B.levels)
        training, B = self.B.training, partial(self.B.eval(), z=z, z_style=z_style, style_levels=levels)
        indices = decoder_indices(encoder, decoder, t0, h.start)
        result = ddim.decode(B, x, decoder, indices, lambda j: lambda_spn * self.offset(images, decoder, j))
        self.B.train(training)
        return result

    def result_name(self, name: str) -> str:
        return f"{name}_grid" if self.hparams.grid else name

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Any] | None:
        """Stylize photos of any one size; with `grid`, a sheet of each over t0 and lambda_spn."""
        h, (height, width) = self.hparams, batch["image"].shape[-2:]
        sheets = h.grid and self.trainer.state.fn == "predict"
        names = [self.result_name(name) for name in batch["name"]] if sheets else batch["name"]
        if self.finished.issuperset(names):
            return None
        encoder, decoder = processes = [picture_process(h.predict_steps[key]) for key in STEPS]
        squares = to_square(batch["image"], h.resolution, h.fit_to_square)
        shown = partial(from_square, height=height, width=width, how=h.fit_to_square)
        if sheets:
            cells = [[shown(cell) for cell in row] for row in self.grid(squares, *processes)]
            images = labelled_sheets(shown(squares), cells, {axis: h.grid[axis] for axis in GRID})
        else:
            start = self.start(squares, encoder, h.t0)
            images = list(shown(self.stylize(squares, start, encoder, decoder, h.t0, h.lambda_spn)))
        return {"image": images, "name": names, "settings": dict(h)}

    def grid(self, images: Tensor, encoder: Respaced, decoder: Respaced) -> list[list[Tensor]]:
        """Results (P, 3, S, S) by t0 and lambda_spn; each t0 encodes once."""
        axes, rows = self.hparams.grid, []
        for t0 in axes["t0"]:
            start = self.start(images, encoder, t0)
            rows.append([self.stylize(images, start, encoder, decoder, t0, value) for value in axes["lambda_spn"]])
        return rows

    def preview(self) -> dict[str, Tensor]:
        if not hasattr(self, "shown"):
            return {}
        h, style = self.hparams, self.pictures[1:].expand_as(self.shown)
        start = self.encode(self.shown, self.encoder, h.t0)
        result = self.stylize(self.shown, start, self.encoder, self.decoder, h.t0, h.lambda_spn)
        return {"source": self.shown, "style": style, "result": result}
