"""TRPO, trust region policy optimisation (1502.05477): the largest improvement that keeps the policy near the one that sampled.

sampled: G responses per prompt · scored: R_i · credited: R_i relative to its group · maximised: the surrogate, within the region.

    max_theta L(theta) = E_{s,y ~ pi_old}[ rho_t A_t ]   subject to   D(theta) = E_s[ KL(pi_old(.|s) || pi_theta(.|s)) ] <= delta

For a language model the states are all response prefixes of the batch and the inner KL is exact, over the vocabulary:
D = sum m_t KL_t / sum m_t, so delta is nats per *token* (a response's KL is about its length times that). REINFORCE's step is as
long as the learning rate says in the space of weights; this one is as long as delta says in the space of distributions:

    g = grad L,   H = Hess D (Fisher),   H u = g by conjugate gradient,   s = sqrt(2 delta / u^T H u) u,
    theta = theta_old + a^j s for the first j with D <= delta and L improved, else theta_old, bit for bit

The update is `training/natural.py`; it computes in float32 with attention's plain kernel, since fused ones have no second
derivative. Departures: no value model, the baseline is the group's (as in GRPO, undivided); damping relative to the curvature
would hide how ill-posed H is, so it is absolute, and `trpo/cg_residual` tells whether CG came near.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from grape.algorithms.base import Algorithm, Credit, Needs, OnlineParams, State, TrustRegionParams
from grape.maths.advantage import Relative, relative
from grape.maths.masked import aggregation_weights, metric
from grape.maths.surrogate import importance_ratio
from grape.types import Batch, Loss, Outputs, Rollouts, Scores

ADVANTAGE: dict[str, Relative] = {"group": "mean", "leave_one_out": "leave_one_out"}


class TRPOParams(TrustRegionParams, OnlineParams):
    advantage: Literal["leave_one_out", "group"] = Field("leave_one_out", description="which mean a reward is compared with")
    epochs: Literal[1] = Field(1, description="one step per round: the region is around the policy that sampled")
    mini_batches: Literal[1] = Field(1, description="one step per round")


def needs(params: TRPOParams) -> Needs:
    return frozenset({"group", "old"})


def credit(scores: Scores, rollouts: Rollouts, params: TRPOParams, state: State) -> Credit:
    """A_i = R_i minus the mean of the others (or of all), the same for every token of response i."""
    reward, known = scores.reward(rollouts.group)
    advantage = relative(reward, known, rollouts.group, ADVANTAGE[params.advantage])
    return Credit(rollouts.per_token(advantage), known, state)


def loss(outputs: Outputs, batch: Batch, params: TRPOParams) -> Loss:
    """-rho_t A_t per token (B, T), mean over tokens: minus the surrogate L."""
    weight, norm = aggregation_weights(batch.mask, "token_mean", 0)
    value = -importance_ratio(outputs.logp, batch.get("logp_old")) * batch.advantage
    return Loss(value, weight, norm, {"entropy": metric(outputs.entropy, weight)})


ALGORITHM = Algorithm(params=TRPOParams, data="rollouts", loss=loss, credit=credit, needs=needs, update="natural_gradient")
