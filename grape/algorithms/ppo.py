"""PPO, proximal policy optimisation (1707.06347), as RLHF uses it: TRPO's caution by clipping, a value model for credit.

sampled: G responses per prompt · scored: R at the last token · credited: per token by GAE · minimised: clipped loss + value loss.

    r_t = 1[t = T] R - beta (log pi_old - log pi_ref)_t
    delta_t = r_t + V(s_t+1) - V(s_t),   A_t = sum_k lam^k delta_t+k,   returns_t = A_t + V(s_t)                 (GAE, 1506.02438)
    L = - sum m_t min(rho_t A_t, clip(rho_t, 1-eps, 1+eps) A_t) / sum m_t
        + c_v sum m_t 1/2 max((V - returns)^2, (clip(V, V_old +- eps_v) - returns)^2) / sum m_t  -  c_e H

The clip takes the gradient away where the ratio has already gone far enough in the advantage's direction; `objective: penalty`
adds beta' KL(pi_old||pi) instead, beta' halved or doubled as the KL of the round's last update is far below or above its
target. With rho = 1, the first update, both are the plain policy gradient. V says what a prefix is worth, so a token is credited
with the change it made; returns come before whitening, whitening covers response tokens alone.

A truncated response has not ended: `penalty` takes a fixed amount off its reward, which suits a limit that is part of the task;
`bootstrap` counts on with V(s_T+1) in place of the reward; `keep` treats it as ended. For the first `value_warmup` rounds the
advantage is 0, so that only the value model learns (a head moves the trunk it shares with the policy all the same).
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from grape.algorithms.base import LAST, Algorithm, Credit, Needs, State, ValueParams
from grape.algorithms.clipped import ClipParams, clip_metrics, clipped
from grape.algorithms.penalty import penalty_needs, reward_penalty
from grape.maths.advantage import explained_variance, generalized_advantage, whiten
from grape.maths.kl import kl_estimate
from grape.maths.masked import aggregation_weights, metric
from grape.maths.surrogate import importance_ratio
from grape.types import Batch, Loss, Outputs, Rollouts, Scores


class PPOParams(ClipParams, ValueParams):
    objective: Literal["clip", "penalty"] = Field("clip", description="what keeps the policy near pi_old (1707.06347)")
    kl: Literal["reward_k1"] = Field("reward_k1", description="the KL to the reference stands in the reward, per token")
    penalty: float = Field(1.0, gt=0, description="first coefficient of KL(pi_old||pi), objective penalty")
    penalty_target: float = Field(0.01, gt=0, description="KL(pi_old||pi) it adapts to, nats per token")
    lam: float = Field(0.95, ge=0, le=1, description="lambda of GAE; 1: return - V (1506.02438)")
    whiten: bool = Field(True, description="advantages to mean 0 and std 1 over the round's response tokens")
    value_coefficient: float = Field(0.5, ge=0, description="c_v; a value model of its own does not feel it")
    value_clip: float | None = Field(0.2, gt=0, description="eps_v, units of the reward; null: no clip")
    value_warmup: int = Field(2, ge=0, description="rounds in which only the value model learns")
    entropy: float = Field(0.0, ge=0, description="c_e, bonus per nat of entropy")
    truncated: Literal["penalty", "bootstrap", "keep"] = Field("penalty", description="a response cut at its limit")
    truncated_penalty: float = Field(0.5, ge=0, description="units of the reward, for truncated: penalty")
    epochs: int = Field(2, ge=1, le=100, description="passes over each round's rollouts")
    mini_batches: int = Field(2, ge=1, le=1024, description="optimiser updates per pass; groups stay together")


def needs(params: PPOParams) -> Needs:
    return penalty_needs(params).union({"old", "value"}, {"entropy"} if params.entropy > 0 else ())


def credit(scores: Scores, rollouts: Rollouts, params: PPOParams, state: State) -> Credit:
    """GAE over response tokens, returns for the value model. State: round, coefficients of the two KLs."""
    reward, known = scores.reward(rollouts.group)
    penalty, beta, state = reward_penalty(params, rollouts, state)
    bootstrap = torch.zeros_like(reward)
    if params.truncated == "bootstrap":
        bootstrap = torch.where(rollouts.finished, bootstrap, rollouts.bootstrap)
        reward = torch.where(rollouts.finished, reward, torch.zeros_like(reward))
    elif params.truncated == "penalty":
        reward = reward - params.truncated_penalty * (~rollouts.finished).float()
    last = torch.arange(rollouts.mask.shape[1], device=reward.device) == rollouts.mask.sum(1, keepdim=True) - 1
    per_token = last * reward.unsqueeze(1) - penalty
    advantage, returns = generalized_advantage(per_token, rollouts.value_old, bootstrap, rollouts.mask, params.lam)
    learned = rollouts.mask & known.unsqueeze(1)
    variance = torch.tensor(explained_variance(rollouts.value_old, returns, learned))
    metrics = {"value/explained_variance": (variance, torch.tensor(1.0)), "value/mean": metric(rollouts.value_old, learned)}
    if params.whiten:
        advantage = whiten(advantage, learned)
    if state.get("round", 0) < params.value_warmup:
        advantage = torch.zeros_like(advantage)
    if params.objective == "penalty":
        state = {**state, "penalty": adapted(state.get("penalty", params.penalty), state, params)}
        beta = torch.full_like(reward, state["penalty"])
    state = {**state, "round": state.get("round", 0) + 1}
    return Credit(advantage * rollouts.mask, known, state, metrics, returns=returns, beta=beta)


def adapted(coefficient: float, state: State, params: PPOParams) -> float:
    """beta' for this round: halved where the last update's KL(pi_old||pi) was below target / 1.5, doubled above 1.5 target."""
    kl = state.get(f"{LAST}approx_kl")
    if kl is None or state.get("round", 0) <= params.value_warmup:
        return coefficient  # the policy has not moved yet
    if kl < params.penalty_target / 1.5:
        return coefficient / 2
    return coefficient * 2 if kl > params.penalty_target * 1.5 else coefficient


def value_loss(value: Tensor, batch: Batch, clip: float | None) -> Tensor:
    """1/2 max((V - returns)^2, (clip(V, V_old +- eps_v) - returns)^2) per token (B, T)."""
    error = (value - batch.returns).square()
    if clip is not None:
        near = batch.value_old + (value - batch.value_old).clamp(-clip, clip)
        error = torch.maximum(error, (near - batch.returns).square())
    return 0.5 * error


def loss(outputs: Outputs, batch: Batch, params: PPOParams) -> Loss:
    """Clipped (or penalised) surrogate, value loss and entropy bonus per token (B, T); mean over the batch's tokens."""
    weight, norm = aggregation_weights(batch.mask, "token_mean", 0)
    ratio = importance_ratio(outputs.logp, batch.logp_old)
    kl = kl_estimate(batch.logp_old, outputs.logp, "k3")  # KL(pi_old||pi) from samples of pi_old: the roles exchanged
    errors = value_loss(outputs.value, batch, params.value_clip)
    if params.objective == "penalty":
        policy = -ratio * batch.advantage + batch.beta.unsqueeze(1) * kl
    else:
        policy = clipped(batch, ratio, params)
    metrics = clip_metrics(outputs, batch, ratio, params)
    metrics |= {"approx_kl": metric(kl, batch.mask), "value/loss": metric(errors, batch.mask)}
    value = policy + params.value_coefficient * errors - params.entropy * outputs.entropy
    return Loss(value, weight, norm, metrics)


ALGORITHM = Algorithm(params=PPOParams, data="rollouts", loss=loss, credit=credit, needs=needs)
