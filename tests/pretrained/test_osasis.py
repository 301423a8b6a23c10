"""OSASIS checkpoints, read and written."""

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lightning_styles.errors import UserError
from lightning_styles.models.diffae import DiffAE, DiffAEUNet
from lightning_styles.models.spn import MappingNet, MappingNetTime
from lightning_styles.pretrained.osasis import load_osasis, save_osasis
from tests.golden.fill import FOLDER
from tests.pretrained.test_diffae import TINY, same


def trained(*networks: nn.Module) -> torch.optim.Adam:
    """Adam over the networks after one step on random gradients."""
    parameters = [p for network in networks for p in network.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=1e-3)
    for p in parameters:
        p.grad = torch.randn(p.shape)
    optimizer.step()
    return optimizer


def official(path: Path, a: DiffAE, spn: nn.Module | None) -> tuple[DiffAE, dict[str, Any]]:
    """The file of a run that gave all of B to its optimizer and moved the UNet alone, as the official code does."""
    b = deepcopy(a)
    optimizer = torch.optim.Adam(b.parameters(), lr=5e-6)
    for name, p in b.named_parameters():
        if not name.startswith(("encoder.", "latent_net.")):
            p.grad = torch.randn(p.shape)
    optimizer.step()
    contents: dict[str, Any] = {"iter": 200, "diffae_B": b.state_dict(), "optim_diffae_B": optimizer.state_dict()}
    if spn is not None:
        contents |= {"model_map": spn.state_dict(), "optim_map": trained(spn).state_dict()}
    torch.save(contents, path)
    return b, contents


@pytest.mark.parametrize("kind", [MappingNetTime, MappingNet, None])
def test_an_official_file_and_back(tmp_path: Path, kind: type[nn.Module] | None) -> None:
    a = DiffAE(TINY)
    spn = kind() if kind else None
    b, contents = official(tmp_path / "iter_200.pt", a, spn)
    found = load_osasis(tmp_path / "iter_200.pt")
    assert found.iteration == 200
    assert same(found.model, b)
    assert (found.spn is None) == (spn is None)
    if spn is not None:
        assert type(found.spn) is kind
        assert same(found.spn, spn)
    unet = DiffAEUNet(TINY)
    unet.load_state_dict({k: v for k, v in b.state_dict().items() if k in unet.state_dict()})
    save_osasis(tmp_path / "again.pt", 200, a, unet, found.spn)
    again = torch.load(tmp_path / "again.pt", weights_only=True)
    assert_equal(again, {key: value for key, value in contents.items() if not key.startswith("optim")})


def assert_equal(a: Any, b: Any) -> None:
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_equal(a[key], b[key])
    elif isinstance(a, list):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_equal(x, y)
    else:
        assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


def test_written_files_have_the_official_keys(tmp_path: Path) -> None:
    a, spn = DiffAE(TINY), MappingNetTime()
    unet = DiffAEUNet(TINY)
    save_osasis(tmp_path / "iter_3.pt", 3, a, unet, spn)
    manifest = json.loads((FOLDER / "osasis/manifest_osasis_ckpt.json").read_text())["keys"]
    contents = torch.load(tmp_path / "iter_3.pt", weights_only=True)
    assert list(contents) == [key for key in manifest if not key.startswith("optim")]
    assert list(contents["diffae_B"]) == list(a.state_dict())
    found = load_osasis(tmp_path / "iter_3.pt")
    assert torch.equal(found.model.input_blocks[0][0].weight, unet.input_blocks[0][0].weight)
    assert torch.equal(found.model.encoder.out[3].weight, a.encoder.out[3].weight)


def test_other_files_are_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "iter_1.pt"
    a = DiffAE(TINY)
    torch.save({"iter": 1, "diffae_B": a.state_dict(), "extra": 1}, path)
    with pytest.raises(UserError, match="extra"):
        load_osasis(path)
    torch.save({"state_dict": {}}, path)
    with pytest.raises(UserError, match="diffae_B"):
        load_osasis(path)
    state = MappingNetTime().state_dict()
    del state["block2.emb_layer.1.bias"]
    torch.save({"iter": 1, "diffae_B": a.state_dict(), "model_map": state}, path)
    with pytest.raises(UserError, match=r"first block2\.emb_layer\.1\.bias"):
        load_osasis(path)
