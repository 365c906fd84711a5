"""The results table: its rows, its mean, and a README that is either replaced as a whole or left alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import results_table
from grape import tuned
from grape.tuned import Spread, Tuned

README = f"above\n{results_table.BEGIN}\nold\n{results_table.END}\nbelow\n"


def around(name: str, mean: float) -> dict[str, float]:
    return {name: mean, f"{name}_low": mean - 0.02, f"{name}_high": mean + 0.02}


def policy(seed: int, gold: bool) -> dict[str, Any]:
    mean = 0.75 + seed / 100
    scores = {**(around("gold", mean) if gold else {"gold": None, "gold_low": None, "gold_high": None}), **around("proxy", mean)}
    difference = {name: None if value is None else value - 0.5 for name, value in scores.items()}
    return {
        "algorithm": "grpo",
        "seed": seed,
        **scores,
        "difference": difference,
        **around("win_rate", 0.7),
        "kl_token": 0.041,
        "kl_sequence": 0.5,
        "length": 8.25,
    }


def metrics(seeds: tuple[int, ...] = (0, 10), gold: bool = True) -> dict[str, Any]:
    one = dict.fromkeys(("gold_low", "gold_high", "proxy_low", "proxy_high", "difference_low", "difference_high"))
    mean = {
        "seeds": len(seeds),
        "gold": 0.8 if gold else None,
        "proxy": 0.8,
        "difference": 0.3,
        **one,
        "win_rate": 0.7,
        "kl_token": 0.04,
        "kl_sequence": 0.5,
        "length": 8.0,
    }
    return {
        "judge": "gold" if gold else "proxy",
        "sft": {"gold": 0.5 if gold else None, "proxy": 0.55},
        "policies": {f"grpo-{seed}": policy(seed, gold) for seed in reversed(seeds)},
        "algorithms": {"grpo": mean},
    }


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_a_row_per_policy_in_order_of_seeds_then_the_mean() -> None:
    head, _, first, second, mean = map(cells, results_table.table(metrics()).splitlines())
    assert head[4] == "difference (gold)"
    assert first == [
        "grpo",
        "0",
        "0.500 → 0.750 [0.730, 0.770]",
        "0.550 → 0.750 [0.730, 0.770]",
        "+0.250 [+0.230, +0.270]",
        "0.700 [0.680, 0.720]",
        "0.041",
        "8.2",
    ]
    assert second[1] == "10"
    assert mean[:5] == ["**grpo**", "**mean of 2**", "**0.500 → 0.800**", "**0.550 → 0.800**", "**+0.300**"]


def test_one_seed_has_no_mean_and_no_gold_is_a_dash() -> None:
    lines = results_table.table(metrics((0,), gold=False)).splitlines()
    assert len(lines) == 3
    assert cells(lines[0])[4] == "difference (proxy)"
    assert cells(lines[2])[2:5] == ["–", "0.550 → 0.750 [0.730, 0.770]", "+0.250 [+0.230, +0.270]"]


def test_write_replaces_what_is_between_the_markers_and_nothing_else(tmp_path: Path) -> None:
    report, readme = tmp_path / "metrics.json", tmp_path / "README.md"
    report.write_text(json.dumps(metrics()))
    readme.write_text(README)
    assert results_table.main(["--metrics", str(report), "--write", str(readme)]) == 0
    table = results_table.table(metrics())
    assert readme.read_text() == f"above\n{results_table.BEGIN}\n{table}\n{results_table.END}\nbelow\n"
    assert results_table.main(["--metrics", str(report), "--write", str(readme)]) == 0
    assert readme.read_text().count(table) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["README.md", "metrics.json"]


@pytest.mark.parametrize(
    "readme", ["no marker", results_table.BEGIN, f"{results_table.END}\n{results_table.BEGIN}", README + README]
)
def test_a_readme_without_one_place_for_the_table_is_left_alone(
    tmp_path: Path, readme: str, capsys: pytest.CaptureFixture[str]
) -> None:
    report, path = tmp_path / "metrics.json", tmp_path / "README.md"
    report.write_text(json.dumps(metrics()))
    path.write_text(readme)
    assert results_table.main(["--metrics", str(report), "--write", str(path)]) == 2
    assert "not marked" in capsys.readouterr().err
    assert path.read_text() == readme


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "no report"),
        ("{", "not a report"),
        ("{}", "not a report"),
        ("[]", "not a report"),
        ('{"sft": {}, "policies": {}, "algorithms": {}, "judge": "gold"}', "of no algorithm"),
    ],
)
def test_a_missing_or_broken_report_is_said(
    tmp_path: Path, text: str | None, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    report = tmp_path / "metrics.json"
    if text is not None:
        report.write_text(text)
    assert results_table.main(["--metrics", str(report)]) == 2
    captured = capsys.readouterr()
    assert message in captured.err and "grape run" in captured.err and not captured.out


def test_the_league_table_goes_between_its_own_markers(tmp_path: Path) -> None:
    report, readme = tmp_path / "metrics.json", tmp_path / "README.md"
    found = metrics((0, 10))
    found["algorithms"]["grpo"] |= {
        "entropy": 0.4,
        "seconds": 80.0,
        "samples": 64.0,
        "updates": 4.0,
        "tokens": 1000.0,
        "memory_mb": 700.0,
        "difference_low": 0.25,
        "difference_high": 0.35,
    }
    report.write_text(json.dumps(found))
    here, there = "<!-- league -->\n<!-- /league -->\n", "<!-- mine -->\n<!-- /mine -->\n"
    readme.write_text(f"{README}{here}{there}")
    assert results_table.main(["--metrics", str(report), "--league", "--write", str(readme)]) == 0
    text = readme.read_text()
    assert text.startswith(README) and "| grpo | 2 | 0.800 | +0.300 [+0.250, +0.350] | 0.800 |" in text
    assert "score: gold, on test prompts, SFT has 0.500" in text and text.endswith(there)
    assert results_table.main(["--metrics", str(report), "--league", "--mark", "mine", "--write", str(readme)]) == 0
    assert readme.read_text().count("| grpo | 2 |") == 2 and not readme.read_text().endswith(there)


def test_the_table_of_what_was_tuned(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "page.md"
    page.write_text("<!-- tuned -->\n<!-- /tuned -->")
    entry = Tuned(
        knobs={"beta": 0.1}, judge="gold", spread=Spread.of([0.2, 0.4]), present=0.2, complete=2, pruned=1, failed=0,
        scores=[0.2, 0.4], share=0.25, steps=12, seeds=[1000], made_for={},
    )  # fmt: skip
    tuned.write(tmp_path, {"dpo": entry})
    before = page.read_text()
    assert results_table.main(["--tuned", "--project", str(tmp_path / "empty"), "--write", str(page)]) == 2
    assert page.read_text() == before and "nothing was tuned yet" in capsys.readouterr().err
    assert results_table.main(["--tuned", "--project", str(tmp_path), "--write", str(page)]) == 0
    assert cells(page.read_text().splitlines()[3]) == "dpo 3 0.400 0.200 0.300 0.250-0.350 0.200 1 0".split() + ["beta 0.1"]
