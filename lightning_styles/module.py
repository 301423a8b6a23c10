"""StyleModule: the one base class of all methods.

One *iteration* is what the paper calls one, whatever the number of optimizers: the first optimizer is the clock, so
`trainer.global_step` equals the iterations done. Randomness is counter-based, checkpoints hold what is trained.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, ClassVar

import lightning as L
import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from lightning_styles import noise
from lightning_styles.batches import Needs
from lightning_styles.checkpoint_fields import CHECKPOINT_KEY, check_optimizers
from lightning_styles.errors import SharedError, UserError, at_least
from lightning_styles.nonfinite import NonFinite, bad_tensors, became_nonfinite, way_out
from lightning_styles.precision import frozen_dtype, keep_trained_in_float32

log = logging.getLogger(__name__)


@contextmanager
def uncounted(optimizer: LightningOptimizer) -> Iterator[None]:
    """Step `optimizer` with all of Lightning's hooks and precision plugins but without advancing `global_step`."""
    before, after = optimizer._on_before_step, optimizer._on_after_step
    optimizer._on_before_step = optimizer._on_after_step = lambda: None  # type: ignore[method-assign]
    try:
        yield
    finally:
        optimizer._on_before_step, optimizer._on_after_step = before, after  # type: ignore[method-assign]


class StyleModule(L.LightningModule):
    """A method: manual optimization, one clock, named optimizers, weighted named losses, lean checkpoints.

    Subclasses build their networks in `configure_model`, say which tensors are trained in `kept`, return named
    optimizers from `named_optimizers` (the first is the clock) and call `optimize(name, loss)` in `training_step`.

    Attributes:
        iterations: length of a run, the paper's N.
        iteration: the current iteration, 0-based; constant during a training step.
        base_models: name of each frozen base -> sha256, stored in checkpoints instead of the weights.
        finished: names of pictures that `predict` may skip because their result is already written.
        terms: weights of the loss terms in use, which `fit` tells.
        stops_at_nonfinite: whether a NaN or infinite loss ends the run; a callback may take that over.
    """

    evaluations: dict[str, Any]

    def __init__(
        self,
        *,
        iterations: int,
        seed: int = 0,
        clip_norm: float | None = None,
        metrics: dict[str, str] | None = None,
    ) -> None:
        super().__init__()
        at_least(1, iterations=iterations)
        at_least(0, clip_norm=clip_norm)
        self.automatic_optimization = False
        self.strict_loading = False  # frozen bases are not in checkpoints; on_load_checkpoint checks the rest strictly
        self.iterations = iterations
        self.seed = seed
        self.clip_norm = clip_norm
        self.metrics = metrics or {}
        self.iteration = 0
        self.base_models: dict[str, str] = {}
        self.finished: set[str] = set()
        self.stops_at_nonfinite = True
        self.terms: dict[str, float] = {}
        self._nonfinite = NonFinite()
        self._optimizer_index: dict[str, int] = {}
        self._resumed: dict[str, Any] | None = None  # the checkpoint, until its optimizers are looked at
        self._alone: dict[str, tuple[Optimizer, LambdaLR | None]] | None = None

    @property
    def hparams(self) -> Any:  # type: ignore[override]
        """The arguments of the constructor, by name."""
        return super().hparams

    # ---- what a method defines

    formats: ClassVar[dict[str, str]] = {}  # what `export` can write -> the file's or folder's usual name
    fit_only: ClassVar[tuple[str, ...]] = ()  # settings whose files fit reads, and no command on a trained method
    folders: ClassVar[tuple[str, ...]] = ()  # settings that name folders it writes to
    reads: ClassVar[tuple[str, ...]] = ()  # class paths of methods whose checkpoints it takes in all commands but fit
    needs: ClassVar[dict[str, tuple[Needs, ...]]] = {}  # command -> what it reads of its data, the one or the other
    trained_first: ClassVar[bool] = False  # all commands but fit and prepare need a checkpoint
    own_size: ClassVar[bool] = False  # `stylize` leaves photos as large as they are

    def kept(self, name: str) -> bool:
        """Whether the parameter or buffer `name` belongs in checkpoints (a pure function of the name)."""
        return True

    def named_optimizers(self) -> dict[str, tuple[Optimizer, LambdaLR | None]]:
        """Optimizers with their schedulers by name; the first one is the clock."""
        raise NotImplementedError

    def preview(self) -> dict[str, Tensor]:
        """Named columns of pictures, (B, 3, H, W) in [-1, 1], that show the state of the run."""
        return {}

    def result_name(self, name: str) -> str:
        """What `predict` calls the result of the picture `name`."""
        return name

    def export(self, path: Path, layout: str) -> None:
        """Write what was trained to the file or folder `path`, in a layout that is a key of `formats`."""
        raise NotImplementedError

    def summary_lines(self) -> list[str]:
        """What to tell the user when a command begins."""
        weights = ", ".join(f"{name} {weight:g}" for name, weight in self.terms.items())
        return [f"Weights: {weights}"] if weights else []

    def closing_lines(self) -> list[str]:
        """What to tell the user when a command ends: where results are and what to run next."""
        return []

    @classmethod
    def required_models(cls, init_args: dict[str, Any]) -> list[tuple[str, str]]:
        """(name or path, kind) of every pretrained file that a run with `init_args` reads."""
        from lightning_styles.metrics.networks import required_models

        return required_models(init_args.get("metrics") or {})

    @property
    def run_device(self) -> torch.device:
        """The device of the run, known before the networks move there; the CPU outside of a trainer."""
        return torch.device("cpu") if self._trainer is None else self.trainer.strategy.root_device

    def frozen_dtype(self, precision: str, half: torch.dtype = torch.bfloat16) -> torch.dtype:
        """Precision of frozen weights in this run, see `precision.frozen_dtype`."""
        return frozen_dtype(precision, self._trainer, half)

    def setup(self, stage: str) -> None:
        keep_trained_in_float32(self.trainer)

    # ---- optimization

    def configure_optimizers(self) -> tuple[list[Optimizer], list[dict[str, Any]]]:  # type: ignore[override]
        named = self.named_optimizers()
        self._optimizer_index = {name: i for i, name in enumerate(named)}
        self._schedulers = {name: scheduler for name, (_, scheduler) in named.items() if scheduler is not None}
        schedulers = [{"scheduler": s, "name": f"lr/{name}"} for name, s in self._schedulers.items()]
        if self._resumed is not None:
            check_optimizers(self._resumed, named)
            self._resumed = None
        return [optimizer for optimizer, _ in named.values()], schedulers

    def optimize(self, name: str, loss: Tensor, gradient: Tensor | None = None, *, ends_iteration: bool = True) -> None:
        """One step of the optimizer `name`: zero_grad, backward, clip, step, scheduler.

        Args:
            name: a key of `named_optimizers`.
            loss: scalar loss; or the trained tensor itself when its gradient is known in closed form.
            gradient: closed-form gradient with the shape of `loss`; None for a scalar loss.
            ends_iteration: False for all but the last step that the clock's optimizer takes in an iteration.
        """
        if self._alone is not None:
            optimizer, scheduler = self._alone[name]
            optimizer.zero_grad()
            loss.backward(gradient)
            if self.clip_norm is not None:
                trained = [p for group in optimizer.param_groups for p in group["params"]]
                torch.nn.utils.clip_grad_norm_(trained, self.clip_norm)
            optimizer.step()
        else:
            scheduler = self._schedulers.get(name)
            index = self._optimizer_index[name]
            self._optimize_in_fit(index, loss, gradient, counts=index == 0 and ends_iteration)
        if scheduler is not None:
            scheduler.step()

    def _optimize_in_fit(self, index: int, loss: Tensor, gradient: Tensor | None, counts: bool) -> None:
        optimizers = self.optimizers(use_pl_optimizer=True)
        optimizer: Any = optimizers[index] if isinstance(optimizers, list) else optimizers
        optimizer.zero_grad()
        # DDP finds the parameters in use by walking the graph behind `loss`; a leaf has none and would count as unused.
        self.manual_backward(loss.view_as(loss) if loss.is_leaf else loss, gradient=gradient)
        if self.clip_norm is not None:
            self.clip_gradients(optimizer, gradient_clip_val=self.clip_norm, gradient_clip_algorithm="norm")
        with nullcontext() if counts else uncounted(optimizer):
            optimizer.step()

    @contextmanager
    def optimizing_alone(self, what: str = "the result") -> Iterator[None]:
        """Let `optimize` work outside of `fit`, in `predict` or `test`: own optimizers, no gradient sync, no logs.

        Raises:
            UserError: at the end of the block, if a loss was NaN or infinite; it says that `what` is spoiled.
        """
        with torch.inference_mode(False), torch.enable_grad():
            self._alone, self._nonfinite = self.named_optimizers(), NonFinite()
            try:
                yield
            finally:
                self._alone = None
        if found := self._nonfinite.first():
            raise UserError(f"{became_nonfinite(*found)}, which spoils {what}; try precision 32-true.")

    def total_loss(self, losses: dict[str, Tensor], weights: dict[str, float]) -> Tensor:
        """Sum of weights[name] * losses[name], logged with its terms as train/total and train/<name>."""
        total = torch.stack([weights.get(name, 1.0) * loss for name, loss in losses.items()]).sum()
        self.log_losses(losses | {"total": total})
        return total

    def log_losses(self, losses: dict[str, Tensor]) -> None:
        """Watch scalars for NaN and, in `fit`, log them as train/<name>."""
        self._nonfinite.note(losses, self.iteration)
        if self._alone is None:
            self.log_dict({f"train/{name}": loss.detach() for name, loss in losses.items()})

    # ---- NaN and infinite values

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        done, every = self.trainer.global_step, self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        if done == self.trainer.max_steps or (every and done % every == 0):
            self._stop_at_nonfinite()

    def _stop_at_nonfinite(self) -> None:
        """End the run if a loss was NaN or infinite; a collective call that waits for the device."""
        found = self._nonfinite.first(self.trainer.strategy) if self.stops_at_nonfinite else None
        if found:
            raise SharedError(f"{became_nonfinite(*found)}; {way_out(self.trainer)}")

    def _refuse_nonfinite(self, state: dict[str, Tensor]) -> None:
        """Keep bad values out of checkpoints. Raising leaves the files as they are, so what is on disk is good."""
        self._stop_at_nonfinite()
        if bad := bad_tensors(state, self.trainer.strategy):
            done = self.trainer.global_step
            raise SharedError(f"{bad[0]} holds NaN or infinite values after {done} iterations; {way_out(self.trainer)}")

    # ---- evaluation

    def evaluated(self) -> list[str]:
        """What to put behind the names of the measures, one for each version of the results; most have only one."""
        return [""]

    @property
    def evaluation(self) -> Any:
        """The measures of the first version of the results; None without metrics."""
        return next(iter(self.evaluations.values()), None)

    def on_test_epoch_start(self) -> None:
        from lightning_styles.metrics.evaluation import Evaluation

        if not self.metrics and self.trainer.state.fn != "fit":
            raise UserError("model.metrics is empty; name what to measure, for example {perceptual: tiny/perceptual}.")
        found = {}
        if self.metrics:
            first, *others = self.evaluated()
            found = {first: Evaluation(self.metrics).to(self.device)}
            found |= {version: found[first].another() for version in others}
        self.__dict__["evaluations"] = found  # a plain attribute: no part of the method's state

    def on_validation_epoch_start(self) -> None:
        self.on_test_epoch_start()

    def test_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Measure what `predict` makes of a batch against its source and, where known, its exact twin."""
        if self.evaluations:
            predicted = self.predict_step(batch, batch_idx)
            results = torch.stack(predicted["image"]).clamp(-1, 1)  # as they are written
            self.evaluation.update(results, batch["image"], batch.get("twin"))

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """As `test_step`."""
        self.test_step(batch, batch_idx)

    def on_test_epoch_end(self) -> None:
        self._log_evaluation("test")

    def on_validation_epoch_end(self) -> None:
        self._log_evaluation("val")

    def _log_evaluation(self, stage: str) -> None:
        for version, evaluation in self.evaluations.items():
            self.log_dict({f"{stage}/{name}{version}": value for name, value in evaluation.compute().items()})

    # ---- randomness and the clock

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        self.iteration = self.trainer.global_step
        # For what draws by itself, such as dropout: it resumes exactly too, and differs on each rank.
        noise.seed_global(self.seed, self.iteration, self.global_rank, "global")

    def generator(self, purpose: str) -> torch.Generator:
        """The CPU generator of this (seed, iteration, rank, purpose)."""
        rank = 0 if self._trainer is None or self._alone is not None else self.global_rank
        return noise.generator(self.seed, self.iteration, rank, purpose)

    def randn_like(self, tensor: Tensor, purpose: str) -> Tensor:
        """Standard normal noise shaped like `tensor`, drawn on the CPU from `generator(purpose)`."""
        draw = torch.randn(tensor.shape, generator=self.generator(purpose))
        return draw.to(tensor.device, tensor.dtype, non_blocking=True)

    # ---- checkpoints

    def state_dict(self, *args: Any, prefix: str = "", **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        state = super().state_dict(*args, prefix=prefix, **kwargs)
        for key in [key for key in state if key.startswith(prefix) and not self.kept(key[len(prefix) :])]:
            del state[key]
        return state

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._refuse_nonfinite(checkpoint["state_dict"])
        checkpoint[CHECKPOINT_KEY] = {
            "class_path": f"{type(self).__module__}.{type(self).__qualname__}",
            "init_args": {k: v for k, v in self.hparams.items() if not k.startswith("_")},
            "base_models": dict(self.base_models),
            "iterations": self.iterations,
            **self._data_layout(),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        saved = checkpoint.get(CHECKPOINT_KEY)
        if saved is None:
            raise UserError("This checkpoint was not written by lightning_styles; `convert` reads foreign files.")
        for name, digest in saved["base_models"].items():
            if digest not in self.base_models.values():
                here = ", ".join(f"{n} ({d[:12]})" for n, d in self.base_models.items()) or "none"
                raise UserError(
                    f"The checkpoint was trained on base {name} ({digest[:12]}), this run has {here}; "
                    "use the base of the checkpoint or start a new run."
                )
        check_same_architecture(checkpoint["state_dict"], self.state_dict())
        check_finite(checkpoint["state_dict"])
        if self._trainer is not None and self.trainer.state.fn == "fit":
            self._resumed = checkpoint
            self._compare_data_layout(saved)

    def _data_layout(self) -> dict[str, Any]:
        """What decides, beside the seed, which sample comes when."""
        datamodule = getattr(self.trainer, "datamodule", None)
        return {"world_size": self.trainer.world_size, "batch_size": getattr(datamodule, "batch_size", None)}

    def _compare_data_layout(self, saved: dict[str, Any]) -> None:
        now = self._data_layout()
        before = {key: saved.get(key, value) for key, value in now.items()}
        if before != now and self.trainer.is_global_zero:
            was, is_ = (f"batch {x['batch_size']} on {x['world_size']} device(s)" for x in (before, now))
            log.warning("The order of the data changes: the checkpoint had %s, this run has %s.", was, is_)


def check_finite(saved: dict[str, Tensor]) -> None:
    """Raise UserError naming the first tensor with NaN or infinite values."""
    if bad := [name for name, tensor in saved.items() if not torch.isfinite(tensor).all()]:
        raise UserError(f"The checkpoint holds NaN or infinite values, first in {bad[0]}; use another one.")


def check_same_architecture(saved: dict[str, Tensor], own: dict[str, Tensor]) -> None:
    """Raise UserError naming the first differing keys unless both hold the same names and shapes."""
    differing = sorted(saved.keys() ^ own.keys())
    differing += sorted(k for k in saved.keys() & own.keys() if saved[k].shape != own[k].shape)
    if differing:
        first = differing[0]
        was, is_ = (list(tensors[first].shape) if first in tensors else "missing" for tensors in (saved, own))
        raise UserError(
            f"The checkpoint has another architecture than this configuration: {len(differing)} tensors differ, "
            f"first {first}: {was} in the checkpoint, {is_} here; "
            "use the settings of the checkpoint or start a new run."
        )
