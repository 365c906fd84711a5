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
Constant confidence is no side of its own: it is RaR to the last digit (tests/laws/test_grape.py). Nor is an overconfident critic,
which calibration prevents here; benchmarks/grape_confidence.py has one.

The last columns say why, on the SFT policy's own answers to training prompts: the share of the reward that the contested item
has, and how the advantages that each side gives these answers go with gold, as a correlation within groups.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from benchmarks import grape_bench as bench
from grape.algorithms import grape, grpo
from grape.artifacts import read_prompts
from grape.evaluation.comparison import Estimate, estimate, holm
from grape.models.chat import Chat
from grape.models.load import load_language_model
from grape.params import Params, load
from grape.reward.critics.calibration import Calibration
from grape.reward.critics.judge import Judge, make_critic
from grape.reward.rubric import Rubric, load_rubrics
from grape.reward.source import RubricReward
from grape.sampling import sample
from grape.stages.modules import load_module
from grape.training.adam import AdamParams
from grape.training.assemble import assemble
from grape.training.sampler import Drawn, Sampling
from grape.types import Response, Scores

MARKERS = "<!-- unsure -->", "<!-- /unsure -->"
CONTESTED, CATEGORIES = "taste", ("letters", "courtesy")  # the item, and the rubrics that have it
ROUNDS, PROMPTS = 40, 12  # of a run, and of a round
LEVEL = 0.95
LOOKED_AT = 160  # training prompts for the last columns
CRITICS: dict[str, dict[str, Any]] = {
    "verdict, margin": {"score": "verdict", "confidence": "margin"},  # s = 1 if p > 1/2, else 0; c = |2p - 1|
    "verdict, right": {"score": "verdict", "confidence": "right"},  # c = max(p, 1 - p)
    "graded, margin": {"score": "graded", "confidence": "margin"},  # s = p
    "graded, right": {"score": "graded", "confidence": "right"},  # grape's default
    "not asked about it": {"score": "verdict", "confidence": "right"},  # the rubric without the contested item
}
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
    ("not asked about it", "RaR"),
    GRADED,
    ("graded, right", "RaR"),
]
FAMILY: list[tuple[bench.Case, bench.Case]] = [*((FIRST, other) for other in SIDES[1:7]), (GRADED, SIDES[-1]), (FIRST, SIDES[-1])]


def prepared(folder: Path) -> None:
    """The project with its SFT policy and its critic; what DVC has from before is not computed again."""
    command = [sys.executable, "-m", "grape.cli"]
    if not (folder / "params.yaml").exists():
        subprocess.run([*command, "init", "--preset", "unsure", str(folder)], check=True)
    for stage in ("sft", "critic"):
        subprocess.run([*command, "run", stage], cwd=folder, check=True)


@dataclass(frozen=True)
class World:
    """A prepared project."""

    folder: Path
    params: Params

    def model(self, name: str) -> tuple[Any, Chat]:
        model, tokenizer = load_language_model(str(self.folder / "models" / name))
        return model, Chat(tokenizer, self.params.model.template, model)

    def prompts(self, split: str) -> list[Any]:
        return read_prompts(self.folder / f"data/prompts/{split}.jsonl")

    def answers(self, model: Any, chat: Chat, split: str, samples: int, count: int | None = None) -> list[Response]:
        """By the same uniform numbers whatever the model."""
        rl = self.params.rl
        return sample(
            model, chat, self.prompts(split)[:count], samples, temperature=rl.temperature, max_new_tokens=rl.max_new_tokens,
            positions=self.params.model.positions, keys=(self.params.seed, "unsure", split),
        )  # fmt: skip

    @property
    def sampling(self) -> Sampling:
        rl = self.params.rl
        return Sampling(PROMPTS, rl.samples, rl.temperature, rl.max_new_tokens, self.params.model.positions, 16384, rl.max_missing)

    def judge(self, critic: str) -> RubricReward:
        place = self.folder / "models/critic"
        judge = Judge.read(place).model_copy(update=CRITICS[critic])
        rubrics = load_rubrics(self.folder / "rubrics")
        if critic == "not asked about it":
            rubrics = {category: uncontested(rubric) for category, rubric in rubrics.items()}
        return RubricReward(rubrics, make_critic(judge, Calibration.read(place), place, self.folder))

    @cached_property
    def golden(self) -> Any:
        return load_module(self.folder / self.params.prepare.source).gold

    def gold(self, responses: Sequence[Response]) -> list[float]:
        return [float(self.golden(response.prompt, response.text)) for response in responses]


def uncontested(rubric: Rubric) -> Rubric:
    return rubric.model_copy(update={"items": tuple(item for item in rubric.items if item.id != CONTESTED)})


@lru_cache
def world(folder: Path) -> World:
    return World(folder, load(folder / "params.yaml"))


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
    source = learner.rollouts(chat, it.prompts("train"), it.judge(critic), it.sampling, ("unsure", seed))
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


def why(it: World, responses: Sequence[Response], chat: Chat, side: bench.Case) -> tuple[list[str], list[str]]:
    """Per category of the contested item: its share of the reward ("" where there is none to be had), and the correlation of the
    advantages with gold within groups."""
    critic, name = side
    algorithm, knobs = ALGORITHMS[name]
    scores: Scores = it.judge(critic)(responses)
    groups = len(responses) // it.params.rl.samples
    sampling = Sampling(**{**vars(it.sampling), "prompts": groups})
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
    rows = []
    for side in SIDES:
        ends, start = bench.column(results[side], "score"), results[side][0]["score"][0]
        shares, correlations = why(it, looked, chat, side)
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
