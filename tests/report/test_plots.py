"""Figures: which there are, where they stand, and what is told instead of drawn."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from grape.report import data, evolution, plots
from tests.report.driver import Page, write

COLOURS = {"grape": "#0080c6", "grpo": "#e69f00"}


def inputs(
    make_reports: Callable[..., Path], algorithms: list[str], seeds: tuple[int, ...] = (0, 1), **how: object
) -> data.ReportInputs:
    return data.read(make_reports(algorithms, seeds, **how), algorithms, seeds)


def titles(figure: Figure | None) -> list[str]:
    """Of the panels in sight, wherever the style puts them."""
    assert figure is not None
    return [axis.get_title() or axis.get_title("left") for axis in figure.axes if axis.get_visible()]


def test_every_algorithm_has_a_figure_of_its_rubric_and_what_weighs_items_is_shown_open(make_reports: Callable[..., Path]) -> None:
    root = make_reports(["grpo", "grape"], (0, 1), steps=12)
    run = write(root, ["grpo", "grape"], [0, 1], drawn=True)
    assert {"plots/rubric-grpo.png", "plots/rubric-grape.png", "plots/overoptimisation.png"} <= run.files.keys()
    shown = {caption.partition(":")[0]: closed for caption, closed in Page(root).captions if "every rubric item" in caption}
    assert shown == {"grpo": True, "grape": False}


def test_a_measure_that_never_moves_is_told_and_not_drawn(make_reports: Callable[..., Path]) -> None:
    grpo, grape = evolution.read(inputs(make_reports, ["grpo", "grape"], steps=12))
    assert list(grpo.curves) == ["score", "confidence", "spread", "length_correlation"] and grpo.flat == {"failure_rate": 0.0}
    assert list(grape.curves) == ["score", "confidence", "weight", "spread", "length_correlation", "advantage"]
    assert grpo.caption == (
        "grpo: every rubric item over training, mean over 2 seeds. Not drawn, being the same throughout: missing scores (0)."
    )


def test_curves_are_means_over_seeds_of_the_rounds_that_have_the_metric(make_reports: Callable[..., Path]) -> None:
    found = inputs(make_reports, ["grpo"], steps=3)
    for name, values in {"grpo-0": (0.2, 0.4, None), "grpo-1": (0.4, 0.8, 0.9)}.items():
        for record, value in zip(found.rl[name], values, strict=True):
            record.pop("rubric/letters/format/spread")
            if value is not None:
                record["rubric/letters/format/spread"] = value
    (grpo,) = evolution.read(found)
    steps, means = grpo.curves["spread"]["letters/format"]
    assert steps == [0, 1, 2] and means == pytest.approx([0.3, 0.6, 0.9])


def test_a_figure_has_a_row_per_measure_a_column_per_category_and_a_line_per_item(make_reports: Callable[..., Path]) -> None:
    (grape,) = evolution.read(inputs(make_reports, ["grape"], steps=12))
    (figure,) = evolution.draw(grape).values()
    head, *panels = [figure.axes[start : start + 3] for start in range(0, len(figure.axes), 3)]
    assert titles(figure)[:3] == ["arithmetic", "letters", "courtesy"]
    assert [[text.get_text() for text in axis.get_legend().get_texts()] for axis in head] == [
        ["correct", "short"],
        ["correct", "format"],
        ["names", "asks", "polite"],
    ]
    assert len(panels) == 6 and [len(axis.lines) for axis in panels[0]] == [2, 2, 3]
    assert [len(axis.collections) for axis in panels[-1]] == [2, 2, 3], "parts of the advantage are stacked"


def test_many_categories_go_into_several_figures_and_many_items_stay_apart(make_reports: Callable[..., Path]) -> None:
    found = inputs(make_reports, ["grpo"], (0,), steps=3)
    for step, record in enumerate(found.rl["grpo-0"]):
        record |= {f"rewards/c{c}/i{i}/mean": step / 10 + i / 100 for c in range(6) for i in range(10)}
    (grpo,) = evolution.read(found)
    assert grpo.figures == ["rubric-grpo", "rubric-grpo.2", "rubric-grpo.3"] and set(evolution.draw(grpo)) == set(grpo.figures)
    assert [list(block) for block in grpo.blocks] == [["arithmetic", "letters", "courtesy", "c0"], ["c1", "c2", "c3", "c4"], ["c5"]]
    lines = evolution.draw(grpo)["rubric-grpo.3"].axes[1].lines
    assert len({(line.get_color(), line.get_linestyle()) for line in lines}) == 10


def test_the_learning_figure_shows_what_there_is_and_rewards_go_by_category(make_reports: Callable[..., Path]) -> None:
    found = inputs(make_reports, ["grape"], steps=5)
    own = {"Reward, by confidence", "Share of revisions", "Gain by revising", "Revisions accepted", "Impossible tests passed"}
    assert own <= set(titles(plots.learning(found, COLOURS, plots.TITLES)))
    for records in found.rl.values():
        for record in records:
            record.pop("hack_rate")
    assert "Impossible tests passed" not in titles(plots.learning(found, COLOURS, plots.TITLES))
    names = {f"reward/{name}": name for name in ("letters", "courtesy", "nowhere")}
    assert titles(plots.learning(found, COLOURS, names)) == ["letters", "courtesy"]


def test_over_optimisation_is_drawn_where_there_is_gold_to_see_it_by(make_reports: Callable[..., Path]) -> None:
    found = inputs(make_reports, ["grape", "grpo"], steps=1)
    figure = plots.overoptimisation(found, COLOURS)
    assert figure is not None
    (axis,) = figure.axes
    points = [container.lines[0].get_xydata()[0].tolist() for container in axis.containers]
    assert points == [pytest.approx([d.proxy.mean, d.gold.mean]) for d in (run.difference for run in found.evaluations) if d.gold]
    (left, right), (bottom, top) = axis.get_xlim(), axis.get_ylim()
    assert left < 0 < right and bottom < 0 < top, "the region of gamed rewards is always in sight"


def test_without_gold_there_is_no_over_optimisation_to_draw(make_reports: Callable[..., Path]) -> None:
    assert plots.overoptimisation(inputs(make_reports, ["grpo"], gold=False, steps=1), COLOURS) is None
