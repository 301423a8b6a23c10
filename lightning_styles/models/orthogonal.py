"""Two LoRAs whose down matrices are orthogonal to each other, for PairCustomization (arXiv 2405.01536, section 3.2).

W + B_c A_c + B_s A_s, the rows of A_c and A_s from one orthonormal basis of the layer's inputs, fixed: what the content
LoRA reads from its input the style LoRA cannot read. The basis depends on nothing but the width of the layer, so all
layers of equal width hold the same two matrices, once in memory and never in a file of ours.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lightning_styles.errors import UserError
from lightning_styles.models.adapters import adapter_parameters, add_lora, lora_layers

BASIS_SEED = 123846  # of the official code


def orthonormal_basis(width: int, seed: int = BASIS_SEED) -> Tensor:
    """Q (width, width) of the QR decomposition of a normal matrix; its rows are orthonormal."""
    return torch.linalg.qr(torch.randn(width, width, generator=torch.Generator().manual_seed(seed)))[0]


def add_orthogonal_loras(
    unet: nn.Module, ranks: dict[str, int], targets: Sequence[str], seed: int = BASIS_SEED
) -> dict[str, list[nn.Parameter]]:
    """Add adapters with alpha = rank, B = 0 and A frozen: consecutive rows of the basis of each layer's width.

    Args:
        unet: a diffusers model.
        ranks: rank of each adapter by name, in the order in which they take rows.
        targets: names, or ends of names, of the linear layers.
        seed: of the basis.

    Returns:
        What is trained of each adapter: its up matrices B.

    Raises:
        UserError: the ranks add up to more than the narrowest layer has inputs.
    """
    for name, rank in ranks.items():
        add_lora(unet, name, rank, float(rank), targets)
    layers = [(path, layer) for path, layer in lora_layers(unet) if ranks.keys() <= set(layer.lora_A)]
    path, narrowest = min(layers, key=lambda found: found[1].in_features)
    if sum(ranks.values()) > narrowest.in_features:
        parts = " + ".join(f"{name} {rank}" for name, rank in ranks.items())
        raise UserError(
            f"the ranks {parts} do not fit into {path}, which has {narrowest.in_features} inputs: directions that are "
            "orthogonal to each other must not be more than these; choose smaller ranks"
        )
    start = 0
    for name, rank in ranks.items():
        rows = {width: basis_rows(width, start, rank, seed) for width in {layer.in_features for _, layer in layers}}
        for _, layer in layers:
            layer.lora_A[name].weight = rows[layer.in_features]  # one parameter, shared by all layers of this width
        start += rank
    return {name: [p for p in adapter_parameters(unet, name).values() if p.requires_grad] for name in ranks}


def basis_rows(width: int, start: int, rank: int, seed: int) -> nn.Parameter:
    """A (rank, width), frozen: rows `start` and following of the basis."""
    return nn.Parameter(orthonormal_basis(width, seed)[start : start + rank].clone(), requires_grad=False)


def add_gaussian_loras(
    unet: nn.Module, ranks: dict[str, int], targets: Sequence[str], generator: torch.Generator
) -> dict[str, list[nn.Parameter]]:
    """The ablation of `add_orthogonal_loras`: A normal with deviation 1 / rank, of each layer its own, trained."""
    trained = {}
    for name, rank in ranks.items():
        parameters = add_lora(unet, name, rank, float(rank), targets)
        for key, p in parameters.items():
            if key.endswith("lora_A.weight"):
                p.data = torch.randn(p.shape, generator=generator) / rank
        trained[name] = list(parameters.values())
    return trained
