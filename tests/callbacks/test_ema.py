"""EMA: the recursion by hand, the swap, the resume."""

import pytest
import torch

from callbacks import EMA
from lightning_styles.errors import UserError
from tests.callbacks.toy import Toy, loader, trainer


def expected(steps, decay):
    """The weight is t after iteration t; the average starts at the initial weight 0."""
    value = 0.0
    for t in range(1, steps + 1):
        value = decay * value + (1 - decay) * t
    return value


def test_recursion_over_what_is_trained(tmp_path):
    ema, model = EMA(0.9), Toy()
    trainer(tmp_path, [ema], steps=5).fit(model, loader())
    assert list(ema.shadow) == ["weight"]
    assert float(ema.shadow["weight"]) == pytest.approx(expected(5, 0.9), rel=1e-6)
    assert float(model.weight) == 5


class FilledLate(Toy):
    def on_fit_start(self):
        self.weight.data.fill_(3)


def test_it_starts_at_parameters_that_a_method_fills_when_the_run_starts(tmp_path):
    ema = EMA(0.9)
    trainer(tmp_path, [ema], steps=1).fit(FilledLate(), loader())
    assert float(ema.shadow["weight"]) == pytest.approx(0.9 * 3 + 0.1 * 4)


def test_average_stands_in_for_validation_and_leaves(tmp_path):
    ema, model = EMA(0.5), Toy()
    run = trainer(tmp_path, [ema], steps=4, val_check_interval=2, limit_val_batches=1)
    run.fit(model, loader(), loader(1))
    assert model.seen == pytest.approx([expected(2, 0.5), expected(4, 0.5)])
    assert float(model.weight) == 4
    with ema.swapped(model):
        assert float(model.weight) == pytest.approx(expected(4, 0.5))
    assert float(model.weight) == 4


def test_parameters_come_back_after_a_failure(tmp_path):
    ema, model = EMA(0.5), Toy()
    model.validation_step = lambda batch, batch_idx: 1 / 0
    run = trainer(tmp_path, [ema], steps=4, val_check_interval=2, limit_val_batches=1)
    with pytest.raises(ZeroDivisionError):
        run.fit(model, loader(), loader(1))
    assert float(model.weight) == 2


def test_resume_is_exact_and_evaluation_uses_the_checkpoint(tmp_path):
    straight = EMA(0.9)
    trainer(tmp_path, [straight], steps=6).fit(Toy(), loader())
    run = trainer(tmp_path, [EMA(0.9)], steps=2)
    run.fit(Toy(), loader())
    path = str(tmp_path / "k.ckpt")
    run.save_checkpoint(path)
    torch.load(path, weights_only=True)
    resumed, model = EMA(0.9), Toy()
    trainer(tmp_path, [resumed], steps=6).fit(model, loader(), ckpt_path=path)
    assert torch.equal(resumed.shadow["weight"], straight.shadow["weight"])
    tested = Toy()
    trainer(tmp_path, [EMA(0.9)]).test(tested, loader(1), ckpt_path=path, verbose=False)
    assert tested.seen == pytest.approx([expected(2, 0.9)])
    assert float(tested.weight) == 2


def test_mistakes(tmp_path):
    with pytest.raises(UserError, match=r"decay of EMA is 1\.0"):
        EMA(1.0)
    with pytest.raises(UserError, match="that starts with one of"):
        trainer(tmp_path, [EMA(only=["generator."])]).fit(Toy(), loader())
    other = EMA()
    other.load_state_dict({"shadow": {"gone": torch.zeros(1)}})
    with pytest.raises(UserError, match="does not fit"):
        trainer(tmp_path, [other]).fit(Toy(), loader())


def test_an_average_that_is_not_that_of_the_parameters(tmp_path, caplog):
    run = trainer(tmp_path, [EMA(0.9)], steps=2)
    run.fit(Toy(), loader())
    path = str(tmp_path / "k.ckpt")
    run.save_checkpoint(path)
    content = torch.load(path, weights_only=True)
    for odd in (torch.zeros(2), torch.full((1,), torch.nan), torch.zeros(1, dtype=torch.int64)):
        content["callbacks"]["EMA"]["shadow"]["weight"] = odd
        torch.save(content, path)
        with pytest.raises(UserError, match=r"The checkpoint's EMA: weight is .*, expected .*numbers of shape .1."):
            trainer(tmp_path, [EMA(0.9)], steps=4).fit(Toy(), loader(), ckpt_path=path)
    del content["callbacks"]["EMA"]
    torch.save(content, path)
    trainer(tmp_path, [EMA(0.9)], steps=4).fit(Toy(), loader(), ckpt_path=path)
    assert "The checkpoint holds no average; EMA begins it at iteration 2." in caplog.text
