"""What all readers of weights share: plain names, nothing but finite tensors of the right shape, and one message."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from lightning_styles.errors import UserError
from lightning_styles.models.diffae import DiffAE, DiffAEUNet
from lightning_styles.models.guided_unet import GuidedUNet
from lightning_styles.models.psp import GradualStyleEncoder
from lightning_styles.models.stylegan2 import Discriminator, Generator
from lightning_styles.pretrained import TINY as PACKAGE
from lightning_styles.pretrained.diffae import load_diffae, load_guided_unet, save_diffae, save_guided_unet
from lightning_styles.pretrained.networks import load_identity, load_structure, save_network
from lightning_styles.pretrained.osasis import load_osasis, save_osasis
from lightning_styles.pretrained.psp import PSP, load_psp, save_psp
from lightning_styles.pretrained.stylegan2 import StyleGAN2, load_stylegan2, save_rosinality, save_stylegan2
from lightning_styles.pretrained.weights import (
    as_state,
    as_vector,
    build,
    parse_json,
    plain_names,
    read_header,
    read_safetensors,
    read_torch,
    remedy,
)
from tests.micro_judges import micro_vit
from tests.pretrained.test_diffae import TINY, TINY_P2, checkpoint
from tests.pretrained.test_psp import SMALL

WRAPPER = "_orig_mod."


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["_orig_mod.a.weight", "_orig_mod.b"], ["a.weight", "b"]),
        (["unet._orig_mod.a", "b"], ["unet.a", "b"]),
        (["a._fsdp_wrapped_module._orig_mod.b"], ["a.b"]),
        (["a._checkpoint_wrapped_module.b"], ["a.b"]),
        (["lora_unet__orig_mod_down_blocks_0.alpha"], ["lora_unet_down_blocks_0.alpha"]),
        (["module.a", "module._orig_mod.b"], ["a", "b"]),
        (["module.a", "b"], ["module.a", "b"]),
        (["a.module.b"], ["a.module.b"]),
        (["my_orig_mod.a", "orig_mod.b"], ["my_orig_mod.a", "orig_mod.b"]),
        ([], []),
    ],
)
def test_names_are_those_of_the_bare_network(names: list[str], expected: list[str]) -> None:
    state = plain_names(dict(zip(names, range(len(names)), strict=True)), "x")
    assert list(state.items()) == list(zip(expected, range(len(names)), strict=True))


def test_one_tensor_under_two_names_is_refused() -> None:
    with pytest.raises(UserError, match=r"x.pt holds a.b twice, with and without a wrapper such as _orig_mod; keep"):
        plain_names({"a.b": 1, "a._orig_mod.b": 2}, "x.pt")


def test_a_name_without_end_is_refused(tmp_path: Path) -> None:
    save_file({"x" * 1001: torch.zeros(1)}, tmp_path / "x.safetensors")
    with pytest.raises(UserError, match="x.safetensors has a name of 1001 characters, expected at most 1000"):
        read_safetensors(tmp_path / "x.safetensors")


def wrapped(tree: Mapping[str, Any]) -> dict[str, Any]:
    """The state dicts in a tree as a compiled network has them, at whatever depth they lie."""
    if any(isinstance(value, Mapping) for value in tree.values()):
        return {key: wrapped(value) if isinstance(value, Mapping) else value for key, value in tree.items()}
    return {WRAPPER + key if "." in key else key: value for key, value in tree.items()}


def in_parts(tree: Mapping[str, Any]) -> dict[str, Any]:
    """The same where the network is compiled inside of another: `part._orig_mod.rest`."""
    state = tree["state_dict"]
    return {**tree, "state_dict": {key.replace(".", f".{WRAPPER}", 1): value for key, value in state.items()}}


def networks(found: Any) -> list[nn.Module]:
    """All networks of what a loader returns."""
    return [found] if isinstance(found, nn.Module) else [v for v in vars(found).values() if isinstance(v, nn.Module)]


def make_stylegan(path: Path) -> None:
    widths = {4: 16, 8: 12, 16: 8}
    model = StyleGAN2(Generator(16, 24, 3, channels=widths), torch.randn(24), Discriminator(16, channels=widths))
    (save_rosinality if path.suffix == ".pt" else save_stylegan2)(path, model)


def make_osasis(path: Path) -> None:
    autoencoder, unet = DiffAE(TINY), DiffAEUNet(TINY)
    unet.load_state_dict({key: value for key, value in autoencoder.state_dict().items() if key in unet.state_dict()})
    save_osasis(path, 3, autoencoder, unet)


def make_psp(path: Path) -> None:
    save_psp(path, PSP(GradualStyleEncoder(**SMALL), "w_plus", torch.randn(6, 24)))


FILES: list[tuple[str, Callable[[Path], object], Callable[[Path], Any]]] = [
    ("g.pt", make_stylegan, load_stylegan2),
    ("g.safetensors", make_stylegan, load_stylegan2),
    ("last.ckpt", lambda path: torch.save(checkpoint(DiffAE(TINY)), path), load_diffae),
    ("ae.safetensors", lambda path: save_diffae(path, DiffAE(TINY)), load_diffae),
    ("p2.pt", lambda path: torch.save(GuidedUNet(TINY_P2).state_dict(), path), load_guided_unet),
    ("p2.safetensors", lambda path: save_guided_unet(path, GuidedUNet(TINY_P2)), load_guided_unet),
    ("iter_3.pt", make_osasis, load_osasis),
    ("psp.safetensors", make_psp, load_psp),
    ("dino.pth", lambda path: torch.save(micro_vit().state_dict(), path), lambda path: load_structure(str(path))),
]


@pytest.mark.parametrize(("name", "make", "load"), FILES, ids=lambda value: value if isinstance(value, str) else "")
def test_every_reader_understands_a_compiled_network(
    tmp_path: Path, name: str, make: Callable[[Path], object], load: Callable[[Path], Any]
) -> None:
    path = tmp_path / name
    make(path)
    expected = [network.state_dict() for network in networks(load(path))]
    if path.suffix == ".safetensors":
        _, metadata = read_safetensors(path)
        save_file(wrapped(load_file(path)), path, metadata=metadata or None)
    else:
        content = torch.load(path, weights_only=True)
        torch.save(in_parts(content) if "state_dict" in content else wrapped(content), path)
    found = [network.state_dict() for network in networks(load(path))]
    assert expected
    assert [state.keys() for state in found] == [state.keys() for state in expected]
    for own, theirs in zip(found, expected, strict=True):
        assert all(torch.equal(own[key], theirs[key]) for key in theirs)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weight": torch.full((2, 2), torch.nan)}, "x.pt is damaged: weight holds NaN or infinity. Use another copy"),
        ({"bias": torch.tensor([1.0, torch.inf])}, "x.pt is damaged: bias holds NaN or infinity"),
        ({"bias": torch.tensor([torch.inf, -torch.inf])}, "x.pt is damaged: bias holds NaN or infinity"),
        ({"weight": torch.zeros(2, 2, dtype=torch.int8)}, r"x.pt does not fit .* \(2, 2\) of int8 instead of \(2, 2\)"),
        ({"weight": torch.zeros(2)}, r"1 shaped or stored differently \(first weight: \(2,\) instead of \(2, 2\)\)"),
        ({"weight": 3}, r"first weight: int instead of \(2, 2\)"),
        ({"scale": torch.zeros(2)}, "1 keys left over .first scale"),
    ],
)
def test_weights_are_finite_numbers_of_the_right_shape(change: dict[str, Any], message: str) -> None:
    state = {"weight": torch.ones(2, 2), "bias": torch.ones(2)}
    assert torch.equal(build(lambda: nn.Linear(2, 2), state, "x.pt").weight, torch.ones(2, 2))
    with pytest.raises(UserError, match=message):
        build(lambda: nn.Linear(2, 2), state | change, "x.pt")


@pytest.mark.parametrize("make", [lambda: nn.Linear(-1, 2), lambda: nn.Linear("x", 2), lambda: {}["x"]])
def test_an_architecture_that_cannot_be_built_is_named(make: Callable[[], nn.Module]) -> None:
    with pytest.raises(UserError, match="x.pt is of an architecture that cannot be built"):
        build(make, {}, "x.pt")


@pytest.mark.parametrize("found", [3, [torch.ones(2)], {"a": 3}, {3: torch.ones(2)}, {"a": {"b": torch.ones(2)}}])
def test_a_state_dict_is_tensors_by_name(found: object) -> None:
    with pytest.raises(UserError, match="x.pt: g_ema holds .*expected tensors by name"):
        as_state(found, "x.pt", "g_ema")


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (3, "latent_avg is int; 2 values expected"),
        (torch.zeros(3), r"latent_avg is \(3,\); 2 values expected"),
        (torch.zeros(2, dtype=torch.int8), r"latent_avg is \(2,\) of int8; 2 values expected"),
        (torch.tensor([0.0, torch.nan]), "x.pt is damaged: latent_avg holds NaN"),
    ],
)
def test_means_are_finite_numbers(found: object, message: str) -> None:
    assert torch.equal(as_vector(torch.ones(1, 2).half(), 2, "x.pt", "latent_avg"), torch.ones(2))
    with pytest.raises(UserError, match=message):
        as_vector(found, 2, "x.pt", "latent_avg")


@pytest.mark.parametrize("text", ["{", "[" * 100_000, '"' + "x" * 1_000_000 + '"', "", "9" * 5000])
def test_json_is_read_within_bounds(text: str) -> None:
    with pytest.raises(UserError, match="its header is no JSON that can be read") as error:
        parse_json(text, "its header")
    assert len(str(error.value)) < 300


@pytest.mark.parametrize("arguments", ['{"widths": [-1, 2]}', '{"widths": "x"}', '{"other": 3}', "[3]", "{" * 100_000])
def test_an_odd_header_of_an_own_file_is_one_message(tmp_path: Path, arguments: str) -> None:
    network = nn.Linear(2, 2)
    save_network(network, tmp_path / "x.safetensors")
    save_file(load_file(tmp_path / "x.safetensors"), tmp_path / "x.safetensors", metadata={"arguments": arguments})
    with pytest.raises(UserError, match="is not a whole identity network of lightning_styles"):
        load_identity(str(tmp_path / "x.safetensors"))


@pytest.mark.parametrize("read", [read_torch, read_safetensors, read_header])
def test_what_to_do_fits_whoever_made_the_file(tmp_path: Path, read: Callable[[Path], object]) -> None:
    (tmp_path / "x.pt").write_bytes(b"PK\3\4")
    with pytest.raises(UserError, match=r"x.pt is truncated or no .*; get or make it again\."):
        read(tmp_path / "x.pt")
    assert remedy(PACKAGE / "stylegan2.safetensors") == "reinstall lightning_styles, which it ships with"


def test_a_header_tells_shapes_and_types(tmp_path: Path) -> None:
    state = {"_orig_mod.a": torch.zeros(2, 3).half(), "_orig_mod.b": torch.zeros(()).to(torch.int8)}
    save_file(state, tmp_path / "x.safetensors", metadata={"config": json.dumps({})})
    entries, metadata = read_header(tmp_path / "x.safetensors")
    assert entries == {"a": ("F16", (2, 3)), "b": ("I8", ())}
    assert metadata == {"config": "{}"}
