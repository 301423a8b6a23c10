"""StyleModule: one clock, counter-based noise, lean checkpoints, exact resume."""

import math
import random
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim import Adam, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from datamodules.sampling import train_loader
from lightning_styles import noise
from lightning_styles.errors import UserError
from lightning_styles.module import StyleModule
from lightning_styles.required_files import import_class

WEIGHED: dict[str, tuple[dict[str, Any], dict[str, float]]] = {
    "methods.sms.SMS": ({"base": "b", "style": "s"}, {"style": 1.0, "identity": 0.0005}),
    "methods.osasis.OSASIS": (
        {"diffae": "d", "style_image": "i", "clip": "c", "perceptual": "p"}
        | dict.fromkeys(("steps", "predict_steps"), {"encode": 5, "decode": 5}),
        {"cross": 1.0, "in": 0.5, "re_clip": 30.0, "re_l1": 10.0, "re_lpips": 10.0},
    ),
    "methods.mind_the_gap.MindTheGap": (
        {"source": "g", "encoder": "e", "style_image": "i", "clip": "c", "perceptual": "p"},
        {"across": 1.0, "within": 0.5, "reference": 30.0, "l2": 10.0, "lpips": 10.0},
    ),
    "methods.pseudo_paired_stylegan.PseudoPairedStyleGAN": (
        {"source": "g", "encoder": "e", "perceptual": "p"},
        {"adversarial": 1.0, "semantic": 1.0, "paired": 1.0},
    ),
}


@pytest.mark.parametrize("name", WEIGHED)
def test_weights_that_a_config_does_not_name_are_the_methods_own(name: str) -> None:
    settings, defaults = WEIGHED[name]
    method: Any = import_class(f"lightning_styles.{name}")
    first = next(iter(defaults))
    for given in (None, {}, {first: 0.25}):
        made = method(**settings, weights=given)
        assert made.terms == defaults | (given or {})
    told = ", ".join([f"{first} 0.25", *(f"{term} {weight:g}" for term, weight in list(defaults.items())[1:])])
    assert method(**settings, weights={first: 0.25}).summary_lines() == [f"Weights: {told}"]
    for wrong in (-1.0, math.nan, math.inf):
        with pytest.raises(UserError, match=rf"weights.{first} is {wrong}; it must be at least 0"):
            method(**settings, weights={first: wrong})


class Duel(StyleModule):
    """Two steps of `critic` for each step of `maker`, the clock, on noise from the counters; one frozen layer."""

    def __init__(self, iterations: int = 6, width: int = 3, base: str = "a" * 64) -> None:
        super().__init__(iterations=iterations, seed=5, clip_norm=0.5)
        self.save_hyperparameters()
        self.base_models = {"frozen": base}

    def configure_model(self) -> None:
        torch.manual_seed(0)
        self.frozen = nn.Linear(3, 3).requires_grad_(False)
        self.maker, self.critic = nn.Linear(3, self.hparams.width), nn.Linear(3, self.hparams.width)

    def kept(self, name: str) -> bool:
        return not name.startswith("frozen.")

    def named_optimizers(self) -> dict[str, tuple[Optimizer, LambdaLR | None]]:
        maker = Adam(self.maker.parameters(), lr=0.1)
        schedule = LambdaLR(maker, lambda i: 1 / (1 + i))
        return {"maker": (maker, schedule), "critic": (Adam(self.critic.parameters(), lr=0.01), None)}

    def training_step(self, batch: Tensor, batch_idx: int) -> None:
        self.seen = getattr(self, "seen", []) + [(self.iteration, batch_idx)]
        x = self.frozen(batch + self.randn_like(batch, "input"))
        for _ in range(2):
            self.optimize("critic", self.critic(x).square().mean())
        losses = {"near": self.maker(x).square().mean(), "far": self.maker(x).mean()}
        self.optimize("maker", self.total_loss(losses, {"far": 0.5}))


class Numbers(L.LightningDataModule):
    def __init__(self, batch_size: int = 2) -> None:
        super().__init__()
        self.batch_size = batch_size

    def train_dataloader(self) -> Any:
        return train_loader(self.trainer, lambda i: torch.full((3,), float(i)), batch_size=self.batch_size)


def trainer(folder: Path, iterations: int) -> L.Trainer:
    silent = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    return L.Trainer(default_root_dir=folder, max_steps=iterations, accelerator="cpu", **silent)


def fit(folder: Path, iterations: int, ckpt_path: Path | None = None, **settings: Any) -> tuple[Duel, L.Trainer]:
    method, run = Duel(**settings), trainer(folder, iterations)
    run.fit(method, datamodule=Numbers(), ckpt_path=ckpt_path)
    return method, run


def test_global_step_counts_iterations_whatever_the_optimizers_do(tmp_path: Path) -> None:
    method, run = fit(tmp_path, 6)
    assert run.global_step == 6
    assert method.seen == [(i, i) for i in range(6)]
    steps = [int(next(iter(o.state.values()))["step"]) for o in run.optimizers]
    assert steps == [6, 12]
    assert run.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.1 / 7)


def test_losses_are_logged_raw_and_their_total_weighted(tmp_path: Path) -> None:
    logged = fit(tmp_path, 1)[1].callback_metrics
    assert logged["train/total"].item() == pytest.approx((logged["train/near"] + 0.5 * logged["train/far"]).item())


def test_a_resumed_run_ends_bit_equal_to_a_straight_one(tmp_path: Path) -> None:
    straight, whole = fit(tmp_path, 6)
    _, first = fit(tmp_path, 2)
    first.save_checkpoint(tmp_path / "part.ckpt")
    resumed, rest = fit(tmp_path, 6, tmp_path / "part.ckpt")
    assert resumed.seen == [(i, i) for i in range(2, 6)]
    assert all(torch.equal(a, b) for a, b in zip(straight.parameters(), resumed.parameters(), strict=True))
    for a, b in zip(whole.optimizers, rest.optimizers, strict=True):
        for old, new in zip(a.state.values(), b.state.values(), strict=True):
            assert all(torch.equal(old[key], new[key]) for key in old)


def test_checkpoints_hold_what_is_trained_and_plain_values(tmp_path: Path) -> None:
    _, run = fit(tmp_path, 2)
    run.save_checkpoint(tmp_path / "last.ckpt")
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert sorted(saved["state_dict"]) == ["critic.bias", "critic.weight", "maker.bias", "maker.weight"]
    assert saved["lightning_styles"]["base_models"] == {"frozen": "a" * 64}
    assert saved["lightning_styles"]["init_args"] == {"iterations": 6, "width": 3, "base": "a" * 64}


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"base": "b" * 64}, "was trained on base frozen .aaaaaaaaaaaa."), ({"width": 4}, "4 tensors differ")],
)
def test_another_base_or_architecture_is_refused(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    _, run = fit(tmp_path, 2)
    run.save_checkpoint(tmp_path / "last.ckpt")
    with pytest.raises(UserError, match=message):
        fit(tmp_path, 6, tmp_path / "last.ckpt", **settings)


def test_another_batch_size_changes_the_order_of_the_data_and_the_run_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _, run = fit(tmp_path, 2)
    run.save_checkpoint(tmp_path / "part.ckpt")
    fit(tmp_path, 3, tmp_path / "part.ckpt")
    assert "The order of the data" not in caplog.text
    rest = trainer(tmp_path, 4)
    rest.fit(Duel(), datamodule=Numbers(batch_size=3), ckpt_path=tmp_path / "part.ckpt")
    assert rest.global_step == 4
    message = "The order of the data changes: the checkpoint had batch 2 on 1 device(s), this run has batch 3 on 1"
    assert message in caplog.text


class Dropping(Duel):
    """Draws from the global generators too."""

    def training_step(self, batch: Tensor, batch_idx: int) -> None:
        x = nn.functional.dropout(batch, 0.5) + random.random() + np.random.rand()
        super().training_step(x.float(), batch_idx)


def test_draws_from_the_global_generators_resume_exactly_too(tmp_path: Path) -> None:
    ends = []
    for steps, ckpt_path in ((6, None), (2, None), (6, tmp_path / "2.ckpt")):
        method, run = Dropping(), trainer(tmp_path, steps)
        run.fit(method, datamodule=Numbers(), ckpt_path=ckpt_path)
        run.save_checkpoint(tmp_path / f"{steps}.ckpt")
        ends.append(method.maker.weight)
    assert torch.equal(ends[0], ends[2])
    assert not torch.equal(ends[0], fit(tmp_path, 6)[0].maker.weight)


def test_noise_is_a_function_of_its_key() -> None:
    def draw(*key: int | str) -> Tensor:
        return torch.randn(4, generator=noise.generator(*key))

    assert torch.equal(draw(0, 1, "a"), draw(0, 1, "a"))
    others = [draw(1, 1, "a"), draw(0, 2, "a"), draw(0, 1, "b"), draw(0, 11, "a"), draw(0, "1", "a")]
    assert not any(torch.equal(draw(0, 1, "a"), other) for other in others)


def test_optimizing_alone_takes_the_steps_of_fit_without_a_trainer() -> None:
    method = Duel()
    method.configure_model()
    with torch.inference_mode(), method.optimizing_alone():
        before = method.maker.weight.detach().clone()
        method.training_step(torch.ones(2, 3), 0)
        assert (method.maker.weight - before).abs().max().item() == pytest.approx(0.1, rel=1e-3)
