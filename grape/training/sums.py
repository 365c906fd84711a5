"""Metrics as name -> (sum, weight), the only form in which micro-batches, mini-batches and epochs add up exactly."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

Sums = dict[str, tuple[float, float]]


def add(sums: Sums, name: str, total: float, weight: float) -> None:
    """Add to a mean; of a name that ends in `/max` the largest is kept."""
    before = sums.get(name, (0.0, 0.0))
    if name.endswith("/max"):
        sums[name] = (max(total, before[0]) if before[1] else total, 1.0)
    else:
        sums[name] = (before[0] + total, before[1] + weight)


def means(sums: Mapping[str, tuple[float, float]]) -> dict[str, float]:
    return {name: total / weight for name, (total, weight) in sums.items() if weight > 0}


def numbers(metrics: Mapping[str, tuple[Tensor, Tensor]]) -> Sums:
    """What algorithms give, as plain numbers."""
    return {name: (float(total), float(weight)) for name, (total, weight) in metrics.items()}
