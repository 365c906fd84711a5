"""The KL penalty to the reference policy, in the three places where it is put, with a fixed or an adaptive coefficient.

    reward_k1   R' = R - beta sum_t (log pi_old - log pi_ref)   exact gradient of E[R] - beta KL(pi||ref), full variance
    loss_k2     L  = .. + beta (log pi - log pi_ref)^2 / 2      per state: the gradient of KL(pi||ref), on-policy
    loss_k3     L  = .. + beta (exp(-d) + d - 1)                per state: that of KL(ref||pi) (2402.03300 uses it)

In the loss it stands per token, so what a token does to the KL of later states is left out; in the reward it is not.
The controller of Ziegler et al. (1909.08593) steers a response's KL to a target: e = clip(KL/target - 1, -0.2, 0.2),
beta <- beta (1 + e n / horizon) after every n responses. This is the KL to the *reference*; the one to pi_old that TRPO bounds
and PPO may penalise is another thing.
"""

from __future__ import annotations

from typing import Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from grape.algorithms.base import Needs, OnlineParams, State
from grape.maths.kl import kl_estimate
from grape.types import Batch, Outputs, Rollouts

ERROR_LIMIT = 0.2  # of the controller's relative error


class PenaltyParams(OnlineParams):
    beta: float = Field(0.0, ge=0, le=10, description="KL to the reference, reward units per nat; 0: none, no reference")
    kl: Literal["reward_k1", "loss_k2", "loss_k3"] = Field("reward_k1", description="where it stands, and its estimator")
    kl_target: float | None = Field(None, gt=0, description="nats per response that beta adapts to; null: beta is fixed")
    kl_horizon: int = Field(10_000, ge=1, description="responses over which the adaptation works (1909.08593)")

    @model_validator(mode="after")
    def _a_target_needs_a_start(self) -> Self:
        if self.kl_target is not None and self.beta == 0:
            raise ValueError("kl_target adapts beta, which must start above 0")
        return self


def penalty_needs(params: PenaltyParams) -> Needs:
    if params.beta == 0:
        return frozenset()
    return frozenset({"reference", "old"}) if params.kl == "reward_k1" or params.kl_target else frozenset({"reference"})


def reward_penalty(params: PenaltyParams, rollouts: Rollouts, state: State) -> tuple[Tensor, Tensor | None, State]:
    """What the KL takes off the reward at every token (B, T), the loss's beta (B,), and the state with the next one."""
    nothing = torch.zeros_like(rollouts.mask, dtype=torch.float32)
    if params.beta == 0:
        return nothing, None, state
    beta = state.get("beta", params.beta)
    if params.kl_target:
        kl = float((kl_estimate(rollouts.logp_old, rollouts.logp_ref, "k1") * rollouts.mask).sum(1).mean())
        error = min(max(kl / params.kl_target - 1, -ERROR_LIMIT), ERROR_LIMIT)
        state = {**state, "beta": beta * (1 + error * rollouts.rows / params.kl_horizon)}
    if params.kl != "reward_k1":
        return nothing, torch.full_like(nothing[:, 0], beta), state
    return beta * kl_estimate(rollouts.logp_old, rollouts.logp_ref, "k1") * rollouts.mask, None, state


def loss_penalty(params: PenaltyParams, outputs: Outputs, batch: Batch) -> Tensor | float:
    """beta k2 or beta k3 per token (B, T), with its gradient; 0 where the KL stands in the reward or nowhere."""
    if params.beta == 0 or params.kl == "reward_k1":
        return 0.0
    adapting = batch.get("beta")
    beta = params.beta if adapting is None else adapting.unsqueeze(1)
    return beta * kl_estimate(outputs.logp, batch.logp_ref, "k2" if params.kl == "loss_k2" else "k3")
