"""The P2 network against the official one."""

import json

import pytest
import torch

from lightning_styles.models.guided_unet import GuidedConfig, GuidedUNet
from tests.golden.fill import FOLDER, load_case
from tests.golden.osasis_world import T_RAW, excess, guided_unet, inputs


def test_output_agrees_with_the_reference() -> None:
    case, expected = load_case("osasis/c_p2_forward")
    with torch.no_grad():
        found = guided_unet(case)(inputs(case)["x"], T_RAW)
    assert excess(found, expected["out"], case["tolerance"]) < 1


def test_the_full_network_has_the_official_keys_in_their_order() -> None:
    manifest = json.loads((FOLDER / "osasis/manifest_p2_ffhq.json").read_text())
    with torch.device("meta"):
        network = GuidedUNet()
    found = {key: list(tensor.shape) for key, tensor in network.state_dict().items()}
    assert list(found.items()) == list(manifest["keys"].items())
    assert sum(p.numel() for p in network.parameters()) == manifest["parameters"]


def test_heads_must_divide_the_channels() -> None:
    with pytest.raises(ValueError, match="heads of 64"):
        GuidedUNet(GuidedConfig(channels=32, multipliers=(1,), attention_levels=()))
