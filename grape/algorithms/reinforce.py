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

from grape.algorithms.base import Algorithm, Credit, Needs, State
from grape.algorithms.penalty import PenaltyParams, loss_penalty, penalty_needs, reward_penalty
from grape.maths.advantage import Relative, relative
from grape.maths.masked import aggregation_weights, metric
from grape.maths.surrogate import importance_ratio
from grape.types import Batch, Loss, Outputs, Rollouts, Scores

ADVANTAGE: dict[str, Relative] = {"group": "mean", "leave_one_out": "leave_one_out"}


class ReinforceParams(PenaltyParams):
    baseline: Literal["none", "moving", "group", "leave_one_out"] = Field(
        "leave_one_out", description="what a reward is compared with (default: 2402.14740)"
    )
    decay: float = Field(0.9, ge=0, lt=1, description="of the moving baseline, per round")
    epochs: Literal[1] = Field(1, description="samples are on-policy: one pass")
    mini_batches: Literal[1] = Field(1, description="samples are on-policy: one update")


def needs(params: ReinforceParams) -> Needs:
    return penalty_needs(params).union({"group"} if params.baseline in ADVANTAGE else ())


def credit(scores: Scores, rollouts: Rollouts, params: ReinforceParams, state: State) -> Credit:
    """A_i = R'_i - b_i, the same for every token of response i. State: the moving baseline, the KL's coefficient."""
    reward, known = scores.reward(rollouts.group)
    penalty, beta, state = reward_penalty(params, rollouts, state)
    reward = reward - penalty.sum(1)
    if params.baseline in ADVANTAGE:
        advantage = relative(reward, known, rollouts.group, ADVANTAGE[params.baseline])
    else:
        baseline = state.get("baseline", 0.0) if params.baseline == "moving" else 0.0
        advantage = torch.where(known, reward - baseline, torch.zeros_like(reward))
    if bool(known.any()):
        mean = float(reward[known].mean())
        state = {**state, "baseline": params.decay * state.get("baseline", mean) + (1 - params.decay) * mean}
    return Credit(rollouts.per_token(advantage), known, state, beta=beta)


def loss(outputs: Outputs, batch: Batch, params: ReinforceParams) -> Loss:
    """-rho_t A_t with rho = 1 (its gradient is that of log pi), summed over tokens, averaged over responses."""
    weight, norm = aggregation_weights(batch.mask, "constant", 1)
    value = -importance_ratio(outputs.logp, None) * batch.advantage + loss_penalty(params, outputs, batch)
    return Loss(value, weight, norm, {"entropy": metric(outputs.entropy, weight)})


ALGORITHM = Algorithm(params=ReinforceParams, data="rollouts", loss=loss, credit=credit, needs=needs)
