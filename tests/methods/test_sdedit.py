"""SDEdit: the picture itself at strength 0, its size, and draws that belong to its name."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from datamodules import Pictures
from lightning_styles import noise
from lightning_styles.diffusion.schedules import NoiseSchedule
from lightning_styles.methods.sdedit import SDEdit
from lightning_styles.pretrained.stable_diffusion import encode_prompts, load_stable_diffusion
from tests.micro import Micro, quiet_trainer, write_picture

pytest_plugins = ["tests.micro"]


def run(micro: Micro, folder: Path, data: Pictures, **changes: Any) -> dict[str, Tensor]:
    """Results of `predict` by name."""
    settings: dict[str, Any] = {"base": micro.base, "style_lora": micro.lora, "style": "cartoon style", "steps": 4}
    method = SDEdit(**(settings | changes))
    batches = quiet_trainer(folder, 1).predict(method, datamodule=data) or []
    return {n: x for batch in batches for n, x in zip(batch["name"], batch["image"], strict=True)}  # type: ignore[call-overload]


def pictures(folder: Path, *sizes: tuple[int, int], **settings: Any) -> Pictures:
    files = [write_picture(folder / f"{i}.png", *size, seed=i) for i, size in enumerate(sizes)]
    return Pictures(images=files, resolution=None, **settings)


def test_strength_0_is_the_picture_itself(micro: Micro, tmp_path: Path) -> None:
    data = pictures(tmp_path, (37, 50))
    assert torch.equal(run(micro, tmp_path, data, strength=0.0)["0"], data.pictures()[0]["image"])


@torch.no_grad()
def test_a_strength_is_a_share_of_the_ddim_steps_from_the_noised_photo(micro: Micro, tmp_path: Path) -> None:
    data, guidance = pictures(tmp_path, (40, 40), captions="long hair"), 3.5
    result = run(micro, tmp_path, data, strength=0.75, steps=4, style_lora=None, guidance=guidance)["0"]
    base = load_stable_diffusion(micro.base)
    schedule, factor = NoiseSchedule.from_config(base.scheduler), base.vae.config.scaling_factor
    draws = noise.generator(0, "0", "sdedit")
    z = base.vae.encode(data.pictures()[0]["image"][None]).latent_dist.sample(draws) * factor
    steps = schedule.ddim_timesteps(4)[1:]
    z = schedule.add_noise(z, torch.randn(z.shape, generator=draws), torch.tensor([steps[0][0]]))
    text = encode_prompts(base.text_encoder, base.tokenizer, ["", "cartoon style, long hair"])
    for t, t_prev in steps:
        without, conditional = base.unet(torch.cat([z, z]), t, text).sample.chunk(2)
        eps = without + guidance * (conditional - without)
        z = schedule.ddim_step(z, eps, torch.tensor([t]), torch.tensor([t_prev]))
    expected = base.vae.decode(z / factor).sample[0].clamp(-1, 1)
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-3)
    assert (expected - data.pictures()[0]["image"]).abs().mean() > 1e-2


@pytest.mark.parametrize("size", [(40, 64), (64, 40), (37, 50)])
def test_pictures_keep_their_size(micro: Micro, tmp_path: Path, size: tuple[int, int]) -> None:
    result = run(micro, tmp_path, pictures(tmp_path, size))["0"]
    assert tuple(result.shape) == (3, *size)
    assert result.abs().max() <= 1


def test_results_follow_from_seed_and_name_not_from_the_batch(micro: Micro, tmp_path: Path) -> None:
    alone, together = (pictures(tmp_path, (40, 40), (40, 40), batch_size=n) for n in (1, 2))
    first, again, batched = (run(micro, tmp_path, data) for data in (alone, alone, together))
    assert all(torch.equal(first[name], again[name]) for name in ("0", "1"))
    for name in ("0", "1"):
        torch.testing.assert_close(batched[name], first[name], rtol=0, atol=1e-3)
    assert (run(micro, tmp_path, alone, seed=1)["0"] - first["0"]).abs().max() > 1e-2


def test_the_lora_and_its_strength_count(micro: Micro, tmp_path: Path) -> None:
    data = pictures(tmp_path, (40, 40))
    none, zero, half = (
        run(micro, tmp_path, data, **settings)["0"]
        for settings in ({"style_lora": None}, {"lora_strength": 0.0}, {"lora_strength": 0.8})
    )
    torch.testing.assert_close(zero, none, rtol=0, atol=1e-5)
    assert (half - none).abs().max() > 1e-3
