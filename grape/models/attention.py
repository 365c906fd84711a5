"""Attention of packed rows (`grape.models.shared`): each token sees what stands before it in its own row, and nothing else.

    every prompt         causal, among its own tokens                      (P, S) x (P, S)
    every response       its own tokens and those of its prompt            (B, T) x (B, S + T)
    a row that shares    causal                                            (W) x (W)
    its prompt with none

Products of tokens that do not see each other are not made: with a mask over one long row they were most of attention's work.
transformers calls what is registered here as it calls `sdpa`, with the `layout` that the model's forward was given.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

NAME = "grape"
# Up to here torch's kernel of a CPU is faster in float32 than in bfloat16, forward and backward together (77 tokens: two and a
# half times, 512: as fast), on a processor with AMX; it also adds more exactly.
SHORT = 512
GROUPED = {"cpu"}  # devices whose fast kernels take fewer heads of keys than of queries beside a mask


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
    scale = more.get("scaling")
    with torch.autocast(query.device.type, enabled=False) if exact else nullcontext():
        if layout.prompt is None:
            return _attend(q, k, v, None, scale).transpose(1, 2), None
        assert layout.response is not None and layout.seen is not None and layout.back is not None
        q, k, v = (x[0].transpose(0, 1) for x in (q, k, v))  # (N, heads, D)
        made = [_attend(_rows(q, layout.prompt), _rows(k, layout.prompt), _rows(v, layout.prompt), None, scale)]
        made += [_attend(_rows(q, layout.response), _rows(k, layout.seen), _rows(v, layout.seen), layout.mask, scale)]
    flat = torch.cat([x.transpose(1, 2).flatten(0, 1) for x in made])
    return flat.index_select(0, layout.back).unsqueeze(0), None


def _attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float | None) -> Tensor:
    """(R, heads, W, D); causal without a mask."""
    groups = query.shape[1] // key.shape[1]
    if groups > 1 and mask is not None and query.device.type not in GROUPED:
        key, value = (x.repeat_interleave(groups, 1) for x in (key, value))
    grouped = key.shape[1] != query.shape[1]
    return scaled_dot_product_attention(query, key, value, mask, is_causal=mask is None, scale=scale, enable_gqa=grouped)


def _rows(tokens: Tensor, places: Tensor) -> Tensor:
    """(N, heads, D) -> (R, heads, W, D) for places (R, W)."""
    return tokens.index_select(0, places.flatten()).unflatten(0, places.shape).transpose(1, 2)
