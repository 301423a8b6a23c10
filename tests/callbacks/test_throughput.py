"""Throughput: rates from a clock that the test holds."""

from pathlib import Path

import pytest
import torch
from lightning.pytorch.loggers import CSVLogger

from callbacks import Throughput, throughput
from tests.callbacks.toy import Toy, loader, trainer


class Clock:
    """Advances only when told."""

    def __init__(self):
        self.now = 100.0

    def perf_counter(self):
        return self.now


class Slow(Toy):
    """Half a second per iteration, ten for validation."""

    clock: Clock

    def training_step(self, batch, batch_idx):
        super().training_step(batch, batch_idx)
        self.clock.now += 0.5

    def validation_step(self, batch, batch_idx):
        self.clock.now += 10


def test_rates_leave_validation_out(tmp_path, monkeypatch):
    clock = Clock()
    monkeypatch.setattr(throughput, "time", clock)
    model = Slow()
    model.clock = clock
    logger = CSVLogger(tmp_path, name="", version="")
    logged = []
    monkeypatch.setattr(logger, "log_metrics", lambda values, step: logged.append((step, values)))
    run = trainer(tmp_path, [Throughput(3)], steps=7, logger=logger, val_check_interval=2)
    run.fit(model, loader(), loader(1))
    reports = [(step, v) for step, v in logged if "perf/iterations_per_second" in v]
    assert [step for step, _ in reports] == [3, 6]
    for _, values in reports:
        assert values["perf/iterations_per_second"] == pytest.approx(2.0)
        assert values["perf/images_per_second"] == pytest.approx(4.0)
        assert values["perf/peak_memory_mb"] == throughput.peak_memory_mb(torch.device("cpu"))


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the kernel's own figure")
def test_peak_memory_is_the_kernels():
    lines = Path("/proc/self/status").read_text().splitlines()
    (kibibytes,) = [int(line.split()[1]) for line in lines if line.startswith("VmHWM")]
    assert throughput.peak_memory_mb(torch.device("cpu")) == pytest.approx(kibibytes * 1024 / 1e6, rel=0.05)
