"""GRPO, group relative policy optimisation (DeepSeekMath, 2402.03300): PPO's clipped objective without a value model.

sampled: G responses per prompt · scored: R_i · credited: R_i relative to its group · minimised: minus the clipped surrogate.

    A_it = (R_i - mean R) / (std R + 1e-4)                       for every token t of response i; torch.std, divisor G - 1
    J = 1/G sum_i 1/|o_i| sum_t { min(rho_it A_it, clip(rho_it, 1-eps, 1+eps) A_it) - beta k_it },   rho_it = pi/pi_old

The group mean replaces PPO's value model as the baseline. Departures, each a knob:
- advantage `none` and aggregation `dr_grpo` undo two biases (Dr. GRPO, 2503.20783): 1/std overweighs prompts that are nearly
  always or never solved, 1/|o_i| makes long wrong answers cheap;
- aggregation `dapo` counts every token of the round alike, `bnpo` every token of the mini-batch; clip_high > clip_low lets rare
  tokens grow (DAPO, 2503.14476);
- objective `gspo` clips one ratio per response (2507.18071; its clips are near 3e-4), `cispo` clips the weight of a token
  and not its gradient (2506.13585);
- beta defaults to 0 (no reference forward at all). The paper's k3 has the gradient of the *forward* KL as a loss; k2 has that
  of the reverse KL.
A group whose rewards are all equal has advantage 0; `frac_reward_zero_std` counts them, `zero_variance: drop` takes them out of
the denominator, `resample` draws another prompt. A truncated response is kept, masked, or penalised softly near the limit:
0 up to L_max - L_c, falling to -1 at L_max (2503.14476).
"""

from __future__ import annotations

from typing import Literal, Self

import torch
from pydantic import Field, model_validator

from grape.algorithms.base import Algorithm, Credit, Need, Params, State
from grape.algorithms.clipped import GroupParams, Objective, group_loss
from grape.algorithms.penalty import penalty_needs, reward_penalty
from grape.maths.advantage import Relative, constant_groups, relative_advantage, weighted_reward
from grape.types import Batch, Loss, Outputs, Scores

ADVANTAGE: dict[str, Relative] = {
    "group": "group_std",
    "batch": "batch_std",
    "none": "mean",
    "leave_one_out": "leave_one_out",
}


class GRPOParams(GroupParams):
    advantage: Literal["group", "batch", "none", "leave_one_out"] = Field(
        "group",
        description="R - mean divided by the group's std | the batch's std | nothing | leave-one-out mean, undivided",
    )
    objective: Objective = Field("clip", description="token ratio | sequence ratio | clipped weight")
    dual_clip: float | None = Field(None, gt=1, description="floor c A of the objective for A < 0 (3 in 1912.09729)")
    kl: Literal["reward_k1", "loss_k2", "loss_k3"] = Field("loss_k3", description="KL as in 2402.03300; beta 0.04 there")
    zero_variance: Literal["keep", "drop"] = Field("keep", description="groups whose rewards are all equal")
    overlong: Literal["keep", "mask", "penalty"] = Field("keep", description="responses cut at their limit")
    overlong_buffer: int = Field(16, ge=1, description="L_c: tokens before L_max over which the penalty falls to -1")

    @model_validator(mode="after")
    def _clips_of_cispo(self) -> Self:
        if self.objective == "cispo" and self.dual_clip is not None:
            raise ValueError("cispo clips the weight from above alone: dual_clip has no place in it")
        return self


def needs(params: Params) -> frozenset[Need]:
    assert isinstance(params, GRPOParams)
    return penalty_needs(params) | {"scores"}


def overlong_penalty(batch: Batch, limit: int, buffer: int) -> torch.Tensor:
    """(B,) 0 up to limit - buffer tokens, then linear to -1 at the limit."""
    return -((batch.mask.sum(1) - (limit - buffer)).float() / buffer).clamp(0, 1)


def credit(scores: Scores, batch: Batch, params: Params, state: State) -> Credit:
    """The group-relative advantage, the same for every token of a response; rows without a reward leave the batch."""
    assert isinstance(params, GRPOParams) and batch.group is not None and batch.finished is not None
    reward, known = weighted_reward(scores.score, scores.valid, scores.weight, batch.group)
    penalty, beta, state = reward_penalty(params, batch, state)
    reward = reward - penalty.sum(1)
    if params.overlong == "penalty":
        reward = reward + overlong_penalty(batch, params.length or batch.limit, params.overlong_buffer)
    advantage = relative_advantage(reward, known, batch.group, ADVANTAGE[params.advantage])
    keep = known & ~constant_groups(reward, known, batch.group) if params.zero_variance == "drop" else known
    keep = keep & batch.finished if params.overlong == "mask" else keep
    mean_length = batch.mask[keep].sum() / keep.sum().clamp(min=1)
    length = mean_length.expand(batch.rows)
    return Credit(batch.with_(advantage=advantage.unsqueeze(1) * batch.mask, length=length, beta=beta), keep, state)


def loss(outputs: Outputs, batch: Batch, params: Params) -> Loss:
    """-min(rho A, clip(rho) A) + beta k per token (B, T); weights and norms by the named aggregation."""
    assert isinstance(params, GRPOParams)
    return group_loss(outputs, batch, params, params.objective, params.dual_clip)


ALGORITHM = Algorithm(params=GRPOParams, data="rollouts", loss=loss, credit=credit, needs=needs)
