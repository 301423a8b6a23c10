"""ArcFace's IR-SE50 under its official names, against its reference."""

import json

import pytest
import torch
from torch.nn import functional as F

from lightning_styles.metrics.identity import IdentitySimilarity
from lightning_styles.models.arcface import ALIGNED, COLUMNS, ROWS, ArcFace
from lightning_styles.pretrained.networks import load_identity
from tests.golden.fill import FOLDER, fill_, load_case, relative_error, values


@pytest.fixture(scope="module")
def arcface(tmp_path_factory: pytest.TempPathFactory) -> ArcFace:
    """The network of the golden case, out of a file of the official layout."""
    network, path = ArcFace(), tmp_path_factory.mktemp("arcface") / "model_ir_se50.pth"
    torch.save(fill_(network.state_dict(), load_case("stylegan/arcface_id_loss")[0]["fill"]["seed"]), path)
    loaded = load_identity(str(path))
    assert isinstance(loaded, ArcFace)
    return loaded


def test_keys_and_shapes_are_those_of_the_official_file() -> None:
    manifest = json.loads((FOLDER / "stylegan/manifest_arcface_ir_se50.json").read_text())
    with torch.device("meta"):
        network = ArcFace()
    found = {key: list(tensor.shape) for key, tensor in network.state_dict().items()}
    assert found == {key: entry["shape"] for key, entry in manifest["state_dict"].items()}
    assert sum(p.numel() for p in network.parameters()) == manifest["parameters"]


@pytest.mark.slow
def test_the_identity_term_of_the_reference(arcface: ArcFace) -> None:
    case, expected = load_case("stylegan/arcface_id_loss")
    tolerance = case["tolerance"]["rtol"]
    face, low, noise = (values(i["values"], i["shape"], i["seed"]) for i in case["inputs"].values())
    assert relative_error(arcface.embed(0.5 * face), expected["embedding112"]) < tolerance
    y = F.interpolate(low, (ALIGNED, ALIGNED), mode="bilinear", align_corners=False)
    y_hat = (y + 0.3 * noise).requires_grad_()
    anchor = arcface(y)
    assert relative_error(anchor, expected["feats_y"]) < tolerance
    loss = (1 - (arcface(y_hat) * anchor).sum(1)).mean()
    torch.testing.assert_close(loss, expected["id_loss"], rtol=tolerance, atol=1e-6)
    (gradient,) = torch.autograd.grad(loss, y_hat)
    rows = gradient.abs().sum((1, 3))
    assert relative_error(rows, expected["id_loss.grad_rows_sum"]) < case["tolerance_overrides"]["grad"]["rtol"]
    gradient[..., ROWS, COLUMNS] = 0
    assert gradient.abs().max() == 0, "nothing outside of the face counts"


@pytest.mark.slow
def test_pictures_of_other_sizes_are_seen_like_the_aligned_ones(arcface: ArcFace) -> None:
    metric, small = IdentitySimilarity(arcface), torch.rand(1, 3, 64, 64) * 2 - 1
    large = F.interpolate(small, (ALIGNED, ALIGNED), mode="bilinear", align_corners=False)
    wide = F.pad(large, (50, 50, 0, 0), value=1.0)
    metric.update(torch.cat([large, large]), torch.cat([large, large]))
    assert metric.compute() == pytest.approx(1)
    torch.testing.assert_close(arcface(small), arcface(large), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(arcface(wide), arcface(large))
