"""PseudoPairedStyleGAN: an iteration, a picture and the search for pairs, beside a plain statement of the same.

`pytest tests/benchmarks --benchmark-only` runs the embedded architecture, and on a CUDA device StyleGAN2's at 1024 px
too; LIGHTNING_STYLES_LARGE=1 runs the latter on the CPU (minutes, 24 GB). Weights are random. The numbers that count
are in `extra_info`: times_faster and the peaks of memory (CUDA: allocated tensors; CPU: resident set, shared).
The plain networks have the same weights: each sample's own kernels in one grouped convolution, two-dimensional filters
after zeros are inserted, and a picture of its own for each network's step. No compiled operation takes part.
"""

import os
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pytest
import torch
import yaml
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Adam

from lightning_styles.losses.gan import discriminator_loss, generator_loss
from lightning_styles.losses.semantic import Judge
from lightning_styles.methods.pseudo_paired_stylegan import PseudoPairedStyleGAN
from lightning_styles.models.augmentation import Augmentation
from lightning_styles.models.psp import GradualStyleEncoder
from lightning_styles.models.stylegan2 import Discriminator, Generator
from lightning_styles.models.stylegan2.generator import channels_of
from lightning_styles.models.stylegan2.layers import EPSILON, ModulatedConv2d, Resample
from lightning_styles.models.stylegan2.pairing import PairNetworks, PairSettings, optimise_codes
from lightning_styles.pretrained.networks import load_perceptual
from lightning_styles.pretrained.psp import PSP
from tests.benchmarks.test_pair_customization import CUDA, DEVICE, compare

ROOT = Path(__file__).resolve().parents[2]
LARGE = CUDA or os.environ.get("LIGHTNING_STYLES_LARGE") == "1"
PICTURES, STEPS = 16, 3
N = TypeVar("N", bound=nn.Module)


@dataclass(frozen=True)
class Size:
    """An architecture: channels by px, length of a style, layers of the mapping; pictures at once, rounds."""

    widths: dict[int, int]
    style: int
    mapping: int
    batch: int
    rounds: int

    def generator(self) -> Generator:
        return Generator(max(self.widths), self.style, self.mapping, channels=self.widths).to(DEVICE)

    def discriminator(self) -> Discriminator:
        return Discriminator(max(self.widths), channels=self.widths).to(DEVICE)


def embedded() -> Size:
    """As the recipe of the embedded generator says."""
    text = (ROOT / "configs/pretrain/stylegan2.yaml").read_text(encoding="utf-8")
    own = yaml.safe_load(text)["model"]["init_args"]
    widths = {4 * 2**i: width for i, width in enumerate(own["widths"])}
    return Size(widths, own["style_dim"], own["mapping_layers"], batch=8, rounds=5)


def config_f() -> Size:
    """1024 px."""
    return Size(channels_of(), 512, 8, batch=8 if CUDA else 1, rounds=10 if CUDA else 1)


# ---- the plain statement


class PlainFilter(Resample):
    """Zeros between the samples, then the filter as a whole, then every `down`-th sample."""

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        if self.up > 1:
            spread = x.new_zeros(batch, channels, height, self.up, width, self.up)
            spread[:, :, :, 0, :, 0] = x
            x = spread.reshape(batch, channels, height * self.up, width * self.up)
        x = F.pad(x, (*self.pad, *self.pad))
        x = F.conv2d(x.reshape(batch * channels, 1, *x.shape[-2:]), self.kernel.flip(0, 1)[None, None].to(x.dtype))
        return x.reshape(batch, channels, *x.shape[-2:])[:, :, :: self.down, :: self.down]


class PlainModulation(ModulatedConv2d):
    """A kernel for each sample, all of them in one grouped convolution."""

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        batch, inputs = x.shape[:2]
        weight = self.weight * self.scale * self.modulation(style)[:, None, :, None, None]
        if self.demodulate:
            weight = weight * (weight.square().sum((2, 3, 4), keepdim=True) + EPSILON).rsqrt()
        weight, outputs = weight.to(x.dtype), weight.shape[1]
        if self.resample == "up":
            kernels = weight.transpose(1, 2).reshape(batch * inputs, outputs, *weight.shape[-2:])
            y = F.conv_transpose2d(x.reshape(1, -1, *x.shape[-2:]), kernels, stride=2, groups=batch)
            return self.blur(y.reshape(batch, outputs, *y.shape[-2:]))
        y = F.conv2d(x.reshape(1, -1, *x.shape[-2:]), weight.flatten(0, 1), None, 1, weight.shape[-1] // 2, 1, batch)
        return y.reshape(batch, outputs, *y.shape[-2:])


def plainly(network: N) -> N:
    """A copy of `network` that computes the same in the plain way."""
    copied = deepcopy(network)
    for module in copied.modules():
        if isinstance(module, ModulatedConv2d):
            module.__class__ = PlainModulation
        elif isinstance(module, Resample):
            module.__class__ = PlainFilter
    return copied


class Plain:
    """One step of D and one of G, each with pictures of its own."""

    def __init__(self, size: Size, real: Tensor) -> None:
        self.size, self.real = size, real
        self.G, self.D = plainly(size.generator()), plainly(size.discriminator())
        self.G.style.requires_grad_(False)
        trained = [p for p in self.G.parameters() if p.requires_grad]
        self.average = deepcopy(self.G).requires_grad_(False)
        self.optimizers = [Adam(p, 2e-3, (0.0, 0.99)) for p in (trained, list(self.D.parameters()))]

    def draw(self) -> Tensor:
        z = torch.randn(len(self.real), self.G.n_latent, self.size.style, device=DEVICE)
        return self.G(self.G.mapping(z), self.G.draw_noise(len(z)))

    def iterate(self) -> None:
        generator, discriminator = self.optimizers
        with autocast():
            with torch.no_grad():
                fake = self.draw()
            loss = discriminator_loss(self.D(self.real), self.D(fake))
        self.step(discriminator, loss)
        self.D.requires_grad_(False)
        with autocast():
            loss = generator_loss(self.D(self.draw()))
        self.step(generator, loss)
        self.D.requires_grad_(True)
        with torch.no_grad():
            for average, now in zip(self.average.parameters(), self.G.parameters(), strict=True):
                average.mul_(0.9978).add_(now, alpha=1 - 0.9978)

    def step(self, optimizer: Adam, loss: Tensor) -> None:
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


# ---- ours


class Bare(PseudoPairedStyleGAN):
    """The method on random networks, without constraints and regularisers."""

    def __init__(self, size: Size) -> None:
        super().__init__(source="random", weights={"semantic": 0.0, "paired": 0.0}, augment="none", r1=0.0)
        self.styled, self.discriminator = size.generator(), size.discriminator()
        self.styled.style.requires_grad_(False)
        self.average = deepcopy(self.styled).requires_grad_(False)
        self.augmentation = Augmentation("none", [], 0.0, 0.6, 1)
        self.to(DEVICE)
        self._alone = {**self.named_optimizers()}  # as in `optimizing_alone`, for as long as the timing takes

    def iterate(self, real: Tensor) -> None:
        self.iteration += 1
        with autocast():
            self.training_step({"image": real}, 0)


def autocast() -> torch.autocast:
    return torch.autocast(DEVICE.type, torch.bfloat16, enabled=CUDA)


SIZES = [
    pytest.param(embedded, id="embedded"),
    pytest.param(
        config_f,
        id="1024px",
        marks=pytest.mark.skipif(not LARGE, reason="needs a CUDA device or LIGHTNING_STYLES_LARGE=1"),
    ),
]


def test_the_plain_networks_compute_the_same() -> None:
    size = Size({4: 8, 8: 8, 16: 8}, 8, 2, batch=2, rounds=1)
    generator, discriminator = size.generator(), size.discriminator()
    maps, w = generator.draw_noise(2), torch.randn(2, 8, device=DEVICE)
    image = generator(w, maps)
    torch.testing.assert_close(plainly(generator)(w, maps), image, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(plainly(discriminator)(image), discriminator(image), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.benchmark
def test_one_iteration(benchmark: Any, size: Callable[[], Size]) -> None:
    """A step of D and one of G, with the average."""
    made = size()
    real = torch.rand(made.batch, 3, max(made.widths), max(made.widths), device=DEVICE) * 2 - 1

    def ours() -> Callable[[], None]:
        method = Bare(made)
        return lambda: method.iterate(real)

    compare(benchmark, made.rounds, ours, lambda: Plain(made, real).iterate)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.benchmark
def test_one_picture(benchmark: Any, size: Callable[[], Size]) -> None:
    """A picture of given styles, with the stored noise maps."""
    made = size()
    generator = made.generator()
    w = torch.randn(1, generator.n_latent, made.style, device=DEVICE)

    def drawing(network: Generator) -> Callable[[], Tensor]:
        @torch.inference_mode()
        def draw() -> Tensor:
            with autocast():
                return network(w)

        return draw

    compare(benchmark, 4 * made.rounds, lambda: drawing(generator), lambda: drawing(plainly(generator)))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.benchmark
def test_pairs_of_16_pictures(benchmark: Any, size: Callable[[], Size]) -> None:
    """Some steps on codes and noise maps of 16 pictures, in batches; there each picture by itself."""
    made = size()
    side, generator = max(made.widths), made.generator().requires_grad_(False)
    judge: Any = load_perceptual("tiny/perceptual").to(DEVICE)
    style = torch.rand(PICTURES, 3, side, side, device=DEVICE) * 2 - 1
    z, maps = torch.randn(PICTURES, generator.n_latent, made.style, device=DEVICE), generator.draw_noise(PICTURES)

    def search(network: Generator, batch: int) -> Callable[[], None]:
        nets, settings = networks(made, network, judge), PairSettings(steps=STEPS, batch_size=batch)

        def all_of_them() -> None:
            for rows in torch.arange(PICTURES).split(batch):
                optimise_codes(nets, z[rows], style[rows], [x[rows] for x in maps], settings)

        return all_of_them

    compare(benchmark, made.rounds, lambda: search(generator, made.batch), lambda: search(plainly(generator), 1))
    benchmark.extra_info["steps"] = STEPS


def networks(size: Size, generator: Generator, judge: Judge) -> PairNetworks:
    """G* of level 2 is `generator`; the encoder takes no part in it."""
    encoder = GradualStyleEncoder(generator.n_latent, size.style, 32, widths=(16, 16, 16), blocks=(1, 1, 1))
    mean = torch.zeros(size.style, device=DEVICE)
    return PairNetworks(generator, generator, mean, PSP(encoder, "z_plus", None), None, judge, None)
