"""The table of a comparison: means over repetitions, one line per row and strength, as Markdown, JSON and on screen.

A metric named `content@3` belongs to strength 3 of its row.
"""

import json
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from lightning_styles.commands.compare_rows import Row
from lightning_styles.metrics import HIGHER_IS_BETTER

Result = dict[str, Any]
RESULT: dict[str, Any] = {  # of a run that did not fail
    "metrics": dict[str, float],
    "notes": list[str],
    "seconds": float,
    "folder": str | None,
    "checkpoint": str | None,
}


def write_json(path: Path, content: Any) -> None:
    """Write `content` at `path` at once."""
    from lightning_styles.files import replacing

    with replacing(path) as file:
        file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


# ---- entries: what stands in table.json


def entries(rows: list[Row], results: dict[str, Result]) -> list[dict[str, Any]]:
    """One entry for each row of the table; a row that has not run yet has no more than its name and label."""
    runs: dict[str, list[Row]] = {}
    for row in rows:
        runs.setdefault(row.row, []).append(row)
    return [
        {"name": name, "label": own[0].label, **(_repeated(own, results) if own[0].repeat else results.get(name, {}))}
        for name, own in runs.items()
    ]


def _repeated(runs: list[Row], results: dict[str, Result]) -> Result:
    """What the repetitions of one row say together: means over those that are done, standard errors, and each."""
    each = {str(run.repeat): results.get(run.name, {}) for run in runs}
    done = [result for result in each.values() if "metrics" in result]
    failed = [result["error"] for result in each.values() if "error" in result]
    names = dict.fromkeys(name for result in done for name in result["metrics"])
    values = {name: [r["metrics"][name] for r in done if name in r["metrics"]] for name in names}
    entry: Result = {"done": len(done), "repeats": each}
    if done:
        entry["metrics"] = {name: mean(found) for name, found in values.items()}
        entry["standard_error"] = {name: standard_error(found) for name, found in values.items()}
        entry["notes"] = list(dict.fromkeys(note for result in done for note in result.get("notes", [])))
        entry["seconds"] = mean(result["seconds"] for result in done)
    elif failed:
        entry["error"] = failed[0]
    return entry


def standard_error(values: list[float]) -> float | None:
    """Standard error of the mean of independent `values`; None for a single one."""
    return stdev(values) / len(values) ** 0.5 if len(values) > 1 else None


# ---- curves: metrics at strengths


def by_strength(metrics: dict[str, float]) -> dict[str | None, dict[str, float]]:
    """Metrics by strength, in order of strength; those without one under None, which comes first."""
    found: dict[str | None, dict[str, float]] = {}
    for name, value in metrics.items():
        base, at, strength = name.rpartition("@")
        found.setdefault(strength if at else None, {})[base if at else name] = value
    return dict(sorted(found.items(), key=lambda item: _order(item[0])))


def _order(strength: str | None) -> tuple[int, float, str]:
    if strength is None:
        return 0, 0.0, ""
    try:
        return 1, float(strength), strength
    except ValueError:
        return 2, 0.0, strength


# ---- the table


def cells(rows: list[Row], results: dict[str, Result]) -> list[list[str]]:
    """Head and lines of the table; a column for each metric that any row has."""
    table = entries(rows, results)
    curves = [by_strength(entry.get("metrics", {})) or {None: {}} for entry in table]
    metrics = list(dict.fromkeys(name for curve in curves for values in curve.values() for name in values))
    repeated = any("repeats" in entry for entry in table)
    lines = [["row", *metrics, *(["runs"] if repeated else []), "seconds"]]
    for entry, curve in zip(table, curves, strict=True):
        mark = "failed" if "error" in entry else "-"
        seconds = entry.get("seconds")  # of all strengths together, so they stand in the first line alone
        last = [*([_count(entry)] if repeated else []), mark if seconds is None else f"{seconds:.4g}"]
        for strength, values in curve.items():
            label = entry["label"] if strength is None else f"{entry['label']}, strength {strength}"
            numbers = (values.get(metric) for metric in metrics)
            lines.append([label, *(mark if value is None else f"{value:.4g}" for value in numbers), *last])
            last = [""] * len(last)
    return lines


def _count(entry: dict[str, Any]) -> str:
    """How many repetitions stand behind a row: 12, or 7 of 12."""
    done, all_ = entry["done"], len(entry["repeats"])
    return str(done) if done == all_ else f"{done} of {all_}"


def write_table(out: Path, rows: list[Row], results: dict[str, Result]) -> None:
    """Write table.md and table.json; rows that have not run yet stand in them without numbers."""
    from lightning_styles.files import replacing

    head, *body = cells(rows, results)
    rule = ["---", *("---:" for _ in head[1:])]
    text = ["| " + " | ".join(line) + " |" for line in (head, rule, *body)]
    table = entries(rows, results)
    notes = list(dict.fromkeys(note for entry in table for note in entry.get("notes", [])))
    lines = [*text, "", _reading(head), "", *(f"- {note}" for note in notes)]
    with replacing(out / "table.md") as file:
        file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    write_json(out / "table.json", {"rows": table})


def _reading(head: list[str]) -> str:
    """How to read the columns."""
    higher = " and ".join(name for name in head if name in HIGHER_IS_BETTER)
    text = f"Higher is better for {higher}, lower for everything else." if higher else "Lower is better."
    if "runs" in head:
        text += " Numbers are means over runs, seconds those of one run; standard errors are in table.json."
    return text


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
