"""The reward model (Bradley-Terry): a scalar r(x, y) whose differences explain which answer was preferred.

sampled: nothing, the pairs are given · scored: r of both · credited: the pair · minimised: the surprise of the preference.

    P(y_w > y_l | x) = sigma(r(x, y_w) - r(x, y_l)),      L = -log sigma(r_w - r_l - m) + centring (r_w + r_l)^2

Only differences are identified, so the likelihood leaves a constant free: the centring term (Eisenstein et al. 2023,
2312.09244) fixes it near 0. m asks for a larger difference where one answer is much better (Llama 2, 2307.09288): a multiple
of the pair's difference in score, 0 by default (Llama 3 dropped it). The score is read at the last real token of the answer,
by its recorded length, never at "the first pad": with pad == eos that is the wrong place.
Gradient: -(1 - sigma(r_w - r_l - m)) (grad r_w - grad r_l).
"""

from __future__ import annotations

import torch
from pydantic import Field

from grape.algorithms.base import Algorithm, AlgorithmParams
from grape.maths.masked import metric
from grape.maths.preference import bradley_terry, split_pairs
from grape.types import Batch, Loss, Outputs


class RewardModelParams(AlgorithmParams):
    centring: float = Field(0.01, ge=0, le=1, description="weight of (r_w + r_l)^2")
    margin: float = Field(0.0, ge=0, le=100, description="m per unit of the pair's difference in score (2307.09288)")


def loss(outputs: Outputs, batch: Batch, params: RewardModelParams) -> Loss:
    """-log sigma(r_w - r_l - m) + centring (r_w + r_l)^2 per pair (N,), averaged over pairs."""
    chosen, rejected = split_pairs(outputs.score.float())
    ones = torch.ones_like(chosen)
    asked = params.margin * split_pairs(batch.margin)[0] if params.margin > 0 else 0.0
    value = bradley_terry(chosen - rejected - asked) + params.centring * (chosen + rejected).square()
    metrics = {"accuracy": metric((chosen > rejected).float(), ones), "margin": metric(chosen - rejected, ones)}
    return Loss(value, ones, ones, metrics)


ALGORITHM = Algorithm(params=RewardModelParams, data="pairs", loss=loss)
