"""What callbacks and checkpoints cost an iteration of `fit`, and how large a checkpoint is beside the whole model.

`pytest tests/benchmarks/test_overhead.py --benchmark-only -s` runs the embedded SMS experiment with and without them,
all in turn and in one process. What lies between the training steps is timed by itself, because on a busy machine the
steps differ by more; the CPU's time is the steadier one, the passing time has the waiting for the disk in it.
"""

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor

from callbacks import EMA, Checkpoints, Previews
from lightning_styles.checkpoint_io import size_mb
from lightning_styles.cli import parse_only
from lightning_styles.diffusion.scores import Scores
from lightning_styles.methods.sms import SMS
from lightning_styles.trainer import with_defaults, with_plugins
from tests.micro import quiet_trainer

CONFIG = Path(__file__).resolve().parents[2] / "configs/tiny/sms.yaml"
ROUNDS = 2
WARM_UP = 20  # iterations that are not timed; the others hold five previews and a checkpoint


def build(spec: dict[str, Any]) -> Any:
    """The object of a class_path and its init_args."""
    module, _, name = spec["class_path"].rpartition(".")
    return getattr(import_module(module), name)(**spec.get("init_args", {}))


def now() -> Tensor:
    """Passing time and the CPU's, in ms."""
    return 1e3 * torch.tensor([perf_counter(), process_time()], dtype=torch.float64)


class Clock(L.Callback):
    """Times training steps and what lies between them, all callbacks included, after the warm-up.

    Attributes:
        step, between: mean passing time and CPU time, in ms.
    """

    def __init__(self) -> None:
        self.starts: list[Tensor] = []
        self.ends: list[Tensor] = []

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        training_step = pl_module.training_step

        def timed(*arguments: Any) -> None:
            self.starts.append(now())
            training_step(*arguments)
            self.ends.append(now())

        pl_module.training_step = timed  # type: ignore[method-assign]

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        starts, ends = torch.stack([*self.starts, now()])[WARM_UP:], torch.stack(self.ends)[WARM_UP:]
        self.step, self.between = (ends - starts[:-1]).mean(0), (starts[1:] - ends).mean(0)


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
    clocks: dict[str, list[Clock]] = {name: [] for name in sets}

    def one_of_each() -> None:
        for name, callbacks in sets.items():
            clocks[name].append(fit(settings, tmp_path / name / str(len(clocks[name])), callbacks())[0])

    benchmark.pedantic(one_of_each, rounds=ROUNDS)
    between = {name: torch.stack([clock.between for clock in runs]).amin(0) for name, runs in clocks.items()}
    step = torch.stack([clock.step for runs in clocks.values() for clock in runs]).amin(0)
    bare = step + between["none"]
    for name, ms in between.items():
        (passing, cpu), (ratio, cpu_ratio) = ms.tolist(), ((step + ms) / bare).tolist()
        words = f"{passing:.2f} ms between steps, {ratio:.3f} x none; CPU {cpu:.2f} ms, {cpu_ratio:.3f} x none"
        benchmark.extra_info[name] = words
        print(f"{name}: {words}", flush=True)
    print("none: {:.1f} ms/iteration, CPU {:.1f} ms".format(*bare.tolist()), flush=True)


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
