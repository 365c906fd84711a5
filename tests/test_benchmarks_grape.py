"""The experiments on GRAPE: the arithmetic that their docstrings promise, and that what is kept is what is shown."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from benchmarks import grape_bench as bench
from benchmarks import grape_confidence, grape_gaming, grape_scope, grape_unsure, grape_world, unsure_world
from grape.algorithms import grape
from grape.reward.critics.judge import Judge
from grape.reward.rubric import load_rubrics
from grape.types import Response, Rollouts, Scores

A = bench.prompts()[0]


def answers(*texts: str) -> list[Response]:
    return [Response(A, i, (5,), text, True) for i, text in enumerate(texts)]


def reward(given: Scores, params: grape.GRAPEParams, state: dict[str, float] | None = None) -> Tensor:
    """R of answers that are all of one group."""
    rows = given.score.shape[0]
    ones = torch.ones(rows, 1, dtype=torch.bool)
    rollouts = Rollouts(ones.long(), ones, ones.long(), ones, group=torch.zeros(rows, dtype=torch.long))
    return grape.weigh(given, rollouts, params, state or {})[0]


def test_which_answers_are_hedges() -> None:
    assert [bench.hedge(r) for r in answers("ab", "aa", "a", "abc", "a!", "")] == [1, 0, 0, 0, 0, 0]
    assert [bench.right(r) for r in answers("a", "b", "aa")] == [1, 0, 0]
    assert not bench.hedge(Response(A, 0, (5,), "ab", False))


def test_copies_of_a_prompt_are_sampled_apart() -> None:
    several = bench.prompts(4)
    assert len({p.id for p in several}) == 32 and {p.text for p in several} == set(bench.LETTERS)
    assert several[:8] == bench.prompts()


def test_a_hedge_is_nearly_right_by_its_own_confidence_alone() -> None:
    """Right, wrong, hedge: the numbers of grape_gaming's docstring."""
    given = grape_gaming.judge(1.0, 0)(answers("a", "b", "bc"))
    own = reward(given, grape_gaming.params("sample"))
    torch.testing.assert_close(own, torch.tensor([1.72 / 1.8, 0.6, 1.045 / 1.1]))
    usual = {grape.STATE + item: c for item, c in zip(grape_gaming.ITEMS, (1.0, 0.8), strict=True)}
    torch.testing.assert_close(reward(given, grape_gaming.params("ema"), usual), torch.tensor([1.72 / 1.8, 0.6, 1.36 / 1.8]))


def test_the_hidden_answer_is_the_letter_as_often_as_it_is_known() -> None:
    drawn = [grape_gaming.hidden("a", 0.7, 0, call) for call in range(2000)]
    assert abs(drawn.count("a") / 2000 - 0.7) < 0.04 and set(drawn) == set(bench.LETTERS)
    assert sum(grape_gaming.chance(r, 0.7) for r in answers(*bench.LETTERS)) == pytest.approx(1)
    assert grape_gaming.hidden("a", 1.0, 0, 0) == "a" and grape_gaming.chance(answers("ab")[0], 1.0) == 0


@pytest.mark.parametrize("name", list(grape_confidence.JUDGES))
def test_constant_confidence_alone_is_rubrics_as_rewards(name: str) -> None:
    """Exactly; with the same dice for both."""
    plain, ours = (
        reward(
            grape_confidence.judge(grape_confidence.JUDGES[name], 3.0, 0)(answers("a", "b", "ab")),
            grape_confidence.ALGORITHMS[algorithm][1],
        )
        for algorithm in ("RaR", "GRAPE")
    )
    assert torch.equal(plain, ours) == (name == "constant")


@pytest.mark.parametrize(
    ("critic", "in_a_pair", "usually"), [("unsure of hedges", "hedge", "right"), ("unsure of right", "right", "hedge")]
)
def test_a_pair_and_the_round_disagree(critic: str, in_a_pair: str, usually: str) -> None:
    """Of a right answer and a hedge the one wins by their own mean confidence, the other by that of most answers."""
    given = grape_scope.judge(critic, 0)(answers("a", "bc"))
    most = grape_scope.CRITICS[critic](answers("a")[0], 0.0)
    state = {grape.STATE + item: c for item, c in zip(grape_scope.ITEMS, (most, 1.0), strict=True)}

    def winner(scope: str) -> str:
        value = reward(given, grape.GRAPEParams.model_validate({"scope": scope}), state)
        return "right" if value[0] > value[1] else "hedge"

    assert (winner("group"), winner("ema")) == (in_a_pair, usually)


def test_all_critics_begin_in_favour_of_right_answers() -> None:
    """In the demonstrations, from which the start has learned: mean confidences above the 0.6 of `thorough`."""
    shown = [
        Response(p, 0, (5,), p.text if text == bench.RIGHT else text, True)
        for p in bench.prompts()
        for text in grape_scope.DEMONSTRATIONS
    ]
    draws = [(i + 0.5) / 100 for i in range(100)]
    means = [sum(critic(r, u) for r in shown for u in draws) / len(shown) / len(draws) for critic in grape_scope.CRITICS.values()]
    assert means == pytest.approx([0.79, 0.8, 0.67], abs=0.005)


def test_what_is_compared_was_run_and_judged_as_a_judge_can() -> None:
    for critic, algorithm in grape_unsure.SIDES:
        assert Judge.model_validate(unsure_world.CRITICS[critic]) and algorithm in grape_unsure.ALGORITHMS
    assert {side for pair in grape_unsure.FAMILY for side in pair} == set(grape_unsure.SIDES)


def test_without_the_contested_item_the_rubrics_are_those_of_the_default_world(root: Path) -> None:
    plain, unsure = (load_rubrics(root / place) for place in ("rubrics", "presets/unsure/rubrics"))
    assert {c: unsure_world.uncontested(rubric).items for c, rubric in unsure.items()} == {c: r.items for c, r in plain.items()}


def test_correlations_are_within_groups() -> None:
    a, b = torch.tensor([1.0, 0, 5, 6]), torch.tensor([1.0, 0, 0, 1])
    assert grape_unsure.within(a, b, 2) == pytest.approx(1) and grape_unsure.within(a, 1 - b, 2) == pytest.approx(-1)
    assert grape_unsure.within(a, torch.ones(4), 2) == 0


def test_intervals() -> None:
    assert bench.spread([1.0, 2.0, 3.0]) == "2.000 ± 2.484"  # t(2) = 4.303, over the root of 3
    assert bench.spread([1.0]) == "1.000 ± 0.000"


def test_what_is_kept_is_not_run_again(tmp_path: Path) -> None:
    ran: list[tuple[bench.Case, int]] = []

    def run(case: bench.Case, seed: int) -> bench.Curves:
        ran.append((case, seed))
        return {"right": [0.0, float(case[0]) + seed]}

    def ends(cases: Sequence[bench.Case], seeds: int) -> dict[bench.Case, list[float]]:
        given = bench.parser("x").parse_args(["--workers", "1", "--seeds", str(seeds), "--kept", str(tmp_path / "kept.json")])
        return {case: bench.column(runs, "right") for case, runs in bench.results(run, cases, given).items()}

    assert ends([("10",)], 1) == {("10",): [10]}
    assert ends([("20",), ("10",)], 2) == {("20",): [20, 21], ("10",): [10, 11]}
    assert ran == [(("10",), 0), (("20",), 0), (("20",), 1), (("10",), 1)]


def test_a_plot_is_the_same_bytes_twice(tmp_path: Path) -> None:
    runs: list[bench.Curves] = [{"right": [0.1, 0.5, 0.7], "hedges": [0.3, 0.2, 0.1]}] * 2
    results = {(known, scope): runs for known in grape_gaming.KNOWN for scope in grape_gaming.SCOPES}
    for name in ("one.png", "two.png"):
        given = bench.parser("x").parse_args(["--plot", str(tmp_path / "img" / name)])
        bench.publish(given, "", ("", ""), lambda: grape_gaming.figure(results))
    one, two = ((tmp_path / "img" / name).read_bytes() for name in ("one.png", "two.png"))
    assert one == two and one.startswith(b"\x89PNG")


def test_the_table_of_mending_has_what_its_runs_gained_by_it(tmp_path: Path) -> None:
    folder = tmp_path / "reports/train/rl"
    folder.mkdir(parents=True)
    policies = {}
    for number, name in enumerate(grape_world.MENDING):
        gains = [] if name == "grape" else [{"revision/gain": None}, *({"revision/gain": value} for value in (0.9, *[0.1] * 10))]
        for seed in (0, 1):
            lines = "".join(json.dumps({"reward": 0.5, **gain}) + "\n" for gain in gains or [{}])
            (folder / f"{name}-{seed}.jsonl").write_text(lines)
            gold = 0.5 + 0.1 * number * (1 + seed)
            row = {"algorithm": name, "seed": seed, "gold": gold, "difference": {"gold": gold - 0.25}}
            policies[f"{name}-{seed}"] = row | {"proxy": 0.6, "kl_sequence": 1.0, "length": 12.0}
    costs = {name: {"seconds": 30.0, "memory_mb": 500.0} for name in grape_world.MENDING}
    metrics = {"sft": {"gold": 0.25}, "policies": policies, "algorithms": costs}
    rows = grape_world.table(tmp_path, metrics, grape_world.MENDING).splitlines()
    assert rows[2].startswith("| GRAPE | 0.500 ±") and "|  |  | 0.600 |" in rows[2]
    assert "| +0.150 [-0.485, +0.785] | +0.100 | 0.600 |" in rows[3], "the gain is the mean over the last ten rounds"
    assert len(rows) == 2 + 4 + 2 and "revises, by the rubric, last 10 rounds" in rows[-1]
