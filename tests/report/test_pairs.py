"""A against B in the report: the family, what is said of it, the first screen, and evaluations that have no pairs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from grape.commands import league
from grape.errors import GrapeError
from grape.evaluation.comparison import Scored, compare
from grape.report import data, pairs, plots, render
from grape.report.conclusions import metrics
from grape.report.drawing import png
from grape.report.first import answers
from tests.report.conftest import ITEMS, draws
from tests.report.driver import KNOBS

MakeReports = Callable[..., Path]
THREE = ("grpo", "ppo", "grape")


def read(root: Path, algorithms: tuple[str, ...] = THREE, seeds: tuple[int, ...] = (0, 1, 2)) -> data.ReportInputs:
    return data.read(root, algorithms, seeds)


def test_the_family_is_every_two_algorithms_and_sft(make_reports: MakeReports) -> None:
    inputs = read(make_reports(THREE))
    found = pairs.compared(inputs, 0.95)
    assert [(one.a, one.b) for one in found] == [
        ("grpo", "ppo"), ("grpo", "grape"), ("grpo", "SFT"), ("ppo", "grape"), ("ppo", "SFT"), ("grape", "SFT"),
    ]  # fmt: skip
    rows = inputs.samples["grpo-0"]
    assert [row.draws.sft.gold for row in rows] == [draws(n, 0.0) for _ in ITEMS for n in range(12)]
    sft = np.array([[row.draws.sft.gold for row in rows]] * 3)
    grpo = np.array([[row.draws.policy.gold for row in inputs.samples[f"grpo-{s}"]] for s in range(3)])
    alone = compare([Scored("grpo", (0, 1, 2), grpo), Scored("SFT", (0, 1, 2), sft)], 0.95)[0]
    assert found[2].difference == alone.difference and found[2].p == alone.p and found[2].adjusted > alone.p


def test_they_stand_in_metrics_on_the_page_and_on_the_screen(make_reports: MakeReports) -> None:
    inputs = read(make_reports(THREE))
    found = pairs.compared(inputs, 0.95)
    figures = {"pairs": plots.win_matrix(found), "frontier": plots.frontier(inputs, dict.fromkeys(THREE, "black"))}
    values = render.context(inputs, 0.95, KNOBS, {name: png(figure) for name, figure in figures.items() if figure})
    markdown, html = render.markdown(values), render.html(values)
    assert html.count("data:image/png") == 2 and found
    for one in found:
        assert one.sentence in html.replace("&#39;", "'") and one.sentence in markdown.replace("\\", "")
    assert "6 comparisons on the same" in html and "indicative" in markdown
    for question in ("Who won?", "By how much?", "How sure?", "At what cost?", "Anything fishy?"):
        assert question in html and question in markdown
    assert html.index("Who won?") < html.index('id="algorithms"')
    written: dict[str, Any] = json.loads(json.dumps(metrics(inputs, 0.95) | {"pairs": pairs.numbers(found)}))
    assert written["pairs"][0].keys() >= {"a", "b", "difference", "joint", "wins", "p", "adjusted", "detectable", "sentence"}
    said = "\n".join(league.lines(written))
    assert f"{sum(one.different for one in found)} of 6 pairs differ (Holm-corrected" in said and found[0].sentence in said


def test_the_first_screen_says_who_won_and_who_cannot_be_told_from_it(make_reports: MakeReports) -> None:
    inputs = read(make_reports(THREE))
    found = pairs.compared(inputs, 0.95)
    said = dict(answers(inputs, found, [("grpo-0", "x"), ("grpo-0", "y")]))
    best = max(THREE, key=lambda name: np.mean([run.policy.of("gold").mean for run in inputs.of(name)]))
    assert best in said["Who won?"] and "SFT" in said["By how much?"] and "Holm" in said["How sure?"]
    assert "3 seeds" in said["How sure?"] and "indicative" in said["How sure?"]
    assert "KL" in said["At what cost?"] and said["Anything fishy?"] == "grpo-0: see Alarms"
    assert dict(answers(inputs, found, []))["Anything fishy?"] == "No alarm."


def test_one_algorithm_is_a_family_of_one(make_reports: MakeReports) -> None:
    inputs = read(make_reports(("grpo",)), ("grpo",))
    (one,) = pairs.compared(inputs, 0.95)
    assert (one.a, one.b) == ("grpo", "SFT") and one.p == one.adjusted
    assert one.joint.low == pytest.approx(one.difference.low, rel=1e-9)
    assert plots.win_matrix([one]) is None
    assert "One pair, nothing to correct" in dict(answers(inputs, [one], []))["How sure?"]


def test_one_seed_says_nothing_about_others(make_reports: MakeReports) -> None:
    inputs = read(make_reports(("grpo",), (0,)), ("grpo",), (0,))
    assert "one seed says nothing about others" in dict(answers(inputs, pairs.compared(inputs, 0.95), []))["How sure?"]


def test_evaluations_of_other_prompts_are_refused(make_reports: MakeReports) -> None:
    root = make_reports(THREE)
    path = root / "reports/test/ppo-1/samples.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[1:]))
    with pytest.raises(GrapeError, match="other prompts, or other draws") as raised:
        pairs.compared(read(root), 0.95)
    assert "ppo-1" in str(raised.value.where) and "test@ppo-1" in str(raised.value.mend)
    row = json.loads(lines[0])
    row["draws"]["policy"] = {side: scores[:3] for side, scores in row["draws"]["policy"].items()}
    path.write_text(json.dumps(row) + "\n" + "".join(lines[1:]))
    with pytest.raises(GrapeError, match="other prompts, or other draws"):
        pairs.compared(read(root), 0.95)


def test_a_single_prompt_has_no_comparison(make_reports: MakeReports) -> None:
    root = make_reports(("grpo",))
    for path in (root / "reports/test").glob("*/samples.jsonl"):
        path.write_text(path.read_text().splitlines(keepends=True)[0])
    inputs = read(root, ("grpo",))
    assert pairs.compared(inputs, 0.95) == []
    values = render.context(inputs, 0.95, KNOBS, {})
    assert "A against B" not in render.html(values) and "At what cost?" in render.markdown(values)
