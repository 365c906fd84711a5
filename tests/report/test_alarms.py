"""Alarms: each fires on what it is for and stays silent on a healthy run; they are on the page and in MLflow."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from grape.evaluation.record import Category, Evaluation, Interval, Judged
from grape.report import alarms, data
from grape.report.data import TrainingRecord
from tests.report.driver import KNOBS, Page, write


def evaluation(make_reports: Callable[..., Path], **changes: Any) -> Evaluation:
    root = make_reports(seeds=(0,), steps=1)
    (run,) = data.read(root, ["grpo"], [0]).evaluations
    shutil.rmtree(root / "reports")
    return run.model_copy(update=changes)


def hints(run: Evaluation, records: list[TrainingRecord] | None = None) -> list[str]:
    return alarms.hints(run, records or [], KNOBS.missing)


def interval(low: float, high: float) -> Interval:
    return Interval(mean=(low + high) / 2, low=low, high=high)


@pytest.mark.parametrize(
    ("gold", "proxy", "hint"),
    [
        ((-0.2, -0.1), (0.1, 0.2), "gaming"),
        ((-0.1, 0.1), (0.1, 0.2), "over-optimisation"),
        ((0.01, 0.05), (0.2, 0.3), "Less than half"),
        ((0.2, 0.3), (0.2, 0.3), None),
        ((-0.2, -0.1), (-0.2, -0.1), None),
    ],
)
def test_proxy_up_without_gold_is_pointed_out(
    make_reports: Callable[..., Path], gold: tuple[float, float], proxy: tuple[float, float], hint: str | None
) -> None:
    run = evaluation(make_reports, difference=Judged(gold=interval(*gold), proxy=interval(*proxy)))
    found = hints(run)
    assert (hint in found[0] and len(found) == 1) if hint else not found


@pytest.mark.parametrize(
    ("gold", "proxy", "seen"),
    [
        ((0.1, 0.2), (0.8, 0.9), True),
        ((0.1, 0.45), (0.8, 0.9), False),
        ((0.1, 0.2), (0.5, 0.6), False),
        ((0.8, 0.9), (0.8, 0.9), False),
        ((0.1, 0.2), (0.1, 0.2), False),
    ],
)
def test_a_category_whose_proxy_rose_while_its_gold_fell_is_named(
    make_reports: Callable[..., Path], gold: tuple[float, float], proxy: tuple[float, float], seen: bool
) -> None:
    """SFT's intervals there are gold 0.42 .. 0.52 and proxy 0.47 .. 0.57; the mean over all categories rose in both."""
    run = evaluation(make_reports)
    one = Category(n=100, gold=interval(*gold), proxy=interval(*proxy))
    policy = run.policy.model_copy(update={"categories": {**run.policy.categories, "arithmetic": one}})
    found = hints(run.model_copy(update={"policy": policy}))
    assert ("In arithmetic the proxy rose" in found[0] and len(found) == 1) if seen else not found


def test_length_cut_off_answers_and_collapse_are_pointed_out(make_reports: Callable[..., Path]) -> None:
    run = evaluation(make_reports)
    worse = run.policy.model_copy(update={"length": 30.0, "finished": 0.5, "entropy": 0.01})
    found = " ".join(hints(run.model_copy(update={"policy": worse})))
    assert "9.0 to 30.0 tokens" in found and "97% to 50%" in found and "0.90 to 0.01 nats" in found


@pytest.mark.parametrize(
    ("sft", "policy", "words"),
    [
        (0.19, 0.6, ["81% of the answers of SFT"]),
        (0.19, 0.2, ["81% of the answers of SFT", "80% of the answers of the policy"]),
        (0.51, 0.55, []),
    ],
)
def test_answers_cut_at_their_limit_are_pointed_out_of_sft_too(
    make_reports: Callable[..., Path], sft: float, policy: float, words: list[str]
) -> None:
    """Also where training has mended it, or both are as bad: then few of the answers it was compared with were judged whole."""
    run = evaluation(make_reports)
    sides = {"sft": run.sft.model_copy(update={"finished": sft}), "policy": run.policy.model_copy(update={"finished": policy})}
    found = hints(run.model_copy(update=sides))
    assert len(found) == len(words) and all(
        f"{word} were cut at rl.max_new_tokens" in hint for word, hint in zip(words, found, strict=True)
    )


def rounds(metric: str, *values: float) -> list[TrainingRecord]:
    return [{"step": float(step), metric: value} for step, value in enumerate(values)]


@pytest.mark.parametrize(
    ("records", "hint"),
    [
        (rounds("hack_rate", *[0.0] * 30, 0.02, *[0.0] * 9), "Up to 2.0% of the impossible tests"),
        (rounds("hack_rate", *[0.0] * 29, 0.02, *[0.0] * 10), None),  # the eleventh round from the end
        (rounds("unsure", *[0.0] * 30, *[0.2] * 10), "about 20% of the answers"),
        (rounds("unsure", *[0.2] * 30, *[0.05] * 10), None),  # at the threshold, and the past
        (rounds("rubric/a/b/failure_rate", *[0.1] * 30, *[0.0] * 10), "8% of the scores of a/b were missing in training"),
        (rounds("rubric/a/b/failure_rate", *[0.0] * 30, *[0.1] * 10), "10% of the scores of a/b were missing in the last 10"),
        (rounds("rubric/a/b/failure_rate", *[0.05] * 40), None),
        (rounds("reward", *[0.5] * 40), None),
        (rounds("logp_mismatch/sampler", 0.03, 0.2, 0.03), "up to 0.20 nats a token apart"),
        (rounds("logp_mismatch/outside", 0.01, 0.06), "6% of them by 20% or more"),
        (rounds("logp_mismatch/outside", 0.05), None),
    ],
)
def test_training_tells_of_cheating_failing_judges_and_doubt(
    make_reports: Callable[..., Path], records: list[TrainingRecord], hint: str | None
) -> None:
    found = hints(evaluation(make_reports), records)
    assert (hint in found[0] and len(found) == 1) if hint else not found


def over_optimise(root: Path, policy: str) -> None:
    path = root / "reports" / "test" / policy / "metrics.json"
    evaluation = json.loads(path.read_text())
    evaluation["difference"] = {"gold": interval(-0.2, -0.1).model_dump(), "proxy": interval(0.2, 0.3).model_dump()}
    path.write_text(json.dumps(evaluation))


def test_an_over_optimised_policy_alarms_the_page_and_mlflow_and_a_healthy_one_does_not(make_reports: Callable[..., Path]) -> None:
    root = make_reports(["grape"], steps=12)
    run = write(root, ["grape"], [0, 1])
    assert run.tags == {"grape.alarms": "none"} and run.numbers["alarms"] == 0
    assert "No sign of a gamed reward" in Page(root).text
    over_optimise(root, "grape-1")
    run = write(root, ["grape"], [0, 1])
    assert run.tags == {"grape.alarms": "grape-1: The proxy reward rose while gold fell: the policy is gaming the reward."}
    assert run.numbers["alarms"] == 1
    text = Page(root).text
    assert "the policy is gaming the reward" in text and "No sign of a gamed reward" not in text
    assert "gaming the reward" in (root / "reports/report.md").read_text()


def test_the_tag_fits_and_ends_with_a_whole_line() -> None:
    found = [(f"grpo-{n}", "x" * 90) for n in range(200)]
    lines = alarms.text(found).splitlines()
    assert len("\n".join(lines)) < 8000 and len(lines) > 60
    assert lines[-1] == f"and {200 - (len(lines) - 1)} more" and all(line.endswith("x" * 90) for line in lines[:-1])
    assert alarms.text(found[:3]).splitlines() == [f"grpo-{n}: {'x' * 90}" for n in range(3)] and alarms.text([]) == "none"
