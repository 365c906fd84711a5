"""Kullback-Leibler divergences: exact over the vocabulary, and estimators from samples y ~ pi.

The *value* of an estimator and the *gradient* it gives as a loss are two things (Schulman, "Approximating KL divergence"):

    estimator  value for y ~ pi                  E[gradient] as a loss
    k1         unbiased for KL(pi||ref)          0
    k2         biased, low variance              that of KL(pi||ref), the reverse KL, on-policy
    k3         unbiased, >= 0, low variance      that of KL(ref||pi), the forward KL

The gradients hold for what the estimator is taken over: of a whole response that of the response's KL; of single tokens, as losses
take it, that of the KL at each state, without what a token does to the states after it.

So a KL penalty meant to be the reverse KL is `k1` placed in the reward or `k2` placed in the loss.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor

Estimator = Literal["k1", "k2", "k3"]

# exp() of a larger log-ratio says nothing but "far away", and overflows the gradient.
LOG_RATIO_LIMIT = 20.0


def kl_estimate(logp: Tensor, logp_ref: Tensor, estimator: Estimator) -> Tensor:
    """Per-token estimate of KL(pi||ref) in nats, shape of the inputs.

    With d = log pi - log ref:  k1 = d,  k2 = d^2 / 2,  k3 = exp(-d) + d - 1.
    """
    d = logp - logp_ref
    if estimator == "k1":
        return d
    if estimator == "k2":
        return 0.5 * d.square()
    e = (-d).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
    return e.exp() - e - 1.0


def kl_exact(logp_p: Tensor, logp_q: Tensor) -> Tensor:
    """KL(p||q) = sum_v p(v) (log p(v) - log q(v)), nats.

    Args:
        logp_p, logp_q: (..., V) log-probabilities.

    Returns:
        (...) the divergence at every position.
    """
    return (logp_p.exp() * (logp_p - logp_q)).sum(-1)
