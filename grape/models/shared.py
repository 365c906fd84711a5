"""Rows that share a prompt, computed once: [prompt | response | response | ..] is one row of the model, in which a response sees
the prompt and itself alone. A round of P prompts and G answers to each reads P prompts instead of P x G, forward and backward.

What stands in such a row has no padding between prompt and response either, so a row that shares its prompt with none is packed
too. Every token sees the tokens it would see in a row of its own, at the positions it would have there: what is computed is the
same, in another order of additions. Small models keep the plain rows of `grape.models.forward.inputs`.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from typing import Any, NamedTuple, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from grape import memory
from grape.models.head import any_head
from grape.models.protocols import Trainable
from grape.types import Tokens

# Weights from which on a model is packed. Below it a step is mostly what Python and torch's calls cost, which packing adds to.
LARGE = 5_000_000
# What a probe may differ by, of the size of the hidden states: rounding is far below it, a wrong mask or position far above.
ROUNDING = {torch.float32: 1e-3, torch.bfloat16: 5e-2, torch.float16: 1e-2}
_known: WeakKeyDictionary[Any, bool] = WeakKeyDictionary()
AnyTokens = TypeVar("AnyTokens", bound=Tokens)


def share(model: Trainable, batch: AnyTokens) -> AnyTokens:
    """The batch with `shared`, where the model is large and reads packed rows as it reads plain ones; else as it is."""
    trunks: list[Any] = [m for m in (getattr(model, "policy", model), getattr(model, "value", None)) if m is not None]
    if batch.get("shared") is not None or not all(_takes(trunk) for trunk in trunks):
        return batch
    return batch.with_(shared=_parts(batch, trunks[0].config.get_text_config().hidden_size))


def _parts(batch: Tokens, width: int) -> Tensor:
    """(B,) which rows are packed together: those of one prompt, as long as attention among strangers costs less than the prompt.

    In a model of width H, attention of a token to R = 2 H others takes as long as the matrices it goes through. A packed row of
    L = S + k T tokens then costs L (R + L), and that by k responses is least for k T = sqrt(S^2 + S R).
    """
    plain = batch.prompt.masked_fill(~batch.prompt_mask, -1)
    owner = torch.unique(plain, dim=0, return_inverse=True)[1].cpu()
    prompts, responses = batch.prompt_mask.sum(1).tolist(), batch.present.sum(1).tolist()
    found, number = torch.zeros(batch.rows, dtype=torch.long), 0
    order = sorted(range(0, batch.rows, batch.unit), key=owner.tolist().__getitem__)
    for _, units in groupby(order, key=owner.tolist().__getitem__):
        together, first = list(units), number
        rows = [i + j for i in together for j in range(batch.unit)]
        s, total = prompts[rows[0]], sum(responses[i] for i in rows)
        most = max(1, round((s * s + s * 2 * width) ** 0.5 * len(together) / max(total, 1)))
        count = -(-len(together) // most)
        for place, i in enumerate(together):
            number = first + place * count // len(together)
            found[i : i + batch.unit] = number
        number += 1
    return found.to(batch.response.device)


def within(batch: Tokens, max_tokens: int) -> Iterator[Tensor]:
    """Row indices of micro-batches of at most `max_tokens` packed tokens (at least one unit each), rows of like length together.
    A packed row that is longer is cut, and its prompt computed once for each piece."""
    prompts, responses, shared = (x.tolist() for x in (batch.prompt_mask.sum(1), batch.present.sum(1), batch.shared))
    whole: dict[int, int] = {}
    for i, part in enumerate(shared):
        whole[part] = whole.get(part, prompts[i]) + responses[i]
    units = [range(i, i + batch.unit) for i in range(0, batch.rows, batch.unit)]
    units.sort(key=lambda rows: (-whole[shared[rows[0]]], shared[rows[0]]))
    chosen: list[int] = []
    lengths: dict[int, int] = {}
    for rows in units:
        more = _lengths(rows, lengths, prompts, responses, shared)
        if chosen and len(more) * max(more.values()) > max_tokens:
            yield torch.tensor(chosen, device=batch.response.device)
            chosen, more = [], _lengths(rows, {}, prompts, responses, shared)
        chosen, lengths = [*chosen, *rows], more
    if chosen:
        yield torch.tensor(chosen, device=batch.response.device)


def _lengths(rows: range, before: dict[int, int], prompts: list[int], responses: list[int], shared: list[int]) -> dict[int, int]:
    """The lengths of packed rows with these rows added."""
    lengths = dict(before)
    for i in rows:
        lengths[shared[i]] = lengths.get(shared[i], prompts[i]) + responses[i]
    return lengths


class Packed(NamedTuple):
    """R packed rows of W tokens: what the model is given, and where in (R x W) the states stand that predict every response token,
    and the one behind the last, (B, T + 1)."""

    given: dict[str, Any]
    place: Tensor


def packed(batch: Tokens) -> Packed:
    length, prompt = batch.present.sum(1), batch.prompt_mask.sum(1)
    part = torch.unique(batch.shared, return_inverse=True)[1]
    same = part.unsqueeze(1) == part
    start = prompt + (same.tril(-1) * length).sum(1)  # where a row's response begins: behind those before it
    first = same.int().argmax(1) == torch.arange(batch.rows, device=part.device)  # the row whose prompt stands there for all
    width, count, steps = int((start + length).max()), int(first.sum()), torch.arange(batch.response.shape[1], device=part.device)
    ids = batch.prompt.new_zeros(count, width)
    owner = ids - 1  # 0: the prompt; a row's number from 1 on: its response; -1: padding
    position = torch.arange(width, device=part.device).repeat(count, 1)
    read = batch.prompt_mask & first.unsqueeze(1)
    at = part.unsqueeze(1).expand_as(read)[read], (batch.prompt_mask.cumsum(1) - 1)[read]
    ids[at], owner[at] = batch.prompt[read], 0
    row, column = part.unsqueeze(1).expand_as(batch.present), start.unsqueeze(1) + steps
    at = row[batch.present], column[batch.present]
    ids[at] = batch.response[batch.present]
    owner[at] = (torch.arange(batch.rows, device=part.device) + 1).unsqueeze(1).expand_as(row)[batch.present]
    position[at] = (prompt.unsqueeze(1) + steps)[batch.present]
    mask = None  # a row alone is causal, and what pads it stands behind it
    if count < batch.rows:
        seen = owner.unsqueeze(1)
        mask = (((seen == 0) | (seen == owner.unsqueeze(2))) & position.new_ones(width, width).bool().tril()).unsqueeze(1)
    place = torch.cat([prompt.unsqueeze(1) - 1, column.clamp(max=width - 1)], 1) + part.unsqueeze(1) * width
    return Packed({"input_ids": ids, "position_ids": position, "attention_mask": mask}, place)


def states(model: Any, batch: Tokens) -> Tensor:
    """(B, T + 1, H) hidden states of a model of transformers before every response token, and behind the last; of a batch that has
    `shared`. Undefined where the mask is 0."""
    given, place = packed(batch)
    hidden: Tensor = model.base_model(**given, use_cache=False).last_hidden_state
    return hidden.flatten(0, 1)[place]


def _takes(model: Any) -> bool:
    """Whether a model is packed: large, of transformers, and with attention that does as it is told."""
    if model not in _known:
        _known[model] = sum(p.numel() for p in model.parameters()) >= LARGE and _can(model) and _same(model)
    return _known[model]


def _can(model: Any) -> bool:
    config = model.config.get_text_config()
    windows = getattr(config, "sliding_window", None) or set(getattr(config, "layer_types", None) or ()) - {"full_attention"}
    # A mask of ours would take the place of the windows.
    return getattr(config, "_attn_implementation", None) == "sdpa" and not windows


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
        off = (states(model, batch).float() - plain).norm() / plain.norm()
    except Exception as error:  # a model's own code that cannot read a mask of four dimensions fails in its own way
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
