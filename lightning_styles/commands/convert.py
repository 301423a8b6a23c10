"""`convert`: trained results in the formats of other tools, and StyleGAN2 between its formats."""

import argparse
from pathlib import Path
from typing import Any

from lightning_styles.commands import LightParser, saying_when_interrupted
from lightning_styles.errors import UserError
from lightning_styles.files import check_target, check_writable

FORMATS = {
    "kohya": "style LoRA in kohya layout, .safetensors (WebUI, ComfyUI)",
    "diffusers": "style LoRA (.safetensors) or base model (folder) in diffusers layout",
    "osasis": "OSASIS stylizer as its official code writes and reads it, iter_<n>.pt",
    "safetensors": "a small network of the embedded world, or a file of StyleGAN2, .safetensors",
    "rosinality": "StyleGAN2 as rosinality's code reads it, .pt, from NVIDIA's .pkl, .pt or .safetensors",
}


def export_trained(source: Path, output: Path, layout: str, trust: bool, overwrite: bool) -> None:
    """Let the method that wrote a checkpoint export it.

    Args:
        source: checkpoint or run folder.
        output: file or folder to write.
        layout: a key of FORMATS.
        trust: also accept classes from outside `lightning_styles`.
        overwrite: whether `output` may be there.

    Raises:
        UserError: the method does not write this layout, or `output` is the checkpoint.
    """
    from lightning_styles.trained import build_trained, load_weights, open_trained

    checkpoint, content = open_trained(str(source), trust)
    check_target(output, [checkpoint], overwrite)
    model: Any = build_trained(content, {})
    formats = getattr(model, "formats", {})
    if layout not in formats:
        writes = f"can be converted to {', '.join(formats)}" if formats else "learns nothing that other tools read"
        raise UserError(f"{type(model).__name__} {writes}, not {layout}.")
    check_writable(output.parent)
    load_weights(model, content)
    output.parent.mkdir(parents=True, exist_ok=True)
    model.export(output, layout)


def convert_stylegan2(source: Path, output: Path, layout: str) -> None:
    """Rewrite a file of StyleGAN2 that another program wrote.

    Raises:
        UserError: it is none.
    """
    from lightning_styles.pretrained.stylegan2 import load_stylegan2, save_rosinality, save_stylegan2

    check_writable(output.parent)
    save = save_rosinality if layout == "rosinality" else save_stylegan2
    save(output, load_stylegan2(source))


def parser() -> argparse.ArgumentParser:
    """The options of `convert`, with the table of conversions."""
    width = max(len(name) for name in FORMATS)
    rows = [f"  {name:<{width}}  {result}" for name, result in FORMATS.items()]
    options = LightParser(
        "convert",
        description="Write a trained checkpoint in the format of other tools.",
        epilog="\n".join(["formats (--to):", *rows]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    options.add_argument("input", type=Path, help="file, or a run folder")
    options.add_argument("output", type=Path, help="file or folder to write")
    options.add_argument("--to", required=True, choices=FORMATS, metavar="FORMAT", help="one of the list below")
    options.add_argument(
        "--overwrite", action="store_true", help="replace an output that is there; never the input itself"
    )
    options.add_argument(
        "--trust", action="store_true", help="accept a checkpoint that names classes outside lightning_styles"
    )
    return options


def main(arguments: list[str]) -> int:
    """Run `convert` and return the exit code."""
    options = parser().parse_args(arguments)
    if not options.input.exists():
        raise UserError(f"There is no file or folder {options.input}; check the path.")
    check_target(options.output, [options.input], options.overwrite)
    stylegan2 = options.input.suffix in (".pkl", ".pt", ".safetensors") and options.to in ("rosinality", "safetensors")
    with saying_when_interrupted(lambda: f"{options.output} is not whole; the same command makes it"):
        if stylegan2:
            convert_stylegan2(options.input, options.output, options.to)
        else:
            export_trained(options.input, options.output, options.to, options.trust, options.overwrite)
    print(f"Wrote {options.output}")
    return 0
