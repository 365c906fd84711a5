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
    """Places of N tokens in what attention computes. Without them: rows that are causal as they are.

    Attributes:
        prompt: (P, S) tokens of every prompt; padded on the right with any place.
        response: (B, T) tokens of every response, padded likewise.
        seen: (B, S + T) what a response's tokens may see. mask: (B, 1, T, S + T) which of it.
        back: (N,) where each token stands among the outputs of all (P S + B T).
    """

    prompt: Tensor | None = None
    response: Tensor | None = None
    seen: Tensor | None = None
    mask: Tensor | None = None
    back: Tensor | None = None


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
    """transformers' interface of attention: query (R, heads, N, D), key and value of maybe fewer heads, to (R, N, heads, D)."""
    layout: Layout | None = more.pop("layout", None)
    if layout is None:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        return sdpa_attention_forward(module, query, key, value, attention_mask, **more)
    if unread := [name for name in ("softcap", "position_bias", "s_aux") if more.get(name) is not None]:
        raise NotImplementedError(f"attention with {unread[0]}")  # `grape.models.shared` computes such models plainly
    exact = query.device.type == "cpu" and (key.shape[2] if layout.mask is None else layout.mask.shape[3]) <= SHORT
    q, k, v = (x.float() for x in (query, key, value)) if exact else (query, key, value)
    attend = partial(scaled_dot_product_attention, scale=more.get("scaling"), enable_gqa=key.shape[1] != query.shape[1])
    with torch.autocast(query.device.type, enabled=False) if exact else nullcontext():
        if layout.prompt is None:
            return attend(q, k, v, is_causal=True).transpose(1, 2), None
        assert layout.response is not None and layout.seen is not None and layout.back is not None
        q, k, v = (x[0].transpose(0, 1) for x in (q, k, v))  # (N, heads, D)
        made = [attend(_rows(q, layout.prompt), _rows(k, layout.prompt), _rows(v, layout.prompt), is_causal=True)]
        made += [attend(_rows(q, layout.response), _rows(k, layout.seen), _rows(v, layout.seen), attn_mask=layout.mask)]
    flat = torch.cat([x.transpose(1, 2).flatten(0, 1) for x in made])
    return flat.index_select(0, layout.back).unsqueeze(0), None


def _rows(tokens: Tensor, places: Tensor) -> Tensor:
    """(N, heads, D) -> (R, heads, W, D) for places (R, W)."""
    return tokens.index_select(0, places.flatten()).unflatten(0, places.shape).transpose(1, 2)
