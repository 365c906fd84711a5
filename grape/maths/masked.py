"""Reductions over response tokens only. Shapes (B, T) unless said otherwise; `mask` is bool or 0/1."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Aggregation = Literal["token_mean", "round_mean", "sequence_mean", "constant"]


def metric(x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """A diagnostic as (sum, weight), the only form in which micro-batches add up exactly."""
    weight = weight.to(torch.float32)
    return (x.detach().float() * weight).sum(), weight.sum()


def aggregation_weights(mask: Tensor, how: Aggregation, length: int, mean_length: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Weights (B, T) and norms (B,) that make sum(value * weight) / sum(norm) the named mean.

    - token_mean: every token of the optimiser's batch counts the same.
    - round_mean (DAPO, 2503.14476): every token of the *round* counts the same, so a mini-batch of long answers counts more.
    - sequence_mean (GRPO, 2402.03300): every response counts the same, 1/|o_i| per token.
    - constant (Dr. GRPO, 2503.20783): every token counts 1/length, whatever the response's own length.

    Args:
        mask: (B, T) response mask.
        length: L_max, tokens; read by `constant` alone.
        mean_length: (B,) mean response length of the round, tokens; `round_mean` alone, which without it is `token_mean`.
    """
    weight = mask.to(torch.float32)
    lengths = weight.sum(1)
    nonempty = (lengths > 0).to(torch.float32)
    if how == "round_mean" and mean_length is not None:
        return weight, nonempty * mean_length
    if how in ("token_mean", "round_mean"):
        return weight, lengths
    if how == "sequence_mean":
        return weight / lengths.clamp(min=1).unsqueeze(1), nonempty
    return weight, nonempty * float(length)
