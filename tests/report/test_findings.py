"""Rubric items to look at again: flagged beyond the threshold and not at it, once each, with the numbers of all items beside."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from grape.report import data, findings
from tests.report.driver import KNOBS, Page, read, write

NAME = "courtesy/names"


def edit(root: Path, changes: dict[str, Any], sides: tuple[str, ...] = ("policy",), policy: str = "grpo-0") -> None:
    """Change the numbers of one item in an evaluation; `overlap` sets its correlation with the next item."""
    path = root / "reports" / "evaluate" / policy / "metrics.json"
    evaluation = json.loads(path.read_text())
    for side in sides:
        numbers = dict(changes)
        overlap = numbers.pop("overlap", None)
        evaluation[side]["items"][NAME] |= numbers
        for pair in evaluation[side]["overlap"]:
            if overlap is not None and (pair["a"], pair["b"]) == (NAME, "courtesy/asks"):
                pair["correlation"] = overlap
    path.write_text(json.dumps(evaluation))


def find(root: Path, seeds: tuple[int, ...] = (0,)) -> list[findings.Finding]:
    return findings.findings(data.read(root, ["grpo"], seeds), KNOBS)


@pytest.mark.parametrize(
    ("flag", "measure", "key", "at", "beyond", "advice"),
    [
        ("unsure", "confidence", "confidence", 0.65, 0.649999, "label more judgements"),
        ("saturated", "score", "score", 0.95, 0.950001, "make it harder"),
        ("redundant", "correlation with asks", "overlap", 0.9, 0.900001, "merge the two"),
        ("redundant", "correlation with asks", "overlap", -0.9, -0.900001, "decide which"),
        ("length", "correlation with length", "length_correlation", 0.5, 0.500001, "Longer answers"),
        ("length", "correlation with length", "length_correlation", -0.5, -0.500001, "Shorter answers"),
        ("missing", "missing scores", "missing", 0.05, 0.050001, "fails in 5%"),
    ],
)
def test_a_flag_is_raised_beyond_its_threshold_and_not_at_it(
    make_reports: Callable[..., Path], flag: str, measure: str, key: str, at: float, beyond: float, advice: str
) -> None:
    root = make_reports(seeds=(0,), steps=1)
    edit(root, {key: at})
    assert find(root) == []
    edit(root, {key: beyond})
    (found,) = find(root)
    assert (found.category, found.item, found.flag, found.measure) == ("courtesy", "names", flag, measure)
    assert found.number == beyond and found.threshold == getattr(KNOBS, flag) and found.where == ("grpo-0",)
    assert advice in found.advice


def test_an_item_whose_scores_never_differ_is_saturated_only_when_that_holds_for_both(make_reports: Callable[..., Path]) -> None:
    root = make_reports(seeds=(0,), steps=1)
    edit(root, {"spread": 0.0})
    assert find(root) == []
    edit(root, {"spread": 0.0}, ("sft",))
    (found,) = find(root)
    assert (found.flag, found.measure, found.number, found.where) == ("saturated", "spread", 0.0, ("SFT", "grpo-0"))
    assert "teaches nothing" in found.advice
    edit(root, {"score": 0.99}, ("sft", "policy"))
    (found,) = find(root)
    assert (found.measure, found.number) == ("score", 0.99), "one flag says it, not two"


def test_what_several_policies_share_is_one_row_with_the_furthest_number(make_reports: Callable[..., Path]) -> None:
    root = make_reports(seeds=(0, 1), steps=1)
    edit(root, {"confidence": 0.6, "length_correlation": 0.6}, ("sft", "policy"))
    edit(root, {"confidence": 0.55, "length_correlation": -0.7}, policy="grpo-1")
    unsure, length = find(root, (0, 1))
    assert (unsure.flag, unsure.number, unsure.where) == ("unsure", 0.55, ("SFT", "grpo-0", "grpo-1"))
    assert (length.flag, length.number, length.where) == ("length", -0.7, ("SFT", "grpo-0", "grpo-1"))


def test_a_number_that_is_not_there_raises_no_flag(make_reports: Callable[..., Path]) -> None:
    root = make_reports(seeds=(0,), steps=1)
    edit(root, {"score": None, "confidence": None, "spread": None, "length_correlation": None}, ("sft", "policy"))
    assert find(root) == []


def test_the_learned_reward_is_no_item_of_a_rubric(make_reports: Callable[..., Path]) -> None:
    root = make_reports(seeds=(0,), steps=1)
    path = root / "reports/evaluate/grpo-0/metrics.json"
    path.write_text(path.read_text().replace(NAME, findings.LEARNED))
    evaluation = json.loads(path.read_text())
    for side in ("sft", "policy"):
        evaluation[side]["items"][findings.LEARNED] |= {"score": 3.2, "spread": 0.0, "length_correlation": 0.8}
    path.write_text(json.dumps(evaluation))
    assert find(root) == []


def test_page_and_markdown_show_what_is_flagged_and_the_json_every_number(make_reports: Callable[..., Path]) -> None:
    root = make_reports(seeds=(0,), steps=3)
    write(root, ["grpo"], [0])
    assert "No item is flagged" in Page(root).text and "No item is flagged" in (root / "reports/report.md").read_text()
    edit(root, {"confidence": 0.512})
    write(root, ["grpo"], [0])
    text, markdown = Page(root).text, (root / "reports/report.md").read_text()
    assert "0.512" in text and "Reword it, split it" in text and "nothing is changed automatically" in text
    assert "| courtesy | names | unsure | confidence | 0.512 | 0.650 | grpo-0 | Reword it, split it" in markdown
    found = read(root)["rubric"]
    assert found["items"][NAME]["grpo-0"] == pytest.approx(
        {"score": 0.83, "confidence": 0.512, "missing": 0.0, "spread": 0.2, "length_correlation": 0.1}
    )
    assert found["items"][NAME]["SFT"]["confidence"] == 0.9 and len(found["items"]) == 7
    assert found["overlap"]["courtesy/names ~ courtesy/asks"] == {"SFT": 0.3, "grpo-0": 0.3}
    (finding,) = found["findings"]
    assert (finding["flag"], finding["threshold"], finding["where"]) == ("unsure", 0.65, ["grpo-0"])


def test_every_reason_of_both_policies_is_on_the_page(make_reports: Callable[..., Path]) -> None:
    root = make_reports(seeds=(0,), steps=1, samples=2)
    write(root, ["grpo"], [0])
    text = Page(root).text
    assert all(
        f"{policy} {number} {item} because <script>" in text
        for policy in ("sft", "policy")
        for number in (0, 1)
        for item in ("correct", "short", "format", "polite")
    )
