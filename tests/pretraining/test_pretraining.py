"""The pieces that train the embedded base models."""

import math
from functools import partial
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F
from torch.optim import SGD
from torch.optim.lr_scheduler import LambdaLR

from lightning_styles.models.identity import IdentityNet, identity_similarity
from lightning_styles.models.perceptual import PerceptualNet
from lightning_styles.pretrained.networks import load_identity, load_perceptual, save_network
from lightning_styles.pretraining.autoencoder import differences
from lightning_styles.pretraining.base import warmup_cosine
from lightning_styles.pretraining.identity import arcface_logits
from lightning_styles.pretraining.perceptual import label_loss
from lightning_styles.pretraining.tokenizer import train_clip_tokenizer


def test_arcface_adds_the_margin_to_the_true_angle_alone() -> None:
    cosine = torch.tensor([[math.cos(0.5), math.cos(1.0)]])
    logits = arcface_logits(cosine, torch.tensor([0]), margin=0.3, scale=10.0)
    assert logits[0].tolist() == pytest.approx([10 * math.cos(0.8), 10 * math.cos(1.0)], rel=1e-5)


def test_a_label_that_no_picture_has_costs_nothing() -> None:
    logits = torch.randn(3, 4, requires_grad=True)
    nothing = label_loss(logits, torch.tensor([-1, -1, -1]))
    nothing.backward()
    assert nothing.item() == 0
    assert logits.grad is not None
    assert logits.grad.abs().max() == 0
    some = label_loss(logits, torch.tensor([-1, 2, 1]))
    assert some.item() == pytest.approx(F.cross_entropy(logits[1:], torch.tensor([2, 1])).item())


def test_the_schedule_warms_up_and_ends_at_zero() -> None:
    optimizer = SGD([torch.nn.Parameter(torch.zeros(1))], lr=2.0)
    schedule = LambdaLR(optimizer, partial(warmup_cosine, iterations=10, warmup=2))
    rates = []
    for _ in range(10):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates[:3] == [1.0, 2.0, 2.0]
    assert rates[6] == pytest.approx(1.0)
    assert schedule.get_last_lr() == pytest.approx([0.0])


def test_differences_of_a_ramp() -> None:
    ramp = torch.arange(4.0).expand(1, 1, 3, 4)
    assert differences(ramp).tolist() == [[1.0] * 9 + [0.0] * 8]


def test_the_tokenizer_is_a_clip_tokenizer(tmp_path: Path) -> None:
    from transformers import CLIPTokenizer

    captions = ["a photo of a woman with long red hair", "a woman with glasses, cartoon style"] * 3
    train_clip_tokenizer(captions, tmp_path, vocabulary=200, length=16)
    tokenizer = CLIPTokenizer.from_pretrained(tmp_path, local_files_only=True)
    ids = tokenizer(["A WOMAN with red hair, zebra"], padding="max_length", truncation=True).input_ids[0]
    assert len(ids) == 16
    words = tokenizer.convert_ids_to_tokens(ids)
    assert words[:7] == ["<|startoftext|>", "a</w>", "woman</w>", "with</w>", "red</w>", "hair</w>", ",</w>"]
    assert words.count("<|endoftext|>") >= 1
    assert tokenizer.decode(ids, skip_special_tokens=True).strip() == "a woman with red hair , zebra"


def test_networks_survive_their_file(tmp_path: Path) -> None:
    net = PerceptualNet((8, 8))
    save_network(net, tmp_path / "p.safetensors", widths=[8, 8])
    loaded = load_perceptual(str(tmp_path / "p.safetensors"))
    x, y = torch.rand(2, 2, 3, 16, 16).unbind(0)
    assert torch.allclose(loaded(x, y), net(x, y), rtol=2e-2)
    assert loaded(x, x).abs().max() == 0
    assert not any(p.requires_grad for p in loaded.parameters())
    face = IdentityNet((8, 8, 8, 8), 16)
    save_network(face, tmp_path / "i.safetensors", widths=[8, 8, 8, 8], embedding=16)
    x = torch.rand(2, 3, 96, 96)
    assert identity_similarity(load_identity(str(tmp_path / "i.safetensors")), x, x).tolist() == pytest.approx([1, 1])
