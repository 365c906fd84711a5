"""Pairs: chosen against rejected. Shapes (N,)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def split_pairs(x: Tensor) -> tuple[Tensor, Tensor]:
    """(2N, ...) -> chosen (N, ...) from the even rows, rejected (N, ...) from the odd ones."""
    return x[0::2], x[1::2]


def bradley_terry(margin: Tensor) -> Tensor:
    """-log sigma(margin), nats; margin = r_w - r_l. Gradient: -(1 - sigma(margin)). ln 2 at margin 0."""
    return -F.logsigmoid(margin)


def win_probability(margin: Tensor) -> Tensor:
    """P(y_w > y_l | x) = sigma(r_w - r_l)."""
    return torch.sigmoid(margin)
