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

from grape.algorithms.base import Algorithm, Credit, Need, OnlineParams, Params, State
from grape.maths.advantage import group_advantage, leave_one_out_advantage, weighted_reward
from grape.maths.masked import aggregation_weights, metric
from grape.maths.surrogate import importance_ratio
from grape.types import Batch, Loss, Outputs, Scores


class TRPOParams(OnlineParams):
    delta: float = Field(0.01, gt=0, le=1, description="largest mean KL to pi_old, nats per token (0.01 in 1502.05477)")
    advantage: Literal["leave_one_out", "group"] = Field("leave_one_out", description="which mean a reward is compared with")
    cg_iterations: int = Field(10, ge=1, le=1000, description="of conjugate gradient (Spinning Up: 10)")
    cg_residual: float = Field(1e-10, ge=0, description="squared relative residual at which it stops")
    damping: float = Field(0.01, ge=0, description="added to the Fisher matrix's diagonal (0.1 is for small MLPs)")
    backtracks: int = Field(10, ge=1, le=100, description="steps tried (Spinning Up: 10)")
    backtrack_ratio: float = Field(0.5, gt=0, lt=1, description="each shorter by this factor (0.8 in Spinning Up)")
    improvement: float = Field(0.0, ge=0, lt=1, description="share of the expected improvement a step must reach")
    fisher_share: float = Field(0.1, gt=0, le=1, description="share of the rows the Fisher products are computed on")
    parameters: Literal["all", "adapters", "last_block"] = Field("all", description="which weights move")
    epochs: Literal[1] = Field(1, description="one step per round: the region is around the policy that sampled")
    mini_batches: Literal[1] = Field(1, description="one step per round")

    @property
    def compares(self) -> bool:
        return True


def needs(params: Params) -> frozenset[Need]:
    return frozenset({"scores", "old"})


def credit(scores: Scores, batch: Batch, params: Params, state: State) -> Credit:
    """A_i = R_i minus the mean of the others (or of all), the same for every token of response i."""
    assert isinstance(params, TRPOParams) and batch.group is not None
    reward, known = weighted_reward(scores.score, scores.valid, scores.weight, batch.group)
    relative = leave_one_out_advantage if params.advantage == "leave_one_out" else group_advantage
    advantage = relative(reward, known, batch.group)
    return Credit(batch.with_(advantage=advantage.unsqueeze(1) * batch.mask), known, state)


def loss(outputs: Outputs, batch: Batch, params: Params) -> Loss:
    """-rho_t A_t per token (B, T), mean over tokens: minus the surrogate L."""
    assert outputs.logp is not None and outputs.entropy is not None and batch.advantage is not None
    weight, norm = aggregation_weights(batch.mask, "token_mean", 0)
    ratio = importance_ratio(outputs.logp, batch.logp_old)
    return Loss(-ratio * batch.advantage, weight, norm, {"entropy": metric(outputs.entropy, weight)})


ALGORITHM = Algorithm(
    params=TRPOParams, data="rollouts", loss=loss, credit=credit, needs=needs, update="natural_gradient"
)
