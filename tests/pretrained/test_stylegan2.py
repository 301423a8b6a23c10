"""Files of StyleGAN2: rosinality's, NVIDIA's, our own; what may be missing and what is refused."""

import pickle
import sys
from collections import OrderedDict
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_styles.commands.convert import main as convert
from lightning_styles.errors import UserError
from lightning_styles.models.stylegan2 import Discriminator, Generator
from lightning_styles.pretrained.nvidia import read_nvidia, rosinality_discriminator, rosinality_generator
from lightning_styles.pretrained.stylegan2 import (
    StyleGAN2,
    build_discriminator,
    build_generator,
    load_discriminator,
    load_stylegan2,
    save_rosinality,
    save_stylegan2,
)
from tests.golden.stylegan_world import case_of, excess, fill_state, manifest, meta_state, shapes_of

WIDTHS = {4: 16, 8: 12, 16: 8}


@pytest.fixture
def pair() -> StyleGAN2:
    generator, discriminator = Generator(16, 24, 3, channels=WIDTHS), Discriminator(16, channels=WIDTHS)
    return StyleGAN2(generator, torch.randn(24), discriminator, Generator(16, 24, 3, channels=WIDTHS))


def same(a: nn.Module | None, b: nn.Module | None) -> bool:
    assert a is not None
    assert b is not None
    one, other = a.state_dict(), b.state_dict()
    return list(one) == list(other) and all(torch.equal(one[key], other[key]) for key in one)


def saved(path: Path, contents: Any) -> Path:
    torch.save(contents, path)
    return path


@pytest.mark.parametrize("name", ["model.pt", "model.safetensors"])
def test_files_come_back_as_they_were(tmp_path: Path, pair: StyleGAN2, name: str) -> None:
    path = tmp_path / name
    (save_rosinality if name.endswith("pt") else save_stylegan2)(path, pair)
    found = load_stylegan2(path, finetune=True)
    assert same(found.generator, pair.generator)
    assert same(found.discriminator, pair.discriminator)
    assert same(found.trained, pair.trained)
    assert torch.equal(found.latent_avg, pair.latent_avg)
    assert not any(p.requires_grad for p in found.generator.parameters())
    assert same(load_discriminator(path), pair.discriminator)


def test_a_rosinality_file_has_the_official_parts(tmp_path: Path, pair: StyleGAN2) -> None:
    pair.trained = None
    save_rosinality(tmp_path / "a.pt", pair)
    content = torch.load(tmp_path / "a.pt", weights_only=True)
    assert set(content) == {"g", "g_ema", "d", "latent_avg"}
    assert list(content["g_ema"]) == list(pair.generator.state_dict()) == list(content["g"])
    assert content["latent_avg"].shape == (24,)
    save_stylegan2(tmp_path / "a.safetensors", pair, torch.float16)
    found = load_stylegan2(tmp_path / "a.safetensors")
    assert found.trained is None
    assert same(found.generator, pair.generator.half().float())


def test_filters_noise_and_the_mean_may_be_missing(tmp_path: Path, pair: StyleGAN2) -> None:
    assert pair.discriminator is not None

    def thinned(network: nn.Module) -> dict[str, Tensor]:
        return {k: v for k, v in network.state_dict().items() if not k.endswith("kernel") and "noises" not in k}

    contents = {"g_ema": thinned(pair.generator), "d": thinned(pair.discriminator)}
    path = saved(tmp_path / "a.pt", contents)
    found, again = load_stylegan2(path), load_stylegan2(path)
    w, noise, image = torch.randn(2, 24), pair.generator.draw_noise(2), torch.randn(4, 3, 16, 16)
    assert torch.equal(found.generator(w, noise), pair.generator(w, noise))
    assert found.discriminator is not None
    assert torch.equal(found.discriminator(image), pair.discriminator(image))
    assert same(found.generator, again.generator)
    assert torch.equal(found.latent_avg, again.latent_avg)
    torch.testing.assert_close(found.latent_avg, pair.generator.mean_latent(10_000)[0], rtol=0, atol=0.05)


def test_what_does_not_fit_is_named(tmp_path: Path, pair: StyleGAN2) -> None:
    state = pair.generator.state_dict()
    with pytest.raises(UserError, match=r"a\.pt has no discriminator"):
        load_stylegan2(saved(tmp_path / "a.pt", {"g_ema": state}), finetune=True)
    with pytest.raises(UserError, match=r"a\.pt holds g_ema; expected a discriminator"):
        load_discriminator(tmp_path / "a.pt")
    with pytest.raises(UserError, match=r"b\.pt holds epoch; expected g_ema"):
        load_stylegan2(saved(tmp_path / "b.pt", {"epoch": 3}))
    del state["convs.1.activate.bias"]
    with pytest.raises(UserError, match=r"1 keys missing \(first convs\.1\.activate\.bias\)"):
        load_stylegan2(saved(tmp_path / "c.pt", {"g_ema": state}))
    (tmp_path / "d.pt").write_bytes((tmp_path / "a.pt").read_bytes()[:5000])
    with pytest.raises(UserError, match=r"truncated or no PyTorch checkpoint"):
        load_stylegan2(tmp_path / "d.pt")


def test_manifests_of_nvidia_are_renamed_without_rest() -> None:
    ours, theirs = (manifest(f"{who}_generator") for who in ("stylegan2_ffhq_1024", "nvidia_ada_1024"))
    renamed, average = rosinality_generator(meta_state(theirs["state_dict"]), "x.pkl")
    assert average is not None
    assert list(average.shape) == [512]
    filters = {key for key in ours["state_dict"] if key.endswith(".kernel")}
    expected = {key: shape for key, shape in ours["state_dict"].items() if key not in filters}
    assert {key: list(value.shape) for key, value in renamed.items()} == expected
    ours, theirs = (manifest(f"{who}_discriminator") for who in ("stylegan2_ffhq_1024", "nvidia_ada_1024"))
    renamed = rosinality_discriminator(meta_state(theirs["state_dict"]), "x.pkl")
    expected = {key: shape for key, shape in ours["state_dict"].items() if not key.endswith(".kernel")}
    assert {key: list(value.shape) for key, value in renamed.items()} == expected


def test_the_architecture_is_read_off_the_shapes() -> None:
    for name, build in (("generator", build_generator), ("discriminator", build_discriminator)):
        shapes = manifest(f"stylegan2_ffhq_1024_{name}")["state_dict"]
        state = {key: torch.zeros(1).expand(shape) for key, shape in shapes.items()}
        assert shapes_of(build(state, name)) == shapes


def test_networks_of_nvidia_draw_the_same() -> None:
    case, x, expected = case_of("nvidia_naming")
    states = {
        part: fill_state({k: torch.zeros(s) for k, s in case[f"{name}_keys"].items()}, case[f"fill_{part}"])
        for part, name in (("g", "generator"), ("d", "discriminator"))
    }
    renamed, average = rosinality_generator(states["g"], "x.pkl")
    assert average is not None
    generator = build_generator(renamed, "x.pkl")
    discriminator = build_discriminator(rosinality_discriminator(states["d"], "x.pkl"), "x.pkl")
    w = generator.mapping(x["z"])
    found = {
        "w": w,
        "w_avg": average,
        "from_z": generator(w),
        "from_z_psi0.6": generator(average + 0.6 * (w - average)),
        "from_ws": generator(x["ws"]),
        "logits": discriminator(x["x"]),
    }
    assert set(found) == set(expected) - {"keys_checked"}
    for name, tensor in found.items():
        assert excess(tensor, expected[name], case) < 1, name


# A pickle as NVIDIA's code writes it: every network is a call of a function with its source code and its state.


class Persistent:
    def __init__(self, state: dict[str, Any]) -> None:
        self.state = state

    def __reduce__(self) -> tuple[Any, ...]:
        meta = {"type": "class", "version": 6, "module_src": "import os", "class_name": "G", "state": self.state}
        return sys.modules["torch_utils.persistence"]._reconstruct_persistent_obj, (meta,)  # type: ignore[attr-defined]


def tree(state: dict[str, Tensor]) -> Persistent:
    """Nested networks with the tensors of a flat state dict."""
    own = OrderedDict((k, nn.Parameter(v) if v.ndim else v) for k, v in state.items() if "." not in k)
    children = {k.split(".")[0] for k in state if "." in k}
    modules = OrderedDict(
        (c, tree({k[len(c) + 1 :]: v for k, v in state.items() if k.startswith(f"{c}.")})) for c in sorted(children)
    )
    parameters = OrderedDict((k, v) for k, v in own.items() if isinstance(v, nn.Parameter))
    buffers = OrderedDict((k, v) for k, v in own.items() if k not in parameters)
    hooks: dict[str, Any] = {"_backward_hooks": OrderedDict(), "_non_persistent_buffers_set": set(), "training": False}
    return Persistent({"_parameters": parameters, "_buffers": buffers, "_modules": modules} | hooks)


def nvidia_state(generator: Generator, average: Tensor) -> dict[str, Tensor]:
    """The weights of a generator of 16 px under NVIDIA's names."""
    ours = generator.state_dict()
    state: dict[str, Tensor] = {"mapping.w_avg": average, "synthesis.b4.const": ours["input.input"][0]}
    for i in range(3):
        state |= {f"mapping.fc{i}.{part}": ours[f"style.{i + 1}.{part}"] for part in ("weight", "bias")}
    layers = {"b4.conv1": ("conv1", 0), "b8.conv0": ("convs.0", 1), "b8.conv1": ("convs.1", 2),
              "b16.conv0": ("convs.2", 3), "b16.conv1": ("convs.3", 4)}  # fmt: skip
    colours = {"b4.torgb": "to_rgb1", "b8.torgb": "to_rgbs.0", "b16.torgb": "to_rgbs.1"}
    for theirs, (name, k) in layers.items():
        state[f"synthesis.{theirs}.weight"] = ours[f"{name}.conv.weight"][0]
        state[f"synthesis.{theirs}.bias"] = ours[f"{name}.activate.bias"]
        state[f"synthesis.{theirs}.noise_strength"] = ours[f"{name}.noise.weight"][0]
        state[f"synthesis.{theirs}.noise_const"] = ours[f"noises.noise_{k}"][0, 0]
        state[f"synthesis.{theirs}.resample_filter"] = torch.ones(4, 4)
    for theirs, name in colours.items():
        state[f"synthesis.{theirs}.weight"] = ours[f"{name}.conv.weight"][0]
        state[f"synthesis.{theirs}.bias"] = ours[f"{name}.bias"].flatten()
    for theirs, name in colours.items() | {(t, n) for t, (n, _) in layers.items()}:
        for part in ("weight", "bias"):
            state[f"synthesis.{theirs}.affine.{part}"] = ours[f"{name}.conv.modulation.{part}"]
    return state


@pytest.fixture
def nvidia_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    def _reconstruct_persistent_obj(meta: object) -> None:
        raise AssertionError("this would run the code of the pickle")

    class EasyDict(dict):
        pass

    for name, item in (("torch_utils.persistence", _reconstruct_persistent_obj), ("dnnlib.util", EasyDict)):
        module = ModuleType(name)
        item.__module__, item.__qualname__ = name, item.__name__
        setattr(module, item.__name__, item)
        monkeypatch.setitem(sys.modules, name.split(".")[0], ModuleType(name.split(".")[0]))
        monkeypatch.setitem(sys.modules, name, module)


@pytest.mark.usefixtures("nvidia_modules")
@pytest.mark.parametrize(("protocol", "wrapper"), [(3, ""), (4, "_orig_mod.")])
def test_a_pickle_of_nvidia(tmp_path: Path, pair: StyleGAN2, protocol: int, wrapper: str) -> None:
    settings = sys.modules["dnnlib.util"].EasyDict(path="data.zip", size=16)  # type: ignore[attr-defined]
    state = nvidia_state(pair.generator, pair.latent_avg)
    state = {key.replace(".", f".{wrapper}", 1): value for key, value in state.items()}
    contents = {"G": None, "D": None, "G_ema": tree(state), "training_set_kwargs": settings}
    path = tmp_path / "network.pkl"
    path.write_bytes(pickle.dumps(contents, protocol))
    found = load_stylegan2(path)
    w = torch.randn(2, 24)
    torch.testing.assert_close(found.generator(w), pair.generator(w))
    assert torch.equal(found.latent_avg, pair.latent_avg)
    with pytest.raises(UserError, match="has no discriminator"):
        load_stylegan2(path, finetune=True)
    state["mapping.embed.weight"] = torch.zeros(24, 5)
    path.write_bytes(pickle.dumps({"G_ema": tree(state)}))
    with pytest.raises(UserError, match=r"holds mapping\.embed\.weight, .* conditional"):
        load_stylegan2(path)
    path.write_bytes(pickle.dumps({"G_ema": tree({"synthesis.b0.const": torch.zeros(2)})}))
    with pytest.raises(UserError, match=r"network\.pkl holds no StyleGAN2 in NVIDIA's layout"):
        load_stylegan2(path)


class Malicious:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        import os

        return os.system, (f"touch {self.path}",)


def test_a_pickle_that_wants_to_run_code_is_refused(tmp_path: Path) -> None:
    path, trace = tmp_path / "bad.pkl", tmp_path / "trace"
    path.write_bytes(pickle.dumps({"G_ema": Malicious(trace)}))
    with pytest.raises(UserError, match=r"bad\.pkl is refused: it wants (posix|nt)\.system, which could run code"):
        load_stylegan2(path)
    for command in ("builtins\neval\n", "builtins\ngetattr\n", "torch\nload\n", "os\nsystem\n", "torch.hub\nload\n"):
        path.write_bytes(b"c" + command.encode() + b"(S'1'\ntR.")
        with pytest.raises(UserError, match="could run code"):
            read_nvidia(path)
    hidden = pickle.dumps({"G_ema": torch.zeros(2)}, 2)
    assert b"_load_from_bytes" in hidden
    inner = tmp_path / "inner"
    torch.save(Malicious(trace), inner, _use_new_zipfile_serialization=False)
    body = inner.read_bytes()
    path.write_bytes(
        b"\x80\x03ctorch.storage\n_load_from_bytes\nB" + len(body).to_bytes(4, "little") + body + b"\x85R."
    )
    with pytest.raises(UserError, match="truncated or no pickle"):
        read_nvidia(path)
    assert not trace.exists()


def test_other_pickles_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.pkl"
    with pytest.raises(UserError, match="No file"):
        read_nvidia(path)
    path.write_bytes(b"\x80\x04nonsense")
    with pytest.raises(UserError, match="truncated or no pickle"):
        read_nvidia(path)
    path.write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(UserError, match="holds none of G, D, G_ema"):
        read_nvidia(path)


def test_convert_rewrites_the_files_of_other_programs(tmp_path: Path, pair: StyleGAN2) -> None:
    save_rosinality(tmp_path / "a.pt", pair)
    steps = (("a.pt", "b.safetensors", "safetensors"), ("b.safetensors", "c.pt", "rosinality"))
    for source, target, layout in steps:
        assert convert([str(tmp_path / source), str(tmp_path / target), "--to", layout]) == 0
    found = load_stylegan2(tmp_path / "c.pt", finetune=True)
    assert same(found.generator, pair.generator)
    assert same(found.discriminator, pair.discriminator)
    assert same(found.trained, pair.trained)
