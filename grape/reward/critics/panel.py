"""Several judges as one critic: each is asked alone and calibrated alone.

    score       s = mean of s_j                        a linear opinion pool (Stone, 1961) with equal weights, as a jury of language
                                                       models has them (PoLL, 2404.18796)
    confidence  c = mean of c_j x a(s_1..s_J)          how sure they are, as far as they agree (`agreement.agreement`)

The weights are equal and not the judges' confidences: a policy could else choose its judge, by making the strict one unsure. A
judge that fails is left out; the score is missing where half of the judges or more fail.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from grape.reward.critics.agreement import agreement, least, mean_of
from grape.reward.verdict import Critic, Question, Verdicts
from grape.types import added


class PanelCritic:
    """Judges by name, at least two."""

    def __init__(self, judges: Mapping[str, Critic]) -> None:
        self.judges = dict(judges)
        self.explains = any(judge.explains for judge in judges.values())

    def judge(self, names: Sequence[str], questions: Sequence[Question], /) -> Verdicts:
        """The judges' joint answers. The metric `judges/agreement` is the mean of a."""
        return pooled({name: judge.judge(names, questions) for name, judge in self.judges.items()})


def pooled(verdicts: Mapping[str, Verdicts]) -> Verdicts:
    """Verdicts of J judges on the same n questions as those of one. Evidence: logit of the mean score."""
    given = list(verdicts.values())
    valid = torch.stack([one.valid for one in given], 1)
    # Judges may sit on different devices.
    scores, sure = (
        torch.where(valid.cpu(), torch.stack([getattr(one, name).float().cpu() for one in given], 1), torch.nan)
        for name in ("score", "confidence")
    )
    score, alike = mean_of(scores), agreement(scores)
    metrics: Mapping[str, tuple[float, float]] = {}
    for one in given:
        metrics = added(metrics, one.metrics)
    there = score.isfinite()
    if bool(there.any()):
        metrics = added(metrics, {"judges/agreement": (float(alike[there].sum()), float(there.sum()))})
    reasons = tuple(_reason(verdicts, i) for i in range(len(score)))
    return Verdicts(score, mean_of(sure) * alike, reasons, torch.logit(score, eps=1e-3), metrics)


def _reason(verdicts: Mapping[str, Verdicts], i: int) -> str:
    """`small 0.20: critic says yes with probability 0.20; large 0.90: polite and short`"""
    said = [(name, float(one.score[i]) if bool(one.valid[i]) else None, one.reasons[i]) for name, one in verdicts.items()]
    there = sum(score is not None for _, score, _ in said)
    few = f"{there} of {len(said)} judges could be had, fewer than {least(len(said))}; " if there < least(len(said)) else ""
    return few + "; ".join(f"{name} {'missing' if score is None else format(score, '.2f')}: {why}" for name, score, why in said)
