"""Attention of packed rows: of all tokens of a micro-batch in one row of the model, with no padding between them, each sees what
stands before it in its own row, and nothing else.

    every prompt         causal, among its own tokens                      (P, S) x (P, S)
    every response       its own tokens and those of its prompt            (B, T) x (B, S + T)

transformers calls what is registered here as it calls `sdpa`, with the `layout` that the model's forward was given.
"""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

NAME = "grape"
# Up to here torch's kernel of a CPU is faster in float32 than in bfloat16, forward and backward together (77 tokens: two and a
# half times, 512: as fast), on a processor with AMX; it also adds more exactly.
SHORT = 512


class Layout(NamedTuple):
    """Places of N tokens in what attention computes.

    Attributes:
        causal: (P, S) tokens of prompts, or of whole rows where none shares its prompt; right-padded with any place.
        response: (B, T) tokens of the responses; None: they stand in `causal`.
        seen: (B, S + T) what a response's tokens may see. mask: (B, 1, T, S + T) which of it.
        back: (N,) where each token stands among the outputs of all (P S + B T).
    """

    causal: Tensor
    response: Tensor | None
    seen: Tensor | None
    mask: Tensor | None
    back: Tensor


def install(model: Any) -> None:
    """Make it the attention of a model of transformers; without a layout it is `sdpa`."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(NAME, attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    model.set_attn_implementation(NAME)


def attention(
    module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **more: Any
) -> tuple[Tensor, None]:
    """transformers' interface of attention: query (1, heads, N, D), key and value likewise with fewer heads -> (1, N, heads, D)."""
    layout: Layout | None = more.pop("layout", None)
    if layout is None:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        return sdpa_attention_forward(module, query, key, value, attention_mask, **more)
    if unread := [name for name in ("softcap", "position_bias", "s_aux") if more.get(name) is not None]:
        raise NotImplementedError(f"attention with {unread[0]}")  # `grape.models.shared` computes such models plainly
    length = layout.causal.shape[1] + (0 if layout.response is None else layout.response.shape[1])
    exact = query.device.type == "cpu" and length <= SHORT
    of = torch.float32 if exact else query.dtype
    tokens = [x[0].transpose(0, 1).to(of) for x in (query, key, value)]  # (N, heads, D)
    attend = partial(scaled_dot_product_attention, scale=more.get("scaling"), enable_gqa=key.shape[1] != query.shape[1])
    with torch.autocast(query.device.type, enabled=False) if exact else nullcontext():
        q, k, v = (_rows(x, layout.causal) for x in tokens)
        made = [attend(q, k, v, is_causal=True)]
        if layout.response is not None and layout.seen is not None:
            q, k, v = _rows(tokens[0], layout.response), _rows(tokens[1], layout.seen), _rows(tokens[2], layout.seen)
            made.append(attend(q, k, v, attn_mask=layout.mask))
    flat = torch.cat([x.transpose(1, 2).flatten(0, 1) for x in made])
    return flat.index_select(0, layout.back).unsqueeze(0), None


def _rows(tokens: Tensor, places: Tensor) -> Tensor:
    """(N, heads, D) -> (R, heads, W, D) for places (R, W)."""
    return tokens.index_select(0, places.flatten()).unflatten(0, places.shape).transpose(1, 2)
