"""LoRA (2106.09685): train B A of rank r beside every frozen matrix W of the blocks, W' = W + (alpha / r) B A with alpha = 2 r.

It is a parametrisation of torch's own: the model keeps its class and its forward, second derivatives work (TRPO), and
`merge` leaves plain weights behind, so that what is saved loads with AutoModelForCausalLM like any other model.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from grape.models.protocols import LanguageModel

SCALE = 2.0  # alpha / r


class LowRank(nn.Module):
    """W -> W + SCALE B A: A (r, in) random, B (out, r) zero, so that the model starts as it was."""

    def __init__(self, out_features: int, in_features: int, rank: int, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.a = nn.Parameter(torch.randn(rank, in_features, generator=generator) / in_features**0.5)
        self.b = nn.Parameter(torch.zeros(out_features, rank))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + SCALE * (self.b @ self.a).to(weight.dtype)


def adapt(model: LanguageModel, rank: int, seed: int = 0) -> LanguageModel:
    """Freeze the model and put adapters on every matrix of its blocks (not on embeddings or heads). Returns the model."""
    model.requires_grad_(False)
    head = model.get_output_embeddings()
    matrices: list[Any] = [m for m in model.modules() if isinstance(m, nn.Linear) and m is not head]
    matrices += [m for m in model.modules() if type(m).__name__ == "Conv1D"]  # GPT-2's transposed linear
    for i, module in enumerate(matrices):
        rows, columns = module.weight.shape
        low_rank = LowRank(rows, columns, rank, seed + i).to(module.weight.device)
        parametrize.register_parametrization(module, "weight", low_rank)
    return model


def merge(model: LanguageModel) -> LanguageModel:
    """Plain weights W + SCALE B A, no adapters, everything trainable again. Returns the model."""
    for module in list(model.modules()):
        if parametrize.is_parametrized(module, "weight"):
            parametrize.remove_parametrizations(module, "weight", leave_parametrized=True)
    model.requires_grad_(True)
    return model
