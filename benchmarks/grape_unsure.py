"""Where confidence matters: the world of the preset `unsure`, a critic that is honestly unsure and wrong when it has to decide.

    python -m benchmarks.grape_unsure ../unsure --kept ../unsure.json                      seeds 0..4, a minute a run
    python -m benchmarks.grape_unsure ../unsure --kept ../unsure.json --write docs/grape.md --plot docs/img/grape_unsure.png

In an empty folder makes a project (`grape init --preset unsure`) and runs it up to its SFT policy and its critic, trained on labels
that for one item are nearly coins, and calibrated. All runs begin from these two. They differ in what is made of the critic's
calibrated probability p of a yes (`CRITICS`), and in the algorithm (`ALGORITHMS`). Measured: gold on the test prompts, the same
uniform numbers for all.

`SIDES` are the runs and `FAMILY` the comparisons, one family for Holm's correction, both written before any run. Differences are
paired by seed, prompt and draw, with grape's own intervals over crossed seeds and prompts (`grape.evaluation.comparison`).
Expected, also before: with verdicts GRAPE by the margin is better than equal weights, since a coin then counts little; with graded
scores there is nothing to win, since p - 1/2 = (verdict - 1/2) |2p - 1|: these are verdicts weighted by the margin already.
Constant confidence is no side of its own: it is RaR to the last digit (tests/laws/test_grape.py). The overconfident critic, that is
calibrated on merged labels (`unsure_world.MERGED`), was added when four runs of other sides had been seen, and none of its own.

The last columns say why, on the SFT policy's own answers to training prompts: the share of the reward that the contested item
has, and how the advantages that each side gives these answers go with gold, as a correlation within groups.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import lru_cache, partial
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from benchmarks import grape_bench as bench
from benchmarks.unsure_world import CATEGORIES, CONTESTED, MERGED, WITHOUT, World, prepared, world
from grape.algorithms import grape, grpo
from grape.evaluation.comparison import Estimate, estimate, holm
from grape.models.chat import Chat
from grape.training.adam import AdamParams
from grape.training.assemble import assemble
from grape.training.sampler import Drawn
from grape.types import Response, Scores

MARKERS = "<!-- unsure -->", "<!-- /unsure -->"
ROUNDS, PROMPTS = 40, 12  # of a run, and of a round
LEVEL = 0.95
LOOKED_AT = 160  # training prompts for the last columns
ALGORITHMS: dict[str, tuple[Any, Any]] = {
    "GRAPE": (grape, grape.GRAPEParams()),
    "GRAPE, exponent 4": (grape, grape.GRAPEParams(exponent=4.0)),
    "RaR": (grape, grape.GRAPEParams(exponent=0.0)),
    "GDPO": (grape, grape.GRAPEParams(exponent=0.0, advantage="per_item")),
    "GRPO on the sum": (grpo, grpo.GRPOParams()),
}
FIRST, GRADED = ("verdict, margin", "GRAPE"), ("graded, right", "GRAPE")
SIDES: list[bench.Case] = [
    FIRST,
    ("verdict, margin", "RaR"),
    ("verdict, margin", "GRPO on the sum"),
    ("verdict, margin", "GDPO"),
    ("verdict, right", "GRAPE"),
    ("verdict, right", "GRAPE, exponent 4"),
    (WITHOUT, "RaR"),
    GRADED,
    ("graded, right", "RaR"),
    (MERGED, "GRAPE"),
]
FAMILY: list[tuple[bench.Case, bench.Case]] = [
    *((FIRST, other) for other in SIDES if other not in (FIRST, GRADED)),
    (GRADED, ("graded, right", "RaR")),
]


@lru_cache
def before(folder: Path) -> float:
    """The SFT policy's gold."""
    it = world(folder)
    return fmean(it.gold(it.answers(*it.model("sft"), "test", it.params.evaluate.samples)))


def run(folder: Path, case: bench.Case, seed: int) -> bench.Curves:
    """score: gold before and after; gold: of every answer to the test prompts, prompt by prompt."""
    (critic, name), it = case, world(folder)
    algorithm, knobs = ALGORITHMS[name]
    policy, chat = it.model("sft")
    rl = it.params.rl
    adam = AdamParams(rl.learning_rate, ROUNDS, rl.warmup_steps, rl.schedule, rl.weight_decay, rl.max_grad_norm)
    learner = assemble(algorithm.ALGORITHM, knobs, policy, adam, rl.temperature)
    source = learner.rollouts(chat, it.prompts("train"), it.judge(critic), it.sampling(PROMPTS), ("unsure", seed))
    learner.train(source, ROUNDS, lambda *_: None)
    gold = it.gold(it.answers(policy, chat, "test", it.params.evaluate.samples))
    return {"gold": gold, "score": [before(folder), fmean(gold)]}


def compared(results: bench.Results, prompts: int) -> list[tuple[Estimate, float]]:
    """Of every comparison of the family the difference and Holm's p."""

    def means(side: bench.Case) -> np.ndarray:
        """(seeds, prompts)"""
        return np.array([np.reshape(run["gold"], (prompts, -1)).mean(1) for run in results[side]])

    found = [estimate(means(a) - means(b)) for a, b in FAMILY]
    return list(zip(found, holm([one.p for one in found]), strict=True))


def why(it: World, responses: Sequence[Response], scores: Scores, chat: Chat, name: str) -> tuple[list[str], list[str]]:
    """Per category of the contested item: its share of the reward ("" where there is none to be had), and the correlation of the
    advantages with gold within groups."""
    algorithm, knobs = ALGORITHMS[name]
    sampling = it.sampling(len(responses) // it.params.rl.samples)
    credit = algorithm.credit(scores, Drawn(list(responses), scores, len(responses)).rollouts(chat, sampling), knobs, {})
    advantage, gold = credit.advantage[:, 0].double(), torch.tensor(it.gold(responses), dtype=torch.float64)
    shares, correlations = [], []
    for category in CATEGORIES:
        total, count = credit.metrics.get(f"rubric/{category}/{CONTESTED}/weight", (0.0, 0.0))
        shares.append(f"{float(total) / float(count):.2f}" if count else "")
        own = torch.tensor([response.prompt.category == category for response in responses])
        correlations.append(f"{within(advantage[own], gold[own], it.params.rl.samples):+.2f}")
    return shares, correlations


def within(a: Tensor, b: Tensor, size: int) -> float:
    """Correlation of a and b (groups of `size`, one after the other), each less its group's mean."""
    a, b = ((x.reshape(-1, size) - x.reshape(-1, size).mean(1, keepdim=True)).flatten() for x in (a, b))
    return float((a @ b) / (a.norm() * b.norm()).clamp(min=1e-12))


def table(it: World, results: bench.Results) -> str:
    sft, chat = it.model("sft")
    looked = it.answers(sft, chat, "train", it.params.rl.samples, LOOKED_AT)
    header = (
        "critic", "algorithm", "gold", "minus SFT", *(f"share, {c}" for c in CATEGORIES), *(f"with gold, {c}" for c in CATEGORIES)
    )  # fmt: skip
    judged = {critic: it.judge(critic)(looked) for critic in dict.fromkeys(critic for critic, _ in SIDES)}
    rows = []
    for side in SIDES:
        ends, start = bench.column(results[side], "score"), results[side][0]["score"][0]
        shares, correlations = why(it, looked, judged[side[0]], chat, side[1])
        rows.append([*side, bench.spread(ends), f"{fmean(ends) - start:+.3f}", *shares, *correlations])
    return bench.markdown(header, rows)


def comparisons(it: World, results: bench.Results) -> str:
    rows = []
    for (a, b), (found, p) in zip(FAMILY, compared(results, len(it.prompts("test"))), strict=True):
        span = found.interval(LEVEL)
        said = [f"{span.mean:+.3f} [{span.low:+.3f}, {span.high:+.3f}]", f"{p:.3f}" if p >= 0.001 else "< 0.001"]
        rows.append([*(f"{name} ({critic})" for critic, name in (a, b)), *said])
    return bench.markdown(("this", "less this", "gold, paired", "p (Holm)"), rows)


def figure(results: bench.Results) -> Figure:
    """Gold after training: a point per seed, the mean with its interval; the line is SFT."""
    made = Figure(figsize=(7.6, 3.4), layout="constrained")
    axis = made.subplots()
    for place, side in enumerate(SIDES):
        values = bench.column(results[side], "score")
        colour = bench.LOOKS[0 if side[1].startswith("GRAPE") else 1][0]
        axis.plot(values, [place] * len(values), ".", color=colour, alpha=0.5)
        axis.errorbar(fmean(values), place, xerr=bench.half(values), fmt="o", color=colour, capsize=3)
    axis.axvline(results[FIRST][0]["score"][0], color=bench.INK, linewidth=1, linestyle="--")
    axis.set_yticks(range(len(SIDES)), [f"{name} ({critic})" for critic, name in SIDES])
    axis.invert_yaxis()
    axis.set_xlabel("gold on test prompts (dots: seeds; bars: 95 % t interval; line: SFT)")
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    parser = bench.parser(__doc__)
    parser.add_argument("folder", type=Path, help="of the project to make, or to go on with")
    given = parser.parse_args(arguments)
    folder = given.folder.resolve()
    prepared(folder)
    results = bench.results(partial(run, folder), SIDES, given)
    text = f"{table(world(folder), results)}\n\n{comparisons(world(folder), results)}"
    bench.publish(given, text, MARKERS, lambda: figure(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
