"""Training commands: Lightning's command line with this project's rules for configs, runs and resuming."""

import logging
import warnings
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint
from lightning.pytorch.cli import LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.plugins.environments import SLURMEnvironment
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from omegaconf.errors import OmegaConfBaseException

from lightning_styles import runs
from lightning_styles.errors import UserError
from lightning_styles.parser import ConfigFile, StylesParser
from lightning_styles.required_files import missing_files

ADVERTS = (
    r".*`srun` command is available.*",
    r".*dataloader is not resumable.*",
    r".*does not have many workers.*",
    r".*LeafSpec.*",
    r".*LightningCLI's args parameter.*",
    r".*litlogger.*",
    r".*litmodels.*",
    r".*exists and is not empty.*",
    r".*smaller than the logging interval.*",
    r".*find_unused_parameters=True was specified.*",
)


@rank_zero_only
def say(*lines: str) -> None:
    """Print lines once, whatever the number of processes."""
    for line in lines:
        print(line, flush=True)


def quiet() -> None:
    """Keep Lightning's tips and its notes about normal situations off the console."""
    for pattern in ADVERTS:
        warnings.filterwarnings("ignore", message=pattern)
    for name in ("lightning.pytorch", "lightning.fabric", "pytorch_lightning"):
        logging.getLogger(name).setLevel(logging.WARNING)


class StylesTrainer(Trainer):
    """Lightning's trainer with one more command."""

    def prepare(self, model: LightningModule, datamodule: LightningDataModule | None = None) -> None:
        """Compute once what the method needs before fit."""
        prepare = getattr(model, "prepare", None)
        if prepare is None:
            say(f"{type(model).__name__} has nothing to prepare.")
        else:
            prepare(datamodule)


class SaveRunConfig(SaveConfigCallback):
    """Write the resolved config into the run folder; a resumed run keeps the earlier file beside it."""

    def __init__(self, parser: StylesParser, config: Any, **kwargs: Any) -> None:
        super().__init__(parser, config, **{**kwargs, "overwrite": True})

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        folder = trainer.log_dir  # a collective call, so on every rank
        if folder and trainer.is_global_zero and not self.already_saved:
            current = Path(folder) / self.config_filename
            if current.is_file():
                count = len(list(current.parent.glob("config_before_resume_*.yaml")))
                current.rename(current.with_name(f"config_before_resume_{count}.yaml"))
        super().setup(trainer, pl_module, stage)


class StylesCLI(LightningCLI):
    """`fit`, `validate`, `test`, `predict` and `prepare`.

    Files are layered and resolved together, flags win over files, both win over what a checkpoint remembers.
    Every launch has its own folder runs/<experiment>/version_N; resuming from it goes on in the same folder.
    """

    def __init__(self, arguments: list[str]) -> None:
        mode = {"parser_mode": "omegaconf+"}
        self.config_file = first_config(arguments)
        super().__init__(
            LightningModule,
            LightningDataModule,
            save_config_callback=SaveRunConfig,
            trainer_class=StylesTrainer,
            trainer_defaults={"enable_model_summary": False},
            seed_everything_default=0,
            parser_class=StylesParser,
            parser_kwargs={**mode, **{name: dict(mode) for name in self.subcommands()}},
            subclass_mode_model=True,
            subclass_mode_data=True,
            auto_configure_optimizers=False,
            args=arguments,
        )

    # ---- the parser

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        return {**LightningCLI.subcommands(), "prepare": {"model", "datamodule"}}

    def init_parser(self, **kwargs: Any) -> StylesParser:
        parser = self.parser_class(**kwargs)
        parser.add_argument(
            "-c",
            "--config",
            action=ConfigFile,
            help="YAML file of an experiment; give it again to layer files",
        )
        return parser

    def add_arguments_to_parser(self, parser: StylesParser) -> None:
        help_text = "free variables that other keys refer to as ${vars.name}; --vars.name value sets one"
        parser.add_argument("--vars", type=dict[str, Any], default={}, help=help_text)

    # ---- between parsing and building

    @property
    def settings(self) -> Any:
        """The parsed config of the command."""
        return self.config[self.config["subcommand"]]

    def _parse_ckpt_path(self) -> None:
        """Find the checkpoint and say what differs; Lightning would let it overrule files and flags."""
        settings, command = self.settings, self.config["subcommand"]
        if settings.get("model") is None:
            raise UserError("The config names no model: give model.class_path, or a file with --config.")
        self.experiment = self._experiment()
        self.checkpoint: Path | None = None
        self.done = 0
        if not settings.get("ckpt_path"):
            return
        self.checkpoint = runs.find_checkpoint(settings["ckpt_path"], self.experiment)
        settings["ckpt_path"] = self.checkpoint and str(self.checkpoint)
        if self.checkpoint is None:
            say(f"No checkpoint in {self.experiment} yet: starting anew.")
            return
        content = runs.read_checkpoint(self.checkpoint)
        self.done = content.get("global_step", 0)
        self._compare(content, command)

    def _experiment(self) -> Path:
        settings = self.settings
        name = runs.run_name(self.config_file, settings["model"]["class_path"])
        return Path(settings["trainer"]["default_root_dir"] or runs.ROOT) / name

    def _compare(self, content: dict[str, Any], command: str) -> None:
        before = runs.remembered(content, Path(str(self.checkpoint)))
        now = yaml_tree(self._parser(command), self.settings)
        classes = [tree.get("model", {}).get("class_path") for tree in (before, now)]
        if classes[0] and classes[0] != classes[1]:
            raise UserError(f"{self.checkpoint} holds a {classes[0]}, the config asks for {classes[1]}.")
        if command != "fit":
            before = {key: before[key] for key in before if key == "model"}
        say(f"From {self.checkpoint}, {self.done} iterations done.")
        say(*(f"  changed  {line}" for line in runs.differences(before, now)))

    def before_instantiate_classes(self) -> None:
        trainer = self.settings["trainer"]
        check_devices(trainer["accelerator"], trainer["devices"])
        if rank_zero_only.rank == 0:
            missing = missing_files(yaml_tree(self._parser(self.subcommand), self.settings))
            if missing:
                raise UserError("\n".join(missing))

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        config = self._get(self.config_init, "trainer")
        if config["logger"] is None or config["logger"] is True:
            kwargs["logger"] = TensorBoardLogger(
                self.experiment.parent, self.experiment.name, self._folder_name()
            )
        kwargs["default_root_dir"] = config["default_root_dir"] or str(self.experiment)
        callbacks = config["callbacks"] or []
        if config["enable_checkpointing"] is not False and not any(
            isinstance(c, Checkpoint) for c in callbacks
        ):
            kwargs["callbacks"] = [*callbacks, ModelCheckpoint(filename="last", enable_version_counter=False)]
        if SLURMEnvironment.detect():  # Lightning's own requeue saves in the middle of an iteration
            plugins = config["plugins"] or []
            plugins = plugins if isinstance(plugins, list) else [plugins]
            kwargs["plugins"] = [*plugins, SLURMEnvironment(auto_requeue=False)]
        return super().instantiate_trainer(**kwargs)

    def _folder_name(self) -> str:
        resumed = (
            runs.run_folder_of(self.checkpoint) if self.checkpoint and self.subcommand == "fit" else None
        )
        if resumed and resumed.parent == self.experiment.absolute():
            return resumed.name
        return runs.next_folder(self.experiment, str(self.subcommand))

    # ---- running

    def _run_subcommand(self, subcommand: str) -> None:
        steps = self.trainer.max_steps
        if subcommand == "fit" and 0 < steps <= self.done:
            say(f"Nothing to do: {self.done} of {steps} iterations are done.")
            say(f"To go on: --ckpt_path {self.checkpoint} --trainer.max_steps {2 * steps}")
            return
        if subcommand != "prepare":
            say(*self.opening_lines())
        try:
            super()._run_subcommand(subcommand)
        except SystemExit:
            if self.trainer.interrupted:  # Lightning turns Ctrl-C into exit code 1
                raise KeyboardInterrupt from None
            raise
        say(*self.closing_lines())

    def opening_lines(self) -> list[str]:
        """What runs, on which device, how large the global batch is, and where it writes."""
        model, trainer = self.model, self.trainer
        device = trainer.strategy.root_device.type
        processes = f"{trainer.world_size} process{'es' if trainer.world_size > 1 else ''}"
        parts = [f"{self.subcommand}: {type(model).__name__} on {device}, {processes}"]
        batch = getattr(self.datamodule, "batch_size", None)
        if batch is not None:
            accumulate = getattr(model, "accumulate", 1)
            count = trainer.world_size
            parts.append(
                f"global batch {batch * count * accumulate} = {count} x {batch} x {accumulate} accumulated"
            )
        if self.subcommand == "fit" and trainer.max_steps > 0:
            parts.append(f"iterations {self.done} to {trainer.max_steps}")
        lines = [", ".join(parts)]
        if self.subcommand == "fit" and trainer.log_dir:
            lines.append(f"Run folder: {trainer.log_dir}  (watch: tensorboard --logdir {self.experiment})")
        return [*lines, *getattr(model, "summary_lines", list)()]

    def closing_lines(self) -> list[str]:
        """Where the results are and what to run next."""
        own = list(getattr(self.model, "closing_lines", list)())
        folder = self.trainer.log_dir
        if self.subcommand != "fit" or folder is None:
            return own or [f"Done: {self.subcommand}. Logs: {folder}"]
        checkpoint = getattr(self.trainer.checkpoint_callback, "last_model_path", "") or getattr(
            self.trainer.checkpoint_callback, "best_model_path", ""
        )
        lines = [f"Results: {folder}", *own]
        if checkpoint:
            place = relative(checkpoint)
            lines.append(f"Checkpoint: {place}")
            lines.append(
                f"Next: python -m lightning_styles test --config {folder}/config.yaml --ckpt_path {place}"
            )
        return lines


def first_config(arguments: list[str]) -> Path | None:
    """The first config file on the command line, after which the experiment is named."""
    for word, following in zip(arguments, [*arguments[1:], ""], strict=True):
        if word in ("-c", "--config"):
            return Path(following)
        if word.startswith("--config="):
            return Path(word.removeprefix("--config="))
    return None


def relative(path: str) -> str:
    """`path` from the current folder where it lies below it."""
    try:
        return str(Path(path).relative_to(Path.cwd()))
    except ValueError:
        return path


def yaml_tree(parser: StylesParser, settings: Any) -> dict[str, Any]:
    """The config as plain values, as the saved YAML file holds it."""
    import yaml

    return yaml.safe_load(parser.dump(settings, skip_none=False, skip_validation=True, format="yaml"))


def check_devices(accelerator: Any, devices: Any) -> None:
    """Refuse more GPUs than there are, before anything is built.

    Raises:
        UserError: naming how many are visible.
    """
    count = torch.cuda.device_count()
    wants_gpu = accelerator in ("gpu", "cuda") or (accelerator == "auto" and count > 0)
    if not wants_gpu or torch.backends.mps.is_available():
        return
    if count == 0:
        raise UserError(
            f"trainer.accelerator is {accelerator}, but PyTorch sees no GPU here; use cpu or auto."
        )
    asked = int(devices) if str(devices).isdigit() else 0
    if asked > count:
        raise UserError(
            f"trainer.devices is {asked}, but PyTorch sees {count} GPU(s) here; ask for at most {count}."
        )


def main(arguments: list[str]) -> int:
    """Run a training command.

    Args:
        arguments: the command and its options.

    Returns:
        The exit code.
    """
    quiet()
    try:
        StylesCLI(arguments)
    except OmegaConfBaseException as error:
        text = str(error).strip().splitlines()[0]
        raise UserError(f"The config refers to something that is not there: {text}") from error
    except MisconfigurationException as error:
        raise UserError(str(error)) from error
    return 0
