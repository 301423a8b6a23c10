"""`convert`: trained results in the formats of other tools, and the files of other tools in ours."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from lightning_styles.commands import LightParser
from lightning_styles.errors import UserError

Convert = Callable[[Path, Path, str, bool], None]


class Conversion(NamedTuple):
    """One row of the table that `convert --help` prints."""

    source: str
    result: str
    run: Convert


CONVERSIONS: dict[str, Conversion] = {}


def conversion(name: str, source: str, result: str) -> Callable[[Convert], Convert]:
    """Register a function as the conversion `--to name`.

    The function gets the input, the output, `name` and whether foreign classes are trusted. It writes the
    output and raises UserError when the input is of another kind.

    Args:
        name: the word after `--to`.
        source: what goes in, for the help.
        result: what comes out, for the help.
    """

    def register(
        function: Callable[[Path, Path, str, bool], None],
    ) -> Callable[[Path, Path, str, bool], None]:
        CONVERSIONS[name] = Conversion(source, result, function)
        return function

    return register


@conversion("official", "trained checkpoint", "the weights in the layout of the paper's own code")
@conversion("onnx", "trained checkpoint", "feed-forward generator, .onnx")
@conversion("png", "trained checkpoint", "the stylized pictures that a per-image method keeps, a folder")
@conversion("diffusers", "trained checkpoint", "style LoRA in diffusers layout, .safetensors")
@conversion("kohya", "trained checkpoint", "style LoRA in kohya layout, .safetensors (WebUI, ComfyUI)")
def export_trained(source: Path, output: Path, name: str, trust: bool) -> None:
    """Let the method that wrote a checkpoint export it."""
    from lightning_styles.trained import build_trained, load_weights, open_trained

    _, content = open_trained(str(source), trust)
    model = build_trained(content)
    export = getattr(model, "export", None)
    if export is None:
        raise UserError(f"{type(model).__name__} trains nothing that other tools could load.")
    load_weights(model, content)
    output.parent.mkdir(parents=True, exist_ok=True)
    export(output, name)


def parser() -> argparse.ArgumentParser:
    """The options of `convert`, with the table of conversions."""
    width = max(len(name) for name in CONVERSIONS)
    rows = [f"  {name:<{width}}  {row.source} -> {row.result}" for name, row in CONVERSIONS.items()]
    options = LightParser(
        "convert",
        description="Official checkpoints in, trained results out.",
        epilog="\n".join(["conversions (--to):", *rows]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    options.add_argument("input", type=Path, help="file, or a run folder")
    options.add_argument("output", type=Path, help="file or folder to write")
    options.add_argument(
        "--to", required=True, choices=CONVERSIONS, metavar="FORMAT", help="one of the list below"
    )
    options.add_argument(
        "--trust", action="store_true", help="accept a checkpoint that names classes outside lightning_styles"
    )
    return options


def main(arguments: list[str]) -> int:
    """Run `convert` and return the exit code."""
    options = parser().parse_args(arguments)
    if not options.input.exists():
        raise UserError(f"There is no file or folder {options.input}.")
    CONVERSIONS[options.to].run(options.input, options.output, options.to, options.trust)
    print(f"Wrote {options.output}")
    return 0
