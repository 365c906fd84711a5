"""Over-optimisation (Gao et al. 2022, 2210.10760): what a reward model says of a policy and what is true, the further it goes.

    python -m benchmarks.overoptimisation ../classical                    seeds 0..2
    python -m benchmarks.overoptimisation ../classical --write docs/ppo.md --plot docs/img/overoptimisation.png

Takes SFT policy, reward model and parameters of a project (`grape init --preset classical`, `grape run reward`; one whose world
has a gold judge), and trains PPO on the reward model alone, with several coefficients of the KL to SFT; with none, longer than the
pipeline would. On the way each policy answers the validation prompts; gold, the reward model's score r and the exact KL to SFT are
means over the answers. Beside it best of n: of n answers of SFT to a prompt the one that the reward model likes best, expected
over all choices of n among 64, whose KL is at most log n - (n - 1) / n. A seed draws the policy's samples, or the 64 answers; SFT
and reward model are the same for all.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from statistics import fmean

import numpy as np
import torch
from matplotlib.figure import Figure

from benchmarks import grape_bench as bench
from grape import params as params_file
from grape.algorithms import ppo
from grape.artifacts import read_prompts
from grape.errors import GrapeError
from grape.models import micro
from grape.models.chat import Chat
from grape.models.encode import collate
from grape.models.forward import exact_kl
from grape.models.load import load_language_model, load_scalar_model
from grape.models.protocols import LanguageModel
from grape.reward.learned import LearnedReward
from grape.sampling import response_rows, sample
from grape.stages.modules import load_module
from grape.training.adam import AdamParams
from grape.training.assemble import Learner, assemble
from grape.training.sampler import Sampling
from grape.types import Prompt, Response

MARKERS = "<!-- overoptimisation -->", "<!-- /overoptimisation -->"
ROUNDS = {"0": 48, "0.1": 24, "0.4": 24}  # by the coefficient of the KL to SFT
BEST = "best of n"
CHOICES = (1, 2, 4, 8, 16, 32, 64)
EVERY, SAMPLES = 8, 4  # rounds from one measurement to the next; answers to each prompt
MEASURES = ("kl", "gold", "proxy")


@dataclass(frozen=True)
class World:
    """A project whose reward model is there."""

    folder: Path

    @cached_property
    def params(self) -> params_file.Params:
        return params_file.load(self.folder / "params.yaml")

    def prompts(self, name: str) -> list[Prompt]:
        return read_prompts(self.folder / f"data/prompts/{name}.jsonl")

    def policy(self) -> tuple[LanguageModel, Chat]:
        model, tokenizer = load_language_model(str(self.folder / "models/sft"))
        return model, Chat(tokenizer, self.params.model.template, model)

    @cached_property
    def reward(self) -> LearnedReward:
        return LearnedReward(self.folder / "models/reward", template=self.params.model.template)

    def gold(self, responses: Sequence[Response]) -> list[float]:
        """
        Raises:
            GrapeError: the world has no gold judge.
        """
        judge = getattr(load_module(self.folder / self.params.prepare.source), "gold", None)
        if judge is None:
            raise GrapeError("the world has no gold judge", where=str(self.folder), mend="take the default world")
        return [float(judge(r.prompt, r.text)) for r in responses]

    def proxy(self, responses: Sequence[Response]) -> list[float]:
        scores: list[float] = self.reward(responses).score[:, 0].tolist()
        return scores

    def sampled(self, model: LanguageModel, chat: Chat, samples: int, *keys: object) -> list[Response]:
        rl = self.params.rl
        return sample(
            model, chat, self.prompts("validation"), samples, temperature=rl.temperature, max_new_tokens=rl.max_new_tokens,
            positions=self.params.model.positions, keys=(self.params.seed, "overoptimisation", *keys),
        )  # fmt: skip


def run(folder: Path, case: bench.Case, seed: int) -> bench.Curves:
    world = World(folder)
    return best_of_n(world, seed) if case == (BEST,) else trained(world, case[0], seed)


def best_of_n(world: World, seed: int) -> bench.Curves:
    """The three measures for every n of CHOICES."""
    responses = world.sampled(*world.policy(), CHOICES[-1], BEST, seed)
    gold, proxy = (np.array(of(responses)).reshape(-1, CHOICES[-1]) for of in (world.gold, world.proxy))
    kl = [math.log(n) - (n - 1) / n for n in CHOICES]
    means = [[best_of(scores, proxy, n) for n in CHOICES] for scores in (gold, proxy)]
    return dict(zip(MEASURES, (kl, *means), strict=True))


def best_of(scores: np.ndarray, judged: np.ndarray, n: int) -> float:
    """Mean over prompts of the score of the best judged of n answers, over all choices of n among N: both (P, N).

    The i-th lowest (from 1) is the best of C(i - 1, n - 1) among C(N, n) choices.
    """
    count = judged.shape[1]
    chance = np.array([math.comb(i, n - 1) / math.comb(count, n) for i in range(count)])
    ranked = np.take_along_axis(scores, judged.argsort(1, kind="stable"), 1)
    return float((ranked @ chance).mean())


def trained(world: World, coefficient: str, seed: int) -> bench.Curves:
    """The three measures before training and after every EVERY rounds."""
    reference, chat = world.policy()
    learner = ppo_learner(world, float(coefficient))
    found: bench.Curves = {name: [] for name in MEASURES}

    def measure() -> None:
        responses = world.sampled(learner.policy, chat, SAMPLES)
        batch = collate(response_rows(chat, responses), chat.pad)
        kl, _ = exact_kl(learner.policy, reference, batch, world.params.rl.temperature, micro.fixed())
        means = float(kl.sum(1).mean()), fmean(world.gold(responses)), fmean(world.proxy(responses))
        for name, value in zip(MEASURES, means, strict=True):
            found[name].append(value)

    def track(step: int, _: object) -> None:
        if step % EVERY == 0:
            measure()

    measure()
    rl, keys = world.params.rl, (world.params.seed, "rl", seed)
    sampling = Sampling(
        rl.prompts, rl.samples, rl.temperature, rl.max_new_tokens, world.params.model.positions, micro.fixed(), rl.max_missing
    )
    source = learner.rollouts(chat, world.prompts("train"), world.reward, sampling, keys, reference)
    learner.train(source, ROUNDS[coefficient], track, keys=keys)
    return found


def ppo_learner(world: World, coefficient: float) -> Learner:
    """PPO as the project has it, but for the coefficient, which stays what it is."""
    rl, own = world.params.rl, world.params.algorithm("ppo")
    knobs = ppo.PPOParams.model_validate(own.model_dump() | {"beta": coefficient, "kl_target": None})
    value, _ = load_scalar_model(str(world.folder / "models/reward"))
    adam = AdamParams(rl.learning_rate, rl.steps, rl.warmup_steps, rl.schedule, rl.weight_decay, rl.max_grad_norm, micro.fixed())
    return assemble(ppo.ALGORITHM, knobs, world.policy()[0], adam, rl.temperature, value)


def label(case: bench.Case) -> str:
    return BEST if case == (BEST,) else f"PPO, beta {case[0]}"


def table(results: bench.Results) -> str:
    """At the moment where gold is highest in the mean, and at the end."""
    rows = []
    for case, runs in results.items():
        gold = [fmean(values) for values in zip(*(r["gold"] for r in runs), strict=True)]
        for place in sorted({gold.index(max(gold)), len(gold) - 1}):
            moment = f"n = {CHOICES[place]}" if case == (BEST,) else f"round {place * EVERY}"
            least = [r["gold"][place] - r["gold"][0] for r in runs]
            numbers = [spread(bench.column(runs, name, place)) for name in MEASURES]
            rows.append((label(case), moment, *numbers, spread(least, "+")))
    return bench.markdown(("", "at", "KL", "gold", "r", "gold less SFT's"), rows)


def spread(values: Sequence[float], sign: str = "") -> str:
    """Mean and half of a 95 % t interval; of one seed, which has none, the value."""
    return f"{fmean(values):{sign}.3f}" + (f" ± {bench.half(values):.3f}" if len(values) > 1 else "")


def figure(results: bench.Results) -> Figure:
    """Gold and r against the KL: the mean over seeds, and every seed as a thin line."""
    drawn = Figure(figsize=(9.9, 4.0))
    axes = drawn.subplots(1, 2, sharex=True, squeeze=False)
    for axis, measure, name in zip(axes[0], MEASURES[1:], ("gold: what is true", "r: what the reward model says"), strict=True):
        axis.set(title=name, xlabel="KL from SFT, nats per response (square-root scale)")
        axis.set_xscale("function", functions=(lambda x: np.sqrt(np.maximum(x, 0)), np.square))
        for (case, runs), (colour, dash) in zip(results.items(), bench.LOOKS, strict=False):
            for one in runs:
                axis.plot(one["kl"], one[measure], color=colour, linewidth=0.7, alpha=0.45)
            kl, mean = ([fmean(v) for v in zip(*(r[of] for r in runs), strict=True)] for of in ("kl", measure))
            axis.plot(kl, mean, color=colour, linestyle=dash, linewidth=1.8, marker=".", label=label(case))
        axis.axhline(next(iter(results.values()))[0][measure][0], color=bench.INK, linewidth=0.8, linestyle=":")  # SFT
        axis.set_xlim(left=0)
    handles, labels = axes[0][0].get_legend_handles_labels()
    drawn.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    return drawn


def main(arguments: Sequence[str] | None = None) -> int:
    parser = bench.parser(__doc__)
    parser.set_defaults(seeds=3)
    parser.add_argument("folder", type=Path, help="of the project")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    found = bench.results(partial(run, given.folder), [*((c,) for c in ROUNDS), (BEST,)], given)
    bench.publish(given, table(found), MARKERS, lambda: figure(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
