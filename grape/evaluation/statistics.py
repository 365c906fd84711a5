"""The numbers of an evaluation: means over prompts with their intervals, and what is said of every rubric item. All are rounded to
six digits, so that equal answers give equal files."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import torch
from torch import Tensor

from grape.evaluation.record import Interval, ItemStatistics, Overlap
from grape.maths.advantage import group_sum
from grape.maths.item_statistics import correlation, item_columns
from grape.randomness import generator
from grape.types import Scores

RESAMPLES = 2000


def number(value: Tensor | float | None) -> float | None:
    """Rounded for a file; None for what is no finite number."""
    return None if value is None or not math.isfinite(value) else round(float(value), 6)


@dataclass(frozen=True)
class Bootstrap:
    """Percentile intervals over prompts; `keys` with what an interval is of say which prompts are drawn."""

    confidence: float
    keys: tuple[object, ...]

    def __call__(self, values: np.ndarray, *what: object) -> Interval:
        """The mean of values (P,) with its interval."""
        draws = generator(*self.keys, *what).integers(0, len(values), (RESAMPLES, len(values)))
        low, high = np.quantile(values[draws].mean(1), [(1 - self.confidence) / 2, (1 + self.confidence) / 2])
        return Interval(mean=round(float(values.mean()), 6), low=round(float(low), 6), high=round(float(high), 6))


def pass_at(solved: np.ndarray, k: int) -> float:
    """Unbiased pass@k from n >= k samples, solved (P, n): mean of 1 - C(n - c, k) / C(n, k) (Chen et al. 2021, 2107.03374)."""
    n = solved.shape[1]
    return float(np.mean([1 - math.comb(n - int(c), k) / math.comb(n, k) for c in solved.sum(1)]))


def prompt_groups(rows: int, prompts: int) -> Tensor:
    """(B,) the prompt that each row answers, B = P x G."""
    return torch.arange(prompts).repeat_interleave(rows // prompts)


def item_statistics(scores: Scores, lengths: Tensor, prompts: int) -> dict[str, ItemStatistics]:
    """Every item that was asked, by name. The spread is a mean over prompts with two valid scores or more. lengths: (B,) tokens."""
    group = prompt_groups(len(lengths), prompts)
    items = {}
    for k, column in item_columns(scores.score.double(), scores.valid, scores.weight, group, lengths.double()):
        valid = column.valid
        spreads = column.spread.reshape(prompts, -1)[group_sum(valid.long(), group) > 1, 0]
        items[scores.items[k]] = ItemStatistics(
            score=number(scores.score[valid, k].mean()),
            confidence=number(scores.confidence[valid, k].mean()),
            missing=round(float(1 - valid.sum() / column.asked.sum()), 6),
            spread=number(spreads.mean()),
            length_correlation=number(column.length_correlation),
        )
    return items


def overlaps(scores: Scores) -> Iterator[Overlap]:
    """Pearson's correlation of every two items that are asked of the same response, over the responses where both are valid."""
    one = torch.zeros(scores.score.shape[0], dtype=torch.long)
    for i, j in combinations(range(len(scores.items)), 2):
        asked = (scores.weight[:, i] > 0) & (scores.weight[:, j] > 0)
        if bool(asked.any()):
            x, y = scores.score[:, i].double(), scores.score[:, j].double()
            found = correlation(x, y, asked & scores.valid[:, i] & scores.valid[:, j], one)
            yield Overlap(a=scores.items[i], b=scores.items[j], correlation=number(found))
