"""A policy's weights as a folder that another program loads: plain matrices, whatever was trained on top of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from grape.files import read_json, write_sorted
from grape.models.forward import Dtype
from grape.models.lora import is_adapted
from grape.models.protocols import LanguageModel

ONE_FILE = "1000GB"  # an index beside the file would hide the head's own


def plain_weights(model: LanguageModel, dtype: Dtype) -> dict[str, Tensor]:
    """name -> tensor as the model has them without adapters: W + (alpha / r) B A in the place of W, summed in float32 and then
    rounded to `dtype`."""
    kept = getattr(torch, dtype)
    deltas: dict[str, Any] = {}
    if is_adapted(model):
        found = ((n, m) for n, m in model.named_modules() if hasattr(m, "get_delta_weight") and hasattr(m, "base_layer"))
        deltas = {f"{name}.base_layer.weight": module.get_delta_weight for name, module in found}
    plain = {}
    for name, tensor in model.state_dict().items():
        if ".lora_" in name:
            continue
        if name in deltas:
            tensor = tensor.float() + deltas[name]("default").float()
        plain[name.replace(".base_layer.", ".")] = tensor.detach().to(kept) if tensor.is_floating_point() else tensor
    return plain


@torch.no_grad()
def hand_over(model: LanguageModel, folder: Path, dtype: Dtype) -> None:
    """Write the weights and the config; no tokenizer, since ids alone go to and fro.

    A head that is tied to the embeddings is written as a matrix of its own. Tied, vLLM 0.32 keeps the old head when it reloads on
    a CPU (its matrices are packed anew one by one, and the tied one is not among those that are loaded): 0.2 nats a token.
    """
    weights = plain_weights(model, dtype)
    folder.mkdir(parents=True)
    model.save_pretrained(folder, state_dict=dict(weights), max_shard_size=ONE_FILE)  # type: ignore[call-arg]
    output = model.get_output_embeddings()
    head = next((f"{name}.weight" for name, module in model.named_modules() if module is output), None)
    if head is not None and model.config.get_text_config().tie_word_embeddings:
        # A copy: safetensors refuses what shares memory.
        save_file({head: weights[head].cpu().clone()}, str(folder / "head.safetensors"), metadata={"format": "pt"})
        config = read_json(folder / "config.json")
        write_sorted(folder / "config.json", config | {"tie_word_embeddings": False})
