"""Advantages over the items of a rubric, and those of revisions. (B, K) scores of rows in groups, as in advantage.py."""

from __future__ import annotations

import torch
from torch import Tensor

from grape.maths.advantage import REWARD_TOLERANCE, STD_EPSILON, constant_groups, group_advantage, group_mean, group_std


def per_item_advantage(score: Tensor, asked: Tensor, share: Tensor, group: Tensor) -> Tensor:
    """sum_k omega_k z(s_.k)_i (B,): every item normalised within its group before they are added (GDPO, 2601.05242).

    Args:
        score: (B, K).
        asked: (B, K) bool: the item is part of the row's rubric and has a score.
        share: (B, K) omega, the item's share of the reward.
        group: (B,).
    """
    total = torch.zeros_like(share[:, 0])
    for k in range(share.shape[1]):
        s, valid = score[:, k], asked[:, k]
        z = group_advantage(s, valid, group) / (group_std(s, valid, group) + STD_EPSILON)
        total = total + share[:, k] * torch.where(constant_groups(s, valid, group), torch.zeros_like(z), z)
    return total


def item_advantage(score: Tensor, asked: Tensor, group: Tensor) -> Tensor:
    """s_ik - mean_j s_jk (B, K), 0 where missing: with GRAPE's default, A_i = sum_k omega_k times it."""
    return torch.stack([group_advantage(score[:, k], asked[:, k], group) for k in range(score.shape[1])], 1)


def distilled(
    value: Tensor, known: Tensor, advantage: Tensor, group: Tensor, revises: Tensor, margin: float
) -> tuple[Tensor, Tensor]:
    """Revisions learned as answers to the plain prompt (STaR with the hint removed): the advantage (B,) and the rows that stay.

        A'_i = R'_i - mean of the fresh group,     where R'_i > its best + margin; the other revisions leave the round

    Fresh answers keep the advantage among themselves: better revisions in their group would push all of them down.

    Args:
        value, known, advantage, group: (B,).
        revises: (B,) the row whose answer a row revises; negative: none, the row is a fresh answer.
        margin: by how much a revision must beat its group's best, units of the reward.
    """
    revision, of = revises >= 0, revises.clamp(min=0)
    margin = max(margin, REWARD_TOLERANCE)
    best = torch.full_like(value, -torch.inf).scatter_reduce(0, group, torch.where(known, value, -torch.inf), "amax")
    baseline = group_mean(value, known, group)[of]
    accepted = revision & known & known[of] & (value > best[group][of] + margin)
    return torch.where(accepted, value - baseline, advantage), known & (accepted | ~revision)
