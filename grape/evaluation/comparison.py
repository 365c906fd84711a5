"""One algorithm against another on the same prompts: by how much it is better, how sure that is, and what could have been seen.

With A's and B's policies of seed s, each scored on prompt p (the mean over the draws of an answer),

    d[s, p] = a[s, p] - b[s, p] = delta + u_s + v_p + e_sp,    u, v, e random, of variances q_u, q_v, q_e:

other seeds would have given other u, other prompts other v. Seeds and prompts are crossed, S of the one and P of the other. The
sums of squares of a two-way layout without replication are multiples of chi-squares:

    SS_s = P sum_s (d_s - d)^2                    (q_e + P q_u) chi2 of S - 1
    SS_p = S sum_p (d_p - d)^2                    (q_e + S q_v) chi2 of P - 1
    SS_e = sum_sp (d_sp - d_s - d_p + d)^2              q_e     chi2 of (S - 1)(P - 1)

and the mean d has the variance (q_u P + q_v S + q_e) / (S P). What is not known of it counts: with the generalised pivots
A = SS_s / chi2 and B = SS_p / chi2, and C = SS_e over its degrees of freedom, whose chi-square hardly varies,

    delta = d + Z sqrt(V / (S P)),    V = max(A, C) + max(B, C) - C,    Z standard normal (Weerahandi 1993),

and an interval holds the middle of that. With one seed it is Student's t over prompts, and where prompts do not differ that over
seeds. The percentiles of a hierarchical bootstrap are too narrow with three seeds, as tests/laws/test_comparison.py counts; it also
counts how often these intervals hold.

Sources: the layout: Searle, Casella, McCulloch 1992, ch. 4; generalised intervals: Weerahandi 1993, JASA 88; the bootstrap of
crossed factors: Owen 2007; families: Holm 1979; several seeds: Agarwal et al. 2021 (2108.13264), Colas et al. 2018 (1806.08295).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
from scipy.optimize import brentq  # type: ignore[import-untyped]
from scipy.special import chdtri, ndtr, stdtr  # type: ignore[import-untyped]

from grape.evaluation.record import Interval

POWER = 0.8  # of the minimum detectable effect
SEEDS, PROMPTS = 250, 8  # parts that the distributions of A and B are cut into
CLAIM, INDICATIVE = 5, 2  # seeds from which a difference is a claim about the algorithms, and from which it is a hint


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds and prompts, and what may be thought of its error.

    Attributes:
        scales: standard deviations that the error may have, all as likely. df: degrees of freedom of Student's t instead, where one
            scale is all there is; else infinite.
    """

    mean: float
    scales: np.ndarray
    df: float

    def beyond(self, distance: float) -> float:
        """The chance of an error of at least this size, either way."""
        if not self.scales.any():
            return 1.0 if distance <= 0 else 0.0
        with np.errstate(divide="ignore"):
            at = -distance / self.scales
        return float(2 * (ndtr(at) if math.isinf(self.df) else stdtr(self.df, at)).mean())

    def half(self, level: float) -> float:
        """Half the width of an interval."""
        if not self.scales.any():
            return 0.0
        far = float(self.scales.max())
        while self.beyond(far) > 1 - level:
            far *= 2
        return float(brentq(lambda distance: self.beyond(distance) - (1 - level), 0.0, far, xtol=1e-15, rtol=1e-12))

    def interval(self, level: float) -> Interval:
        half = self.half(level)
        return Interval(mean=self.mean, low=self.mean - half, high=self.mean + half)

    @property
    def p(self) -> float:
        """Two-sided, of a true mean of 0."""
        return self.beyond(abs(self.mean))

    def detectable(self, level: float) -> float:
        """The true difference that a comparison like this one finds with probability `POWER`."""
        return self.half(level) + self.half(2 * POWER - 1)


def estimate(values: np.ndarray) -> Estimate:
    """Of values (S, P), seeds by prompts. With one seed the prompts alone vary: then it says nothing about other seeds.

    Raises:
        ValueError: fewer than two prompts, or a value that is not finite.
    """
    seeds, prompts = values.shape
    if prompts < 2:
        raise ValueError("a comparison needs at least two prompts")
    if not np.isfinite(values).all():
        raise ValueError("a value is not finite")
    mean = values.mean()
    of_seed, of_prompt = values.mean(1, keepdims=True), values.mean(0, keepdims=True)
    ss_p = seeds * float(((of_prompt - mean) ** 2).sum())
    if seeds == 1:
        return Estimate(float(mean), np.array([math.sqrt(ss_p / (prompts - 1) / prompts)]), prompts - 1.0)
    ss_s = prompts * float(((of_seed - mean) ** 2).sum())
    c = float(((values - of_seed - of_prompt + mean) ** 2).sum()) / ((seeds - 1) * (prompts - 1))
    a, b = np.maximum(ss_s / _chi2(seeds - 1, SEEDS), c), np.maximum(ss_p / _chi2(prompts - 1, PROMPTS), c)
    v = a[:, None] + b[None, :] - c
    return Estimate(float(mean), np.sqrt(v.ravel() / (seeds * prompts)), math.inf)


def _chi2(df: int, count: int) -> np.ndarray:
    """`count` numbers, each in the middle of an equally likely part of the distribution."""
    return np.asarray(chdtri(df, (np.arange(count) + 0.5) / count))


def holm(p: Sequence[float]) -> list[float]:
    """Adjusted p-values of a family of m (Holm 1979): of the k-th smallest, the largest (m - j + 1) p_(j) of j <= k, at most 1."""
    order = sorted(range(len(p)), key=lambda i: p[i])
    adjusted, highest = [0.0] * len(p), 0.0
    for rank, i in enumerate(order):
        highest = max(highest, min(1.0, (len(p) - rank) * p[i]))
        adjusted[i] = highest
    return adjusted


def prompt_means(values: np.ndarray) -> np.ndarray:
    """(P, G) -> (P,) mean over samples that could be scored; the overall mean for a prompt where none could."""
    with np.errstate(invalid="ignore"):
        counts = (~np.isnan(values)).sum(1)
        means = np.where(counts > 0, np.nansum(values, 1) / np.maximum(counts, 1), np.nan)
    return np.where(np.isnan(means), np.nanmean(values) if counts.any() else 0.0, means)


def wins(own: np.ndarray, other: np.ndarray) -> np.ndarray:
    """(P,) every answer of one side against every answer of the other to the same prompt; a tie is half a win. (P, G) each."""
    return np.sign(np.nan_to_num(own)[:, :, None] - np.nan_to_num(other)[:, None, :]).mean((1, 2)) / 2 + 0.5


@dataclass(frozen=True)
class Scored:
    """An algorithm's scores (S, P, G): of every seed, on every prompt, of each draw; NaN where one is missing. seeds: S of them."""

    name: str
    seeds: tuple[int, ...]
    scores: np.ndarray

    @property
    def means(self) -> np.ndarray:
        """(S, P) over the draws that could be scored."""
        return np.stack([prompt_means(one) for one in self.scores])


@dataclass(frozen=True)
class Comparison:
    """`a` against `b`, one of a family.

    Attributes:
        difference: a's mean score less b's, with the interval of this comparison alone. joint: the interval that all of the family
            hold together with the same confidence (Bonferroni).
        wins: how often a's answer is the better one, a tie half.
        p, adjusted: that there is no difference: alone, and after Holm. detectable: see `Estimate.detectable`, at the joint level.
    """

    a: str
    b: str
    seeds: int
    prompts: int
    difference: Interval
    joint: Interval
    wins: Interval
    p: float
    adjusted: float
    detectable: float
    level: float

    @property
    def different(self) -> bool:
        return self.adjusted < 1 - self.level

    @property
    def standing(self) -> str:
        """What the number of seeds allows to be said."""
        if self.seeds < INDICATIVE:
            return "about these policies alone, since one seed says nothing about others"
        return "a claim about the algorithms" if self.seeds >= CLAIM else "indicative"

    @property
    def sentence(self) -> str:
        if self.detectable == 0 and not self.different:
            return f"{self.a} and {self.b} scored the same on every prompt, which nothing can be inferred from"
        if not self.different:
            return f"{self.a} and {self.b} are not distinguishable: a difference of {self.detectable:.3f} would have been seen"
        better, worse = (self.a, self.b) if self.difference.mean > 0 else (self.b, self.a)
        return f"{better} is better than {worse} by {abs(self.difference.mean):.3f}"


def compare(sides: Sequence[Scored], level: float) -> list[Comparison]:
    """Every two of `sides`, as one family, in order.

    Raises:
        ValueError: they have other seeds, prompts or draws than each other.
    """
    pairs = list(combinations(sides, 2))
    if not pairs:
        raise ValueError("a comparison needs two sides")
    found = [_compared(a, b, level, 1 - (1 - level) / len(pairs)) for a, b in pairs]
    return [replace(one, adjusted=p) for one, p in zip(found, holm([one.p for one in found]), strict=True)]


def _compared(a: Scored, b: Scored, level: float, joint: float) -> Comparison:
    if a.seeds != b.seeds or a.scores.shape != b.scores.shape:
        raise ValueError(f"{a.name} and {b.name} were not scored on the same seeds, prompts and draws, so they have no pairs")
    of = estimate(a.means - b.means)
    won = estimate(np.stack([wins(own, other) for own, other in zip(a.scores, b.scores, strict=True)])).interval(level)
    bounded = Interval(mean=won.mean, low=max(0.0, won.low), high=min(1.0, won.high))
    return Comparison(
        a.name, b.name, len(a.seeds), a.scores.shape[1],
        of.interval(level), of.interval(joint), bounded, of.p, of.p, of.detectable(joint), level,
    )  # fmt: skip
