"""REINFORCE with a baseline (Williams 1992): make what was better than expected more likely.

sampled: G responses per prompt · scored: R(x, y) · credited: R minus a baseline · minimised: minus the credited log-likelihood.

    grad J = E[ (R(x, y) - b(x)) sum_t grad log pi(y_t | s_t) ]
    L = - 1/B sum_i A_i sum_t m_it log pi(y_it | s_it),   A_i = R_i - b_i a constant

Any b that does not depend on y_i leaves the expectation unchanged, since E[grad log pi] = 0:
- none: b = 0, unbiased, noisy;
- moving: exponential average of the rewards of *earlier* rounds (the current sample stays out, so it is unbiased);
- group: mean of the prompt's G rewards including its own: exactly (1 - 1/G) times the true gradient;
- leave_one_out: mean of the other G - 1 (RLOO, 2402.14740): unbiased.

The sum over tokens is the derivation's; dividing by the length is not in it (Dr. GRPO, 2503.20783). Samples are on-policy:
one pass over the rollouts, no importance ratio. A KL penalty to the reference belongs into the reward,
R' = R - beta sum_t (log pi_old - log pi_ref): the exact gradient of E[R] - beta KL(pi||ref).
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field

from grape.algorithms.base import Algorithm, Credit, Need, Params, State
from grape.algorithms.penalty import PenaltyParams, loss_penalty, penalty_needs, reward_penalty
from grape.maths.advantage import group_advantage, leave_one_out_advantage, weighted_reward
from grape.maths.masked import metric
from grape.maths.surrogate import importance_ratio
from grape.types import Batch, Loss, Outputs, Scores


class ReinforceParams(PenaltyParams):
    baseline: Literal["none", "moving", "group", "leave_one_out"] = Field(
        "leave_one_out", description="what a reward is compared with (default: 2402.14740)"
    )
    decay: float = Field(0.9, ge=0, lt=1, description="of the moving baseline, per round")
    epochs: Literal[1] = Field(1, description="samples are on-policy: one pass")
    mini_batches: Literal[1] = Field(1, description="samples are on-policy: one update")

    @property
    def compares(self) -> bool:
        return self.baseline in ("group", "leave_one_out")


def needs(params: Params) -> frozenset[Need]:
    assert isinstance(params, ReinforceParams)
    return penalty_needs(params) | {"scores"}


def credit(scores: Scores, batch: Batch, params: Params, state: State) -> Credit:
    """A_i = R'_i - b_i, the same for every token of response i. State: the moving baseline, the KL's coefficient."""
    assert isinstance(params, ReinforceParams) and batch.group is not None
    reward, known = weighted_reward(scores.score, scores.valid, scores.weight, batch.group)
    penalty, beta, state = reward_penalty(params, batch, state)
    reward = reward - penalty.sum(1)
    if params.baseline == "group":
        advantage = group_advantage(reward, known, batch.group)
    elif params.baseline == "leave_one_out":
        advantage = leave_one_out_advantage(reward, known, batch.group)
    else:
        baseline = state.get("baseline", 0.0) if params.baseline == "moving" else 0.0
        advantage = torch.where(known, reward - baseline, torch.zeros_like(reward))
    if bool(known.any()):
        mean = float(reward[known].mean())
        state = {**state, "baseline": params.decay * state.get("baseline", mean) + (1 - params.decay) * mean}
    return Credit(batch.with_(advantage=advantage.unsqueeze(1) * batch.mask, beta=beta), known, state)


def loss(outputs: Outputs, batch: Batch, params: Params) -> Loss:
    """-rho_t A_t with rho = 1 (its gradient is that of log pi), summed over tokens, averaged over responses."""
    assert isinstance(params, ReinforceParams)
    assert outputs.logp is not None and outputs.entropy is not None and batch.advantage is not None
    weight = batch.mask.float()
    value = -importance_ratio(outputs.logp, None) * batch.advantage + loss_penalty(params, outputs, batch)
    return Loss(value, weight, weight.amax(1), {"entropy": metric(outputs.entropy, weight)})


ALGORITHM = Algorithm(params=ReinforceParams, data="rollouts", loss=loss, credit=credit, needs=needs)
