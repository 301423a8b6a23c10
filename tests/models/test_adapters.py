"""Named adapters: each row of a batch goes through its own, and each gets its own gradient."""

import copy

import pytest
import torch
from torch import Tensor, nn

from lightning_styles.errors import UserError
from lightning_styles.models.adapters import (
    adapter_names,
    adapter_parameters,
    adapter_state,
    add_lora,
    enable_gradient_checkpointing,
    load_adapter_state,
    reset_lora,
    routed,
)
from tests.golden.fill import fill_, load_case
from tests.golden.sms_world import make_unet

CONFIG = load_case("sms/d_sms")[0]["config"]
ROWS = ["style", "style", "fake0", "fake0", None, None, "fake1"]


@pytest.fixture
def unet() -> nn.Module:
    unet = make_unet(CONFIG, seed=5)
    for seed, (name, targets) in enumerate(
        {
            "style": ["to_q", "to_k", "to_out.0", "conv1", "proj_in"],
            "fake0": ["to_q", "to_v"],
            "fake1": ["to_v"],
        }.items()
    ):
        add_lora(unet, name, rank=4, alpha=8, targets=targets)
        fill_(adapter_state(unet, name), seed)
        load_adapter_state(unet, name, fill_(adapter_state(unet, name), seed, scale=0.1))
    for p in adapter_parameters(unet, "style").values():
        p.requires_grad_(False)
    return unet


def inputs(rows: int) -> tuple[Tensor, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(0)
    z, text = torch.randn(rows, 4, 16, 16, generator=draw), torch.randn(rows, 7, 32, generator=draw)
    return z, torch.randint(1, 999, (rows,), generator=draw), text


def by_peft(unet: nn.Module, name: str | None, row: int) -> Tensor:
    """Row `row` of the inputs through one adapter, in a fresh copy, by the library's own switches."""
    unet = copy.deepcopy(unet)
    unet.disable_adapters() if name is None else unet.set_adapter(name)
    z, t, text = inputs(len(ROWS))
    return unet(z[row : row + 1], t[row : row + 1], text[row : row + 1]).sample.detach()[0]


def flags(unet: nn.Module) -> dict[str, bool]:
    return {key: p.requires_grad for key, p in unet.named_parameters()}


def gradients(unet: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    unet.zero_grad()
    loss.backward()
    return {key: p.grad.clone() for key, p in unet.named_parameters() if p.grad is not None}


def test_every_row_goes_through_its_own_adapter(unet: nn.Module) -> None:
    before = flags(unet)
    with torch.no_grad(), routed(unet, ROWS):
        found = unet(*inputs(len(ROWS))).sample
    assert flags(unet) == before
    for row, name in enumerate(ROWS):
        torch.testing.assert_close(found[row], by_peft(unet, name, row), rtol=1e-4, atol=1e-5)
    assert (found[0] - by_peft(unet, None, 0)).abs().max() > 1e-2


@pytest.mark.parametrize("names", ["fake0", ["fake0", "fake0"], None])
def test_one_adapter_for_all_rows_equals_the_library_exactly(unet: nn.Module, names: list[str] | str | None) -> None:
    with torch.no_grad(), routed(unet, names):
        found = unet(*inputs(2)).sample
    plain = copy.deepcopy(unet)
    plain.disable_adapters() if names is None else plain.set_adapter("fake0")
    with torch.no_grad():
        assert torch.equal(found, plain(*inputs(2)).sample)


def test_gradients_reach_the_adapters_of_their_own_rows_only(unet: nn.Module) -> None:
    with routed(unet, ROWS):
        out = unet(*inputs(len(ROWS))).sample
    found = gradients(unet, out[2:6].square().sum())  # fake0's rows and the base's
    assert set(found) == {k for k, p in unet.named_parameters() if ".fake0." in k or ".fake1." in k}
    assert all(not g.any() for k, g in found.items() if ".fake1." in k)
    plain = copy.deepcopy(unet)
    plain.set_adapter("fake0")
    z, t, text = inputs(len(ROWS))
    expected = gradients(plain, plain(z[2:4], t[2:4], text[2:4]).sample.square().sum())
    for key, g in expected.items():
        assert g.norm() > 0
        torch.testing.assert_close(found[key], g, rtol=1e-3, atol=1e-4 * g.abs().max().item())


@pytest.mark.parametrize("how", ["open context", "own checkpointing"])
def test_checkpointing_recomputes_with_the_adapters_of_the_forward(unet: nn.Module, how: str) -> None:
    unet.train()  # diffusers checkpoints in training mode only; there is no dropout in this network
    with routed(unet, ROWS):
        expected = gradients(unet, unet(*inputs(len(ROWS))).sample.square().sum())
    if how == "open context":
        unet.enable_gradient_checkpointing()
        with routed(unet, ROWS):
            found = gradients(unet, unet(*inputs(len(ROWS))).sample.square().sum())
    else:
        enable_gradient_checkpointing(unet)
        with routed(unet, ROWS):
            out = unet(*inputs(len(ROWS))).sample
        with routed(unet, None):
            found = gradients(unet, out.square().sum())
    assert found.keys() == expected.keys()
    for key, g in expected.items():
        assert g.norm() > 0
        torch.testing.assert_close(found[key], g, rtol=1e-4, atol=1e-5)


def test_contexts_nest_and_close(unet: nn.Module) -> None:
    def out() -> Tensor:
        with torch.no_grad():
            return unet(*inputs(2)).sample

    outside = out()
    with routed(unet, "fake0"):
        fake = out()
        with routed(unet, None):
            base = out()
        assert torch.equal(out(), fake)
        with pytest.raises(RuntimeError), routed(unet, "style"):
            raise RuntimeError
        assert torch.equal(out(), fake)
    assert torch.equal(out(), outside)
    assert not torch.equal(base, fake)


@pytest.mark.slow
def test_a_compiled_unet_follows_the_route(unet: nn.Module) -> None:
    compiled = torch.compile(unet, backend="eager")
    for names in (ROWS, ROWS[::-1]):
        with torch.no_grad(), routed(unet, names):
            z, t, text = inputs(len(ROWS))
            torch.testing.assert_close(compiled(z, t, text).sample, unet(z, t, text).sample)


def test_wrong_routes_are_refused(unet: nn.Module) -> None:
    with pytest.raises(ValueError, match="fake9"), routed(unet, ["fake9"]):
        pass
    with pytest.raises(ValueError, match="Length"), torch.no_grad(), routed(unet, ["fake0", None]):
        unet(*inputs(3))


def test_a_new_adapter_starts_as_the_base_and_is_reproducible() -> None:
    unets = [make_unet(CONFIG, seed=5) for _ in range(2)]
    state = torch.get_rng_state()
    for unet in unets:
        add_lora(unet, "fake", rank=8, alpha=32, generator=torch.Generator().manual_seed(7))
        torch.rand(3)  # the global random state plays no part
    torch.set_rng_state(state)
    a, b = (adapter_state(unet, "fake") for unet in unets)
    assert a.keys() == b.keys()
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert len(a) == 2 * 16
    for key, p in a.items():
        bound = p.shape[1] ** -0.5  # of a Kaiming-uniform draw with a = sqrt(5)
        assert (not p.any()) if "lora_B" in key else (0.8 * bound < p.abs().max() <= bound)
    with torch.no_grad(), routed(unets[0], None):
        base = unets[0](*inputs(2)).sample
    with torch.no_grad(), routed(unets[0], "fake"):
        assert torch.equal(unets[0](*inputs(2)).sample, base)
    reset_lora(unets[1], "fake", torch.Generator().manual_seed(8))
    assert any(not torch.equal(p, a[key]) for key, p in adapter_state(unets[1], "fake").items())


def test_adding_leaves_the_random_state_and_all_flags_alone(unet: nn.Module) -> None:
    before, state = flags(unet), torch.get_rng_state()
    add_lora(unet, "fake2", rank=2, alpha=2)
    assert torch.equal(torch.get_rng_state(), state)
    after = flags(unet)
    assert {k: after[k] for k in before if k in after} == {k: v for k, v in before.items() if k in after}
    assert all(p.requires_grad for p in adapter_parameters(unet, "fake2").values())
    assert adapter_names(unet) == {"style", "fake0", "fake1", "fake2"}


def test_adapters_stay_float32_in_a_half_precision_base() -> None:
    unet = make_unet(CONFIG, seed=5).to(torch.bfloat16)
    parameters = add_lora(unet, "fake")
    assert {p.dtype for p in parameters.values()} == {torch.float32}
    z, t, text = inputs(2)
    with routed(unet, ["fake", None]):
        out = unet(z.bfloat16(), t, text.bfloat16()).sample
    assert out.dtype == torch.bfloat16
    out.float().square().sum().backward()
    assert all(p.grad.dtype == torch.float32 for p in parameters.values())


def test_state_round_trip_is_strict(unet: nn.Module) -> None:
    state = adapter_state(unet, "fake0")
    reset_lora(unet, "fake0")
    load_adapter_state(unet, "fake0", state)
    assert all(torch.equal(p, state[key]) for key, p in adapter_parameters(unet, "fake0").items())
    with pytest.raises(UserError, match="do not fit"):
        load_adapter_state(unet, "fake1", state)
    key = next(iter(state))
    with pytest.raises(UserError, match=key):
        load_adapter_state(unet, "fake0", state | {key: state[key][:1]})
    with pytest.raises(ValueError, match="fake0"):
        adapter_parameters(unet, "nobody")


def test_attention_is_scaled_dot_product_attention(unet: nn.Module) -> None:
    assert {type(p).__name__ for p in unet.attn_processors.values()} == {"AttnProcessor2_0"}
