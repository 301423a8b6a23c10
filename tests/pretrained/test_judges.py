"""Files of ArcFace and DINO."""

from pathlib import Path

import pytest
import torch

from lightning_styles.errors import UserError
from lightning_styles.models.arcface import ArcFace
from lightning_styles.models.self_similarity import DinoKeys, PerceptualTokens
from lightning_styles.pretrained.networks import load_identity, load_structure
from tests.micro_judges import micro_vit


def saved(state: object, path: Path) -> str:
    torch.save(state, path)
    return str(path)


def test_dino_is_built_as_its_file_says(tmp_path: Path) -> None:
    vit, before = micro_vit(), torch.random.get_rng_state()
    loaded = load_structure(saved(vit.state_dict(), tmp_path / "dino.pth"))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert isinstance(loaded, DinoKeys)
    assert not any(p.requires_grad for p in loaded.parameters())
    loaded.short_side = 32
    images = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(loaded(images), DinoKeys(vit, 32)(images))


def test_dino_files_are_taken_whole_or_not_at_all(tmp_path: Path) -> None:
    state = micro_vit().state_dict()
    without = {key: value for key, value in state.items() if key != "blocks.1.attn.qkv.bias"}
    with pytest.raises(UserError, match=r"a\.pth does not fit VisionTransformer: 1 keys missing \(first blocks\.1\."):
        load_structure(saved(without, tmp_path / "a.pth"))
    more = state | {"head.weight": torch.zeros(3)}
    with pytest.raises(UserError, match=r"1 keys left over \(first head\.weight\)"):
        load_structure(saved(more, tmp_path / "b.pth"))
    other = state | {"blocks.2.attn.qkv.weight": torch.zeros(128, 128)}
    with pytest.raises(UserError, match=r"blocks\.2\.attn\.qkv\.weight: \(128, 128\) instead of \(384, 128\)"):
        load_structure(saved(other, tmp_path / "c.pth"))


def test_arcface_files_are_taken_whole_or_not_at_all(tmp_path: Path) -> None:
    with torch.device("meta"):
        own = ArcFace().state_dict()
    state = {key: torch.tensor(0.0).expand(value.shape) for key, value in own.items()}
    del state["body.3.shortcut_layer.0.weight"]
    state["extra"] = torch.zeros(1)
    message = r"1 keys missing \(first body\.3\.shortcut_layer\.0\.weight\); 1 keys left over \(first extra\)"
    with pytest.raises(UserError, match=message):
        load_identity(saved(state, tmp_path / "model_ir_se50.pth"))


@pytest.mark.parametrize("load", [load_identity, load_structure])
def test_other_contents_are_refused(tmp_path: Path, load: object) -> None:
    assert callable(load)
    with pytest.raises(UserError, match=r"x\.pth holds epoch, state_dict; expected the weights alone"):
        load(saved({"epoch": 3, "state_dict": {}}, tmp_path / "x.pth"))
    (tmp_path / "y.pth").write_text("no weights")
    with pytest.raises(UserError, match=r"y\.pth is truncated or no PyTorch checkpoint"):
        load(str(tmp_path / "y.pth"))
    with pytest.raises(UserError, match="does not fit"):
        load(saved({"weight": torch.zeros(2)}, tmp_path / "z.pth"))


@pytest.mark.parametrize(
    ("name", "load", "file"),
    [("arcface-ir-se50", load_identity, "model_ir_se50.pth"), ("dino-vitb8", load_structure, "dino_vitbase8")],
)
def test_what_is_missing_is_named_with_its_source(
    name: str, load: object, file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LIGHTNING_STYLES_MODELS", raising=False)
    assert callable(load)
    with pytest.raises(UserError, match=rf"'{name}' is not on this machine .*Source: .*https.*Save it as .*{file}"):
        load(name)


def test_the_embedded_world_has_a_structure_of_its_own() -> None:
    network = load_structure("tiny/structure")
    assert isinstance(network, PerceptualTokens)
    assert network(torch.rand(1, 3, 64, 64)).shape == (1, 64, network.network.widths[-1])
