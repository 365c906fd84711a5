"""What a round of rollouts looked like, in the field's names, as (sum, weight)."""

from __future__ import annotations

import torch
from torch import Tensor

from grape.errors import GrapeError
from grape.maths.advantage import REWARD_TOLERANCE, constant_groups, group_mean, group_std
from grape.training.sums import Sums
from grape.types import Rollouts, Scores


def describe(rollouts: Rollouts, scores: Scores, max_missing: float, fresh: int | None = None) -> Sums:
    """Rewards, lengths and every rubric item of a round.

    Args:
        fresh: how many rows, the first ones, answer plain prompts; the curves are theirs alone. None: all.

    Raises:
        GrapeError: more than `max_missing` of the scores are missing; training on the rest would hide a broken judge.
    """
    missing = _missing(scores, max_missing)
    tokens, counted, plain = float(rollouts.tokens), scores.metrics, slice(0, fresh)
    group, finished, lengths = rollouts.group[plain], rollouts.finished[plain], rollouts.mask[plain].sum(1).float()
    scores = scores.select(plain)
    reward, known = scores.reward(group)
    rows = float(known.sum())
    std = group_std(reward, known, group)[known]
    flat = constant_groups(reward, known, group)[known]
    return {
        "reward": (float(reward[known].sum()), rows),
        "reward_std": (float(std.sum()), rows),
        "frac_reward_zero_std": (float(flat.sum()), rows),
        "completions/mean_length": (float(lengths.sum()), float(len(lengths))),
        "completions/finished": (float(finished.sum()), float(len(lengths))),
        "missing": (missing, 1.0),
        "num_tokens": (tokens, 1.0),
        **counted,
        **_categories(scores, reward, known),
        **_items(scores, group, lengths),
    }


def _missing(scores: Scores, limit: float) -> float:
    """The share of scores that are missing."""
    asked = scores.weight > 0
    missing = float((asked & ~scores.valid).sum()) / max(float(asked.sum()), 1.0)
    if missing > limit:
        row, item = (asked & ~scores.valid).nonzero()[0].tolist()
        reason = scores.reasons[row][item] if scores.reasons else "no reason recorded"
        raise GrapeError(
            f"{missing:.0%} of the scores of this round are missing, more than rl.max_missing = {limit:.0%}",
            where=scores.items[item],
            mend=f"the first one's reason: {reason}",
        )
    return missing


def _categories(scores: Scores, reward: Tensor, known: Tensor) -> Sums:
    names = [item.rpartition("/")[0] for item in scores.items]
    sums: Sums = {}
    for category in dict.fromkeys(name for name in names if name):
        own = known & (scores.weight[:, [name == category for name in names]] > 0).any(1)
        sums[f"reward/{category}"] = (float(reward[own].sum()), float(own.sum()))
    return sums


def _items(scores: Scores, group: Tensor, lengths: Tensor) -> Sums:
    """Per item: mean score and confidence, standard deviation within groups, share of failures, correlation with length."""
    sums: Sums = {}
    for k, item in enumerate(scores.items):
        asked = scores.weight[:, k] > 0
        if not bool(asked.any()):
            continue
        valid = asked & scores.valid[:, k]
        score = torch.where(valid, scores.score[:, k], 0.0)
        count = float(valid.sum())
        sums[f"rewards/{item}/mean"] = (float(score.sum()), count)
        sums[f"rubric/{item}/confidence"] = (float(scores.confidence[valid, k].sum()), count)
        sums[f"rubric/{item}/spread"] = (float(group_std(score, valid, group)[valid].sum()), count)
        sums[f"rubric/{item}/failure_rate"] = (float(asked.sum()) - count, float(asked.sum()))
        correlation = _correlation(score, lengths, valid, group)
        if correlation is not None:
            sums[f"rubric/{item}/length_correlation"] = (correlation, 1.0)
    return sums


def _correlation(x: Tensor, y: Tensor, valid: Tensor, group: Tensor) -> float | None:
    """Pearson's correlation within groups, over the valid rows; None where one of them does not vary."""
    a, b = ((v - group_mean(v, valid, group))[valid].double() for v in (x, y))
    if not len(a) or min(float(a.abs().max()), float(b.abs().max())) <= REWARD_TOLERANCE:
        return None
    return float((a * b).sum() / (a.square().sum() * b.square().sum()).sqrt())
