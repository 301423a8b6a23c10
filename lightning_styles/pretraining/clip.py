"""Train a small CLIP on captioned pictures (arXiv 2103.00020, figure 3) in the layout of open_clip."""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_styles.batches import Needs
from lightning_styles.errors import at_least
from lightning_styles.pretraining.base import Pretraining
from lightning_styles.pretraining.tokenizer import train_clip_tokenizer

# Pictures in [0, 1] become [-1, 1], so that methods which skip the normalisation lose nothing.
PREPROCESSING = {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic", "resize_mode": "shortest"}


def contrastive_loss(image: Tensor, text: Tensor, scale: Tensor) -> Tensor:
    """Symmetric cross-entropy over all pairs of a batch (arXiv 2103.00020, figure 3).

    Args:
        image: (B, d) unit vectors.
        text: (B, d) unit vectors; row i belongs to picture i.
        scale: scalar exp(t) on the cosines.
    """
    logits, pairs = scale * image @ text.T, torch.arange(len(image), device=image.device)
    return (F.cross_entropy(logits, pairs) + F.cross_entropy(logits.T, pairs)) / 2


class ClipPretraining(Pretraining):
    """A vision transformer and a text transformer that agree on which caption belongs to which picture.

    Args:
        iterations: optimizer steps.
        tokenizer: folder for the tokenizer; learned from the captions of the data when it does not exist.
        vocabulary: learned entries of the tokenizer at most.
        embedding: length of the shared embedding.
        vision: layers, width, head_width, patch_size and image_size (px) of the picture's side, as in open_clip.
        text: context_length (tokens), layers, width and heads of the caption's side, as in open_clip.
        lr: peak learning rate of AdamW.
        warmup: iterations of linear warm-up.
        seed: key of all randomness.
    """

    needs = {"fit": (Needs(("image", "caption"), ("corpus",)),)}
    formats = {"open_clip": "."}
    betas = (0.9, 0.98)
    weight_decay = 0.1

    def __init__(
        self,
        *,
        iterations: int,
        tokenizer: str,
        vocabulary: int = 400,
        embedding: int = 128,
        vision: dict[str, int],
        text: dict[str, int],
        lr: float = 1e-3,
        warmup: int = 100,
        seed: int = 0,
    ) -> None:
        super().__init__(iterations=iterations, seed=seed, clip_norm=1.0)
        at_least(1, vocabulary=vocabulary, embedding=embedding)
        at_least(0, lr=lr, warmup=warmup)
        self.save_hyperparameters()

    def configure_model(self) -> None:
        if hasattr(self, "clip"):
            return
        from open_clip.model import CLIP
        from transformers import CLIPTokenizer

        h, folder = self.hparams, Path(self.hparams.tokenizer)
        if not (folder / "vocab.json").exists():
            corpus = self.trainer.datamodule.corpus()  # type: ignore[attr-defined]
            train_clip_tokenizer(corpus, folder, h.vocabulary, h.text["context_length"])
        self.tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
        self.clip = CLIP(h.embedding, self.architecture["vision_cfg"], self.architecture["text_cfg"])

    @property
    def architecture(self) -> dict[str, Any]:
        """The `model_cfg` of open_clip_config.json; captions are pooled at the end token, the largest id."""
        text = {**self.hparams.text, "vocab_size": len(self.tokenizer), "hf_tokenizer_name": "."}
        return {"embed_dim": self.hparams.embedding, "vision_cfg": dict(self.hparams.vision), "text_cfg": text}

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        captions = self.tokenizer(
            batch["caption"],
            padding="max_length",
            max_length=self.hparams.text["context_length"],
            truncation=True,
            return_tensors="pt",
        )
        image = self.clip.encode_image(batch["image"], normalize=True)
        text = self.clip.encode_text(captions.input_ids.to(image.device), normalize=True)
        scale = self.clip.logit_scale.clamp(max=4.6).exp()  # at most 100, as in the paper
        loss = contrastive_loss(image.float(), text.float(), scale)
        self.optimize("network", self.total_loss({"contrast": loss}, {}))

    def export(self, path: Path, layout: str) -> None:
        """Save a folder that `open_clip.create_model("local-dir:...")` loads, in half precision."""
        from safetensors.torch import save_file

        path.mkdir(parents=True, exist_ok=True)
        state = {key: value.detach().half().contiguous().cpu() for key, value in self.clip.state_dict().items()}
        save_file(state, path / "open_clip_model.safetensors")
        config = {"model_cfg": self.architecture, "preprocess_cfg": PREPROCESSING}
        (path / "open_clip_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        self.tokenizer.save_pretrained(path)
        for file in ("vocab.json", "merges.txt"):  # the classic layout, beside what transformers writes now
            shutil.copy(Path(self.hparams.tokenizer) / file, path)
