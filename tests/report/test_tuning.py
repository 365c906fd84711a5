"""What `grape tune` found, in the report."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from grape import tuned
from grape.tuned import Spread, Tuned
from tests.report import driver
from tests.report.conftest import HOSTILE


def found(scores: list[float], **knobs: tuned.Value) -> Tuned:
    return Tuned(
        knobs=knobs, judge="gold", spread=Spread.of(scores), present=scores[0], complete=len(scores), pruned=2, failed=1,
        scores=scores, share=0.25, steps=12, seeds=[1000], made_for={},
    )  # fmt: skip


def test_best_median_and_spread_of_every_tuned_algorithm(make_reports: Callable[..., Path]) -> None:
    root = make_reports(seeds=(0, 1), steps=3)
    tuned.write(root, {"grpo": found([0.3, 0.5, 0.4], beta=0.04), "ppo": found([0.6], aggregation=HOSTILE)})
    driver.write(root, ["grpo"], [0, 1])
    page, whole = ((root / "reports" / name).read_text() for name in ("report.md", "index.html"))
    assert "| grpo | 6 | 0.500 | 0.300 | 0.400 | 0.350 to 0.450 | 0.300 | 2 | 1 | 12 (25 %) | beta 0.04 |" in page
    assert page.index("| ppo | 4 | 0.600") < page.index("| grpo | 6 | 0.500"), "the best first"
    assert 'id="tuning"' in whole and 'href="#tuning"' in whole and "<script>alert" not in whole + page
    numbers = driver.read(root)["tuned"]
    assert numbers["grpo"]["spread"] == {"best": 0.5, "median": 0.4, "low": 0.35, "high": 0.45, "worst": 0.3}
    assert (numbers["grpo"]["trials"], numbers["grpo"]["knobs"]) == (6, {"beta": 0.04})


def test_where_nothing_was_tuned_nothing_is_said(make_reports: Callable[..., Path]) -> None:
    root = make_reports(seeds=(0, 1), steps=3)
    tuned.card(root)
    driver.write(root, ["grpo"], [0, 1])
    page, whole = ((root / "reports" / name).read_text() for name in ("report.md", "index.html"))
    assert "Tuning" not in page and "tuning" not in whole and driver.read(root)["tuned"] == {}
