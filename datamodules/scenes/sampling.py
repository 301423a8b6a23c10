"""Scenes as pure functions of (seed, index): counter-based random numbers and the container of attributes."""

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

_GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15 as a signed 64-bit number
_FIRST = -4658895280553007687  # the two multipliers of the splitmix64 finalizer, signed
_SECOND = -7723592293110705685


def _shift(x: Tensor, bits: int) -> Tensor:
    """Logical right shift of int64 (torch's own shift keeps the sign)."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def mix(x: Tensor) -> Tensor:
    """Finalizer of splitmix64 (Steele et al., OOPSLA 2014): a bijection of int64 that looks random."""
    x = x + _GOLDEN
    x = (x ^ _shift(x, 30)) * _FIRST
    x = (x ^ _shift(x, 27)) * _SECOND
    return x ^ _shift(x, 31)


def unit(x: Tensor) -> Tensor:
    """Hash values (int64) as float32 uniform in [0, 1), exact multiples of 2^-24."""
    return _shift(x, 40).to(torch.float32) / float(1 << 24)


@dataclass(frozen=True)
class Scenes:
    """A batch of scenes.

    Attributes:
        kind: "portrait", "animal" or "landscape".
        identity: (B,) int64, the index that the lasting attributes were drawn from.
        key: (B,) int64, hash that the noise of the picture (grain, paper) is drawn from.
        uniforms: (B, K) float32 in [0, 1), the random numbers that the attributes were made of, K of a kind.
        values: attribute name -> (B,) int64 class, (B,) float32 amount or (B, 3) float32 colour in [0, 1].
    """

    kind: str
    identity: Tensor
    key: Tensor
    uniforms: Tensor
    values: dict[str, Tensor]

    def __len__(self) -> int:
        return self.identity.shape[0]

    def __getitem__(self, items: slice | Sequence[int] | Tensor) -> "Scenes":
        picked = items if isinstance(items, slice | Tensor) else torch.as_tensor(list(items))
        return self._map(lambda tensor: tensor[picked])

    def to(self, device: torch.device | str) -> "Scenes":
        """The same scenes on another device."""
        return self._map(lambda tensor: tensor.to(device))

    def _map(self, change: Callable[[Tensor], Tensor]) -> "Scenes":
        values = {name: change(tensor) for name, tensor in self.values.items()}
        others = {name: change(getattr(self, name)) for name in ("identity", "key", "uniforms")}
        return replace(self, values=values, **others)


class Draw:
    """Random attributes of a batch, each a function of (key, attribute name) unless it is overridden."""

    def __init__(self, key: Tensor, overrides: dict[str, Any]) -> None:
        self.key = key
        self.overrides = overrides
        self.values: dict[str, Tensor] = {}
        self.uniforms: dict[str, Tensor] = {}

    def rekey(self, key: Tensor) -> "Draw":
        """A Draw from other keys that fills the same dictionaries."""
        other = Draw(key, self.overrides)
        other.values, other.uniforms = self.values, self.uniforms
        return other

    def uniform(self, name: str) -> Tensor:
        """(B,) float32 in [0, 1)."""
        self.uniforms[name] = unit(mix(self.key ^ mix(torch.tensor(zlib.crc32(name.encode()), device=self.key.device))))
        return self.uniforms[name]

    def amount(self, name: str, low: float | Tensor, high: float | Tensor) -> Tensor:
        """Record a (B,) float32 uniform in [low, high)."""
        value = low + (high - low) * self.uniform(name)
        if name in self.overrides:
            value = torch.full_like(value, float(self.overrides[name]))
        self.values[name] = value
        return value

    def choice(self, name: str, weights: Sequence[float] | Tensor, order: Sequence[int] | None = None) -> Tensor:
        """Record a (B,) int64 class.

        Args:
            name: of the attribute.
            weights: of the classes, (K,) or one row for each scene (B, K).
            order: the K classes, neighbours alike, as the uniform that is kept counts them; None for their own order.
        """
        table = torch.as_tensor(weights, dtype=torch.float32, device=self.key.device)
        edges = (table / table.sum(-1, keepdim=True)).cumsum(-1)
        edges = edges.expand(self.key.shape[0], -1).contiguous()
        uniform = self.uniform(name)
        value = torch.searchsorted(edges, uniform[:, None], right=True)[:, 0]
        value = value.clamp(max=table.shape[-1] - 1)
        if order is not None:
            self.uniforms[name] = reordered(uniform, value, edges, order)
        if name in self.overrides:
            value = torch.full_like(value, int(self.overrides[name]))
        self.values[name] = value
        return value

    def tint(self, name: str, table: Sequence[Sequence[float]], picked: Tensor, jitter: float) -> Tensor:
        """Record a (B, 3) colour: row `picked` of the table, brightness and hue moved by up to `jitter`."""
        rows = torch.tensor(table, dtype=torch.float32, device=self.key.device)[picked]
        moves = torch.stack([self.uniform(f"{name}/{c}") for c in "rgb"], dim=-1) - 0.5
        shared = self.uniform(f"{name}/all")[:, None] - 0.5
        value = (rows * (1 + jitter * (shared + moves))).clamp(0, 1)
        self.values[name] = value
        return value


def reordered(uniform: Tensor, value: Tensor, edges: Tensor, order: Sequence[int]) -> Tensor:
    """Uniforms (B,) that lie as deep in the interval of their class as before, the intervals in another order.

    Args:
        uniform: (B,) in [0, 1).
        value: (B,), the classes that they lie in.
        edges: (B, K), the upper ends of the K intervals before.
        order: of the classes.
    """
    shares = edges.diff(dim=-1, prepend=torch.zeros_like(edges[:, :1]))
    starts = torch.empty_like(edges)
    starts[:, list(order)] = shares[:, list(order)].cumsum(-1) - shares[:, list(order)]
    row = value[:, None]
    depth = uniform - (edges - shares).gather(1, row)[:, 0]
    return (starts.gather(1, row)[:, 0] + depth).clamp(0, 1 - 2**-24)


def scene_keys(seed: int, indices: Sequence[int], view: int | None) -> tuple[Tensor, Tensor, Tensor]:
    """Index (B,), the key of the lasting attributes and the key of the passing ones, all int64."""
    index = torch.as_tensor(indices, dtype=torch.int64).reshape(-1)
    lasting = mix(mix(torch.tensor(seed, dtype=torch.int64)) ^ index)
    passing = lasting if view is None else mix(lasting + mix(torch.tensor(view + 1, dtype=torch.int64)))
    return index, lasting, passing
