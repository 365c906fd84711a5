"""A against B: worked examples, what scipy says of the balanced cases, and how often the intervals hold."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from scipy import stats  # type: ignore[import-untyped]

from grape.evaluation.comparison import PROMPTS, SEEDS, Comparison, Scored, compare, estimate, holm
from grape.evaluation.record import Interval


def test_a_worked_example() -> None:
    """Two seeds, three prompts, by hand: the rows' means are 2 and 4, the columns' 1, 3 and 5."""
    values = np.array([[0.0, 3.0, 3.0], [2.0, 3.0, 7.0]])
    found = estimate(values)
    # SS_s = 3 (1 + 1) = 6; SS_p = 2 (4 + 0 + 4) = 16; residuals 0, 1, -1, 0, -1, 1: C = 4 / 2 = 2
    assert found.mean == 3.0
    a = np.maximum(6 / stats.chi2.isf((np.arange(SEEDS) + 0.5) / SEEDS, 1), 2)
    b = np.maximum(16 / stats.chi2.isf((np.arange(PROMPTS) + 0.5) / PROMPTS, 2), 2)
    scales = np.sqrt(np.add.outer(a, b) - 2).ravel() / math.sqrt(6)
    assert found.scales == pytest.approx(scales, rel=1e-12)
    assert found.p == pytest.approx(2 * stats.norm.sf(3 / scales).mean(), abs=1e-12)
    interval = found.interval(0.95)
    assert interval.high - 3 == pytest.approx(3 - interval.low, abs=1e-12)
    assert 2 * stats.norm.sf((interval.high - 3) / scales).mean() == pytest.approx(0.05, abs=1e-12)
    assert found.detectable(0.95) == pytest.approx(found.half(0.95) + found.half(0.6), abs=1e-12)


def test_one_seed_is_a_t_test_over_prompts_and_equal_prompts_are_one_over_seeds() -> None:
    rng = np.random.default_rng(0)
    one = rng.normal(0.2, 1.0, (1, 30))
    reference = stats.ttest_1samp(one[0], 0.0)
    assert estimate(one).p == pytest.approx(reference.pvalue, abs=1e-12)
    low, high = reference.confidence_interval(0.9)
    assert (estimate(one).interval(0.9).low, estimate(one).interval(0.9).high) == pytest.approx((low, high), abs=1e-12)
    seeds = np.repeat(rng.normal(0.2, 1.0, (5, 1)), 7, axis=1)
    reference = stats.ttest_1samp(seeds[:, 0], 0.0)
    assert estimate(seeds).p == pytest.approx(reference.pvalue, rel=1e-3)
    assert estimate(seeds).interval(0.95).low == pytest.approx(reference.confidence_interval(0.95).low, rel=1e-2)


def test_nothing_varies_or_something_is_missing() -> None:
    assert estimate(np.zeros((3, 4))).p == 1.0 and estimate(np.full((3, 4), 0.5)).p == 0.0
    assert estimate(np.full((3, 4), 0.5)).interval(0.95) == Interval(mean=0.5, low=0.5, high=0.5)
    with pytest.raises(ValueError, match="two prompts"):
        estimate(np.zeros((3, 1)))
    with pytest.raises(ValueError, match="not finite"):
        estimate(np.array([[0.0, np.nan]]))


@pytest.mark.parametrize(
    ("p", "adjusted"),
    [
        ([0.01, 0.04, 0.03, 0.005], [0.03, 0.06, 0.06, 0.02]),  # 4 x 0.005, 3 x 0.01, 2 x 0.03, then no smaller than the one before
        ([0.5, 0.9], [1.0, 1.0]),
        ([0.02], [0.02]),
        ([], []),
    ],
)
def test_holm(p: list[float], adjusted: list[float]) -> None:
    assert holm(p) == pytest.approx(adjusted, abs=1e-12)


def drawn(rng: Any, seeds: int, prompts: int, of_seed: float, of_prompt: float, rest: float, delta: float = 0.0) -> np.ndarray:
    u, v = rng.normal(0, of_seed, (seeds, 1)), rng.normal(0, of_prompt, (1, prompts))
    return np.asarray(delta + u + v + rng.normal(0, rest, (seeds, prompts)))


# seeds, and the spread over seeds, over prompts, of the rest
CASES = [(3, 0.02, 0.1, 0.3), (5, 0.02, 0.1, 0.3), (5, 0.1, 0.3, 0.3), (3, 0.3, 0.1, 0.3), (10, 0.05, 0.0, 0.5), (5, 0.0, 0.5, 0.1)]


def test_intervals_hold_as_often_as_they_say() -> None:
    """95 % intervals, 500 comparisons of each kind of world: seeds that matter little or much, as do prompts."""
    for seeds, of_seed, of_prompt, rest in CASES:
        rng = np.random.default_rng(1)
        held = 0
        for _ in range(500):
            found = estimate(drawn(rng, seeds, 60, of_seed, of_prompt, rest, 0.3)).interval(0.95)
            held += found.low <= 0.3 <= found.high
        # Three seeds cannot show that seeds do not matter where they do not: then the intervals are wider than they need be.
        assert 460 <= held <= (490 if seeds > 3 or of_seed > 0.2 else 500), (seeds, of_seed, of_prompt, held)


def test_what_is_detectable_is_detected_four_times_out_of_five() -> None:
    rng = np.random.default_rng(2)
    whole = [estimate(drawn(rng, 8, 60, 0.05, 0.2, 0.3)) for _ in range(400)]
    effect = float(np.median([one.detectable(0.95) for one in whole]))
    found = [estimate(drawn(rng, 8, 60, 0.05, 0.2, 0.3, effect)).p < 0.05 for _ in range(400)]
    assert 0.72 <= np.mean(found) <= 0.88


def hierarchical(values: np.ndarray, draws: np.random.Generator, resamples: int = 2000) -> np.ndarray:
    """(resamples,) means of values (S, P) with seeds, then prompts drawn with replacement: the same prompts for every seed, since
    they are crossed."""
    seeds, prompts = values.shape
    found = np.empty(resamples)
    for i in range(resamples):
        rows, columns = draws.integers(0, seeds, seeds), draws.integers(0, prompts, prompts)
        found[i] = values[np.ix_(rows, columns)].mean()
    return found


def test_percentiles_of_the_hierarchical_bootstrap_are_too_narrow_with_few_seeds() -> None:
    """Which is why they are not the intervals; with many seeds the two agree."""
    rng = np.random.default_rng(3)
    held = 0
    for _ in range(60):
        found = hierarchical(drawn(rng, 3, 30, 0.3, 0.1, 0.3), rng, 400)
        low, high = np.quantile(found, [0.025, 0.975])
        held += low <= 0.0 <= high
    assert held < 0.88 * 60
    values = drawn(rng, 60, 60, 0.1, 0.1, 0.3)
    spread = hierarchical(values, rng, 1000).std()
    assert spread == pytest.approx(float(np.median(estimate(values).scales)), rel=0.15)


def scored(name: str, values: np.ndarray, seeds: tuple[int, ...] = (0, 1)) -> Scored:
    return Scored(name, seeds, values)


def test_every_two_are_compared_as_one_family() -> None:
    rng = np.random.default_rng(4)
    base = rng.uniform(0, 0.5, (5, 40, 4))
    five = (0, 1, 2, 3, 4)
    sides = [
        scored("a", base + 0.4, five),
        scored("b", base + 0.4 + rng.normal(0, 0.2, base.shape), five),
        scored("SFT", base, five),
    ]
    ab, a_sft, b_sft = compare(sides, 0.95)
    assert (ab.a, ab.b) == ("a", "b") and (a_sft.a, a_sft.b) == ("a", "SFT") and (b_sft.a, b_sft.b) == ("b", "SFT")
    assert not ab.different and a_sft.different and b_sft.different
    assert [one.adjusted for one in (ab, a_sft, b_sft)] == holm([one.p for one in (ab, a_sft, b_sft)])
    alone = estimate(sides[0].means - sides[1].means)
    assert ab.difference == alone.interval(0.95) and ab.joint == alone.interval(1 - 0.05 / 3)
    assert ab.detectable == alone.detectable(1 - 0.05 / 3)
    assert a_sft.wins.mean == pytest.approx(float((base[:, :, :, None] + 0.4 > base[:, :, None, :]).mean()))
    assert b_sft.wins.high <= 1.0 and b_sft.sentence == f"b is better than SFT by {b_sft.difference.mean:.3f}"
    assert compare(sides[::-1], 0.95)[0].sentence == b_sft.sentence
    assert "not distinguishable" in ab.sentence and f"{ab.detectable:.3f}" in ab.sentence


def test_scores_that_are_missing_do_not_count() -> None:
    rng = np.random.default_rng(5)
    a, b = rng.uniform(0, 1, (2, 20, 4)), rng.uniform(0, 1, (2, 20, 4))
    a[0, 0, 0] = np.nan
    found = compare([scored("a", a), scored("b", b)], 0.95)[0]
    means = np.nanmean(a, 2) - b.mean(2)
    assert found.difference.mean == pytest.approx(means.mean(), abs=1e-12)


@pytest.mark.parametrize(("seeds", "said"), [(1, "one seed"), (2, "indicative"), (4, "indicative"), (5, "a claim")])
def test_the_number_of_seeds_says_what_may_be_said(seeds: int, said: str) -> None:
    rng = np.random.default_rng(6)
    sides = [scored(name, rng.uniform(0, 1, (seeds, 10, 2)), tuple(range(seeds))) for name in "ab"]
    assert said in compare(sides, 0.95)[0].standing


def test_what_has_no_pairs_is_refused() -> None:
    values = np.zeros((2, 10, 4))
    for other in (scored("b", values, (0, 2)), scored("b", values[:, :9]), scored("b", values[:, :, :3])):
        with pytest.raises(ValueError, match="a and b were not scored on the same"):
            compare([scored("a", values), other], 0.95)
    with pytest.raises(ValueError, match="two sides"):
        compare([scored("a", values)], 0.95)


def test_nothing_different_is_said_of_nothing() -> None:
    """A family in which nothing differs claims something at most one time in twenty."""
    rng = np.random.default_rng(7)
    wrong = 0
    for _ in range(120):
        sides = [scored(name, rng.normal(0, 1, (3, 20, 2)) + rng.normal(0, 0.3, (3, 1, 1)), (0, 1, 2)) for name in "abcd"]
        wrong += any(one.different for one in compare(sides, 0.95))
    assert wrong <= 9


def test_equal_scores_on_every_prompt_are_told_as_that() -> None:
    same = np.zeros((2, 3, 2))
    (found,) = compare([scored("a", same), scored("b", same)], 0.95)
    assert not found.different and found.sentence == "a and b scored the same on every prompt, which nothing can be inferred from"


def test_a_comparison_is_a_value() -> None:
    interval = Interval(mean=0.1, low=0.0, high=0.2)
    one = Comparison("a", "b", 3, 10, interval, interval, interval, 0.01, 0.04, 0.1, 0.95)
    assert one.different and not Comparison("a", "b", 3, 10, interval, interval, interval, 0.01, 0.06, 0.1, 0.95).different
