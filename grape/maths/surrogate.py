"""Surrogate objectives of the policy gradient. All shapes (B, T); `advantage` is a constant."""

from __future__ import annotations

import torch
from torch import Tensor

from grape.maths.kl import LOG_RATIO_LIMIT


def importance_ratio(logp: Tensor, logp_old: Tensor | None) -> Tensor:
    """rho_t = pi_theta(y_t|s_t) / pi_old(y_t|s_t). Without `logp_old` the policy sampled for itself: 1, with its gradient."""
    old = logp.detach() if logp_old is None else logp_old
    return (logp - old).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT).exp()


def sequence_ratio(logp: Tensor, logp_old: Tensor | None, mask: Tensor) -> Tensor:
    """GSPO (2507.18071): s = exp(mean_t (log pi - log pi_old)), the geometric mean of the token ratios, at every token (B, T).

    Every token's gradient is that of s divided by the response's length.
    """
    old = logp.detach() if logp_old is None else logp_old
    mean = ((logp - old) * mask).sum(1, keepdim=True) / mask.sum(1, keepdim=True).clamp(min=1)
    return mean.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT).exp().expand_as(logp)


def clipped_surrogate(
    ratio: Tensor, advantage: Tensor, clip_low: float, clip_high: float, dual_clip: float | None = None
) -> Tensor:
    """min(rho A, clip(rho, 1 - clip_low, 1 + clip_high) A), to be maximised (PPO, 1707.06347, eq. 7).

    The gradient is zero exactly where A > 0 and rho > 1 + clip_high, or A < 0 and rho < 1 - clip_low.

    Args:
        dual_clip: c > 1: where A < 0 the objective is at least c A (1912.09729), so that one very likely bad token cannot
            dominate; None: no such floor.
    """
    clipped = ratio.clamp(1.0 - clip_low, 1.0 + clip_high)
    surrogate = torch.minimum(ratio * advantage, clipped * advantage)
    if dual_clip is None:
        return surrogate
    return torch.where(advantage < 0, torch.maximum(surrogate, dual_clip * advantage), surrogate)


def cispo_surrogate(logp: Tensor, ratio: Tensor, advantage: Tensor, clip_high: float) -> Tensor:
    """CISPO (2506.13585): stopgrad(min(rho, 1 + clip_high)) A log pi. The weight is clipped, no token loses its gradient."""
    return ratio.detach().clamp(max=1.0 + clip_high) * advantage * logp


def clipped_shares(ratio: Tensor, advantage: Tensor, clip_low: float, clip_high: float) -> tuple[Tensor, Tensor]:
    """0/1 where the clip takes the gradient away: (below, above). Sign-aware, unlike counting ratios outside the range."""
    low = (ratio < 1.0 - clip_low) & (advantage < 0)
    high = (ratio > 1.0 + clip_high) & (advantage > 0)
    return low.float(), high.float()
