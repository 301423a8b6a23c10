"""Two processes (DDP, gloo) for every method: equal parameters, mean gradients, own noise, exact resume."""

import logging
import os
import signal
import socket
import sys
import time
from contextlib import nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import yaml
from lightning.pytorch.strategies import SingleDeviceStrategy
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from torch import Tensor

from datamodules import sampling
from lightning_styles import noise, processes
from lightning_styles.__main__ import main
from lightning_styles.console import not_lightnings_own
from lightning_styles.errors import UserError
from lightning_styles.module import StyleModule
from lightning_styles.nonfinite import bad_tensors
from lightning_styles.processes import strategy_for
from lightning_styles.runs import read_checkpoint
from tests.micro import Micro
from tests.trust.launcher import CONTEXT, FIT, LAST, Launch, command_line
from tests.trust.launcher import experiment as heavy
from tests.trust.methods import METHODS, Method, differing, osasis_files, saved
from tests.trust.two_processes import every_method, gradients_of

pytest_plugins = ["tests.micro"]
CASES = [name for name, case in METHODS.items() if not case.variant]
Ranks = tuple[dict[str, Any], dict[str, Any]]


@pytest.fixture(scope="module")
def out(micro: Micro, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes left behind."""
    folder, base = tmp_path_factory.mktemp("two"), Path(micro.base).parent
    assert micro.lora
    assert micro.base_xl  # written once, not by both ranks at the same time
    osasis_files(micro)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    both = [CONTEXT.Process(target=every_method, args=(rank, port, base, folder)) for rank in (0, 1)]
    for process in both:
        process.start()
    for process in both:
        process.join(600)
    assert [process.exitcode for process in both] == [0, 0]
    return folder


def ranks(out: Path, name: str) -> Ranks:
    first, second = (torch.load(out / name / f"rank{rank}.pt", weights_only=True) for rank in (0, 1))
    return first, second


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_ranks_end_with_equal_parameters_from_different_noise(out: Path, name: str) -> None:
    first, second = ranks(out, name)
    assert differing(first["trained"], second["trained"]) == []
    for ours, theirs in zip(first["noise"][0], second["noise"][0], strict=True):
        assert ours[:2] == theirs[:2]
        assert ours[2] != theirs[2], "the noise of the method"
        assert ours[3] != theirs[3], "the global generators"
    indices = [{digest for _, _, digest in rank["batches"][0]} for rank in (first, second)]
    assert not indices[0] & indices[1], "each rank has its own part of the data"


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_a_resumed_run_of_two_processes_ends_bit_equal_to_a_straight_one(out: Path, name: str) -> None:
    ours, theirs = saved(out / name / "rest"), saved(out / name / "straight")
    assert ours["lightning_styles"]["world_size"] == 2
    assert [key for key in differing(ours, theirs) if ".callbacks.ModelCheckpoint" not in key] == []
    for rank in ranks(out, name):
        for seen in ("batches", "noise"):
            whole, rest = rank[seen]
            assert [entry for entry in whole if entry[0] >= 2] == rest


@pytest.mark.slow
def test_both_ranks_skip_what_is_nan_on_one(out: Path) -> None:
    first, second = ranks(out, "skip")
    assert (first["skipped"], first["done"]) == (second["skipped"], second["done"]) == (2, 8)
    assert differing(first["trained"], second["trained"]) == []
    assert bad_tensors(first["trained"]) == []


@pytest.mark.slow
def test_nan_on_one_rank_ends_both_with_one_message(tmp_path: Path) -> None:
    process = command_line(heavy(tmp_path, 12, 2, spoiled=[5]), *FIT, "--trainer.devices", "2")
    printed = process.communicate(timeout=300)[0]  # the other rank holds the pipe too, so both have ended
    assert process.returncode == 1, printed
    assert printed.count("NaN") == printed.count("rror") == 1, printed
    stopped = "error: noise became NaN or infinite in iteration 5; the last good checkpoint is "
    assert printed.splitlines()[-1].startswith(f"{stopped}runs/heavy/version_0/{LAST} (4 iterations). "), printed


class OneOfTwo:
    """Makes a single process draw the noise and the data of rank `rank` of two."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, rank: int) -> None:
        sampler = sampling.StepSampler
        ranked = lambda *sizes, **words: sampler(*sizes, **(words | {"rank": rank, "world": 2}))  # noqa: E731
        monkeypatch.setattr(sampling, "StepSampler", ranked)
        draw = lambda method, purpose: noise.generator(method.seed, method.iteration, rank, purpose)  # noqa: E731
        monkeypatch.setattr(StyleModule, "generator", draw)
        seed, ranked_key = noise.seed_global, lambda seed, iteration, _, purpose: (seed, iteration, rank, purpose)
        monkeypatch.setattr(noise, "seed_global", lambda *key: seed(*ranked_key(*key)))


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_gradients_are_the_mean_over_the_data_of_both_ranks(
    out: Path, micro: Micro, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    alone = []
    for rank in (0, 1):
        with monkeypatch.context() as patch:
            OneOfTwo(patch, rank)
            alone.append(gradients_of(plain(METHODS[name]), micro, tmp_path).seen)
    both = [rank["gradients"] for rank in ranks(out, name)]
    assert differing(both[0], both[1]) == []
    assert len(both[0]) == len(alone[0]) >= 2
    for (optimizer, ours), (_, first), (_, second) in zip(both[0], *alone, strict=True):
        mean = flat({key: (first[key] + second[key]) / 2 for key in ours})
        assert mean.norm() > 0, optimizer
        assert (flat(ours) - mean).norm() < 1e-4 * mean.norm(), optimizer
        assert (flat(first) - flat(second)).norm() > 1e-2 * mean.norm(), "the ranks see different data"
        for part in METHODS[name].adapters.get(optimizer, []):
            found = {key: g for key, g in ours.items() if part in key}
            assert (METHODS[name].by_turns and not found) or flat(found).norm() > 0, part
    for optimizer, parts in METHODS[name].adapters.items():
        for part in parts:
            assert any(part in key for own, ours in both[0] if own == optimizer for key in ours), part


def plain(case: Method) -> Method:
    """The method without gradient checkpointing: what it saves must change no gradient."""
    return Method(case.make, case.data, case.losses)


def flat(gradients: dict[str, Tensor]) -> Tensor:
    return torch.cat([gradient.flatten().double() for gradient in gradients.values()])


# ---- the command line


@pytest.mark.parametrize(
    ("strategy", "accelerator", "devices", "nodes", "expected"),
    [
        ("auto", "cpu", 1, 1, "auto"), ("auto", "auto", "auto", 1, "auto"), ("ddp", "cpu", 2, 1, "ddp"),
        *[("auto", "cpu", devices, 1, "ddp_find_unused_parameters_true") for devices in (2, "2", [0, 1], "0,1")],
        ("auto", "cpu", 1, 2, "ddp_find_unused_parameters_true"), ("auto", "gpu", [1], 1, "auto"),
        ("auto", "gpu", "1,", 1, "auto"),
    ],
)  # fmt: skip
def test_several_devices_without_a_strategy_find_unused_parameters(
    monkeypatch: pytest.MonkeyPatch, strategy: str, accelerator: str, devices: Any, nodes: int, expected: str
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert strategy_for(strategy, accelerator, devices, nodes) == expected


SLURM = {"PROCID": "0", "LOCALID": "0", "NODEID": "0", "JOB_NAME": "x", "JOB_ID": "1"}
NODES = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29871", "NODE_RANK": "0"}
SURROUNDINGS = [*(f"SLURM_{name}" for name in (*SLURM, "NTASKS", "NTASKS_PER_NODE", "NNODES")), *NODES]


def slurm(**variables: str) -> dict[str, str]:
    return {f"SLURM_{name}": value for name, value in {**SLURM, **variables}.items()}


@pytest.mark.parametrize(
    ("variables", "devices", "nodes", "says"),
    [
        (slurm(NTASKS="1"), 2, 1, "need SLURM_NTASKS 2, but SLURM_NTASKS is 1"),
        (slurm(NTASKS="4"), 1, 1, "need SLURM_NTASKS 1, SLURM_NTASKS_PER_NODE 1, but SLURM_NTASKS is 4, .*is not set"),
        (slurm(NTASKS="4"), 4, 1, "need SLURM_NTASKS_PER_NODE 4, but SLURM_NTASKS_PER_NODE is not set"),
        (slurm(NTASKS="4", NTASKS_PER_NODE="4"), 2, 2, "need SLURM_NTASKS_PER_NODE 2, but .*_PER_NODE is 4"),
        (slurm(NTASKS="2", NTASKS_PER_NODE="2", NNODES="2"), 2, 1, "need SLURM_NNODES 1, but SLURM_NNODES is 2"),
        (slurm(NTASKS="many"), 1, 1, "SLURM_NTASKS is many"),
        (slurm(NTASKS="1"), 1, 1, None),
        (slurm(NTASKS="4", NTASKS_PER_NODE="2", NNODES="2"), 2, 2, None),
        (slurm(NTASKS="4", JOB_NAME="interactive"), 1, 1, None),  # a shell in an allocation
        ({"SLURM_NTASKS": "4", "SLURM_JOB_NAME": "vscode"}, 1, 1, None),
        ({}, 1, 2, "num_nodes is 2, but MASTER_ADDR is not set, MASTER_PORT is not set, NODE_RANK is not set: set"),
        ({**NODES, "NODE_RANK": "2"}, 1, 2, "but NODE_RANK is 2: set"),
        ({**NODES, "MASTER_PORT": "x"}, 1, 2, "but MASTER_PORT is x: set"),
        (NODES, 1, 2, None),
    ],
)
def test_processes_that_nobody_starts_are_not_waited_for(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], devices: int, nodes: int, says: str | None
) -> None:
    for name in SURROUNDINGS:
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with nullcontext() if says is None else pytest.raises(UserError, match=says):
        processes.check_processes(devices, nodes)


@pytest.mark.parametrize("rank", ["0", "1"])
def test_processes_that_do_not_come_are_waited_for_but_not_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], rank: str
) -> None:
    for name, value in {**NODES, "NODE_RANK": rank, "LOCAL_RANK": "0", "WORLD_SIZE": "1"}.items():
        monkeypatch.setenv(name, value)  # back to what they were afterwards: the launcher sets them too
        if name in ("LOCAL_RANK", "WORLD_SIZE"):
            monkeypatch.delenv(name)
    monkeypatch.setattr(processes, "JOIN", timedelta(seconds=1))
    monkeypatch.setattr(rank_zero_only, "rank", 0)
    monkeypatch.chdir(heavy(tmp_path, 2, 2))
    assert main([*FIT, "--trainer.num_nodes", "2"]) == 1
    (message,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    where = "error: The 2 processes of this run did not find each other at 127.0.0.1:29871 within 1 s"
    assert message.startswith(where), message


def test_lightnings_last_word_before_it_kills_all_ranks_is_shown() -> None:
    words = "[rank: 1] Child process with PID 77 terminated with code -9. Forcefully terminating all other processes"
    path = str(Path(L.__file__).parent / "fabric/x.py")
    record = logging.LogRecord("lightning.fabric", logging.INFO, path, 1, words, (), None)
    assert not_lightnings_own(record)
    assert record.getMessage() == (
        "error: Process 77 of this run has ended with code -9, so all of it ends; "
        "with --ckpt_path last it goes on from its last checkpoint."
    )
    assert not not_lightnings_own(logging.LogRecord("lightning.fabric", logging.INFO, path, 1, "Tip", (), None))


def test_ranks_that_found_different_checkpoints_do_not_begin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(heavy(tmp_path, 4, 2))
    monkeypatch.setattr(sys, "argv", ["lightning_styles"])
    assert main([*FIT, "--trainer.max_steps", "2"]) == 0
    other = lambda self, value, src=0: "other.ckpt" if str(value).endswith(".ckpt") else value  # noqa: E731
    monkeypatch.setattr(SingleDeviceStrategy, "broadcast", other)
    assert main([*FIT, "--ckpt_path", "last"]) == 1
    first = f"error: One process goes on from runs/heavy/version_0/{LAST}, the first one from other.ckpt: name the file"
    assert capsys.readouterr().err.startswith(first)


@pytest.mark.slow
@pytest.mark.parametrize("killed", ["the first", "the second"])
def test_a_process_that_dies_leaves_a_hint_to_the_last_checkpoint(tmp_path: Path, killed: str) -> None:
    folder = heavy(tmp_path, 1000, 2, pause=0.05)
    launch = Launch(folder, *FIT, "--trainer.devices", "2", group=True)
    launch.wait_for(lambda: len(launch.iterations) >= 4)
    first = launch.process.pid
    (second,) = Path(f"/proc/{first}/task/{first}/children").read_text().split()
    os.kill(int(second) if killed == "the second" else first, signal.SIGKILL)
    assert launch.end() == (1 if killed == "the second" else -signal.SIGKILL)
    wait_until_gone(int(second))
    printed = launch.printed
    assert "Traceback" not in printed
    message, command = printed.splitlines()[-2:]
    assert message.startswith("error: Another process of this run has ended or is out of reach ("), printed
    assert message.endswith(f"; the last checkpoint is runs/heavy/version_0/{LAST}"), printed
    assert command == f"Go on: python -m lightning_styles {' '.join(FIT)} --trainer.devices 2 --ckpt_path " + (
        f"runs/heavy/version_0/{LAST}"
    )
    assert Launch(folder, *FIT, "--ckpt_path", "last", "--trainer.max_steps", "10").end() == 0


def wait_until_gone(pid: int) -> None:
    latest = time.monotonic() + 60
    while Path(f"/proc/{pid}/stat").is_file() and " Z " not in Path(f"/proc/{pid}/stat").read_text():
        assert time.monotonic() < latest
        time.sleep(0.05)


PICTURE = {"class_path": "datamodules.Pictures", "init_args": {"images": "scene:portrait/3", "resolution": 32}}
PICTURES = {"images": "scene:portrait/0-3", "style": "cartoon", "prompt": "cartoon", "resolution": 32, "batch_size": 2}
STYLE = {"class_path": "datamodules.StyleImages", "init_args": PICTURES}


def experiment(micro: Micro, folder: Path, name: str, data: dict[str, Any]) -> str:
    """A method on a few pictures, as a config file."""
    method = METHODS[name].make(micro)
    kind = type(method)
    content = {
        "model": {"class_path": f"{kind.__module__}.{kind.__qualname__}", "init_args": dict(method.hparams)},
        "data": data,
        "trainer": {
            "max_steps": 4, "max_epochs": -1, "accelerator": "cpu", "num_sanity_val_steps": 0, "limit_val_batches": 0,
            "enable_progress_bar": False,
            "callbacks": [{"class_path": "callbacks.Checkpoints", "init_args": {"every_n_iterations": 2}}],
        },
    }  # fmt: skip
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    return f"{name}.yaml"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "data", "strategy", "batch"),
    [
        ("sms", PICTURE, "auto", "SMS on 2 x cpu, global batch 2 = devices 2 x batch 1"),
        ("style_lora", STYLE, "ddp", "StyleLoRA on 2 x cpu, global batch 4 = devices 2 x batch 2"),
    ],
    ids=["sms", "style_lora"],
)
def test_the_command_line_takes_two_devices_and_goes_on_with_one(
    name: str,
    data: dict[str, Any],
    strategy: str,
    batch: str,
    micro: Micro,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = experiment(micro, tmp_path, name, data)
    devices = ("--trainer.devices", "2", "--trainer.strategy", strategy)
    run = command_line(tmp_path, "fit", "--config", config, *devices, CUDA_VISIBLE_DEVICES="")
    printed = run.communicate(timeout=600)[0]
    assert run.returncode == 0, printed
    assert f"fit: {batch} x accumulate 1, iterations 0 to 4" in printed.splitlines()
    checkpoint = read_checkpoint(tmp_path / f"runs/{name}/version_0/checkpoints/last.ckpt")
    assert (checkpoint["global_step"], checkpoint["lightning_styles"]["world_size"]) == (4, 2)
    assert bad_tensors(checkpoint["state_dict"]) == []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["lightning_styles"])
    arguments = ["--ckpt_path", "last", "--trainer.max_steps", "5", "--trainer.devices", "1"]
    assert main(["fit", "--config", config, *arguments]) == 0
    each = f"batch {checkpoint['lightning_styles']['batch_size']} on"
    message = f"The order of the data changes: the checkpoint had {each} 2 device(s), this run has {each} 1"
    assert message in caplog.text
    assert f"Results: runs/{name}/version_0" in capsys.readouterr().out
    assert saved(tmp_path / f"runs/{name}/version_0/checkpoints")["global_step"] == 5
