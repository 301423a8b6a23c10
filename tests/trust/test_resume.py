"""Exact resume: N iterations straight on, or k and then N - k, end in the same bits, for every method."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.micro import Micro
from tests.trust.methods import ITERATIONS, METHODS, Recorder, busy, differing, saved, train

pytest_plugins = ["tests.micro"]
PART = 2  # iterations before the break


@pytest.fixture(scope="module")
def straight(micro: Micro, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple[Recorder, Path]]:
    """The run of a method without a break, done once for all tests: its record and folder."""
    done: dict[Any, tuple[Recorder, Path]] = {}

    def run(name: str, precision: str = "32-true") -> tuple[Recorder, Path]:
        if (name, precision) not in done:
            case, folder = METHODS[name], tmp_path_factory.mktemp("straight")
            recorder, _ = train(case.make(micro), case.data(micro, 0), folder, precision=precision, **busy())
            done[name, precision] = recorder, folder
        return done[name, precision]

    return run


@pytest.mark.parametrize(
    ("name", "workers", "precision"),
    [*[(name, 0, "32-true") for name in METHODS], *[(name, 2, "bf16-true") for name in ("sms", "style_lora")]],
)
def test_a_resumed_run_ends_bit_equal_to_a_straight_one(
    straight: Any, micro: Micro, tmp_path: Path, name: str, workers: int, precision: str
) -> None:
    case = METHODS[name]
    whole, folder = straight(name, precision)
    disturb_global_random_states()
    part = folder / f"step={PART}.ckpt"
    rest, run = train(
        case.make(micro), case.data(micro, workers), tmp_path, ckpt_path=part, precision=precision, **busy()
    )
    assert run.global_step == ITERATIONS
    ours, theirs = saved(tmp_path), saved(folder)
    # Where files lie is all that may differ: parameters, optimizers, schedulers, average, counters may not.
    assert [key for key in differing(ours, theirs) if ".callbacks.ModelCheckpoint" not in key] == []
    assert differing(torch.load(part)["state_dict"], ours["state_dict"]), "the rest trains too"
    assert any(key.startswith("EMA") and state["shadow"] for key, state in ours["callbacks"].items())
    assert [seen for seen in whole.batches if seen[0] >= PART] == rest.batches
    assert [drawn for drawn in whole.noise if drawn[0] >= PART] == rest.noise
    assert whole.losses[PART:] == rest.losses


def disturb_global_random_states() -> None:
    """What a new process starts from is not where the old one was."""
    torch.manual_seed(99)
    np.random.seed(99)
    random.seed(99)


@pytest.mark.parametrize("name", ["sms", "style_lora"])
def test_previews_validation_and_an_average_change_nothing(
    straight: Any, micro: Micro, tmp_path: Path, name: str
) -> None:
    case = METHODS[name]
    bare, _ = train(case.make(micro), case.data(micro, 0), tmp_path, limit_val_batches=0)
    watched, folder = straight(name)
    assert differing(saved(tmp_path)["state_dict"], saved(folder)["state_dict"]) == []
    assert (bare.noise, bare.batches, bare.losses) == (watched.noise, watched.batches, watched.losses)
