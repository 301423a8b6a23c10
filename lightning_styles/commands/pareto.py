"""The plot of a comparison: one metric over another, a curve for each row over its strengths."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lightning_styles.commands.compare_rows import Axes
from lightning_styles.commands.compare_table import points
from lightning_styles.errors import UserError
from lightning_styles.metrics import HIGHER_IS_BETTER

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#666666")  # told apart by everyone
MARKERS = "osD^vPX*"
# Where the strength may stand beside its point, in points of print.
BESIDE = [(r * x, r * y) for r in (8, 14) for x, y in ((0, 1), (1, 0), (0, -1), (-1, 0), (0.8, 0.8), (-0.8, -0.8))]


class Curve(NamedTuple):
    """The points of one row in order of strength; a strength is "" where the row has none."""

    label: str
    strengths: list[str]
    x: list[float]
    y: list[float]


def curves(entries: list[dict[str, Any]], axes: Axes) -> list[Curve]:
    """What there is to draw of the entries of a table; rows without both metrics are left out."""
    found = []
    for entry in entries:
        if places := points(entry.get("metrics", {}), axes):
            x, y = (list(column) for column in zip(*places.values(), strict=True))
            found.append(Curve(entry["label"], [strength or "" for strength in places], x, y))
    return found


def plot(path: Path, entries: list[dict[str, Any]], axes: Axes) -> Path:
    """Write the plot of a table as PNG; returns `path`.

    Raises:
        UserError: matplotlib is not installed, or no row has both metrics.
    """
    drawn = curves(entries, axes)
    if not drawn:
        raise UserError(f"There is nothing to plot: no finished row has both {axes.x} and {axes.y}.")
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise UserError("The plot needs matplotlib: pip install 'lightning-styles[plot]'.") from error
    from lightning_styles.files import replacing

    figure = Figure(figsize=(8, 5), dpi=150, layout="constrained")
    panel = figure.add_subplot()
    panel.set_xlabel(axis_name(axes.x))
    panel.set_ylabel(axis_name(axes.y))
    panel.grid(color="0.9")
    panel.set_axisbelow(True)
    panel.margins(0.08)
    for i, curve in enumerate(drawn):
        style: dict[str, Any] = {"color": COLOURS[i % len(COLOURS)], "marker": MARKERS[i % len(MARKERS)]}
        panel.plot(curve.x, curve.y, label=curve.label, markersize=5, linewidth=1.3, **style)
    figure.legend(loc="outside right upper", fontsize=8, frameon=False)
    figure.draw_without_rendering()  # lays everything out, so that places on the page are known
    figure.set_layout_engine("none")
    annotate(panel, drawn)
    with replacing(path) as file:
        figure.savefig(file, format="png")
    return path


def axis_name(metric: str) -> str:
    """Name of an axis with the better direction."""
    return f"{metric} ({'higher' if metric in HIGHER_IS_BETTER else 'lower'} is better)"


def annotate(panel: Any, drawn: list[Curve]) -> None:
    """Write the strength beside each point, where nothing else is; points in a crowd may stay without."""
    from matplotlib.path import Path as Line
    from matplotlib.transforms import Bbox

    unit = panel.figure.dpi / 72  # pixels in a point of print

    def box(place: Any, width: float, height: float) -> Bbox:
        left, bottom = place - unit * np.array([width, height]) / 2
        return Bbox.from_bounds(left, bottom, width * unit, height * unit)

    places = [panel.transData.transform(np.stack([curve.x, curve.y], axis=1)) for curve in drawn]
    lines = [Line(place) for place in places if len(place) > 1]
    taken = [box(point, 6, 6) for place in places for point in place]
    written: list[tuple[str, Any]] = []
    for i, (curve, place) in enumerate(zip(drawn, places, strict=True)):
        for strength, x, y, point in zip(curve.strengths, curve.x, curve.y, place, strict=True):
            if any(strength == text and np.hypot(*(point - at)) < 3 * unit for text, at in written):
                continue  # curves that begin in one point
            boxes = {beside: box(point + unit * np.array(beside), 4.5 * len(strength), 7) for beside in BESIDE}
            free = {beside: b for beside, b in boxes.items() if not any(b.overlaps(other) for other in taken)}
            clear = [beside for beside, b in free.items() if not any(line.intersects_bbox(b, False) for line in lines)]
            if strength and free:
                beside = (clear or list(free))[0]
                taken.append(free[beside])
                written.append((strength, point))
                where = {"xytext": beside, "textcoords": "offset points", "ha": "center", "va": "center"}
                panel.annotate(strength, (x, y), fontsize=7, color=COLOURS[i % len(COLOURS)], **where)
