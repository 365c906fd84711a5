"""The natural-gradient update within a trust region (TRPO, 1502.05477): one step per batch, as long as the KL allows.

1. g = gradient of the loss at theta_old over the whole batch.
2. H v = Fisher-vector products: the Hessian of D(theta) = mean_t KL(pi_old(.|s_t) || pi_theta(.|s_t)) at theta_old, by
   differentiating its gradient twice. D's gradient is 0 there, but that gradient's derivative is H.
3. H u = g by conjugate gradient; full step s = -sqrt(2 delta / u^T H u) u.
4. theta_old + a^j s for the first j at which D <= delta over the whole batch and the loss has fallen enough; else theta_old.

Everything runs with attention's plain kernel: the fused ones have no second derivative, and one set of kernels keeps pi_old the
same distribution throughout. Log-probabilities of the whole vocabulary are kept for every response token of the batch: tokens x V
numbers. `fisher_share` makes the products cheaper, never the check of the constraint.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from grape.algorithms.base import TrustRegionParams
from grape.errors import GrapeError
from grape.maths.kl import kl_exact
from grape.maths.linear import conjugate_gradient, line_search
from grape.models.forward import micro_batches
from grape.models.protocols import Trainable
from grape.models.shared import share
from grape.randomness import permutation
from grape.training.adam import Forward, LossOf, accumulate
from grape.training.sums import Sums, add
from grape.types import Batch


def movable(model: Trainable, which: str) -> list[nn.Parameter]:
    """The weights that move; all others are frozen. `all`, `adapters` (what LoRA trains), or `last_block` alone."""
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    if which == "last_block":
        blocks = max((_block(name) for name, _ in named), default=-1)
        named = [(name, p) for name, p in named if _block(name) == blocks]
    chosen = [p for _, p in named]
    ids = {id(p) for p in chosen}
    for parameter in model.parameters():
        parameter.requires_grad_(id(parameter) in ids)
    return chosen


def _block(name: str) -> int:
    """The number of the transformer block a weight belongs to, -1 for embeddings and norms: `model.layers.3.mlp..` is 3."""
    return next((int(part) for part in name.split(".") if part.isdigit()), -1)


class NaturalGradient:
    """`update` has the signature of `Adam.update`; there is no state to keep between updates."""

    def __init__(self, model: Trainable, region: TrustRegionParams, max_tokens: int) -> None:
        self.model, self.region, self.max_tokens = model, region, max_tokens
        self.parameters = movable(model, region.parameters)

    def update(self, forward: Forward, loss: LossOf, batch: Batch, keys: Sequence[object] = ()) -> tuple[Sums, Sums]:
        """One step, or none where the search finds none. `forward` must give `Outputs.distribution`.

        Returns:
            Metrics as name -> (sum, weight), twice since there is one step: trpo/kl (of the step taken, nats per token),
            trpo/backtracks, trpo/cg_residual (relative), trpo/accepted (1 or 0), trpo/improvement (fall of the loss), grad_norm,
            and the loss's own.

        Raises:
            GrapeError: the gradient is not finite; the weights were left as they were.
        """
        sums: Sums = {}
        batch = share(self.model, batch)
        with sdpa_kernel(SDPBackend.MATH):
            accumulate(forward, loss, batch, self.max_tokens, self.parameters, sums, on_policy=True)
            g = torch.cat([_gradient(p).reshape(-1) for p in self.parameters])
            for parameter in self.parameters:
                parameter.grad = None
            norm = float(g.norm())
            if not math.isfinite(norm):
                raise GrapeError(
                    "the gradient is not finite; the weights were left as they were",
                    where=f"update {keys[-1] if keys else 0}",
                    mend="lower the algorithm's delta or the learning rate of the stages before",
                )
            taken = self._step(forward, loss, batch, g, keys) if norm > 0 else {}
        add(sums, "grad_norm", norm, 1.0)
        add(sums, "num_updates", 1.0, 1.0)
        for name in ("kl", "backtracks", "cg_residual", "accepted", "improvement"):
            add(sums, f"trpo/{name}", taken.get(name, 0.0), 1.0)
        return sums, sums

    def _step(self, forward: Forward, loss: LossOf, batch: Batch, g: Tensor, keys: Sequence[object]) -> dict[str, float]:
        region = self.region
        count = max(1, round(batch.rows * region.fisher_share))
        chosen = torch.from_numpy(permutation(batch.rows, *keys, "fisher")[:count]).to(batch.response.device)
        part = batch.select(chosen.sort().values)
        solution = conjugate_gradient(
            lambda v: self._fisher(forward, part, v) + region.damping * v, g, region.cg_iterations, region.cg_residual
        )
        if solution.curvature <= 0:
            return {"cg_residual": solution.residual}
        full = -math.sqrt(2 * region.delta / solution.curvature) * solution.u
        expected = float(g @ full)
        before, old = self._look(forward, loss, batch)
        kept = [p.detach().clone() for p in self.parameters]
        tried = {"kl": 0.0, "improvement": 0.0}

        def accept(fraction: float) -> bool:
            self._move(kept, full, fraction)
            now, kl = self._measure(forward, loss, batch, old)
            tried.update(kl=kl, improvement=before - now)
            good = now < before and now <= before + region.improvement * fraction * expected
            return good and kl <= region.delta

        fraction, backtracks = line_search(accept, region.backtrack_ratio, region.backtracks)
        if fraction == 0.0:
            with torch.no_grad():
                for parameter, value in zip(self.parameters, kept, strict=True):
                    parameter.copy_(value)
            tried = {"kl": 0.0, "improvement": 0.0}
        return {**tried, "backtracks": float(backtracks), "cg_residual": solution.residual, "accepted": float(fraction > 0)}

    def _fisher(self, forward: Forward, batch: Batch, v: Tensor) -> Tensor:
        """H v over the batch, in micro-batches: each one's graph is built, differentiated twice and dropped."""
        product = torch.zeros_like(v)
        tokens = batch.mask.sum()
        for index in micro_batches(batch, self.max_tokens):
            part = batch.select(index)
            now = forward(part).distribution
            kl = kl_exact(now.detach(), now).sum() / tokens
            first = torch.autograd.grad(kl, self.parameters, create_graph=True, materialize_grads=True)
            along = torch.cat([x.reshape(-1) for x in first]) @ v
            second = torch.autograd.grad(along, self.parameters, materialize_grads=True)
            product += torch.cat([x.reshape(-1) for x in second])
        return product

    @torch.no_grad()
    def _look(self, forward: Forward, loss: LossOf, batch: Batch) -> tuple[float, list[Tensor]]:
        """The loss, and log pi(.|s_t) at every response token (tokens, V) of each micro-batch."""
        value = norm = 0.0
        distributions = []
        for index in micro_batches(batch, self.max_tokens):
            part = batch.select(index)
            outputs = forward(part)
            unreduced = loss(outputs, part)
            value += float((unreduced.value * unreduced.weight).sum())
            norm += float(unreduced.norm.sum())
            distributions.append(outputs.distribution)
        return value / max(norm, 1e-12), distributions

    def _measure(self, forward: Forward, loss: LossOf, batch: Batch, old: list[Tensor]) -> tuple[float, float]:
        """The loss and the mean KL(pi_old || pi) per token where the weights are now."""
        value, new = self._look(forward, loss, batch)
        total = sum(float(kl_exact(p, q).cpu().double().sum()) for p, q in zip(old, new, strict=True))
        return value, total / max(float(batch.mask.sum()), 1.0)

    @torch.no_grad()
    def _move(self, kept: list[Tensor], full: Tensor, fraction: float) -> None:
        start = 0
        for parameter, value in zip(self.parameters, kept, strict=True):
            size = value.numel()
            parameter.copy_(value + fraction * full[start : start + size].view_as(value))
            start += size

    def state(self) -> dict[str, Any]:
        return {}

    def restore(self, state: dict[str, Any]) -> None: ...


def _gradient(parameter: Tensor) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
