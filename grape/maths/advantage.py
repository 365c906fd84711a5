"""From scores to rewards to advantages. (B,) rows in groups: `group[i]` is the index of the prompt that row i answers."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Relative = Literal["mean", "leave_one_out", "group_std", "batch_std"]

# Differences of rewards below this are rounding, not information.
REWARD_TOLERANCE = 1e-6
STD_EPSILON = 1e-4  # added to a group's standard deviation before it divides


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


def relative(reward: Tensor, known: Tensor, group: Tensor, how: Relative) -> Tensor:
    """A (B,): R - mean of the group | - mean of the others | R - mean, divided by the group's std | by the batch's std.

    In a group whose rewards are all equal what is left is rounding: `constant_groups` finds those.
    """
    if how == "leave_one_out":
        return leave_one_out_advantage(reward, known, group)
    advantage = group_advantage(reward, known, group)
    if how == "group_std":
        return advantage / (group_std(reward, known, group) + STD_EPSILON)
    if how == "batch_std" and int(known.sum()) > 1:
        return advantage / (reward[known].std() + STD_EPSILON)
    return advantage


def generalized_advantage(
    reward: Tensor, value: Tensor, bootstrap: Tensor, mask: Tensor, lam: float, gamma: float = 1.0
) -> tuple[Tensor, Tensor]:
    """GAE (1506.02438): delta_t = r_t + gamma V(s_t+1) - V(s_t), A_t = sum_k (gamma lam)^k delta_t+k.

    lam = 1 gives return - V(s_t), lam = 0 the one-step error.

    Args:
        reward: (B, T) r_t, units of the reward.
        value: (B, T) V(s_t).
        bootstrap: (B,) V(s_T+1) behind each row's last token: 0 after EOS.
        mask: (B, T), 1 on response tokens, which come first in every row.

    Returns:
        advantage (B, T), 0 outside the mask, and returns A_t + V(s_t) (B, T), before any whitening.
    """
    advantage = torch.zeros_like(value)
    following = torch.zeros_like(bootstrap)
    next_value = bootstrap
    for t in range(value.shape[1] - 1, -1, -1):
        inside = mask[:, t].to(value.dtype)
        delta = reward[:, t] + gamma * next_value - value[:, t]
        following = (delta + gamma * lam * following) * inside
        advantage[:, t] = following
        # Behind the last token the next value stays the bootstrap.
        next_value = torch.where(mask[:, t], value[:, t], next_value)
    return advantage, (advantage + value) * mask


def whiten(x: Tensor, mask: Tensor) -> Tensor:
    """(x - mean) / std over the mask alone, 0 outside it; divisor n - 1."""
    count = mask.sum().clamp(min=2)
    mean = (x * mask).sum() / count
    variance = ((x - mean).square() * mask).sum() / (count - 1)
    return (x - mean) / (variance + 1e-8).sqrt() * mask


def explained_variance(value: Tensor, returns: Tensor, mask: Tensor) -> float:
    """1 - Var(returns - V) / Var(returns) over the mask: 1 is perfect, 0 no better than a constant, below 0 worse."""
    target, error = returns[mask], (returns - value)[mask]
    spread = float(target.var(correction=0)) if len(target) else 0.0
    return 1.0 - float(error.var(correction=0)) / spread if spread > 0 else 0.0
