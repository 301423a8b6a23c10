"""RunRecord: one entry for each launch, true to what happened."""

import json
from importlib import metadata

import pytest

from callbacks import RunRecord, Throughput
from tests.callbacks.toy import Toy, loader, trainer


def launches(folder):
    return json.loads((folder / "run.json").read_text())["launches"]


def test_entry_of_a_finished_run(tmp_path):
    (tmp_path / "config.yaml").write_text("seed: 1\n")
    trainer(tmp_path, [RunRecord(), Throughput(2)], steps=3).fit(Toy(base="f00d"), loader())
    (entry,) = launches(tmp_path)
    assert entry["state"] == "finished"
    assert (entry["first_iteration"], entry["last_iteration"], entry["max_iterations"]) == (0, 3, 3)
    assert entry["base_models"] == {"base": "f00d"}
    assert entry["batch"] == {"per_device": 2, "global": 2}
    assert entry["packages"]["torch"] == metadata.version("torch")
    assert entry["config"] == "config.yaml"
    assert entry["started"] <= entry["ended"]
    assert entry["peak_memory_mb"] > 100


def test_resumed_and_failed_launches_are_kept_apart(tmp_path):
    run = trainer(tmp_path, [RunRecord()], steps=2)
    run.fit(Toy(), loader())
    run.save_checkpoint(tmp_path / "k.ckpt")
    model = Toy()
    model.training_step = lambda batch, batch_idx: 1 / 0
    with pytest.raises(ZeroDivisionError):
        trainer(tmp_path, [RunRecord()], steps=4).fit(model, loader(), ckpt_path=str(tmp_path / "k.ckpt"))
    first, second = launches(tmp_path)
    assert (first["state"], second["state"]) == ("finished", "failed: ZeroDivisionError")
    assert second["first_iteration"] == second["last_iteration"] == 2
