"""Numbers of 64 bits stay on the CPU: Apple's GPUs have none."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from datamodules import scenes
from lightning_styles.diffusion import ancestral, ddim
from lightning_styles.diffusion.inversion import ReNoise, ddim_inversion
from lightning_styles.diffusion.latents import to_latents, to_pixels
from lightning_styles.diffusion.respacing import Respaced, even_timesteps, linear_betas
from lightning_styles.losses import clip_direction, codes, denoising, gan, osasis, score_distillation, spectrum
from lightning_styles.losses.semantic import semantic_distance
from lightning_styles.metrics.evaluation import Evaluation
from lightning_styles.metrics.fid import frechet_distance, kernel_distance
from lightning_styles.models.perceptual import PerceptualNet
from lightning_styles.models.stylegan2 import Discriminator, Generator
from lightning_styles.models.stylegan2.factorization import factorize
from lightning_styles.models.stylegan2.pnorm import whiten
from tests.methods.test_sms import GoldenSMS, golden
from tests.micro import make_vae

aten = torch.ops.aten


class WithoutFloat64(TorchDispatchMode):
    """The meta device as one that has no float64; what is read from it to the CPU is 1."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is aten._local_scalar_dense.default and args[0].is_meta:
            return 1 if not args[0].is_floating_point() else 1.0
        if func is aten._to_copy.default and args[0].is_meta and str(kwargs.get("device")) == "cpu":
            return torch.ones(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype)
        found = func(*args, **kwargs)
        wide = [x for x in tree_leaves(found) if isinstance(x, Tensor) and x.is_meta and x.dtype.itemsize == 8]
        assert not any(x.dtype in (torch.float64, torch.complex128) for x in wide), func
        return found


@pytest.fixture(autouse=True)
def like_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """The meta device knows no autocast."""
    monkeypatch.setattr(torch, "autocast", lambda *args, **kwargs: nullcontext())
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda *args: False)


def elsewhere(*shape: int) -> Tensor:
    return torch.zeros(shape, device="meta")


class OnMeta(GoldenSMS):
    """The golden SMS on the other device."""

    def draw(self, purpose: str, bounds: tuple[int, int]) -> tuple[Tensor, Tensor]:
        return torch.ones(1, dtype=torch.int64, device="meta"), elsewhere(*self.z_src.shape)


@pytest.mark.parametrize("objective", ["sms", "vsd", "sds", "dds", "pds"])
def test_iterations_of_score_distillation(objective: str) -> None:
    method = golden(objective=objective, iterations=1)
    method.__class__ = OnMeta
    method.to("meta")
    method.schedule, method.grid = method.schedule.to("meta"), method.grid.to("meta")
    method.text = {role: x.to("meta") for role, x in method.text.items()}
    with WithoutFloat64(), method.optimizing_alone():
        method.iterate()
    assert method.z_tgt.is_meta


def noise_of(x: Tensor, t: Any, *others: Tensor) -> Tensor:
    return 0.5 * x


def process() -> Respaced:
    return Respaced.of(linear_betas(), even_timesteps(10))


def stylegan() -> None:
    G, D = Generator(16, 24, 2).to("meta"), Discriminator(16).to("meta")
    w, image = elsewhere(2, 24).requires_grad_(), elsewhere(4, 3, 16, 16).requires_grad_()
    gan.discriminator_loss(D(image), D(image))
    gan.generator_loss(D(image))
    gan.r1_penalty(D(image), image)
    rows = elsewhere(2, G.n_latent, 24).requires_grad_()
    lengths = gan.path_lengths(G(rows), rows, elsewhere(2, 3, 16, 16))
    gan.path_penalty(lengths, elsewhere())
    judge = PerceptualNet((4, 8)).to("meta")
    semantic_distance(judge, None, image, image, 0.5)
    codes.kl_divergence(w, w)
    codes.moment_penalty(w[None])
    factorize(elsewhere(30, 8))
    whiten(elsewhere(30, 8))


def osasis_terms() -> None:
    e, image = elsewhere(1, 8), elsewhere(1, 3, 32, 32)
    clip_direction.clip_input(image, "clip")
    clip_direction.cross_loss(e, e, e, e)
    clip_direction.in_loss(e, e, e, e, normalize=True)
    clip_direction.re_clip_loss(e, e)
    osasis.picture_terms(image, image, lambda x: x.abs().mean((1, 2, 3)))
    osasis.twin_scores(image, image, lambda x: x.abs().mean((1, 2, 3)))


def samplers() -> None:
    x, t = elsewhere(1, 3, 16, 16), torch.ones(1, dtype=torch.int64, device="meta")
    z = ddim.encode(noise_of, x, process(), range(5))
    ddim.step_down(process(), 3, z, z)
    ddim.sample_codes(noise_of, elsewhere(1, 8), process(), elsewhere(1, 8), elsewhere(1, 8))
    ancestral.ancestral_step(process(), 3, x, elsewhere(1, 6, 16, 16), x)
    ancestral.posterior(process(), 0, x, elsewhere(1, 6, 16, 16))
    vae = make_vae().to("meta")
    to_pixels(vae, to_latents(vae, x))
    denoising.denoising_loss(x, x, t.float(), 5.0)
    schedule = golden().schedule.to("meta")
    ddim_inversion(noise_of, elsewhere(1, 4, 16, 16), schedule, 3, ReNoise(first_below=1000))
    spectrum.spectrum_loss(x, x, spectrum.low_pass_mask(16, 16, spectrum.threshold(t, 16, 16)), 0.5, "l2")
    spectrum.identity_loss(x, x, 0.5)
    score_distillation.pds_gradient(x, x, x, x, t.float(), t.float(), t.float())


def metrics() -> None:
    names = {"perceptual": "perceptual", "style_features": "perceptual", "identity": "identity"}
    evaluation = Evaluation({key: f"tiny/{name}" for key, name in names.items()}).to("meta")
    x = elsewhere(2, 3, 64, 64)
    evaluation.update(x, x, x, torch.zeros(2, dtype=torch.int64, device="meta"))
    features = elsewhere(20, 6)
    frechet_distance(features, features)
    kernel_distance(features, features)


def drawn_world() -> None:
    drawn = scenes.sample_scenes(0, [3])
    object.__setattr__(drawn, "uniforms", drawn.uniforms.to("meta"))
    scenes.latents(drawn)


@pytest.mark.parametrize("run", [stylegan, osasis_terms, samplers, metrics, drawn_world])
def test_losses_samplers_and_metrics(run: Callable[[], None]) -> None:
    with WithoutFloat64():
        run()


def test_the_stand_in_notices() -> None:
    network = nn.Linear(2, 2).to("meta")
    with WithoutFloat64(), pytest.raises(AssertionError):
        network(elsewhere(1, 2)).double()
