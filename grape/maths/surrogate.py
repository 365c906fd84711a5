"""Surrogate objectives of the policy gradient. All shapes (B, T); `advantage` is a constant."""

from __future__ import annotations

import torch
from torch import Tensor

from grape.maths.kl import LOG_RATIO_LIMIT


def importance_ratio(logp: Tensor, logp_old: Tensor | None) -> Tensor:
    """rho_t = pi_theta(y_t|s_t) / pi_old(y_t|s_t). Without `logp_old` the policy sampled for itself: 1, with its gradient."""
    old = logp.detach() if logp_old is None else logp_old
    return (logp - old).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT).exp()


def clipped_surrogate(ratio: Tensor, advantage: Tensor, clip_low: float, clip_high: float) -> Tensor:
    """min(rho A, clip(rho, 1 - clip_low, 1 + clip_high) A), to be maximised (PPO, 1707.06347, eq. 7).

    The gradient is zero exactly where A > 0 and rho > 1 + clip_high, or A < 0 and rho < 1 - clip_low.
    """
    clipped = ratio.clamp(1.0 - clip_low, 1.0 + clip_high)
    return torch.minimum(ratio * advantage, clipped * advantage)


def clipped_shares(ratio: Tensor, advantage: Tensor, clip_low: float, clip_high: float) -> tuple[Tensor, Tensor]:
    """0/1 where the clip takes the gradient away: (below, above). Sign-aware, unlike counting ratios outside the range."""
    low = (ratio < 1.0 - clip_low) & (advantage < 0)
    high = (ratio > 1.0 + clip_high) & (advantage > 0)
    return low.float(), high.float()
