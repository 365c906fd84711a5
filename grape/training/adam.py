"""The Adam update: epochs x mini-batches x micro-batches, one gradient whatever the split into micro-batches."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from grape.errors import GrapeError
from grape.models.forward import Dtype, micro_batches
from grape.models.protocols import Trainable
from grape.models.shared import share
from grape.randomness import permutation
from grape.training.sums import Sums, add, numbers
from grape.types import Batch, Loss, Outputs

# The first update sees the weights that sampled, so its log-probabilities are the rollout's up to rounding. What rounding does
# depends on the precision of the matrix products: in float32 no token differs by 1e-3 nats. In bfloat16 (8 bits, steps of 2^-8 of a
# value) logits near 16 move by 2^-4 when a batch is split otherwise: on SmolLM2-135M a token differed by 0.17 at most, and a
# mini-batch of few tokens by 0.05 on average. A wrong shift, temperature or model moves the mean by far more.
MOST_OFF = {"float32": 1e-3, "bfloat16": 1.0}
MEAN_OFF = {"float32": 1e-3, "bfloat16": 0.1}

Forward = Callable[[Batch], Outputs]
LossOf = Callable[[Outputs, Batch], Loss]


@dataclass(frozen=True)
class AdamParams:
    """How a batch becomes updates. Learning rate: peak; warmup_steps and steps: calls of `update`; schedule: constant or cosine (to
    10 % of the peak); `epochs` passes over each batch in `mini_batches` updates."""

    learning_rate: float
    steps: int
    warmup_steps: int = 0
    schedule: str = "constant"
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    micro_batch_tokens: int = 16384
    dtype: Dtype = "float32"
    epochs: int = 1
    mini_batches: int = 1


def compare(outputs: Outputs, batch: Batch, sums: Sums, dtype: Dtype, first: bool) -> None:
    """How far log pi_theta is from log pi_old: `ratio/max`, before any clipping; in the first update of a round, where both are the
    same weights, `logp_mismatch` (mean of |difference|, nats per token) and its maximum.

    Raises:
        GrapeError: in the first update, more than rounding can explain, or no number at all.
    """
    now, old = outputs.get("logp"), batch.get("logp_old")
    if now is None or old is None or not bool(batch.mask.any()):
        return
    difference = (now.detach() - old)[batch.mask].float()
    add(sums, "ratio/max", float(difference.clamp(max=60).exp().max()), 1.0)
    if not first:
        return
    off = difference.abs()
    add(sums, "logp_mismatch", float(off.sum()), float(len(off)))
    add(sums, "logp_mismatch/max", float(off.max()), 1.0)
    # Few tokens say little about their mean. Said so that a NaN, which is neither more nor less than anything, does not pass.
    mean = float(off.mean()) - 3 * float(off.std(correction=0)) / len(off) ** 0.5
    if not (float(off.max()) <= MOST_OFF[dtype] and mean <= MEAN_OFF[dtype]):
        raise GrapeError(
            f"the first update is off-policy: log-probabilities differ from the rollout's by {float(off.mean()):.2e} nats a token, "
            f"{float(off.max()):.2e} at most; sampling and training do not compute the same distribution",
            where=f"training in {dtype}; nothing was updated",
            mend="set model.dtype to float32; if it goes on, the model's forward pass depends on what else is in its batch",
        )


def accumulate(
    forward: Forward,
    loss: LossOf,
    batch: Batch,
    max_tokens: int,
    parameters: Sequence[Tensor],
    sums: Sums,
    on_policy: bool = False,
    dtype: Dtype = "float32",
) -> None:
    """Put the gradient of sum(value * weight) / sum(norm) over the whole batch into `.grad`, and add its metrics to `sums`.

    Both sums run over all micro-batches before the division, so no split changes the gradient. Of packed rows those without signal
    are not computed: they count in the norm, and in no metric of the loss's own.
    """
    for parameter in parameters:
        parameter.grad = None
    value, norm = 0.0, 0.0
    if batch.get("shared") is not None and bool((silent := without_signal(loss, batch)).any()):
        norm = float(loss(_anything(batch, 0.0), batch).norm[silent].sum())
        batch = batch.select((~silent).nonzero().squeeze(1))
        add(sums, "frac_without_signal", float(silent.sum()), float(len(silent)))
    for index in micro_batches(batch, max_tokens):
        part = batch.select(index)
        outputs = forward(part)
        compare(outputs, part, sums, dtype, on_policy)
        unreduced = loss(outputs, part)
        total = (unreduced.value * unreduced.weight).sum()
        total.backward()
        value += float(total.detach())
        norm += float(unreduced.norm.sum())
        for name, (s, w) in numbers(unreduced.metrics).items():
            add(sums, name, s, w)
    for parameter in parameters:
        if parameter.grad is not None:
            parameter.grad.div_(max(norm, 1e-12))
        elif not batch.rows:  # no row has a signal: Adam's moments go on all the same
            parameter.grad = torch.zeros_like(parameter)
    add(sums, "loss", value, norm)


def without_signal(loss: LossOf, batch: Batch) -> Tensor:
    """(B,) bool: rows whose advantage is 0 everywhere and whose loss has no gradient, whatever the model says of them: groups with
    equal rewards, where no KL, entropy or value is in the loss. It is tried on outputs of two kinds, none of a model."""
    silent = torch.zeros(batch.rows, dtype=torch.bool, device=batch.response.device)
    advantage = batch.get("advantage")
    if advantage is None or not bool((flat := (advantage * batch.mask == 0).all(1)).any()):
        return silent
    silent |= flat
    for off in (0.1, -0.7):
        said = _anything(batch, off)
        unreduced = loss(said, batch)
        if len(unreduced.norm) != batch.rows:
            return torch.zeros_like(silent)
        total = (unreduced.value * unreduced.weight).sum()
        found = torch.autograd.grad(total, list(said.tensors().values()), allow_unused=True) if total.requires_grad else ()
        for gradient in found:
            silent &= gradient is None or (gradient == 0).all(1)
    return silent


def _anything(batch: Batch, off: float) -> Outputs:
    """What some model might say of the batch: near the old log-probabilities, if there are any, and near nothing else."""
    base, there = batch.get("logp_old"), batch.mask
    logp = (torch.full(there.shape, -2.0, device=there.device) if base is None else base) + off
    fields = {"logp": logp, "entropy": torch.full_like(logp, 1 + off), "value": torch.full_like(logp, off)}
    return Outputs(**{name: x.masked_fill(~there, 0.0).requires_grad_() for name, x in fields.items()})


class Adam:
    """AdamW over a model's trainable weights with warm-up and schedule; weight decay on matrices only.

    Args:
        families: weights in groups that each have a gradient norm of their own, and their peak learning rates; None: all of
            the model's, at `params.learning_rate`. A policy and its value model must not clip each other's gradient.
    """

    def __init__(
        self, model: Trainable, params: AdamParams, families: Sequence[tuple[Sequence[Tensor], float]] | None = None
    ) -> None:
        self.model, self.params = model, params
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

    def update(self, forward: Forward, loss: LossOf, batch: Batch, keys: Sequence[object] = ()) -> tuple[Sums, Sums]:
        """`epochs` passes of `mini_batches` optimiser steps over the batch; the learning rate moves once per call.

        Returns:
            Metrics as name -> (sum, weight): over all steps, and of the last one.
        """
        batch = share(self.model, batch)
        sums: Sums = {}
        last: Sums = {}
        updates = 0
        learning_rate = self.optimizer.param_groups[0]["lr"]
        for epoch in range(self.params.epochs):
            for i, index in enumerate(self._mini_batches(batch, (*keys, epoch))):
                part, last = batch if index is None else batch.select(index), {}
                self._step(forward, loss, part, last, first=epoch == i == 0, where=f"update {[*keys, 0][0]}, epoch {epoch}")
                updates += 1
                for name, (total, weight) in last.items():
                    add(sums, name, total, weight)
        self.optimizer.zero_grad(set_to_none=True)
        self.scheduler.step()
        add(sums, "learning_rate", learning_rate, 1.0)
        add(sums, "num_updates", float(updates), 1.0)
        return sums, last

    def _step(self, forward: Forward, loss: LossOf, batch: Batch, sums: Sums, first: bool, where: str) -> None:
        micro, dtype = self.params.micro_batch_tokens, self.params.dtype
        accumulate(forward, loss, batch, micro, self.parameters, sums, first, dtype)
        norms = [torch.nn.utils.clip_grad_norm_(f, self.params.max_grad_norm) for f, _ in self.families]
        if not all(bool(torch.isfinite(norm)) for norm in norms):
            raise GrapeError(
                "the gradient is not finite; the weights were left as they were",
                where=where,
                mend="lower the learning rate, or set model.dtype to float32",
            )
        self.optimizer.step()
        add(sums, "grad_norm", float(norms[0]), 1.0)

    def _mini_batches(self, batch: Batch, keys: Sequence[object]) -> list[Tensor | None]:
        """Row indices of each mini-batch: whole groups (or pairs) in a counted random order."""
        if self.params.mini_batches == 1:
            return [None]
        group = batch.get("group")
        owner = torch.arange(batch.rows) // batch.unit if group is None else group
        names = torch.unique(owner)
        # Groups may have left the round (nothing accepted, no reward): then there are fewer mini-batches, never an empty one.
        count = min(self.params.mini_batches, len(names))
        order = names[torch.from_numpy(permutation(len(names), *keys))]
        return [torch.isin(owner, part).nonzero().squeeze(1) for part in torch.chunk(order, count)]

    def state(self) -> dict[str, Any]:
        return {"optimizer": self.optimizer.state_dict(), "scheduler": self.scheduler.state_dict()}

    def restore(self, state: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
