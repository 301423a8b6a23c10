"""The batch scripts: a job that must leave saves, goes back into the queue, and on from there bit by bit."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from callbacks import ImageWriter
from datamodules import Pictures
from lightning_styles.imaging import read_image
from tests.micro import Micro, quiet_trainer, write_picture
from tests.trust.heavy import digest
from tests.trust.launcher import FIT, LAST, ROOT, Launch, command_line, experiment, straight
from tests.trust.methods import make_sms

pytest_plugins = ["tests.micro"]
SCRIPTS = ROOT / "configs/slurm"
ITERATIONS = 60
ENDED = ("COMPLETED", "FAILED", "TIMEOUT", "CANCELLED")
MINUTES = int(os.environ.get("SLURM_TEST_MINUTES", "1"))  # time limit of a job; more where starting takes long
JOB = {"SLURM_JOB_ID": "7", "SLURM_NTASKS_PER_NODE": "1", "SLURM_NNODES": "1"}
ARRAY = {"SLURM_ARRAY_TASK_ID": "0", "SLURM_ARRAY_TASK_COUNT": "1"}


# ---- without SLURM


def stand_ins(folder: Path, srun: str, state: str = "RUNNING") -> dict[str, str]:
    """Environment in which srun is a line of shell, and scontrol notes its words and tells the job's state."""
    programs = folder / "bin"
    programs.mkdir(parents=True, exist_ok=True)
    scontrol = f'echo "$@" >> {programs}/asked.txt; echo "JobId=7 JobState={state} Reason=None"'
    for name, line in {"srun": srun, "scontrol": scontrol}.items():
        (programs / name).write_text(f"#!/bin/bash\n{line}\n")
        (programs / name).chmod(0o755)
    return {**JOB, **ARRAY, "PATH": f"{programs}:{os.environ['PATH']}"}


def asked(folder: Path) -> list[str]:
    file = folder / "bin/asked.txt"
    return file.read_text().splitlines() if file.is_file() else []


@pytest.mark.parametrize("script", ["fit.sbatch", "fit_nodes.sbatch", "sms_array.sbatch"])
@pytest.mark.parametrize(
    ("code", "state", "requeued"),
    [(0, "RUNNING", False), (1, "RUNNING", False), (138, "RUNNING", True), (143, "RUNNING", True)]
    + [(143, "COMPLETING", False), (138, "TIMEOUT", False)],
)
def test_who_is_requeued(tmp_path: Path, script: str, code: int, state: str, requeued: bool) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/a.png").touch()
    variables = stand_ins(tmp_path, f"exit {code}", state)
    process = command_line(tmp_path, "bash", str(SCRIPTS / script), "some.yaml", "photos", "out", **variables)
    process.communicate()
    assert ("requeue 7" in asked(tmp_path)) is requeued
    assert process.returncode == (0 if requeued else code)


def test_a_signal_to_the_shell_alone_leaves_the_run_be(tmp_path: Path) -> None:
    variables = stand_ins(tmp_path, "sleep 1; touch done")
    process = command_line(tmp_path, "bash", str(SCRIPTS / "fit.sbatch"), **variables)
    time.sleep(0.5)
    process.send_signal(signal.SIGTERM)
    process.communicate()
    assert (tmp_path / "done").exists()
    assert asked(tmp_path) == []


def test_a_job_goes_on_from_its_own_checkpoint_alone(tmp_path: Path) -> None:
    folder = experiment(tmp_path, 4, 2)
    job_7 = ("--run", "job_7", "--ckpt_path", "last")
    for words, iterations in (
        ((), 4),  # an earlier run of the same experiment, finished
        (("--run", "job_7", "--trainer.max_steps", "2"), 2),  # a new job starts anew
        (("--run", "job_8", "--trainer.max_steps", "3"), 3),  # another one, newer
        (("--run", "job_7"), 2),  # requeued: goes on
        ((*job_7, "--trainer.max_steps", "6"), 2),  # its own checkpoint is meant, whatever else is asked for
    ):
        launch = Launch(folder, *FIT, *words)
        assert launch.end() == 0, launch.printed
        assert len(launch.iterations) == iterations
    assert sorted(path.name for path in (folder / "runs/heavy").iterdir()) == ["job_7", "job_8", "version_0"]
    assert Launch(folder, *FIT, "--run", "mine").end() == 1


@pytest.mark.slow
def test_signals_reach_a_job_and_put_it_back(tmp_path: Path) -> None:
    expected = straight(tmp_path / "straight", ITERATIONS)
    folder = experiment(tmp_path / "job", ITERATIONS, 1000, pause=0.1)
    environment(folder)
    drop_options = 'while [[ $1 == -* ]]; do shift; done; echo $$ > pid; exec "$@"'
    variables = stand_ins(folder, drop_options)
    trace = tmp_path / "trace.txt"
    for count, signum in enumerate((signal.SIGUSR1, signal.SIGTERM, None), start=1):
        words = ("bash", str(SCRIPTS / "fit.sbatch"), *FIT[1:])
        process = command_line(folder, *words, HEAVY_TRACE=str(trace), **variables)
        if signum is not None:
            while not trace.is_file() or len(trace.read_text().split()) < 10 * count:
                assert process.poll() is None
                time.sleep(0.01)
            os.kill(int((folder / "pid").read_text()), signum)
        output = process.communicate()[0]
        assert process.returncode == 0, output
        assert asked(folder) == ["show job 7", "requeue 7"] * min(count, 2)
    assert trace.read_text().split() == [str(i) for i in range(ITERATIONS)]  # each of them once
    assert digest(folder / "runs/heavy/job_7" / LAST) == expected


# ---- with SLURM


def environment(folder: Path) -> None:
    """What the scripts expect in the project's folder."""
    (folder / ".venv").symlink_to(sys.prefix)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A SLURM of two nodes on the loopback interface; yields its folder."""
    if shutil.which("slurmctld") is None or os.geteuid() != 0:
        pytest.skip("needs slurmctld (slurm-wlm) and root")
    folder = tmp_path_factory.mktemp("slurm")
    for name in ("state", "n1", "n2"):
        (folder / name).mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = min(free.getsockname()[1], 65000)
    content = (ROOT / "tests/trust/slurm.conf").read_text()
    filled = {"HOST": socket.gethostname(), "FOLDER": str(folder)}
    for name, value in {**filled, **{f"PORT{i}": str(port + i) for i in range(3)}}.items():
        content = content.replace(name, value)
    (folder / "slurm.conf").write_text(content)
    before = os.environ.get("SLURM_CONF")
    os.environ["SLURM_CONF"] = str(folder / "slurm.conf")
    for command in (["slurmctld"], ["slurmd", "-N", "n1"], ["slurmd", "-N", "n2"]):
        subprocess.run(command, check=True)
    wait_until(lambda: slurm("sinfo", "-h", "-o", "%T", "-p", "low").strip() == "idle")
    yield folder
    slurm("scancel", "--state=PENDING", "--user=root")
    slurm("scancel", "--state=RUNNING", "--user=root")
    for name in ("n1", "n2", "slurmctld"):
        os.kill(int((folder / f"{name}.pid").read_text()), signal.SIGTERM)
    os.environ.pop("SLURM_CONF")
    if before is not None:
        os.environ["SLURM_CONF"] = before


def slurm(*words: str) -> str:
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout


def wait_until(condition: Callable[[], bool], limit: float = 1200) -> None:
    end = time.monotonic() + limit
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.2)


def submit(folder: Path, script: str, *words: str, **options: int | str) -> str:
    """Submit a shipped script in `folder`; the number of the job."""
    environment(folder)
    resources = {"nodes": 1, "ntasks_per_node": 1, "cpus_per_task": 1, "gpus_per_node": 0, **options}
    flags = [f"--{key.replace('_', '-')}={value}" for key, value in resources.items()]
    variables = {"MASTER_ADDR": "127.0.0.1", "PYTHONPATH": str(ROOT), "HEAVY_TRACE": str(folder / "trace.txt")}
    export = "--export=ALL," + ",".join(f"{key}={value}" for key, value in variables.items())
    command = ["sbatch", "--parsable", export, *flags, str(SCRIPTS / script), *words]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout.strip()


class Job:
    """A job that runs in `folder`, or a task of an array, and the log that it writes there."""

    def __init__(self, folder: Path, number: str, log: str = "fit") -> None:
        self.folder, self.number, self.log_file = folder, number, folder / f"{log}_{number}.log"

    def __getitem__(self, key: str) -> str:
        words = slurm("scontrol", "show", "job", "-o", self.number).split()
        return next(word for word in words if word.startswith(f"{key}=")).partition("=")[2]

    @property
    def done(self) -> int:
        trace = self.folder / "trace.txt"
        return len(trace.read_text().split()) if trace.is_file() else 0

    @property
    def log(self) -> str:
        return self.log_file.read_text()

    def wait_for_requeue(self, restarts: int) -> None:
        """Wait until the job is in the queue for the n-th time, and have it start now and not in two minutes."""
        expected = ("PENDING", str(restarts))
        wait_until(lambda: self["JobState"] in ENDED or (self["JobState"], self["Restarts"]) == expected)
        assert self["Restarts"] == str(restarts), self.log
        slurm("scontrol", "update", f"JobId={self.number}", "StartTime=now")

    def wait_for_end(self) -> None:
        wait_until(lambda: self["JobState"] in ENDED)
        assert self["JobState"] == "COMPLETED", self.log


class Training(Job):
    """The experiment in `folder`, submitted to one of the scripts that train."""

    def __init__(self, folder: Path, script: str, *words: str, **options: int | str) -> None:
        super().__init__(folder, submit(folder, script, *FIT[1:], *words, **options))

    def end(self) -> str:
        """Wait until the job is done; the digest of what it has trained."""
        self.wait_for_end()
        assert self.log.count("iterations done.") == int(self["Restarts"])
        return digest(self.folder / f"runs/heavy/job_{self.number}" / LAST)


@pytest.mark.slurm
@pytest.mark.slow
def test_usr1_and_preemption(cluster: Path, tmp_path: Path) -> None:
    expected = straight(tmp_path / "straight", ITERATIONS)
    job = Training(experiment(tmp_path / "job", ITERATIONS, 1000, pause=0.2), "fit.sbatch", nodelist="n1", time="30")
    wait_until(lambda: job.done >= 5)
    slurm("scancel", "--signal=USR1", job.number)
    job.wait_for_requeue(1)
    wait_until(lambda: job.done >= 20)
    slurm("sbatch", "--partition=high", "--nodelist=n1", "--exclusive", "--output=/dev/null", "--wrap=sleep 1")
    job.wait_for_requeue(2)
    assert job.end() == expected
    assert job.done == ITERATIONS  # none of them twice
    print(f"USR1, preemption: {expected}")


@pytest.mark.slurm
@pytest.mark.slow
def test_time_limit_hit_three_times(cluster: Path, tmp_path: Path) -> None:
    iterations = 1000
    expected = straight(tmp_path / "straight", iterations)
    folder = experiment(tmp_path / "job", iterations, iterations, pause=0.3 * MINUTES)
    job = Training(folder, "fit.sbatch", nodelist="n2", time=str(MINUTES), signal=f"USR1@{30 * MINUTES}")
    for restarts in (1, 2, 3):
        job.wait_for_requeue(restarts)
    experiment(folder, iterations, iterations)  # the rest without pauses
    assert job.end() == expected
    print(f"time limit: {expected} after {job['Restarts']} requeues")


@pytest.mark.slurm
@pytest.mark.slow
def test_cancelling_is_final(cluster: Path, tmp_path: Path) -> None:
    job = Training(experiment(tmp_path, ITERATIONS, 1000, pause=0.2), "fit.sbatch", nodelist="n1", time="30")
    wait_until(lambda: job.done >= 5)
    slurm("scancel", job.number)
    wait_until(lambda: job["JobState"] not in ("RUNNING", "COMPLETING"))
    assert (job["JobState"], job["Restarts"]) == ("CANCELLED", "0")
    assert (tmp_path / f"runs/heavy/job_{job.number}" / LAST).is_file()


@pytest.mark.slurm
@pytest.mark.slow
def test_two_nodes(cluster: Path, tmp_path: Path) -> None:
    ranks = ("--trainer.strategy", "ddp_find_unused_parameters_true")
    plain = experiment(tmp_path / "straight", ITERATIONS, 1000)
    process = command_line(plain, *FIT, *ranks, "--trainer.devices", "2")
    assert process.wait() == 0, process.communicate()[0]
    folder = experiment(tmp_path / "job", ITERATIONS, 1000, pause=0.2)
    job = Training(folder, "fit_nodes.sbatch", *ranks, nodes=2, time="30")
    wait_until(lambda: job.done >= 5)
    slurm("scancel", "--signal=USR1", job.number)
    job.wait_for_requeue(1)
    assert job.end() == digest(plain / "runs/heavy/version_0" / LAST)


@pytest.mark.slurm
@pytest.mark.slow
def test_an_array_shares_the_photos(cluster: Path, tmp_path: Path, micro: Micro) -> None:
    names, folder = ("a", "b", "c", "d"), tmp_path / "job"
    photos = [write_picture(folder / "photos" / f"{name}.png", 40, 48, seed) for seed, name in enumerate(names)]
    method, size = make_sms(micro, iterations=150), {"resolution": None}
    writer = {"class_path": "callbacks.ImageWriter", "init_args": {"output_dir": "${vars.output_dir}"}}
    content = {
        "vars": {"output_dir": "elsewhere"},
        "model": {"class_path": "lightning_styles.methods.sms.SMS", "init_args": dict(method.hparams)},
        "data": {"class_path": "datamodules.Pictures", "init_args": {"images": "elsewhere", **size}},
        "trainer": {"accelerator": "cpu", "callbacks": [writer], "enable_progress_bar": False},
    }
    (folder / "sms.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    number = submit(folder, "sms_array.sbatch", "sms.yaml", "photos", "out", array="0-1", time="30")
    first, second = (Job(folder, f"{number}_{task}", "sms") for task in (0, 1))
    wait_until(lambda: (folder / "out/a.png").is_file())
    slurm("scancel", "--signal=USR1", first.number)
    first.wait_for_requeue(1)
    for job in (first, second):
        job.wait_for_end()
    assert "1 pictures in" in first.log
    assert "; 1 were there already" in first.log
    assert "2 pictures in" in second.log
    straight = quiet_trainer(tmp_path, 1, callbacks=[ImageWriter(str(tmp_path / "out"))])
    straight.predict(method, datamodule=Pictures(images=photos, **size))
    for name in names:
        ours, theirs = (read_image(place / "out" / f"{name}.png") for place in (folder, tmp_path))
        assert ours.equal(theirs), name
