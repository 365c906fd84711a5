"""What says whether a rubric's item is worth asking, for people who write rubrics: how sure its judge is, how far its scores spread
between answers to one prompt, whether they follow the answers' length, and whether another item says the same."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
import torch

from grape.maths.advantage import REWARD_TOLERANCE
from grape.types import Scores


def number(value: torch.Tensor) -> float | None:
    """Rounded for a file; None for what is no finite number."""
    return round(float(value), 6) if bool(torch.isfinite(value)) else None


def describe_items(scores: Scores, lengths: np.ndarray, prompts: int) -> dict[str, dict[str, float | None]]:
    """Every item that was asked, by name: mean score and confidence, share of missing scores, mean standard deviation of the scores
    of one prompt's answers (divisor n - 1; prompts with two valid scores or more), and the correlation of score and length within
    prompts: between prompts it would say which questions have long answers. lengths: (B,) in tokens, B = P x G."""
    items = {}
    for k, name in enumerate(scores.items):
        asked = scores.weight[:, k] > 0
        valid = asked & scores.valid[:, k]
        if not bool(asked.any()):
            continue
        known = valid.numpy().reshape(prompts, -1)
        centred = _centred(scores.score[:, k].double().numpy().reshape(prompts, -1), known)
        counts = known.sum(1)
        several = counts > 1
        spreads = np.sqrt((centred[several] ** 2).sum(1) / (counts[several] - 1))
        items[name] = {
            "score": number(scores.score[valid, k].mean()),
            "confidence": number(scores.confidence[valid, k].mean()),
            "missing": number(1 - valid.sum() / asked.sum()),
            "spread": round(float(spreads.mean()), 6) if len(spreads) else None,
            "length_correlation": _correlation(centred, _centred(lengths.reshape(prompts, -1), known)),
        }
    return items


def overlap(scores: Scores) -> list[dict[str, Any]]:
    """Pearson's correlation of every two items that are asked of the same response, over the responses where both are valid."""
    pairs = []
    for i, j in combinations(range(len(scores.items)), 2):
        asked = (scores.weight[:, i] > 0) & (scores.weight[:, j] > 0)
        if bool(asked.any()):
            both = (asked & scores.valid[:, i] & scores.valid[:, j]).numpy()[None]
            a, b = (_centred(scores.score[:, k].double().numpy()[None], both) for k in (i, j))
            pairs.append({"a": scores.items[i], "b": scores.items[j], "correlation": _correlation(a, b)})
    return pairs


def _centred(values: np.ndarray, known: np.ndarray) -> np.ndarray:
    """(R, N) values less the mean of their row's known ones; 0 where not known, so that these count for nothing."""
    given = np.where(known, values, 0.0)
    return np.where(known, given - given.sum(1, keepdims=True) / np.maximum(known.sum(1, keepdims=True), 1), 0.0)


def _correlation(a: np.ndarray, b: np.ndarray) -> float | None:
    """Of two centred arrays of one shape; None where one of them varies by no more than rounding."""
    if min(np.abs(a).max(initial=0.0), np.abs(b).max(initial=0.0)) <= REWARD_TOLERANCE:
        return None
    return round(float((a * b).sum() / np.sqrt((a**2).sum() * (b**2).sum())), 6)
