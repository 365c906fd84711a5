"""How fast this machine multiplies matrices in each precision that `model.dtype` may name: measured, since machines differ."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import get_args

import torch

from grape.models.forward import Dtype

SIDE, TRIES = 1024, 5  # of the matrices; the best of so many counts
FASTER = 1.2  # what a ratio must be for a word about it


def rates(place: torch.device) -> dict[Dtype, float]:
    """Precision -> 10^12 operations a second, 2 SIDE^3 for a product of two matrices."""
    return {dtype: 2 * SIDE**3 / _seconds(dtype, place) / 1e12 for dtype in get_args(Dtype)}


def _seconds(dtype: Dtype, place: torch.device) -> float:
    a, b = (torch.full((SIDE, SIDE), 0.5, device=place, dtype=getattr(torch, dtype)) for _ in range(2))
    out, found = torch.empty_like(a), []
    for _ in range(TRIES + 1):  # the first one is warm-up
        began = time.perf_counter()
        torch.matmul(a, b, out=out)
        if place.type != "cpu":
            torch.accelerator.synchronize()
        found.append(time.perf_counter() - began)
    return min(found[1:])


def line(found: Mapping[Dtype, float]) -> str:
    """What it means for model.dtype."""
    whole, half = found["float32"], found["bfloat16"]
    said = f"matrix products: {whole:.2f} TFLOP/s in float32, {half:.2f} in bfloat16"
    if max(half / whole, whole / half) < FASTER:
        return f"{said}, so model.dtype makes little difference to time here"
    return f"{said}, so model.dtype: {'bfloat16' if half > whole else 'float32'} is the faster one for large models here"
