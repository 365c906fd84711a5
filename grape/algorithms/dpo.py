"""DPO, direct preference optimisation (2305.18290): the policy that RLHF would end at, learned from the pairs themselves.

sampled: nothing, the pairs are given · scored: nothing · credited: the pair · minimised: the surprise of the preference.

The optimum of E[r] - beta KL(pi||ref) is pi* = ref exp(r / beta) / Z(x), so r = beta log(pi* / ref) + beta log Z(x); in
Bradley-Terry's difference of rewards Z cancels, and the reward model's loss becomes one of the policy:

    L = -log sigma(h),      h = beta [ (log pi(y_w|x) - log ref(y_w|x)) - (log pi(y_l|x) - log ref(y_l|x)) ]

Log-probabilities are *summed* over the response. Gradient: -beta sigma(-h) (grad log pi(y_w) - grad log pi(y_l)): pairs already
told apart count less. At the start pi = ref: h = 0, loss ln 2. Both log-probabilities may fall while the margin grows
(`logps/chosen` tells); `sft` adds the chosen answers' likelihood against that (2404.19733). Variants, each a knob: IPO, hinge,
label smoothing (cDPO), log-probabilities per token against the pull to long answers.
"""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from grape.algorithms.base import Algorithm, Needs, SlotParams
from grape.maths.masked import metric
from grape.maths.preference import dpo_loss, split_pairs
from grape.types import Batch, Loss, Outputs


class DPOParams(SlotParams):
    beta: float = Field(0.1, gt=0, le=10, description="strength of the tie to the reference (0.1 in 2305.18290)")
    loss: Literal["sigmoid", "ipo", "hinge"] = Field("sigmoid", description="DPO | 2310.12036 | 2305.10425")
    label_smoothing: float = Field(0.0, ge=0, lt=0.5, description="share of pairs labelled the wrong way round (cDPO)")
    length_normalised: bool = Field(False, description="log-probabilities per token instead of per response")
    sft: float = Field(0.0, ge=0, description="weight of the chosen answer's surprise per token (2404.19733: 1)")

    @model_validator(mode="after")
    def _smoothing_is_the_sigmoids(self) -> Self:
        if self.label_smoothing and self.loss != "sigmoid":
            raise ValueError(f"label_smoothing belongs to the sigmoid loss, not to {self.loss}")
        return self


def needs(params: DPOParams) -> Needs:
    return frozenset({"reference"})


def loss(outputs: Outputs, batch: Batch, params: DPOParams) -> Loss:
    """The preference loss of every pair (N,), averaged over pairs."""
    length = batch.mask.sum(1).clamp(min=1)
    divisor = length if params.length_normalised else 1
    logp, logp_ref = outputs.logp.sum(1), batch.logp_ref.sum(1)
    gain_chosen, gain_rejected = split_pairs((logp - logp_ref) / divisor)
    margin = gain_chosen - gain_rejected
    value = dpo_loss(margin, params.beta, params.loss, params.label_smoothing)
    chosen, rejected = split_pairs(logp)
    if params.sft > 0:
        value = value - params.sft * chosen / split_pairs(length)[0]
    ones = value.detach().new_ones(value.shape)
    metrics = {
        "accuracy": metric((margin > 0).float(), ones),
        "margin": metric(params.beta * margin, ones),
        "rewards/chosen": metric(params.beta * gain_chosen, ones),
        "rewards/rejected": metric(params.beta * gain_rejected, ones),
        "logps/chosen": metric(chosen, ones),
        "logps/rejected": metric(rejected, ones),
    }
    return Loss(value, ones, ones, metrics)


ALGORITHM = Algorithm(params=DPOParams, data="pairs", loss=loss, needs=needs)
