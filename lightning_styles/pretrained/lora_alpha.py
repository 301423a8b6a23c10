"""The alphas of a LoRA file: read from its tensors or its PEFT configuration, and folded into the up matrices."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from lightning_styles.errors import UserError
from lightning_styles.pretrained.weights import parse_json

FACTOR = re.compile(r"[._]lora(?:_linear_layer)?[._](up|down|A|B)\b")  # where the layer's name ends in a key
CONFIG, CONFIGURED = "adapter_config.json", "adapter_model.safetensors"  # in folders of PEFT
LARGEST = 1000  # alpha / rank; 1 and 2 are usual, and a value beyond is damage that would show as NaN much later
NAME = re.compile(r"\^?[\w.]+\$?")  # what PEFT and diffusers write as patterns: names of modules and their ends


def adapter_config(path: Path, metadata: Mapping[str, str]) -> dict[str, Any]:
    """The PEFT configuration, which diffusers writes into the header and PEFT beside the file; else {}.

    Raises:
        UserError: it is no JSON object, or too long to be one.
    """
    beside, text = path.with_name(CONFIG), metadata.get("lora_adapter_metadata")
    try:
        if text is None and path.name == CONFIGURED and beside.is_file():
            text = beside.read_text(encoding="utf-8")
    except (ValueError, OSError) as error:
        raise UserError(f"{beside} cannot be read ({error}); expected the PEFT configuration of the LoRA.") from error
    source = f"the configuration of {path.name}"
    config = {} if text is None else parse_json(text, source)
    if not isinstance(config, dict):
        raise UserError(f"{source} is a {type(config).__name__}, expected settings such as lora_alpha.")
    return config


def fold_alphas(
    state: Mapping[str, Tensor], config: Mapping[str, Any], source: str
) -> tuple[dict[str, Tensor], tuple[int, ...], tuple[float, ...]]:
    """The factors with alpha / rank multiplied into every up matrix; the ranks and alphas seen.

    Args:
        state: factors and alphas in float32.
        config: the PEFT configuration.
        source: name of the file, for the message.

    Raises:
        UserError: an alpha that is no single finite number, or beyond `LARGEST` times the rank.
    """
    folded = {key: value for key, value in state.items() if not key.endswith(".alpha")}
    ranks, alphas = set(), set()
    for key, up in folded.items():
        factor = FACTOR.search(key)
        if factor is None or factor[1] not in ("up", "B"):
            continue
        layer, rank = key[: factor.start()], up.shape[1]
        stored = state.get(f"{layer}.alpha")
        alpha = configured_alpha(config, layer, rank, source) if stored is None else stored.tolist()
        while isinstance(alpha, list) and len(alpha) == 1:
            alpha = alpha[0]
        alpha = number(alpha, f"{source}: alpha of {layer}", LARGEST * rank) or float(rank)
        folded[key] = up * (alpha / rank)
        ranks.add(rank)
        alphas.add(alpha)
    return folded, tuple(sorted(ranks)), tuple(sorted(alphas))


def configured_alpha(config: Mapping[str, Any], layer: str, rank: int, source: str) -> float:
    """Alpha of a layer by its PEFT configuration, as if not rank-stabilised; the rank if that says nothing."""
    part = layer.partition(".")[0]
    part = part if part in ("text_encoder", "text_encoder_2") else "unet"

    def setting(key: str) -> Any:
        return config.get(f"{part}.{key}", config.get(key))

    alpha, patterns, stabilised = setting("lora_alpha"), setting("alpha_pattern"), setting("use_rslora")
    if not isinstance(patterns, dict | None):
        raise UserError(f"{source}: alpha_pattern is a {type(patterns).__name__}, expected alphas by name of layer.")
    if not isinstance(stabilised, bool | None):
        raise UserError(f"{source}: use_rslora is {stabilised!r:.40}, expected true or false.")
    found = [value for name, value in (patterns or {}).items() if matches(name, layer, source)]
    found += [rank if alpha is None else alpha]
    value = number(found[0], f"{source}: lora_alpha", LARGEST * rank) or rank
    return value * rank**0.5 if stabilised else value


def matches(pattern: str, layer: str, source: str) -> bool:
    """Whether a pattern of PEFT means `layer`: its name, an end of that, or with ^ the whole name.

    PEFT takes any regular expression; one from a foreign file could run for hours, so none is run.

    Raises:
        UserError: it is more than a name.
    """
    if not NAME.fullmatch(pattern):
        raise UserError(f"{source}: alpha_pattern has {pattern!r:.60}, expected names of layers.")
    name = pattern.removesuffix("$")
    if name.startswith("^"):
        return layer.removeprefix("base_model.model.").removeprefix("unet.") == name[1:]
    return layer == name or layer.endswith(f".{name}")


def number(value: Any, what: str, largest: float) -> float:
    """`value` as a float.

    Raises:
        UserError: it is none, not finite, or larger than `largest`.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= largest:
        raise UserError(f"{what} is {value!r:.40}, expected a number up to {largest:g}.")
    return float(value)
