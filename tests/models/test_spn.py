"""The structure-preserving networks against the official ones."""

import json

import torch

from lightning_styles.models.spn import MappingNet, MappingNetTime
from tests.golden.fill import FOLDER, load_case
from tests.golden.osasis_world import excess, filled, inputs


def test_offsets_agree_with_the_reference() -> None:
    case, expected = load_case("osasis/d_spn")
    image, t = inputs(case)["img"], torch.tensor(case["config"]["t"])
    with torch.no_grad():
        timed = filled(MappingNetTime(), case["weights"]["spn"]["seed"])
        timeless = filled(MappingNet(), case["weights"]["spn_no_time"]["seed"])
        assert excess(timed(image, t), expected["out"], case["tolerance"]) < 1
        assert excess(timeless(image), expected["out_no_time"], case["tolerance"]) < 1
        features = timed.features(image)
        for i in range(2):
            alone = timed.offset(features[i : i + 1], t[i : i + 1])
            assert excess(alone, expected["out"][i : i + 1], case["tolerance"]) < 1


def test_networks_have_the_official_keys_in_their_order() -> None:
    manifest = json.loads((FOLDER / "osasis/manifest_spn.json").read_text())
    for network, suffix in ((MappingNetTime(), ""), (MappingNet(), "_no_time")):
        found = {key: list(tensor.shape) for key, tensor in network.state_dict().items()}
        assert list(found.items()) == list(manifest[f"keys{suffix}"].items())
        assert sum(p.numel() for p in network.parameters()) == manifest[f"parameters{suffix}"]


def test_a_fresh_network_already_moves_x() -> None:
    image = torch.rand(1, 3, 8, 8) * 2 - 1
    assert MappingNetTime()(image, torch.tensor([4])).abs().mean() > 1e-3
