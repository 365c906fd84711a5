"""Budgets of samples, tokens, seconds and updates: where a run ends, killed and resumed or not, and that all it took is counted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from grape.algorithms import grpo, trpo
from grape.budget import COUNTS, Budget, used
from grape.training.adam import AdamParams
from grape.training.assemble import Learner, assemble
from grape.training.checkpoint import Checkpoints
from grape.training.sampler import Sampling
from grape.types import Response, Scores
from tests import tiny
from tests.training.test_training import Killed, killer, score, silent, weights, without_time

PROMPTS = [tiny.prompt(text) for text in ("a", "b", "c", "ab")]


def learner(algorithm: Any = grpo, **knobs: Any) -> Learner:
    model, params = tiny.model(), algorithm.ALGORITHM.params(**knobs)
    return assemble(algorithm.ALGORITHM, params, model, AdamParams(1e-3, 4))


def run(learner: Learner, budget: Budget | None, judge: Any = score, most: int = 20, **more: Any) -> list[dict[str, float]]:
    """Rounds of 4 prompts x 4 answers."""
    source = learner.rollouts(tiny.chat(), PROMPTS, judge, Sampling(4, 4, 1.0, 8, 64, 4096, 0.2), ("t",))
    return learner.train(source, most, more.get("track", silent), more.get("checkpoints"), ("t",), budget)


@pytest.mark.parametrize("amount", [1, 32, 33])
def test_a_run_ends_with_the_round_that_uses_its_samples_up(amount: int) -> None:
    history = run(learner(), Budget("samples", amount))
    assert [row["num_samples"] for row in history] == [16.0] * (amount // 16 + (amount % 16 > 0))


def test_each_unit_ends_a_run_where_it_is_used_up_and_not_before() -> None:
    straight = run(learner(epochs=2, mini_batches=2), None, most=6)
    assert [row["num_updates"] for row in straight] == [4.0] * 6, "two passes of two"
    for unit in ("tokens", "updates"):
        amount = used(straight[:3], unit)
        for enough, rounds in ((amount, 3), (amount + 0.5, 4), (amount - 0.5, 3)):
            history = run(learner(epochs=2, mini_batches=2), Budget(unit, enough))
            assert without_time(history) == without_time(straight[:rounds]), "and is otherwise the run it was"
            assert Budget(unit, enough).spent(history) and not Budget(unit, enough).spent(history[:-1])
    history = run(learner(), Budget("seconds", 1e-9))
    assert len(history) == 1 and used(history, "seconds") == history[0]["step_time"]


def test_a_natural_gradient_is_one_update_a_round() -> None:
    assert [row["num_updates"] for row in run(learner(trpo), Budget("updates", 2))] == [1.0, 1.0]


def test_a_killed_run_ends_where_a_straight_one_does(tmp_path: Path) -> None:
    tokens = used(run(learner(), None, most=5), "tokens")
    straight, kept = learner(), Checkpoints(tmp_path, {"it": "same"}, 2)
    history = run(straight, Budget("tokens", tokens))
    with pytest.raises(Killed):
        run(learner(), Budget("tokens", tokens), track=killer(4), checkpoints=kept)
    resumed = learner()
    assert without_time(run(resumed, Budget("tokens", tokens), checkpoints=kept)) == without_time(history) and len(history) == 5
    assert torch.equal(weights(straight.policy), weights(resumed.policy))
    assert len(run(learner(), Budget("tokens", tokens / 5), checkpoints=kept)) == 4, "what a checkpoint has is not taken back"


def test_answers_that_are_drawn_again_were_paid_for() -> None:
    def flat(responses: list[Response]) -> Scores:
        ones = torch.ones(len(responses), 1)
        return Scores(("any/it",), ones, ones, ones.bool(), ones)

    once, thrice = (run(learner(resample=again), None, flat, most=1)[0] for again in (0, 2))
    assert (once["num_samples"], thrice["num_samples"]) == (16.0, 48.0) and thrice["groups_drawn_again"] == 8.0
    assert thrice["num_tokens"] > 2 * once["num_tokens"]


def test_counts_are_of_what_is_counted() -> None:
    rows = [{"num_samples": 2.0, "num_tokens": 10.0, "step_time": 0.5, "num_updates": 1.0}, {"num_samples": 3.0}]
    assert {unit: used(rows, unit) for unit in COUNTS} == {"samples": 5.0, "tokens": 10.0, "seconds": 0.5, "updates": 1.0}
    assert Budget("tokens", 40).share(rows) == 0.25 and Budget("tokens", 4).share(rows) == 1.0
