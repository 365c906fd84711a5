"""What a round of rollouts looked like, in the field's names, as (sum, weight)."""

from __future__ import annotations

from torch import Tensor

from grape.errors import GrapeError
from grape.maths.advantage import constant_groups, group_std
from grape.maths.item_statistics import item_columns
from grape.training.sums import Sums
from grape.types import Rollouts, Scores


def describe(
    rollouts: Rollouts, scores: Scores, max_missing: float, fresh: int | None = None, thrown: tuple[int, int] = (0, 0)
) -> Sums:
    """Rewards, lengths and every rubric item of a round.

    Args:
        fresh: how many rows, the first ones, answer plain prompts; the curves are theirs alone. None: all.
        thrown: samples that were drawn besides and are not learned from, and their tokens.

    Raises:
        GrapeError: more than `max_missing` of the scores are missing; training on the rest would hide a broken judge.
    """
    share = _refuse(scores, max_missing)
    tokens, counted, plain = float(rollouts.tokens + thrown[1]), scores.metrics, slice(0, fresh)
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
        "missing": (share, 1.0),
        "num_samples": (float(rollouts.rows + thrown[0]), 1.0),
        "num_tokens": (tokens, 1.0),
        **counted,
        **_categories(scores, reward, known),
        **_items(scores, group, lengths),
    }


def missing(scores: Scores) -> float:
    """The share of the scores that were asked for and could not be had."""
    asked = scores.weight > 0
    return float((asked & ~scores.valid).sum()) / max(float(asked.sum()), 1.0)


def first_missing(scores: Scores) -> tuple[str, str] | None:
    """Item and reason of the first score that is missing."""
    for row, item in ((scores.weight > 0) & ~scores.valid).nonzero().tolist():
        return scores.items[item], scores.reasons[row][item] if scores.reasons else "no reason recorded"
    return None


def _refuse(scores: Scores, limit: float) -> float:
    """`missing`, where it is not above the limit."""
    share = missing(scores)
    if share > limit and (first := first_missing(scores)):
        raise GrapeError(
            f"{share:.0%} of the scores of this round are missing, more than rl.max_missing = {limit:.0%}",
            where=first[0],
            mend=f"the first one's reason: {first[1]}",
        )
    return share


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
    for k, column in item_columns(scores.score, scores.valid, scores.weight, group, lengths):
        item, valid, asked, count = scores.items[k], column.valid, float(column.asked.sum()), float(column.valid.sum())
        sums[f"rewards/{item}/mean"] = (float(column.score.sum()), count)
        sums[f"rubric/{item}/confidence"] = (float(scores.confidence[valid, k].sum()), count)
        sums[f"rubric/{item}/spread"] = (float(column.spread[valid].sum()), count)
        sums[f"rubric/{item}/failure_rate"] = (asked - count, asked)
        if column.length_correlation is not None:
            sums[f"rubric/{item}/length_correlation"] = (column.length_correlation, 1.0)
    return sums
