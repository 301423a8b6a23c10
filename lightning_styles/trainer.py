"""The trainer of a command: what it has beside the settings of a config."""

from pathlib import Path
from typing import Any

from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, ProgressBar
from lightning.pytorch.cli import SaveConfigCallback
from lightning.pytorch.plugins import CheckpointIO
from lightning.pytorch.plugins.environments import ClusterEnvironment, LightningEnvironment, SLURMEnvironment

from callbacks.checkpoints import Checkpoints
from callbacks.completion import Completion
from callbacks.interruption import Interruption
from lightning_styles.checkpoint_io import WholeFiles
from lightning_styles.console import say
from lightning_styles.errors import UserError
from lightning_styles.files import replacing
from lightning_styles.parser import StylesParser
from lightning_styles.processes import started_by_slurm
from lightning_styles.progress import IterationBar


class StylesTrainer(Trainer):
    """Lightning's trainer with one more command."""

    def prepare(self, model: LightningModule, datamodule: LightningDataModule | None = None) -> None:
        """Compute once what the method needs before fit; fit does it by itself when it is missing."""
        prepare = getattr(model, "prepare", None)
        if prepare is None:
            say(f"{type(model).__name__} has nothing to prepare: run fit.")
        else:
            model.trainer = self  # says the device and the precision
            prepare(datamodule)


class SaveRunConfig(SaveConfigCallback):
    """Write the resolved config into the run folder; a resumed run keeps an earlier one that differs beside it."""

    def __init__(self, parser: StylesParser, config: Any, **kwargs: Any) -> None:
        config = config.clone()
        config["run"] = None  # where this launch writes is no setting of the experiment
        super().__init__(parser, config, **{**kwargs, "save_to_log_dir": False})

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.folder = trainer.log_dir  # a collective call, so on every rank
        self.check_ranks(trainer)
        super().setup(trainer, pl_module, stage)

    def check_ranks(self, trainer: Trainer) -> None:
        """Refuse to go on when `last` means different checkpoints to the ranks: another launch has just saved one.

        Raises:
            UserError: naming both.
        """
        own = self.config.get("ckpt_path")
        first = trainer.strategy.broadcast(own)
        if own != first:
            raise UserError(f"One process goes on from {own}, the first one from {first}: name the file, not 'last'.")

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write config.yaml in one go: a run that is killed meanwhile has the old one or the new one."""
        if not self.folder:
            return
        path = Path(self.folder) / self.config_filename
        text = self.parser.dump(self.config, skip_none=False)
        # Whatever it was changed into is kept, also what is no text.
        before = path.read_text(encoding="utf-8", errors="backslashreplace") if path.is_file() else text
        if before != text:
            count = len(list(path.parent.glob("config_before_resume_*.yaml")))
            write_whole(path.with_name(f"config_before_resume_{count}.yaml"), before)
        write_whole(path, text)


def with_defaults(callbacks: list[Any], saving: bool, bar: bool) -> list[Any]:
    """The callbacks of a config plus a checkpoint and a progress bar, unless it has its own or wants none.

    What ends a run before its last iteration comes first, what saves a run comes last.
    """
    extra: list[Any] = []
    if saving and not any(isinstance(callback, Checkpoint) for callback in callbacks):
        extra.append(Checkpoints())
    if bar and not any(isinstance(callback, ProgressBar) for callback in callbacks):
        extra.append(IterationBar())
    if saving:
        extra.append(Interruption())
    return [Completion(), *callbacks, *extra]


def with_plugins(plugins: Any) -> list[Any]:
    """The plugins of a config plus whole checkpoints, and SLURM without Lightning's own requeue.

    That one saves in the middle of an iteration, from where a run cannot go on exactly.
    """
    plugins = plugins if isinstance(plugins, list) else [plugins]
    extra: list[Any] = []
    if not any(isinstance(plugin, CheckpointIO) for plugin in plugins):
        extra.append(WholeFiles())
    if SLURMEnvironment.detect() and not any(isinstance(plugin, ClusterEnvironment) for plugin in plugins):
        extra.append(SLURMEnvironment(auto_requeue=False) if started_by_slurm() else LightningEnvironment())
    return [*plugins, *extra]


def write_whole(path: Path, text: str) -> None:
    """Write a text file that is never seen half-written."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
