"""One iteration of OSASIS, timed beside a plain statement of what the official code computes in one.

`pytest tests/benchmarks --benchmark-only` runs the embedded architecture at 64 px, and on a CUDA device the official
one at 256 px too; LIGHTNING_STYLES_LARGE=1 runs the latter on the CPU (hours). Weights are random. The numbers that
count are in `extra_info`: for each way of this package the seconds of an iteration (CPU: of the processor), the peak of
memory over a whole run (CUDA: allocated tensors; CPU: growth of the resident set), and how many times faster than the
plain one it is:

- anew: photos sampled and encoded in every iteration, as the official code does
- pool: photos from the pool on disk, encoded in every iteration
- encoded: photos and their encodings from the pool
"""

import ctypes
import gc
import json
import os
import time
from collections.abc import Callable
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import lightning as L
import pytest
import torch
import yaml
from torch import Tensor, nn
from torch.nn import functional as F

from datamodules import DiffAESamples
from lightning_styles.diffusion import ddim
from lightning_styles.diffusion.respacing import (
    Respaced,
    constant_betas,
    decode_indices,
    encode_indices,
    even_timesteps,
    linear_betas,
)
from lightning_styles.imaging import read_image, save_png
from lightning_styles.losses.clip_direction import cross_loss, in_loss, re_clip_loss
from lightning_styles.losses.osasis import WEIGHTS, picture_terms
from lightning_styles.methods.osasis import OSASIS
from lightning_styles.metrics.perceptual import load_lpips
from lightning_styles.models.diffae import DiffAE, DiffAEConfig, LatentConfig
from lightning_styles.models.spn import MappingNetTime
from lightning_styles.pretrained.clip import CONFIG, load_clip
from lightning_styles.pretrained.diffae import CodeStatistics, frozen_diffae, load_diffae, save_diffae
from lightning_styles.pretrained.networks import load_perceptual
from tests.micro import quiet_trainer

CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")
ROOT = Path(__file__).resolve().parents[2]
LARGE = CUDA or os.environ.get("LIGHTNING_STYLES_LARGE") == "1"
CLOCK = time.perf_counter if CUDA else time.process_time  # the processor's time: other programs do not count
STEPS = {"encode": 50, "decode": 20}
LATENT_STEPS, T0 = 200, 0.5
WAYS: dict[str, dict[str, Any]] = {
    "anew": {},
    "pool": {"pool": 8},
    "encoded": {"pool": 8, "encode": {"steps": STEPS["encode"], "t0": T0}},
}


@dataclass
class Size:
    """An architecture in files of random weights.

    Attributes:
        folder: where the files lie.
        config: the autoencoder.
        side: of the pictures, in px.
        batch: photos of an iteration.
        rounds: timed iterations.
        judges: `clip` and `lpips` or `perceptual`, as OSASIS takes them.
    """

    folder: Path
    config: DiffAEConfig
    side: int
    batch: int
    rounds: int
    judges: dict[str, str]
    diffae: str = field(init=False)

    def __post_init__(self) -> None:
        D = self.config.embedding
        self.diffae = str(self.folder / "diffae.safetensors")
        torch.manual_seed(0)
        statistics = CodeStatistics(torch.zeros(1, D), torch.ones(1, D))
        save_diffae(Path(self.diffae), DiffAE(self.config), statistics)
        for name in ("style", "twin"):
            save_png(self.picture(name), torch.rand(3, self.side, self.side) * 2 - 1)

    def picture(self, name: str) -> str:
        return str(self.folder / f"{name}.png")


def embedded(folder: Path) -> Size:
    """The size of the embedded autoencoder, as its recipes say."""
    recipes = [
        yaml.safe_load((ROOT / f"configs/pretrain/{name}.yaml").read_text()) for name in ("diffae", "diffae_prior")
    ]
    own, prior = (recipe["model"]["init_args"] for recipe in recipes)
    latent = LatentConfig(prior["hidden"], prior["layers"], tuple(range(1, prior["layers"])), prior["time_channels"])
    shape = {key: tuple(value) if isinstance(value, list) else value for key, value in own["architecture"].items()}
    config = DiffAEConfig(**(shape | {"dropout": 0.1, "latent": latent}))
    return Size(folder, config, 64, 4, 2, {"clip": "tiny/clip", "perceptual": "tiny/perceptual"})


def official(folder: Path) -> Size:
    """ffhq256_autoenc_latent, CLIP ViT-B/32 and VGG16."""
    import open_clip
    from torchvision.models import vgg16

    judges = {"clip": str(folder / "clip.pt"), "lpips": str(folder / "vgg.pth")}
    name = "ViT-B-32-quickgelu"
    torch.save(open_clip.create_model(name, pretrained=None).state_dict(), judges["clip"])
    preprocess = {"mean": open_clip.OPENAI_DATASET_MEAN, "std": open_clip.OPENAI_DATASET_STD}
    config = {"model_cfg": open_clip.get_model_config(name), "preprocess_cfg": preprocess}
    (folder / CONFIG).write_text(json.dumps(config), encoding="utf-8")
    torch.save({f"features.{k}": v for k, v in vgg16(weights=None).features.state_dict().items()}, judges["lpips"])
    return Size(folder, DiffAEConfig(), 256, 8, 10 if CUDA else 1, judges)


class Clock(L.Callback):
    """When each iteration ended."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_train_batch_end(self, *args: Any) -> None:
        if CUDA:
            torch.cuda.synchronize()
        self.ends.append(CLOCK())


def fit(size: Size, way: str) -> list[float]:
    """Seconds of the iterations of a real run, without the first one."""
    method = OSASIS(
        diffae=size.diffae, style_image=size.picture("style"), twin_image=size.picture("twin"), **size.judges,
        iterations=size.rounds + 1, resolution=size.side, weights={}, steps=STEPS, predict_steps=STEPS, t0=T0,
    )  # fmt: skip
    pictures = {"size": size.side, "batch_size": size.batch, "steps": STEPS["decode"], "latent_steps": LATENT_STEPS}
    data = DiffAESamples(diffae=size.diffae, **pictures, cache=str(size.folder / "pool"), **WAYS[way])
    clock, precision = Clock(), "bf16-mixed" if CUDA else "32-true"
    options = {"accelerator": "gpu" if CUDA else "cpu", "precision": precision, "callbacks": [clock]}
    quiet_trainer(size.folder, size.rounds + 1, **options).fit(method, datamodule=data)
    return [end - start for start, end in zip(clock.ends, clock.ends[1:], strict=False)]


class Plain:
    """What the official code does in an iteration.

    Two whole copies of the autoencoder, one of them in the optimizer; photos, codes and the encoding of the style
    picture's twin made in each iteration; content and style through B and the SPN one after the other; ten CLIP
    encodings an update, of which seven never change, with gradients of CLIP's own weights. On CUDA the UNets run under
    float16 autocast and CLIP is float16.
    """

    def __init__(self, size: Size) -> None:
        self.size, loaded = size, load_diffae(Path(size.diffae))
        self.A, self.B = (deepcopy(loaded.model).to(DEVICE) for _ in range(2))
        self.B.requires_grad_(True).train()
        self.spn = MappingNetTime().to(DEVICE)
        self.mean, self.std = (tensor.to(DEVICE) for tensor in (loaded.statistics.mean, loaded.statistics.std))  # type: ignore[union-attr]
        self.optimizers = (
            torch.optim.Adam(self.B.parameters(), lr=5e-6),
            torch.optim.Adam(self.spn.parameters(), lr=1e-4),
        )
        clip = load_clip(size.judges["clip"])
        self.clip, self.clip_size = clip.model.to(DEVICE, torch.float16 if CUDA else torch.float32), clip.size
        self.clip.requires_grad_(True)
        lpips = size.judges.get("lpips")
        self.judge = (load_lpips(lpips) if lpips else load_perceptual(size.judges["perceptual"])).to(DEVICE)
        self.style_a, self.style_b = (read_image(size.picture(name))[None].to(DEVICE) for name in ("twin", "style"))
        with torch.no_grad():
            self.z_style = self.A.encoder(self.style_a)
        self.up, self.down = (Respaced.of(linear_betas(), even_timesteps(STEPS[key])) for key in STEPS)
        self.prior = Respaced.of(constant_betas(), even_timesteps(LATENT_STEPS))

    def predict(self, network: nn.Module, x: Tensor, t: Tensor, **codes: Tensor) -> Tensor:
        with torch.autocast(DEVICE.type, torch.float16, enabled=CUDA):
            return network(x, t, **codes)

    @torch.no_grad()
    def photos(self) -> Tensor:
        x = torch.randn(self.size.batch, 3, self.size.side, self.size.side, device=DEVICE)
        code = torch.randn(self.size.batch, self.size.config.embedding, device=DEVICE)
        z = ddim.sample_codes(partial(self.predict, self.A.latent_net), code, self.prior, self.mean, self.std)
        return ddim.decode(partial(self.predict, self.A, z=z), x, self.down, reversed(range(len(self.down))))

    def encoded(self, image: Tensor, z: Tensor) -> Tensor:
        return ddim.encode(partial(self.predict, self.A, z=z), image, self.up, encode_indices(len(self.up), T0))

    def iterate(self) -> None:
        photo = self.photos()
        with torch.no_grad():
            z = self.A.encoder(photo)
        x_style, x = self.encoded(self.style_a, self.z_style), self.encoded(photo, z)
        for j in decode_indices(len(self.down), T0):
            x_style, again = self.decoded(self.style_a, x_style, self.z_style, j, 1.0)
            x, result = self.decoded(photo, x, z, j, 0.1)
            self.update(photo, result, again)
            x_style, x = x_style.detach(), x.detach()

    def decoded(self, image: Tensor, x: Tensor, z: Tensor, j: int, strength: float) -> tuple[Tensor, Tensor]:
        x = x + strength * self.spn(image, torch.full((len(x),), j, device=DEVICE))
        return ddim.step_down(self.down, j, x, self.predict(self.B, x, self.down.t(j, x), z=z))

    def embed(self, image: Tensor) -> Tensor:
        shown = F.interpolate(image, (self.clip_size, self.clip_size), mode="nearest")
        return self.clip.encode_image(shown.to(self.clip.positional_embedding.dtype)).float()

    def update(self, photo: Tensor, result: Tensor, again: Tensor) -> None:
        e, a, b = self.embed, self.style_a, self.style_b
        terms = {
            "cross": cross_loss(e(a), e(b), e(photo), e(result)),
            "in": in_loss(e(a), e(b), e(photo), e(result)),
            "re_clip": re_clip_loss(e(again), e(b)),
        } | picture_terms(again, b, lambda x: self.judge(x, b))
        total = torch.stack([WEIGHTS[name] * term for name, term in terms.items()]).sum()
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        total.backward()
        for optimizer in self.optimizers:
            optimizer.step()
        total.item()


def plain(size: Size) -> list[float]:
    """Seconds of the iterations of `Plain`, without the first one."""
    method, seconds = Plain(size), []
    for _ in range(size.rounds + 1):
        start = CLOCK()
        method.iterate()
        if CUDA:
            torch.cuda.synchronize()
        seconds.append(CLOCK() - start)
    return seconds[1:]


def resident(key: str) -> int:
    """MB of this process: "VmRSS" now, "VmHWM" at its peak; 0 where the system does not say."""
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(key):
                return int(line.split()[1]) // 1024
    return 0


def measured(action: Callable[[], list[float]]) -> tuple[float, int]:
    """Median of the seconds that `action` returns, and MB at its peak over what there was before."""
    frozen_diffae.cache_clear()
    gc.collect()
    if CUDA:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated() >> 20
        return median(action()), (torch.cuda.max_memory_allocated() >> 20) - before
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)  # what earlier runs have freed does not count
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = resident("VmRSS")
    return median(action()), resident("VmHWM") - before


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(embedded, id="embedded"),
        pytest.param(
            official,
            id="official",
            marks=pytest.mark.skipif(not LARGE, reason="needs a CUDA device or LIGHTNING_STYLES_LARGE=1"),
        ),
    ],
)
@pytest.mark.benchmark
def test_one_iteration(benchmark: Any, make: Callable[[Path], Size], tmp_path: Path) -> None:
    size, found = make(tmp_path), {}
    load_clip(size.judges["clip"])  # imports open_clip, whose memory is nobody's

    def run() -> None:
        found.update({way: measured(partial(fit, size, way)) for way in WAYS})

    benchmark.pedantic(run, rounds=1)
    seconds, memory = measured(partial(plain, size))
    benchmark.extra_info |= {"plain": f"{seconds:.2f} s, {memory} MB"}
    for way, (own, peak) in found.items():
        benchmark.extra_info[way] = f"{own:.2f} s, {peak} MB, {seconds / own:.2f} times faster"
    print(benchmark.extra_info)
    assert found["encoded"][0] < seconds
