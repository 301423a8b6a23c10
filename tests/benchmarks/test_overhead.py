"""What callbacks and checkpoints cost an iteration of `fit`, and how large a checkpoint is beside the whole model.

`pytest tests/benchmarks/test_overhead.py --benchmark-only -s` runs the embedded SMS experiment with and without them,
all in turn and in one process, so that the ratios mean something on a machine that does other things too.
"""

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from time import perf_counter
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger

from callbacks import EMA, Checkpoints, Previews
from lightning_styles.checkpoint_io import size_mb
from lightning_styles.cli import parse_only, with_defaults, with_plugins
from lightning_styles.diffusion.scores import Scores
from lightning_styles.methods.sms import SMS
from tests.micro import quiet_trainer

CONFIG = Path(__file__).resolve().parents[2] / "configs/tiny/sms.yaml"
WARM_UP = 20  # iterations that are not timed; the others hold five previews and a checkpoint


def build(spec: dict[str, Any]) -> Any:
    """The object of a class_path and its init_args."""
    module, _, name = spec["class_path"].rpartition(".")
    return getattr(import_module(module), name)(**spec.get("init_args", {}))


class Clock(L.Callback):
    """Times the iterations from the start of one to the start of the next, all callbacks included."""

    def __init__(self) -> None:
        self.starts: list[float] = []

    def on_train_batch_start(self, *arguments: Any) -> None:
        self.starts.append(perf_counter())

    on_train_epoch_end = on_train_batch_start  # type: ignore[assignment]

    @property
    def mean_ms(self) -> float:
        """Of an iteration after the warm-up."""
        timed = self.starts[WARM_UP:]
        return 1e3 * (timed[-1] - timed[0]) / (len(timed) - 1)


def fit(settings: dict[str, Any], folder: Path, callbacks: list[L.Callback] | None) -> tuple[Clock, SMS]:
    """One run of the experiment; with None as bare as it can be, else as the command line sets it up."""
    clock, method, trainer = Clock(), build(settings["model"]), settings["trainer"]
    changes: dict[str, Any] = {"callbacks": [clock]}
    if callbacks is not None:
        changes = {
            "callbacks": [clock, *with_defaults(callbacks, saving=True, bar=True)],
            "plugins": with_plugins([]),
            "logger": TensorBoardLogger(folder, "run", "version_0"),
            "enable_checkpointing": True,
            "enable_progress_bar": True,
            "log_every_n_steps": trainer["log_every_n_steps"],
        }
    quiet_trainer(folder, trainer["max_steps"], **changes).fit(method, datamodule=build(settings["data"]))
    return clock, method


@pytest.fixture(scope="module")
def settings() -> dict[str, Any]:
    """The embedded SMS experiment."""
    return parse_only(["fit", "--config", str(CONFIG)])


@pytest.mark.benchmark
def test_overhead_of_an_iteration(benchmark: Any, settings: dict[str, Any], tmp_path: Path) -> None:
    def shipped(*without: type) -> list[L.Callback]:
        made = [build(spec) for spec in settings["trainer"]["callbacks"]]
        return [callback for callback in made if not isinstance(callback, without)]

    sets: dict[str, Callable[[], list[L.Callback] | None]] = {
        "none": lambda: None,
        "shipped": shipped,
        "shipped, without previews": lambda: shipped(Previews),
        "shipped, with EMA": lambda: [*shipped(), EMA()],
        "shipped, saving every iteration": lambda: [*shipped(Checkpoints), Checkpoints(1)],
    }
    ms: dict[str, list[float]] = {name: [] for name in sets}

    def one_of_each() -> None:
        for name, callbacks in sets.items():
            ms[name].append(fit(settings, tmp_path / name / str(len(ms[name])), callbacks())[0].mean_ms)

    benchmark.pedantic(one_of_each, rounds=3)
    best = {name: min(values) for name, values in ms.items()}
    for name, value in best.items():
        benchmark.extra_info[name] = f"{value:.1f} ms/iteration, {value / best['none']:.3f} x none"
        print(f"{name}: {benchmark.extra_info[name]}")


# ---- size


def stable_diffusion_15() -> tuple[Any, list[Any]]:
    """The UNet of Stable Diffusion 1.5, and its other parts, without values."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    widths = [128, 256, 512, 512]
    text = CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12)
    with torch.device("meta"):
        vae = AutoencoderKL(
            down_block_types=["DownEncoderBlock2D"] * 4,  # type: ignore[reportArgumentType]
            up_block_types=["UpDecoderBlock2D"] * 4,  # type: ignore[reportArgumentType]
            block_out_channels=widths,  # type: ignore[reportArgumentType]
            layers_per_block=2,
        )
        return UNet2DConditionModel(cross_attention_dim=768), [vae, CLIPTextModel(text)]


def test_a_checkpoint_holds_what_is_trained_alone(settings: dict[str, Any], tmp_path: Path) -> None:
    """Measured on the embedded base, computed from shapes for a picture of 512 px on Stable Diffusion 1.5."""
    settings["trainer"]["max_steps"] = settings["model"]["init_args"]["iterations"] = 1
    _, method = fit(settings, tmp_path, [Checkpoints()])
    (file,) = tmp_path.rglob("last.ckpt")
    written, content = file.stat().st_size / 1e6, torch.load(file, weights_only=True)
    held = size_mb(content["state_dict"])
    whole = size_mb(dict(method.named_parameters())) + size_mb(dict(method.encoders["base"].named_parameters()))
    assert held < size_mb(content) < 3 * held + 0.01  # AdamW's two moments beside what is trained
    print(f"embedded: {written:.2f} MB written, {whole:.1f} MB whole")

    unet, others = stable_diffusion_15()
    base = sum(size_mb(part.state_dict()) for part in (unet, *others))
    scores, z = Scores(unet, unet, has_lora=False), 4 * 64 * 64 * 4 / 1e6
    scores.add_fakes(1, method.hparams.rank, method.hparams.alpha)
    trained = z + sum(size_mb(parameter) for parameter in scores.fake_parameters(1))
    assert trained == pytest.approx(0.066 + 797_184 * 4 / 1e6, abs=1e-3)
    print(f"Stable Diffusion 1.5: {3 * trained + z:.2f} MB of {base:.0f} MB, {(3 * trained + z) / base:.2%}")
    assert 3 * trained + z < 0.01 * base
