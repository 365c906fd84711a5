"""Rows that share a prompt, computed once: [prompt, prompt, .. | response, response, ..] is one row of the model, in which a token
sees what stands before it in its own row alone (`grape.models.attention`). A round of P prompts and G answers to each reads P
prompts instead of P x G, forward and backward.

There is no padding in it either, so rows that share their prompt with none are packed too. Every token sees the tokens it would see
in a row of its own, at the positions it would have there: what is computed is the same, in another order of additions. A model that
would read such rows as something else keeps the plain ones of `grape.models.forward.inputs`.
"""

from __future__ import annotations

from collections.abc import Iterator
from inspect import signature
from typing import Any, NamedTuple, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from grape import memory
from grape.models import attention
from grape.models.attention import Layout
from grape.models.head import any_head
from grape.models.protocols import Trainable
from grape.types import Tokens

# What a probe may differ by, of the size of the hidden states: rounding is far below it, a wrong mask or position far above.
ROUNDING = {torch.float32: 1e-3, torch.bfloat16: 5e-2, torch.float16: 1e-2}
TORCHS = "sdpa"  # the attention that ours takes the place of
_known: WeakKeyDictionary[Any, bool] = WeakKeyDictionary()
AnyTokens = TypeVar("AnyTokens", bound=Tokens)


def share(model: Trainable, batch: AnyTokens) -> AnyTokens:
    """The batch with `shared`, where the model reads packed rows as it reads plain ones; else as it is."""
    trunks: list[Any] = [m for m in (getattr(model, "policy", model), getattr(model, "value", None)) if m is not None]
    if batch.get("shared") is not None or not all(_takes(trunk) for trunk in trunks):
        return batch
    plain = batch.prompt.masked_fill(~batch.prompt_mask, -1)
    return batch.with_(shared=torch.unique(plain, dim=0, return_inverse=True)[1])


def within(batch: Tokens, max_tokens: int) -> Iterator[Tensor]:
    """Row indices of micro-batches of at most `max_tokens` packed tokens (at least one unit each), rows of like length together.
    Where not all rows of a prompt fit, it is computed once for each micro-batch."""
    prompts, responses, shared = (x.tolist() for x in (batch.prompt_mask.sum(1), batch.present.sum(1), batch.shared))
    whole: dict[int, int] = {}
    for i, prompt in enumerate(shared):
        whole[prompt] = whole.get(prompt, prompts[i]) + responses[i]
    units = [range(i, i + batch.unit) for i in range(0, batch.rows, batch.unit)]
    units.sort(key=lambda rows: (-whole[shared[rows[0]]], shared[rows[0]]))
    chosen: list[int] = []
    tokens: dict[int, int] = {}
    for rows in units:
        more = _tokens(rows, tokens, prompts, responses, shared)
        if chosen and _size(more, len(chosen) + len(rows)) > max_tokens:
            yield torch.tensor(chosen, device=batch.response.device)
            chosen, more = [], _tokens(rows, {}, prompts, responses, shared)
        chosen, tokens = [*chosen, *rows], more
    if chosen:
        yield torch.tensor(chosen, device=batch.response.device)


def _tokens(rows: range, before: dict[int, int], prompts: list[int], responses: list[int], shared: list[int]) -> dict[int, int]:
    """The tokens of each prompt and its responses with these rows added."""
    tokens = dict(before)
    for i in rows:
        tokens[shared[i]] = tokens.get(shared[i], prompts[i]) + responses[i]
    return tokens


def _size(tokens: dict[int, int], rows: int) -> int:
    """Of what the model is given for so many rows: see `packed`."""
    return rows * max(tokens.values()) if len(tokens) == rows else sum(tokens.values())


class Packed(NamedTuple):
    """What the model is given: N tokens in one row, or rows alone. And where in it the states stand that predict every response
    token, and the one behind the last, (B, T + 1)."""

    given: dict[str, Any]
    place: Tensor


def packed(batch: Tokens) -> Packed:
    """Rows of which none shares its prompt stay rows, [prompt | response | padding]: attention is causal in them, and every token
    is where attention wants it."""
    rows = torch.arange(batch.rows, device=batch.response.device)
    leader = (batch.shared.unsqueeze(1) == batch.shared).int().argmax(1)  # the row whose prompt stands there for all
    return _alone(batch) if bool((leader == rows).all()) else _together(batch, leader)


def _given(ids: Tensor, position: Tensor, layout: Layout) -> dict[str, Any]:
    """For the model's forward: a mask of four dimensions is handed on as it is, and the layout is read in its place."""
    ones = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=ids.device)
    return {"input_ids": ids, "position_ids": position, "attention_mask": ones, "layout": layout}


def _alone(batch: Tokens) -> Packed:
    length, prompt = batch.present.sum(1), batch.prompt_mask.sum(1, keepdim=True)
    steps = torch.arange(batch.response.shape[1], device=length.device)
    position = torch.arange(int((prompt.squeeze(1) + length).max()), device=length.device).expand(batch.rows, -1)
    behind = position - prompt
    ids = batch.prompt.new_zeros(position.shape)
    ids[behind < 0] = batch.prompt[batch.prompt_mask]
    ids[(behind >= 0) & (behind < length.unsqueeze(1))] = batch.response[batch.present]
    first = (torch.arange(batch.rows, device=length.device) * position.shape[1]).unsqueeze(1)
    place = torch.cat([prompt - 1, (prompt + steps).clamp(max=position.shape[1] - 1)], 1) + first
    return Packed(_given(ids, position, Layout()), place)


def _together(batch: Tokens, leader: Tensor) -> Packed:
    device = batch.response.device
    length, prompt = batch.present.sum(1), batch.prompt_mask.sum(1)
    widest, longest = torch.arange(int(prompt.max()), device=device), torch.arange(int(length.max()), device=device)
    leads = leader == torch.arange(batch.rows, device=device)
    read = batch.prompt_mask & leads.unsqueeze(1)
    ends = (prompt * leads).cumsum(0)
    begins = (ends - prompt)[leader]  # where a row's prompt begins
    starts = ends[-1] + length.cumsum(0) - length  # where its response does
    ids = torch.cat([batch.prompt[read], batch.response[batch.present]])
    steps = torch.arange(batch.response.shape[1], device=device)
    position = torch.cat([(batch.prompt_mask.cumsum(1) - 1)[read], (prompt.unsqueeze(1) + steps)[batch.present]])
    last = len(ids) - 1  # what pads the places below is read by nobody

    of_prompt = (begins.unsqueeze(1) + widest).clamp(max=last)
    response = (starts.unsqueeze(1) + longest).clamp(max=last)
    at_prompt, at_response = widest < prompt.unsqueeze(1), longest < length.unsqueeze(1)
    own = at_response.new_ones(len(longest), len(longest)).tril()
    mask = torch.cat([at_prompt.unsqueeze(1).expand(-1, len(longest), -1), own.expand(batch.rows, -1, -1)], 2).unsqueeze(1)
    causal, seen = of_prompt[leads], torch.cat([of_prompt, response], 1)
    places = torch.arange(causal.numel() + response.numel(), device=device)
    one, other = places[: causal.numel()].view_as(causal), places[causal.numel() :].view_as(response)
    layout = Layout(causal, response, seen, mask, torch.cat([one[at_prompt[leads]], other[at_response]]))
    place = torch.cat([(begins + prompt - 1).unsqueeze(1), starts.unsqueeze(1) + steps], 1).clamp(max=last)
    return Packed(_given(ids.unsqueeze(0), position.unsqueeze(0), layout), place)


def states(model: Any, batch: Tokens) -> Tensor:
    """(B, T + 1, H) hidden states of a model of transformers before every response token, and behind the last; of a batch that has
    `shared`. Undefined where the mask is 0."""
    given, place = packed(batch)
    hidden: Tensor = model.base_model(**given, use_cache=False).last_hidden_state
    return hidden.flatten(0, 1)[place]


def _takes(model: Any) -> bool:
    """Whether a model is packed: one of transformers, with attention that does as it is told. Its attention is ours then."""
    if model not in _known:
        _known[model] = can(model) and _same(model)
        if not _known[model] and getattr(model.config, "_attn_implementation", None) == attention.NAME:
            model.set_attn_implementation(TORCHS)
    return _known[model]


def can(model: Any) -> bool:
    """Whether a model's code and config let it be packed: it hands a layout on, to attention of a kind that takes one, over all
    tokens."""
    config = model.config.get_text_config()
    handed_on = any(p.kind is p.VAR_KEYWORD for p in signature(model.base_model.forward).parameters.values())
    windows = getattr(config, "sliding_window", None) or set(getattr(config, "layer_types", None) or ()) - {"full_attention"}
    # A mask of ours would take the place of the windows.
    return handed_on and getattr(config, "_attn_implementation", None) in (TORCHS, attention.NAME) and not windows


@torch.no_grad()
def _same(model: Any) -> bool:
    """A probe: whether two responses behind one prompt have the hidden states they have in rows of their own, and whether these
    become the model's logits by its head alone. Positions that count columns, states that run on from token to token, logits that
    are changed behind the head: such models are computed plainly."""
    size, device = model.config.get_text_config().vocab_size, model.device
    ids = (torch.arange(3, 18, device=device) * 7919 % size).view(3, 5)
    ones = torch.ones(2, 5, dtype=torch.bool, device=device)
    batch = Tokens(ids[:1].expand(2, 5), ones, ids[1:], ones, shared=torch.zeros(2, dtype=torch.long, device=device))
    rows = torch.cat([batch.prompt, batch.response], 1)
    plain = model.base_model(input_ids=rows, use_cache=False).last_hidden_state[:, 4:].float()
    try:
        attention.install(model)
        off = (states(model, batch).float() - plain).norm() / plain.norm()
    except Exception as error:  # a model's own code that does not hand on what attention is given fails in its own way
        if memory.short(error):
            raise
        return False
    near = ROUNDING.get(next(model.parameters()).dtype, 1e-3)
    head = any_head(model)
    if head is None:
        return bool(off < near)
    logits = model(input_ids=rows, use_cache=False, logits_to_keep=1).logits.float()
    made = head(plain[:, -1:].to(head.module.weight.dtype)).float()
    return bool(off < near) and bool((made - logits).norm() < near * logits.norm())
