"""`compare`: `test` on the rows of a table, each a few settings apart from a common config.

The YAML file of a comparison:

    config: [configs/tiny/sms.yaml]        # common files, layered
    set: {data.batch_size: 16}             # settings of every row, dotted or nested
    fit: true                              # train each row first; a row may say otherwise (default: false)
    rows:
      full: {label: SMS}                   # label, config (files of this row alone), and settings
      no_relevance: {model.init_args.relevance: false}
      other_guidance: {trained_by: full, model.init_args.guidance: 1.0}   # tests what the row `full` has trained
    repeat:                                # every row is run with each of these; the table has their means
      cartoon: {vars.style: cartoon}
      sketch: {vars.style: sketch}
    plot: {x: content, y: twin}            # draw pareto.png: a curve for each row over its strengths
"""

import argparse
import json
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from lightning_styles.commands import LightParser, saying_when_interrupted
from lightning_styles.commands.compare_rows import Axes, Row, chosen, read_plot, read_rows, resolve
from lightning_styles.commands.compare_table import RESULT, Result, entries, show, write_json, write_table
from lightning_styles.errors import UserError

if TYPE_CHECKING:
    from multiprocessing.context import BaseContext


def parser() -> argparse.ArgumentParser:
    """The options of `compare`."""
    options = LightParser(
        "compare",
        usage="python -m lightning_styles compare FILE [--config FILE] [--rows a,b] [--out DIR] [--key value ...]",
        description="Run test on every row of a comparison, after fit where its file says so, and write one table. "
        "Finished rows are kept and not run again while their settings and pretrained files stay the same; after a "
        "change of the code use --fresh. Keys such as --trainer.accelerator cpu apply to every row.",
    )
    options.add_argument("comparison", metavar="FILE", help="YAML file with config, set, fit, rows, repeat and plot")
    options.add_argument(
        "--config",
        action="append",
        default=[],
        metavar="FILE",
        help="config file to layer over those that the comparison names; may be given several times",
    )
    options.add_argument("--rows", metavar="A,B", help="only these rows, or row/repeat (default: all)")
    options.add_argument("--out", type=Path, metavar="DIR", help="folder (default: runs/<name of FILE>)")
    options.add_argument("--processes", type=int, default=1, metavar="N", help="runs at once (default: 1)")
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
    with saying_when_interrupted(lambda: "finished rows are kept; the same command runs the others"):
        return run(options, flags)


# ---- one run


def measure(row: Row, checkpoint: str | None = None) -> Result:
    """Run one row, or one repetition of it, on what it trains or on `checkpoint`.

    Returns:
        {"metrics", "notes", "seconds", "folder", "checkpoint"}, or {"error"} when it fails.
    """
    import gc
    import traceback

    import torch

    from callbacks.interruption import Interrupted
    from lightning_styles.cli import StylesCLI
    from lightning_styles.console import readable

    start = time.monotonic()
    try:
        checkpoint = train(row) if row.fit else checkpoint
        trained = ["--ckpt_path", checkpoint] if checkpoint else []
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
        "checkpoint": checkpoint,
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


def measure_all(rows: list[Row], known: dict[str, Result], processes: int) -> Iterator[tuple[Row, Result]]:
    """Results in the order of the rows, each as soon as it and those before it are there.

    Rows that test what another one has trained come last; `known` has the results of those before by then.
    """
    for wave in ([row for row in rows if row.parent is None], [row for row in rows if row.parent is not None]):
        ready = [row for row in wave if row.parent is None or "checkpoint" in known[row.parent]]
        yield from ((row, {"error": f"row {row.parent} has not been trained"}) for row in wave if row not in ready)
        checkpoints = [None if row.parent is None else known[row.parent]["checkpoint"] for row in ready]
        yield from _measure_wave(ready, checkpoints, processes)


def _measure_wave(rows: list[Row], checkpoints: list[str | None], processes: int) -> Iterator[tuple[Row, Result]]:
    if processes == 1 or not rows:
        yield from zip(rows, map(measure, rows, checkpoints), strict=True)
        return
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_start_method

    with ProcessPoolExecutor(processes, _clean_processes(), _start_worker, (processes, get_start_method())) as pool:
        yield from zip(rows, pool.map(_measure_in_worker, rows, checkpoints), strict=True)


def _measure_in_worker(row: Row, checkpoint: str | None) -> Result:
    """`measure` by a process that hears Ctrl-C only while it runs a row, and then ends it as a run by itself does."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return measure(row, checkpoint)
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def _clean_processes() -> "BaseContext":
    """Starts processes that have no GPU yet; forked, where that is possible, from one that has imported torch."""
    from multiprocessing import get_all_start_methods, get_context

    context = get_context("forkserver" if "forkserver" in get_all_start_methods() else "spawn")
    context.set_forkserver_preload(["lightning_styles.cli"])
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # what starts now, and what that starts, ignores it as well
    try:
        if context.get_start_method() == "forkserver":
            from multiprocessing.forkserver import ensure_running

            ensure_running()
    finally:
        signal.signal(signal.SIGINT, before)
    return context


def _start_worker(processes: int, method: str) -> None:
    """Take a share of the cores, and end when the comparison itself has been killed, whose rows nobody reads then.

    Data loaders start their own workers by `method`, as they do in a run that was started by hand.
    """
    import os
    import threading
    from multiprocessing import parent_process, set_start_method

    import torch

    set_start_method(method, force=True)
    torch.set_num_threads(max(1, torch.get_num_threads() // processes))
    parent = parent_process()
    assert parent is not None
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


# ---- the command


def run(options: argparse.Namespace, flags: list[str]) -> int:
    """Resolve all rows, run those that are not finished, and write the table."""
    from lightning_styles.console import say
    from lightning_styles.parser import find_config
    from lightning_styles.runs import ROOT, run_name

    path = find_config(options.comparison)
    out: Path = options.out or Path(ROOT) / run_name(path, "")
    there = [name for name in ("table.md", "table.json", "pareto.png") if (out / name).exists()]
    if there and not (out / "rows").is_dir():
        raise UserError(f"{out / there[0]} is there already and is from elsewhere; move it, or give another --out.")
    rows, axes = chosen(read_rows(path, out, flags, options.config), options.rows), read_plot(path)
    files, results = look_up(rows, options.fresh)
    waiting = [row for row in rows if row.name not in results]
    say(f"compare: {len(rows)} rows, {len(waiting)} to run, into {out}")
    start = time.monotonic()
    for done, (row, result) in enumerate(measure_all(waiting, results, options.processes), start=1):
        results[row.name] = result
        if "error" not in result:
            write_json(files[row.name], result)
        write_table(out, rows, results, axes)
        left = (time.monotonic() - start) / done * (len(waiting) - done) / 60
        state = f"failed: {result['error']}" if "error" in result else f"done in {result['seconds']:.0f} s"
        say(f"row {row.name} {state}; {done} of {len(waiting)}, about {left:.0f} min left")
    return finish(out, rows, results, axes)


def look_up(rows: list[Row], fresh: bool) -> tuple[dict[str, Path], dict[str, Result]]:
    """Where the result of each run belongs, and those that are there or cannot come, by name."""
    from lightning_styles.console import say

    files: dict[str, Path] = {}
    results: dict[str, Result] = {}
    for row in rows:
        try:
            file = row.settings_file
            parent = files[row.parent].stem if row.parent in files else None
            files[row.name] = file.with_name(f"{file.stem}_{resolve(row, parent)}.json")
        except UserError as error:
            results[row.name] = {"error": str(error)}
            say(f"row {row.name}: {error}")
            continue
        if files[row.name].is_file() and not fresh:
            try:
                results[row.name] = read_result(files[row.name])
            except UserError as error:
                say(f"row {row.name} runs again: {error}")
    return files, results


def read_result(file: Path) -> Result:
    """The result of a run, as `measure` returned it.

    Raises:
        UserError: the file is damaged, or was changed into something else.
    """
    from lightning_styles.reading import MADE_AGAIN, expect

    try:
        result = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file} is no JSON; {MADE_AGAIN}.") from error
    expect(result, RESULT, file, MADE_AGAIN)
    return result


def finish(out: Path, rows: list[Row], results: dict[str, Result], axes: Axes | None) -> int:
    """Write and show the table and the plot; 1 when a row failed.

    Raises:
        UserError: matplotlib is not installed; the table is written by then.
    """
    from lightning_styles.commands.pareto import plot
    from lightning_styles.console import say

    write_table(out, rows, results, axes)
    show(rows, results)
    failed = [row.name for row in rows if "error" in results[row.name]]
    if failed:
        say(f"Failed: {', '.join(failed)}; the command again runs these alone.")
    say(f"Table: {out / 'table.md'} and {out / 'table.json'}")
    if axes:
        say(f"Plot: {plot(out / 'pareto.png', entries(rows, results), axes)}")
    return 1 if failed else 0
