"""The SMS method against the reference trajectory, and what it promises around it."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_styles.diffusion.schedules import NoiseSchedule
from lightning_styles.diffusion.scores import Query, Scores
from lightning_styles.errors import UserError
from lightning_styles.methods.sms import SMS
from lightning_styles.models.adapters import adapter_parameters, load_adapter_state
from tests.golden.fill import fill_, load_case, values
from tests.golden.sms_world import SCHEDULER, make_unet

CASE, EXPECTED = load_case("sms/f_trajectory")
CONFIG = CASE["config"]
SEED = CONFIG["seed"]


class GoldenSMS(SMS):
    """SMS on the networks, prompts and draws of the golden trajectory, for `pictures` copies of its picture."""

    def build(self, pictures: int = 1) -> "GoldenSMS":
        self.scores = Scores(make_unet(CONFIG, SEED + 1), make_unet(CONFIG, SEED + 2), has_lora=False)
        self.scores.add_fakes(pictures, CONFIG["rank"], CONFIG["alpha"])
        self.schedule = NoiseSchedule.from_config(SCHEDULER)
        self.grid = self.schedule.grid(CONFIG["steps"])
        self.names = [f"picture{i}" for i in range(pictures)]
        shape = (1, CONFIG["text_len"], CONFIG["unet"]["cross_attention_dim"])
        text = {name: values(f"text.{name}", shape, SEED) for name in ("tgt", "edit", "null", "src")}
        pair = {k: torch.stack([v, text["null"]], 1).repeat(pictures, 1, 1, 1) for k, v in text.items()}
        self.text = {"tgt_style": pair["tgt"], "tgt": pair["tgt"], "src": pair["src"], "edit": pair["edit"]}
        z = (0.8 * values("src_x0", CONFIG["latent"], SEED)).repeat(pictures, 1, 1, 1)
        self.z_tgt = nn.Parameter(z.clone())
        self.register_buffer("z_src", z.clone())
        for i in range(pictures):
            state = {k: p.detach().clone() for k, p in adapter_parameters(self.scores.real_unet, f"fake{i}").items()}
            load_adapter_state(self.scores.real_unet, f"fake{i}", fill_(state, SEED + 3, scale=CONFIG["lora_scale"]))
        return self

    def draw(self, purpose: str, bounds: tuple[int, int]) -> tuple[Tensor, Tensor]:
        drawn = CASE["draws"][self.iteration]
        short = {"generator": "gen", "fake": "fake"}[purpose]
        index = drawn[f"{short}_index"]
        seen = CASE["index_bounds_seen"][2 * self.iteration + (purpose == "fake")]
        assert list(bounds) == seen, "the range of timesteps differs from the reference's"
        eps = values(f"f.iter{self.iteration}.{short}.noise", CONFIG["latent"], SEED)
        return torch.tensor([index] * len(self.names)), eps.repeat(len(self.names), 1, 1, 1)

    def log_losses(self, losses: dict[str, Tensor]) -> None:
        self.logged = getattr(self, "logged", []) + [losses]


def golden(pictures: int = 1, **settings: Any) -> GoldenSMS:
    weights = {"style": 1.0, "identity": CONFIG["lambda_dct"]}
    defaults = {"base": "golden", "style": "golden", "iterations": CASE["N"], "lr": CONFIG["lr"], "weights": weights}
    return GoldenSMS(**(defaults | settings)).build(pictures)


def run(method: GoldenSMS) -> GoldenSMS:
    with method.optimizing_alone():
        for i in range(method.iterations):
            method.iteration = i
            method.iterate()
    return method


@pytest.mark.parametrize("pictures", [1, 2])
def test_the_whole_loop_follows_the_reference(pictures: int) -> None:
    method = run(golden(pictures))
    for i in range(pictures):
        error = (method.z_tgt[i : i + 1] - EXPECTED["tgt_final"]).abs()
        assert error.max() < 2e-3
        assert error.mean() < 1e-5
        for key, parameter in adapter_parameters(method.scores.real_unet, f"fake{i}").items():
            assert (parameter - EXPECTED[f"lora_final.{key}"]).abs().max() < 3e-4, key


def test_two_bases_take_two_calls_and_one_base_takes_one() -> None:
    method = golden()
    calls: list[int] = []
    for unet in (method.scores.real_unet, method.scores.style_unet):
        unet.register_forward_pre_hook(lambda _, args: calls.append(len(args[0])))
    t, z = torch.tensor([101]), method.z_src
    queries = [Query("style", z, method.text["tgt"]), Query("fake", z, method.text["tgt"])]
    with torch.no_grad():
        method.scores([*queries, Query("real", z, method.text["edit"])], t)
        assert sorted(calls) == [2, 4]
        calls.clear()
        single = Scores(method.scores.real_unet, method.scores.real_unet, has_lora=False)
        answers = single([*queries, Query("real", z, method.text["edit"])], t)
    assert calls == [6]
    assert [tuple(a.shape) for a in answers] == [(1, 2, *z.shape[1:])] * 3


def test_no_gradient_reaches_the_frozen_networks() -> None:
    method = run(golden())
    trained = {id(p) for p in method.scores.fake_parameters(1)} | {id(method.z_tgt)}
    for name, parameter in method.named_parameters():
        assert (parameter.grad is not None) == (id(parameter) in trained), name


@pytest.mark.parametrize("identity", ["fixed", "mse", "none"])
def test_the_identity_terms_and_their_gradients_agree(identity: str) -> None:
    method = golden(identity=identity)
    with torch.no_grad():
        method.z_tgt += 0.1 * values("shift", method.z_tgt.shape, 1)
    t = torch.tensor([101])
    value, gradient = method.identity(t)
    z = method.z_tgt.detach().clone()
    for position in [(0, 0, 0, 0), (0, 2, 5, 7)]:
        step = 1e-2
        method.z_tgt.data = z.clone()
        method.z_tgt.data[position] += step
        up = method.identity(t)[0]
        method.z_tgt.data[position] -= 2 * step
        down = method.identity(t)[0]
        assert ((up - down) / (2 * step)).item() == pytest.approx(gradient[position].item(), rel=0.05, abs=1e-9)
    assert (value.item() == 0) == (identity == "none")


def test_an_empty_style_and_unknown_weights_are_refused() -> None:
    with pytest.raises(UserError, match="style is empty"):
        SMS(base="x", style=" ", weights={})
    with pytest.raises(UserError, match="weights has content; expected style, identity"):
        SMS(base="x", style="ink", weights={"content": 1.0})
