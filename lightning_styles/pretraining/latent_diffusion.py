"""Train a small text-to-image latent diffusion model (arXiv 2112.10752, equation 3) in the Stable Diffusion layout."""

import json
import shutil
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_styles.batches import Needs
from lightning_styles.diffusion.schedules import NoiseSchedule
from lightning_styles.errors import UserError, at_least, within
from lightning_styles.pretrained import locate
from lightning_styles.pretrained.stable_diffusion import StableDiffusion, encode_prompts, load_stable_diffusion
from lightning_styles.pretraining.base import Pretraining
from lightning_styles.pretraining.tokenizer import train_clip_tokenizer

# The noise schedule of Stable Diffusion 1.x, so that every tool treats the result as one.
SCHEDULER = {
    "num_train_timesteps": 1000,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "steps_offset": 1,
    "set_alpha_to_one": False,
    "clip_sample": False,
}


class LatentDiffusionPretraining(Pretraining):
    """UNet and CLIP text encoder from captioned pictures, on the latents of a frozen autoencoder.

    Args:
        iterations: optimizer steps.
        autoencoder: base model, or folder, that holds `vae/` in diffusers layout.
        tokenizer: folder for the tokenizer, learned from the captions of the data when it does not exist; null is the
            one beside the autoencoder.
        start: base model to go on from, whose UNet and text encoder have this shape; None starts from random weights.
        vocabulary: learned entries of the tokenizer at most.
        prompt_length: tokens of a padded prompt.
        widths: channels of each resolution of the UNet; all but the last have cross attention.
        heads: attention heads of the UNet.
        text_width: hidden size of the text encoder.
        text_layers: layers of the text encoder.
        caption_dropout: probability of an empty caption, for classifier-free guidance.
        lr: peak learning rate of AdamW.
        warmup: iterations of linear warm-up.
        preview_prompts: prompts of the preview pictures.
        seed: key of all randomness.
    """

    needs = {"fit": (Needs(("image", "row", "caption"), ("corpus",)),)}
    vae: Any
    unet: Any
    formats = {"diffusers": "."}

    def __init__(
        self,
        *,
        iterations: int,
        autoencoder: str,
        tokenizer: str | None = None,
        start: str | None = None,
        vocabulary: int = 400,
        prompt_length: int = 32,
        widths: list[int],
        heads: int = 4,
        text_width: int = 128,
        text_layers: int = 3,
        caption_dropout: float = 0.1,
        lr: float = 5e-4,
        warmup: int = 200,
        preview_prompts: list[str],
        seed: int = 0,
    ) -> None:
        super().__init__(iterations=iterations, seed=seed, clip_norm=1.0)
        at_least(1, vocabulary=vocabulary, prompt_length=prompt_length, heads=heads)
        at_least(1, text_width=text_width, text_layers=text_layers)
        at_least(0, lr=lr, warmup=warmup)
        within(0, 1, caption_dropout=caption_dropout)
        self.save_hyperparameters()

    @classmethod
    def required_models(cls, init_args: dict[str, Any]) -> list[tuple[str, str]]:
        start = [(init_args["start"], "stable-diffusion")] if init_args.get("start") else []
        return [(init_args["autoencoder"], "stable-diffusion"), *start]

    def kept(self, name: str) -> bool:
        return name.startswith(("unet.", "text_encoder."))

    def configure_model(self) -> None:
        if hasattr(self, "unet"):
            return
        from diffusers import AutoencoderKL

        folder = locate(self.hparams.autoencoder, "stable-diffusion")
        if not (folder / "vae").is_dir():
            raise UserError(f"{folder} has no folder vae; train one with configs/pretrain/autoencoder.yaml.")
        self.vae = AutoencoderKL.from_pretrained(folder, subfolder="vae", local_files_only=True)
        self.vae.eval().requires_grad_(False)
        self.tokenizer = self.build_tokenizer()
        self.build_networks()
        self.encoded: dict[int, Tensor] = {}
        self.schedule = NoiseSchedule.from_config(SCHEDULER).to(self.run_device)

    def build_networks(self) -> None:
        """UNet and text encoder, random or those of `start`."""
        from diffusers import UNet2DConditionModel
        from transformers import CLIPTextModel

        h = self.hparams
        cross = len(h.widths) - 1
        self.text_encoder = CLIPTextModel(self.text_config(h.text_width, h.text_layers))
        self.unet = UNet2DConditionModel(
            sample_size=16,
            down_block_types=("CrossAttnDownBlock2D",) * cross + ("DownBlock2D",),
            up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * cross,
            block_out_channels=tuple(h.widths),
            layers_per_block=1,
            cross_attention_dim=h.text_width,
            attention_head_dim=h.heads,
            norm_num_groups=16,
        )
        if h.start:
            started = load_stable_diffusion(h.start)
            self.unet.load_state_dict(started.unet.state_dict())
            self.text_encoder.load_state_dict(started.text_encoder.state_dict())

    def build_tokenizer(self) -> Any:
        """The tokenizer of this run, learned from the data's captions if need be."""
        from transformers import CLIPTokenizer

        h, folder = self.hparams, self.tokenizer_folder
        if not (folder / "vocab.json").exists():
            corpus = self.trainer.datamodule.corpus()  # type: ignore[attr-defined]
            train_clip_tokenizer(corpus, folder, h.vocabulary, h.prompt_length)
        return CLIPTokenizer.from_pretrained(folder, local_files_only=True)

    @property
    def tokenizer_folder(self) -> Path:
        """Where the tokenizer lies or will lie."""
        h = self.hparams
        return Path(h.tokenizer) if h.tokenizer else locate(h.autoencoder, "stable-diffusion") / "tokenizer"

    def text_config(self, width: int, layers: int) -> Any:
        """Architecture of a CLIP text encoder for this tokenizer."""
        from transformers import CLIPTextConfig

        return CLIPTextConfig(
            vocab_size=len(self.tokenizer),
            hidden_size=width,
            intermediate_size=4 * width,
            num_hidden_layers=layers,
            num_attention_heads=4,
            max_position_embeddings=self.hparams.prompt_length,
            projection_dim=width,
            bos_token_id=self.tokenizer.bos_token_id,
            eos_token_id=self.tokenizer.eos_token_id,
            pad_token_id=self.tokenizer.pad_token_id,
        )

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        z = self.latents(batch["image"], batch["row"].tolist())
        generator = self.generator("timestep")
        t = torch.randint(self.schedule.T, (len(z),), generator=generator).to(z.device)
        kept = torch.rand(len(z), generator=generator) >= self.hparams.caption_dropout
        captions = [c if keep else "" for c, keep in zip(batch["caption"], kept.tolist(), strict=True)]
        eps = self.randn_like(z, "noise")
        prediction = self.predict_noise(self.schedule.add_noise(z, eps, t), t, captions)
        loss = F.mse_loss(prediction.float(), eps)
        self.optimize("network", self.total_loss({"noise": loss}, {}))

    def predict_noise(self, z_t: Tensor, t: Tensor, captions: list[str]) -> Tensor:
        """eps (B, 4, h, w) for noised latents under captions."""
        return self.unet(z_t, t, encode_prompts(self.text_encoder, self.tokenizer, captions)).sample

    @torch.no_grad()
    def latents(self, x: Tensor, rows: list[int]) -> Tensor:
        """Scaled posterior means (B, 4, h, w) of pictures (B, 3, H, W); each of the pool is encoded once a run."""
        new = [i for i, row in enumerate(rows) if row not in self.encoded]
        if new:
            z = self.vae.encode(x[new]).latent_dist.mean.float() * self.vae.config.scaling_factor
            self.encoded |= {rows[i]: latent for i, latent in zip(new, z, strict=True)}
        return torch.stack([self.encoded[row] for row in rows])

    def bundle(self) -> StableDiffusion:
        """The parts as one base model."""
        return StableDiffusion(self.unet, self.vae, self.text_encoder, self.tokenizer, SCHEDULER, sha256="")

    def preview(self) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(self.seed)
        pipeline, side = self.bundle().pipeline(), 16 * self.vae_factor
        result = pipeline(
            list(self.hparams.preview_prompts),
            num_inference_steps=25,
            guidance_scale=4.0,
            height=side,
            width=side,
            generator=generator,
            output_type="pt",
        )
        return {"result": result.images * 2 - 1}

    @property
    def vae_factor(self) -> int:
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    def export(self, path: Path, layout: str) -> None:
        """Save the whole base as StableDiffusionPipeline.from_pretrained reads it, UNet and VAE in half precision.

        The small text encoder stays in single precision: transformers loads a model in the precision of its file,
        diffusers in single precision, and a plain pipeline must get parts that fit together.
        """
        halves = {part: deepcopy(getattr(self, part)).half() for part in ("unet", "vae")}
        self.bundle().pipeline(**halves).save_pretrained(path)
        for file in path.glob("*/config.json"):  # where a part was loaded from is nobody's business
            config = json.loads(file.read_text(encoding="utf-8"))
            config.pop("_name_or_path", None)
            file.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        for folder in path.glob("tokenizer*"):
            for file in ("vocab.json", "merges.txt"):  # the classic layout, beside what transformers writes now
                shutil.copy(self.tokenizer_folder / file, folder)
