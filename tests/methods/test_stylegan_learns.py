"""Short runs of the tiny experiments on StyleGAN2 bring held-out portraits nearer to their exact twins.

Twins are sketches: what G itself draws of the portraits' codes is at 2.7 from them, where nothing is learned.
"""

from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_styles.cli import parse_only
from lightning_styles.pretrained.networks import load_perceptual
from lightning_styles.required_files import import_class
from tests.micro import quiet_trainer

PORTRAITS = "scene:portrait/0-7?seed=1"
JOJO = ["--data.images", PORTRAITS, "--trainer.max_steps", "25"]
PAIRS = [
    "--vars.photos", PORTRAITS, "--vars.styles", "scene:portrait/0-7?seed=2", "--trainer.max_steps", "40",
    "--data.batch_size", "4", "--model.lr", "0.006", "--model.ema", "0.8", "--model.level", "1",
    "--model.pairs.steps", "1", "--model.finetune_iterations", "1",
]  # fmt: skip


def experiment(name: str, flags: list[str]) -> tuple[Any, Any]:
    """Method and data of a tiny config with other settings."""
    values = parse_only(["fit", "--config", f"configs/tiny/{name}.yaml", "--vars.style", "sketch", *flags])
    parts = (values[part] for part in ("model", "data"))
    model, data = (import_class(part["class_path"])(**part["init_args"]) for part in parts)
    return model, data


@pytest.mark.slow
@pytest.mark.parametrize(("name", "flags", "most"), [("jojogan", JOJO, 0.92), ("pseudo_paired_stylegan", PAIRS, 0.93)])
def test_held_out_portraits_come_nearer_to_their_twins(
    tmp_path: Path, name: str, flags: list[str], most: float
) -> None:
    """At most this share of the distance is left; seeds 0 to 2 leave 0.83 to 0.85 and 0.83 to 0.85."""
    cache = ["--model.cache", str(tmp_path)] if name == "pseudo_paired_stylegan" else []
    method, data = experiment(name, [*flags, *cache])
    quiet_trainer(tmp_path, method.iterations).fit(method, datamodule=data)
    batches = list(getattr(data, "photos", data).predict_dataloader())
    photos, twins = (torch.cat([batch[key] for batch in batches]) for key in ("image", "twin"))
    judge = load_perceptual("tiny/perceptual")
    with torch.no_grad():
        w = method.encode(photos)
        before, after = (judge(x, twins).mean() for x in (method.source(w), method.stylize(w, [""] * len(w))))
    assert after < most * before
