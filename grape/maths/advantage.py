"""From scores to rewards to advantages. (B,) rows in groups: `group[i]` is the index of the prompt that row i answers."""

from __future__ import annotations

import torch
from torch import Tensor

# Differences of rewards below this are rounding, not information.
REWARD_TOLERANCE = 1e-6


def group_sum(x: Tensor, group: Tensor) -> Tensor:
    """(B, ...) -> (P, ...) sums over the rows of each group."""
    groups = int(group.max()) + 1 if len(group) else 0
    return torch.zeros((groups, *x.shape[1:]), dtype=x.dtype, device=x.device).index_add_(0, group, x)


def group_mean(x: Tensor, valid: Tensor, group: Tensor) -> Tensor:
    """(B, ...) mean over the valid rows of the row's own group, 0 where the group has none."""
    count = group_sum(valid.to(x.dtype), group)
    total = group_sum(torch.where(valid, x, torch.zeros_like(x)), group)
    return (total / count.clamp(min=1))[group]


def weighted_reward(score: Tensor, valid: Tensor, weight: Tensor, group: Tensor) -> tuple[Tensor, Tensor]:
    """R_i = sum_k w_k s_ik / sum_k w_k over the items of the prompt's rubric (RaR's explicit aggregation, 2507.17746).

    A missing score takes the mean of that item over the group's valid scores, so it moves nobody's advantage through that
    item; an item that is missing for the whole group leaves the rubric of that group, numerator and denominator.

    Args:
        score, valid, weight: (B, K).
        group: (B,).

    Returns:
        reward (B,) and known (B,) bool: False where not one item of the row could be scored; such a row has no reward, not 0.
    """
    imputed = torch.where(valid, score, group_mean(score, valid, group))
    scored = group_sum(valid.to(score.dtype), group)[group] > 0
    weight = torch.where(scored, weight, torch.zeros_like(weight))
    total = weight.sum(1)
    reward = (imputed * weight).sum(1) / torch.where(total > 0, total, torch.ones_like(total))
    known = (total > 0) & (valid & (weight > 0)).any(1)
    return torch.where(known, reward, torch.zeros_like(reward)), known


def group_advantage(reward: Tensor, known: Tensor, group: Tensor) -> Tensor:
    """A_i = R_i - mean_j R_j over the known rows of the group, 0 for unknown rows. Sums to zero in every group."""
    return torch.where(known, reward - group_mean(reward, known, group), torch.zeros_like(reward))


def leave_one_out_advantage(reward: Tensor, known: Tensor, group: Tensor) -> Tensor:
    """A_i = R_i - mean_{j != i} R_j = G/(G-1) (R_i - mean_j R_j) (RLOO, 2402.14740): unbiased; 0 for a group of one."""
    count = group_sum(known.to(reward.dtype), group)[group]
    return group_advantage(reward, known, group) * torch.where(count > 1, count / (count - 1).clamp(min=1), 0.0)


def group_std(reward: Tensor, known: Tensor, group: Tensor) -> Tensor:
    """(B,) standard deviation of the row's group, two passes, divisor G - 1 (torch.std); 0 for a group of one."""
    centred = group_advantage(reward, known, group)
    count = group_sum(known.to(reward.dtype), group)
    return (group_sum(centred.square(), group) / (count - 1).clamp(min=1)).sqrt()[group]


def constant_groups(reward: Tensor, known: Tensor, group: Tensor) -> Tensor:
    """(B,) bool: all known rewards of the row's group are equal (max - min within tolerance), so it teaches nothing."""
    groups = int(group.max()) + 1 if len(group) else 0
    high = torch.full((groups,), -torch.inf, dtype=reward.dtype, device=reward.device)
    low = torch.full((groups,), torch.inf, dtype=reward.dtype, device=reward.device)
    high = high.scatter_reduce(0, group, torch.where(known, reward, -torch.inf), "amax")
    low = low.scatter_reduce(0, group, torch.where(known, reward, torch.inf), "amin")
    return ((high - low) <= REWARD_TOLERANCE)[group]
