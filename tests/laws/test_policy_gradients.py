"""Every estimator against exact enumeration: a policy over 3 tokens and 2 steps has 9 responses, so expectations are sums."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from grape.algorithms import grpo, ppo, reinforce, rejection, sft, trpo
from grape.maths.kl import kl_estimate, kl_exact
from grape.types import Batch, Outputs, Rollouts, Scores
from tests import tiny

V, T = 3, 2
RESPONSES = list(itertools.product(range(V), repeat=T))
REWARD = torch.tensor([0.1, 0.9, -0.4, 2.0, 0.3, 0.0, -1.0, 0.7, 0.5], dtype=torch.float64)


class Tabular:
    """pi(y1) pi(y2 | y1) with free logits: theta has V + V * V entries."""

    def __init__(self, seed: int) -> None:
        self.theta = torch.randn(V + V * V, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).requires_grad_()

    def logp(self) -> Tensor:
        """(9, T) log-probability of every token of every response."""
        first = torch.log_softmax(self.theta[:V], -1)
        second = torch.log_softmax(self.theta[V:].view(V, V), -1)
        return torch.stack([torch.stack([first[a], second[a, b]]) for a, b in RESPONSES])

    def gradient(self, value: Tensor) -> Tensor:
        return torch.autograd.grad(value, self.theta, retain_graph=True)[0]

    def kl(self, other: Tabular) -> Tensor:
        """Exact KL(self || other) over responses."""
        a, b = self.logp().sum(1), other.logp().detach().sum(1)
        return (a.exp() * (a - b)).sum()


def rollouts(index: tuple[int, ...], logp: Tensor, reference: Tensor) -> Rollouts:
    rows = len(index)
    ids = torch.tensor([RESPONSES[i] for i in index])
    chosen = list(index)
    return Rollouts(
        torch.zeros(rows, 1, dtype=torch.long),
        torch.ones(rows, 1, dtype=torch.bool),
        ids,
        torch.ones(rows, T, dtype=torch.bool),
        group=torch.zeros(rows, dtype=torch.long),
        logp_old=logp.detach()[chosen],
        logp_ref=reference.detach()[chosen],
    )


def scores(index: tuple[int, ...]) -> Scores:
    score = REWARD[list(index)].unsqueeze(1)
    ones = torch.ones_like(score)
    return Scores(("any/item",), score, ones, ones.bool(), ones)


def true_values(policy: Tabular) -> Tensor:
    """(9, T) V(s_t): the expected reward of every prefix."""
    probability = policy.logp().detach().sum(1).exp()
    whole = (probability * REWARD).sum()
    rows = []
    for a, _ in RESPONSES:
        same = torch.tensor([first == a for first, _ in RESPONSES])
        rows.append([float(whole), float((probability * REWARD)[same].sum() / probability[same].sum())])
    return torch.tensor(rows, dtype=torch.float64)


def expected_gradient(
    algorithm: Any,
    params: Any,
    policy: Tabular,
    reference: Tabular,
    size: int,
    state: dict[str, float],
    value: Tensor | None = None,
) -> Tensor:
    """E over groups of `size` independent samples of the gradient of the algorithm's own loss."""
    logp, ref = policy.logp(), reference.logp()
    probability = logp.detach().sum(1).exp()
    values = torch.zeros(len(RESPONSES), T, dtype=torch.float64) if value is None else value
    total = torch.zeros_like(policy.theta)
    for index in itertools.product(range(len(RESPONSES)), repeat=size):
        own, old_values = logp[list(index)], values[list(index)]
        batch = rollouts(index, logp, ref).with_(
            value_old=old_values, bootstrap=torch.zeros(size, dtype=torch.float64), finished=torch.ones(size, dtype=torch.bool)
        )
        given = algorithm.ALGORITHM.credit(scores(index), batch, params, state)
        outputs = Outputs(logp=own, entropy=torch.zeros_like(own), value=old_values)
        loss = algorithm.ALGORITHM.loss(outputs, tiny.credited(given, batch), params)
        objective = (loss.value * loss.weight).sum() / loss.norm.sum()
        total += probability[list(index)].prod() * policy.gradient(objective)
    return total


@pytest.fixture
def policy() -> Tabular:
    return Tabular(0)


@pytest.fixture
def reference() -> Tabular:
    return Tabular(1)


def true_gradient(policy: Tabular) -> Tensor:
    return policy.gradient(-(policy.logp().sum(1).exp() * REWARD).sum())


@pytest.mark.parametrize(
    ("baseline", "size", "factor"),
    [
        ("none", 2, 1.0),
        ("moving", 2, 1.0),
        ("leave_one_out", 2, 1.0),
        ("leave_one_out", 3, 1.0),
        ("group", 2, 0.5),
        ("group", 3, 2 / 3),
    ],
)
def test_reinforce_baselines(policy: Tabular, reference: Tabular, baseline: str, size: int, factor: float) -> None:
    """none, moving and leave-one-out are unbiased; the mean including the sample itself gives (1 - 1/G) times the gradient."""
    params = reinforce.ReinforceParams(baseline=baseline)  # type: ignore[arg-type]
    gradient = expected_gradient(reinforce, params, policy, reference, size, {"baseline": 0.37})
    torch.testing.assert_close(gradient, factor * true_gradient(policy), rtol=1e-5, atol=1e-6)


def test_kl_in_the_reward_is_the_gradient_of_the_penalised_objective(policy: Tabular, reference: Tabular) -> None:
    params = reinforce.ReinforceParams(baseline="leave_one_out", beta=0.3)
    gradient = expected_gradient(reinforce, params, policy, reference, 2, {})
    torch.testing.assert_close(gradient, true_gradient(policy) + 0.3 * policy.gradient(policy.kl(reference)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("aggregation", "factor"), [("dapo", 0.5 / T), ("dr_grpo", 0.5 / 8), ("grpo", 0.5 / T)])
def test_grpo_without_std_is_reinforce_with_a_group_baseline(
    policy: Tabular, reference: Tabular, aggregation: str, factor: float
) -> None:
    """Equal lengths: the three aggregations differ by a constant only."""
    params = grpo.GRPOParams(advantage="none", aggregation=aggregation, length=8)  # type: ignore[arg-type]
    gradient = expected_gradient(grpo, params, policy, reference, 2, {})
    torch.testing.assert_close(gradient, factor * true_gradient(policy), rtol=1e-5, atol=1e-6)


def test_trpos_surrogate_has_the_policy_gradient(policy: Tabular, reference: Tabular) -> None:
    gradient = expected_gradient(trpo, trpo.TRPOParams(), policy, reference, 2, {})
    torch.testing.assert_close(gradient, true_gradient(policy) / T, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("beta", [0.0, 0.3])
def test_ppo_without_value_clip_and_discount_is_reinforce(policy: Tabular, reference: Tabular, beta: float) -> None:
    """V = 0, lambda = 1, no clipping that binds, one pass: the policy gradient, with the KL per token where there is one."""
    params = ppo.PPOParams(lam=1.0, whiten=False, clip_low=0.99, clip_high=9.0, value_warmup=0, beta=beta, epochs=1, mini_batches=1)
    gradient = expected_gradient(ppo, params, policy, reference, 1, {})
    expected = true_gradient(policy) + (beta * policy.gradient(policy.kl(reference)) if beta else 0)
    torch.testing.assert_close(gradient, expected / T, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("lam", [0.0, 0.5, 1.0])
def test_a_perfect_value_model_leaves_ppos_gradient_unbiased_for_every_lambda(
    policy: Tabular, reference: Tabular, lam: float
) -> None:
    params = ppo.PPOParams(lam=lam, whiten=False, clip_low=0.99, clip_high=9.0, value_warmup=0, epochs=1, mini_batches=1)
    gradient = expected_gradient(ppo, params, policy, reference, 1, {}, value=true_values(policy))
    torch.testing.assert_close(gradient, true_gradient(policy) / T, rtol=1e-5, atol=1e-6)


def test_ppo_and_grpo_have_one_loss_given_the_same_advantage(policy: Tabular, reference: Tabular) -> None:
    index = (0, 3, 5, 7)
    old = Tabular(2).logp().detach()
    batch = Batch.of(
        rollouts(index, old, reference.logp()),
        advantage=torch.randn(4, T, dtype=torch.float64, generator=torch.Generator().manual_seed(0)),
        returns=torch.zeros(4, T),
        value_old=torch.zeros(4, T),
        length=torch.full((4,), float(T)),
    )
    own = policy.logp()[list(index)]
    outputs = Outputs(logp=own, entropy=torch.zeros_like(own), value=torch.zeros(4, T))
    losses = [
        ppo.loss(outputs, batch, ppo.PPOParams(value_coefficient=0.0)),
        grpo.loss(outputs, batch, grpo.GRPOParams(aggregation="dapo")),
        grpo.loss(outputs, batch, grpo.GRPOParams(aggregation="bnpo")),
    ]
    gradients = [policy.gradient((x.value * x.weight).sum() / x.norm.sum()) for x in losses]
    torch.testing.assert_close(gradients[1], gradients[0])
    torch.testing.assert_close(gradients[2], gradients[0])


def test_rejection_is_sft_on_what_was_accepted(policy: Tabular, reference: Tabular) -> None:
    index = (0, 3, 3, 6)
    logp = policy.logp()
    params = rejection.RejectionParams(keep=2)
    sampled = rollouts(index, logp, reference.logp())
    given = rejection.credit(scores(index), sampled, params, {})
    assert given.keep.tolist() == [False, True, False, False]  # the best; its twin counts once; the others are below the mean
    accepted = given.batch(sampled)
    assert accepted is not None
    own = logp[[3]]
    outputs = Outputs(logp=own, entropy=torch.zeros_like(own))
    ours, sfts = rejection.loss(outputs, accepted, params), sft.loss(outputs, accepted, sft.ALGORITHM.params())
    torch.testing.assert_close(ours.value, sfts.value)
    torch.testing.assert_close(ours.value, -own)


@pytest.mark.parametrize("objective", ["clip", "gspo", "cispo"])
def test_on_policy_all_objectives_of_grpo_have_one_gradient(policy: Tabular, reference: Tabular, objective: str) -> None:
    """rho = 1 everywhere: the token ratio, the sequence ratio and the clipped weight differ only off-policy."""
    params = grpo.GRPOParams(objective=objective, advantage="none")  # type: ignore[arg-type]
    gradient = expected_gradient(grpo, params, policy, reference, 2, {})
    torch.testing.assert_close(gradient, 0.5 * true_gradient(policy) / T, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_kl_estimators_as_a_loss(policy: Tabular, reference: Tabular, estimator: str) -> None:
    """As a loss per sequence: k1 gives nothing, k2 the gradient of the reverse KL, k3 that of the forward KL."""
    own, ref = policy.logp().sum(1), reference.logp().detach().sum(1)
    probability = own.detach().exp()
    gradient = policy.gradient((probability * kl_estimate(own, ref, estimator)).sum())  # type: ignore[arg-type]
    forward = policy.gradient((ref.exp() * (ref - own)).sum())
    expected = {"k1": torch.zeros_like(forward), "k2": policy.gradient(policy.kl(reference)), "k3": forward}[estimator]
    torch.testing.assert_close(gradient, expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_kl_estimators_are_unbiased_values(policy: Tabular, reference: Tabular, estimator: str) -> None:
    own, ref = policy.logp().sum(1).detach(), reference.logp().sum(1).detach()
    value = (own.exp() * kl_estimate(own, ref, estimator)).sum()  # type: ignore[arg-type]
    torch.testing.assert_close(value, kl_exact(own, ref))
    torch.testing.assert_close(value, policy.kl(reference).detach())
