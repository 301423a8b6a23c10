"""Every method that trains, at toy size, and what is recorded of its runs; a new method is one entry of `METHODS`.

`test_resume`, `test_processes` and `test_precision` go through all of them.
"""

import hashlib
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor
from torch.optim import Optimizer

from callbacks import EMA, Previews
from datamodules import Pairs, Pictures, StyleImages
from lightning_styles.methods.concept_slider import ConceptSlider
from lightning_styles.methods.pair_customization import PairCustomization
from lightning_styles.methods.sms import SMS
from lightning_styles.methods.style_lora import StyleLoRA
from lightning_styles.module import StyleModule
from tests.micro import Micro, quiet_trainer
from tests.micro_baselines import make_gap, make_jojo
from tests.micro_osasis import MicroOSASIS, make_osasis, samples
from tests.micro_stylegan import make_method as make_pseudo_paired_stylegan
from tests.micro_stylegan import style_images as stylegan_pictures

ITERATIONS = 4


@dataclass(frozen=True)
class Method:
    """How to make a method and its data.

    Attributes:
        make: the method on the micro base; keywords override its settings.
        data: its data on the micro base, with as many loader workers.
        losses: what it logs as train/<name>.
        adapters: name of each optimizer -> part of the names of each LoRA that it trains.
        variant: trains like another entry, so slow tests leave it out.
        saving_memory: settings that turn gradient checkpointing on.
        by_turns: whether an optimizer trains some of its parameters in one step and the others in the next.
        frozen_outside: whether all that is frozen lies outside of its parameters, where no precision reaches it.
    """

    make: Callable[..., StyleModule]
    data: Callable[[Micro, int], L.LightningDataModule]
    losses: tuple[str, ...]
    adapters: dict[str, list[str]] = field(default_factory=dict)
    variant: bool = False
    saving_memory: dict[str, Any] = field(default_factory=dict)
    by_turns: bool = False
    frozen_outside: bool = False


def make_sms(micro: Micro, **changes: Any) -> SMS:
    """SMS without warm-up, so that a few iterations move something."""
    settings: dict[str, Any] = {
        "base": micro.base, "style_lora": micro.lora, "style": "cartoon style", "iterations": 2, "warmup": 1,
        "rank": 2, "weights": {"style": 1.0, "identity": 5e-4},
    }  # fmt: skip
    return SMS(**(settings | changes))


def make_style_lora(micro: Micro, **changes: Any) -> StyleLoRA:
    """StyleLoRA with captions that are dropped now and then."""
    settings: dict[str, Any] = {
        "base": micro.base, "iterations": ITERATIONS, "rank": 4, "alpha": 2.0, "lr": 0.05, "caption_dropout": 0.5,
        "preview_prompts": ["a photo of a woman"], "size": 32, "steps": 2,
    }  # fmt: skip
    return StyleLoRA(**(settings | changes))


def make_pair_customization(micro: Micro, **changes: Any) -> PairCustomization:
    """PairCustomization on a micro SDXL, whose style begins at once."""
    settings: dict[str, Any] = {
        "base": micro.base_xl, "iterations": ITERATIONS, "style_phrase": "cartoon style", "style_from": 0,
        "content_rank": 4, "style_rank": 4, "lr": 0.05, "noise_offset": 0.1, "size": 32, "steps": 2,
        "preview_prompts": ["a photo of a woman"],
    }  # fmt: skip
    return PairCustomization(**(settings | changes))


def make_concept_slider(micro: Micro, **changes: Any) -> ConceptSlider:
    settings = {"base": micro.base, "iterations": ITERATIONS, "style_phrase": "cartoon style", "lr": 0.05, "steps": 2}
    return ConceptSlider(**(settings | {"size": 32, "preview_prompts": ["a photo of a woman"]} | changes))


def sms(*losses: str, pictures: int = 1, variant: bool = True, **own: Any) -> Method:
    """SMS with the settings `own` on one or more pictures; it logs style, identity and `losses`."""
    return Method(
        make=lambda micro, **changes: make_sms(micro, **({"iterations": ITERATIONS} | own | changes)),
        data=lambda _, workers: Pictures(images=f"scene:portrait/3-{2 + pictures}", resolution=32, num_workers=workers),
        losses=("style", "identity", *losses),
        adapters={"fake": [f".fake{i}." for i in range(pictures)]} if "fake" in losses else {},
        variant=variant,
        saving_memory={"gradient_checkpointing": True} if "fake" in losses else {},
    )


def style_pictures(_: Micro, workers: int) -> StyleImages:
    return StyleImages(
        images="scene:portrait/0-3", style="cartoon", prompt="cartoon style, {caption}", resolution=32, batch_size=2,
        num_workers=workers,
    )  # fmt: skip


def pairs(_: Micro, workers: int) -> Pairs:
    return Pairs(
        content="scene:portrait/0-15", scene_style="cartoon", prompt="a photo of {caption}", resolution=32,
        flip="random", batch_size=2, num_workers=workers,
    )  # fmt: skip


def photos(_: Micro, workers: int) -> Pictures:
    return Pictures(images="scene:portrait/0-1", resolution=32, num_workers=workers)


def osasis_files(micro: Micro) -> MicroOSASIS:
    """The networks of OSASIS, beside the micro base."""
    return MicroOSASIS(micro.folder / "osasis")


METHODS: dict[str, Method] = {
    "sms": sms("fake", pictures=2, variant=False),
    "sms, sgd": sms("fake", optimizer="sgd", lr=2e4),
    "vsd": sms("fake", objective="vsd", sampling="full"),
    "pds": sms(objective="pds", sampling="full"),
    "dds": sms(objective="dds", sampling="full", variant=False),
    "style_lora": Method(
        make_style_lora,
        style_pictures,
        losses=("noise",),
        adapters={"lora": [".style."]},
        saving_memory={"gradient_checkpointing": True},
    ),
    "pair_customization": Method(
        make_pair_customization,
        pairs,
        losses=("content", "style"),
        adapters={"loras": [".content.", ".style."]},
        by_turns=True,
        saving_memory={"gradient_checkpointing": True},
    ),
    "pair_customization, joint": Method(
        lambda micro, **changes: make_pair_customization(
            micro, **({"base": micro.base, "updates": "joint", "down": "gaussian", "snr_gamma": 5.0} | changes)
        ),
        pairs,
        losses=("content", "style"),
        variant=True,
    ),
    "concept_slider": Method(
        make_concept_slider,
        pairs,
        losses=("style", "content"),
        adapters={"lora": [".style."]},
        saving_memory={"gradient_checkpointing": True},
    ),
    "osasis": Method(
        lambda micro, **changes: make_osasis(osasis_files(micro), **({"iterations": ITERATIONS} | changes)),
        lambda micro, _: samples(osasis_files(micro)),  # its loader only counts: there is nothing for workers to do
        losses=("cross", "in", "re_clip", "re_l1", "re_lpips"),
        saving_memory={"gradient_checkpointing": True},
    ),
    "jojogan": Method(
        lambda micro, **changes: make_jojo(micro.folder / "stylegan", **({"iterations": ITERATIONS} | changes)),
        photos,
        losses=("features",),
        frozen_outside=True,
    ),
    "mind_the_gap": Method(
        lambda micro, **changes: make_gap(
            micro.folder / "stylegan",
            osasis_files(micro),
            # The terms of the one style picture, the same on every rank, must not drown those of the drawn photos.
            **({"iterations": ITERATIONS, "weights": {"reference": 0.0, "l2": 0.1, "lpips": 0.1}} | changes),
        ),
        photos,
        losses=("across", "within", "reference", "l2", "lpips"),
        frozen_outside=True,
    ),
    "pseudo_paired_stylegan": Method(
        lambda micro, **changes: make_pseudo_paired_stylegan(
            micro.folder / "stylegan",
            # What is logged at iteration 2 must not begin before it.
            **({"iterations": ITERATIONS, "r1_every": 2, "path": 2.0, "path_every": 2, "ada_start": 0.5} | changes),
        ),
        lambda _, workers: stylegan_pictures(num_workers=workers, batch_size=2, images="scene:portrait/0-7"),
        losses=("discriminator", "r1", "adversarial", "semantic", "paired", "path", "ada_p"),
        frozen_outside=True,
    ),
}


# ---- records of a run


class Recorder(L.Callback):
    """Notes what each iteration saw: its batch and, at every draw of noise, all random states."""

    def __init__(self) -> None:
        self.batches: list[tuple[int, int, str]] = []  # iteration, batch_idx, digest
        self.noise: list[tuple[int, str, str, str]] = []  # iteration, purpose, digests of its and the global states
        self.losses: list[dict[str, float]] = []

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        draw = pl_module.generator  # type: ignore[union-attr]

        def noted(purpose: str) -> torch.Generator:
            generator = draw(purpose)  # type: ignore[operator]
            around = [torch.get_rng_state(), random.getstate(), str(np.random.get_state())]
            states = digest(generator.get_state()), digest(around)
            self.noise.append((pl_module.iteration, purpose, *states))  # type: ignore[arg-type]
            return generator

        pl_module.generator = noted  # type: ignore[assignment]

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.batches.append((trainer.global_step, batch_idx, digest(batch)))

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        logged = trainer.callback_metrics.items()
        self.losses.append({k.removeprefix("train/"): v.item() for k, v in logged if k.startswith("train/")})


class Gradients(L.Callback):
    """Keeps every gradient that reaches an optimizer, and no step moves anything, so that all can be compared.

    Attributes:
        seen: for each step (name of the optimizer, name of the parameter -> gradient).
    """

    def __init__(self) -> None:
        self.seen: list[tuple[str, dict[str, Tensor]]] = []

    def on_fit_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        pl_module.clip_norm = None  # the mean of clipped gradients is not the clipped mean

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: Any, optimizer: Optimizer) -> None:
        name = list(pl_module._optimizer_index)[[o is optimizer for o in trainer.optimizers].index(True)]
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        named = {key: p for key, p in pl_module.named_parameters() if id(p) in held and p.grad is not None}
        self.seen.append((name, {key: p.grad.clone() for key, p in named.items() if p.grad is not None}))
        for group in optimizer.param_groups:
            group["lr"] = 0.0


def digest(value: Any) -> str:
    """A hash of nested dicts and lists of tensors and plain values."""
    if isinstance(value, Tensor):
        return hashlib.sha256(value.contiguous().numpy(force=True).tobytes()).hexdigest()[:16]
    if isinstance(value, dict):
        return digest([(key, digest(value[key])) for key in sorted(value)])
    if isinstance(value, (list, tuple)):
        return digest("/".join(map(digest, value)))
    return hashlib.sha256(repr(value).encode()).hexdigest()[:16]


def train(
    method: StyleModule,
    data: L.LightningDataModule,
    folder: Path,
    steps: int = ITERATIONS,
    *,
    ckpt_path: Path | None = None,
    callbacks: tuple[L.Callback, ...] = (),
    **trainer: Any,
) -> tuple[Recorder, L.Trainer]:
    """Run `steps` iterations and write `folder`/last.ckpt, and `folder`/step=n.ckpt after every other iteration."""
    recorder, saver = Recorder(), ModelCheckpoint(folder, "{step}", every_n_train_steps=2, save_top_k=-1)
    settings = {"callbacks": [*callbacks, recorder, saver], "enable_checkpointing": True} | trainer
    run = quiet_trainer(folder, steps, **settings)
    run.fit(method, datamodule=data, ckpt_path=ckpt_path, weights_only=True)
    run.save_checkpoint(folder / "last.ckpt")
    return recorder, run


def busy() -> dict[str, Any]:
    """Settings of a run with an average, validation and previews between its iterations."""
    return {"callbacks": (EMA(0.5), Previews(1, animation="none")), "val_check_interval": 1}


def saved(folder: Path) -> dict[str, Any]:
    """The last checkpoint of `folder`."""
    return torch.load(folder / "last.ckpt", weights_only=True)


def differing(ours: Any, theirs: Any, key: str = "") -> list[str]:
    """Dotted keys at which two nested structures differ in any bit."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        keys = list(dict.fromkeys([*ours, *theirs]))
        return [d for k in keys for d in differing(ours.get(k), theirs.get(k), f"{key}.{k}")]
    if isinstance(ours, Tensor) and isinstance(theirs, Tensor):
        same = ours.dtype == theirs.dtype and torch.equal(ours, theirs)
    elif isinstance(ours, (list, tuple)) and isinstance(theirs, (list, tuple)) and len(ours) == len(theirs):
        return [d for i, pair in enumerate(zip(ours, theirs, strict=True)) for d in differing(*pair, f"{key}.{i}")]
    else:
        same = type(ours) is type(theirs) and ours == theirs
    return [] if same else [key]
