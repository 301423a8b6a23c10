"""The small CLIP: its loss, a short training, and the folder that open_clip loads."""

import math
from pathlib import Path

import lightning as L
import torch

from datamodules.scene_pool import ScenePool
from lightning_styles.pretraining.clip import ClipPretraining, contrastive_loss


def test_the_loss_of_known_pairs() -> None:
    units = torch.eye(3)
    uniform = contrastive_loss(units, units, torch.tensor(0.0))
    assert uniform.item() == torch.tensor(math.log(3)).item()
    right, wrong = (contrastive_loss(units, units.roll(k, 0), torch.tensor(5.0)).item() for k in (0, 1))
    assert abs(right - math.log(1 + 2 * math.exp(-5))) < 1e-6
    assert abs(wrong - right - 5) < 1e-5


def test_a_short_training_is_read_back_by_open_clip(tmp_path: Path) -> None:
    import open_clip

    torch.manual_seed(0)
    method = ClipPretraining(
        iterations=3,
        tokenizer=str(tmp_path / "tokenizer"),
        vocabulary=40,
        embedding=16,
        vision={"image_size": 32, "patch_size": 8, "width": 32, "head_width": 16, "layers": 1},
        text={"context_length": 16, "width": 16, "heads": 2, "layers": 1},
        warmup=1,
    )
    data = ScenePool(
        kinds={"portrait": 4}, styles={"photo": 0.5, "cartoon": 0.5}, size=32, batch_size=4, cache=str(tmp_path)
    )
    silent = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = L.Trainer(max_steps=3, accelerator="cpu", enable_model_summary=False, **silent)
    trainer.fit(method, datamodule=data)
    assert trainer.global_step == 3
    method.export(tmp_path / "clip", "open_clip")

    name = f"local-dir:{tmp_path / 'clip'}"
    loaded, tokenizer = open_clip.create_model(name).eval(), open_clip.get_tokenizer(name)
    batch, clip = data.collate([0, 1, 2, 3]), method.clip.eval()
    with torch.no_grad():
        for own, theirs in (
            (clip.encode_image(batch["image"]), loaded.encode_image(batch["image"])),
            (clip.encode_text(tokenizer(batch["caption"])), loaded.encode_text(tokenizer(batch["caption"]))),
        ):
            torch.testing.assert_close(theirs, own, rtol=2e-2, atol=2e-2)
    tokens = tokenizer(["a photo of a woman"])[0]
    assert tokens.argmax() == method.tokenizer("a photo of a woman").input_ids.index(method.tokenizer.eos_token_id)
