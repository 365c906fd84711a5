"""Base, data sets and standard benchmarks in the report, which knows them where evaluate does."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from grape.evaluation.record import Interval
from grape.report import conclusions, data, render
from tests.report.conftest import interval, side
from tests.report.driver import KNOBS


def rewritten(root: Path, change: Callable[[dict[str, Any], int], Any]) -> data.ReportInputs:
    """The inputs, after `change` of every evaluation, given with its seed."""
    for seed in (0, 1):
        path = root / f"reports/test/grpo-{seed}/metrics.json"
        found = json.loads(path.read_text())
        change(found, seed)
        path.write_text(json.dumps(found))
    return data.read(root, ["grpo"], [0, 1])


def texts(inputs: data.ReportInputs) -> tuple[str, str]:
    values = render.context(inputs, 0.95, KNOBS, {})
    return render.markdown(values), render.html(values)


def test_base_stands_beside_sft_in_every_table(make_reports: Callable[..., Path]) -> None:
    root = make_reports(seeds=(0, 1), steps=3)
    without, _ = texts(rewritten(root, lambda found, _: None))
    assert "base" not in without and "Data sets" not in without and "benchmarks" not in without
    inputs = rewritten(root, lambda found, _: found.update(base=side(0.21, True)))
    page, whole = texts(inputs)
    assert "| base | 0.21 [0.18, 0.24] | – |" in page and "<td>base</td>" in whole.replace("\n", "")
    assert (
        "| arithmetic | 100 | 0.13 [0.08, 0.18] | 0.47" in page and "| arithmetic | correct | 0.21 (0.90) | 0.55 (0.90) |" in page
    )
    metrics = conclusions.metrics(inputs, 0.95)
    assert metrics["base"]["gold"] == 0.21 and metrics["sft"]["gold"] == 0.55


def test_where_base_is_sft_the_table_says_so(make_reports: Callable[..., Path]) -> None:
    inputs = rewritten(make_reports(seeds=(0, 1), steps=3), lambda found, _: found.update(base="sft"))
    page, _ = texts(inputs)
    assert "| SFT (= base) | 0.55" in page and "| base |" not in page
    assert conclusions.metrics(inputs, 0.95)["base"] == "sft"


def test_data_sets_have_their_scores_and_differences(make_reports: Callable[..., Path]) -> None:
    def change(found: dict[str, Any], seed: int) -> None:
        for name, score in (("sft", 0.4), ("policy", 0.6 + 0.02 * seed)):
            found[name]["datasets"] = {"a|b": {"n": 7, "gold": interval(score), "proxy": interval(score + 0.1)}}
        found["dataset_differences"] = {"a|b": {"gold": interval(0.2 + 0.02 * seed), "proxy": interval(0.2)}}

    inputs = rewritten(make_reports(seeds=(0, 1), steps=3), change)
    page, whole = texts(inputs)
    # two seeds 0.02 apart: t(1, 0.975) = 12.7062 times 0.01
    assert r"| a\|b | gold | 7 | 0.40 [0.37, 0.43] | 0.61 | +0.21 [+0.08, +0.34] |" in page
    assert r"| a\|b | proxy | 7 | 0.50 [0.47, 0.53] | 0.71 | +0.20 [+0.20, +0.20] |" in page
    assert 'id="datasets"' in whole
    assert conclusions.metrics(inputs, 0.95)["policies"]["grpo-1"]["dataset_differences"]["a|b"]["gold"] == 0.22


def test_benchmarks_show_what_was_forgotten(make_reports: Callable[..., Path]) -> None:
    def change(found: dict[str, Any], seed: int) -> None:
        row = {"task": "quiz", "higher_is_better": True, "n": 50, "base": 0.7, "sft": 0.6, "policy": 0.4}
        mean = {"mean": -0.2 + 0.002 * seed, "low": -0.3, "high": -0.1}
        found["benchmarks"] = [
            row | {"metric": "acc", "difference": mean},
            row | {"metric": "perplexity", "higher_is_better": False, "difference": -0.2},
        ]
        found["base"] = side(0.21, True)

    inputs = rewritten(make_reports(seeds=(0, 1), steps=3), change)
    page, whole = texts(inputs)
    assert "| quiz | acc | 50 | 0.700 | 0.600 | 0.400 | −0.20 [−0.21, −0.19] |" in page
    assert "| quiz | perplexity (lower is better) | 50 | 0.700 | 0.600 | 0.400 | −0.20 [−0.20, −0.20] |" in page
    assert '<td class="down">−0.20 [−0.21, −0.19]</td>' in whole and '<td class="up">−0.20 [−0.20, −0.20]</td>' in whole


@pytest.mark.parametrize(
    ("value", "better", "expected"),
    [((0.1, 0.3), True, "up"), ((0.1, 0.3), False, "down"), ((-0.1, 0.3), True, ""), ((0.1, 0.3), None, ""), (0.2, True, "")],
)
def test_a_difference_has_a_colour_where_its_interval_excludes_0(value: Any, better: bool | None, expected: str) -> None:
    given = value if isinstance(value, float) else Interval(mean=0.2, low=value[0], high=value[1])
    assert render.direction(given, better) == expected
