"""GRAPE's testable properties: what the confidence does, and what it must not do."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from grape.algorithms import grape, grpo
from grape.maths.advantage import weighted_reward
from grape.types import Outputs, Rollouts, Scores
from tests import tiny
from tests.laws.test_policy_gradients import RESPONSES, Tabular, rollouts

ITEMS = ("c/a", "c/b", "c/c")


def random(seed: int, rows: int, items: int) -> Tensor:
    return torch.rand(rows, items, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def scores(s: Tensor, c: Tensor | None = None, w: Tensor | None = None, valid: Tensor | None = None) -> Scores:
    ones = torch.ones_like(s)
    items = ITEMS[: s.shape[1]]
    return Scores(items, s, ones if c is None else c, ones.bool() if valid is None else valid, ones if w is None else w * ones)


def batch(rows: int, group: list[int] | None = None, width: int = 2) -> Rollouts:
    ones = torch.ones(rows, width, dtype=torch.bool)
    index = torch.tensor(group) if group else torch.zeros(rows, dtype=torch.long)
    return Rollouts(ones[:, :1].long(), ones[:, :1], ones.long(), ones, group=index, finished=torch.ones(rows, dtype=torch.bool))


def params(**knobs: Any) -> grape.GRAPEParams:
    return grape.GRAPEParams.model_validate(knobs)


def advantage(given: Scores, rows: Rollouts | None = None, state: dict[str, float] | None = None, **knobs: Any) -> Tensor:
    rows = rows or batch(given.score.shape[0])
    return grape.credit(given, rows, params(**knobs), state or {}).advantage[:, 0]


def reward(given: Scores, **knobs: Any) -> Tensor:
    return grape.weigh(given, batch(given.score.shape[0]), params(**knobs), {})[0]


S, C, W = random(0, 5, 3), random(1, 5, 3), torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64)


def test_the_reward_is_the_formula() -> None:
    cbar = C.mean(0)
    expected = (S * W * cbar).sum(1) / (W * cbar).sum()
    torch.testing.assert_close(reward(scores(S, C, W)), expected)
    torch.testing.assert_close(advantage(scores(S, C, W)), expected - expected.mean())
    torch.testing.assert_close(reward(scores(S, C, W), norm="weight"), (S * W * cbar).sum(1) / W.sum())
    torch.testing.assert_close(reward(scores(S, C, W), norm="none"), (S * W * cbar).sum(1))


def test_zero_confidence_is_no_influence() -> None:
    unsure = C.clone()
    unsure[:, 1] = 0
    other = S.clone()
    other[:, 1] = random(9, 5, 1)[:, 0]
    torch.testing.assert_close(reward(scores(S, unsure, W)), reward(scores(other, unsure, W)))
    kept = [0, 2]
    without = scores(S[:, kept], unsure[:, kept], W[kept])
    torch.testing.assert_close(reward(scores(S, unsure, W)), reward(without))
    nobody = grape.credit(scores(S, torch.zeros_like(C), W), batch(5), params(), {})
    assert not nobody.keep.any() and nobody.metrics["unsure"][0] == 5


@pytest.mark.parametrize("confidence", [1.0, 0.3])
def test_one_item_is_grpo(confidence: float) -> None:
    """Advantage and loss, on- and off-policy, KL included; the confidence cancels."""
    given = scores(S[:, :1], torch.full((5, 1), confidence, dtype=torch.float64), torch.tensor([3.0]))
    knobs = {"advantage": "mean_std", "aggregation": "grpo", "beta": 0.04, "kl": "loss_k3"}
    ours, theirs = params(**knobs), grpo.GRPOParams(beta=0.04)
    rows = batch(5).with_(logp_old=-random(2, 5, 2), logp_ref=-random(3, 5, 2))
    a, b = (tiny.credited(m.credit(given, rows, p, {}), rows) for m, p in ((grape, ours), (grpo, theirs)))
    torch.testing.assert_close(a.advantage, b.advantage)
    outputs = Outputs(logp=-random(4, 5, 2) * 2, entropy=torch.zeros(5, 2))
    one, two = grape.loss(outputs, a, ours), grpo.loss(outputs, b, theirs)
    torch.testing.assert_close(one.value, two.value)
    torch.testing.assert_close(one.weight, two.weight)
    torch.testing.assert_close(one.norm, two.norm)


def test_constant_confidence_is_rubrics_as_rewards() -> None:
    """Exactly, for any constant: no number of the reward changes."""
    rar, _ = weighted_reward(S, torch.ones(5, 3, dtype=torch.bool), W * torch.ones(5, 3), torch.zeros(5, dtype=torch.long))
    for constant in (1.0, 0.25):
        assert torch.equal(reward(scores(S, torch.full_like(C, constant), W)), rar)
    torch.testing.assert_close(reward(scores(S, C, W), exponent=0.0), rar)


def test_dr_grpo_is_a_special_case() -> None:
    given, rows = scores(S[:, :1]), batch(5).with_(limit=7)
    a = tiny.credited(grape.credit(given, rows, params(aggregation="dr_grpo"), {}), rows)
    b = tiny.credited(grpo.credit(given, rows, grpo.GRPOParams(advantage="none", aggregation="dr_grpo"), {}), rows)
    outputs = Outputs(logp=-random(4, 5, 2), entropy=torch.zeros(5, 2))
    one = grape.loss(outputs, a, params(aggregation="dr_grpo"))
    two = grpo.loss(outputs, b, grpo.GRPOParams(advantage="none", aggregation="dr_grpo"))
    torch.testing.assert_close(one.value, two.value)
    torch.testing.assert_close(one.norm, two.norm)


@pytest.mark.parametrize("how", ["mean", "leave_one_out", "mean_std", "per_item"])
def test_permutations_zero_sums_and_shifts(how: str) -> None:
    whole = advantage(scores(S, C, W), advantage=how)
    assert float(whole.sum()) == pytest.approx(0, abs=1e-6)
    order = torch.tensor([3, 1, 4, 0, 2])
    torch.testing.assert_close(advantage(scores(S[order], C[order], W), advantage=how), whole[order])
    items = [2, 0, 1]
    torch.testing.assert_close(advantage(scores(S[:, items], C[:, items], W[items]), advantage=how), whole)
    torch.testing.assert_close(advantage(scores(S + torch.tensor([0.1, -0.2, 0.3]), C, W), advantage=how), whole)
    same = scores(S[:1].expand(5, 3), C, W)
    assert float(advantage(same, advantage=how).abs().max()) == 0


def test_scales_of_weight_and_confidence_cancel() -> None:
    torch.testing.assert_close(reward(scores(S, C, 7 * W)), reward(scores(S, C, W)))
    torch.testing.assert_close(reward(scores(S, 0.5 * C, W)), reward(scores(S, C, W)))
    torch.testing.assert_close(reward(scores(S, 0.5 * C, W), norm="weight"), 0.5 * reward(scores(S, C, W), norm="weight"))


def test_whose_confidence_it_was_does_not_matter_unless_it_is_per_sample() -> None:
    shuffled = torch.stack([C[torch.randperm(5, generator=torch.Generator().manual_seed(k)), k] for k in range(3)], 1)
    torch.testing.assert_close(reward(scores(S, shuffled, W)), reward(scores(S, C, W)))
    with pytest.warns(UserWarning, match="ablation"):
        knobs = {"scope": "sample"}
        assert not torch.allclose(reward(scores(S, shuffled, W), **knobs), reward(scores(S, C, W), **knobs))


def test_per_sample_confidence_lets_a_response_escape_an_item() -> None:
    """The toy of the page: it fails item 2 but leaves the judge unsure of it."""
    s = torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0]])
    c = torch.tensor([[1.0, 0.05], [1.0, 1.0], [1.0, 1.0]])
    with pytest.warns(UserWarning, match="ablation"):
        assert float(reward(scores(s, c), scope="sample")[0]) == pytest.approx(1 / 1.05)
    assert float(reward(scores(s, c))[0]) == pytest.approx(1 / (1 + 2.05 / 3))


def test_a_better_item_raises_its_response_and_lowers_the_others() -> None:
    better = S.clone()
    better[2, 1] += 0.2
    for how in ("mean", "leave_one_out", "mean_std"):
        before, after = advantage(scores(S, C, W), advantage=how), advantage(scores(better, C, W), advantage=how)
        assert after[2] > before[2]
        if how != "mean_std":
            assert (after[[0, 1, 3, 4]] < before[[0, 1, 3, 4]]).all()


def test_bounds() -> None:
    for seed in range(20):
        s, c = random(seed, 4, 3).round(), random(seed + 100, 4, 3)
        assert 0 <= float(reward(scores(s, c)).min()) and float(reward(scores(s, c)).max()) <= 1
        assert float(advantage(scores(s, c)).abs().max()) <= 1
        assert float(advantage(scores(s, c), advantage="mean_std").abs().max()) <= 3 / math.sqrt(4) + 1e-9


def test_the_first_step_is_reinforce_with_this_advantage() -> None:
    """On-policy the clipped surrogate has the gradient of -1/N sum A log pi; tokens behind the end have none."""
    mask = torch.ones(5, 2, dtype=torch.bool)
    mask[1, 1] = False
    rows = batch(5).with_(mask=mask)
    credited = tiny.credited(grape.credit(scores(S, C, W), rows, params(), {}), rows)
    logp = random(7, 5, 2).log().requires_grad_()
    found = grape.loss(Outputs(logp=logp, entropy=torch.zeros(5, 2)), credited, params())
    ((found.value * found.weight).sum() / found.norm.sum()).backward()
    expected = -(advantage(scores(S, C, W)).unsqueeze(1) * mask) / mask.sum()
    assert logp.grad is not None and logp.grad[1, 1] == 0
    torch.testing.assert_close(logp.grad, expected)


def test_leave_one_out_splits_and_items_add_up() -> None:
    torch.testing.assert_close(advantage(scores(S, C, W), advantage="leave_one_out"), 5 / 4 * advantage(scores(S, C, W)))
    share = grape.weigh(scores(S, C, W), batch(5), params(), {})[2]
    torch.testing.assert_close((share * (S - S.mean(0))).sum(1), advantage(scores(S, C, W)))
    twice = [0, 0, 1]
    halves = scores(S[:, twice], C[:, twice], torch.tensor([0.5, 0.5, 2.0], dtype=torch.float64))
    torch.testing.assert_close(reward(halves), reward(scores(S[:, :2], C[:, :2], W[:2])))


def test_scopes() -> None:
    group = [0, 0, 1, 1]
    s, c = random(5, 4, 2), torch.tensor([[1.0, 0.2], [1.0, 0.4], [0.2, 1.0], [0.4, 1.0]], dtype=torch.float64)
    given, rows = scores(s, c), batch(4, group)
    index = torch.tensor(group)
    by_group = grape.item_confidence(given, index, params(scope="group"), {})[0]
    torch.testing.assert_close(by_group[0], torch.tensor([1.0, 0.3], dtype=torch.float64))
    torch.testing.assert_close(by_group[2], torch.tensor([0.3, 1.0], dtype=torch.float64))
    by_batch = grape.item_confidence(given, index, params(scope="batch"), {})[0]
    torch.testing.assert_close(by_batch, torch.full((4, 2), 0.65, dtype=torch.float64))
    state = {"confidence/c/a": 0.9, "confidence/c/b": 0.1}
    lagged = grape.item_confidence(given, index, params(scope="ema"), state)[0]
    torch.testing.assert_close(lagged[0], torch.tensor([0.9, 0.1], dtype=torch.float64))
    after = grape.credit(given, rows, params(scope="ema", decay=0.8), state).state
    assert after["confidence/c/a"] == pytest.approx(0.8 * 0.9 + 0.2 * 0.65)
    floor = grape.item_confidence(given, index, params(floor=0.5), {})[0]
    assert float(floor.min()) == 0.5


def test_a_missing_score_is_neutral_and_costs_the_item_confidence() -> None:
    valid = torch.ones(5, 3, dtype=torch.bool)
    valid[1, 2] = False
    cbar = torch.where(valid, C, 0.0).sum(0) / 5
    imputed = S.clone()
    imputed[1, 2] = S[valid[:, 2], 2].mean()
    torch.testing.assert_close(reward(scores(S, C, W, valid)), (imputed * W * cbar).sum(1) / (W * cbar).sum())


REWARDS = torch.tensor([[0.1, 1], [0.9, 0], [0.4, 1], [1, 0], [0.3, 0], [0, 1], [0.7, 1], [0.7, 0], [0.5, 1]], dtype=torch.float64)
CONFIDENCE = random(7, 9, 2)


def test_with_confidence_from_earlier_rounds_the_gradient_is_unbiased() -> None:
    """E over pairs of samples of the leave-one-out estimator == gradient of E[sum_k omega_k s_k], omega from the state."""
    policy, state = Tabular(0), {"confidence/c/a": 0.8, "confidence/c/b": 0.3}
    logp = policy.logp()
    probability = logp.detach().sum(1).exp()
    knobs = params(scope="ema", advantage="leave_one_out")
    total = torch.zeros_like(policy.theta)
    for index in itertools.product(range(len(RESPONSES)), repeat=2):
        chosen = list(index)
        rows = rollouts(index, logp, logp)
        given = grape.credit(scores(REWARDS[chosen], CONFIDENCE[chosen]), rows, knobs, state)
        own = logp[chosen]
        loss = grape.loss(Outputs(logp=own, entropy=torch.zeros_like(own)), tiny.credited(given, rows), knobs)
        objective = (loss.value * loss.weight).sum() / loss.norm.sum()
        total += probability[chosen].prod() * policy.gradient(objective)
    value = REWARDS @ torch.tensor([0.8, 0.3], dtype=torch.float64) / 1.1
    truth = policy.gradient(-(policy.logp().sum(1).exp() * value).sum()) / 2  # token mean over two tokens
    torch.testing.assert_close(total, truth, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("knobs", [{}, {"advantage": "per_item"}, {"norm": "none"}, {"norm": "weight"}])
def test_an_item_nobody_has_a_score_of_is_no_part_of_the_rubric(knobs: dict[str, str]) -> None:
    """Also where the scope or the floor gives it a confidence."""
    valid = torch.ones(5, 3, dtype=torch.bool)
    valid[:, 1] = False
    state = dict.fromkeys((f"confidence/{item}" for item in ITEMS), 0.5)
    with_it = advantage(scores(S, C, W, valid), state=state, scope="ema", floor=0.2, **knobs)
    kept = [0, 2]
    given = scores(S[:, kept], C[:, kept], W[kept])
    given = Scores(("c/a", "c/c"), given.score, given.confidence, given.valid, given.weight)
    torch.testing.assert_close(with_it, advantage(given, state=state, scope="ema", floor=0.2, **knobs))


@pytest.mark.parametrize("how", ["mean", "per_item"])
def test_a_kl_in_the_reward_is_felt(how: str) -> None:
    rows = batch(5).with_(logp_old=-random(2, 5, 2), logp_ref=-random(3, 5, 2))
    difference = advantage(scores(S, C, W), rows, advantage=how, beta=0.5) - advantage(scores(S, C, W), rows, advantage=how)
    kl = (rows.logp_old - rows.logp_ref).sum(1)
    torch.testing.assert_close(difference, -0.5 * (kl - kl.mean()), rtol=1e-5, atol=1e-6)
