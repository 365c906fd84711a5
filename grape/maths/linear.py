"""Solving H u = g with products H v alone, and the backtracking search along a step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Solution:
    """u with H u = g nearly; `residual` is |g - H u| / |g|; `curvature` is u^T H u, > 0 unless `negative`."""

    u: Tensor
    residual: float
    curvature: float
    iterations: int
    negative: bool


def conjugate_gradient(product: Callable[[Tensor], Tensor], g: Tensor, iterations: int, tolerance: float = 1e-10) -> Solution:
    """Conjugate gradient for H u = g from u = 0, H symmetric and positive.

    A direction p with p^T H p <= 0 has no minimum along it: then the solution so far is returned, `negative` set, and g itself
    where there is none yet.

    Args:
        product: v -> H v, both (n,).
        tolerance: stop when |g - H u|^2 / |g|^2 is below it; relative, since a mean over many tokens makes g small.
    """
    u = torch.zeros_like(g)
    r, p = g.clone(), g.clone()
    rr = float(r @ r)
    enough = tolerance * rr
    hu = torch.zeros_like(g)
    done, negative = 0, False
    for _ in range(iterations):
        if rr <= enough:
            break
        hp = product(p)
        curvature = float(p @ hp)
        if curvature <= 0:
            negative = True
            break
        alpha = rr / curvature
        u, hu, r = u + alpha * p, hu + alpha * hp, r - alpha * hp
        before, rr = rr, float(r @ r)
        p = r + (rr / before) * p
        done += 1
    if done == 0:
        u = g.clone()
        hu = product(u)
    scale = float(g.norm())
    return Solution(u, float((g - hu).norm()) / scale if scale > 0 else 0.0, float(u @ hu), done, negative)


def line_search(accept: Callable[[float], bool], ratio: float, tries: int) -> tuple[float, int]:
    """The first of 1, ratio, ratio^2, .. that `accept` takes, and how often it had to go back; 0 when none of `tries` is taken."""
    fraction = 1.0
    for back in range(tries):
        if accept(fraction):
            return fraction, back
        fraction *= ratio
    return 0.0, tries
