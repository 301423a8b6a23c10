"""SMS and its options against the official code, iteration by iteration, and against numbers worked out by hand."""

from typing import Any

import pytest
import torch
from scipy.fft import dctn, idctn
from torch import Tensor, nn

from lightning_styles.diffusion.schedules import NoiseSchedule
from lightning_styles.diffusion.scores import Query, Scores
from lightning_styles.errors import UserError
from lightning_styles.methods.sms import SMS
from lightning_styles.models.adapters import adapter_parameters, load_adapter_state
from lightning_styles.precision import LOSS_SCALE
from tests.golden.fill import fill_, load_case, relative_error
from tests.golden.sms_world import SCHEDULER, latents, make_unet, noise, text

D, D_EXPECTED = load_case("sms/d_sms")
E, E_EXPECTED = load_case("sms/e_variants")
F, F_EXPECTED = load_case("sms/f_trajectory")
CONFIG = D["config"]  # that of the other cases too
RELATIVE = 1e-4  # the cases allow 2e-4 of the largest value, and 2e-3 of the value itself


class GoldenSMS(SMS):
    """SMS on the networks, prompts and latents of the parity cases, told what to draw, noting what it computes.

    Attributes:
        told: (index of the grid, noise (4, h, w)) of each picture by purpose.
        bounds: ranges that it would have drawn from, by purpose.
        noted: g, R and, by optimizer, the gradient of its step.
    """

    def build(self, pictures: int = 1) -> "GoldenSMS":
        seed = CONFIG["seed"]
        self.scores = Scores(make_unet(CONFIG, seed + 1), make_unet(CONFIG, seed + 2), has_lora=False)
        self.scores.add_fakes(pictures, CONFIG["rank"], CONFIG["alpha"])
        for i in range(pictures):
            state = {k: p.detach().clone() for k, p in self.fake(i).items()}
            load_adapter_state(self.scores.real_unet, f"fake{i}", fill_(state, seed + 3, scale=CONFIG["lora_scale"]))
        self.schedule = NoiseSchedule.from_config(SCHEDULER)
        self.grid = self.schedule.grid(self.hparams.grid_steps)
        self.names = [f"picture{i}" for i in range(pictures)]
        pair = {
            name: torch.stack([text(CONFIG, name), text(CONFIG, "null")], 1).repeat(pictures, 1, 1, 1)
            for name in ("tgt", "src", "edit")
        }
        self.text = pair | {"tgt_style": pair["tgt"]}
        z_src, z_tgt = (z.repeat(pictures, 1, 1, 1) for z in latents(CONFIG))
        self.z_tgt = nn.Parameter(z_tgt)
        self.register_buffer("z_src", z_src)
        self.told: dict[str, list[tuple[int, Tensor]]] = {}
        self.bounds: dict[str, list[int]] = {}
        self.noted: dict[str, Any] = {}
        return self

    def fake(self, picture: int = 0) -> dict[str, nn.Parameter]:
        """The parameters of a fake score."""
        return adapter_parameters(self.scores.real_unet, f"fake{picture}")

    def tell(self, purpose: str, *drawn: tuple[int, str]) -> None:
        self.told[purpose] = [(index, noise(CONFIG, name)[0]) for index, name in drawn]

    def draw(self, purpose: str, bounds: tuple[int, int]) -> tuple[Tensor, Tensor]:
        self.bounds[purpose] = list(bounds)
        indices, eps = zip(*self.told[purpose], strict=True)
        return torch.tensor(indices), torch.stack(eps)

    def distill(self, t: Tensor, t_prev: Tensor, eps: Tensor) -> tuple[Tensor, Tensor | float]:
        self.noted["g"], self.noted["R"] = super().distill(t, t_prev, eps)
        return self.noted["g"], self.noted["R"]

    def optimize(self, name: str, loss: Tensor, gradient: Tensor | None = None, **words: Any) -> None:
        super().optimize(name, loss, gradient, **words)
        of_fake = {k: p.grad / LOSS_SCALE for k, p in self.fake().items() if p.grad is not None}
        self.noted[name] = of_fake if name == "fake" else gradient

    def log_losses(self, losses: dict[str, Tensor]) -> None:
        self.noted["losses"] = losses


def golden(pictures: int = 1, **settings: Any) -> GoldenSMS:
    weights = {"style": 1.0, "identity": CONFIG["lambda_dct"]}
    defaults = {"base": "golden", "style": "golden", "iterations": 100, "weights": weights}
    return GoldenSMS(**(defaults | settings)).build(pictures)


def one_iteration(method: GoldenSMS, *drawn: tuple[int, str], iteration: int = 0) -> GoldenSMS:
    """`method` after an iteration whose two steps draw the same."""
    method.iteration = iteration
    for purpose in ("generator", "fake"):
        method.tell(purpose, *drawn)
    with method.optimizing_alone():
        method.iterate()
    return method


def agree(found: Tensor, expected: Tensor) -> None:
    error = relative_error(found.reshape(expected.shape), expected)
    assert error < RELATIVE, f"off by {error:.1e} of the largest value"


# ---- the official code


@pytest.mark.parametrize("cases", [*([case] for case in D["evals"]), D["evals"]], ids=lambda x: str(len(x)))
def test_the_generators_step_agrees_with_the_reference(cases: list[dict[str, Any]]) -> None:
    """Alone, and three pictures at timesteps of their own as one batch."""
    drawn = [(case["grid_index"], f"{case['tag']}.noise") for case in cases]
    method = one_iteration(golden(len(cases)), *drawn, iteration=round(100 * cases[0]["epoch_ratio"]))
    assert method.bounds["generator"] == cases[0]["index_bounds"]
    losses, found = {"style": 0.0, "identity": 0.0}, method.noted
    for row, case in enumerate(cases):
        expected = {key.partition(".")[2]: x for key, x in D_EXPECTED.items() if key.startswith(case["tag"])}
        agree(found["g"][row], expected["grad_raw"])
        agree(found["R"][row], expected["relevance"])
        agree(found["generator"][row], expected["dloss_dtgt"])
        losses["style"] += expected["style_loss"].item()
        losses["identity"] += expected["psr_loss"].item()
    for name, value in losses.items():
        assert found["losses"][name].item() == pytest.approx(value, rel=RELATIVE)


@pytest.mark.parametrize("case", [c for c in E["evals"] if c["method"] != "diffusion"], ids=lambda c: c["tag"])
def test_vsd_sds_dds_pds_agree_with_the_reference(case: dict[str, Any]) -> None:
    method = golden(objective=case["method"], sampling="full", relevance=False, identity="none")
    one_iteration(method, (case["grid_index"], f"{case['tag']}.noise"), iteration=30)
    assert list(method.bounds.values()) == [case["index_bounds"]] * (2 if case["method"] == "vsd" else 1)
    agree(method.noted["g"], E_EXPECTED[f"{case['tag']}.grad_raw"])
    agree(method.noted["generator"], E_EXPECTED[f"{case['tag']}.dloss_dtgt"])
    assert method.noted["losses"]["style"].item() == pytest.approx(
        E_EXPECTED[f"{case['tag']}.loss"].item(), rel=RELATIVE
    )


@pytest.mark.parametrize("case", [c for c in E["evals"] if c["method"] == "diffusion"], ids=lambda c: c["tag"])
def test_the_fake_scores_step_agrees_with_the_reference(case: dict[str, Any]) -> None:
    t, eps, tag = torch.tensor([case["t"]]), noise(CONFIG, f"{case['tag']}.noise"), case["tag"]
    losses = {}
    for weight in ("alpha_bar_squared", "none"):
        method = golden(fake_weight=weight)
        with method.optimizing_alone():
            losses[weight] = method.fake_step(t, eps)
        scale = 1.0 if weight == "alpha_bar_squared" else case["alpha_bar_t"] ** -2
        assert losses[weight].item() == pytest.approx(E_EXPECTED[f"{tag}.loss"].item() * scale, rel=RELATIVE)
        for key, gradient in method.noted["fake"].items():
            agree(gradient, scale * E_EXPECTED[f"{tag}.grad.{key}"])
        assert method.z_tgt.grad is None, "the latents are not taught to be easy to denoise"


@pytest.mark.parametrize("pictures", [1, 2])
def test_four_iterations_of_both_optimizers_agree_with_the_reference(pictures: int) -> None:
    method = golden(pictures, iterations=F["N"], lr=F["config"]["lr"])
    method.z_tgt.data.copy_(method.z_src)
    with method.optimizing_alone():
        for i, drawn in enumerate(F["draws"]):
            for purpose, short in (("generator", "gen"), ("fake", "fake")):
                method.tell(purpose, *[(drawn[f"{short}_index"], f"f.iter{i}.{short}.noise")] * pictures)
            before = F_EXPECTED[f"iter{i}.tgt_before"].expand_as(method.z_tgt)
            torch.testing.assert_close(method.z_tgt.detach(), before, rtol=0, atol=1e-4)
            method.iteration = i
            method.iterate()
            assert list(method.bounds.values()) == F["index_bounds_seen"][2 * i : 2 * i + 2]
            losses = method.noted["losses"]
            total = losses["style"] + losses["identity"]
            for name, value in (("gen", total), ("fake", losses["fake"])):
                assert value.item() / pictures == pytest.approx(F_EXPECTED[f"iter{i}.{name}.loss"].item(), rel=5e-3)
    for i in range(pictures):
        error = (method.z_tgt[i : i + 1] - F_EXPECTED["tgt_final"]).abs()
        assert error.max() < 2e-3
        assert error.mean() < 1e-5
        for key, parameter in method.fake(i).items():
            assert (parameter - F_EXPECTED[f"lora_final.{key}"]).abs().max() < 3e-4, key


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
    method = one_iteration(golden(), (201, "d0.noise"))
    trained = {id(p) for p in method.scores.fake_parameters(1)} | {id(method.z_tgt)}
    for name, parameter in method.named_parameters():
        assert (parameter.grad is not None) == (id(parameter) in trained), name


# ---- options, by hand

DRAWN = (D["evals"][1]["grid_index"], "d1.noise")  # t = 121


def test_weights_are_factors_on_the_gradients_of_the_terms() -> None:
    style = D_EXPECTED["d1.relevance"] * D_EXPECTED["d1.grad_raw"] / D_EXPECTED["d1.grad_raw"].numel()
    weights = {"style": 0.25, "identity": CONFIG["lambda_dct"]}
    method = one_iteration(golden(weights=weights), DRAWN)
    agree(method.noted["generator"], D_EXPECTED["d1.dloss_dtgt"] - 0.75 * style)
    agree(one_iteration(golden(weights={"identity": 0.0}), DRAWN).noted["generator"], style)


def test_guidance_is_the_weight_of_the_prompt_in_both_scores() -> None:
    case, x = D["evals"][1], {key[3:]: value for key, value in D_EXPECTED.items() if key.startswith("d1.")}
    for guidance in (1.0, 7.5):
        teacher, fake = (
            x[f"{who}_uncond"] + guidance * (x[f"{who}_cond"] - x[f"{who}_uncond"]) for who in ("teacher", "fake")
        )
        method = one_iteration(golden(guidance=guidance), DRAWN)
        agree(method.noted["g"], case["w_t"] * (teacher - fake))
        agree(method.noted["R"], x["relevance"])


@pytest.mark.parametrize("relevance", [True, False])
def test_the_relevance_map_weighs_any_objective_where_it_is_asked_for(relevance: bool) -> None:
    method = one_iteration(golden(objective="sds", relevance=relevance, identity="none"), DRAWN)
    R = D_EXPECTED["d1.relevance"] if relevance else 1.0
    agree(method.noted["generator"], R * method.noted["g"] / method.noted["g"].numel())


@pytest.mark.parametrize(
    ("settings", "threshold", "power"),
    [
        ({"identity": "progressive"}, int(121 / 500 * 30), 1),
        ({"identity": "progressive", "t_max": 250}, int(121 / 250 * 30), 1),
        ({"identity": "progressive", "spectrum_norm": "l2"}, int(121 / 500 * 30), 2),
        ({"identity": "fixed"}, int(0.3 * 30), 1),
        ({"identity": "fixed", "spectrum_norm": "l2"}, int(0.3 * 30), 2),
        ({"identity": "mse"}, 30, 2),  # Parseval: all frequencies
        ({"identity": "none"}, -1, 1),
    ],
    ids=str,
)
def test_the_identity_term_protects_low_frequencies(settings: dict[str, Any], threshold: int, power: int) -> None:
    weight = 2e-3
    method = golden(weights={"identity": weight}, **settings)
    value, gradient = method.identity(torch.tensor([121]))
    z = (method.z_tgt - method.z_src).detach().double().numpy()
    low = torch.arange(16)[:, None] + torch.arange(16) <= threshold
    spectrum = low.numpy() * dctn(z, axes=(-2, -1), norm="ortho")
    assert value.item() == pytest.approx(weight * (abs(spectrum) ** power).sum() / z.size, rel=1e-5)
    slope = torch.from_numpy(spectrum).sign().numpy() if power == 1 else 2 * spectrum
    expected = torch.from_numpy(idctn(weight * slope / z.size, axes=(-2, -1), norm="ortho")).float()
    torch.testing.assert_close(gradient, expected, rtol=1e-3, atol=1e-9)


@pytest.mark.parametrize(
    ("settings", "latents_range", "fake_range"),
    [  # half of the 100 iterations are done
        ({}, (10, 125), (10, 250)),
        ({"fake_sampling": "paper"}, (10, 125), (10, 490)),
        ({"sampling": "uniform"}, (10, 250), (10, 250)),
        ({"sampling": "linear"}, (124, 125), (10, 250)),
        ({"sampling": "full"}, (10, 490), (10, 490)),
        ({"objective": "vsd", "sampling": "full"}, (10, 490), (10, 490)),
        ({"objective": "vsd"}, (10, 125), (10, 250)),
        ({"t_max": 800}, (10, 200), (10, 400)),
        ({"t_min": 100}, (50, 125), (50, 250)),
        ({"t_min": 100, "sampling": "full"}, (50, 490), (50, 490)),
        ({"grid_steps": 100}, (2, 25), (2, 50)),
        ({"grid_steps": 100, "sampling": "full", "t_min": 0}, (1, 98), (1, 98)),
    ],
    ids=str,
)
def test_the_timesteps_that_may_be_drawn(
    settings: dict[str, Any], latents_range: tuple[int, int], fake_range: tuple[int, int]
) -> None:
    method = golden(**settings)
    method.iteration = 50
    assert (method.generator_range(), method.fake_range()) == (latents_range, fake_range)


def test_a_coarser_grid_has_fewer_timesteps_and_looks_further_back() -> None:
    method = one_iteration(golden(grid_steps=100, relevance=False, identity="none"), (12, "d1.noise"))
    assert method.grid[:3].tolist() == [1, 11, 21]
    t, t_prev = 121, 111
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    a = torch.cumprod(1 - betas, 0)
    w_t = betas[t] * (1 - a[t_prev]) / (1 - a[t])
    agree(method.noted["g"], w_t * (D_EXPECTED["d1.teacher_cfg"] - D_EXPECTED["d1.fake_cfg"]))


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_the_step_of_the_latents_is_that_of_the_settings(optimizer: str) -> None:
    lr, eps, decay = (0.8, 1e-6, 0.3) if optimizer == "adamw" else (2e4, 1e-8, 0.3)
    method = golden(optimizer=optimizer, lr=lr, eps=eps, weight_decay=decay, warmup=4)
    start, gradients = method.z_tgt.detach().clone(), []
    with method.optimizing_alone():
        for name in ("d1.noise", "d2.noise"):
            for purpose in ("generator", "fake"):
                method.tell(purpose, (60, name))
            method.iterate()
            gradients.append(method.noted["generator"])
            if len(gradients) == 1:
                assert torch.equal(method.z_tgt, start), "the warm-up begins at 0"
    first, second = gradients
    rate = lr / 4
    if optimizer == "adamw":
        mean = (0.9 * 0.1 * first + 0.1 * second) / (1 - 0.9**2)
        square = (0.999 * 0.001 * first**2 + 0.001 * second**2) / (1 - 0.999**2)
        expected = start * (1 - rate * decay) - rate * mean / (square.sqrt() + eps)
    else:
        expected = start - rate * second
    assert (expected - start).abs().max() > 1e-2
    torch.testing.assert_close(method.z_tgt.detach(), expected, rtol=1e-4, atol=1e-5)


def test_rates_follow_the_length_of_the_run() -> None:
    method = golden(iterations=8, warmup=2, lr=0.7, fake_lr=0.02)
    named = method.named_optimizers()
    (generator, schedule), (fake, constant) = named["generator"], named["fake"]
    assert schedule is not None
    assert [schedule.lr_lambdas[0](i) for i in (0, 1, 2, 7, 12)] == pytest.approx([0, 0.5, 1, 0.5, 0])
    assert constant is None
    assert (schedule.base_lrs, fake.param_groups[0]["lr"]) == ([0.7], 0.02)
    assert fake.param_groups[0]["eps"] == 1e-8 * LOSS_SCALE  # as its loss, so that the steps are those of eps 1e-8
    assert (fake.param_groups[0]["weight_decay"], generator.param_groups[0]["betas"]) == (0, (0.9, 0.999))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"style": " "}, "style is empty"),
        ({"weights": {"content": 1.0}}, "weights has content; expected style, identity"),
        ({"grid_steps": 0}, "grid_steps is 0; it must be at least 1"),
        ({"grid_steps": 300}, "grid_steps is 300; it must divide the 1000 training timesteps"),
        ({"t_min": -1}, "t_min is -1; it must be at least 0"),
        ({"t_max": 1001}, "t_max is 1001; there are 1000 timesteps"),
        ({"t_min": 500}, "no timestep of a grid of 500 lies between t_min 500 and t_max 500"),
        ({"t_min": 990, "t_max": 1000}, "no timestep of a grid of 500 lies between t_min 990"),
        ({"grid_steps": 20, "t_max": 90}, "no timestep of a grid of 20 lies between t_min 20 and t_max 90"),
    ],
    ids=str,
)
def test_settings_that_cannot_work_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        SMS(**({"base": "x", "style": "ink", "weights": {}} | settings))
