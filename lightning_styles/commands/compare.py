"""`compare`: `test` on the rows of a table, each a few settings apart from a common config.

The YAML file of a comparison:

    config: [configs/tiny/sms.yaml]        # common files, layered
    set: {data.batch_size: 16}             # settings of every row, dotted or nested
    fit: true                              # train each row first; a row may say otherwise (default: false)
    rows:
      full: {label: SMS}                   # label, config (files of this row alone), and settings
      no_relevance: {model.init_args.relevance: false}
"""

import argparse
import hashlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from lightning_styles.commands import LightParser
from lightning_styles.errors import UserError

KEYS = ("config", "set", "fit", "rows")
# Settings of the trainer that change no number.
SILENT = ("default_root_dir", "callbacks", "logger", "enable_progress_bar")

Result = dict[str, Any]


class Row(NamedTuple):
    """One row: its own settings as a YAML tree, the command line that they belong to, and whether it trains first."""

    name: str
    label: str
    files: list[str]
    settings: dict[str, Any]
    flags: list[str]
    out: Path
    fit: bool

    @property
    def settings_file(self) -> Path:
        """Where the settings of the row lie as a config file, the last one of its command line."""
        return self.out / "rows" / f"{self.name}.yaml"

    @property
    def arguments(self) -> list[str]:
        """The words after `fit` and `test`."""
        files = [*self.files, str(self.settings_file)]
        return [word for file in files for word in ("--config", file)] + self.flags


def parser() -> argparse.ArgumentParser:
    """The options of `compare`."""
    options = LightParser(
        "compare",
        usage="python -m lightning_styles compare FILE [--config FILE] [--rows a,b] [--out DIR] [--key value ...]",
        description="Run test on every row of a comparison, after fit where its file says so, and write one table. "
        "Finished rows are kept and not run again while their settings and pretrained files stay the same; after a "
        "change of the code use --fresh. Keys such as --trainer.accelerator cpu apply to every row.",
    )
    options.add_argument("comparison", metavar="FILE", help="YAML file with config, set, fit and rows")
    options.add_argument(
        "--config",
        action="append",
        default=[],
        metavar="FILE",
        help="config file to layer over those that the comparison names; may be given several times",
    )
    options.add_argument("--rows", metavar="A,B", help="only these rows (default: all)")
    options.add_argument("--out", type=Path, metavar="DIR", help="folder (default: runs/<name of FILE>)")
    options.add_argument("--processes", type=int, default=1, metavar="N", help="rows at once (default: 1)")
    options.add_argument("--fresh", action="store_true", help="run finished rows again")
    return options


def main(arguments: list[str]) -> int:
    """Run `compare`; 1 when a row failed."""
    options, flags = parser().parse_known_args(arguments)
    stray = next((word for word in flags[:1] if not word.startswith("--")), None)
    if stray:
        raise UserError(f"compare takes one file, found also {stray!r}; choose rows with --rows {stray}.")
    if options.processes < 1:
        raise UserError(f"--processes is {options.processes}; it must be at least 1.")
    from lightning_styles.__main__ import check_siblings

    check_siblings()
    return run(options, flags)


# ---- the rows


def nested(settings: dict[str, Any]) -> dict[str, Any]:
    """`settings` with dotted keys opened up: {"a.b": 1} -> {"a": {"b": 1}}."""
    tree: dict[str, Any] = {}
    for key, value in settings.items():
        value = nested(value) if isinstance(value, dict) else value
        for part in reversed(str(key).split(".")):
            value = {part: value}
        tree = merged(tree, value)
    return tree


def merged(tree: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Both trees in one; where they disagree `over` wins."""
    result = dict(tree)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(result.get(key), dict)
        result[key] = merged(result[key], value) if both else value
    return result


def read_rows(path: Path, out: Path, flags: list[str], configs: list[str]) -> list[Row]:
    """The rows of a comparison in their order, on its common config files with `configs` over them.

    Raises:
        UserError: the file has other keys than those, or no rows.
    """
    from lightning_styles.parser import read_config

    content = read_config(path)
    unknown = sorted(content.keys() - set(KEYS))
    if unknown:
        raise UserError(f"{path} has the key {', '.join(unknown)}; a comparison has {', '.join(KEYS)}.")
    entries = content.get("rows")
    if not isinstance(entries, dict) or not entries:
        raise UserError(f"{path} has no rows; add rows: {{name: {{key: value}}}}.")
    common = merged({"trainer": {"devices": 1, "default_root_dir": str(out)}}, nested(content.get("set") or {}))
    base, rows = listed(content.get("config")) + configs, []
    for name, entry in entries.items():
        if not isinstance(entry or {}, dict):
            raise UserError(f"{path}: row {name} is {entry!r}; expected settings, such as {{label: X, key: value}}.")
        own = dict(entry or {})
        label, files = str(own.pop("label", name)), base + listed(own.pop("config", None))
        fit = bool(own.pop("fit", content.get("fit", False)))
        rows.append(Row(str(name), label, files, merged(common, nested(own)), flags, out, fit))
    return rows


def listed(files: str | list[str] | None) -> list[str]:
    """One file or several as a list."""
    return [files] if isinstance(files, str) else list(files or [])


def chosen(rows: list[Row], names: str | None) -> list[Row]:
    """The rows called `names`, separated by commas, in the order of the file; all of them for None."""
    if names is None:
        return rows
    wanted = [name.strip() for name in names.split(",")]
    known = [row.name for row in rows]
    for name in wanted:
        if name not in known:
            raise UserError(f"There is no row {name!r}; the rows are {', '.join(known)}.")
    return [row for row in rows if row.name in wanted]


# ---- what a row is, and its result


def key_of(values: dict[str, Any]) -> str:
    """A hash of everything that a row's numbers depend on: resolved settings, pretrained files, version."""
    from lightning_styles import __version__
    from lightning_styles.pretrained import fingerprint
    from lightning_styles.required_files import required_files

    trainer = {key: value for key, value in (values.get("trainer") or {}).items() if key not in SILENT}
    settings = {key: value for key, value in values.items() if key not in ("config", "trainer")}
    files = {f"{file.kind} {file.name}": fingerprint(file.path) for file in required_files(values) if file.path}
    checkpoint = values.get("ckpt_path")
    if checkpoint and Path(checkpoint).is_file():
        files["checkpoint"] = fingerprint(Path(checkpoint))
    everything = {**settings, "trainer": trainer, "files": files, "version": __version__}
    text = json.dumps(everything, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def resolve(row: Row) -> str:
    """Write the settings of the row as a config file; return the key of the whole.

    Raises:
        UserError: they are no valid config.
    """
    import yaml

    from lightning_styles.cli import parse_only
    from lightning_styles.imaging import replacing

    with replacing(row.settings_file) as file:
        file.write_text(yaml.safe_dump(row.settings, sort_keys=False), encoding="utf-8")
    try:
        return key_of(parse_only(["test", *row.arguments]) | {"fit": row.fit})
    except SystemExit as stop:
        raise UserError("the settings cannot be read, see the error above") from stop


def measure(row: Row) -> Result:
    """Run one row: {"metrics", "notes", "seconds", "folder"}, or {"error"} when it fails."""
    import gc
    import traceback

    import torch

    from callbacks.interruption import Interrupted
    from lightning_styles.cli import StylesCLI
    from lightning_styles.console import readable

    start = time.monotonic()
    try:
        trained = ["--ckpt_path", train(row)] if row.fit else []
        cli = readable(StylesCLI, ["test", *row.arguments, *trained])
    except (UserError, FileNotFoundError) as error:
        return {"error": str(error)}
    except Interrupted:  # ends the whole comparison, not this row alone
        raise
    except SystemExit:
        return {"error": "the settings cannot be read, see the error above"}
    except Exception as error:  # one row must not take the others with it
        traceback.print_exc()
        return {"error": f"{type(error).__name__}: {error}"}
    found = {name.removeprefix("test/"): float(value) for name, value in cli.trainer.callback_metrics.items()}
    evaluation = getattr(cli.model, "evaluation", None)
    result = {
        "metrics": found,
        "notes": evaluation.notes() if evaluation else [],
        "seconds": round(time.monotonic() - start, 1),
        "folder": cli.trainer.log_dir,
    }
    del cli, evaluation
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return result


def train(row: Row) -> str:
    """Run `fit` on one row; the path of its last checkpoint."""
    from lightning_styles.cli import StylesCLI
    from lightning_styles.console import readable

    keeper = readable(StylesCLI, ["fit", *row.arguments]).trainer.checkpoint_callback
    last = getattr(keeper, "last_model_path", "")
    if not last:
        raise UserError("fit left no checkpoint to test; add callbacks.Checkpoints to the config.")
    return last


def measure_all(rows: list[Row], processes: int) -> Iterator[tuple[Row, Result]]:
    """Results in the order of the rows, each as soon as it and those before it are there."""
    if processes == 1:
        yield from ((row, measure(row)) for row in rows)
        return
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context

    with ProcessPoolExecutor(processes, get_context("spawn"), _share_cores, (processes,)) as pool:
        yield from zip(rows, pool.map(measure, rows), strict=True)


def _share_cores(processes: int) -> None:
    import torch

    torch.set_num_threads(max(1, torch.get_num_threads() // processes))


# ---- the command


def run(options: argparse.Namespace, flags: list[str]) -> int:
    """Resolve all rows, run those that are not finished, and write the table."""
    from lightning_styles.console import say
    from lightning_styles.parser import find_config
    from lightning_styles.runs import ROOT, run_name

    path = find_config(options.comparison)
    out: Path = options.out or Path(ROOT) / run_name(path, "")
    rows = chosen(read_rows(path, out, flags, options.config), options.rows)
    results: dict[str, Result] = {}
    files: dict[str, Path] = {}
    for row in rows:
        try:
            files[row.name] = out / "rows" / f"{row.name}_{resolve(row)}.json"
        except UserError as error:
            results[row.name] = {"error": str(error)}
            say(f"row {row.name}: {error}")
            continue
        if files[row.name].is_file() and not options.fresh:
            results[row.name] = json.loads(files[row.name].read_text(encoding="utf-8"))
    waiting = [row for row in rows if row.name not in results]
    say(f"compare: {len(rows)} rows, {len(waiting)} to run, into {out}")
    start = time.monotonic()
    for done, (row, result) in enumerate(measure_all(waiting, options.processes), start=1):
        results[row.name] = result
        if "error" not in result:
            write_json(files[row.name], result)
        write_table(out, rows, results)
        left = (time.monotonic() - start) / done * (len(waiting) - done) / 60
        state = f"failed: {result['error']}" if "error" in result else f"done in {result['seconds']:.0f} s"
        say(f"row {row.name} {state}; {done} of {len(waiting)}, about {left:.0f} min left")
    write_table(out, rows, results)
    show(rows, results)
    failed = [row.name for row in rows if "error" in results[row.name]]
    if failed:
        say(f"Failed: {', '.join(failed)}; the command again runs these alone.")
    say(f"Table: {out / 'table.md'} and {out / 'table.json'}")
    return 1 if failed else 0


# ---- the table


def write_json(path: Path, content: Any) -> None:
    """Write `content` at `path` at once."""
    from lightning_styles.imaging import replacing

    with replacing(path) as file:
        file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def cells(rows: list[Row], results: dict[str, Result]) -> list[list[str]]:
    """Head and lines of the table; a column for each metric that any row has."""
    metrics = list(dict.fromkeys(m for row in rows for m in results.get(row.name, {}).get("metrics", {})))
    lines = [["row", *metrics, "seconds"]]
    for row in rows:
        result = results.get(row.name, {})
        values = [result.get("metrics", {}).get(metric) for metric in metrics] + [result.get("seconds")]
        mark = "failed" if "error" in result else "-"
        lines.append([row.label, *(mark if value is None else f"{value:.4g}" for value in values)])
    return lines


def write_table(out: Path, rows: list[Row], results: dict[str, Result]) -> None:
    """Write table.md and table.json; rows that have not run yet stand in them without numbers."""
    from lightning_styles.imaging import replacing

    head, *body = cells(rows, results)
    rule = ["---", *("---:" for _ in head[1:])]
    text = ["| " + " | ".join(line) + " |" for line in (head, rule, *body)]
    notes = list(dict.fromkeys(note for row in rows for note in results.get(row.name, {}).get("notes", [])))
    lines = [*text, "", "Higher is better for identity, lower for everything else.", "", *(f"- {n}" for n in notes)]
    with replacing(out / "table.md") as file:
        file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    table = [{"name": row.name, "label": row.label, **results.get(row.name, {})} for row in rows]
    write_json(out / "table.json", {"rows": table})


def show(rows: list[Row], results: dict[str, Result]) -> None:
    """Print the table."""
    from rich.console import Console
    from rich.table import Table

    head, *body = cells(rows, results)
    table = Table(*head[:1])
    for name in head[1:]:
        table.add_column(name, justify="right")
    for line in body:
        table.add_row(*line)
    Console().print(table)
