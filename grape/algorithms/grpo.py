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

from typing import Literal

import torch
from pydantic import Field

from grape.algorithms.base import Algorithm, Credit, Needs, State
from grape.algorithms.clipped import GroupParams, group_loss, round_length
from grape.algorithms.penalty import penalty_needs, reward_penalty
from grape.maths.advantage import Relative, constant_groups, relative
from grape.types import Batch, Loss, Outputs, Rollouts, Scores

ADVANTAGE: dict[str, Relative] = {"group": "group_std", "batch": "batch_std", "none": "mean", "leave_one_out": "leave_one_out"}


class GRPOParams(GroupParams):
    advantage: Literal["group", "batch", "none", "leave_one_out"] = Field(
        "group", description="R - mean divided by the group's std | the batch's std | nothing | leave-one-out mean, undivided"
    )
    kl: Literal["reward_k1", "loss_k2", "loss_k3"] = Field("loss_k3", description="KL as in 2402.03300; beta 0.04 there")
    zero_variance: Literal["keep", "drop"] = Field("keep", description="groups whose rewards are all equal")
    overlong: Literal["keep", "mask", "penalty"] = Field("keep", description="responses cut at their limit")
    overlong_buffer: int = Field(16, ge=1, description="L_c: tokens before L_max over which the penalty falls to -1")


def needs(params: GRPOParams) -> Needs:
    return penalty_needs(params) | {"group"}


def overlong_penalty(rollouts: Rollouts, limit: int, buffer: int) -> torch.Tensor:
    """(B,) 0 up to limit - buffer tokens, then linear to -1 at the limit."""
    return -((rollouts.mask.sum(1) - (limit - buffer)).float() / buffer).clamp(0, 1)


def credit(scores: Scores, rollouts: Rollouts, params: GRPOParams, state: State) -> Credit:
    """The group-relative advantage, the same for every token of a response; rows without a reward leave the round."""
    reward, known = scores.reward(rollouts.group)
    penalty, beta, state = reward_penalty(params, rollouts, state)
    reward = reward - penalty.sum(1)
    if params.overlong == "penalty":
        reward = reward + overlong_penalty(rollouts, params.length or rollouts.limit, params.overlong_buffer)
    flat = constant_groups(reward, known, rollouts.group)
    advantage = relative(reward, known, rollouts.group, ADVANTAGE[params.advantage]).masked_fill(flat, 0.0)
    keep = known & ~flat if params.zero_variance == "drop" else known
    keep = keep & rollouts.finished if params.overlong == "mask" else keep
    return Credit(rollouts.per_token(advantage), keep, state, beta=beta, length=round_length(rollouts, keep))


def loss(outputs: Outputs, batch: Batch, params: GRPOParams) -> Loss:
    """-min(rho A, clip(rho) A) + beta k per token (B, T); weights and norms by the named aggregation."""
    return group_loss(outputs, batch, params)


ALGORITHM = Algorithm(params=GRPOParams, data="rollouts", loss=loss, credit=credit, needs=needs)
