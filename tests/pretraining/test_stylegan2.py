"""Pretraining of StyleGAN2: the clock, the lazy regularisers, mixing, and a file that the loader reads."""

import math
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor

from datamodules.scene_pool import ScenePool
from lightning_styles.errors import UserError
from lightning_styles.models.stylegan2 import Generator
from lightning_styles.pretrained.stylegan2 import StyleGAN2, load_stylegan2, save_stylegan2
from lightning_styles.pretraining.drawn_stylegan2 import DrawnStyleGAN2Pretraining
from lightning_styles.pretraining.stylegan2 import StyleGAN2Pretraining

SMALL: dict[str, Any] = {"widths": [8, 8, 4, 4], "style_dim": 16, "mapping_layers": 2}


class Recorded(StyleGAN2Pretraining):
    """Keeps what is logged as (name, iteration)."""

    def log_losses(self, losses: dict[str, Tensor]) -> None:
        super().log_losses(losses)
        self.__dict__.setdefault("logged", []).extend((name, self.iteration) for name in losses)

    def iterations_of(self, name: str) -> list[int]:
        return [iteration for logged, iteration in self.__dict__["logged"] if logged == name]


def fit(method: Any, folder: Path, described: int | None = None) -> Any:
    recipe: dict[str, Any] = {"kinds": {"portrait": 4}, "styles": {"photo": 1.0}, "size": 32, "described": described}
    data = ScenePool(**recipe, batch_size=4, cache=str(folder))
    silent = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = L.Trainer(max_steps=method.iterations, accelerator="cpu", enable_model_summary=False, **silent)
    trainer.fit(method, datamodule=data)
    return method


def steps_of(method: StyleGAN2Pretraining) -> list[int]:
    """Steps that the optimizers of the generator and of the discriminator took."""
    optimizers: Any = method.optimizers(use_pl_optimizer=False)
    return [int(next(iter(optimizer.state.values()))["step"]) for optimizer in optimizers]


def test_regularisers_come_at_their_iterations_and_are_not_counted(tmp_path: Path) -> None:
    method = fit(Recorded(iterations=4, r1=0.1, r1_every=3, path=2.0, path_every=2, **SMALL), tmp_path)
    assert method.trainer.global_step == 4
    assert method.iterations_of("r1") == [0, 3]
    assert method.iterations_of("path") == [0, 2]
    assert method.iterations_of("generator") == method.iterations_of("discriminator") == [0, 1, 2, 3]
    assert steps_of(method) == [6, 6]
    assert method.state_dict()["path_mean"] > 0
    rates = [group["lr"] for optimizer in method.trainer.optimizers for group in optimizer.param_groups]
    assert rates == pytest.approx([2e-3 * 2 / 3, 2e-3 * 3 / 4])


def test_the_path_is_left_out_by_default(tmp_path: Path) -> None:
    method = fit(Recorded(iterations=2, augment=["translation"], **SMALL), tmp_path)
    assert method.iterations_of("path") == []
    assert method.iterations_of("r1") == [0]
    assert steps_of(method) == [2, 3]


@pytest.mark.parametrize(("mixing", "different"), [(0.0, {1}), (1.0, {2})])
def test_a_batch_has_one_or_two_styles_with_one_crossover(mixing: float, different: set[int]) -> None:
    method = StyleGAN2Pretraining(iterations=1, mixing=mixing, **SMALL)
    method.configure_model()
    crossovers = set()
    for method.iteration in range(12):
        w = method.draw_styles(3, "styles")
        assert {len(row.unique(dim=0)) for row in w} == different
        changes = (w[:, 1:] != w[:, :-1]).any(2)
        assert (changes == changes[0]).all()
        crossovers.add(tuple(changes[0].nonzero().flatten().tolist()))
    assert (len(crossovers) > 3) == (mixing == 1.0)


def test_each_network_learns_and_the_file_is_read_back(tmp_path: Path) -> None:
    method = StyleGAN2Pretraining(iterations=2, **SMALL)
    method.configure_model()
    before = {name: parameter.detach().clone() for name, parameter in method.named_parameters()}
    fit(method, tmp_path)
    still = {name for name, parameter in method.named_parameters() if torch.equal(before[name], parameter)}
    assert not still
    assert all(parameter.requires_grad for parameter in method.parameters())

    method.export(tmp_path / "stylegan2.safetensors", "safetensors")
    loaded = load_stylegan2(tmp_path / "stylegan2.safetensors", finetune=True)
    w = method.G.mapping(torch.randn(512, 16))
    torch.testing.assert_close(loaded.latent_avg, w.mean(0), rtol=0, atol=0.2)
    images = method.G(w[:4])
    torch.testing.assert_close(loaded.generator(w[:4]), images, rtol=1e-2, atol=1e-2)
    assert loaded.discriminator is not None
    torch.testing.assert_close(loaded.discriminator(images), method.D(images), rtol=1e-2, atol=1e-2)


def test_previews_are_the_same_pictures_each_time() -> None:
    method = StyleGAN2Pretraining(iterations=1, **SMALL)
    method.configure_model()
    first, again = method.preview(), method.preview()
    assert list(first) == ["result", "psi 1", "mixed"]
    for name, pictures in first.items():
        assert pictures.shape == (8, 3, 32, 32)
        assert torch.equal(pictures, again[name])
    assert not torch.equal(first["result"], first["psi 1"])


def test_it_goes_on_from_a_generator_of_its_widths(tmp_path: Path) -> None:
    path = tmp_path / "start.safetensors"
    generator = Generator(32, 16, 2, channels={4: 8, 8: 8, 16: 4, 32: 4})
    save_stylegan2(path, StyleGAN2(generator, torch.zeros(16)))
    method = StyleGAN2Pretraining(iterations=1, start=str(path), **SMALL)
    method.configure_model()
    for name, weight in generator.state_dict().items():
        assert torch.equal(method.G.state_dict()[name], weight), name
    assert all(parameter.requires_grad for parameter in method.parameters())
    wider = StyleGAN2Pretraining(iterations=1, start=str(path), **(SMALL | {"style_dim": 24}))
    with pytest.raises(UserError, match=r"start\.safetensors"):
        wider.configure_model()


def test_the_discriminator_can_learn_alone(tmp_path: Path) -> None:
    path = tmp_path / "start.safetensors"
    save_stylegan2(path, StyleGAN2(Generator(32, 16, 2, channels={4: 8, 8: 8, 16: 4, 32: 4}), torch.zeros(16)))
    method = Recorded(iterations=3, start=str(path), lr_generator=0.0, r1_every=2, **SMALL)
    method.configure_model()
    before = {name: parameter.detach().clone() for name, parameter in method.named_parameters()}
    fit(method, tmp_path)
    assert method.trainer.global_step == 3
    assert method.iterations_of("discriminator") == [0, 1, 2]
    assert method.iterations_of("r1") == [0, 2]
    assert method.iterations_of("generator") == []
    moved = {name for name, parameter in method.named_parameters() if not torch.equal(before[name], parameter)}
    assert moved == {name for name in before if name.startswith("D.")}
    with pytest.raises(UserError, match="stays random; set model.start"):
        StyleGAN2Pretraining(iterations=1, lr_generator=0.0, **SMALL)


# ---- of known latents

DRAWN: dict[str, Any] = SMALL | {"style_dim": 96, "features": 261, "hidden": 32, "weights": {"l1": 1.0}}


def test_known_latents_are_the_first_of_z() -> None:
    method = DrawnStyleGAN2Pretraining(iterations=1, **DRAWN)
    latents = torch.randn(3, 81)
    first = method.complete(latents)
    assert torch.equal(first[:, :81], latents)
    assert torch.equal(method.complete(latents), first)
    method.iteration = 1
    assert not torch.equal(method.complete(latents)[:, 81:], first[:, 81:])
    with pytest.raises(UserError, match="100 latents; set model.style_dim"):
        method.complete(torch.randn(3, 100))


def test_data_without_latents_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"set data\.described"):
        fit(DrawnStyleGAN2Pretraining(iterations=1, **DRAWN), tmp_path)


def test_at_the_end_only_the_mapping_learns() -> None:
    method = DrawnStyleGAN2Pretraining(iterations=10, settle=6, lr=1.0, lr_dense=0.1, lr_settle=0.5, **DRAWN)
    method.configure_model()
    (optimizer, schedule) = method.named_optimizers()["network"]
    rates = []
    for _ in range(10):
        rates.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        schedule.step()
    falling = [0.5 * (1 + math.cos(math.pi * i / 4)) for i in range(4)] + [0.0] * 6
    settling = [0.5 * (1 + math.cos(math.pi * i / 6)) for i in range(6)]
    assert [rate[0] for rate in rates] == pytest.approx(falling)
    assert [rate[1] for rate in rates] == pytest.approx([0.1 * f for f in falling])
    assert [rate[2] for rate in rates] == pytest.approx([10 * f for f in falling[:4]] + [50 * f for f in settling])
    with pytest.raises(UserError, match="settle is 10, of 10"):
        DrawnStyleGAN2Pretraining(iterations=10, settle=10, **DRAWN)


def test_pictures_of_known_latents_are_learnt(tmp_path: Path) -> None:
    weights = {"l1": 1.0, "edges": 1.0, "perceptual": 0.1}
    settings = DRAWN | {"weights": weights, "perceptual": "tiny/perceptual", "lr": 2e-2, "lr_dense": 5e-3, "settle": 60}
    method = fit(DrawnStyleGAN2Pretraining(iterations=160, **settings), tmp_path, described=8)
    preview = method.preview()
    assert list(preview) == ["source", "result", "random"]
    untaught = DrawnStyleGAN2Pretraining(iterations=160, **settings)
    untaught.configure_model()
    untaught.last = method.last
    distances = [(shown["result"] - shown["source"]).abs().mean() for shown in (preview, untaught.preview())]
    assert distances[0] < 0.6 * distances[1]
    method.export(tmp_path / "taught.safetensors", "safetensors")
    loaded = load_stylegan2(tmp_path / "taught.safetensors")
    assert loaded.discriminator is None
    w = method.G.mapping(torch.randn(4, 96))
    torch.testing.assert_close(loaded.generator(w), method.G(w), rtol=1e-2, atol=1e-2)
