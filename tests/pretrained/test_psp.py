"""Files of encoders into the styles of StyleGAN2."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_styles.errors import UserError
from lightning_styles.models.arcface import ArcFace
from lightning_styles.models.psp import GradualStyleEncoder
from lightning_styles.models.stylegan2 import Generator
from lightning_styles.pretrained import psp
from lightning_styles.pretrained.psp import PSP, load_psp, save_psp, take_trunk
from tests.golden.stylegan_world import manifest

SMALL: dict[str, Any] = {
    "n_styles": 6, "style_dim": 24, "size": 64, "widths": (16, 16, 32, 32), "blocks": (1, 1, 2, 1),
}  # fmt: skip


def small(*styles: int, variational: bool = False) -> GradualStyleEncoder:
    """Stands for the official encoder, whose file would take a gigabyte."""
    return GradualStyleEncoder(**SMALL, variational=variational)


def checkpoint(encoder: GradualStyleEncoder, **options: Any) -> dict[str, Any]:
    decoder = Generator(16, 24, 2, channels=dict.fromkeys((4, 8, 16), 8))
    parts = {"encoder": encoder, "decoder": decoder}
    state = {f"{part}.{key}": value for part, net in parts.items() for key, value in net.state_dict().items()}
    return {"state_dict": state, "latent_avg": torch.randn(6, 24), "opts": {"device": "cuda:0"} | options}


def same(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    one, other = a.state_dict(), b.state_dict()
    return list(one) == list(other) and all(torch.equal(one[key], other[key]) for key in one)


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psp, "GradualStyleEncoder", small)


def load(tmp_path: Path, contents: Any) -> PSP:
    torch.save(contents, tmp_path / "psp.pt")
    return load_psp(tmp_path / "psp.pt")


def test_the_official_file(tmp_path: Path) -> None:
    encoder = small()
    contents = checkpoint(encoder, start_from_latent_avg=True)
    found = load(tmp_path, contents)
    assert same(found.encoder, encoder)
    assert found.space == "w_plus"
    assert torch.equal(found.latent_avg, contents["latent_avg"])
    assert found.decoder is not None
    assert torch.equal(found.decoder.conv1.conv.weight, contents["state_dict"]["decoder.conv1.conv.weight"])
    contents["latent_avg"] = contents["latent_avg"][0]
    found = load(tmp_path, contents)
    assert torch.equal(found.latent_avg, contents["latent_avg"].expand(6, -1))


def test_encoders_into_z_plus(tmp_path: Path) -> None:
    torch.save(checkpoint(small(), start_from_latent_avg=False), tmp_path / "encoder.pt")
    found = load_psp(tmp_path / "encoder.pt", "z_plus")
    assert (found.space, found.latent_avg) == ("z_plus", None)
    torch.save(checkpoint(small()), tmp_path / "silent.pt")
    assert load_psp(tmp_path / "silent.pt", "z_plus").latent_avg is None
    torch.save(checkpoint(small(), start_from_latent_avg=True), tmp_path / "offset.pt")
    assert load_psp(tmp_path / "offset.pt", "z_plus").latent_avg is not None
    found = load(tmp_path, checkpoint(small(variational=True)))
    assert (found.space, found.latent_avg) == ("z_plus", None)
    assert found.encoder.variational


def test_old_files_lack_counters_and_others_are_refused(tmp_path: Path) -> None:
    encoder = small()
    contents = checkpoint(encoder)
    state: dict[str, Tensor] = contents["state_dict"]
    contents["state_dict"] = {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}
    assert same(load(tmp_path, contents).encoder, encoder)
    with pytest.raises(UserError, match="encodes into W alone"):
        load(tmp_path, checkpoint(encoder, learn_in_w=True))
    with pytest.raises(UserError, match=r"psp\.pt holds epoch; expected state_dict"):
        load(tmp_path, {"epoch": 1})
    del contents["state_dict"]["encoder.latlayer1.bias"]
    with pytest.raises(UserError, match=r"1 keys missing \(first latlayer1\.bias\)"):
        load(tmp_path, contents)


def test_own_files_are_half_as_large_and_say_what_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    encoder = GradualStyleEncoder(**SMALL, variational=True)
    save_psp(tmp_path / "a.safetensors", PSP(encoder, "z_plus", torch.ones(6, 24)))
    found = load_psp(tmp_path / "a.safetensors")
    assert same(found.encoder, encoder.half().float())
    assert (found.space, found.encoder.arguments) == ("z_plus", encoder.arguments)
    assert torch.equal(found.latent_avg, torch.ones(6, 24))
    (variance, *_) = (x for name, x in encoder.float().named_buffers() if name.endswith("running_var"))
    variance.fill_(1e6)  # more than half precision can hold
    save_psp(tmp_path / "large.safetensors", PSP(encoder, "z_plus"))
    assert same(load_psp(tmp_path / "large.safetensors").encoder, encoder)
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(1)}, tmp_path / "b.safetensors")
    with pytest.raises(UserError, match=r"b\.safetensors is no encoder of lightning_styles"):
        load_psp(tmp_path / "b.safetensors")


def test_the_trunk_starts_from_face_recognition(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    shared = set(manifest("psp_ffhq_encoder")["state_dict"]) & set(manifest("arcface_ir_se50")["state_dict"])
    with torch.device("meta"):
        encoder = GradualStyleEncoder()
    assert shared == {key for key in encoder.state_dict() if key.startswith(("input_layer.", "body."))}
    network = ArcFace()
    encoder.input_layer.to_empty(device="cpu")
    encoder.body.to_empty(device="cpu")
    take_trunk(encoder, network)
    assert same(encoder.body, network.body)
    assert same(encoder.input_layer, network.input_layer)
