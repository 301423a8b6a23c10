"""One whole iteration of each method on StyleGAN2 against its formulas, written out: what every step descends."""

from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from datamodules import Pictures
from lightning_styles.module import StyleModule
from lightning_styles.pretrained.clip import load_clip
from lightning_styles.pretrained.networks import load_identity, load_perceptual
from tests.micro import quiet_trainer
from tests.micro_baselines import make_gap, make_jojo
from tests.micro_osasis import MicroOSASIS
from tests.micro_stylegan import SIZE, make_method, shaken, style_images
from tests.trust.methods import Gradients

pytest_plugins = ["tests.micro_stylegan", "tests.micro_osasis"]


class Shaken(Gradients):
    """Gradients of an iteration that begins with a G' which has moved away from G, and moves nothing."""

    def on_fit_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        super().on_fit_start(trainer, pl_module)
        shaken(pl_module.styled, 0.1)

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.batch = batch


def one_iteration(method: StyleModule, data: L.LightningDataModule, folder: Path) -> Shaken:
    """The steps of iteration 0, after which the method draws as it did in it."""
    seen = Shaken()
    quiet_trainer(folder, 1, callbacks=[seen]).fit(method, datamodule=data, weights_only=True)
    assert method.iteration == 0
    return seen


def check_step(step: tuple[str, dict[str, Tensor]], name: str, loss: Tensor, network: nn.Module, prefix: str) -> None:
    """`step` is one of the optimizer `name` along the gradient of `loss` by the trained parameters of `network`."""
    taken, found = step
    assert taken == name
    trained = {key: p for key, p in network.named_parameters() if p.requires_grad}
    slopes = torch.autograd.grad(loss, list(trained.values()), allow_unused=True)
    expected = {f"{prefix}.{key}": slope for key, slope in zip(trained, slopes, strict=True) if slope is not None}
    moving = {key: slope for key, slope in expected.items() if slope.any()}
    assert {key for key, slope in found.items() if slope.any()} == set(moving)
    for key, slope in moving.items():
        torch.testing.assert_close(found[key], slope, rtol=1e-3, atol=1e-4 * slope.abs().max().item(), msg=key)


def identity_distance(image: Tensor, target: Tensor) -> Tensor:
    """1 - cos of what the small identity network sees, (B,)."""
    network = load_identity("tiny/identity")
    return 1 - F.cosine_similarity(network(image), network(target))


def test_an_iteration_of_the_finetuning(micro_stylegan: Path, tmp_path: Path) -> None:
    """D, its penalty, G' and its penalty, each with every term, weight and interval (Lu and Zhou 2025)."""
    weights = {"adversarial": 0.7, "semantic": 2.0, "paired": 3.0}
    settings: dict[str, Any] = {"r1": 8.0, "r1_every": 3, "path": 5.0, "path_every": 2, "identity_weight": 0.3}
    method = make_method(micro_stylegan, weights=weights, augment="none", iterations=1, **settings)
    seen = one_iteration(method, style_images(), tmp_path)
    d_step, d_penalty, g_step, g_penalty = seen.seen
    g, styled, d, real = method.source, method.styled, method.discriminator, seen.batch["image"]
    judge = load_perceptual("tiny/perceptual")

    z, maps = method.draw_codes(4, "codes"), method.draw_noise(4, "noise")
    fake = styled(styled.mapping(z), maps)
    loss = F.softplus(-d(real)).mean() + F.softplus(d(fake.detach())).mean()
    check_step(d_step, "discriminator", loss, d, "discriminator")

    x = real.clone().requires_grad_(True)
    (slope,) = torch.autograd.grad(d(x).sum(), x, create_graph=True)
    check_step(d_penalty, "discriminator", 3 * 8.0 / 2 * slope.square().sum((1, 2, 3)).mean(), d, "discriminator")

    original = g(g.mapping(z), maps)
    semantic = (judge(fake, original) + 0.3 * identity_distance(fake, original)).mean()
    chosen = torch.randperm(len(method.pairs.w), generator=method.generator("pairs"))[:2]
    drawn = styled(method.pairs.w[chosen], method.draw_noise(2, "pairs/noise"))
    paired = judge(drawn, method.pairs.style[chosen]).mean()
    loss = 0.7 * F.softplus(-d(fake)).mean() + 2.0 * semantic + 3.0 * paired
    check_step(g_step, "generator", loss, styled, "styled")

    w = styled.mapping(method.draw_codes(2, "path/codes")).requires_grad_(True)
    image = styled(w, method.draw_noise(2, "path/noise"))
    y = torch.empty_like(image).normal_(generator=method.generator("path/direction")) / SIZE
    (slope,) = torch.autograd.grad((image * y).sum(), w, create_graph=True)
    lengths = slope.square().sum(2).mean(1).sqrt()
    a = 0.01 * lengths.mean()
    check_step(g_penalty, "generator", 2 * 5.0 * (lengths - a).square().mean(), styled, "styled")
    torch.testing.assert_close(method.path_mean, a.detach())


def test_an_iteration_of_jojogan(micro_stylegan: Path, tmp_path: Path) -> None:
    """The mean over D's maps of their mean absolute difference (arXiv 2112.11641)."""
    method = make_jojo(micro_stylegan, iterations=1, batch_size=2)
    (step,) = one_iteration(method, photos(), tmp_path).seen
    w = method.versions(method.encode(method.pictures).repeat(2, 1, 1))
    drawn = method.discriminator.features(method.styled(w, method.draw_noise(2, "noise")))
    style = method.discriminator.features(method.pictures)
    loss = sum((a - b).abs().mean() for a, b in zip(drawn, style, strict=True)) / len(style)
    check_step(step, "generator", loss, method.styled, "styled")  # type: ignore[arg-type]


def test_an_iteration_of_mind_the_gap(micro_stylegan: Path, micro_osasis: MicroOSASIS, tmp_path: Path) -> None:
    """L_across + 0.5 L_within + 30 L_ref_clip + 10 L_2 + 10 LPIPS (arXiv 2110.08398)."""
    method = make_gap(micro_stylegan, micro_osasis, iterations=1)
    (step,) = one_iteration(method, photos(), tmp_path).seen
    clip, judge = load_clip(micro_osasis.clip), load_perceptual("tiny/perceptual")

    def e(image: Tensor) -> Tensor:
        return F.normalize(clip.image(image))

    z = torch.randn(2, method.source.style_dim, generator=method.generator("styles"))
    w, maps = method.source.mapping(z), method.draw_noise(2, "noise")
    photo, style = method.source(method.code[None]), method.picture
    before, after, drawn = method.source(w, maps), method.styled(w, maps), method.styled(method.code[None])
    across = 1 - F.cosine_similarity(e(after) - e(before), e(style) - e(photo)).mean()
    within = 1 - F.cosine_similarity(e(before) - e(photo), e(after) - e(style)).mean()
    reference = 1 - F.cosine_similarity(e(drawn), e(style)).mean()
    l2, lpips = (drawn - style).square().mean(), judge(drawn, style).mean()
    loss = across + 0.5 * within + 30 * reference + 10 * l2 + 10 * lpips
    check_step(step, "generator", loss, method.styled, "styled")


def photos() -> Pictures:
    return Pictures(images="scene:portrait/0-2", resolution=SIZE, batch_size=2)
