"""The curve of over-optimisation: what is expected of the best of n, and which moments the table shows."""

from __future__ import annotations

from itertools import combinations
from statistics import fmean

import numpy as np
import pytest

from benchmarks import overoptimisation as curve


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_best_of_n_is_the_mean_over_every_choice_of_n(n: int) -> None:
    gold, proxy = np.array([[0.0, 1.0, 0.5, 0.25, 1.0]]), np.array([[3.0, -1.0, 2.0, 0.0, 1.0]])
    chosen = [max(some, key=lambda i: proxy[0, i]) for some in combinations(range(5), n)]
    assert curve.best_of(gold, proxy, n) == pytest.approx(fmean(gold[0, i] for i in chosen))
    assert curve.best_of(proxy, proxy, n) == pytest.approx(fmean(proxy[0, i] for i in chosen))


def test_the_table_shows_where_gold_is_highest_and_the_end() -> None:
    def runs(*gold: float) -> list[dict[str, list[float]]]:
        return [{"kl": [0.0, 1.0, 2.0], "gold": [g + 0.01 * seed for g in gold], "proxy": [0.0, 1.0, 3.0]} for seed in range(3)]

    lines = curve.table({("0",): runs(0.3, 0.5, 0.2), (curve.BEST,): runs(0.3, 0.4, 0.45)}).splitlines()
    assert [line.split(" | ")[1] for line in lines[2:]] == [f"round {curve.EVERY}", f"round {2 * curve.EVERY}", "n = 4"]
    assert lines[2].endswith("+0.200 ± 0.000 |") and lines[3].endswith("-0.100 ± 0.000 |")
