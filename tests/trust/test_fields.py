"""Files whose container is whole and whose content is not: one sentence names file, field, found and expected."""

import copy
import json
import re
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
import yaml
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim import SGD, Adam
from torch.optim.lr_scheduler import LambdaLR

from datamodules.diffae_samples import open_chunk
from datamodules.scene_pool import ScenePool
from lightning_styles.checkpoint_fields import check_optimizers, check_resumable
from lightning_styles.commands.compare import read_result
from lightning_styles.commands.compare_rows import read_plot, read_rows
from lightning_styles.diffusion.half_way import KeptEncodings
from lightning_styles.errors import UserError
from lightning_styles.methods.pseudo_pairs import PairFiles, Style
from lightning_styles.methods.pseudo_pairs_prepare import Preparation, check_begun
from lightning_styles.methods.references import References
from lightning_styles.models.stylegan2.pairing import PairSettings
from lightning_styles.reading import expect, is_plain, tensor
from lightning_styles.runs import read_checkpoint, recorded
from tests.micro_stylegan import make_stylegan
from tests.test_module import fit
from tests.trust.bad_files import write

DROPPED = object()
ODD: dict[str, Any] = {
    "dropped": DROPPED, "nothing": None, "text": "x", "fraction": -1.5, "list": [[]], "mapping": {"a": None},
    "tensor": torch.ones(2, 1), "flag": True,
}  # fmt: skip
Keys = tuple[Any, ...]


@dataclass
class Kind:
    """A file of some kind.

    Attributes:
        content: what it holds.
        save: writes that.
        read: reads it as the program does.
        fields: keys of each field, and the odd values that it may have.
        mend: what the message says to do.
        name: of the file.
    """

    content: Any
    save: Callable[[Any, Path], Any]
    read: Callable[[Path], Any]
    fields: dict[Keys, set[str]]
    mend: str
    name: str


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def changed(content: Any, keys: Keys, odd: Any) -> Any:
    """A copy of `content` with another value at `keys`, or without it."""
    whole = {"": copy.deepcopy(content)}
    place: Any = whole
    for key in ("", *keys[:-1]) if keys else ():
        place = place[key]
    place, key = (place, keys[-1]) if keys else (whole, "")
    if odd is DROPPED:
        del place[key]
    else:
        place[key] = odd
    return whole.get("")


# ---- the kinds


def of_checkpoint(tmp_path: Path) -> Kind:
    _, run = fit(tmp_path, 2)
    run.save_checkpoint("good.ckpt")
    content = torch.load("good.ckpt", weights_only=True)
    content["callbacks"] = {"EMA": {"decay": 0.9, "shadow": {"maker.bias": torch.ones(3)}}}
    content["lightning_styles"]["pictures"] = ["a"]
    own, loops = ("lightning_styles",), ("loops", "fit_loop")
    counts = ("total", "current"), ("ready", "completed", "started", "processed")
    progress = ("epoch_progress", "epoch_loop.batch_progress", "epoch_loop.val_loop.batch_progress")
    steps = ("epoch_loop.scheduler_progress", "epoch_loop.manual_optimization.optim_step_progress")
    fields: dict[Keys, set[str]] = {
        ("pytorch-lightning_version",): set(), ("state_dict",): set(), ("global_step",): set(),
        ("state_dict", "maker.bias"): {"dropped", "tensor"},
        ("callbacks",): {"dropped"}, ("callbacks", "EMA"): {"dropped"},
        ("callbacks", "EMA", "shadow"): set(), ("callbacks", "EMA", "shadow", "maker.bias"): {"dropped", "tensor"},
        (*own, "class_path"): set(), (*own, "init_args"): {"mapping"}, (*own, "base_models"): set(),
        (*own, "init_args", "width"): set(ODD) - {"tensor"}, (*own, "base_models", "frozen"): {"dropped", "text"},
        (*own, "iterations"): {"dropped"}, (*own, "world_size"): {"dropped"}, (*own, "pictures"): {"dropped"},
        (*own, "batch_size"): set(ODD) - {"tensor"}, (*own, "pictures", 0): {"dropped", "text"},
        own: {"dropped"}, ("loops",): set(), ("lr_schedulers",): set(), ("optimizer_states",): set(),
        ("optimizer_states", 0): {"dropped"}, ("optimizer_states", 0, "state"): {"mapping"},
        ("optimizer_states", 1, "param_groups"): set(),
        ("optimizer_states", 1, "param_groups", 0): {"dropped", "mapping"},
        ("lr_schedulers", 0): {"dropped", "mapping"},
        **{(*loops, name): set() for name in (*progress, *steps, "epoch_loop.state_dict")},
        **{(*loops, name, a, b): set() for name in progress for a in counts[0] for b in counts[1]},
        **{(*loops, name, a, b): set() for name in steps for a in counts[0] for b in counts[1][:2]},
        (*loops, "epoch_loop.batch_progress", "is_last_batch"): {"flag"},
        (*loops, "epoch_loop.state_dict", "_batches_that_stepped"): set(),
        (*loops, "epoch_loop.automatic_optimization.optim_progress", "optimizer", "step"): set(),
        ("loops", "predict_loop"): set(), ("loops", "test_loop", "batch_progress", "current"): set(),
    }  # fmt: skip

    def read(file: Path) -> None:
        checkpoint = read_checkpoint(file)
        if "lightning_styles" in checkpoint:
            check_resumable(checkpoint, file)

    return Kind(content, torch.save, read, fields, "checkpoint", "x.ckpt")


def of_config(_: Path) -> Kind:
    content = {"seed_everything": 1, "model": {"class_path": "x"}, "data": {}, "trainer": {"max_steps": 2}}
    lenient = {"dropped", "nothing", "mapping"}
    fields = {(name,): lenient for name in ("model", "data", "trainer")}
    odd = {**fields, (): {"mapping"}}
    return Kind(content, save_yaml, recorded, odd, "remove it to go on without comparing", "config.yaml")


def of_result(_: Path) -> Kind:
    content = {"metrics": {"a": 1.0}, "notes": ["b"], "seconds": 3.0, "folder": "x", "checkpoint": None}
    fields: dict[Keys, set[str]] = {
        ("metrics",): set(), ("metrics", "a"): {"dropped", "fraction"}, ("notes",): set(),
        ("notes", 0): {"dropped", "text"},
        ("seconds",): {"fraction"}, ("folder",): {"nothing", "text"}, ("checkpoint",): {"nothing", "text"}, (): set(),
    }  # fmt: skip
    return Kind(content, save_json, read_result, fields, "remove it, and it is made again", "x.json")


def of_comparison(_: Path) -> Kind:
    content = {
        "config": ["a.yaml"], "set": {"data.batch_size": 2}, "fit": True, "plot": {"x": "a", "y": "b"},
        "rows": {"one": {"label": "One", "config": "b.yaml", "fit": True}, "two": {"trained_by": "one"}},
        "repeat": {"first": {"vars.style": "a"}},
    }  # fmt: skip
    lenient = {"dropped", "nothing"}
    fields: dict[Keys, set[str]] = {
        (): set(), ("config",): {*lenient, "text"}, ("set",): {*lenient, "mapping"}, ("fit",): {*lenient, "flag"},
        ("rows",): {"mapping"}, ("rows", "one", "label"): {"dropped", "text", "fraction", "flag"},
        ("rows", "one", "config"): {*lenient, "text"}, ("rows", "one", "fit"): {"dropped", "flag", "nothing"},
        ("rows", "two"): {*lenient, "mapping"}, ("rows", "two", "trained_by"): lenient, ("plot",): lenient,
        ("repeat",): {*lenient, "mapping"}, ("repeat", "first"): {*lenient, "mapping"},
    }  # fmt: skip

    def read(file: Path) -> None:
        read_rows(file, Path("out"), [], [])
        read_plot(file)

    return Kind(content, save_yaml, read, fields, "", "x.yaml")


def of_chunk(_: Path) -> Kind:
    shapes = {"z": (5,), "x_t0": (3, 4, 4)}
    expected = {key: tensor(2, *shape, finite=False) for key, shape in shapes.items()}
    content = {key: torch.ones(2, *shape) for key, shape in shapes.items()}
    fields: dict[Keys, set[str]] = {("z",): set(), ("x_t0",): set(), (): set()}
    read = lambda file: open_chunk(file, expected)  # noqa: E731
    return Kind(content, torch.save, read, fields, "remove it, and it is made again", "x.pt")


def of_scenes(tmp_path: Path) -> Kind:
    pool = ScenePool(kinds={"portrait": 2}, styles={"photo": 1.0}, size=16, batch_size=1, cache=str(tmp_path))
    labels = torch.zeros(2, dtype=torch.int64)
    picture = torch.zeros(2, 16, 16, dtype=torch.uint8)
    content = {
        "image": picture[:, None].repeat(1, 3, 1, 1), "segmentation": picture, "style": labels, "identity": labels,
        "caption": ["a", "b"], "attributes": {"portrait_hair": labels},
    }  # fmt: skip
    pool._draw_pool = lambda: content  # type: ignore[method-assign]
    pool.setup("fit")
    (name,) = tmp_path.glob("*.pt")

    def read(_: Path) -> None:
        vars(pool).pop("pool", None)
        pool.setup("fit")

    fields: dict[Keys, set[str]] = {(key,): set() for key in content} | {("caption", 0): {"text"}}
    fields |= {("attributes",): set(), ("attributes", "portrait_hair"): {"dropped"}}
    return Kind(content, torch.save, read, fields, "remove it, and it is made again", name.name)


def of_pair(tmp_path: Path) -> Kind:
    files = PairFiles(tmp_path, ("a",), PairSettings.of({}), 0, (2, 3, 4))
    style = Style("s", torch.zeros(3, 16, 16))
    content = {"w": torch.zeros(2, 3, 4), "perceptual": torch.zeros(2), "identity": torch.zeros(2)}
    file = files.file(style)
    file.with_suffix(".png").touch()

    def none() -> Any:
        raise AssertionError("the pair is there")

    read = lambda _: files.find([style], none, torch.device("cpu"), None, lambda: None)  # noqa: E731
    fields: dict[Keys, set[str]] = {(key,): set() for key in content}
    return Kind(content, save_tensors, read, fields, "remove it, and it is made again", file.name)


def of_reference(tmp_path: Path) -> Kind:
    files, style = References(tmp_path, None, "tiny/perceptual", 3, 0), Style("s", torch.zeros(3, 16, 16))
    generator: Any = nn.Linear(4, 4)
    content = {"v": torch.zeros(4), "singular_values": torch.ones(4), "directions": torch.eye(4)}
    place: list[Path] = []
    files_make = lambda path, *_: place.append(path) or save_file(content, path)  # noqa: E731
    object.__setattr__(files, "_make", files_make)
    read = lambda _: files.find(style, generator, torch.zeros(4))  # noqa: E731
    read(tmp_path)
    fields: dict[Keys, set[str]] = {(key,): set() for key in content}
    return Kind(content, save_tensors, read, fields, "remove it, and it is made again", place[0].name)


def save_yaml(content: Any, file: Path) -> None:
    file.write_text(yaml.safe_dump(as_lists(content), sort_keys=False), encoding="utf-8")


def save_json(content: Any, file: Path) -> None:
    file.write_text(json.dumps(as_lists(content)), encoding="utf-8")


def as_lists(content: Any) -> Any:
    if isinstance(content, dict):
        return {key: as_lists(value) for key, value in content.items()}
    if isinstance(content, list):
        return [as_lists(value) for value in content]
    return content.tolist() if isinstance(content, Tensor) else content


def save_tensors(content: dict[str, Any], file: Path) -> None:
    """Safetensors hold nothing else."""
    save_file({key: value for key, value in content.items() if isinstance(value, Tensor)}, file)


KINDS = [of_checkpoint, of_config, of_result, of_comparison, of_chunk, of_scenes, of_pair, of_reference]
BROKEN = {"empty": b"", "binary": bytes(range(128, 256)), "deep": b"[" * 5_000, "text": b"hello", "null": b"null"}


def mutations(kind: Kind) -> Iterator[tuple[Keys, str, Any]]:
    for keys, allowed in kind.fields.items():
        for name, odd in ODD.items():
            if name not in allowed and not (odd is DROPPED and not keys):
                yield keys, name, odd


@pytest.mark.parametrize("make", KINDS)
def test_every_odd_field_is_named(make: Callable[[Path], Kind], tmp_path: Path) -> None:
    kind = make(tmp_path)
    file = tmp_path / kind.name
    kind.save(kind.content, file)
    kind.read(file)
    silent = []
    for keys, name, odd in mutations(kind):
        kind.save(changed(kind.content, keys, odd), file)
        try:
            kind.read(file)
        except UserError as error:
            message = str(error)
            assert kind.name in message, message
            assert kind.mend in message, message
            assert "get it again" not in message
            assert len(message) < 500, message
            named = [str(key) for key in keys if isinstance(key, str)]
            assert not named or any(key.removesuffix("s") in message for key in named[-2:]), (keys, message)
        else:
            silent.append((keys, name))
    assert silent == []


@pytest.mark.parametrize("make", KINDS)
def test_every_broken_container_is_named(make: Callable[[Path], Kind], tmp_path: Path) -> None:
    kind = make(tmp_path)
    kind.save(kind.content, tmp_path / kind.name)
    whole = (tmp_path / kind.name).read_bytes()
    half = [] if kind.name.endswith(".yaml") else [whole[: len(whole) // 2 - 1]]  # half a text is one
    for content in (*BROKEN.values(), *half):
        (tmp_path / kind.name).write_bytes(content)
        with pytest.raises(UserError, match=re.escape(kind.name)) as refused:
            kind.read(tmp_path / kind.name)
        assert "get it again" not in str(refused.value)
        assert len(str(refused.value)) < 500


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("make", [of_pair, of_reference])
def test_numbers_of_a_cache_are_finite(make: Callable[[Path], Kind], bad: float, tmp_path: Path) -> None:
    kind = make(tmp_path)
    for key in kind.content:
        spoiled = kind.content[key].clone()
        spoiled.view(-1)[-1] = bad
        kind.save(changed(kind.content, (key,), spoiled), tmp_path / kind.name)
        with pytest.raises(UserError, match=rf"{kind.name}: {key} is .*, expected finite numbers of shape"):
            kind.read(tmp_path)


# ---- what is seen later


def test_a_kept_encoding_that_is_not_one_is_made_again(tmp_path: Path) -> None:
    images, made = torch.zeros(1, 3, 4, 4), []

    def make(missing: Tensor) -> tuple[Tensor, Tensor]:
        made.append(len(missing))
        return torch.ones(len(missing), 5), torch.ones_like(missing)

    kept = KeptEncodings(tmp_path, 5, "recipe")
    kept(images, make)
    (file,) = tmp_path.iterdir()
    z, x = good = torch.load(file, weights_only=True)
    odd = [[], {}, None, 3, (z,), (z, x, x), (x, z), (z[:4], x), (z, x[:, :2]), (z * torch.nan, x), {"z": z, "x": x}]
    for content in odd:
        torch.save(content, file)
        kept(images, make)
        assert torch.equal(torch.load(file, weights_only=True)[0], z)
    kept(images, make)
    assert made == [1] * (1 + len(odd))
    assert len(good) == 2


def optimizers() -> dict[str, Any]:
    first, second = nn.Linear(2, 3), nn.Linear(3, 1)
    adam = Adam(first.parameters(), 0.1)
    named = {"first": (adam, LambdaLR(adam, lambda _: 1.0)), "second": (SGD(second.parameters(), 0.1), None)}
    second(first(torch.ones(1, 2))).sum().backward()
    for optimizer, _ in named.values():
        optimizer.step()
    return named


MOMENT = ("optimizer_states", 0, "state", 0, "exp_avg")
GROUP = ("optimizer_states", 0, "param_groups")


@pytest.mark.parametrize(
    ("keys", "odd", "says"),
    [
        (("optimizer_states", 1), DROPPED, "has 1 optimizer_states, this run has first, second"),
        (("lr_schedulers", 0), DROPPED, "has 0 lr_schedulers, this run has first"),
        (("optimizer_states", 0, "state"), {}, "optimizer first: state is a mapping of 0, expected moments of up to 2"),
        (("optimizer_states", 0, "state", 7), {}, "optimizer first: state is"),
        (("optimizer_states", 0, "state", 0), {}, "optimizer first: state is"),
        (MOMENT, DROPPED, "optimizer first: state is"),
        (MOMENT, torch.zeros(3), "optimizer first: state is"),
        (MOMENT, torch.full((3, 2), torch.nan), "optimizer first: state is"),
        ((*MOMENT[:-1], "step"), 1, "optimizer first: state is"),
        (GROUP, [], "optimizer first: param_groups is a list of 0, expected 1 values"),
        ((*GROUP, 0, "params"), [0], "optimizer first: param_groups.0.params is"),
        ((*GROUP, 0, "lr"), "x", "optimizer first: param_groups.0.lr is 'x', expected a finite number"),
        ((*GROUP, 0, "lr"), torch.nan, "optimizer first: param_groups.0.lr is nan, expected a finite number"),
        (("lr_schedulers", 0, "last_epoch"), "x", "scheduler of first: last_epoch is 'x'"),
        (("lr_schedulers", 0, "base_lrs"), DROPPED, "scheduler of first: base_lrs is missing"),
    ],
)
def test_a_run_does_not_go_on_with_other_optimizers(keys: Keys, odd: Any, says: str) -> None:
    named = optimizers()
    content = {
        "global_step": 1,
        "optimizer_states": [optimizer.state_dict() for optimizer, _ in named.values()],
        "lr_schedulers": [scheduler.state_dict() for _, scheduler in named.values() if scheduler],
    }
    check_optimizers(content, named)
    with pytest.raises(UserError, match=f"The checkpoint.*{says}"):
        check_optimizers(changed(content, keys, odd), named)


@pytest.mark.parametrize(
    ("keys", "odd", "says"),
    [
        (("optimizer_states", 1), DROPPED, "has 1 optimizer_states, this run has maker, critic"),
        (("state_dict", "maker.bias"), torch.full((3,), torch.inf), "NaN or infinite values, first in maker.bias"),
        (("state_dict", "maker.bias"), torch.ones(2), "1 tensors differ, first maker.bias"),
        (("state_dict", "maker.bias"), DROPPED, "1 tensors differ, first maker.bias: missing in the checkpoint"),
    ],
)  # fmt: skip
def test_a_method_refuses_what_it_cannot_go_on_from(keys: Keys, odd: Any, says: str, tmp_path: Path) -> None:
    _, run = fit(tmp_path, 2)
    run.save_checkpoint("x.ckpt")
    torch.save(changed(torch.load("x.ckpt", weights_only=True), keys, odd), "x.ckpt")
    with pytest.raises(UserError, match=says):
        fit(tmp_path, 4, Path("x.ckpt"))


def test_a_checkpoint_says_one_number_of_iterations(tmp_path: Path) -> None:
    kind = of_checkpoint(tmp_path)
    for number in (1, 3):
        torch.save(changed(kind.content, ("global_step",), number), "x.ckpt")
        with pytest.raises(
            UserError, match=f"x.ckpt, whose loops did 2 iterations: global_step is {number}, expected 2"
        ):
            kind.read(Path("x.ckpt"))


def test_a_generator_that_was_trained_here_is_made_again_not_got_again(tmp_path: Path) -> None:
    preparation, file = object.__new__(Preparation), tmp_path / "finetuned_1.safetensors"
    preparation._source = own = make_stylegan()
    state = {f"g_ema.{name}": values.contiguous() for name, values in own.generator.state_dict().items()}
    state["latent_avg"] = own.latent_avg
    save_file(state, file)
    preparation._own_finetuned(file)
    first = next(iter(state))
    for odd in ({first: state[first] * torch.nan}, {first: state[first][:1].clone()}, {"g_ema.more": torch.ones(1)}):
        save_file(state | odd, file)
        with pytest.raises(UserError, match=r"finetuned_1.safetensors.*remove it, and it is made again"):
            preparation._own_finetuned(file)
    file.write_bytes(b"x")
    with pytest.raises(UserError, match=r"finetuned_1.safetensors is damaged; remove it, and it is made again"):
        preparation._own_finetuned(file)
    write("begun.ckpt", b"x")
    with pytest.raises(UserError, match=r"begun.ckpt is damaged; remove it, and G\* is trained from the start"):
        check_begun(Path("begun.ckpt"))


# ---- names of rows


@pytest.mark.parametrize("key", ["rows", "repeat"])
@pytest.mark.parametrize(
    "name",
    [
        "../x", "/tmp/x", "a/b", "a\\b", "..", ".", ".x", "~", "a:b", "a,b", "a\nb", "a\0b", "", " ", "a ", "x" * 51,
        "a|b", "*",
    ],
)  # fmt: skip
def test_a_row_has_a_name_that_can_be_a_file(key: str, name: str, tmp_path: Path) -> None:
    content = {"rows": {"a": {}}, key: {name: {}}}
    save_yaml(content, tmp_path / "x.yaml")
    with pytest.raises(UserError, match=f"x.yaml: {key} has the name .*, after which a file is called"):
        read_rows(tmp_path / "x.yaml", Path("out"), [], [])


def test_good_names_of_rows(tmp_path: Path) -> None:
    names = ["a", "no_spn", "lr=0.1", "\u00d6l (2)", "50%", "v1.2", "7", "\u56f3", "+x", "-1"]
    save_yaml({"rows": dict.fromkeys(names), "repeat": dict.fromkeys(names)}, tmp_path / "x.yaml")
    rows = read_rows(tmp_path / "x.yaml", tmp_path / "out", [], [])
    assert [row.row for row in rows[:: len(names)]] == names
    for row in rows:
        assert row.settings_file.resolve().is_relative_to(tmp_path / "out/rows")


# ---- the sentences


@pytest.mark.parametrize(
    ("content", "expected", "says"),
    [
        (3, dict[str, int], "f: it holds 3, expected a mapping; mend."),
        ({"a": {"b": [1, "x"]}}, {"a": dict[str, list[int]]}, "f: a.b.1 is 'x', expected a whole number; mend."),
        ({"a": 1}, {"a": int, "b": str | None}, "f: b is missing, expected text or nothing; mend."),
        ({"a": "y" * 99}, {"a": float}, f"f: a is '{'y' * 59}..., expected a number; mend."),
        ((1, 2), (int, str), "f: 1 is 2, expected text; mend."),
        ({1: 2}, {}, "f: it holds a mapping of 1, expected a mapping with ; mend."),
        (torch.ones(2), tensor(3), "f: it holds a tensor of shape (2,) and float32, expected finite"),
    ],
)  # fmt: skip
def test_the_sentence(content: Any, expected: Any, says: str) -> None:
    with pytest.raises(UserError) as refused:
        expect(content, expected, "f", "mend")
    assert str(refused.value).startswith(says)


def test_what_is_as_expected_passes() -> None:
    content = {"a": 1, "b": [0.5, 2], "c": None, "more": object(), "d": {"x": "y"}, "e": (1, "z"), "f": OrderedDict()}
    expected = {
        "a": Literal[1, 2], "b": list[float], "c": int | None, "d": dict[str, str], "e": (int, str), "f": dict,
        "g?": str,
    }  # fmt: skip
    expect(content, expected, "f", "mend")


def test_a_list_that_contains_itself_is_no_plain_value() -> None:
    endless: list[Any] = []
    endless.append(endless)
    assert not is_plain(endless)
    assert is_plain([[{"a": (1, None, "x", 0.5)}]])
