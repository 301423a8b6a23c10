"""Named LoRA adapters in one frozen UNet (arXiv 2106.09685), and which of them each row of a batch takes.

One UNet serves as style model, real model and fake score at once: `routed(unet, ["style", "fake", None])`
sends row 0 through the adapter "style", row 1 through "fake" and row 2 through the frozen base; a row may also
take several adapters at their own strengths, `(("content", 1.0), ("style", 0.4))`. The PEFT setters
(`set_adapter`, `disable_adapters`) are not used for that, because they also flip requires_grad: an adapter
switched off between its forward and its backward would silently get no gradient.
"""

import math
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

from lightning_styles.errors import UserError

Mix = tuple[tuple[str, float], ...]  # adapters and their strengths
Entry = str | Mix | None
Names = Entry | Sequence[Entry]

MOST_RANK = 4096  # of a LoRA; no layer of these networks is wider


def add_lora(
    unet: nn.Module,
    name: str,
    rank: int = 8,
    alpha: float = 32.0,
    targets: Sequence[str] = ("to_q", "to_v"),
    generator: torch.Generator | None = None,
) -> dict[str, nn.Parameter]:
    """Add a trainable LoRA adapter to a diffusers model: W + alpha / rank * B A.

    A is drawn Kaiming-uniform (a = sqrt(5)), B is zero, as in PEFT, but from `generator` (CPU) and in the
    order of the modules, so that neither the device nor the global random state matters. Both are float32
    whatever the base is; call it after the base got its precision. Every requires_grad flag that existed
    before is left as it was.

    Args:
        unet: a diffusers model (`UNet2DConditionModel`).
        name: of the adapter; no dots.
        rank: of B A.
        alpha: numerator of the scaling.
        targets: names, or ends of names, of the linear and convolution layers.
        generator: source of A; None is a generator with seed 0.

    Returns:
        The adapter's parameters, see `adapter_parameters`.
    """
    from peft import LoraConfig

    config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=list(targets), lora_dropout=0.0)  # pyright: ignore
    with adding_adapters(unet):
        unet.add_adapter(config, adapter_name=name)  # pyright: ignore[reportCallIssue]
    parameters = adapter_parameters(unet, name)
    for p in parameters.values():
        p.data = p.data.float()
        p.requires_grad_(True)
    reset_lora(unet, name, generator)
    return parameters


@torch.no_grad()
def reset_lora(unet: nn.Module, name: str, generator: torch.Generator | None = None) -> None:
    """Give an adapter its initial values again, see `add_lora`."""
    generator = generator or torch.Generator().manual_seed(0)
    for key, p in adapter_parameters(unet, name).items():
        if key.endswith("lora_A.weight"):
            p.copy_(nn.init.kaiming_uniform_(torch.empty(p.shape), a=math.sqrt(5), generator=generator))
        else:
            p.zero_()


def adapter_parameters(unet: nn.Module, name: str) -> dict[str, nn.Parameter]:
    """The parameters of one adapter, keyed `<module>.lora_A.weight` and `<module>.lora_B.weight`."""
    ends = {f".lora_{x}.{name}.weight": f".lora_{x}.weight" for x in "AB"}
    found = {
        key.removesuffix(end) + short: p
        for key, p in unet.named_parameters()
        for end, short in ends.items()
        if key.endswith(end)
    }
    if not found:
        raise ValueError(f"no adapter {name!r}; adapters of this model: {sorted(adapter_names(unet)) or 'none'}")
    return found


def adapter_state(unet: nn.Module, name: str) -> dict[str, Tensor]:
    """A copy of an adapter's weights, keyed as in `adapter_parameters`."""
    return {key: p.detach().clone() for key, p in adapter_parameters(unet, name).items()}


@torch.no_grad()
def load_adapter_state(unet: nn.Module, name: str, state: Mapping[str, Tensor]) -> None:
    """Write weights keyed as in `adapter_parameters` into an adapter; every key and shape must agree.

    Raises:
        UserError: keys missing or left over, or shapes that differ.
    """
    parameters = adapter_parameters(unet, name)
    wrong = sorted(parameters.keys() ^ state.keys())
    wrong += [key for key in parameters.keys() & state.keys() if parameters[key].shape != state[key].shape]
    if wrong:
        raise UserError(
            f"the weights for adapter {name!r} do not fit this model: {len(wrong)} keys missing, extra or "
            f"shaped differently, first {wrong[0]}; use the base model, rank and targets they were made with"
        )
    for key, p in parameters.items():
        p.copy_(state[key])


def adapter_names(unet: nn.Module) -> set[str]:
    """Names of all adapters in a model."""
    return {name for _, layer in lora_layers(unet) for name in layer.lora_A}


def lora_layers(unet: nn.Module) -> list[tuple[str, Any]]:
    """Module path and PEFT layer of every layer that carries adapters."""
    from peft.tuners.lora import LoraLayer

    return [(path, module) for path, module in unet.named_modules() if isinstance(module, LoraLayer)]


class Route:
    """The rows of the batch that each adapter serves; its two hooks live on every LoRA layer of one UNet.

    A hook on the way in tells PEFT to compute the base alone (its per-row `adapter_names` argument), one on
    the way out adds the adapters on slices of the batch. PEFT's own mixed forward would gather and scatter
    the rows through index lists, three copies and, on a GPU, three synchronisations for each adapter and
    layer; and for one adapter on all rows the slice is the plain path. Outside `routed`
    both hooks do nothing.
    """

    def __init__(self) -> None:
        self.adapters: set[str] = set()  # those known when the hooks were last installed
        self.entries: list[Entry] = [None]
        self.detached: frozenset[str] = frozenset()
        self.active = False
        self.products = Products()

    def install(self, unet: nn.Module) -> None:
        """Put the hooks on layers that do not carry them yet."""
        for path, layer in lora_layers(unet):
            if isinstance(layer.get_base_layer(), nn.Embedding) or any(getattr(layer, "use_dora", {}).values()):
                raise UserError(f"the adapter on {path} is an embedding or DoRA layer, expected plain LoRA")
            if self.before not in layer._forward_pre_hooks.values():
                layer.register_forward_pre_hook(self.before, with_kwargs=True)
                layer.register_forward_hook(self.after)

    def before(self, layer: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Any]) -> Any:
        """Ask the layer for its base output; PEFT checks here that the route is as long as the batch."""
        if not self.active:
            return None
        rows = len(args[0]) if len(self.entries) == 1 else len(self.entries)
        return args, kwargs | {"adapter_names": ["__base__"] * rows}

    def after(self, layer: Any, args: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        """Add strength * scaling * B A x to the rows of every adapter."""
        if not self.active:
            return None
        x = args[0]
        for name, strength, rows in self.slices():
            if name not in layer.lora_A:
                continue  # an adapter that does not reach this layer
            A, B = layer.lora_A[name], layer.lora_B[name]
            if A.weight.requires_grad or torch.compiler.is_compiling():  # a compiler finds equal products by itself
                down = self.applied(A, name, layer.lora_dropout[name](x[rows].to(A.weight.dtype)))
            else:
                down = self.products.of(A, x, rows)
            delta = (self.applied(B, name, down) * (strength * layer.scaling[name])).to(output.dtype)
            if rows == slice(None):
                output = output + delta
            else:
                output[rows] += delta
        return output

    def applied(self, factor: nn.Module, name: str, x: Tensor) -> Tensor:
        """A or B of the adapter `name`, without a gradient for the matrix itself if it is detached."""
        if name not in self.detached:
            return factor(x)
        return functional_call(factor, {key: p.detach() for key, p in factor.named_parameters()}, (x,))

    def slices(self) -> Iterator[tuple[str, float, slice]]:
        """Adapter, strength and slice of the batch, for each run of equal entries."""
        start = 0
        for entry, run in groupby(self.entries):
            stop = start + len(list(run))
            rows = slice(None) if stop - start == len(self.entries) else slice(start, stop)
            for name, strength in mix_of(entry):
                yield name, strength, rows
            start = stop


class Products:
    """A x of frozen matrices A for the last few inputs x.

    The queries, keys and values of a self-attention see one input, the keys and values of every cross-attention one
    text. Where their layers also hold one matrix A, as in PairCustomization, the product is the same.
    """

    KEPT = 6  # inputs; the text comes back after the four others of a transformer block

    def __init__(self) -> None:
        self.known: dict[int, tuple[Tensor, dict[Any, Tensor]]] = {}  # by id, which the kept tensor keeps its own

    def of(self, A: nn.Linear, x: Tensor, rows: slice) -> Tensor:
        """A x[rows]."""
        known, products = self.known.pop(id(x), (x, {}))
        self.known[id(x)] = known, products
        if len(self.known) > self.KEPT:
            del self.known[next(iter(self.known))]
        key = id(A.weight), rows.start, rows.stop, torch.is_grad_enabled(), torch.is_autocast_enabled(x.device.type)
        if key not in products:
            products[key] = A(x[rows].to(A.weight.dtype))
        return products[key]

    def forget(self) -> None:
        """Drop everything."""
        self.known.clear()


def mix_of(entry: Entry) -> Mix:
    """Adapters and strengths of an entry of a route."""
    if entry is None:
        return ()
    return ((entry, 1.0),) if isinstance(entry, str) else entry


def entries_of(names: Names) -> list[Entry]:
    """The entry of each row; one alone is for all rows."""
    alone = names is None or isinstance(names, str)
    is_mix = isinstance(names, tuple) and all(isinstance(part, tuple) and len(part) == 2 for part in names)
    is_mix = is_mix and all(isinstance(part[1], int | float) for part in names)  # type: ignore[index]
    return [names] if alone or is_mix else list(names)  # type: ignore[arg-type,list-item]


def route_of(unet: nn.Module) -> Route:
    """The UNet's route, its hooks installed on every LoRA layer."""
    route = unet.__dict__.setdefault("_adapter_route", Route())
    adapters = set(getattr(unet, "peft_config", {}))
    if adapters != route.adapters:
        route.install(unet)
        route.adapters = adapters
    return route


@contextmanager
def routed(unet: nn.Module, names: Names, detached: Collection[str] = ()) -> Iterator[None]:
    """Run row b of every batch through adapter names[b] while the context is open; None is the frozen base.

    No requires_grad flag changes. Equal names should stand side by side: each run of equal names is one
    product. With gradient checkpointing the backward recomputes the forward, so either keep the context
    open around the backward or switch checkpointing on with `enable_gradient_checkpointing`.

    Args:
        unet: a diffusers model with adapters.
        names: for each row, or one for all rows: an adapter, None, or several as ((name, strength), ...).
        detached: adapters that take part but get no gradient; requires_grad could not say so for some of several
            forwards before one backward.

    Raises:
        ValueError: an unknown adapter, or (from the forward) another number of rows.
    """
    route, entries = route_of(unet), entries_of(names)
    unknown = {name for entry in entries for name, _ in mix_of(entry)} - route.adapters
    if unknown:
        raise ValueError(f"no adapter {sorted(unknown)}; adapters of this model: {sorted(route.adapters)}")
    before = route.entries, route.detached, route.active
    route.entries, route.detached, route.active = entries, frozenset(detached), True
    try:
        yield
    finally:
        route.entries, route.detached, route.active = before
        route.products.forget()


def enable_gradient_checkpointing(unet: nn.Module) -> None:
    """Switch diffusers' gradient checkpointing on; each recomputation takes the route of its own forward."""

    def run(module: nn.Module, *args: Any) -> Any:
        route = route_of(unet)
        entries, detached, active = route.entries, route.detached, route.active

        def contexts() -> tuple[AbstractContextManager, AbstractContextManager]:
            return nullcontext(), routed(unet, entries, detached) if active else nullcontext()

        return checkpoint(module, *args, use_reentrant=False, context_fn=contexts)

    unet.enable_gradient_checkpointing(run)  # pyright: ignore[reportCallIssue]


@contextmanager
def adding_adapters(model: nn.Module) -> Iterator[None]:
    """Undo on leaving what PEFT does beside adding an adapter: other requires_grad flags, global random states."""
    flags = [(p, p.requires_grad) for p in model.parameters()]
    devices = sorted({p.device.index for p, _ in flags if p.device.type == "cuda"})
    with torch.random.fork_rng(devices), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Already found a `peft_config`")  # several adapters are the point here
        yield
    for p, flag in flags:
        p.requires_grad_(flag)
