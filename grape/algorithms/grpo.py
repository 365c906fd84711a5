"""GRPO, group relative policy optimisation (DeepSeekMath, 2402.03300): PPO's clipped objective without a value model.

sampled: G responses per prompt · scored: R_i · credited: R_i relative to its group · minimised: minus the clipped surrogate.

    A_it = (R_i - mean R) / (std R + 1e-4)                       for every token t of response i; torch.std, divisor G - 1
    J = 1/G sum_i 1/|o_i| sum_t { min(rho_it A_it, clip(rho_it, 1-eps, 1+eps) A_it) - beta k_it },   rho_it = pi/pi_old

The group mean replaces PPO's value model as the baseline. Departures, each a knob:
- advantage `mean` and aggregation `dr_grpo` undo two biases (Dr. GRPO, 2503.20783): 1/std overweighs prompts that are nearly
  always or never solved, 1/|o_i| makes long wrong answers cheap;
- aggregation `dapo` counts every token of the batch alike, and clip_high > clip_low lets rare tokens grow (DAPO, 2503.14476);
- beta defaults to 0 (no reference forward at all). The paper's k3 has the gradient of the *forward* KL as a loss; k2 has that
  of the reverse KL.
A group whose rewards are all equal has advantage 0; `frac_reward_zero_std` counts them.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field

from grape.algorithms.base import Algorithm, Credit, Need, Params, RolloutParams, State
from grape.maths.advantage import constant_groups, group_advantage, group_std, leave_one_out_advantage, weighted_reward
from grape.maths.kl import kl_estimate
from grape.maths.masked import Aggregation, aggregation_weights, metric
from grape.maths.surrogate import clipped_shares, clipped_surrogate, importance_ratio
from grape.types import Batch, Loss, Outputs, Scores

STD_EPSILON = 1e-4
AGGREGATION: dict[str, Aggregation] = {"grpo": "sequence_mean", "dapo": "token_mean", "dr_grpo": "constant"}


class GRPOParams(RolloutParams):
    advantage: Literal["group", "mean", "batch", "leave_one_out"] = Field(
        "group",
        description="divide R - mean by the group's std | nothing | the batch's std | leave-one-out mean, undivided",
    )
    aggregation: Literal["grpo", "dapo", "dr_grpo"] = Field(
        "grpo", description="mean per response | per token | constant L_max"
    )
    length: int = Field(256, ge=1, description="L_max of dr_grpo, tokens")
    clip_low: float = Field(0.2, gt=0, lt=1, description="eps_low: ratio clipped at 1 - clip_low (1707.06347)")
    clip_high: float = Field(0.2, gt=0, le=10, description="eps_high: ratio clipped at 1 + clip_high (0.28 in DAPO)")
    beta: float = Field(0.0, ge=0, le=10, description="KL to the reference in the loss, per token (0.04 in 2402.03300)")
    kl: Literal["k2", "k3"] = Field(
        "k3", description="estimator in the loss; k3 as in the paper, k2 for the reverse KL's gradient"
    )


def needs(params: Params) -> frozenset[Need]:
    assert isinstance(params, GRPOParams)
    return frozenset({"scores", "reference"}) if params.beta > 0 else frozenset({"scores"})


def credit(scores: Scores, batch: Batch, params: Params, state: State) -> Credit:
    """The group-relative advantage, the same for every token of a response; rows without a reward leave the batch."""
    assert isinstance(params, GRPOParams) and batch.group is not None
    reward, known = weighted_reward(scores.score, scores.valid, scores.weight, batch.group)
    centred = group_advantage(reward, known, batch.group)
    if params.advantage == "group":
        advantage = centred / (group_std(reward, known, batch.group) + STD_EPSILON)
    elif params.advantage == "batch":
        advantage = centred / (reward[known].std() + STD_EPSILON) if int(known.sum()) > 1 else centred
    else:
        advantage = (
            leave_one_out_advantage(reward, known, batch.group) if params.advantage == "leave_one_out" else centred
        )
    # Rounding noise of equal rewards must not be blown up by the division.
    advantage = torch.where(constant_groups(reward, known, batch.group), torch.zeros_like(advantage), advantage)
    return Credit(batch.with_(advantage=advantage.unsqueeze(1) * batch.mask), known, state)


def loss(outputs: Outputs, batch: Batch, params: Params) -> Loss:
    """-min(rho A, clip(rho) A) + beta k per token (B, T); weights and norms by the named aggregation."""
    assert isinstance(params, GRPOParams)
    assert outputs.logp is not None and outputs.entropy is not None and batch.advantage is not None
    weight, norm = aggregation_weights(batch.mask, AGGREGATION[params.aggregation], params.length)
    ratio = importance_ratio(outputs.logp, batch.logp_old)
    value = -clipped_surrogate(ratio, batch.advantage, params.clip_low, params.clip_high)
    low, high = clipped_shares(ratio, batch.advantage, params.clip_low, params.clip_high)
    metrics = {
        "entropy": metric(outputs.entropy, batch.mask),
        "ratio": metric(ratio, batch.mask),
        "clip_ratio/low_mean": metric(low, batch.mask),
        "clip_ratio/high_mean": metric(high, batch.mask),
    }
    if params.beta > 0:
        assert batch.logp_ref is not None
        value = value + params.beta * kl_estimate(outputs.logp, batch.logp_ref, params.kl)
        metrics["kl"] = metric(kl_estimate(outputs.logp, batch.logp_ref, "k3"), batch.mask)
    return Loss(value, weight, norm, metrics)


ALGORITHM = Algorithm(params=GRPOParams, data="rollouts", loss=loss, credit=credit, needs=needs)
