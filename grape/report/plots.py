"""The figures of the report by name; those of the rubric's items over training are in evolution.py."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from math import nan
from statistics import fmean
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from grape.budget import COUNTS
from grape.evaluation.comparison import Comparison
from grape.evaluation.record import Evaluation, Interval, JudgeName, Side
from grape.report import evolution, pairs
from grape.report.data import ReportInputs, TrainingRecord
from grape.report.drawing import COLOURS, GREY, STYLE, WIDTH, curve, grid, mean_curve, panels, png

TITLES = {
    "reward": "Reward",
    "grape/reward": "Reward, by confidence",
    "gold": "Gold score",
    "proxy": "Proxy score",
    "kl": "KL to SFT (nats/token)",
    "entropy": "Entropy (nats/token)",
    "completions/mean_length": "Length (tokens)",
    "completions/finished": "Finished answers",
    "frac_reward_zero_std": "Groups without signal",
    "grad_norm": "Gradient norm",
    "revision/share": "Share of revisions",
    "revision/gain": "Gain by revising",
    "revision/accepted": "Revisions accepted",
    "hack_rate": "Impossible tests passed",
}


POINT: dict[str, Any] = {"fmt": "o", "markersize": 5, "capsize": 2.5}


def draw(inputs: ReportInputs, level: float) -> dict[str, bytes]:
    """Every figure that has data, by name."""
    colours = {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(inputs.algorithms)}
    measured = {key for records in inputs.rl.values() for record in records for key in record}
    rewards = {key: f"Reward: {key.removeprefix('reward/')}" for key in sorted(measured) if key.startswith("reward/")}
    figures: dict[str, Callable[[], Figure | None]] = {
        "scores": lambda: scores(inputs, colours),
        "pairs": lambda: win_matrix(pairs.compared(inputs, level)),
        "frontier": lambda: frontier(inputs, colours),
        "categories": lambda: categories(inputs, colours),
        "overoptimisation": lambda: overoptimisation(inputs, colours),
        "learning": lambda: learning(inputs, colours, TITLES),
        "bought": lambda: bought(inputs, colours),
        "rewards": lambda: learning(inputs, colours, rewards),
        "divergence": lambda: divergence(inputs, colours),
        "training": lambda: training(inputs.training),
    }
    with rc_context(STYLE):
        drawn = {name: figure() for name, figure in figures.items()}
        for found in evolution.read(inputs):
            drawn |= evolution.draw(found)
        return {name: png(figure) for name, figure in drawn.items() if figure is not None}


def scores(inputs: ReportInputs, colours: dict[str, str]) -> Figure:
    """Every policy's score with its interval against SFT's band, by judge."""
    judges: list[JudgeName] = ["gold", "proxy"] if inputs.judge == "gold" else ["proxy"]
    runs = inputs.evaluations
    figure, axes = grid(1, len(judges), WIDTH, 1.1 + 0.26 * len(runs), sharey=True)
    for axis, judge in zip(axes[0], judges, strict=True):
        sft = runs[0].sft.of(judge)
        axis.axvspan(sft.low, sft.high, color=GREY, alpha=0.25, linewidth=0)
        axis.axvline(sft.mean, color=GREY, linewidth=1.2, linestyle="--")
        for row, run in enumerate(runs):
            value = run.policy.of(judge)
            axis.errorbar(value.mean, row, xerr=_reach(value), color=colours[run.algorithm], linewidth=1.6, **POINT)
        axis.set_title(f"{judge.capitalize()} score on test prompts (dashed: SFT)")
        axis.set_ylim(len(runs) - 0.4, -0.6)
        axis.grid(axis="y", visible=False)
    axes[0][0].set_yticks(range(len(runs)), [run.name for run in runs])
    return figure


def win_matrix(found: Sequence[Comparison]) -> Figure | None:
    """How often the row's answer is better than the column's; bold where the two are different. None: there is one pair."""
    names = list(dict.fromkeys(name for one in found for name in (one.a, one.b)))
    if len(names) < 3:
        return None
    figure, ((axis,),) = grid(1, 1, WIDTH, 0.9 + 0.32 * len(names))
    share = np.full((len(names), len(names)), np.nan)
    for one in found:
        i, j = names.index(one.a), names.index(one.b)
        share[i, j], share[j, i] = one.wins.mean, 1 - one.wins.mean
        for row, column in ((i, j), (j, i)):
            weight = "bold" if one.different else "normal"
            axis.text(column, row, f"{share[row, column]:.2f}", ha="center", va="center", fontweight=weight, fontsize=8)
    axis.imshow(share, cmap="PuOr_r", vmin=0, vmax=1, alpha=0.22, aspect="auto")
    axis.set_xticks(range(len(names)), names)
    axis.set_yticks(range(len(names)), names)
    axis.grid(visible=False)
    axis.set_title("Wins of the row over the column")
    return figure


def frontier(inputs: ReportInputs, colours: dict[str, str]) -> Figure:
    """Every policy's score against the seconds, tokens and divergence it took."""
    against: dict[str, Callable[[Evaluation], float]] = {
        "seconds": lambda run: inputs.cost(run.name).seconds,
        "tokens": lambda run: inputs.cost(run.name).tokens,
        "KL, nats per response": lambda run: run.kl.sequence,
    }
    figure, axes = grid(1, len(against), WIDTH, 2.6, sharey=True)
    for axis, (name, of) in zip(axes[0], against.items(), strict=True):
        axis.axhline(inputs.evaluations[0].sft.of(inputs.judge).mean, color=GREY, linewidth=1.2, linestyle="--")
        for run in inputs.evaluations:
            value = run.policy.of(inputs.judge)
            axis.errorbar(of(run), value.mean, yerr=_reach(value), linewidth=1.2, **POINT, **_labelled(inputs, run, colours))
        axis.set_xlabel(name)
    axes[0][0].set_title(f"{inputs.judge.capitalize()} score against its cost")
    axes[0][-1].legend()
    return figure


def _reach(value: Interval) -> list[list[float]]:
    """How far the interval reaches below and above its mean, as errorbar takes it."""
    return [[value.mean - value.low], [value.high - value.mean]]


def _labelled(inputs: ReportInputs, run: Evaluation, colours: dict[str, str]) -> dict[str, Any]:
    """The colour of a policy's point, and the name that stands in the legend once for each algorithm."""
    first = run is inputs.of(run.algorithm)[0]
    return {"color": colours[run.algorithm], "label": run.algorithm if first else None}


def categories(inputs: ReportInputs, colours: dict[str, str]) -> Figure:
    """Bars per category: SFT and each algorithm's mean over seeds; the seeds with their intervals on top."""
    judge = inputs.judge
    names = list(inputs.evaluations[0].sft.categories)
    groups: list[tuple[str, str, list[Side]]] = [("SFT", GREY, [inputs.evaluations[0].sft])]
    groups += [(a, colours[a], [run.policy for run in inputs.of(a)]) for a in inputs.algorithms]
    width = 0.8 / len(groups)
    figure, ((axis,),) = grid(1, 1, WIDTH, 2.8)
    for index, (label, colour, sides) in enumerate(groups):
        for position, name in enumerate(names):
            values = [side.categories[name].of(judge) for side in sides]
            x = position - 0.4 + width * (index + 0.5)
            axis.bar(x, fmean(v.mean for v in values), width * 0.9, color=colour, alpha=0.4, label=label if position == 0 else None)
            for seed, value in enumerate(values):
                shift = width * 0.9 * ((seed + 1) / (len(values) + 1) - 0.5)
                how = POINT | {"fmt": ".", "capsize": 2, "color": colour}
                axis.errorbar(x + shift, value.mean, yerr=_reach(value), linewidth=1.2, **how)
    axis.set_xticks(range(len(names)), names)
    axis.grid(axis="x", visible=False)
    axis.set_ylim(bottom=0)
    axis.set_title(f"{judge.capitalize()} score per category, a point per seed")
    axis.legend(ncols=len(groups), loc="lower right", bbox_to_anchor=(1, 1))
    return figure


def overoptimisation(inputs: ReportInputs, colours: dict[str, str]) -> Figure | None:
    """What became of the proxy's gain in gold: a point per policy. On the diagonal all of it is real."""
    if inputs.judge != "gold":
        return None
    figure, ((axis,),) = grid(1, 1, WIDTH, 3.4)
    bounds = [[0.0], [0.0]]
    for run in inputs.evaluations:
        x, y = (run.difference.of(judge) for judge in ("proxy", "gold"))
        how = POINT | _labelled(inputs, run, colours)
        axis.errorbar(x.mean, y.mean, xerr=_reach(x), yerr=_reach(y), linewidth=1.2, **how)
        bounds[0] += [x.low, x.high]
        bounds[1] += [y.low, y.high]
    margins = [0.06 + 0.05 * (max(values) - min(values)) for values in bounds]
    (left, right), (bottom, top) = ((min(v) - m, max(v) + m) for v, m in zip(bounds, margins, strict=True))
    axis.fill_between([0, right], bottom, 0, color=COLOURS[4], alpha=0.16, linewidth=0)
    how = {"textcoords": "offset points", "ha": "right", "weight": "bold", "color": COLOURS[4]}
    axis.annotate("proxy up, gold down", (right, bottom), (-6, 5), **how)
    axis.axline((0, 0), slope=1, color=GREY, linewidth=1, linestyle="--")
    axis.axhline(0, color=GREY, linewidth=0.8)
    axis.axvline(0, color=GREY, linewidth=0.8)
    axis.set(xlim=(left, right), ylim=(bottom, top), xlabel="proxy: difference to SFT", ylabel="gold: difference to SFT")
    axis.set_title("Gain in proxy against gain in gold, test prompts (dashed: equal)")
    axis.legend(loc="upper left")
    return figure


def learning(inputs: ReportInputs, colours: dict[str, str], titles: Mapping[str, str]) -> Figure | None:
    """Curves of the RL stage, a panel per metric of `titles` that exists: every seed thin, the mean over seeds bold."""
    shown = [name for name in titles if any(name in record for records in inputs.rl.values() for record in records)]
    if not shown:
        return None
    figure, axes = panels(len(shown))
    for axis, metric in zip(axes, shown, strict=True):
        for algorithm in inputs.algorithms:
            runs = [inputs.rl[run.name] for run in inputs.of(algorithm)]
            for records in runs if len(runs) > 1 else []:
                axis.plot(*curve(records, metric), color=colours[algorithm], linewidth=0.7, alpha=0.45)
            axis.plot(*mean_curve(runs, metric), color=colours[algorithm], linewidth=1.8, label=algorithm)
        axis.set_title(titles[metric])
    axes[-1].set_xlabel("step")
    axes[0].legend(loc="best")
    return figure


def bought(inputs: ReportInputs, colours: dict[str, str]) -> Figure | None:
    """The training reward against what it took: samples, tokens, seconds, updates. A mean over seeds, round by round."""
    known = {name: [inputs.rl[run.name] for run in inputs.of(name)] for name in inputs.algorithms}
    known = {name: runs for name, runs in known.items() if all("reward" in record for records in runs for record in records[-1:])}
    if not any(records for runs in known.values() for records in runs):
        return None
    figure, axes = grid(1, len(COUNTS), WIDTH, 2.6, sharey=True)
    for axis, (unit, metric) in zip(axes[0], COUNTS.items(), strict=True):
        for name, runs in known.items():
            took = [list(accumulate(record.get(metric, 0.0) for record in records)) for records in runs]
            rounds = range(min(map(len, took)))
            reward = [fmean(records[i].get("reward", nan) for records in runs) for i in rounds]
            axis.plot([fmean(t[i] for t in took) for i in rounds], reward, color=colours[name], linewidth=1.4, label=name)
        axis.set_xlabel(unit)
    axes[0][0].set_title("Training reward against what it took")
    axes[0][-1].legend()
    return figure


def divergence(inputs: ReportInputs, colours: dict[str, str]) -> Figure:
    """What was bought with how much KL: along training, and at the end on test prompts."""
    moving = any("kl" in record and "reward" in record for records in inputs.rl.values() for record in records)
    figure, axes = grid(1, 1 + moving, WIDTH, 2.9)
    left = axes[0][0]
    judge = inputs.judge
    left.axhline(inputs.evaluations[0].sft.of(judge).mean, color=GREY, linestyle="--", linewidth=1.2, label="SFT")
    for run in inputs.evaluations:
        value = run.policy.of(judge)
        left.errorbar(run.kl.sequence, value.mean, yerr=_reach(value), **POINT | _labelled(inputs, run, colours))
    left.set_xlim(0, 1.08 * max(run.kl.sequence for run in inputs.evaluations) or 1)
    left.set(xlabel="KL to SFT (nats per response)", title=f"{judge.capitalize()} score against KL, test prompts")
    left.legend(loc="best")
    if moving:
        _moving(axes[0][1], inputs, colours)
    return figure


def _moving(axis: Axes, inputs: ReportInputs, colours: dict[str, str]) -> None:
    for run in inputs.evaluations:
        points = [(r["kl"], r["reward"]) for r in inputs.rl[run.name] if "kl" in r and "reward" in r]
        axis.plot(*zip(*points, strict=True), color=colours[run.algorithm], linewidth=0.6, alpha=0.5, marker=".", markersize=4)
    axis.set(xlabel="KL to SFT (nats per token)", title="Training reward against KL, step by step")


def training(records: dict[str, list[TrainingRecord]]) -> Figure | None:
    """Loss of every supervised stage."""
    shown = {stage: rows for stage, rows in records.items() if any("loss" in row for row in rows)}
    if not shown:
        return None
    figure, axes = panels(len(shown))
    for axis, (stage, rows) in zip(axes, shown.items(), strict=True):
        axis.plot(*curve(rows, "loss"), color=COLOURS[0], linewidth=1.3)
        axis.set(title=f"{stage}: loss", xlabel="step")
    return figure
