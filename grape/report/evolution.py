"""How the rubric's items moved over training: a figure per algorithm, its seeds averaged.

Rows are what was measured, columns the categories, lines the items. A measure that never moves is told in the caption instead.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from grape.report.data import ReportInputs
from grape.report.drawing import COLOURS, GREY, WIDTH, grid, mean_curve

# What a row shows, by the last part of the metric's name; the score's is `rewards/<category>/<item>/mean`.
MEASURES = {
    "score": "score",
    "confidence": "confidence",
    "weight": "weight in effect",
    "spread": "spread in groups",
    "failure_rate": "missing scores",
    "length_correlation": "correlation\nwith length",
    "advantage": "part of the\nadvantage",
}
SIGNED = ("score", "confidence", "length_correlation")  # the axes of all others begin at 0
COLUMNS = 4  # categories side by side; more go into further figures, so that their text stays readable
STYLES = ("-", "--", ":", "-.")  # of the first eight items, the next eight, ...
Curve = tuple[list[float], list[float]]


@dataclass(frozen=True)
class Evolution:
    """One algorithm's items. `curves` has (steps, means over seeds) by measure and `category/item`, for measures that move;
    `flat` the one value of each that does not."""

    algorithm: str
    seeds: int
    curves: Mapping[str, Mapping[str, Curve]]
    flat: Mapping[str, float]

    @property
    def weighs(self) -> bool:
        """Whether the algorithm itself decides how much an item counts."""
        return any(measure in found for measure in ("weight", "advantage") for found in (self.curves, self.flat))

    @property
    def blocks(self) -> list[dict[str, list[str]]]:
        """The categories with their items, as many at a time as fit side by side."""
        items: dict[str, list[str]] = {}
        for name in dict.fromkeys(name for curves in self.curves.values() for name in curves):
            category, _, item = name.rpartition("/")
            items.setdefault(category, []).append(item)
        names = list(items)
        return [{name: items[name] for name in names[start : start + COLUMNS]} for start in range(0, len(names), COLUMNS)]

    @property
    def figures(self) -> list[str]:
        """Their names: the first is `rubric-<algorithm>`."""
        return [f"rubric-{self.algorithm}" + (f".{number}" if number > 1 else "") for number in range(1, len(self.blocks) + 1)]

    @property
    def caption(self) -> str:
        seeds = f", mean over {self.seeds} seeds" if self.seeds > 1 else ""
        flat = [f"{MEASURES[measure]} ({value:.2g})".replace("\n", " ") for measure, value in self.flat.items()]
        told = f" Not drawn, being the same throughout: {', '.join(flat)}." if flat else ""
        return f"{self.algorithm}: every rubric item over training{seeds}.{told}"


def read(inputs: ReportInputs) -> list[Evolution]:
    """Of every algorithm whose records have something to draw."""
    found = [_read(inputs, algorithm) for algorithm in inputs.algorithms]
    return [evolution for evolution in found if evolution.curves]


def _read(inputs: ReportInputs, algorithm: str) -> Evolution:
    runs = [inputs.rl[run.name] for run in inputs.of(algorithm)]
    keys = {key for records in runs for record in records for key in record}
    trained = sorted(key[len("rewards/") : -len("/mean")] for key in keys if key.startswith("rewards/") and key.endswith("/mean"))
    # In the rubric's order, as far as evaluation knows it.
    names = [name for name in dict.fromkeys([*inputs.evaluations[0].sft.items, *trained]) if name in trained and "/" in name]
    curves: dict[str, dict[str, Curve]] = {}
    flat: dict[str, float] = {}
    for measure in MEASURES:
        metrics = {name: f"rewards/{name}/mean" if measure == "score" else f"rubric/{name}/{measure}" for name in names}
        found = {name: mean_curve(runs, metric) for name, metric in metrics.items() if metric in keys}
        values = [value for _, means in found.values() for value in means]
        if values and max(values) - min(values) > 1e-9:
            curves[measure] = found
        elif values:
            flat[measure] = values[0]
    return Evolution(algorithm, len(runs), curves, flat)


def draw(evolution: Evolution) -> dict[str, Figure]:
    """Its figures by name."""
    return {name: _figure(evolution, block) for name, block in zip(evolution.figures, evolution.blocks, strict=True)}


def _figure(evolution: Evolution, block: Mapping[str, Sequence[str]]) -> Figure:
    """One figure of up to COLUMNS categories; what their lines mean stands once, above each column."""
    legend = 0.1 + 0.17 * max(map(len, block.values()))
    heights = [legend, *[1.35] * len(evolution.curves)]
    figure, (titles, *rows) = grid(
        len(heights), len(block), WIDTH, sum(heights) + 0.7, sharex=True, sharey="row", height_ratios=heights
    )
    for axis, (category, items) in zip(titles, block.items(), strict=True):
        handles = [Line2D([], [], label=item, **_line(index)) for index, item in enumerate(items)]
        axis.legend(handles=handles, loc="upper left", borderaxespad=0, labelspacing=0.3)
        axis.set_title(category)
        axis.set_axis_off()
    for row, (measure, curves) in zip(rows, evolution.curves.items(), strict=True):
        row[0].set_ylabel(MEASURES[measure])
        for axis, (category, items) in zip(row, block.items(), strict=True):
            found = {index: curves[f"{category}/{item}"] for index, item in enumerate(items) if f"{category}/{item}" in curves}
            _panel(axis, measure, found)
        if measure not in SIGNED:
            row[0].set_ylim(bottom=0)
    for axis in rows[-1]:
        axis.set_xlabel("step")
    return figure


def _panel(axis: Axes, measure: str, curves: Mapping[int, Curve]) -> None:
    """Lines by the item's place in its category; parts of one whole are stacked."""
    if measure == "length_correlation":
        axis.axhline(0, color=GREY, linewidth=0.8)
    if measure == "advantage" and curves:
        steps = sorted({step for found, _ in curves.values() for step in found})
        layers = [np.interp(steps, *curve) for curve in curves.values()]  # a round need not have every category
        axis.stackplot(steps, *layers, colors=[_line(index)["color"] for index in curves], alpha=0.6, linewidth=0)
        return
    for index, curve in curves.items():
        axis.plot(*curve, linewidth=1.4, **_line(index))


def _line(index: int) -> dict[str, Any]:
    return {"color": COLOURS[index % len(COLOURS)], "linestyle": STYLES[index // len(COLOURS) % len(STYLES)]}
