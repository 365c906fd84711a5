"""What says whether a rubric's item is worth asking: how far its scores spread between answers to one prompt, and whether they
follow something else, as the answers' length. (B,) rows in groups, as in advantage.py."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor, where

from grape.maths.advantage import REWARD_TOLERANCE, group_mean, group_std


@dataclass(frozen=True)
class Column:
    """One of K items over all rows.

    Attributes:
        asked, valid: (B,) bool; the item is part of the row's rubric, and has a score.
        score: (B,), 0 where not valid.
        spread: (B,) standard deviation of the valid scores in the row's group, divisor n - 1; 0 for fewer than two.
        length_correlation: of score and length within groups: between them it would say which prompts have long answers.
    """

    asked: Tensor
    valid: Tensor
    score: Tensor
    spread: Tensor
    length_correlation: float | None


def item_columns(score: Tensor, valid: Tensor, weight: Tensor, group: Tensor, length: Tensor) -> Iterator[tuple[int, Column]]:
    """Every item that was asked of any row, with its place among the K.

    Args:
        score, valid, weight: (B, K); weight 0: not asked.
        group, length: (B,).
    """
    for k in range(score.shape[1]):
        asked = weight[:, k] > 0
        if bool(asked.any()):
            known = asked & valid[:, k]
            own = where(known, score[:, k], 0.0)
            yield k, Column(asked, known, own, group_std(own, known, group), correlation(own, length, known, group))


def correlation(x: Tensor, y: Tensor, valid: Tensor, group: Tensor) -> float | None:
    """Pearson's correlation within groups, over the valid rows; None where one of them varies by no more than rounding."""
    a, b = ((v - group_mean(v, valid, group))[valid].double() for v in (x, y))
    if not len(a) or min(float(a.abs().max()), float(b.abs().max())) <= REWARD_TOLERANCE:
        return None
    return float((a * b).sum() / (a.square().sum() * b.square().sum()).sqrt())
