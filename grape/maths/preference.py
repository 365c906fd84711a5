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


def dpo_loss(margin: Tensor, beta: float, how: str, label_smoothing: float) -> Tensor:
    """The loss of a preference margin (N,), nats (hinge, IPO: their own units).

    margin = [log pi(y_w) - log ref(y_w)] - [log pi(y_l) - log ref(y_l)], h = beta margin:
    - sigmoid (DPO, 2305.18290): -(1 - e) log sigma(h) - e log sigma(-h), e the label smoothing of cDPO; ln 2 at h = 0;
    - ipo (2310.12036): (margin - 1 / (2 beta))^2, whose optimum is a finite margin;
    - hinge (SLiC, 2305.10425): max(0, 1 - h).
    """
    h = beta * margin
    if how == "ipo":
        return (margin - 1 / (2 * beta)).square()
    if how == "hinge":
        return torch.relu(1 - h)
    return -(1 - label_smoothing) * F.logsigmoid(h) - label_smoothing * F.logsigmoid(-h)
