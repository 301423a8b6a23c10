"""`stylize`: pictures in, stylized pictures out; everything else comes from the checkpoint."""

import argparse
import re
from pathlib import Path
from typing import Any

from lightning_styles.commands import LightParser
from lightning_styles.errors import UserError
from lightning_styles.files import check_writable
from lightning_styles.prompts import check_lengths

DEVICES = "auto, cpu, cuda, cuda:N or mps"


def parser() -> argparse.ArgumentParser:
    """The options of `stylize`."""
    options = LightParser(
        "stylize",
        description="Stylize pictures with a trained checkpoint. Each result is a PNG.",
    )
    options.add_argument("pictures", nargs="+", help="image files or folders")
    options.add_argument("--style", required=True, metavar="CKPT", help="checkpoint file, or a run folder")
    options.add_argument("--out", default="out", metavar="DIR", help="folder for the results (default: out)")
    options.add_argument("--device", default="auto", help=f"{DEVICES} (default: auto)")
    options.add_argument(
        "--resolution", type=int, metavar="N", help="shorter side in pixels (default: that of the run, or of the file)"
    )
    options.add_argument("--batch-size", type=int, default=1, metavar="N", help="pictures at once (default: 1)")
    options.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="change a setting of the method, for example mode=multimodal; may be given several times",
    )
    options.add_argument(
        "--overwrite", action="store_true", help="make every result again, also in the place of files from elsewhere"
    )
    options.add_argument(
        "--trust", action="store_true", help="accept a checkpoint that names classes outside lightning_styles"
    )
    return options


def main(arguments: list[str]) -> int:
    """Run `stylize` and return the exit code."""
    options = parser().parse_args(arguments)
    settings = changes(options.set)
    check_lengths(settings.items())
    absent = [picture for picture in options.pictures if not Path(picture).exists()]
    if absent:
        raise UserError(f"There is no picture or folder {', '.join(absent)}; check the path.")
    from lightning_styles.__main__ import check_siblings

    check_siblings()
    check_writable(options.out)
    return run(options, settings)


def changes(given: list[str]) -> dict[str, Any]:
    """KEY=VALUE pairs as a tree of settings; values are YAML, keys may be dotted.

    Raises:
        UserError: naming a pair that is none.
    """
    import yaml

    from lightning_styles.commands.compare_rows import nested

    class Loader(yaml.SafeLoader):
        """Reads 1e-3 as a number, as the config files do; YAML 1.1 wants 1.0e-3."""

    Loader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), None)
    settings = {}
    for pair in given:
        key, equals, value = pair.partition("=")
        try:
            settings[key] = yaml.load(value, Loader)
        except (yaml.YAMLError, RecursionError, ValueError) as error:
            raise UserError(f"--set {pair}: the value cannot be read as YAML; put it in quotes.") from error
        if not (key and equals):
            raise UserError(f"--set {pair}: expected KEY=VALUE, such as mode=multimodal.")
    return nested(settings)


def run(options: argparse.Namespace, settings: dict[str, Any]) -> int:
    """Build method and data, predict, and say where the results are."""
    from lightning.pytorch import Trainer
    from lightning.pytorch.utilities.model_helpers import is_overridden

    from callbacks import EMA, ImageWriter
    from datamodules import Pictures
    from lightning_styles.checkpoint_fields import ANOTHER
    from lightning_styles.console import quiet, say
    from lightning_styles.devices import trainer_arguments
    from lightning_styles.progress import IterationBar
    from lightning_styles.trained import average_of, build_trained, open_trained

    quiet()
    where = trainer_arguments(options.device)
    checkpoint, content = open_trained(options.style, options.trust)
    model = build_trained(content, settings, Path(options.out))
    if not is_overridden("predict_step", model):
        raise UserError(f"{checkpoint} is one of {type(model).__name__}, which stylizes no pictures; {ANOTHER}.")
    resolution = options.resolution
    if resolution is None and not getattr(model, "own_size", False):
        resolution = content.get("datamodule_hyper_parameters", {}).get("resolution")
    data = Pictures(images=options.pictures, resolution=resolution, batch_size=options.batch_size)
    # The average of the weights, where the run had one, is the callback's, which takes it from the checkpoint.
    averages = [EMA()] if average_of(content) else []
    silent = {"logger": False, "enable_checkpointing": False, "enable_model_summary": False}
    silent |= {"default_root_dir": options.out}
    writer = ImageWriter(options.out, options.overwrite)
    trainer = Trainer(**where, **silent, callbacks=[writer, IterationBar(), *averages])  # type: ignore[arg-type]
    say(f"stylize: {type(model).__name__} from {checkpoint} on {trainer.strategy.root_device}")
    try:
        trainer.predict(model, datamodule=data, ckpt_path=str(checkpoint), return_predictions=False, weights_only=True)
    except SystemExit:
        if trainer.interrupted:  # Lightning turns Ctrl-C into exit code 1
            raise KeyboardInterrupt from None
        raise
    return 0
