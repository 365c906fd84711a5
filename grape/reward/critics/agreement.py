"""Whether draws of one judge, or several judges, say the same.

of scores:    a = 1 - 2 std(s_1..s_K), population: 1 where all are alike, 0 where half say 0 and half say 1
of verdicts:  what is left of the agreement when chance is taken away, 1 for perfect, 0 for chance, below 0 for less:
              Cohen's kappa (1960) of two judges, Krippendorff's alpha (nominal, 2011) of more, who may leave some out
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

LEAST_CONFIDENCE = 0.01  # in the evidence, so that a verdict keeps its side


def least(count: int) -> int:
    """How many of `count` scores must be there for their mean to be one: more than half."""
    return count // 2 + 1


def mean_of(scores: Tensor) -> Tensor:
    """(n, K) scores, NaN: missing -> (n,) mean of those that are there; NaN where fewer than `least` are."""
    there = scores.isfinite().sum(1)
    return torch.where(there >= least(scores.shape[1]), scores.nanmean(1), torch.nan)


def agreement(scores: Tensor) -> Tensor:
    """(n, K) scores in [0, 1], NaN: missing -> (n,) 1 - 2 std of those that are there, in [0, 1]. NaN where none is."""
    spread = (scores - scores.nanmean(1, keepdim=True)).square().nanmean(1).sqrt()
    return (1 - 2 * spread).clamp(0, 1)


def evidence(score: Tensor, sure: Tensor | None = None) -> Tensor:
    """(n,) log-odds of yes that a judge's score stands for: logit of 1/2 + sure (score - 1/2), finite. One that is not sure says
    little either way, but keeps its side. NaN stays NaN."""
    belief = score if sure is None else 0.5 + sure.clamp(min=LEAST_CONFIDENCE) * (score - 0.5)
    return torch.logit(belief, eps=1e-3)


def kappa(a: Tensor, b: Tensor) -> float:
    """Cohen's kappa of two judges' verdicts, (n,) of 0 and 1 each: (p_o - p_e) / (1 - p_e), where p_o is the share on which they
    agree and p_e what chance would give judges who say yes as often. NaN: nothing judged, or all verdicts of both are the same."""
    from sklearn.metrics import cohen_kappa_score

    if len(a) == 0 or len(torch.cat([a, b]).unique()) < 2:
        return torch.nan
    return float(cohen_kappa_score(a.numpy(), b.numpy()))


def alpha(verdicts: Tensor) -> float:
    """Krippendorff's alpha of J judges' nominal verdicts (J, n), NaN: missing: 1 - D_o / D_e, of pairs of different verdicts on
    one thing, and of any two verdicts. NaN: nothing was judged twice, or all verdicts are the same."""
    values = verdicts[verdicts.isfinite()].unique()
    counts = (verdicts.unsqueeze(2) == values).sum(0).double()  # (n, values)
    counts = counts[counts.sum(1) > 1]  # what one alone judged pairs with nothing
    times, totals = counts.sum(1), counts.sum(0)
    n = float(totals.sum())
    differ = n**2 - float(totals.square().sum())
    if differ == 0:
        return torch.nan
    observed = float(((times**2 - counts.square().sum(1)) / (times - 1)).sum())
    return 1 - (n - 1) * observed / differ


def statistic(judges: int) -> str:
    return "Cohen's kappa" if judges == 2 else "Krippendorff's alpha"


def between(names: Sequence[str], verdicts: Tensor) -> dict[str, float]:
    """How far J judges agree with each other, over all items ("") and per item name; where it is defined.

    Args:
        names: n item names. verdicts: (J, n) of 0 and 1, NaN: missing.
    """
    found = {}
    for name in ["", *sorted(set(names))]:
        part = verdicts[:, [i for i, other in enumerate(names) if name in ("", other)]]
        both = part[:, part.isfinite().all(0)]
        value = kappa(both[0], both[1]) if len(part) == 2 else alpha(part)
        if value == value:
            found[name] = value
    return found
