"""Every number that a config can set has bounds: what is none, infinite or below them is refused by its name."""

import importlib
import inspect
import math
import pkgutil
from typing import Any

import pytest

import callbacks
import datamodules
import lightning_styles.methods
import lightning_styles.pretraining
from datamodules.scene_pool import ScenePool
from lightning_styles.errors import UserError
from lightning_styles.module import StyleModule
from lightning_styles.signatures import alternatives, types_of

# Arguments without a default, and those without which others are refused.
GIVEN: dict[str, Any] = {
    "architecture": {}, "autoencoder": "a", "base": "b", "batch_size": 1, "classes": {}, "clip": "c",
    "content": "scene:portrait/3", "depths": [1], "diffae": "d", "encoder": "e", "features": 8, "hidden": 8,
    "identities": 4, "images": "scene:portrait/3", "iterations": 400, "kinds": ["portrait"], "layers": 2,
    "mapping_layers": 2, "output_dir": "out", "parts": 3, "perceptual": "p", "preview_prompts": [], "prompt": "a dog",
    "prompts": ["a dog"], "resolution": 64, "scene_style": "cartoon", "size": 64, "source": "g", "style": "s",
    "style_dim": 8, "style_image": "i", "style_images": "i", "style_phrase": "in x style", "stylegan2": "g",
    "styles": ["photo"], "text": {}, "tokenizer": "t", "vision": {}, "widths": [8],
    "steps": {"encode": 5, "decode": 5}, "predict_steps": {"encode": 5, "decode": 5},
}  # fmt: skip
OWN: dict[str, dict[str, Any]] = {
    "ScenePool": {"kinds": {"portrait": 4}, "styles": {"photo": 1.0}},
    "StyleGuidance": {"styles": [{"lora": "l", "phrase": "p", "share": 1.0}], "iterations": None},
    "LayerSwap": {"iterations": None},
    "OSASIS": {"text": None},
    "Pairs": {"style": None},
    "StyleImages": {"style": "photo"},
}
FREE = {  # numbers that may be negative, or that are checked where the file is open that says their bounds
    "seed", "basis_seed", "held_out_seed", "lora_strength", "ada_target", "LayerSwap.resolution",
    "DiffAESamples.resolution",
}  # fmt: skip


def configurable() -> dict[str, type]:
    """Every class that a config can name as its model, its data or a callback."""
    found: dict[str, type] = {name: getattr(datamodules, name) for name in datamodules.__all__}
    found |= {name: getattr(callbacks, name) for name in callbacks.__all__} | {"ScenePool": ScenePool}
    for package in (lightning_styles.methods, lightning_styles.pretraining):
        for info in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
            for name, cls in vars(importlib.import_module(info.name)).items():
                if inspect.isclass(cls) and issubclass(cls, StyleModule) and "__init__" in vars(cls):
                    found[name] = cls
    return {name: cls for name, cls in found.items() if name not in ("StyleModule", "LoRAMethod")}


def least_settings(name: str, cls: type) -> dict[str, Any]:
    """Settings that a class takes."""
    settings = {**GIVEN, **OWN.get(name, {})}
    simple = {"steps"} if int in alternatives(types_of(cls).get("steps")) else set()
    known = set(types_of(cls)) - simple
    return {key: value for key, value in settings.items() if key in known and value is not None}


@pytest.mark.parametrize("name", configurable())
def test_numbers_out_of_bounds_are_refused_by_name(name: str) -> None:
    cls: Any = configurable()[name]
    settings = least_settings(name, cls)
    cls(**settings)
    for key, hint in types_of(cls).items():
        kind = next((kind for kind in (float, int) if kind in alternatives(hint)), None)
        if kind is None or {key, f"{name}.{key}"} & FREE or (name in OWN and OWN[name].get(key, 0) is None):
            continue
        for wrong in (-1,) if kind is int else (-1.0, math.nan, math.inf):
            with pytest.raises(UserError, match=key):
                cls(**{**settings, key: wrong})
