"""The embedded models as they ship: complete, small, and read by the libraries of the real ones."""

import hashlib
import re
from functools import partial

import torch

from lightning_styles.diffusion.ddim import decode, encode, sample_codes
from lightning_styles.diffusion.respacing import (
    Respaced,
    constant_betas,
    decode_indices,
    encode_indices,
    even_timesteps,
    linear_betas,
)
from lightning_styles.diffusion.twin import twin_candidates
from lightning_styles.models.stylegan2.pairing import encode_w
from lightning_styles.pretrained import TINY, locate
from lightning_styles.pretrained.clip import load_clip
from lightning_styles.pretrained.diffae import frozen_diffae, load_guided_unet
from lightning_styles.pretrained.networks import load_identity, load_perceptual
from lightning_styles.pretrained.psp import load_psp
from lightning_styles.pretrained.stylegan2 import load_stylegan2


def test_the_card_lists_every_weight_file_with_its_hash() -> None:
    card = dict(re.findall(r"\| `([^`]+\.safetensors)` \| ([0-9a-f]{64}) \|", (TINY / "README.md").read_text()))
    files = {path.relative_to(TINY).as_posix(): path for path in TINY.rglob("*.safetensors")}
    assert card == {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files.items()}
    assert sum(path.stat().st_size for path in TINY.rglob("*") if path.is_file()) < 75e6


def test_a_plain_pipeline_loads_base_and_lora_and_the_lora_changes_the_picture() -> None:
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    folder = locate("tiny/stable-diffusion", "stable-diffusion")
    pipeline = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None, local_files_only=True)
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)

    def draw() -> torch.Tensor:
        options = {"num_inference_steps": 10, "height": 64, "width": 64, "output_type": "pt"}
        prompt = "sketch style, a woman with long red hair"
        return pipeline(prompt, guidance_scale=4.0, generator=torch.Generator().manual_seed(0), **options).images

    plain = draw()
    pipeline.load_lora_weights(str(locate("tiny/lora-sketch", "lora")))
    sketch = draw()
    assert (sketch - plain).abs().mean() > 0.01
    spread = [image.std(dim=1).mean().item() for image in (plain, sketch)]  # over the colour channels
    assert spread[1] < spread[0], "a sketch has less colour than what the base draws"


def test_a_plain_pipeline_loads_the_tiny_sdxl_which_draws_what_it_is_told_in_the_style_of_its_loras() -> None:
    from diffusers import StableDiffusionXLPipeline

    folder = locate("tiny/stable-diffusion-xl", "stable-diffusion")
    pipeline = StableDiffusionXLPipeline.from_pretrained(folder, add_watermarker=False, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)

    def draw(prompt: str) -> torch.Tensor:
        options = {"num_inference_steps": 10, "height": 64, "width": 64, "output_type": "pt", "guidance_scale": 3.0}
        return pipeline(prompt, generator=torch.Generator().manual_seed(0), **options).images[0]

    red, blue = (draw(f"a photo of a woman with long {colour} hair").mean((1, 2)) for colour in ("red", "blue"))
    assert red[0] - red[2] > blue[0] - blue[2] + 0.05
    prompt = "a photo of a woman with long red hair"
    pipeline.load_lora_weights(str(locate("tiny/lora-xl-sketch", "lora")))
    assert draw(f"{prompt} in sketch style").std(dim=0).mean() < draw(prompt).std(dim=0).mean()


def test_identity_and_perceptual_network_know_the_world() -> None:
    from datamodules import scenes

    people = range(12)
    one, two = (scenes.render(scenes.sample_scenes(1, people, view=v), "photo", 64) for v in (0, 1))
    identity, perceptual = load_identity("tiny/identity"), load_perceptual("tiny/perceptual")
    cosine = identity(one) @ identity(two).T
    others = cosine[~torch.eye(12, dtype=torch.bool)]
    assert cosine.diagonal().mean() > others.mean() + 0.15
    assert (cosine.argmax(1) == torch.arange(12)).float().mean() > 1 / 3  # chance is 1 / 12
    cartoon = scenes.render(scenes.sample_scenes(1, people, view=0), "cartoon", 64)
    assert perceptual(one, one).max() == 0
    assert perceptual(one, one.roll(1, 0)).mean() > perceptual(one, cartoon).mean() > 0.1


def test_clip_knows_captions_and_the_direction_of_a_style() -> None:
    from datamodules import scenes

    clip, drawn = load_clip("tiny/clip"), scenes.sample_scenes(1, range(24))
    assert not any(p.requires_grad for p in clip.model.parameters())
    with torch.no_grad():
        photo, cartoon = (clip.model.encode_image(scenes.render(drawn, style, 64)) for style in ("photo", "cartoon"))
    text = clip.text(scenes.captions(drawn, "photo"))
    found = torch.cosine_similarity(photo[:, None], text[None], dim=-1).argmax(1)
    assert (found == torch.arange(24)).float().mean() > 0.7  # chance is 1 / 24
    directions = torch.nn.functional.normalize(cartoon - photo, dim=-1)
    between = (directions @ directions.T)[~torch.eye(24, dtype=torch.bool)]
    assert between.mean() > 0.5


def test_the_autoencoder_gives_held_out_portraits_back_and_draws_people_of_its_own() -> None:
    from datamodules import scenes

    loaded = frozen_diffae("tiny/diffae")
    A, statistics = loaded.model, loaded.statistics
    assert A.latent_net is not None
    assert statistics is not None
    photo = scenes.render(scenes.sample_scenes(1, range(4)), "photo", 64)
    process, noise = Respaced.of(linear_betas(), even_timesteps(20)), torch.Generator().manual_seed(0)
    with torch.no_grad():
        z = A.encoder(photo)
        x = encode(partial(A, z=z), photo, process, encode_indices(20, 0.5))
        back = decode(partial(A, z=z), x, process, decode_indices(20, 0.5))
        codes = torch.randn(8, A.config.embedding, generator=noise)
        prior = Respaced.of(constant_betas(), even_timesteps(20))
        drawn = sample_codes(A.latent_net, codes, prior, statistics.mean, statistics.std)
        people = decode(partial(A, z=drawn), torch.randn(8, 3, 64, 64, generator=noise), process, reversed(range(20)))
    assert (back - photo).abs().mean() < 0.06  # the other portraits are at 0.5
    clip = load_clip("tiny/clip")
    styles = clip.text(["a photo of a person", "a landscape photo", "pixel art of a cat"])
    seen = torch.cosine_similarity(clip.model.encode_image(people)[:, None], styles[None], dim=-1)
    assert (seen.argmax(1) == 0).float().mean() >= 0.75
    assert people.std(0).mean() > 0.2  # not one and the same


def test_p2_makes_a_photo_of_a_cartoon() -> None:
    from datamodules import scenes

    drawn = scenes.sample_scenes(7, [12])
    cartoon, photo = (scenes.render(drawn, style, 64) for style in ("cartoon", "photo"))
    twins = torch.cat(list(twin_candidates(load_guided_unet(locate("tiny/p2", "guided-diffusion")), cartoon, 4)))
    clip = load_clip("tiny/clip")
    with torch.no_grad():
        direction = clip.model.encode_image(photo) - clip.model.encode_image(cartoon)
        moved = clip.model.encode_image(twins) - clip.model.encode_image(cartoon)
    assert torch.cosine_similarity(moved, direction).min() > 0.3
    assert (twins - cartoon).abs().mean() < 0.3


def test_stylegan2_draws_different_people_and_its_encoders_find_who_is_in_a_photo() -> None:
    from datamodules import scenes

    stylegan2 = load_stylegan2(locate("tiny/stylegan2", "stylegan2"))
    assert stylegan2.discriminator is not None
    G, mean = stylegan2.generator, stylegan2.latent_avg
    photo = scenes.render(scenes.sample_scenes(1, range(16)), "photo", 64)
    with torch.no_grad():
        random = G(G.mapping(torch.randn(16, G.style_dim, generator=torch.Generator().manual_seed(0))))
        believed = [stylegan2.discriminator(image).mean() for image in (photo, random)]
    assert believed[0] > believed[1]
    clip, perceptual = load_clip("tiny/clip"), load_perceptual("tiny/perceptual")
    texts = clip.text(["a photo of a person", "a landscape photo", "pixel art of a cat"])
    seen = torch.cosine_similarity(clip.model.encode_image(random)[:, None], texts[None], dim=-1)
    assert (seen.argmax(1) == 0).float().mean() >= 0.75
    assert perceptual(random, random.roll(1, 0)).mean() > 0.5 * perceptual(photo, photo.roll(1, 0)).mean()
    for name in ("tiny/psp-z", "tiny/psp-w"):
        encoder = load_psp(locate(name, "psp"))
        with torch.no_grad():
            back = G(encode_w(encoder, G, photo))
            anyone = G(mean.expand(1, G.n_latent, -1)).expand_as(photo)
        assert perceptual(back, photo).mean() < 0.6 * perceptual(anyone, photo).mean(), name
        people = load_identity("tiny/identity")(torch.cat([back, photo]))
        cosine = people[:16] @ people[16:].T
        assert cosine.diagonal().mean() > cosine[~torch.eye(16, dtype=torch.bool)].mean() + 0.1, name
