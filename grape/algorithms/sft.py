"""Supervised fine-tuning: imitate the demonstrations (Ouyang et al. 2022, 2203.02155, step 1).

sampled: nothing, the demonstrations are given · scored: nothing · credited: every token of them · minimised: their surprise.

    L = - sum_{i,t} m_it log pi(y_it | x_i, y_i<t) / sum_{i,t} m_it

Its gradient is that of REINFORCE with advantage 1 on expert data. The mask m covers the response including EOS (else the
model never learns to stop), never the prompt. The mean is over tokens of the whole batch: a mean per sequence would weigh a
token of a short answer more. Pre-training is the same loss with an empty prompt.
"""

from __future__ import annotations

from grape.algorithms.base import Algorithm, AlgorithmParams
from grape.maths.masked import aggregation_weights, metric
from grape.types import Batch, Loss, Outputs


def loss(outputs: Outputs, batch: Batch, params: AlgorithmParams) -> Loss:
    """Negative log-likelihood per response token, nats: value (B, T), weight m, norm the response lengths."""
    weight, norm = aggregation_weights(batch.mask, "token_mean", 0)
    return Loss(-outputs.logp, weight, norm, {"entropy": metric(outputs.entropy, weight)})


ALGORITHM = Algorithm(params=AlgorithmParams, data="text", loss=loss)
