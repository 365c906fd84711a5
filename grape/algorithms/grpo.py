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
from torch import Tensor

from grape.algorithms.base import Algorithm, Credit, Need, Params, State
from grape.algorithms.penalty import PenaltyParams, loss_penalty, penalty_needs, reward_penalty
from grape.maths.advantage import constant_groups, group_advantage, group_std, leave_one_out_advantage, weighted_reward
from grape.maths.kl import kl_estimate
from grape.maths.masked import Aggregation, aggregation_weights, metric
from grape.maths.surrogate import cispo_surrogate, clipped_shares, clipped_surrogate, importance_ratio, sequence_ratio
from grape.types import Batch, Loss, Outputs, Scores

STD_EPSILON = 1e-4
AGGREGATION: dict[str, Aggregation] = {
    "grpo": "sequence_mean",
    "dapo": "round_mean",
    "bnpo": "token_mean",
    "dr_grpo": "constant",
}


class GRPOParams(PenaltyParams):
    advantage: Literal["group", "batch", "none", "leave_one_out"] = Field(
        "group",
        description="R - mean divided by the group's std | the batch's std | nothing | leave-one-out mean, undivided",
    )
    aggregation: Literal["grpo", "dapo", "dr_grpo", "bnpo"] = Field(
        "grpo", description="mean per response | token of the round | constant L_max | token of the mini-batch"
    )
    objective: Literal["clip", "gspo", "cispo"] = Field("clip", description="token ratio | sequence ratio | clipped weight")
    length: int | None = Field(None, ge=1, description="L_max of dr_grpo and overlong, tokens; null: rl.max_new_tokens")
    clip_low: float = Field(0.2, gt=0, lt=1, description="eps_low: ratio clipped at 1 - clip_low (1707.06347)")
    clip_high: float = Field(0.2, gt=0, le=10, description="eps_high: ratio clipped at 1 + clip_high (0.28 in DAPO)")
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

    @property
    def compares(self) -> bool:
        return True


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
    centred = group_advantage(reward, known, batch.group)
    if params.advantage == "group":
        advantage = centred / (group_std(reward, known, batch.group) + STD_EPSILON)
    elif params.advantage == "batch":
        advantage = centred / (reward[known].std() + STD_EPSILON) if int(known.sum()) > 1 else centred
    else:
        advantage = (
            leave_one_out_advantage(reward, known, batch.group) if params.advantage == "leave_one_out" else centred
        )
    constant = constant_groups(reward, known, batch.group)
    # Rounding noise of equal rewards must not be blown up by the division.
    advantage = torch.where(constant, torch.zeros_like(advantage), advantage)
    keep = known & ~constant if params.zero_variance == "drop" else known
    keep = keep & batch.finished if params.overlong == "mask" else keep
    mean_length = batch.mask[keep].sum() / keep.sum().clamp(min=1)
    length = mean_length.expand(batch.rows)
    return Credit(batch.with_(advantage=advantage.unsqueeze(1) * batch.mask, length=length, beta=beta), keep, state)


def loss(outputs: Outputs, batch: Batch, params: Params) -> Loss:
    """-min(rho A, clip(rho) A) + beta k per token (B, T); weights and norms by the named aggregation."""
    assert isinstance(params, GRPOParams)
    assert outputs.logp is not None and outputs.entropy is not None and batch.advantage is not None
    how = AGGREGATION[params.aggregation]
    weight, norm = aggregation_weights(batch.mask, how, params.length or batch.limit, batch.length)
    ratio = importance_ratio(outputs.logp, batch.logp_old)
    if params.objective == "gspo":
        ratio = sequence_ratio(outputs.logp, batch.logp_old, batch.mask)
    low, high = clipped_shares(ratio, batch.advantage, params.clip_low, params.clip_high)
    if params.objective == "cispo":
        value = -cispo_surrogate(outputs.logp, ratio, batch.advantage, params.clip_high)
    else:
        value = -clipped_surrogate(ratio, batch.advantage, params.clip_low, params.clip_high, params.dual_clip)
    return Loss(value + loss_penalty(params, outputs, batch), weight, norm, described(outputs, batch, ratio, low, high))


def described(outputs: Outputs, batch: Batch, ratio: Tensor, low: Tensor, high: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """What a clipped update looked like: entropy, ratio, shares clipped below and above, KL to the reference."""
    assert outputs.logp is not None and outputs.entropy is not None
    metrics = {
        "entropy": metric(outputs.entropy, batch.mask),
        "ratio": metric(ratio, batch.mask),
        "clip_ratio/low_mean": metric(low, batch.mask),
        "clip_ratio/high_mean": metric(high, batch.mask),
    }
    if batch.logp_ref is not None:
        metrics["kl"] = metric(kl_estimate(outputs.logp, batch.logp_ref, "k3"), batch.mask)
    return metrics


ALGORITHM = Algorithm(params=GRPOParams, data="rollouts", loss=loss, credit=credit, needs=needs)
