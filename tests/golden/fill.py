"""Weights and inputs of the parity tests, made from names and a seed instead of being stored.

A tensor's random stream is NumPy's legacy generator seeded with crc32(name) + seed, so two programs that
agree on names agree on values. Matrices and kernels are divided by sqrt(fan in), or multiplied by `scale`
where it is given; vectors called ...weight lie around 1 and others around 0, both with deviation 0.1;
running variances lie above 0.5.
"""

import json
import zlib
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

FOLDER = Path(__file__).parent


def values(name: str, shape: tuple[int, ...] | list[int], seed: int = 0) -> Tensor:
    """Standard normal float32 input tensor of the given name."""
    stream = np.random.RandomState((zlib.crc32(name.encode()) + seed) % 2**32)
    return torch.from_numpy(np.asarray(stream.standard_normal(tuple(shape)), dtype=np.float32))


@torch.no_grad()
def fill_(state: dict[str, Tensor], seed: int = 0, scale: float | None = None) -> dict[str, Tensor]:
    """Overwrite every floating tensor of a state dict with its values; returns the same dict."""
    for key, tensor in state.items():
        if not tensor.is_floating_point():
            continue
        x = values(key, tensor.shape, seed)
        if tensor.ndim >= 2:
            x = x * np.float32(scale if scale is not None else (prod(tensor.shape[1:]) or 1) ** -0.5)
        elif key.endswith("running_var"):
            x = 0.5 + 0.5 * x.abs()
        else:
            x = 0.1 * x + (1.0 if key.endswith("weight") else 0.0)
        tensor.copy_(x)
    return state


def load_case(name: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Settings and expected tensors of a case such as "sms/a_dct"."""
    from safetensors.torch import load_file

    return json.loads((FOLDER / f"{name}.json").read_text()), load_file(FOLDER / f"{name}.safetensors")


def rounding_of(dtype: torch.dtype, products: Tensor) -> dict[str, float]:
    """Tolerance of `assert_close` for `products` that were computed in `dtype` on another processor.

    Sums in another order may fall to either side of a rounding, twice over where the product is scaled: two steps at
    the largest of them. What is stored in a format agrees at best to a step of that format.
    """
    return {"rtol": 0.0, "atol": 2 * torch.finfo(dtype).eps * products.abs().max().item()}


def relative_error(found: Tensor, expected: Tensor) -> float:
    """Largest deviation in units of the largest expected value."""
    return ((found - expected).detach().abs().max() / expected.abs().max()).item()
