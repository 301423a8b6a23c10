"""`density`: which pictures of a folder are rare, and which common, to a diffusion autoencoder."""

import argparse
import csv
import json
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from lightning_styles.commands import LightParser, saying_when_interrupted
from lightning_styles.errors import UserError, at_least
from lightning_styles.files import check_writable
from lightning_styles.reading import FINITE, expect

SAVE_EVERY = 20.0  # seconds
TILE = 128  # px, of a picture in the sheets
TABLE, SHEET, LOW, HIGH = "density.json", "density.csv", "low_density.png", "high_density.png"
GOES_ON = "the same command goes on from there"
KEYS = ("name", "distance", "path")
COLUMNS: tuple[str, ...] = ("rank", *KEYS)

Row = dict[str, Any]  # KEYS of a picture, and its rank in the table


def parser() -> argparse.ArgumentParser:
    """The options of `density`."""
    options = LightParser(
        "density",
        description="Rank pictures by how much of them a diffusion autoencoder loses when it decodes their code from "
        "new noise. Rank 1, the largest distance, lies where its training data is thin: hands, masks, hats. Writes "
        "density.csv and sheets of both ends. Run again, it goes on where it stopped.",
    )
    options.add_argument("pictures", nargs="+", help="image files, folders or scenes; their middle square is seen")
    options.add_argument("--diffae", required=True, metavar="NAME", help="diffusion autoencoder: name or path")
    distance = options.add_mutually_exclusive_group(required=True)
    distance.add_argument("--lpips", metavar="NAME", help="trunk of LPIPS: name or path")
    distance.add_argument("--perceptual", metavar="NAME", help="small perceptual network in its place")
    options.add_argument("--out", type=Path, default=Path("out/density"), metavar="DIR", help="(default: out/density)")
    options.add_argument("--top", type=int, default=100, metavar="N", help="pictures of each end (default: 100)")
    options.add_argument("--resolution", type=int, default=256, metavar="N", help="of the autoencoder (default: 256)")
    options.add_argument("--steps", type=int, default=20, metavar="N", help="steps of DDIM (default: 20)")
    options.add_argument("--seed", type=int, default=0, metavar="N", help="key of the noise (default: 0)")
    options.add_argument("--batch-size", type=int, default=8, metavar="N", help="pictures at once (default: 8)")
    options.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps (default: auto)")
    options.add_argument("--fresh", action="store_true", help="measure again what is already in the table")
    return options


def main(arguments: list[str]) -> int:
    """Run `density` and return the exit code."""
    options = parser().parse_args(arguments)
    numbers = {"--top": options.top, "--steps": options.steps, "--batch-size": options.batch_size}
    at_least(1, **numbers)
    from lightning_styles.__main__ import check_siblings

    check_siblings()
    check_writable(options.out)
    return run(options)


def run(options: argparse.Namespace) -> int:
    """Measure the pictures that the table does not hold yet, and draw both ends."""
    from datamodules.pictures import Reader
    from datamodules.sources import check_apart, find_sources
    from lightning_styles.console import quiet, say

    quiet()
    sources = find_sources(options.pictures)
    check_apart(sources, options.out)
    reader = Reader(sources, options.resolution)
    recipe = recipe_of(options)
    check_own(options.out)
    known = read_table(options.out / TABLE, recipe)  # with --fresh too, which replaces no file of another kind
    known = {} if options.fresh else known
    rows = [row for source in reader.sources if (row := known.get((source.name, str(source.path or ""))))]
    names = {row["name"] for row in rows}
    waiting = [i for i, source in enumerate(reader.sources) if source.name not in names]
    say(f"density: {len(reader.sources)} pictures, {len(waiting)} to measure, into {options.out}")
    if waiting:
        with saying_when_interrupted(lambda: f"{len(rows)} of {len(sources)} pictures are measured; {GOES_ON}"):
            measure_all(options, reader, waiting, rows, recipe)
    if not rows:
        raise UserError(f"none of the {len(reader.sources)} pictures could be read; see the warnings above.")
    rows = write_table(options.out, recipe, rows)
    draw_ends(options.out, reader, rows, options.top, recipe)
    say(f"Table: {options.out / SHEET}", f"Pictures: {options.out / LOW} and {options.out / HIGH}")
    return 0


def check_own(folder: Path) -> None:
    """Refuse a folder with files of the names of results that are from elsewhere.

    Raises:
        UserError: naming the first one.
    """
    from lightning_styles.imaging import is_foreign

    table, heading = folder / SHEET, ",".join(COLUMNS).encode()
    foreign = [file for file in (folder / LOW, folder / HIGH) if is_foreign(file)]
    if table.exists() and not (table.is_file() and table.read_bytes().startswith(heading)):
        foreign.append(table)
    if foreign:
        raise UserError(f"{foreign[0]} is there already and is from elsewhere; move it, or give another --out.")


def recipe_of(options: argparse.Namespace) -> Row:
    """Everything that a distance depends on beside the picture."""
    from lightning_styles.pretrained import fingerprint, locate

    judge = ("lpips", options.lpips) if options.lpips else ("perceptual", options.perceptual)
    files = {"diffae": locate(options.diffae, "diffae"), judge[0]: locate(judge[1], judge[0])}
    hashes = {kind: fingerprint(path) for kind, path in files.items()}
    return hashes | {"resolution": options.resolution, "steps": options.steps, "seed": options.seed}


# ---- measuring


def measure_all(options: argparse.Namespace, reader: Any, waiting: list[int], rows: list[Row], recipe: Row) -> None:
    """Append a row for each of the pictures `waiting`; what is done is saved now and then, and at any end."""
    from lightning_styles.console import say

    start = saved = time.monotonic()
    before = len(rows)
    try:
        for row in measured(options, reader, waiting):
            rows.append(row)
            if time.monotonic() - saved > SAVE_EVERY:
                write_table(options.out, recipe, rows)
                saved, done = time.monotonic(), len(rows) - before
                left = (saved - start) / done * (len(waiting) - done) / 60
                say(f"{done} of {len(waiting)}, about {left:.0f} min left")
    finally:
        if rows:
            write_table(options.out, recipe, rows)


def measured(options: argparse.Namespace, reader: Any, waiting: list[int]) -> Iterator[Row]:
    """The rows of pictures, without ranks, a batch at a time."""
    import torch
    from lightning.fabric import Fabric

    from lightning_styles import noise
    from lightning_styles.devices import trainer_arguments
    from lightning_styles.diffusion.density import stochastic_reconstruction
    from lightning_styles.square import to_square

    device = Fabric(**trainer_arguments(options.device)).device
    autoencoder, judge = (network.to(device) for network in load_networks(options))
    shape, pictures = (3, options.resolution, options.resolution), reader.read(waiting)
    while batch := list(islice(pictures, options.batch_size)):
        names = [picture["name"] for picture in batch]
        draws = [torch.randn(shape, generator=noise.generator(options.seed, name, "density")) for name in names]
        images = torch.cat([to_square(picture["image"][None], options.resolution, "crop") for picture in batch])
        images = images.to(device)
        results = stochastic_reconstruction(autoencoder, images, torch.stack(draws).to(device), options.steps)
        with torch.no_grad():
            distances = judge(results, images).tolist()
        for picture, distance in zip(batch, distances, strict=True):
            path = str(reader.sources[picture["index"]].path or "")
            yield {"name": picture["name"], "path": path, "distance": distance}


def load_networks(options: argparse.Namespace) -> tuple[Any, Any]:
    """The autoencoder, and what measures distances.

    Raises:
        UserError: a file is missing or no such network, or the resolution is not one of the autoencoder's.
    """
    from lightning_styles.metrics.perceptual import load_distance
    from lightning_styles.pretrained import locate
    from lightning_styles.pretrained.diffae import load_diffae

    autoencoder = load_diffae(locate(options.diffae, "diffae")).model
    multiple = 2 ** (autoencoder.levels - 1)
    if options.resolution % multiple:
        raise UserError(f"--resolution is {options.resolution}; {options.diffae} needs a multiple of {multiple}.")
    return autoencoder, load_distance(options.lpips, options.perceptual)


# ---- the table and the sheets


def read_table(path: Path, recipe: Row) -> dict[tuple[str, str], Row]:
    """Rows by (name, path) of an earlier run of the same recipe."""
    mend = "remove it, or give another --out"
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is no table of density; {mend}.") from error
    row: dict[str, Any] = {"name": str, "path": str, "distance": FINITE}
    expect(table, {"recipe": dict, "pictures": [row]}, path, mend)
    return {(row["name"], row["path"]): row for row in table["pictures"]} if table["recipe"] == recipe else {}


def write_table(folder: Path, recipe: Row, rows: list[Row]) -> list[Row]:
    """Write the rows, the largest distance first, as CSV and, with the recipe, as JSON; return them ranked."""
    from lightning_styles.files import replacing

    ordered = sorted(rows, key=lambda row: (-row["distance"], row["name"]))
    ranked = [{"rank": rank, **{key: row[key] for key in KEYS}} for rank, row in enumerate(ordered, start=1)]
    with replacing(folder / TABLE) as file:
        file.write_text(json.dumps({"recipe": recipe, "pictures": ranked}, indent=1) + "\n", encoding="utf-8")
    with replacing(folder / SHEET) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(ranked)
    return ranked


def draw_ends(folder: Path, reader: Any, rows: list[Row], top: int, recipe: Row) -> None:
    """Sheets of the `top` first and last pictures, rank 1 and the last rank first; no picture is on both."""
    import torch
    from torchvision.utils import make_grid

    from lightning_styles.imaging import save_png
    from lightning_styles.square import to_square

    index = {source.name: i for i, source in enumerate(reader.sources)}
    count = min(top, max(1, len(rows) // 2))
    for name, end in ((LOW, rows[:count]), (HIGH, rows[::-1][:count])):
        pictures = reader.read(index[row["name"]] for row in end)
        tiles = torch.cat([to_square(picture["image"][None], TILE, "crop") for picture in pictures])
        sheet = make_grid(tiles, nrow=max(1, round(count**0.5)), pad_value=1.0)
        save_png(folder / name, sheet, recipe)
