"""What all figures share: style, colours, panels, curves. PNG bytes: transparent, read on light and dark, equal for equal data."""

from __future__ import annotations

import io
from collections import defaultdict
from collections.abc import Sequence
from statistics import fmean
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from grape.report.data import TrainingRecord

# Okabe and Ito's palette, told apart with any colour vision; grey is SFT's.
COLOURS = ("#0080c6", "#e69f00", "#00a878", "#cc79a7", "#d55e00", "#9467bd", "#56b4e9", "#b09f00")
GREY = "#8b9099"
WIDTH = 9.9  # inches, of every figure that fills the page
_GREY = "axes.edgecolor axes.labelcolor axes.titlecolor xtick.color ytick.color text.color grid.color".split()
STYLE: dict[str, Any] = dict.fromkeys(_GREY, GREY) | {
    "figure.dpi": 160, "figure.constrained_layout.use": True, "savefig.transparent": True, "font.size": 9,
    "axes.titlesize": 10, "axes.titleweight": "bold", "axes.titlelocation": "left",
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "axes.axisbelow": True,
    "grid.alpha": 0.22, "grid.linewidth": 0.6, "legend.frameon": False, "legend.fontsize": 8,
}  # fmt: skip


def png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})  # the version of matplotlib stays out
    return buffer.getvalue()


def grid(rows: int, columns: int, width: float, height: float, **how: Any) -> tuple[Figure, list[list[Axes]]]:
    """A figure of width x height inches; `how` as Figure.subplots takes it."""
    figure = Figure(figsize=(width, height))
    return figure, [list(row) for row in figure.subplots(rows, columns, squeeze=False, **how)]


def panels(count: int) -> tuple[Figure, list[Axes]]:
    """`count` panels in rows of three, or of four where that leaves fewer gaps."""
    columns = min(count, 3 if count in (5, 6, 9) else 4)
    rows = -(-count // columns)
    figure, axes = grid(rows, columns, WIDTH, 2.2 * rows)
    flat = [axis for row in axes for axis in row]
    for axis in flat[count:]:
        axis.set_visible(False)
    return figure, flat[:count]


def curve(records: Sequence[TrainingRecord], metric: str) -> tuple[list[float], list[float]]:
    points = [(record["step"], record[metric]) for record in records if metric in record]
    return [x for x, _ in points], [y for _, y in points]


def mean_curve(runs: Sequence[Sequence[TrainingRecord]], metric: str) -> tuple[list[float], list[float]]:
    """Steps, and the mean over the runs that have the metric in that step."""
    values: dict[float, list[float]] = defaultdict(list)
    for records in runs:
        for record in records:
            if metric in record:
                values[record["step"]].append(record[metric])
    steps = sorted(values)
    return steps, [fmean(values[step]) for step in steps]
