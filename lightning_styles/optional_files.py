"""What a run writes beside its training and can do without: curves, previews, records."""

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import TensorBoardLogger

from lightning_styles.errors import system_error

log = logging.getLogger(__name__)


@contextmanager
def optional(file: str | Path) -> Iterator[None]:
    """Let the run go on, with one line about it, when the system refuses to write `file` within the block."""
    try:
        yield
    except Exception as error:
        cause = system_error(error)
        if cause is None:
            raise
        log.warning("%s cannot be written: %s; the run goes on without it.", file, cause.strerror or cause)


def until_it_fails(method: Callable[..., None]) -> Callable[..., None]:
    """A method of `Curves` that does nothing once the system has refused to write."""

    @wraps(method)
    def careful(curves: "Curves", *arguments: Any, **settings: Any) -> None:
        if not curves.ended:
            with optional(f"The curves in {curves.log_dir}"):
                try:
                    method(curves, *arguments, **settings)
                except Exception:
                    if curves.ended:  # by a method that this one calls, which has told it
                        return
                    curves.ended = True
                    raise

    return careful


class Curves(TensorBoardLogger):
    """The curves of a run for TensorBoard; they end where the disk is full, and the run does not."""

    ended = False

    @property
    def experiment(self) -> Any:  # type: ignore[override]
        """TensorBoard's writer; None once it could not write."""
        found: list[Any] = []
        until_it_fails(lambda curves: found.append(super().experiment))(self)
        return found[0] if found else None

    log_metrics = until_it_fails(TensorBoardLogger.log_metrics)
    log_hyperparams = until_it_fails(TensorBoardLogger.log_hyperparams)
    save = until_it_fails(TensorBoardLogger.save)
    finalize = until_it_fails(TensorBoardLogger.finalize)


def without_tracebacks_of_threads() -> None:
    """Keep TensorBoard's thread from printing one: what it could not write is told by the next call of `Curves`."""
    before = threading.excepthook
    if before.__module__ == __name__:
        return

    def hook(failed: threading.ExceptHookArgs) -> None:
        of_tensorboard = type(failed.thread).__module__.startswith("tensorboard.")
        if not of_tensorboard or not isinstance(failed.exc_value, OSError):
            before(failed)

    threading.excepthook = hook
