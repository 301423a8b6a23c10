"""What fit needs before it can begin: style pictures that fit, G* trained without constraints, and the pseudo pairs."""

import copy
import shutil
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.environments import LightningEnvironment
from torch import nn

from callbacks.interruption import EndsWithRun, end_preparation_if_asked, without_lightnings_handlers
from lightning_styles import noise
from lightning_styles.checkpoint_fields import check_resumable
from lightning_styles.checkpoint_io import WholeFiles
from lightning_styles.console import say
from lightning_styles.errors import UserError
from lightning_styles.files import existing
from lightning_styles.methods.encoded_faces import load_encoder
from lightning_styles.methods.pseudo_pairs import PairFiles, Pairs, Style
from lightning_styles.metrics.perceptual import load_distance
from lightning_styles.models.stylegan2 import Generator
from lightning_styles.models.stylegan2.discriminator import GROUP
from lightning_styles.models.stylegan2.pairing import PairNetworks
from lightning_styles.pretrained import fingerprint, locate
from lightning_styles.pretrained.psp import PSP
from lightning_styles.pretrained.stylegan2 import StyleGAN2, load_stylegan2, save_stylegan2
from lightning_styles.progress import IterationBar
from lightning_styles.reading import MADE_AGAIN, expect, tensor
from lightning_styles.runs import read_checkpoint

ENLARGED = 4  # times, at most, is a style picture enlarged
EVERY = 100  # iterations between checkpoints of G*
TRAINING = (
    "lr", "r1", "r1_every", "path", "path_every", "mixing", "z_plus", "freeze_mapping", "freeze_noise", "freeze_d",
    "augment", "policies", "ada_start", "ada_target", "ada_ramp", "ema", "finetune_iterations", "seed",
)  # fmt: skip


class Preparation:
    """Files of one method on one set of style pictures.

    Args:
        method: a `PseudoPairedStyleGAN`.
        datamodule: its `StyleImages`.
    """

    def __init__(self, method: Any, datamodule: Any) -> None:
        self.method, self.datamodule, self.h = method, datamodule, method.hparams
        self.device, self.folder = method.run_device, Path(self.h.cache)
        self._styles: list[Style] | None = None
        self._source: StyleGAN2 | None = None

    # ---- style pictures

    @property
    def source(self) -> StyleGAN2:
        """G, loaded once."""
        if self._source is None:
            self._source = load_stylegan2(locate(self.h.source, "stylegan2"))
        return self._source

    @property
    def styles(self) -> list[Style]:
        """The style pictures, as large as G draws."""
        if self._styles is None:
            self._styles = [Style(name, image) for name, image in self.datamodule.squares().items()]
        return self._styles

    def check(self) -> None:
        """Refuse style pictures and batches that cannot work.

        Raises:
            UserError: naming the first one.
        """
        size, data = self.source.generator.size, self.datamodule
        if not hasattr(data, "squares"):
            raise UserError(f"{type(data).__name__} has no style pictures; use datamodules.StyleImages.")
        if data.resolution != size:
            raise UserError(f"data.resolution is {data.resolution}; {self.h.source} draws {size} px: set it to {size}.")
        for source in data.reader.sources:
            height, width = source.size(None) if source.path is not None else (size, size)
            if height != width:
                raise UserError(
                    f"{source.path} is {width} x {height} px; style pictures must be square, with the face where the "
                    "generator's photographs have it: align and crop it."
                )
            if height * ENLARGED < size:
                raise UserError(f"{source.path} has {height} px, far from the {size} px that the generator draws; "
                                f"take pictures of at least {size // ENLARGED} px.")  # fmt: skip
        self._check_batch(len(data.reader.sources), data.batch_size)

    def _check_batch(self, pictures: int, batch: int) -> None:
        if pictures < batch:
            raise UserError(
                f"There are {pictures} style pictures for batches of {batch}; add pictures or set data.batch_size to "
                f"{pictures} at most."
            )
        if batch > GROUP and batch % GROUP:
            raise UserError(
                f"data.batch_size is {batch}; the discriminator compares {GROUP} pictures at a time: "
                f"take up to {GROUP}, or a multiple of it."
            )

    # ---- G*

    def finetuned_file(self) -> Path:
        """The file of G*, trained now if need be.

        Raises:
            UserError: a file that was given is G itself.
        """
        if self.h.finetuned:
            given = existing(self.h.finetuned)
            if fingerprint(given) == fingerprint(locate(self.h.source, "stylegan2")):
                raise UserError(
                    f"model.finetuned, {given}, is the source generator itself: its pictures are photographs. "
                    "Give one that was finetuned on the style, or null to train it."
                )
            return given
        path = self.folder / f"finetuned_{self.finetuned_key}.safetensors"
        if not path.exists():
            self._finetune(path)
        return path

    @property
    def finetuned_key(self) -> str:
        """What G* depends on, in short."""
        data, made_of = self.datamodule, [fingerprint(locate(self.h.source, "stylegan2"))]
        if self.h.discriminator:
            made_of.append(fingerprint(locate(self.h.discriminator, "stylegan2")))
        recipe = [f"{name}={self.h[name]}" for name in TRAINING]
        recipe += [f"{name}={getattr(data, name)}" for name in ("batch_size", "random_crop", "flip", "seed")]
        return f"{noise.number(*made_of, *(style.digest for style in self.styles), *recipe):016x}"

    def _finetune(self, path: Path) -> None:
        """Train G* by the method itself without constraints, in a run of its own that goes on where it was killed."""
        say(f"training {path} without constraints, {self.h.finetune_iterations} iterations")
        changes = {"weights": {"semantic": 0.0, "paired": 0.0}, "iterations": self.h.finetune_iterations}
        changes |= {"lpips": None, "perceptual": None, "identity": None, "metrics": None}
        changes |= {"mode": "standard", "layer": None, "samples": 1, "reference": None}
        own = {name: value for name, value in self.h.items() if not name.startswith("_")}  # others are Lightning's
        plain = type(self.method)(**(own | changes))
        data = copy.copy(self.datamodule)
        data.setup("fit")
        folder = path.with_suffix("")
        trainer = self._trainer(folder)
        begun = max(folder.glob("*.ckpt"), key=lambda file: file.stat().st_mtime, default=None)
        if begun is not None:
            check_begun(begun)
        trainer.fit(plain, datamodule=data, ckpt_path=begun, weights_only=True)
        save_stylegan2(path, StyleGAN2(plain.average, plain.mean))
        shutil.rmtree(folder, ignore_errors=True)

    def _trainer(self, folder: Path) -> L.Trainer:
        """A trainer of the same device and precision that keeps to itself."""
        outer, device = self.method._trainer, self.device
        saver = ModelCheckpoint(folder, "{step}", every_n_train_steps=EVERY, save_top_k=1)
        shown = outer is not None and outer.progress_bar_callback is not None
        trainer = L.Trainer(
            max_steps=self.h.finetune_iterations, max_epochs=-1, accelerator=device.type,
            devices=[device.index or 0] if device.type == "cuda" else 1, logger=False, enable_model_summary=False,
            precision="32-true" if outer is None else outer.precision,
            callbacks=[EndsWithRun(outer), saver, *[IterationBar()] * shown],
            enable_progress_bar=shown, plugins=[LightningEnvironment(), WholeFiles()], num_sanity_val_steps=0,
            limit_val_batches=0, default_root_dir=folder,
        )  # fmt: skip
        without_lightnings_handlers(trainer)
        return trainer

    # ---- the pairs

    def tell(self) -> None:
        """Make what is missing and say where it is."""
        if not self.method.terms["paired"]:
            say("Nothing to prepare: the weight of the paired term is 0, and only that needs pseudo pairs.")
            return
        self.check()
        pairs = self.find()
        counts = [
            f"{pairs.level.tolist().count(level)} of level {level}" for level in sorted(set(pairs.level.tolist()))
        ]
        say(f"pseudo pairs: {len(pairs.w)} in {self.folder}, {', '.join(counts)}")
        say(f"all levels:   {self.files.sheet(self.styles)}")

    def find(self) -> Pairs:
        """The pseudo pairs of the level that the method asks for, on the CPU."""
        return self.files.find(self.styles, self._networks, self.device, self.h.level, self._end_if_asked)

    def _end_if_asked(self) -> None:
        end_preparation_if_asked(self.method._trainer)

    @property
    def files(self) -> PairFiles:
        """Where the pairs lie."""
        h = self.h
        kinds = {"encoder": "psp", "refiner": "psp"} | {key: key for key in ("identity", "lpips", "perceptual")}
        networks = [fingerprint(locate(h[key], kind)) if h[key] else "" for key, kind in kinds.items()]
        finetuned = fingerprint(self.finetuned_file()) if h.finetuned else self.finetuned_key
        made_of = (fingerprint(locate(h.source, "stylegan2")), finetuned, str(h.encoder_space), *networks)
        shape = (3 if h.refiner else 2, self.source.generator.n_latent, self.source.generator.style_dim)
        return PairFiles(self.folder, made_of, self.method.pair_settings, h.seed, shape)

    def _networks(self) -> PairNetworks:
        from lightning_styles.pretrained.networks import load_identity

        h, device = self.h, self.device
        encoder = self._encoder(h.encoder, h.encoder_space)
        refiner = self._encoder(h.refiner, None) if h.refiner else None
        if encoder.space != "z_plus":
            raise UserError(
                f"model.encoder, {h.encoder}, encodes into W+; pseudo pairs begin in Z+: give an encoder into Z+, "
                "or set model.encoder_space to z_plus if it is one."
            )
        return PairNetworks(
            source=self.source.generator.to(device),
            finetuned=self._finetuned().to(device),
            latent_avg=self.source.latent_avg.to(device),
            encoder=encoder,
            refiner=refiner,
            judge=load_distance(h.lpips, h.perceptual).to(device),  # type: ignore[arg-type]
            identity=load_identity(h.identity).to(device) if h.identity else None,
        )

    def _encoder(self, name: str, space: Any) -> PSP:
        return load_encoder(name, space, self.source.generator, self.h.source, self.device)

    def _finetuned(self) -> Generator:
        file = self.finetuned_file()
        if not self.h.finetuned:
            return self._own_finetuned(file)
        found = load_stylegan2(file).generator
        if shapes(found) != shapes(self.source.generator):
            raise UserError(f"model.finetuned, {self.h.finetuned}, is no copy of {self.h.source}: it has another "
                            "architecture; give one that was finetuned from it, or null to train it.")  # fmt: skip
        return found

    def _own_finetuned(self, file: Path) -> Generator:
        """G* from a file that was made here."""
        try:
            found = load_stylegan2(file).generator
        except UserError as error:  # says to get it from where it came from
            raise UserError(f"{file} is damaged; {MADE_AGAIN}.") from error
        sizes = {name: tensor(*size) for name, size in shapes(self.source.generator).items()}
        expect(found.state_dict(), sizes, file, MADE_AGAIN)
        return found


def check_begun(file: Path) -> None:
    """Refuse a checkpoint from which G* cannot be trained on.

    Raises:
        UserError: it is damaged, or was changed.
    """
    try:
        check_resumable(read_checkpoint(file), file)
    except UserError as error:
        raise UserError(f"{file} is damaged; remove it, and G* is trained from the start.") from error


def shapes(network: nn.Module) -> dict[str, torch.Size]:
    return {key: tensor.shape for key, tensor in network.state_dict().items()}
