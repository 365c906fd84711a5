"""What the experiments on GRAPE share: a tiny world, training and measuring in it, intervals, tables and plots.

There is nothing to run here: grape_confidence, grape_gaming and grape_scope are the experiments. The world has eight prompts, a
letter each, and the right answer is that letter. A tiny policy is trained on noisy demonstrations (two-letter answers and wrong
letters among them) and then by an algorithm, 64 samples a round, with a judge that is the experiment's own. What is measured is a
mean over 256 fresh samples, the same random numbers every time. An experiment is a set of cases, each run once per seed; all that
differs between cases of one seed is the case. Intervals are 95 % t intervals over seeds.
"""

from __future__ import annotations

import io
import json
import os
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from copy import deepcopy
from dataclasses import dataclass
from functools import lru_cache, partial
from multiprocessing import get_context
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # the model is small, and there is a process per core

import torch
from matplotlib import rc_context
from matplotlib.figure import Figure
from scipy.special import stdtrit  # type: ignore[import-untyped]

from benchmarks.results_table import write
from grape.algorithms import sft
from grape.files import replacing, write_text
from grape.models.chat import Chat, Row
from grape.models.forward import language
from grape.models.scratch import character_tokenizer, scratch
from grape.report import plots
from grape.sampling import sample
from grape.training.adam import Adam, AdamParams
from grape.training.assemble import assemble
from grape.training.batches import offline
from grape.training.loop import train
from grape.training.sampler import Sampling
from grape.types import Prompt, Response, Scores

LETTERS = "abcdefgh"
RIGHT = "?"  # among demonstrations: the prompt's right answer
ROUND = 64  # samples a round, whatever the size of the groups

Judge = Callable[[Sequence[Response]], Scores]
Measure = Callable[[Response], float]
Case = tuple[str, ...]
Curves = dict[str, list[float]]  # measure -> its values, before training first
Results = dict[Case, list[Curves]]  # a run per seed


@dataclass(frozen=True)
class Plan:
    """How a policy begins and is trained: `samples` per prompt, ROUND a round; measured before and after every `every` rounds."""

    rounds: int = 40
    every: int = 5
    samples: int = 8
    demonstrations: tuple[str, ...] = (RIGHT, RIGHT, RIGHT, "a", "b", "cd", "dc", "ab", "h")


def prompts(copies: int = 1) -> list[Prompt]:
    """Every letter `copies` times, under another id each time: what is sampled depends on the id."""
    return [Prompt(f"{t}{n or ''}", "letters", ({"role": "user", "content": t},), t) for n in range(copies) for t in LETTERS]


def right(response: Response) -> float:
    return float(response.finished and response.text == response.prompt.answer)


def hedge(response: Response) -> float:
    """Two different letters: an answer that does not commit itself."""
    text = response.text
    return float(response.finished and len(text) == 2 and len(set(text)) == 2 and set(text) <= set(LETTERS))


def scores(items: Sequence[str], rows: Sequence[Sequence[tuple[float, float]]], weights: Sequence[float]) -> Scores:
    """From (score, confidence) of every response and item; nothing is missing."""
    values = torch.tensor(rows)
    weight = torch.tensor([list(weights)]).expand(len(rows), -1)
    score, confidence = (values[..., i].contiguous() for i in (0, 1))
    return Scores(tuple(items), score, confidence, torch.ones_like(weight).bool(), weight)


@lru_cache
def chat() -> Chat:
    return Chat(character_tokenizer([LETTERS]))


def answered(prompt: Prompt, text: str) -> Row:
    return chat().conversation([*prompt.messages, {"role": "assistant", "content": text}]).row


@lru_cache
def start(seed: int, demonstrations: Sequence[str]) -> Any:
    """The policy that all cases of a seed begin from; copy it before training."""
    model = scratch("llama", 2, 32, 2, 64, chat().tokenizer, seed).eval()
    rows = [answered(p, str(p.answer) if text == RIGHT else text) for p in prompts() for text in demonstrations]
    source = offline(rows, chat().pad, 36, ("warm", seed), torch.device("cpu"))
    adam = Adam(model, AdamParams(5e-3, 150))
    train(model, sft.ALGORITHM, sft.ALGORITHM.params(), source, partial(language, model), adam, steps=150, track=lambda *_: None)
    return model


def curves(algorithm: Any, params: Any, judge: Judge, measures: Mapping[str, Measure], plan: Plan, seed: int) -> Curves:
    """The measures before training and after every `plan.every` rounds of it."""
    model = deepcopy(start(seed, plan.demonstrations))
    found: Curves = {name: [] for name in measures}

    def measure() -> None:
        fresh = sample(model, chat(), prompts(), 32, temperature=1.0, max_new_tokens=4, positions=64, keys=("held out", seed))
        for name, value in measures.items():
            found[name].append(fmean(map(value, fresh)))

    def track(step: int, metrics: Any) -> None:
        if step % plan.every == 0:
            measure()

    groups = ROUND // plan.samples
    asked = prompts(groups // len(LETTERS))
    learner = assemble(algorithm.ALGORITHM, params, model, AdamParams(5e-4, plan.rounds))
    sampling = Sampling(groups, plan.samples, 1.0, 4, 64, 8192, 0.0)
    measure()
    learner.train(learner.rollouts(chat(), asked, judge, sampling, ("train", seed)), plan.rounds, track)
    return found


def half(values: Sequence[float]) -> float:
    """Half of a 95 % t interval of the mean; 0 for one value."""
    return float(stdtrit(len(values) - 1, 0.975)) * stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0


def spread(values: Sequence[float]) -> str:
    """`0.812 ± 0.034`, half of a 95 % t interval."""
    return f"{fmean(values):.3f} ± {half(values):.3f}"


def column(runs: Sequence[Curves], measure: str, index: int = -1) -> list[float]:
    """One value of every seed's curve."""
    return [run[measure][index] for run in runs]


def less(runs: Sequence[Curves], others: Sequence[Curves], measure: str) -> list[float]:
    """How much more there is at the end than in `others`, seed by seed."""
    return [a - b for a, b in zip(column(runs, measure), column(others, measure), strict=True)]


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in (header, ["---"] * len(header), *rows))


# The command


def parser(description: str | None) -> ArgumentParser:
    made = ArgumentParser(description=(description or "").split("\n")[0])
    made.add_argument("--seeds", type=int, default=5)
    made.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes; changes no number")
    made.add_argument(
        "--kept",
        type=Path,
        metavar="FILE",
        help="JSON: runs that stand here are not run again, the others are added; delete it after a change of the code",
    )
    made.add_argument("--write", type=Path, metavar="FILE", help="put the table between the markers of this file")
    made.add_argument("--plot", type=Path, metavar="FILE", help="draw the curves into this PNG")
    return made


def results(run: Callable[[Case, int], Curves], cases: Sequence[Case], given: Namespace) -> Results:
    """Every case with every seed, in order; what has been run is told on stderr and kept where `--kept` says."""
    kept: dict[str, Curves] = json.loads(given.kept.read_text(encoding="utf-8")) if given.kept and given.kept.exists() else {}
    names = {(case, seed): " / ".join((*case, f"seed {seed}")) for seed in range(given.seeds) for case in cases}
    for (case, seed), curve in _ran(run, [job for job, name in names.items() if name not in kept], given.workers):
        kept[names[case, seed]] = curve
        end = ", ".join(f"{measure} {values[-1]:.3f}" for measure, values in curve.items())
        print(f"{names[case, seed]}: {end}", file=sys.stderr, flush=True)
        if given.kept:
            write_text(given.kept, json.dumps(kept, indent=0))
    return {case: [kept[names[case, seed]] for seed in range(given.seeds)] for case in cases}


def _ran(
    run: Callable[[Case, int], Curves], jobs: Sequence[tuple[Case, int]], workers: int
) -> Iterator[tuple[tuple[Case, int], Curves]]:
    if workers == 1 or len(jobs) < 2:
        yield from ((job, run(*job)) for job in jobs)
        return
    # Forking would copy torch's threads in an unknown state.
    with ProcessPoolExecutor(min(workers, len(jobs)), get_context("spawn")) as pool:
        running = {pool.submit(run, *job): job for job in jobs}
        for future in as_completed(running):
            yield running[future], future.result()


def publish(given: Namespace, text: str, markers: tuple[str, str], figure: Callable[[], Figure]) -> None:
    """Print the table, and put it and the plot where the command said."""
    print(text)
    if given.plot:
        with rc_context(STYLE):
            picture = io.BytesIO()
            figure().savefig(picture, format="png", metadata={"Software": None})  # the same bytes whatever matplotlib's version
        with replacing(given.plot) as beside:
            beside.write_bytes(picture.getvalue())
    if given.write:
        write(given.write, text, *markers)


# Plots

# A page may be light or dark: the report's figures are transparent, these bring their own white.
INK = "#3a3f45"
STYLE: dict[str, Any] = {
    **plots.STYLE,
    "savefig.transparent": False,
    "figure.facecolor": "white",
    "axes.facecolor": "white",
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "text.color": INK,
}
# A colour and a dash for each line: lines that lie upon each other can both be seen.
LOOKS: list[tuple[str, Any]] = list(
    zip(plots.COLOURS, ("-", (0, (5, 2.5)), (0, (1.2, 1.6)), "-.", (0, (3, 1, 1, 1, 1, 1))), strict=False)
)
Panel = tuple[str, Mapping[str, Sequence[Sequence[float]]]]  # title, label -> a curve per seed


def learning(rows: Mapping[str, Sequence[Panel]], every: int) -> Figure:
    """A row of panels per measure: mean over seeds and its interval as a band, after every `every` rounds."""
    columns = max(len(panels) for panels in rows.values())
    figure = Figure(figsize=(9.9, 0.7 + 2.3 * len(rows)))
    axes = figure.subplots(len(rows), columns, squeeze=False, sharex=True, sharey=True)
    for line, (measure, panels) in zip(axes, rows.items(), strict=True):
        line[0].set_ylabel(measure)
        for axis, (title, lines) in zip(line, panels, strict=True):
            axis.set(title=title, ylim=(0, 1))
            for (label, runs), (colour, dash) in zip(lines.items(), LOOKS, strict=False):
                at = [every * i for i in range(len(runs[0]))]
                mean, around = [fmean(v) for v in zip(*runs, strict=True)], [half(v) for v in zip(*runs, strict=True)]
                axis.fill_between(
                    at,
                    [m - h for m, h in zip(mean, around, strict=True)],
                    [m + h for m, h in zip(mean, around, strict=True)],
                    facecolor=(colour, 0.11),
                    edgecolor=(colour, 0.45),
                    linewidth=0.6,
                )
                axis.plot(at, mean, color=colour, linestyle=dash, linewidth=1.8, label=label)
    for axis in axes[-1]:
        axis.set_xlabel("round")
    _legend(figure, axes)
    return figure


def ends(measure: str, panels: Sequence[Panel], across: str, ticks: Sequence[str]) -> Figure:
    """A panel per title: for every label and tick the mean over seeds with its interval, and the seeds as small points."""
    figure = Figure(figsize=(9.9, 3.2))
    axes = figure.subplots(1, len(panels), squeeze=False, sharey=True)
    axes[0][0].set_ylabel(measure)
    for axis, (title, lines) in zip(axes[0], panels, strict=True):
        axis.set(title=title, ylim=(0, 1), xlabel=across)
        axis.set_xticks(range(len(ticks)), ticks)
        axis.grid(axis="x", visible=False)
        for place, ((label, values), (colour, _), marker) in enumerate(zip(lines.items(), LOOKS, "os^Dv", strict=False)):
            at = [i + 0.2 * (place - (len(lines) - 1) / 2) for i in range(len(ticks))]
            for x, seeds in zip(at, values, strict=True):
                axis.plot([x + 0.06] * len(seeds), seeds, ".", color=colour, markersize=3, alpha=0.6)
            axis.errorbar(
                at,
                [fmean(v) for v in values],
                yerr=[half(v) for v in values],
                fmt=marker,
                color=colour,
                markersize=5,
                capsize=2.5,
                linewidth=1.4,
                label=label,
            )
    _legend(figure, axes)
    return figure


def _legend(figure: Figure, axes: Any) -> None:
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
