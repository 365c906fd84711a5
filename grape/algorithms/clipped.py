"""The clipped surrogate (PPO, 1707.06347) as a loss, for PPO and for those that credit a response relative to its group.

    L_t = -min(rho_t A_t, clip(rho_t, 1-eps_lo, 1+eps_hi) A_t)              rho_t = pi/pi_old
    gspo    one ratio per response, the geometric mean of its tokens' (2507.18071)
    cispo   L_t = -stopgrad(min(rho_t, 1+eps_hi)) A_t log pi                 the weight is clipped, not the gradient (2506.13585)

The aggregation names what the mean is over: `grpo` counts every response alike (2402.03300), `dapo` every token of the round
(2503.14476), `bnpo` every token of the mini-batch, `dr_grpo` divides by a constant length (2503.20783).
"""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator
from torch import Tensor

from grape.algorithms.base import Sum
from grape.algorithms.penalty import PenaltyParams, loss_penalty
from grape.maths.kl import kl_estimate
from grape.maths.masked import Aggregation, aggregation_weights, metric
from grape.maths.surrogate import cispo_surrogate, clipped_shares, clipped_surrogate, importance_ratio, sequence_ratio
from grape.types import Batch, Loss, Outputs, Rollouts

AGGREGATION: dict[str, Aggregation] = {"grpo": "sequence_mean", "dapo": "round_mean", "bnpo": "token_mean", "dr_grpo": "constant"}


class ClipParams(PenaltyParams):
    clip_low: float = Field(0.2, gt=0, lt=1, description="eps_low: ratio clipped at 1 - clip_low (1707.06347)")
    clip_high: float = Field(0.2, gt=0, le=10, description="eps_high: ratio clipped at 1 + clip_high (0.28 in DAPO)")
    dual_clip: float | None = Field(None, gt=1, description="floor c A of the objective for A < 0 (3 in 1912.09729)")


class GroupParams(ClipParams):
    """Knobs of a clipped update whose advantage is the same for every token of a response."""

    objective: Literal["clip", "gspo", "cispo"] = Field("clip", description="token ratio | sequence ratio | clipped weight")
    aggregation: Literal["grpo", "dapo", "dr_grpo", "bnpo"] = Field(
        "grpo", description="mean per response | token of the round | constant L_max | token of the mini-batch"
    )
    length: int | None = Field(None, ge=1, description="L_max of dr_grpo and overlong, tokens; null: rl.max_new_tokens")

    @model_validator(mode="after")
    def _clips_of_cispo(self) -> Self:
        if self.objective == "cispo" and self.dual_clip is not None:
            raise ValueError("cispo clips the weight from above alone: dual_clip has no place in it")
        return self


def clipped(batch: Batch, ratio: Tensor, params: ClipParams) -> Tensor:
    """-min(rho A, clip(rho, 1-eps_lo, 1+eps_hi) A), at least c A where A < 0 with `dual_clip`; (B, T) as `ratio`."""
    return -clipped_surrogate(ratio, batch.advantage, params.clip_low, params.clip_high, params.dual_clip)


def clip_metrics(outputs: Outputs, batch: Batch, ratio: Tensor, params: ClipParams) -> dict[str, Sum]:
    """What a clipped update looked like: entropy, ratio, shares of tokens clipped below and above. `ratio` (B, T)."""
    low, high = clipped_shares(ratio, batch.advantage, params.clip_low, params.clip_high)
    return {
        "entropy": metric(outputs.entropy, batch.mask),
        "ratio": metric(ratio, batch.mask),
        "clip_ratio/low_mean": metric(low, batch.mask),
        "clip_ratio/high_mean": metric(high, batch.mask),
    }


def round_length(rollouts: Rollouts, keep: Tensor) -> Tensor:
    """(B,) mean response length of the rows that stay, for the aggregation over the tokens of the round."""
    return (rollouts.mask[keep].sum() / keep.sum().clamp(min=1)).expand(rollouts.rows)


def group_loss(outputs: Outputs, batch: Batch, params: GroupParams) -> Loss:
    """The clipped surrogate + beta k per token (B, T); weights and norms by the named aggregation."""
    how, length = AGGREGATION[params.aggregation], params.length or batch.limit
    weight, norm = aggregation_weights(batch.mask, how, length, batch.get("length"))
    ratio = importance_ratio(outputs.logp, batch.get("logp_old"))
    if params.objective == "gspo":
        ratio = sequence_ratio(outputs.logp, batch.get("logp_old"), batch.mask)
    metrics = clip_metrics(outputs, batch, ratio, params)
    if (reference := batch.get("logp_ref")) is not None:
        metrics["kl"] = metric(kl_estimate(outputs.logp, reference, "k3"), batch.mask)
    if params.objective == "cispo":
        value = -cispo_surrogate(outputs.logp, ratio, batch.advantage, params.clip_high)
    else:
        value = clipped(batch, ratio, params)
    return Loss(value + loss_penalty(params, outputs, batch), weight, norm, metrics)
