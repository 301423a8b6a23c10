"""Training commands: Lightning's command line with this project's rules for configs, runs and resuming."""

import shlex
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ActionConfigFile
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.plugins.environments import ClusterEnvironment
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from callbacks.completion import Unfinished, unfinished
from callbacks.interruption import (
    Interrupted,
    InterruptedPreparation,
    without_lightnings_handlers,
)
from lightning_styles import runs
from lightning_styles.batches import check_data
from lightning_styles.checkpoint_fields import check_resumable
from lightning_styles.checkpoint_io import unsaved
from lightning_styles.checks import check_method, check_settings, check_state_keys
from lightning_styles.console import readable, say
from lightning_styles.devices import check_devices, check_modes
from lightning_styles.errors import UserError
from lightning_styles.files import check_writable
from lightning_styles.home import at_home
from lightning_styles.launches import holding
from lightning_styles.layers import layered, texts_like_null
from lightning_styles.nonfinite import last_good
from lightning_styles.optional_files import Curves
from lightning_styles.parser import StylesParser
from lightning_styles.processes import (
    check_processes,
    count,
    first_line,
    join_in_time,
    lost_process,
    strategy_for,
)
from lightning_styles.progress import check_length, finished
from lightning_styles.prompts import check_lengths
from lightning_styles.required_files import foreign_classes, import_class, missing_files
from lightning_styles.trainer import SaveRunConfig, StylesTrainer, with_defaults, with_plugins


class StylesCLI(LightningCLI):
    """`fit`, `validate`, `test`, `predict` and `prepare`.

    Files are layered and resolved together, flags win over files, both win over what a checkpoint remembers.
    Every launch has its own folder runs/<experiment>/version_N; resuming from it goes on in the same folder.
    """

    def __init__(self, arguments: list[str]) -> None:
        mode = {"parser_mode": "omegaconf+"}
        self.arguments = arguments
        self.config_file = first_config(arguments)
        self.checkpoint: Path | None = None
        self.done = 0  # iterations in the checkpoint
        self.layers = layered(arguments[1:])
        with ExitStack() as self.leaving:
            super().__init__(
                LightningModule,
                save_config_callback=SaveRunConfig,
                trainer_class=StylesTrainer,
                trainer_defaults={"enable_model_summary": False},
                seed_everything_default=0,
                parser_class=StylesParser,
                parser_kwargs={**mode, **{name: dict(mode) for name in self.subcommands()}},
                subclass_mode_model=True,
                subclass_mode_data=True,
                auto_configure_optimizers=False,
                args=[*arguments[:1], *self.layers.as_words()],
            )

    # ---- the parser

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        return {**LightningCLI.subcommands(), "prepare": {"model", "datamodule"}}

    def init_parser(self, **kwargs: Any) -> StylesParser:
        parser = StylesParser(**kwargs)
        help_text = "YAML file of an experiment; give it again to layer files"
        parser.add_argument("-c", "--config", action=ActionConfigFile, help=help_text)
        return parser

    def add_arguments_to_parser(self, parser: StylesParser) -> None:  # type: ignore[override]
        help_text = "free variables that other keys refer to as ${vars.name}; --vars.name value sets one"
        parser.add_argument("--vars", type=dict[str, Any], default={}, help=help_text)
        help_text = "run folder, version_N or job_N: fit starts there, or goes on when it holds a checkpoint"
        parser.add_argument("--run", type=str | None, default=None, help=help_text)

    def _set_seed(self) -> None:
        try:
            super()._set_seed()
        except ValueError as error:
            raise UserError(f"seed_everything: {error}.") from error

    # ---- between parsing and building

    @property
    def settings(self) -> Any:
        """The parsed config of the command."""
        return self.config[self.config["subcommand"]]

    @property
    def values(self) -> dict[str, Any]:
        """The parsed config of the command as plain values, as the saved YAML file holds it."""
        parser = self._parser(self.config["subcommand"])
        return yaml.safe_load(parser.dump(self.settings, skip_unset=False, skip_validation=True, format="yaml"))

    @property
    def experiment(self) -> Path:
        """The folder of all runs of this experiment."""
        name = runs.run_name(self.config_file, self.settings["model"]["class_path"])
        return Path(self.settings["trainer"]["default_root_dir"] or runs.ROOT) / name

    def parse_arguments(self, parser: StylesParser, args: Any) -> None:  # type: ignore[override]
        super().parse_arguments(parser, args)
        self._spell_out()
        at_home(self.settings)
        name = self.settings.get("run")
        if name is None or "ckpt_path" not in self.settings:
            return
        if not runs.RUN_FOLDER.fullmatch(name):
            raise UserError(f"--run is '{name}'; expected version_N or job_N with a number N.")
        folder = self.experiment / name
        if self.config["subcommand"] != "fit" or runs.newest_checkpoint(folder):
            self.settings["ckpt_path"] = str(folder)  # also when the run itself began from another checkpoint

    def _spell_out(self) -> None:
        """Have texts such as #x as they were typed, and one callback as a list of one."""
        for parts, text in texts_like_null(self.layers.tree):
            if self.settings.get(".".join(parts), "") is None:
                self.settings[".".join(parts)] = text
        callbacks = self.settings["trainer"]["callbacks"]
        if callbacks is not None and not isinstance(callbacks, list):
            self.settings["trainer"]["callbacks"] = [callbacks]

    def _parse_ckpt_path(self) -> None:
        """Find the checkpoint and say what differs; Lightning would let it overrule files and flags."""
        given = self.settings.get("ckpt_path")
        if not given:
            return
        self.checkpoint = runs.find_checkpoint(given, self.experiment)
        self.settings["ckpt_path"] = self.checkpoint and str(self.checkpoint)
        if self.checkpoint is None:
            say(f"No checkpoint in {self.experiment} yet: starting anew.")
            return
        content = runs.read_checkpoint(self.checkpoint)
        self.done = content.get("global_step", 0)
        before, now = runs.remembered(content, self.checkpoint), self.values
        held, asked = ((tree.get("model") or {}).get("class_path") for tree in (before, now))
        fit, other = self.config["subcommand"] == "fit", held and held != asked
        if fit and held:
            check_resumable(content, self.checkpoint)
        others = () if fit or not asked else getattr(import_class(asked), "reads", ())
        if other and held not in others:
            raise UserError(f"{self.checkpoint} holds a {held}, the config asks for {asked}.")
        if not fit:
            before = {key: before[key] for key in before if key == "model"}
        say(f"From {self.checkpoint}, {self.done} iterations done.")
        if not other:
            say(*(f"  changed  {line}" for line in runs.differences(before, now)))

    def before_instantiate_classes(self) -> None:
        check_lengths(self.settings.items())
        say(*self.layers.notes)
        check_settings(self.values)
        check_method(self.values, self.config["subcommand"], untrained=self.checkpoint is None)
        trainer = self.settings["trainer"]
        if self.config["subcommand"] == "fit":
            check_length(trainer)
        check_modes(trainer)
        check_devices(trainer["accelerator"], trainer["devices"])
        missing = missing_files(self.values, self.config["subcommand"]) if rank_zero_only.rank == 0 else []
        if missing:
            raise UserError("\n".join(missing))
        check_writable(self.experiment)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        check_data(self.model, self.datamodule, str(self.subcommand))
        config = self._get(self.config_init, "trainer")
        plugins = config["plugins"] if isinstance(config["plugins"], list) else [config["plugins"]]
        if not any(isinstance(plugin, ClusterEnvironment) for plugin in plugins):
            check_processes(count(config["accelerator"], config["devices"]), config["num_nodes"])
        folder = self._folder_name()
        self._claim(self.experiment / folder)
        if config["logger"] is None or config["logger"] is True:
            kwargs["logger"] = Curves(self.experiment.parent, self.experiment.name, folder)
        # Each run its own: without a logger files go there, and on SLURM Lightning loads any hpc_ckpt_N.ckpt in it.
        kwargs["default_root_dir"] = str(self.experiment / folder)
        kwargs["strategy"] = strategy_for(
            config["strategy"], config["accelerator"], config["devices"], config["num_nodes"]
        )
        kwargs["callbacks"] = with_defaults(
            config["callbacks"] or [],
            saving=config["enable_checkpointing"] is not False,
            bar=config["enable_progress_bar"] is not False,
        )
        check_state_keys(kwargs["callbacks"])
        try:
            kwargs["plugins"] = with_plugins(config["plugins"] or [])
            trainer = super().instantiate_trainer(**kwargs)
        except (TypeError, ValueError, ImportError) as error:  # settings that parse but that the trainer does not know
            raise UserError(f"The trainer refuses its settings: {error}") from error
        without_lightnings_handlers(trainer)
        join_in_time(trainer)
        return trainer

    def _folder_name(self) -> str:
        """The folder of the run that goes on, or a new one that no launch beside this one gets too."""
        command = str(self.subcommand)
        if self.settings.get("run") and command == "fit":
            return self.settings["run"]
        if self.checkpoint and command == "fit":
            resumed = runs.run_folder_of(self.checkpoint)
            if resumed and resumed.parent == self.experiment.absolute():
                return resumed.name
        if rank_zero_only.rank != 0:  # the name is what rank 0 broadcasts
            return runs.next_folder(self.experiment, command)
        return runs.claim_folder(self.experiment, command)

    def _claim(self, folder: Path) -> None:
        """Keep the run's folder for this launch; it goes again if nothing is written into it."""
        if rank_zero_only.rank == 0:
            self.leaving.callback(runs.drop_empty, folder)
            if self.subcommand == "fit":
                self.leaving.enter_context(holding(folder))

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
        except Interrupted as stop:
            say(*self.interrupted_lines(stop))
            raise
        except Unfinished as stop:
            raise self._with_command(stop) from None
        except RuntimeError as error:
            if self.trainer.world_size > 1 and lost_process(error):
                raise self._lost(error) from error
            raise
        except SystemExit:
            if self.trainer.interrupted:  # Lightning turns Ctrl-C into exit code 1
                raise KeyboardInterrupt from None
            raise
        if error := unsaved(self.trainer):  # it was let pass while more checkpoints were to come
            raise error
        if subcommand == "fit" and not finished(self.trainer):  # it had nothing to begin with
            raise self._with_command(unfinished(self.trainer, self.checkpoint))
        say(*self.closing_lines())

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        words = super()._prepare_subcommand_kwargs(subcommand)
        if subcommand == "predict" and words.get("return_predictions") is None:
            words["return_predictions"] = False  # the pictures are on disk; keeping them all fills the memory
        return words

    def opening_lines(self) -> list[str]:
        """What runs, on which device, how large the global batch is, and where it writes."""
        model, trainer, count = self.model, self.trainer, self.trainer.world_size
        device = trainer.strategy.root_device.type
        parts = [f"{self.subcommand}: {type(model).__name__} on {count} x {device}"]
        batch = getattr(self.datamodule, "batch_size", None)
        if isinstance(batch, int):
            accumulate = getattr(model, "accumulate", 1)
            total = batch * count * accumulate
            parts.append(f"global batch {total} = devices {count} x batch {batch} x accumulate {accumulate}")
        if self.subcommand == "fit" and trainer.max_steps > 0:
            parts.append(f"iterations {self.done} to {trainer.max_steps}")
        lines = [", ".join(parts)]
        if self.subcommand == "fit" and trainer.log_dir:
            lines.append(f"Run folder: {trainer.log_dir}  (watch: tensorboard --logdir {self.experiment})")
        if foreign := foreign_classes(self.values):
            lines.append(f"Code from outside this project runs: {', '.join(foreign)}")
        return [*lines, *getattr(model, "summary_lines", list)()]

    def interrupted_lines(self, stop: Interrupted) -> list[str]:
        """Where an interrupted run is saved and how it goes on."""
        if isinstance(stop, InterruptedPreparation):
            again = shlex.join(["python", "-m", "lightning_styles", *self.arguments])
            return [f"Interrupted by {stop.signal.name} while preparing; what is made is kept.", f"Go on: {again}"]
        first = f"Interrupted by {stop.signal.name} after iteration {stop.iterations} of {self.trainer.max_steps}"
        if stop.checkpoint is None:
            return [f"{first}; nothing is saved, because no callback saves checkpoints."]
        return [f"{first}; saved {relative(str(stop.checkpoint))}", self._go_on(stop.checkpoint)]

    def _go_on(self, checkpoint: Path, words: Sequence[str] = ()) -> str:
        """The command with which the run goes on from `checkpoint`, with other options behind it."""
        again = self.arguments if self.settings.get("run") else resuming(self.arguments, relative(str(checkpoint)))
        return f"Go on: {shlex.join(['python', '-m', 'lightning_styles', *again, *words])}"

    def _lost(self, error: RuntimeError) -> UserError:
        """What to tell when another process of the run is gone."""
        good = last_good(self.trainer)
        again = f"the last checkpoint is {good}\n{self._go_on(good)}" if good else "no checkpoint was written."
        return UserError(f"Another process of this run has ended or is out of reach ({first_line(error)}); {again}")

    def _with_command(self, stop: Unfinished) -> Unfinished:
        """The same with how to go on."""
        if stop.checkpoint is None:
            return stop
        text = str(stop).replace(str(stop.checkpoint), relative(str(stop.checkpoint)))
        return Unfinished(f"{text}\n{self._go_on(stop.checkpoint, stop.words)}", stop.checkpoint, stop.words)

    def closing_lines(self) -> list[str]:
        """Where the results are and what to run next."""
        own, folder = list(getattr(self.model, "closing_lines", list)()), self.trainer.log_dir
        if self.subcommand != "fit" or folder is None:
            return own or [f"Done: {self.subcommand}."]
        saver = self.trainer.checkpoint_callback
        saved = getattr(saver, "last_model_path", "") or getattr(saver, "best_model_path", "")
        lines = [f"Results: {folder}"]
        if saved:
            lines.append(f"Checkpoint: {relative(saved)}")
            options = f"--config {folder}/config.yaml --ckpt_path {relative(saved)}"
            own = own or [f"Next: python -m lightning_styles test {options}"]
        return [*lines, *own]


class ParsedCLI(StylesCLI):
    """Parses a command line and stops there."""

    def _parse_ckpt_path(self) -> None:
        pass

    def _set_seed(self) -> None:
        pass

    def before_instantiate_classes(self) -> None:
        pass

    def instantiate_classes(self) -> None:
        pass

    def _run_subcommand(self, subcommand: str) -> None:
        pass


def first_config(arguments: list[str]) -> Path | None:
    """The first config file on the command line, after which the experiment is named."""
    for word, following in zip(arguments, [*arguments[1:], ""], strict=True):
        if word in ("-c", "--config"):
            return Path(following)
        if word.startswith("--config="):
            return Path(word.removeprefix("--config="))
    return None


def resuming(arguments: list[str], checkpoint: str) -> list[str]:
    """`arguments` with `checkpoint` as the one to go on from."""
    kept: list[str] = []
    for word, before in zip(arguments, ["", *arguments], strict=False):
        if before != "--ckpt_path" and not word.startswith("--ckpt_path"):
            kept.append(word)
    return [*kept, "--ckpt_path", checkpoint]


def relative(path: str) -> str:
    """`path` from the current folder where it lies below it."""
    return str(Path(path).relative_to(Path.cwd())) if Path(path).is_relative_to(Path.cwd()) else path


def parse_only(arguments: list[str]) -> dict[str, Any]:
    """The config of a command line as plain values; nothing is built."""
    return readable(ParsedCLI, arguments).values


def main(arguments: list[str]) -> int:
    """Run a training command.

    Args:
        arguments: the command and its options.

    Returns:
        The exit code.
    """
    readable(StylesCLI, arguments)
    return 0
