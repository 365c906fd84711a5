"""No stage: the first rounds of a run of rl, drawn and scored by the parts that the stage puts together. Nothing is learned."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from grape.maths.advantage import REWARD_TOLERANCE
from grape.models.forward import batched_language, language, micro_batches
from grape.models.micro import fixed, seconds
from grape.models.shared import share
from grape.rehearsal.record import Seen
from grape.reward.source import RubricReward
from grape.stages.engines import engine
from grape.stages.rl import Ready, ready, sampler
from grape.stages.stage import Stage
from grape.track.identity import peak_memory_mb
from grape.training.mismatch import mismatch
from grape.training.rollout_metrics import describe, first_missing, missing
from grape.training.sampler import Drawn, Sampler
from grape.training.sums import Sums, add, means, numbers
from grape.types import Rollouts, Scores

ROUNDS = 2
LATE = 0.95  # share of answers
MET = 1.0  # the mean of a rubric's items, all met


def rehearse(stage: Stage) -> Seen:
    """Two rounds of `rl.prompts` x `rl.samples`, with the draws of the run's own first rounds; no weight moves.

    Raises:
        GrapeError: as the run itself would.
    """
    # A fixed size: what is measured here must not decide in which order the run adds.
    it = ready(stage, micro=fixed())
    with engine(stage, it.learner) as writer:
        drawer = _of_a_steps_size(stage, sampler(stage, it, writer))
        began = time.perf_counter()
        with torch.no_grad():  # as while a run samples: no gradient goes through a judge
            drawn = [drawer.round(update) for update in range(ROUNDS)]
        drawing = (time.perf_counter() - began) / ROUNDS
    rollouts = drawn[-1].rollouts(it.chat, drawer.sampling).to(it.learner.policy.device)
    logp, reading = _read(it, drawer, rollouts)
    known = rollouts.mask & rollouts.logp_sampler.isfinite()
    apart = means(numbers(mismatch(torch.where(known, logp - rollouts.logp_sampler, 0.0), known)))
    learning = _learning(it, drawer, rollouts)
    described = _described(drawer, drawn)
    return Seen(
        **_answers(drawer, drawn),
        **_scores(drawer, drawn, described),
        cut=1 - described["completions/finished"],
        sampler=apart.get("logp_mismatch/sampler", 0.0),
        outside=apart.get("logp_mismatch/outside", 0.0),
        kept=len(drawer.prompts),
        dropped=int(stage.left.get("dropped/too_long", 0)),
        tokens=described["num_tokens"],
        samples=described["num_samples"],
        drawing=drawing,
        reading=reading,
        learning=learning,
        peak_mb=peak_memory_mb(),
    )


def _of_a_steps_size(stage: Stage, drawer: Sampler) -> Sampler:
    """Fewer, larger rounds are as well known from some of their prompts."""
    return replace(drawer, sampling=replace(drawer.sampling, prompts=stage.params.rl.prompts))


def _described(drawer: Sampler, drawn: Sequence[Drawn]) -> dict[str, float]:
    """The metrics that the run's curves would begin with, of all rounds; missing scores are judged elsewhere."""
    sums: Sums = {}
    for one in drawn:
        rollouts = one.rollouts(drawer.chat, drawer.sampling)
        for name, (total, weight) in describe(rollouts, one.scores, 1.0, one.plain, one.thrown).items():
            add(sums, name, total, weight)
    return means(sums)


def _answers(drawer: Sampler, drawn: Sequence[Drawn]) -> dict[str, Any]:
    """How many there are, and how long."""
    plain = [response for one in drawn for response in one.responses[: one.plain]]
    lengths = torch.tensor([float(len(response.ids)) for response in plain])
    asked = [len(drawer.chat.prompt(response.prompt.messages, response.prompt.id)) for response in plain]
    longest = max(a + int(b) for a, b in zip(asked, lengths.tolist(), strict=True))
    return {"answers": len(plain), "late": float(lengths.quantile(LATE)), "longest": longest}


def _scores(drawer: Sampler, drawn: Sequence[Drawn], described: dict[str, float]) -> dict[str, Any]:
    """What their scores are, and how many there are none of."""
    scores = [one.scores.select(slice(0, one.plain)) for one in drawn]
    rewards = torch.cat([_known(each, drawer.sampling.samples) for each in scores])
    return {
        "flat": described.get("frac_reward_zero_std", 0.0),
        "varies": len(rewards) > 0 and float(rewards.max() - rewards.min()) > REWARD_TOLERANCE,
        "reward": described.get("reward"),
        "best": MET if isinstance(drawer.score, RubricReward) else None,
        "missing": max(missing(one.scores) for one in drawn),
        "reason": next((": ".join(why) for one in drawn if (why := first_missing(one.scores))), ""),
    }


def _known(scores: Scores, samples: int) -> Tensor:
    reward, known = scores.reward(torch.arange(scores.score.shape[0] // samples).repeat_interleave(samples))
    return reward[known]


def _read(it: Ready, drawer: Sampler, rollouts: Rollouts) -> tuple[Tensor, float]:
    """Log-probabilities as training computes them, and the seconds of that."""
    how, began = drawer.sampling, time.perf_counter()
    logp = batched_language(it.learner.policy, rollouts, how.temperature, it.micro, how.dtype).logp
    return logp, time.perf_counter() - began


def _learning(it: Ready, drawer: Sampler, rollouts: Rollouts) -> float:
    """Seconds of a forward and a backward pass over a round, from one micro-batch of it."""
    policy, how = it.learner.policy, drawer.sampling
    batch = share(policy, rollouts)
    part = batch.select(next(iter(micro_batches(batch, it.micro))))
    forward = partial(language, policy, temperature=how.temperature, dtype=how.dtype)
    seconds(forward, part)  # the first one is slow
    return seconds(forward, part) * rollouts.tokens / part.tokens
