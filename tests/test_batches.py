"""Which method takes which data for which command: the whole table, and what is said of the rest."""

import importlib
import inspect
import pkgutil
from typing import Any

import pytest

import datamodules
import lightning_styles.methods
import lightning_styles.pretraining
from datamodules.scene_pool import ScenePool
from lightning_styles.batches import EVALUATION, Needs, check_data
from lightning_styles.errors import UserError
from lightning_styles.module import StyleModule

DATA = {name: getattr(datamodules, name) for name in datamodules.__all__} | {"ScenePool": ScenePool}
PHOTOS = {"Pictures", "StyleImages", "DiffAESamples", "Pairs"}
FACES = {"PseudoPairedStyleGAN", "JoJoGAN", "MindTheGap", "LayerSwap"}
DRAWING = {"PairCustomization", "StyleLoRA", "ConceptSlider", "StyleGuidance"}
TRAINING = set(DATA) - {"Prompts"}
SCENES = {"ScenePool"}
IMAGES = {"StyleImages", "DiffAESamples", "SceneImages", "ScenePool"}
FIT = {
    "SMS": {"Pictures"},
    "OSASIS": IMAGES,
    "StyleLoRA": {"StyleImages", "SceneImages", "ScenePool", "Pairs"},
    "PairCustomization": {"Pairs"},
    "ConceptSlider": {"Pairs"},
    "PseudoPairedStyleGAN": {"StyleImages"},
    "JoJoGAN": TRAINING,
    "MindTheGap": TRAINING,
    "AutoencoderPretraining": SCENES,
    "ClipPretraining": SCENES,
    "DiffAEPretraining": IMAGES,
    "LatentPriorPretraining": SCENES,
    "DrawnStyleGAN2Pretraining": SCENES,
    "GuidedDiffusionPretraining": IMAGES,
    "IdentityPretraining": {"SceneImages", "ScenePool"},
    "LatentDiffusionPretraining": SCENES,
    "LatentDiffusionXLPretraining": SCENES,
    "PerceptualPretraining": SCENES,
    "PSpPretraining": TRAINING,
    "StyleGAN2Pretraining": IMAGES,
}
DRAWN = dict.fromkeys(DRAWING, PHOTOS | {"Prompts"})
PREDICT = dict.fromkeys(("SMS", "SDEdit", "OSASIS", "PSpPretraining", *FACES), PHOTOS) | DRAWN


def methods() -> dict[str, type[StyleModule]]:
    """Every class that a config can name as its model."""
    found = {}
    for package in (lightning_styles.methods, lightning_styles.pretraining):
        for info in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
            for name, cls in vars(importlib.import_module(info.name)).items():
                if inspect.isclass(cls) and issubclass(cls, StyleModule) and not inspect.isabstract(cls):
                    found[name] = cls
    return found


def refusal(method: type, data: type | None, command: str) -> str | None:
    """What is said of the two, None for nothing; neither is built."""
    try:
        check_data(object.__new__(method), data and object.__new__(data), command)
    except UserError as error:
        return str(error)
    return None


def test_the_whole_table() -> None:
    known = methods()
    assert known.keys() >= FIT.keys() | PREDICT.keys()
    for command in ("fit", *EVALUATION):
        for name, fitting in (FIT if command == "fit" else PREDICT).items():
            assert {data for data in DATA if refusal(known[name], DATA[data], command) is None} == fitting, (
                name,
                command,
            )
            assert refusal(known[name], None, command) is not None


def test_what_prepares_from_style_pictures_needs_them() -> None:
    known = methods()
    fitting = {data for data in DATA if refusal(known["PseudoPairedStyleGAN"], DATA[data], "prepare") is None}
    assert fitting == {"StyleImages"}
    assert refusal(known["OSASIS"], None, "prepare") is None


@pytest.mark.parametrize(
    ("method", "data", "command", "says"),
    [
        (
            "SMS",
            "Prompts",
            "fit",
            "SMS cannot fit on Prompts, which gives nothing to fit; it reads pictures: "
            "set data.class_path to datamodules.Pictures.",
        ),
        ("SMS", None, "fit", "SMS has no data to fit: set data.class_path to datamodules.Pictures."),
        (
            "StyleLoRA",
            "Pictures",
            "fit",
            "StyleLoRA cannot fit on Pictures, which gives iteration, index; it reads image, caption or else style, "
            "prompt, style_size, crop: set data.class_path to datamodules.Pairs or datamodules.SceneImages or "
            "datamodules.StyleImages.",
        ),
    ],
)
def test_what_is_said(method: str, data: str | None, command: str, says: str) -> None:
    assert refusal(methods()[method], data and DATA[data], command) == says


def test_pairs_give_what_is_set() -> None:
    settings: dict[str, Any] = {
        "content": "scene:portrait/3",
        "prompt": "a dog",
        "scene_style": "cartoon",
        "resolution": 64,
    }
    drawn, photos = (
        datamodules.Pairs(**settings, **new) for new in ({"prompts": ["a cat"]}, {"photos": "scene:portrait/4"})
    )
    method = object.__new__(methods()["SMS"])
    check_data(method, photos, "predict")
    with pytest.raises(UserError, match="SMS cannot predict on Pairs, which gives prompt, name"):
        check_data(method, drawn, "predict")


class Foreign:
    """A method from elsewhere."""

    needs = {"fit": (Needs(("depth",), ("cameras",)),)}


class Views:
    """Data from elsewhere that it can take."""

    gives = {"fit": ("depth", "index")}
    cameras = ()


def test_classes_from_elsewhere_need_no_edit() -> None:
    assert refusal(Foreign, Views, "fit") is None
    assert refusal(Foreign, datamodules.Pictures, "fit") == (
        "Foreign cannot fit on Pictures, which gives iteration, index; it reads depth, cameras: "
        "set data.class_path to data that give it."
    )
    assert refusal(Foreign, object, "fit") is None  # says nothing, so it is tried
    assert refusal(object, datamodules.Prompts, "fit") is None


def test_metrics_of_fit_read_what_validation_brings() -> None:
    method: Any = object.__new__(methods()["JoJoGAN"])
    data = object.__new__(datamodules.SceneImages)
    check_data(method, data, "fit")
    method.__dict__["metrics"] = {"perceptual": "tiny/perceptual"}
    with pytest.raises(UserError, match="JoJoGAN cannot validate on SceneImages"):
        check_data(method, data, "fit")
