"""OSASIS on a pool of photos that are encoded already: the same training, with the work done once."""

from pathlib import Path
from typing import Any

import pytest
import torch

from datamodules.diffae_samples import CHUNK
from lightning_styles.diffusion import half_way
from lightning_styles.errors import UserError
from tests.methods.test_osasis import fit, trained
from tests.micro import quiet_trainer
from tests.micro_osasis import MicroOSASIS, make_osasis, samples

pytest_plugins = ["tests.micro_osasis"]
RECIPE = {"steps": 10, "t0": 0.5}  # that of the micro method


def test_training_on_encoded_photos_learns_the_same(micro_osasis: MicroOSASIS, tmp_path: Path) -> None:
    learned, pool = [], {"pool": 5, "cache": str(tmp_path / "pool")}
    for encode in (None, RECIPE):
        method = make_osasis(micro_osasis)
        fit(tmp_path, method, samples(micro_osasis, encode=encode, **pool))
        learned.append(trained(method))
    plain, encoded = learned
    start = make_osasis(micro_osasis, lr=0.0, spn_lr=0.0)
    fit(tmp_path, start, samples(micro_osasis, **pool), steps=1)
    for key, before in trained(start).items():
        # The gradient of a bias ahead of a norm is rounding alone, which Adam makes as large as any.
        if key != "pictures" and not key.endswith("bias"):
            assert (encoded[key] - plain[key]).norm() <= 1e-3 * (plain[key] - before).norm(), key
    assert len(list((tmp_path / "pool").rglob("*.pt"))) == 2, "both share the pictures"


def test_a_batch_brings_what_the_method_would_encode(micro_osasis: MicroOSASIS, tmp_path: Path) -> None:
    method = make_osasis(micro_osasis)
    data = samples(micro_osasis, encode=RECIPE, pool=CHUNK + 2, cache=str(tmp_path / "pool"))
    data.trainer = run = quiet_trainer(tmp_path, 9)
    run.strategy.connect(method)
    method.configure_model()
    seen = []
    for batch in data.train_dataloader():
        batch = data.on_after_batch_transfer(dict(batch), 0)
        z, x = method.encode(batch["image"], method.encoder, 0.5)
        torch.testing.assert_close(batch["z"], z, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(batch["x_t0"], x, rtol=1e-4, atol=1e-4)
        seen += list(batch["x_t0"])
    assert len(torch.stack(seen).flatten(1).unique(dim=0)) == CHUNK + 2


def test_a_killed_build_goes_on(micro_osasis: MicroOSASIS, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings: dict[str, Any] = {"pool": 2 * CHUNK + 1, "cache": str(tmp_path / "pool"), "encode": RECIPE}
    calls: list[int] = []
    encode = half_way.encode_half_way

    def until_the_kill(*words: Any) -> Any:
        calls.append(len(words[1]))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return encode(*words)

    monkeypatch.setattr("datamodules.diffae_samples.encode_half_way", until_the_kill)
    data = samples(micro_osasis, **settings)
    data.trainer = quiet_trainer(tmp_path, 2)
    with pytest.raises(KeyboardInterrupt):
        data.train_dataloader()
    times = {file: file.stat().st_mtime_ns for file in (tmp_path / "pool").rglob("*.pt")}
    assert len(times) == 3 + 1
    data.train_dataloader()
    assert calls == [CHUNK, CHUNK, CHUNK, 1], "the chunk that was there is not made again"
    files = list((tmp_path / "pool").rglob("*"))
    assert {file: file.stat().st_mtime_ns for file in times} == times
    assert sum(file.suffix == ".pt" for file in files) == 6
    assert not any(file.suffix == ".tmp" for file in files)
    whole = samples(micro_osasis, **settings | {"cache": str(tmp_path / "other")})
    whole.trainer = quiet_trainer(tmp_path, 2)
    whole.train_dataloader()
    for ours, theirs in zip(data.pool, whole.pool, strict=True):
        assert all(torch.equal(ours[key], theirs[key]) for key in ("image", "z", "x_t0"))


@pytest.mark.parametrize(
    ("encode", "changes", "message"),
    [
        ({"steps": 5, "t0": 0.5}, {}, "steps 5 instead of 10"),
        ({"steps": 10, "t0": 0.4}, {}, "t0 0.4 instead of 0.5"),
        (RECIPE, {"diffae": "other"}, "diffae .* instead of"),
        (RECIPE, {"size": 16}, "size 16 instead of 32"),
        ({"steps": 10}, {}, "encode has steps; expected steps, t0"),
    ],
    ids=str,
)
def test_photos_of_another_recipe_are_refused(
    micro_osasis: MicroOSASIS, tmp_path: Path, encode: dict[str, Any], changes: dict[str, Any], message: str
) -> None:
    settings = changes | ({"diffae": micro_osasis.other} if "diffae" in changes else {})

    def attempt() -> None:
        data = samples(micro_osasis, pool=2, cache=str(tmp_path / "pool"), encode=encode, **settings)
        fit(tmp_path, make_osasis(micro_osasis), data)

    with pytest.raises(UserError, match=message):
        attempt()


def test_data_and_method_share_one_autoencoder(micro_osasis: MicroOSASIS, tmp_path: Path) -> None:
    folders = set()
    for precision in ("float32", "bfloat16"):
        method = make_osasis(micro_osasis, frozen_precision=precision)
        method.configure_model()
        data = samples(micro_osasis, frozen_precision=precision, pool=1, cache=str(tmp_path))
        data.trainer = quiet_trainer(tmp_path, 1)
        assert data._autoencoder().model is method.A
        folders.add(data._pool_folder())
    assert len(folders) == 2, "a pool is of one precision"


def test_training_needs_no_photos_to_stylize(micro_osasis: MicroOSASIS, tmp_path: Path) -> None:
    data = samples(micro_osasis, photos="nowhere/")
    run = fit(tmp_path, make_osasis(micro_osasis, iterations=1), data, steps=1, limit_val_batches=0)
    assert run.global_step == 1
    with pytest.raises(UserError, match="'nowhere.*' does not exist"):
        quiet_trainer(tmp_path, 1).predict(make_osasis(micro_osasis), data)


def test_a_damaged_pool_is_named(micro_osasis: MicroOSASIS, tmp_path: Path) -> None:
    encode = {"steps": 4, "t0": 0.5}
    data = samples(micro_osasis, pool=1, cache=str(tmp_path / "pool"), encode=encode)
    data.trainer = quiet_trainer(tmp_path, 1)
    data.train_dataloader()
    for file in sorted((tmp_path / "pool").rglob("*.pt")):
        whole, content = file.read_bytes(), torch.load(file, weights_only=True)
        file.write_bytes(whole[:1000])
        with pytest.raises(UserError, match=r"000000-000000.pt is damaged; remove it"):
            data.train_dataloader()
        for key, values in content.items():
            torch.save(content | {key: torch.cat([values, values])}, file)
            with pytest.raises(UserError, match=rf"000000-000000.pt: {key} is .*, expected .*remove it"):
                data.train_dataloader()
            torch.save(content | {key: values * torch.nan}, file)
            data.train_dataloader()
            with pytest.raises(UserError, match=rf"The pool .* holds NaN or infinite values: {key} .*remove it"):
                data.on_after_batch_transfer({"index": torch.tensor([0])}, 0)
        file.write_bytes(whole)
    data.train_dataloader()
