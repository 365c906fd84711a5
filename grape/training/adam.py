"""The Adam update: epochs x mini-batches x micro-batches, one gradient whatever the split into micro-batches."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from grape.models.forward import micro_batches
from grape.randomness import permutation
from grape.types import Batch, Loss, Outputs

# A first update whose log-probabilities differ from the rollout's by more than this is a bug, not rounding (nats).
ON_POLICY_TOLERANCE = 1e-3

Sums = dict[str, tuple[float, float]]


@dataclass(frozen=True)
class AdamParams:
    """Learning rate: peak; warmup_steps and steps: updates; schedule: constant or cosine (to 10 % of the peak)."""

    learning_rate: float
    steps: int
    warmup_steps: int = 0
    schedule: str = "constant"
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    micro_batch_tokens: int = 16384


def add(sums: Sums, name: str, total: float, weight: float) -> None:
    before = sums.get(name, (0.0, 0.0))
    sums[name] = (before[0] + total, before[1] + weight)


def accumulate(
    forward: Callable[[Batch], Outputs],
    loss: Callable[[Outputs, Batch], Loss],
    batch: Batch,
    max_tokens: int,
    parameters: Sequence[Tensor],
    sums: Sums,
    on_policy: bool = False,
) -> None:
    """Put the gradient of sum(value * weight) / sum(norm) over the whole batch into `.grad`, and add its metrics to `sums`.

    Both sums run over all micro-batches before the division, so no split changes the gradient.
    """
    for parameter in parameters:
        parameter.grad = None
    norm = value = 0.0
    for index in micro_batches(batch, max_tokens):
        part = batch.select(index)
        outputs = forward(part)
        if on_policy and part.logp_old is not None and outputs.logp is not None:
            off = float((outputs.logp.detach() - part.logp_old).masked_fill(~part.mask, 0).abs().max())
            if off > ON_POLICY_TOLERANCE:
                raise RuntimeError(
                    f"the first update is off-policy: log-probabilities differ by {off:.2e} nats from the rollout's; "
                    "sampling and training do not compute the same distribution"
                )
        unreduced = loss(outputs, part)
        total = (unreduced.value * unreduced.weight).sum()
        total.backward()
        value += float(total.detach())
        norm += float(unreduced.norm.sum())
        for name, (s, w) in unreduced.metrics.items():
            add(sums, name, float(s), float(w))
    for parameter in parameters:
        if parameter.grad is not None:
            parameter.grad.div_(max(norm, 1e-12))
    add(sums, "loss", value, norm)


class Adam:
    """AdamW over a model's trainable weights with warm-up and schedule; weight decay on matrices only.

    Args:
        families: weights in groups that each have a gradient norm of their own, and their peak learning rates; None: all of
            the model's, at `params.learning_rate`. A policy and its value model must not clip each other's gradient.
    """

    def __init__(
        self, model: Any, params: AdamParams, families: Sequence[tuple[Sequence[Tensor], float]] | None = None
    ) -> None:
        self.params = params
        self.families = families or [([p for p in model.parameters() if p.requires_grad], params.learning_rate)]
        self.parameters = [p for family, _ in self.families for p in family]
        groups = [
            {"params": chosen, "weight_decay": decay, "lr": rate}
            for family, rate in self.families
            for chosen, decay in (
                ([p for p in family if p.dim() >= 2], params.weight_decay),
                ([p for p in family if p.dim() < 2], 0.0),
            )
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=params.learning_rate, betas=(0.9, 0.95), fused=True)
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, self._factor)

    def _factor(self, step: int) -> float:
        """Share of the peak learning rate at update `step`: linear warm-up from 0, then constant or a cosine to a tenth."""
        params = self.params
        if step < params.warmup_steps:
            return step / params.warmup_steps
        if params.schedule == "constant":
            return 1.0
        done = (step - params.warmup_steps) / max(params.steps - params.warmup_steps, 1)
        return 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))

    def update(
        self,
        forward: Callable[[Batch], Outputs],
        loss: Callable[[Outputs, Batch], Loss],
        batch: Batch,
        *,
        epochs: int = 1,
        mini_batches: int = 1,
        keys: Sequence[object] = (),
    ) -> Sums:
        """`epochs` passes of `mini_batches` optimiser steps over the batch; the learning rate moves once per call.

        Returns:
            Metrics as name -> (sum, weight), over all updates; `approx_kl/last` is the last update's own.
        """
        sums: Sums = {}
        last: Sums = {}
        learning_rate = self.optimizer.param_groups[0]["lr"]
        for epoch in range(epochs):
            for i, index in enumerate(self._mini_batches(batch, mini_batches, (*keys, epoch))):
                part = batch if index is None else batch.select(index)
                last = {}
                first = epoch == i == 0
                accumulate(forward, loss, part, self.params.micro_batch_tokens, self.parameters, last, on_policy=first)
                for name, (total, weight) in last.items():
                    add(sums, name, total, weight)
                norms = [torch.nn.utils.clip_grad_norm_(f, self.params.max_grad_norm) for f, _ in self.families]
                if not all(bool(torch.isfinite(norm)) for norm in norms):
                    raise FloatingPointError("the gradient is not finite; the weights were left as they were")
                self.optimizer.step()
                add(sums, "grad_norm", float(norms[0]), 1.0)
        self.optimizer.zero_grad(set_to_none=True)
        self.scheduler.step()
        add(sums, "learning_rate", learning_rate, 1.0)
        if "approx_kl" in last:
            sums["approx_kl/last"] = last["approx_kl"]
        return sums

    @staticmethod
    def _mini_batches(batch: Batch, count: int, keys: Sequence[object]) -> list[Tensor | None]:
        """Row indices of each mini-batch: whole groups (or pairs) in a counted random order."""
        if count == 1:
            return [None]
        owner = batch.group if batch.group is not None else torch.arange(batch.rows) // batch.unit
        names = torch.unique(owner)
        # Groups may have left the round (nothing accepted, no reward): then there are fewer mini-batches, never an empty one.
        count = min(count, len(names))
        order = names[torch.from_numpy(permutation(len(names), *keys))]
        return [torch.isin(owner, part).nonzero().squeeze(1) for part in torch.chunk(order, count)]

    def state(self) -> dict[str, Any]:
        return {"optimizer": self.optimizer.state_dict(), "scheduler": self.scheduler.state_dict()}

    def restore(self, state: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
