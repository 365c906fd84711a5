"""Numbers that must come out, worked by hand or from the papers."""

from __future__ import annotations

import math

import pytest
import torch

from grape.algorithms import grpo, reward_model
from grape.maths.advantage import (
    constant_groups,
    group_advantage,
    group_std,
    leave_one_out_advantage,
    weighted_reward,
)
from grape.maths.kl import kl_estimate, kl_exact
from grape.maths.masked import aggregation_weights
from grape.maths.surrogate import clipped_shares, clipped_surrogate, importance_ratio
from grape.types import Batch, Outputs, Scores


def test_kl_estimators() -> None:
    logp, ref = torch.tensor([-1.0, -1.0, -1.0]), torch.tensor([0.0, -15.0, -30.0])
    assert kl_estimate(logp, ref, "k1").tolist() == [-1, 14, 29]
    assert kl_estimate(logp, ref, "k2").tolist() == [0.5, 98, 420.5]
    torch.testing.assert_close(kl_estimate(logp, ref, "k3")[:2], torch.tensor([math.e - 2, 13.0]))


def test_k3_does_not_overflow_far_from_the_reference() -> None:
    logp = torch.tensor([-500.0], requires_grad=True)
    kl_estimate(logp, torch.tensor([-1.0]), "k3").sum().backward()
    assert logp.grad is not None and torch.isfinite(logp.grad).all()


def test_exact_kl() -> None:
    p, q = torch.tensor([0.7, 0.2, 0.1]).log(), torch.tensor([0.2, 0.3, 0.5]).log()
    assert float(kl_exact(p, q)) == pytest.approx(0.635, abs=5e-4)
    assert float(kl_exact(p, p)) == pytest.approx(0, abs=1e-7)


def test_clipped_surrogate_at_ratio_e() -> None:
    ratio, advantage = torch.tensor([math.e, math.e, 0.5, 0.5]), torch.tensor([1.0, -1.0, 1.0, -1.0])
    torch.testing.assert_close(clipped_surrogate(ratio, advantage, 0.2, 0.2), torch.tensor([1.2, -math.e, 0.5, -0.8]))
    low, high = clipped_shares(ratio, advantage, 0.2, 0.2)
    assert low.tolist() == [0, 0, 0, 1] and high.tolist() == [1, 0, 0, 0]


def test_the_gradient_vanishes_exactly_where_the_clip_binds() -> None:
    logp = torch.log(torch.tensor([1.3, 0.7, 1.3, 0.7, 1.1])).requires_grad_()
    advantage = torch.tensor([1.0, -1.0, -1.0, 1.0, 1.0])
    clipped_surrogate(importance_ratio(logp, torch.zeros(5)), advantage, 0.2, 0.2).sum().backward()
    assert logp.grad is not None
    assert [g != 0 for g in logp.grad.tolist()] == [False, False, True, True, True]


def test_group_statistics() -> None:
    reward, group = torch.tensor([1.0, 0.0, 0.0, 1.0, 5.0, 5.0]), torch.tensor([0, 0, 0, 0, 1, 1])
    known = torch.ones(6, dtype=torch.bool)
    torch.testing.assert_close(group_advantage(reward, known, group), torch.tensor([0.5, -0.5, -0.5, 0.5, 0, 0]))
    torch.testing.assert_close(
        leave_one_out_advantage(reward, known, group), torch.tensor([2 / 3, -2 / 3, -2 / 3, 2 / 3, 0, 0])
    )
    torch.testing.assert_close(group_std(reward, known, group)[0], reward[:4].std())
    assert constant_groups(reward, known, group).tolist() == [False] * 4 + [True] * 2


def test_an_unknown_reward_moves_nobody() -> None:
    """The row without a reward has advantage 0, and the others are compared among themselves."""
    reward, group = torch.tensor([1.0, 0.0, 99.0]), torch.tensor([0, 0, 0])
    known = torch.tensor([True, True, False])
    assert group_advantage(reward, known, group).tolist() == [0.5, -0.5, 0.0]
    assert leave_one_out_advantage(reward, known, group).tolist() == [1.0, -1.0, 0.0]


def test_a_missing_item_score_is_imputed_and_an_item_nobody_has_is_dropped() -> None:
    score = torch.tensor([[1.0, 0.2, 9.0], [0.0, 0.8, 9.0], [1.0, 9.0, 9.0]])
    valid = torch.tensor([[True, True, False], [True, True, False], [True, False, False]])
    weight = torch.tensor([[3.0, 1.0, 5.0]]).expand(3, 3)
    reward, known = weighted_reward(score, valid, weight, torch.zeros(3, dtype=torch.long))
    torch.testing.assert_close(reward, torch.tensor([3.2 / 4, 0.8 / 4, 3.5 / 4]))
    assert known.all()
    nothing, unknown = weighted_reward(score, torch.zeros_like(valid), weight, torch.zeros(3, dtype=torch.long))
    assert nothing.tolist() == [0, 0, 0] and not unknown.any()


def test_a_failed_judge_call_never_changes_the_order_of_the_others() -> None:
    score = torch.tensor([[0.9, 0.1], [0.5, 0.9], [0.2, 0.4]])
    weight, group = torch.ones(3, 2), torch.zeros(3, dtype=torch.long)
    full = weighted_reward(score, torch.ones(3, 2, dtype=torch.bool), weight, group)[0]
    failed = torch.tensor([[True, True], [True, True], [True, False]])
    some = weighted_reward(score, failed, weight, group)[0]
    assert (full[0] < full[1]) == (some[0] < some[1])
    torch.testing.assert_close(full[:2], some[:2])


def test_aggregations() -> None:
    mask = torch.tensor([[1, 1, 1, 1], [1, 0, 0, 0], [0, 0, 0, 0]]).bool()
    value = torch.tensor([[1.0, 1, 1, 1], [3, 0, 0, 0], [7, 7, 7, 7]])

    def mean(how: str) -> float:
        weight, norm = aggregation_weights(mask, how, 10)  # type: ignore[arg-type]
        return float((value * weight).sum() / norm.sum())

    assert mean("token_mean") == pytest.approx(7 / 5)
    assert mean("sequence_mean") == pytest.approx((1 + 3) / 2)
    assert mean("constant") == pytest.approx(7 / 20)


def _batch(rows: int, width: int) -> Batch:
    ones = torch.ones(rows, width, dtype=torch.bool)
    return Batch(
        torch.zeros(rows, 1, dtype=torch.long),
        ones[:, :1],
        torch.zeros(rows, width, dtype=torch.long),
        ones,
        group=torch.zeros(rows, dtype=torch.long),
    )


def test_grpo_advantage_is_the_papers() -> None:
    reward = torch.tensor([[1.0], [0.0], [0.0], [1.0]])
    ones = torch.ones(4, 1)
    given = grpo.credit(Scores(("a/b",), reward, ones, ones.bool(), ones), _batch(4, 2), grpo.GRPOParams(), {})
    expected = (reward - 0.5) / (reward.std() + 1e-4)
    torch.testing.assert_close(given.batch.advantage, expected.expand(4, 2))


def test_grpo_gives_equal_rewards_no_advantage_even_with_rounding_noise() -> None:
    reward = torch.tensor([[0.3], [0.1 + 0.2], [0.3 + 1e-8]])
    ones = torch.ones(3, 1)
    given = grpo.credit(Scores(("a/b",), reward, ones, ones.bool(), ones), _batch(3, 2), grpo.GRPOParams(), {})
    assert given.batch.advantage is not None and given.batch.advantage.abs().max() == 0


def test_the_reward_model_starts_at_ln_2() -> None:
    loss = reward_model.loss(Outputs(score=torch.zeros(4)), _batch(4, 1), reward_model.RewardModelParams())
    torch.testing.assert_close(loss.value, torch.full((2,), math.log(2)))


def test_the_reward_models_gradient() -> None:
    score = torch.tensor([1.0, 0.0], requires_grad=True)
    reward_model.loss(
        Outputs(score=score), _batch(2, 1), reward_model.RewardModelParams(centring=0.0)
    ).value.sum().backward()
    sigma = 1 / (1 + math.exp(-1))
    assert score.grad is not None
    torch.testing.assert_close(score.grad, torch.tensor([-(1 - sigma), 1 - sigma]))


def test_scores_refuse_nan() -> None:
    ones = torch.ones(1, 1)
    with pytest.raises(ValueError, match="NaN"):
        Scores(("a/b",), ones * torch.nan, ones, ones.bool(), ones)
