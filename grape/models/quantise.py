"""QLoRA (2305.14314): the frozen weights below adapters in 4 bits (NormalFloat, blocks of 64 with double quantisation), through
bitsandbytes. Embeddings, norms and heads stay as they are; matrix products are computed in `model.dtype`.

A model is merged and then quantised, so adapters may stand on adapters. What is saved are adapters: they are merged into the full
weights when they are loaded again.
"""

from __future__ import annotations

import logging
from typing import Any, TypeVar

import torch
from torch import nn

from grape.errors import GrapeError
from grape.models.forward import Dtype
from grape.models.lora import linear
from grape.models.protocols import Transformer

AnyModel = TypeVar("AnyModel", bound=Transformer)
WHERE = "params.yaml, model.quantise"
BLOCK = 64  # weights that share a scale


def package() -> Any:
    """Raises GrapeError: bitsandbytes is not there."""
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it tells of kernels it does without
    try:
        import bitsandbytes
    except Exception as error:  # where it cannot load its library for the machine it raises many kinds
        what, mend = f"nf4 needs the package bitsandbytes: {error}", "pip install 'grape[qlora]', or set model.quantise to null"
        raise GrapeError(what, where=WHERE, mend=mend) from error
    return bitsandbytes


def quantise(model: AnyModel, device: torch.device, dtype: Dtype = "float32") -> AnyModel:
    """The matrices of the blocks in 4 bits on `device`, frozen. Returns the model.

    Raises:
        GrapeError: bitsandbytes is not there, or cannot quantise this model on this device.
    """
    bnb = package()
    if device.type not in ("cuda", "cpu"):
        raise GrapeError(f"nf4 runs on CUDA and on the CPU, not on {device.type}", where=WHERE, mend="set it to null")
    model.requires_grad_(False)
    for name, module in linear(model).items():
        parent, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(parent), leaf, _quantised(bnb, name, module, device, dtype))
    model.is_loaded_in_4bit = True  # type: ignore[attr-defined]  # what PEFT asks a model
    return model


def _quantised(bnb: Any, name: str, module: Any, device: torch.device, dtype: Dtype) -> nn.Module:
    # GPT-2's Conv1D holds its matrix transposed.
    weight = module.weight.t() if type(module).__name__ == "Conv1D" else module.weight
    rows, columns = weight.shape
    if device.type == "cpu" and columns % BLOCK:
        # bitsandbytes 0.50 reads its scales wrongly there: errors of 0.2 to 0.28 of the weights' std, not 0.09.
        what = f"{name} has rows of {columns} weights, and nf4 on the CPU takes multiples of {BLOCK}"
        raise GrapeError(what, where=WHERE, mend="set it to null for this model, or use a GPU")
    of_product = torch.bfloat16 if dtype == "bfloat16" else torch.float32
    made = bnb.nn.Linear4bit(columns, rows, bias=module.bias is not None, compute_dtype=of_product, quant_type="nf4")
    # Else a pass without gradient is computed in bfloat16 there: what samples would not be what is trained (0.05 nats a token).
    made.support_avx512bf16_for_cpu = False
    made.weight = bnb.nn.Params4bit(weight.detach().contiguous(), requires_grad=False, quant_type="nf4", compress_statistics=True)
    if module.bias is not None:
        made.bias = nn.Parameter(module.bias.detach(), requires_grad=False)
    return made.to(device)  # which quantises
