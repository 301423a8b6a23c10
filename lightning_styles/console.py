"""What the user sees: lines printed once, no adverts, one message for a mistake."""

import logging
import re
import warnings
from collections.abc import Callable
from typing import TypeVar

from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from omegaconf.errors import InterpolationKeyError, OmegaConfBaseException

from lightning_styles.errors import UserError

T = TypeVar("T")

ADVERTS = (
    r".*`srun` command is available.*",
    r".*dataloader is not resumable.*",
    r".*does not have many workers.*",
    r".*LeafSpec.*",
    r".*LightningCLI's args parameter.*",
    r".*litlogger.*",
    r".*litmodels.*",
    r".*exists and is not empty.*",
    r".*dirpath has changed.*",
    r".*smaller than the logging interval.*",
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


def readable(run: Callable[[list[str]], T], arguments: list[str]) -> T:
    """Call `run`, with errors of the config's resolver and of the trainer turned into one sentence.

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
        raise UserError(f"The config cannot be resolved: {str(error).splitlines()[0]}") from error
    except MisconfigurationException as error:
        raise UserError(str(error)) from error
