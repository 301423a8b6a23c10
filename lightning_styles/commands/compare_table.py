"""The table of a comparison: means over repetitions, one line per row and strength, as Markdown, JSON and on screen.

All intervals are Student's t at 95 %, over repetitions. A metric named `content@3` belongs to strength 3 of its row.
"""

import json
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from lightning_styles.commands.compare_rows import Axes, Row
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
    """What the repetitions of one row say together: means over those that are done, their intervals, and each."""
    each = {str(run.repeat): results.get(run.name, {}) for run in runs}
    done = [result for result in each.values() if "metrics" in result]
    failed = [result["error"] for result in each.values() if "error" in result]
    names = dict.fromkeys(name for result in done for name in result["metrics"])
    values = {name: [r["metrics"][name] for r in done if name in r["metrics"]] for name in names}
    entry: Result = {"done": len(done), "repeats": each}
    if done:
        entry["metrics"] = {name: mean(found) for name, found in values.items()}
        entry["half_width"] = {name: half_width(found) for name, found in values.items()}
        entry["notes"] = list(dict.fromkeys(note for result in done for note in result.get("notes", [])))
        entry["seconds"] = mean(result["seconds"] for result in done)
    elif failed:
        entry["error"] = failed[0]
    return entry


def half_width(values: list[float]) -> float | None:
    """Half of the interval in which the mean of what `values` are drawn from lies; None for a single one."""
    from scipy.stats import t

    count = len(values)
    return float(t.ppf(0.975, count - 1)) * stdev(values) / count**0.5 if count > 1 else None


# ---- curves: metrics at strengths


def by_strength(metrics: dict[str, float]) -> dict[str | None, dict[str, float]]:
    """Metrics by strength, in order of strength; those without one under None, which comes first."""
    found: dict[str | None, dict[str, float]] = {}
    for name, value in metrics.items():
        base, at, strength = name.rpartition("@")
        found.setdefault(strength if at else None, {})[base if at else name] = value
    return dict(sorted(found.items(), key=lambda item: _order(item[0])))


def points(metrics: dict[str, float], axes: Axes) -> dict[str | None, tuple[float, float]]:
    """(x, y) by strength, of the strengths that have both."""
    found = {
        strength: (values[axes.x], values[axes.y])
        for strength, values in by_strength(metrics).items()
        if axes.x in values and axes.y in values
    }
    if len(found) > 1:
        found.pop(None, None)  # what belongs to no strength is no part of the curve
    return found


def differences(table: list[dict[str, Any]], axes: Axes) -> list[dict[str, Any]]:
    """y of each row minus that of the first row where both have the same x, within each repetition.

    Rows of one repetition share its pictures, so that these differences vary much less than the rows do.

    Returns:
        {"label", "mean", "half_width", "runs"} of each row but the first, over the repetitions in which they meet.
    """
    first, *others = [entry for entry in table if "repeats" in entry] or [{}]
    found = []
    for entry in others:
        gaps = [
            gap
            for repeat, run in entry["repeats"].items()
            if (gap := _difference(run, first["repeats"].get(repeat, {}), axes)) is not None
        ]
        if gaps:
            found.append(
                {"label": entry["label"], "mean": mean(gaps), "half_width": half_width(gaps), "runs": len(gaps)}
            )
    return found


def _difference(run: Result, reference: Result, axes: Axes) -> float | None:
    """Mean over the strengths of `run` whose x lies on the curve of `reference`; None where none does."""
    from scipy.interpolate import PchipInterpolator

    curve = dict(sorted(points(reference.get("metrics", {}), axes).values()))
    if len(curve) < 2:
        return None
    at = PchipInterpolator(list(curve), list(curve.values()))
    gaps = [y - float(at(x)) for x, y in points(run.get("metrics", {}), axes).values() if min(curve) <= x <= max(curve)]
    return mean(gaps) if gaps else None


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
            names = [metric if strength is None else f"{metric}@{strength}" for metric in metrics]
            halves = [entry.get("half_width", {}).get(name) for name in names]
            numbers = [
                mark if metric not in values else with_interval(f"{values[metric]:.4g}", half)
                for metric, half in zip(metrics, halves, strict=True)
            ]
            lines.append([label, *numbers, *last])
            last = [""] * len(last)
    return lines


def with_interval(value: str, half: float | None) -> str:
    """A number with half the width of its interval, if that is known and not 0."""
    return f"{value} +- {half:.2g}" if half else value


def _count(entry: dict[str, Any]) -> str:
    """How many repetitions stand behind a row: 12, or 7 of 12."""
    done, all_ = entry["done"], len(entry["repeats"])
    return str(done) if done == all_ else f"{done} of {all_}"


def write_table(out: Path, rows: list[Row], results: dict[str, Result], axes: Axes | None = None) -> None:
    """Write table.md and table.json; rows that have not run yet stand in them without numbers."""
    from lightning_styles.files import replacing

    head, *body = cells(rows, results)
    rule = ["---", *("---:" for _ in head[1:])]
    text = ["| " + " | ".join(line) + " |" for line in (head, rule, *body)]
    table = entries(rows, results)
    notes = list(dict.fromkeys(note for entry in table for note in entry.get("notes", [])))
    compared = differences(table, axes) if axes else []
    lines = [*text, "", _reading(head), "", *(f"- {note}" for note in notes), *difference_lines(table, compared, axes)]
    with replacing(out / "table.md") as file:
        file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    write_json(out / "table.json", {"rows": table} | ({"differences": compared} if compared else {}))


def difference_lines(table: list[dict[str, Any]], found: list[dict[str, Any]], axes: Axes | None) -> list[str]:
    """The table of `differences` as Markdown."""
    if not found or axes is None:
        return []
    head = f"| row | {axes.y} minus that of {table[0]['label']} at the same {axes.x} | runs |"
    numbers = [(one["label"], with_interval(f"{one['mean']:+.3f}", one["half_width"]), one["runs"]) for one in found]
    return ["", head, "|---|---:|---:|", *(f"| {label} | {number} | {runs} |" for label, number, runs in numbers)]


def _reading(head: list[str]) -> str:
    """How to read the columns."""
    higher = " and ".join(name for name in head if name in HIGHER_IS_BETTER)
    text = f"Higher is better for {higher}, lower for everything else." if higher else "Lower is better."
    if "runs" in head:
        text += " Numbers are means over runs +- half their 95 % interval (Student's t), seconds those of one run."
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
