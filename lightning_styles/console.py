"""What the user sees: lines printed once, no adverts, one message for a mistake."""

import logging
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import lightning
import yaml
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from omegaconf.errors import InterpolationKeyError, OmegaConfBaseException

from lightning_styles.errors import UserError, out_of_memory
from lightning_styles.messages import shorten
from lightning_styles.optional_files import without_tracebacks_of_threads
from lightning_styles.parser import users_mistake

T = TypeVar("T")
REFUSED_BY_CONSTRUCTOR = re.compile("Does not validate against any of the Union|Problem with given class_path")
GO_ON = "with --ckpt_path last it goes on from its last checkpoint"
LIGHTNING = str(Path(lightning.__file__).parent)

ADVERTS = (
    r".*`srun` command is available.*",
    r".*dataloader is not resumable.*",
    r".*does not have many workers.*",
    r".*LeafSpec.*",
    r".*LightningCLI's args parameter.*",
    r".*litlogger.*",
    r".*ModelCheckpoint with manual optimization.*",
    r".*litmodels.*",
    r".*exists and is not empty.*",
    r".*dirpath has changed.*",
    r".*smaller than the logging interval.*",
    r".*callbacks used to create the checkpoint need to be provided.*",
    r".*has `__len__` defined.*",
    r".*module\(s\) in eval mode at the start of training.*",
    r".*You (passed|defined) .* have no `val.*",
)


@rank_zero_only
def say(*lines: str) -> None:
    """Print lines once, whatever the number of processes."""
    for line in lines:
        print(line, flush=True)


def quiet() -> None:
    """Keep Lightning's tips and its notes about normal situations off the console."""
    without_tracebacks_of_threads()
    for pattern in ADVERTS:
        warnings.filterwarnings("ignore", message=pattern)
    for name in ("lightning_styles", "datamodules", "callbacks"):
        own = logging.getLogger(name)
        if not own.handlers:
            own.addHandler(logging.StreamHandler())
            own.setLevel(logging.INFO if rank_zero_only.rank == 0 else logging.WARNING)
    for name in ("lightning.pytorch", "lightning.fabric"):
        for handler in logging.getLogger(name).handlers:
            handler.addFilter(not_lightnings_own)


def not_lightnings_own(record: logging.LogRecord) -> bool:
    """Whether to show a record: not if Lightning itself wrote it just for information.

    One of these is its last word before it kills all ranks because one has died; that one is put in plain words.
    """
    if died := re.search(r"Child process with PID (\d+) terminated with code (-?\d+)", record.getMessage()):
        number, code = died.groups()
        record.msg = f"error: Process {number} of this run has ended with code {code}, so all of it ends; {GO_ON}."
        record.args = None
        return True
    return record.levelno >= logging.WARNING or not record.pathname.startswith(LIGHTNING)


def readable(run: Callable[[list[str]], T], arguments: list[str]) -> T:
    """Call `run`, with errors of the config's resolver, of the trainer and of memory turned into one sentence.

    Raises:
        UserError: in their place.
    """
    quiet()
    try:
        return run(arguments)
    except InterpolationKeyError as error:
        key = re.sub(r".*'\.*([\w.]+)' not found.*", r"\1", str(error).splitlines()[0])
        raise UserError(f"The config refers to ${{{key}}}, but there is no key {key}.") from error
    except OmegaConfBaseException as error:
        first = str(error).splitlines()[0]
        raise UserError(f"A ${{...}} in the config cannot be resolved: {first}; write ${{section.key}}.") from error
    except yaml.YAMLError as error:
        raise UserError(f"The config cannot be read: {str(error).splitlines()[0]}") from error
    except MisconfigurationException as error:
        raise UserError(str(error)) from error
    except ValueError as error:
        if mistake := users_mistake(error):
            raise mistake from None
        if REFUSED_BY_CONSTRUCTOR.match(str(error)):
            raise UserError(f"A value of the config is refused: {shorten(str(error))}.") from error
        raise
    except (RuntimeError, MemoryError) as error:
        if full := out_of_memory(error):
            raise full from error
        raise
