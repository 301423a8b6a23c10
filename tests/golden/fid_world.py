"""Inputs and networks that the cases of FID and ArtFID share."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.golden.fill import fill_, load_case, values


def case_of(name: str) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, Tensor]]:
    """Settings, inputs and expected tensors of a case such as "fid/frechet"."""
    case, expected = load_case(name)
    return case, {key: made(rule) for key, rule in case["inputs"].items()}, expected


def made(rule: Mapping[str, Any]) -> Tensor:
    """The input tensor of a rule."""
    then = rule.get("then", {})
    x = values(rule["values"], rule["shape"], rule["seed"]) * then.get("mul", 1.0) + then.get("add", 0.0)
    return x.sigmoid() if rule.get("then_fn") == "sigmoid" else x


def picture(inputs: Mapping[str, Tensor]) -> Tensor:
    """The pictures (2, 3, H, W) in [0, 1] that both Inceptions are shown."""
    low, fine = inputs["low"], inputs["fine"]
    return torch.sigmoid(2 * F.interpolate(low, fine.shape[-2:], mode="bilinear", align_corners=False) + 0.5 * fine)


@torch.no_grad()
def fill_network(network: nn.Module, recipe: Mapping[str, Any]) -> dict[str, Tensor]:
    """The state of `network` with the weights of a recipe."""
    state = network.state_dict()
    for group in recipe["groups"]:
        fill_({key: x for key, x in state.items() if re.search(group["regex"], key)}, recipe["seed"], group["scale"])
    for rule in recipe["post"]:
        for key in (key for key in state if re.search(rule["regex"], key)):
            state[key] *= rule["mul"]
    return state


def made_of(make: Callable[[], nn.Module]) -> nn.Module:
    """A network whose constructor draws no weights, which take a second, and downloads none."""
    with torch.device("meta"):
        network = make()
    return network.to_empty(device="cpu")


def art_inception() -> nn.Module:
    """ArtFID's Inception, with two heads of few classes."""
    from torchvision.models import Inception3

    network = made_of(lambda: Inception3(aux_logits=False, init_weights=False))
    network.fc1, network.fc2, network.fc = nn.Linear(2048, 3), nn.Linear(2048, 2), None  # type: ignore[assignment]
    return network


def fid_inception(monkeypatch: Any) -> nn.Module:
    """FID's Inception as torch-fidelity builds it."""
    from torch_fidelity import feature_extractor_inceptionv3 as package

    with monkeypatch.context() as patch:
        patch.setattr(torch, "load", lambda *args, **kwargs: {})
        patch.setattr(package.FeatureExtractorInceptionV3, "load_state_dict", lambda self, state: None)
        patch.setattr(package.FeatureExtractorInceptionV3, "to", lambda self, *args: self)
        return made_of(lambda: package.FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], "none"))


def excess(found: Tensor, expected: Tensor, case: Mapping[str, Any]) -> float:
    """Largest deviation in units of a case's tolerance: it agrees when this is at most 1."""
    rule = case["tolerance"]
    allowed = rule["atol"] * expected.abs().max() + rule["rtol"] * expected.abs() + 1e-9
    return ((found.detach() - expected).abs() / allowed).max().item()


def write(state: Mapping[str, Tensor], path: Path) -> str:
    """`path`, where `state` now is as a PyTorch file."""
    torch.save(dict(state), path)
    return str(path)
