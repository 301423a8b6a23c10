"""Score distillation gradients, against the reference and against autograd."""

import pytest
import torch
from torch import Tensor

from lightning_styles.diffusion.timesteps import fake_range, generator_lr_factor, generator_range, plain_range
from lightning_styles.losses.score_distillation import (
    cfg,
    dds_gradient,
    fake_score_loss,
    pds_gradient,
    relevance_map,
    sds_gradient,
    style_loss,
    vsd_gradient,
)
from lightning_styles.losses.spectrum import low_pass_mask, spectrum_loss, threshold
from lightning_styles.models.adapters import adapter_state, routed
from tests.golden.fill import load_case, relative_error
from tests.golden.sms_world import World

D, D_EXPECTED = load_case("sms/d_sms")
E, E_EXPECTED = load_case("sms/e_variants")
F, F_EXPECTED = load_case("sms/f_trajectory")
RELATIVE = 1e-4  # the cases allow 2e-4 of the largest value, and 2e-3 of the value itself


@pytest.fixture(scope="module")
def world() -> World:
    return World(D["config"])


def assert_agree(found: dict[str, Tensor], expected: dict[str, Tensor], tag: str) -> None:
    for name, tensor in found.items():
        reference = expected[f"{tag}.{name}"]
        error = relative_error(tensor.reshape(reference.shape), reference)
        assert error < RELATIVE, f"{tag}.{name} is off by {error:.1e} of its largest value"


@torch.no_grad()
def sms_step(world: World, z_tgt: Tensor, z_src: Tensor, t: Tensor, eps: Tensor) -> dict[str, Tensor]:
    """All tensors of one generator step (the rows of z are samples with timesteps t of their own)."""
    schedule, s = world.schedule, world.config["guidance"]
    z_t = schedule.add_noise(z_tgt, eps, t)
    out = dict(
        zip(
            ("teacher_cond", "teacher_uncond"),
            world.eps(world.style, z_t, t, "tgt", "null").chunk(2),
            strict=True,
        )
    )
    with routed(world.real, "fake"):
        fake = world.eps(world.real, z_t, t, "tgt", "null").chunk(2)
    out |= dict(zip(("fake_cond", "fake_uncond"), fake, strict=True))
    with routed(world.real, None):
        real = world.eps(world.real, schedule.add_noise(z_src, eps, t), t, "edit", "null").chunk(2)
    out |= dict(zip(("real_edit", "real_uncond"), real, strict=True))
    for who in ("teacher", "fake"):
        out[f"{who}_cfg"] = cfg(out[f"{who}_cond"], out[f"{who}_uncond"], s)
    out["w_t"] = schedule.posterior_variance(t, t - 2)
    out["grad_raw"] = vsd_gradient(out["teacher_cfg"], out["fake_cfg"], out["w_t"])
    out["relevance"] = relevance_map(*real)
    out["style_loss"], style_gradient = style_loss(out["grad_raw"], out["relevance"])
    h, w = z_t.shape[2:]
    mask = low_pass_mask(h, w, threshold(t, h, w))
    out["psr_loss"], psr_gradient = spectrum_loss(z_tgt, z_src, mask, world.config["lambda_dct"])
    out["psr_loss_unweighted"] = out["psr_loss"] / world.config["lambda_dct"]
    out["loss"] = out["style_loss"] + out["psr_loss"]
    out["dloss_dtgt"] = style_gradient + psr_gradient
    return out


def test_sms_step_agrees_with_the_reference(world: World) -> None:
    for case in D["evals"]:
        t = torch.tensor([case["t"]])
        assert threshold(t, 16, 16).item() == case["dct_threshold"]
        assert list(generator_range("narrowing", round(100 * case["epoch_ratio"]), 100)) == case["index_bounds"]
        found = sms_step(world, world.z_tgt, world.z_src, t, world.noise(f"{case['tag']}.noise"))
        assert found.pop("w_t").item() == pytest.approx(case["w_t"], rel=1e-5)
        assert_agree(found, D_EXPECTED, case["tag"])


def test_three_steps_as_one_batch_agree_with_the_reference(world: World) -> None:
    t = torch.tensor([case["t"] for case in D["evals"]])
    eps = torch.cat([world.noise(f"{case['tag']}.noise") for case in D["evals"]])
    found = sms_step(world, world.z_tgt.expand(3, -1, -1, -1), world.z_src.expand(3, -1, -1, -1), t, eps)
    del found["w_t"]
    for row, case in enumerate(D["evals"]):
        assert_agree({name: x[row] for name, x in found.items()}, D_EXPECTED, case["tag"])


@torch.no_grad()
def test_vsd_sds_dds_pds_agree_with_the_reference(world: World) -> None:
    schedule, s = world.schedule, world.config["guidance"]
    for case in (c for c in E["evals"] if c["method"] != "diffusion"):
        method, tag, t = case["method"], case["tag"], torch.tensor([case["t"]])
        assert list(plain_range()) == case["index_bounds"]
        eps = world.noise(f"{tag}.noise")
        z_t_tgt, z_t_src = (schedule.add_noise(z, eps, t) for z in (world.z_tgt, world.z_src))
        eps_tgt = cfg(*world.eps(world.style, z_t_tgt, t, "tgt", "null").chunk(2), s)
        eps_src = cfg(*world.eps(world.style, z_t_src, t, "src", "null").chunk(2), s)
        a, a_prev = schedule.alpha_bar(t), schedule.alpha_bar(t - 2)
        if method == "vsd":
            g = sms_step(world, world.z_tgt, world.z_src, t, eps)["grad_raw"]
        elif method == "sds":
            g = sds_gradient(eps_tgt, eps, a)
        elif method == "dds":
            g = dds_gradient(eps_tgt, eps_src)
        else:
            g = pds_gradient(world.z_tgt, world.z_src, eps_tgt, eps_src, schedule.beta(t), a, a_prev)
        value, gradient = style_loss(g)
        found = {"grad_raw": g, "loss": value, "dloss_dtgt": gradient}
        if method != "vsd":
            found["eps_cfg_tgt"] = eps_tgt
        assert_agree({k: x for k, x in found.items() if f"{tag}.{k}" in E_EXPECTED}, E_EXPECTED, tag)


def test_fake_score_loss_and_its_gradients_agree_with_the_reference(world: World) -> None:
    for case in (c for c in E["evals"] if c["method"] == "diffusion"):
        tag, t = case["tag"], torch.tensor([case["t"]])
        eps, alpha_bar_t = world.noise(f"{tag}.noise"), world.schedule.alpha_bar(t)
        assert alpha_bar_t.item() == pytest.approx(case["alpha_bar_t"], rel=1e-6)
        with routed(world.real, "fake"):
            eps_fake = world.eps(world.real, world.schedule.add_noise(world.z_tgt, eps, t), t, "tgt")
        loss = fake_score_loss(eps_fake, eps, alpha_bar_t)
        found = dict(zip(world.lora, torch.autograd.grad(loss.sum(), list(world.lora.values())), strict=True))
        found = {f"grad.{name}": g for name, g in found.items()} | {"pred_cond": eps_fake, "loss": loss}
        assert_agree(found, E_EXPECTED, tag)
        paper = fake_score_loss(eps_fake, eps, alpha_bar_t, weight="none")
        torch.testing.assert_close(paper * alpha_bar_t**2, loss)


def test_four_iterations_of_both_optimizers_agree_with_the_reference() -> None:
    world, N = World(F["config"]), F["N"]
    z_tgt = torch.nn.Parameter(world.z_src.clone())
    generator = torch.optim.AdamW([z_tgt], lr=F["generator_optimizer"]["lr"], weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(generator, lambda i: generator_lr_factor(i, N))
    fake = torch.optim.AdamW(world.lora.values(), lr=1e-3, weight_decay=0.0)
    for i, drawn in enumerate(F["draws"]):
        assert list(generator_range("narrowing", i, N)) == F["index_bounds_seen"][2 * i]
        assert list(fake_range()) == F["index_bounds_seen"][2 * i + 1]
        torch.testing.assert_close(z_tgt.detach(), F_EXPECTED[f"iter{i}.tgt_before"], rtol=0, atol=1e-4)
        t = world.grid[[drawn["gen_index"]]]
        found = sms_step(world, z_tgt.detach(), world.z_src, t, world.noise(f"f.iter{i}.gen.noise"))
        torch.testing.assert_close(found["loss"][0], F_EXPECTED[f"iter{i}.gen.loss"], rtol=1e-3, atol=0)
        z_tgt.grad = found["dloss_dtgt"]
        generator.step()
        schedule.step()

        t, eps = world.grid[[drawn["fake_index"]]], world.noise(f"f.iter{i}.fake.noise")
        with routed(world.real, "fake"):
            eps_fake = world.eps(world.real, world.schedule.add_noise(z_tgt.detach(), eps, t), t, "tgt")
        loss = fake_score_loss(eps_fake, eps, world.schedule.alpha_bar(t))
        torch.testing.assert_close(loss[0], F_EXPECTED[f"iter{i}.fake.loss"], rtol=1e-4, atol=0)
        fake.zero_grad()
        loss.sum().backward()
        fake.step()
    torch.testing.assert_close(z_tgt.detach(), F_EXPECTED["tgt_final"], rtol=0, atol=3e-4)
    for name, p in adapter_state(world.real, "fake").items():
        torch.testing.assert_close(p, F_EXPECTED[f"lora_final.{name}"], rtol=0, atol=3e-4)


def test_gradients_equal_autograd_through_the_stopped_target() -> None:
    draw = torch.Generator().manual_seed(0)
    z, g = torch.randn(2, 3, 4, 6, 10, dtype=torch.float64, generator=draw)
    R = torch.rand(3, 1, 6, 10, dtype=torch.float64, generator=draw)
    z.requires_grad_()
    loss = 0.5 * (z - (z - R * g).detach()).square().mean(dim=(1, 2, 3))
    value, gradient = style_loss(g, R)
    torch.testing.assert_close(value, loss.detach())
    torch.testing.assert_close(gradient, torch.autograd.grad(loss.sum(), z)[0])


def test_relevance_map_is_scaled_for_each_sample_and_one_where_flat() -> None:
    null = torch.zeros(2, 2, 1, 3)
    edit = null.clone()
    edit[0, :, 0] = torch.tensor([[2.0, 2.0, -5.0], [-2.0, 4.0, -5.0]])  # channel means 0, 3, -5
    R = relevance_map(edit, null)
    assert R.shape == (2, 1, 1, 3)
    torch.testing.assert_close(R[0, 0, 0], torch.tensor([0.0, 0.6, 1.0]))
    assert torch.equal(R[1], torch.ones(1, 1, 3))


def test_nan_in_a_prediction_does_not_reach_the_latent_but_the_value() -> None:
    eps = torch.ones(2, 1, 1, 2)
    bad = torch.tensor([[[[float("nan"), 3.0]]], [[[1.0, 3.0]]]])
    value, gradient = style_loss(vsd_gradient(bad, eps, torch.tensor([0.5, 0.5])))
    assert gradient.flatten().tolist() == [0.0, 0.5, 0.0, 0.5]
    assert value.isnan().tolist() == [True, False]


def test_nan_in_a_prediction_is_no_flat_relevance_map() -> None:
    null = torch.zeros(2, 1, 1, 3)
    edit = torch.tensor([[[[1.0, float("nan"), 2.0]]], [[[1.0, 1.0, 2.0]]]])
    R = relevance_map(edit, null)
    assert R[0].isnan().all()
    assert R[1].flatten().tolist() == [0.0, 0.0, 1.0]


def test_pds_equals_its_definition_with_both_noises() -> None:
    draw = torch.Generator().manual_seed(0)
    z_tgt, z_src, e_tgt, e_src, eps, eps_prev = torch.randn(6, 2, 4, 6, 10, dtype=torch.float64, generator=draw)
    beta = torch.tensor([0.002, 0.01], dtype=torch.float64)
    a, a_prev = (torch.tensor(x, dtype=torch.float64) for x in ([0.8, 0.2], [0.81, 0.23]))
    b, A, Ap = (x.reshape(2, 1, 1, 1) for x in (beta, a, a_prev))

    def zeta(z: Tensor, e: Tensor) -> Tensor:
        x_t, x_prev = A.sqrt() * z + (1 - A).sqrt() * eps, Ap.sqrt() * z + (1 - Ap).sqrt() * eps_prev
        x_0 = (x_t - (1 - A).sqrt() * e) / A.sqrt()
        mu = Ap.sqrt() * b / (1 - A) * x_0 + (1 - b).sqrt() * (1 - Ap) / (1 - A) * x_t
        return (x_prev - mu) / (b * (1 - Ap) / (1 - A)).sqrt()

    found = pds_gradient(z_tgt, z_src, e_tgt, e_src, beta, a, a_prev)
    torch.testing.assert_close(found, zeta(z_tgt, e_tgt) - zeta(z_src, e_src))
