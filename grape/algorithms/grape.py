"""GRAPE, generalized relative advantage policy evolution (2509.04501): rubrics whose items count as far as their judge is sure.

sampled: G responses per prompt · scored: s_ik and confidence c_ik for every item k of the category's rubric · credited: relative
to the group · minimised: PPO's clipped surrogate. No value model, and no reward model unless an item is one.

    cbar_k = mean of c_ik over the scope                         how sure the judge of item k is, not of response i
    R_i = sum_k w_k cbar_k s_ik / sum_k w_k cbar_k
    A_it = R_i - mean_j R_j                                       the same for every token of response i
    L = - 1/N sum m_it min(rho_it A_i, clip(rho_it, 1-eps_lo, 1+eps_hi) A_i)   + beta KL

Averaging the confidence over samples is what keeps it honest: weighted by its own c_ik, a response that fails an item but leaves
the judge unsure about it would escape the item. `scope: sample` does that, as an ablation, and warns. The mean of the same group
makes the weights depend on what was sampled (a bias that vanishes with G); `ema` takes it from earlier rounds and is unbiased.

GRPO is the case of one item, `advantage: mean_std`, `aggregation: grpo`; rubrics as rewards (RaR, 2507.17746) that of constant
confidence. The paper gives neither the divisor of R, nor a division by the group's std, nor where KL goes: those are knobs here.

`revise` makes a share of a round's prompts ask to mend an answer, given its critique: a prompt of its own, with a group of its own.
An item nobody is sure about (all c 0) has no influence; where that is all there is, the group gives no gradient.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from grape.algorithms.base import Algorithm, Credit, Needs, State, Sum
from grape.algorithms.clipped import GroupParams, group_loss, round_length
from grape.algorithms.penalty import penalty_needs, reward_penalty
from grape.maths.advantage import Relative, constant_groups, group_advantage, group_sum, relative, weighted_reward
from grape.maths.items import distilled, item_advantage, per_item_advantage
from grape.maths.masked import metric
from grape.types import Batch, Loss, Outputs, Rollouts, Scores

STATE = "confidence/"
ADVANTAGE: dict[str, Relative] = {"mean": "mean", "leave_one_out": "leave_one_out", "mean_std": "group_std"}


class GRAPEParams(GroupParams):
    scope: Literal["group", "batch", "ema", "sample"] = Field(
        "group", description="over what an item's confidence is averaged; sample: not at all, which can be gamed"
    )
    decay: float = Field(0.9, ge=0, lt=1, description="of the ema scope, per round")
    norm: Literal["conf", "weight", "none"] = Field("conf", description="R divided by sum w cbar | sum w | nothing")
    exponent: float = Field(1.0, ge=0, le=10, description="of the confidence; 0: all items count by weight alone (RaR)")
    floor: float = Field(0.0, ge=0, le=1, description="least mean confidence an item is given")
    advantage: Literal["mean", "leave_one_out", "mean_std", "per_item"] = Field(
        "mean", description="R - mean | - mean of the others | over the group's std | item by item over its std (GDPO)"
    )
    aggregation: Literal["grpo", "dapo", "dr_grpo", "bnpo"] = Field("dapo", description="as in GRPO")
    revision: Literal["second_turn", "distil"] = Field(
        "second_turn", description="what `revise` trains: revising, given the critique | plain answers, by better revisions"
    )
    revision_margin: float = Field(0.0, ge=0, le=1, description="by how much a revision must beat its group's best to be distilled")

    @property
    def distils(self) -> bool:
        return self.revision == "distil"

    @model_validator(mode="after")
    def _checked(self) -> GRAPEParams:
        if self.distils and self.advantage not in ("mean", "leave_one_out"):
            raise ValueError("revision: distil compares rewards of two groups; advantage must be mean or leave_one_out")
        if self.scope == "sample":
            warnings.warn("scope: sample is an ablation: a policy can gain by leaving the judge unsure", stacklevel=2)
        return self


def needs(params: GRAPEParams) -> Needs:
    return penalty_needs(params) | {"group"}


def item_confidence(scores: Scores, group: Tensor, params: GRAPEParams, state: State) -> tuple[Tensor, dict[str, float]]:
    """cbar (B, K), the same in all rows of a group unless the scope is `sample`, and the items' means of this round.

    A missing score counts with confidence 0: an item whose judge fails often weighs less.
    """
    asked = (scores.weight > 0).float()
    given = torch.where(scores.valid, scores.confidence, torch.zeros_like(scores.confidence)) * asked
    whole = given.sum(0) / asked.sum(0).clamp(min=1)
    means = {item: float(whole[k]) for k, item in enumerate(scores.items) if float(asked[:, k].sum()) > 0}
    if params.scope == "sample":
        mean = given
    elif params.scope == "group":
        mean = (group_sum(given, group) / group_sum(asked, group).clamp(min=1))[group]
    elif params.scope == "batch":
        mean = whole.expand_as(given)
    else:  # what earlier rounds say; an item that was never asked yet has only this round
        known = [state.get(STATE + item, means.get(item, 0.0)) for item in scores.items]
        mean = torch.tensor(known, dtype=given.dtype, device=given.device).expand_as(given)
    return mean.clamp(min=params.floor).pow(params.exponent) * asked, means


def weigh(
    scores: Scores, rollouts: Rollouts, params: GRAPEParams, state: State
) -> tuple[Tensor, Tensor, Tensor, Mapping[str, float]]:
    """R (B,), whether it is known (B,), the items' share omega of it (B, K), and the items' mean confidences of this round."""
    confidence, means = item_confidence(scores, rollouts.group, params, state)
    if params.distils and (revises := rollouts.get("revises")) is not None:
        # One yardstick for an answer and its revision, which will be compared.
        confidence = confidence[torch.where(revises >= 0, revises, torch.arange(rollouts.rows, device=revises.device))]
    # An item that nobody of the group has a score of is no part of the group's rubric.
    scored = group_sum(scores.valid.float(), rollouts.group)[rollouts.group] > 0
    weight = scores.weight * confidence * scored
    reward, known = weighted_reward(scores.score, scores.valid, weight, rollouts.group)
    total = weight.sum(1)
    if params.norm != "conf":
        reward = reward * total / ((scores.weight * scored).sum(1).clamp(min=1e-12) if params.norm == "weight" else 1.0)
    return reward, known, weight / total.clamp(min=1e-12).unsqueeze(1), means


def item_metrics(scores: Scores, rollouts: Rollouts, reward: Tensor, known: Tensor, share: Tensor) -> dict[str, Sum]:
    """Of plain prompts: what was maximised, where nobody was sure, per item its share of the reward and part of the advantage."""
    revises = rollouts.get("revises")
    plain = torch.ones_like(known) if revises is None else revises < 0
    known = known & plain
    metrics = {"grape/reward": metric(reward, known), "unsure": metric((share.sum(1) == 0).float(), plain)}
    part = share * item_advantage(scores.score, scores.valid & (scores.weight > 0), rollouts.group)
    for k, item in enumerate(scores.items):
        asked = scores.weight[:, k] > 0
        if bool(asked.any()):
            metrics[f"rubric/{item}/weight"] = metric(share[:, k], asked & known)
            metrics[f"rubric/{item}/advantage"] = metric(part[:, k].abs(), asked & known)
    return metrics


def credit(scores: Scores, rollouts: Rollouts, params: GRAPEParams, state: State) -> Credit:
    """The group-relative advantage of the confidence-weighted reward. State: the items' running confidences, the KL's beta."""
    reward, known, share, means = weigh(scores, rollouts, params, state)
    penalty, beta, state = reward_penalty(params, rollouts, state)
    reward = reward - penalty.sum(1)
    if params.advantage == "per_item":
        asked = scores.valid & (scores.weight > 0)
        dearer = group_advantage(penalty.sum(1), known, rollouts.group)
        advantage = (per_item_advantage(scores.score, asked, share, rollouts.group) - dearer) * known
    else:
        flat = constant_groups(reward, known, rollouts.group)
        advantage = relative(reward, known, rollouts.group, ADVANTAGE[params.advantage]).masked_fill(flat, 0.0)
    metrics = item_metrics(scores, rollouts, reward, known, share)
    keep = known
    if params.distils and (revises := rollouts.get("revises")) is not None:
        advantage, keep = distilled(reward, known, advantage, rollouts.group, revises, params.revision_margin)
        metrics["revision/accepted"] = metric((keep & (revises >= 0)).float(), revises >= 0)
    ema = {STATE + k: params.decay * state.get(STATE + k, mean) + (1 - params.decay) * mean for k, mean in means.items()}
    length = round_length(rollouts, keep)
    return Credit(rollouts.per_token(advantage), keep, {**state, **ema}, metrics, beta=beta, length=length)


def loss(outputs: Outputs, batch: Batch, params: GRAPEParams) -> Loss:
    """-min(rho A, clip(rho) A) + beta k per token (B, T); weights and norms by the named aggregation: GRPO's."""
    return group_loss(outputs, batch, params)


ALGORITHM = Algorithm(params=GRAPEParams, data="rollouts", loss=loss, credit=credit, needs=needs)
