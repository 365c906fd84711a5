"""What evaluation says about every rubric item, worked by hand; and the samples as files and as MLflow's table."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from grape.evaluation import statistics
from grape.evaluation.record import KL, Evaluation, Greedy, Sample
from grape.evaluation.sides import Answers, describe, difference, samples, win_rate
from grape.stages import held_out
from grape.types import Response, Scores
from tests import tiny

NAN = float("nan")


def scores(*rows: tuple[float | None, ...], items: tuple[str, ...] = ("a/x", "a/y")) -> Scores:
    """Rows of scores; None is missing, NaN is not asked."""
    valid = [[value is not None and value == value for value in row] for row in rows]
    asked = [[value is None or value == value for value in row] for row in rows]
    score = torch.tensor(
        [
            [value if ok and value is not None else 0.0 for value, ok in zip(row, oks, strict=True)]
            for row, oks in zip(rows, valid, strict=True)
        ]
    )
    return Scores(
        items,
        score,
        torch.full(score.shape, 0.75),
        torch.tensor(valid),
        torch.tensor(asked).float(),
        tuple(tuple(f"reason {b} {k}" for k in range(len(items))) for b in range(len(rows))),
    )


def item(column: list[float | None], lengths: list[int], prompts: int) -> dict[str, float | None]:
    given = scores(*((value, NAN) for value in column))
    found = statistics.item_statistics(given, torch.tensor(lengths), prompts)
    assert list(found) == ["a/x"], "an item that nobody was asked is not described"
    return found["a/x"].model_dump()


def overlap(given: Scores) -> list[dict[str, Any]]:
    return [pair.model_dump() for pair in statistics.overlaps(given)]


def test_spread_is_the_mean_standard_deviation_within_prompts() -> None:
    """(0, 1): sqrt(1/2). (0.5, 0.5): 0. (0, None) says nothing. Over all answers it would be another number."""
    found = item([0.0, 1.0, 0.5, 0.5, 0.0, None], [1] * 6, 3)
    assert found["spread"] == pytest.approx(0.5**0.5 / 2, abs=1e-6)
    assert found["score"] == pytest.approx(0.4) and found["missing"] == pytest.approx(1 / 6, abs=1e-6)
    assert found["confidence"] == 0.75


def test_spread_is_null_where_no_prompt_has_two_scores() -> None:
    assert item([0.0, None, 1.0, None], [1] * 4, 2)["spread"] is None


def test_length_correlation_is_within_prompts() -> None:
    """Prompt 1 has longer answers and higher scores, but within either prompt the longer answer scores lower."""
    assert item([0.4, 0.2, 0.9, 0.7], [1, 2, 11, 12], 2)["length_correlation"] == -1.0
    # centred scores (-2, 1, 1)/9 and lengths (-1, 0, 1): 3 / sqrt(6 * 2)
    assert item([0.0, 1 / 3, 1 / 3], [3, 4, 5], 1)["length_correlation"] == pytest.approx(3 / 12**0.5, abs=1e-6)


def test_a_missing_score_takes_no_part_in_the_length_correlation() -> None:
    """With the missing one as 0, or its length in the mean, it would not be 1."""
    assert item([0.1, 0.2, None, 0.3], [1, 2, 50, 3], 1)["length_correlation"] == 1.0


@pytest.mark.parametrize(
    ("column", "lengths"), [([0.5, 0.5, 0.9, 0.9], [1, 2, 3, 4]), ([0.1, 0.2, 0.3, 0.4], [5, 5, 7, 7]), ([None] * 4, [1, 2, 3, 4])]
)
def test_length_correlation_is_null_where_score_or_length_is_constant_within_prompts(
    column: list[float | None], lengths: list[int]
) -> None:
    assert item(column, lengths, 2)["length_correlation"] is None


def test_overlap_is_pearsons_over_the_responses_where_both_are_valid() -> None:
    rows: list[tuple[float | None, ...]] = [(0.0, 0.0), (1.0, 0.5), (0.5, 0.5), (None, 1.0), (1.0, None)]
    (pair,) = overlap(scores(*rows))
    expected = float(np.corrcoef([0.0, 1.0, 0.5], [0.0, 0.5, 0.5])[0, 1])
    assert pair == {"a": "a/x", "b": "a/y", "correlation": pytest.approx(expected, abs=1e-6)}
    (pair,) = overlap(scores((0.1, 0.9), (0.4, 0.6), (0.9, 0.1)))
    assert pair["correlation"] == -1.0
    (pair,) = overlap(scores((0.1, 0.7), (0.4, 0.7)))
    assert pair["correlation"] is None


def test_overlap_pairs_only_what_is_asked_of_the_same_response() -> None:
    given = scores((0.1, 0.2, NAN, NAN), (NAN, NAN, 0.3, 0.4), items=("a/x", "a/y", "b/x", "b/y"))
    assert [(pair["a"], pair["b"]) for pair in overlap(given)] == [("a/x", "a/y"), ("b/x", "b/y")]


def side(text: str, given: Scores) -> Answers:
    given_answers = [Response(tiny.prompt("What?", "a", "7"), g, (1, 2), f"{text} {g}", True) for g in range(2)]
    greedy = Greedy(gold=0.5, proxy=0.25)
    return Answers(given_answers, given, np.array([[0.25, NAN]]), np.array([[1.0, 0.0]]), greedy, 0.5)


def sides() -> tuple[Answers, Answers]:
    return side("before", scores((0.25, None), (1.0, 1.0))), side("after", scores((0.5, NAN), (1.0, 1.0)))


def answers() -> list[Sample]:
    sft, own = sides()
    return samples([sft.responses[0].prompt], sft, own)


def test_the_files_hold_their_fields_in_this_order_and_are_read_back() -> None:
    sft, own = sides()
    prompts, over = [sft.responses[0].prompt], statistics.Bootstrap(0.95, (0, "evaluate"))
    made = Evaluation(
        split="test", data="d", weights="w",
        algorithm="grpo", seed=0, prompts=1, samples=2, sft=describe(prompts, sft, over), policy=describe(prompts, own, over),
        difference=difference(sft, own, over), win_rate=win_rate(sft, own, over), dropped={"too_long": 0},
        kl=KL(token=0.0, sequence=0.0))  # fmt: skip
    found = made.model_dump()
    assert " ".join(found) == (
        "split data weights "
        "algorithm seed prompts samples base sft policy difference dataset_differences win_rate dropped kl benchmarks"
    )
    assert " ".join(found["sft"]) == "gold proxy greedy length finished entropy pass_at categories datasets items overlap"
    (category,) = found["sft"]["categories"].values()
    assert " ".join(category) == "n gold proxy" and " ".join(found["win_rate"]) == "mean low high judge"
    assert " ".join(found["sft"]["items"]["a/x"]) == "score confidence missing spread length_correlation"
    assert Evaluation.model_validate_json(json.dumps(found)) == made
    (sample,) = answers()
    assert " ".join(sample.row()) == "id category prompt answer sft policy draws"
    assert " ".join(sample.row()["sft"]) == "text gold proxy items", "raw only where it is another text"
    assert Sample.model_validate(sample.row()) == sample


def test_samples_have_every_item_of_both_policies() -> None:
    (found,) = (sample.row() for sample in answers())
    assert found["sft"]["items"] == [
        {"item": "a/x", "score": 0.25, "confidence": 0.75, "reason": "reason 0 0"},
        {"item": "a/y", "score": None, "confidence": 0.75, "reason": "reason 0 1"},
    ]
    assert [item["item"] for item in found["policy"]["items"]] == ["a/x"]
    assert (found["policy"]["text"], found["policy"]["gold"], found["policy"]["proxy"]) == ("after 0", 1.0, 0.25)


class Kept:
    """What a stage gives to its run."""

    def __init__(self) -> None:
        self.tags: dict[str, str] = {}
        self.files: dict[str, str] = {}

    def artifact(self, path: Path, folder: str | None = None) -> None:
        self.files[path.name if folder is None else f"{folder}/{path.name}"] = path.read_text(encoding="utf-8")

    def tag(self, values: dict[str, str]) -> None:
        self.tags |= values


def test_the_table_is_what_mlflow_takes_for_one() -> None:
    """A row per item of either policy; the tag names the artifact, or MLflow shows it as plain JSON."""
    run = Kept()
    held_out.log_table(SimpleNamespace(run=run, policy="grpo-0"), answers())  # type: ignore[arg-type]
    ((name, text),) = run.files.items()
    assert json.loads(run.tags["mlflow.loggedArtifacts"]) == [{"path": name, "type": "table"}]
    table = json.loads(text)
    assert table["columns"] == [
        "policy",
        "category",
        "id",
        "prompt",
        "response",
        "gold",
        "proxy",
        "item",
        "score",
        "confidence",
        "reason",
    ]
    assert [[row[0], row[4], *row[7:]] for row in table["data"]] == [
        ["sft", "before 0", "a/x", 0.25, 0.75, "reason 0 0"],
        ["sft", "before 0", "a/y", None, 0.75, "reason 0 1"],
        ["grpo-0", "after 0", "a/x", 0.5, 0.75, "reason 0 0"],
    ]
    assert all(len(row) == len(table["columns"]) for row in table["data"])
