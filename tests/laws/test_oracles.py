"""Numbers that must come out, worked by hand or from the papers."""

from __future__ import annotations

import math

import pytest
import torch

from grape.algorithms import dpo, grpo, ppo, reinforce, rejection, reward_model
from grape.maths.advantage import (
    constant_groups,
    explained_variance,
    generalized_advantage,
    group_advantage,
    group_std,
    leave_one_out_advantage,
    weighted_reward,
    whiten,
)
from grape.maths.kl import kl_estimate, kl_exact
from grape.maths.linear import conjugate_gradient, line_search
from grape.maths.masked import aggregation_weights
from grape.maths.surrogate import clipped_shares, clipped_surrogate, importance_ratio, sequence_ratio
from grape.types import Batch, Outputs, Rollouts, Scores


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
    torch.testing.assert_close(leave_one_out_advantage(reward, known, group), torch.tensor([2 / 3, -2 / 3, -2 / 3, 2 / 3, 0, 0]))
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


def _rollouts(rows: int, width: int) -> Rollouts:
    ones = torch.ones(rows, width, dtype=torch.bool)
    return Rollouts(
        torch.zeros(rows, 1, dtype=torch.long),
        ones[:, :1],
        torch.zeros(rows, width, dtype=torch.long),
        ones,
        group=torch.zeros(rows, dtype=torch.long),
        finished=torch.ones(rows, dtype=torch.bool),
    )


def _batch(rows: int, width: int) -> Batch:
    return Batch.of(_rollouts(rows, width))


def test_grpo_advantage_is_the_papers() -> None:
    reward = torch.tensor([[1.0], [0.0], [0.0], [1.0]])
    ones = torch.ones(4, 1)
    given = grpo.credit(Scores(("a/b",), reward, ones, ones.bool(), ones), _rollouts(4, 2), grpo.GRPOParams(), {})
    expected = (reward - 0.5) / (reward.std() + 1e-4)
    torch.testing.assert_close(given.advantage, expected.expand(4, 2))


def test_grpo_gives_equal_rewards_no_advantage_even_with_rounding_noise() -> None:
    reward = torch.tensor([[0.3], [0.1 + 0.2], [0.3 + 1e-8]])
    ones = torch.ones(3, 1)
    given = grpo.credit(Scores(("a/b",), reward, ones, ones.bool(), ones), _rollouts(3, 2), grpo.GRPOParams(), {})
    assert given.advantage.abs().max() == 0


def test_the_reward_model_starts_at_ln_2() -> None:
    loss = reward_model.loss(Outputs(score=torch.zeros(4)), _batch(4, 1), reward_model.RewardModelParams())
    torch.testing.assert_close(loss.value, torch.full((2,), math.log(2)))


def test_the_reward_models_gradient() -> None:
    score = torch.tensor([1.0, 0.0], requires_grad=True)
    reward_model.loss(Outputs(score=score), _batch(2, 1), reward_model.RewardModelParams(centring=0.0)).value.sum().backward()
    sigma = 1 / (1 + math.exp(-1))
    assert score.grad is not None
    torch.testing.assert_close(score.grad, torch.tensor([-(1 - sigma), 1 - sigma]))


def test_scores_refuse_nan() -> None:
    ones = torch.ones(1, 1)
    with pytest.raises(ValueError, match="NaN"):
        Scores(("a/b",), ones * torch.nan, ones, ones.bool(), ones)


CHOSEN, REJECTED = torch.tensor([-0.5, -10.0, -1.0]), torch.tensor([-0.1, -30.0, -21.0])
REF_CHOSEN, REF_REJECTED = torch.tensor([-0.5, -10.1, -0.1]), torch.tensor([-0.1, -20.1, -0.1])


def _pairs(chosen: torch.Tensor, rejected: torch.Tensor) -> torch.Tensor:
    """(2N, 1): chosen in even rows, rejected in odd ones."""
    return torch.stack([chosen, rejected], 1).reshape(-1, 1)


def test_dpos_oracle() -> None:
    batch = _batch(6, 1).with_(logp_ref=_pairs(REF_CHOSEN, REF_REJECTED), unit=2)
    outputs = Outputs(logp=_pairs(CHOSEN, REJECTED))
    loss = dpo.loss(outputs, batch, dpo.DPOParams())
    torch.testing.assert_close(loss.value, torch.tensor([0.693147, 0.313262, 0.126928]), rtol=0, atol=1e-5)
    start = dpo.loss(Outputs(logp=batch.logp_ref), batch, dpo.DPOParams())
    torch.testing.assert_close(start.value, torch.full((3,), math.log(2)))
    assert float(start.metrics["margin"][0]) == 0


def test_dpos_gradient_weight() -> None:
    """-beta sigma(-h) for the chosen answer, the opposite for the rejected one."""
    logp = _pairs(CHOSEN, REJECTED).requires_grad_()
    batch = _batch(6, 1).with_(logp_ref=_pairs(REF_CHOSEN, REF_REJECTED), unit=2)
    dpo.loss(Outputs(logp=logp), batch, dpo.DPOParams(beta=0.3)).value.sum().backward()
    h = 0.3 * ((CHOSEN - REF_CHOSEN) - (REJECTED - REF_REJECTED))
    assert logp.grad is not None
    torch.testing.assert_close(logp.grad[0::2, 0], -0.3 * torch.sigmoid(-h))
    torch.testing.assert_close(logp.grad[1::2, 0], 0.3 * torch.sigmoid(-h))


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        ({"loss": "ipo", "beta": 0.5}, (0.6 - 1.0) ** 2),
        ({"loss": "hinge", "beta": 0.5}, 1 - 0.3),
        ({"label_smoothing": 0.2, "beta": 0.5}, 0.8 * math.log1p(math.exp(-0.3)) + 0.2 * math.log1p(math.exp(0.3))),
        ({"sft": 2.0, "beta": 0.5}, math.log1p(math.exp(-0.3)) + 2.0 * 1.2),
    ],
)
def test_dpo_variants(params: dict[str, object], expected: float) -> None:
    """One pair with margin 0.6 nats, chosen log-probability -1.2."""
    batch = _batch(2, 1).with_(logp_ref=torch.tensor([[-1.5], [-2.0]]), unit=2)
    outputs = Outputs(logp=torch.tensor([[-1.2], [-2.3]]))
    loss = dpo.loss(outputs, batch, dpo.DPOParams.model_validate(params))
    assert float(loss.value) == pytest.approx(expected, rel=1e-5)


def test_dpo_sums_over_tokens_unless_told_otherwise() -> None:
    ones = torch.ones(2, 3, dtype=torch.bool)
    mask = torch.tensor([[True, True, True], [True, False, False]])
    batch = Batch(torch.zeros(2, 1).long(), ones[:, :1], torch.zeros(2, 3).long(), mask, unit=2, logp_ref=torch.zeros(2, 3))
    outputs = Outputs(logp=torch.tensor([[-1.0, -1.0, -1.0], [-2.0, 0.0, 0.0]]))
    margins = [
        float(dpo.loss(outputs, batch, dpo.DPOParams(beta=1.0, length_normalised=flag)).metrics["margin"][0])
        for flag in (False, True)
    ]
    assert margins == pytest.approx([-1.0, 1.0])


def test_gae_at_its_ends() -> None:
    """lambda = 1: return - V; lambda = 0: the one-step error. A truncated row counts on with its bootstrap value."""
    mask = torch.tensor([[True, True, True], [True, True, False]])
    reward = torch.tensor([[0.1, 0.2, 1.0], [0.0, 2.0, 0.0]])
    value = torch.tensor([[0.5, 0.4, 0.3], [1.0, 0.5, 0.0]])
    bootstrap = torch.tensor([0.0, 0.7])
    advantage, returns = generalized_advantage(reward, value, bootstrap, mask, 1.0)
    expected = torch.tensor([[1.3, 1.2, 1.0], [2.7, 2.7, 0.0]])
    torch.testing.assert_close(returns, expected)
    torch.testing.assert_close(advantage, (expected - value) * mask)
    advantage, returns = generalized_advantage(reward, value, bootstrap, mask, 0.0)
    torch.testing.assert_close(advantage, torch.tensor([[0.0, 0.1, 0.7], [-0.5, 2.2, 0.0]]))
    torch.testing.assert_close(returns, (advantage + value) * mask)


def test_gae_by_hand() -> None:
    ones = torch.ones(1, 2, dtype=torch.bool)
    advantage, _ = generalized_advantage(torch.tensor([[0.0, 1.0]]), torch.tensor([[0.2, 0.6]]), torch.zeros(1), ones, 0.5)
    torch.testing.assert_close(advantage, torch.tensor([[0.4 + 0.5 * 0.4, 0.4]]))


def test_whitening_reads_the_mask_alone() -> None:
    x, mask = torch.tensor([[1.0, 2.0, 3.0, 99.0]]), torch.tensor([[True, True, True, False]])
    torch.testing.assert_close(whiten(x, mask), torch.tensor([[-1.0, 0.0, 1.0, 0.0]]))


def test_explained_variance() -> None:
    returns, mask = torch.tensor([[1.0, 2.0, 3.0, 9.0]]), torch.tensor([[True, True, True, False]])
    assert explained_variance(returns, returns, mask) == 1
    assert explained_variance(torch.full_like(returns, 2.0), returns, mask) == pytest.approx(0)
    assert explained_variance(-returns, returns, mask) == pytest.approx(-3)


def test_the_value_loss_takes_the_worse_of_both() -> None:
    batch = _batch(1, 3).with_(returns=torch.tensor([[1.0, 1.0, 1.0]]), value_old=torch.tensor([[0.0, 0.0, 0.9]]))
    loss = ppo.value_loss(torch.tensor([[0.5, 0.1, 1.0]]), batch, 0.2)
    # 0.5 is cut to 0.2, further from 1; 0.1 and 1.0 lie within reach of the old value.
    torch.testing.assert_close(loss, 0.5 * torch.tensor([[0.64, 0.81, 0.0]]))


def test_dual_clip_bounds_the_loss_of_a_likely_bad_token() -> None:
    ratio, advantage = torch.tensor([10.0, 10.0, 2.0]), torch.tensor([-1.0, 1.0, -1.0])
    torch.testing.assert_close(clipped_surrogate(ratio, advantage, 0.2, 0.2, 3.0), torch.tensor([-3.0, 1.2, -2.0]))


def _ppo_round() -> tuple[Scores, Rollouts]:
    """Two responses worth 0.8, one of them cut off where the value model expects 0.3 more."""
    ones = torch.ones(2, 1)
    batch = _rollouts(2, 2).with_(
        finished=torch.tensor([True, False]), value_old=torch.zeros(2, 2), bootstrap=torch.tensor([5.0, 0.3])
    )
    return Scores(("a/b",), 0.8 * ones, ones, ones.bool(), ones), batch


def test_ppos_truncation_handling() -> None:
    scores, batch = _ppo_round()
    common = {"whiten": False, "lam": 1.0, "value_warmup": 0}
    returns = {
        how: ppo.credit(scores, batch, ppo.PPOParams.model_validate({**common, "truncated": how}), {}).returns
        for how in ("keep", "penalty", "bootstrap")
    }
    for how, last in (("keep", 0.8), ("penalty", 0.3), ("bootstrap", 0.3)):
        torch.testing.assert_close(returns[how], torch.tensor([[0.8, 0.8], [last, last]]))


def test_whitening_changes_the_advantage_and_not_what_the_value_model_learns() -> None:
    """Returns are in units of the reward; taken from the whitened advantage they would have none."""
    scores, batch = _ppo_round()
    batch = batch.with_(value_old=torch.tensor([[0.5, 0.1], [0.2, 0.7]]))
    credited = {on: ppo.credit(scores, batch, ppo.PPOParams(whiten=on, lam=0.9, value_warmup=0), {}) for on in (True, False)}
    first, second = credited[True], credited[False]
    assert first.returns is not None and second.returns is not None
    torch.testing.assert_close(first.returns, second.returns)
    torch.testing.assert_close(second.returns, (second.advantage + batch.value_old) * batch.mask)
    assert not torch.allclose(first.advantage, second.advantage)
    torch.testing.assert_close(first.advantage[batch.mask].mean(), torch.tensor(0.0), atol=1e-6, rtol=0)


def test_ppos_penalty_adapts_to_its_target() -> None:
    params = ppo.PPOParams(objective="penalty", penalty_target=0.01, value_warmup=2)
    assert ppo.adapted(1.0, {"round": 2, "last/approx_kl": 0.0}, params) == 1.0
    assert ppo.adapted(1.0, {"round": 5, "last/approx_kl": 0.001}, params) == 0.5
    assert ppo.adapted(1.0, {"round": 5, "last/approx_kl": 0.02}, params) == 2.0
    assert ppo.adapted(1.0, {"round": 5, "last/approx_kl": 0.011}, params) == 1.0


def test_the_kl_coefficient_adapts_to_its_target() -> None:
    """KL of 4 nats against a target of 2: error clipped to 0.2, beta * (1 + 0.2 * 2 / 10)."""
    ones = torch.ones(2, 1)
    scores = Scores(("a/b",), ones, ones, ones.bool(), ones)
    batch = _rollouts(2, 2).with_(logp_old=torch.full((2, 2), -1.0), logp_ref=torch.full((2, 2), -3.0))
    params = reinforce.ReinforceParams(beta=0.5, kl_target=2.0, kl_horizon=10, baseline="none")
    given = reinforce.credit(scores, batch, params, {})
    assert given.state["beta"] == pytest.approx(0.52)
    torch.testing.assert_close(given.advantage, torch.full((2, 2), 1.0 - 0.5 * 4.0))


def test_the_sequence_ratio_is_the_geometric_mean() -> None:
    logp, old = torch.tensor([[0.0, -1.0, -9.0]]), torch.tensor([[-0.5, -0.7, 0.0]])
    mask = torch.tensor([[True, True, False]])
    torch.testing.assert_close(sequence_ratio(logp, old, mask), torch.full((1, 3), math.exp(0.1)))


def test_grpos_overlong_handling() -> None:
    """Lengths 2, 6 and 8 of at most 8 with a buffer of 4: nothing, half, all."""
    mask = torch.arange(8) < torch.tensor([[2], [6], [8]])
    ones = torch.ones(3, 1)
    batch = Rollouts(
        torch.zeros(3, 1).long(),
        mask[:, :1],
        torch.zeros(3, 8).long(),
        mask,
        group=torch.zeros(3).long(),
        finished=torch.tensor([True, True, False]),
        limit=8,
    )
    assert grpo.overlong_penalty(batch, 8, 4).tolist() == [0.0, -0.5, -1.0]
    scores = Scores(("a/b",), torch.tensor([[0.0], [1.0], [0.5]]), ones, ones.bool(), ones)
    masked = grpo.credit(scores, batch, grpo.GRPOParams(overlong="mask"), {})
    assert masked.keep.tolist() == [True, True, False]


def test_grpo_drops_groups_that_teach_nothing() -> None:
    ones = torch.ones(4, 1)
    scores = Scores(("a/b",), torch.tensor([[0.5], [0.5], [0.0], [1.0]]), ones, ones.bool(), ones)
    batch = _rollouts(4, 2).with_(group=torch.tensor([0, 0, 1, 1]))
    assert grpo.credit(scores, batch, grpo.GRPOParams(), {}).keep.all()
    assert grpo.credit(scores, batch, grpo.GRPOParams(zero_variance="drop"), {}).keep.tolist() == [False, False, True, True]


@pytest.mark.parametrize(
    ("params", "kept"),
    [
        ({}, [3]),
        ({"keep": 2}, [2, 3]),
        ({"keep": 4, "threshold": 0.95}, [3]),
        ({"keep": 4, "above_mean": False}, [0, 2, 3]),
        ({"keep": 4, "above_mean": False, "dedupe": False}, [0, 1, 2, 3]),
        ({"threshold": 2.0}, []),
    ],
)
def test_what_rejection_keeps(params: dict[str, object], kept: list[int]) -> None:
    """Rewards 0.1, 0.1, 0.9, 1.0; the first two are the same answer."""
    ones = torch.ones(4, 1)
    batch = _rollouts(4, 2).with_(response=torch.tensor([[1, 2], [1, 2], [3, 4], [5, 6]]))
    scores = Scores(("a/b",), torch.tensor([[0.1], [0.1], [0.9], [1.0]]), ones, ones.bool(), ones)
    given = rejection.credit(scores, batch, rejection.RejectionParams.model_validate(params), {})
    assert given.keep.nonzero().squeeze(1).tolist() == kept


def test_the_reward_models_margin() -> None:
    batch = _batch(2, 1).with_(margin=torch.tensor([0.5, 0.5]))
    params = reward_model.RewardModelParams(margin=2.0, centring=0.0)
    loss = reward_model.loss(Outputs(score=torch.tensor([1.0, 0.0])), batch, params)
    torch.testing.assert_close(loss.value, torch.tensor([math.log(2)]))


def test_conjugate_gradient_solves_what_it_should() -> None:
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(12, 12, generator=generator, dtype=torch.float64)
    h, g = root @ root.T + 0.1 * torch.eye(12), torch.randn(12, generator=generator, dtype=torch.float64)
    found = conjugate_gradient(lambda v: h @ v, g, 50, 1e-20)
    torch.testing.assert_close(found.u, torch.linalg.solve(h, g), rtol=1e-6, atol=1e-8)
    assert found.residual < 1e-8 and not found.negative
    assert found.curvature == pytest.approx(float(found.u @ h @ found.u))
    assert conjugate_gradient(lambda v: 1e-8 * v, 1e-8 * g, 5).iterations == 1  # a small g is no reason to stop


def test_conjugate_gradient_stops_at_negative_curvature() -> None:
    h = torch.diag(torch.tensor([1.0, -1.0]))
    found = conjugate_gradient(lambda v: h @ v, torch.tensor([1.0, 2.0]), 10)
    assert found.negative and found.u.tolist() == [1.0, 2.0] and found.curvature < 0


def test_line_search_goes_back_until_accepted() -> None:
    assert line_search(lambda f: f < 0.6, 0.8, 10) == (pytest.approx(0.8**3), 3)
    assert line_search(lambda f: False, 0.5, 4) == (0.0, 4)
