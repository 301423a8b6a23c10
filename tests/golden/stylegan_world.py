"""Networks, inputs and tolerances that the StyleGAN2 parity cases share."""

import json
import re
from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from lightning_styles.models.stylegan2 import Discriminator, Generator
from tests.golden.fill import FOLDER, fill_, load_case, values

Net = TypeVar("Net", bound=nn.Module)


def case_of(name: str) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, Tensor]]:
    """Settings, inputs and expected tensors of a case."""
    case, expected = load_case(f"stylegan/{name}")
    return case, {key: made(rule) for key, rule in case["inputs"].items()}, expected


def made(rule: Mapping[str, Any]) -> Tensor:
    """The input tensor of a rule."""
    x, then = values(rule["values"], rule["shape"], rule["seed"]), rule.get("then", {})
    return x.abs() if then == "abs" else x * then.get("mul", 1.0) + then.get("add", 0.0)


def fill_state(state: dict[str, Tensor], recipe: Mapping[str, Any]) -> dict[str, Tensor]:
    """Fill the entries of `state`, in place, group by group."""
    for group in recipe["groups"]:
        chosen = {k: v for k, v in state.items() if re.search(group["regex"], k) and not re.search(recipe["skip"], k)}
        fill_(chosen, recipe["seed"], group["scale"])
    return state


def filled(module: Net, recipe: Mapping[str, Any]) -> Net:
    """`module`, frozen and in eval mode, with the weights of a recipe."""
    fill_state(module.state_dict(), recipe)
    return module.eval().requires_grad_(False)


def generator(case: Mapping[str, Any], config: str = "config", fill: str = "fill") -> Generator:
    """The generator of a case."""
    return filled(Generator(**case[config]), case[fill])


def discriminator(case: Mapping[str, Any], config: str = "config", fill: str = "fill") -> Discriminator:
    """The discriminator of a case."""
    return filled(Discriminator(**case[config]), case[fill])


def excess(found: Tensor, expected: Tensor, case: Mapping[str, Any], name: str = "") -> float:
    """Largest deviation in units of a case's tolerance: it agrees when this is at most 1."""
    rule = case["tolerance"]
    for pattern, other in case.get("tolerance_overrides", {}).items():
        rule = {**rule, **other} if re.search(pattern, name) else rule
    assert found.shape == expected.shape, f"{name}: {tuple(found.shape)} instead of {tuple(expected.shape)}"
    scale = expected.abs().max()
    if "max(1" in rule["rule"]:
        scale = scale.clamp_min(1.0)
    allowed = rule["atol"] * scale + rule["rtol"] * expected.abs() + 1e-9
    return ((found.detach() - expected).abs() / allowed).max().item()


def manifest(name: str) -> dict[str, Any]:
    """Settings, and under "state_dict" the shape of every key, of an official file."""
    found = json.loads((FOLDER / f"stylegan/manifest_{name}.json").read_text())
    return found | {"state_dict": {key: entry["shape"] for key, entry in found["state_dict"].items()}}


def meta_state(shapes: Mapping[str, list[int]]) -> dict[str, Tensor]:
    """Tensors of the given shapes that take no memory."""
    return {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}


def shapes_of(module: nn.Module) -> dict[str, list[int]]:
    """The shape of every key of `module`."""
    return {key: list(tensor.shape) for key, tensor in module.state_dict().items()}
