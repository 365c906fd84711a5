"""Every estimator against exact enumeration: a policy over 3 tokens and 2 steps has 9 responses, so expectations are sums."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from grape.algorithms import grpo, reinforce
from grape.maths.kl import kl_estimate, kl_exact
from grape.types import Batch, Outputs, Scores

V, T = 3, 2
RESPONSES = list(itertools.product(range(V), repeat=T))
REWARD = torch.tensor([0.1, 0.9, -0.4, 2.0, 0.3, 0.0, -1.0, 0.7, 0.5], dtype=torch.float64)


class Tabular:
    """pi(y1) pi(y2 | y1) with free logits: theta has V + V * V entries."""

    def __init__(self, seed: int) -> None:
        self.theta = torch.randn(
            V + V * V, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
        ).requires_grad_()

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


def rollouts(index: tuple[int, ...], logp: Tensor, reference: Tensor) -> Batch:
    rows = len(index)
    ids = torch.tensor([RESPONSES[i] for i in index])
    chosen = list(index)
    return Batch(
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


def expected_gradient(
    algorithm: Any, params: Any, policy: Tabular, reference: Tabular, size: int, state: dict[str, float]
) -> Tensor:
    """E over groups of `size` independent samples of the gradient of the algorithm's own loss."""
    logp, ref = policy.logp(), reference.logp()
    probability = logp.detach().sum(1).exp()
    total = torch.zeros_like(policy.theta)
    for index in itertools.product(range(len(RESPONSES)), repeat=size):
        given = algorithm.ALGORITHM.credit(scores(index), rollouts(index, logp, ref), params, state)
        own = logp[list(index)]
        loss = algorithm.ALGORITHM.loss(Outputs(logp=own, entropy=torch.zeros_like(own)), given.batch, params)
        value = (loss.value * loss.weight).sum() / loss.norm.sum()
        total += probability[list(index)].prod() * policy.gradient(value)
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
    torch.testing.assert_close(
        gradient, true_gradient(policy) + 0.3 * policy.gradient(policy.kl(reference)), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize(("aggregation", "factor"), [("dapo", 0.5 / T), ("dr_grpo", 0.5 / 8), ("grpo", 0.5 / T)])
def test_grpo_without_std_is_reinforce_with_a_group_baseline(
    policy: Tabular, reference: Tabular, aggregation: str, factor: float
) -> None:
    """Equal lengths: the three aggregations differ by a constant only."""
    params = grpo.GRPOParams(advantage="mean", aggregation=aggregation, length=8)  # type: ignore[arg-type]
    gradient = expected_gradient(grpo, params, policy, reference, 2, {})
    torch.testing.assert_close(gradient, factor * true_gradient(policy), rtol=1e-5, atol=1e-6)


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
