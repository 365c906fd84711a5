"""Forward passes: what a model says about a batch. Nothing here knows what for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor

from grape.maths.kl import kl_exact
from grape.maths.logprob import blocks, entropies, log_softmax, predicting_columns, token_logp
from grape.models.head import any_head, chunk, chunked_logp, each_chunk, head_of, hidden_states
from grape.models.protocols import LanguageModel, ScalarModel
from grape.models.shared import share, states, within
from grape.types import Outputs, Tokens

Dtype = Literal["float32", "bfloat16"]  # of matrix products
Weights = Literal["float32", "bfloat16", "float16"]  # of what a model that is not trained is kept in


def inputs(batch: Tokens) -> dict[str, Tensor]:
    """Rows [prompt | response] with attention mask and positions that start at 0 at the first real token of each row.

    Without explicit positions a left-padded row would begin at its padding's position: wrong for learned positions (GPT-2).
    """
    ids = torch.cat([batch.prompt, batch.response], 1)
    attention = torch.cat([batch.prompt_mask, batch.present], 1).long()
    return {"input_ids": ids, "attention_mask": attention, "position_ids": (attention.cumsum(1) - 1).clamp(min=0)}


def autocast(dtype: Dtype, device: torch.device) -> torch.autocast:
    """bfloat16: matrix products in bfloat16, weights, softmax and losses in float32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=dtype == "bfloat16")


def response_logits(model: LanguageModel, batch: Tokens, dtype: Dtype = "float32") -> Tensor:
    """(B, T, V) logits that predict the response's tokens; the head runs on those positions alone."""
    with autocast(dtype, batch.prompt.device):
        logits: Tensor = model(**_asked(batch), use_cache=False).logits
    return logits


def _asked(batch: Tokens) -> dict[str, Tensor]:
    columns = predicting_columns(batch.prompt.shape[1], batch.response.shape[1], batch.prompt.device)
    return {**inputs(batch), "logits_to_keep": columns}


def language(
    model: LanguageModel,
    batch: Tokens,
    temperature: float = 1.0,
    dtype: Dtype = "float32",
    entropy_gradient: bool = False,
    distribution: bool = False,
) -> Outputs:
    """log pi(y_t | s_t) and entropies of a causal language model; with `distribution` also log pi(. | s_t) of the mask's tokens."""
    packed = batch.get("shared") is not None
    head = any_head(model) if packed else None if distribution else head_of(model, batch.response.numel())
    with autocast(dtype, batch.prompt.device):
        hidden = None if head is None else states(model, batch)[:, :-1] if packed else hidden_states(model, head, _asked(batch))
        if head is None or hidden is None:
            logits = response_logits(model, batch, dtype)
            logits = logits[batch.mask] if distribution else logits
        elif distribution:
            logits = head(hidden[batch.mask])
        else:
            logp, entropy = chunked_logp(head, hidden, batch.response, batch.mask, temperature, entropy_gradient)
            return Outputs(logp=logp, entropy=entropy)
    if distribution:
        return _distributed(log_softmax(logits, temperature), batch, entropy_gradient)
    logp, entropy = token_logp(logits, batch.response, batch.mask, temperature, entropy_gradient)
    return Outputs(logp=logp, entropy=entropy)


def _distributed(logp_all: Tensor, batch: Tokens, entropy_gradient: bool) -> Outputs:
    """Of the mask's N tokens, (N, V): where lengths differ there are far fewer of them than places (B, T)."""
    mask = batch.mask
    logp = logp_all.gather(-1, batch.response[mask].unsqueeze(-1)).squeeze(-1)
    entropy = entropies(logp_all if entropy_gradient else logp_all.detach())
    zeros = torch.zeros(mask.shape, dtype=torch.float32, device=mask.device)
    return Outputs(logp=zeros.masked_scatter(mask, logp), entropy=zeros.masked_scatter(mask, entropy), distribution=logp_all)


def scalar(model: ScalarModel, batch: Tokens, dtype: Dtype = "float32") -> Outputs:
    """r(x, y) of a scalar model, read at the last real token of each row (from the mask, not from a pad id)."""
    rows, length = torch.arange(batch.rows, device=batch.response.device), batch.present.sum(1)
    with autocast(dtype, batch.prompt.device):
        if batch.get("shared") is not None:
            hidden = states(model, batch)[rows, length]
        else:
            hidden = model.base_model(**inputs(batch), use_cache=False).last_hidden_state
            hidden = hidden[rows, batch.prompt.shape[1] + length - 1]
        # A head that is trained above frozen weights in half precision is in full.
        score = model.score(hidden.to(next(model.score.parameters()).dtype))
    return Outputs(score=score.float().squeeze(-1))


def micro_batches(batch: Tokens, max_tokens: int) -> Iterator[Tensor]:
    """Row indices of micro-batches of at most `max_tokens` tokens, padding included (at least one unit each), rows of like length
    together."""
    if batch.get("shared") is not None:
        yield from within(batch, max_tokens)
        return
    lengths = batch.prompt_mask.sum(1) + batch.present.sum(1)
    units = lengths.view(-1, batch.unit).amax(1)
    order = torch.argsort(units, descending=True, stable=True)
    offsets = torch.arange(batch.unit, device=order.device)
    start = 0
    while start < len(order):
        # Rows come longest first, so the first one sets the width of its micro-batch (up to how prompt and response split it).
        count = max(1, max_tokens // (max(int(units[order[start]]), 1) * batch.unit))
        chosen = order[start : start + count]
        yield (chosen.unsqueeze(1) * batch.unit + offsets).reshape(-1)
        start += count


@torch.no_grad()
def batched_language(model: LanguageModel, batch: Tokens, temperature: float, max_tokens: int, dtype: Dtype = "float32") -> Outputs:
    """`language` without gradient, in micro-batches: for pi_old and pi_ref."""
    batch = share(model, batch)
    logp = torch.zeros(batch.response.shape, dtype=torch.float32, device=batch.response.device)
    entropy = torch.zeros_like(logp)
    for index in micro_batches(batch, max_tokens):
        part = batch.select(index)
        out = language(model, part, temperature, dtype)
        logp[index, : part.mask.shape[1]] = out.logp
        entropy[index, : part.mask.shape[1]] = out.entropy
    return Outputs(logp=logp, entropy=entropy)


@torch.no_grad()
def batched_scores(model: ScalarModel, batch: Tokens, max_tokens: int, dtype: Dtype = "float32") -> Tensor:
    """`scalar` without gradient, in micro-batches: (B,)."""
    batch, score = share(model, batch), torch.zeros(batch.rows, device=batch.response.device)
    for index in micro_batches(batch, max_tokens):
        score[index] = scalar(model, batch.select(index), dtype).score
    return score


@torch.no_grad()
def exact_kl(
    policy: LanguageModel, reference: LanguageModel, batch: Tokens, temperature: float, max_tokens: int, dtype: Dtype = "float32"
) -> tuple[Tensor, Tensor]:
    """KL(pi || ref) over the vocabulary at every response token of pi's samples, and pi's entropy, both (B, T) in nats."""
    kl = torch.zeros(batch.response.shape, device=batch.response.device)
    entropy = torch.zeros_like(kl)
    for index in micro_batches(batch, max_tokens):
        part = batch.select(index)
        width = part.mask.shape[1]
        kl[index, :width], entropy[index, :width] = _exact_kl(policy, reference, part, temperature, dtype)
    return kl, entropy


def _exact_kl(
    policy: LanguageModel, reference: LanguageModel, part: Tokens, temperature: float, dtype: Dtype
) -> tuple[Tensor, Tensor]:
    """Of one micro-batch, both (B, T), 0 outside the mask."""

    def compared(p_logits: Tensor, q_logits: Tensor) -> tuple[Tensor, Tensor]:
        kl, entropy = (torch.empty(len(p_logits), device=p_logits.device) for _ in range(2))
        for rows in blocks(p_logits):
            p, q = log_softmax(p_logits[rows], temperature), log_softmax(q_logits[rows], temperature)
            kl[rows], entropy[rows] = kl_exact(p, q), entropies(p)
        return kl, entropy

    p_head, q_head = (head_of(model, part.response.numel()) for model in (policy, reference))
    if p_head is not None and q_head is not None:
        with autocast(dtype, part.response.device):
            hidden = [hidden_states(model, head, _asked(part)) for model, head in ((policy, p_head), (reference, q_head))]
            if hidden[0] is not None and hidden[1] is not None:
                size = chunk(p_head.vocabulary, part.mask.device)
                return each_chunk(lambda p, q: compared(p_head(p), q_head(q)), size, part.mask, hidden[0], hidden[1])
    logits = (response_logits(model, part, dtype).flatten(0, 1) for model in (policy, reference))
    kl, entropy = (x.view_as(part.mask) * part.mask for x in compared(*logits))
    return kl, entropy
