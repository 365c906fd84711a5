"""Rejection sampling (best-of-N and imitate): keep the best of one's own answers and fine-tune on them.

sampled: G responses per prompt · scored: R_i · credited: 1 to what is kept, the rest leaves · minimised: its surprise (SFT).

    S(x) = the `keep` best of y_1..y_G ~ pi_k(.|x);      L = - sum_{i in S, t} m_it log pi(y_it | s_t) / sum_{i in S, t} m_it

One round of it is the rejection sampling of Llama 2 (2307.09288); sampling every round from the policy so far is RAFT
(2304.06767); a `threshold` instead of the best is the filter of ReST (2308.08998). As a gradient it is REINFORCE with advantage
1[y in S]: nothing is learned from bad answers, and entropy falls fast. KL(best-of-N||pi) <= log N - (N-1)/N (2401.01879).

Departures: `above_mean` drops answers no better than their group's mean, else the "best" of four equally bad answers is
imitated as well; the same answer twice counts once (`dedupe`), else a likely answer is reinforced for being likely.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from grape.algorithms import sft
from grape.algorithms.base import Algorithm, Credit, Needs, OnlineParams, State
from grape.maths.advantage import REWARD_TOLERANCE, group_mean
from grape.maths.masked import metric
from grape.types import Batch, Loss, Outputs, Rollouts, Scores


class RejectionParams(OnlineParams):
    keep: int = Field(1, ge=1, description="best responses kept per prompt")
    threshold: float | None = Field(None, description="least reward of a kept response; null: none")
    above_mean: bool = Field(True, description="keep only what is better than the mean of its group")
    dedupe: bool = Field(True, description="of equal responses to a prompt keep one")


def needs(params: RejectionParams) -> Needs:
    return frozenset({"group"} if params.above_mean else ())


def first_of_equals(rollouts: Rollouts, known: Tensor) -> Tensor:
    """(B,) bool: known, and no earlier known response to the same prompt has the same tokens."""
    seen: set[tuple[int, ...]] = set()
    first = []
    for group, ids, mask, has in zip(rollouts.group.tolist(), rollouts.response, rollouts.mask, known.tolist(), strict=True):
        key = (group, *ids[mask].tolist())
        first.append(has and key not in seen)
        if has:
            seen.add(key)
    return torch.tensor(first, device=rollouts.response.device)


def credit(scores: Scores, rollouts: Rollouts, params: RejectionParams, state: State) -> Credit:
    """Which rows are kept; `accepted` is their share."""
    reward, known = scores.reward(rollouts.group)
    eligible = first_of_equals(rollouts, known) if params.dedupe else known
    if params.threshold is not None:
        eligible = eligible & (reward >= params.threshold)
    if params.above_mean:
        eligible = eligible & (reward > group_mean(reward, known, rollouts.group) + REWARD_TOLERANCE)
    keep = torch.zeros_like(eligible)
    for group in torch.unique(rollouts.group[eligible]):
        rows = (eligible & (rollouts.group == group)).nonzero().squeeze(1)
        # Stable: among equal rewards the first sampled is kept.
        keep[rows[torch.argsort(reward[rows], descending=True, stable=True)[: params.keep]]] = True
    accepted = metric(keep.float(), torch.ones_like(reward))
    return Credit(rollouts.per_token(keep.float()), keep, state, {"accepted": accepted})


def loss(outputs: Outputs, batch: Batch, params: RejectionParams) -> Loss:
    """SFT's loss on the rows that were kept."""
    return sft.loss(outputs, batch, params)


ALGORITHM = Algorithm(params=RejectionParams, data="rollouts", loss=loss, credit=credit, needs=needs)
