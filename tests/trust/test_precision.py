"""Half precision stays near float32 and trains in float32; NaN and infinite values end a run before they are saved."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from callbacks import SkipNonFinite
from datamodules import Pictures
from datamodules.sampling import train_loader
from lightning_styles.diffusion.half_way import encode_half_way, picture_process
from lightning_styles.errors import UserError
from lightning_styles.methods.sms import SMS
from lightning_styles.module import StyleModule
from lightning_styles.nonfinite import NonFinite, bad_tensors
from lightning_styles.precision import frozen_dtype
from lightning_styles.pretrained.diffae import frozen_diffae
from tests.micro import Micro, quiet_trainer
from tests.trust.methods import METHODS, Gradients, Recorder

pytest_plugins = ["tests.micro"]

# ---- half precision

# Terms of small differences: the square of that of two scores, and directions between embeddings.
ROUGH = {"style": 0.5, "cross": 0.1, "in": 0.1, "re_clip": 0.1}


def two_iterations(micro: Micro, folder: Path, name: str, precision: str) -> tuple[StyleModule, Any, Any, Any]:
    """The method, its trainer, the losses and the gradients of two iterations in which nothing moves."""
    case, gradients, recorder = METHODS[name], Gradients(), Recorder()
    method = case.make(micro)
    run = quiet_trainer(folder, 2, callbacks=[gradients, recorder], precision=precision)
    run.fit(method, datamodule=case.data(micro, 0))
    return method, run, recorder, gradients.seen


@pytest.mark.parametrize("name", METHODS)
def test_half_precision_stays_near_float32_and_trains_in_float32(micro: Micro, tmp_path: Path, name: str) -> None:
    _, _, exact, exact_gradients = two_iterations(micro, tmp_path, name, "32-true")
    for precision in ("bf16-mixed", "bf16-true"):
        method, run, rough, gradients = two_iterations(micro, tmp_path, name, precision)
        assert run.precision == precision
        assert rough.noise == exact.noise
        for ours, theirs in zip(rough.losses, exact.losses, strict=True):
            assert set(METHODS[name].losses) <= ours.keys() == theirs.keys()
            for key, value in ours.items():
                assert value == pytest.approx(theirs[key], rel=ROUGH.get(key, 0.03), abs=1e-7), key
        for (optimizer, ours), (_, theirs) in zip(gradients, exact_gradients, strict=True):
            a, b = (torch.cat([g.flatten().double() for g in side.values()]) for side in (ours, theirs))
            # Random networks answer two prompts almost alike, so rounding is a large part of what distils.
            assert torch.cosine_similarity(a, b, dim=0) > (0.99 if optimizer in METHODS[name].adapters else 0.5)
        trained = {key: p for key, p in method.named_parameters() if method.kept(key)}
        states = [s for o in run.optimizers for state in o.state.values() for s in state.values()]
        held = [*trained.values(), *states, *(g for _, side in gradients for g in side.values())]
        assert {t.dtype for t in held} == {torch.float32}
        frozen = {p.dtype for key, p in method.named_parameters() if key not in trained}
        expected = {torch.bfloat16 if precision == "bf16-true" else torch.float32}
        assert frozen == (set() if METHODS[name].frozen_outside else expected)


def test_scores_are_compared_in_float32(micro: Micro, tmp_path: Path) -> None:
    seen: list[torch.dtype] = []

    class Watch(L.Callback):
        def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
            pl_module.scores.register_forward_hook(lambda *call: seen.extend(eps.dtype for eps in call[-1]))

    method = METHODS["sms"].make(micro)
    run = quiet_trainer(tmp_path, 1, callbacks=[Watch()], precision="bf16-true")
    run.fit(method, datamodule=METHODS["sms"].data(micro, 0))
    assert seen == [torch.float32] * 4  # style, fake and real for the latents, fake for itself
    assert method.z_src.dtype == method.z_tgt.dtype == torch.float32


def gradients_of_sms(folder: Path, frozen: str, precision: Any = "32-true") -> dict[str, Tensor]:
    """R g of the latents and the gradient of the fake score, at guidance 4.5 and t of 481 to 499, all in one vector."""
    seen = Gradients()
    method = SMS(
        base="tiny/stable-diffusion", style_lora="tiny/lora-cartoon", style="cartoon style", iterations=1,
        weights={}, t_min=480, sampling="uniform", frozen_precision=frozen,
    )  # type: ignore[arg-type]  # fmt: skip
    run = quiet_trainer(folder, 1, callbacks=[seen], precision=precision)
    run.fit(method, datamodule=Pictures(images="scene:portrait/8?seed=1", resolution=64))
    return {name: torch.cat([g.flatten() for g in side.values()]) for name, side in seen.seen}


def off(found: Tensor, expected: Tensor) -> float:
    """||found - expected|| / ||expected||."""
    return ((found.float() - expected).norm() / expected.norm()).item()


def test_the_gradients_of_sms_are_as_near_to_float32_as_its_help_says(tmp_path: Path) -> None:
    exact = gradients_of_sms(tmp_path, "float32")
    for frozen, latents, fake in (("float16", 0.04, 0.01), ("bfloat16", 0.3, 0.1)):
        found = gradients_of_sms(tmp_path, frozen)
        assert off(found["generator"], exact["generator"]) < latents, frozen
        assert off(found["fake"], exact["fake"]) < fake, frozen
    mixed = gradients_of_sms(tmp_path, "float32", "bf16-mixed")
    for name, gradient in mixed.items():
        assert torch.equal(gradient, exact[name]), "the precision of the trainer does not reach the scores"


def test_the_half_way_pictures_of_osasis_are_as_near_to_float32_as_its_help_says() -> None:
    photo = Pictures(images="scene:portrait/8?seed=1", resolution=32).pictures()[0]["image"][None]
    encoded = {
        dtype: encode_half_way(frozen_diffae("tiny/diffae", dtype).model, photo, picture_process(10), 0.5)
        for dtype in (torch.float32, torch.float16, torch.bfloat16)
    }
    exact = encoded[torch.float32]
    for dtype, bound in ((torch.float16, 0.02), (torch.bfloat16, 0.1)):
        assert all(off(ours, theirs) < bound for ours, theirs in zip(encoded[dtype], exact, strict=True)), dtype
    with torch.autocast("cpu", torch.bfloat16):
        mixed = encode_half_way(frozen_diffae("tiny/diffae").model, photo, picture_process(10), 0.5)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(mixed, exact, strict=True))


@pytest.mark.parametrize(("device", "auto"), [("cpu", "float32"), ("cuda", "float16")])
def test_what_is_only_asked_is_float16_on_a_gpu(device: str, auto: str) -> None:
    strategy = SimpleNamespace(precision_plugin=None, root_device=torch.device(device))
    trainer: Any = SimpleNamespace(strategy=strategy)
    kinds = {name: frozen_dtype(name, trainer, torch.float16) for name in ("auto", "float32", "bfloat16", "float16")}
    assert kinds == {name: getattr(torch, auto if name == "auto" else name) for name in kinds}
    assert frozen_dtype("auto", trainer) == (torch.float32 if device == "cpu" else torch.bfloat16)


@pytest.mark.parametrize(
    ("name", "half"), [("sms", torch.float16), ("osasis", torch.float16), ("style_lora", torch.bfloat16)]
)
def test_networks_that_a_gradient_goes_through_unscaled_keep_the_range_of_float32(
    micro: Micro, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, half: torch.dtype
) -> None:
    asked: list[torch.dtype] = []

    def noted(precision: str, trainer: Any, half: torch.dtype) -> torch.dtype:
        asked.append(half)
        return torch.float32

    for place in ("lightning_styles.module", "datamodules.diffae_samples"):
        monkeypatch.setattr(f"{place}.frozen_dtype", noted)
    run = quiet_trainer(tmp_path, 1)
    run.fit(METHODS[name].make(micro), datamodule=METHODS[name].data(micro, 0))
    assert set(asked) == {half}


# ---- NaN and infinite values


class Fragile(StyleModule):
    """A linear layer whose loss term `far`, or gradient, is bad in some iterations."""

    def __init__(self, bad: dict[int, float], gradient: bool = False) -> None:
        super().__init__(iterations=8)
        self.bad, self.gradient = bad, gradient
        self.layer = nn.Linear(3, 1)

    def named_optimizers(self) -> dict[str, tuple[Optimizer, None]]:
        return {"layer": (AdamW(self.layer.parameters(), lr=0.1), None)}

    def training_step(self, batch: Tensor, batch_idx: int) -> None:
        y = self.layer(batch).square().mean()
        factor = self.bad.get(self.iteration, 1.0)
        far = y * factor
        if self.gradient:  # the value is fine, its derivative is not: d sqrt(x) / dx at 0
            far = y + ((y - y.detach()).abs().sqrt() if factor != 1.0 else 0.0)
        self.optimize("layer", self.total_loss({"near": y, "far": far}, {}))


class Numbers(L.LightningDataModule):
    batch_size = 2

    def train_dataloader(self) -> Any:
        return train_loader(self.trainer, lambda i: torch.full((3,), 1.0 + i), batch_size=2)  # type: ignore[arg-type]


def fit(folder: Path, method: Fragile, *callbacks: L.Callback, save: bool = True, **settings: Any) -> L.Trainer:
    savers = [ModelCheckpoint(folder, "{step}", every_n_train_steps=1, save_top_k=-1)] if save else []
    settings = {"callbacks": [*callbacks, *savers], "enable_checkpointing": save, "log_every_n_steps": 2} | settings
    run = quiet_trainer(folder, 8, **settings)
    run.fit(method, datamodule=Numbers())
    return run


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_bad_loss_stops_the_run_and_no_bad_checkpoint_is_written(tmp_path: Path, value: float) -> None:
    with pytest.raises(UserError) as stopped:
        fit(tmp_path, Fragile({3: value}))
    message = str(stopped.value)
    assert message.startswith("far and total became NaN or infinite in iteration 3; the last good checkpoint is ")
    assert f"{tmp_path / 'step=3.ckpt'} (3 iterations)" in message
    assert sorted(path.name for path in tmp_path.glob("*.ckpt")) == [f"step={n}.ckpt" for n in (1, 2, 3)]
    for path in tmp_path.glob("*.ckpt"):
        assert bad_tensors(torch.load(path, weights_only=True)["state_dict"]) == []


def test_without_checkpoints_it_stops_when_it_logs(tmp_path: Path) -> None:
    method = Fragile({2: float("nan")})
    with pytest.raises(UserError, match="far and total became NaN or infinite in iteration 2; no checkpoint was"):
        fit(tmp_path, method, save=False)
    assert method.trainer.global_step == 4, "looked at every second iteration"


def test_bad_weights_behind_good_losses_are_not_saved(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^layer\.weight holds NaN or infinite values after 4 iterations; the last"):
        fit(tmp_path, Fragile({3: 0.0}, gradient=True))
    assert not (tmp_path / "step=4.ckpt").exists()


@pytest.mark.parametrize("gradient", [False, True])
def test_bad_steps_are_skipped_and_counted_if_wished(tmp_path: Path, gradient: bool) -> None:
    method, skip = Fragile({1: float("nan"), 4: float("inf")}, gradient), SkipNonFinite(at_most=2)
    run = fit(tmp_path, method, skip)
    assert run.global_step == 8
    assert run.callback_metrics["train/skipped"] == 2
    assert bad_tensors(method.state_dict()) == []
    states = torch.load(tmp_path / "step=8.ckpt", weights_only=True)["callbacks"]
    assert states["SkipNonFinite"] == {"skipped": 2}


def test_too_many_bad_steps_stop_the_run(tmp_path: Path) -> None:
    bad = dict.fromkeys(range(2, 8), float("nan"))
    with pytest.raises(UserError, match="3 steps had NaN or infinite gradients by iteration 5, .* allows 2"):
        fit(tmp_path, Fragile(bad), SkipNonFinite(at_most=2))
    assert (tmp_path / "step=4.ckpt").is_file()


def test_looking_for_bad_values_never_waits_for_the_device() -> None:
    watch, weight = NonFinite(), nn.Parameter(torch.zeros(2, device="meta"))  # has no values that could be read
    watch.note({"near": torch.zeros((), device="meta"), "far": torch.zeros(2, device="meta")}, 3)
    weight.grad = torch.zeros(2, device="meta")
    skip = SkipNonFinite()
    skip.skipped = torch.zeros((), dtype=torch.int64, device="meta")
    skip.on_before_optimizer_step(L.Trainer.__new__(L.Trainer), L.LightningModule(), AdamW([weight]))
    assert watch.since["far"].is_meta
    assert skip.skipped.is_meta


def test_the_first_bad_iteration_of_any_rank_counts() -> None:
    watch = NonFinite()
    for iteration, near in enumerate([1.0, 1.0, float("nan"), 1.0]):
        watch.note({"near": torch.tensor(near), "far": torch.tensor([1.0, 2.0])}, iteration)
    alone = SimpleNamespace(reduce=lambda since, reduce_op: since)
    other = SimpleNamespace(reduce=lambda since, reduce_op: torch.minimum(since, torch.tensor([7, 1])))
    assert watch.first(alone) == (2, ["near"])  # type: ignore[arg-type]
    assert watch.first(other) == (1, ["far"])  # type: ignore[arg-type]
