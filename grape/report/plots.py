"""Figures as PNG bytes: transparent, in colours that read on light and dark, equal bytes for equal data."""

from __future__ import annotations

import io
from collections import defaultdict
from collections.abc import Callable, Sequence
from statistics import fmean
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from grape.report.data import Inputs, Judge, Record, Side

# Okabe and Ito's palette, told apart with any colour vision; grey is SFT's.
COLOURS = ("#0080c6", "#e69f00", "#00a878", "#cc79a7", "#d55e00", "#9467bd", "#56b4e9", "#b09f00")
GREY = "#8b9099"
TITLES = {"reward": "Reward", "gold": "Gold score", "proxy": "Proxy score", "kl": "KL to SFT (nats/token)",
          "entropy": "Entropy (nats/token)", "completions/mean_length": "Length (tokens)",
          "completions/finished": "Finished answers", "frac_reward_zero_std": "Groups without signal",
          "grad_norm": "Gradient norm"}
STYLE: dict[str, Any] = {
    "figure.dpi": 160, "font.size": 9, "axes.titlesize": 10, "axes.titleweight": "bold", "axes.titlelocation": "left",
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.22, "grid.linewidth": 0.6,
    "axes.edgecolor": GREY, "axes.labelcolor": GREY, "axes.titlecolor": GREY, "xtick.color": GREY,
    "ytick.color": GREY, "text.color": GREY, "grid.color": GREY, "legend.frameon": False, "legend.fontsize": 8,
    "figure.constrained_layout.use": True, "savefig.transparent": True, "axes.axisbelow": True,
}


def draw(inputs: Inputs) -> dict[str, bytes]:
    """Every figure that has data, by name."""
    colours = {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(inputs.algorithms)}
    figures: dict[str, Callable[[], Figure | None]] = {
        "scores": lambda: scores(inputs, colours),
        "categories": lambda: categories(inputs, colours),
        "learning": lambda: learning(inputs, colours),
        "divergence": lambda: divergence(inputs, colours),
        "items": lambda: items(inputs),
        "training": lambda: training(inputs.training),
    }
    with rc_context(STYLE):
        drawn = {name: figure() for name, figure in figures.items()}
        return {name: _png(figure) for name, figure in drawn.items() if figure is not None}


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})  # the version of matplotlib stays out
    return buffer.getvalue()


def _grid(rows: int, columns: int, width: float, height: float, sharex: bool = False,
          sharey: bool = False) -> tuple[Figure, list[list[Axes]]]:
    figure = Figure(figsize=(width, height))
    return figure, [list(row) for row in figure.subplots(rows, columns, squeeze=False, sharex=sharex, sharey=sharey)]


def _panels(count: int) -> tuple[Figure, list[Axes]]:
    columns = min(count, 4 if count in (4, 7, 8) else 3)
    rows = -(-count // columns)
    figure, axes = _grid(rows, columns, 9.9, 2.2 * rows)
    flat = [axis for row in axes for axis in row]
    for axis in flat[count:]:
        axis.set_visible(False)
    return figure, flat[:count]


def scores(inputs: Inputs, colours: dict[str, str]) -> Figure:
    """Every policy's score with its interval against SFT's band, by judge."""
    judges: list[Judge] = ["gold", "proxy"] if inputs.judge == "gold" else ["proxy"]
    runs = inputs.evaluations
    figure, axes = _grid(1, len(judges), 9.9, 1.1 + 0.26 * len(runs), sharey=True)
    for axis, judge in zip(axes[0], judges, strict=True):
        sft = runs[0].sft.of(judge)
        axis.axvspan(sft.low, sft.high, color=GREY, alpha=0.25, linewidth=0)
        axis.axvline(sft.mean, color=GREY, linewidth=1.2, linestyle="--")
        for row, run in enumerate(runs):
            value = run.policy.of(judge)
            axis.errorbar(value.mean, row, xerr=[[value.mean - value.low], [value.high - value.mean]], fmt="o",
                          color=colours[run.algorithm], markersize=5, capsize=2.5, linewidth=1.6)
        axis.set_title(f"{judge.capitalize()} score on held-out prompts (dashed: SFT)")
        axis.set_ylim(len(runs) - 0.4, -0.6)
        axis.grid(axis="y", visible=False)
    axes[0][0].set_yticks(range(len(runs)), [run.name for run in runs])
    return figure


def categories(inputs: Inputs, colours: dict[str, str]) -> Figure:
    """Bars per category: SFT and each algorithm's mean over seeds; the seeds with their intervals on top."""
    judge = inputs.judge
    names = list(inputs.evaluations[0].sft.categories)
    groups: list[tuple[str, str, list[Side]]] = [("SFT", GREY, [inputs.evaluations[0].sft])]
    groups += [(a, colours[a], [run.policy for run in inputs.of(a)]) for a in inputs.algorithms]
    width = 0.8 / len(groups)
    figure, ((axis,),) = _grid(1, 1, 9.9, 2.8)
    for index, (label, colour, sides) in enumerate(groups):
        for position, name in enumerate(names):
            values = [side.categories[name].of(judge) for side in sides]
            x = position - 0.4 + width * (index + 0.5)
            axis.bar(x, fmean(v.mean for v in values), width * 0.9, color=colour, alpha=0.4,
                     label=label if position == 0 else None)
            for seed, value in enumerate(values):
                shift = width * 0.9 * ((seed + 1) / (len(values) + 1) - 0.5)
                axis.errorbar(x + shift, value.mean, yerr=[[value.mean - value.low], [value.high - value.mean]],
                              fmt=".", color=colour, markersize=5, capsize=2, linewidth=1.2)
    axis.set_xticks(range(len(names)), names)
    axis.grid(axis="x", visible=False)
    axis.set_ylim(bottom=0)
    axis.set_title(f"{judge.capitalize()} score per category, a point per seed")
    axis.legend(ncols=len(groups), loc="lower right", bbox_to_anchor=(1, 1))
    return figure


def learning(inputs: Inputs, colours: dict[str, str]) -> Figure | None:
    """Curves of the RL stage: every seed thin, the mean over seeds bold."""
    shown = [name for name in TITLES if any(name in record for records in inputs.rl.values() for record in records)]
    if not shown:
        return None
    figure, axes = _panels(len(shown))
    for axis, metric in zip(axes, shown, strict=True):
        for algorithm in inputs.algorithms:
            runs = [inputs.rl[run.name] for run in inputs.of(algorithm)]
            for records in runs if len(runs) > 1 else []:
                axis.plot(*_curve(records, metric), color=colours[algorithm], linewidth=0.7, alpha=0.45)
            axis.plot(*_mean_curve(runs, metric), color=colours[algorithm], linewidth=1.8, label=algorithm)
        axis.set_title(TITLES[metric])
    axes[-1].set_xlabel("step")
    axes[0].legend(loc="best")
    return figure


def divergence(inputs: Inputs, colours: dict[str, str]) -> Figure:
    """What was bought with how much KL: along training, and at the end on held-out prompts."""
    moving = any("kl" in record and "reward" in record for records in inputs.rl.values() for record in records)
    figure, axes = _grid(1, 1 + moving, 9.9, 2.9)
    left = axes[0][0]
    judge = inputs.judge
    left.axhline(inputs.evaluations[0].sft.of(judge).mean, color=GREY, linestyle="--", linewidth=1.2, label="SFT")
    for run in inputs.evaluations:
        value = run.policy.of(judge)
        left.errorbar(run.kl.sequence, value.mean, yerr=[[value.mean - value.low], [value.high - value.mean]], fmt="o",
                      color=colours[run.algorithm], markersize=5, capsize=2.5,
                      label=run.algorithm if run is inputs.of(run.algorithm)[0] else None)
    left.set_xlim(0, 1.08 * max(run.kl.sequence for run in inputs.evaluations) or 1)
    left.set(xlabel="KL to SFT (nats per response)", title=f"{judge.capitalize()} score against KL, held out")
    left.legend(loc="best")
    if moving:
        for run in inputs.evaluations:
            points = [(r["kl"], r["reward"]) for r in inputs.rl[run.name] if "kl" in r and "reward" in r]
            axes[0][1].plot(*zip(*points, strict=True), color=colours[run.algorithm], linewidth=0.6, alpha=0.5,
                            marker=".", markersize=4)
        axes[0][1].set(xlabel="KL to SFT (nats per token)", title="Training reward against KL, step by step")
    return figure


def items(inputs: Inputs) -> Figure | None:
    """Mean score of every rubric item over training, mean over seeds: a column per category, a row per algorithm."""
    names: dict[str, list[str]] = defaultdict(list)
    for key in sorted({key for records in inputs.rl.values() for record in records for key in record}):
        parts = key.split("/")
        if len(parts) == 4 and parts[0] == "rewards" and parts[3] == "mean":
            names[parts[1]].append(parts[2])
    if not names:
        return None
    algorithms = inputs.algorithms
    figure, axes = _grid(len(algorithms), len(names), max(6.0, 3.3 * len(names)), 2.5 * len(algorithms), sharey=True,
                         sharex=True)
    for row, algorithm in zip(axes, algorithms, strict=True):
        runs = [inputs.rl[run.name] for run in inputs.of(algorithm)]
        for axis, (category, found) in zip(row, names.items(), strict=True):
            for index, item in enumerate(found):
                axis.plot(*_mean_curve(runs, f"rewards/{category}/{item}/mean"), linewidth=1.5, label=item,
                          color=COLOURS[index % len(COLOURS)])
            axis.set_title(f"{category}, {algorithm}")
            if algorithm == algorithms[0]:
                axis.legend(loc="best", fontsize=7)
    for axis in axes[-1]:
        axis.set_xlabel("step")
    return figure


def training(records: dict[str, list[Record]]) -> Figure | None:
    """Loss of every supervised stage."""
    shown = {stage: rows for stage, rows in records.items() if any("loss" in row for row in rows)}
    if not shown:
        return None
    figure, axes = _panels(len(shown))
    for axis, (stage, rows) in zip(axes, shown.items(), strict=True):
        axis.plot(*_curve(rows, "loss"), color=COLOURS[0], linewidth=1.3)
        axis.set(title=f"{stage}: loss", xlabel="step")
    return figure


def _curve(records: Sequence[Record], metric: str) -> tuple[list[float], list[float]]:
    points = [(record["step"], record[metric]) for record in records if metric in record]
    return [x for x, _ in points], [y for _, y in points]


def _mean_curve(runs: Sequence[Sequence[Record]], metric: str) -> tuple[list[float], list[float]]:
    values: dict[float, list[float]] = defaultdict(list)
    for records in runs:
        for record in records:
            if metric in record:
                values[record["step"]].append(record[metric])
    steps = sorted(values)
    return steps, [fmean(values[step]) for step in steps]
