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
from grape.algorithms.base import Algorithm, Credit, Need, OnlineParams, Params, State
from grape.maths.advantage import REWARD_TOLERANCE, group_mean, weighted_reward
from grape.types import Batch, Loss, Outputs, Scores


class RejectionParams(OnlineParams):
    keep: int = Field(1, ge=1, description="best responses kept per prompt")
    threshold: float | None = Field(None, description="least reward of a kept response; null: none")
    above_mean: bool = Field(True, description="keep only what is better than the mean of its group")
    dedupe: bool = Field(True, description="of equal responses to a prompt keep one")

    @property
    def compares(self) -> bool:
        return self.above_mean


def needs(params: Params) -> frozenset[Need]:
    return frozenset({"scores"})


def first_of_equals(batch: Batch, known: Tensor) -> Tensor:
    """(B,) bool: known, and no earlier known response to the same prompt has the same tokens."""
    assert batch.group is not None
    seen: set[tuple[int, ...]] = set()
    first = []
    for group, ids, mask, has in zip(batch.group.tolist(), batch.response, batch.mask, known.tolist(), strict=True):
        key = (group, *ids[mask].tolist())
        first.append(has and key not in seen)
        if has:
            seen.add(key)
    return torch.tensor(first, device=batch.response.device)


def credit(scores: Scores, batch: Batch, params: Params, state: State) -> Credit:
    """Which rows are kept; `accepted` is their share."""
    assert isinstance(params, RejectionParams) and batch.group is not None
    reward, known = weighted_reward(scores.score, scores.valid, scores.weight, batch.group)
    eligible = first_of_equals(batch, known) if params.dedupe else known
    if params.threshold is not None:
        eligible = eligible & (reward >= params.threshold)
    if params.above_mean:
        eligible = eligible & (reward > group_mean(reward, known, batch.group) + REWARD_TOLERANCE)
    keep = torch.zeros_like(eligible)
    for group in torch.unique(batch.group[eligible]):
        rows = (eligible & (batch.group == group)).nonzero().squeeze(1)
        # Stable: among equal rewards the first sampled is kept.
        keep[rows[torch.argsort(reward[rows], descending=True, stable=True)[: params.keep]]] = True
    share = keep.float().sum(), torch.tensor(float(len(keep)))
    return Credit(batch.with_(advantage=keep.float().unsqueeze(1) * batch.mask), keep, state, {"accepted": share})


def loss(outputs: Outputs, batch: Batch, params: Params) -> Loss:
    """SFT's loss on the rows that were kept."""
    return sft.loss(outputs, batch, params)


ALGORITHM = Algorithm(params=RejectionParams, data="rollouts", loss=loss, credit=credit, needs=needs)
